"""Images that lie in files of their own: what photos and layouts share."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from imgtool.data.base import BadFile, Image8, Size
from imgtool.data.images import BadImage, Header, decode, open_file, probe
from imgtool.errors import DataError

_CHUNK = 64  # files a task of the thread pool


class Entry(NamedTuple):
    """One image as its folder or manifest names it.

    Attributes:
        name: its path, relative to the data set's folder or absolute.
        group: what must not be torn apart by a split.
        label: class of the whole image; -1 without.
        line: of the manifest; 0 without one.
    """

    name: str
    group: str
    label: int = -1
    line: int = 0


class ImageFiles:
    """Files whose headers have been read.

    Args:
        folder: what relative names are relative to.
        entries: the images; names are unique.
        manifest: where the entries come from, for error messages.
        salt: further bytes that the fingerprint covers.
        skip_bad: leave bad files out, and decode every file now to find them all. Otherwise
            the first bad file is an error; those whose end shows no damage are only decoded
            when they are read.
        verify: decode every file now; as skip_bad when None.

    Attributes:
        bad: the files left out.

    Raises:
        DataError: a bad file (unless skip_bad), or no good one.
    """

    decoded = False
    targets: frozenset[str] = frozenset()
    mask_names: tuple[str, ...] = ()
    label_names: tuple[str, ...] = ()
    palette: tuple[tuple[int, int, int], ...] = ()

    def __init__(
        self,
        folder: Path,
        entries: Sequence[Entry],
        *,
        manifest: Path | None = None,
        salt: bytes = b"",
        skip_bad: bool = False,
        verify: bool | None = None,
    ) -> None:
        self.folder, self.manifest = Path(folder), manifest
        self._entries = list(entries)
        found = examine(
            [self.path(i) for i in range(len(self._entries))],
            verify=skip_bad if verify is None else verify,
        )
        bad = [i for i, result in enumerate(found) if isinstance(result, BadImage)]
        if bad and not skip_bad:
            raise self._error(bad[0], found[bad[0]], num_more=len(bad) - 1)
        self.bad = [
            BadFile(entry.name, result.reason, entry.line or None)
            for entry, result in zip(self._entries, found, strict=True)
            if isinstance(result, BadImage)
        ]
        headers = [result for result in found if isinstance(result, Header)]
        if not headers:
            raise DataError(
                f"{manifest or folder}: none of its {len(found)} images can be used",
                hint=f"the first: {self._error(0, found[0])}",
            )
        gone = set(bad)
        self._entries = [entry for i, entry in enumerate(self._entries) if i not in gone]
        self._sizes = np.array([header.size for header in headers], np.int32)
        self._num_bytes = np.array([header.num_bytes for header in headers], np.int64)
        self.fingerprint = self._fingerprint(salt)

    @property
    def bad_files(self) -> list[str]:
        """Names of the files left out."""
        return [bad.name for bad in self.bad]

    def __len__(self) -> int:
        return len(self._entries)

    def name(self, index: int) -> str:
        """Path of an image, as the folder or manifest names it."""
        return self._entries[index].name

    def group(self, index: int) -> str:
        """What must stay on one side of a split."""
        return self._entries[index].group

    def label(self, index: int) -> int | None:
        """Class of the whole image; None without."""
        label = self._entries[index].label
        return None if label < 0 else label

    def line(self, index: int) -> int | None:
        """Line of an image in the manifest; None without one."""
        return self._entries[index].line or None

    def path(self, index: int) -> str:
        """Where an image lies."""
        return os.path.join(self.folder, self._entries[index].name)

    def size(self, index: int) -> Size:
        """(H, W), EXIF orientation applied."""
        height, width = self._sizes[index].tolist()
        return height, width

    def num_bytes(self, index: int) -> int:
        """Length of an image's file."""
        return int(self._num_bytes[index])

    def content_hash(self, index: int) -> str:
        """BLAKE2b of the file, 32 hexadecimal digits. Raises DataError when reading it fails."""
        try:
            with open_file(self.path(index)) as stream:
                return hashlib.file_digest(stream, _blake2b).hexdigest()
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise self._error(index, BadImage(self.path(index), reason)) from error

    def decode(self, index: int) -> tuple[Image8, Image8]:
        """The image (H, W, 3) uint8 and its file's bytes.

        Raises:
            DataError: the file is bad; names it, and its line in the manifest.
        """
        try:
            image, data = decode(self.path(index))
        except BadImage as error:
            raise self._error(index, error) from error
        if image.shape[:2] != self.size(index) or data.size != self.num_bytes(index):
            raise self._error(index, BadImage(self.path(index), "has changed since the start"))
        return image, data

    def where(self, index: int) -> str:
        """An image's file, and its line in the manifest, for an error message."""
        line = self._entries[index].line
        at_line = f"{self.manifest} line {line}: " if self.manifest and line else ""
        return at_line + self.path(index)

    def _error(self, index: int, error: BadImage | Header, *, num_more: int = 0) -> DataError:
        reason = error.reason if isinstance(error, BadImage) else "bad"
        more = f" (and {num_more} more bad files)" if num_more else ""
        source = self.manifest or self.folder
        return DataError(
            f"{self.where(index)}: {reason}{more}",
            hint=f"`imgtool data check {source}` lists all bad files; --skip-bad leaves them out",
        )

    def _fingerprint(self, salt: bytes) -> str:
        digest = hashlib.blake2b(salt, digest_size=16)
        for name, num_bytes in sorted(
            (entry.name, int(num_bytes))
            for entry, num_bytes in zip(self._entries, self._num_bytes, strict=True)
        ):
            digest.update(f"{name}\0{num_bytes}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


def _blake2b() -> Any:
    return hashlib.blake2b(digest_size=16)


def examine(paths: Sequence[str], *, verify: bool) -> list[Header | BadImage]:
    """Headers, or what is wrong, in order. Threads hide a file system's latency."""

    def one(path: str) -> Header | BadImage:
        try:
            header = probe(path)
            if verify or not header.whole:
                decode(path)
        except BadImage as error:
            return error
        return header

    chunks = [paths[i : i + _CHUNK] for i in range(0, len(paths), _CHUNK)]
    with ThreadPoolExecutor(min(8, 2 * (os.cpu_count() or 1))) as pool:
        results = pool.map(lambda chunk: [one(path) for path in chunk], chunks)
        return [result for chunk in results for result in chunk]
