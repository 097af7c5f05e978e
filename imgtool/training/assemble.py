"""From a loaded config to everything the loop works with, in the order that it has to be done.

    machine   the group, the device, its arithmetic, threads
    material  the data, its split and fingerprint, the experiment's identity
    start     the checkpoint to go on from
    run       the task on the device, optimizers, state put back, logs

What is decided once is decided by rank 0 and broadcast; each step gives the lines that people
should read of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from imgtool.config.load import Loaded, to_dict
from imgtool.config.schema import Experiment
from imgtool.data.loader import (
    Datasets,
    default_workers,
    eval_loader,
    open_datasets,
    train_loader,
)
from imgtool.data.split import Split
from imgtool.errors import CheckpointError, UsageError
from imgtool.experiment import checkpoint_file
from imgtool.experiment.checkpoints import list_checkpoints
from imgtool.experiment.layout import ExperimentDir
from imgtool.experiment.status import SilentStatus, StatusFile
from imgtool.files import write_text
from imgtool.models.base import Task
from imgtool.models.registry import family as find_family
from imgtool.models.registry import schema
from imgtool.process.stopping import StopRequest
from imgtool.training.batches import Batches
from imgtool.training.context import Run
from imgtool.training.device import (
    Precision,
    configure_torch,
    doubt_precision,
    exactness,
    make_precision,
    resolve_device,
)
from imgtool.training.environment import shared_cores
from imgtool.training.loggers import Logs, SilentLogs, open_logs
from imgtool.training.meters import Meter
from imgtool.training.parts import Position, collect, parts_of, restore
from imgtool.training.ranks import Ranks
from imgtool.training.reader import FileReader
from imgtool.training.report import Reporter
from imgtool.training.resume import Start, choose_start, identify
from imgtool.training.schedule import make_schedule
from imgtool.training.step import Stepper
from imgtool.training.stopping import BestValue, TimeBudget
from imgtool.training.throughput import Throughput
from imgtool.training.validation import Validator
from imgtool.units import parse_duration

Status = StatusFile | SilentStatus


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What trains: this process among its ranks, on its device."""

    ranks: Ranks
    device: torch.device
    precision: Precision
    num_threads: int
    num_workers: int
    exactness: str
    notes: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Material:
    """What is trained on, and what that makes the experiment."""

    datasets: Datasets
    identity: str
    batches_per_epoch: int
    notes: Sequence[str]


def join_ranks(experiment: Experiment, ranks: Ranks) -> torch.device:
    """This process's device, with the group formed.

    Raises:
        UsageError: this machine has no such device.
    """
    device = resolve_device(experiment.train.device, ranks)
    ranks.join(device)
    return device


def open_material(experiment: Experiment, directory: ExperimentDir, ranks: Ranks) -> Material:
    """Rank 0 draws the split, or reads the one that has been trained on; the others open that.

    Raises:
        UserError: the data cannot be used, or is not the same on every rank.
    """
    opened: Datasets | None = None
    share = ranks if ranks.distributed else None

    def draw() -> str:
        nonlocal opened
        kept = directory.split_path  # without a checkpoint nothing has been trained on it
        started = bool(list_checkpoints(directory.checkpoints_dir))
        split = Split.read(kept) if started and kept.exists() else None
        opened = open_datasets(experiment.data, split=split, share=share)
        return opened.split.to_json()

    split = ranks.decide(draw)
    datasets = opened or open_datasets(experiment.data, split=Split.from_json(split), share=share)
    identity = identify(experiment, datasets.fingerprint)
    ranks.check_equal(
        {"the data": datasets.fingerprint, "the experiment": identity}, "what they train"
    )
    return Material(
        datasets=datasets,
        identity=identity,
        batches_per_epoch=datasets.batches_per_epoch(experiment.train.batch_size * ranks.size),
        notes=(
            *_some(datasets.missing, "listed image", "missing, left out"),
            *_some(datasets.tested_too, "image", "of the training data in the test set as well"),
            *_apart(datasets.unshared_cache),
        ),
    )


