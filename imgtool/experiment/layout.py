"""Where things lie in one experiment's directory."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from imgtool.config.schema import TINY_FOLDER
from imgtool.errors import CheckpointError, ExperimentError, UserError
from imgtool.experiment import checkpoints
from imgtool.files import folders_for, point, pointer_of, temporary_beside

CHECKPOINTS_NAME = "checkpoints"
TABLE_END = "_metrics.csv"
MANIFEST_NAME = "sweep.json"
TRIAL_CONFIG = "trial.yaml"  # in a trial's directory: what is trained, resolved


class ExperimentDir:
    """The paths of one experiment; nothing is touched before `create`.

    Attributes:
        path: the directory, absolute, so that a later change of directory does no harm.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).expanduser().absolute()

    def __repr__(self) -> str:
        return f"ExperimentDir({str(self.path)!r})"

    @property
    def config_path(self) -> Path:
        return self.path / "config.yaml"

    @property
    def provenance_path(self) -> Path:
        return self.path / "provenance.json"

    @property
    def submitted_path(self) -> Path:
        """By what code a sweep submitted it, last time."""
        return self.path / "submitted.json"

    @property
    def owner_path(self) -> Path:
        """Who may write here."""
        return self.path / "owner"

    @property
    def status_path(self) -> Path:
        return self.path / "status.json"

    @property
    def log_path(self) -> Path:
        """The engine's own log."""
        return self.path / "train.log"

    @property
    def child_log_path(self) -> Path:
        """What a command said under run-timed."""
        return self.path / "child.log"

    @property
    def watch_log_path(self) -> Path:
        """What run-timed itself did."""
        return self.path / "watch.log"

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def split_path(self) -> Path:
        return self.path / "split.json"

    @property
    def test_metrics_path(self) -> Path:
        """What `eval metrics --split test` found."""
        return self.path / "test_metrics.json"

    @property
    def checkpoints_dir(self) -> Path:
        return self.path / CHECKPOINTS_NAME

    @property
    def samples_dir(self) -> Path:
        return self.path / "samples"

    @property
    def latest_path(self) -> Path:
        return self.checkpoints_dir / "latest.safetensors"

    @property
    def best_path(self) -> Path:
        return self.checkpoints_dir / "best.safetensors"

    def csv_path(self, name: str) -> Path:
        """`{name}_metrics.csv`, with characters that a file name should not have made `_`."""
        return self.path / csv_name(name)

    def checkpoint_path(self, iteration: int, update: int = 0) -> Path:
        """Such as checkpoints/iter_020000.safetensors; between two updates, a name of its own."""
        between = f"_update_{update}" if update else ""
        return self.checkpoints_dir / f"iter_{iteration:06d}{between}.safetensors"

    def create(self) -> None:
        """Make the directory and its folders, and see that they can be written to.

        Raises:
            ExperimentError: a file is in the way, or it cannot be written to.
        """
        for folder in (self.path, self.checkpoints_dir, self.samples_dir):
            make_writable(folder)

    @contextmanager
    def making(self) -> Iterator[None]:
        """Take away what a training makes here while the block runs, if it is refused.

        That is when a UserError comes before its config is written. What was there stays, and
        so does a directory that is not new: others may look for the refusal in it.
        """
        new = self.missing()
        try:
            yield
        except UserError:
            self.remove_unused(new)
            raise

    def missing(self) -> list[Path]:
        """The directory and those above it that are not there, the deepest first."""
        return [folder for folder in (self.path, *self.path.parents) if not folder.exists()]

    def remove_unused(self, folders: Sequence[Path]) -> None:
        """Remove what says no more than that nothing has begun, and folders that are empty then.

        Args:
            folders: what `missing` said before; a directory that was there already stays.
        """
        if self.path not in folders or self.config_path.exists():
            return
        paths = (self.log_path, self.status_path, self.submitted_path, self.path / TRIAL_CONFIG)
        files = {path.name for path in paths}
        inside = {self.checkpoints_dir.name, self.samples_dir.name}
        with suppress(OSError):
            if {path.name for path in self.path.iterdir()} <= files | inside:
                for folder in (self.checkpoints_dir, self.samples_dir):
                    if folder.exists():
                        folder.rmdir()
                for path in paths:
                    path.unlink(missing_ok=True)
                for folder in folders:
                    folder.rmdir()


