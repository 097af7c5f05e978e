"""Which checkpoints of a folder may go, and deleting them safely.

Safe beside a training that writes: only regular files with the names of checkpoints (iter_N.pt,
iter_N.safetensors, iter_N_update_M.safetensors) are ever deleted, and each is looked at again
right before. Nothing newer than the newest whole checkpoint is touched, since someone may still
be writing it.
"""

from __future__ import annotations

import math
import os
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from imgtool.errors import CheckpointError, ExperimentError, UsageError
from imgtool.experiment.checkpoint_file import CheckpointHeader, read_header, read_intact
from imgtool.experiment.checkpoints import Entry, list_checkpoints, pointers
from imgtool.experiment.metrics import read_rows
from imgtool.experiment.whole import DamagedCheckpoint

EXPLODED_FACTOR = 10.0
SMALLEST_MEDIAN = 1e-6  # losses below this are noise, and ten times noise is no explosion
NUM_EARLIER = 3  # with fewer earlier losses nothing can be called exploded
BEING_WRITTEN_SEC = 300.0
LOSS_KEYS = ("loss", "train_loss")


@dataclass(frozen=True)
class Plan:
    """What `apply` would do.

    Attributes:
        directory: the checkpoints folder.
        kept: each checkpoint that stays, with the reason.
        removed: those that go, oldest first.
        notes: what a person should know.
        anchor: the newest checkpoint that is whole and finite; nothing is deleted without it.
    """

    directory: Path
    kept: list[tuple[Entry, str]]
    removed: list[Entry]
    notes: list[str]
    anchor: Entry | None


@dataclass(frozen=True)
class Result:
    """What `apply` did: the files deleted, the bytes that this freed, and remarks."""

    removed: list[Path] = field(default_factory=list)
    freed_bytes: int = 0
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Judged:
    """A checkpoint with its header (None when it has none) and what is wrong with it."""

    entry: Entry
    header: CheckpointHeader | None
    damage: str | None = None
    foreign: str | None = None
    nonfinite: str | None = None
    exploded: str | None = None

    @property
    def is_whole(self) -> bool:
        return self.header is not None

    @property
    def is_good(self) -> bool:
        return self.is_whole and not self.nonfinite and not self.exploded


def plan(
    directory: str | os.PathLike[str],
    *,
    keep: int,
    keep_best: bool = False,
    keep_every: int | None = None,
    max_loss: float | None = None,
    metrics_path: str | os.PathLike[str] | None = None,
    intact: bool = False,
) -> Plan:
    """Decide which checkpoints of `directory` stay; nothing is deleted.

    These always stay: the newest `keep` whole ones; whatever a link in the folder (latest,
    best) points to; the newest whole one with a finite loss, and the newest that has not
    exploded either. When the last one's loss is NaN, infinite or exploded, one older stays too.
    One written between two updates counts among the newest only as long as nothing newer is whole.
    Damaged files older than a whole one go; damaged newer ones stay, and so does what cannot be
    read or is not ours.

    A loss has exploded when it is larger than `max_loss`, or, without one, than ten times the
    median of the absolute losses logged earlier. A loss comes from the checkpoint's header, or,
    where that has none (a foreign .pt), from the last row of metrics.jsonl up to its iteration.

    Args:
        keep: number of newest checkpoints, at least 1.
        keep_best: keep the one with the lowest val_loss (else loss) in its header as well.
        keep_every: keep iterations divisible by this as well.
        max_loss: largest absolute loss that is still sound.
        metrics_path: metrics.jsonl; the one beside the folder when None.
        intact: read every byte of the newest `keep`, and of older ones for each that is damaged.

    Raises:
        UsageError: a number that makes no sense.
        ExperimentError: the folder cannot be read.
    """
    _check_numbers(keep, keep_every, max_loss)
    directory = Path(directory)
    try:
        entries = list_checkpoints(directory)
        pointed_to = pointers(directory)
    except OSError as error:
        raise ExperimentError(
            f"cannot read {directory}: {error.strerror or error}", hint="check its permissions"
        ) from error
    source = directory.parent / "metrics.jsonl" if metrics_path is None else Path(metrics_path)
    read = [_read(entry) for entry in entries]
    if intact:
        read = _hold_newest(read, keep)
    judged = _judge(read, _logged_losses(source), max_loss)
    notes = [
        f"{item.entry.path.name}: {item.damage or item.foreign}"
        for item in judged
        if not item.is_whole
    ]

    whole = [item for item in judged if item.is_whole]
    if not whole:
        if judged:
            notes.append("no checkpoint is whole, so none is removed")
        kept = [(item.entry, "nothing newer is whole") for item in judged]
        return Plan(directory, kept, [], notes, None)

    reasons = _reasons(judged, whole, keep, pointed_to, notes)
    if keep_every is not None:
        for item in whole:
            if item.entry.iteration % keep_every == 0 and not item.entry.update:
                reasons.setdefault(item.entry, f"iteration divisible by {keep_every}")
    if keep_best:
        _keep_best(whole, reasons, notes)
    anchor = next((item.entry for item in reversed(whole) if not item.nonfinite), None)
    return Plan(
        directory,
        kept=[(item.entry, reasons[item.entry]) for item in judged if item.entry in reasons],
        removed=[item.entry for item in judged if item.entry not in reasons],
        notes=notes,
        anchor=anchor or whole[-1].entry,
    )


