"""The parts of a procedural face that tell it from others: eyes, brows, nose, mouth, glasses."""

from __future__ import annotations

import numpy as np

from imgtool.data.synthetic.facepaint import (
    Field,
    Planes,
    Rgb32,
    Surface,
    blend,
    edge,
    smooth,
    tint,
)
from imgtool.data.synthetic.faces import EYES_Y, Face, mouth_shape


def draw_features(face: Face, surface: Surface, canvas: Planes) -> None:
    """Everything on the skin, in the order in which it covers."""
    _folds(face, surface, canvas)
    _nose(face, surface, canvas)
    for side in (-1, 1):
        s, part = surface.window((side * face.eye_distance, EYES_Y - 0.1), 0.42)
        _eye(face, s, canvas[:, *part], side)
        _brow(face, s, canvas[:, *part], side)
    s, part = surface.window((0, face.mouth_y + 0.1), 1.1)
    _beard(face, s, canvas[:, *part])
    _mouth(face, s, canvas[:, *part])
    if face.earrings:
        _earrings(face, surface, canvas)


def _tone(face: Face, red: float, green: float, blue: float) -> Rgb32:
    return tint(face.skin) * tint((red, green, blue))


def _dot(s: Surface, x: float, y: float, width: float, height: float) -> Field:
    """A soft spot."""
    away = ((s.x - np.float32(x)) / np.float32(width)) ** 2
    return np.exp(-away - ((s.y - np.float32(y)) / np.float32(height)) ** 2)


def _ellipse(s: Surface, x: float, y: float, width: float, height: float) -> Field:
    """A sharp spot."""
    radius = np.sqrt(
        ((s.x - np.float32(x)) / np.float32(width)) ** 2
        + ((s.y - np.float32(y)) / np.float32(height)) ** 2
    )
    return edge((1 - radius) * np.float32(min(width, height) * s.px))


def _stroke(s: Surface, distance: Field, half: float) -> Field:
    return edge((np.float32(half) - abs(distance)) * s.px)


# --- skin -----------------------------------------------------------------------------------


def _folds(face: Face, surface: Surface, canvas: Planes) -> None:
    """Eye sockets; the balls and folds that a smile makes of cheeks."""
    dark = _tone(face, 0.72, 0.6, 0.55)
    s, part = surface.window((0, 0.3), 1.0)
    area = canvas[:, *part]
    for side in (-1, 1):
        x = side * face.eye_distance
        blend(area, np.float32(0.35) * _dot(s, 0.86 * x, EYES_Y - 0.06, 0.24, 0.13), dark)
        if face.eyeshadow:
            paint = tint((0.42, 0.3, 0.42)) * np.float32(0.7 + 0.3 * face.skin[0])
            blend(area, np.float32(0.75) * _dot(s, x, EYES_Y - 0.12, 0.22, 0.075), paint)
        if not face.smiling:
            continue
        blend(area, np.float32(0.5) * _dot(s, 0.56 * side, 0.27, 0.2, 0.13), _glow(face))
        blend(area, np.float32(0.25) * _dot(s, 0.64 * side, 0.5, 0.18, 0.09), dark)
        # From the wing of the nose round the corner of the mouth.
        t = np.clip((s.y - np.float32(0.38)) / np.float32(0.42), 0, 1)
        fold = np.float32(0.2) + np.float32(0.4) * t**0.8 - np.float32(0.1) * t**3
        line = np.exp(-(((s.x * side - fold) / np.float32(0.038)) ** 2))
        line *= smooth(s.y, 0.34, 0.44) * (1 - smooth(s.y, 0.7, 0.86))
        blend(area, np.float32(0.45) * line, _tone(face, 0.62, 0.47, 0.42))
        blend(area, np.float32(0.4) * _dot(s, x, EYES_Y + 0.15, 0.17, 0.035), dark)


def _glow(face: Face) -> Rgb32:
    return np.minimum(_tone(face, 1.12, 0.98, 0.94), 1)


