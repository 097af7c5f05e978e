"""No mistake at the command line ends in a traceback: every command, 200 mutations of a good line.

Words are dropped, doubled, swapped and replaced; files that the line names are cut, flipped,
replaced by folders, loops and files of another kind. `pytest -m slow -k mutations`.
"""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands.test_main import ROOT, all_commands
from tests.latents import make_latents

NUM_MUTATIONS = int(os.environ.get("IMGTOOL_MUTATIONS", "200"))
LIMIT_SEC = {
    "demo": 2,
    "prepare": 8,
    "torchrun": 8,
    "run-timed": 8,
}  # they start processes of imgtool
QUICK = ("--device", "cpu")
CODEC = ("--ckpt", "codec.safetensors")
FACES = ("--ckpt", "genegan", "--input", "a.png")

# A line that works for every command, or several, in the folder that `world` makes.
LINES = {
    "cancel": ["autoencoder", "--grace", "1s"],
    "compare": ["autoencoder", "table_metrics.csv", "--metric", "val_mse", "--plot", "new.png"],
    "compress": ["a.png", *CODEC, "-o", "new.hpcm", "--threads", "1", *QUICK],
    "config check": ["study.yaml", "one.yaml", "--family", "autoencoder"],
    "config show": ["one.yaml", "--set", "train.lr=1e-3", "--tiny"],
    "convert": ["old.pt", "--config", "genegan/exp00", "--exp-dir", "new", "--dry-run"],
    "data align": ["faces", "new", "--size", "64", "--workers", "1", "--skip-bad"],
    "data check": ["layouts", "--dataset", "layouts"],
    "data make faces": ["new", "--n", "2", "--aligned", "--seed", "1", "--workers", "1"],
    "data make layouts": ["new", "--n", "2", "--size", "64", "--seed", "1"],
    "data make photos": ["new", "--n", "2", "--size", "64", "--image-format", "jpg"],
    "data pack": ["photos", "new.safetensors", "--image-size", "48", "--skip-bad"],
    "decompress": ["a.hpcm", *CODEC, "-o", "new.png", "--max-pixels", "100000", *QUICK],
    "demo": ["new", "--seconds", "5"],
    "edit interpolate": [*FACES, "--target", "b.png", "--steps", "2", "--out", "new.png"],
    "edit matrix": [*FACES, "--targets", "a.png", "b.png", "a.png", "b.png", "--out", "new.png"],
    "edit swap": [*FACES, "--target", "b.png", "--out", "new.png", "--img-size", "64"],
    "encode": ["autoencoder", "photos", "--crop", "32", "-o", "new.safetensors", *QUICK],
    "eval bd-rate": ["a.json", "b.json"],
    "eval edit": [
        *("genegan", "--judge", "judge", "--n", "2", "--resamples", "100", "--steps", "2"),
        *("--report", "new", *QUICK),
    ],
    "eval latents": ["autoencoder", "--num-images", "4", "--num-pairs", "2", *QUICK],
    "eval metrics": ["autoencoder", "--split", "val", "--resamples", "100", *QUICK],
    "eval rd": [
        "--codec",
        "jpeg",
        "--quality",
        "10",
        "90",
        "--data",
        "photos",
        "--out",
        "new.json",
    ],
    "eval-fid": [
        *("--real", "photos", "--fake", "photos", "--weights", "random", "--n", "4"),
        *("--cache-dir", "cache", *QUICK),
    ],
    "export": [
        ["hpcm", "new.safetensors", "--force"],
        ["hpcm", "new.safetensors", "--force", "--portable", "--calibrate", "photos"],
        ["kl", "new", "--to", "diffusers", "--num-images", "4", "--force", *QUICK],
        ["kl", "new", "--to", "onnx", "--dry-run"],
    ],
    "logs": ["autoencoder", "-n", "5"],
    "prepare": ["autoencoder", "presets", "list", "--format", "paths"],
    "presets copy": ["phase1_1", "new", "--force"],
    "presets list": ["--format", "paths"],
    "presets show": ["phase1_1/S5"],
    "prune": ["autoencoder", "--keep", "1", "--keep-every", "2", "--max-loss", "1e3"],
    "run-timed": [
        *("--exp-dir", "new", "--duration", "2s", "--grace", "1s", "--kill-after", "1s"),
        *("--keep", "1", "--", "true"),
    ],
    "schema": ["autoencoder", "-o", "new.json"],
    "select-winner": [
        "autoencoder",
        "table_metrics.csv",
        "--rule",
        "best",
        "--set",
        "threshold=0.1",
    ],
    "status": ["autoencoder", "--interval", "1s", "--state", "completed,stopped"],
    "sweep": [
        "study.yaml",
        "--set",
        "data.root=photos",
        "--only",
        "one",
        "--poll",
        "1s",
        "--dry-run",
    ],
    "torchrun": ["--nproc-per-node", "1", "train", "autoencoder", "--dry-run"],
    "train attributes": [
        *("--tiny", "--attributes", "Smiling", "--data-root", "faces", "--max-iter", "1"),
        *("--exp-dir", "judge", *QUICK, "--dry-run"),
    ],
    "train autoencoder": [
        *("--config", "one.yaml", "--tiny", "--data-root", "photos", "--max-iter", "1"),
        *("--exp-dir", "new", *QUICK),
    ],
    "train genegan": [
        *("--tiny", "--attribute", "Smiling", "--data-root", "faces", "--max-iter", "1"),
        *("--exp-dir", "genegan", *QUICK, "--dry-run"),
    ],
    "train flow": [
        *("--tiny", "--data-root", "latents.safetensors", "--condition", "label"),
        *("--exp-dir", "flow", *QUICK, "--dry-run"),
    ],
    "train hpcm": [
        *("--tiny", "--data-root", "photos", "--lambda", "0.01", "--exp-dir", "hpcm", *QUICK),
        *("--dry-run",),
    ],
    "update-config": ["one.yaml", "--from", "winner.json", "--keys", "train.lr", "--dry-run"],
}

