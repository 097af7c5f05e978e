"""Floor-plan layouts that a CSV manifest lists, with segmentation targets from their colours."""

from __future__ import annotations

import csv
import io
import os
import zlib
from collections.abc import Iterator
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

import numpy as np

from imgtool.data.base import Image8, Sample, Size
from imgtool.data.imagefiles import Entry, ImageFiles
from imgtool.data.palette import LABEL_NAMES, MASK_NAMES, PALETTE, class_map, unmatched_share
from imgtool.errors import DataError
from imgtool.files import remove_abandoned, temporary_beside

COLUMNS = ("scene_id", "type", "room_id", "layout_path", "is_empty")
_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False, "": False}


class LayoutManifest(ImageFiles):
    """The rows of a manifest that are not empty, in its order; groups are scenes.

    Columns: scene_id, type (room or scene), room_id, layout_path (relative to the manifest, or
    absolute) and is_empty (true or false, yes or no, 1 or 0), in any order among others, apart by
    commas, semicolons, tabs or bars. A path on several rows counts once, however it is written.

    Args:
        manifest: the CSV file.
        cache_dir: folder for masks computed once; None computes them each time.
        max_unmatched: largest part of a layout's pixels without a palette colour, 0..1.
        skip_bad, verify: as in ImageFiles.

    Attributes:
        num_empty: rows left out because is_empty is true.
        num_repeated: rows left out because an earlier row names the same file.

    Raises:
        DataError: the manifest cannot be read, or one of its images.
    """

    targets = frozenset({"mask", "label"})
    mask_names = MASK_NAMES
    label_names = LABEL_NAMES
    palette = PALETTE

    def __init__(
        self,
        manifest: str | Path,
        *,
        skip_bad: bool = False,
        verify: bool | None = None,
        cache_dir: str | Path | None = None,
        max_unmatched: float = 1.0,
    ) -> None:
        manifest = Path(manifest)
        content = _content(manifest)
        self.num_empty = self.num_repeated = 0
        entries = self._unique(manifest, _rows(manifest, content))
        if not entries:
            empty = f"all {self.num_empty} rows are empty ones" if self.num_empty else "no rows"
            raise DataError(f"{manifest}: {empty}", hint="one row an image, is_empty false")
        self.max_unmatched = max_unmatched
        super().__init__(
            manifest.parent,
            entries,
            manifest=manifest,
            salt=content,
            skip_bad=skip_bad,
            verify=verify,
        )
        self._masks = MaskCache(Path(cache_dir) / self.fingerprint) if cache_dir else None

    def _unique(self, manifest: Path, rows: Iterator[tuple[Entry, bool]]) -> list[Entry]:
        first: dict[str, Entry] = {}
        folder = os.path.realpath(manifest.parent)
        for entry, is_empty in rows:
            if is_empty:
                self.num_empty += 1
                continue
            known = first.setdefault(_one_way(folder, entry.name), entry)
            if known is entry:
                continue
            if (known.group, known.label) != (entry.group, entry.label):
                raise DataError(
                    f"{manifest} line {entry.line}: {entry.name} is already on line {known.line}"
                    f"{'' if known.name == entry.name else f' as {known.name}'}, "
                    f"with another scene_id or type",
                    hint="an image belongs to one scene; remove one of the two rows",
                )
            self.num_repeated += 1
        return list(first.values())

    def read(self, index: int) -> Sample:
        """Decode one layout and its mask.

        Raises:
            DataError: its file is bad, or too many of its pixels have no palette colour.
        """
        image, data = self.decode(index)
        mask = self._mask(image, data)
        share = unmatched_share(mask)
        if share > self.max_unmatched:
            raise DataError(
                f"{self.where(index)}: {share:.1%} of its pixels have no palette colour "
                f"(data.max_unmatched is {self.max_unmatched:.1%})",
                hint="layouts are flat colours without antialiasing, saved losslessly; "
                "raise data.max_unmatched if this is meant",
            )
        return Sample(image, mask, self.label(index), self.name(index))

    def _mask(self, image: Image8, data: Image8) -> Image8:
        if self._masks is None:
            return class_map(image)
        key = blake2b(data.tobytes(), digest_size=16).hexdigest()
        height, width, _ = image.shape
        mask = self._masks.load(key, (height, width))
        if mask is None:
            mask = class_map(image)
            self._masks.store(key, mask)
        return mask


