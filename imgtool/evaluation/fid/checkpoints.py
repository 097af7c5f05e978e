"""FID of what checkpoints make, on parts of the data of their own experiments."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from imgtool.data.split import shared
from imgtool.data.views import View
from imgtool.errors import DataError, NoAnswer
from imgtool.evaluation.fid.generated import GeneratedSides
from imgtool.evaluation.fid.images import Drawn, Note, choose_n, draw, loader
from imgtool.evaluation.fid.inception import Gathering
from imgtool.evaluation.fid.measure import Comparison, Meter, mean_comparison
from imgtool.evaluation.fid.options import Listener, Options
from imgtool.evaluation.fid.protocol import protocol_name
from imgtool.evaluation.fid.statistics import Features, Statistics
from imgtool.evaluation.restore import Restored, restore
from imgtool.published import Weights
from imgtool.training.batches import to_device


class CheckpointMeter:
    """FID of what checkpoints make; real images are measured once.

    Faces: FID(Bu, those with the attribute), FID(A0, those without), and the baseline
    FID(with, without) that an edit has to beat. Models of latents: FID(samples, the images that
    the latents are of), and as `fid_floor` that of the latents themselves, decoded. Other families:
    FID(reconstructions, images).
    `fid` is the mean over what a checkpoint makes.

    Args:
        where: root, manifest, attribute and attribute_file, as `restore`.

    Raises:
        DataError: the weights' file is no Inception.
    """

    def __init__(
        self,
        options: Options,
        listener: Listener,
        weights: Weights,
        where: Mapping[str, str | None],
    ) -> None:
        self._meter, self._where = Meter(options, listener, weights), where
        _ = self._meter.extractor  # what is wrong with it is said before the work begins

    def measure(self, source: str) -> dict[str, Any]:
        """One record.

        Args:
            source: a checkpoint file, or an exp_dir (its best one).

        Raises:
            CheckpointError, DataError, ConfigError: as `restore`.
            UsageError: too few images.
            NoAnswer: the family makes no images, or some were trained on and none may be.
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
        order_of: for each fake, in the loader's order, its position among the drawn.
        about: what they are, for settings and records.
        num_trained_on: how many of `view` were trained on.
    """

    def __init__(self, found: Restored, options: Options) -> None:
        data, info = found.experiment.data, found.datasets.info
        self.data_root, attribute = data.root, getattr(data, "attribute", None)
        self.faces = bool(info.pyramid)
        split = options.split or ("all" if self.faces else "val")
        part = _part(found, split)
        candidates = _candidates(part)
        words = f"images {{}} {attribute}" if self.faces else "images"
        self.n = choose_n(
            options.n, {words.format(side): len(some) for side, some in candidates.items()}
        )
        shown = data.image_size
        if self.faces:
            assert info.image_size is not None
            shown = info.image_size[0]
        self.drawn = {
            side: Drawn(part, draw(some, self.n, options.seed), info.pyramid, shown)
            for side, some in candidates.items()
        }
        self.about: dict[str, Any] = {"attribute": attribute, "split": split, "image_size": shown}
        if self.faces:  # rows take turns, the first with the attribute
            turns = (self.drawn["with"].positions, self.drawn["without"].positions)
            self.order_of = np.arange(self.n)
            order = np.stack(turns, axis=1).ravel()
        else:
            self.order_of = self.drawn["all"].by_size()
            order = self.drawn["all"].positions[self.order_of]
        self.view = part.of(part.indices[order].tolist())
        self.num_trained_on = _num_trained_on(found, self.view)

    def batches(self, options: Options, note: Note) -> Iterator[dict[str, Any]]:
        """Of what fakes are made from."""
        return loader(
            self.view, batch_size=options.batch_size, num_workers=options.num_workers, note=note
        )

    def facts(self) -> dict[str, Any]:
        """Nothing besides."""
        return {}

    def protocol(self, meter: Meter) -> str:
        """Its short name."""
        return protocol_name(
            meter.settings(),
            split=self.about["split"],
            crop="squeezed" if self.faces else "whole",
            image_size=self.about["image_size"],
            n=self.n,
            real=[drawn.fingerprint() for drawn in self.drawn.values()],
            attribute=self.about["attribute"],
        )


Sides = _Sides | GeneratedSides


def _part(found: Restored, split: str) -> View:
    """A part of the experiment's own data; `all` is all of it."""
    datasets = found.datasets
    parts = {"train": datasets.train, "val": datasets.val, "test": datasets.test}
    if split == "all":
        return datasets.train.of(range(len(datasets.train.source)))
    if len(parts[split]) == 0:
        raise DataError(
            f"{found.path}: its data has no {split} images",
            hint="--split all takes all of them",
        )
    return parts[split]


