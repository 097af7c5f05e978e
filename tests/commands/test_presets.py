"""imgtool presets list, show and copy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from commands.main import main
from imgtool.config import presets


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "packaged"
    files = {
        "phase1_1.yaml": "# Three shapes.\nsweep: phase1_1\nexperiments: [phase1_1/S4.yaml]\n",
        "phase1_1/base.yaml": "# Shared.\nfamily: autoencoder\n",
        "phase1_1/S4.yaml": "# S4: the middle.\nbase: phase1_1/base\n",
        "phase1_2/V1.yaml": "base: ../phase1_1/S4.yaml\n",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    monkeypatch.setattr(presets, "_root", lambda: root)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("IMGTOOL_FORMAT", raising=False)
    return root


def run(*args: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main([*args])
    return int(caught.value.code or 0)


def test_list(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("presets", "list") == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["type"] for record in records] == ["sweep", *["experiment"] * 3]
    assert records[0]["name"] == "phase1_1"
    assert records[1] == {
        "schema": "imgtool/1",
        "kind": "preset",
        "name": "phase1_1/S4",
        "path": str(folder / "phase1_1/S4.yaml"),
        "type": "experiment",
        "description": "S4: the middle.",
    }
    assert run("presets", "list", "--quiet") == 0  # for `config check -`
    assert capsys.readouterr().out.splitlines() == [record["path"] for record in records[1:]]
    assert run("presets", "list", "--format", "table") == 0
    assert "S4: the middle." in capsys.readouterr().out


def test_show(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("presets", "show", "phase1_1/S4") == 0
    assert capsys.readouterr().out == "# S4: the middle.\nbase: phase1_1/base\n"
    assert run("presets", "show", "phase1_1/S5") == 2
    assert capsys.readouterr().err == (
        "error: no preset 'phase1_1/S5'\nhint: did you mean 'phase1_1/S4'?\n"
    )


def test_copy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("presets", "copy", "phase1", "out/exp", "--dry-run") == 0
    planned = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert not (tmp_path / "out").exists()
    assert {record["is_written"] for record in planned} == {False}
    assert run("presets", "copy", "phase1", "out/exp", "--quiet") == 0
    written = capsys.readouterr().out.splitlines()
    assert written == [record["path"] for record in planned]
    assert run("config", "check", *written) == 0
    capsys.readouterr()
    assert run("presets", "copy", "phase1_1/S4", "out/exp/phase1_1") == 2
    assert capsys.readouterr().err == (
        "error: out/exp/phase1_1/S4.yaml exists already\nhint: --force overwrites\n"
    )
    (tmp_path / "out/exp/phase1_1/S4.yaml").write_text("mine")
    assert run("presets", "copy", "phase1_1", "out/exp", "--force") == 0
    assert "S4: the middle." in (tmp_path / "out/exp/phase1_1/S4.yaml").read_text()
