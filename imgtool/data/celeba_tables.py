"""CelebA's tables: attributes, parts and landmarks, as txt or csv, in all their variants.

A txt table has columns apart by one or more spaces, an optional first line with the number of
rows, and, but for the parts, a line of column names (with or without one for the image). A csv
table begins with a line of names whose first is that of the image. As a spreadsheet or pandas
writes them, columns may also be apart by `;` or `|`, numbers may have a decimal comma where
commas are not what parts the columns, and a column that counts the rows may come first.
"""

from __future__ import annotations

import csv
import io
import math
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from imgtool.errors import DataError, UsageError, did_you_mean
from imgtool.units import count

Values = NDArray[np.float64]
MAX_BYTES = 1 << 28  # CelebA's largest table has 26 million bytes
_SEPARATORS = ";,|"
_SIGNS = {"1": 1.0, "-1": -1.0, "0": 0.0}
_IMAGE_COLUMNS = ("image_id", "image", "image_name", "filename", "file_name", "file", "name")
_NAMES = """
    5_o_Clock_Shadow Arched_Eyebrows Attractive Bags_Under_Eyes Bald Bangs Big_Lips Big_Nose
    Black_Hair Blond_Hair Blurry Brown_Hair Bushy_Eyebrows Chubby Double_Chin Eyeglasses Goatee
    Gray_Hair Heavy_Makeup High_Cheekbones Male Mouth_Slightly_Open Mustache Narrow_Eyes No_Beard
    Oval_Face Pale_Skin Pointy_Nose Receding_Hairline Rosy_Cheeks Sideburns Smiling Straight_Hair
    Wavy_Hair Wearing_Earrings Wearing_Hat Wearing_Lipstick Wearing_Necklace Wearing_Necktie
    Young
"""
ATTRIBUTES = tuple(_NAMES.split())  # of CelebA, in its order
ATTRIBUTE_STEMS = ("list_attr_celeba",)
PARTITION_STEMS = ("list_eval_partition",)
LANDMARK_STEMS = ("list_landmarks_align_celeba", "list_landmarks_celeba", "landmarks")
PARTS = {"train": 0, "val": 1, "test": 2}


