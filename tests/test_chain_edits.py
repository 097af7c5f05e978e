"""The GeneGAN's queue as real processes: what is trained first, edits judged, and one page."""

import json

import pytest

from tests.shell import Shell
from tests.test_chain import records

QUEUE = """
set -euo pipefail
imgtool data make faces f --n 60 --seed 1 --quiet
export IMGTOOL_FID_WEIGHTS=/none  # not on this machine
imgtool sweep genegan --tiny --only exp01,exp06b --slots 2 --set data.root=f \
    --set data.official_split=true --set data.max_images=60 --set train.max_iter=2 \
    --set train.val_every=2 --set train.save_every=2 --set train.sample_every=2 \
    --set train.batch_size=2 --set loss.critic_burst=1 --set train.device=cpu
"""
ROOT = "experiments/genegan/tiny"
BY_HAND = f"""
imgtool select-winner {ROOT}/EXP* --rule edit --report by_hand \
    --set 'weights={{edit_success: 4, edit_preservation: 4}}' --set filters=[]
"""


@pytest.mark.slow
def test_the_queue_trains_what_it_needs_and_ends_in_a_page(tmp_path):
    shell = Shell(tmp_path)
    answer = shell(QUEUE, timeout=1800)
    assert answer.returncode == 1, answer.stderr  # without FIDs the trade has no winner
    rows = records(answer.stdout, "experiment")
    assert [row["name"].split("_")[0] for row in rows] == ["vqvae", "judge", "EXP01", "EXP06b"]
    assert [row["state"] for row in rows] == ["completed"] * 4
    assert [row.get("first", False) for row in rows] == [True, True, False, False]
    assert "imgtool prepare" in (shell.work / rows[3]["log"]).read_text()
    warm = json.loads((shell.work / rows[3]["path"] / "warm_start.json").read_text())
    assert warm["loaded"]
    assert "IMGTOOL_FID_WEIGHTS: no file /none" in answer.stderr  # and the others went on
    judge = {
        json.loads((shell.work / row["path"] / "edit.json").read_text())["judge"]["path"]
        for row in rows[2:]
    }
    assert [path.startswith(rows[1]["path"]) for path in judge] == [True]
    page = (shell.work / ROOT / "report/index.html").read_text()
    assert "No winner" in page
    assert "not measured" in page
    assert {"edits.png", "faces.png"} <= {
        path.name for path in (shell.work / ROOT / "report").iterdir()
    }
    answer = shell(BY_HAND)
    assert answer.returncode == 0, answer.stderr
    assert "The same faces, edited" in (shell.work / "by_hand/index.html").read_text()
    (winner,) = records(answer.stdout, "winner")
    assert winner["family"] == "genegan"
