"""The rule `edit`, and what it reads of edit.json."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from imgtool.errors import UsageError
from imgtool.selection.gather import read_evidence
from imgtool.selection.rule_file import load_rule
from imgtool.selection.rules import select
from imgtool.selection.sources import find_sources
from tests.selection.making import run, winner

RULE = load_rule("edit")


def edits(name: str, success: float, kept: float, fid: float):
    return run(name, None, edit_success=success, edit_preservation=kept, fid=fid)


def test_success_preservation_and_fid_are_traded_as_stated() -> None:
    plain = edits("plain", 0.90, 0.95, 20)
    better = edits("better", 0.93, 0.95, 22)  # 3.3 % more success pay for 10 % more FID
    dearer = edits("dearer", 0.93, 0.95, 24)  # and not for 20 %
    assert winner([plain, better], "edit") == "better"
    assert winner([plain, dearer], "edit") == "plain"
    kinder = edits("kinder", 0.90, 0.98, 22)
    assert winner([plain, kinder], "edit") == "kinder"


def test_who_hardly_edits_or_was_not_judged_cannot_win() -> None:
    idle = edits("idle", 0.45, 1.0, 1)
    blind = run("blind", None, fid=1)
    works = edits("works", 0.6, 0.8, 60)
    assert winner([idle, blind, works], "edit") == "works"
    assert select([idle, blind], RULE).winner is None


def write(folder: Path, name: str, success: float, judge: str = "a") -> Path:
    exp_dir = folder / name
    exp_dir.mkdir()
    (exp_dir / "config.yaml").write_text(f"family: genegan\nname: {name}\n")
    (exp_dir / "status.json").write_text(json.dumps({"state": "completed"}))
    (exp_dir / "fid.json").write_text(json.dumps({"fid": 20.0, "num_images": 500}))
    record = {
        "kind": "edit", "success": success, "success_se": 0.01, "preservation": 0.9,
        "attribute": "Smiling", "judge": {"hash": judge}, "image_size": 64, "others": ["Male"],
    }  # fmt: skip
    (exp_dir / "edit.json").write_text(json.dumps(record) + "\n")
    return exp_dir


def test_edit_json_reaches_the_rule(tmp_path: Path) -> None:
    folders = [write(tmp_path, "a", 0.7), write(tmp_path, "b", 0.9)]
    found = read_evidence(find_sources(map(str, folders)), RULE)
    of = {one.name: one.metrics for one in found}
    assert (of["b"]["edit_success"], of["b"]["edit_success_se"]) == (0.9, 0.01)
    chosen = select(found, RULE).winner
    assert chosen is not None
    assert chosen.candidate.name == "b"


def test_edits_of_other_judges_are_no_comparison(tmp_path: Path) -> None:
    folders = [write(tmp_path, "a", 0.7), write(tmp_path, "b", 0.9, judge="b")]
    with pytest.raises(UsageError, match="edits measured differently: judge"):
        read_evidence(find_sources(map(str, folders)), RULE)
