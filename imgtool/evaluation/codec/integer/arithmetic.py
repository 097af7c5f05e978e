"""Integers in float64, and what may be done with them so that the result is the same everywhere.

A tensor of integers n stands for the values n / 2^e, with an exponent e for each channel. Sums of
products are taken by matrix products in float64: as long as every partial sum is a multiple of one
power of two and below 2^53 of it, each of them is exact, and so neither the order, nor threads,
layout, fused multiply-adds, library or device can matter. `Bound` holds that. Convolutions are laid
out as products: a convolution library may take Winograd's or Fourier's way. Multiplication by a
power of two is exact; rounding (ties to even), comparison and one division are IEEE 754's.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from imgtool.errors import CheckpointError

# Two signed limbs of base 256 hold this, +-(127 * 256 + 127); not all of int16.
ACTIVATION_MAX = 32639
# Two limbs of base 128 within [-64, 63] hold this: pairs of products with int8 stay in int16.
WEIGHT_MAX = 8127
_WEIGHT_BITS = 13
_FINEST = 24  # bits below an output's unit that weights may reach
EXACT_BITS = 53
SLOPE_BITS = 10  # of 655
SLOPE = 655 / (1 << 16)  # LeakyReLU's 0.01
MAX_EXPONENT = 24  # of activations, either sign


def power(exponents: Tensor) -> Tensor:
    """2^exponents, float64, exactly."""
    return torch.from_numpy(np.ldexp(1.0, exponents.cpu().numpy().astype(np.int32)))


def settle(x: Tensor) -> Tensor:
    """Round and saturate in place."""
    return x.round_().clamp_(-ACTIVATION_MAX, ACTIVATION_MAX)


def enter(x: Tensor, scale: Tensor) -> Tensor:
    """Values (B, C, h, w) of any layout to integers (B, h, w, C), contiguous.

    Args:
        scale: `power` of the channels' exponents.
    """
    return settle((x.permute(0, 2, 3, 1) * scale).contiguous())


def leave(x: Tensor, unit: Tensor) -> Tensor:
    """Integers (B, h, w, C) to their values (B, C, h, w), which are exact in float64.

    Args:
        unit: `power` of the channels' negated exponents.
    """
    return (x * unit).permute(0, 3, 1, 2)


def whole_weights(weight: Tensor, bias: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A layer's weights as integers of 14 bits with an exponent g for each output.

    g is the largest one with which a row stays within +-8127, but at most the output's exponent
    and 24. What is given back, times 2^-g, is the nearest to the weights.

    Args:
        weight: (outputs, inputs) float64, of integer inputs: w / 2^e of the input's channel.
        bias: (outputs,) float64.
        target: exponents of the outputs.

    Returns:
        Integer weights and biases, float64, and g, int64.
    """
    largest = weight.abs().amax(dim=1).numpy()
    mantissa, exponent = np.frexp(largest)
    g = _WEIGHT_BITS - exponent.astype(np.int64)
    g -= mantissa * (1 << _WEIGHT_BITS) > WEIGHT_MAX
    finest = target.numpy().astype(np.int64) + _FINEST
    g = torch.from_numpy(np.where(largest > 0, np.minimum(g, finest), finest))
    scale = power(g)
    return (weight * scale[:, None]).round(), (bias * scale).round(), g


class Bound:
    """How large sums can become, in units of which all terms are multiples.

    Attributes:
        bits: of the largest sum.
    """

    def __init__(self) -> None:
        self.bits = 0.0

    def see(self, largest: Tensor, exponents: Tensor, *, spare_bits: int = 0) -> None:
        """Take note of sums.

        Args:
            largest: of all partial sums' magnitudes, (n,).
            exponents: (n,) all terms are multiples of 2^exponents.
            spare_bits: that the sum is multiplied by afterwards.

        Raises:
            CheckpointError: a sum need not be exact.
        """
        worst = float((largest * power(-exponents)).max())
        bits = math.log2(max(worst, 1.0)) + spare_bits
        self.bits = max(self.bits, bits)
        if not bits < EXACT_BITS:
            raise CheckpointError(
                f"a sum of its entropy path can take {bits:.1f} bits: float64 holds {EXACT_BITS}",
                hint="take a checkpoint that is trained better, or export without --portable",
            )
