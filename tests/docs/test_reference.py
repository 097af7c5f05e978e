"""docs/reference/ is what the program says of itself."""

import subprocess
import sys
from pathlib import Path

from commands._reference import pages

FOLDER = Path(__file__).resolve().parents[2] / "docs/reference"


def test_the_checked_in_reference_is_what_the_program_says():
    written = pages()
    kept = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.md")}
    assert kept.keys() == written.keys(), "run `make reference`"
    for name, text in written.items():
        assert kept[name] == text, f"{name} is old: run `make reference`"


def test_the_reference_is_the_same_on_every_terminal(tmp_path):
    folder = tmp_path / "reference"
    folder.mkdir()
    (folder / "gone.md").write_text("a command of before")
    subprocess.run(
        [sys.executable, "-m", "commands._reference", folder],
        check=True,
        env={"COLUMNS": "37", "PATH": "", "TERM": "dumb", "PYTHONPATH": ":".join(sys.path)},
    )
    assert {path.name: path.read_text() for path in folder.iterdir()} == pages()
