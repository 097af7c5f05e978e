"""imgtool status, all but its process, on directories as trainings leave them."""

import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
from datetime import UTC, datetime
from unittest import mock

import pytest

from commands import _sweep_table
from commands._program import run
from imgtool.experiment.job import write_job
from imgtool.experiment.layout import ExperimentDir
from imgtool.experiment.status import now_iso
from imgtool.sweep.slots import Slot
from imgtool.sweep.state import read_state

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")


def imgtool(*words, cwd=".", env=None, input=""):
    """As a process of its own would, in this one."""
    given, out, err = [str(word) for word in words], io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(cwd),
        mock.patch.dict(os.environ, env or {}),
        mock.patch.object(sys, "stdin", io.StringIO(input)),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        code = run(given)
    return subprocess.CompletedProcess(given, code, out.getvalue(), err.getvalue())


def put(folder, name, log=None, **fields):
    directory = ExperimentDir(folder / name)
    directory.path.mkdir(parents=True)
    now = now_iso()
    record = {"host": socket.gethostname(), "pid": os.getpid(), "started": now, "heartbeat": now}
    directory.status_path.write_text(json.dumps({**record, **fields}))
    if log:
        directory.child_log_path.write_text(log)
    return directory


@pytest.fixture
def study(tmp_path):
    """experiments/p with a manifest of four trials, one of which has not begun."""
    root = tmp_path / "experiments" / "p"
    put(root, "AE_S1", state="completed", reason="max_iter", iteration=9)
    put(root, "AE_S2", state="running", iteration=5, max_iteration=10, eta_sec=60.0, loss=0.5)
    put(root, "AE_S3", log="loading\nerror: no data\n", state="failed", reason="DataError: no data")
    trials = [
        {"name": f"AE_S{n}", "identity": f"id{n}", "exp_dir": str(root / f"AE_S{n}")}
        | {"family": "autoencoder", "overrides": {"train.seed": n}, "source": "x"}
        for n in (1, 2, 3, 4)
    ]
    trials[1]["also"] = ["AE_T7"]
    manifest = {"schema": "imgtool-sweep/1", "name": "p", "phase": "ph", "source": "p.yaml"}
    shared = {"shared_dir": "/shared", "decides": ["model.x"], "trials": trials}
    (root / "sweep.json").write_text(json.dumps({**manifest, **shared}))
    return tmp_path


def names_of(answer):
    return [json.loads(line)["name"] for line in answer.stdout.splitlines()]


def test_records_know_what_the_sweep_knows(study):
    answer = imgtool("status", "experiments/p", "--json", cwd=study)
    assert answer.returncode == 0, answer.stderr
    records = {record["name"]: record for record in map(json.loads, answer.stdout.splitlines())}
    assert {name: record["state"] for name, record in records.items()} == {
        "AE_S1": "completed",
        "AE_S2": "running",
        "AE_S3": "failed",
        "AE_S4": "pending",
    }
    first = records["AE_S2"]
    assert (first["schema"], first["kind"]) == ("imgtool/1", "experiment")
    assert (first["phase"], first["family"], first["identity"]) == ("ph", "autoencoder", "id2")
    assert first["path"] == str(study / "experiments/p/AE_S2")
    assert (first["iteration"], first["eta_sec"]) == (5, 60.0)
    assert (first["also"], records["AE_S1"]["also"]) == (["AE_T7"], [])
    assert (first["overrides"], first["decides"]) == ({"train.seed": 2}, ["model.x"])
    assert records["AE_S3"]["log_tail"] == ["loading", "error: no data"]
    assert "log_tail" not in first


@pytest.mark.parametrize(
    ("word", "names"),
    [
        ("p", ["AE_S1", "AE_S2", "AE_S3", "AE_S4"]),
        ("AE_S3", ["AE_S3"]),
        ("S2", ["AE_S2"]),
        ("AE_T7", ["AE_S2"]),
        ("T7", ["AE_S2"]),
        ("experiments", ["AE_S1", "AE_S2", "AE_S3", "AE_S4"]),
        ("experiments/p/AE_S1", ["AE_S1"]),
        ("experiments/p/sweep.json", ["AE_S1", "AE_S2", "AE_S3", "AE_S4"]),
        ("spec.yaml", ["AE_S1", "AE_S2", "AE_S3", "AE_S4"]),
    ],
)
def test_ways_to_name_experiments(study, word, names):
    (study / "spec.yaml").write_text("sweep: x\nroot: experiments/p\nexperiments: [a.yaml]\n")
    assert names_of(imgtool("status", word, cwd=study)) == names


