"""The study as its users run it: sweep | select-winner | update-config, phase after phase."""

import json
import re
from pathlib import Path

import pytest

from tests.docs.pages import DOCS, ROOT, blocks
from tests.shell import Shell


@pytest.fixture
def shell(tmp_path):
    return Shell(tmp_path)


def records(text, kind):
    rows = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return [row for row in rows if row["kind"] == kind]


def study():
    """The study's script, from docs/choosing.md."""
    own = "run by tests/test_chain.py"
    (block,) = [block for block in blocks(DOCS / "choosing.md") if block.mark == own]
    return block.text


def test_three_trials_to_the_next_phase(shell):
    script = """
    set -euo pipefail
    imgtool data make layouts out/l --n 60 --size 64 --seed 0 --quiet
    imgtool presets copy phase1 out/exp --quiet
    imgtool sweep out/exp/phase1_1.yaml --only S7,S8,S10 --tiny --set data.manifest=out/l/layouts.csv \
        --set train.max_iter=6 --set train.val_every=3 --executor local --slots 2 |
        imgtool select-winner - --report out/report | tee out/winner.json |
        imgtool update-config out/exp/phase1_2/*.yaml
    """
    answer = shell(script)
    assert answer.returncode == 0, answer.stderr
    (winner,) = records((shell.work / "out/winner.json").read_text(), "winner")
    assert winner["exp_dir"]
    assert winner["family"] == "autoencoder"
    assert Path(winner["checkpoint_path"]).is_file()
    assert set(winner["parameters"]) == {
        "model.latent_channels",
        "model.downsampling_steps",
        "model.base_channels",
    }
    assert winner["overridden"] == {"model.base_channels": "--tiny"}
    page = (shell.work / "out/report/index.html").read_text(encoding="utf-8")
    for name in ("S7", "S8", "S10"):
        assert name in page
    for name in ("V1", "V2"):
        shown = shell(f"imgtool config show out/exp/phase1_2/{name}.yaml").stdout
        expected = {**winner["parameters"], "model.base_channels": 32}  # as its own file says
        for key, value in expected.items():
            assert re.search(rf"^  {key.split('.')[1]}: {value}\b", shown, re.MULTILINE)
        copied = ROOT / f"imgtool/config/presets/phase1_2/{name}.yaml"
        before = copied.read_text(encoding="utf-8").splitlines()
        after = (shell.work / f"out/exp/phase1_2/{name}.yaml").read_text(encoding="utf-8")
        changed = [
            new.split(":")[0].strip()
            for old, new in zip(before, after.splitlines(), strict=True)
            if old != new and not old.startswith("base:")
        ]
        assert {f"model.{key}" for key in changed} <= set(winner["parameters"])


def test_a_failed_sweep_changes_nothing(shell):
    script = """
    imgtool presets copy phase1 out/exp --quiet >/dev/null
    imgtool sweep out/exp/phase1_1.yaml --only S7 --tiny --set data.manifest=missing.csv |
        imgtool select-winner - | imgtool update-config out/exp/phase1_2/*.yaml
    echo "${PIPESTATUS[*]}"
    """
    answer = shell(script)
    assert answer.stdout.split() == ["2", "2", "1"], answer.stderr
    copied = ROOT / "imgtool/config/presets/phase1_2/V1.yaml"
    assert (shell.work / "out/exp/phase1_2/V1.yaml").read_text() == copied.read_text()


@pytest.mark.slow
def test_the_script_of_the_study(shell):
    answer = shell(study(), timeout=3600)
    assert answer.returncode == 0, answer.stderr[-4000:]
    (final,) = records((shell.work / "out/phase1_final.winner.json").read_text(), "winner")
    assert Path(final["checkpoint_path"]).is_file()
    winners = [
        records((shell.work / f"out/{name}.winner.json").read_text(), "winner")[0]
        for name in ("phase1_1", "phase1_2", "phase1_3")
    ]
    shown = shell("imgtool config show out/exp/phase1_final/final.yaml").stdout
    for winner in winners:
        for key, value in winner["parameters"].items():
            if value is not None and key not in winner["overridden"]:
                text = re.search(rf"^  {key.split('.')[1]}: (\S+)", shown, re.MULTILINE)[1]
                assert text == value or float(text) == pytest.approx(float(value)), key
    states = shell("imgtool status experiments --json").stdout
    trained = records(states, "experiment")
    assert len(trained) == 18
    assert {row["state"] for row in trained} == {"completed"}
