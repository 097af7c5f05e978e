"""Encoding a data set into a latents file, by one process or by several."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from imgtool.data.base import Size
from imgtool.data.latent_contents import AutoencoderFacts, Contents, DataFacts
from imgtool.data.latent_writing import LatentsWriter, beginning, finish
from imgtool.data.latents import LatentsFile
from imgtool.data.loader import default_workers, eval_pixels, silent
from imgtool.data.room import Say, affordable
from imgtool.data.rows import CentreRow
from imgtool.data.workers import Assembly, Crew, deliver
from imgtool.errors import Interrupted, NoAnswer
from imgtool.evaluation.encoding.grid import mask_on_grid
from imgtool.evaluation.encoding.images import Frame, Images, find_images
from imgtool.evaluation.restore import stored_split
from imgtool.models.base import Task
from imgtool.models.registry import schema
from imgtool.process.stopping import StopRequest
from imgtool.training.batches import to_device
from imgtool.training.device import channels_last, resolve_device
from imgtool.training.environment import cpu_threads, shared_cores
from imgtool.training.opening import best_of, read_trained
from imgtool.training.ranks import Ranks
from imgtool.training.weights import weights_hash

PROBE_SIZE = 256  # pixels; a multiple of any downsampling in use
AHEAD = 16  # batches that encoding may be ahead of writing
Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a data set is encoded.

    Attributes:
        dtype: that latents are stored as.
        logvar: store log variances as well.
        flips: store latents of the mirrored images as well.
        image_size, crop: as `Frame.chosen`.
        val_fraction: of data that are not the autoencoder's own: the part that validates.
        skip_bad: leave bad files out.
        device: as `train.device`.
        batch_size: images that are encoded at a time; chosen by their size when None.
        num_workers: processes that load images; chosen by the device when None.
    """

    dtype: Literal["float16", "float32"] = "float32"
    logvar: bool = False
    flips: bool = False
    image_size: int | None = None
    crop: int | None = None
    val_fraction: float | None = None
    skip_bad: bool = False
    device: str = "auto"
    batch_size: int | None = None
    num_workers: int | None = None


