"""What docs/design.md adds to imgtool works, as it stands there.

Each section's files and lines go into a copy of the checkout, where its commands run.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.docs.materials import photos
from tests.docs.pages import DOCS, ROOT, Block, blocks
from tests.shell import Shell

COPIED = ("imgtool", "commands", "tests", "docs", "pyproject.toml", "README.md")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what is needed of this one."""
    there = tmp_path / "checkout"
    there.mkdir()
    for name in COPIED:
        if (ROOT / name).is_dir():
            left_out = shutil.ignore_patterns("__pycache__", "*.xz")
            shutil.copytree(ROOT / name, there / name, ignore=left_out)
        else:
            shutil.copy(ROOT / name, there / name)
    return there


def put(block: Block, checkout: Path) -> None:
    """Write a block's file, or its lines after the line that its mark names."""
    name, *after = block.words
    path = checkout / name
    if block.kind == "file":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text)
        return
    (line,) = after
    text = path.read_text()
    assert text.count(f"{line}\n") == 1, f"{block}: {name} has no line {line!r}"
    path.write_text(text.replace(f"{line}\n", f"{line}\n{block.text}"))


def follow(section: str, checkout: Path, folder: Path) -> None:
    found = [block for block in blocks(DOCS / "design.md") if block.section == section]
    for block in found:
        if block.kind in ("file", "line of"):
            put(block, checkout)
    shell = Shell(folder / "shell", module="tests.docs.small", root=checkout, work=checkout)
    photos(checkout)
    scripts = [block for block in found if block.kind == "run by"]
    assert scripts
    for block in scripts:
        answer = shell(f"set -e\n{block.text}")
        assert answer.returncode == 0, f"{block}\n{answer.stdout[-4000:]}\n{answer.stderr[-4000:]}"


def test_a_command_is_added(checkout: Path, tmp_path: Path) -> None:
    follow("Add a command", checkout, tmp_path)


@pytest.mark.slow
def test_a_family_is_added(checkout: Path, tmp_path: Path) -> None:
    follow("Add a family", checkout, tmp_path)
