"""`imgtool data check` and `imgtool data pack`; one of them as a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from commands.main import main
from imgtool.data.packed import PackedDataset


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


Call = Callable[..., Done]


@pytest.fixture
def imgtool(capsys: pytest.CaptureFixture[str]) -> Call:
    """Run `imgtool data ...` in this process."""

    def call(*words: object) -> Done:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main(["data", *map(str, words)])
        out, err = capsys.readouterr()
        return Done(int(caught.value.code or 0), out, err)

    return call


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "photos"
    path.mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 60, 3), np.uint8)
        Image.fromarray(pixels).save(path / f"p{number}.png")
    return path


def test_check_and_pack(folder: Path, imgtool: Call) -> None:
    checked = imgtool("check", folder)
    assert (checked.returncode, checked.stderr) == (0, "")
    record = json.loads(checked.stdout)
    assert (record["schema"], record["kind"], record["num_images"]) == ("imgtool/1", "data", 3)
    assert record["path"] == str(folder)
    out = folder.parent / "sub" / "x.safetensors"
    dry = imgtool("pack", folder, out, "--image-size", 20, "--dry-run")
    assert (dry.returncode, out.parent.exists()) == (0, False)
    packed = imgtool("pack", folder, out, "--image-size", 20)
    assert (packed.returncode, packed.stderr) == (0, "")
    record = json.loads(packed.stdout)
    assert record == {**json.loads(dry.stdout), "dry_run": False}
    assert (record["path"], record["num_bytes"]) == (str(out), out.stat().st_size)
    assert PackedDataset(out).size(0) == (20, 30)
    assert imgtool("check", out, "--quiet").stdout.strip() == str(out)
    again = imgtool("pack", folder, out)
    assert again.returncode == 2
    assert "exists\nhint: --force" in again.stderr
    assert imgtool("pack", folder, out, "--force").returncode == 0
    assert PackedDataset(out).size(0) == (40, 60)


def test_bad_files(folder: Path, imgtool: Call) -> None:
    (folder / "empty.png").touch()
    checked = imgtool("check", folder)
    assert checked.returncode == 4
    bad, error, hint = checked.stderr.splitlines()
    assert bad == "bad: empty.png: the file is empty (0 bytes)"
    assert error == f"error: {folder}: 1 bad file"
    assert "--skip-bad" in hint
    assert json.loads(checked.stdout)["num_bad_files"] == 1
    out = folder.parent / "x.safetensors"
    failed = imgtool("pack", folder, out)
    assert (failed.returncode, failed.stdout, out.exists()) == (4, "", False)
    assert failed.stderr.startswith(f"error: {folder}/empty.png: the file is empty")
    assert failed.stderr.count("\n") == 2
    packed = imgtool("pack", folder, out, "--skip-bad")
    assert packed.returncode == 0
    assert packed.stderr == "left out: empty.png\n"
    assert len(PackedDataset(out)) == 3


def test_a_process_ends_with_the_code(folder: Path) -> None:
    (folder / "empty.png").touch()
    command = [sys.executable, "-m", "imgtool", "data", "check", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert done.stderr.startswith("bad: empty.png")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["check", "gone"], 4, "error: gone: no such folder"),
        (["check", "gone.csv"], 4, "error: gone.csv: no such manifest"),
        (["check", "gone.safetensors"], 4, "error: gone.safetensors: no such file"),
        (["pack", "gone", "x.safetensors"], 4, "error: gone: no such folder"),
        (["pack", "gone", "x.npz"], 2, "error: x.npz: a packed file is named .safetensors"),
        (["pack", "gone", "x.safetensors", "--image-size", "0"], 2, "error: "),
    ],
)
def test_errors_are_one_line_and_a_hint(
    words: list[str], code: int, message: str, imgtool: Call
) -> None:
    done = imgtool(*words)
    assert done.returncode == code
    assert done.stderr.startswith(message)
    assert len(done.stderr.splitlines()) <= 2
    assert done.stdout == ""


KILLED = """
import os, signal, sys
from imgtool.data.packing import pack
from imgtool.data.photos import PhotoFolder
pack(PhotoFolder(sys.argv[1]), sys.argv[2], progress=lambda *_: os.kill(os.getpid(), signal.SIGKILL))
"""


def test_what_a_killed_pack_left_is_gone_after_the_next(folder: Path, imgtool: Call) -> None:
    out = folder.parent / "packed" / "x.safetensors"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", KILLED, folder, out], env=environment)
    assert len(os.listdir(out.parent)) == 1
    assert imgtool("pack", folder, out).returncode == 0
    assert os.listdir(out.parent) == [out.name]
