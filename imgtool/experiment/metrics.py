"""metrics.jsonl, a row each logged iteration, and {name}_metrics.csv, a row each epoch."""

from __future__ import annotations

import csv
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from imgtool.errors import ExperimentError
from imgtool.experiment.layout import ExperimentDir, csv_name, show_in_phase
from imgtool.files import replacing, write_bytes

Row = Mapping[str, Any]
FIRST_COLUMNS = ("iteration", "epoch")
# Parts of names of metrics of which more is better; of all others that training logs, less is.
_HIGHER = re.compile(r"psnr|ssim|accuracy|iou|active_units|perplexity")


def mode_of(metric: str) -> str:
    """`min` or `max`: which way a metric of a training is better, by its name."""
    return "max" if _HIGHER.search(metric) else "min"


def is_in_db(metric: str) -> bool:
    """Whether it is a logarithm, of which a percentage means nothing."""
    return "psnr" in metric


def plain(value: Any) -> Any:
    """`value` as JSON has it: numbers plain, paths as text, NaN and infinities None."""
    if hasattr(value, "item") and not isinstance(value, Mapping):  # a 0-d tensor or array
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [plain(item) for item in value]
    return value if isinstance(value, bool | int | str) or value is None else str(value)


def read_rows(path: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """The rows of a metrics.jsonl; half-written or spoilt lines are left out."""
    try:
        file = open(path, encoding="utf-8", errors="replace")  # noqa: SIM115
    except FileNotFoundError:
        return
    with file:
        for line in file:
            row = _parse(line)
            if row is not None:
                yield row


class MetricsLog:
    """Appends to an experiment's metrics files.

    Args:
        experiment: whose.
        name: the experiment's name, first part of the CSV's.
        shared_dir: the phase's folder, which gets a copy of the CSV; None for no copy.
    """

    def __init__(
        self,
        experiment: ExperimentDir,
        name: str,
        shared_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        self.jsonl_path = experiment.metrics_path
        self.csv_path = experiment.csv_path(name)
        self.copy_path = Path(shared_dir) / csv_name(name) if shared_dir is not None else None
        self._handle: int | None = None
        self._table: list[dict[str, str]] | None = None

    def log(self, row: Row) -> None:
        """Append one line to metrics.jsonl; it is with the system when this returns.

        Args:
            row: `iteration`, `epoch` and values. NaN and infinities become null, and the
                key `nonfinite` lists which.

        Raises:
            ExperimentError: the file cannot be written; it is then as it was before.
        """
        record = plain(row)
        nonfinite = sorted(key for key, value in row.items() if _is_nonfinite(value))
        if nonfinite:
            record["nonfinite"] = nonfinite
        line = (json.dumps(record, allow_nan=False) + "\n").encode()
        try:
            self._append(line)
        except OSError as error:
            raise _cannot_write(self.jsonl_path, error) from error

    def log_epoch(self, row: Row) -> str | None:
        """Add a row to the CSV, and a column for each key that is new; refresh the copy.

        Returns:
            a warning when the copy in the shared folder could not be written, else None.

        Raises:
            ExperimentError: the CSV itself cannot be written; it is then as it was before.
        """
        table = self._load_table()
        table.append({_one_line(str(key)): _cell(value) for key, value in row.items()})
        try:
            self._save_table(table)
        except OSError as error:
            table.pop()
            raise _cannot_write(self.csv_path, error) from error
        return self._refresh_copy()

    def truncate_after(self, iteration: int, *, evaluation: int | None = None) -> int:
        """Cut the rows past `iteration` from both files, each in one step.

        A half-written last line goes too.

        Args:
            iteration: the last one whose logged values stay.
            evaluation: the last one whose evaluation stays; `iteration` when None.

        Returns:
            the number of rows cut.

        Raises:
            ExperimentError: a file cannot be written.
        """
        self.close()
        evaluation = iteration if evaluation is None else evaluation
        try:
            cut = self._truncate_jsonl(iteration, evaluation)
        except OSError as error:
            raise _cannot_write(self.jsonl_path, error) from error
        table = self._load_table()
        kept = [row for row in table if not _is_past(row.get("iteration"), evaluation)]
        if len(kept) != len(table):
            try:
                self._save_table(kept)
            except OSError as error:
                raise _cannot_write(self.csv_path, error) from error
            self._table = kept
            self._refresh_copy()
        return cut + len(table) - len(kept)

    def close(self) -> None:
        """Let go of the open file; a later `log` opens it again."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def _append(self, line: bytes) -> None:
        if self._handle is None:
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._handle = os.open(self.jsonl_path, flags, 0o666)
            _cut_half_line(self._handle)
        before = os.fstat(self._handle).st_size
        written = 0
        try:
            while written < len(line):
                written += os.write(self._handle, line[written:])
        except OSError:
            if written:
                with suppress(OSError):
                    os.ftruncate(self._handle, before)
            raise

    def _truncate_jsonl(self, iteration: int, evaluation: int) -> int:
        if not self.jsonl_path.exists():
            return 0
        cut = 0
        with (
            replacing(self.jsonl_path) as temporary,
            open(self.jsonl_path, "rb") as source,
            open(temporary, "wb") as target,
        ):
            for line in source:
                row = _parse(line) if line.endswith(b"\n") else None
                if row is None:
                    continue
                last = evaluation if row.get("kind") == "evaluation" else iteration
                if _is_past(row.get("iteration"), last):
                    cut += 1
                else:
                    target.write(line)
        return cut

    def _load_table(self) -> list[dict[str, str]]:
        if self._table is None:
            self._table = _read_table(self.csv_path)
        return self._table

    def _save_table(self, table: list[dict[str, str]]) -> None:
        seen = dict.fromkeys(key for row in table for key in row)
        columns = [key for key in FIRST_COLUMNS if key in seen]
        columns += [key for key in seen if key not in FIRST_COLUMNS]
        with (
            replacing(self.csv_path) as temporary,
            open(temporary, "w", encoding="utf-8", newline="") as file,
        ):
            writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(table)

    def _refresh_copy(self) -> str | None:
        if self.copy_path is None:
            return None
        try:
            self.copy_path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(self.copy_path, self.csv_path.read_bytes())
            show_in_phase(self.copy_path)
        except OSError as error:
            return f"cannot copy the metrics to {self.copy_path}: {error.strerror or error}"
        return None


def _parse(line: str | bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _is_nonfinite(value: Any) -> bool:
    if hasattr(value, "item") and not isinstance(value, Mapping):
        value = value.item()
    return isinstance(value, float) and not math.isfinite(value)


def _is_past(value: Any, iteration: int) -> bool:
    try:
        return float(value) > iteration
    except (TypeError, ValueError):
        return False


def _cell(value: Any) -> str:
    """As CSV has it: nothing for None, nan and inf as Python writes them."""
    if hasattr(value, "item") and not isinstance(value, Mapping):
        value = value.item()
    return "" if value is None else _one_line(str(value))


def _one_line(text: str) -> str:
    # Not every reader of CSV follows quoted line breaks.
    return re.sub(r"[\x00-\x1f\x7f]+", " ", text)


def _read_table(path: Path) -> list[dict[str, str]]:
    try:
        with open(path, encoding="utf-8", errors="replace", newline="") as file:
            rows = csv.DictReader(file, restval="")
            return [{key: value for key, value in row.items() if key is not None} for row in rows]
    except FileNotFoundError:
        return []
    except csv.Error as error:
        raise ExperimentError(
            f"{path} is not a readable table: {error}", hint="move it away, then run again"
        ) from error


def _cut_half_line(handle: int) -> None:
    """A process that was killed in the middle of a line must not spoil the next one."""
    end = os.fstat(handle).st_size
    position = end
    while position > 0:
        start = max(0, position - 65536)
        newline = os.pread(handle, position - start, start).rfind(b"\n")
        if newline >= 0:
            position = start + newline + 1
            break
        position = start
    if position != end:
        os.ftruncate(handle, position)


def _cannot_write(path: Path, error: OSError) -> ExperimentError:
    return ExperimentError(
        f"cannot write {path}: {error.strerror or error}",
        hint="check the disk and the permissions, then run the same command again",
    )
