"""Sweeps on our fake LSF, through real processes on a scaled clock."""

import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from imgtool.experiment import owner
from imgtool.experiment.job import write_job
from imgtool.experiment.layout import ExperimentDir
from imgtool.experiment.status import now_iso
from imgtool.schedulers.base import SchedulerError, Seen
from imgtool.schedulers.lsf import Lsf
from imgtool.sweep import cluster as sweep_cluster
from imgtool.sweep import refresh as refreshing
from imgtool.sweep.cluster import Options
from imgtool.sweep.state import read_job, read_state
from tests.fake_lsf.cluster import Cluster
from tests.fake_lsf.plans import behave, make_plan, make_trial, starts, trainer_profile

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
LSF = Lsf(timeout_sec=10, backoff_sec=0.05)
HASTY = Lsf(timeout_sec=2, backoff_sec=0.05)
OPTIONS = Options(scheduler=LSF, profile=trainer_profile(), stamp="t")


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("LSB_JOBID", "LSB_JOBINDEX", "IMGTOOL_RUN_LIMIT_SEC"):
        monkeypatch.delenv(name, raising=False)
    found = Cluster(tmp_path / "lsf", monkeypatch)
    yield found
    found.close()


class Notes:
    def __init__(self):
        self.changes, self.notes = [], []

    def changed(self, trial, state):
        self.changes.append((trial.name, state.state))

    def note(self, text):
        self.notes.append(text)


def plan_of(tmp_path, count=2, **lsf_keys):
    root = tmp_path / "ex periments"
    return make_plan(root, [make_trial(root, f"S{n}", **lsf_keys) for n in range(1, count + 1)])


def wait(plan, listener=None, **choices):
    trials = plan.trials
    states = sweep_cluster.wait(
        plan, trials, listener or Notes(), poll_sec=0.1, get=lambda name: LSF, **choices
    )
    return {name: state.state for name, state in states.items()}


def submit(plan, options=OPTIONS, trials=None, **choices):
    return sweep_cluster.submit(plan, plan.trials if trials is None else trials, options, **choices)


def refresh(*trials):
    return refreshing.refresh([trial.directory for trial in trials], get=lambda name: LSF).text


def test_an_array_of_trials(tmp_path, cluster):
    plan = replace(plan_of(tmp_path, 3), max_running={"gpuv100": 2})
    behave(plan.trials[1], "crash")
    listener = Notes()
    (submission,) = submit(plan)
    assert cluster.jobs[str(submission.job_id)]["limit"] == 2
    assert [read_job(t.directory)["index"] for t in plan.trials] == [1, 2, 3]
    assert wait(plan, listener) == {"S1": "completed", "S2": "failed", "S3": "completed"}
    assert ("S1", "completed") in listener.changes
    (start,) = starts(plan.trials[2])
    assert (start["job"], start["index"]) == (str(submission.job_id), "3")
    assert start["config"] == str(plan.trials[2].config_path)
    assert start["cwd"] == str(tmp_path)
    cluster.wait(lambda: set(cluster.stats(submission.job_id).values()) <= {"DONE", "EXIT"})
    refresh(*plan.trials)
    job = read_job(plan.trials[1].directory)
    assert (job["stat"], job["exit_code"], job["attempt"]) == ("failed", 1, 1)
    log = plan.root / "jobs" / "logs" / f"demo_gpuv100.{submission.job_id}.2.out"
    assert Path(job["log"]) == log
    assert "Sender: LSF System" in log.read_text()


def test_only_the_unfinished_indices_are_submitted_again(tmp_path, cluster):
    plan = plan_of(tmp_path, 4)
    (submission,) = submit(plan, replace(OPTIONS, stamp="a"), [plan.trials[1], plan.trials[3]])
    assert sorted(cluster.stats(submission.job_id)) == [2, 4]
    assert "[2,4]" in submission.script.text
    cluster.wait(lambda: starts(plan.trials[1]) and starts(plan.trials[3]))
    assert starts(plan.trials[3])[0]["index"] == "4"
    assert not starts(plan.trials[0])


