"""imgtool config show and check: documents, records, exit codes."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from commands.main import main

GOOD = "family: autoencoder\ntrain:\n  lr: 3e-05\n"
BAD = "family: autoencoder\ntrain:\n  learning_rte: 1\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("IMGTOOL_FORMAT", raising=False)
    (tmp_path / "good.yaml").write_text(GOOD)
    (tmp_path / "bad.yaml").write_text(BAD)
    return tmp_path


def run(*args: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["config", *args])
    return int(caught.value.code or 0)


def test_show_prints_the_resolved_config(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("show", "good.yaml", "--set", "train.seed=7", "--tiny") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [
        line.split() for line in lines if line.strip().startswith(("name:", "seed:", "lr:"))
    ] == [
        ["name:", "good", "#", "default"],
        ["lr:", "0.001", "#", "--tiny"],
        ["seed:", "7", "#", "--set"],
    ]


def test_show_of_a_family_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("show", "--family", "autoencoder") == 0
    assert "\nfamily: autoencoder " in capsys.readouterr().out


def test_what_show_prints_can_be_checked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("show", "good.yaml") == 0
    (folder / "again.yaml").write_text(capsys.readouterr().out)
    assert run("check", "again.yaml") == 0


def test_check_reports_every_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("check", "bad.yaml", "good.yaml", "none.yaml") == 2
    captured = capsys.readouterr()
    records = [json.loads(line) for line in captured.out.splitlines()]
    assert [(record["config"], record["ok"]) for record in records] == [
        ("bad.yaml", False),
        ("good.yaml", True),
        ("none.yaml", False),
    ]
    assert records[0]["error"] == "bad.yaml:3: unknown key train.learning_rte"
    assert records[1]["path"] == str(folder / "good.yaml")
    assert (records[1]["name"], records[1]["family"]) == ("good", "autoencoder")
    assert captured.err.splitlines() == [
        "error: bad.yaml:3: unknown key train.learning_rte",
        "hint: did you mean 'train.lr'?",
        "error: no config file or preset 'none.yaml'",
        f"hint: {records[2]['hint']}",
    ]


def test_check_reads_paths_from_stdin(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO('bad.yaml\n{"path": "good.yaml"}\n\n'))
    assert run("check", "-", "--quiet") == 2
    assert capsys.readouterr().out == f"{folder / 'good.yaml'}\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert run("check", "-") == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert error == "error: nothing to check: no paths on stdin"
    assert hint.startswith("hint: ")


def test_exit_codes_and_streams_of_a_real_process(folder: Path) -> None:
    def process(*args: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "imgtool", "config", *args]
        root = Path(__file__).resolve().parents[2]
        environment = {"PYTHONPATH": str(root), "PATH": ""}
        return subprocess.run(command, capture_output=True, text=True, env=environment)

    good = process("check", "good.yaml")
    assert (good.returncode, good.stderr) == (0, "")
    assert json.loads(good.stdout)["ok"] is True
    bad = process("show", "bad.yaml")
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr == (
        "error: bad.yaml:3: unknown key train.learning_rte\nhint: did you mean 'train.lr'?\n"
    )
    assert process("check", "bad.yaml").returncode == 2
