"""Checkpoint files made by hand, so that these tests need no torch."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from imgtool.experiment.layout import ExperimentDir


def checkpoint_bytes(iteration: int, *, num_values: int = 4, **changes: Any) -> bytes:
    """A whole checkpoint of two tensors."""
    record = {
        "format": 1,
        "iteration": iteration,
        "epoch": iteration / 100,
        "name": "test",
        "family": "autoencoder",
        "identity": "abc",
        "metrics": {"loss": 1.0},
        "finite": True,
        "config": {},
        "position": {},
        **changes,
    }
    header = {
        "__metadata__": {"imgtool": json.dumps(record)},
        "b": {"dtype": "F32", "shape": [num_values], "data_offsets": [8, 8 + 4 * num_values]},
        "a": {"dtype": "I64", "shape": [], "data_offsets": [0, 8]},
    }
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(8 + 4 * num_values)


Writer = Callable[..., Path]


@pytest.fixture
def experiment(tmp_path: Path) -> ExperimentDir:
    made = ExperimentDir(tmp_path / "exp")
    made.create()
    return made


@pytest.fixture
def write_checkpoint(experiment: ExperimentDir) -> Writer:
    """write_checkpoint(100, loss=0.5, finite=False, cut=10) -> its path."""

    def write(iteration: int, *, loss: float | None = 1.0, cut: int = 0, **changes: Any) -> Path:
        path = experiment.checkpoint_path(iteration)
        metrics = changes.pop("metrics", {"loss": loss})
        data = checkpoint_bytes(iteration, metrics=metrics, **changes)
        path.write_bytes(data[: len(data) - cut])
        return path

    return write


@pytest.fixture
def write_foreign(experiment: ExperimentDir) -> Writer:
    """write_foreign(100, cut=10) -> the path of an iter_000100.pt as torch.save makes them."""

    def write(iteration: int, *, cut: int = 0) -> Path:
        path = experiment.checkpoints_dir / f"iter_{iteration:06d}.pt"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(f"iter_{iteration:06d}/data.pkl", b"\x80\x02}.")
            archive.writestr(f"iter_{iteration:06d}/data/0", bytes(64))
        if cut:
            path.write_bytes(path.read_bytes()[:-cut])
        return path

    return write