def test_a_second_submission_leaves_what_is_at_work(tmp_path, cluster):
    plan = plan_of(tmp_path, 2)
    behave(plan.trials[0], "hang")
    submit(plan, replace(OPTIONS, stamp="a"), plan.trials[:1])
    left = []
    submit(plan, replace(OPTIONS, stamp="b"), left=lambda trial, reason: left.append(trial.name))
    assert left == ["S1"]
    cluster.wait(lambda: starts(plan.trials[1]))
    assert len(starts(plan.trials[0])) <= 1
    assert [sorted(job["elements"]) for job in cluster.jobs.values()] == [["1"], ["2"]]


def test_two_submissions_at_once_submit_a_trial_once(tmp_path, cluster):
    plan = plan_of(tmp_path, 6)
    words = (
        "import sys; from tests.sweep.test_cluster import submit_here; submit_here(*sys.argv[1:])"
    )
    root = str(plan.root)
    here = __file__.rpartition("/tests/")[0]
    both = [
        subprocess.Popen([sys.executable, "-c", words, root, "6"], env=_with_path(here))
        for _ in range(2)
    ]
    assert [process.wait(60) for process in both] == [0, 0]
    indices = [int(index) for job in cluster.jobs.values() for index in job["elements"]]
    assert sorted(indices) == [1, 2, 3, 4, 5, 6]
    assert set(wait(plan).values()) == {"completed"}
    assert [len(starts(trial)) for trial in plan.trials] == [1] * 6


def _with_path(folder):
    return {**os.environ, "PYTHONPATH": folder}


def submit_here(root, count):
    trials = [make_trial(Path(root), f"S{n}") for n in range(1, int(count) + 1)]
    submit(make_plan(Path(root), trials), replace(OPTIONS, stamp=None))


def test_what_somebody_else_owns_is_left_alone(tmp_path, cluster):
    plan = plan_of(tmp_path, 2)
    held = owner.take(plan.trials[0].directory)
    left = []
    submit(plan, left=lambda trial, reason: left.append(reason))
    assert left == [f"in use by {owner.holder(plan.trials[0].directory)}"]
    held.release()
    assert [sorted(job["elements"]) for job in cluster.jobs.values()] == [["2"]]


@pytest.mark.parametrize("fault", ["empty", "lost", "hang_after"])
def test_a_job_whose_reply_was_lost_runs_once(tmp_path, cluster, fault):
    cluster.fault("bsub", fault)
    plan = plan_of(tmp_path, 1)
    (submission,) = submit(plan, replace(OPTIONS, scheduler=HASTY))
    assert list(cluster.jobs) == [str(submission.job_id)]
    assert wait(plan) == {"S1": "completed"}
    assert len(starts(plan.trials[0])) == 1
    assert len(cluster.calls("bsub")) == 1


@pytest.mark.parametrize("fault", ["rc255", "refused", "hang"])
def test_a_job_that_was_not_taken_is_submitted_again(tmp_path, cluster, fault):
    cluster.fault("bsub", fault)
    cluster.fault("bjobs", "rc255")  # and the first look for it is not answered either
    plan = plan_of(tmp_path, 1)
    submit(plan, replace(OPTIONS, scheduler=HASTY))
    assert len(cluster.jobs) == 1
    assert len(cluster.calls("bsub")) == 2


