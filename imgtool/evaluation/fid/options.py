"""How to measure; free of torch, so that what is missing is said before it is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from imgtool.errors import UsageError

FID_RESIZES = ("clean", "pytorch-fid", "tf1")
IMAGENET_RESIZE = "imagenet"
ARRAY = "arr_0"  # numpy's name for the only array of a file


class Listener(Protocol):
    """Who watches."""

    def note(self, text: str) -> None:
        """A line for people."""

    def progress(self, stage: str, unit: str, done: int, total: int) -> None:
        """How far a stage has come, as often as one likes."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to measure.

    Attributes:
        features: one of inception.FEATURE_SETS.
        resize: one of FID_RESIZES; None is the feature set's own.
        weights, download, allow_unverified: as `find_weights`.
        cache_dir: folder of statistics.
        cache_fakes: keep those of a folder of fakes there, too.
        n: images of each side; None takes 5000, or what there is.
        seed: of the draw.
        image_size: images are resized to it first; None leaves them as they are.
        split: `train`, `val`, `test`: the experiment's own parts; `all`; None is all faces, or
            the validation images.
        strict: refuse images that were trained on.
        batch_size: images of a side that are read, or made, at a time.
        kid: measure that too.
    """

    features: str = "inception-fid"
    resize: str | None = None
    weights: str | None = None
    download: bool = True
    allow_unverified: bool = False
    cache_dir: Path = Path("outputs/_fid_cache")
    cache_fakes: bool = False
    n: int | None = None
    seed: int = 0
    image_size: int | None = None
    split: str | None = None
    strict: bool = False
    batch_size: int = 32
    num_workers: int = 0
    device: str = "auto"
    kid: bool = True

    def __post_init__(self) -> None:
        if self.features == "inception-imagenet" and self.resize not in (None, IMAGENET_RESIZE):
            raise UsageError(
                f"--resize {self.resize} is for inception-fid",
                hint="inception-imagenet has a resize of its own: leave --resize out",
            )

    @property
    def chosen_resize(self) -> str:
        """The resize mode that is used."""
        if self.features == "inception-imagenet":
            return IMAGENET_RESIZE
        return self.resize or FID_RESIZES[0]


def is_statistics(path: Path) -> bool:
    """Whether it is to be read as statistics: an .npz without images."""
    if path.suffix != ".npz":
        return False
    import zipfile  # a moment that `imgtool --help` does without

    try:
        with zipfile.ZipFile(path) as archive:
            return f"{ARRAY}.npy" not in archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return True  # whoever reads it says what is wrong
