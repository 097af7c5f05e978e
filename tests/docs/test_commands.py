"""Every command of the pages exists, with every option, and so does every key and preset."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from tests.docs.pages import ALL, OUTSIDE, ROOT, WRITTEN, Block, blocks, commands_in
from tests.docs.understanding import program, understand

MARKED = [*WRITTEN, *(page for page in OUTSIDE if page.name == "CONTRIBUTING.md" and page.exists())]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture(scope="module")
def root() -> click.Context:
    return program()


def shells(page: Path) -> Iterator[Block]:
    """What is not run by a test of its own, which may know commands that are not there yet."""
    found = (block for block in blocks(page) if block.is_shell or not block.language)
    return (block for block in found if block.kind != "run by")


@pytest.mark.parametrize("page", [page for page in ALL if page.exists()], ids=name)
def test_every_command_of_a_page_is_understood(page, root):
    for block in shells(page):
        for words in commands_in(block.text):
            assert words, f"{block}: imgtool without a command"
            try:
                understand(root, words)
            except Exception as error:
                told = getattr(error, "message", None) or error
                pytest.fail(f"{block}: imgtool {shlex.join(words)}: {told}")


@pytest.mark.parametrize("page", MARKED, ids=name)
def test_every_block_says_how_it_is_checked(page):
    for block in blocks(page):
        assert block.language, f"{block}: a block without a language"
        if not block.is_shell and block.language != "python":
            continue
        assert block.kind, f"{block}: mark it, as tests/docs/pages.py says"
        if block.kind == "needs":
            assert block.words, f"{block}: say what it needs"
        if block.kind == "run by":
            test = (ROOT / block.words[0]).read_text(encoding="utf-8")
            assert block.page.name in test, f"{block}: {block.words[0]} does not read this page"


@pytest.mark.parametrize("page", MARKED, ids=name)
def test_every_shell_block_is_shell(page):
    for block in blocks(page):
        if block.is_shell:
            answer = subprocess.run(
                ["bash", "-n", "-c", block.text], capture_output=True, text=True
            )
            assert answer.returncode == 0, f"{block}: {answer.stderr}"


def test_the_checks_find_mistakes(root):
    bad = [
        *("trian autoencoder", "train autoencoder --no-such-option 1", "prune a --keep two"),
        *("eval-fid --split middle", "export", "train autoencoder --set train.no_such_key=1"),
        *("run-timed --no-such-option -- true", "train hpcm --config hpcm/no_such_preset"),
        "torchrun --nproc-per-node 2 train genegan --no-such-option",
    ]
    for line in bad:
        with pytest.raises(Exception):  # noqa: B017
            understand(root, line.split())
    script = "x=$(imgtool prune a) && imgtool run-timed -- imgtool train hpcm --dry-run > f  # imgtool no"
    assert commands_in(script) == [
        ["prune", "a"], ["run-timed", "--"], ["train", "hpcm", "--dry-run"],
    ]  # fmt: skip


def test_the_profile_of_the_page_is_one(tmp_path):
    from imgtool.schedulers.profile import read_profile

    (block,) = [b for b in blocks(ROOT / "docs/clusters.md") if b.mark == "profile"]
    path = tmp_path / "cluster.yaml"
    path.write_text(block.text)
    assert read_profile(path).cluster["queue"] == "gpuv100"