def test_a_submission_that_lsf_never_answers_is_looked_for_later(tmp_path, cluster):
    cluster.fault("bsub", "lost")
    cluster.fault("bjobs", "rc255", "rc255")
    plan = plan_of(tmp_path, 1)
    behave(plan.trials[0], "long")
    impatient = Lsf(timeout_sec=5, attempts=2, backoff_sec=0.01)
    with pytest.raises(SchedulerError, match="nobody says whether bsub took"):
        submit(plan, replace(OPTIONS, scheduler=impatient))
    assert read_job(plan.trials[0].directory)["job_id"] is None
    cluster.wait(lambda: read_state(plan.trials[0].directory).state == "running")
    left = []
    assert submit(plan, left=lambda trial, reason: left.append(reason)) == []
    assert left == ["it is running already"]
    subprocess.run(["bkill", "-s", "INT", "101[1]"], check=True, capture_output=True)
    assert wait(plan) == {"S1": "stopped"}
    job = read_job(plan.trials[0].directory)
    assert job["job_id"] == 101
    assert job["log"].endswith(".101.1.out")


def test_a_submission_that_lsf_never_took_can_be_repeated(tmp_path, cluster, monkeypatch):
    cluster.fault("bsub", "rc255", "rc255")
    cluster.fault("bjobs", "rc255", "rc255")
    plan = plan_of(tmp_path, 1)
    with pytest.raises(SchedulerError):
        submit(plan, replace(OPTIONS, scheduler=Lsf(timeout_sec=5, attempts=2, backoff_sec=0.01)))
    monkeypatch.setattr(refreshing, "SETTLE_SEC", -1.0)
    assert refresh(plan.trials[0]) is None
    assert read_state(plan.trials[0].directory).state == "stopped"
    submit(plan, replace(OPTIONS, stamp="again"))
    assert wait(plan) == {"S1": "completed"}


def test_a_refusal_changes_nothing(tmp_path, cluster):
    plan = plan_of(tmp_path, 2, queue="gpux")
    with pytest.raises(SchedulerError, match="gpux: No such queue") as caught:
        submit(plan)
    assert "bqueues" in caught.value.hint
    assert len(cluster.calls("bsub")) == 1
    assert [read_job(trial.directory) for trial in plan.trials] == [None, None]
    assert read_state(plan.trials[0].directory).state == "pending"
    plan = plan_of(tmp_path, 1, walltime="30h")
    with pytest.raises(SchedulerError, match="RUNLIMIT"):
        submit(plan)


def test_no_lsf_here(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SchedulerError, match="no bsub") as caught:
        submit(plan_of(tmp_path, 1))
    assert "--script-dir" in caught.value.hint
    assert caught.value.exit_code == 2


def test_the_warning_lets_a_trial_save_before_the_limit(tmp_path, cluster):
    plan = plan_of(tmp_path, 1, walltime="12m")  # INT after two minutes of the fake
    behave(plan.trials[0], "long")
    submit(plan)
    assert wait(plan) == {"S1": "stopped"}
    cluster.wait(lambda: cluster.stats(101) == {1: "DONE"})


def test_requeue_goes_on_under_the_same_id(tmp_path, cluster):
    plan = plan_of(tmp_path, 2, walltime="12m")
    for trial in plan.trials:
        behave(trial, "long")
    submit(plan, replace(OPTIONS, requeue=True))
    assert set(wait(plan).values()) == {"completed"}
    for trial in plan.trials:
        assert [start["job"] for start in starts(trial)] == ["101", "101"]
    assert len(cluster.calls("bsub")) == 1


@pytest.mark.parametrize("numbered", [{"attempt": 1}, {}])
def test_a_requeued_trial_is_not_taken_for_a_stopped_one(tmp_path, cluster, numbered):
    plan = plan_of(tmp_path, 1)
    trial = plan.trials[0]
    trial.directory.create()
    write_job(
        trial.directory, executor="lsf", job_id=7, index=1, stat="running", attempt=1,
        submitted="2026-01-01T00:00:00Z",
    )  # fmt: skip
    status = {"state": "stopped", "started": "2026-01-01T00:00:05Z", **numbered}
    trial.directory.status_path.write_text(json.dumps(status))
    job = read_job(trial.directory)
    noted = refreshing._noted(trial.directory, job, Seen(state="waiting"), status)
    write_job(trial.directory, **noted)
    assert read_state(trial.directory).state == "submitted"
    ended = refreshing._noted(trial.directory, noted, Seen(state="done"), status)
    write_job(trial.directory, **ended)
    # The turn that it went back for ended without a word; times alone do not tell so much.
    assert read_state(trial.directory).state == ("failed" if numbered else "stopped")


