"""From a loaded config to a running experiment: data, model, resume, loop, last status."""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import torch

from imgtool.config.load import Loaded, to_dict, to_yaml
from imgtool.data.loader import (
    Datasets,
    default_workers,
    eval_loader,
    open_datasets,
    train_loader,
)
from imgtool.data.split import Split
from imgtool.errors import DivergedError, ExperimentError, OutOfMemory, UsageError, UserError
from imgtool.experiment import provenance
from imgtool.experiment.checkpoints import list_checkpoints, remove_temporaries
from imgtool.experiment.layout import ExperimentDir
from imgtool.experiment.status import StatusFile
from imgtool.files import write_text
from imgtool.models.base import Task
from imgtool.models.registry import family as find_family
from imgtool.models.registry import schema
from imgtool.training.agreement import Agreement
from imgtool.training.context import Run
from imgtool.training.device import (
    configure_torch,
    doubt_precision,
    exactness,
    make_fabric,
    resolve_device,
)
from imgtool.training.environment import Launch, read_launch, shared_cores
from imgtool.training.keepsakes import leave_keepsakes
from imgtool.training.loggers import Logs, open_logs
from imgtool.training.loop import Loop
from imgtool.training.reader import FileReader
from imgtool.training.report import Outcome, Reporter
from imgtool.training.resume import Start, choose_start, identify
from imgtool.training.schedule import make_schedule
from imgtool.training.state import Position, restore
from imgtool.training.step import Stepper
from imgtool.training.stopping import BestValue, StopRequest, TimeBudget
from imgtool.training.trainlog import LoggedReporter, train_log
from imgtool.training.validation import Validator
from imgtool.units import parse_duration


def train(
    loaded: Loaded,
    directory: ExperimentDir,
    *,
    stop: StopRequest,
    reporter: Reporter,
    resume: str = "auto",
    argv: Sequence[str] = (),
) -> Outcome:
    """Train an experiment in its directory, which the caller has created and locked.

    Args:
        loaded: the checked config with the origin of each value.
        stop: asked by signals; looked at between updates.
        resume: `auto` goes on from the newest valid checkpoint, `never` refuses a directory
            that has one, a path names one.
        argv: the command line, for provenance.json.

    Raises:
        UserError: of the kind that says what is wrong; status.json says so too.
    """
    launch = read_launch()
    status = StatusFile(directory) if launch.is_first else None
    with train_log(directory, first=launch.is_first):
        news = LoggedReporter(reporter)
        try:
            outcome = _train(loaded, directory, stop, news, resume, argv, launch, status)
        except BaseException as error:
            exhausted = _memory_is_out(error)
            _note_failure(status, exhausted or error, directory)
            if exhausted is not None:
                raise exhausted from error
            raise
        finally:
            if status is not None:
                status.stop_heartbeat()
        if status is not None:
            status.write(
                outcome.state,  # type: ignore[arg-type]
                outcome.reason,
                iteration=outcome.iteration,
                epoch=round(outcome.epoch, 4),
                elapsed_sec=outcome.elapsed_sec,
                eta_sec=None,
                best=outcome.best,
                checkpoint=str(outcome.checkpoint) if outcome.checkpoint else None,
            )
        news.message(f"{outcome.state} at iteration {outcome.iteration} ({outcome.reason})")
        return outcome


def _memory_is_out(error: BaseException) -> OutOfMemory | None:
    """A full memory, of the device or of the machine, in words that help."""
    words = str(error).lower()
    is_cpu = isinstance(error, RuntimeError) and "can't allocate memory" in words
    if not is_cpu and not isinstance(error, torch.OutOfMemoryError | MemoryError):
        return None
    return OutOfMemory(
        f"out of memory: {' '.join(str(error).split())[:200] or type(error).__name__}",
        hint="a smaller --batch-size with more --accumulate, a smaller --crop, or bf16-mixed",
    )


def _note_failure(
    status: StatusFile | None, error: BaseException, directory: ExperimentDir
) -> None:
    logging.getLogger("imgtool.train").error("%s: %s", type(error).__name__, error)
    if status is None:
        return
    refused = isinstance(error, UserError) and not status.has_run
    if refused and directory.status_path.exists():
        return  # what this directory's own experiment last said stays true
    state = "diverged" if isinstance(error, DivergedError) else "failed"
    with suppress(UserError):  # the disk that refused the checkpoint refuses this too
        status.write(state, f"{type(error).__name__}: {error}"[:500])  # type: ignore[arg-type]


