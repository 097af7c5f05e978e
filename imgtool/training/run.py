"""Training an experiment from its config to its last status.

Torch is imported once the data are open and the directory is known to be this experiment's.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from imgtool.config.identity import identity_values, to_dict
from imgtool.config.load import Loaded, to_yaml
from imgtool.config.schema import Experiment
from imgtool.errors import DivergedError, ExperimentError, OutOfMemory, UserError
from imgtool.experiment import provenance
from imgtool.experiment.checkpoints import remove_temporaries
from imgtool.experiment.layout import ExperimentDir
from imgtool.experiment.status import SilentStatus, Status, StatusFile, say_for
from imgtool.files import write_text
from imgtool.process.stopping import StopRequest
from imgtool.schedulers import registry
from imgtool.training.environment import resume_collection
from imgtool.training.material import Material, check_material, find_start, open_material
from imgtool.training.ranks import KILLED, RankFailed, Ranks, forget_errors
from imgtool.training.report import Outcome, Reporter
from imgtool.training.trainlog import LoggedReporter, train_log
from imgtool.units import count

if TYPE_CHECKING:
    from imgtool.training.context import Run
    from imgtool.training.machine import Machine


def train(
    loaded: Loaded,
    directory: ExperimentDir,
    *,
    stop: StopRequest,
    reporter: Reporter,
    ranks: Ranks | None = None,
    resume: str = "auto",
    pause_at: int | str | None = None,
    argv: Sequence[str] = (),
    attempt: int | None = None,
) -> Outcome:
    """Train an experiment in its directory, which the caller has created and owns on rank 0.

    Args:
        loaded: the checked config with the origin of each value.
        stop: asked by signals; looked at between updates.
        ranks: this process among others, of `open_ranks`; alone when None.
        resume: `auto` goes on from the newest valid checkpoint, `never` refuses a directory
            that has one, a path names one.
        pause_at: iterations or epochs (1000, 3ep) after which it saves, validates and stops;
            going on from there gives what never pausing gives.
        argv: the command line, for provenance.json.
        attempt: the number of this start, as the directory's owner has it.

    Raises:
        UserError: of the kind that says what is wrong; status.json says so too. Where another
            rank failed first, its words.
    """
    ranks = ranks or Ranks()
    status: Status = StatusFile(directory, attempt=attempt) if ranks.is_first else SilentStatus()
    ranks.on_failure = lambda error: _note_failure(ranks, status, error, directory)
    with train_log(directory, first=ranks.is_first):
        news = LoggedReporter(reporter)
        try:
            outcome = _train(loaded, directory, stop, news, ranks, status, resume, pause_at, argv)
        except BaseException as error:
            cause = ranks.explain(_memory_is_out(error) or error)
            _note_failure(ranks, status, cause, directory)
            if cause is not error:
                raise cause from error
            raise
        finally:
            status.stop_heartbeat()
        status.write(
            outcome.state,  # type: ignore[arg-type]
            outcome.reason,
            iteration=outcome.iteration,
            epoch=round(outcome.epoch, 4),
            elapsed_sec=outcome.elapsed_sec,
            eta_sec=None,
            best=outcome.best,
            checkpoint=str(outcome.checkpoint) if outcome.checkpoint else None,
            **({"paused": _pause(pause_at, outcome)} if outcome.is_paused else {}),
        )
        within = f", after {outcome.update} of {outcome.num_updates} updates of the next"
        news.message(
            f"{outcome.state} at iteration {outcome.iteration}{within if outcome.update else ''} "
            f"({outcome.reason})"
        )
        return outcome


def _train(
    loaded: Loaded,
    directory: ExperimentDir,
    stop: StopRequest,
    reporter: Reporter,
    ranks: Ranks,
    status: Status,
    resume: str,
    pause_at: int | str | None,
    argv: Sequence[str],
) -> Outcome:
    experiment = loaded.experiment
    ranks.decide(lambda: forget_errors(directory.path))
    ranks.may_write = True
    ranks.check_equal(_settings(experiment), "their config")
    warning = ranks.decide(lambda: provenance.check_code(directory))
    material = open_material(experiment, directory, ranks)
    start = find_start(resume, directory, loaded, material, ranks, reporter)
    check_material(experiment, material.datasets)

    from imgtool.training import assemble
    from imgtool.training.decoder import find_decoder
    from imgtool.training.keepsakes import leave_keepsakes
    from imgtool.training.loop import Loop
    from imgtool.training.machine import join_ranks, set_up_machine

    device = join_ranks(experiment, ranks)
    machine = set_up_machine(experiment, material, device, ranks)
    notes = [*material.notes, *machine.notes, *([f"warning: {warning}"] if warning else [])]
    for note in notes:
        reporter.message(note)
    decoder = find_decoder(material.datasets.info.latents, device, ranks, reporter)
    if ranks.is_first:
        _write_start(loaded, directory, material, machine, start.identity, argv)
    status.write(
        "running",
        exact_resume=machine.exactness,
        num_threads=machine.num_threads,
        num_workers=machine.num_workers,
        device=str(device),
        world_size=ranks.size,
        identity=start.identity,
        warning=warning,
        pause_at=pause_at,
    )
    status.start_heartbeat()
    task = assemble.build_task(experiment, material, start, directory, ranks, reporter)
    task.decoder = decoder
    run = assemble.make_run(
        loaded,
        directory,
        machine,
        material,
        start,
        task,
        stop=stop,
        reporter=reporter,
        status=status,
        pause_at=pause_at,
    )
    del start  # a whole checkpoint; its tensors have been copied
    status.remember(facts=dict(run.facts), max_iteration=run.schedule.last)
    if ranks.is_first:
        for line in _first_words(run, machine, material):
            reporter.message(line)
    resume_collection()
    try:
        outcome = Loop(run)()
        leave_keepsakes(run)
        ranks.wait_for_first()
        return outcome
    finally:
        run.batches.close()
        if run.validator is not None:
            run.validator.close()
        run.logs.close()


def _pause(pause_at: int | str | None, outcome: Outcome) -> dict[str, Any]:
    """What status.json says of a pause until training goes on."""
    return {"at": pause_at, "iteration": outcome.iteration, "metrics": dict(outcome.metrics)}


def _settings(experiment: Experiment) -> dict[str, str]:
    """What every rank must be told alike: all but where files are, and threads."""
    values = identity_values(experiment)
    values |= {f"train.{key}": value for key, value in to_dict(experiment)["train"].items()}
    values |= {"data.skip_bad": experiment.data.skip_bad}
    del values["train.threads"], values["train.device"]
    return {key: str(value) for key, value in values.items()}


def _write_start(
    loaded: Loaded,
    directory: ExperimentDir,
    material: Material,
    machine: Machine,
    identity: str,
    argv: Sequence[str],
) -> None:
    """What must be on disk before iteration 0."""
    for folder in (directory.path, directory.checkpoints_dir, directory.samples_dir):
        remove_temporaries(folder)
    try:
        write_text(directory.config_path, to_yaml(loaded))
        material.datasets.split.write(directory.split_path)
    except OSError as error:
        raise ExperimentError(
            f"cannot write to {directory.path}: {error.strerror or error}",
            hint="check the disk and the permissions",
        ) from error
    seed, fingerprint = loaded.experiment.train.seed, material.datasets.fingerprint
    words = list(argv) or sys.argv
    job = registry.own_job(os.environ)
    record = provenance.collect(words, seed, fingerprint, identity, machine.arithmetic, job)
    provenance.write(directory, record)


def _first_words(run: Run, machine: Machine, material: Material) -> list[str]:
    """What a person should know before the first iteration."""
    from imgtool.training.estimate import slow_note

    begin, train = run.position.iteration, run.experiment.train
    where = f"resuming at iteration {begin}" if begin else "starting"
    parameters = run.facts.get("num_parameters")
    size = f"{parameters / 1e6:.2f} M parameters, " if isinstance(parameters, int) else ""
    ranks = f" x {machine.ranks.size} ranks" if machine.ranks.distributed else ""
    lines = [
        f"{where}: {run.experiment.name} on {machine.device}{ranks} "
        f"({count(machine.num_threads, 'thread')}, {count(machine.num_workers, 'loader worker')}),"
        f" {size}{len(material.datasets.train)} training and {len(material.datasets.val)} "
        "validation images"
    ]
    if run.schedule.last is None and train.max_time is None and train.patience is None:
        lines.append("no limit set: Ctrl-C saves and stops")
    iterations_per_epoch = material.batches_per_epoch / train.accumulate
    if slow := slow_note(run.experiment, material.datasets.info, machine.device):
        lines.append(slow)
    doubts = run.stepper.task.doubts(run.schedule.last, iterations_per_epoch)
    return [*lines, *run.schedule.notes, *(f"warning: {line}" for line in doubts)]


def _memory_is_out(error: BaseException) -> OutOfMemory | None:
    """A full memory, of the device or of the machine, in words that help."""
    words = str(error).lower()
    is_cpu = isinstance(error, RuntimeError) and "can't allocate memory" in words
    torch = sys.modules.get("torch")  # what is refused before it is needed does not import it
    kinds = (MemoryError, torch.OutOfMemoryError) if torch else (MemoryError,)
    if not is_cpu and not isinstance(error, kinds):
        return None
    return OutOfMemory(
        f"out of memory: {' '.join(str(error).split())[:200] or type(error).__name__}",
        hint="a smaller --batch-size with more --accumulate, a smaller --crop, or bf16-mixed",
    )


def _note_failure(
    ranks: Ranks, status: Status, error: BaseException, directory: ExperimentDir
) -> None:
    logging.getLogger("imgtool.train").error("%s: %s", type(error).__name__, error)
    followed = error.failure if isinstance(error, RankFailed) else None
    kind = followed.kind if followed else type(error).__name__
    words = f"{error}" if followed else f"{kind}: {error}"
    state = "diverged" if kind == DivergedError.__name__ else "failed"
    if not ranks.is_first:
        if followed and followed.rank == 0 and kind == KILLED:  # it cannot say so itself
            with suppress(OSError):
                say_for(directory, state, words[:500])  # type: ignore[arg-type]
        return
    refused = isinstance(error, UserError) and not status.has_run
    if refused and directory.status_path.exists():
        return  # what this directory's own experiment last said stays true
    with suppress(UserError):  # the disk that refused the checkpoint refuses this too
        status.write(state, words[:500])  # type: ignore[arg-type]
