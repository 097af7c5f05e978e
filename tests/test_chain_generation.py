"""Latents judged by what is generated from them, as real processes: sweep --over, eval-fid,
select-winner."""

import json
from pathlib import Path

import pytest

from tests.docs.pages import DOCS, blocks
from tests.shell import Shell
from tests.test_chain import records

AUTOENCODERS = """
set -euo pipefail
imgtool data make layouts l --n 60 --size 64 --seed 0 --quiet
imgtool sweep phase1_1 --only S7,S10 --tiny --set data.manifest=l/layouts.csv \
    --set train.max_iter=6 --set train.val_every=3 --slots 2 --quiet
"""
# The page's own lines, small.
SMALL = {
    "imgtool sweep flow_probe --over experiments/phase1_1_latent_shape_sweep/*": (
        "imgtool sweep flow_probe --over experiments/phase1_1_latent_shape_sweep/tiny/* --tiny "
        "--set train.max_iter=6 --set train.val_every=6 --set train.sample_every=6 --slots 2"
    ),
    "imgtool eval-fid --sweep flow_probe": (
        "imgtool eval-fid --sweep experiments/flow_probe/tiny --weights random --n 12 --no-kid "
        "--cache-dir out/cache --device cpu"
    ),
    "imgtool select-winner experiments/flow_probe": "imgtool select-winner experiments/flow_probe/tiny",
}


@pytest.mark.slow
def test_from_autoencoders_to_the_latent_that_generates_best(tmp_path):
    shell = Shell(tmp_path)
    answer = shell(AUTOENCODERS)
    assert answer.returncode == 0, answer.stderr
    (block,) = [
        block
        for block in blocks(DOCS / "choosing.md")
        if block.mark == "run by tests/test_chain_generation.py"
    ]
    script = block.text
    for line, small in SMALL.items():
        assert line in script
        script = script.replace(line, small)
    answer = shell(f"set -euo pipefail\n{script}")
    assert answer.returncode == 0, answer.stderr
    probes = records(answer.stdout, "experiment")
    assert [row["state"] for row in probes] == ["completed"] * 4
    roots = {row["overrides"]["data.root"] for row in probes}
    assert len(roots) == 2
    logs = [Path(row["log"]).read_text() for row in probes]
    assert sum("imgtool encode" in text for text in logs) == 2  # once a candidate
    fids = records(answer.stdout, "fid")
    assert len(fids) == 4
    assert len({row["protocol"] for row in fids}) == 1
    for row in fids:
        assert row["num_images"] == 12
        assert row["num_real_images"] == 12
        assert row["fid_floor"] > 0
        assert row["comparable"] is False
        assert row["autoencoder"]["name"].startswith("phase1_1_AE_S")
    assert "Features of chance are no judge of images" in answer.stderr
    assert "this ranking means nothing" in answer.stderr
    (winner,) = records(answer.stdout, "winner")
    assert winner["family"] == "autoencoder"
    assert Path(winner["checkpoint_path"]).is_file()
    assert winner["num_seeds"] == 2
    assert winner["metrics"]["gfid"] > 0
    assert winner["metrics"]["val_mse"] > 0
    assert winner["correlations"] == []  # of two nothing can be said
    ranked = records(answer.stdout, "ranking")
    assert {row["name"].split("_")[3] for row in ranked} == {"S7", "S10"}
    page = (shell.work / "out/generation/index.html").read_text()
    assert "Reconstruction against generation against size" in page
    _again(shell, probes)


def _again(shell, probes):
    """The same sweep is done; what is lost is said in a line."""
    answer = shell("imgtool sweep flow_probe --tiny --set train.max_iter=6 --set train.val_every=6 "
                   "--set train.sample_every=6 --json")  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    assert "4 of 4 trials are completed already" in answer.stderr
    folder = json.loads(answer.stdout.splitlines()[0])["path"]
    assert folder == probes[0]["path"]
    fid = f"imgtool eval-fid --ckpt {folder} --weights random --n 12 --no-kid --device cpu"
    answer = shell(f"mv l gone; {fid}")
    assert answer.returncode == 4
    assert "the images that the latents are of are not there" in answer.stderr
    answer = shell(f"mv gone l; mv experiments/phase1_1_latent_shape_sweep away; {fid}")
    assert answer.returncode == 4
    assert "the autoencoder of the latents is not there" in answer.stderr
