"""The body of `imgtool train FAMILY`, imported only when it is called for."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from commands._fields import with_options
from commands._notify import NotifyOption, notify
from commands._options import ConfigOption, SetOption, TinyOption
from commands._output import Output, document
from imgtool.models.registry import schema

if TYPE_CHECKING:
    from imgtool.config.load import Loaded
    from imgtool.config.schema import Experiment
    from imgtool.experiment.layout import ExperimentDir
    from imgtool.process.stopping import StopRequest
    from imgtool.training.ranks import Ranks
    from imgtool.training.report import Outcome

COLUMNS = (
    "name",
    "state",
    "reason",
    "iteration",
    "epoch",
    "elapsed_sec",
    "best",
    "metrics",
    "checkpoint",
    "path",
)


def train_command(family: str) -> Callable[..., Any]:
    """The Typer command that trains `family`; its options come from the schema."""
    of = schema(family)

    def train(
        explicit_flags: dict[str, Any],
        output: Output,
        config: ConfigOption = None,
        sets: SetOption = None,
        tiny: TinyOption = False,
        resume: Annotated[
            str,
            typer.Option(
                metavar="auto|never|PATH",
                help="Go on from the newest checkpoint, refuse one, or go on from PATH.",
            ),
        ] = "auto",
        pause_at: Annotated[
            str | None,
            typer.Option(
                metavar="N|Nep",
                help="Save, validate and stop there; schedule and limits stay those of the whole training.",
            ),
        ] = None,
        dry_run: Annotated[
            bool,
            typer.Option("--dry-run", help="Print the resolved config and sizes; train nothing."),
        ] = False,
        notify_by: NotifyOption = None,
    ) -> None:
        from imgtool.training.environment import collection_paused
        from imgtool.training.ranks import is_first_launched
        from imgtool.units import parse_interval

        pause = None if pause_at is None else parse_interval(pause_at)
        with collection_paused():
            loaded = _load(config, family, sets or [], explicit_flags, tiny=tiny)
            if dry_run:
                _describe(loaded)
                return
            try:
                outcome = _train(loaded, resume, pause)
            except BaseException as error:
                if is_first_launched():
                    notify(notify_by, "experiment", _failure(loaded.experiment, error))
                raise
        if is_first_launched():
            record = _record(loaded.experiment, outcome)
            output.emit("experiment", [record], columns=COLUMNS)
            if outcome.state == "completed":
                output.suggest("eval", "metrics", record["path"])
            notify(notify_by, "experiment", record)

    train.__doc__ = f"""Train one {family} experiment.

    To go on after a stop, a crash or a kill, run the same command again.

    \b
    Example:
      imgtool train {family} {of.example} --exp-dir out/a
      imgtool train {family} --config a.yaml --set train.lr=1e-4 --exp-dir out/b
    """
    return with_options(train, of)


def _load(
    config: str | None, family: str, sets: list[str], flags: dict[str, Any], *, tiny: bool
) -> Loaded:
    """The config, with a directory of its own where it names none."""
    from imgtool.config.load import load

    loaded = load(config, family=family, schema_of=schema, sets=sets, flags=flags, tiny=tiny)
    experiment = _with_absolute_paths(loaded.experiment)
    loaded = replace(loaded, experiment=experiment)
    if experiment.output.exp_dir:
        return loaded
    where = Path("experiments") / (experiment.phase or experiment.family) / experiment.name
    output = replace(experiment.output, exp_dir=str(where))
    origins = {**loaded.origins, "output.exp_dir": "name and phase"}
    return replace(loaded, experiment=replace(experiment, output=output), origins=origins)


def _with_absolute_paths(experiment: Experiment) -> Experiment:
    """Where the data lie, so that `eval` finds them from any folder."""
    from imgtool.config.fields import keys_of

    found: dict[str, Any] = {}
    for key in keys_of(schema(experiment.family)).values():
        path = getattr(experiment.data, key.name) if key.reads == "data" else None
        if path:
            found[key.name] = str(Path(path).expanduser().absolute())
    return replace(experiment, data=replace(experiment.data, **found))


def _describe(loaded: Loaded) -> None:
    from imgtool.config.load import to_yaml
    from imgtool.training.environment import prepare
    from imgtool.units import format_bytes

    prepare(deterministic=False)
    from imgtool.training.estimate import describe

    document(to_yaml(loaded))
    document("\n# What it would be")
    for key, value in describe(loaded).items():
        shown = format_bytes(value) if key.endswith("_bytes") and value is not None else value
        document(f"# {key}: {shown}")


def _train(loaded: Loaded, resume: str, pause_at: int | str | None) -> Outcome:
    from imgtool.experiment.layout import ExperimentDir
    from imgtool.process.ownership import take
    from imgtool.process.stopping import StopRequest
    from imgtool.training.environment import prepare
    from imgtool.training.group import open_ranks
    from imgtool.training.ranks import is_launched

    stop = StopRequest()
    stop.install()
    directory = ExperimentDir(loaded.experiment.output.exp_dir or ".")
    _refuse_to_begin_without(loaded.experiment, directory)
    _fetch_weights(loaded.experiment)
    attempt = None
    with ExitStack() as held:
        held.enter_context(directory.making())
        if not is_launched():  # what is wrong with the directory is said before torch is loaded
            directory.create()
            attempt = held.enter_context(take(directory, trains=True)).attempt
        prepare(deterministic=loaded.experiment.train.deterministic)
        ranks = held.enter_context(open_ranks(directory, stop))
        directory = ExperimentDir(ranks.decide(lambda: str(directory.path)))
        if ranks.distributed and ranks.is_first:
            directory.create()
            attempt = held.enter_context(take(directory, trains=True)).attempt
        return _run(loaded, directory, stop, resume, pause_at, ranks, attempt)


def _refuse_to_begin_without(experiment: Experiment, directory: ExperimentDir) -> None:
    """What weights begin with is opened late; the data's own refusals say more than this would."""
    from imgtool.errors import CheckpointError
    from imgtool.sweep.inputs import needed, trouble

    for key, path in needed(experiment, directory):
        if key.reads != "data" and (text := trouble(key, path)):
            raise CheckpointError(text, hint=f"check the path, or leave {key.dotted} out")


