"""The command of --then on this machine: once, whoever sees the last trial end."""

import json
import multiprocessing
import os
import signal
import time

import pytest

from imgtool.experiment import owner
from imgtool.experiment.layout import ExperimentDir
from imgtool.sweep.follow import FollowUp
from tests.waiting import wait_until


@pytest.fixture
def plan(make_plan, write_status, tmp_path):
    """A plan of two completed trials."""
    plan = make_plan("a", "b")
    for name in ("a", "b"):
        write_status(name, tmp_path / "root", state="completed")
    return plan


def runs(tmp_path):
    path = tmp_path / "runs"
    return path.read_text().splitlines() if path.exists() else []


def note(tmp_path, seconds=0.0, code=0):
    """A stand-in for the shell, which says that it ran."""

    def start(command):
        with open(tmp_path / "runs", "a") as file:
            file.write(f"{command} {os.getpid()}\n")
        time.sleep(seconds)
        return code

    return start


def test_two_sweeps_that_end_together_run_it_once(plan, tmp_path):
    context = multiprocessing.get_context("fork")
    ready = context.Barrier(4)

    def sweep():
        mine = FollowUp(plan, "command")
        ready.wait()
        os._exit(mine.run(note(tmp_path, 0.2, code=3), lambda text: None))

    workers = [context.Process(target=sweep) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(runs(tmp_path)) == 1
    assert {worker.exitcode for worker in workers} <= {0, 3}


def test_a_later_sweep_runs_it_again_and_another_command_too(plan, tmp_path):
    said = []
    first, second = FollowUp(plan, "command"), FollowUp(plan, "command")
    assert first.run(note(tmp_path, code=3), said.append) == 3
    assert second.run(note(tmp_path), said.append) == 3  # as the first one found
    assert said == ["then: another sweep has run it"]
    assert len(runs(tmp_path)) == 1
    other = FollowUp(plan, "other")
    other.run(note(tmp_path), said.append)
    FollowUp(plan, "command").run(note(tmp_path), said.append)
    assert [line.split()[0] for line in runs(tmp_path)] == ["command", "other", "command"]


def test_other_results_than_those_that_it_was_run_on(plan, tmp_path, write_status):
    first, second = FollowUp(plan, "command"), FollowUp(plan, "command")
    first.run(note(tmp_path), print)
    write_status("b", tmp_path / "root", state="completed", iteration=99)
    second.run(note(tmp_path), print)
    assert len(runs(tmp_path)) == 2


def test_it_waits_for_trials_that_others_run(plan, tmp_path, write_status):
    write_status("b", tmp_path / "root", state="running", pid=os.getpid())
    hold = owner.take(plan.trials[1].directory)
    said, sleeps = [], []

    def sleep(seconds):
        sleeps.append(seconds)
        if len(sleeps) == 2:
            write_status("b", tmp_path / "root", state="completed")
        if len(sleeps) == 4:  # whoever started it has written down how it ended
            hold.release()

    FollowUp(plan, "command").wait(said.append, sleep=sleep)
    assert said == ["then: waiting for b, run by others"]
    assert len(sleeps) == 4


def test_a_killed_sweep_does_not_keep_it_from_running(plan, tmp_path):
    context = multiprocessing.get_context("fork")
    worker = context.Process(
        target=lambda: FollowUp(plan, "command").run(note(tmp_path, 60), print)
    )
    worker.start()
    wait_until(lambda: runs(tmp_path))
    mine, said = FollowUp(plan, "command"), []
    assert mine.run(note(tmp_path), said.append) == 0  # it is at work on it
    assert f"process {worker.pid} " in said[0]
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    assert mine.run(note(tmp_path, code=1), said.append) == 1
    assert len(runs(tmp_path)) == 2
    (folder,) = plan.root.glob(".then-*")
    assert json.loads((folder / "done.json").read_text())["code"] == 1
    assert owner.holder(ExperimentDir(folder)) is None
