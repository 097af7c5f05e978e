"""halving.json: who has reached which rung of a sweep, with which value, and the verdicts.

A verdict once written stays as it is, so that a sweep that is killed goes on with the same ones.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from imgtool.errors import ExperimentError, UsageError
from imgtool.experiment.status import now_iso
from imgtool.files import write_text
from imgtool.sweep.halving import Halving
from imgtool.sweep.manifest import locked

HALVING_NAME = "halving.json"
SCHEMA = "imgtool-halving/1"
Values = Mapping[str, Mapping[int | str, float]]  # experiment -> seed -> value


class Cut(Protocol):
    """Who goes on: all names, best first, and those that rise."""

    @property
    def order(self) -> Sequence[str]: ...
    @property
    def rises(self) -> frozenset[str]: ...
    @property
    def std(self) -> float | None: ...


class Judge(Protocol):
    """Ranks experiments by a metric: `imgtool.selection.cut.Cutter`."""

    @property
    def metric(self) -> str: ...
    def order(self, values: Values) -> list[str]: ...
    def cut(self, values: Values, num_kept: int) -> Cut: ...


class Rungs:
    """The record of one sweep. It changes within `changing` alone.

    Args:
        root: the sweep's folder.
        halving: its rungs, and the part that goes on.
        judge: ranks by the metric.
    """

    def __init__(self, root: Path, halving: Halving, judge: Judge) -> None:
        self.names = [str(rung) for rung in halving.rungs]
        self._path, self._root = root / HALVING_NAME, root
        self._keep, self._judge = halving.keep, judge
        self._told = {**halving.told(), "metric": judge.metric}
        self._record: dict[str, Any] = {}

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Take the record as others have left it; write it in one step where it is changed.

        Where the sweep's folder is not there yet, nothing has happened and nothing is written.

        Raises:
            UsageError: its verdicts are by other rungs, or another part or metric.
            ExperimentError: it cannot be read or written.
        """
        if not self._root.exists():
            self.peek()
            yield
            return
        with locked(self._root):
            self._record = self._read()
            before = json.dumps(self._record)
            yield
            if json.dumps(self._record) == before:
                return
            try:
                write_text(self._path, json.dumps(self._record, indent=1, allow_nan=False) + "\n")
            except OSError as error:
                raise ExperimentError(
                    f"cannot write {self._path}: {error.strerror or error}",
                    hint="check the disk and the permissions, then run the same sweep again",
                ) from error

    def peek(self) -> None:
        """Take the record as it is; what is changed in it is written nowhere."""
        self._record = self._read()

    def _read(self) -> dict[str, Any]:
        try:
            record: dict[str, Any] = json.loads(self._path.read_bytes())
            record["experiments"].values()
        except FileNotFoundError:
            return {"schema": SCHEMA, **self._told, "experiments": {}}
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise ExperimentError(
                f"{self._path} cannot be read",
                hint="move it away: what waits at a rung is judged again, what was dropped stays so",
            ) from error
        for key, value in self._told.items():
            if record.get(key) != value:
                raise UsageError(
                    f"halving: {key} is {_words(value)}, and the verdicts in {self._path} are "
                    f"by {_words(record.get(key))}",
                    hint="give the same again; or move that file away, and begin with new rungs",
                )
        return record

    # --- what is known ------------------------------------------------------------------

    def entry(self, key: str) -> dict[str, Any]:
        """An experiment's part: name, by_name (it goes on whatever the rungs say), trials,
        verdicts by rung."""
        new: dict[str, Any] = {"name": None, "by_name": False, "trials": {}, "verdicts": {}}
        found: dict[str, Any] = self._record["experiments"].setdefault(key, new)
        return found

    def values(self, key: str, trial: str, seed: int) -> dict[str, float | None]:
        """rung -> value of one trial, None where it is not finite; to be added to."""
        entry = self.entry(key)
        entry["name"] = entry["name"] or trial
        found: dict[str, Any] = entry["trials"].setdefault(trial, {"seed": seed, "values": {}})
        values: dict[str, float | None] = found["values"]
        return values

    def next_of(self, key: str) -> str | None:
        """The rung at which an experiment pauses next; None where it runs to its end."""
        entry = self.entry(key)
        if entry["by_name"]:
            return None
        return next((r for r in self.names if not _goes_on(entry["verdicts"].get(r))), None)

    def dropped_at(self, key: str) -> dict[str, Any] | None:
        """Where an experiment was dropped, and by what; None where it was not, or goes on."""
        entry = self.entry(key)
        for rung, verdict in entry["verdicts"].items():
            if verdict["verdict"] == "dropped" and not entry["by_name"]:
                told = ("value", "place", "of", "num_kept")
                facts = {"rung": rung, "metric": self._judge.metric}
                return facts | {name: verdict[name] for name in told}
        return None

    # --- verdicts -----------------------------------------------------------------------

    def close(self, rung: str, keys: Collection[str], ended: Collection[str]) -> str | None:
        """Judge those that nobody can join at a rung any more, and tell of it.

        Args:
            keys: of the experiments that are to be judged, if they have no verdict yet; all that
                have reached the rung are compared.
            ended: those of them that have trained to their end.
        """
        arrived = self._arrived(rung)
        waiting = [key for key in arrived if key in keys and self._is_open(key, rung)]
        if not waiting:
            return None
        known = _finite(arrived)
        num_kept = max(1, int(self._keep * len(arrived)))
        cut = self._judge.cut(known, num_kept) if known else None
        for key in waiting:
            is_best = cut is not None and key in cut.order[:num_kept]
            rises = cut is not None and key in cut.rises
            why = "rank" if is_best else "noise" if rises else "behind"
            verdict = "promoted" if rises else "dropped"
            self._say(key, rung, verdict, why, known, len(arrived), num_kept, cut)
            if key in ended:
                self.entry(key)["verdicts"][rung] |= {"verdict": "completed"}
        rising = [key for key in arrived if _goes_on(self.entry(key)["verdicts"].get(rung))]
        names = ", ".join(self.entry(key)["name"] for key in rising)
        return f"rung {rung}: {len(rising)} of {len(arrived)} go on ({names})"

    def promote_early(self, keys: Collection[str], late: Collection[str]) -> None:
        """Promote the best that has no verdict, of those that have reached the highest rung where
        some are to go on (ASHA's rule).

        Args:
            keys: of experiments that could go on now.
            late: those that have trials under way to where others of theirs wait.
        """
        for rung in reversed(self.names):
            arrived = {k: v for k, v in self._arrived(rung).items() if k not in late}
            known, num_kept = _finite(arrived), int(self._keep * len(arrived))
            best = self._judge.order(known)[:num_kept] if num_kept else []
            for key in best:
                if key in keys and self._is_open(key, rung):
                    self._say(key, rung, "promoted", "early", known, len(arrived), num_kept)
                    return

    def _is_open(self, key: str, rung: str) -> bool:
        return rung not in self.entry(key)["verdicts"]

    def _arrived(self, rung: str) -> dict[str, dict[int | str, float | None]]:
        """Experiments of which a trial has reached a rung: seed -> value."""
        found = {}
        for key, entry in self._record["experiments"].items():
            trials = entry["trials"].values()
            values = {t["seed"]: t["values"][rung] for t in trials if rung in t["values"]}
            if values:
                found[key] = values
        return found

    def _say(
        self,
        key: str,
        rung: str,
        verdict: str,
        why: str,
        known: Values,
        num_arrived: int,
        num_kept: int,
        cut: Cut | None = None,
    ) -> None:
        order = cut.order if cut else self._judge.order(known)
        last = order[min(num_kept, len(order)) - 1] if order else None
        self.entry(key)["verdicts"][rung] = {
            "verdict": verdict,
            "why": why,
            "value": _mean(known[key]) if key in known else None,
            "place": order.index(key) + 1 if key in known else None,
            "of": num_arrived,
            "num_kept": num_kept,
            "cut": None if last is None else _mean(known[last]),
            "std": cut.std if cut else None,
            "time": now_iso(),
        }


def dropped_reason(facts: Mapping[str, Any]) -> str:
    """Such as `dropped at rung 3ep: val_mse 0.0123, place 7 of 12`."""
    where, metric, value = f"dropped at rung {facts['rung']}", facts["metric"], facts["value"]
    if value is None:
        return f"{where}: no finite {metric}"
    return f"{where}: {metric} {value:.4g}, place {facts['place']} of {facts['of']}"


def _finite(arrived: Mapping[str, Mapping[int | str, float | None]]) -> Values:
    """Without the seeds, and the experiments, that have no value."""
    found = {
        key: {seed: value for seed, value in values.items() if value is not None}
        for key, values in arrived.items()
    }
    return {key: values for key, values in found.items() if values}


def _mean(values: Mapping[int | str, float]) -> float:
    return sum(values.values()) / len(values)


def _goes_on(verdict: Mapping[str, Any] | None) -> bool:
    return verdict is not None and verdict["verdict"] != "dropped"


def _words(value: Any) -> str:
    return ",".join(value) if isinstance(value, list) else str(value)
