"""Five landmarks of each face: their table, the mean face, and what is no face.

A face is five points of the plane, and a point x + iy is a complex number, so that a similarity
is a z + b.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from imgtool.data.base import Size
from imgtool.data.celeba_tables import LANDMARK_STEMS, Table, find_table, looked_for, read_table
from imgtool.errors import DataError

Points = NDArray[np.complex128]  # (..., 5): x + iy in pixels, 0 in the corner of the image
NAMES = ("left eye", "right eye", "nose", "left mouth", "right mouth")
COLUMNS = tuple(f"{name.replace(' ', '')}_{axis}" for name in NAMES for axis in "xy")
EYE_DISTANCE = 0.25  # between the eyes of the mean face, as a part of the side
EYE_CENTRE = 0.5 + 0.45j

# Bounds of what is a face, by 20,000 heads of three dimensions turned by up to 70 degrees to each
# side and 30 up or down, with points that err by 4 % of the distance of the eyes: 2 were refused.
# Of 20,000 with one point moved by 1, 2 or 3 such distances 53, 86 and 99 % were found, and of as
# many rows of five random points 95 %; points on a line have a residual of 0.65.
MIN_EYE_PX = 3.0  # distance of the eyes of a mean face of its size
MAX_RESIDUAL = 0.6  # of shapes of size 1, whatever their turn: 0 is the mean face
_ASTRAY = 0.35  # residual from which one point is looked for that spoils the other four
_ASTRAY_LEFT = 0.3  # part of the residual that is left without that point
MIN_OVERLAP = 0.2  # part of the square that lies in the picture
MAX_SCALE = 3.0  # a face's size in its picture over the median of all, or the other way round,
_SCALE_SPREAD = 6.0  # or this many median deviations, where sizes differ more,
_SCALE_SHARE = 0.1  # unless more faces than this part are so
_FAR = 1e7  # pixels; what is beyond is as wrong as this
_GRID = 8  # points a side, of the square, by which that part is counted
_ROWS = 4096  # faces at a time


# --- the table ------------------------------------------------------------------------------


def read_landmarks(root: Path) -> tuple[Table, Points]:
    """The table of a CelebA folder, and its points; as landmarks_in() of a file.

    Raises:
        DataError: there is none, or its columns are not x and y of five landmarks.
    """
    path = find_table(root, LANDMARK_STEMS)
    if path is None:
        raise DataError(
            f"{root}: no table of landmarks", hint=f"looked for {looked_for(root, LANDMARK_STEMS)}"
        )
    return landmarks_in(path)


def landmarks_in(path: Path) -> tuple[Table, Points]:
    """A table of landmarks, and its points (N, 5) in the order of NAMES.

    Columns are taken by their names; without names, or with names that say nothing, they are
    in CelebA's order.

    Raises:
        DataError: it cannot be read, or its columns are not x and y of five landmarks.
    """
    table = read_table(path, default_columns=tuple(f"landmark_{i}" for i in range(10)))
    values = table.values[:, column_order(path, table.columns)]
    values = (
        np.clip(values, -_FAR, _FAR) + 0.5
    )  # numbers name pixels, whose middles lie half a pixel in
    return table, values[:, 0::2] + 1j * values[:, 1::2]


def column_order(path: Path, columns: tuple[str, ...]) -> list[int]:
    """Where x and y of each landmark are among the columns, in the order of COLUMNS.

    Raises:
        DataError: a landmark has no column, or two; names it.
    """
    found: dict[tuple[str, str], int] = {}
    for position, column in enumerate(columns):
        meaning = _meaning(column)
        if meaning is None:
            continue
        if meaning in found:
            raise DataError(
                f"{path}: the columns {columns[found[meaning]]} and {column} are both "
                f"{meaning[1]} of the {meaning[0]}",
                hint=f"CelebA's names are {' '.join(COLUMNS)}",
            )
        found[meaning] = position
    wanted = [(name, axis) for name in NAMES for axis in "xy"]
    lacking = [f"{axis} of the {name}" for name, axis in wanted if (name, axis) not in found]
    if not lacking:
        return [found[meaning] for meaning in wanted]
    numbers = sorted({int(name) for name, _ in found if name.isdecimal()})
    numbered = [(str(number), axis) for number in numbers for axis in "xy"]
    if len(numbers) == 5 and len(found) == 10 and all(key in found for key in numbered):
        return [found[key] for key in numbered]
    if any(name in NAMES for name, _ in found):
        raise DataError(
            f"{path}: no column has the {', '.join(lacking)}",
            hint=f"CelebA's names are {' '.join(COLUMNS)}",
        )
    if len(columns) != 10:
        raise DataError(
            f"{path}: {len(columns)} columns, not x and y of five landmarks",
            hint="eyes, nose and corners of the mouth are wanted",
        )
    return list(range(10))


def _meaning(column: str) -> tuple[str, str] | None:
    """Landmark and axis of a column such as lefteye_x, mouth_right_y, NoseX or x3; else None."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", column).lower()
    word = re.sub(r"[^a-z0-9]", "", words)
    match = re.fullmatch(r"(?P<name>.+)(?P<axis>[xy])|(?P<axis2>[xy])(?P<name2>.+)", word)
    if match is None:
        return None
    name, axis = match["name"] or match["name2"], match["axis"] or match["axis2"]
    number = re.fullmatch(r"(?:p|pt|pts|point|lm|landmark)?(\d{1,3})", name)
    if number:
        return str(int(number[1])), axis
    if re.fullmatch(r"n|nose(tip|center|centre)?", name):
        return "nose", axis
    side = r"(l|left|r|right)"
    for part, known in (("eye", r"(?:eyes?(?:center|centre)?|e)"), ("mouth", r"(?:mouth|lip|m)")):
        corner = r"(?:corner)?"
        found = re.fullmatch(rf"{side}{known}{corner}|{known}{corner}{side}{corner}", name)
        if found:
            return f"{'left' if (found[1] or found[2])[0] == 'l' else 'right'} {part}", axis
    return None