@dataclass(frozen=True)
class Table:
    """Rows of numbers by image name.

    Attributes:
        path: of the file.
        columns: their names, without the images'.
        names: of the images, in the file's order, each once.
        values: (rows, columns) float64, all finite.
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
    return next((path for path in _candidates(root, stems) if os.path.isfile(path)), None)


def looked_for(root: Path, stems: Sequence[str]) -> str:
    """Where find_table() looks, for a message."""
    names = ", ".join(f"{stem}.{kind}" for stem in stems for kind in ("txt", "csv"))
    return f"{names} in {root}, its folders Anno and Eval, and the folder above"


def _candidates(root: Path, stems: Sequence[str]) -> Iterator[Path]:
    for folder in (root, root / "Anno", root / "Eval", root.resolve().parent):
        for stem in stems:
            for kind in ("txt", "csv"):
                yield folder / f"{stem}.{kind}"


def read_attributes(path: Path, attribute: str) -> tuple[list[str], NDArray[np.int64]]:
    """Image names, and 1 or 0 for each: whether the attribute holds.

    Raises:
        UsageError: no such attribute.
        DataError: the table cannot be read, or a value is neither 1 nor -1 nor 0.
    """
    table = read_table(path)
    return table.names, attributes_of(table, (attribute,))[:, 0]


def attributes_of(table: Table, attributes: Sequence[str]) -> NDArray[np.int64]:
    """1 or 0: whether the attributes hold, (N, A); errors are those of read_attributes()."""
    found = []
    for attribute in attributes:
        values = table.column(attribute)
        odd = np.flatnonzero((values != 1) & (values != -1) & (values != 0))
        if len(odd):
            raise DataError(
                f"{table.path}: {attribute} of {table.names[odd[0]]} is {values[odd[0]]:g}, "
                "not 1 or -1",
                hint="is this the table of attributes?",
            )
        found.append(values == 1)
    return np.stack(found, axis=1).astype(np.int64)


def read_partition(path: Path) -> dict[str, int]:
    """The part of each image: 0 train, 1 val, 2 test.

    Raises:
        DataError: the table cannot be read, or names other parts.
    """
    table = read_table(path, default_columns=("partition",))
    if len(table.columns) != 1 or not np.isin(table.values, (0, 1, 2)).all():
        raise DataError(
            f"{path}: not a table of parts (0 train, 1 val, 2 test)",
            hint="each row is an image and its part, such as 000001.jpg 0",
        )
    return dict(zip(table.names, table.values[:, 0].astype(int).tolist(), strict=True))


def unlisted(names: Sequence[str], root: Path, stems: Sequence[str]) -> list[str] | None:
    """Which of the images another table of the folder lacks; None where there is no such table.

    Raises:
        DataError: that table cannot be read.
    """
    path = find_table(root, stems)
    if path is None:
        return None
    # Only the names are wanted, so columns without names may be as many as they like.
    known = set(read_table(path, default_columns=()).names)
    return [name for name in names if name not in known]


def read_table(path: Path, *, default_columns: Sequence[str] | None = None) -> Table:
    """Read a table.

    Args:
        default_columns: names of the columns where the file has no line of names; none for
            numbers instead.

    Raises:
        DataError: missing, too large, not text, or a line that does not fit; names the line.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(
                f"{path}: more than {MAX_BYTES} bytes are no table of CelebA",
                hint="give the table itself, of one line an image",
            )
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(
            f"{path}: {(error.strerror or str(error)).lower()}",
            hint="check the path and its permissions",
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text file", hint="save it as UTF-8") from error
    return parse_table(text, path, default_columns=default_columns)


def parse_table(text: str, path: Path, *, default_columns: Sequence[str] | None = None) -> Table:
    """A table from its text; arguments and errors are those of read_table()."""
    rows = _rows(text, path)
    number, first = next(rows, (0, []))
    promised = None
    if len(first) == 1 and _is_number(first[0]):
        promised = int(_number(first[0]))
        number, first = next(rows, (0, []))
    if not first:
        raise DataError(f"{path}: the table is empty", hint="copy or make it again")
    head = None if _is_row(first) else first
    if head is None and default_columns is None:
        raise DataError(
            f"{path} line {number}: no line of column names", hint="a table of CelebA has one"
        )
    second = next(rows, None) if head else (number, first)
    if second is None:
        raise DataError(f"{path}: the table lists no images", hint="copy or make it again")
    skip = int(_counts_rows(head, second[1]))
    names, values = _body(path, chain([second], rows), skip)
    if promised is not None and promised != len(names):
        raise DataError(
            f"{path}: its first line promises {promised} rows, and it has {len(names)}",
            hint="the file is cut short or was edited",
        )
    width = values.shape[1]
    columns = _columns(path, head, width, skip) if head else tuple(default_columns or ())
    columns = columns or tuple(map(str, range(width)))
    _check_columns(path, columns, width)
    odd = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(odd):
        raise DataError(
            f"{path}: a value of {names[odd[0]]} is no finite number",
            hint="mend or remove its line",
        )
    return Table(path, columns, names, values)


def _body(path: Path, rows: Iterable[tuple[int, list[str]]], skip: int) -> tuple[list[str], Values]:
    """Names and values of the images, without the `skip` first cells of each row."""
    names: dict[str, None] = {}
    values = array("d")  # in rows; lists in a list are slow, and large
    width = 0
    for number, row in rows:
        width = width or len(row)
        if len(row) != width:
            raise DataError(
                f"{path} line {number}: {count(len(row), 'column')}, and {width} above",
                hint="is the file cut short, or the line broken?",
            )
        if width < skip + 2:
            raise DataError(
                f"{path} line {number}: one column, and no values",
                hint=f"columns are apart by spaces or by one of {' '.join(_SEPARATORS)}",
            )
        name = row[skip]
        if name in names:
            raise DataError(
                f"{path} line {number}: {name} is listed twice", hint="remove one of the two lines"
            )
        names[name] = None
        values.extend(_numbers(path, number, row[skip + 1 :]))
    return list(names), np.array(values).reshape(len(names), width - skip - 1)


def _counts_rows(head: list[str] | None, row: list[str]) -> bool:
    """Whether the first column counts the rows, and the second names the images."""
    if len(row) < 3 or not _is_number(row[0]):
        return False
    if head is None or len(head) != len(row):
        return not _is_number(row[1])
    return not _is_number(row[1]) or head[1].lower() in _IMAGE_COLUMNS


def _is_row(cells: list[str]) -> bool:
    """Whether a first line is one of values already, perhaps behind a number of its own."""
    return any(
        len(cells) > skip + 1 and all(map(_is_number, [*cells[:skip], *cells[skip + 1 :]]))
        for skip in (0, 1)
    )


def _columns(path: Path, head: list[str], width: int, skip: int) -> tuple[str, ...]:
    """Names of the values, without those that the image and the number of its row may have."""
    extra = len(head) - width
    if not 0 <= extra <= 1 + skip:
        raise _wrong_names(path, len(head), width)
    return tuple(head[extra:])


def _check_columns(path: Path, columns: tuple[str, ...], width: int) -> None:
    if len(columns) != width:
        raise _wrong_names(path, len(columns), width)
    if len(set(columns)) != width:
        twice = next(name for name in columns if columns.count(name) > 1)
        raise DataError(f"{path}: two columns are named {twice}", hint="rename or remove one")


def _wrong_names(path: Path, names: int, width: int) -> DataError:
    return DataError(
        f"{path}: {count(names, 'column name')} for {count(width, 'column')}",
        hint="one name a column, with or without one for the image",
    )


def _rows(text: str, path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line numbers and cells of the lines that are not empty."""
    lines = text.splitlines()
    # Only the names tell the kind: neither a name nor a number of CelebA has a comma in it.
    first = list(islice((line for line in lines if line.strip()), 2))
    found = next((mark for mark in _SEPARATORS if any(mark in line for line in first)), None)
    if found is None:
        for number, line in enumerate(lines, start=1):
            row = line.split()
            if row:
                yield number, [cell.strip('"') for cell in row] if '"' in line else row
        return
    reader = csv.reader(io.StringIO("\n".join(lines)), delimiter=found)
    try:
        for cells in reader:
            row = [cell.strip() for cell in cells]
            if any(row):
                yield reader.line_num, row
    except csv.Error as error:
        raise DataError(
            f"{path} line {reader.line_num}: {error}", hint="is it a table of CelebA, and whole?"
        ) from error


def _numbers(path: Path, number: int, words: list[str]) -> list[float]:
    with suppress(KeyError):
        return [*map(_SIGNS.__getitem__, words)]  # twice as fast, for the largest table
    with suppress(ValueError):
        return [*map(float, words)]
    try:
        return [*map(_number, words)]
    except ValueError:
        raise DataError(
            f"{path} line {number}: not all its values are numbers", hint="mend or remove it"
        ) from None


def _number(word: str) -> float:
    """A number, or true or false as pandas writes them. Raises ValueError."""
    try:
        return float(word)
    except ValueError:
        truth = {"true": 1.0, "false": 0.0}.get(word.lower())
        return float(word.replace(",", ".")) if truth is None else truth


def _is_number(word: str) -> bool:
    try:
        return math.isfinite(_number(word))
    except ValueError:
        return False
