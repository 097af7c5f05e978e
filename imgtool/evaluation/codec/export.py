"""Models that are done: the codec's weights and its integer probability tables in one file.

An export is a safetensors file with the tensors `codec.*` and `tables.*`, and in its metadata
one JSON value with what builds the network, lambda, and the hash of all that decoding depends on.
A portable one has `integer.*` as well, with which the entropy path computes in integers, and says
which images they were calibrated with. Nothing of training or of its regularisers is in it.
One of several checkpoints has a point for each (see `header`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from imgtool import __version__
from imgtool.errors import CheckpointError, UsageError
from imgtool.evaluation.codec import METADATA_KEY as METADATA_KEY
from imgtool.evaluation.codec.codec import Codec
from imgtool.evaluation.codec.header import (
    LADDER,
    MAX_POINTS,
    SINGLE,
    Header,
    Point,
    build_of,
    check_of,
    claimed_hashes,
    damaged,
    index_of,
    lmbdas_of,
    positive,
    read_header,
    stored_name,
)
from imgtool.evaluation.codec.integer.path import sizes
from imgtool.evaluation.codec.model import Export, hash_of, network_of, opened
from imgtool.files import replacing_through_folder
from imgtool.models.hpcm.tables import Tables
from imgtool.training.device import resolve_device
from imgtool.training.opening import best_of, read_trained
from imgtool.training.weights import load_module

MAX_TABLE_BYTES = 16_000_000  # of a point


# --- writing ----------------------------------------------------------------------------------


def refuse_overwriting(exports: Sequence[Export], out: Path) -> None:
    """Make sure that writing to `out` costs nothing: it is new, or these models' export.

    Raises:
        UsageError: it would cost something.
    """
    if not os.path.lexists(out):
        return
    there, new = claimed_hashes(out), [export.model_hash for export in exports]
    if there is None:
        raise UsageError(f"{out} exists already, and is no export", hint="--force overwrites")
    if there != new:
        models = "another model" if len(there) == 1 else "other models"
        raise UsageError(
            f"{out} is the export of {models} ({', '.join(there)}; now {', '.join(new)})",
            hint="give another name, or --force: .hpcm files of the old one still need it",
        )


def ordered(exports: Sequence[Export]) -> list[Export]:
    """Codecs by rising lambda, once they are seen to fit into one file.

    Raises:
        UsageError: they do not.
    """
    found = sorted(exports, key=lambda one: one.lmbda)
    first = found[0]
    for before, one in zip(found, found[1:], strict=False):
        if one.lmbda == before.lmbda:
            raise UsageError(
                f"{before.source} and {one.source} both have lambda {one.lmbda:g}",
                hint="one checkpoint for each lambda",
            )
        if (one.build, one.distortion) != (first.build, first.distortion):
            raise UsageError(
                f"{one.source} is a {one.build.model_name} for {one.distortion}, {first.source} a "
                f"{first.build.model_name} for {first.distortion}",
                hint="a file has one network at several lambdas",
            )
    if len(found) > MAX_POINTS:
        raise UsageError(f"{len(found)} checkpoints", hint=f"a file has at most {MAX_POINTS}")
    return found


def write(exports: Sequence[Export], out: Path) -> None:
    """Write a file of one codec, or of several at different lambdas, atomically.

    Args:
        exports: `ordered`.

    Raises:
        CheckpointError: the disk refuses.
    """
    first = exports[0]
    facts: dict[str, Any] = {
        "format": SINGLE,
        "imgtool": __version__,
        "model": asdict(first.build),
        "lmbda": first.lmbda,
        "distortion": first.distortion,
        **{key: value for key, value in first.point.told().items() if key != "plain_hash"},
    }
    tensors = dict(first.tensors)
    if len(exports) > 1:
        tensors, places = _shared(exports)
        points = [one.point.told() for one in exports]
        facts = {
            **{key: facts[key] for key in ("imgtool", "model", "distortion")},
            "format": LADDER,
            "points": points,
            "places": places,
        }
        facts["check"] = check_of(facts)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing_through_folder(out) as temporary:
            save_file(tensors, temporary, metadata={METADATA_KEY: json.dumps(facts)})
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise CheckpointError(
            f"cannot write {out}: {reason}", hint="check the disk and permissions"
        ) from error


def _shared(exports: Sequence[Export]) -> tuple[dict[str, Tensor], dict[str, list[int]]]:
    """The tensors of a ladder, each value once, and the owners of those that points share."""
    tensors: dict[str, Tensor] = {}
    places: dict[str, list[int]] = {}
    names = sorted({name for export in exports for name in export.tensors})
    for name in names:
        values = [export.tensors[name] for export in exports]
        owners = [
            next(other for other in range(own + 1) if _same(values[other], value))
            for own, value in enumerate(values)
        ]
        tensors |= {stored_name(own, name): values[own] for own in sorted(set(owners))}
        if owners != list(range(len(owners))):
            places[name] = owners
    return tensors, places


def _same(one: Tensor, other: Tensor) -> bool:
    """To the bit: a zero has a sign."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    first, second = (t.contiguous().flatten().view(torch.uint8) for t in (one, other))
    return torch.equal(first, second)


# --- reading ----------------------------------------------------------------------------------


