"""imgtool cancel through the real program, against real processes and a bkill that takes notes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from imgtool.experiment.alive import start_ticks
from imgtool.experiment.job import write_job
from imgtool.experiment.layout import ExperimentDir
from imgtool.experiment.status import now_iso
from imgtool.sweep.state import read_job, read_state

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")

TRAINER = """
import json, os, signal, sys, time
folder, is_deaf = sys.argv[1], sys.argv[2:] == ["deaf"]
def say(state, reason=None):
    with open(folder + "/tmp", "w") as file:
        json.dump(dict(json.load(open(folder + "/base.json")), state=state, reason=reason,
                       pid=os.getpid()), file)
    os.replace(folder + "/tmp", folder + "/status.json")
def stop(number, frame):
    say("stopped", "SIGINT")
    sys.exit(0)
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN if is_deaf else stop)
if is_deaf:
    if os.fork() == 0:
        os.setsid()
        open(folder + "/grandchild", "w").write(str(os.getpid()))
        time.sleep(600)
    while not os.path.exists(folder + "/grandchild") or not open(folder + "/grandchild").read():
        time.sleep(0.01)
say("running")
time.sleep(600)
"""


def imgtool(*words, **options):
    return subprocess.run(
        [sys.executable, "-m", "imgtool", *map(str, words)],
        **{"capture_output": True, "text": True, "timeout": 60, **options},
    )


def make(path):
    directory = ExperimentDir(path)
    directory.path.mkdir(parents=True)
    now = now_iso()
    base = {"host": socket.gethostname(), "started": now, "heartbeat": now}
    (directory.path / "base.json").write_text(json.dumps(base))
    directory.made = now
    return directory


@pytest.fixture
def start(tmp_path):
    """start('a', 'deaf') -> the ExperimentDir of a trainer that runs."""
    children = []

    def begin(name, *words):
        directory = make(tmp_path / "experiments" / name)
        program = [sys.executable, "-S", "-c", TRAINER, str(directory.path), *words]
        child = subprocess.Popen(program, start_new_session=True)
        children.append(child)
        while not directory.status_path.exists():
            assert child.poll() is None
            time.sleep(0.01)
        job = {
            "executor": "local",
            "stat": "running",
            "host": socket.gethostname(),
            "pid": child.pid,
        }
        write_job(directory, **job, started=directory.made, start_ticks=start_ticks(child.pid))
        directory.child = child
        return directory

    yield begin
    for child in children:
        child.kill()
        child.wait()


def is_alive(pid):
    try:
        return Path(f"/proc/{int(pid)}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_it_saves_and_stops(start, tmp_path):
    first, second = start("AE_S1"), start("AE_S2")
    answer = imgtool("cancel", "S1", "--json", cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    record = json.loads(answer.stdout)
    assert (record["name"], record["state"], record["reason"]) == ("AE_S1", "stopped", "SIGINT")
    assert f"sending SIGINT to process {first.child.pid}" in answer.stderr
    assert first.child.wait(timeout=30) == 0
    assert second.child.poll() is None
    assert imgtool("cancel", "experiments", cwd=tmp_path).returncode == 0
    assert second.child.wait(timeout=30) == 0
    answer = imgtool("cancel", "experiments", cwd=tmp_path)
    assert (answer.returncode, answer.stdout) == (0, "")
    assert "nothing is at work" in answer.stderr


def test_a_dry_run_signals_nobody(start, tmp_path):
    directory = start("a")
    answer = imgtool("cancel", "a", "--dry-run", cwd=tmp_path)
    assert answer.returncode == 0
    assert f"would send SIGINT to process {directory.child.pid}" in answer.stderr
    assert directory.child.poll() is None
    assert read_state(directory).state == "running"


def test_who_does_not_stop_is_killed_with_all_below(start, tmp_path):
    directory = start("a", "deaf")
    grandchild = (directory.path / "grandchild").read_text()
    from imgtool.sweep import cancel

    notes = []
    leaders = [cancel.leader_of(directory)]
    assert cancel.stop(leaders, grace_sec=0.2, kill_after_sec=0.2, say=notes.append) == []
    assert directory.child.wait(timeout=30) == -signal.SIGKILL
    assert [note.rsplit(" ", 1)[1] for note in notes] == ["SIGTERM", "SIGKILL"]
    assert not is_alive(grandchild)


def test_another_process_with_its_number_is_left_alone(tmp_path):
    bystander = subprocess.Popen(["sleep", "60"])
    try:
        directory = make(tmp_path / "a")
        job = {"executor": "local", "stat": "running", "host": socket.gethostname()}
        write_job(directory, **job, pid=bystander.pid, start_ticks=1)
        record = json.loads((directory.path / "base.json").read_text())
        old = {**record, "started": "2020-01-01T00:00:00Z", "state": "running"}
        directory.status_path.write_text(json.dumps({**old, "pid": bystander.pid}))
        answer = imgtool("cancel", directory.path, "--grace", "0s")
        assert "nothing is at work" in answer.stderr
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_what_runs_on_another_host_is_named(tmp_path):
    directory = make(tmp_path / "a")
    record = json.loads((directory.path / "base.json").read_text())
    there = {**record, "state": "running", "host": "elsewhere", "pid": os.getpid()}
    directory.status_path.write_text(json.dumps(there))
    answer = imgtool("cancel", directory.path)
    assert answer.returncode == 1
    assert "a runs on elsewhere: cancel it there" in answer.stderr


def test_a_job_that_lsf_has_not_numbered_is_named(tmp_path):
    directory = make(tmp_path / "a")
    (directory.path / "status.json").unlink(missing_ok=True)
    job = {"executor": "lsf", "job_id": None, "name": "sweep-1", "stat": "waiting"}
    (directory.path / "job.json").write_text(json.dumps({**job, "submitted": now_iso()}))
    answer = imgtool("cancel", directory.path)
    assert answer.returncode == 1
    assert "a was submitted as sweep-1, and lsf has not said yet" in answer.stderr


def test_nothing_named(tmp_path):
    assert imgtool("cancel", cwd=tmp_path).returncode == 2
    assert imgtool("cancel", "nowhere", cwd=tmp_path).returncode == 1


@pytest.fixture
def cluster(tmp_path):
    """Three elements of job 7: one waits, one runs and saves on INT, one runs and is deaf."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for index, stat in ((1, "waiting"), (2, "running"), (3, "running")):
        directory = make(tmp_path / "experiments" / f"t{index}")
        submitted = now_iso()
        job = {"executor": "lsf", "job_id": 7, "index": index, "stat": stat}
        write_job(directory, **job, submitted=submitted)
        if stat == "running":
            record = json.loads((directory.path / "base.json").read_text())
            there = {**record, "state": "running", "host": "elsewhere", "pid": 5}
            directory.status_path.write_text(json.dumps(there))
    saved = tmp_path / "experiments/t2/status.json"
    (tools / "rows").write_text("7^1^PEND^-^-\n7^2^RUN^-^-\n7^3^RUN^-^-\n")
    (tools / "bjobs").write_text(
        f"#!/bin/sh\n[ -e {tools}/down ] && exec sleep 60\ncat {tools}/rows\n"
    )
    (tools / "bkill").write_text(
        f"""#!/bin/sh
echo "$*" >> {tools}/calls
sed -i s/running/stopped/ {saved}
sed -i 's/7^2^RUN^-/7^2^DONE^-/' {tools}/rows
case "$*" in
"7[1]") sed -i 's/7^1^PEND^-^-/7^1^EXIT^130^TERM_OWNER: killed/' {tools}/rows;;
"7[3]") sed -i 's/7^3^RUN^-^-/7^3^EXIT^137^TERM_OWNER: killed/' {tools}/rows;;
esac
for word; do case $word in *\\]) echo "Job <$word> is being signaled";; esac; done
"""
    )
    for tool in tools.iterdir():
        tool.chmod(0o755)
    return tools


