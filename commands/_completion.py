"""Writes completions/: one file a shell, from Typer's own scripts.

Example: python -m commands._completion completions
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from imgtool.files import write_text

FILES = {"bash": "imgtool.bash", "zsh": "_imgtool", "fish": "imgtool.fish"}

# Typer's zsh script only registers itself when it is loaded from fpath, so the first TAB of
# every shell would do nothing; this tail completes at once and works when sourced, too.
ZSH_TAIL = """\
if [[ ${funcstack[1]} == _imgtool ]]; then
  _imgtool_completion "$@"
else
  compdef _imgtool_completion imgtool
fi
"""


def script(shell: str) -> str:
    """The completion script of `bash`, `zsh` or `fish`."""
    program = f"from commands.main import main; main(['--show-completion', {shell!r}])"
    answer = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"},
    )
    text = answer.stdout.strip() + "\n"
    if shell == "zsh":
        text = re.sub(r"\ncompdef [^\n]*\n$", "\n" + ZSH_TAIL, text)
    return text


def main(folder: str) -> None:
    """Write the three files into `folder`."""
    for shell, name in FILES.items():
        write_text(Path(folder) / name, script(shell))


if __name__ == "__main__":
    main(*sys.argv[1:])
