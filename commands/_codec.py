"""What the commands of the codec share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from commands._output import say
from imgtool.errors import Interrupted, UserError
from imgtool.process.stopping import ctrl_c_waits
from imgtool.units import count

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

    from imgtool.evaluation.codec.batch import Finish
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


def see_folders(jobs: Sequence[Job]) -> None:
    """Before the work, whether files can be written where they are to lie.

    Raises:
        DataError: they cannot.
    """
    from commands._files import see_that_it_can_be_written

    for target in {job.target.parent: job.target for job in jobs}.values():
        see_that_it_can_be_written(target)


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
    jobs: Sequence[Job], begin: Callable[[Job], Finish], stage: str
) -> tuple[list[dict[str, Any]], list[UserError]]:
    """Records of what went well, and what went wrong with the others: one bad file costs no other.

    A file is finished by a thread while the next one is begun. After Ctrl-C what was begun is
    finished; if files are left, that counts as one that went wrong, the first.

    Args:
        stage: what is being done, for the progress bar.
    """
    from concurrent.futures import ThreadPoolExecutor

    from commands._display import Display

    records: list[dict[str, Any]] = []
    failures: list[UserError] = []
    begun: list[Future[dict[str, Any]]] = []
    with Display() as watcher, ThreadPoolExecutor(1) as beside, ctrl_c_waits() as asked:

        def collect() -> None:
            try:
                records.append(begun.pop(0).result())
            except UserError as error:
                if len(jobs) == 1:
                    raise
                watcher.note(f"warning: {error}")
                failures.append(error)

        for done, job in enumerate(jobs):
            watcher.progress(stage, "files", done, len(jobs))
            begun.append(_begun(beside, begin, job))
            if len(begun) > 1:
                collect()
            if asked():
                break
        while begun:
            collect()
    left = len(jobs) - len(records) - len(failures)
    if left:
        hint = "what was begun before is whole"
        failures.insert(0, Interrupted(f"interrupted, {count(left, 'file')} left", hint=hint))
    return records, failures


def _begun(
    beside: ThreadPoolExecutor, begin: Callable[[Job], Finish], job: Job
) -> Future[dict[str, Any]]:
    """What becomes of a file; an error of its beginning too."""
    try:
        return beside.submit(begin(job))
    except UserError as error:
        from concurrent.futures import Future

        failed: Future[dict[str, Any]] = Future()
        failed.set_exception(error)
        return failed
