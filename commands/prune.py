"""imgtool prune: delete old checkpoints."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from commands._options import DryRunOption
from commands._output import Output

if TYPE_CHECKING:
    from imgtool.experiment.retention import Plan


@dataclass(frozen=True, kw_only=True)
class Keeping:
    """What stays besides latest and best."""

    keep: Annotated[
        int, typer.Option(metavar="N", help="Newest checkpoints to keep, 1 or more.")
    ] = 2
    keep_best: Annotated[
        bool,
        typer.Option(
            "--keep-best", help="Keep the one with the lowest val_loss (else loss) as well."
        ),
    ] = False
    keep_every: Annotated[
        int | None, typer.Option(metavar="N", help="Keep iterations divisible by N as well.")
    ] = None
    max_loss: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="A larger absolute loss has exploded; ten times the median of the earlier "
            "ones when not given.",
        ),
    ] = None


def run(
    output: Output,
    keeping: Keeping,
    exp_dirs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="EXP_DIR", show_default=False, help="Experiments; - reads them from stdin."
        ),
    ] = None,
    ckpt_dir: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="A folder of checkpoints itself; may be repeated."),
    ] = None,
    dry_run: DryRunOption = False,
) -> None:
    """Delete old checkpoints, iter_N*.safetensors and iter_N.pt, and nothing else.

    What latest or best points to always stays, and so does the newest one that is whole and
    finite. If the loss of the last one is NaN, infinite or exploded, one older stays as well.
    The loss is read from the checkpoint's header, or for a foreign .pt from the last row of
    metrics.jsonl up to its iteration; it has exploded when its absolute value is above
    --max-loss, or ten times above the median of the losses before it (three at least).
    Damaged files older than a whole one go; newer ones stay: the newest --keep are read and held
    against their checksums. Safe while a training writes.

    \b
    Example:
      imgtool prune out/S5 --keep 2 --dry-run
      imgtool prune --ckpt-dir out/a/checkpoints --keep 2 --keep-every 20000
      ls -d out/*/ | imgtool prune - --keep 1 --keep-best
    """
    from commands._input import expand_paths
    from commands._output import say
    from imgtool.errors import UsageError
    from imgtool.experiment import retention

    folders = [_checkpoints_of(word) for word in expand_paths(exp_dirs or [])]
    folders += [_existing(folder) for folder in ckpt_dir or []]
    if not folders and not exp_dirs:
        raise UsageError("no experiment was named", hint="imgtool prune EXP_DIR, or --ckpt-dir DIR")
    choices: dict[str, Any] = {"keep_best": keeping.keep_best, "keep_every": keeping.keep_every}
    plans = [
        retention.plan(folder, keep=keeping.keep, max_loss=keeping.max_loss, intact=True, **choices)
        for folder in _without_repeats(folders)
    ]
    records = []
    for plan in plans:
        result = _pretend(plan) if dry_run else retention.apply(plan)
        for note in [*plan.notes, *result.notes]:
            say(f"note: {plan.directory}: {note}")
        records.append(_record(plan, result, dry_run))
    columns = ("path", "num_removed", "freed_bytes", "num_kept", "dry_run")
    output.emit("prune", records, columns=columns)
    if dry_run and any(record["num_removed"] for record in records):
        output.suggest(*(word for word in sys.argv[1:] if word != "--dry-run"))
    if output.mode == "table":
        for record in records:
            _tell(record)


def _record(plan: Plan, result: Any, dry_run: bool) -> dict[str, Any]:
    return {
        "path": plan.directory,
        "removed": result.removed,
        "num_removed": len(result.removed),
        "freed_bytes": result.freed_bytes,
        "kept": [
            {"path": entry.path, "iteration": entry.iteration, "reason": reason}
            for entry, reason in plan.kept
        ],
        "num_kept": len(plan.kept),
        "dry_run": dry_run,
    }


def _checkpoints_of(word: str) -> Path:
    """The folder of checkpoints that an EXP_DIR has, or that it is itself."""
    import shlex

    from imgtool.errors import ExperimentError
    from imgtool.experiment.checkpoints import list_checkpoints
    from imgtool.experiment.layout import ExperimentDir

    experiment = ExperimentDir(word)
    if experiment.checkpoints_dir.is_dir():
        meant = experiment.checkpoints_dir.resolve()
        if not meant.is_relative_to(experiment.path.resolve()):
            raise ExperimentError(
                f"{experiment.checkpoints_dir} leads to {meant}, out of the experiment",
                hint=f"nothing was removed; if that is meant: --ckpt-dir {shlex.quote(str(meant))}",
            )
        return experiment.checkpoints_dir
    folder = _existing(experiment.path)
    if folder.name == "checkpoints" or list_checkpoints(folder):
        return folder
    raise ExperimentError(
        f"{word} has no checkpoints", hint="give an exp_dir, or a folder with --ckpt-dir"
    )


def _existing(folder: Path) -> Path:
    from imgtool.errors import ExperimentError

    folder = folder.expanduser().absolute()
    if folder.is_dir():
        return folder
    what = "is not a folder" if folder.exists() else "does not exist"
    raise ExperimentError(f"{folder} {what}", hint="check the spelling; nothing was removed")


def _without_repeats(folders: list[Path]) -> list[Path]:
    return list({folder.resolve(): folder for folder in folders}.values())


def _pretend(plan: Plan) -> Any:
    from imgtool.experiment.retention import Result

    paths = [entry.path for entry in plan.removed]
    return Result(paths, sum(entry.num_bytes for entry in plan.removed))


def _tell(record: dict[str, Any]) -> None:
    """What went and what stayed, file by file, for people."""
    from commands._output import say

    word = "would remove" if record["dry_run"] else "removed"
    for path in record["removed"]:
        say(f"{word} {path}")
    for kept in record["kept"]:
        say(f"kept {kept['path']}: {kept['reason']}")
