"""Links and pictures of the pages lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.pages import ALL, DOCS, GENERATED, ROOT, WRITTEN, anchors, without_blocks

_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


@pytest.mark.parametrize(
    "page", [page for page in ALL if page.exists()], ids=lambda page: str(page.relative_to(ROOT))
)
def test_links_lead_somewhere(page: Path) -> None:
    for target in _LINK.findall(without_blocks(page)):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors(there), f"{page.name}: {target}"


def test_links_of_the_site_stay_in_it() -> None:
    """What lies outside docs/ is no page there."""
    for page in (*WRITTEN, *GENERATED):
        for target in _LINK.findall(without_blocks(page)):
            if not re.match(r"https?://|#", target):
                assert (page.parent / target.partition("#")[0]).resolve().is_relative_to(DOCS)


def test_every_page_is_reached_from_the_first() -> None:
    seen: set[Path] = set()
    pending = [DOCS / "index.md"]
    while pending:
        page = pending.pop()
        seen.add(page)
        found = {target.partition("#")[0] for target in _LINK.findall(page.read_text())}
        pages = {(page.parent / target).resolve() for target in found if target.endswith(".md")}
        pending += [one for one in pages if one not in seen and one.exists()]
    assert {*WRITTEN, *GENERATED} <= seen


def test_every_picture_is_shown() -> None:
    shown = "".join(page.read_text() for page in ALL if page.exists())
    pictures = [path for path in (DOCS / "pictures").iterdir() if path.suffix != ".py"]
    for path in pictures:
        assert f"pictures/{path.name})" in shown, path