def _train(
    loaded: Loaded,
    directory: ExperimentDir,
    stop: StopRequest,
    reporter: Reporter,
    resume: str,
    argv: Sequence[str],
    launch: Launch,
    status: StatusFile | None,
) -> Outcome:
    experiment = loaded.experiment
    device = resolve_device(experiment.train.device)
    datasets = _open_data(loaded, directory)
    _tell(datasets.missing, "listed image", "missing, left out", reporter)
    _tell(datasets.tested_too, "image", "of the training data in the test set as well", reporter)
    identity = identify(experiment, datasets.fingerprint)
    start = choose_start(resume, directory, loaded, identity, datasets.fingerprint, reporter)
    identity = start.identity
    workers = experiment.data.num_workers
    if workers is None:
        workers = default_workers(
            datasets.train, experiment.data, device.type, shared_cores(launch.local_world_size)
        )
    threads = configure_torch(experiment.train, device, workers, launch)
    takes_turns = schema(experiment.family).takes_turns(experiment)
    fabric = make_fabric(experiment.train, device, launch, takes_turns=takes_turns)
    if experiment.train.precision == "16-mixed" and device.type != "cuda":
        reporter.message(f"note: 16-mixed is for CUDA; on {device.type} it is bf16-mixed")
    doubt = doubt_precision(experiment.train.precision, device)
    if doubt:
        reporter.message(f"warning: {doubt}")
    if status is not None:
        _write_start(loaded, directory, datasets, identity, argv)
        status.write(
            "running",
            exact_resume=exactness(experiment.train, device, launch),
            num_threads=threads,
            num_workers=workers,
            device=str(fabric.device),
            identity=identity,
        )
        status.start_heartbeat()
    torch.manual_seed(experiment.train.seed)
    task = find_family(experiment.family).build(experiment, datasets.info)
    facts = task.facts()
    if start.loaded is None:
        _warm_start(task, directory, reporter, first=status is not None)
    if experiment.train.channels_last:
        task.modules.to(memory_format=torch.channels_last)
    if experiment.train.compile:
        for module in task.compile_targets():
            module.compile()
    open_loader = partial(_open_train_loader, experiment, datasets, launch, workers, device)
    num_batches = datasets.batches_per_epoch(experiment.train.batch_size * launch.world_size)
    stepper = Stepper(
        fabric, task, experiment.train, launch, open_loader, batches_per_epoch=num_batches
    )
    run = _assemble(
        loaded, directory, datasets, identity, start, stepper, stop, reporter, workers, status
    )
    del start  # a whole checkpoint; its tensors have been copied
    run.facts.update(facts)
    if status is not None:
        status.remember(facts=dict(run.facts), max_iteration=run.schedule.last)
    reporter.message(_headline(run, datasets, threads, workers))
    for line in run.schedule.notes:
        reporter.message(line)
    for line in task.doubts(run.schedule.last, num_batches / experiment.train.accumulate):
        reporter.message(f"warning: {line}")
    try:
        outcome = Loop(run)()
        leave_keepsakes(run)
        return outcome
    finally:
        stepper.close()
        if run.logs is not None:
            run.logs.close()


def _open_data(loaded: Loaded, directory: ExperimentDir) -> Datasets:
    kept = directory.split_path  # without a checkpoint nothing has been trained on it
    started = bool(list_checkpoints(directory.checkpoints_dir))
    split = Split.read(kept) if started and kept.exists() else None
    return open_datasets(loaded.experiment.data, split=split)


def _tell(names: Sequence[str], what: str, matter: str, reporter: Reporter) -> None:
    """Warn of some images, the first by name."""
    if names:
        more = " ..." if len(names) > 5 else ""
        first = ", ".join(names[:5]) + more
        reporter.message(f"warning: {_count(len(names), what)} {matter}: {first}")


def _warm_start(task: Task, directory: ExperimentDir, reporter: Reporter, *, first: bool) -> None:
    report = task.warm_start(FileReader())
    if report is None or not first:
        return
    counts = ", ".join(f"{len(names)} {kind}" for kind, names in report.items())
    reporter.message(f"began with another model's weights: {counts} (warm_start.json)")
    write_text(directory.path / "warm_start.json", json.dumps(report, indent=1) + "\n")


def _write_start(
    loaded: Loaded, directory: ExperimentDir, datasets: Datasets, identity: str, argv: Sequence[str]
) -> None:
    """What must be on disk before iteration 0."""
    for folder in (directory.path, directory.checkpoints_dir, directory.samples_dir):
        remove_temporaries(folder)
    try:
        write_text(directory.config_path, to_yaml(loaded))
        if datasets.split is not None:
            datasets.split.write(directory.split_path)
    except OSError as error:
        raise ExperimentError(
            f"cannot write to {directory.path}: {error.strerror or error}",
            hint="check the disk and the permissions",
        ) from error
    seed = loaded.experiment.train.seed
    provenance.write(
        directory, provenance.collect(list(argv) or sys.argv, seed, datasets.fingerprint, identity)
    )


