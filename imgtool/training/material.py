"""What is trained on, and from where: the data, the experiment's identity, the checkpoint.

Rank 0 draws the split and chooses the checkpoint; the others take both from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imgtool.config.identity import identity
from imgtool.config.load import Loaded
from imgtool.config.schema import Experiment
from imgtool.data.datasets import Datasets, open_datasets
from imgtool.data.split import Split
from imgtool.errors import CheckpointError, DataError, UsageError
from imgtool.experiment import checkpoint_file
from imgtool.experiment.checkpoints import list_checkpoints
from imgtool.experiment.layout import ExperimentDir
from imgtool.models.registry import schema
from imgtool.published import find_weights
from imgtool.training.ranks import Ranks
from imgtool.training.report import Reporter
from imgtool.training.resume import Start, choose_start
from imgtool.units import count

IN_NO_PART = "in no part of CelebA's own table (is it cut short?), left out"


@dataclass(frozen=True, kw_only=True)
class Material:
    """What is trained on, and what that makes the experiment."""

    datasets: Datasets
    identity: str
    batches_per_epoch: int
    notes: Sequence[str]


def open_material(experiment: Experiment, directory: ExperimentDir, ranks: Ranks) -> Material:
    """Rank 0 draws the split, or reads the one that has been trained on; the others open that.

    Raises:
        UserError: the data cannot be used, or is not the same on every rank.
    """
    opened: Datasets | None = None
    share = ranks if ranks.distributed else None

    def draw() -> str:
        nonlocal opened
        kept = directory.split_path  # without a checkpoint nothing has been trained on it
        started = bool(list_checkpoints(directory.checkpoints_dir))
        split = Split.read(kept) if started and kept.exists() else None
        opened = open_datasets(experiment.data, split=split, share=share)
        return opened.split.to_json()

    split = ranks.decide(draw)
    datasets = opened or _open_as_rank_0(experiment, Split.from_json(split), ranks)
    own_identity = identity(experiment, datasets.fingerprint)
    ranks.check_equal(
        {"the data": datasets.fingerprint, "the experiment": own_identity}, "what they train"
    )
    return Material(
        datasets=datasets,
        identity=own_identity,
        batches_per_epoch=datasets.batches_per_epoch(experiment.train.batch_size * ranks.size),
        notes=(
            *_some(datasets.missing, "listed image", "missing, left out"),
            *_some(datasets.without_part, "listed image", IN_NO_PART),
            *_some(datasets.tested_too, "image", "of the training data in the test set as well"),
            *_apart(datasets.unshared_cache),
        ),
    )


def _open_as_rank_0(experiment: Experiment, split: Split, ranks: Ranks) -> Datasets:
    try:
        return open_datasets(experiment.data, split=split, share=ranks)
    except DataError as error:
        raise DataError(
            f"rank {ranks.rank} does not see the data that rank 0 sees: {error}",
            hint="do all hosts see the same files, and have all ranks the same config?",
        ) from error


def check_material(experiment: Experiment, datasets: Datasets) -> None:
    """See that data and published weights are what the config asks for, before torch is imported.

    Raises:
        UserError: they have not.
    """
    train = experiment.train
    is_of_training = (train.monitor or "").startswith("train_")
    if train.patience is not None and not len(datasets.val) and not is_of_training:
        raise UsageError(
            "early stopping needs validation images, and there are none",
            hint="give --val-root or --val-fraction, or a --monitor such as train_loss",
        )
    of_family = schema(experiment.family)
    of_family.check_data(experiment, datasets.info)
    for published in of_family.weights(experiment):
        find_weights(published, download=False)


def find_start(
    resume: str,
    directory: ExperimentDir,
    loaded: Loaded,
    material: Material,
    ranks: Ranks,
    reporter: Reporter,
) -> Start:
    """Rank 0 chooses a checkpoint; every rank reads that one.

    Raises:
        UserError: see `choose_start`; or a rank finds another file under that name.
    """
    chosen: Start | None = None

    def choose() -> list[Any]:
        nonlocal chosen
        chosen = choose_start(
            resume, directory, loaded, material.identity, material.datasets.fingerprint, reporter
        )
        return _facts_of(chosen)

    wanted = ranks.decide(choose)
    if chosen is not None:
        return chosen
    if wanted[0] is None:
        return Start(None, None, material.identity)
    path = Path(wanted[0])
    try:
        start = Start(path, checkpoint_file.read(path), wanted[2])
    except CheckpointError as error:
        raise CheckpointError(
            f"rank 0 goes on from iteration {wanted[1]}, and rank {ranks.rank} cannot: {error}",
            hint="do all hosts see the same files?",
        ) from error
    if _facts_of(start) != wanted:
        raise CheckpointError(
            f"rank 0 goes on from {path} at iteration {wanted[1]}, and rank {ranks.rank} finds "
            f"iteration {_facts_of(start)[1]} in it",
            hint="do all hosts see the same files?",
        )
    return start


def _facts_of(start: Start) -> list[Any]:
    if start.path is None or start.loaded is None:
        return [None, None, None]
    header = start.loaded.header
    return [str(start.path), header.iteration, header.identity or start.identity]


def _some(names: Sequence[str], what: str, matter: str) -> list[str]:
    """A warning of some images, the first by name."""
    if not names:
        return []
    first = ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")
    return [f"warning: {count(len(names), what)} {matter}: {first}"]


def _apart(trouble: str | None) -> list[str]:
    if trouble is None:
        return []
    return [f"warning: each rank keeps decoded images of its own: {trouble}"]
