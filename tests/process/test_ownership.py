"""A job that takes a directory says who it is, in job.json."""

import json
import os

import pytest

from imgtool.experiment.job import read_job, write_job
from imgtool.experiment.layout import ExperimentDir
from imgtool.experiment.owner import holder
from imgtool.process.ownership import take
from imgtool.sweep.state import read_state

OWN = {"executor": "lsf", "job_id": 7, "index": 2, "name": "sweep-1"}


@pytest.fixture
def directory(tmp_path):
    return ExperimentDir(tmp_path / "exp")


@pytest.fixture(autouse=True)
def job(monkeypatch):
    """This process is in element 2 of job 7, whose file is one of ours."""
    monkeypatch.setenv("LSB_JOBID", "7")
    monkeypatch.setenv("LSB_JOBINDEX", "2")
    monkeypatch.setenv("IMGTOOL_JOB", "sweep-1")


def test_a_job_by_hand_writes_itself_down(directory):
    with take(directory) as hold:
        assert hold.attempt == 1
        found = read_job(directory)
        assert {key: found[key] for key in OWN} == OWN
        assert (found["stat"], found["attempt"], found["by_hand"]) == ("running", 1, True)
        assert dict(holder(directory).job) == OWN
        assert read_state(directory).state == "running"


def test_a_job_whose_file_is_none_of_ours_does_not(directory, monkeypatch):
    """Its first process is not ours, and a signal to it may end more than the training."""
    monkeypatch.delenv("IMGTOOL_JOB")
    with take(directory):
        assert read_job(directory) is None


@pytest.mark.parametrize("known", [7, None])
def test_a_sweeps_own_job_leaves_its_words_alone_but_for_the_turn(directory, known):
    directory.path.mkdir()
    given = {**OWN, "job_id": known, "stat": "waiting", "attempt": 4, "queue": "q"}
    write_job(directory, **given)
    with take(directory) as hold:
        assert hold.attempt == 4
        assert read_job(directory) == given  # whoever submitted it may just be writing
    directory.status_path.write_text(json.dumps({"state": "stopped", "attempt": 4}))
    with take(directory) as hold:
        assert hold.attempt == 5
        found = read_job(directory)
    assert (found["attempt"], found["job_id"], found["queue"]) == (5, 7, "q")
    assert read_state(directory).state == "running"  # the word of its last turn is no longer it


@pytest.mark.parametrize(
    ("before", "is_kept"),
    [
        ({"stat": "waiting", "job_id": 6}, True),
        ({"stat": "waiting", "index": 3}, True),
        ({"stat": "waiting", "name": "sweep-2", "job_id": None}, True),
        ({"stat": "running", "job_id": 6}, False),  # then it would own the directory
        ({"stat": "failed", "job_id": 6}, False),
        ({"stat": "running", "executor": "local"}, False),
    ],
)
def test_another_job_that_waits_is_not_forgotten(directory, before, is_kept):
    directory.path.mkdir()
    write_job(directory, **{**OWN, "attempt": 4, **before})
    with take(directory) as hold:
        assert hold.attempt == 5
        assert ("by_hand" not in read_job(directory)) == is_kept
        assert read_state(directory).state == ("submitted" if is_kept else "running")
        directory.status_path.write_text(
            json.dumps({"state": "running", "attempt": 5, "host": "x", "heartbeat": "2099-01-01"})
        )
        assert read_state(directory).state == "running"


def test_the_trainer_of_a_job_says_nothing_of_its_own(directory, monkeypatch):
    with take(directory) as hold:
        monkeypatch.setenv("IMGTOOL_OWNER", hold.environment()["IMGTOOL_OWNER"])
        before = read_job(directory)
        with take(directory, trains=True) as trainer:
            assert (trainer.role, trainer.attempt) == ("trainer", 1)
            assert holder(directory).trainer.pid == os.getpid()
            assert read_job(directory) == before
