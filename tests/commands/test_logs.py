"""imgtool logs through the real program."""

import json
import subprocess
import sys

import pytest

from imgtool.experiment.job import write_job
from imgtool.experiment.layout import ExperimentDir
from imgtool.experiment.status import now_iso

PROGRAM = [sys.executable, "-m", "imgtool", "logs"]


@pytest.fixture
def directory(tmp_path):
    directory = ExperimentDir(tmp_path / "experiments" / "p" / "AE_S1")
    directory.path.mkdir(parents=True)
    say(directory, "running")
    return directory


def say(directory, state):
    now = now_iso()
    record = {"state": state, "host": "elsewhere", "pid": 1, "started": now, "heartbeat": now}
    directory.status_path.write_text(json.dumps(record))


def logs(*words, cwd):
    return subprocess.run(
        [*PROGRAM, *map(str, words)], capture_output=True, text=True, timeout=60, cwd=cwd
    )


def test_the_last_lines_of_the_childs_log_else_of_the_engines(directory, tmp_path):
    answer = logs("S1", cwd=tmp_path)
    assert answer.returncode == 1
    assert "error: AE_S1 has no log yet" in answer.stderr
    directory.log_path.write_text("engine\n")
    assert logs("AE_S1", cwd=tmp_path).stdout == "engine\n"
    directory.child_log_path.write_text("".join(f"line {n}\n" for n in range(100)))
    answer = logs(directory.path, "-n", "2", cwd=tmp_path)
    assert answer.stdout == "line 98\nline 99\n"
    assert answer.stderr == f"{directory.child_log_path}:\n"
    assert len(logs("S1", cwd=tmp_path).stdout.splitlines()) == 50


def test_the_log_of_a_cluster_job(directory, tmp_path):
    log = tmp_path / "p_gpuv100.31.1.out"
    write_job(directory, executor="lsf", job_id=31, index=1, stat="failed", log=str(log))
    assert logs("S1", cwd=tmp_path).returncode == 1
    log.write_text("no module cuda\n")
    answer = logs("S1", cwd=tmp_path)
    assert (answer.stdout, answer.stderr) == ("no module cuda\n", f"{log}:\n")
    directory.log_path.write_text("engine\n")
    answer = logs("S1", cwd=tmp_path)
    assert answer.stdout == "engine\n"
    assert answer.stderr == f"(its job's own: {log})\n{directory.log_path}:\n"


def test_one_experiment_is_meant(directory, tmp_path):
    other = ExperimentDir(directory.path.with_name("AE_S2"))
    other.path.mkdir()
    say(other, "stopped")
    answer = logs("AE", cwd=tmp_path)
    assert answer.returncode == 2
    assert "means 2 experiments" in answer.stderr
    assert logs("none", cwd=tmp_path).returncode == 1
    assert logs("", cwd=tmp_path).returncode == 2
    same = ExperimentDir(tmp_path / "experiments" / "q" / "AE_S1")
    same.path.mkdir(parents=True)
    say(same, "stopped")
    assert f"name one: {directory.path}, {same.path}" in logs("S1", cwd=tmp_path).stderr


def test_following_ends_with_the_experiment(directory, tmp_path):
    program = [*PROGRAM, "S1", "-f"]
    follower = subprocess.Popen(program, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    try:
        directory.child_log_path.write_text("one\ntw")
        assert follower.stdout.readline() == "one\n"
        with open(directory.child_log_path, "a") as log:
            log.write("o\n")
        assert follower.stdout.readline() == "two\n"
        with open(directory.child_log_path, "a") as log:
            log.write("no end of line")
        say(directory, "completed")
        assert follower.stdout.read() == "no end of line\n"
        assert follower.wait(timeout=30) == 0
    finally:
        follower.kill()
        follower.communicate()


def test_following_ends_with_its_reader(directory, tmp_path):
    directory.child_log_path.write_text("one\n")
    pipe = subprocess.PIPE
    follower = subprocess.Popen([*PROGRAM, "S1", "-f"], cwd=tmp_path, stdout=pipe, stderr=pipe)
    try:
        assert follower.stdout.readline() == b"one\n"
        follower.stdout.close()
        assert follower.wait(timeout=30) == 0
        assert b"Traceback" not in follower.stderr.read()
    finally:
        follower.kill()
        follower.stderr.close()
