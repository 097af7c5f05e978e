"""What the commands of the codec share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from commands._output import say
from imgtool.errors import Interrupted, UserError

if TYPE_CHECKING:
    from imgtool.evaluation.codec.codecs import Codecs
    from imgtool.evaluation.codec.plan import Job

CkptOption = Annotated[
    str,
    typer.Option(
        "--ckpt",
        metavar="CKPT",
        help="What `imgtool export` wrote; or a checkpoint, or an exp_dir: its best.",
    ),
]

ThreadsOption = Annotated[
    int | None,
    typer.Option(
        "--threads",
        min=1,
        max=255,
        metavar="N",
        help="Threads of the CPU for arithmetic; as many as there are cores when unset. Files of "
        "version 1 are always decoded with the encoder's number.",
    ),
]


def find_ckpt(ckpt: str) -> Path:
    """The file that `--ckpt` means, for a dry run."""
    from imgtool.experiment.layout import ExperimentDir, find_checkpoint

    best = ExperimentDir(ckpt).best_path
    return find_checkpoint(best if best.exists() else ckpt)


def open_codecs(ckpt: str, device: str, threads: int | None) -> Codecs:
    """The codecs of a file; a note where it is no export."""
    from imgtool.training.environment import prepare

    prepare(deterministic=True)
    from imgtool.evaluation.codec.codecs import Codecs

    codecs = Codecs(ckpt, device=device, threads=threads)
    if not codecs.is_export:
        say(
            f"note: {codecs.path} is a checkpoint: its probability tables were made just "
            "now; `imgtool export` keeps them"
        )
    return codecs


def work_through(
    jobs: Sequence[Job], work: Callable[[Job], dict[str, Any]], stage: str
) -> tuple[list[dict[str, Any]], list[UserError]]:
    """Records of what went well, and what went wrong with the others: one bad file costs no other.

    Ctrl-C counts as one that went wrong, the first.

    Args:
        stage: what is being done, for the progress bar.
    """
    from commands._display import Display

    records: list[dict[str, Any]] = []
    failures: list[UserError] = []
    with Display() as watcher:
        for done, job in enumerate(jobs):
            watcher.progress(stage, "files", done, len(jobs))
            try:
                records.append(work(job))
            except UserError as error:
                if len(jobs) == 1:
                    raise
                watcher.note(f"warning: {error}")
                failures.append(error)
            except KeyboardInterrupt:
                left = len(jobs) - done
                hint = "what was done before is whole"
                failures.insert(0, Interrupted(f"interrupted, {left} files left", hint=hint))
                break
    return records, failures
