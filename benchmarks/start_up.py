"""How quickly the program answers, against what it cannot do without.

`imgtool --help` and a TAB against `python -c "import typer"`; `imgtool train --tiny`, from Enter
to the end of iteration 1, against importing torch and building one optimizer. Every side is a
process of its own. A training is watched by a small process that ends with its first losses; so
is its baseline.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from _pairs import report, run_pairs

IMGTOOL = str(Path(sys.executable).with_name("imgtool"))
BASELINE = [sys.executable, "-c", "import typer"]
LINES = {"completion": "imgtool tr", "completion_of_an_option": "imgtool train autoencoder --lat"}
OPTIMIZER = "import torch; torch.optim.AdamW([torch.zeros(1, requires_grad=True)])"
READY = "import sys; print('ready', file=sys.stderr, flush=True)"


def until(start: str, command: list[str]) -> None:
    """Run a command until a line of its stderr begins with `start`; FRESH is a new folder."""
    with tempfile.TemporaryDirectory() as folder:
        words = [word.replace("FRESH", folder) for word in command]
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        assert process.stderr is not None
        said = b""
        for line in process.stderr:
            said += line
            if line.startswith(start.encode()):
                break
        else:
            raise SystemExit(f"{' '.join(words)} ended without {start!r}: {said.decode()}")
        process.kill()
        process.wait()


def training(pairs: int) -> None:
    """Time the start of a training."""
    from imgtool.data.synthetic.make import make_photos

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "photos"
        make_photos(root, 16, size=128, seed=0)
        words = ["train", "autoencoder", "--tiny", "--heads", "rgb", "--data-root", str(root)]
        watched = [sys.executable, __file__, "--until"]
        ours = [*watched, "iteration 1", IMGTOOL, *words, "--exp-dir", "FRESH/exp"]
        baseline = [*watched, "ready", sys.executable, "-c", f"{OPTIMIZER}; {READY}"]
        report("training", run_pairs(ours, baseline, pairs), bound="<= 1.1")


def main() -> None:
    """Print one JSON record a comparison; `training`, `help` or `completion` for one of them."""
    if sys.argv[1:2] == ["--until"]:
        until(sys.argv[2], sys.argv[3:])
        return
    wanted = sys.argv[1:] or ["help", "completion", "training"]
    if "help" in wanted:
        report("help", run_pairs([IMGTOOL, "--help"], BASELINE, repeat=5), bound="<= 1.6")
    for name, line in LINES.items() if "completion" in wanted else ():
        words = [f"COMP_WORDS={line}", f"COMP_CWORD={line.count(' ')}"]
        tab = ["env", "_IMGTOOL_COMPLETE=complete_bash", *words, IMGTOOL]
        report(name, run_pairs(tab, ["env", *BASELINE], repeat=5), bound="<= 1.6")
    if "training" in wanted:
        training(pairs=5)


if __name__ == "__main__":
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # as on a user's machine
    main()