def test_a_job_killed_by_its_owner(tmp_path, cluster):
    plan = plan_of(tmp_path, 2)
    plan = replace(plan, max_running={"gpuv100": 1})
    behave(plan.trials[0], "hang")
    submit(plan)
    cluster.wait(lambda: starts(plan.trials[0]))
    subprocess.run(["bkill", "101[2]"], check=True, capture_output=True)
    subprocess.run(["bkill", "101[1]"], check=True, capture_output=True)
    assert wait(plan) == {"S1": "stopped", "S2": "stopped"}
    assert "TERM_OWNER" in read_state(plan.trials[0].directory).reason
    assert not starts(plan.trials[1])


def test_jobs_that_bjobs_has_forgotten(tmp_path, cluster):
    plan = plan_of(tmp_path, 3)
    behave(plan.trials[1], "crash")
    behave(plan.trials[2], "silent")
    submit(plan)
    cluster.wait(lambda: set(cluster.stats(101).values()) <= {"DONE", "EXIT"})
    cluster.change(forgotten=["101"])
    assert wait(plan) == {"S1": "completed", "S2": "failed", "S3": "failed"}
    assert [read_job(trial.directory)["exit_code"] for trial in plan.trials] == [0, 1, 0]


def test_a_job_that_nobody_remembers_is_judged_by_its_trainers_word(tmp_path, cluster):
    plan = plan_of(tmp_path, 2)
    behave(plan.trials[1], "silent")
    submit(plan)
    cluster.wait(lambda: set(cluster.stats(101).values()) == {"DONE"})
    cluster.change(forgotten=["101"], erased=["101"])
    assert refresh(plan.trials[1]) is None
    assert read_state(plan.trials[1].directory).state == "submitted"  # once may be a slip
    assert wait(plan) == {"S1": "completed", "S2": "stale"}
    assert read_state(plan.trials[1].directory).reason == "lsf forgot job 101[2]"


def test_unknown_is_waited_for(tmp_path, cluster):
    plan = plan_of(tmp_path, 1)
    submit(plan)
    cluster.wait(lambda: cluster.stats(101) == {1: "DONE"})
    status = plan.trials[0].directory.status_path
    saved = status.read_text()
    status.unlink()
    cluster.change(unknown=["101[1]"])
    threading.Timer(0.6, lambda: (status.write_text(saved), cluster.change(unknown=[]))).start()
    listener = Notes()
    assert wait(plan, listener) == {"S1": "completed"}
    assert ("S1", "submitted") in listener.changes


def test_a_poll_is_one_call_and_survives_silence(tmp_path, cluster):
    plan = plan_of(tmp_path, 5)
    submit(plan)
    cluster.wait(lambda: set(cluster.stats(101).values()) == {"DONE"})
    cluster.fault("bjobs", "rc255", "empty")
    directories = [trial.directory for trial in plan.trials]
    assert "not responding" in refresh(*plan.trials)
    assert "it says nothing" in refresh(*plan.trials)
    assert {read_job(directory)["stat"] for directory in directories} == {"waiting"}
    assert refresh(*plan.trials) is None
    assert {read_job(directory)["stat"] for directory in directories} == {"done"}
    assert [call[-1] for call in cluster.calls("bjobs")] == ["101"] * 3
    assert refresh(*plan.trials) is None  # what has ended is not asked about
    assert len(cluster.calls("bjobs")) == 3


