"""Splitter and joiner that begin with the weights of a VQ-VAE (experiment EXP06b)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from imgtool.errors import CheckpointError, ConfigError, did_you_mean

# The part of a VQ-VAE in whose keys the weights of ours are looked for.
COUNTERPART = {"splitter": "encoder", "joiner": "decoder"}
# Why a VQ-VAE with our trunk has no such tensor: what its name has in it -> the reason.
_LACKING = {
    "_blocks.": "the VQ-VAE was trained without convolution by blocks",
    ".heads.": "heads of multiscale_loss, which no VQ-VAE has",
    ".norm.": "the VQ-VAE was trained with other norms, or not at this size",
    "": "the VQ-VAE was trained at other sizes: its trunk is shorter",
}


def from_vqvae(
    generator: Mapping[str, nn.Module], tensors: Mapping[str, Tensor], names: Any = None
) -> dict[str, Any]:
    """Copy what fits into the generator.

    With a map exactly its tensors are copied. A VQ-VAE with the GeneGAN's own trunk (`model.vqvae`)
    has the names of ours: convolutions and norms, their running statistics too, are copied by
    name, and what it has not is named with the reason. Of any other a convolution gets the only
    tensor of its shape among the keys with `encoder` (splitter) or `decoder` (joiner) in them,
    where no other convolution has that shape.

    Args:
        generator: `splitter` and `joiner`.
        tensors: of the VQ-VAE's checkpoint.
        names: our tensor, such as `splitter.layers.2.conv.weight`, -> the VQ-VAE's.

    Returns:
        loaded: ours -> theirs; ambiguous: ours -> several of theirs; missing: ours without any;
        not_meant: ours -> why a trunk of our own has it not.

    Raises:
        ConfigError: the map names a tensor that is not there.
        CheckpointError: shapes differ, or nothing fits.
    """
    own = {
        f"{part}.{name}": tensor
        for part, network in generator.items()
        for name, tensor in network.named_parameters()
    }
    if names is not None:
        report = _by_map(own, tensors, names)
    elif any(name.startswith("splitter.layers.") for name in tensors):
        own = {
            f"{part}.{name}": tensor
            for part, network in generator.items()
            for name, tensor in network.state_dict(keep_vars=True).items()
        }
        report = _by_name(own, tensors)
    else:
        report = _by_shape(own, tensors)
    with torch.no_grad():
        for ours, theirs in report["loaded"].items():
            own[ours].copy_(tensors[theirs])
    if not report["loaded"]:
        raise CheckpointError(
            "no tensor of the VQ-VAE fits splitter or joiner without ambiguity",
            hint="give --init-vqvae-map, or a VQ-VAE whose convolutions have the same shapes",
        )
    return report


def _by_map(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], names: Any) -> dict[str, Any]:
    if not isinstance(names, dict) or not all(isinstance(v, str) for v in names.values()):
        raise ConfigError(
            "the map of --init-vqvae-map is no object of strings",
            hint='it is like {"splitter.layers.2.conv.weight": "encoder.4.weight"}',
        )
    for ours, theirs in names.items():
        for name, known in ((ours, own), (theirs, tensors)):
            if name not in known:
                where = "the generator" if known is own else "the VQ-VAE"
                raise ConfigError(
                    f"the map names {name!r}, which {where} does not have",
                    hint=did_you_mean(name, list(known)),
                )
        if own[ours].shape != tensors[theirs].shape:
            raise CheckpointError(
                f"{theirs} is {tuple(tensors[theirs].shape)}, {ours} {tuple(own[ours].shape)}",
                hint="mend the map of --init-vqvae-map",
            )
    missing = [name for name in own if name not in names]
    return {"loaded": dict(names), "ambiguous": {}, "missing": missing}


def _by_name(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Of a trunk like ours."""
    loaded: dict[str, str] = {}
    not_meant: dict[str, str] = {}
    for name, tensor in own.items():
        if name not in tensors:
            not_meant[name] = next(why for part, why in _LACKING.items() if part in name)
        elif tensors[name].shape != tensor.shape:
            raise CheckpointError(
                f"the VQ-VAE's {name} is {tuple(tensors[name].shape)}, ours {tuple(tensor.shape)}",
                hint="train it with the same model.base_channels and model.second_ratio",
            )
        else:
            loaded[name] = name
    return {"loaded": loaded, "ambiguous": {}, "missing": [], "not_meant": not_meant}


def _by_shape(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    loaded: dict[str, str] = {}
    ambiguous: dict[str, list[str]] = {}
    missing: list[str] = []
    for part, word in COUNTERPART.items():
        theirs: dict[tuple[int, ...], list[str]] = defaultdict(list)
        for name, tensor in tensors.items():
            if word in name.lower() and tensor.is_floating_point():
                theirs[tuple(tensor.shape)].append(name)
        ours = {name: tuple(t.shape) for name, t in own.items() if name.startswith(part)}
        shapes = list(ours.values())
        for name, shape in ours.items():
            if len(shape) != 4 or not theirs[shape]:  # a vector's shape says nothing
                missing.append(name)
            elif len(theirs[shape]) > 1 or shapes.count(shape) > 1:
                ambiguous[name] = theirs[shape]
            else:
                loaded[name] = theirs[shape][0]
    return {"loaded": loaded, "ambiguous": ambiguous, "missing": missing}
