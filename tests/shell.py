"""Scripts as people run them: bash in a folder of its own, where `imgtool` and
`python` are this checkout's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


class Shell:
    """Runs bash in `folder`/work.

    Args:
        folder: an empty one.
        module: what `imgtool` runs, as `python -m` has it.
        root: the checkout.
        work: where scripts run, in place of `folder`/work.
    """

    def __init__(
        self,
        folder: Path,
        *,
        module: str = "imgtool",
        root: Path = ROOT,
        work: Path | None = None,
    ) -> None:
        self.work = work or folder / "work"
        self.work.mkdir(parents=True, exist_ok=True)
        bin_dir = folder / "bin"
        bin_dir.mkdir(parents=True)
        for name, words in (("imgtool", f"-m {module}"), ("python", "")):
            wrapper = bin_dir / name
            wrapper.write_text(f'#!/bin/sh\nexec {sys.executable} {words} "$@"\n')
            wrapper.chmod(0o755)
        self.environment = {
            **os.environ,
            "PATH": f"{bin_dir}:{os.environ['PATH']}",
            "PYTHONPATH": str(root),
            "XDG_CONFIG_HOME": str(folder / "config"),
        }

    def __call__(self, script: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-c", script],
            cwd=self.work,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
        )
