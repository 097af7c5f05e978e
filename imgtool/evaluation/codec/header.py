"""What the header of an exported codec says: its network, and the points of the rate that it has.

An export of one checkpoint (format 1) has the tensors of its codec under their own names. One of
several, a ladder (format 2), has a point for each: the same network at rising lambdas. There a
tensor's name is that of the point which owns it, a dot, and its own name (`0.codec.g_a.0.weight`).
Tensors that several points have in common are stored once; `places` says of such a name which
point's tensor each point takes. Of a ladder's header a checksum is part, as the lambdas in it choose
what is decoded, and hashes of the points' tensors do not cover them. Without torch.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imgtool.errors import CheckpointError, UsageError
from imgtool.evaluation.codec import METADATA_KEY
from imgtool.evaluation.codec.container import HASH_BYTES
from imgtool.experiment.whole import Structure, read_structure
from imgtool.models.hpcm.variants import VARIANTS

SINGLE, LADDER = 1, 2  # formats
MAX_POINTS = 64


@dataclass(frozen=True)
class Build:
    """What a network is built of.

    Attributes:
        model_name: a name in VARIANTS.
        legacy_s2_hyper: as `model.legacy_s2_hyper`.
    """

    model_name: str
    legacy_s2_hyper: bool


@dataclass(frozen=True)
class Point:
    """A codec of a file, as its header has it.

    Attributes:
        lmbda: that it was trained with.
        iteration: of its checkpoint.
        model_hash: of its network, weights and tables.
        plain_hash: of a portable one in a ladder, the hash that it has without integers.
        calibration: of a portable one, what it was calibrated with.
    """

    lmbda: float
    iteration: int
    model_hash: str
    plain_hash: str | None = None
    calibration: Mapping[str, Any] | None = None

    def told(self) -> dict[str, Any]:
        """As a header has it."""
        given = {key: value for key, value in vars(self).items() if value is not None}
        return {**given, "calibration": dict(self.calibration)} if self.calibration else given


@dataclass(frozen=True)
class Header:
    """Attributes:
    path: the file.
    distortion: that its points were trained for.
    points: by rising lambda; one of format 1.
    places: of a ladder, tensor's name -> the owner of each point's; of names that share any.
    structure: where the tensors lie, and what they are.
    """

    path: Path
    build: Build
    distortion: str
    points: tuple[Point, ...]
    is_ladder: bool
    structure: Structure = field(repr=False)
    places: Mapping[str, Sequence[int]] = field(default_factory=dict, repr=False)

    def stored(self, number: int) -> dict[str, str]:
        """The tensors of a point: name -> name in the file."""
        if not self.is_ladder:
            return {name: name for name in self.structure.kinds}
        names = {word.partition(".")[2] for word in self.structure.kinds}
        owners = {name: self.places[name][number] for name in names & self.places.keys()}
        found = {name: stored_name(owners.get(name, number), name) for name in names}
        return {name: word for name, word in found.items() if word in self.structure.kinds}


def stored_name(owner: int, name: str) -> str:
    """The name in a ladder of a point's tensor."""
    return f"{owner}.{name}"


