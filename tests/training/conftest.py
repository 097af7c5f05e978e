"""Small real data and short trainings, in this process."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imgtool.config.load import load
from imgtool.experiment.layout import ExperimentDir
from imgtool.models.registry import schema
from imgtool.process.stopping import StopRequest
from imgtool.training.report import Silence

SMALL = [
    "model.latent_channels=4",
    "model.downsampling_steps=2",
    "model.base_channels=16",
    "model.heads=[rgb]",
    "model.codebook_size=16",
    "data.crop=32",
    "train.batch_size=4",
    "train.lr=1e-3",
    "train.log_every=2",
    "train.val_every=5",
    "train.save_every=5",
    "train.sample_every=10",
    "train.keep=0",
    "train.threads=1",
    "train.device=cpu",
]


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for number in range(10):
        small = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(small).resize((48, 48), Image.Resampling.BICUBIC).save(
            folder / f"{number}.png"
        )
    return folder


class Recorder(Silence):
    """Keeps what the engine says; may ask for a stop at an iteration."""

    def __init__(self, stop: StopRequest, stop_at: int | None, stage: str) -> None:
        self.messages: list[str] = []
        self.stages: list[str] = []
        self._stop, self._stop_at, self._stage = stop, stop_at, stage

    def message(self, text):
        self.messages.append(text)

    def progress(self, progress):
        self.stages.append(progress.stage)
        if progress.iteration == self._stop_at and progress.stage == self._stage:
            self._stop.ask("test")


@dataclass
class Trained:
    outcome: object
    directory: ExperimentDir
    messages: list

    def tensors(self, iteration=None):
        from imgtool.experiment.checkpoint_file import read

        path = self.directory.latest_path
        return read(self.directory.checkpoint_path(iteration) if iteration else path).tensors

    def rows(self):
        """metrics.jsonl without times."""
        times = ("images_per_sec", "data_wait", "elapsed_sec", "time")
        lines = self.directory.metrics_path.read_text().splitlines()
        return [{k: v for k, v in json.loads(line).items() if k not in times} for line in lines]

    def table(self):
        import csv

        path = next(self.directory.path.glob("*_metrics.csv"))
        with path.open() as file:
            return [
                {k: v for k, v in r.items() if k != "elapsed_sec"} for r in csv.DictReader(file)
            ]


@pytest.fixture
def run(photos, monkeypatch):
    """run(exp_dir, *sets, stop_at=None, resume="auto", ...) trains in this process.

    A small autoencoder, or a `preset` as `--tiny` makes it. Figures are not rendered, which would
    cost more than the trainings; tests of pictures and of whole commands see them.
    """
    import torch

    from imgtool.nn.figures import Figure
    from imgtool.training.run import train

    blank = torch.zeros(3, 8, 8, dtype=torch.uint8)
    monkeypatch.setattr(Figure, "pixels", lambda self: blank)

    def run(
        exp_dir, *sets, stop_at=None, stage="train", resume="auto", root=photos, preset=None, **more
    ):
        if preset is None:
            given = [*SMALL, f"data.root={root}", *sets]
            loaded = load(None, family="autoencoder", schema_of=schema, sets=given)
        else:
            loaded = load(preset, family=None, schema_of=schema, sets=sets, tiny=True)
        directory = ExperimentDir(exp_dir)
        directory.create()
        stop = StopRequest()
        recorder = Recorder(stop, stop_at, stage)
        outcome = train(
            loaded, directory, stop=stop, reporter=recorder, resume=resume, argv=sys.argv, **more
        )
        return Trained(outcome, directory, recorder.messages)

    return run
