"""Trials that share a job of the fake LSF: the job's own pool, and the programs of a sweep."""

import sys
from dataclasses import replace

import pytest

from imgtool.schedulers.base import ALIVE, WAITING
from imgtool.sweep.cancel import end_jobs, interrupt_jobs
from imgtool.sweep.cluster import Options
from imgtool.sweep.shared import plan_of
from imgtool.sweep.state import read_job, read_state
from tests.fake_lsf.plans import behave, starts, trainer_profile
from tests.sweep.test_cluster import LSF, Notes, cluster, refresh, submit, wait  # noqa: F401
from tests.sweep.test_cluster import plan_of as trials_of

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
SHARED = Options(scheduler=LSF, profile=trainer_profile(), trials_per_job=2)


@pytest.fixture(autouse=True)
def patient(cluster, monkeypatch):  # noqa: F811
    """An LSF minute of 3 s: the pool is no stand-in and has to start."""
    monkeypatch.setenv("FAKE_LSF_SCALE", "3")
    return cluster


def states(plan):
    return [read_state(trial.directory).state for trial in plan.trials]


def begun(plan):
    return all(starts(trial) for trial in plan.trials)


def test_a_job_runs_its_trials_at_once_and_waits_for_all(tmp_path, patient):
    plan = trials_of(tmp_path, 4, num_gpus=0)
    for trial, how in zip(plan.trials, ("crash", "complete", "memory", "memory"), strict=True):
        behave(trial, how)
    (submission,) = submit(plan, SHARED)
    rows = plan_of(submission.script.manifest_path, 2)
    assert [trial.name for trial in rows.trials] == ["S3", "S4"]
    assert [trial.identity for trial in rows.trials] == [one.identity for one in plan.trials[2:]]
    told = Notes()
    assert list(wait(plan, told).values()) == ["failed", "completed", "completed", "completed"]
    patient.wait(lambda: set(patient.stats(101).values()) == {"DONE", "EXIT"})
    assert patient.stats(101) == {1: "EXIT", 2: "DONE"}
    found = [read_job(trial.directory) for trial in plan.trials]
    assert [(job["job_id"], job["index"], job["executor"]) for job in found] == [
        *[(101, 1, "lsf")] * 2,
        *[(101, 2, "lsf")] * 2,
    ]
    assert [job["slot"] for job in found[:2]] == ["cpu 0", "cpu 1"]
    assert found[0]["shared_with"] == [str(plan.trials[1].directory.path)]
    # Beside each other they had not enough; each was tried once more, and the wait was for that.
    assert [len(starts(trial)) for trial in plan.trials] == [1, 1, 2, 2]
    assert [job.get("alone") for job in found[2:]] == [
        {"tried": True, "beside": ["S4"]},
        {"tried": True, "beside": ["S3"]},
    ]
    assert refresh(*plan.trials) is None
    again = submit(plan, SHARED, [plan.trials[0]])
    assert list(again[0].script.trials) == [1]


def test_a_turn_that_is_over_is_followed_by_another(tmp_path, patient):
    plan = replace(trials_of(tmp_path, 3, num_gpus=0), duration_sec=2.0)
    for trial in plan.trials[:2]:
        behave(trial, "long")
    submit(plan, replace(SHARED, requeue=True, trials_per_job=3))
    assert set(wait(plan).values()) == {"completed"}
    assert [len(starts(trial)) for trial in plan.trials] == [2, 2, 1]
    patient.wait(lambda: patient.stats(101) == {1: "DONE"})
    assert [read_job(trial.directory)["attempt"] for trial in plan.trials] == [2, 2, 1]


def test_one_of_a_shared_job_is_cancelled_and_then_the_rest(tmp_path, patient):
    plan = trials_of(tmp_path, 3, num_gpus=0)
    for trial in plan.trials:
        behave(trial, "long")
    submit(plan, replace(SHARED, trials_per_job=3))
    patient.wait(lambda: begun(plan) and all(s == "running" for s in states(plan)))
    first, *others = [trial.directory for trial in plan.trials]
    refresh(*plan.trials)
    said = []
    interrupt_jobs([first], say=said.append)
    end_jobs([first], grace_sec=20, say=said.append)
    assert "S1: its job is shared with S2, S3" in said[0]
    assert states(plan) == ["stopped", "running", "running"]
    assert not (first.path / "cancel").exists()
    assert all(read_job(one)["stat"] in ALIVE for one in others)
    assert not patient.calls("bkill")
    interrupt_jobs(others, say=said.append)
    end_jobs(others, grace_sec=20, say=said.append)
    assert states(plan) == ["stopped"] * 3
    assert [call[1:] for call in patient.calls("bkill")] == [["-s", "INT", "101[1]"]]


def test_one_that_waits_is_left_out_when_its_job_begins(tmp_path, patient):
    plan = trials_of(tmp_path, 4, num_gpus=0)
    behave(plan.trials[0], "long")
    submit(plan, replace(SHARED, max_running=1))
    first, _, one, other = plan.trials
    patient.wait(lambda: starts(first) and read_state(first.directory).state == "running")
    assert read_job(one.directory)["stat"] in WAITING
    interrupt_jobs([one.directory], say=lambda text: None)
    assert read_state(one.directory).reason == "cancelled before it started"
    refresh(*plan.trials)
    interrupt_jobs([first.directory], say=lambda text: None)
    assert wait(replace(plan, trials=(first, other))) == {"S1": "stopped", "S4": "completed"}
    assert starts(one) == []
    assert read_state(one.directory).state == "stopped"
