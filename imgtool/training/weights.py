"""A checkpoint's weights, put into modules."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from imgtool.errors import CheckpointError
from imgtool.experiment.checkpoint_file import Checkpoint, all_finite


class Misfit(Exception):
    """What a file holds is not this model's; the words go on from the file's name."""

    hint = "it belongs to another model or an older version of this one"


def load_module(module: nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Copy tensors into a module's parameters and buffers, keeping their strides.

    Raises:
        CheckpointError: keys or shapes differ, or a value is not finite; names the first of them.
    """
    see_finite(tensors, source)
    try:
        fit_module(module, tensors)
    except Misfit as error:
        raise CheckpointError(f"{source} {error}", hint=error.hint) from error


def see_finite(tensors: Mapping[str, Tensor], source: Path) -> None:
    """Raise CheckpointError where weights are not finite: they make nothing that is of use."""
    if not all_finite(tensors):
        spoilt = next(name for name in tensors if not all_finite({name: tensors[name]}))
        raise CheckpointError(
            f"{source} holds weights that are not finite ({spoilt})",
            hint="take an earlier checkpoint",
        )


def load_weights(module: nn.Module, loaded: Checkpoint) -> None:
    """Put a checkpoint's weights into a module to look at them: the averaged ones, where it has any.

    Raises:
        CheckpointError: the file does not fit the model, or is not finite.
    """
    load_module(module, {**loaded.part("model"), **loaded.part("ema")}, loaded.header.path)


def weights_hash(module: nn.Module) -> str:
    """Hash of a module's parameters and buffers, 32 hexadecimal digits, wherever they are."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(module.state_dict().items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def fit_module(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """As `load_module`; nothing is copied before all is seen to fit.

    Raises:
        Misfit: keys or shapes differ.
    """
    own = module.state_dict()
    for kind, keys in (
        ("lacks", own.keys() - tensors.keys()),
        ("also has", tensors.keys() - own.keys()),
    ):
        if keys:
            some = ", ".join(sorted(keys)[:3])
            raise Misfit(f"{kind} {len(keys)} of the model's tensors ({some} …)")
    for key, target in own.items():
        if target.shape != tensors[key].shape:
            theirs, ours = tuple(tensors[key].shape), tuple(target.shape)
            raise Misfit(f"is of another model: {key} is {theirs}, the model has {ours}")
        if target.is_floating_point() != tensors[key].is_floating_point():
            types = f"{tensors[key].dtype}, the model has {target.dtype}"
            raise Misfit(f"is of another model: {key} is {types}")
    with torch.no_grad():
        for key, target in own.items():
            target.copy_(tensors[key])
