"""Which networks features come from, and what belongs to each; free of torch."""

from __future__ import annotations

from dataclasses import dataclass

OURS, PILLOW = "imgtool", "pillow"  # who makes pixels of files
# The other tool whose numbers are meant reads images with Pillow as they are.
_READ_BY_PILLOW = frozenset({"pytorch-fid", "edm2", "dgm-eval"})


@dataclass(frozen=True)
class FeatureSet:
    """One network as a measure of images.

    Attributes:
        width: numbers of a feature. From so many images on, a Fréchet distance is linear in 1 / n.
        side: pixels that images are resized to.
        resizes: ways to get there, see `resize.prepare`; the first is taken when none is named.
        layout: of its activations; sums depend on it.
        published: whether others publish distances of these features.
    """

    name: str
    width: int
    side: int
    resizes: tuple[str, ...]
    layout: str
    published: bool


FEATURE_SETS = {
    one.name: one
    for one in (
        FeatureSet(
            "inception-fid", 2048, 299, ("clean", "pytorch-fid", "tf1"), "channels_last", True
        ),
        FeatureSet("inception-imagenet", 2048, 299, ("imagenet",), "channels_last", False),
        FeatureSet("dinov2", 1024, 224, ("edm2", "dgm-eval"), "tokens", True),
    )
}


def decoder_for(resize: str) -> str:
    """Who decodes images that are to be resized so: OURS or PILLOW."""
    return PILLOW if resize in _READ_BY_PILLOW else OURS
