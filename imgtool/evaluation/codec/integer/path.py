"""The entropy path of one model in integers, from z_hat to the scales and means of every step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from imgtool.errors import CheckpointError
from imgtool.evaluation.codec.integer.arithmetic import MAX_EXPONENT, Bound
from imgtool.evaluation.codec.integer.attention import IntegerAttention, exponentials
from imgtool.evaluation.codec.integer.layers import (
    Block,
    Enter,
    Exponents,
    Factor,
    Leave,
    Product,
    Up,
    pointwise,
)
from imgtool.evaluation.codec.integer.sites import sites
from imgtool.models.hpcm.context import Code, Context, ParameterNet
from imgtool.models.hpcm.entropy import SCALE_TABLE
from imgtool.models.hpcm.layers import ResidualBlock
from imgtool.models.hpcm.network import HPCM
from imgtool.nn.convolution import Pointwise

THRESHOLD_BITS = 24
MEAN_BITS = 16  # z's means are multiples of 2^-16
_TABLE, _THRESHOLDS = "exponentials", "thresholds"


@dataclass(frozen=True)
class Numbers:
    """What makes integers of a model: no more than this is stored beside its weights.

    Attributes:
        exponents: of each site's channels, int64; an integer n stands for n / 2^e.
        table: `exponentials`, int32.
        thresholds: of the scales' tables in units of 2^-24, int32: a scale takes the table whose
            number is that of the thresholds strictly below it.
    """

    exponents: Exponents
    table: Tensor
    thresholds: Tensor

    @classmethod
    def of(cls, exponents: Exponents) -> Numbers:
        """With tables that are made here and now."""
        entries = [int(scale * (1 << THRESHOLD_BITS)) for scale in SCALE_TABLE[:-1]]
        return cls(exponents, exponentials(), torch.tensor(entries, dtype=torch.int32))

    def tensors(self) -> dict[str, Tensor]:
        """As they are stored, all int32."""
        stored = {name: value.to(torch.int32) for name, value in self.exponents.items()}
        return {**stored, _TABLE: self.table, _THRESHOLDS: self.thresholds}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], model: HPCM) -> Numbers:
        """The inverse of `tensors`.

        Raises:
            CheckpointError: they are not of this model, or senseless.
        """
        wanted = sizes(model)
        if {name: tuple(value.shape) for name, value in tensors.items()} != wanted:
            raise _senseless("they are another network's")
        exponents = {s.name: tensors[s.name].long() for s in sites(model)}
        table, thresholds = tensors[_TABLE], tensors[_THRESHOLDS]
        if any(int(value.abs().max()) > MAX_EXPONENT for value in exponents.values()):
            raise _senseless("an exponent is beyond its bounds")
        if any(not site.fits(exponents[site.name]) for site in sites(model)):
            raise _senseless("channels of one head differ in their exponents")
        falls = bool((table[1:] <= table[:-1]).all()) and int(table[-1]) == 0
        if not falls or int(table[0]) != 1 << 16 or bool((thresholds[1:] < thresholds[:-1]).any()):
            raise _senseless("a table does not rise or fall as it should")
        return cls(exponents, table, thresholds)


def sizes(model: HPCM) -> dict[str, tuple[int, ...]]:
    """The shapes of a model's `Numbers.tensors`."""
    found: dict[str, tuple[int, ...]] = {site.name: (site.channels,) for site in sites(model)}
    return {**found, _TABLE: tuple(exponentials().shape), _THRESHOLDS: (len(SCALE_TABLE) - 1,)}


def _senseless(what: str) -> CheckpointError:
    return CheckpointError(
        f"the numbers of its integer path cannot be used: {what}",
        hint="make it anew: imgtool export CKPT OUT.safetensors --portable",
    )


class IntegerPath(nn.Module):
    """h_s and the context model, on values that are exact in float64.

    The coding steps are `Context`'s own: between its networks, tensors hold values, which are
    moved and never computed with, and each network here takes them as integers and gives values.

    Args:
        model: float, on the CPU.

    Attributes:
        bound: of all sums, which were seen to be exact.
    """

    dtype, is_exact = torch.float64, True
    means_hyper: Tensor
    thresholds: Tensor

    def __init__(self, model: HPCM, numbers: Numbers) -> None:
        super().__init__()
        self.bound = Bound()
        self.h_s = _hyper(model, numbers.exponents, self.bound)
        self.context = _context(model, numbers, self.bound)
        unit = 1 << MEAN_BITS
        means = (model.means_hyper.detach().double() * unit).round() / unit
        self.register_buffer("means_hyper", means)
        thresholds = numbers.thresholds.double() / (1 << THRESHOLD_BITS)
        self.register_buffer("thresholds", thresholds)

    def walk(
        self, z_hat: Tensor, code: Code, see: Callable[[Tensor], None] | None = None
    ) -> Tensor:
        """As `HPCM.walk`, with scales, means and y_hat in float64.

        Args:
            see: shown the hyperprior's scales and means.
        """
        hyper = self.h_s(z_hat)
        if see is not None:
            see(hyper)
        y_hat: Tensor = self.context(hyper, code)
        return y_hat

    def table_index(self, scales: Tensor) -> Tensor:
        """The number of each scale's table, 0..59."""
        return torch.bucketize(scales.contiguous(), self.thresholds, out_int32=True)


