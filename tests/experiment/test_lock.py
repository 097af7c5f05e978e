import json
import os
import signal
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta

import pytest

from imgtool.errors import ExperimentError
from imgtool.experiment.alive import start_ticks
from imgtool.experiment.lock import exclusive

HOLDER = """
import os, sys, time
from imgtool.experiment.layout import ExperimentDir
from imgtool.experiment.lock import exclusive
with exclusive(ExperimentDir(sys.argv[1])):
    if "fork" in sys.argv:
        child = os.fork()
        if child == 0:
            time.sleep(60)
        print(child, flush=True)
    print("held", flush=True)
    time.sleep(60)
"""


def hold(experiment, *words):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(experiment.path), *words],
        stdout=subprocess.PIPE,
        text=True,
    )
    lines = []
    while not lines or lines[-1] != "held":
        lines.append(process.stdout.readline().strip())
    return process, lines


def end(process):
    process.kill()
    process.wait()
    process.stdout.close()


def test_held_and_given_back(experiment):
    with exclusive(experiment):
        owner = json.loads(experiment.lock_path.read_text())
        assert owner["pid"] == os.getpid()
        assert owner["host"] == socket.gethostname()
        assert owner["start_ticks"] == start_ticks(os.getpid())
        assert datetime.fromisoformat(owner["start"]) <= datetime.now(UTC)
    assert not experiment.lock_path.exists()
    with exclusive(experiment):
        pass


def test_given_back_after_an_error(experiment):
    with pytest.raises(KeyError), exclusive(experiment):
        raise KeyError
    assert not experiment.lock_path.exists()


def test_a_second_one_in_the_same_process_is_refused(experiment):
    with exclusive(experiment), pytest.raises(ExperimentError), exclusive(experiment):
        pass
    with exclusive(experiment):
        pass


def test_another_process_is_named_and_a_killed_one_never_blocks(experiment):
    process, _ = hold(experiment)
    try:
        with pytest.raises(ExperimentError) as caught, exclusive(experiment):
            pass
        assert f"process {process.pid} on {socket.gethostname()} since 20" in str(caught.value)
        assert caught.value.hint
        assert caught.value.exit_code == 2
    finally:
        end(process)
    assert experiment.lock_path.exists()
    with exclusive(experiment):
        assert json.loads(experiment.lock_path.read_text())["pid"] == os.getpid()


def test_a_forked_worker_that_outlives_its_killed_parent_does_not_block(experiment):
    process, lines = hold(experiment, "fork")
    worker = int(lines[0])
    try:
        end(process)
        os.kill(worker, 0)
        with exclusive(experiment):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)


def test_a_forked_child_that_leaves_the_block_does_not_unlock(experiment):
    child = -1
    try:
        with exclusive(experiment):
            child = os.fork()
            if child == 0:
                raise KeyError  # unwinds through the block in the child
            os.waitpid(child, 0)
            assert experiment.lock_path.exists()
            with pytest.raises(ExperimentError), exclusive(experiment):
                pass
    finally:
        if child == 0:
            os._exit(0)


def test_words_of_a_dead_process_or_damaged_words_do_not_block(experiment):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for words in (
        json.dumps({"host": socket.gethostname(), "pid": gone.pid, "start": "x"}),
        json.dumps({"host": "elsewhere", "pid": 1, "start": "x"}),
        "",
        "{ half",
        "[1]",
    ):
        experiment.lock_path.write_text(words)
        with exclusive(experiment):
            pass


def iso(age_sec):
    return (datetime.now(UTC) - timedelta(seconds=age_sec)).strftime("%Y-%m-%dT%H:%M:%SZ")


def elsewhere(experiment, *, age_sec, state="running", host="node7"):
    owner = {"host": "node7", "pid": 4242, "start": "2026-01-01T00:00:00Z"}
    experiment.lock_path.write_text(json.dumps(owner))
    status = {"state": state, "host": host, "heartbeat": iso(age_sec)}
    experiment.status_path.write_text(json.dumps(status))


def test_another_host_with_a_fresh_heartbeat_is_refused(experiment):
    elsewhere(experiment, age_sec=20)
    with pytest.raises(ExperimentError, match="node7") as caught, exclusive(experiment):
        pass
    assert "process 4242 on node7 since 2026-01-01" in str(caught.value)
    assert "s ago" in str(caught.value)
    assert str(experiment.lock_path) in caught.value.hint
    assert json.loads(experiment.lock_path.read_text())["pid"] == 4242


@pytest.mark.parametrize(
    "facts",
    [
        {"age_sec": 400},
        {"age_sec": 5, "state": "stopped"},
        {"age_sec": 5, "host": "node8"},
    ],
)
def test_another_host_without_one_is_taken_over(experiment, facts):
    elsewhere(experiment, **facts)
    with exclusive(experiment):
        assert json.loads(experiment.lock_path.read_text())["pid"] == os.getpid()


def test_without_flock_the_words_decide(experiment, monkeypatch):
    monkeypatch.setattr("imgtool.experiment.lock._flock", lambda handle: None)
    process, _ = hold(experiment)
    try:
        with pytest.raises(ExperimentError, match=str(process.pid)), exclusive(experiment):
            pass
    finally:
        end(process)
    with exclusive(experiment):
        pass


def test_unwritable(experiment):
    experiment.lock_path.mkdir()
    with pytest.raises(ExperimentError, match="cannot write"), exclusive(experiment):
        pass


RACER = """
import os, sys, time
from imgtool.errors import ExperimentError
from imgtool.experiment.layout import ExperimentDir
from imgtool.experiment.lock import exclusive
experiment = ExperimentDir(sys.argv[1])
guard = os.path.join(sys.argv[1], "guard")
won = 0
end = time.monotonic() + 1.5
while time.monotonic() < end:
    try:
        with exclusive(experiment):
            os.close(os.open(guard, os.O_CREAT | os.O_EXCL))  # fails if another is inside
            won += 1
            os.unlink(guard)
    except ExperimentError:
        pass
print(won)
"""


def test_never_two_inside(experiment):
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, str(experiment.path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    results = [racer.communicate(timeout=60) for racer in racers]
    assert [racer.returncode for racer in racers] == [0] * 4, results
    assert sum(int(out) for out, _ in results) > 20


def test_refusal_is_quick_when_the_owner_is_alive(experiment):
    with exclusive(experiment):
        start = time.monotonic()
        with pytest.raises(ExperimentError), exclusive(experiment):
            pass
        assert time.monotonic() - start < 1.0
