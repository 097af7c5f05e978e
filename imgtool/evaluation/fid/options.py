"""How to measure; free of torch, so that what is missing is said before it is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol as Interface

from imgtool.errors import UsageError
from imgtool.evaluation.fid.features import FEATURE_SETS, FeatureSet, decoder_for
from imgtool.evaluation.fid.protocols import PROTOCOLS, Protocol

ARRAY = "arr_0"  # numpy's name for the only array of a file
METRICS = ("fid", "kid", "prdc")
DEFAULT_METRICS = "fid,kid"
NEIGHBOURS = 5  # as prdc and dgm-eval
LIST = "list"  # in place of a protocol's name
MOST = 5000  # images a side, where nobody says how many


class Listener(Interface):
    """Who watches."""

    def note(self, text: str) -> None:
        """A line for people."""

    def progress(self, stage: str, unit: str, done: int, total: int) -> None:
        """How far a stage has come, as often as one likes."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to measure.

    Attributes:
        protocol: one of PROTOCOLS, which fills what it fixes; other values of it are refused.
        metrics: some of METRICS, with commas between.
        features: one of FEATURE_SETS; None is inception-fid.
        resize: one of the feature set's; None is its first.
        weights, download, allow_unverified: as `find_weights`.
        cache_dir: folder of statistics.
        cache_fakes: keep those of a folder of fakes there, too.
        n: images of each side; None takes MOST, or what there is, or what the protocol says.
        seed: of the draw.
        image_size: images are resized to it first; None leaves them as they are.
        split: `train`, `val`, `test`: the experiment's own parts; `all`; None is all faces, a
            flow's training images, or the validation images.
        strict: refuse images that were trained on.
        batch_size: images of a side that are read, or made, at a time.
        neighbours: the k of precision, recall, density and coverage; None is NEIGHBOURS.
    """

    protocol: str | None = None
    metrics: str = DEFAULT_METRICS
    features: str | None = None
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
    neighbours: int | None = None

    def __post_init__(self) -> None:
        self._see_metrics()
        if self.protocol not in (None, LIST):
            self._fill()
        if self.resize not in (None, *self.feature_set.resizes):
            owners = [one.name for one in FEATURE_SETS.values() if self.resize in one.resizes]
            own = " or ".join(self.feature_set.resizes)
            raise UsageError(
                f"--resize {self.resize} is for {owners[0] if owners else 'no features'}",
                hint=f"{self.feature_set.name} has {own}: leave --resize out, or name its own",
            )

    def _see_metrics(self) -> None:
        odd = [word for word in self.metrics.split(",") if word.strip() not in METRICS]
        if odd:
            known = ", ".join(METRICS)
            raise UsageError(f"--metrics: no measure {odd[0]!r}", hint=f"some of {known}")

    def _fill(self) -> None:
        """Take what the protocol fixes.

        Raises:
            UsageError: no such protocol, or something else was given.
        """
        if self.protocol not in PROTOCOLS:
            names = ", ".join(PROTOCOLS)
            raise UsageError(
                f"--protocol: none is called {self.protocol!r}", hint=f"one of {names}"
            )
        for key, value in PROTOCOLS[str(self.protocol)].fixed.items():
            given = getattr(self, key)
            if given not in (None, value):
                option = "--img-size" if key == "image_size" else f"--{key}"
                what = {"n": "all images", "image_size": "images as they are"}
                raise UsageError(
                    f"{option} {given} contradicts --protocol {self.protocol}, which has "
                    f"{what[key] if value is None else value}",
                    hint=f"leave {option} out, or --protocol",
                )
            object.__setattr__(self, key, value)

    @property
    def named(self) -> Protocol | None:
        """The protocol, where one is named."""
        return PROTOCOLS.get(self.protocol or "")

    @property
    def wanted(self) -> tuple[str, ...]:
        """The measures, in the order of METRICS."""
        asked = {word.strip() for word in self.metrics.split(",")}
        return tuple(name for name in METRICS if name in asked)

    @property
    def feature_set(self) -> FeatureSet:
        """The features that are used."""
        return FEATURE_SETS[self.features or next(iter(FEATURE_SETS))]

    @property
    def chosen_resize(self) -> str:
        """The resize mode that is used."""
        return self.resize or self.feature_set.resizes[0]

    @property
    def decoder(self) -> str:
        """Who makes pixels of files."""
        return self.named.decoder if self.named else decoder_for(self.chosen_resize)

    @property
    def k(self) -> int:
        """Neighbours that make a neighbourhood."""
        return self.neighbours or NEIGHBOURS

    @property
    def closed(self) -> bool:
        """Whether what lies on a neighbourhood's border is inside."""
        return self.named is not None and self.named.closed

    @property
    def all_real(self) -> bool:
        """Whether all real images are taken, however many are made."""
        return self.named is not None and self.named.all_real

    @property
    def most(self) -> int | None:
        """Images a side where `n` says nothing; None is all there are."""
        return None if self.named else MOST


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
