"""Spectra of a data set of maps of any sizes: one pass, bounded memory, errors by the jackknife.

Sums are kept for groups of scenes, at most MAX_GROUPS. Modes fall into the cells of a grid of
frequencies, at most MAX_CELLS a side: maps up to 32 x 32 of one size have a cell for every mode.
The memory is at most that of MAX_GROUPS such maps, three times over.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from imgtool.nn.spectra import BLOCK, NUM_RINGS, blocks, dct, dct_of_noise, radius, ring_of

MAX_GROUPS = 64
MAX_CELLS = 32
CONSTANT = 1e-12  # of the mean square: a channel that varies by less is constant
_NOTHING = 1e-10  # of the mean power: lower logarithms are those of rounding


class Groups:
    """Numbers scenes in the order of their appearance, and lays those beyond MAX_GROUPS together."""

    def __init__(self) -> None:
        self._numbers: dict[Hashable, int] = {}

    def __len__(self) -> int:
        return min(len(self._numbers), MAX_GROUPS)

    def of(self, scenes: Sequence[Hashable]) -> Tensor:
        """The group of each, int64."""
        known = self._numbers
        return torch.tensor([known.setdefault(s, len(known)) % MAX_GROUPS for s in scenes])


class Sums(NamedTuple):
    """What is added up; with a group's dimension in front, or without it.

    Attributes:
        power, noise: of the cells, of the maps and of what is sampled around them, (C, K).
        modes: values behind them, (K,). Frequency 0 is not among them.
        level, level_noise: power of frequency 0, (C,).
        first, square: of all elements, (C,).
        positions, images: counts, ().
        profile, profile_sampled: |D| of blocks of the maps and of samples, (C, BLOCK * BLOCK).
        blocks: how many, ().
    """

    power: Tensor
    noise: Tensor
    modes: Tensor
    level: Tensor
    level_noise: Tensor
    first: Tensor
    square: Tensor
    positions: Tensor
    images: Tensor
    profile: Tensor
    profile_sampled: Tensor
    blocks: Tensor


class _Levels(NamedTuple):
    """Coefficients 0 of an image's blocks and their noise, (C, n), kept until the mean is known."""

    group: int
    value: Tensor
    noise: Tensor


