"""Where the entropy path has tensors that become integers, and how large they are in use."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from imgtool.models.hpcm.layers import PartialConv, ResidualBlock
from imgtool.models.hpcm.network import HPCM

Look = Callable[[nn.Module, tuple[Any, ...], Any], Tensor]


@dataclass(frozen=True)
class Site:
    """One kind of tensor.

    Attributes:
        name: of the module that makes it, or of what it is.
        channels: of it.
        share: neighbouring channels that have one exponent.
        watched: modules that see it, and how to get it, (B, channels, h, w), when they are called.
    """

    name: str
    channels: int
    share: int
    watched: tuple[tuple[nn.Module, Look], ...]

    def fits(self, exponents: Tensor) -> bool:
        """Whether channels that share an exponent do."""
        groups = exponents.view(-1, self.share)
        return bool((groups == groups[:, :1]).all())


def _out(module: nn.Module, args: tuple[Any, ...], out: Any) -> Tensor:
    tensor: Tensor = out
    return tensor


def _in(module: nn.Module, args: tuple[Any, ...], out: Any) -> Tensor:
    tensor: Tensor = args[0]
    return tensor


def _part(of: Look, begin: int, end: int, factor: float = 1.0) -> Look:
    def look(module: nn.Module, args: tuple[Any, ...], out: Any) -> Tensor:
        return of(module, args, out)[:, begin:end] * factor

    return look


def _block(name: str, block: ResidualBlock) -> list[Site]:
    channels = block.reduce.out_channels
    spatial = block.spatial.conv if isinstance(block.spatial, PartialConv) else block.spatial
    assert isinstance(spatial, nn.Conv2d)
    return [
        Site(f"{name}.spatial", spatial.out_channels, 1, ((spatial, _out),)),
        Site(f"{name}.expand", block.expand.out_channels, 1, ((block.expand, _out),)),
        Site(name, channels, 1, ((block, _out),)),
    ]


def sites(model: HPCM) -> list[Site]:
    """Of a model, in a fixed order."""
    context, variant = model.context, model.variant
    state, M = 2 * variant.M, variant.M
    found = [Site("z_hat", variant.N, 1, ((model.h_s, _in),))]
    for name, layer in model.h_s.named_children():
        if isinstance(layer, ResidualBlock):
            found += _block(f"h_s.{name}", layer)
        else:
            assert isinstance(layer, nn.ConvTranspose2d)
            found.append(Site(f"h_s.{name}", layer.out_channels, 1, ((layer, _out),)))
    adaptors = tuple(context.adaptors)
    keys = [(cell.key_value, _in) for cell in context.attention]
    of_state = [(adaptor, _part(_in, 0, state)) for adaptor in adaptors]
    found += [
        Site("context.state", state, 1, (*of_state, *keys)),  # type: ignore[arg-type]
        Site("context.y_hat", M, 1, tuple((a, _part(_in, state, state + M)) for a in adaptors)),
        Site("context.psi", state, 1, ((context.coarse, _out), (context.fine, _out))),
    ]
    for i, layer in enumerate(context.finer):
        found.append(Site(f"context.finer.{i}.input", state, 1, ((layer, _in),)))
    for name in ("coarse", "fine"):
        net = getattr(context, name)
        found.append(Site(f"context.{name}.input", state + M, 1, ((net, _in),)))
        found.append(Site(f"context.{name}.scaled", state + M, 1, ((net.after, _in),)))
        for part in ("before", "after"):
            for number, layer in getattr(net, part).named_children():
                if isinstance(layer, ResidualBlock):
                    found += _block(f"context.{name}.{part}.{number}", layer)
    for i, cell in enumerate(context.attention):
        found += _attention(f"context.attention.{i}", cell, state)
    return found


def _attention(name: str, cell: Any, state: int) -> list[Site]:
    width = state // cell.num_heads
    query, key = cell.query_out, cell.key_value
    return [
        Site(f"{name}.query", state, width, ((query, _part(_out, 0, state, width**-0.5)),)),
        Site(f"{name}.out", state, 1, ((query, _part(_out, state, 2 * state)),)),
        Site(f"{name}.key", state, width, ((key, _part(_out, 0, state)),)),
        Site(f"{name}.value", state, 1, ((key, _part(_out, state, 2 * state)),)),
    ]


@contextmanager
def watching(model: HPCM) -> Iterator[Mapping[str, Tensor]]:
    """The largest magnitudes of each site's channels while the model is used, float64."""
    largest: dict[str, Tensor] = {}
    handles = []

    def hook(name: str, look: Look) -> Callable[..., None]:
        def see(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            seen = look(module, args, out).detach().abs().amax(dim=(0, 2, 3)).double().cpu()
            before = largest.get(name)
            largest[name] = seen if before is None else torch.maximum(before, seen)

        return see

    try:
        for site in sites(model):
            for module, look in site.watched:
                handles.append(module.register_forward_hook(hook(site.name, look)))
        yield largest
    finally:
        for handle in handles:
            handle.remove()
