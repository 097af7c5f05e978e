"""The blocks of the pages run, on little data."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.materials import make
from tests.docs.pages import OUTSIDE, ROOT, WRITTEN, Block, blocks
from tests.shell import Shell

PAGES = [page for page in (*WRITTEN, *OUTSIDE) if page.exists()]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def having(kind: str) -> list[Path]:
    return [page for page in PAGES if any(block.kind == kind for block in blocks(page))]


def run(found: list[Block], shell: Shell) -> None:
    made: set[str] = set()
    for block in found:
        if block.kind == "file":
            (shell.work / block.words[0]).write_text(block.text)
            continue
        make([word for word in block.words if word not in made], shell.work)
        made |= set(block.words)
        answer = shell(f"set -e\n{block.text}")
        assert answer.returncode == 0, f"{block}\n{answer.stdout[-2000:]}\n{answer.stderr[-4000:]}"


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path, module="tests.docs.small")


@pytest.mark.parametrize("page", having("run"), ids=name)
def test_the_quick_blocks_of_a_page_run(page: Path, shell: Shell) -> None:
    run([block for block in blocks(page) if block.kind in ("run", "file")], shell)


@pytest.mark.slow
@pytest.mark.parametrize("page", having("run slowly"), ids=name)
def test_all_blocks_of_a_page_run(page: Path, shell: Shell) -> None:
    run([block for block in blocks(page) if block.kind in ("run", "run slowly", "file")], shell)