def find_start(
    resume: str,
    directory: ExperimentDir,
    loaded: Loaded,
    material: Material,
    ranks: Ranks,
    reporter: Reporter,
) -> Start:
    """Rank 0 chooses a checkpoint; every rank reads that one.

    Raises:
        UserError: see `choose_start`; or a rank finds another file under that name.
    """
    chosen: Start | None = None

    def choose() -> list[Any]:
        nonlocal chosen
        chosen = choose_start(
            resume, directory, loaded, material.identity, material.datasets.fingerprint, reporter
        )
        return _facts_of(chosen)

    wanted = ranks.decide(choose)
    if chosen is not None:
        return chosen
    if wanted[0] is None:
        return Start(None, None, material.identity)
    path = Path(wanted[0])
    start = Start(path, checkpoint_file.read(path), wanted[2])
    if _facts_of(start) != wanted:
        raise CheckpointError(
            f"rank 0 goes on from {path} at iteration {wanted[1]}, and rank {ranks.rank} finds "
            f"iteration {_facts_of(start)[1]} in it",
            hint="do all hosts see the same files?",
        )
    return start


def _facts_of(start: Start) -> list[Any]:
    if start.path is None or start.loaded is None:
        return [None, None, None]
    header = start.loaded.header
    return [str(start.path), header.iteration, header.identity or start.identity]


def set_up_machine(
    experiment: Experiment, material: Material, device: torch.device, ranks: Ranks
) -> Machine:
    """Loader processes, threads, arithmetic."""
    train, notes = experiment.train, []
    num_workers = experiment.data.num_workers
    if num_workers is None:
        cores = shared_cores(ranks.local_size)
        num_workers = default_workers(material.datasets.train, experiment.data, device.type, cores)
    threads = configure_torch(train, device, num_workers, ranks)
    if train.precision == "16-mixed" and device.type != "cuda":
        notes.append(f"note: 16-mixed is for CUDA; on {device.type} it is bf16-mixed")
    doubt = doubt_precision(train.precision, device)
    if doubt:
        notes.append(f"warning: {doubt}")
    return Machine(
        ranks=ranks,
        device=device,
        precision=make_precision(train.precision, device),
        num_threads=threads,
        num_workers=num_workers,
        exactness=exactness(train, device, ranks),
        notes=notes,
    )


def build_task(
    experiment: Experiment,
    material: Material,
    start: Start,
    directory: ExperimentDir,
    ranks: Ranks,
    reporter: Reporter,
) -> Task:
    """The task with its first weights, in the memory order that the config wants."""
    torch.manual_seed(experiment.train.seed)
    task = find_family(experiment.family).build(experiment, material.datasets.info)
    report = task.warm_start(FileReader()) if start.loaded is None else None
    if report is not None and ranks.is_first:
        counts = ", ".join(f"{len(names)} {kind}" for kind, names in report.items())
        reporter.message(f"began with another model's weights: {counts} (warm_start.json)")
        write_text(directory.path / "warm_start.json", json.dumps(report, indent=1) + "\n")
    if experiment.train.channels_last:
        task.modules.to(memory_format=torch.channels_last)
    return task


def make_run(
    loaded: Loaded,
    directory: ExperimentDir,
    machine: Machine,
    material: Material,
    start: Start,
    task: Task,
    *,
    stop: StopRequest,
    reporter: Reporter,
    status: Status,
) -> Run:
    """The task on its device with its state put back, and the logs opened.

    Raises:
        UserError: limits that contradict the task, or a checkpoint that does not fit it.
    """
    experiment, train = loaded.experiment, loaded.experiment.train
    ranks = machine.ranks
    if train.patience is not None and train.monitor is None and not task.has_best:
        raise UsageError(
            f"{experiment.family} has no metric of its own that early stopping could follow",
            hint=f"give --monitor, such as {task.monitor}, or leave --patience out",
        )
    facts = task.facts()
    throughput = Throughput()
    say = reporter.message if ranks.is_first else ranks.warn
    holds = any(not update.fresh_batch for update in task.all_updates())
    held = 1 + (train.accumulate if holds else 1)
    batches = Batches(
        partial(_open_train_loader, experiment, machine, material, held, say),
        machine.device,
        throughput,
        accumulate=train.accumulate,
        per_epoch=material.batches_per_epoch,
        world_size=ranks.size,
        held=holds,
        channels_last=train.channels_last,
    )
    if train.compile:
        task.compile()
    stepper = Stepper(
        ranks,
        task,
        train,
        batches,
        machine.precision,
        takes_turns=schema(experiment.family).takes_turns(experiment),
    )
    monitor = train.monitor or task.monitor
    best = BestValue(monitor, task.monitor_mode, train.patience, train.min_delta)
    closed = Meter(machine.device)
    position, spent, horizon = Position(), 0.0, None
    metrics: dict[str, float | None] = {}
    if start.loaded is not None and start.path is not None:
        restore(parts_of(stepper, closed, position, best), start.loaded)
        header = start.loaded.header
        spent, horizon = header.elapsed_sec, header.horizon
        metrics = dict(header.metrics)
        own = directory.checkpoint_path(position.iteration, position.update)
        if start.path.resolve() != own.resolve():
            position.saved = -1  # elsewhere, or under another name
        _warn_of_other_ranks(header.world_size, ranks, reporter)
    if ranks.distributed:
        parts = parts_of(stepper, closed, position, best)
        alike = {name: parts[name] for name in ("model", "optimizer", "ema")}
        ranks.check_equal(_digests(collect(alike)[0]), "parameters, buffers or optimizer state")
    config = to_dict(experiment)
    return Run(
        experiment=experiment,
        config=config,
        identity=start.identity,
        data_fingerprint=material.datasets.fingerprint,
        directory=directory,
        ranks=ranks,
        stepper=stepper,
        batches=batches,
        throughput=throughput,
        validator=_validator(experiment, machine, material, stepper, say),
        schedule=make_schedule(
            experiment, task, material.batches_per_epoch, horizon, position.iteration
        ),
        best=best,
        budget=TimeBudget(
            None if train.max_time is None else parse_duration(train.max_time), spent
        ),
        stop=stop,
        reporter=reporter,
        logs=_open_logs(experiment, config, directory, start.identity, position, ranks),
        status=status,
        position=position,
        closed=closed,
        metrics=metrics,
        facts=facts,
    )