def apply(decision: Plan) -> Result:
    """Delete what `decision` says, looking at each file again right before.

    A file that has vanished, changed or got a link to it meanwhile is left alone, and so
    is everything once the newest good checkpoint is gone.
    """
    removed: list[Path] = []
    freed = 0
    notes: list[str] = []
    for entry in decision.removed:
        if decision.anchor is None or not decision.anchor.path.is_file():
            notes.append("the newest good checkpoint has vanished meanwhile: stopped removing")
            break
        try:
            facts = os.lstat(entry.path)
            if not stat.S_ISREG(facts.st_mode) or _has_changed(entry, facts):
                notes.append(f"{entry.path.name} has changed meanwhile and stays")
                continue
            if os.path.realpath(entry.path) in pointers(decision.directory):
                notes.append(f"{entry.path.name} is pointed to meanwhile and stays")
                continue
            entry.path.unlink()
        except FileNotFoundError:
            continue
        except OSError as error:
            notes.append(f"cannot remove {entry.path.name}: {error.strerror or error}")
            continue
        removed.append(entry.path)
        freed += facts.st_size if facts.st_nlink == 1 else 0
    return Result(removed, freed, notes)


def prune(directory: str | os.PathLike[str], *, keep: int, **choices: Any) -> Result:
    """`plan` and `apply` in one; takes the arguments of `plan`."""
    decision = plan(directory, keep=keep, **choices)
    result = apply(decision)
    return Result(result.removed, result.freed_bytes, [*decision.notes, *result.notes])


def _check_numbers(keep: int, keep_every: int | None, max_loss: float | None) -> None:
    if keep < 1:
        raise UsageError(f"keep is {keep}", hint="at least one checkpoint is kept: use 1 or more")
    if keep_every is not None and keep_every < 1:
        raise UsageError(f"keep-every is {keep_every}", hint="give iterations, such as 20000")
    if max_loss is not None and not 0 < max_loss < math.inf:
        raise UsageError(f"max-loss is {max_loss}", hint="give a positive number")


def _has_changed(entry: Entry, facts: os.stat_result) -> bool:
    return (facts.st_size, facts.st_mtime) != (entry.num_bytes, entry.modified)


def _logged_losses(source: Path) -> list[tuple[int, float]]:
    """(iteration, loss) of the logged rows; a NaN where the row says so."""
    losses = []
    with suppress(OSError):
        for row in read_rows(source):
            key = next((name for name in LOSS_KEYS if name in row), None)
            iteration = row.get("iteration")
            if key is None or not isinstance(iteration, int):
                continue
            nonfinite = row.get("nonfinite")
            if isinstance(nonfinite, list) and key in nonfinite:
                losses.append((iteration, math.nan))
            elif isinstance(row[key], int | float):
                losses.append((iteration, float(row[key])))
    return sorted(losses, key=lambda pair: pair[0])


def _hold_newest(read: Sequence[_Judged], keep: int) -> list[_Judged]:
    """The same, with the newest held against their checksums until `keep` are what was written."""
    held: list[_Judged] = []
    left = keep
    for item in reversed(read):
        if item.is_whole and left:
            item = _read(item.entry, read_intact)
            left -= item.is_whole
        held.append(item)
    return held[::-1]


