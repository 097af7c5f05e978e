"""What the pages say: fenced blocks with their marks, links, headings.

A comment before a block says how it is checked:

    <!-- run -->  <!-- run: photos, layouts -->   it runs in every suite, after these materials are
                                                  made (`tests/docs/materials.py`)
    <!-- run slowly: photos -->                   it runs with the slow tests
    <!-- run by tests/test_chain.py -->           that test runs it
    <!-- needs: a GPU -->                         it cannot run here; its words are still checked
    <!-- file: a.yaml -->                         its text is a file where the blocks run
    <!-- line of: a.py, LINE -->                  its lines go after that line of a.py (docs/design.md)

Blocks of one page run in order, in one folder.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
WRITTEN = sorted(DOCS.glob("*.md"))  # by hand
GENERATED = sorted((DOCS / "reference").glob("*.md"))
OUTSIDE = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
ALL = [*WRITTEN, *GENERATED, *OUTSIDE]
SHELL = ("sh", "bash")

_BLOCK = re.compile(
    r"(?:^<!--(?P<mark>[^\n]*?)-->\n\n?)?^```(?P<language>[^\n`]*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_SEPARATORS = {"|", "||", "&&", ";", "&", "(", ")", "{", "}"}


@dataclass(frozen=True)
class Block:
    """A fenced block: its page, section, line, language, mark (None without one) and text."""

    page: Path
    section: str
    line: int
    language: str
    mark: str | None
    text: str

    @property
    def is_shell(self) -> bool:
        return self.language in SHELL

    @property
    def kind(self) -> str:
        """`run`, `run slowly`, `run by`, `needs`, `file`, `line of`, or nothing."""
        found = re.match(r"(run slowly|run by|run|needs|file|line of)\b", self.mark or "")
        return found[1] if found else ""

    @property
    def words(self) -> list[str]:
        """What the mark goes on with: materials, a test, a file, a reason."""
        rest = (self.mark or "")[len(self.kind) :].removeprefix(":")
        return [word.strip() for word in rest.split(",") if word.strip()]

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """The page's fenced blocks, in order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _BLOCK.finditer(text):
        mark = match["mark"].strip() if match["mark"] else None
        line = text.count("\n", 0, match.start("language")) + 1
        titles = re.findall(r"^## (.*)$", text[: match.start()], re.MULTILINE)
        section = titles[-1] if titles else ""
        found.append(Block(page, section, line, match["language"].strip(), mark, match["text"]))
    return found


def commands_in(script: str) -> list[list[str]]:
    """The words after each `imgtool` of a shell script, those behind `--` and `exec` too."""
    found: list[list[str]] = []
    joined = re.sub(r"\\\n\s*", " ", script)
    joined = re.sub(r"\$\((?=imgtool )", "; ", joined)
    for line in joined.splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|;&()<>")
        lexer.whitespace_split = True
        lexer.commenters = "#"
        current: list[str] | None = None
        is_skipped = False
        for word in lexer:
            if is_skipped:  # a redirection's file
                is_skipped = False
            elif set(word) <= set("|;&()"):
                current = None
            elif set(word) <= set("<>&"):
                is_skipped = True
            elif word == "imgtool":
                current = []
                found.append(current)
            elif current is not None and word not in _SEPARATORS:
                current.append(word)
    return found


def without_blocks(page: Path) -> str:
    """The page's prose: no fenced blocks, no code spans."""
    text = _BLOCK.sub("", page.read_text(encoding="utf-8"))
    return re.sub(r"`[^`\n]+`", "", text)


def anchors(page: Path) -> set[str]:
    """The names that links may give its headings, as code hosts make them."""
    text = _BLOCK.sub("", page.read_text(encoding="utf-8"))
    return {
        re.sub(r"[^\w\- ]", "", title.lower().strip()).replace(" ", "-")
        for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    }
