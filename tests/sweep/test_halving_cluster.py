"""Rungs on our fake LSF: a job file a rung, each decided on after the one before."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from imgtool.config.yaml_io import format_value
from imgtool.experiment.layout import ExperimentDir
from imgtool.experiment.status import read_status
from imgtool.sweep.state import read_state
from tests.fake_lsf.cluster import Cluster
from tests.fake_lsf.plans import TRAINER

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")

SPEC = """\
sweep: rungs
base: phase1_1/S1
matrix: {train.lr: [1e-5, 1e-4, 2e-3, 1e-3, 1e-2, 1e-1]}
root: runs
halving: {rungs: [1ep, 3ep], keep: 1/2, metric: val_mse}
"""
BEST, SECOND = 0.001, 0.002
SWEEP = [
    *(sys.executable, "-m", "imgtool", "sweep", "sweep.yaml", "--json"),
    *("--executor", "lsf", "--no-check-data"),
]


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in ("LSB_JOBID", "LSB_JOBINDEX", "IMGTOOL_RUN_LIMIT_SEC"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "config" / "imgtool").mkdir(parents=True)
    program = format_value(TRAINER)
    (tmp_path / "config/imgtool/cluster.yaml").write_text(f"program: {program}\n")
    (tmp_path / "sweep.yaml").write_text(SPEC)
    found = Cluster(tmp_path / "lsf", monkeypatch)
    yield found
    found.close()


def sweep(*words):
    done = subprocess.run([*SWEEP, *words], capture_output=True, text=True, timeout=300)
    return done.returncode, done.stderr


def trials(root):
    """Learning rate -> ExperimentDir."""
    entries = json.loads((root / "sweep.json").read_text())["trials"]
    return {one["overrides"]["train.lr"]: ExperimentDir(Path(one["exp_dir"])) for one in entries}


def states(root):
    return {lr: read_state(directory).state for lr, directory in trials(root).items()}


def pauses(directory):
    """Where each start of a trial was told to pause."""
    lines = (directory.path / "starts").read_text().splitlines()
    words = [json.loads(line)["words"] for line in lines]
    return [w[w.index("--pause-at") + 1] if "--pause-at" in w else None for w in words]


def arrays(cluster):
    return [len(job["elements"]) for job in cluster.jobs.values() if "then" not in job["name"]]


def came_to_its_end(root, cluster):
    found = states(root)
    assert {lr for lr, state in found.items() if state == "completed"} == {BEST, SECOND}
    assert set(found.values()) == {"completed", "dropped"}
    assert {lr: pauses(directory) for lr, directory in trials(root).items()} == {
        1e-5: ["1ep"],
        1e-4: ["1ep", "3ep"],
        SECOND: ["1ep", "3ep", None],
        BEST: ["1ep", "3ep", None],
        1e-2: ["1ep", "3ep"],  # as far off as 1e-4: a tie
        1e-1: ["1ep"],
    }
    assert arrays(cluster) == [6, 4, 2]


def test_jobs_decide_at_the_rungs(tmp_path, cluster):
    code, said = sweep("--then", "cat runs/*/status.json > after")
    assert code == 0, said
    assert "6 trials" in said
    after = tmp_path / "after"
    cluster.wait(lambda: after.exists() and after.stat().st_size, 240)
    came_to_its_end(tmp_path / "runs", cluster)
    assert '"completed"' in after.read_text()  # the user's command came last
    assert len([job for job in cluster.jobs.values() if "then" in job["name"]]) == 3


@pytest.mark.slow
def test_who_waits_decides(tmp_path, cluster):
    code, said = sweep("--wait", "--poll", "0.3s", "--then", "touch after")
    assert code == 0, said
    cluster.wait((tmp_path / "after").exists, 60)
    came_to_its_end(tmp_path / "runs", cluster)
    assert len([job for job in cluster.jobs.values() if "then" in job["name"]]) == 1


@pytest.mark.slow
def test_a_cancelled_trial_holds_its_rung_until_the_sweep_is_run_again(tmp_path, cluster):
    dry = [*SWEEP, "--dry-run"]
    rows = subprocess.run(dry, capture_output=True, text=True, check=True, timeout=120).stdout
    paths = {
        row["overrides"]["train.lr"]: row["path"] for row in map(json.loads, rows.splitlines())
    }
    slow = ExperimentDir(Path(paths[1e-5]))
    slow.create()
    (slow.path / "behaviour").write_text("long")
    assert sweep()[0] == 0
    runs = tmp_path / "runs"
    cluster.wait(lambda: sorted(states(runs).values()) == ["running", *["stopped"] * 5], 120)
    os.kill(read_status(slow)["pid"], signal.SIGINT)
    (decides,) = [job for job, one in cluster.jobs.items() if "then" in one["name"]]
    cluster.wait(lambda: set(cluster.stats(decides).values()) <= {"DONE", "EXIT"}, 120)
    assert set(states(runs).values()) == {"stopped"}
    assert arrays(cluster) == [6]
    log = next((runs / "jobs" / "logs").glob(f"*then*{decides}*")).read_text()
    assert "it was stopped; the same sweep resumes it" in log
    assert sweep()[0] == 0
    cluster.wait(lambda: set(states(runs).values()) == {"completed", "dropped"}, 240)
    assert pauses(slow) == ["1ep", "1ep"]
    assert arrays(cluster) == [6, 1, 4, 2]