def _judge(
    read: Sequence[_Judged], logged: Sequence[tuple[int, float]], max_loss: float | None
) -> list[_Judged]:
    read = [item for item in read if item.is_whole or item.entry.path.exists()]
    known = [
        (item.entry.iteration, item.header.loss)
        for item in read
        if item.header is not None and item.header.loss is not None
    ]
    history = sorted([*logged, *known], key=lambda pair: pair[0])
    return [_judge_loss(item, logged, history, max_loss) for item in read]


def _read(entry: Entry, reading: Callable[[Path], CheckpointHeader] = read_header) -> _Judged:
    try:
        return _Judged(entry, reading(entry.path))
    except DamagedCheckpoint as error:
        return _Judged(entry, None, damage=_why(error))
    except CheckpointError as error:
        return _Judged(entry, None, foreign=_why(error))


def _why(error: CheckpointError) -> str:
    return str(error).rpartition("checkpoint: ")[2]


def _judge_loss(
    item: _Judged,
    logged: Sequence[tuple[int, float]],
    history: Sequence[tuple[int, float]],
    max_loss: float | None,
) -> _Judged:
    if item.header is None:
        return item
    loss = item.header.loss
    if loss is None:
        upto = [value for iteration, value in logged if iteration <= item.entry.iteration]
        loss = upto[-1] if upto else None
    nonfinite = exploded = None
    if loss is not None and not math.isfinite(loss):
        nonfinite = f"its loss is {loss}"
    elif item.header.finite is False:
        nonfinite = "its weights are not finite"
    elif loss is not None:
        limit = max_loss if max_loss is not None else _usual(item.entry.iteration, history)
        if limit is not None and abs(loss) > limit:
            exploded = f"its loss {loss:.4g} has exploded (limit {limit:.4g})"
    return replace(item, nonfinite=nonfinite, exploded=exploded)


def _usual(iteration: int, history: Sequence[tuple[int, float]]) -> float | None:
    """The largest loss that earlier ones make believable; None with too few of them."""
    earlier = [abs(loss) for at, loss in history if at < iteration and math.isfinite(loss)]
    if len(earlier) < NUM_EARLIER:
        return None
    return EXPLODED_FACTOR * max(median(earlier), SMALLEST_MEDIAN)


def _reasons(
    judged: Sequence[_Judged],
    whole: Sequence[_Judged],
    keep: int,
    pointed_to: Mapping[str, str],
    notes: list[str],
) -> dict[Entry, str]:
    """Why each checkpoint that must stay does so."""
    last = whole[-1]
    counted = [item for item in whole if item is last or not item.entry.update]
    reasons = {item.entry: f"among the newest {keep}" for item in counted[-keep:]}
    for item in judged:
        if (link := pointed_to.get(os.path.realpath(item.entry.path))) is not None:
            reasons.setdefault(item.entry, f"{link} points to it")
        elif item.foreign:
            reasons.setdefault(item.entry, "not ours")
        elif item.damage and _may_be_in_writing(item.entry, last.entry):
            reasons.setdefault(item.entry, "damaged, but newer than any whole one")
    trouble = last.nonfinite or last.exploded
    if trouble:
        notes.append(f"{last.entry.path.name}: {trouble}; one older checkpoint stays as well")
        for item in counted[-keep - 1 : -keep]:
            reasons.setdefault(item.entry, "one older, because of the last one's loss")
    for item in reversed(whole):
        if not item.nonfinite:
            reasons.setdefault(item.entry, "newest with a finite loss")
            break
    for item in reversed(whole):
        if item.is_good:
            reasons.setdefault(item.entry, "newest with a sound loss")
            break
    return reasons


def _may_be_in_writing(entry: Entry, newest_whole: Entry) -> bool:
    if entry.reached > newest_whole.reached:
        return True
    # Ours are renamed into place; only foreign writers leave half a file under its final name.
    young = time.time() - entry.modified < BEING_WRITTEN_SEC
    return entry.path.suffix == ".pt" and young and entry.modified > newest_whole.modified


def _keep_best(whole: Sequence[_Judged], reasons: dict[Entry, str], notes: list[str]) -> None:
    for key in ("val_loss", "loss"):
        known = [
            (item.header.metrics[key], item.entry)
            for item in whole
            if item.header is not None and not item.nonfinite
            if isinstance(item.header.metrics.get(key), float)
        ]
        if known:
            value, entry = min(known, key=lambda pair: (pair[0], -pair[1].iteration))
            reasons.setdefault(entry, f"lowest {key}, {value:.4g}")
            return
    notes.append("no header records a loss, so keep-best protects only what best points to")