def _fetch_weights(experiment: Experiment) -> None:
    """Published weights are there before anything is written; one rank of a machine fetches them."""
    from commands._display import Display
    from imgtool.published import find_weights
    from imgtool.training.ranks import launcher_number

    wanted = schema(experiment.family).weights(experiment)
    if launcher_number("LOCAL_RANK", 0) or not wanted:
        return
    with Display() as display:
        for published in wanted:
            found = find_weights(
                published,
                tell=lambda done, total: display.progress("downloading", "bytes", done, total),
                note=lambda text: display.note(f"warning: {text}"),
            )
            if not found.verified:
                display.note(f"warning: random weights of {published.of}: this is a test")


def _run(
    loaded: Loaded,
    directory: ExperimentDir,
    stop: StopRequest,
    resume: str,
    pause_at: int | str | None,
    ranks: Ranks,
    attempt: int | None,
) -> Outcome:
    from commands._progress import TrainingDisplay
    from imgtool.training.report import Silence
    from imgtool.training.run import train

    reporter = TrainingDisplay() if ranks.is_first else Silence()
    try:
        return train(
            loaded,
            directory,
            stop=stop,
            reporter=reporter,
            ranks=ranks,
            resume=resume,
            pause_at=pause_at,
            argv=sys.argv,
            attempt=attempt,
        )
    finally:
        if isinstance(reporter, TrainingDisplay):
            reporter.close()


def _known(experiment: Experiment) -> dict[str, Any]:
    return {
        "path": Path(experiment.output.exp_dir or "."),
        "name": experiment.name,
        "phase": experiment.phase,
        "family": experiment.family,
    }


def _failure(experiment: Experiment, error: BaseException) -> dict[str, Any]:
    """The record of a training that ended in an error, for --notify."""
    from imgtool.errors import ErrorKind, ExitCode, UserError

    kind = error.kind if isinstance(error, UserError) else None
    state = kind if kind in (ErrorKind.DIVERGED, ErrorKind.OUT_OF_MEMORY) else "failed"
    code = error.exit_code if isinstance(error, UserError) else ExitCode.NO
    reason = f"{type(error).__name__}: {error}"
    return {**_known(experiment), "state": state, "reason": reason, "exit_code": int(code)}


def _record(experiment: Experiment, outcome: Outcome) -> dict[str, Any]:
    return {
        **_known(experiment),
        "state": outcome.state,
        "reason": outcome.reason,
        "iteration": outcome.iteration,
        "epoch": outcome.epoch,
        "elapsed_sec": outcome.elapsed_sec,
        "best": outcome.best,
        "checkpoint": outcome.checkpoint,
        "metrics": outcome.metrics,
        "facts": outcome.facts,
    }
