"""The success criteria of the study: told of every candidate, and a gate where the rule says so."""

from __future__ import annotations

from collections.abc import Mapping

MAX_MSE = 0.01  # on [0, 1]
MIN_PSNR = 30.0  # dB
MAX_STABILITY = 0.1  # standard deviation of the last relative changes
MAX_LATENT_DIMS = 16384  # 16 x 32 x 32, 2 % of the values of a 512 x 512 image
TOLD = {
    "mse": f"val_mse < {MAX_MSE:g}",
    "psnr": f"val_psnr > {MIN_PSNR:g} dB",
    "stability": "of a calm end without spikes",
    "size": f"latent_dims <= {MAX_LATENT_DIMS:,}",
}


def check(metrics: Mapping[str, float]) -> dict[str, bool | None]:
    """Which criteria are met; None where the metric is not known.

    Criteria: `mse` val_mse < 0.01; `psnr` val_psnr > 30 dB; `stability` at most 0.1 and no
    spikes; `size` at most 16,384 latent dims.
    """
    mse, psnr = metrics.get("val_mse"), metrics.get("val_psnr")
    dims, stable = metrics.get("latent_dims"), is_stable(metrics)
    return {
        "mse": None if mse is None else mse < MAX_MSE,
        "psnr": None if psnr is None else psnr > MIN_PSNR,
        "stability": stable,
        "size": None if dims is None else dims <= MAX_LATENT_DIMS,
    }


def is_stable(metrics: Mapping[str, float]) -> bool | None:
    """Whether the curve ended calm and had no spike; None when it is too short to tell."""
    stability, spikes = metrics.get("stability"), metrics.get("num_spikes", 0.0)
    if spikes > 0:
        return False
    return None if stability is None else stability <= MAX_STABILITY
