"""What is read off an experiment's directory."""

import json
import os
import socket
import subprocess
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from imgtool.experiment.alive import start_ticks
from imgtool.experiment.job import write_job
from imgtool.experiment.layout import ExperimentDir
from imgtool.experiment.owner import take
from imgtool.experiment.status import now_iso
from imgtool.sweep.choose import choose
from imgtool.sweep.state import complaint, last_lines, read_job, read_state

DEAD = 2**22 - 3
PEND, RUN, DONE, EXIT = "waiting", "running", "done", "failed"


def ago(seconds):
    return (datetime.now(UTC) - timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def test_what_is_not_there_is_pending(tmp_path):
    state = read_state(ExperimentDir(tmp_path / "a"))
    assert (state.name, state.state, state.reason, state.log) == ("a", "pending", None, None)


@pytest.mark.parametrize("text", ["", "{", "[1]", '"x"', '{"state": "unheard of"}'])
def test_a_spoilt_status_is_pending(tmp_path, text):
    (tmp_path / "status.json").write_text(text)
    assert read_state(ExperimentDir(tmp_path)).state == "pending"


def test_a_running_one_tells_how_far_it_is(write_status):
    directory = write_status(
        "a",
        pid=os.getpid(),
        iteration=50,
        max_iteration=100,
        epoch=1.5,
        loss=0.1,
        eta_sec=9.0,
        best={"metric": "val_mse", "value": 0.2, "iteration": 40},
    )
    rows = [{"iteration": 40, "val_mse": 0.2, "val_psnr": 7.0}, {"iteration": 50, "loss": 0.1}]
    directory.metrics_path.write_text("\n".join(map(json.dumps, rows)) + '\n{"val_mse": 0.1')
    directory.log_path.write_text("x\n")
    state = read_state(directory)
    assert state.state == "running"
    assert (state.iteration, state.max_iteration, state.epoch) == (50, 100, 1.5)
    assert (state.loss, state.eta_sec, state.best["value"]) == (0.1, 9.0, 0.2)
    assert state.metrics == {"val_mse": 0.2, "val_psnr": 7.0}
    assert state.log == directory.log_path
    assert state.heartbeat_age_sec < 60
    directory.child_log_path.write_text("y\n")
    assert read_state(directory).log == directory.child_log_path
    record = state.record(name="A", phase="p", decides=["x"])
    assert (record["name"], record["phase"], record["decides"]) == ("A", "p", ["x"])
    assert list(record)[:4] == ["path", "name", "phase", "family"]


@pytest.mark.parametrize(
    ("fields", "state", "word"),
    [
        ({"pid": DEAD}, "stale", "is gone"),
        ({"host": "elsewhere"}, "running", None),
        ({"host": "elsewhere", "heartbeat": 200}, "running", None),
        ({"host": "elsewhere", "heartbeat": 310}, "stale", "no sign of life"),
        ({"host": "elsewhere", "heartbeat": -4000}, "running", None),  # a clock that is ahead
        ({"host": "elsewhere", "heartbeat": None}, "stale", "no sign of life"),
        (
            {"state": "failed", "reason": "OutOfMemoryError: CUDA out of memory"},
            "out_of_memory",
            "",
        ),
        ({"state": "failed", "reason": "ValueError: x"}, "failed", "ValueError"),
        ({"state": "completed", "reason": "max_iter", "pid": DEAD}, "completed", "max_iter"),
    ],
)
def test_states_of_status_alone(write_status, fields, state, word):
    if isinstance(fields.get("heartbeat"), int):  # seconds before this test
        fields = {**fields, "heartbeat": ago(fields["heartbeat"])}
    found = read_state(write_status("a", **fields))
    assert found.state == state
    assert (found.reason is None) if word is None else (word in found.reason)


def test_another_process_with_its_number_is_not_it(write_status):
    # This process began long after such a trainer said that it ran.
    assert read_state(write_status("a", pid=os.getpid(), started=ago(1e6))).state == "stale"


def job_fields(**fields):
    return {"executor": "lsf", "job_id": 7, "index": 2, "submitted": ago(100), **fields}


@pytest.mark.parametrize(
    ("job", "state", "word"),
    [
        ({"stat": "PEND"}, "submitted", None),
        ({"stat": "PSUSP"}, "submitted", "held"),
        ({"stat": "running"}, "running", "starting"),
        ({"stat": "USUSP"}, "running", "starting"),
        ({"stat": "UNKWN"}, "submitted", "lost sight"),
        ({"stat": "EXIT", "exit_code": 1}, "failed", "code 1"),
        ({"stat": "ZOMBI"}, "failed", "did not say why"),
        ({"stat": "EXIT", "exit_code": 137}, "failed", "killed (perhaps out of memory)"),
        (
            {"stat": "EXIT", "exit_code": 137, "reason": "TERM_MEMLIMIT"},
            "out_of_memory",
            "MEMLIMIT",
        ),
    ],
)
def test_states_of_a_cluster_job_without_a_word_of_its_trainer(tmp_path, job, state, word):
    directory = ExperimentDir(tmp_path)
    write_job(directory, **job_fields(**job))
    found = read_state(directory)
    assert found.state == state
    assert (found.reason is None) if word is None else (word in found.reason)


def test_an_earlier_attempts_words_do_not_count_for_a_new_job(write_status):
    directory = write_status("a", state="stopped", started=ago(500), heartbeat=ago(400))
    write_job(directory, **job_fields(stat="waiting"))
    assert read_state(directory).state == "submitted"
    directory = write_status("a", state="completed", started=ago(50))
    assert read_state(directory).state == "completed"


# Of a trainer's word and its job's, as two hosts write them down whose clocks differ: name ->
# status.json, job.json, what it is. Times are seconds before now.
WORDS = {
    "completed": ({"attempt": 3, "state": "completed"}, {"stat": DONE, "exit_code": 0}, "completed"),
    "its end not seen yet": ({"attempt": 3, "state": "completed"}, {"stat": RUN}, "completed"),
    "trains": ({"attempt": 3}, {"stat": RUN}, "running"),
    "died at work": ({"attempt": 3}, {"stat": EXIT, "exit_code": 140}, "failed"),
    "waits": ({"attempt": 2, "state": "stopped"}, {"stat": PEND}, "submitted"),
    "has started": ({"attempt": 2, "state": "failed"}, {"stat": RUN}, "running"),
    "said nothing": ({"attempt": 2, "state": "completed"}, {"stat": DONE, "exit_code": 0}, "failed"),
    "verdict": ({"attempt": 3}, {"stat": EXIT, "state": "stopped", "reason": "x"}, "stopped"),
    "late verdict": ({"attempt": 3, "state": "failed"}, {"stat": EXIT, "state": "stopped"}, "stopped"),
    "by hand since": ({"attempt": 4}, {"stat": EXIT, "exit_code": 2, "state": "failed"}, "running"),
    "done since": ({"attempt": 4, "state": "completed"}, {"stat": EXIT, "exit_code": 2}, "completed"),
    "next turn waits": ({"attempt": 3, "state": "stopped"}, {"stat": PEND, "goes_on_after": 3}, "submitted"),
    "next turn trains": ({"attempt": 4}, {"stat": RUN, "goes_on_after": 3}, "running"),
    "next turn died": (
        {"attempt": 3, "state": "stopped"}, {"stat": EXIT, "exit_code": 1, "goes_on_after": 3}, "failed"
    ),
    "forgotten, yet it lives": ({"attempt": 3}, {"stat": EXIT, "state": "stale"}, "running"),
    "forgotten, then done": ({"attempt": 3, "state": "completed"}, {"stat": EXIT, "state": "stale"}, "completed"),
}  # fmt: skip


@pytest.mark.parametrize("ahead", [-120, -2, 0, 2, 120])
@pytest.mark.parametrize("case", WORDS)
def test_the_later_start_counts_whatever_the_clocks_say(write_status, case, ahead):
    """`ahead`: seconds of the trainer's clock before that of whoever started it."""
    status, job, state = WORDS[case]
    times = {"started": ago(9 - ahead), "heartbeat": ago(-ahead)}
    directory = write_status("a", **{"host": "elsewhere", **times, **status})
    ended = {"ended": ago(0)} if job["stat"] in (DONE, EXIT) else {}
    write_job(directory, **job_fields(submitted=ago(10), attempt=3, **ended, **job))
    assert read_state(directory).state == state


def test_a_job_that_was_refused_while_its_trial_trains(tmp_path):
    """Another's that has begun, and has not said anything yet."""
    directory = ExperimentDir(tmp_path)
    write_job(directory, **job_fields(stat=EXIT, exit_code=2, attempt=1))
    assert read_state(directory).state == "failed"
    with take(directory):  # a sweep that looks at it is no training
        assert read_state(directory).state == "failed"
    with take(directory, trains=True):
        found = read_state(directory)
    assert found.state == "running"
    assert f"by process {os.getpid()} " in found.reason


def test_what_trains_has_an_owner_before_it_says_so(tmp_path):
    directory = ExperimentDir(tmp_path)
    with take(directory, trains=True):
        assert read_state(directory).state == "running"
    assert read_state(directory).state == "pending"


def test_running_by_its_word_in_a_job_that_has_ended(write_status):
    directory = write_status("a", host="elsewhere")
    write_job(directory, **job_fields(stat="EXIT", exit_code=140, reason="TERM_RUNLIMIT"))
    found = read_state(directory)
    assert (found.state, found.exit_code) == ("failed", 140)
    assert "TERM_RUNLIMIT" in found.reason


def test_a_suspended_job_is_alive_though_its_heart_stands_still(write_status):
    directory = write_status("a", host="elsewhere", heartbeat=ago(5000), started=ago(90))
    write_job(directory, **job_fields(stat="SSUSP"))
    assert read_state(directory).state == "running"


def test_a_local_job_that_starts_or_died_while_starting(tmp_path):
    directory = ExperimentDir(tmp_path)
    job = {
        "executor": "local",
        "stat": "running",
        "host": socket.gethostname(),
        "started": now_iso(),
    }
    pid = os.getpid()
    write_job(directory, **job, pid=pid, start_ticks=start_ticks(pid))
    assert (read_state(directory).state, read_state(directory).reason) == ("running", "starting")
    write_job(directory, **job, pid=pid, start_ticks=1)
    assert read_state(directory).state == "stale"


def test_a_job_without_a_number_is_open(tmp_path):
    """Its submission was cut off before LSF's answer, and LSF may run it."""
    directory = ExperimentDir(tmp_path)
    ended = {"state": "stopped", "started": "2026-01-01T00:00:00Z", "heartbeat": now_iso()}
    directory.status_path.write_text(json.dumps(ended))
    job = {"executor": "lsf", "job_id": None, "submitted": "2026-02-01T00:00:00Z"}
    write_job(directory, **job, name="sweep-1")
    assert read_state(directory).state == "submitted"
    write_job(directory, **job, name="sweep-1", stat="EXIT", state="stopped", reason="x")
    assert read_state(directory).state == "stopped"
    write_job(directory, **job)
    assert read_state(directory).state == "stopped"


def test_a_zombie_is_gone(tmp_path):
    child = subprocess.Popen(["true"])
    while Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)
    directory = ExperimentDir(tmp_path)
    job = {"executor": "local", "stat": "running", "host": socket.gethostname(), "pid": child.pid}
    write_job(directory, **job, start_ticks=start_ticks(child.pid))
    assert read_state(directory).state == "stale"
    child.wait()


