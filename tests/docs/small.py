"""The program as the pages' blocks call it in tests: the same words on little data.

What a page says of sizes, limits and devices is meant for real work; here the last word is ours.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

# Option -> the value that is given again, where the command line has a larger one or a word.
_LAST_WORDS = {
    ("train",): {
        "--crop": "64",
        "--img-sizes": "32",
        "--img-size": "32",
        "--batch-size": "2",
        "--max-iter": "3",
        "--device": "cpu",
    },
    ("eval-fid",): {"--n": "8", "--img-size": "32"},
    ("data", "make"): {"--n": "12", "--size": "64"},
    ("data", "align"): {"--size": "64", "--workers": "1"},
    ("demo",): {"--seconds": "5"},
}
_LIMITS = ("max_iter=2", "val_every=2", "save_every=1", "sample_every=2", "threads=1")
_TRAINING = [
    "--tiny",
    *(word for limit in _LIMITS for word in ("--set", f"train.{limit}")),
    *("--set", "data.num_workers=0", "--set", "data.max_images=12"),
]
_ALWAYS = {
    ("train",): _TRAINING,
    ("sweep",): _TRAINING,
    ("eval-fid",): ["--weights", "random", "--batch-size", "4"],
    ("eval", "latents"): ["--num-images", "2", "--num-pairs", "2"],
}


def small(words: Sequence[str]) -> list[str]:
    """The words, with what makes the command's work small."""
    words = list(words)
    for command, options in _LAST_WORDS.items():
        if tuple(words[: len(command)]) == command:
            given = dict(zip([word.replace("_", "-") for word in words], words[1:], strict=False))
            for name, value in options.items():
                if name in given and not _is_small(given[name], value):
                    words += [name, value]
    for command, more in _ALWAYS.items():
        if tuple(words[: len(command)]) == command and "--help" not in words:
            words += more
    return words


def _is_small(given: str, value: str) -> bool:
    return given.isdigit() and value.isdigit() and int(given) <= int(value)


if __name__ == "__main__":
    from commands.main import main

    sys.argv = ["imgtool", *small(sys.argv[1:])]
    main()
