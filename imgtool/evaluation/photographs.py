"""A face in a photograph: found, brought into the frame of aligned faces, and put back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from imgtool.data import detection
from imgtool.data.align_frame import CELEBA, Frame, frame_of, paste, warp
from imgtool.data.align_photographs import NO_FACE, unfit
from imgtool.data.base import Image8
from imgtool.data.images import decode
from imgtool.data.landmarks import Points, landmarks_in
from imgtool.errors import DataError, NoAnswer


@dataclass(frozen=True)
class Photograph:
    """A photograph, and where its face is.

    Attributes:
        path: of the file.
        pixels: (H, W, 3) uint8, upright.
        frame: that the face is brought into by z -> scale z + shift.
        num_faces: that were found.
        number: of this one, counted from the left, from 1.
    """

    path: str
    pixels: Image8
    frame: Frame
    scale: complex
    shift: complex
    num_faces: int = 1
    number: int = 1

    def face(self) -> Image8:
        """The face in its frame, (height, width, 3) uint8."""
        size = (self.frame.width, self.frame.height)
        return np.asarray(warp(self.pixels, self.scale, self.shift, size))

    def with_face(self, face: Image8) -> tuple[Image8, float]:
        """The photograph with another face, as `paste` does it."""
        return paste(self.pixels, face, self.frame, self.scale, self.shift)


@dataclass(frozen=True)
class Finder:
    """What finds a face in a photograph.

    Attributes:
        frame: that faces are brought into.
        table: of landmarks, by file name; faces are found by a network when None.
    """

    frame: Frame
    table: Path | None = None

    def read(self, path: str, number: int | None = None) -> Photograph:
        """A photograph and its face.

        Args:
            number: which of several faces, counted from the left; the largest when None.

        Raises:
            DataError: the file cannot be read, or the table has no usable face of it.
            NoAnswer: no face was found, or none that can be aligned.
            UsageError: there are not so many faces, or the package is missing.
        """
        pixels, _ = decode(path)
        if self.table is not None:
            return self._placed(path, pixels, self._listed(path))
        found = self._detect(pixels)
        hint = "a face must be upright and turned to the camera; --landmarks FILE says where one is"
        if not found:
            raise NoAnswer(f"{path}: {NO_FACE}", hint=hint)
        at = detection.choose(found, number, path)
        try:
            return self._placed(path, pixels, found[at].points, len(found), at + 1)
        except DataError as error:
            raise NoAnswer(str(error), hint=hint) from error

    @cached_property
    def _detect(self) -> Callable[[Image8], list[detection.Found]]:
        return detection.open_detector()

    @cached_property
    def _points(self) -> dict[str, Points]:
        assert self.table is not None
        table, points = landmarks_in(self.table)
        return dict(zip(table.names, points, strict=True))

    def _listed(self, path: str) -> Points:
        name = Path(path).name
        if name not in self._points:
            raise DataError(
                f"{self.table} does not list {name}",
                hint="its rows are file names, and x and y of eyes, nose and corners of the mouth",
            )
        return self._points[name]

    def _placed(
        self, path: str, pixels: Image8, points: Points, num_faces: int = 1, number: int = 1
    ) -> Photograph:
        with np.errstate(divide="ignore", invalid="ignore"):
            step = np.array([self.frame.step(points)])
        wrong = unfit(points[None], step, np.array([pixels.shape[:2]]), self.frame)
        if wrong:
            raise DataError(
                f"{path}: {wrong[0]}",
                hint="left and right are the picture's; y counts from its top",
            )
        scale, shift = step[0].tolist()
        return Photograph(path, pixels, self.frame, scale, shift, num_faces, number)


def frame_for(like: str | None, data_root: str | None) -> tuple[Frame, str]:
    """The frame of the faces that a network was trained on, and whose it is, in words.

    Args:
        like: a folder of such faces in CelebA's layout.
        data_root: the network's own, which may not be here, or have no landmarks: CelebA's then.

    Raises:
        DataError: the frame of `like` cannot be told.
    """
    if like is not None:
        return frame_of(Path(like)), f"the faces of {like}"
    if data_root is not None:
        try:
            return frame_of(Path(data_root)), f"the faces of {data_root}"
        except (DataError, OSError):
            pass
    return CELEBA, f"CelebA's, {CELEBA.width}x{CELEBA.height}"