def _nose(face: Face, surface: Surface, canvas: Planes) -> None:
    s, part = surface.window((0, 0.15), 0.5)
    area = canvas[:, *part]
    tip, half = face.nose_length, face.nose_width
    lit = -0.06 if face.light[0] < 0 else 0.06
    dark = _tone(face, 0.66, 0.53, 0.48)
    along = smooth(s.y, -0.3, 0.1) * (1 - smooth(s.y, tip - 0.08, tip + 0.04))
    widen = np.float32(0.07) + np.float32(0.07) * smooth(s.y, -0.1, tip)
    flank = np.exp(-(((s.x + np.float32(np.sign(lit)) * widen) / np.float32(0.045)) ** 2))
    blend(area, np.float32(0.5) * flank * along, dark)
    ridge = np.exp(-(((s.x - np.float32(0.3 * lit)) / np.float32(0.035)) ** 2))
    blend(area, np.float32(0.45) * ridge * along, _glow(face))
    blend(area, np.float32(0.4) * _dot(s, 0, tip + 0.07, half, 0.04), dark)
    blend(area, np.float32(0.55) * _dot(s, lit * 0.5, tip - 0.07, 0.06, 0.05), _glow(face))
    for side in (-1, 1):
        away = np.hypot(s.x - np.float32(side * (half - 0.07)), s.y - np.float32(tip - 0.01))
        wing = _stroke(s, away - np.float32(0.075), 0.014) * (s.x * side > half - 0.06)
        blend(area, np.float32(0.55) * wing * (s.y > tip - 0.07), dark)
        hole = _ellipse(s, side * 0.5 * half, tip + 0.035, 0.36 * half, 0.03)
        blend(area, np.float32(0.8) * hole, _tone(face, 0.3, 0.2, 0.18))


# --- eyes -----------------------------------------------------------------------------------


def _eye(face: Face, s: Surface, canvas: Planes, side: int) -> None:
    x0 = side * face.eye_distance
    squeeze = 0.55 if face.smiling else 1.0  # raised cheeks push the lower lid up
    t = (s.x - np.float32(x0)) / np.float32(face.eye_width)
    arch = np.clip(1 - t * t, 0, 1)
    slant = np.float32(-0.02 * side) * t
    top = np.float32(EYES_Y) + slant - np.float32(face.eye_height) * arch**0.8
    bottom = np.float32(EYES_Y) + slant + np.float32(0.62 * squeeze * face.eye_height) * arch
    open_ = edge(np.minimum(s.y - top, bottom - s.y) * s.px) * (abs(t) < 1)
    white = tint((0.93, 0.92, 0.92))[:, None, None]
    shade = np.float32(0.72) + np.float32(0.28) * smooth(s.y - top, 0, 0.07)
    blend(canvas, open_, white * shade)
    middle = x0 + face.gaze * 0.35 * face.eye_width
    iris, height = 0.088, EYES_Y - 0.012
    blend(canvas, open_ * _ellipse(s, middle, height, iris, iris), tint(face.iris) * 0.55)
    inner = 0.8 * iris
    blend(
        canvas,
        open_ * _ellipse(s, middle, height, inner, inner),
        tint(face.iris) * np.float32(1),
    )
    blend(canvas, open_ * _ellipse(s, middle, height, 0.042, 0.042), (0.03, 0.03, 0.04))
    glint = 0.035 if face.light[0] > 0 else -0.035
    blend(canvas, open_ * _ellipse(s, middle + glint, height - 0.03, 0.02, 0.02), (1, 1, 1))
    lashes = 0.024 if face.male else 0.036
    lid = _stroke(s, s.y - top + np.float32(0.4 * lashes), lashes) * edge(
        (np.float32(1.08) - abs(t)) * np.float32(face.eye_width * s.px)
    )
    blend(canvas, lid * np.float32(0.9), (0.08, 0.05, 0.05))
    crease = np.exp(-(((s.y - top + np.float32(0.075)) / np.float32(0.014)) ** 2)) * (abs(t) < 0.95)
    blend(canvas, np.float32(0.5) * crease, _tone(face, 0.5, 0.38, 0.34))
    under = np.exp(-(((s.y - bottom - np.float32(0.01)) / np.float32(0.012)) ** 2)) * (abs(t) < 0.9)
    blend(canvas, np.float32(0.45) * under, _tone(face, 0.55, 0.38, 0.35))


