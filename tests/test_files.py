import os

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
    files.point_symlink(link, "one")
    files.point_symlink(link, "two")
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
