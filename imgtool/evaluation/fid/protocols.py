"""Named protocols: how many of which images, how they are resized, whose features.

What a protocol leaves out, such as the seed or the measures, is not part of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from imgtool.evaluation.fid.features import OURS, PILLOW


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Settings under one name.

    Attributes:
        says: what it is, one line.
        fixed: fields of `Options` that it sets; None stands for images as they are (image_size)
            and for all there are (n, of the made images).
        decoder: who makes pixels of files.
        all_real: all real images, instead of as many as are made.
        crop: how images have become squares, where it matters: `squeezed`.
        closed: an image on the border of a neighbourhood is inside.
    """

    name: str
    says: str
    fixed: Mapping[str, Any]
    decoder: str
    all_real: bool
    crop: str | None = None
    closed: bool = False

    def row(self) -> dict[str, Any]:
        """For a table."""
        n, size = self.fixed["n"], self.fixed["image_size"]
        return {
            "name": self.name,
            "features": self.fixed["features"],
            "resize": self.fixed["resize"],
            "image_size": "own" if size is None else size,
            "crop": self.crop or "own",
            "split": self.fixed.get("split") or "any",
            "num_made": "all" if n is None else n,
            "num_real": "all" if self.all_real else n,
            "decoder": self.decoder,
            "neighbours": self.fixed.get("neighbours"),
            "says": self.says,
        }


def _fixed(features: str, resize: str, n: int | None, **more: Any) -> Mapping[str, Any]:
    return MappingProxyType(
        {"features": features, "resize": resize, "n": n, "image_size": None, **more}
    )


PROTOCOLS = {
    one.name: one
    for one in (
        Protocol(
            name="celeba128",
            says="edits of CelebA's faces at 128 px: held-out faces, 5000 of each side",
            fixed=_fixed("inception-fid", "clean", 5000, split="test", image_size=128),
            decoder=OURS,
            all_real=False,
            crop="squeezed",
        ),
        Protocol(
            name="adm",
            says="guided diffusion: 50,000 samples against all that was trained on",
            fixed=_fixed("inception-fid", "tf1", 50_000, split="train", neighbours=3),
            decoder=PILLOW,
            all_real=True,
            closed=True,
        ),
        Protocol(
            name="edm2-dinov2",
            says="FD-DINOv2 of EDM2: 50,000 samples against all that was trained on",
            fixed=_fixed("dinov2", "edm2", 50_000, split="train"),
            decoder=PILLOW,
            all_real=True,
        ),
        Protocol(
            name="clean-fid",
            says="clean-fid's mode `clean`: all images of two folders",
            fixed=_fixed("inception-fid", "clean", None),
            decoder=PILLOW,
            all_real=True,
        ),
        Protocol(
            name="pytorch-fid",
            says="pytorch-fid: all images of two folders",
            fixed=_fixed("inception-fid", "pytorch-fid", None),
            decoder=PILLOW,
            all_real=True,
        ),
    )
}
