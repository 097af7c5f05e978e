"""Checkpoints of the earlier PyTorch system (`iter_020000.pt`), whatever its modules are called.

Such a file is a dict with a state dict each for splitter, joiner and the two critics, and for the
two optimizers. Within a network the order of its entries is that of its layers, and shapes and
sizes in the names (`bn.64.weight`) say the rest: no names of the earlier system are needed, but
for its convolutions by blocks (`obj_blockconv.by_hw.12.0.weight` to `8.weight`), each of which is
a convolution of its own there and a part of one tensor here.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
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
AS_TRAINED = "give --config and --set as it was trained: sizes, widths, block-conv, norm"
_CHANNEL_BIAS = "channel bias"  # (1, C, 1, 1) there, (C,) here
_STATISTICS = ("running_mean", "running_var")
_BLOCK = re.compile(r"(?P<layer>.*\bby_hw\.\d+)\.(?P<number>\d+)\.weight")
_OUR_BLOCKS = re.compile(r"(object|background)_blocks\.weights\.grid(\d+)")


@dataclass(frozen=True)
class Part:
    """A tensor of the file that is ours, or one block of ours.

    Attributes:
        theirs, ours: names within the network.
        kind: see `_ordered`.
        shape: in the file.
    """

    theirs: str
    ours: str
    kind: str
    shape: torch.Size


def knows(foreign: Any) -> bool:
    """Whether a file holds the networks of a GeneGAN."""
    try:
        entries = _flat_entries(foreign)
        return all(_find(entries, NETWORKS[name], name) for name in ("splitter", "joiner"))
    except CheckpointError:
        return False


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
    parts: dict[str, list[Part]] = {}  # network -> its tensors in the file's order
    for name, module in modules.items():
        state = _find(entries, NETWORKS[name], name)
        parts[name] = _match(name, module, state, sorted(sizes))
        found = _joined((part, state[part.theirs]) for part in parts[name])
        model |= {f"{name}.{ours}": tensor for ours, tensor in found.items()}
    optimizers, notes = {}, []
    for update in updates:
        states = _optimizer(entries, update, parts)
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


def _match(
    name: str, module: nn.Module, state: Mapping[str, Tensor], sizes: Sequence[int]
) -> list[Part]:
    """What of the file is which tensor of ours, in the file's order."""
    own = dict(module.state_dict().items())
    ours, theirs = _by_kind(_ordered(own)), _by_kind(_ordered(state, sizes))
    parts: dict[str, Part] = {}
    # Blocks first: where they are missing, so are their norms, and the hint is for the blocks.
    for kind in sorted(ours | theirs, key=lambda kind: not kind.startswith("blocks")):
        mine, other = ours.get(kind, []), theirs.get(kind, [])
        is_block = kind.startswith("blocks")
        if is_block and mine and other:  # all of them are one tensor of ours
            mine = mine * len(other)
        if len(mine) != len(other):
            on = f"--set model.{'obj' if 'object' in kind else 'bg'}_blockconv=true"
            raise CheckpointError(
                f"its {name} has {len(other)} tensors of kind {kind}, ours {len(mine)}",
                hint=f"{AS_TRAINED}; {on}" if is_block and not mine else AS_TRAINED,
            )
        for key, theirs_key in zip(mine, other, strict=True):
            part = Part(theirs_key, key, kind, state[theirs_key].shape)
            _refuse_other_shape(name, part, own[key].shape, len(other) if is_block else 1)
            parts[theirs_key] = part
    return [parts[key] for key in state if key in parts]