def test_an_experiment_knows_its_sweep_and_a_moved_study_is_found(study):
    answer = imgtool("status", "experiments/p/AE_S1", cwd=study)
    assert json.loads(answer.stdout)["identity"] == "id1"
    (study / "experiments").rename(study / "moved")
    answer = imgtool("status", "moved", "--state", "completed,failed,running", cwd=study)
    assert names_of(answer) == ["AE_S1", "AE_S2", "AE_S3"]
    assert json.loads(answer.stdout.splitlines()[0])["path"] == str(study / "moved/p/AE_S1")


def test_folders_without_a_sweep_and_stdin(study, tmp_path):
    put(tmp_path, "free/deep/a", state="stopped")
    put(tmp_path, "free/deep/a/checkpoints", state="failed")  # not looked into
    assert names_of(imgtool("status", "free", cwd=study)) == ["a"]
    words = "free\nexperiments/p/AE_S1\n"
    assert names_of(imgtool("status", "-", cwd=study, input=words)) == ["a", "AE_S1"]


def test_states_are_chosen_and_paths_printed(study):
    answer = imgtool("status", "p", "--state", "failed,pending", "--quiet", cwd=study)
    assert [line.rsplit("/", 1)[1] for line in answer.stdout.split()] == ["AE_S3", "AE_S4"]
    answer = imgtool("status", "p", "--state", "faild", cwd=study)
    assert (answer.returncode, "did you mean 'failed'" in answer.stderr) == (2, True)


@pytest.mark.parametrize("words", [[], ["nowhere"]])
def test_nothing_found_is_a_no(tmp_path, words):
    answer = imgtool("status", *words, cwd=tmp_path)
    assert answer.returncode == 1
    assert answer.stderr.startswith("error: no experiment found for")
    assert "hint:" in answer.stderr


def test_a_sweep_that_has_not_run_is_said_to_be_one(tmp_path):
    (tmp_path / "s.yaml").write_text("sweep: s\nexperiments: [phase1_1/S5]\n")
    answer = imgtool("status", "s.yaml", cwd=tmp_path)
    assert answer.returncode == 1
    assert "it has not been run from here" in answer.stderr
    assert "imgtool sweep s.yaml --dry-run" in answer.stderr


def test_the_table_shows_why_something_failed(study):
    answer = imgtool("status", "p", "--format", "table", cwd=study, env=wide())
    assert "AE_S2 = AE_T7  running         5/10" in answer.stdout
    assert "AE_S3 failed: DataError: no data" in answer.stdout
    assert "  | error: no data" in answer.stdout
    assert "4 experiments: 1 pending, 1 running, 1 completed, 1 failed" in answer.stdout
    assert "\x1b" not in answer.stdout


def wide():
    return {**os.environ, "COLUMNS": "140"}


def test_watch_ends_when_nothing_is_at_work(study):
    running = ExperimentDir(study / "experiments/p/AE_S2")
    program = [sys.executable, "-m", "imgtool", "status", "p", "--watch", "--interval", "0.1s"]
    pipe = subprocess.PIPE
    watcher = subprocess.Popen(program, cwd=study, stdout=pipe, stderr=pipe, text=True)
    try:
        assert "1 running" in watcher.stderr.readline()
        record = json.loads(running.status_path.read_text())
        running.status_path.write_text(json.dumps({**record, "state": "stopped"}))
        out, _ = watcher.communicate(timeout=30)
    finally:
        watcher.kill()
    states = [json.loads(line)["state"] for line in out.splitlines()]
    assert (watcher.returncode, states) == (0, ["completed", "stopped", "failed", "pending"])


@pytest.mark.parametrize("words", [["status", "p", "--watch"], ["logs", "AE_S2", "-f"]])
def test_ctrl_c_ends_the_watching_and_is_no_failure(study, words):
    running = ExperimentDir(study / "experiments/p/AE_S2")
    running.log_path.write_text("a line\n")
    program = [sys.executable, "-m", "imgtool", *words]
    pipe = subprocess.PIPE
    watcher = subprocess.Popen(program, cwd=study, stdout=pipe, stderr=pipe, text=True)
    try:
        assert watcher.stderr.readline()
        watcher.send_signal(signal.SIGINT)
        out, said = watcher.communicate(timeout=30)
    finally:
        watcher.kill()
    assert (watcher.returncode, "Traceback" in said) == (0, False)
    if words[0] == "status":
        assert len(out.splitlines()) == 4


