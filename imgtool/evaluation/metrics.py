"""Every validation metric of a checkpoint on one part of its data, with its uncertainty."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from scipy import sparse

from imgtool.errors import DataError, NoAnswer
from imgtool.evaluation.restore import restore
from imgtool.experiment.layout import ExperimentDir
from imgtool.experiment.metrics import plain
from imgtool.files import write_text
from imgtool.models.base import Evaluator

Part = Literal["test", "val", "train"]
LEVEL = 0.95
NUM_RESAMPLES = 1000
SEED = 0
FRACTION_OF = {"test": "--test-fraction", "val": "--val-fraction"}


def measure(
    source: str,
    *,
    split: Part = "val",
    num_resamples: int = NUM_RESAMPLES,
    device: str = "auto",
    root: str | None = None,
    manifest: str | None = None,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Metrics of a checkpoint's task on its own split.

    METRIC           over the whole part, as training's validation defines it, in float32
    METRIC_se        standard deviation of the bootstrap (Efron & Tibshirani 1993, chapter 6)
    METRIC_low, _high    its percentile interval (chapter 13), of `level`

    Images are drawn again by scene: those of one scene, or of one pair of faces, stay together.
    The metrics are computed anew of each resample's sums. Bounds are None with a single scene.

    Args:
        source: a checkpoint file or an exp_dir, whose best one is measured.
        split: of the experiment's data. Only `test` looks at test images.
        device, root, manifest: as `restore`.
        tell: hears of images done and in all.

    Raises:
        DataError: that part has no images.
        NoAnswer: the family has no validation metrics.
        CheckpointError, ConfigError: as `restore`.
    """
    found = restore(source, device=device, root=root, manifest=manifest)
    part = found.part(split)
    if not len(part):
        fraction = FRACTION_OF.get(split, "more data")
        hint = f"{fraction} above 0 holds some out of a training; `--split` names another part"
        raise DataError(f"{found.path}: its data has no {split} images", hint=hint)
    with found.looking():
        evaluator = found.task.evaluator()
        batches = found.batches(part, batch_size=1)
        sums = sums_by_scene(evaluator, batches, part.group, lambda done: tell(done, len(part)))
        put(evaluator, sums.sum(0))
        metrics = evaluator.compute()
        if not metrics:
            raise NoAnswer(
                f"{found.path}: the {found.experiment.family} family has no validation metrics",
                hint="`imgtool eval-fid` judges what it makes",
            )
        uncertain = bootstrap(evaluator, sums, num_resamples)
    return {
        "path": found.path,
        "name": found.experiment.name,
        "family": found.experiment.family,
        "iteration": found.iteration,
        "split": split,
        "split_is_stored": found.split_is_stored,
        "num_images": len(part),
        "num_scenes": sums.shape[0],
        "level": LEVEL,
        "num_resamples": num_resamples,
        "metrics": list(metrics),
        **{
            key: value
            for name, whole in metrics.items()
            for key, value in {name: whole, **_bounds(name, uncertain.get(name))}.items()
        },
    }


def write_test_metrics(record: dict[str, Any]) -> Path | None:
    """Put a record of the test split into the checkpoint's exp_dir, as test_metrics.json.

    Returns:
        the file; None for another split, or a checkpoint that lies in no exp_dir.

    Raises:
        DataError: it cannot be written.
    """
    directory = ExperimentDir(Path(record["path"]).parent.parent)
    if record["split"] != "test" or not directory.config_path.is_file():
        return None
    path = directory.test_metrics_path
    content = {**record, "path": str(record["path"])}
    try:
        write_text(path, json.dumps(plain(content), indent=1, allow_nan=False) + "\n")
    except OSError as error:
        raise DataError(
            f"cannot write {path}: {error.strerror or error}", hint="check the disk and permissions"
        ) from error
    return path


def sums_by_scene(
    evaluator: Evaluator,
    batches: Iterable[Mapping[str, Any]],
    scene_of: Callable[[int], str],
    tell: Callable[[int], None] = lambda done: None,
) -> sparse.csr_matrix:
    """What each scene adds to every sum of an evaluator, a row a scene.

    Args:
        batches: an image or a pair of faces each.
        scene_of: the scene of the image at a position.
        tell: hears of images done.
    """
    rows: list[sparse.csr_matrix] = []
    numbers: dict[str, int] = {}
    owners: list[int] = []
    done = 0
    for batch in batches:
        for total in evaluator.totals.values():
            total.zero_()
        evaluator.update(batch)
        sums = [total.flatten().double().cpu() for total in evaluator.totals.values()]
        rows.append(sparse.csr_matrix(torch.cat(sums).numpy()))  # of many codes few are used
        scene = scene_of(int(batch["index"][0]))
        owners.append(numbers.setdefault(scene, len(numbers)))
        done += len(batch["index"])
        tell(done)
    shape = len(numbers), len(rows)
    owns = sparse.csr_matrix((np.ones(len(rows)), (owners, np.arange(len(rows)))), shape)
    return owns @ sparse.vstack(rows).tocsr()


def put(evaluator: Evaluator, sums: Any) -> None:
    """Make these sums the evaluator's, on the CPU."""
    flat, begin = torch.from_numpy(np.asarray(sums, np.float64).reshape(-1)), 0
    for name, total in evaluator.totals.items():
        end = begin + total.numel()
        evaluator.totals[name] = flat[begin:end].view(total.shape).clone()
        begin = end


def bootstrap(
    evaluator: Evaluator, sums: sparse.csr_matrix, num_resamples: int = NUM_RESAMPLES
) -> dict[str, list[float]]:
    """Each metric's values over resamples of the rows; nothing with a single row."""
    count = sums.shape[0]
    found: dict[str, list[float]] = {}
    if count < 2:
        return found
    rng = np.random.default_rng(SEED)
    for _ in range(num_resamples):
        times = rng.multinomial(count, np.full(count, 1 / count))
        put(evaluator, sums.T @ times)
        for name, value in evaluator.compute().items():
            if value is not None:
                found.setdefault(name, []).append(value)
    return found


def _bounds(name: str, values: list[float] | None) -> dict[str, float | None]:
    keys = [f"{name}_se", f"{name}_low", f"{name}_high"]
    if not values or len(values) < 2:
        return dict.fromkeys(keys)
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return dict(zip(keys, map(float, (np.std(values, ddof=1), low, high)), strict=True))