def _open_train_loader(
    experiment: Experiment,
    machine: Machine,
    material: Material,
    held: int,
    say: Callable[[str], None],
    start: int,
) -> Iterator[dict[str, Any]]:
    return train_loader(
        material.datasets.train,
        experiment.data,
        seed=experiment.train.seed,
        batch_size=experiment.train.batch_size,
        start_batch=start,
        rank=machine.ranks.rank,
        world_size=machine.ranks.size,
        num_workers=machine.num_workers,
        pin_memory=machine.device.type == "cuda",
        local_ranks=machine.ranks.local_size,
        held=held,
        say=say,
    )


def _validator(
    experiment: Experiment,
    machine: Machine,
    material: Material,
    stepper: Stepper,
    say: Callable[[str], None],
) -> Validator | None:
    images, train = material.datasets.val, experiment.train
    if len(images) == 0:
        if train.patience is not None and not (train.monitor or "").startswith("train_"):
            raise UsageError(
                "early stopping needs validation images, and there are none",
                hint="give --val-root or --val-fraction, or a --monitor such as train_loss",
            )
        return None
    batches = eval_loader(
        images,
        experiment.data,
        batch_size=train.batch_size,
        rank=machine.ranks.rank,
        world_size=machine.ranks.size,
        num_workers=machine.num_workers,
        pin_memory=machine.device.type == "cuda",
        local_ranks=machine.ranks.local_size,
        say=say,
    )
    return Validator(
        stepper.task,
        stepper.averages,
        machine.precision,
        lambda: batches,
    )


def _open_logs(
    experiment: Experiment,
    config: dict[str, Any],
    directory: ExperimentDir,
    identity: str,
    position: Position,
    ranks: Ranks,
) -> Logs:
    if not ranks.is_first:
        return SilentLogs()
    folder = hashlib.blake2b(str(directory.path.absolute()).encode(), digest_size=4)
    return open_logs(experiment, config, directory, f"{identity}-{folder.hexdigest()}", position)


def _digests(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """A hash of every tensor that all ranks must have alike."""
    found = {}
    for name, tensor in tensors.items():
        if tensor.numel():
            data: Any = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
            found[name] = hashlib.blake2b(data, digest_size=8).hexdigest()
    return found


def _warn_of_other_ranks(before: int | None, ranks: Ranks, reporter: Reporter) -> None:
    if before not in (None, ranks.size):
        reporter.message(
            f"warning: {before} process(es) before, {ranks.size} now: "
            "a step takes more or fewer images than it did"
        )


def _some(names: Sequence[str], what: str, matter: str) -> list[str]:
    """A warning of some images, the first by name."""
    if not names:
        return []
    first = ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")
    return [f"warning: {count(len(names), what)} {matter}: {first}"]


def _apart(trouble: str | None) -> list[str]:
    if trouble is None:
        return []
    return [f"warning: each rank keeps decoded images of its own: {trouble}"]


def count(number: int, what: str) -> str:
    """`1 thread`, `2 threads`."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
