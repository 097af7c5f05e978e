"""FID of what is generated from latents: samples against the images that the latents are of."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from imgtool.data.base import Sample, Size
from imgtool.data.check import open_source
from imgtool.data.latent_contents import PARTS, DataFacts
from imgtool.data.latent_parts import LatentPart
from imgtool.data.latents import LatentsFile
from imgtool.data.views import View
from imgtool.errors import DataError, UsageError, UserError
from imgtool.evaluation.fid.images import MOST, Drawn, Note, draw, loader
from imgtool.evaluation.fid.inception import Gathering
from imgtool.evaluation.fid.measure import Meter
from imgtool.evaluation.fid.options import Options
from imgtool.evaluation.fid.protocol import protocol_name
from imgtool.evaluation.fid.statistics import Statistics
from imgtool.evaluation.restore import Restored
from imgtool.training.batches import to_device

ALL = "all"
HINT = "`imgtool eval-fid` compares with the images: put them back, or encode them anew"


class Middle(View):
    """The middle square of each image, and nothing but the image."""

    def __init__(self, source: View, side: int) -> None:
        super().__init__(source, range(len(source)))
        self.targets = frozenset()
        self._side = side

    def size(self, index: int) -> Size:
        """(H, W), equal."""
        return self._side, self._side

    def read(self, index: int) -> Sample:
        """One image's middle; of an odd rest the larger half is after it, as in encoding."""
        whole = self.source.read(index)
        height, width = whole.image.shape[:2]
        top, left, side = (height - self._side) // 2, (width - self._side) // 2, self._side
        return Sample(whole.image[top : top + side, left : left + side], None, None, whole.name)


class GeneratedSides:
    """As `checkpoints._Sides`, of a model of latents.

    The real images are those of a part of the latents file, as they were encoded. Samples are as
    many as asked for, whatever there is of images: row k is made from noise that k names, for
    what is known of the k-th latent that was drawn, in turns.

    Attributes:
        drawn: the real images.
        view: a latent for each sample.
        n, num_real: samples, and real images.
        order_of: for each sample, in the loader's order, its place.
        about: what they are, for settings and records.
    """

    faces = False
    against = ALL

    def __init__(self, found: Restored, options: Options) -> None:
        part = _part(found, options.split or "train")
        self._file = file = part.latents.file
        facts = file.data
        if len(part) < 2:
            raise UsageError(
                f"{found.path}: its latents have {len(part)} {options.split} images",
                hint="--split train, or another part of theirs",
            )
        self.n = options.n if options.n is not None else min(MOST, len(part))
        self.num_real = min(self.n, len(part))
        chosen = draw(np.arange(len(part)), self.num_real, options.seed)
        rows = part.indices[chosen].tolist()
        images = open_images(facts, [file.names[row] for row in rows])
        self.drawn = {ALL: Drawn(images, np.arange(len(images)))}
        self.real_view = part.of(rows)
        self.view = part.of([rows[k % len(rows)] for k in range(self.n)])
        self.order_of = np.arange(self.n)
        split = options.split or "train"
        self.about: dict[str, Any] = {
            "attribute": None, "split": split, "image_size": facts.crop or facts.image_size,
        }  # fmt: skip
        self.num_trained_on = self.num_real if split in ("train", ALL) else 0
        self.data_root = facts.root or facts.manifest
        self._crop, self._output = facts.crop, found.experiment.output

    def batches(self, options: Options, note: Note) -> Iterator[dict[str, Any]]:
        """Of what samples are made for; `index` counts them."""
        done = 0
        for batch in _loaded(self.view, options, note):
            count = len(batch["index"])
            yield {**batch, "index": torch.arange(done, done + count)}
            done += count

    def protocol(self, meter: Meter) -> str:
        """Its short name; how samples are drawn counts too."""
        sampler = {
            key: getattr(self._output, key, None)
            for key in ("solver", "num_steps", "guidance", "sample_seed")
        }
        return protocol_name(
            meter.settings(),
            split=self.about["split"],
            crop=f"crop{self._crop}" if self._crop else "whole",
            image_size=self.about["image_size"],
            n=self.n,
            real=[drawn.fingerprint() for drawn in self.drawn.values()],
            sampler=sampler,
        )

    def floor(self, found: Restored, meter: Meter, real: Statistics) -> dict[str, Any]:
        """The distance of the real images' own latents, decoded: what a perfect model of them
        would have, but for the number of images."""
        decoder = found.task.decoder
        assert decoder is not None
        key = (
            self._file.fingerprint,
            self.about["split"],
            self.num_real,
            self._file.autoencoder.hash,
        )
        if key not in meter.floors:
            options, done = meter.options, 0
            gathered = Gathering(meter.extractor, self.num_real)
            for batch in _loaded(self.real_view, options, meter.listener.note):
                with found.looking():
                    images = decoder(to_device(batch, found.device)["latent"])
                gathered.add(images, list(range(done, done + len(images))))
                done += len(images)
                meter.listener.progress("decoded latents", "images", done, self.num_real)
            meter.floors[key] = meter.compare(real, Statistics.of(gathered.finish()), "floor")
        return meter.floors[key].numbers("floor", kid=False)

    def facts(self) -> dict[str, Any]:
        """Whose latents they are, for records and for who ranks autoencoders."""
        file, made = self._file, self._file.autoencoder
        return {
            "num_real_images": self.num_real,
            "latents_path": file.path.absolute(),
            "latents_fingerprint": file.fingerprint,
            "autoencoder": {
                "path": made.path,
                "hash": made.hash,
                "name": made.name,
                "family": made.family,
                "latent_shape": [*file.shape],
            },
        }


def _part(found: Restored, split: str) -> LatentPart:
    """A part of the file, whatever `data.max_images` left for training of it."""
    training = found.datasets.train
    assert isinstance(training, LatentPart)
    file: LatentsFile = training.latents.file
    if split == ALL:
        return training.of(range(len(file)))
    if split not in PARTS:
        raise UsageError(f"--split {split}: latents have {', '.join(PARTS)}", hint="or all")
    return training.of(file.rows_of(split).tolist())


def open_images(facts: DataFacts, names: list[str]) -> View:
    """The images that latents are of, at the size and crop at which they were encoded.

    Raises:
        DataError: they are not where they were, or some are missing.
    """
    where = facts.root or facts.manifest
    if where is None or not Path(where).exists():
        raise DataError(f"{where}: the images that the latents are of are not there", hint=HINT)
    try:
        source = open_source(where, kind=facts.dataset, skip_bad=True)  # type: ignore[arg-type]
    except UserError as error:
        raise DataError(f"the images that the latents are of: {error}", hint=HINT) from error
    place = {source.name(i): i for i in range(len(source))}
    missing = [name for name in names if name not in place]
    if missing:
        raise DataError(
            f"{where} lacks {len(missing)} of the {len(names)} images that the latents are of, "
            f"such as {missing[0]}",
            hint=HINT,
        )
    view = View(source, [place[name] for name in names], image_size=facts.image_size)
    return view if facts.crop is None else Middle(view, facts.crop)


def _loaded(view: View, options: Options, note: Note) -> Iterator[dict[str, Any]]:
    return loader(view, batch_size=options.batch_size, num_workers=options.num_workers, note=note)
