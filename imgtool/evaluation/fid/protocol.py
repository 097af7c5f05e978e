"""One short name for everything that has to be equal before two FIDs are compared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from imgtool.evaluation.fid.cache import MEASURE

_DIGITS = 8


def protocol_name(
    settings: Mapping[str, Any],
    *,
    split: str,
    crop: str,
    image_size: int | None,
    n: int | None,
    real: Sequence[str],
    **more: Any,
) -> str:
    """Such as `test-whole-128-clean-n5000-3fa2c1d0`; equal names compare.

    Args:
        settings: what features were measured with.
        split: the part of the data; `folder` of folders.
        crop: `whole`: all of an image, its sides in proportion; `squeezed`: all of it, a square.
        image_size: None where images keep their sizes.
        n: images of each side.
        real: fingerprints of the sets of real images.
        more: what else is to be equal, such as the attribute.
    """
    measure = {key: settings.get(key) for key in MEASURE}
    text = json.dumps([measure, split, crop, image_size, n, list(real), more], sort_keys=True)
    digest = hashlib.blake2b(text.encode()).hexdigest()[:_DIGITS]
    words = [split, crop, image_size or "native", settings.get("resize") or "unknown"]
    return "-".join(map(str, [*words, f"n{n}" if n else "nx", digest]))