def _hyper(model: HPCM, exponents: Exponents, bound: Bound) -> nn.Sequential:
    at = exponents["z_hat"]
    layers: list[nn.Module] = [Enter(at)]
    for name, layer in model.h_s.named_children():
        site = f"h_s.{name}"
        if isinstance(layer, nn.ConvTranspose2d):
            layers.append(Up(layer, at, exponents[site], bound))
        else:
            assert isinstance(layer, ResidualBlock)
            layers.append(Block(site, layer, at, exponents, bound))
        at = exponents[site]
    return nn.Sequential(*layers, Leave(at))


class _Adaptor(nn.Sequential):
    """Values of context and y_hat to the integers that a parameter network begins with."""


class _Parameters(nn.Module):
    """`ParameterNet`: its input are an adaptor's integers, its output values."""

    def __init__(self, name: str, net: ParameterNet, exponents: Exponents, bound: Bound) -> None:
        super().__init__()
        at = exponents[f"{name}.input"]
        before: list[nn.Module] = []
        for number, block in net.before.named_children():
            assert isinstance(block, ResidualBlock)
            before.append(Block(f"{name}.before.{number}", block, at, exponents, bound))
            at = exponents[f"{name}.before.{number}"]
        self.end_of_before = at
        at = exponents[f"{name}.scaled"]
        after: list[nn.Module] = []
        for number, layer in net.after.named_children():
            if isinstance(layer, ResidualBlock):
                after.append(Block(f"{name}.after.{number}", layer, at, exponents, bound))
                at = exponents[f"{name}.after.{number}"]
            else:
                assert isinstance(layer, Pointwise)
                after.append(pointwise(layer, at, exponents["context.psi"], bound))
        self.before = nn.Sequential(*before)
        self.after = nn.Sequential(*after, Leave(exponents["context.psi"]))

    def forward(self, x: Tensor, factor: Factor) -> Tensor:
        psi: Tensor = self.after(factor(self.before(x)))
        return psi


def _context(model: HPCM, numbers: Numbers, bound: Bound) -> Context:
    """The model's `Context` with its networks in integers."""
    own, exponents = model.context, numbers.exponents
    with torch.device("meta"):  # nothing of it stays but the steps
        context: Any = Context(model.variant, legacy_s2_hyper=own.legacy_s2_hyper)
    nets = {
        name: _Parameters(f"context.{name}", getattr(own, name), exponents, bound)
        for name in ("coarse", "fine")
    }
    joined = torch.cat([exponents["context.state"], exponents["context.y_hat"]])
    adaptors, factors = [], []
    for step, adaptor, factor in zip(own.steps[1:], own.adaptors, own.factors, strict=True):
        name = "coarse" if step.scale < 3 else "fine"
        assert isinstance(adaptor, Pointwise)
        product = pointwise(adaptor, joined, exponents[f"context.{name}.input"], bound)
        adaptors.append(_Adaptor(Enter(joined), product))
        scaled = exponents[f"context.{name}.scaled"]
        factors.append(Factor(factor, nets[name].end_of_before, scaled, bound))
    context.adaptors, context.factors = nn.ModuleList(adaptors), nn.ModuleList(factors)
    context.coarse, context.fine = nets["coarse"], nets["fine"]
    context.finer = nn.ModuleList(
        _finer(f"context.finer.{i}", layer, exponents, bound) for i, layer in enumerate(own.finer)
    )
    cells: Any = own.attention
    context.attention = nn.ModuleList(
        IntegerAttention(f"context.attention.{i}", cell, exponents, numbers.table, bound)
        for i, cell in enumerate(cells)
    )
    found: Context = context
    return found


def _finer(name: str, layer: nn.Module, exponents: Exponents, bound: Bound) -> nn.Sequential:
    assert isinstance(layer, Pointwise)
    source, state = exponents[f"{name}.input"], exponents["context.state"]
    product: Product = pointwise(layer, source, state, bound)
    return nn.Sequential(Enter(source), product, Leave(state))
