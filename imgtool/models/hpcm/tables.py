"""Integer probabilities of everything that a stream codes.

A table gives the symbols -c..c of a rounded residual and one escape symbol, for what lies
beyond, whole numbers that sum to 2^16, none of them zero. There is one for each of the 60 scales
(a latent is coded with the smallest that is not below its own) and one for each channel of z.
They are computed once, in float64, and are part of an exported model: floating point differs
between machines, and an encoder and a decoder that disagree about one count lose the picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import gammainc, gammaincc
from torch import Tensor

from imgtool.errors import CheckpointError
from imgtool.models.hpcm.entropy import BETA, SCALE_TABLE
from imgtool.models.hpcm.network import HPCM

BITS = 16
TOTAL = 1 << BITS
REACH = 5.4269  # all but 1e-6 of the mass lies within so many scales of the mean
MAX_SCALE = 1024.0  # of a channel of z; its table has 11 thousand symbols

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Tables:
    """Tables by number: those of the scales first, then those of z's channels.

    Attributes:
        rows: counts of the symbols -c..c and of the escape symbol; each sums to 2^16.
        num_scales: rows that are of scales; the others are of channels.
        half_widths: c of each row, int32.
    """

    rows: tuple[Counts, ...]
    num_scales: int
    half_widths: NDArray[np.int32] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        halves = np.array([(len(row) - 2) // 2 for row in self.rows], np.int32)
        object.__setattr__(self, "half_widths", halves)

    @classmethod
    def of(cls, model: HPCM) -> Tables:
        """The tables of a model, on whatever device it is.

        Raises:
            CheckpointError: the scales of z are not finite.
        """
        scales = model.scales_hyper.detach().double().cpu().flatten()
        if not bool(torch.isfinite(scales).all()):
            raise CheckpointError(
                "the scales of its hyper latents are not finite", hint="take an earlier checkpoint"
            )
        lowest = float(SCALE_TABLE[0])
        of_y = [float(scale) for scale in SCALE_TABLE]
        of_z = scales.clamp(lowest, MAX_SCALE).tolist()
        return cls(tuple(counts(scale) for scale in [*of_y, *of_z]), len(of_y))

    def tensors(self) -> dict[str, Tensor]:
        """As they are stored: the lengths of the rows, and all counts one behind another."""
        return {
            "lengths": torch.tensor([len(row) for row in self.rows], dtype=torch.int32),
            "counts": torch.from_numpy(np.concatenate(self.rows).astype(np.int32)),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], *, num_channels: int) -> Tables:
        """The inverse of `tensors`, for a model with `num_channels` channels of z.

        Raises:
            CheckpointError: they are no such tables.
        """
        try:
            lengths, flat = (_whole_numbers(tensors[name]) for name in ("lengths", "counts"))
        except KeyError as error:
            raise _damaged(f"{error.args[0]} are missing") from error
        num_rows = len(SCALE_TABLE) + num_channels
        if len(lengths) != num_rows:
            raise _damaged(f"there are {len(lengths)}, the model needs {num_rows}")
        if lengths.min() < 4 or (lengths % 2).any() or lengths.sum() != len(flat):
            raise _damaged("their lengths are wrong")
        rows = tuple(np.split(flat, np.cumsum(lengths)[:-1]))
        if flat.min() < 1 or any(int(row.sum()) != TOTAL for row in rows):
            raise _damaged(f"their counts are not positive or do not sum to {TOTAL}")
        return cls(rows, len(SCALE_TABLE))


def counts(scale: float) -> Counts:
    """Counts of -c..c and of the escape symbol at a scale; c = ceil(5.4269 scale)."""
    half = int(np.ceil(scale * REACH))
    beyond = gammaincc(1 / BETA, ((np.arange(half + 1) + 0.5) / scale) ** BETA)  # both sides
    side = (beyond[:-1] - beyond[1:]) / 2
    middle = gammainc(1 / BETA, (0.5 / scale) ** BETA)
    return to_counts(np.concatenate([side[::-1], [middle], side, beyond[-1:]]))


def to_counts(probabilities: Sequence[float] | NDArray[np.float64]) -> Counts:
    """Whole numbers of sum 2^16, at least 1 each, as near to proportional as that allows.

    Args:
        probabilities: non-negative, of sum 1, at most 2^15 of them.
    """
    wanted = np.asarray(probabilities, np.float64)

    def rounded(total: float) -> Counts:
        return np.maximum(1, np.floor(wanted * total + 0.5)).astype(np.int64)

    # What the rare symbols get too much is taken from all others alike, by a smaller total.
    low, high = 0.0, 2.0 * TOTAL
    for _ in range(64):
        middle = (low + high) / 2
        low, high = (middle, high) if rounded(middle).sum() <= TOTAL else (low, middle)
    found = rounded(low)
    nearest = np.argsort(found - wanted * low, kind="stable")
    found[nearest[: TOTAL - found.sum()]] += 1
    return found


def _whole_numbers(tensor: Tensor) -> Counts:
    if tensor.dtype != torch.int32 or tensor.ndim != 1:
        raise _damaged(f"they are {tensor.dtype} of {tensor.ndim} dimensions")
    return tensor.numpy().astype(np.int64)


def _damaged(what: str) -> CheckpointError:
    return CheckpointError(
        f"its probability tables cannot be used: {what}",
        hint="make it anew: imgtool export CKPT OUT.safetensors",
    )
