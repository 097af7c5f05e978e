"""The frame in which aligned faces lie, and how a picture is brought into it and back.

A frame is the picture of a set of aligned faces: its size, and where the five landmarks of their
mean face are. A face of another picture goes there by a similarity z -> scale z + shift.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imgtool.data.base import Image8
from imgtool.data.celeba import IMAGE_FOLDERS, image_folder
from imgtool.data.images import probe
from imgtool.data.landmarks import Points, mean_face, read_landmarks, similarities
from imgtool.errors import DataError

_PROBED = 8  # pictures of a folder that must be of one size
_SOLID = 0.72  # of the way from a frame's middle to its edge, what is replaced altogether
_ROWS = 128  # of a picture, that are pasted at a time
_MAX_SIDE = 4096  # pixels of a face before it is turned; a larger one is enlarged while it is


@dataclass(frozen=True)
class Frame:
    """Where aligned faces lie.

    Attributes:
        width, height: of the picture, in pixels.
        face: landmarks of the mean face in it, (5,), in the order of `landmarks.NAMES`.
    """

    width: int
    height: int
    face: Points

    def step(self, points: Points) -> tuple[complex, complex]:
        """Scale and shift of the similarity that brings a face's landmarks, (5,), onto the mean."""
        scale, shift = similarities(points[None], self.face)[0].tolist()
        return scale, shift


# The mean of CelebA's own table of landmarks, to a pixel.
_CELEBA_MEAN = np.array([69 + 111j, 108 + 111j, 88 + 136j, 72 + 152j, 105 + 152j]) + (0.5 + 0.5j)
CELEBA = Frame(178, 218, _CELEBA_MEAN)


def square_frame(size: int) -> Frame:
    """The square of `data align`, with CelebA's mean face."""
    return Frame(size, size, mean_face(CELEBA.face[None]) * size)