class CodecFile:
    """The codecs of a file, none of which is read before it is asked for.

    Args:
        source: an export; a checkpoint, or an exp_dir (its best one), whose only codec is made now.

    Attributes:
        path: the file.
        points: by rising lambda.

    Raises:
        CheckpointError: there is none, or it is damaged.
        UsageError: it is of another family.
    """

    def __init__(self, source: str) -> None:
        self.path = best_of(source)
        self._header = read_header(self.path)
        self._made: Export | None = None
        if self._header is None:
            self._made = _of_checkpoint(self.path)
            self.points: tuple[Point, ...] = (self._made.point,)
        else:
            _see_it_fits(self._header)
            self.points = self._header.points

    @property
    def is_export(self) -> bool:
        """Whether it is no checkpoint."""
        return self._header is not None

    def read(self, number: int) -> Export:
        """The codec of a point.

        Raises:
            CheckpointError: its tensors are not what was written.
        """
        if self._made is not None:
            return self._made
        assert self._header is not None
        return _read_point(self._header, number)


def read(source: str, lmbda: float | None = None) -> Export:
    """A file's codec, read whole.

    Args:
        source: as in `CodecFile`.
        lmbda: of which lambda; None where it has but one.

    Raises:
        CheckpointError: there is none, or it is damaged.
        UsageError: it is of another family; it has no such lambda, or several and none is named.
    """
    file = CodecFile(source)
    if lmbda is not None:
        return file.read(index_of(file.points, lmbda, file.path))
    if len(file.points) > 1:
        raise UsageError(
            f"{file.path} has several lambdas", hint=f"choose one of {lmbdas_of(file.points)}"
        )
    return file.read(0)


def open_codec(
    source: str, *, device: str = "auto", threads: int | None = None, lmbda: float | None = None
) -> Codec:
    """Open an export; or a checkpoint of `imgtool train hpcm`, whose tables are made on the spot.

    Args:
        source: a file, or an exp_dir: its best checkpoint.
        device: as `train.device`.
        threads: as in `Codec`.
        lmbda: as in `read`.

    Raises:
        CheckpointError, UsageError: as `read`.
    """
    return opened(read(source, lmbda), resolve_device(device), threads)


def _read_point(header: Header, number: int) -> Export:
    path, point = header.path, header.points[number]
    try:
        with safe_open(path, framework="pt", device="cpu") as handle:
            stored = header.stored(number)
            tensors = {name: handle.get_tensor(word) for name, word in stored.items()}
    except (OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"cannot read {path}: {reason}") from error
    if hash_of(header.build, tensors) != point.model_hash:
        raise damaged(path, "its tensors are not those that it was written with")
    return Export(
        source=path,
        build=header.build,
        lmbda=point.lmbda,
        distortion=header.distortion,
        iteration=point.iteration,
        tensors=tensors,
        model_hash=point.model_hash,
        is_export=True,
        calibration=point.calibration,
    )


def _see_it_fits(header: Header) -> None:
    """Judge an export's tensors from its header, before any is read.

    Raises:
        CheckpointError: they are not its network's.
    """
    with torch.device("meta"):
        network = network_of(header.build)
    own = network.state_dict()
    weights = {f"codec.{name}": ("F32", tuple(tensor.shape)) for name, tensor in own.items()}
    integers = {f"integer.{name}": ("I32", size) for name, size in sizes(network).items()}
    kinds, spans = header.structure.kinds, header.structure.spans
    used: set[str] = set()
    named: set[str] = set()
    for number in range(len(header.points)):
        stored = header.stored(number)
        used |= set(stored.values())
        named |= set(stored)
        is_portable = any(name.startswith("integer.") for name in stored)
        wanted = weights | (integers if is_portable else {})
        num_bytes = 0
        for name in stored.keys() | wanted.keys():
            kind = kinds.get(stored.get(name, ""))
            begin, end = spans.get(stored.get(name, ""), (0, 0))
            is_table = name.startswith("tables.") and kind is not None and kind[0] == "I32"
            num_bytes += end - begin if is_table else 0
            if kind != wanted.get(name) and not is_table or num_bytes > MAX_TABLE_BYTES:
                raise _foreign(header, name)
    if left := sorted(kinds.keys() - used) or sorted(header.places.keys() - named):
        raise _foreign(header, left[0])


def _foreign(header: Header, name: str) -> CheckpointError:
    return damaged(header.path, f"its tensors are not those of {header.build.model_name} ({name})")


def _of_checkpoint(path: Path) -> Export:
    hint = "codecs are trained by `imgtool train hpcm`"
    trained = read_trained(path, family="hpcm", hint=hint)
    config, loaded = trained.config, trained.loaded
    try:
        build, lmbda = build_of(path, config["model"]), positive(config["loss"]["lmbda"])
        distortion = str(config["loss"]["distortion"])
    except (ValueError, TypeError, KeyError) as error:
        raise damaged(path, f"its header lacks or spoils a value ({error})") from error
    weights = {**loaded.part("model.codec"), **loaded.part("ema.codec")}
    model = network_of(build)
    load_module(model, weights, path)
    own = {f"codec.{name}": value for name, value in model.state_dict().items()}
    own |= {f"tables.{name}": value for name, value in Tables.of(model).tensors().items()}
    tensors = {name: value.detach().contiguous() for name, value in own.items()}
    return Export(
        path,
        build,
        lmbda,
        distortion,
        trained.iteration,
        tensors,
        hash_of(build, tensors),
        is_export=False,
    )
