"""`--dry-run`: what a run would be, without training a step or writing a file."""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from imgtool.config.identity import identity
from imgtool.config.load import Loaded
from imgtool.config.schema import Experiment, Train
from imgtool.data.datasets import expected_info, open_datasets
from imgtool.data.pyramid import pyramid_size
from imgtool.models.base import DataInfo, Noise, Task
from imgtool.models.registry import family as find_family
from imgtool.units import format_duration

SMALL_BATCH_PIXELS = 2**19  # below, nobody waits long enough to be told
SLOW_SEC = 5.0
SMALL_CROP = 128
SETTLED = 10_000  # an iteration past the bursts of the beginning
CALIBRATION_SEC = 0.1
# Tensors of the parameter's size that each optimizer keeps.
_STATES = {"adamw": 2, "adam": 2, "rmsprop": 1, "sgd": 0}


def describe(loaded: Loaded) -> dict[str, Any]:
    """Identity, data counts, model facts and an estimate of the training's memory.

    Of a config that names no data yet (a preset), what does not depend on it.

    The model is built and run on the meta device, where tensors have shapes but no storage.
    """
    experiment = loaded.experiment
    known: dict[str, Any] = {"name": experiment.name, "family": experiment.family}
    info = expected_info(experiment.data)
    if info is None:
        datasets = open_datasets(experiment.data, split=None)
        info = datasets.info
        batch_size = experiment.train.batch_size
        known |= {
            "identity": identity(experiment, datasets.fingerprint),
            "num_train_images": len(datasets.train),
            "num_val_images": len(datasets.val),
            "num_test_images": len(datasets.test),
            **({"num_missing_images": len(datasets.missing)} if datasets.missing else {}),
            **({"num_without_part": len(datasets.without_part)} if datasets.without_part else {}),
            **({"num_tested_too": len(datasets.tested_too)} if datasets.tested_too else {}),
            "batches_per_epoch": datasets.batches_per_epoch(batch_size),
        }
    else:
        known["data"] = "not named yet"
    with torch.device("meta"):
        task = find_family(experiment.family).build(experiment, info)
    return {**known, **task.facts(), **estimate_memory(task, experiment.train, info)}


def slow_note(experiment: Experiment, data: DataInfo, device: torch.device) -> str | None:
    """What an iteration will take on a CPU, and what takes less; None where it is soon over.

    From the operations of a forward pass on the meta device, three times for a training step, and
    the speed of one convolution here: right within a factor of two or so.
    """
    train = experiment.train
    if device.type != "cpu" or data.image_size is None:
        return None
    if train.batch_size * data.image_size[0] * data.image_size[1] < SMALL_BATCH_PIXELS:
        return None
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        task = find_family(experiment.family).build(experiment, data)
    flops = 3 * train.accumulate * _flops(task, _meta_batch(train.batch_size, data))
    seconds = flops / _flops_per_sec()
    if seconds < SLOW_SEC:
        return None
    shrinks = "--tiny makes a trial of it that takes seconds"
    crop = experiment.data.crop
    if hasattr(experiment.data, "crop") and (crop is None or crop > SMALL_CROP):
        shrinks += f", --crop {SMALL_CROP} or a smaller --batch-size a smaller step"
    return (
        f"note: on this CPU an iteration will take about {format_duration(seconds)} "
        f"({flops / 1e12:.1f} TFLOP): {shrinks}"
    )


def _flops(task: Task, batch: dict[str, Any]) -> int:
    """Operations of an iteration's forward passes, once training has settled."""
    from torch.utils.flop_counter import FlopCounterMode

    known: dict[int, int] = {}
    total = 0
    for update in task.updates(SETTLED):
        if id(update) not in known:
            with FlopCounterMode(display=False) as counter:
                update(batch)
            known[id(update)] = counter.get_total_flops()
        total += known[id(update)]
    return total


def _flops_per_sec() -> float:
    """Of a convolution of usual size on this machine, with the threads that it has now."""
    images, kernels = torch.ones(4, 64, 64, 64), torch.ones(64, 64, 3, 3)
    with torch.no_grad():
        F.conv2d(images, kernels, padding=1)
        begun, count = time.perf_counter(), 0
        while (spent := time.perf_counter() - begun) < CALIBRATION_SEC:
            F.conv2d(images, kernels, padding=1)
            count += 1
    return count * 2 * images.numel() * 64 * 9 / spent


def estimate_memory(task: Task, train: Train, data: DataInfo) -> dict[str, int | None]:
    """Bytes for weights, gradients, optimizer state and what backward keeps of one batch.

    In 32-bit arithmetic; mixed precision keeps up to half of the activations' bytes.
    """
    parameters = [p for p in task.modules.parameters() if p.requires_grad]
    weights = sum(t.numel() * t.element_size() for t in task.modules.state_dict().values())
    trained = sum(p.numel() * p.element_size() for p in parameters)
    momentum = train.momentum > 0 and train.optimizer in ("sgd", "rmsprop")
    states = trained * (_STATES[train.optimizer] + momentum + (train.ema_decay > 0))
    kept = _kept_for_backward(task, train, data)
    fixed = weights + trained + states
    return {
        "weights_bytes": weights,
        "optimizer_bytes": states,
        "activations_bytes": kept,
        "memory_bytes": None if kept is None else fixed + kept,
    }


def _kept_for_backward(task: Task, train: Train, data: DataInfo) -> int | None:
    if data.image_size is None:
        return None
    batch = _meta_batch(train.batch_size, data)
    own = {id(p) for p in task.modules.parameters()}
    largest = 0
    for update in task.all_updates():
        seen: dict[int, torch.UntypedStorage] = {}  # held, so that no number is used twice

        def pack(tensor: Tensor, seen: dict[int, torch.UntypedStorage] = seen) -> Tensor:
            if id(tensor) not in own:
                storage = tensor.untyped_storage()
                seen[id(storage)] = storage
            return tensor

        with saved_tensors_hooks(pack, lambda tensor: tensor):
            losses = update(batch)
        largest = max(largest, sum(storage.nbytes() for storage in seen.values()))
        del losses
    return largest


def _meta_batch(batch_size: int, data: DataInfo) -> dict[str, Any]:
    assert data.image_size is not None
    height, width = data.image_size
    if data.pyramid:
        batch_size, (height, width) = 2 * batch_size, pyramid_size(data.pyramid)
    held: dict[str, Any] = {}
    if data.latents is None:
        shape: tuple[int, ...] = (batch_size, 3, height, width)
        held["image"] = torch.empty(shape, dtype=torch.uint8, device="meta")
    else:
        shape, (height, width) = (batch_size, *data.latents.shape), data.latents.shape[1:]
        for name in ("latent", "logvar") if data.latents.has_logvar else ("latent",):
            held[name] = torch.empty(shape, device="meta")
    batch: dict[str, Any] = {
        **held,
        "index": torch.empty((batch_size,), dtype=torch.int64, device="meta"),
        "noise": Noise(0, 0),
        "epoch": 0.0,
    }
    if "mask" in data.targets:
        batch["mask"] = torch.empty((batch_size, height, width), dtype=torch.uint8, device="meta")
    if "label" in data.targets:
        batch["label"] = torch.empty((batch_size,), dtype=torch.int64, device="meta")
    elif "labels" in data.targets:
        several = (batch_size, len(data.label_names))
        batch["label"] = torch.empty(several, dtype=torch.int64, device="meta")
    return batch