def csv_name(name: str) -> str:
    """The file name of an experiment's metrics table."""
    return re.sub(r"[^\w.+=,@-]", "_", name) + TABLE_END


def show_in_phase(path: Path) -> None:
    """Let a phase's folder have its `--tiny` runs' files only while it has none of its own.

    Those lie in a folder `tiny` within it. Links make `PHASE/*_metrics.csv` find them too, until
    the first table or manifest of a run that is not tiny.

    Args:
        path: a table or manifest that was written to a phase's folder, or to its `tiny`.
    """
    folder = path.parent
    with suppress(OSError):
        if folder.name != TINY_FOLDER:
            for link in _shown(folder):
                if _is_tinys(link):
                    link.unlink()
        elif all(map(_is_tinys, _shown(folder.parent))):
            point(folder.parent / path.name, f"{TINY_FOLDER}/{path.name}", target_changes=True)


def _shown(folder: Path) -> Iterator[Path]:
    yield from (path for path in folder.glob(f"*{TABLE_END}"))
    if os.path.lexists(folder / MANIFEST_NAME):
        yield folder / MANIFEST_NAME


def _is_tinys(path: Path) -> bool:
    meant = pointer_of(path)
    return meant is not None and Path(meant).parent == Path(TINY_FOLDER)


def make_writable(
    folder: Path, *, instead: str = "give another --exp-dir", keep: bool = True
) -> None:
    """Make `folder` and see that files can be written there.

    Args:
        instead: what to do where that cannot be mended.
        keep: False takes away again what was made.

    Raises:
        ExperimentError: a file is in the way, or it cannot be written to.
    """
    try:
        with folders_for(folder / "probe", always=not keep):
            probe = temporary_beside(folder / "probe")
            probe.write_bytes(b"")
            probe.unlink()
    except (FileExistsError, NotADirectoryError) as error:
        raise ExperimentError(
            f"{folder} cannot be made: a file is in the way",
            hint=instead,
        ) from error
    except OSError as error:
        raise ExperimentError(
            f"cannot write to the folder {folder}: {error.strerror or error}",
            hint=f"check its permissions and the disk, or {instead}",
        ) from error


def best_of(source: str) -> Path:
    """The checkpoint that a file or an exp_dir (its best one) names.

    Raises:
        CheckpointError: there is none.
    """
    best = ExperimentDir(source).best_path
    return find_checkpoint(best if best.exists() else source)


def find_checkpoint(source: str | os.PathLike[str]) -> Path:
    """The checkpoint file that a `--ckpt` means, links followed.

    Args:
        source: a file; an exp_dir or its checkpoints folder (the newest one that is what was written); a
            `latest.pt` or `best.pt` where only the .safetensors exists. `best` falls back
            to `latest`, and a `latest` that points nowhere to the newest valid checkpoint.

    Raises:
        CheckpointError: there is no such checkpoint. The file's contents are not checked
            when it was named itself.
    """
    path = Path(source).expanduser().absolute()
    if path.is_dir():
        inside = path / CHECKPOINTS_NAME
        return _in_folder(inside if inside.is_dir() else path, asked=path)
    for candidate in _alternatives(path):
        if (meant := checkpoints.pointed(candidate)) is not None:
            return meant
    if path.stem in ("latest", "best") and path.parent.is_dir():
        return _in_folder(path.parent, asked=path)
    raise CheckpointError(f"no checkpoint {path}", hint=_what_exists(path.parent))


def _alternatives(path: Path) -> list[Path]:
    stems = [path.stem, "latest"] if path.stem == "best" else [path.stem]
    suffixes = {".pt": [".pt", ".safetensors"], ".safetensors": [".safetensors", ".pt"]}
    known = suffixes.get(path.suffix)
    if known is None:
        return [path]
    return [path.with_name(stem + suffix) for stem in stems for suffix in known]


def _in_folder(folder: Path, *, asked: Path) -> Path:
    newest = checkpoints.newest_valid(folder, foreign=True, intact=True)
    if newest is None:
        raise CheckpointError(
            f"no valid checkpoint in {asked}", hint="give a file, or an exp_dir that was trained"
        )
    return newest.path


def _what_exists(folder: Path) -> str:
    names = [entry.path.name for entry in checkpoints.list_checkpoints(folder)]
    if names:
        return f"{folder} has {', '.join(names[-4:])}"
    return "give a checkpoint file, or an exp_dir that was trained"
