"""What computes nothing with tensors does not wait for torch: one process runs every case."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from commands._program import discover
from imgtool.config.identity import to_dict
from imgtool.config.load import load
from imgtool.data.synthetic.make import make_faces
from imgtool.models.registry import FAMILIES, schema
from tests.experiment.conftest import checkpoint_bytes
from tests.latents import make_latents

# Of these, what is refused is refused without torch; what they do needs it.
COMPUTES = {"compress", "convert", "decompress", "edit", "encode", "eval-fid", "export", "train"}
MISSING = {
    "eval edit": ["eval", "edit", "nowhere.safetensors", "--judge", "e"],
    "eval latents": ["eval", "latents", "nowhere.safetensors"],
    "eval rd": ["eval", "rd", "--ckpt", "e", "--data", "nowhere"],
    "encode": ["encode", "nowhere.safetensors", "-o", "out.safetensors"],
    "export": ["export", "nowhere.safetensors", "out.safetensors"],
}
# These start programs that compute, and need nothing but the program.
STARTS = {"demo", "prepare", "run-timed", "torchrun"}

COMMANDS = {
    "cancel": ["cancel", "e", "--dry-run"],
    "compare": ["compare", "e", "hpcm"],
    "config": ["config", "show", "--family", "autoencoder"],
    "config check": ["config", "check", "phase1_1/S5"],
    "data check": ["data", "check", "photos"],
    "data check of faces": ["data", "check", "faces"],
    "data pack": ["data", "pack", "photos", "packed.safetensors"],
    "data check of a packed file": ["data", "check", "packed.safetensors"],
    "data make": ["data", "make", "layouts", "made", "--n", "1", "--size", "64"],
    "data align": ["data", "align", "faces", "aligned", "--size", "64"],
    "eval bd-rate": ["eval", "bd-rate", "a.json", "b.json"],
    "logs": ["logs", "e"],
    "presets": ["presets", "list"],
    "presets show": ["presets", "show", "phase1_1/S5"],
    "prune": ["prune", "e", "--keep", "1"],
    "schema": ["schema"],
    "select-winner": ["select-winner", "e"],
    "status": ["status", "e"],
    "sweep": ["sweep", "phase1_1", "--dry-run"],
    "update-config": ["update-config", "e/config.yaml", "--set", "train.lr=0.1", "--dry-run"],
}

MISTAKES = {
    "no data root": (["--data-root", "nowhere"], "nowhere: no such folder"),
    "no preset of that name": (["--config", "phase1_1/S55"], "S55"),
    "no such choice": (["--set", "train.optimizer=adamm"], "train.optimizer"),
    "out of range": (["--lr", "-1"], "train.lr"),
    "no such option": (["--learning-rat", "1"], "no such option"),
    "early stopping without images": (
        ["--val-fraction", "0", "--patience", "2"],
        "early stopping needs validation images",
    ),
    "another experiment's directory": (["--exp-dir", "FAMILY"], "belongs to another experiment"),
}
OF_ONE = {
    "flow": {  # the file says what validates
        "no data root": (["--data-root", "nowhere"], "nowhere: no such file"),
        "early stopping without images": (
            ["--data-root", "plain.safetensors", "--patience", "2"],
            "early stopping needs validation images",
        ),
        "no such condition": (
            ["--data-root", "plain.safetensors", "--condition", "mask"],
            "the latents have no masks",
        ),
        "patches that do not cover": (["--patch-size", "3"], "does not divide latents of 8 x 12"),
    },
    "autoencoder": {"heads without a target": ([], "the data has no masks and labels")},
    "attributes": {
        "no such attribute": (["--attributes", "Smile"], "Smiling"),
        "data.attributes": (["--set", "data.attributes=[Bangs,Bangs]"], "names one twice"),
    },
    "genegan": {"no such attribute": (["--attribute", "Smile"], "Smiling")},
    "hpcm": {"too small for the loss": (["--distortion", "ms-ssim", "--crop", "8"], "too small")},
}

PROGRAM = """
import contextlib, io, json, sys

class Refuser:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            asked.append(name)
            raise ImportError("torch was asked for")

asked, answers = [], {}
sys.meta_path.insert(0, Refuser())
from commands.main import main

