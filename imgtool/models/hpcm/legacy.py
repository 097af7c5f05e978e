"""Checkpoints of the published code (`*.pth.tar`): state dicts of its HPCM classes.

Two things of them are odd. The adaptive factors were no parameters until 2026, so that most files
lack them: they are ones. And the adaptor lists of scales 2 and 3 are indexed from -1, so that a
scale's first step uses the last of its list; ours are in the order of the steps.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from imgtool.errors import CheckpointError
from imgtool.models.base import Foreign
from imgtool.models.hpcm.entropy import BETA
from imgtool.models.hpcm.network import HPCM

# Probability tables and the shape parameter, which ours has elsewhere.
_IGNORED = re.compile(r"scale_table|(quantized_cdf|cdf_length|offset)_[yz]|entropy_estimation\..*")
_BLOCK = (
    ("spatial.conv.", "branch.0.pconv."),
    ("spatial.", "branch.0."),
    ("expand.", "branch.1."),
    ("reduce.", "branch.3."),
)
_NETS = {"coarse": "y_spatial_prior_s1_s2", "fine": "y_spatial_prior_s3"}
_BRANCHES = {"before": "branch_1", "after": "branch_2"}
_ATTENTION = {"query_out": ("conv_q", "conv_out"), "key_value": ("conv_k", "conv_v")}
# The adaptor of each step after the first: list (scale) and index, as the published code has them.
_ADAPTORS = ("s1.0", "s2.2", "s2.0", "s2.1", "s3.5", "s3.0", "s3.1", "s3.2", "s3.3", "s3.4")


_SIGN = "y_spatial_prior_adaptor_list_s1.0.weight"  # of every published variant


def knows(foreign: Any) -> bool:
    """Whether a file holds the published code's state dict."""
    try:
        return _SIGN in _state_dict(foreign)
    except CheckpointError:
        return False


def read(foreign: Any, codec: HPCM) -> Foreign:
    """Our tensors out of the published code's.

    Args:
        foreign: what the file holds: the state dict, or a dict with it as `state_dict`.
        codec: whose tensors are wanted, as modules["codec"] of the task.

    Raises:
        CheckpointError: the file is of no HPCM, of another variant, or of an entropy model of
            another shape; says what does not fit.
    """
    name = codec.variant.name
    if len(codec.context.adaptors) != len(_ADAPTORS):
        raise CheckpointError(
            f"the published code has no {name}",
            hint="give --model_name HPCM_Base, HPCM_Large or HPCM_PhiContext",
        )
    state = _state_dict(foreign)
    own = codec.state_dict()
    model: dict[str, Tensor] = {}
    missing: list[str] = []
    used: set[str] = set()
    for key, tensor in own.items():
        theirs = _published(key)
        if key.startswith("context.factors.") and theirs[0] not in state:
            missing.append(key)
            model[f"codec.{key}"] = torch.ones_like(tensor)
            continue
        used.update(theirs)
        model[f"codec.{key}"] = _fitting(state, theirs, tensor, name)
    rest = [key for key in state if key not in used and not _IGNORED.fullmatch(key)]
    if rest:
        raise CheckpointError(
            f"the file has {len(rest)} tensors that {name} has not, such as {rest[0]}",
            hint="give --model_name as it was trained",
        )
    _refuse_other_beta(state)
    notes = []
    if missing:
        notes.append("no adaptive factors in the file: they are 1, as the published code had them")
    if not codec.context.legacy_s2_hyper:
        notes.append(
            "model.legacy_s2_hyper is off: with --legacy-s2-hyper, outputs are those of the "
            "published code"
        )
    epoch = foreign.get("epoch")
    if isinstance(epoch, bool) or not isinstance(epoch, int) or epoch < 0:
        return Foreign(model, {}, None, tuple(notes))
    notes.append(f"the file says epoch {epoch}, which is kept as the iteration")
    return Foreign(model, {}, epoch, tuple(notes))


def _refuse_other_beta(state: Mapping[str, Tensor]) -> None:
    for key, value in state.items():
        if key.rpartition(".")[2] == "beta" and not bool((value == BETA).all()):
            raise CheckpointError(
                f"{key} is {value.flatten()[0].item():g}: the entropy model here has {BETA}",
                hint="its likelihoods and streams would be others; train it anew",
            )


def _state_dict(foreign: Any) -> dict[str, Tensor]:
    inner = foreign.get("state_dict", foreign) if isinstance(foreign, Mapping) else None
    if isinstance(inner, Mapping):
        found = {
            str(key).removeprefix("module."): value  # DataParallel's prefix
            for key, value in inner.items()
            if isinstance(value, Tensor)
        }
        if found:
            return found
    raise CheckpointError(
        "the file holds no state dict", hint="give a .pth.tar of the published HPCM code"
    )


def _fitting(
    state: Mapping[str, Tensor], names: tuple[str, ...], own: Tensor, variant: str
) -> Tensor:
    """The tensors of these names, joined along the first dimension, in the shape of ours."""
    absent = [name for name in names if name not in state]
    if absent:
        raise CheckpointError(
            f"the file has no {absent[0]}, which {variant} needs",
            hint="give --model_name as it was trained",
        )
    found = [state[name] for name in names]
    size = (own.shape[0] // len(found), *own.shape[1:])
    for name, tensor in zip(names, found, strict=True):
        if tuple(tensor.shape) != size:
            raise CheckpointError(
                f"{name} is {tuple(tensor.shape)} in the file, {size} in {variant}",
                hint="give --model_name as it was trained",
            )
    return torch.cat(found) if len(found) > 1 else found[0]


def _published(key: str) -> tuple[str, ...]:
    """The published names of what makes up our tensor `key`."""
    first, *rest = key.split(".", 3)
    if first in ("g_a", "g_s", "h_a", "h_s"):
        return (f"{first}.branch.{rest[0]}.{_in_block('.'.join(rest[1:]))}",)
    if first != "context":
        return (key,)
    part, index, tail = (*rest, "")[:3]
    match part:
        case "factors":
            return (f"adaptive_params_list.{index}",)
        case "adaptors":
            scale, _, position = _ADAPTORS[int(index)].partition(".")
            return (f"y_spatial_prior_adaptor_list_{scale}.{position}.{tail}",)
        case "finer":
            return (f"context_net.{index}.{tail}",)
        case "attention":
            layer, _, kind = tail.partition(".")
            return tuple(f"attn_s{int(index) + 1}.{name}.{kind}" for name in _ATTENTION[layer])
        case _:
            number, _, tail = tail.partition(".")
            return (f"{_NETS[part]}.{_BRANCHES[index]}.{number}.{_in_block(tail)}",)


def _in_block(tail: str) -> str:
    for ours, theirs in _BLOCK:
        if tail.startswith(ours):
            return theirs + tail.removeprefix(ours)
    return tail
