"""How the rows of a batch are filled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from imgtool.data.augment import Augmentation, Choice, place
from imgtool.data.base import ImageDataset, Sample, Size
from imgtool.data.sampler import Draw

if TYPE_CHECKING:
    from torch import Tensor


class Row(Protocol):
    """What a worker process asks of each batch; a draw is what the sampler gives for one row."""

    def shape(self, dataset: ImageDataset, draws: Sequence[Any]) -> Size:
        """(H, W) of the batch."""

    def index(self, draw: Any) -> int:
        """Position of a draw's image."""

    def fill(self, draw: Any, sample: Sample, image: Tensor, mask: Tensor | None) -> None:
        """Write a sample into its row: (H, W, 3) uint8, and (H, W) uint8 where there are masks."""

    def extra(self, draws: Sequence[Any]) -> dict[str, Tensor]:
        """What the batch holds besides images, masks, labels and positions."""


class CroppedRow:
    """Of training: a crop, perhaps flipped.

    Args:
        size: (H, W) of every crop.
        augmentation: which crop, which flips.
    """

    def __init__(self, size: Size, augmentation: Augmentation) -> None:
        self.size, self.augmentation = size, augmentation

    def shape(self, dataset: ImageDataset, draws: Sequence[Draw]) -> Size:
        """(H, W) of the batch."""
        return self.size

    def index(self, draw: Draw) -> int:
        """Position of a draw's image."""
        return draw.index

    def fill(self, draw: Draw, sample: Sample, image: Tensor, mask: Tensor | None) -> None:
        """Write a sample's crop into its row."""
        place(sample, self.augmentation.choose(draw, sample, self.size), image, mask)

    def extra(self, draws: Sequence[Draw]) -> dict[str, Tensor]:
        """Nothing besides."""
        return {}


class WholeRow:
    """Of evaluation: the whole image. A draw is (position, whether it counts)."""

    def shape(self, dataset: ImageDataset, draws: Sequence[tuple[int, bool]]) -> Size:
        """(H, W) of the batch, whose images are of one size."""
        return dataset.size(draws[0][0])

    def index(self, draw: tuple[int, bool]) -> int:
        """Position of a draw's image."""
        return draw[0]

    def fill(
        self, draw: tuple[int, bool], sample: Sample, image: Tensor, mask: Tensor | None
    ) -> None:
        """Write a sample into its row."""
        place(sample, None, image, mask)

    def extra(self, draws: Sequence[tuple[int, bool]]) -> dict[str, Tensor]:
        """valid (B,) bool."""
        import torch

        return {"valid": torch.tensor([valid for _, valid in draws])}


class CentreRow:
    """Of encoding: the middle of an image, the whole of it where it is no larger. A draw is a
    position.

    Args:
        size: (H, W) of every row.
    """

    def __init__(self, size: Size) -> None:
        self.size = size

    def shape(self, dataset: ImageDataset, draws: Sequence[int]) -> Size:
        """(H, W) of the batch."""
        return self.size

    def index(self, draw: int) -> int:
        """Position of a draw's image."""
        return draw

    def fill(self, draw: int, sample: Sample, image: Tensor, mask: Tensor | None) -> None:
        """Write a sample's middle into its row; of an odd rest the larger half is after it."""
        (height, width), (rows, columns) = sample.image.shape[:2], self.size
        top, left = (height - rows) // 2, (width - columns) // 2
        place(sample, Choice(top, left, False, ()), image, mask)

    def extra(self, draws: Sequence[int]) -> dict[str, Tensor]:
        """Nothing besides."""
        return {}
