"""`latest`, `best` and a phase's tables on file systems with symbolic links, hard links, neither."""

import errno
import os
import subprocess
import sys

import pytest

from imgtool.experiment import retention
from imgtool.experiment.checkpoint_file import read_header
from imgtool.experiment.checkpoints import newest_valid, pointed
from imgtool.experiment.layout import find_checkpoint, show_in_phase
from imgtool.files import followed, point, pointer_of, write_text


def test_each_kind_moves_in_one_step_and_every_reader_follows(
    experiment, write_checkpoint, link_kind
):
    first, second, third = (write_checkpoint(number) for number in (100, 200, 300))
    latest, best = experiment.latest_path, experiment.best_path
    for target in (first, third, third):
        assert point(latest, target.name) == link_kind
    assert point(best, second.name) == link_kind
    names = {path.name for path in (first, second, third, latest, best)}
    assert set(os.listdir(experiment.checkpoints_dir)) == names
    for link, meant in ((latest, third), (best, second)):
        assert pointed(link) == find_checkpoint(link) == meant
        assert find_checkpoint(link.with_suffix(".pt")) == meant
        assert read_header(link).iteration == read_header(meant).iteration
    assert newest_valid(experiment.checkpoints_dir).path == third
    decision = retention.plan(experiment.checkpoints_dir, keep=1)
    reasons = {entry.path: reason for entry, reason in decision.kept}
    assert reasons[second] == "best.safetensors points to it"
    assert retention.apply(decision).removed == [first]
    assert pointed(best) == second


def test_what_is_pointed_to_meanwhile_stays(experiment, write_checkpoint, link_kind):
    first, _ = write_checkpoint(100), write_checkpoint(200)
    decision = retention.plan(experiment.checkpoints_dir, keep=1)
    point(experiment.best_path, first.name)
    result = retention.apply(decision)
    assert (result.removed, first.exists()) == ([], True)
    assert "pointed to meanwhile" in result.notes[0]


def test_a_copy_means_itself_and_what_points_nowhere_the_newest(experiment, write_checkpoint):
    path = write_checkpoint(100)
    experiment.latest_path.write_bytes(path.read_bytes())
    assert find_checkpoint(experiment.latest_path) == experiment.latest_path
    assert [item.path for item, _ in retention.plan(path.parent, keep=1).kept] == [path]
    point(experiment.latest_path, "iter_000999.safetensors")
    assert pointed(experiment.latest_path) is None
    assert find_checkpoint(experiment.latest_path) == path


def test_a_phase_shows_tables_of_tiny_runs_as_they_change(tmp_path, link_kind):
    tiny, shown = tmp_path / "tiny" / "S5_metrics.csv", tmp_path / "S5_metrics.csv"
    tiny.parent.mkdir()
    for text in ("epoch\n1\n", "epoch\n2\n"):
        write_text(tiny, text)
        show_in_phase(tiny)
        assert followed(shown).read_text() == text
    own = tmp_path / "S6_metrics.csv"
    write_text(own, "epoch\n3\n")
    show_in_phase(own)
    assert not os.path.lexists(shown)
    show_in_phase(tiny)
    assert not os.path.lexists(shown)
    assert own.read_text() == "epoch\n3\n"


@pytest.mark.parametrize("content", [b"", b"epoch\n1\n", b"\xff" * 90, b"imgtool: "])
def test_what_is_no_pointer_is_taken_for_itself(tmp_path, content):
    path = tmp_path / "a"
    path.write_bytes(content)
    assert pointer_of(path) is None
    assert followed(path) == path


@pytest.mark.parametrize("name", ["/etc/passwd", "../a", "", "a"])  # `a` means itself for ever
def test_a_pointer_leads_nowhere_else(tmp_path, monkeypatch, name):
    monkeypatch.setattr(os, "symlink", refuse := lambda *_: (_ for _ in ()).throw(OSError))
    monkeypatch.setattr(os, "link", refuse)
    point(tmp_path / "a", name)
    assert followed(tmp_path / "a") == tmp_path / "a"


CHILD = """
import os, sys
from pathlib import Path
def refuse(*_, **__):
    raise OSError(int(sys.argv[1]), os.strerror(int(sys.argv[1])))
os.symlink = os.fsync = refuse
if sys.argv[2] == "neither":
    os.link = refuse
from imgtool.experiment.checkpoints import pointed
from imgtool.files import point, write_text
write_text(Path("iter_000001.safetensors"), "x")
print(point(Path("latest.safetensors"), "iter_000001.safetensors"))
print(pointed(Path("latest.safetensors")).name)
"""


@pytest.mark.parametrize("number", ["EPERM", "ENOTSUP", "ENOSYS"])
@pytest.mark.parametrize(
    ("lacks", "kind"), [("symlinks", "hard link"), ("neither", "pointer file")]
)
def test_every_word_that_a_system_has_for_no(tmp_path, number, lacks, kind):
    words = [sys.executable, "-c", CHILD, str(getattr(errno, number)), lacks]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert ended.stdout.splitlines() == [kind, "iter_000001.safetensors"], ended.stderr