# --- the mean face --------------------------------------------------------------------------


def mean_face(points: Points) -> Points:
    """Mean of faces of any position, size and turn, (5,), in a square of side 1, eyes level.

    Generalised Procrustes analysis (Gower 1975): each face is brought onto the mean, and the
    mean is taken again, a few times. Faces that fit badly have no say in it, as long as they
    are fewer than half.

    Raises:
        DataError: there is no face, or the mean is none.
    """
    shapes, sizes = _shapes(points)
    shapes = shapes[sizes > 0]
    if not len(shapes):
        raise DataError("all landmarks of every face coincide")
    mean = shapes[0]
    used = np.ones(len(shapes), bool)
    for turn in range(10):
        turns = (shapes.conj() * mean).sum(axis=1, keepdims=True)
        mean = (shapes * turns)[used].mean(axis=0)
        mean = mean / np.sqrt((abs(mean) ** 2).sum())
        if turn >= 4:
            residuals = _residuals(shapes, mean)
            used = residuals <= max(MAX_RESIDUAL, float(np.median(residuals)))
            if used.all():
                break
    eyes = mean[1] - mean[0]
    if abs(eyes) < 1e-6:
        raise DataError("the eyes of the mean face coincide")
    level: Points = (mean - (mean[0] + mean[1]) / 2) * (EYE_DISTANCE / eyes) + EYE_CENTRE
    what = None
    if level[3:].imag.mean() <= EYE_CENTRE.imag:
        what = "its mouth above its eyes"
    elif level[4].real <= level[3].real:
        what = "the left corner of its mouth on the right"
    if what:
        raise DataError(
            f"the mean face has {what}",
            hint="left and right are the picture's, y counts from its top, and columns without "
            f"names are {' '.join(COLUMNS)}",
        )
    return level


def similarities(points: Points, target: Points) -> Points:
    """Least-squares similarities a z + b from each face onto the target: (N, 2) of a and b.

    The closed form of Umeyama (1991) without reflection; in the plane a is the inner product of
    the centred shapes over the face's squared size. Not finite where all landmarks coincide.
    """
    centres = points.mean(axis=1, keepdims=True)
    shapes, goal = points - centres, target - target.mean()
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = (shapes.conj() * goal).sum(axis=1) / (abs(shapes) ** 2).sum(axis=1)
    return np.stack([scale, target.mean() - scale * centres[:, 0]], axis=1)


def _shapes(points: Points) -> tuple[Points, NDArray[np.float64]]:
    """Faces about their centre and of size 1, and their sizes in pixels."""
    shapes = points - points.mean(axis=-1, keepdims=True)
    sizes = np.sqrt((abs(shapes) ** 2).sum(axis=-1))
    with np.errstate(divide="ignore", invalid="ignore"):
        return shapes / sizes[..., None], sizes


def _residuals(shapes: Points, mean: Points) -> NDArray[np.float64]:
    """Distance, 0..1, of shapes from the mean's, turned onto it: sqrt(1 - |<shape, mean>|^2)."""
    along = abs((shapes.conj() * mean).sum(axis=-1))
    distance: NDArray[np.float64] = np.sqrt(np.maximum(0, 1 - along**2))
    return distance


# --- what is no face ------------------------------------------------------------------------


def misfits(points: Points, mean: Points) -> dict[int, str]:
    """Rows whose points are no face whatever their picture is, and why.

    Args:
        points: (N, 5).
        mean: (5,), of mean_face().
    """
    target, target_size = _shapes(mean)
    shapes, sizes = _shapes(points)
    reasons: dict[int, str] = {}
    eyes_px = sizes / target_size * EYE_DISTANCE
    first, second = np.triu_indices(5, 1)
    gaps = abs(points[:, first] - points[:, second])
    for row in np.flatnonzero(gaps.min(axis=1) < 0.5).tolist():
        pair = gaps[row].argmin()
        reasons[row] = f"its {NAMES[first[pair]]} and its {NAMES[second[pair]]} coincide"
    for row in np.flatnonzero(~(eyes_px >= MIN_EYE_PX)).tolist():
        reasons[row] = f"all its landmarks lie within {math.ceil(gaps[row].max())} px"
    for row in np.flatnonzero(sizes == 0).tolist():
        reasons[row] = "all its landmarks coincide"
    residuals = _residuals(shapes, target)
    rows = [row for row in np.flatnonzero(residuals > _ASTRAY).tolist() if row not in reasons]
    for row, reason in zip(rows, _misfit(points[rows], mean, residuals[rows]), strict=True):
        if reason:
            reasons[row] = reason
    return reasons