def test_watching_goes_on_while_lsf_is_silent(tmp_path, cluster):
    plan = plan_of(tmp_path, 1)
    behave(plan.trials[0], "silent")
    submit(plan)
    cluster.fault("bjobs", "rc255", "rc255")
    listener = Notes()
    assert wait(plan, listener) == {"S1": "failed"}
    assert len(listener.notes) == 1
    assert "not responding" in listener.notes[0]


def test_what_follows_waits_for_the_jobs_of_earlier_sweeps_too(tmp_path, cluster):
    plan = plan_of(tmp_path, 2)
    behave(plan.trials[0], "long")
    submit(plan, replace(OPTIONS, stamp="a"), plan.trials[:1])
    then = f"echo \"it's over\" > '{tmp_path}/after'"
    submissions = submit(plan, replace(OPTIONS, stamp="b", then=then), plan.trials[1:])
    assert [submission.job_id for submission in submissions] == [102, 103]
    assert cluster.jobs["103"]["after"] == "ended(101) && ended(102)"
    assert cluster.jobs["103"]["orphans"]
    cluster.wait(lambda: cluster.stats(102) == {2: "DONE"})
    assert not (tmp_path / "after").exists()
    subprocess.run(["bkill", "-s", "INT", "101[1]"], check=True, capture_output=True)
    cluster.wait(lambda: cluster.stats(103) == {0: "DONE"})
    assert (tmp_path / "after").read_text() == "it's over\n"


def test_scripts_for_people_who_submit_by_hand(tmp_path, cluster):
    plan = plan_of(tmp_path, 2)
    folder = tmp_path / "by hand"
    options = replace(OPTIONS, script_dir=folder, then=f"touch '{tmp_path}/after'")
    array, after = sweep_cluster.write_scripts(plan, plan.trials, options)
    assert not cluster.calls()
    assert array.manifest_path.parent == array.path.parent == folder
    for script in (array, after):
        with open(script.path) as file:
            subprocess.run(["bsub"], stdin=file, check=True, capture_output=True)
    cluster.wait((tmp_path / "after").exists)
    assert [read_state(trial.directory).state for trial in plan.trials] == ["completed"] * 2


def test_a_site_that_wants_files(tmp_path, cluster):
    plan = plan_of(tmp_path, 2, gpu_mode="exclusive_process", select="gpu32gb")
    submit(plan, replace(OPTIONS, profile=trainer_profile(submit="file")))
    assert set(wait(plan).values()) == {"completed"}


def test_the_real_run_timed_passes_lsfs_warning_on(tmp_path, cluster):
    """`imgtool run-timed` itself in the job, with the stand-in trainer below it."""
    from tests.fake_lsf.plans import TRAINER

    program = tmp_path / "imgtool.sh"
    program.write_text(
        "#!/bin/sh\n"
        f'if [ "$1" = train ]; then exec {" ".join(TRAINER)} "$@"; fi\n'
        f'exec {sys.executable} -m imgtool "$@"\n'
    )
    program.chmod(0o755)
    profile = trainer_profile(program=(str(program),))
    root = tmp_path / "ex periments"
    here = __file__.rpartition("/tests/")[0]
    trial = make_trial(root, "S1", walltime="20m", setup=[f"export PYTHONPATH={here}"])
    plan = make_plan(root, [trial])
    behave(trial, "long")
    submit(plan, replace(OPTIONS, profile=profile))
    assert wait(plan) == {"S1": "stopped"}
    cluster.wait(lambda: cluster.stats(101) == {1: "DONE"})
    assert "signal" in trial.directory.watch_log_path.read_text()


def test_a_trial_that_is_deaf_to_the_limit(tmp_path, cluster, monkeypatch):
    monkeypatch.setenv("FAKE_LSF_SCALE", "0.1")
    plan = plan_of(tmp_path, 1, walltime="30m")  # 3 s: Python has started by then
    behave(plan.trials[0], "hang")
    submit(plan)
    assert wait(plan) == {"S1": "failed"}
    found = read_state(plan.trials[0].directory)
    assert "TERM_RUNLIMIT" in found.reason
    assert found.exit_code == 137


