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

DATA_PATHS = ("root", "val_root", "test_root", "manifest", "attribute_file")
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
        dry_run: Annotated[
            bool,
            typer.Option("--dry-run", help="Print the resolved config and sizes; train nothing."),
        ] = False,
    ) -> None:
        from imgtool.training.environment import collection_paused
        from imgtool.training.ranks import is_first_launched

        with collection_paused():
            loaded = _load(config, family, sets or [], explicit_flags, tiny=tiny)
            if dry_run:
                _describe(loaded)
                return
            outcome = _train(loaded, resume)
        if is_first_launched():
            record = _record(loaded.experiment, outcome)
            output.emit("experiment", [record], columns=COLUMNS)

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
    given = {key: getattr(experiment.data, key, None) for key in DATA_PATHS}
    found: dict[str, Any] = {}
    found |= {key: str(Path(path).expanduser().absolute()) for key, path in given.items() if path}
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


def _train(loaded: Loaded, resume: str) -> Outcome:
    from imgtool.experiment.layout import ExperimentDir
    from imgtool.process.ownership import take
    from imgtool.process.stopping import StopRequest
    from imgtool.training.environment import prepare
    from imgtool.training.group import open_ranks
    from imgtool.training.ranks import is_launched

    stop = StopRequest()
    stop.install()
    directory = ExperimentDir(loaded.experiment.output.exp_dir or ".")
    attempt = None
    with ExitStack() as held:
        if not is_launched():  # what is wrong with the directory is said before torch is loaded
            directory.create()
            attempt = held.enter_context(take(directory, trains=True)).attempt
        prepare(deterministic=loaded.experiment.train.deterministic)
        ranks = held.enter_context(open_ranks(directory, stop))
        directory = ExperimentDir(ranks.decide(lambda: str(directory.path)))
        if ranks.distributed and ranks.is_first:
            directory.create()
            attempt = held.enter_context(take(directory, trains=True)).attempt
        return _run(loaded, directory, stop, resume, ranks, attempt)


def _run(
    loaded: Loaded,
    directory: ExperimentDir,
    stop: StopRequest,
    resume: str,
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
            argv=sys.argv,
            attempt=attempt,
        )
    finally:
        if isinstance(reporter, TrainingDisplay):
            reporter.close()


def _record(experiment: Any, outcome: Outcome) -> dict[str, Any]:
    return {
        "path": Path(experiment.output.exp_dir),
        "name": experiment.name,
        "phase": experiment.phase,
        "family": experiment.family,
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