def _misfit(points: Points, mean: Points, residuals: NDArray[np.float64]) -> list[str | None]:
    """What makes each face so unlike the mean; None where it may be a head that is turned."""
    target, _ = _shapes(mean)
    mirrored = _residuals(_shapes(points.conj())[0], target) < _ASTRAY
    fours = [
        _residuals(_shapes(np.delete(points, i, axis=1))[0], _shapes(np.delete(mean, i))[0])
        for i in range(5)
    ]
    astray, left = np.argmin(fours, axis=0), np.min(fours, axis=0)
    reasons: list[str | None] = []
    for row, residual in enumerate(residuals):
        reason = None
        if residual > MAX_RESIDUAL and mirrored[row]:
            reason = "its landmarks are mirrored: left and right, or top and bottom, are exchanged"
        elif left[row] < _ASTRAY_LEFT * residual:
            reason = f"its {NAMES[astray[row]]} is not where the other landmarks want it"
        elif residual > MAX_RESIDUAL:
            reason = f"its landmarks are no face (residual {residual:.2f} of {MAX_RESIDUAL})"
        reasons.append(reason)
    return reasons


def misplaced(
    points: Points,
    steps: Points,
    sizes: NDArray[np.int_],
    *,
    height: float = 1.0,
    alike: bool = True,
) -> dict[int, str]:
    """Rows whose points, or frames, do not lie in their picture, and why.

    Args:
        points: (N, 5) in pixels.
        steps: (N, 2), the similarities onto a frame of width 1.
        sizes: (N, 2), height and width of the pictures.
        height: of the frame.
        alike: a face far smaller or larger in its picture than others in theirs is misplaced, too.
    """
    heights, widths = sizes[:, :1], sizes[:, 1:]
    # A pixel of slack: some tables count from 1.
    outside = (points.real < -1) | (points.real > widths + 1)
    outside |= (points.imag < -1) | (points.imag > heights + 1)
    reasons: dict[int, str] = {}
    for row in np.flatnonzero(outside.any(axis=1)).tolist():
        which = int(outside[row].argmax())
        at = points[row, which] - (0.5 + 0.5j)
        where = _where(at, (int(heights[row, 0]), int(widths[row, 0])))
        reasons[row] = f"its {NAMES[which]} lies outside the picture ({where})"
    what = "square" if height == 1 else "frame"
    for row, share in enumerate(overlaps(steps, sizes, height).tolist()):
        if share < MIN_OVERLAP and row not in reasons:
            reasons[row] = f"only {share:.0%} of its {what} lies in the picture"
    return (_out_of_scale(steps, sizes) if alike else {}) | reasons


def _out_of_scale(steps: Points, sizes: NDArray[np.int_]) -> dict[int, str]:
    """Rows whose face is far smaller or larger in its picture than the others are in theirs.

    Many such are faces of another kind, and no mistakes.
    """
    logs = -np.log(abs(steps[:, 0]) * np.hypot(*sizes.T))
    away = logs - np.median(logs) if len(logs) else logs
    bound = (
        max(math.log(MAX_SCALE), _SCALE_SPREAD * float(np.median(abs(away)))) if len(logs) else 0
    )
    rows = np.flatnonzero(abs(away) > bound).tolist()
    if len(rows) > max(1, _SCALE_SHARE * len(logs)):
        return {}
    return {
        row: f"its face is {math.exp(abs(away[row])):.0f} times "
        f"{'smaller' if away[row] < 0 else 'larger'} than others are"
        for row in rows
    }


def _where(point: complex, size: Size) -> str:
    return f"{point.real:g}, {point.imag:g} in {size[1]}x{size[0]}"


def overlaps(steps: Points, sizes: NDArray[np.int_], height: float = 1.0) -> NDArray[np.float64]:
    """Part of each frame of width 1 that lies in its picture, (N,), as in misplaced()."""
    line = (np.arange(_GRID) + 0.5) / _GRID
    grid = (line[:, None] + 1j * height * line).ravel()
    shares = np.empty(len(steps))
    for begin in range(0, len(steps), _ROWS):
        part = slice(begin, begin + _ROWS)
        scale, shift = steps[part, :1], steps[part, 1:]
        back = (grid - shift) / scale
        inside = (back.real >= 0) & (back.real <= sizes[part, 1:])
        inside &= (back.imag >= 0) & (back.imag <= sizes[part, :1])
        shares[part] = inside.mean(axis=1)
    return shares
