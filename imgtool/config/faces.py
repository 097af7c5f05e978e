"""The data sections of families that learn from faces: with and without an attribute, or with
several attributes each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from imgtool.config.schema import (
    STRICT,
    Data,
    Fraction,
    NonNegativeInt,
    PositiveInt,
    data_path,
    option,
)


@dataclass(frozen=True, kw_only=True)
class FacesData(Data):
    """Two unpaired sets of faces, each image at several sizes."""

    __pydantic_config__ = STRICT

    dataset: Literal["celeba"] = option(  # type: ignore[assignment]
        "celeba", "Kind of data set."
    )
    root: str | None = data_path("Folder of CelebA: images, attribute file.", flag="data-root")
    attribute: str = option("Smiling", "Attribute that divides the images into two sets.")
    attribute_file: str | None = data_path(
        "Table of attributes (txt or csv); found in root when unset."
    )
    image_sizes: tuple[PositiveInt, ...] = option(
        (64, 96, 128),
        "Sizes that every image is resized to: pixels of the square's side.",
        flag="img-sizes",
        aliases=("image-sizes",),
    )
    image_size: PositiveInt | None = option(
        None,
        "The size of samples and evaluation; the largest of img-sizes when unset.",
        run=True,
        flag="img-size",
        aliases=("image-size",),
    )
    official_split: bool = option(
        False, "Train and validate on the parts that CelebA's own partition file names."
    )
    flip: Literal["auto", "none", "horizontal"] = option(
        "auto", "Random flips; auto is none: a face is not as its mirror image."
    )
    val_fraction: Fraction = option(0.01, "Part of each set held out for validation.")
    test_fraction: Fraction = option(0.0, "Part of each set held out for the final test.")
    split_seed: NonNegativeInt = option(42, "Seed of the split.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.image_sizes:
            raise ValueError("image_sizes is empty: name at least one size, such as 64")
        if len(set(self.image_sizes)) != len(self.image_sizes):
            raise ValueError("image_sizes names one size twice")
        if self.image_size is not None and self.image_size not in self.image_sizes:
            known = ", ".join(map(str, self.image_sizes))
            raise ValueError(f"image_size {self.image_size} is none of image_sizes ({known})")
        if self.crop is not None:
            raise ValueError("faces are resized whole, without a crop: leave crop unset")
        if self.val_root is not None:
            raise ValueError("val_root is for photos: see val_fraction and official_split")

    @property
    def shown_size(self) -> int:
        """The size of samples and evaluation."""
        return self.image_size or max(self.image_sizes)


@dataclass(frozen=True, kw_only=True)
class LabelledFacesData(Data):
    """Faces with several attributes each, resized to one square."""

    __pydantic_config__ = STRICT

    dataset: Literal["labelled_faces"] = option(  # type: ignore[assignment]
        "labelled_faces", "Kind of data set."
    )
    root: str | None = data_path("Folder of CelebA: images, attribute file.", flag="data-root")
    attributes: tuple[str, ...] = option((), "Attributes to learn; all of the table when empty.")
    attribute_file: str | None = data_path(
        "Table of attributes (txt or csv); found in root when unset."
    )
    image_size: PositiveInt = option(
        128, "Size that every image is resized to: pixels of the square's side."
    )
    official_split: bool | None = option(
        None, "The parts that CelebA's own partition file names; if there is one when unset."
    )
    flip: Literal["auto", "none", "horizontal"] = option(
        "auto", "Random flips; auto is horizontal: attributes know no side."
    )
    val_fraction: Fraction = option(0.1, "Part held out for validation, without official parts.")
    test_fraction: Fraction = option(
        0.1, "Part held out for the final test, without official parts."
    )
    split_seed: NonNegativeInt = option(42, "Seed of the split.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(set(self.attributes)) != len(self.attributes):
            raise ValueError("attributes names one twice")
        if self.crop is not None:
            raise ValueError("faces are resized whole, without a crop: leave crop unset")
        if self.val_root is not None:
            raise ValueError("val_root is for photos: see val_fraction and official_split")
