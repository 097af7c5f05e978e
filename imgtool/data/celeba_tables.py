"""CelebA's tables: attributes, parts and landmarks, as txt or csv, in all their variants.

A txt table has columns apart by one or more spaces, an optional first line with the number of
rows, and, but for the parts, a line of column names (with or without one for the image). A csv
table begins with a line of names whose first is that of the image.
"""

from __future__ import annotations

import csv
import io
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from imgtool.errors import DataError, UsageError, did_you_mean

Values = NDArray[np.int64]
MAX_BYTES = 1 << 28  # CelebA's largest table has 26 million bytes
ATTRIBUTE_STEMS = ("list_attr_celeba",)
PARTITION_STEMS = ("list_eval_partition",)
LANDMARK_STEMS = ("list_landmarks_align_celeba", "list_landmarks_celeba", "landmarks")
PARTS = {"train": 0, "val": 1, "test": 2}


@dataclass(frozen=True)
class Table:
    """Rows of whole numbers by image name.

    Attributes:
        path: of the file.
        columns: their names, without the images'.
        names: of the images, in the file's order, each once.
        values: (rows, columns) int64.
    """

    path: Path
    columns: tuple[str, ...]
    names: list[str]
    values: Values

    def column(self, name: str) -> Values:
        """One column, (rows,). Raises UsageError with the known names."""
        if name not in self.columns:
            known = list(self.columns)
            guess = did_you_mean(name, known)
            listed = f"{self.path} has {', '.join(known)}"
            raise UsageError(
                f"no attribute {name!r}", hint=f"{guess} {listed}" if guess else listed
            )
        return self.values[:, self.columns.index(name)]


def find_table(root: Path, stems: Sequence[str]) -> Path | None:
    """The first table of these names in a CelebA folder; None where there is none."""
    return next((path for path in _candidates(root, stems) if path.is_file()), None)


def looked_for(root: Path, stems: Sequence[str]) -> str:
    """Where find_table() looks, for a message."""
    names = ", ".join(f"{stem}.{kind}" for stem in stems for kind in ("txt", "csv"))
    return f"{names} in {root}, its folders Anno and Eval, and the folder above"


def _candidates(root: Path, stems: Sequence[str]) -> Iterator[Path]:
    for folder in (root, root / "Anno", root / "Eval", root.resolve().parent):
        for stem in stems:
            for kind in ("txt", "csv"):
                yield folder / f"{stem}.{kind}"


def read_attributes(path: Path, attribute: str) -> tuple[list[str], Values]:
    """Image names, and 1 or 0 for each: whether the attribute holds.

    Raises:
        UsageError: no such attribute.
        DataError: the table cannot be read, or a value is neither 1 nor -1 nor 0.
    """
    table = read_table(path)
    values = table.column(attribute)
    odd = np.flatnonzero((values != 1) & (values != -1) & (values != 0))
    if len(odd):
        raise DataError(
            f"{path}: {attribute} of {table.names[odd[0]]} is {values[odd[0]]}, not 1 or -1",
            hint="is this the table of attributes?",
        )
    return table.names, (values == 1).astype(np.int64)


def read_partition(path: Path) -> dict[str, int]:
    """The part of each image: 0 train, 1 val, 2 test.

    Raises:
        DataError: the table cannot be read, or names other parts.
    """
    table = read_table(path, default_columns=("partition",))
    if len(table.columns) != 1 or not np.isin(table.values, (0, 1, 2)).all():
        raise DataError(f"{path}: not a table of parts (0 train, 1 val, 2 test)")
    return dict(zip(table.names, table.values[:, 0].tolist(), strict=True))


def read_table(path: Path, *, default_columns: Sequence[str] | None = None) -> Table:
    """Read a table.

    Args:
        default_columns: names of the columns where the file has no line of names.

    Raises:
        DataError: missing, too large, not text, or a line that does not fit; names the line.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path}: more than {MAX_BYTES} bytes are no table of CelebA")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: {(error.strerror or str(error)).lower()}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text file") from error
    return parse_table(text, path, default_columns=default_columns)


def parse_table(text: str, path: Path, *, default_columns: Sequence[str] | None = None) -> Table:
    """A table from its text; arguments and errors are those of read_table()."""
    rows = _rows(text, path)
    number, first = next(rows, (0, []))
    count = None
    if len(first) == 1 and _is_int(first[0]):
        count = int(first[0])
        number, first = next(rows, (0, []))
    if not first:
        raise DataError(f"{path}: the table is empty")
    head = None if len(first) > 1 and all(map(_is_int, first[1:])) else first
    if head is None and default_columns is None:
        raise DataError(
            f"{path} line {number}: no line of column names", hint="a table of CelebA has one"
        )
    names: dict[str, int] = {}
    values = array("q")  # in rows; lists in a list are slow, and large
    pending = [] if head else [(number, first)]
    width = None if head else len(first)
    for number, row in _chain(pending, rows):
        if width is None:
            width = len(row)
        if len(row) != width or width < 2:
            raise DataError(f"{path} line {number}: {len(row)} columns, and {width} above")
        if row[0] in names:
            raise DataError(f"{path} line {number}: {row[0]} is listed twice")
        names[row[0]] = number
        try:
            values.extend(map(int, row[1:]))
        except ValueError:
            raise DataError(f"{path} line {number}: not all its values are whole numbers") from None
        except OverflowError:
            raise DataError(f"{path} line {number}: a value is out of all range") from None
    if width is None or not names:
        raise DataError(f"{path}: the table lists no images")
    if count is not None and count != len(names):
        raise DataError(
            f"{path}: its first line promises {count} rows, and it has {len(names)}",
            hint="the file is cut short or was edited",
        )
    columns = _columns(path, head, default_columns or (), width - 1)
    return Table(path, columns, list(names), np.array(values, np.int64).reshape(-1, width - 1))


def _columns(
    path: Path, head: list[str] | None, default: Sequence[str], count: int
) -> tuple[str, ...]:
    if head is None:
        columns = tuple(default)
    else:
        columns = tuple(head[1:] if len(head) == count + 1 else head)
    if len(columns) != count:
        raise DataError(f"{path}: {len(columns)} column names for {count} columns")
    if len(set(columns)) != count:
        twice = next(name for name in columns if columns.count(name) > 1)
        raise DataError(f"{path}: two columns are named {twice}")
    return columns


def _chain(
    first: list[tuple[int, list[str]]], rest: Iterator[tuple[int, list[str]]]
) -> Iterator[tuple[int, list[str]]]:
    yield from first
    yield from rest


def _rows(text: str, path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line numbers and cells of the lines that are not empty."""
    lines = text.splitlines()
    # Only the names tell the kind: neither a name nor a number of CelebA has a comma in it.
    if any("," in line for line in lines[:2]):
        reader = csv.reader(io.StringIO("\n".join(lines)))
        try:
            for cells in reader:
                row = [cell.strip() for cell in cells]
                if any(row):
                    yield reader.line_num, row
        except csv.Error as error:
            raise DataError(f"{path} line {reader.line_num}: {error}") from error
        return
    for number, line in enumerate(lines, start=1):
        row = line.split()
        if row:
            yield number, row


def _is_int(word: str) -> bool:
    try:
        int(word)
    except ValueError:
        return False
    return True