def _open_train_loader(
    experiment: Any,
    datasets: Datasets,
    launch: Launch,
    workers: int,
    device: torch.device,
    start: int,
) -> Iterator[dict[str, Any]]:
    return train_loader(
        datasets.train,
        experiment.data,
        seed=experiment.train.seed,
        batch_size=experiment.train.batch_size,
        start_batch=start,
        rank=launch.rank,
        world_size=launch.world_size,
        num_workers=workers,
        pin_memory=device.type == "cuda",
    )


def _validator(
    experiment: Any, datasets: Datasets, stepper: Stepper, workers: int
) -> Validator | None:
    if len(datasets.val) == 0:
        train = experiment.train
        if train.patience is not None and not (train.monitor or "").startswith("train_"):
            raise UsageError(
                "early stopping needs validation images, and there are none",
                hint="give --val-root or --val-fraction, or a --monitor such as train_loss",
            )
        return None
    launch, device = stepper.launch, stepper.device
    batches = eval_loader(
        datasets.val,
        experiment.data,
        batch_size=experiment.train.batch_size,
        rank=launch.rank,
        world_size=launch.world_size,
        num_workers=workers,
        pin_memory=device.type == "cuda",
    )
    return Validator(stepper.task, stepper.ema, stepper.fabric.autocast, lambda: batches, device)


def _assemble(
    loaded: Loaded,
    directory: ExperimentDir,
    datasets: Datasets,
    identity: str,
    start: Start,
    stepper: Stepper,
    stop: StopRequest,
    reporter: Reporter,
    workers: int,
    status: StatusFile | None,
) -> Run:
    experiment, train = loaded.experiment, loaded.experiment.train
    task = stepper.task
    if train.patience is not None and train.monitor is None and not task.has_best:
        raise UsageError(
            f"{experiment.family} has no metric of its own that early stopping could follow",
            hint=f"give --monitor, such as {task.monitor}, or leave --patience out",
        )
    best = BestValue(
        train.monitor or task.monitor, task.monitor_mode, train.patience, train.min_delta
    )
    position, spent, horizon = Position(), 0.0, None
    metrics: dict[str, float | None] = {}
    if start.loaded is not None and start.path is not None:
        position = restore(stepper, best, start.loaded, start.path)
        header = start.loaded.header
        spent, horizon = float(header.get("elapsed_sec", 0.0)), header.get("horizon")
        metrics = header["metrics"]
        if start.path.resolve() != directory.checkpoint_path(position.iteration).resolve():
            position.saved = -1  # elsewhere, or under another name
        _warn_of_other_ranks(header["position"].get("world_size"), stepper.launch, reporter)
    config = to_dict(experiment)
    logs: Logs | None = None
    if stepper.launch.is_first:
        place = hashlib.blake2b(str(directory.path.absolute()).encode(), digest_size=4)
        run_id = f"{identity}-{place.hexdigest()}"
        logs = open_logs(experiment, config, directory, run_id, position)
    return Run(
        experiment=experiment,
        config=config,
        identity=identity,
        data_fingerprint=datasets.fingerprint,
        facts={},
        directory=directory,
        stepper=stepper,
        validator=_validator(experiment, datasets, stepper, workers),
        schedule=make_schedule(
            experiment, task, stepper.batches_per_epoch, horizon, position.iteration
        ),
        position=position,
        metrics=metrics,
        best=best,
        budget=TimeBudget(
            None if train.max_time is None else parse_duration(train.max_time), spent
        ),
        stop=stop,
        agreement=Agreement(stepper.launch),
        reporter=reporter,
        logs=logs,
        status=status,
    )


def _warn_of_other_ranks(before: int | None, launch: Launch, reporter: Reporter) -> None:
    if before not in (None, launch.world_size):
        reporter.message(
            f"warning: {before} process(es) before, {launch.world_size} now: "
            "a step takes more or fewer images than it did"
        )


def _headline(run: Run, datasets: Datasets, threads: int, workers: int) -> str:
    begin = run.position.iteration
    where = f"resuming at iteration {begin}" if begin else "starting"
    parameters = run.facts.get("num_parameters")
    size = f"{parameters / 1e6:.2f} M parameters, " if isinstance(parameters, int) else ""
    return (
        f"{where}: {run.experiment.name} on {run.stepper.device} ({_count(threads, 'thread')}, "
        f"{_count(workers, 'loader worker')}), {size}{len(datasets.train)} training and "
        f"{len(datasets.val)} validation images"
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