class Told:
    """A scheduler that says what it is told to."""

    name = "lsf"

    def __init__(self, poll, history=None):
        self._poll, self._history = poll, history or {}

    def poll(self, jobs):
        return self._poll

    def history(self, jobs):
        return self._history


@pytest.mark.parametrize(
    ("asked", "said", "seen", "state", "reason"),
    [
        (True, None, Seen(state="failed", exit_code=130), "stopped", "cancelled"),
        (True, "running", Seen(state="failed", exit_code=130), "stopped", "cancelled"),
        (True, "running", Seen(state="cancelled", exit_code=137), "stopped", "cancelled"),
        (True, "completed", Seen(state="failed", exit_code=130), "completed", None),
        (True, "running", Seen(state="failed", exit_code=1), "failed", "ended with code 1"),
        (True, "running", None, "stopped", "cancelled"),  # it is forgotten already
        (False, "running", Seen(state="failed", exit_code=130), "stopped", "before it could save"),
        (False, "running", Seen(state="out_of_memory", exit_code=137), "out_of_memory", "ended it"),
        (False, "running", Seen(state="preempted"), "stopped", "pre-empted"),
        (False, "running", Seen(state="timed_out"), "failed", "time ran out"),
        (False, None, Seen(state="never", reason="PartitionTimeLimit"), "submitted", "not start"),
        (False, None, Seen(state="held"), "submitted", "held"),
        (False, "running", Seen(state="lost"), "running", "lost sight"),
    ],
)
def test_a_job_s_end_in_the_words_of_status(tmp_path, asked, said, seen, state, reason):
    directory = ExperimentDir(tmp_path / "a")
    directory.create()
    job = {"executor": "lsf", "job_id": 7, "index": 1, "name": "x", "stat": "running"}
    job |= {"attempt": 1, "submitted": now_iso()} | ({"asked": "cancelled"} if asked else {})
    write_job(directory, **job)
    if said is not None:
        status = {"state": said, "attempt": 1, "started": now_iso(), "heartbeat": now_iso()}
        directory.status_path.write_text(json.dumps({**status, "host": "elsewhere"}))
    told = Told({} if seen is None else {(7, 1): seen})
    assert refreshing.refresh([directory], get=lambda name: told).text is None
    found = read_state(directory)
    assert found.state == state
    assert found.reason is None if reason is None else reason in found.reason


def test_max_running_counts_what_is_at_work_already(tmp_path, cluster):
    plan = replace(plan_of(tmp_path, 5), max_running={"gpuv100": 2})
    for trial in plan.trials[:3]:
        behave(trial, "hang")
    submit(plan, replace(OPTIONS, stamp="a"), plan.trials[:1])
    submit(plan, replace(OPTIONS, stamp="b"), plan.trials[1:3])
    assert cluster.jobs["102"]["limit"] == 1  # beside the one that runs
    notes = []
    submit(plan, replace(OPTIONS, stamp="c"), plan.trials[3:], note=notes.append)
    assert cluster.jobs["103"]["after"] == "ended(101) && ended(102)"
    assert cluster.jobs["103"]["limit"] == 2
    assert "starts after job 101, 102" in notes[0]


def test_what_follows_cannot_wait_for_another_scheduler(tmp_path, cluster):
    plan = plan_of(tmp_path, 2)
    trial = plan.trials[0]
    trial.directory.create()
    write_job(trial.directory, executor="elsewhere", job_id=7, name="x", stat="running")
    with pytest.raises(SchedulerError, match="cannot wait for jobs of elsewhere"):
        submit(plan, replace(OPTIONS, then="true"), plan.trials[1:])
    assert not cluster.calls("bsub")