def _refuse_other_shape(name: str, part: Part, own: torch.Size, num_parts: int) -> None:
    """An equal number of elements is not enough: the weights would be others."""
    wanted = (own[0] // num_parts, *own[1:])
    fits = part.kind == _CHANNEL_BIAS and part.shape.numel() == own.numel()
    if not fits and (tuple(part.shape) != wanted or own[0] % num_parts):
        raise CheckpointError(
            f"{name}: {part.theirs} is {tuple(part.shape)}, {part.ours} {wanted}",
            hint="give --config and --set as it was trained",
        )


def _joined(found: Iterator[tuple[Part, Tensor]]) -> dict[str, Tensor]:
    """Our tensors of the file's: blocks joined, a bias a channel without the axes that are one."""
    members: dict[str, list[Tensor]] = defaultdict(list)
    for part, tensor in found:
        members[part.ours].append(tensor.flatten() if part.kind == _CHANNEL_BIAS else tensor)
    return {
        ours: torch.cat(tensors) if len(tensors) > 1 else tensors[0]
        for ours, tensors in members.items()
    }


def _by_kind(pairs: Iterator[tuple[str, str]]) -> dict[str, list[str]]:
    kinds: dict[str, list[str]] = defaultdict(list)
    for kind, key in pairs:
        kinds[kind].append(key)
    return kinds


def _ordered(
    state: Mapping[str, Tensor], sizes: Sequence[int] | None = None
) -> Iterator[tuple[str, str]]:
    """(kind, name) of the tensors, those of one kind in the order of the layers.

    Kinds: convolutions, those of the blocks of a grid, the linear layer's two, a bias a channel,
    and for each size the norms' four. Where names do not say the size, a layer's norms follow one
    another by size.
    """
    blocks = _blocks(state)
    groups: dict[str, list[str]] = {}
    for key in state:
        prefix, _, last = key.rpartition(".")
        if last != "num_batches_tracked" and key not in blocks:
            groups.setdefault(prefix, []).append(key)
    norms = [p for p, keys in groups.items() if any(_is_statistic(key) for key in keys)]
    said = {prefix: _said_size(prefix, sizes) for prefix in norms}
    silent = any(size is None for size in said.values())
    yield from ((kind, key) for key, kind in blocks.items())
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
                yield _CHANNEL_BIAS, key


def _blocks(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Name -> kind of what belongs to a convolution by blocks, ours or theirs."""
    found: dict[str, str] = {}
    layers: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for key in state:
        own, block = _OUR_BLOCKS.fullmatch(key), _BLOCK.fullmatch(key)
        if own is not None:
            found[key] = f"blocks of the {own[1]}, {own[2]}x{own[2]}"
        elif block is not None:
            layers[block["layer"]].append((int(block["number"]), key))
    for layer, members in layers.items():
        grid = math.isqrt(len(members))
        if [number for number, _ in members] != list(range(grid * grid)):
            raise CheckpointError(
                f"{layer} has {len(members)} blocks, which are no square in order",
                hint="give a checkpoint as the earlier system wrote it",
            )
        part = "background" if re.search(r"bg|back", layer) else "object"
        found |= {key: f"blocks of the {part}, {grid}x{grid}" for _, key in members}
    return found


def _is_statistic(name: str) -> bool:
    return name.rpartition(".")[2] in _STATISTICS


def _is_channel_bias(tensor: Tensor) -> bool:
    """(1, C, 1, 1): added to every pixel, and no convolution."""
    return tensor.ndim == 4 and tensor.shape[0] == tensor.shape[2] == tensor.shape[3] == 1


def _said_size(prefix: str, sizes: Sequence[int] | None) -> int | None:
    numbers = [int(number) for number in re.findall(r"\d+", prefix)]
    found = [n for n in numbers if (n in sizes if sizes else n >= 16)]
    return found[-1] if found else None


def _optimizer(
    entries: Mapping[str, Any], update: Update, parts: Mapping[str, Sequence[Part]]
) -> dict[str, Tensor] | None:
    """Our state by name (`splitter.layers.0.conv.weight.square_avg`); None where there is none.

    Raises:
        CheckpointError: an average is not of its parameter's shape.
    """
    wanted = [
        (net, part)
        for net in TRAINED[update.name]
        for part in parts[net]
        if not _is_statistic(part.theirs)
    ]
    for word in OPTIMIZERS[update.name]:
        for key, value in entries.items():
            if word not in key.lower().replace("-", "_") or not isinstance(value, Mapping):
                continue
            if not {"state", "param_groups"} <= set(value):
                continue
            numbers = [n for group in value["param_groups"] for n in group["params"]]
            if len(numbers) != len(wanted):
                return None
            return _states(value["state"], list(zip(numbers, wanted, strict=True)), update)
    return None


def _states(
    state: Mapping[int, Any], parameters: Sequence[tuple[int, tuple[str, Part]]], update: Update
) -> dict[str, Tensor]:
    trained = {name for name, p in update.named_parameters() if p.requires_grad}
    averages: dict[str, list[tuple[Part, Tensor]]] = defaultdict(list)
    steps: dict[str, float] = {}
    for number, (net, part) in parameters:
        average = state.get(number, {}).get("square_avg")
        if not isinstance(average, Tensor) or f"{net}.{part.ours}" not in trained:
            continue
        if average.shape != part.shape:
            raise CheckpointError(
                f"the optimizer's average of {part.theirs} is {tuple(average.shape)}, the "
                f"parameter {tuple(part.shape)}",
                hint="the file's optimizer is of another network than its weights",
            )
        averages[net].append((part, average))
        steps[f"{net}.{part.ours}"] = float(state[number].get("step", 0))
    found: dict[str, Tensor] = {}
    for net, pairs in averages.items():
        for ours, average in _joined(iter(pairs)).items():
            found[f"{net}.{ours}.square_avg"] = average
            found[f"{net}.{ours}.step"] = torch.as_tensor(steps[f"{net}.{ours}"])
    return found


def _iteration(entries: Mapping[str, Any]) -> int | None:
    for key in ITERATION:
        value = entries.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return value
    return None