def test_cluster_jobs_save_before_they_are_killed(cluster, tmp_path):
    env = {**os.environ, "PATH": f"{cluster}:{os.environ['PATH']}"}
    answer = imgtool("cancel", "experiments", "--dry-run", cwd=tmp_path, env=env)
    assert "t3: would cancel lsf job 7[3]" in answer.stderr
    assert not (cluster / "calls").exists()
    answer = imgtool("cancel", "experiments", "--grace", "1s", cwd=tmp_path, env=env)
    assert answer.returncode == 0, answer.stderr
    calls = (cluster / "calls").read_text().splitlines()
    assert calls == ["-s INT 7[2] 7[3]", "7[1]", "7[3]"]
    found = {one: read_state(ExperimentDir(tmp_path / "experiments" / one)) for one in ("t1", "t3")}
    assert found["t1"].reason == "cancelled before it started"
    assert found["t3"].reason.startswith("cancelled; it did not stop in time")
    assert {state.state for state in found.values()} == {"stopped"}


def test_without_bkill_nothing_is_called_cancelled(cluster, tmp_path):
    (cluster / "bkill").unlink()
    env = {**os.environ, "PATH": f"{cluster}:/usr/bin:/bin"}
    answer = imgtool("cancel", "t1", "--grace", "0s", cwd=tmp_path, env=env)
    assert answer.returncode == 1
    assert "lsf jobs are not cancelled: bkill cannot be run" in answer.stderr
    assert read_job(ExperimentDir(tmp_path / "experiments/t1"))["stat"] == "waiting"
