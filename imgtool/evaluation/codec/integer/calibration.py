"""The exponents of a model's integers, from what the float model makes of some images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from imgtool.errors import DataError
from imgtool.evaluation.codec.integer.arithmetic import ACTIVATION_MAX, MAX_EXPONENT
from imgtool.evaluation.codec.integer.sites import Site, sites, watching
from imgtool.models.hpcm.network import HPCM

MARGIN = 2.0  # how much larger than seen a value may become before it saturates
FINER_BITS = 6  # that a quiet channel may have beyond its tensor's loudest


@torch.no_grad()
def calibrate(model: HPCM, images: Iterable[Tensor]) -> dict[str, Tensor]:
    """Exponents of all sites.

    Args:
        model: in eval mode.
        images: uint8 (3, H, W).

    Raises:
        DataError: there is no image, or the model makes of one what is not finite.
    """
    num = 0
    with watching(model) as largest:
        for image in images:
            model(image[None].float() / 255)
            num += 1
    if not num:
        raise DataError("there are no images to calibrate with", hint="--calibrate DIR")
    return exponents_of(model, largest)


def exponents_of(model: HPCM, largest: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The finest exponents with which values twice as large as those seen do not saturate."""
    found = {}
    for site in sites(model):
        seen = largest[site.name]
        if not bool(torch.isfinite(seen).all()):
            raise DataError(
                f"the model makes values that are not finite ({site.name})",
                hint="take a checkpoint that is trained better, or other images",
            )
        found[site.name] = _exponents(site, seen)
    return found


def _exponents(site: Site, seen: Tensor) -> Tensor:
    loudest = seen.view(-1, site.share).amax(dim=1, keepdim=True).expand(-1, site.share).flatten()
    own = _exponent(loudest.numpy())
    of_all = _exponent(np.array([max(float(seen.max()), 1e-30)]))
    return torch.from_numpy(
        np.clip(np.minimum(own, of_all + FINER_BITS), -MAX_EXPONENT, MAX_EXPONENT)
    )


def _exponent(largest: np.ndarray) -> np.ndarray:
    """The largest e with which MARGIN x largest x 2^e is at most ACTIVATION_MAX."""
    room = ACTIVATION_MAX / np.maximum(MARGIN * largest, 1e-30)
    return np.frexp(room)[1].astype(np.int64) - 1