def _brow(face: Face, s: Surface, canvas: Planes, side: int) -> None:
    t = (s.x * side - np.float32(face.eye_distance)) / np.float32(0.29)
    line = np.float32(EYES_Y - face.brow_height)
    peak = line - np.float32(face.brow_arch) * (1 - (t - np.float32(0.3)) ** 2)
    thick = np.float32(face.brow_thickness) * np.clip(
        np.float32(1.0) - np.float32(0.42) * (t + 1) * 0.9, 0.2, 1
    )
    inside = edge((thick - abs(s.y - peak)) * s.px) * edge(
        (1 - abs(t)) * np.float32(0.29 * s.px * 0.4)
    )
    colour = tint(face.hair) * np.float32(0.6)
    blend(canvas, inside * np.float32(0.85), colour)


# --- mouth ----------------------------------------------------------------------------------


def _mouth(face: Face, s: Surface, canvas: Planes) -> None:
    """Two lips about an opening; a smile is wide, turned up, and shows teeth."""
    half, lift, middle = mouth_shape(face)
    t = s.x / np.float32(half)
    arch = np.clip(1 - t * t, 0, 1)
    line = np.float32(middle) - np.float32(lift) * np.minimum(t * t, np.float32(1.3))
    if face.smiling:
        teeth, gap = 0.12, 0.07 if face.mouth_open else 0.0
    else:
        teeth, gap = 0.0, 0.075 if face.mouth_open else 0.0
    upper = line - np.float32(0.45 * gap) * arch
    lower = line + np.float32(teeth + 0.55 * gap) * arch**0.9
    full = np.float32(face.lip_thickness * (0.8 if face.smiling else 1.0))
    bow = 1 - np.float32(0.3) * np.exp(-((t / np.float32(0.14)) ** 2))
    above = upper - full * arch**0.75 * bow
    below = lower + np.float32(1.25) * full * arch**0.7
    within = edge((1 - abs(t)) * np.float32(half * s.px))
    colour = tint(face.lip) if face.lipstick else _tone(face, 0.86, 0.6, 0.58)
    lips = within * edge(np.minimum(s.y - above, below - s.y) * s.px)
    blend(
        canvas,
        np.float32(0.3) * _dot(s, 0, float(middle) + 0.28, 0.2, 0.05),
        _tone(face, 0.66, 0.53, 0.48),
    )
    roundness = np.float32(0.8) + np.float32(0.3) * smooth(s.y - lower, 0.0, 0.05)
    blend(canvas, lips, colour[:, None, None] * roundness)
    inside = within * edge(np.minimum(s.y - upper, lower - s.y) * s.px)
    blend(canvas, inside, (0.25, 0.06, 0.07))
    if face.smiling:
        end = upper + np.float32(teeth) * arch**0.9
        row = (
            inside
            * edge((end - s.y) * s.px)
            * edge((np.float32(0.9) - abs(t)) * np.float32(half * s.px))
        )
        gaps = 1 - np.float32(0.12) * (np.cos(s.x * np.float32(52)) > 0.93)
        rounded = np.float32(1) - np.float32(0.22) * t * t
        blend(canvas, row, tint((0.97, 0.95, 0.9))[:, None, None] * (gaps * rounded))
    elif not face.mouth_open:
        seam = _stroke(s, s.y - line, 0.014) * within
        blend(canvas, seam * np.float32(0.85), _tone(face, 0.42, 0.2, 0.2))
    else:
        end = upper + np.float32(0.025) * arch
        blend(canvas, inside * edge((end - s.y) * s.px) * np.float32(0.7), (0.85, 0.82, 0.78))
    for side in (-1, 1):
        dent = _dot(s, side * half * 1.02, middle - lift, 0.035, 0.035)
        blend(canvas, np.float32(0.55) * dent, _tone(face, 0.5, 0.33, 0.3))


