"""`--dry-run`: what a run would be, without training a step or writing a file."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from imgtool.config.identity import identity
from imgtool.config.load import Loaded
from imgtool.config.schema import Train
from imgtool.data.datasets import expected_info, open_datasets
from imgtool.data.pyramid import pyramid_size
from imgtool.models.base import DataInfo, Noise, Task
from imgtool.models.registry import family as find_family

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
    batch: dict[str, Any] = {
        "image": torch.empty((batch_size, 3, height, width), dtype=torch.uint8, device="meta"),
        "index": torch.empty((batch_size,), dtype=torch.int64, device="meta"),
        "noise": Noise(0, 0),
        "epoch": 0.0,
    }
    if "mask" in data.targets:
        batch["mask"] = torch.empty((batch_size, height, width), dtype=torch.uint8, device="meta")
    if "label" in data.targets:
        batch["label"] = torch.empty((batch_size,), dtype=torch.int64, device="meta")
    return batch
