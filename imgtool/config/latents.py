"""The data section of families that learn from latents, as `imgtool encode` writes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from imgtool.config.schema import STRICT, Data, Fraction, data_path, option


@dataclass(frozen=True, kw_only=True)
class LatentsData(Data):
    """Latents of one shape, already cut, flipped and parted when they were encoded."""

    __pydantic_config__ = STRICT

    dataset: Literal["latents"] = option(  # type: ignore[assignment]
        "latents", "Kind of data set."
    )
    root: str | None = data_path("A .safetensors file of `imgtool encode`.", flag="data-root")
    autoencoder_ckpt: str | None = option(
        None,
        "Checkpoint that decodes them, where it lies elsewhere than when they were encoded.",
        run=True,
        reads="checkpoint",
    )
    flip: Literal["auto", "none", "horizontal"] = option(
        "auto", "Take the latents of flipped images half of the time; auto: if the file has them."
    )
    val_fraction: Fraction = option(0.0, "Of no use: the file says what is held out.")
    test_fraction: Fraction = option(0.0, "Of no use: the file says what is held out.")

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("val_root", "manifest", "image_size", "crop"):
            if getattr(self, key) is not None:
                raise ValueError(f"{key} is for images: latents are what `imgtool encode` made")
        if self.val_fraction or self.test_fraction:
            raise ValueError("the latents file says what is held out: no val or test fraction")
