"""Jobs of our files that people submit themselves, on the fake LSF, under the real run-timed."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from imgtool.experiment.owner import holder
from imgtool.sweep import cancel
from imgtool.sweep.cluster import write_scripts
from imgtool.sweep.state import read_job, read_state
from tests.fake_lsf.plans import TRAINER, behave, starts, trainer_profile
from tests.sweep.test_cluster import LSF, OPTIONS, cluster, plan_of, refresh, submit, wait

__all__ = ["cluster"]
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")

# run-timed is the real one; who trains is not.
PROGRAM = """\
import os, sys
words = [sys.executable, "-m", "imgtool"] if sys.argv[1] == "run-timed" else {trainer!r}
os.execv(words[0], [*words, *sys.argv[1:]])
"""


@pytest.fixture
def options(tmp_path, monkeypatch):
    script = tmp_path / "program.py"
    script.write_text(PROGRAM.format(trainer=TRAINER))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    program = (sys.executable, "-S", str(script))
    return replace(OPTIONS, profile=trainer_profile(program=program), stamp=None)


def by_hand(plan, options):
    (script,) = write_scripts(plan, plan.trials, options)
    with open(script.path) as file:
        subprocess.run(["bsub"], stdin=file, check=True, capture_output=True)
    return script


def test_one_is_seen_left_alone_and_cancelled(tmp_path, cluster, options):
    plan = plan_of(tmp_path, 1)
    (trial,) = plan.trials
    behave(trial, "long")
    script = by_hand(plan, options)
    cluster.wait(lambda: read_state(trial.directory).iteration == 1)
    job = read_job(trial.directory)
    assert (job["executor"], job["job_id"], job["index"]) == ("lsf", 101, 1)
    assert job["name"] == script.name
    left = []
    assert submit(plan, options, left=lambda trial, reason: left.append(reason)) == []
    assert left[0].startswith("in use by process ")
    cancel.interrupt_jobs([trial.directory], say=print, get=lambda name: LSF)
    assert wait(plan) == {"S1": "stopped"}
    assert len(starts(trial)) == 1
    assert holder(trial.directory) is None


def test_beside_a_sweeps_own_the_one_that_trains_counts(tmp_path, cluster, options):
    plan = plan_of(tmp_path, 1)
    (trial,) = plan.trials
    behave(trial, "long")
    submit(plan, options)
    cluster.wait(lambda: read_state(trial.directory).iteration == 1)
    log = trial.directory.child_log_path.read_text()
    by_hand(plan, options)
    cluster.wait(lambda: cluster.stats(102) == {1: "EXIT"})  # in use
    refresh(trial)
    assert read_state(trial.directory).state == "running"
    assert read_job(trial.directory)["job_id"] == 101
    assert trial.directory.child_log_path.read_text() == log
    cancel.interrupt_jobs([trial.directory], say=print, get=lambda name: LSF)
    assert wait(plan) == {"S1": "stopped"}
    assert len(starts(trial)) == 1
