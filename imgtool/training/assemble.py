"""Everything the loop works with: the task on the device, optimizers, state put back, logs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from imgtool.config.load import Loaded, to_dict
from imgtool.config.schema import Experiment
from imgtool.data.loader import eval_loader, eval_pixels, train_loader
from imgtool.errors import UsageError
from imgtool.experiment.layout import ExperimentDir
from imgtool.experiment.metrics import mode_of
from imgtool.experiment.status import Status
from imgtool.files import write_text
from imgtool.models.base import Task
from imgtool.models.registry import family as find_family
from imgtool.models.registry import schema
from imgtool.nn.kernels import choices_of
from imgtool.process.stopping import StopRequest
from imgtool.training.batches import Batches
from imgtool.training.context import Run
from imgtool.training.limits import BestValue, TimeBudget
from imgtool.training.loggers import Logs, SilentLogs, open_logs
from imgtool.training.machine import Machine
from imgtool.training.material import Material
from imgtool.training.meters import Meter
from imgtool.training.parts import Position, collect, parts_of, restore
from imgtool.training.ranks import Ranks
from imgtool.training.reader import FileReader
from imgtool.training.report import Reporter
from imgtool.training.resume import Start
from imgtool.training.schedule import make_schedule
from imgtool.training.step import Stepper
from imgtool.training.throughput import Throughput
from imgtool.training.validation import Validator
from imgtool.units import count, parse_duration


def build_task(
    experiment: Experiment,
    material: Material,
    start: Start,
    directory: ExperimentDir,
    ranks: Ranks,
    reporter: Reporter,
) -> Task:
    """The task with its first weights."""
    torch.manual_seed(experiment.train.seed)
    task = find_family(experiment.family).build(experiment, material.datasets.info)
    report = task.warm_start(FileReader()) if start.loaded is None else None
    if report is not None and ranks.is_first:
        counts = ", ".join(f"{len(names)} {kind}" for kind, names in report.items())
        reporter.message(f"began with another model's weights: {counts} (warm_start.json)")
        write_text(directory.path / "warm_start.json", json.dumps(report, indent=1) + "\n")
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
    pause_at: int | str | None = None,
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
    if machine.channels_last:
        task.modules.to(memory_format=torch.channels_last)
    facts = task.facts()
    throughput = Throughput()
    say = reporter.message if ranks.is_first else ranks.warn
    batches = _open_batches(experiment, machine, material, task, throughput, say)
    _choose_kernels(task, machine)
    if train.compile:
        task.compile()
    takes_turns = schema(experiment.family).takes_turns(experiment)
    stepper = Stepper(ranks, task, train, batches, machine.precision, takes_turns=takes_turns)
    past = _go_on_from(start, stepper, directory, reporter)
    position, epoch = past.position, material.batches_per_epoch
    config = to_dict(experiment)
    limit_sec = None if train.max_time is None else parse_duration(train.max_time)
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
        schedule=make_schedule(experiment, task, epoch, past.horizon, position.iteration, pause_at),
        best=past.best,
        budget=TimeBudget(limit_sec, past.spent_sec),
        stop=stop,
        reporter=reporter,
        logs=_open_logs(experiment, config, directory, start.identity, position, ranks),
        status=status,
        position=position,
        closed=past.closed,
        metrics=past.metrics,
        facts=facts,
    )


def _choose_kernels(task: Task, machine: Machine) -> None:
    """One choice for all ranks, timed before anything is compiled; a checkpoint may know better."""
    device = machine.device
    for choice in choices_of(task.modules):
        choice.use(machine.ranks.decide(partial(choice.of, device)), device)


@dataclass(kw_only=True)
class _Past:
    """What a run has behind it: nothing yet, or what a checkpoint says.

    Attributes:
        position: how far it has come.
        closed: losses of the logged windows since the last row of the metrics table.
        best: the best value so far.
        spent_sec: training time of earlier starts.
        horizon: of the schedule, as a header has it.
        metrics: the checkpoint's.
    """

    position: Position
    closed: Meter
    best: BestValue
    spent_sec: float = 0.0
    horizon: Any = None
    metrics: dict[str, float | None] = field(default_factory=dict)


def _go_on_from(
    start: Start, stepper: Stepper, directory: ExperimentDir, reporter: Reporter
) -> _Past:
    """Put everything back to where the checkpoint has it, on every rank alike.

    Raises:
        CheckpointError: it does not fit the task.
        ExperimentError: the ranks hold different values.
    """
    task, train, ranks = stepper.task, stepper.train, stepper.ranks
    monitor = train.monitor or task.monitor
    mode = task.monitor_mode if monitor == task.monitor else mode_of(monitor)
    best = BestValue(monitor, mode, train.patience, train.least_gain)
    past = _Past(position=Position(), closed=Meter(stepper.device), best=best)
    parts = parts_of(stepper, past.closed, past.position, best)
    if start.loaded is not None and start.path is not None:
        restore(parts, start.loaded)
        header = start.loaded.header
        past.spent_sec, past.horizon = header.elapsed_sec, header.horizon
        past.metrics = dict(header.metrics)
        own = directory.checkpoint_path(past.position.iteration, past.position.update)
        if start.path.resolve() != own.resolve():
            past.position.saved = -1  # elsewhere, or under another name
        _warn_of_other_ranks(header.world_size, ranks, reporter)
    if ranks.distributed:
        alike = {name: parts[name] for name in ("model", "optimizer", "ema")}
        ranks.check_equal(_digests(collect(alike)[0]), "parameters, buffers or optimizer state")
    return past


def _open_batches(
    experiment: Experiment,
    machine: Machine,
    material: Material,
    task: Task,
    throughput: Throughput,
    say: Callable[[str], None],
) -> Batches:
    train = experiment.train
    holds = any(not update.fresh_batch for update in task.all_updates())
    held = 1 + (train.accumulate if holds else 1)
    return Batches(
        partial(_open_train_loader, experiment, machine, material, held, say),
        machine.device,
        throughput,
        accumulate=train.accumulate,
        per_epoch=material.batches_per_epoch,
        world_size=machine.ranks.size,
        held=holds,
        channels_last=machine.channels_last,
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
        held=held,
        say=say,
        **_here(machine),
    )


def _here(machine: Machine) -> dict[str, Any]:
    """What a loader must know of this process."""
    return {
        "rank": machine.ranks.rank,
        "world_size": machine.ranks.size,
        "num_workers": machine.num_workers,
        "pin_memory": machine.device.type == "cuda",
        "local_ranks": machine.ranks.local_size,
    }


def _validator(
    experiment: Experiment,
    machine: Machine,
    material: Material,
    stepper: Stepper,
    say: Callable[[str], None],
) -> Validator | None:
    images = material.datasets.val
    if len(images) == 0:
        return None
    # On a CPU they would keep the memory of all that this process computes in between.
    lasting = machine.device.type != "cpu"
    batches = eval_loader(
        images,
        max_pixels=eval_pixels(machine.device.type),
        lasting=lasting,
        say=say,
        **_here(machine),
    )
    return Validator(
        stepper.task,
        stepper.averages,
        machine.precision,
        batches,
        channels_last=machine.channels_last,
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
    if before is not None and before != ranks.size:
        reporter.message(
            f"warning: trained on {count(before, 'rank')} so far and on {ranks.size} from here: "
            "a step takes more or fewer images than it did"
        )
