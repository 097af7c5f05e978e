"""Checkpoints of the earlier PyTorch system (`iter_020000.pt`), whatever its modules are called.

Such a file is a dict with a state dict each for splitter, joiner and the two critics, and for the
two optimizers. Within a network the order of its entries is that of its layers, and shapes and
sizes in the names (`bn.64.weight`) say the rest: no names of the earlier system are needed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from imgtool.errors import CheckpointError
from imgtool.models.base import Foreign, Update

# What an entry's name has in it, in lower case; the first that fits is taken.
NETWORKS = {
    "splitter": ("splitter", "split"),
    "joiner": ("joiner", "join"),
    "critic_Ax": ("critic_ax", "d_ax", "disc_ax", "discriminator_ax", "dax"),
    "critic_Be": ("critic_be", "d_be", "disc_be", "discriminator_be", "dbe"),
}
OPTIMIZERS = {
    "generator": ("opt_g", "optimizer_g", "optim_g", "g_opt", "generator"),
    "critic": ("opt_d", "optimizer_d", "optim_d", "d_opt", "opt_c", "critic", "discriminator"),
}
TRAINED = {"generator": ("splitter", "joiner"), "critic": ("critic_Ax", "critic_Be")}
ITERATION = ("iteration", "iter", "it", "step", "global_step")
_STATISTICS = ("running_mean", "running_var")


def read(
    foreign: Any, modules: Mapping[str, nn.Module], updates: Sequence[Update], sizes: Sequence[int]
) -> Foreign:
    """Our tensors out of the earlier system's.

    Args:
        foreign: what the file holds.
        modules: our networks, whose order and shapes the file's must fit.
        updates: ours, whose optimizers' state is looked for.
        sizes: of the images, as the checkpoint was trained.

    Raises:
        CheckpointError: a network is missing, or does not fit; says which and where.
    """
    entries = _flat_entries(foreign)
    model: dict[str, Tensor] = {}
    order: dict[str, list[str]] = {}  # network -> our parameter names in the file's order
    for name, module in modules.items():
        state = _find(entries, NETWORKS[name], name)
        matched = _match(name, module, state, sorted(sizes))
        model |= {f"{name}.{ours}": state[theirs] for theirs, ours in matched.items()}
        order[name] = [ours for theirs, ours in matched.items() if not _is_statistic(theirs)]
    optimizers, notes = {}, []
    for update in updates:
        states = _optimizer(entries, update, order)
        if states is None:
            notes.append(f"no state of the {update.name}'s optimizer: it begins anew")
        optimizers[update.name] = states or {}
    return Foreign(model, optimizers, _iteration(entries), tuple(notes))


def _flat_entries(foreign: Any) -> dict[str, Any]:
    if not isinstance(foreign, Mapping):
        raise CheckpointError(
            f"the file holds a {type(foreign).__name__}, no dict of state dicts",
            hint="give an iter_*.pt of the earlier system",
        )
    entries: dict[str, Any] = {}
    for key, value in foreign.items():
        inner = (
            isinstance(value, Mapping)
            and value
            and all(isinstance(v, Mapping) for v in value.values())
        )
        if inner and not {"state", "param_groups"} <= set(value):  # one level of nesting more
            entries |= {f"{key}.{name}": state for name, state in value.items()}
        else:
            entries[str(key)] = value
    return entries


def _find(entries: Mapping[str, Any], words: Sequence[str], name: str) -> dict[str, Tensor]:
    for word in words:
        for key, value in entries.items():
            if word in key.lower().replace("-", "_") and _is_state_dict(value):
                return {str(k): v for k, v in value.items() if isinstance(v, Tensor)}
    known = ", ".join(map(str, entries)) or "none"
    raise CheckpointError(f"no {name} in the file", hint=f"its entries: {known[:200]}")


def _is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and any(isinstance(v, Tensor) and v.ndim == 4 for v in value.values())
    )


def _is_statistic(name: str) -> bool:
    return name.rpartition(".")[2] in _STATISTICS


def _match(
    name: str, module: nn.Module, state: Mapping[str, Tensor], sizes: Sequence[int]
) -> dict[str, str]:
    """Theirs -> ours, in the file's order."""
    own = dict(module.state_dict().items())
    kinds: dict[str, tuple[list[str], list[str]]] = {}
    for side, names in enumerate((_ordered(own), _ordered(state, sizes))):
        for kind, key in names:
            kinds.setdefault(kind, ([], []))[side].append(key)
    pairs: dict[str, str] = {}
    for kind, (ours, theirs) in kinds.items():
        if len(ours) != len(theirs):
            raise CheckpointError(
                f"its {name} has {len(theirs)} tensors of kind {kind}, ours {len(ours)}",
                hint="give --config and --set as it was trained: sizes, widths, block-conv, norm",
            )
        for mine, other in zip(ours, theirs, strict=True):
            if own[mine].numel() != state[other].numel():
                raise CheckpointError(
                    f"{name}: {other} is {tuple(state[other].shape)}, "
                    f"{mine} {tuple(own[mine].shape)}",
                    hint="give --config and --set as it was trained",
                )
            pairs[other] = mine
    return {theirs: pairs[theirs] for theirs in state if theirs in pairs}


