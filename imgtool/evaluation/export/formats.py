"""The formats of `imgtool export`, and which of them a checkpoint is written in.

A family names its own in its schema (`exports`); a format is a line of FORMATS and a function.
Nothing heavy is imported before one is asked for.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from imgtool.errors import CheckpointError, UsageError, did_you_mean
from imgtool.evaluation import codec
from imgtool.experiment.checkpoint_file import read_header
from imgtool.experiment.layout import CHECKPOINTS_NAME, ExperimentDir
from imgtool.experiment.whole import read_structure
from imgtool.models.registry import FAMILIES, schema


@dataclass(frozen=True)
class Request:
    """What is to be exported, and how.

    Attributes:
        source: the checkpoint file.
        more: further ones, for a format that takes several.
        out: the file or folder to write.
        force: replace the files that are there.
        dry_run: check, and write nothing.
        latents: a latents file of this model, whose statistics are taken.
        per_channel: statistics of each channel instead of one number for all.
        num_images: images that statistics are computed from, at most.
        root, manifest: where the data lies now, instead of where the checkpoint says.
        device: as `train.device`.
        portable: of a codec, compute its entropy path in integers.
        calibrate: folder of the images that integers are calibrated with; those of the training
            if None.
    """

    source: Path
    out: Path
    force: bool = False
    dry_run: bool = False
    latents: Path | None = None
    per_channel: bool = False
    num_images: int = 256
    root: str | None = None
    manifest: str | None = None
    device: str = "auto"
    portable: bool = False
    calibrate: Path | None = None
    more: tuple[Path, ...] = ()

    @property
    def sources(self) -> tuple[Path, ...]:
        """All checkpoint files."""
        return (self.source, *self.more)


@dataclass(frozen=True)
class Format:
    """One way to write a checkpoint.

    Attributes:
        target: `module:function`; takes a Request and returns the facts of the record.
        options: of the command, that it reads beside those of all formats.
        suffix: of the file that it is; None where it is a folder.
        columns: of the record that a table shows.
        takes_several: whether several checkpoints become one file.
    """

    target: str
    options: frozenset[str] = frozenset()
    suffix: str | None = None
    columns: tuple[str, ...] = ("path", "to", "iteration", "files", "hash")
    takes_several: bool = False

    def write(self, request: Request) -> Mapping[str, Any]:
        """Write it; imports torch.

        Raises:
            CheckpointError: the checkpoint cannot be used, or the disk refuses.
            UsageError, ConfigError: the format cannot hold this model, or `out` is taken.
        """
        module, _, name = self.target.partition(":")
        facts: Mapping[str, Any] = getattr(import_module(module), name)(request)
        return facts


FORMATS = {
    "codec": Format(
        "imgtool.evaluation.export.codec:write",
        options=frozenset(("portable", "calibrate")),
        suffix=".safetensors",
        takes_several=True,
        columns=(
            *("path", "model_name", "lmbda", "iteration", "num_parameters", "file_bytes"),
            "model_hash",
        ),
    ),
    "diffusers": Format(
        "imgtool.evaluation.export.diffusers:write",
        options=frozenset(
            ("latents", "per_channel", "num_images", "data_root", "manifest", "device")
        ),
        columns=("path", "iteration", "scaling_factor", "shift_factor", "checked_with", "hash"),
    ),
    "onnx": Format(
        "imgtool.evaluation.export.onnx:write",
        columns=("path", "iteration", "opset", "checked_with", "max_difference", "hash"),
    ),
}


def choose_for_all(paths: Sequence[Path], to: str | None) -> str:
    """The format that checkpoints are written in together.

    Raises:
        CheckpointError, UsageError: as `choose`; or they have none in common, or theirs takes one.
    """
    names = [choose(path, to) for path in paths]
    for path, name in zip(paths, names, strict=True):
        if name != names[0]:
            raise UsageError(
                f"{paths[0]} becomes {names[0]}, and {path} {name}", hint="export them one by one"
            )
    if len(paths) > 1 and not FORMATS[names[0]].takes_several:
        raise UsageError(
            f"--to {names[0]} takes one checkpoint, and there are {len(paths)}",
            hint="give CKPT and OUT",
        )
    return names[0]


def choose(path: Path, to: str | None) -> str:
    """The format that a checkpoint is written in.

    Args:
        path: the checkpoint file; its header alone is read.
        to: the one that is asked for; None where its family has but one.

    Raises:
        CheckpointError: the header cannot be read, or names no family.
        UsageError: the family has no such format, or several; or the file is an export already.
    """
    if to is not None and to not in FORMATS:
        raise UsageError(f"--to {to!r}", hint=did_you_mean(to, list(FORMATS)))
    family = _family(path)
    known = schema(family).exports
    if not known:
        raise UsageError(
            f"{path} is of the family {family}, which has no format to be exported in",
            hint="there are formats for " + ", ".join(_exported()),
        )
    words = " or ".join(f"--to {name}" for name in known)
    if to is None and len(known) > 1:
        raise UsageError(f"{path} is of the family {family}: which format?", hint=words)
    if to is not None and to not in known:
        raise UsageError(
            f"{path} is of the family {family}, which has no format {to}", hint=f"give {words}"
        )
    return known[0] if to is None else to


def _exported() -> list[str]:
    return [name for name in FAMILIES if schema(name).exports]


def _family(path: Path) -> str:
    try:
        header = read_header(path)
    except CheckpointError:
        if _is_codec(path):
            raise UsageError(
                f"{path} is an export already", hint="give a checkpoint, or copy the file"
            ) from None
        raise
    family = header.config.get("family") if header.config is not None else None
    if not isinstance(family, str):
        raise CheckpointError(f"{path} has no config", hint="give a checkpoint of imgtool train")
    return family


def _is_codec(path: Path) -> bool:
    try:
        metadata: Any = read_structure(path).metadata
    except (OSError, CheckpointError):
        return False
    return isinstance(metadata, dict) and codec.METADATA_KEY in metadata


def see_out(request: Request, to: str) -> None:
    """Keep an export from costing anything that is there, or from lying among checkpoints.

    Raises:
        UsageError: it would.
    """
    out, suffix = request.out, FORMATS[to].suffix
    if suffix is not None and out.suffix != suffix:
        raise UsageError(f"{out} is no name of a {suffix[1:]} file", hint=f"NAME{suffix}")
    if out.exists() and any(out.samefile(source) for source in request.sources):
        raise UsageError(f"{out} is the checkpoint itself", hint="give the export another name")
    _see_it_is_elsewhere(out, f"{to}{suffix or ''}")
    if suffix is None:
        _see_folder(out, request.force)


def _see_it_is_elsewhere(out: Path, instead: str) -> None:
    resolved = out.absolute().parent.resolve() / out.name
    for folder in (resolved, *resolved.parents):
        experiment = ExperimentDir(folder.parent)
        if folder.name == CHECKPOINTS_NAME and (
            experiment.config_path.exists() or any(folder.glob("iter_*"))
        ):
            raise UsageError(
                f"{out} lies among the checkpoints of {experiment.path}",
                hint=f"it is none: write {experiment.path / instead}",
            )


def _see_folder(out: Path, force: bool) -> None:
    if not os.path.lexists(out):
        return
    if not out.is_dir():
        raise UsageError(f"{out} is there, and is no folder", hint="give another name")
    if any(out.iterdir()) and not force:
        raise UsageError(
            f"{out} exists already",
            hint="give another name, or --force: files of the same names are replaced, others stay",
        )