def read_header(path: Path) -> Header | None:
    """The header of an export; None where the file is something else.

    Raises:
        CheckpointError: it is damaged, or of a newer imgtool.
    """
    try:
        structure = read_structure(path)
    except (OSError, CheckpointError):
        return None  # the reader of checkpoints says what is wrong
    metadata = structure.metadata
    text = metadata.get(METADATA_KEY) if isinstance(metadata, dict) else None
    if text is None:
        return None
    try:
        facts = json.loads(text)
        form = facts["format"]
        if form not in (SINGLE, LADDER):
            raise CheckpointError(
                f"{path} has export format {form}; this imgtool reads {SINGLE} and {LADDER}",
                hint="export it again with this imgtool",
            )
        build = build_of(path, facts["model"])
        points = (_point(facts),) if form == SINGLE else _points(path, facts)
        header = Header(
            path=path,
            build=build,
            distortion=str(facts["distortion"]),
            points=points,
            is_ladder=form == LADDER,
            structure=structure,
            places={} if form == SINGLE else _places(facts["places"], len(points)),
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise damaged(path, f"its metadata lacks or spoils a value ({error})") from error
    return header


def _points(path: Path, facts: dict[str, Any]) -> tuple[Point, ...]:
    """Of a ladder whose header is what was written."""
    if facts.get("check") != check_of(facts):
        raise damaged(path, "its header is not what was written")
    points = tuple(_point(one) for one in facts["points"][: MAX_POINTS + 1])
    lmbdas = [point.lmbda for point in points]
    if not 1 < len(points) <= MAX_POINTS or sorted(set(lmbdas)) != lmbdas:
        raise ValueError("its points")
    return points


def _point(facts: Mapping[str, Any]) -> Point:
    plain = facts.get("plain_hash")
    return Point(
        lmbda=positive(facts["lmbda"]),
        iteration=int(facts["iteration"]),
        model_hash=str(facts["model_hash"]),
        plain_hash=None if plain is None else str(plain),
        calibration=facts.get("calibration"),
    )


def _places(given: Any, num_points: int) -> dict[str, tuple[int, ...]]:
    """Checked: whoever owns a tensor takes its own."""
    found = {str(name): tuple(owners) for name, owners in given.items()}
    for name, owners in found.items():
        whole = all(type(owner) is int and 0 <= owner < num_points for owner in owners)
        if not whole or len(owners) != num_points or any(owners[o] != o for o in owners):
            raise ValueError(f"places of {name}")
    return found


def check_of(facts: Mapping[str, Any]) -> str:
    """A checksum of all that a ladder's header says."""
    rest = {key: value for key, value in facts.items() if key != "check"}
    text = json.dumps(rest, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=HASH_BYTES).hexdigest()


def claimed_hashes(path: Path) -> list[str] | None:
    """The model hashes that an export names, even one whose tensors are damaged; else None."""
    try:
        metadata: Any = read_structure(path).metadata
        facts = json.loads(metadata[METADATA_KEY])
        found = facts["points"] if facts["format"] == LADDER else [facts]
        return [str(one["model_hash"]) for one in found]
    except (OSError, CheckpointError, ValueError, TypeError, KeyError, RecursionError):
        return None


def index_of(points: Sequence[Any], lmbda: float, path: Path) -> int:
    """The point of a lambda.

    Args:
        points: with `lmbda`, by rising lambda.

    Raises:
        UsageError: there is none; it says which there are.
    """
    for number, point in enumerate(points):
        if math.isclose(point.lmbda, lmbda, rel_tol=1e-6):
            return number
    raise UsageError(f"{path} has no lambda {lmbda:g}", hint=f"it has {lmbdas_of(points)}")


def lmbdas_of(points: Sequence[Any]) -> str:
    """For people: `0.0035, 0.013`."""
    return ", ".join(f"{point.lmbda:g}" for point in points)


def build_of(path: Path, model: Any) -> Build:
    """What a file's network is built of, by its config or metadata.

    Raises:
        CheckpointError: there is no such network.
        ValueError, TypeError, KeyError: that is nothing that says so.
    """
    name, legacy = model["model_name"], model["legacy_s2_hyper"]
    if name not in VARIANTS or not isinstance(legacy, bool):
        raise CheckpointError(
            f"{path}: there is no network {name!r}", hint="known: " + ", ".join(VARIANTS)
        )
    return Build(name, legacy)


def positive(value: object) -> float:
    """A lambda.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(value, int | float) or not (math.isfinite(value) and value > 0):
        raise ValueError(f"lambda is {value!r}")
    return float(value)


def damaged(path: Path, why: str) -> CheckpointError:
    """The error of a file that is not what was written."""
    return CheckpointError(
        f"{path} is not a usable codec: {why}",
        hint="make it anew: imgtool export CKPT OUT.safetensors",
    )