class SpectralSums:
    """Adds maps up.

    Attributes:
        num_channels, cells: of the first map.
    """

    def __init__(self) -> None:
        self.num_channels = 0
        self.cells = (0, 0)
        self._sums: Sums | None = None
        self._levels: list[_Levels] = []
        self._radius = torch.zeros(0)

    def add(self, z: Tensor, noise: Tensor | None, groups: Tensor) -> None:
        """Add maps (B, C, h, w), each to the sums of its group.

        Args:
            noise: variance of independent noise in samples, of z's shape; None is none.
        """
        if self._sums is None:
            self._begin(z)
        sums = self._sums
        assert sums is not None
        height, width = z.shape[-2:]
        cell, radii = self._cells_of(height, width)
        num_modes = torch.bincount(cell, minlength=sums.modes.shape[-1]).double()
        self._radius.index_add_(0, cell, radii * len(z))
        coefficients = dct(z)
        power = coefficients.square().flatten(2).double().cpu()
        spread = torch.zeros_like(power)
        if noise is not None:
            spread = dct_of_noise(noise).flatten(2).double().cpu()
        for table, level, values in (
            (sums.power, sums.level, power),
            (sums.noise, sums.level_noise, spread),
        ):
            of_cells = torch.zeros(*values.shape[:2], table.shape[-1], dtype=torch.float64)
            of_cells.index_add_(2, cell, values[..., 1:])
            table.index_add_(0, groups, of_cells)
            level.index_add_(0, groups, values[..., 0])
        ones = torch.ones(len(z), dtype=torch.float64)
        sums.modes.index_add_(0, groups, num_modes.expand(len(z), -1))
        sums.first.index_add_(0, groups, coefficients[..., 0, 0].double().cpu() * _root(z))
        sums.square.index_add_(0, groups, power.sum(2))
        sums.positions.index_add_(0, groups, ones * height * width)
        sums.images.index_add_(0, groups, ones)
        if min(height, width) >= BLOCK:
            self._add_blocks(sums, z, noise, groups)

    def _begin(self, z: Tensor) -> None:
        _, channels, height, width = z.shape
        self.num_channels = channels
        self.cells = min(height, MAX_CELLS), min(width, MAX_CELLS)
        num_cells = self.cells[0] * self.cells[1]

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(MAX_GROUPS, *shape, dtype=torch.float64)

        self._radius = zeros(num_cells)[0]
        of_cells, of_blocks = (channels, num_cells), (channels, BLOCK * BLOCK)
        self._sums = Sums(
            power=zeros(*of_cells), noise=zeros(*of_cells), modes=zeros(num_cells),
            level=zeros(channels), level_noise=zeros(channels), first=zeros(channels),
            square=zeros(channels), positions=zeros(), images=zeros(), profile=zeros(*of_blocks),
            profile_sampled=zeros(*of_blocks), blocks=zeros(),
        )  # fmt: skip

    def _cells_of(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """The cell and the radius of every mode but the first."""
        down = torch.arange(height) * self.cells[0] // height
        across = torch.arange(width) * self.cells[1] // width
        cell = (down[:, None] * self.cells[1] + across).flatten()[1:]
        return cell, radius(height, width).flatten()[1:]

    def _add_blocks(self, sums: Sums, z: Tensor, noise: Tensor | None, groups: Tensor) -> None:
        d = dct(blocks(z)).flatten(3).double().cpu()  # (B, C, n, BLOCK^2)
        spread = torch.zeros_like(d)
        if noise is not None:
            spread = dct_of_noise(blocks(noise)).flatten(3).double().cpu()
        sums.profile.index_add_(0, groups, d.abs().sum(2))
        sums.profile_sampled.index_add_(0, groups, _folded(d, spread).sum(2))
        sums.blocks.index_add_(0, groups, torch.full((len(z),), float(d.shape[2])).double())
        for row, group in enumerate(groups.tolist()):
            self._levels.append(_Levels(group, d[row, ..., 0], spread[row, ..., 0]))

    def by_group(self) -> tuple[Sums, Tensor]:
        """The sums of each group, and the mean radius of each cell (0 of one without modes).

        Raises:
            ValueError: nothing was added.
        """
        sums = self._sums
        if sums is None:
            raise ValueError("no map was added")
        mean = (sums.first.sum(0) / sums.positions.sum())[:, None] * BLOCK
        sums.profile[..., 0] = sums.profile_sampled[..., 0] = 0
        for of_image in self._levels:
            moved = of_image.value - mean
            sums.profile[of_image.group, :, 0] += moved.abs().sum(1)
            sums.profile_sampled[of_image.group, :, 0] += _folded(moved, of_image.noise).sum(1)
        return sums, self._radius / sums.modes.sum(0).clamp(min=1)


def _root(z: Tensor) -> float:
    return math.sqrt(z.shape[-2] * z.shape[-1])


def _folded(mean: Tensor, variance: Tensor) -> Tensor:
    """E|x| of normal x."""
    scale = variance.sqrt()
    ratio = mean / scale.clamp(min=1e-150)
    tail = math.sqrt(2 / math.pi) * scale * torch.exp(-0.5 * ratio.square())
    return tail + mean * torch.erf(ratio / math.sqrt(2))


class Spectrum(NamedTuple):
    """Power a mode of maps of mean 0 and deviation 1 a channel; NaN for a channel that is constant.

    Attributes:
        power: (C, K).
        level: of frequency 0, (C,).
        modes: values behind each, (K,); images: behind `level`.
        radii: (K,).
        mean, variance: what was standardised by, (C,).
        profile: mean |D| of blocks, (C, BLOCK^2), of maps as they were; NaN without blocks.
    """

    power: Tensor
    level: Tensor
    modes: Tensor
    images: Tensor
    radii: Tensor
    mean: Tensor
    variance: Tensor
    profile: Tensor


def spectrum(sums: Sums, radii: Tensor, *, sampled: bool = False) -> Spectrum:
    """The standardised spectrum of sums over some groups.

    Args:
        sampled: of samples instead of the maps; exact, nothing is drawn.
    """
    mean = sums.first / sums.positions
    power, level, square = sums.power, sums.level - mean.square() * sums.positions, sums.square
    if sampled:
        power, level = power + sums.noise, level + sums.level_noise
        square = square + sums.noise.sum(1) + sums.level_noise
    square = square / sums.positions
    variance = square - mean.square()
    variance = torch.where(variance > CONSTANT * square, variance, math.nan)
    return Spectrum(
        power=power / sums.modes.clamp(min=1) / variance[:, None],
        level=level.clamp(min=0) / sums.images / variance,
        modes=sums.modes,
        images=sums.images,
        radii=radii,
        mean=mean,
        variance=variance,
        profile=(sums.profile_sampled if sampled else sums.profile) / sums.blocks,
    )


def of_rings(found: Spectrum, power: Tensor) -> Tensor:
    """Mean power a mode of each ring; (..., K) to (..., NUM_RINGS), NaN where a ring has none."""
    ring = ring_of(found.radii)
    sums = torch.zeros(*power.shape[:-1], NUM_RINGS, dtype=torch.float64)
    sums.index_add_(-1, ring, power * found.modes)
    counts = torch.zeros(NUM_RINGS, dtype=torch.float64).index_add_(0, ring, found.modes)
    return sums / counts  # 0 / 0 is NaN


def slope(found: Spectrum, power: Tensor) -> Tensor:
    """Of log power on log frequency, up to the Nyquist frequency; (..., K) to (...).

    Least squares over the rings' mean logarithms, each ring counting once: of power f^-a it is -a
    exactly. NaN with fewer than three rings.
    """
    inside = (found.modes > 0) & (found.radii <= 1)
    modes, radii, power = found.modes[inside], found.radii[inside], power[..., inside]
    lowest = _NOTHING * (power * modes).sum(-1, keepdim=True) / modes.sum()
    ring = ring_of(radii)
    counts = torch.zeros(NUM_RINGS, dtype=torch.float64).index_add_(0, ring, modes)
    keep = counts > 0
    if keep.sum() < 3:
        return torch.full(power.shape[:-1], math.nan, dtype=torch.float64)

    def mean(values: Tensor) -> Tensor:
        sums = torch.zeros(*values.shape[:-1], NUM_RINGS, dtype=torch.float64)
        return (sums.index_add_(-1, ring, values * modes) / counts)[..., keep]

    x, y = mean(radii.log()), mean(torch.maximum(power, lowest).log())
    x = x - x.mean()
    return (x * y).sum(-1) / x.square().sum()


def share_above(found: Spectrum, power: Tensor, cut: float) -> Tensor:
    """Power beyond the radius `cut` over all but that of frequency 0; (..., K) to (...)."""
    weighed = power * found.modes
    return (weighed * (found.radii > cut)).sum(-1) / weighed.sum(-1)


def divergence(target: Tensor, own: Tensor) -> Tensor:
    """KL(target || own), nats, of two radial spectra (NUM_RINGS,).

    Each is log(1 + power) as a share of its sum (Spectrum Matching, arXiv 2603.14645).
    """
    keep = ~(target.isnan() | own.isnan())
    p, q = (torch.log1p(power[keep]).clamp(min=1e-12) for power in (target, own))
    p, q = p / p.sum(), q / q.sum()
    return (p * (p / q).log()).sum() if keep.any() else torch.tensor(math.nan).double()


def weighed(by_group: Sums, weights: Tensor) -> Sums:
    """The sums of all groups together, each counted `weights` (MAX_GROUPS,) times."""
    return Sums(*(torch.tensordot(weights, part, 1) for part in by_group))


def jackknife(
    measure: Callable[[Tensor], Mapping[str, Tensor]], num_groups: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Measures and their standard errors: each group is left out once (Shao & Wu 1989).

    Args:
        measure: measures by name, of the groups' weights (MAX_GROUPS,).
        num_groups: the first so many have images.

    Returns:
        Values, and errors of their shapes; NaN where one is undefined.
    """
    weights = torch.zeros(MAX_GROUPS, dtype=torch.float64)
    weights[:num_groups] = 1
    values = dict(measure(weights))
    others: dict[str, list[Tensor]] = {name: [] for name in values}
    for group in range(num_groups if num_groups > 1 else 0):
        weights[group] = 0
        for name, value in measure(weights).items():
            others[name].append(value)
        weights[group] = 1
    errors = {}
    for name, value in values.items():
        if not others[name]:
            errors[name] = torch.full_like(value, math.nan)
            continue
        left = torch.stack(others[name])
        errors[name] = ((left - left.mean(0)).square().sum(0) * (1 - 1 / num_groups)).sqrt()
    return values, errors
