"""Two unpaired sets of faces, one with an attribute and one without: parts, order, batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from imgtool.config.schema import Data
from imgtool.data.base import ImageDataset, Sample
from imgtool.data.celeba import CelebA, FaceFolder
from imgtool.data.celeba_tables import PARTS
from imgtool.data.pyramid import pyramid_size
from imgtool.data.rows import Contents, pictured
from imgtool.data.sampler import Draw, permutation, random_stream, random_words
from imgtool.data.split import Split
from imgtool.data.views import View
from imgtool.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

_VAL_STREAM, _LIMIT_STREAM = 2, 4  # purposes of the split's random numbers; one more is set B's


class FacePart(View):
    """Some faces of a data set, with positions of those with and without the attribute.

    Attributes:
        positives, negatives: positions in this part, int64, in order.
    """

    num_sets = 2

    def __init__(self, source: CelebA, indices: Sequence[int]) -> None:
        super().__init__(source, indices)
        self._faces = source
        self._image_sizes = source.image_sizes
        labels = np.array([source.label(i) for i in indices], np.int64)
        self.positives = np.flatnonzero(labels == 1)
        self.negatives = np.flatnonzero(labels == 0)

    def of(self, indices: Sequence[int]) -> FacePart:
        """Other faces of the same data set."""
        return FacePart(self._faces, indices)

    @property
    def epoch_images(self) -> int:
        """Images of the larger set, one pass over which is an epoch."""
        return max(len(self.positives), len(self.negatives))

    def training_row(self, data: Data, seed: int) -> FaceRow:
        """How a row of a training batch is filled."""
        return FaceRow(self._image_sizes, seed, mirrored=data.flip == "horizontal")

    def to_evaluate(self) -> FacePart:
        """As many faces of each set, in turn."""
        return paired(self._faces, self.indices.tolist())

    def sampler(
        self, batch_size: int, seed: int, rank: int, world_size: int, start_batch: int
    ) -> PairSampler:
        """Endless training batches of one process, `batch_size` images of each set in each."""
        sets = self.positives, self.negatives
        return PairSampler(*sets, batch_size, seed, rank, world_size, start_batch)


def paired(source: CelebA, indices: Sequence[int]) -> FacePart:
    """A part to evaluate on: as many faces of each set, in turn, the first with the attribute."""
    with_it = [i for i in indices if source.label(i)]
    without = [i for i in indices if not source.label(i)]
    turns = zip(with_it, without, strict=False)  # what the larger set has more is left out
    return FacePart(source, [i for pair in turns for i in pair])


# --- the split ------------------------------------------------------------------------------


def split_faces(
    source: CelebA,
    val_fraction: float,
    test_fraction: float,
    seed: int,
    *,
    max_images: int | None = None,
) -> Split:
    """Draw a split of each set on its own, so that each part has its share of both.

    Args:
        max_images: of both sets together, in their proportion; drawn before the split.

    Raises:
        DataError: a set has too few images.
    """
    parts: dict[str, list[int]] = {part: [] for part in PARTS}
    for number, indices in enumerate(limited(source, seed, max_images)):
        order = np.argsort(random_stream(seed, _VAL_STREAM + number, len(indices)), kind="stable")
        drawn = [indices[i] for i in order]
        num_val, num_test = (
            max(1, round(share * len(drawn))) if share > 0 else 0
            for share in (val_fraction, test_fraction)
        )
        if num_val + num_test >= len(drawn):
            raise DataError(
                f"{len(drawn)} images {source.label_names[1 - number]} are too few to train "
                "and validate on",
                hint="add data, or give smaller --val-fraction and --test-fraction",
            )
        parts["val"] += drawn[:num_val]
        parts["test"] += drawn[num_val : num_val + num_test]
        parts["train"] += drawn[num_val + num_test :]
    return _named(source, parts, seed)


def official_split(source: CelebA, seed: int, *, max_images: int | None = None) -> Split:
    """CelebA's own parts; the arguments are those of split_faces().

    Images that are in no part are in none of these: source.without_part() names them.

    Raises:
        DataError: there is no table of parts, or its training part lacks one of the sets.
    """
    with_it, without = limited(source, seed, max_images)
    parts = _official_parts(source, with_it + without)
    labels = {source.label(i) for i in parts["train"]}
    for label in (1, 0):
        if label not in labels:
            raise DataError(
                f"CelebA's training part has no images {source.label_names[label]}",
                hint="is its table of parts cut short? without --official-split parts are drawn",
            )
    return _named(source, parts, seed)


def by_official_parts(source: FaceFolder, indices: Sequence[int], seed: int) -> Split:
    """CelebA's own parts of these images, whatever they show.

    Raises:
        DataError: there is no table of parts, or it leaves nothing to train on.
    """
    parts = _official_parts(source, indices)
    if not parts["train"]:
        raise DataError(
            f"{source.root}: none of its images is in CelebA's training part",
            hint="is its table of parts another data set's? --no-official-split draws parts",
        )
    return _named(source, parts, seed)


def _official_parts(source: FaceFolder, indices: Sequence[int]) -> dict[str, list[int]]:
    number_of = source.partition()
    by_number = {number: part for part, number in PARTS.items()}
    parts: dict[str, list[int]] = {part: [] for part in PARTS}
    for index in indices:
        part = by_number.get(number_of.get(source.name(index), -1))
        if part is not None:
            parts[part].append(index)
    return parts


def limited(source: CelebA, seed: int, max_images: int | None) -> tuple[list[int], list[int]]:
    """Positions of the images with and without the attribute, at most `max_images` together."""
    sets = source.positives.tolist(), source.negatives.tolist()
    for label, indices in zip((1, 0), sets, strict=True):
        if not indices:
            raise DataError(
                f"{source.attribute_file}: no images {source.label_names[label]}",
                hint="both sets are needed: choose another attribute",
            )
    if max_images is None or max_images >= len(source):
        return sets
    first = round(max_images * len(sets[0]) / len(source))
    first = min(max(first, 1, max_images - len(sets[1])), len(sets[0]))
    counts = first, max(1, max_images - first)
    return (
        _drawn(sets[0], counts[0], seed, _LIMIT_STREAM),
        _drawn(sets[1], counts[1], seed, _LIMIT_STREAM + 1),
    )


def _drawn(indices: list[int], count: int, seed: int, purpose: int) -> list[int]:
    order = np.argsort(random_stream(seed, purpose, len(indices)), kind="stable")
    return sorted(indices[i] for i in order[:count])


def _named(source: FaceFolder, parts: dict[str, list[int]], seed: int) -> Split:
    names = {part: [source.name(i) for i in sorted(indices)] for part, indices in parts.items()}
    return Split(names["train"], names["val"], names["test"], [], seed)


# --- batches --------------------------------------------------------------------------------


class PairSampler:
    """Endless batches of one process: rows 0, 2, 4 ... with the attribute, the others without.

    Each set is an endless row of permutations of its own, keyed by (seed, set, pass), of which
    batch b of rank r takes the positions [(b W + r) B, (b W + r + 1) B). The sets differ in length,
    and so do their passes; no image waits for another set's end.

    Args:
        positives, negatives: positions of the two sets.
        batch_size: B, images of each set in a batch of one process.
        seed: of the order.
        rank, world_size: this process, of W.
        start_batch: batches of all processes since the start of training to pass over.
    """

    def __init__(
        self,
        positives: np.ndarray,
        negatives: np.ndarray,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        start_batch: int = 0,
    ) -> None:
        if min(len(positives), len(negatives), batch_size, world_size) < 1:
            raise ValueError(f"no batches of {batch_size} from {len(positives)}+{len(negatives)}")
        if not 0 <= rank < world_size:
            raise ValueError(f"no rank {rank} of {world_size}")
        self._sets, self.seed, self.batch_size = (positives, negatives), seed, batch_size
        self.rank, self.world_size, self.start_batch = rank, world_size, start_batch
        self._order = lru_cache(maxsize=4)(self._draw_order)

    def _draw_order(self, number: int, epoch: int) -> np.ndarray:
        members = self._sets[number]
        return members[permutation(self.seed, 2 * epoch + number, len(members))]

    def _at(self, number: int, position: int) -> Draw:
        epoch, at = divmod(position, len(self._sets[number]))
        return Draw(epoch, int(self._order(number, epoch)[at]), 0)

    def __iter__(self) -> Iterator[list[Draw]]:
        batch = self.start_batch
        while True:
            start = (batch * self.world_size + self.rank) * self.batch_size
            positions = range(start, start + self.batch_size)
            yield [self._at(number, position) for position in positions for number in (0, 1)]
            batch += 1


class FaceRow:
    """How a training batch of pyramids is filled: whole images, perhaps mirrored.

    Args:
        image_sizes: the pyramids' sizes.
        seed: of the training.
        mirrored: flip half of the images.
    """

    def __init__(self, image_sizes: Sequence[int], seed: int, *, mirrored: bool) -> None:
        self.image_sizes, self.seed, self.mirrored = tuple(image_sizes), seed, mirrored

    def contents(self, dataset: ImageDataset, draws: Sequence[Draw]) -> Contents:
        """A pyramid."""
        return pictured(pyramid_size(self.image_sizes), dataset)

    def index(self, draw: Draw) -> int:
        """Position of a draw's image."""
        return draw.index

    def fill(self, draw: Draw, sample: Sample, row: Mapping[str, Tensor]) -> None:
        """Write a sample into its row, (P, 1, 3) uint8."""
        image = row["image"]
        np.copyto(image.numpy(), sample.image)
        if self.mirrored and random_words(self.seed, draw)[2] & 1:
            import torch

            begin = 0
            for side in self.image_sizes:
                square = image[begin : begin + side * side].view(side, side, 3)
                square.copy_(torch.flip(square, (1,)))
                begin += side * side

    def extra(self, draws: Sequence[Draw]) -> dict[str, Tensor]:
        """Nothing besides images and labels."""
        return {}