@dataclass(frozen=True)
class Plan:
    """All that is known before the first image is encoded.

    Attributes:
        contents: of the file that will be.
        images: in its order.
        size: (H, W) of an image as the encoder sees it.
        task: in eval mode on `device`.
        nhwc: whether images stay in NHWC order.
        notes: lines that people should read.
    """

    contents: Contents
    images: Images
    size: Size
    task: Task
    device: torch.device
    nhwc: bool
    options: Options
    notes: tuple[str, ...]

    @property
    def batch_size(self) -> int:
        """Images that are encoded at a time."""
        fitting = max(1, eval_pixels(self.device.type) // (self.size[0] * self.size[1]))
        return self.options.batch_size or fitting

    def batches(self) -> list[range]:
        """Positions of the images of every batch, whoever encodes it."""
        count, size = len(self.images), self.batch_size
        return [range(first, min(first + size, count)) for first in range(0, count, size)]


def make_plan(source: str, data: str | None, options: Options, ranks: Ranks) -> Plan:
    """Open a checkpoint and what it is to encode, and see that they go together.

    Args:
        source: a checkpoint file, or an exp_dir: its best checkpoint.
        data: a folder, a manifest or a packed file; the checkpoint's own when None.

    Raises:
        NoAnswer: its family makes no latents, or has no log variances.
        UserError: something cannot be read, or does not fit.
    """
    trained = read_trained(best_of(source))
    experiment = trained.experiment
    if not schema(experiment.family).encodes:
        raise _no_latents(trained.path, f"the family {experiment.family} makes no latents")
    device = resolve_device(options.device, ranks)
    task = trained.without_data()
    trained.put_into(task, experiment, device)
    nhwc = channels_last(experiment, device)
    channels, unit, has_logvar = _probe(task, device, nhwc, trained.path)
    if options.logvar and not has_logvar:
        raise NoAnswer(
            f"{trained.path}: its encoder gives one latent an image, no distribution of them",
            hint="leave --logvar out, or train with model.bottleneck=kl",
        )
    frame = Frame.chosen(options.image_size, options.crop, experiment.data)
    found = find_images(
        data,
        experiment.data,
        stored_split(trained.path),
        fingerprint=trained.loaded.header.data_fingerprint,
        image_size=frame.image_size,
        val_fraction=options.val_fraction,
        skip_bad=options.skip_bad,
    )
    images = found.images
    size = frame.size(images, unit)
    contents = Contents(
        names=tuple(images.name(i) for i in range(len(images))),
        groups=tuple(images.group(i) for i in range(len(images))),
        parts=images.parts,
        shape=(channels, size[0] // unit, size[1] // unit),
        dtype=options.dtype,
        autoencoder=AutoencoderFacts(
            path=str(trained.path.absolute()),
            hash=weights_hash(task.modules),
            name=experiment.name,
            family=experiment.family,
            downsampling=unit,
            bottleneck=getattr(experiment.model, "bottleneck", None),
        ),
        data=DataFacts(
            dataset=found.dataset,
            root=str(found.path) if found.dataset == "photos" else None,
            manifest=str(found.path) if found.dataset != "photos" else None,
            image_size=frame.image_size,
            crop=frame.crop,
            fingerprint=images.fingerprint,
        ),
        with_logvar=options.logvar,
        with_flipped=options.flips,
        label_names=images.label_names if "label" in images.targets else (),
        mask_names=images.mask_names if "mask" in images.targets else (),
        palette=images.palette if "mask" in images.targets else (),
    )
    notes = [f"left out: {name}" for name in found.bad_files]
    if not found.is_own and data is not None and options.val_fraction is None:
        notes.append(
            f"{data} is not what the autoencoder was trained on: all of it is the training part "
            "(--val-fraction holds some out)"
        )
    return Plan(contents, images, size, task, device, nhwc, options, tuple(notes))


def _no_latents(path: Path, why: str) -> NoAnswer:
    return NoAnswer(f"{path}: {why}", hint="give a checkpoint of an autoencoder with an rgb head")


def _probe(task: Task, device: torch.device, nhwc: bool, path: Path) -> tuple[int, int, bool]:
    """Channels, downsampling, and whether there are log variances."""
    blank = torch.zeros((1, PROBE_SIZE, PROBE_SIZE, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    batch = to_device({"image": blank}, device, channels_last=nhwc)
    with torch.no_grad():
        encoded = task.encode(batch["image"])
    if encoded is None:
        raise _no_latents(path, "its heads make no image of a latent")
    _, channels, height, _ = encoded.mean.shape
    return channels, PROBE_SIZE // height, encoded.logvar is not None


def encode(
    plan: Plan,
    out: Path,
    *,
    ranks: Ranks,
    stop: StopRequest,
    force: bool = False,
    progress: Progress | None = None,
    say: Say = silent,
) -> tuple[LatentsFile | None, int]:
    """Encode what is not encoded yet.

    Args:
        ranks: each encodes batches of its own; the first begins and finishes the file.
        stop: looked at between batches.
        force: replace another file that is there.
        progress: of the first rank: told images done and in all.

    Returns:
        The whole file, None on other ranks than the first, and how many images were encoded now.

    Raises:
        Interrupted: a stop was asked for; the same call goes on.
        UserError: as `beginning`, `LatentsWriter`, `finish`, and of images that cannot be read.
    """
    contents = plan.contents
    ranks.check_equal({"what is encoded": contents.identity}, "their data")
    with ExitStack() as held:
        begun = ranks.decide(lambda: held.enter_context(beginning(out, contents, force=force)))
        encoded = 0
        if not begun and ranks.is_first:
            say(f"{out} is complete already: left alone")
        if begun:
            encoded = sum(ranks.gather(encode_own(plan, out, ranks, stop, progress, say)))
        file = None
        if ranks.is_first:
            file = finish(out, contents) if begun else LatentsFile(out)
        ranks.wait_for_first()
    return file, encoded


def encode_own(
    plan: Plan,
    out: Path,
    ranks: Ranks,
    stop: StopRequest,
    progress: Progress | None = None,
    say: Say = silent,
) -> int:
    """The batches of this rank; returns how many images they had."""
    total, encoded = len(plan.images), 0
    with LatentsWriter(out, plan.contents) as writer:
        done = writer.done()
        own = plan.batches()[ranks.rank :: ranks.size]
        own = [batch for batch in own if not done[batch.start : batch.stop].all()]
        before = int(done.sum())
        if before and ranks.is_first:
            say(f"goes on after {before} of {total} images")
        with _Behind(writer) as behind:
            for rows, positions in _encoded(plan, own, ranks, say):
                behind.put(positions.start, rows)
                encoded += len(positions)
                if progress:
                    progress(min(total, before + encoded * ranks.size), total)
                if stop.wanted:
                    break
    if stop.wanted and encoded < sum(map(len, own)):
        raise Interrupted(
            f"{stop.reason}: stopped before all images were encoded",
            hint="the same command goes on from there",
        )
    return encoded


def _encoded(
    plan: Plan, own: list[range], ranks: Ranks, say: Say
) -> Iterator[tuple[dict[str, Tensor], range]]:
    """Rows for the file, batch by batch; on a GPU they are still on their way."""
    assembly, device = Assembly(plan.images, CentreRow(plan.size)), plan.device
    num_workers = plan.options.num_workers
    if num_workers is None:
        cores = shared_cores(ranks.local_size)
        num_workers = default_workers(plan.images, device.type, cores)
    num_workers = min(num_workers, len(own))
    if num_workers:
        largest = assembly.num_bytes(own[0])
        num_workers = affordable(num_workers, largest, 2, ranks.local_size, say)
    torch.set_num_threads(cpu_threads(ranks.local_size, num_workers))
    crew = Crew(num_workers, device.type == "cuda", say)
    draws = [list(batch) for batch in own]
    loaded = deliver(assembly, lambda done: draws[done:], crew, len(draws))
    for batch, positions in zip(loaded, own, strict=True):
        with torch.no_grad():
            yield rows_of(plan, batch), positions


def rows_of(plan: Plan, batch: dict[str, Any]) -> dict[str, Tensor]:
    """What the file has of a batch of images, sent to the CPU without waiting."""
    contents = plan.contents
    rows = {"label": batch["label"]} if contents.label_names else {}
    there = to_device(batch, plan.device, channels_last=plan.nhwc)
    if contents.mask_names:
        grid = (contents.shape[1], contents.shape[2])
        rows["mask"] = mask_on_grid(there["mask"], grid, len(contents.mask_names))
    for end in ("", "_flipped") if contents.with_flipped else ("",):
        images = there["image"].flip(3) if end else there["image"]
        encoded = plan.task.encode(images)
        assert encoded is not None
        rows[f"mean{end}"] = encoded.mean.float()
        if contents.with_logvar:
            assert encoded.logvar is not None
            rows[f"logvar{end}"] = encoded.logvar.float()
    return {name: values.to("cpu", non_blocking=True) for name, values in rows.items()}


class _Behind:
    """Writes in a thread of its own, so that encoding does not wait for a disk.

    Raises:
        UserError: from `put` or at the end, what writing met.
    """

    def __init__(self, writer: LatentsWriter) -> None:
        self._writer = writer
        self._waiting: queue.Queue[tuple[int, dict[str, Tensor], Any] | None] = queue.Queue(AHEAD)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="latents", daemon=True)

    def __enter__(self) -> _Behind:
        self._thread.start()
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        self._waiting.put(None)
        self._thread.join()
        if kind is None and self._error is not None:
            raise self._error

    def put(self, first: int, rows: dict[str, Tensor]) -> None:
        """Have rows written that may still be on their way from the device."""
        if self._error is not None:
            raise self._error
        arrival = None
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            arrival = torch.cuda.Event()
            arrival.record()
        self._waiting.put((first, rows, arrival))

    def _work(self) -> None:
        while (work := self._waiting.get()) is not None:
            if self._error is not None:
                continue  # so that nobody waits for room
            first, rows, arrival = work
            try:
                if arrival is not None:
                    arrival.synchronize()
                self._writer.put(first, {name: row.numpy() for name, row in rows.items()})
            except BaseException as error:
                self._error = error