def _beard(face: Face, s: Surface, canvas: Planes) -> None:
    if face.beard == "none":
        return
    half, _, middle = mouth_shape(face)
    colour = tint(face.hair) * np.float32(0.62)
    jaw = smooth(s.y + np.float32(0.55) * s.x**2, 0.72, 0.95) * np.float32(0.95)
    jaw = np.maximum(jaw, smooth(abs(s.x), 0.72, 0.9) * smooth(s.y, 0.1, 0.4))
    lip = np.exp(
        -(((s.y - np.float32(middle - 0.13) - np.float32(0.25) * s.x**2) / np.float32(0.055)) ** 2)
    )
    lip = lip * (1 - smooth(abs(s.x), half * 0.8, half * 1.25))
    chin = _dot(s, 0, middle + 0.4, 0.2, 0.2) * smooth(s.y, middle + 0.1, middle + 0.2)
    if face.beard == "stubble":
        blend(canvas, np.float32(0.32) * np.maximum(jaw, lip), colour)
        return
    blend(canvas, np.float32(0.9) * lip, colour)
    if face.beard == "goatee":
        blend(canvas, np.minimum(1, np.float32(1.3) * chin) * np.float32(0.9), colour)
    elif face.beard == "full":
        blend(canvas, np.float32(0.85) * jaw, colour)


def _earrings(face: Face, surface: Surface, canvas: Planes) -> None:
    for side in (-1, 1):
        u, v = surface.u - np.float32(1.02 * side), surface.v - np.float32(0.36)
        blend(canvas, edge((np.float32(0.065) - np.hypot(u, v)) * surface.px), face.metal)


# --- glasses --------------------------------------------------------------------------------

_LENS_X, _LENS_Y = 0.33, 0.23


def _lens_distance(face: Face, s: Surface, side: int) -> Field:
    """Distance to the edge of a lens, in half widths; positive inside."""
    across = abs(s.x - np.float32(side * (face.eye_distance + 0.015))) / np.float32(_LENS_X)
    down = abs(s.y - np.float32(EYES_Y + 0.02)) / np.float32(_LENS_Y)
    power = np.float32(face.lens)
    return (1 - (across**power + down**power) ** (1 / power)) * np.float32(0.27)


def draw_temples(face: Face, surface: Surface, canvas: Planes) -> None:
    """The bars to the ears, which hair covers."""
    hinge = face.eye_distance + _LENS_X
    bar = _stroke(surface, surface.y - np.float32(EYES_Y - 0.05), 0.6 * face.frame_px / surface.px)
    bar *= (abs(surface.x) > hinge - 0.02) & (abs(surface.u) < 1.04)
    blend(canvas, bar, face.frame)


def draw_glasses(face: Face, surface: Surface, canvas: Planes) -> None:
    """Frames, bridge, and what lenses do to the light."""
    s, part = surface.window((0, EYES_Y), 0.9)
    area = canvas[:, *part]
    thick = np.float32(face.frame_px / s.px)
    frame = np.zeros_like(s.x)
    for side in (-1, 1):
        inside = _lens_distance(face, s, side)
        lens = edge(inside * s.px)
        blend(area, lens * np.float32(0.1), (0.75, 0.85, 0.95))
        streak = abs(
            s.x - np.float32(side * face.eye_distance) + s.y * np.float32(0.8) + np.float32(0.02)
        )
        glare = lens * np.clip(1 - streak / np.float32(0.07), 0, 1)
        blend(area, glare * np.float32(0.22), (1, 1, 1))
        np.maximum(frame, _stroke(s, inside + thick / 2, float(thick)), out=frame)
    gap = face.eye_distance + 0.015 - _LENS_X
    bridge = s.y - np.float32(EYES_Y - 0.04) + np.float32(0.05) * (1 - (s.x / np.float32(0.2)) ** 2)
    np.maximum(frame, _stroke(s, bridge, float(thick)) * (abs(s.x) < gap + 0.03), out=frame)
    blend(area, frame, face.frame)
