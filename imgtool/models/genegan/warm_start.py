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


def from_vqvae(
    generator: Mapping[str, nn.Module], tensors: Mapping[str, Tensor], names: Any = None
) -> dict[str, Any]:
    """Copy what fits into the generator.

    With a map exactly its tensors are copied. Without one a convolution gets the only tensor of
    its shape among the keys with `encoder` (splitter) or `decoder` (joiner) in them, where no
    other convolution has that shape.

    Args:
        generator: `splitter` and `joiner`.
        tensors: of the VQ-VAE's checkpoint.
        names: our tensor, such as `splitter.layers.2.conv.weight`, -> the VQ-VAE's.

    Returns:
        loaded: ours -> theirs; ambiguous: ours -> several of theirs; missing: ours without any.

    Raises:
        ConfigError: the map names a tensor that is not there.
        CheckpointError: shapes differ, or nothing fits.
    """
    own = {
        f"{part}.{name}": tensor
        for part, network in generator.items()
        for name, tensor in network.named_parameters()
    }
    report = _by_shape(own, tensors) if names is None else _by_map(own, tensors, names)
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
