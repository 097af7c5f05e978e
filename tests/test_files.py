import os
import subprocess
import sys

import pytest

from imgtool import files


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "a.txt"
    files.write_text(path, "old")
    with pytest.raises(RuntimeError), files.replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_permissions_survive_a_replacement(tmp_path):
    path = tmp_path / "a.txt"
    files.write_text(path, "old")
    path.chmod(0o640)
    files.write_text(path, "new")
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_symlink_moves_in_one_step(tmp_path):
    link = tmp_path / "latest"
    files.point(link, "one")
    files.point(link, "two")
    assert os.readlink(link) == "two"
    assert os.listdir(tmp_path) == ["latest"]


def test_a_library_that_litters_leaves_nothing_and_permissions_follow_the_umask(tmp_path):
    path = tmp_path / "a.bin"
    with files.replacing_through_folder(path) as temporary:
        temporary.write_bytes(b"new")
        temporary.chmod(0o600)
        (temporary.parent / ".left-behind").write_bytes(b"x")
    assert os.listdir(tmp_path) == ["a.bin"]
    (tmp_path / "plain").write_text("")
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
    with pytest.raises(RuntimeError), files.replacing_through_folder(path) as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"new"
    assert sorted(os.listdir(tmp_path)) == ["a.bin", "plain"]


KILLED = """
import os, signal, sys
from pathlib import Path
from imgtool import files
with files.replacing(Path("a.bin")) as temporary:
    temporary.write_bytes(b"half")
    with files.replacing_through_folder(Path("b.bin")) as inner:
        inner.write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_goes_with_the_next_start_and_nothing_else(tmp_path):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", KILLED], cwd=tmp_path, env=env)
    left = set(os.listdir(tmp_path))
    assert len(left) == 2
    own = files.temporary_beside(tmp_path / "own")
    number, here = own.name.partition(files.TEMPORARY_MARK)[2].split("-")
    others = {
        "running": own.name,
        "another machine's": f".a.bin{files.TEMPORARY_MARK}{number}-{int(here, 16) ^ 1:08x}",
        "an older version's": f".a.bin{files.TEMPORARY_MARK}{number}",
        "another program's": f".a.bin{files.TEMPORARY_MARK}123-thesis",
        "not hidden": f"a.bin{files.TEMPORARY_MARK}999999-{here}",
    }
    for name in others.values():
        (tmp_path / name).write_text("x")
    old = tmp_path / f".c{files.TEMPORARY_MARK}{number}-{int(here, 16) ^ 1:08x}"
    old.write_text("x")
    os.utime(old, (0, 0))
    files.write_text(tmp_path / "new", "x")
    assert set(os.listdir(tmp_path)) == {*others.values(), "new"}


@pytest.mark.parametrize("letter", ["a", "é"])
def test_names_as_long_as_they_can_be_are_written(tmp_path, letter):
    path = tmp_path / (letter * 300).encode()[:254].decode(errors="ignore")
    for write in (files.replacing, files.replacing_through_folder):
        with write(path) as temporary:
            temporary.write_text("x")
    assert files.point(path, "other")
    assert os.listdir(tmp_path) == [path.name]
