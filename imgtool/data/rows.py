"""How the rows of a batch are filled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from imgtool.data.augment import Augmentation, Choice, place
from imgtool.data.base import ImageDataset, Sample, Size
from imgtool.data.sampler import Draw

if TYPE_CHECKING:
    from torch import Tensor


# What a row holds: name -> type (torch's name of it) and shape.
Contents = dict[str, tuple[str, tuple[int, ...]]]


class Row(Protocol):
    """What a worker process asks of each batch; a draw is what the sampler gives for one row."""

    def contents(self, dataset: Any, draws: Sequence[Any]) -> Contents:
        """What each row of the batch holds besides small things, such as its label."""

    def index(self, draw: Any) -> int:
        """Position of a draw's image."""

    def fill(self, draw: Any, sample: Any, row: Mapping[str, Tensor]) -> None:
        """Write what the data set has read into its row."""

    def extra(self, draws: Sequence[Any]) -> dict[str, Tensor]:
        """What the batch holds besides its rows' contents, labels and positions."""


def pictured(size: Size, dataset: ImageDataset) -> Contents:
    """An image of (H, W), and its mask where the data set has them."""
    contents: Contents = {"image": ("uint8", (*size, 3))}
    if "mask" in dataset.targets:
        contents["mask"] = ("uint8", size)
    return contents


class CroppedRow:
    """Of training: a crop, perhaps flipped.

    Args:
        size: (H, W) of every crop.
        augmentation: which crop, which flips.
    """

    def __init__(self, size: Size, augmentation: Augmentation) -> None:
        self.size, self.augmentation = size, augmentation

    def contents(self, dataset: ImageDataset, draws: Sequence[Draw]) -> Contents:
        """A crop, and its mask."""
        return pictured(self.size, dataset)

    def index(self, draw: Draw) -> int:
        """Position of a draw's image."""
        return draw.index

    def fill(self, draw: Draw, sample: Sample, row: Mapping[str, Tensor]) -> None:
        """Write a sample's crop into its row."""
        choice = self.augmentation.choose(draw, sample, self.size)
        place(sample, choice, row["image"], row.get("mask"))

    def extra(self, draws: Sequence[Draw]) -> dict[str, Tensor]:
        """Nothing besides."""
        return {}


class WholeRow:
    """Of evaluation: the whole image. A draw is (position, whether it counts)."""

    def contents(self, dataset: ImageDataset, draws: Sequence[tuple[int, bool]]) -> Contents:
        """A whole image, of one size in a batch, and its mask."""
        return pictured(dataset.size(draws[0][0]), dataset)

    def index(self, draw: tuple[int, bool]) -> int:
        """Position of a draw's image."""
        return draw[0]

    def fill(self, draw: tuple[int, bool], sample: Sample, row: Mapping[str, Tensor]) -> None:
        """Write a sample into its row."""
        place(sample, None, row["image"], row.get("mask"))

    def extra(self, draws: Sequence[tuple[int, bool]]) -> dict[str, Tensor]:
        """valid (B,) bool."""
        return valid_of(draws)


class CentreRow:
    """Of encoding: the middle of an image, the whole of it where it is no larger. A draw is a
    position.

    Args:
        size: (H, W) of every row.
    """

    def __init__(self, size: Size) -> None:
        self.size = size

    def contents(self, dataset: ImageDataset, draws: Sequence[int]) -> Contents:
        """A picture of `size`, and its mask."""
        return pictured(self.size, dataset)

    def index(self, draw: int) -> int:
        """Position of a draw's image."""
        return draw

    def fill(self, draw: int, sample: Sample, row: Mapping[str, Tensor]) -> None:
        """Write a sample's middle into its row; of an odd rest the larger half is after it."""
        (height, width), (rows, columns) = sample.image.shape[:2], self.size
        top, left = (height - rows) // 2, (width - columns) // 2
        place(sample, Choice(top, left, False, ()), row["image"], row.get("mask"))

    def extra(self, draws: Sequence[int]) -> dict[str, Tensor]:
        """Nothing besides."""
        return {}


def valid_of(draws: Sequence[tuple[int, bool]]) -> dict[str, Tensor]:
    """Which of an evaluation's draws count, (B,) bool."""
    import torch

    return {"valid": torch.tensor([valid for _, valid in draws])}
