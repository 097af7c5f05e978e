"""FID of folders, of statistics, and of what checkpoints make."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from imgtool.config.faces import FacesData
from imgtool.data.base import ImageDataset
from imgtool.data.celeba import CelebA
from imgtool.data.pairs import FacePart
from imgtool.data.views import View
from imgtool.errors import DataError, NoAnswer, UsageError
from imgtool.evaluation.fid.cache import Stored, read_statistics, refuse_unlike
from imgtool.evaluation.fid.images import (
    Drawn,
    Positions,
    choose_n,
    draw,
    loader,
    open_folder,
)
from imgtool.evaluation.fid.inception import NUM_FEATURES
from imgtool.evaluation.fid.measure import Listener, Meter, Options
from imgtool.evaluation.fid.statistics import Features, Statistics
from imgtool.evaluation.restore import Restored, restore
from imgtool.training.batches import to_device

# --- two folders ------------------------------------------------------------------------------


def compare_folders(real: Path, fake: Path, options: Options, listener: Listener) -> dict[str, Any]:
    """FID between two folders, either of which may be an .npz of statistics.

    Raises:
        DataError: images or statistics cannot be read.
        UsageError: too few images, or statistics of another kind.
        NoAnswer: the weights are missing.
    """
    begin = time.monotonic()
    meter = Meter(options, listener)
    sides = {"real": _open(real, options), "fake": _open(fake, options)}
    counts = {side: len(found) for side, found in sides.items() if not isinstance(found, Stored)}
    n = options.n
    if counts:
        known = [found.statistics.n for found in sides.values() if isinstance(found, Stored)]
        if n is None and known and known[0] is not None and known[0] <= min(counts.values()):
            n = known[0]  # FIDs are compared at equal n
        n = choose_n(n, counts)
    elif n is not None:
        raise UsageError("--n is for images, and both sides are statistics", hint="leave it out")
    paths = {"real": real, "fake": fake}
    found, about = {}, {}
    for side, source in sides.items():
        if isinstance(source, Stored):
            found[side], about[side] = _foreign(paths[side], source, meter, bool(counts))
            continue
        assert n is not None
        drawn = Drawn(source, draw(np.arange(len(source)), n, options.seed))
        found[side], about[side] = meter.statistics(drawn, side=side, image_size=options.image_size)
    if not counts:
        _refuse_unlike_files(paths, sides)
    _refuse_other_width(paths, found)
    sizes = {side: statistics.n for side, statistics in found.items()}
    if sizes["real"] != sizes["fake"] and None not in sizes.values():
        listener.note(f"warning: {sizes['real']} real images and {sizes['fake']} fake ones")
    counted = [size for size in sizes.values() if size is not None]
    if counted:
        meter.warn_of_few(min(counted))
    return {
        "path": fake,
        "real": real,
        "fake": fake,
        **meter.compare(found["real"], found["fake"]),
        "num_images": sizes["fake"],
        "num_real_images": sizes["real"],
        "image_size": options.image_size,
        **(meter.facts() if counts else {"seed": options.seed}),
        "sides": about,
        "elapsed_sec": time.monotonic() - begin,
    }


def _open(path: Path, options: Options) -> ImageDataset | Stored:
    if path.suffix == ".npz":
        return read_statistics(path)
    return open_folder(path, options.image_size)


def _foreign(
    path: Path, stored: Stored, meter: Meter, others_are_images: bool
) -> tuple[Statistics, dict[str, Any]]:
    if others_are_images:
        wanted = meter.settings(image_size=meter.options.image_size)
        refuse_unlike(path, stored, wanted, meter.listener.note)
    return stored.statistics, {**(stored.settings or {}), "cached": True}


def _refuse_unlike_files(paths: Mapping[str, Path], sides: Mapping[str, Any]) -> None:
    real, fake = sides["real"].settings, sides["fake"].settings
    if real is not None and fake is not None:
        refuse_unlike(paths["fake"], sides["fake"], real, lambda text: None)


def _refuse_other_width(paths: Mapping[str, Path], found: Mapping[str, Statistics]) -> None:
    widths = {side: len(statistics.mu) for side, statistics in found.items()}
    if len(set(widths.values())) > 1:
        text = " and ".join(f"{paths[side]} has {width}" for side, width in widths.items())
        raise UsageError(f"features differ in number: {text}", hint="measure both sides alike")


# --- checkpoints ------------------------------------------------------------------------------


class CheckpointMeter:
    """FID of what checkpoints make; real images are measured once.

    Faces: FID(Bu, those with the attribute), FID(A0, those without), and the baseline
    FID(with, without) that an edit has to beat. Other families: FID(reconstructions, images).
    `fid` is the mean over what a checkpoint makes.

    Args:
        where: root, manifest, attribute and attribute_file, as `restore`.

    Raises:
        NoAnswer: the weights are missing.
    """

    def __init__(
        self, options: Options, listener: Listener, where: Mapping[str, str | None]
    ) -> None:
        self._meter, self._where = Meter(options, listener), where
        _ = self._meter.extractor  # what is missing is said before the work begins

    def measure(self, source: str) -> dict[str, Any]:
        """One record.

        Args:
            source: a checkpoint file, or an exp_dir (its best one).

        Raises:
            CheckpointError, DataError, ConfigError: as `restore`.
            UsageError: too few images.
            NoAnswer: the family makes no images.
        """
        options = self._meter.options
        found = restore(source, device=options.device, image_size=options.image_size, **self._where)
        missing = found.datasets.missing
        if missing:
            self._meter.listener.note(
                f"warning: {len(missing)} images that are listed are missing, such as {missing[0]}"
            )
        return _evaluate(found, self._meter)


class _Sides:
    """The real images of a checkpoint's data, drawn.

    Attributes:
        drawn: by side: `with` and `without`, or `all`.
        view: the images that fakes are made from, in order.
        without_part: names of faces that CelebA's own table of parts lacks.
        order_of: for each fake, in the loader's order, its position among the drawn.
        about: what they are, for settings and records.
    """

    def __init__(self, found: Restored, options: Options) -> None:
        data = found.experiment.data
        self.data = data
        source: ImageDataset
        part: Callable[[list[int]], View]
        self.without_part: list[str] = []
        if isinstance(data, FacesData):
            faces, candidates = _faces(found, data, options.split)
            self.without_part = faces.without_part
            source, part = faces, partial(FacePart, faces)
        else:
            source, candidates = _plain(found, options.split)
            part = partial(View, source)
        self.n = choose_n(
            options.n, {_words(side, data): len(some) for side, some in candidates.items()}
        )
        pyramid: tuple[int, ...] = ()
        shown = None
        if isinstance(data, FacesData):
            pyramid, shown = data.image_sizes, data.shown_size
        self.drawn = {
            side: Drawn(source, draw(some, self.n, options.seed), pyramid, shown)
            for side, some in candidates.items()
        }
        self.about: dict[str, Any] = {
            "attribute": getattr(data, "attribute", None),
            "split": options.split or ("all" if isinstance(data, FacesData) else "val"),
            "image_size": shown or data.image_size,
        }
        if "all" in self.drawn:
            self.order_of = self.drawn["all"].by_size()
            order = self.drawn["all"].positions[self.order_of]
        else:  # rows take turns, the first with the attribute
            turns = (self.drawn["with"].positions, self.drawn["without"].positions)
            self.order_of = np.arange(self.n)
            order = np.stack(turns, axis=1).ravel()
        self.view = part(order.tolist())


def _faces(
    found: Restored, data: FacesData, split: str | None
) -> tuple[CelebA, dict[str, Positions]]:
    source: Any = found.datasets.train.source
    if split not in (None, "all"):
        source = CelebA(
            str(data.root),
            data.attribute,
            image_sizes=data.image_sizes,
            attribute_file=data.attribute_file,
            split=split,
            skip_bad=data.skip_bad,
        )
    return source, {"with": source.positives, "without": source.negatives}


def _plain(found: Restored, split: str | None) -> tuple[ImageDataset, dict[str, Positions]]:
    parts = {part: getattr(found.datasets, part) for part in ("train", "val", "test")}
    if split == "all":
        everything = parts["train"].source
        size = found.experiment.data.image_size
        view = View(everything, range(len(everything)), image_size=size)
    else:
        view = parts[split or "val"]
    if len(view) == 0:
        raise DataError(
            f"{found.path}: its data has no {split or 'val'} images",
            hint="--split all takes all of them",
        )
    return view, {"all": np.arange(len(view))}


def _words(side: str, data: Any) -> str:
    return f"images {side} {data.attribute}" if side != "all" else "images"


def _evaluate(found: Restored, meter: Meter) -> dict[str, Any]:
    begin = time.monotonic()
    sides = _Sides(found, meter.options)
    if sides.without_part:
        meter.listener.note(
            f"warning: {len(sides.without_part)} images that are listed are in no part, such as "
            f"{sides.without_part[0]}"
        )
    meter.warn_of_few(sides.n)
    made = _fake_features(found, sides, meter)
    spent = time.monotonic() - begin
    real, filed = {}, {}
    for side, drawn in sides.drawn.items():
        real[side], filed[side] = meter.statistics(drawn, side=side, **sides.about)
    numbers: dict[str, Any] = {}
    for name, (against, features) in made.items():
        fake = Statistics.of(features)
        numbers |= {f"{name}_against": against, **meter.compare(real[against], fake, name)}
    if "with" in real:
        numbers |= meter.baseline(real["with"], real["without"])
    return {
        "path": found.path,
        "name": found.experiment.name,
        "family": found.experiment.family,
        "iteration": found.iteration,
        "fid": sum(numbers[f"fid_{name}"] for name in made) / len(made),
        **numbers,
        "num_images": sides.n,
        **sides.about,
        "data_root": sides.data.root,
        **meter.facts(),
        "sides": filed,
        "fakes_per_sec": sides.n * len(made) / spent,
        "elapsed_sec": time.monotonic() - begin,
    }


def _fake_features(found: Restored, sides: _Sides, meter: Meter) -> dict[str, tuple[str, Features]]:
    """Name -> what it is compared with, and features (n, d) float32 in drawn order."""
    made: dict[str, tuple[str, Features]] = {}
    done: dict[str, int] = {}
    stage = f"{found.experiment.name} at {found.iteration}"
    options = meter.options
    batches = loader(
        sides.view,
        batch_size=options.batch_size,
        num_workers=options.num_workers,
        note=meter.listener.note,
    )
    for batch in batches:
        with found.looking():
            fakes = found.task.fakes(to_device(batch, found.device))
        if not fakes:
            raise NoAnswer(
                f"{found.path}: this {found.experiment.family} makes no images",
                hint="give a checkpoint of genegan, or of an autoencoder with the rgb head",
            )
        for name, fake in fakes.items():
            if fake.against not in sides.drawn:
                raise NoAnswer(
                    f"{found.path}: nothing to compare its {name} with",
                    hint=f"its data has no images `{fake.against}` the attribute",
                )
            if name not in made:
                made[name] = fake.against, np.empty((sides.n, NUM_FEATURES), np.float32)
                done[name] = 0
            order_of = sides.order_of[done[name] : done[name] + len(fake.images)]
            made[name][1][order_of] = meter.extractor(fake.images).numpy()
            done[name] += len(order_of)
        meter.listener.progress(stage, "images", sum(done.values()), sides.n * len(made))
    assert all(count == sides.n for count in done.values()), done
    return made