def frame_of(root: Path) -> Frame:
    """The frame of a folder of aligned faces in CelebA's layout: the median of its landmarks.

    Raises:
        DataError: it has no table of landmarks, its pictures differ in size, or the landmarks
            are not those of its pictures.
    """
    table, points = read_landmarks(root)
    folder, files = image_folder(root, table.names)
    if not files:
        raise DataError(f"{root}: none of the images of {table.path} is there")
    if folder.name == IMAGE_FOLDERS[0] and image_folder(root, table.names, IMAGE_FOLDERS[1:])[1]:
        raise DataError(
            f"{root} has aligned and other images, and one table of landmarks",
            hint=f"{IMAGE_FOLDERS[0]} and its own table are in a folder of `imgtool data align`",
        )
    names = list(files.values())
    sizes = {probe(folder / name).size for name in names[:: max(1, len(names) // _PROBED)]}
    if len(sizes) > 1:
        raise DataError(f"{folder}: its images differ in size, so they are not aligned")
    ((height, width),) = sizes
    face = np.median(points.real, axis=0) + 1j * np.median(points.imag, axis=0)
    inside = (face.real > 0) & (face.real < width) & (face.imag > 0) & (face.imag < height)
    if not inside.all():
        raise DataError(f"{table.path} is not the table of the images in {folder}")
    return Frame(width, height, face)


# --- into the frame -------------------------------------------------------------------------


def warp(image: Image8, scale: complex, shift: complex, size: tuple[int, int]) -> Image.Image:
    """The picture of `size` (width, height) to which z -> scale z + shift takes the image, bicubic.

    Beyond its edges the image is mirrored.

    Args:
        image: (H, W, 3) uint8.
    """
    back, origin = 1 / scale, -shift / scale
    shrink = max(1, math.floor(abs(back)))
    if shrink > 1:  # else bicubic would skip pixels
        image = np.asarray(Image.fromarray(image).reduce(shrink))
        back, origin = back / shrink, origin / shrink
    height, width = image.shape[:2]
    corners = origin + back * _corners(*size)
    outside = max(
        -corners.real.min(), -corners.imag.min(),
        corners.real.max() - width, corners.imag.max() - height,
    )  # fmt: skip
    # A face far outside its image (wrong landmarks) is not worth any memory: it stays black.
    margin = min(max(0, math.ceil(outside) + 2), 2 * max(height, width))
    padded = np.pad(image, ((margin, margin), (margin, margin), (0, 0)), "symmetric")
    matrix = (
        back.real, -back.imag, origin.real + margin,
        back.imag, back.real, origin.imag + margin,
    )  # fmt: skip
    return Image.fromarray(padded).transform(
        size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC
    )


def _corners(width: float, height: float) -> NDArray[np.complex128]:
    return np.array([0, width, height * 1j, width + height * 1j])


# --- and back -------------------------------------------------------------------------------


def paste(
    image: Image8, face: Image8, frame: Frame, scale: complex, shift: complex
) -> tuple[Image8, float]:
    """A picture with a face of the frame put back where it was taken from.

    The face is replaced within an ellipse, and fades into the picture towards the ellipse that
    touches the frame's edges; every pixel beyond it is the picture's own.

    Args:
        image: (H, W, 3) uint8; stays as it is.
        face: (h, w, 3) uint8, the whole of the frame at any size.
        scale, shift: of the similarity from the picture into the frame.

    Returns:
        The picture, and how many of its pixels one of the face is wide.
    """
    made = image.copy()
    enlarged = frame.width / (face.shape[1] * abs(scale))
    back, origin = 1 / scale, -shift / scale
    corners = origin + back * _corners(frame.width, frame.height)
    left, right = _clipped(corners.real, image.shape[1])
    top, bottom = _clipped(corners.imag, image.shape[0])
    if left >= right:
        return made, enlarged
    sized = _as_large(face, frame, abs(scale))
    per = np.array([sized.width / frame.width, sized.height / frame.height])
    for first in range(top, bottom, _ROWS):
        last = min(first + _ROWS, bottom)
        weight = _weight(frame, scale, shift, (left, right), (first, last))
        if not weight.any():
            continue
        corner = scale * (left + 1j * first) + shift
        matrix = (
            per[0] * scale.real, -per[0] * scale.imag, per[0] * corner.real,
            per[1] * scale.imag, per[1] * scale.real, per[1] * corner.imag,
        )  # fmt: skip
        turned = sized.transform(
            (right - left, last - first), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC
        )
        part = made[first:last, left:right]
        mixed = part + weight[..., None] * (np.asarray(turned, np.float32) - part)
        part[weight > 0] = np.rint(mixed[weight > 0]).astype(np.uint8)
    return made, enlarged


def _clipped(values: NDArray[np.float64], end: int) -> tuple[int, int]:
    first, last = np.clip([math.floor(values.min()), math.ceil(values.max())], 0, end)
    return int(first), int(last)


def _as_large(face: Image8, frame: Frame, scale: float) -> Image.Image:
    """The face at its size in the picture, so that it need only be turned: antialiased."""
    size = np.array([frame.width, frame.height]) / scale
    size *= min(1, _MAX_SIDE / size.max())
    width, height = np.maximum(1, np.rint(size)).astype(int).tolist()
    return Image.fromarray(face).resize((width, height), Image.Resampling.BICUBIC)


def _weight(
    frame: Frame,
    scale: complex,
    shift: complex,
    columns: tuple[int, int],
    rows: tuple[int, int],
) -> NDArray[np.float32]:
    """How much of each pixel of a part of the picture is the face's, 0..1."""
    x = np.arange(*columns)[None, :] + 0.5
    y = np.arange(*rows)[:, None] + 0.5
    z = scale * (x + 1j * y) + shift
    away = np.hypot(2 * z.real / frame.width - 1, 2 * z.imag / frame.height - 1)
    part = np.clip((1 - away) / (1 - _SOLID), 0, 1)
    return (part * part * (3 - 2 * part)).astype(np.float32)
