"""Images for FID: which are drawn, and how they reach a network."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from imgtool.data.base import ImageDataset
from imgtool.data.loader import eval_loader
from imgtool.data.pyramid import unpack
from imgtool.data.sampler import random_stream
from imgtool.data.views import View
from imgtool.errors import UsageError
from imgtool.evaluation.fid.extractor import Extractor, Gathering
from imgtool.evaluation.fid.features import OURS
from imgtool.evaluation.fid.options import MOST
from imgtool.evaluation.fid.statistics import Features

Positions = NDArray[np.int64]
Tell = Callable[[int, int], None]
Note = Callable[[str], None]
MAX_PIXELS = 2**24  # of a batch before its images are made small: 64 of 512x512


@dataclass(frozen=True)
class Drawn:
    """Images of one side, in an order drawn at random.

    Attributes:
        source: the data set.
        positions: (n,) in it.
        pyramid: the sizes that its images hold, one of which is `shown`; empty of plain images.
        decoder: who makes pixels of its files: `imgtool` or `pillow`.
    """

    source: ImageDataset
    positions: Positions
    pyramid: tuple[int, ...] = ()
    shown: int | None = None
    decoder: str = OURS

    def fingerprint(self) -> str:
        """Hash of names and contents of the images, in their order."""
        digest = hashlib.blake2b(digest_size=16)
        for index in self.positions.tolist():
            line = f"{self.source.name(index)}\0{self.source.content_hash(index)}\n"
            digest.update(line.encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def by_size(self) -> Positions:
        """Positions in `positions`, images of one size together."""
        sizes = np.array([self.source.size(i) for i in self.positions.tolist()])
        return np.lexsort((sizes[:, 1], sizes[:, 0]))


def draw(candidates: Positions, n: int, seed: int) -> Positions:
    """n of the positions, in random order: the same for the same seed."""
    order = np.argsort(random_stream(seed, 0, len(candidates)), kind="stable")
    return candidates[order[:n]]


def choose_n(n: int | None, available: dict[str, int], most: int | None = MOST) -> int:
    """How many images of each side.

    Args:
        n: as asked for; None takes `most`, or what there is.
        most: None for all that every side has.
        available: images by side.

    Raises:
        UsageError: a side has fewer.
    """
    least = min(available.values())
    sizes = "there are " + " and ".join(f"{count} {side}" for side, count in available.items())
    if least < 2:
        raise UsageError(f"too few images: {sizes}", hint="a distance needs 2 of each side")
    if n is None:
        return least if most is None else min(most, least)
    if n > least:
        raise UsageError(f"--n {n}: {sizes}", hint=f"--n {least} takes all that both sides have")
    return n


def partners(one: ImageDataset, other: ImageDataset) -> Positions | None:
    """For each image of `one` its namesake's position in `other`; None unless all have one."""
    place = {_stem(other.name(i)): i for i in range(len(other))}
    found = [place.get(_stem(one.name(i)), -1) for i in range(len(one))]
    known = len(place) == len(other) and len(set(found)) == len(found) and -1 not in found
    return np.array(found, np.int64) if known else None


def _stem(name: str) -> str:
    return os.path.splitext(name)[0]


def loader(
    view: View, *, batch_size: int, num_workers: int, note: Note
) -> Iterator[dict[str, Any]]:
    """Batches of whole images, in order; fewer at a time where they are large."""
    batches = eval_loader(
        view, batch_size=batch_size, max_pixels=MAX_PIXELS, num_workers=num_workers, say=note
    )
    return iter(batches)


def real_features(
    drawn: Drawn,
    extractor: Extractor,
    *,
    batch_size: int,
    num_workers: int,
    tell: Tell,
    note: Note,
) -> Features:
    """Features of images, (n, d) float32 in the order in which they were drawn."""
    order = drawn.by_size()
    found = Gathering(extractor, len(order))
    done = 0
    view = View(drawn.source, drawn.positions[order].tolist())
    batches = loader(view, batch_size=batch_size, num_workers=num_workers, note=note)
    for batch in batches:
        images: torch.Tensor = batch["image"]
        if drawn.pyramid:
            assert drawn.shown is not None
            images = unpack(images, drawn.pyramid)[drawn.shown]
        found.add(images, order[done : done + len(images)].tolist())
        done += len(images)
        tell(done, len(order))
    return found.finish()