def _ordered(
    state: Mapping[str, Tensor], sizes: Sequence[int] | None = None
) -> Iterator[tuple[str, str]]:
    """(kind, name) of the tensors, those of one kind in the order of the layers.

    Kinds: convolutions, the linear layer's two, a bias a channel, and for each size the norms'
    four. Where names do not say the size, a layer's norms follow one another by size.
    """
    groups: dict[str, list[str]] = {}
    for key in state:
        prefix, _, last = key.rpartition(".")
        if last != "num_batches_tracked":
            groups.setdefault(prefix, []).append(key)
    norms = [p for p, keys in groups.items() if any(_is_statistic(key) for key in keys)]
    said = {prefix: _said_size(prefix, sizes) for prefix in norms}
    silent = any(size is None for size in said.values())
    for prefix, keys in groups.items():
        for key in keys:
            last = key.rpartition(".")[2]
            if prefix in said:
                size: object = said[prefix]
                if silent and sizes:
                    size = sizes[norms.index(prefix) % len(sizes)]
                yield f"norm {last} {size}", key
            elif state[key].ndim in (2, 4) and not _is_channel_bias(state[key]):
                yield f"{state[key].ndim}-d weight", key
            elif len(keys) == 2 and any(state[k].ndim == 2 for k in keys):
                yield "linear bias", key
            elif len(keys) == 2:
                yield f"group norm {last}", key
            else:
                yield "channel bias", key


def _is_channel_bias(tensor: Tensor) -> bool:
    """(1, C, 1, 1): added to every pixel, and no convolution."""
    return tensor.ndim == 4 and tensor.shape[0] == tensor.shape[2] == tensor.shape[3] == 1


def _said_size(prefix: str, sizes: Sequence[int] | None) -> int | None:
    numbers = [int(number) for number in re.findall(r"\d+", prefix)]
    found = [n for n in numbers if (n in sizes if sizes else n >= 16)]
    return found[-1] if found else None


def _optimizer(
    entries: Mapping[str, Any], update: Update, order: Mapping[str, Sequence[str]]
) -> dict[str, Tensor] | None:
    """Our state by name (`splitter.layers.0.conv.weight.square_avg`); None where there is none."""
    names = [f"{net}.{name}" for net in TRAINED[update.name] for name in order[net]]
    for word in OPTIMIZERS[update.name]:
        for key, value in entries.items():
            if word not in key.lower().replace("-", "_") or not isinstance(value, Mapping):
                continue
            if not {"state", "param_groups"} <= set(value):
                continue
            numbers = [n for group in value["param_groups"] for n in group["params"]]
            if len(numbers) != len(names):
                return None
            parameters = dict(update.named_parameters())
            found: dict[str, Tensor] = {}
            for number, name in zip(numbers, names, strict=True):
                average = value["state"].get(number, {}).get("square_avg")
                if not isinstance(average, Tensor) or not parameters[name].requires_grad:
                    continue
                steps = value["state"][number].get("step", 0)
                found[f"{name}.square_avg"] = average.reshape(parameters[name].shape)
                found[f"{name}.step"] = torch.as_tensor(float(steps))
            return found
    return None


def _iteration(entries: Mapping[str, Any]) -> int | None:
    for key in ITERATION:
        value = entries.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return value
    return None
