"""What commit ea18613 left on people's disks (make.sh), unpacked, and the program of today."""

from __future__ import annotations

import json
import signal
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from commands.main import main
from imgtool.process.stopping import SIGNALS

ARCHIVE = Path(__file__).with_name("ea18613.tar.xz")


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which all of it was made; the current one."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def imgtool(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., tuple[int, Any, str]]]:
    """imgtool(*words) -> exit code, records on stdout, what was said on stderr; in this process."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    threads = torch.get_num_threads()

    def imgtool(*words: object) -> tuple[int, Any, str]:
        with pytest.raises(SystemExit) as left:
            main([str(word) for word in words])
        out, err = capsys.readouterr()
        records = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
        return int(left.value.code or 0), records, err

    yield imgtool
    torch.set_num_threads(threads)
    for number, handler in handlers.items():
        signal.signal(number, handler)
