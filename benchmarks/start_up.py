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
TAB = {"_IMGTOOL_COMPLETE": "complete_bash", "COMP_WORDS": "imgtool tr", "COMP_CWORD": "1"}


def main() -> None:
    """Print one JSON record a comparison."""
    report("help", run_pairs([IMGTOOL, "--help"], BASELINE, repeat=5), bound="<= 1.6")
    tab = ["env", *(f"{name}={value}" for name, value in TAB.items()), IMGTOOL]
    report("completion", run_pairs(tab, ["env", *BASELINE], repeat=5), bound="<= 1.6")


if __name__ == "__main__":
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # as on a user's machine
    main()