def test_job_json_is_whole_or_none(tmp_path):
    directory = ExperimentDir(tmp_path)
    assert read_job(directory) is None
    write_job(directory, a=1, path=tmp_path)
    assert read_job(directory) == {"a": 1, "path": str(tmp_path)}
    assert [path.name for path in tmp_path.iterdir()] == ["job.json"]


def test_last_lines_are_bounded(tmp_path):
    log = tmp_path / "log"
    log.write_bytes(b"x" * 3_000_000 + b"\n\n10%\r20%\r\n\xff tail  \n\n")
    assert last_lines(log, 3) == ["10%", "20%", "\ufffd tail"]
    assert len(last_lines(log, 9)[0]) < 70_000
    assert last_lines(None, 3) == last_lines(log, 0) == last_lines(tmp_path / "no", 3) == []
    log.write_text("error: a\nhint: b\n")
    assert complaint(log) == "error: a"


def write_config(trial, **train):
    from dataclasses import replace

    from imgtool.config.load import to_yaml

    experiment = trial.loaded.experiment
    experiment = replace(experiment, train=replace(experiment.train, **train))
    trial.directory.path.mkdir(parents=True, exist_ok=True)
    trial.directory.config_path.write_text(to_yaml(replace(trial.loaded, experiment=experiment)))


