"""A stop between two updates: nothing that a link points to is written over, nothing is lost."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from imgtool.config.load import load
from imgtool.data.synthetic.make import make_faces
from imgtool.experiment import retention
from imgtool.experiment.checkpoint_file import read, read_header
from imgtool.experiment.checkpoints import list_checkpoints, newest_valid
from imgtool.experiment.layout import ExperimentDir, find_checkpoint
from imgtool.files import LinkKind
from imgtool.models.registry import schema
from imgtool.process.stopping import StopRequest
from imgtool.training import saving
from imgtool.training.loop import Loop
from imgtool.training.report import Silence
from imgtool.training.run import train
from imgtool.training.step import Stepper
from tests.small import SMALL_FACES

SETS = [
    *("model.base_channels=8", "model.norm_groups=4", "data.max_images=16", "data.val_fraction=0"),
    *("train.batch_size=2", "train.max_iter=4", "train.save_every=2", "train.val_every=1"),
    *("loss.critic_burst=3", "train.threads=1", "train.device=cpu", "data.num_workers=0"),
    *("train.log_every=1", "train.monitor=train_cycle_Ax"),
    *SMALL_FACES,
]
BEST = 2
PARTIAL = "iter_000002_update_1.safetensors"


class Killed(BaseException):
    """What no handler expects."""


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faces") / "set"
    make_faces(folder, 16, seed=3)
    return folder


@pytest.fixture
def run(faces: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """run(exp_dir, *sets, stops=False): a stop is asked for after iteration 3's first update."""
    monkeypatch.setattr(
        Loop, "_monitored", lambda self, *_: abs(self.run.position.iteration - BEST) + 0.5
    )
    step = Stepper.step

    def run(exp_dir: Path, *sets: str, stops: bool = False) -> Any:
        given = [*SETS, f"data.root={faces}", *sets]
        loaded = load("genegan/exp00", family=None, schema_of=schema, sets=given, tiny=True)
        directory = ExperimentDir(exp_dir)
        directory.create()
        stop = StopRequest()
        counts = {"started": 0, "last": ""}

        def counted(self: Stepper, update: Any, *words: Any, **options: Any) -> None:
            if update.name == "critic" and counts["last"] != "critic":
                counts["started"] += 1  # an iteration
            counts["last"] = update.name
            step(self, update, *words, **options)
            if stops and counts["started"] == BEST + 1:
                stop.ask("test")

        monkeypatch.setattr(Stepper, "step", counted)
        return train(loaded, directory, stop=stop, reporter=Silence()), directory

    return run


def links(directory: ExperimentDir) -> tuple[str, str]:
    return os.readlink(directory.latest_path), os.readlink(directory.best_path)


def same(a: Path, b: Path) -> bool:
    ours, theirs = read(a).tensors, read(b).tensors
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


@pytest.mark.parametrize("keep", [0, 1])
def test_the_best_stays_what_it_was_and_the_end_is_the_same(
    run: Callable[..., Any], tmp_path: Path, keep: int
) -> None:
    _, straight = run(tmp_path / "straight", f"train.keep={keep}")
    outcome, directory = run(tmp_path / "parts", f"train.keep={keep}", stops=True)
    assert (outcome.state, outcome.iteration) == ("stopped", BEST)
    assert outcome.checkpoint.name == PARTIAL
    assert links(directory) == (PARTIAL, "iter_000002.safetensors")
    assert same(directory.best_path, straight.best_path)  # the weights that were validated
    assert read_header(directory.best_path).reached == (BEST, 0)

    folder = directory.checkpoints_dir
    assert list_checkpoints(folder)[-1].reached == (BEST, 1)
    assert newest_valid(folder).reached == (BEST, 1)  # type: ignore[union-attr]
    assert find_checkpoint(directory.path).name == PARTIAL
    retention.prune(folder, keep=1)
    assert {"iter_000002.safetensors", PARTIAL} == {e.path.name for e in list_checkpoints(folder)}

    outcome, _ = run(tmp_path / "parts", f"train.keep={keep}")
    assert (outcome.state, outcome.iteration) == ("completed", 4)
    assert same(directory.latest_path, straight.latest_path)
    assert links(directory) == links(straight)
    # Once something newer is whole, it need not stay.
    assert (folder / PARTIAL).exists() == (keep == 0)
    retention.prune(folder, keep=3)
    assert not (folder / PARTIAL).exists()


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_kill_beside_the_link_loses_nothing(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    _, straight = run(tmp_path / "straight")
    point = saving.point

    def kill(link: Path, name: str) -> LinkKind:
        if name == PARTIAL and moment == "before":
            raise Killed
        kind = point(link, name)
        if name == PARTIAL:
            raise Killed
        return kind

    with monkeypatch.context() as patch:
        patch.setattr(saving, "point", kill)
        with pytest.raises(Killed):
            run(tmp_path / "parts", stops=True)
    with monkeypatch.context() as patch:  # mended before the first update
        patch.setattr(StopRequest, "wanted", property(lambda self: True))
        outcome, directory = run(tmp_path / "parts")
    assert outcome.iteration == BEST
    assert links(directory) == (PARTIAL, "iter_000002.safetensors")
    run(tmp_path / "parts")
    assert same(directory.latest_path, straight.latest_path)
    assert links(directory) == links(straight)


def test_weights_that_are_best_between_two_updates_keep_their_file(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Time that is over ends in a validation, wherever training stands."""
    monkeypatch.setattr(Loop, "_asked_to_stop", time_up_at_call(2))
    monkeypatch.setattr(Loop, "_monitored", lambda self, *_: -float(self.run.position.update))
    outcome, directory = run(tmp_path / "a", "train.val_every=3")
    assert (outcome.reason, outcome.iteration) == ("max_time", BEST)
    assert links(directory) == (PARTIAL, PARTIAL)
    monkeypatch.undo()
    os.unlink(directory.best_path)  # as a kill before that link
    before = read(directory.checkpoints_dir / PARTIAL).tensors
    outcome, directory = run(tmp_path / "a", "train.val_every=9", "train.max_iter=3")
    assert outcome.iteration == 3
    assert os.readlink(directory.best_path) == PARTIAL
    kept = read(directory.best_path).tensors
    assert all(torch.equal(kept[name], before[name]) for name in before)


def time_up_at_call(number: int) -> Callable[[Loop], bool]:
    """For `Loop._asked_to_stop`: at so many looks in the iteration after the best one."""
    looks = [0]

    def asked(loop: Loop) -> bool:
        looks[0] += loop.run.position.iteration == BEST
        if looks[0] == number:
            loop._ending = ("completed", "max_time")
        return looks[0] == number

    return asked