for name, words in json.load(sys.stdin).items():
    asked.clear()
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main(words)
    except SystemExit as left:
        answers[name] = [left.code, bool(asked), err.getvalue()]
    except ImportError as error:
        answers[name] = [None, bool(asked), str(error)]
print(json.dumps(answers))
"""


def train_words(family, more):
    folder = {"genegan": "faces", "attributes": "faces", "flow": "latents.safetensors"}.get(
        family, "photos"
    )
    more = [word.replace("FAMILY", family) for word in more]
    given = [] if "--exp-dir" in more else ["--exp-dir", "new"]
    return ["train", family, "--data-root", folder, *given, *more]


def make_experiment(folder, family):
    """A trained directory whose checkpoint says another seed than the default."""
    sets = ["train.seed=7", f"name={family}"]
    loaded = load(None, family=family, schema_of=schema, sets=sets)
    (folder / "checkpoints").mkdir(parents=True)
    for number in (1, 2):
        data = checkpoint_bytes(number, config=to_dict(loaded.experiment), family=family)
        (folder / "checkpoints" / f"iter_{number:06d}.safetensors").write_bytes(data)
    (folder / "config.yaml").write_text(f"family: {family}\nname: {family}\ntrain: {{lr: 0.2}}\n")
    facts = {"latent_dims": 64, "latent_shape": [4, 4, 4]}
    status = {"state": "completed", "facts": facts, "best": {"metric": "val_mse", "iteration": 2}}
    (folder / "status.json").write_text(json.dumps(status))
    table = "iteration,epoch,val_mse,val_psnr\n1,1,0.2,20\n2,2,0.1,30.5\n"
    (folder / f"{family}_metrics.csv").write_text(table)
    (folder / "train.log").write_text("a line\n")


def cases():
    found = {f"command {name}": words for name, words in COMMANDS.items()}
    found |= {f"missing: {name}": words for name, words in MISSING.items()}
    for family in FAMILIES:
        for name, (more, _) in {**MISTAKES, **OF_ONE.get(family, {})}.items():
            found[f"{family}: {name}"] = train_words(family, more)
    return found


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("here")
    rng = np.random.default_rng(0)
    (folder / "photos").mkdir()
    for number in range(4):
        pixels = rng.integers(0, 256, (300, 300, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / f"{number}.png")
    make_faces(folder / "faces", 8, seed=0)
    make_latents(folder / "latents.safetensors")
    make_latents(folder / "plain.safetensors", 3, labels=0, classes=0)
    make_experiment(folder / "e", "autoencoder")
    for family in FAMILIES:
        make_experiment(folder / family, family)
    for name, gain in (("a", 0), ("b", 1)):  # CompressAI's schema
        points = {"bpp": [0.1, 0.2, 0.4, 0.8], "psnr-rgb": [30 + gain, 33, 36, 39]}
        (folder / f"{name}.json").write_text(json.dumps({"name": name, "results": points}))
    environ = {key: value for key, value in os.environ.items() if key != "IMGTOOL_FORMAT"}
    environ["XDG_CONFIG_HOME"] = str(folder / "config")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps(cases()),
        capture_output=True,
        text=True,
        cwd=folder,
        env=environ,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", COMMANDS)
def test_what_computes_nothing_needs_no_torch(answers, name):
    code, asked, err = answers[f"command {name}"]
    assert not asked, err
    assert code == 0, err


@pytest.mark.parametrize("name", MISSING)
def test_what_is_not_there_is_said_without_torch(answers, name):
    code, asked, err = answers[f"missing: {name}"]
    assert not asked, err
    assert code == 4, err
    assert "nowhere" in err


@pytest.mark.parametrize("family", FAMILIES)
def test_what_can_be_refused_without_torch_is(answers, family):
    for name, (_, words) in {**MISTAKES, **OF_ONE.get(family, {})}.items():
        code, asked, err = answers[f"{family}: {name}"]
        assert not asked, (name, err)
        assert code in (2, 4), (name, err)
        assert words in err, (name, err)


def test_every_command_is_here_or_computes():
    here = {words[0] for words in COMMANDS.values()}
    assert here | COMPUTES | STARTS == set(discover())
