"""A folder of photographs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from imgtool.data.base import Sample
from imgtool.data.imagefiles import Entry, ImageFiles
from imgtool.data.images import SUFFIXES
from imgtool.errors import DataError


class PhotoFolder(ImageFiles):
    """Every image below a folder, by relative path; each is its own group.

    Hidden files and folders are passed over; links are followed.

    Args:
        root: the folder.
        skip_bad, verify: as in ImageFiles.

    Raises:
        DataError: no such folder, no images in it, or a bad one.
    """

    def __init__(
        self, root: str | Path, *, skip_bad: bool = False, verify: bool | None = None
    ) -> None:
        root = Path(root)
        if not root.is_dir():
            what = "not a folder of images" if root.exists() else "no such folder"
            raise DataError(f"{root}: {what}", hint="--data-root names a folder or a packed file")
        names = sorted(image_names(root))
        if not names:
            kinds = ", ".join(sorted(suffix[1:] for suffix in SUFFIXES))
            raise DataError(f"{root}: no images in this folder", hint=f"looked for {kinds}, deeply")
        entries = [Entry(name, group=name) for name in names]
        super().__init__(root, entries, skip_bad=skip_bad, verify=verify)

    def read(self, index: int) -> Sample:
        """Decode one photo.

        Raises:
            DataError: its file is bad.
        """
        image, _ = self.decode(index)
        return Sample(image, None, None, self.name(index))


def image_names(root: Path) -> Iterator[str]:
    """Paths of the images below root, relative to it, with forward slashes. Raises DataError."""
    seen: set[tuple[int, int]] = set()  # a link may point back up
    for folder, subfolders, files in os.walk(root, onerror=_refuse, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            subfolders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in files:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES:
                yield os.path.relpath(os.path.join(folder, name), root).replace(os.sep, "/")


def _refuse(error: OSError) -> None:
    raise DataError(f"{error.filename}: {(error.strerror or str(error)).lower()}") from error