NASTY = [
    "", " ", "-", "--", "---", "-x", "--json", "--format", "0", "-1", "1e999", "-1e-999", "nan",
    "inf", "99999999999999999999999", "1" * 5000, "x" * 300, "x/" * 2500, "a" * 100_000, ".", "..",
    "/", "~", "~nobody/x", "/dev/null", "/dev/full", "/proc/self/mem", "/proc/1/environ", "loop",
    "locked", "one.yaml", "photos", "a.png", "table_metrics.csv", "\udcff\udcfe", "é💥", "a\nb",
    "a\tb", "a,b,,", ",", "=", "a=", "=b", "a=b=c", "[", "{", "{}", "null", "'", '"', "%s%n", "*",
    "train.lr=", "train.lr={a: [1}", "train=1", "model.heads=[rgb, 3]", "\x1b[31m", "0x10", "१२",
    "1h1h", "5ep", "cuda:99", "mps", "fifo", "model.latent_channels=null", "threshold=nan",
]  # fmt: skip


@pytest.fixture(scope="module")
def runner():
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("IMGTOOL_FORMAT", None)
    with subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("mutating.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**environment, "HOME": "/nonexistent", "WANDB_MODE": "disabled"},
    ) as process:

        def run(words, folder, limit_sec=30):
            task = {"words": words, "folder": str(folder), "limit_sec": limit_sec}
            process.stdin.write(json.dumps(task) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield run
        process.stdin.close()


@pytest.fixture(scope="module")
def world(tmp_path_factory, runner):
    """Small data, five trained experiments, configs, records; copied for every mutation."""
    folder = tmp_path_factory.mktemp("world")

    def run(*words):
        answer = runner(list(words), folder, 300)
        assert answer["code"] == 0, (words, answer["output"])

    run("data", "make", "photos", "photos", "--n", "12", "--size", "64")
    run("data", "make", "layouts", "layouts", "--n", "4", "--size", "64")
    run("data", "make", "faces", "faces", "--n", "24")
    few = ("--max-iter", "1", "--device", "cpu", "--no-final-validation", "--num-workers", "0")
    training = ("--tiny", "--batch-size", "2", *few)
    run("train", "autoencoder", *training, "--data-root", "photos", "--heads", "rgb",
        "--exp-dir", "autoencoder")  # fmt: skip
    run("train", "autoencoder", *training, "--data-root", "photos", "--heads", "rgb",
        "--set", "model.architecture=kl", "--set", "model.bottleneck=kl",
        "--exp-dir", "kl")  # fmt: skip
    run("train", "hpcm", *training, "--data-root", "photos", "--exp-dir", "hpcm")
    run("train", "genegan", *training, "--data-root", "faces", "--attribute", "Smiling",
        "--official-split", "--exp-dir", "genegan")  # fmt: skip
    run("train", "attributes", *training, "--data-root", "faces", "--exp-dir", "judge")
    make_latents(folder / "latents.safetensors", 8)
    run("export", "hpcm", "codec.safetensors")
    photos = sorted((folder / "photos").rglob("*.png"))
    for name, photo in zip(("a.png", "b.png"), photos, strict=False):
        shutil.copy(photo, folder / name)
    run("compress", "a.png", "--ckpt", "codec.safetensors", "-o", "a.hpcm", "--device", "cpu")
    for name, quality in (("a", ["10", "30", "50", "80"]), ("b", ["20", "40", "60", "90"])):
        run("eval", "rd", "--codec", "jpeg", "--quality", *quality, "--data", "photos", "--out",
            f"{name}.json")  # fmt: skip
    _write_configs(folder)
    return folder


def _write_configs(folder):
    (folder / "one.yaml").write_text(
        "base: photos/base\nname: one\nfamily: autoencoder\nmodel:\n  heads: [rgb]\ntrain:\n  lr: 1e-4\n"
    )
    (folder / "study.yaml").write_text(
        "sweep: study\nexperiments: [one.yaml]\nmatrix:\n  train.seed: [0, 1]\n"
    )
    (folder / "winner.json").write_text(
        json.dumps(
            {
                "schema": "imgtool/1", "kind": "winner", "name": "A", "family": "autoencoder",
                "decides": ["train.lr"], "parameters": {"train.lr": 0.01},
            }
        )
    )  # fmt: skip
    (folder / "table_metrics.csv").write_text(
        "epoch,val_mse,val_psnr,latent_dims\n1,0.1,10,64\n2,0.05,13,64\n"
    )
    import torch

    torch.save({"step": 1, "a": torch.zeros(3)}, folder / "old.pt")
    (folder / "loop").symlink_to("loop")
    (folder / "locked").mkdir()


def mutate_words(words, rng):
    words = list(words)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        at = rng.randrange(len(words)) if words else 0
        kind = rng.choice(
            ("replace", "replace", "replace", "insert", "drop", "double", "swap", "bend")
        )
        if kind == "insert" or not words:
            words.insert(at, rng.choice(NASTY))
        elif kind == "replace":
            words[at] = rng.choice(NASTY)
        elif kind == "drop":
            del words[at]
        elif kind == "double":
            words.insert(at, words[at])
        elif kind == "swap":
            other = rng.randrange(len(words))
            words[at], words[other] = words[other], words[at]
        else:
            words[at] += rng.choice(("x", ",", "=", "/", "\udcff", "1", "é", ":"))
    return words


def mutate_file(folder, words, rng):
    """Spoil one of the files that the line names, or that lie in what it names."""
    named = [folder / word for word in words if (folder / word).exists() and word not in ("", ".")]
    files = [
        file
        for path in named
        for file in ([path] if path.is_file() else sorted(path.rglob("*")))
        if file.is_file() and file.resolve().is_relative_to(folder.resolve())
    ]
    if not files:
        return "nothing"
    path = rng.choice(files).resolve()
    data = path.read_bytes()
    kind = rng.choice(
        ("cut", "cut", "flip", "flip", "text", "empty", "folder", "loop", "fifo", "swap")
    )
    path.unlink()
    if kind == "cut":
        path.write_bytes(data[: rng.randrange(len(data) + 1)])
    elif kind == "flip":
        spoiled = bytearray(data or b"x")
        for _ in range(rng.choice((1, 4, 64))):
            spoiled[rng.randrange(min(len(spoiled), rng.choice((64, 4096, 10**9))))] = (
                rng.randrange(256)
            )
        path.write_bytes(spoiled)
    elif kind == "text":
        words = data.decode("utf-8", "surrogateescape").split(" ")
        words[rng.randrange(len(words))] = rng.choice(NASTY)
        path.write_bytes(" ".join(words).encode("utf-8", "surrogateescape"))
    elif kind == "empty":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        other = rng.choice(files)
        path.write_bytes(other.read_bytes() if other.is_file() else b"\x00" * 100)
    return f"{kind} of {path.relative_to(folder.resolve())}"


def is_silent(answer):
    """Whether a refusal has no word of error; a code of 1 may be told by records alone."""
    if answer["code"] in (0, None, -9) or "error: " in answer["output"]:
        return False
    return answer["code"] != 1 or "{" not in answer["output"]


@pytest.mark.slow
@pytest.mark.parametrize("command", [" ".join(words) for words in all_commands()])
def test_no_mutation_of_a_line_or_file_ends_in_a_traceback(command, world, runner, tmp_path):
    lines = LINES[command] if isinstance(LINES[command][0], list) else [LINES[command]]
    found = []
    for seed in range(NUM_MUTATIONS):
        rng = random.Random(f"{command} {seed}")
        folder = tmp_path / str(seed)
        shutil.copytree(world, folder, symlinks=True, copy_function=os.link)  # written by renaming
        good = lines[seed % len(lines)]
        words, what = list(good), "no file"
        if seed >= len(lines):
            kind = rng.choice(("words", "words", "file", "both"))
            words = words if kind == "file" else mutate_words(words, rng)
            what = what if kind == "words" else mutate_file(folder, good, rng)
        line = [*command.split(), *words]
        answer = runner(line, folder, LIMIT_SEC.get(command.split()[0], 30))
        said = answer["output"]
        if seed < len(lines) and command not in ("convert", "demo", "torchrun"):
            assert answer["code"] == 0, said
        if "Traceback" in said or '"error": "internal"' in said:
            found.append((seed, line, what, said[-3000:]))
        elif is_silent(answer) and command != "run-timed":
            found.append((seed, line, what, f"code {answer['code']}: {said[-500:]}"))
        shutil.rmtree(folder, ignore_errors=True)
    assert not found, "\n\n".join(
        f"seed {seed}: {shown!r:.400}; {what}\n{said}" for seed, shown, what, said in found
    )
