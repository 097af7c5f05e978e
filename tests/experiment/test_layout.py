import os
from pathlib import Path

import pytest

from imgtool.errors import CheckpointError, ExperimentError
from imgtool.experiment.layout import ExperimentDir, find_checkpoint
from imgtool.files import point


def test_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    experiment = ExperimentDir("out/S5")
    assert experiment.path == tmp_path / "out" / "S5"
    assert experiment.checkpoint_path(20000).name == "iter_020000.safetensors"
    assert experiment.checkpoint_path(12345678).name == "iter_12345678.safetensors"
    assert experiment.csv_path("S5").name == "S5_metrics.csv"
    assert experiment.csv_path("a/b c").parent == experiment.path
    assert not experiment.path.exists()


def test_create_makes_folders_and_leaves_nothing_else(tmp_path):
    experiment = ExperimentDir(tmp_path / "a" / "b")
    experiment.create()
    experiment.create()
    assert sorted(os.listdir(experiment.path)) == ["checkpoints", "samples"]
    assert os.listdir(experiment.checkpoints_dir) == []


@pytest.mark.parametrize("name", ["file", "file/exp"])
def test_a_file_in_the_way(tmp_path, name):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ExperimentError, match="a file is in the way") as caught:
        ExperimentDir(tmp_path / name).create()
    assert caught.value.hint
    assert caught.value.exit_code == 2


def test_unwritable():
    with pytest.raises(ExperimentError, match="cannot write"):
        ExperimentDir("/proc/exp").create()


def test_find_a_file_itself_even_when_it_is_spoilt(write_checkpoint):
    path = write_checkpoint(100, cut=5)
    assert find_checkpoint(path) == path.resolve()


def test_find_in_an_experiment_takes_the_newest_whole_one(experiment, write_checkpoint):
    good = write_checkpoint(100)
    write_checkpoint(200, cut=1)
    for source in (experiment.path, str(experiment.checkpoints_dir)):
        assert find_checkpoint(source) == good


def test_find_follows_symlinks_and_old_names(experiment, write_checkpoint):
    first, second = write_checkpoint(100), write_checkpoint(200)
    point(experiment.latest_path, second.name)
    folder = experiment.checkpoints_dir
    assert find_checkpoint(folder / "latest.safetensors") == second.resolve()
    assert find_checkpoint(folder / "latest.pt") == second.resolve()
    assert find_checkpoint(folder / "best.safetensors") == second.resolve()
    assert find_checkpoint(folder / "iter_000100.pt") == first.resolve()
    point(experiment.best_path, first.name)
    assert find_checkpoint(folder / "best.pt") == first.resolve()


def test_find_heals_a_latest_that_points_nowhere(experiment, write_checkpoint):
    good = write_checkpoint(100)
    point(experiment.latest_path, "iter_000999.safetensors")
    assert find_checkpoint(experiment.latest_path) == good


def test_find_foreign(experiment, write_foreign):
    path = write_foreign(31318)
    point(experiment.checkpoints_dir / "latest.pt", path.name)
    assert find_checkpoint(experiment.checkpoints_dir / "latest.pt") == path.resolve()
    assert find_checkpoint(experiment.latest_path) == path.resolve()
    assert find_checkpoint(experiment.path) == path


def test_not_found(experiment, write_checkpoint):
    with pytest.raises(CheckpointError, match="no valid checkpoint in"):
        find_checkpoint(experiment.path)
    write_checkpoint(100)
    with pytest.raises(CheckpointError, match="no checkpoint") as caught:
        find_checkpoint(experiment.checkpoint_path(5))
    assert "iter_000100.safetensors" in caught.value.hint
    with pytest.raises(CheckpointError):
        find_checkpoint(Path("/nowhere/at/all.safetensors"))