def test_choosing(make_plan, write_status):
    plan = make_plan("done", "stopped", "broken", "new", "running", "claimed", "raised", "other")
    by_name = {trial.name: trial for trial in plan.trials}
    for name, state in {"done": "completed", "stopped": "stopped", "broken": "failed"}.items():
        write_status(name, plan.root, state=state, reason="why")
        write_config(by_name[name])
    write_status("running", plan.root, pid=os.getpid())
    held = take(by_name["claimed"].directory)
    write_status("raised", plan.root, state="completed")
    write_config(by_name["raised"], epochs=1)
    write_status("other", plan.root, state="stopped")
    write_config(by_name["other"], lr=0.5)
    choice = choose(plan)
    assert [trial.name for trial in choice.run] == ["stopped", "new", "raised"]
    assert choice.left["done"] == "completed"
    assert choice.left["running"] == "running"
    assert choice.left["claimed"].startswith("submitted: claimed by process")
    assert "--retry failed" in choice.left["broken"]
    assert "another experiment (train.lr 0.5 instead of" in choice.left["other"]
    assert "broken" in [trial.name for trial in choose(plan, retry=frozenset({"failed"})).run]
    held.release()


def test_lower_limits_leave_a_completed_trial_alone(make_plan, write_status):
    plan = make_plan("a", max_iter=10)
    write_status("a", plan.root, state="completed")
    write_config(plan.trials[0], max_iter=20)
    assert choose(plan).left == {"a": "completed"}
    write_config(plan.trials[0], max_iter=20, max_time="1h")
    assert [trial.name for trial in choose(plan).run] == ["a"]  # no limit of time any more