class MaskCache:
    """Masks by the hash of their image file. Losing it costs time, never a run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.writable = True

    def load(self, key: str, size: Size) -> Image8 | None:
        """The mask (H, W), or None when it is not there or not whole."""
        try:
            packed = self._path(key).read_bytes()
            inflater = zlib.decompressobj()
            raw = inflater.decompress(packed, size[0] * size[1] + 1)
        except (OSError, zlib.error):
            return None
        if len(raw) != size[0] * size[1] or not inflater.eof:
            return None
        return np.frombuffer(raw, np.uint8).reshape(size)

    def store(self, key: str, mask: Image8) -> None:
        """Write one mask; a folder that cannot be written is not tried again."""
        if not self.writable:
            return
        path = self._path(key)
        temporary = temporary_beside(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_abandoned(path.parent)
            # No fsync: a mask torn by a power cut fails its checksum and is computed again.
            temporary.write_bytes(zlib.compress(mask.tobytes(), 1))
            os.replace(temporary, path)
        except OSError:
            self.writable = False
            with suppress(OSError):
                temporary.unlink()

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.mask"


def _content(manifest: Path) -> bytes:
    try:
        return manifest.read_bytes()
    except FileNotFoundError:
        raise DataError(
            f"{manifest}: no such manifest",
            hint="--manifest names a CSV of layouts or a packed file",
        ) from None
    except OSError as error:
        raise DataError(
            f"{manifest}: {(error.strerror or str(error)).lower()}",
            hint=f"name the CSV itself: {manifest / 'layouts.csv'}"
            if os.path.isdir(manifest)
            else "check the path and the permissions",
        ) from error


def _one_way(folder: str, name: str) -> str:
    """One path for every way of writing it: ./a.png, img/../a.png and a.png are one file."""
    path = os.path.join(folder, name)
    if ".." not in name.split("/"):
        return os.path.normpath(path)
    parent, last = os.path.split(path)
    return os.path.join(os.path.realpath(parent), last)  # what comes before .. may be a link


def _rows(manifest: Path, content: bytes) -> Iterator[tuple[Entry, bool]]:
    """Entry and is_empty of each row.

    Raises:
        DataError: not a CSV, a column is missing, or a value is wrong; names the line.
    """
    try:
        text = content.decode("utf-8-sig")
        head, _, _ = text.lstrip().partition("\n")
        mark = next((mark for mark in ",;\t|" if mark in head), ",")
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True)
        columns: dict[str, int] | None = None
        for row in reader:
            if columns is None and any(map(str.strip, row)):
                columns, width = _columns(manifest, row), len(row)
            elif columns is not None and any(map(str.strip, row)):
                yield _entry(manifest, reader.line_num, row, width, columns)
        if columns is None:
            _columns(manifest, [])
    except UnicodeDecodeError as error:
        raise DataError(
            f"{manifest}: byte {error.start} is not UTF-8", hint="save it as a UTF-8 CSV"
        ) from error
    except csv.Error as error:
        raise DataError(
            f"{manifest}: not a CSV manifest: {error}", hint="save it as a UTF-8 CSV"
        ) from error


def _columns(manifest: Path, head: list[str]) -> dict[str, int]:
    """Where each of COLUMNS is."""
    names = [cell.strip().lower() for cell in head]
    hint = f"the first line names the columns, with commas: {','.join(COLUMNS)}"
    missing = [column for column in COLUMNS if column not in names]
    if missing:
        many = "columns" if len(missing) > 1 else "column"
        raise DataError(f"{manifest}: no {many} {', '.join(missing)}", hint=hint)
    for column in COLUMNS:
        if names.count(column) > 1:
            raise DataError(f"{manifest}: two columns are named {column}", hint=hint)
    return {column: names.index(column) for column in COLUMNS}


def _entry(
    manifest: Path, line: int, row: list[str], width: int, columns: dict[str, int]
) -> tuple[Entry, bool]:
    def wrong(what: str) -> DataError:
        return DataError(f"{manifest} line {line}: {what}", hint=f"a row is {','.join(COLUMNS)}")

    if len(row) != width:
        raise wrong(f"too {'many' if len(row) > width else 'few'} values for its columns")
    values = {column: row[position].strip() for column, position in columns.items()}
    is_empty = _truth(values["is_empty"])
    if is_empty is None:
        raise wrong(f"is_empty is {values['is_empty']!r}, not true or false")
    for column in ("scene_id", "layout_path"):
        if not values[column] and not is_empty:
            raise wrong(f"{column} is empty")
    if "\0" in values["layout_path"]:
        raise wrong("layout_path is no path")
    kind = values["type"].lower()
    if kind not in LABEL_NAMES:
        raise wrong(f"type is {values['type']!r}, not room or scene")
    name = _with_slashes(manifest, values["layout_path"])
    return Entry(name, values["scene_id"], LABEL_NAMES.index(kind), line), is_empty


def _truth(word: str) -> bool | None:
    """Whether a word says true; None where it says neither. Numbers may have decimals."""
    with suppress(ValueError):
        word = f"{float(word.replace(',', '.')):g}"
    return _TRUTH.get(word.lower())


def _with_slashes(manifest: Path, name: str) -> str:
    """A path of Windows as one of this machine, unless there is a file of just that name."""
    if "\\" not in name or os.path.exists(manifest.parent / name):
        return name
    return name.replace("\\", "/")
