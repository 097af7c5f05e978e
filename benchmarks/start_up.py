"""How quickly the program answers: `imgtool --help` and a TAB, against `python -c "import typer"`.

Every side is a process of its own. The issue's bound is a ratio of 1.6.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from _pairs import report, run_pairs

IMGTOOL = str(Path(sys.executable).with_name("imgtool"))
BASELINE = [sys.executable, "-c", "import typer"]
LINES = {"completion": "imgtool tr", "completion_of_an_option": "imgtool train autoencoder --lat"}


def main() -> None:
    """Print one JSON record a comparison."""
    report("help", run_pairs([IMGTOOL, "--help"], BASELINE, repeat=5), bound="<= 1.6")
    for name, line in LINES.items():
        words = [f"COMP_WORDS={line}", f"COMP_CWORD={line.count(' ')}"]
        tab = ["env", "_IMGTOOL_COMPLETE=complete_bash", *words, IMGTOOL]
        report(name, run_pairs(tab, ["env", *BASELINE], repeat=5), bound="<= 1.6")


if __name__ == "__main__":
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # as on a user's machine
    main()