def test_lsf_is_asked_once_and_may_be_missing(study, tmp_path):
    for name in ("AE_S1", "AE_S4"):
        directory = ExperimentDir(study / "experiments/p" / name)
        directory.path.mkdir(exist_ok=True)
        submitted = datetime.now(UTC).isoformat()
        job = {"executor": "lsf", "job_id": 7, "index": int(name[-1]), "submitted": submitted}
        write_job(directory, **job, stat="waiting")
    tools = tmp_path / "tools"
    tools.mkdir()
    env = {**os.environ, "PATH": str(tools)}
    answer = imgtool("status", "S4", cwd=study, env=env)
    record = json.loads(answer.stdout)
    assert (record["state"], record["reason"]) == ("submitted", "as last heard of lsf")
    assert "states of cluster jobs may be old" in answer.stderr
    bjobs = tools / "bjobs"
    text = f"#!/bin/sh\necho call >> {tools}/calls\necho '7^1^RUN^-^-'\necho '7^4^RUN^-^-'\n"
    bjobs.write_text(text)
    bjobs.chmod(0o755)
    answer = imgtool("status", "p", "--state", "running", cwd=study, env=env)
    assert "AE_S4" in names_of(answer)
    assert (tools / "calls").read_text() == "call\n"


class FakeTrial:
    def __init__(self, directory):
        self.name, self.directory = directory.path.name, directory


def test_the_live_table_shows_what_runs(tmp_path):
    from rich.console import Console

    console = Console(width=100, file=io.StringIO(), force_terminal=True)
    trials = [
        FakeTrial(put(tmp_path, "a", state="running", iteration=5, max_iteration=10, loss=0.5)),
        FakeTrial(put(tmp_path, "b", state="failed", reason="broken")),
    ]
    table = _sweep_table.PoolTable(5, console)
    for number, trial in enumerate(trials):
        table.started(trial, Slot(f"gpu {number}"), 1)
    table.ended(trials[1], read_state(trials[1].directory))
    table.close()
    shown = Console(width=100, record=True, file=io.StringIO())
    shown.print(table.render())
    text = shown.export_text()
    assert "gpu 0" in text
    assert "gpu 1" not in text
    assert "5/10" in text
    assert "1 failed · 1 running · 3 waiting" in text


def test_the_live_table_shortens_no_number_at_80_columns(tmp_path):
    from rich.console import Console

    name = "phase1_1_AE_S11_ch8_ds6-f05469f9"
    fields = {"state": "running", "iteration": 99_950, "max_iteration": 100_000, "loss": 0.50123}
    trial = FakeTrial(put(tmp_path, name, **fields))
    table = _sweep_table.PoolTable(1, Console(width=80, file=io.StringIO(), force_terminal=True))
    table.started(trial, Slot("cpu 0"), 1)
    table.close()
    shown = Console(width=80, record=True, file=io.StringIO())
    shown.print(table.render())
    text = shown.export_text()
    assert "…" not in text
    assert "99950/100000" in text
    assert "0.5012" in text


def test_without_a_terminal_there_is_a_line_for_each_start_and_end(tmp_path, capsys, monkeypatch):
    trial = FakeTrial(put(tmp_path, "a", state="running", iteration=5, max_iteration=10))

    class Running:
        pass

    running = Running()
    running.trial = trial
    with _sweep_table.pool_listener(2) as lines:
        lines.started(trial, Slot("cpu 0"), 7)
        lines.tick([running])
        monkeypatch.setattr(_sweep_table, "LINE_EVERY_SEC", 0.0)
        lines.tick([running])
        put(tmp_path / "x", "a", state="completed", reason="max_iter", iteration=10)
        lines.ended(trial, read_state(ExperimentDir(tmp_path / "x/a")))
        lines.left(trial, "another sweep has it")
    assert capsys.readouterr().err.splitlines() == [
        "a started on cpu 0 (process 7)",
        "0/2 ended; running: a 5/10",
        "[1/2] a completed at iteration 10: max_iter",
        "[2/2] a is left alone: another sweep has it",
    ]


@pytest.mark.slow
def test_a_thousand_experiments(tmp_path):
    for number in range(1000):
        directory = put(tmp_path / "r", f"e{number}", log="x\n" * 99, state="running", loss=0.1)
        write_job(directory, executor="local", stat="running")
        row = {"iteration": 1, "val_mse": 0.1, "val_psnr": 9.0}
        directory.metrics_path.write_text(json.dumps(row) + "\n" + '{"loss": 1}\n' * 40)
    rows = [json.loads(line) for line in imgtool("status", tmp_path / "r").stdout.splitlines()]
    assert sorted(row["name"] for row in rows) == sorted(f"e{number}" for number in range(1000))