def _candidates(part: View) -> dict[str, Any]:
    """Positions in a part, by side."""
    if part.num_sets == 1:
        return {"all": np.arange(len(part))}
    faces: Any = part
    return {"with": faces.positives, "without": faces.negatives}


def _num_trained_on(found: Restored, view: View) -> int:
    """By name where they are of the data trained on, by content where they lie elsewhere."""
    train = found.datasets.train
    if view.source is train.source:
        names = set(found.datasets.split.train)
        return sum(view.name(i) in names for i in range(len(view)))
    return len(shared(view, range(len(view)), train, range(len(train))))


def _judge_honesty(found: Restored, sides: Sides, meter: Meter) -> None:
    """Warn of images that were trained on, or refuse them.

    What is generated is usually compared with those that were learnt from.
    """
    generated = isinstance(sides, GeneratedSides)
    if sides.num_trained_on == 0 or (generated and not meter.options.strict):
        return
    what = f"{found.path}: {sides.num_trained_on} of the {len(sides.view)} images were trained on"
    held = [part for part in ("test", "val") if len(getattr(found.datasets, part))]
    hint = f"--split {held[0]} takes images that were held out" if held else "nothing was held out"
    if meter.options.strict:
        raise NoAnswer(what, hint=hint)
    meter.listener.note(f"warning: {what}, which flatters it; {hint}")


def _evaluate(found: Restored, meter: Meter) -> dict[str, Any]:
    begin = time.monotonic()
    latent = found.datasets.info.latents is not None
    sides: Sides = (GeneratedSides if latent else _Sides)(found, meter.options)
    _judge_honesty(found, sides, meter)
    meter.warn_of_few(sides.n)
    made = _fake_features(found, sides, meter)
    spent = time.monotonic() - begin
    real, filed = {}, {}
    for side, drawn in sides.drawn.items():
        real[side], filed[side] = meter.statistics(drawn, side=side, **sides.about)
    kid = meter.options.kid
    numbers: dict[str, Any] = {}
    comparisons: list[Comparison] = []
    for name, (against, features) in made.items():
        comparisons.append(meter.compare(real[against], Statistics.of(features), name))
        numbers |= {f"{name}_against": against, **comparisons[-1].numbers(name, kid=kid)}
    if sides.faces:
        numbers |= meter.baseline(real["with"], real["without"])
    if isinstance(sides, GeneratedSides):
        numbers |= sides.floor(found, meter, real[sides.against])
    return {
        "path": found.path,
        "name": found.experiment.name,
        "family": found.experiment.family,
        "iteration": found.iteration,
        **mean_comparison(comparisons).numbers(kid=False),
        **numbers,
        "sides_in_error": comparisons[0].sides_in_error,
        "num_images": sides.n,
        "num_trained_on": sides.num_trained_on,
        "num_looked_at": len(sides.view),
        **sides.about,
        **sides.facts(),
        "protocol": sides.protocol(meter),
        "data_root": sides.data_root,
        **meter.facts(),
        "departures": _departures(meter.options),
        "sides": filed,
        "fakes_per_sec": sides.n * len(made) / spent,
        "elapsed_sec": time.monotonic() - begin,
    }


def _departures(options: Options) -> list[str]:
    if options.chosen_resize != "pytorch-fid":
        return []
    return ["images are decoded as for training: alpha on white, EXIF turned, 16 bits scaled"]


def _fake_features(found: Restored, sides: Sides, meter: Meter) -> dict[str, tuple[str, Features]]:
    """Name -> what it is compared with, and features (n, d) float32 in drawn order."""
    made: dict[str, tuple[str, Gathering]] = {}
    done: dict[str, int] = {}
    stage = f"{found.experiment.name} at {found.iteration}"
    options = meter.options
    for batch in sides.batches(options, meter.listener.note):
        with found.looking():
            fakes = found.task.fakes(to_device(batch, found.device))
        if not fakes:
            raise NoAnswer(
                f"{found.path}: this {found.experiment.family} makes no images",
                hint="give a checkpoint of genegan or flow, or of an autoencoder with the rgb head",
            )
        for name, fake in fakes.items():
            if fake.against not in sides.drawn:
                raise NoAnswer(
                    f"{found.path}: nothing to compare its {name} with",
                    hint=f"its data has no images `{fake.against}` the attribute",
                )
            if name not in made:
                made[name] = fake.against, Gathering(meter.extractor, sides.n)
                done[name] = 0
            places = sides.order_of[done[name] : done[name] + len(fake.images)].tolist()
            made[name][1].add(fake.images, places)
            done[name] += len(places)
        meter.listener.progress(stage, "images", sum(done.values()), sides.n * len(made))
    assert all(count == sides.n for count in done.values()), done
    return {name: (against, gathered.finish()) for name, (against, gathered) in made.items()}
