"""FID between two folders, arrays or files of statistics."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from imgtool.data.base import ImageDataset
from imgtool.errors import UsageError
from imgtool.evaluation.fid.cache import MEASURE, Stored, refuse_unlike
from imgtool.evaluation.fid.images import Drawn, Positions, choose_n, draw, partners
from imgtool.evaluation.fid.measure import Meter, is_published
from imgtool.evaluation.fid.options import Listener, Options
from imgtool.evaluation.fid.protocol import protocol_name
from imgtool.evaluation.fid.sources import decoder_of, departures, open_source
from imgtool.evaluation.fid.statistics import Statistics
from imgtool.published import Weights

Sides = dict[str, ImageDataset | Stored]


def compare_folders(
    real: Path, fake: Path, options: Options, listener: Listener, weights: Weights | None
) -> dict[str, Any]:
    """One record; either may be a folder, an .npz of images or one of statistics.

    Args:
        weights: None where both are statistics.

    Raises:
        DataError: images or statistics cannot be read.
        UsageError: too few images, or statistics of another kind.
    """
    begin = time.monotonic()
    meter = Meter(options, listener, weights)
    paths = {"real": real, "fake": fake}
    sides: Sides = {side: open_source(path, options) for side, path in paths.items()}
    images = {side: found for side, found in sides.items() if not isinstance(found, Stored)}
    stored = {side: found for side, found in sides.items() if isinstance(found, Stored)}
    drawn = _drawn(images, stored, paths, options)
    found, about = {}, {}
    for side in sides:
        if side in stored:
            _refuse_unlike(side, stored, paths, meter, bool(images))
            found[side] = stored[side].statistics
            about[side] = {**(stored[side].settings or {}), "cached": True}
        else:
            found[side], about[side] = meter.statistics(
                drawn[side],
                keep=side == "real" or options.cache_fakes,
                side=side,
                image_size=options.image_size,
            )
    _refuse_other_width(paths, found)
    sizes = {side: statistics.n for side, statistics in found.items()}
    if sizes["real"] != sizes["fake"] and None not in sizes.values():
        listener.note(f"warning: {sizes['real']} real images and {sizes['fake']} fake ones")
    counted = [size for size in sizes.values() if size is not None]
    if counted:
        meter.warn_of_few(min(counted))
    facts = meter.facts() if images else _facts_of_files(stored)
    if any(one.settings is None for one in stored.values()):
        facts["comparable"] = False
    size = facts.pop("image_size", None) if not images else options.image_size
    comparison = meter.compare(found["real"], found["fake"])
    return {
        "path": fake,
        "real": real,
        "fake": fake,
        **comparison.numbers(kid=options.kid),
        "sides_in_error": comparison.sides_in_error,
        "num_images": sizes["fake"],
        "num_real_images": sizes["real"],
        "image_size": size,
        "protocol": protocol_name(
            {**facts, "decoder": about["real"].get("decoder")},
            split="folder",
            crop="whole" if size is None else "squeezed",
            image_size=size,
            n=sizes["fake"],
            real=[about["real"].get("data") or _fingerprint(found["real"])],
        ),
        **facts,
        "departures": [
            f"{side}: {text}"
            for side, source in images.items()
            for text in departures(paths[side], source, options)
        ],
        "sides": about,
        "elapsed_sec": time.monotonic() - begin,
    }


def _drawn(
    images: Mapping[str, ImageDataset],
    stored: Mapping[str, Stored],
    paths: Mapping[str, Path],
    options: Options,
) -> dict[str, Drawn]:
    """Images of each side that is measured now; namesakes on both sides are drawn together."""
    if not images:
        if options.n is not None:
            raise UsageError(
                "--n is for images, and both sides are statistics", hint="leave it out"
            )
        return {}
    counts = {side: len(source) for side, source in images.items()}
    n = options.n
    for one in stored.values():
        known = one.statistics.n
        if n is None and known is not None and known <= min(counts.values()):
            n = known  # FIDs are compared at equal n
    n = choose_n(n, counts)
    places: dict[str, Positions] = {
        side: draw(np.arange(count), n, options.seed) for side, count in counts.items()
    }
    if len(images) == 2:
        few, many = sorted(images, key=lambda side: counts[side])
        theirs = partners(images[few], images[many])
        if theirs is not None:
            places[many] = theirs[places[few]]
    return {
        side: Drawn(source, places[side], decoder=decoder_of(paths[side], options))
        for side, source in images.items()
    }


def _refuse_unlike(
    side: str,
    stored: Mapping[str, Stored],
    paths: Mapping[str, Path],
    meter: Meter,
    others_are_images: bool,
) -> None:
    wanted: Mapping[str, Any] | None = None
    if others_are_images:
        other = next(path for name, path in paths.items() if name != side)
        wanted = meter.settings(
            image_size=meter.options.image_size, decoder=decoder_of(other, meter.options)
        )
    elif side == "fake":
        wanted = stored["real"].settings
    if wanted is not None or stored[side].settings is None:
        refuse_unlike(paths[side], stored[side], wanted or {}, meter.listener.note)


def _refuse_other_width(paths: Mapping[str, Path], found: Mapping[str, Statistics]) -> None:
    widths = {side: len(statistics.mu) for side, statistics in found.items()}
    if len(set(widths.values())) > 1:
        text = " and ".join(f"{paths[side]} has {width}" for side, width in widths.items())
        raise UsageError(f"features differ in number: {text}", hint="measure both sides alike")


def _facts_of_files(stored: Mapping[str, Stored]) -> dict[str, Any]:
    """How two files say that they were measured; what neither says, or not both alike, is None."""
    told = [one.settings or {} for one in stored.values()]
    facts = {
        key: told[0].get(key) if told[0].get(key) == told[1].get(key) else None
        for key in (*MEASURE, "seed")
    }
    return {**facts, "comparable": all(is_published(one.settings) for one in stored.values())}


def _fingerprint(statistics: Statistics) -> str:
    digest = hashlib.blake2b(statistics.mu.tobytes(), digest_size=16)
    digest.update(statistics.sigma.tobytes())
    return digest.hexdigest()
