"""imgtool sweep: what it says beforehand, and what it refuses."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from commands.main import main

PROGRAM = [sys.executable, "-m", "imgtool"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("IMGTOOL_FORMAT", raising=False)
    monkeypatch.setenv("PATH", os.path.dirname(sys.executable) + ":/usr/bin:/bin")
    return tmp_path


def run(*args):
    with pytest.raises(SystemExit) as caught:
        main([*map(str, args)])
    return int(caught.value.code or 0)


def records(text):
    return [json.loads(line) for line in text.splitlines()]


def test_a_dry_run_tells_all_and_writes_nothing(folder, capsys):
    assert run("sweep", "phase1_1", "--dry-run") == 0
    said = capsys.readouterr()
    rows = records(said.out)
    assert [row["name"].split("_")[3] for row in rows] == [f"S{n}" for n in range(1, 13)]
    assert {row["gpu_hours"] for row in rows} == {6.0}
    assert "12 trials, 12 to run, at most 72 GPU hours" in said.err
    assert said.err.count(" train autoencoder --config ") == 12
    assert list(folder.iterdir()) == []


def test_a_dry_run_s_table_fits_a_terminal(folder, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    words = ("--set", "data.manifest=a/folder/of/mine/layouts.csv", "--dry-run")
    assert run("sweep", "phase1_1", "--only", "S7,S8", *words, "--format", "table") == 0
    said = capsys.readouterr()
    assert "every trial: data.manifest=a/folder/of/mine/layouts.csv" in said.err
    head, *rows = said.out.strip().splitlines()
    assert "overrides" not in head
    assert len(rows) == 2
    words += ("--grid", "train.seed=0,1", "--format", "table")
    assert run("sweep", "phase1_1", "--only", "S7", *words) == 0
    said = capsys.readouterr()
    assert "train.seed" in said.out
    assert "layouts.csv" not in said.out


def test_a_dry_run_for_lsf_shows_the_scripts(folder, capsys):
    assert run("sweep", "phase1_1", "--executor", "lsf", "--dry-run") == 0
    said = capsys.readouterr()
    assert len(records(said.out)) == 12
    assert '[1-10]%4"' in said.err
    assert '[1-2]%2"' in said.err
    assert said.err.count("\nexec ") == 2
    assert list(folder.iterdir()) == []


def test_scripts_for_people_who_submit_by_hand(folder, capsys):
    words = ("sweep", "phase1_2", "--executor", "lsf", "--script-dir", "jobs")
    assert run(*words) == 0
    rows = records(capsys.readouterr().out)
    assert sorted(row["queue"] for row in rows) == ["gpul40s", "gpuv100"]
    for row in rows:
        subprocess.run(["bash", "-n", row["path"]], check=True)
        (line,) = Path(row["manifest"]).read_text().splitlines()
        assert Path(line.split("\t")[1], "trial.yaml").is_file()
        assert Path(row["path"]).parent == folder / "jobs"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["phase1_9"], "no config file or preset 'phase1_9'"),
        (["phase1_1", "--only", "S99"], "no trial 'S99'"),
        (["phase1_1", "--only", ""], "--only names no trial"),
        (["phase1_1", "--set", "train.lrr=1"], "unknown key train.lrr"),
        (["phase1_1", "--grid", "loss.kld"], "not KEY=VALUE"),
        (["phase1_1", "--retry", "broken"], "no state 'broken'"),
        (["phase1_1", "--wait"], "--wait is for --executor cluster"),
        (["phase1_1", "--executor", "lsf", "--slots", "2"], "--slots is for --executor local"),
        (["phase1_1", "--duration", "soon"], "soon"),
        (["phase1_1", "--duration", "0"], "time limit is 0"),
        (["phase1_1", "--then", " "], "--then is empty"),
        (["phase1_1", "--set", "output.exp_dir=x"], "output.exp_dir is for one training"),
        (["phase1_1", "--executor", "lsf", "--dry-run", "--then", "ls 'x"], "No closing quotation"),
        (["phase1_1", "--executor", "lsf"], "there is no bsub here"),
        (["phase1_1", "--executor", "lfs"], "no 'lfs'"),
        (["phase1_1", "--executor", "cluster"], "there is no cluster here"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_starts(folder, capsys, words, said):
    assert run("sweep", *words) == 2
    error, hint = capsys.readouterr().err.splitlines()[-2:]
    assert error.startswith("error: ")
    assert said in error
    assert hint.startswith("hint: ")
    assert not list(folder.rglob("job.json"))


def test_a_trial_that_cannot_start_is_a_failed_one(folder):
    answer = subprocess.run(
        [*PROGRAM, "sweep", "phase1_1", "--only", "S7", "--tiny", "--set", "data.manifest=no.csv"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert answer.returncode == 1
    (row,) = records(answer.stdout)
    assert row["state"] == "failed"
    assert "no.csv" in row["reason"]
    again = subprocess.run(
        [
            *(*PROGRAM, "sweep", "phase1_1", "--only", "S7", "--tiny"),
            *("--set", "data.manifest=no.csv", "--then", "imgtool --version > after; echo talk"),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert again.returncode == 1
    assert "imgtool" in Path("after").read_text()
    assert "talk" in again.stderr
    assert "talk" not in again.stdout
    assert "--retry failed runs it again" in again.stderr


@pytest.mark.parametrize(
    ("ends", "code"),
    [
        ([("stopped", "SIGINT"), ("completed", None), None], 0),
        ([("stopped", "SIGINT"), ("failed", "SIGINT"), None], 130),
        ([("stopped", "SIGINT"), ("failed", None), None], 1),
    ],
)
def test_a_stop_that_saved_everything_is_no_failure(ends, code, monkeypatch, capsys):
    """States, and whether the stop had reached the trial; None for one that had not begun."""

    def pool(plan, trials, options, listener):
        for trial, end in zip(plan.trials, ends, strict=True):
            if end is not None:
                state, asked = end
                trial.directory.create()
                trial.directory.status_path.write_text(json.dumps({"state": state}))
                job = {"executor": "local", "asked": asked}
                (trial.directory.path / "job.json").write_text(json.dumps(job))
        return signal.SIGINT

    monkeypatch.setattr("imgtool.sweep.local.run", pool)
    words = ("--grid", "train.seed=0,1,2", "--slots", "1")
    assert run("sweep", "phase1_1/S5", *words) == code
    said = capsys.readouterr()
    assert [record["state"] for record in records(said.out)] == [
        *(end[0] if end else "pending" for end in ends)
    ]
    assert ("was stopped before it could save" in said.err) == (code == 130)
