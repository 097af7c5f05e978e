"""Procedural faces in CelebA's own layout: who is drawn, what is true of them, where things are.

A face is a record of plain numbers (`Face`), drawn by `facedrawing.draw_face`. Every number is
drawn on its own, whether it is used or not, so that faces which differ in one attribute alone are
`dataclasses.replace` of each other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from imgtool.data.celeba_tables import ATTRIBUTES as ATTRIBUTES

WIDTH, HEIGHT = 178, 218  # of CelebA's aligned images
_TOP = 20  # rows of those above a square of their width
LANDMARKS = tuple(
    f"{part}_{axis}"
    for part in ("lefteye", "righteye", "nose", "leftmouth", "rightmouth")
    for axis in "xy"
)
# Where the eyes of aligned faces lie. With them the means of all five landmarks over many faces are
# CelebA's (69 111, 108 111, 88 136, 72 152, 105 152) but for two pixels, the least that a
# similarity of the mean drawn face leaves.
ALIGNED_EYES_PX = (88.4, 112.7)  # their middle
ALIGNED_EYE_HALF_PX = 20.9  # half of their distance
Rgb = tuple[float, float, float]

# Albedo, 0..1, from light to dark; the first two count as Pale_Skin.
SKINS: tuple[Rgb, ...] = (
    (0.98, 0.86, 0.79),
    (0.96, 0.81, 0.72),
    (0.93, 0.74, 0.62),
    (0.87, 0.66, 0.51),
    (0.76, 0.55, 0.40),
    (0.62, 0.42, 0.29),
    (0.46, 0.30, 0.21),
)
NUM_PALE = 2
EYES_Y = -0.1  # in half widths of the head
HAIRS: dict[str, Rgb] = {
    "Black_Hair": (0.10, 0.09, 0.10),
    "Brown_Hair": (0.36, 0.22, 0.13),
    "Blond_Hair": (0.87, 0.70, 0.40),
    "Gray_Hair": (0.68, 0.68, 0.69),
    "": (0.48, 0.20, 0.11),  # red hair, which CelebA has no name for
}
IRISES: tuple[Rgb, ...] = (
    (0.30, 0.18, 0.10),
    (0.20, 0.12, 0.08),
    (0.25, 0.42, 0.62),
    (0.28, 0.45, 0.28),
    (0.45, 0.42, 0.38),
    (0.48, 0.33, 0.13),
)
HAIR_LENGTHS = ("short", "medium", "long")
BEARDS = ("none", "stubble", "mustache", "goatee", "full")
BACKGROUNDS = ("gradient", "clouds", "lights", "stripes")


@dataclass(frozen=True, kw_only=True)
class Face:
    """One face. Lengths are in half widths of the head unless the name says pixels."""

    smiling: bool
    eyeglasses: bool
    bangs: bool
    male: bool
    mouth_open: bool
    lipstick: bool
    eyeshadow: bool
    rosy: bool
    earrings: bool
    necklace: bool
    wavy: bool
    beard: str
    hair_length: str
    hair_name: str
    background: str
    skin_tone: int
    iris: Rgb
    skin: Rgb
    hair: Rgb
    cloth: Rgb
    metal: Rgb
    frame: Rgb
    lip: Rgb
    centre_px: tuple[float, float]
    scale_px: float
    roll: float  # radians, as yaw and pitch
    yaw: float
    pitch: float
    light: tuple[float, float, float]
    ambient: float
    warmth: float
    jaw: float
    chin: float
    eye_width: float
    eye_height: float
    eye_distance: float
    brow_height: float
    brow_thickness: float
    brow_arch: float
    nose_width: float
    nose_length: float
    mouth_width: float
    mouth_y: float
    lip_thickness: float
    smile_lift: float
    frown: float
    part: float
    hairline: float
    hair_volume: float
    fringe: float
    fringe_slope: float
    lens: float  # 2 is an ellipse, more is squarer
    frame_px: float
    gaze: float
    texture_seed: int
    width_px: int = WIDTH  # of the picture, as height_px
    height_px: int = HEIGHT
    zoom: float = 1.0  # pixels of the picture for one of CelebA's


def random_face(seed: int, index: int) -> Face:
    """Face number `index`, which follows from `seed` and `index` alone."""
    rng = np.random.default_rng([seed, index, 0xFACE])

    def chance(share: float) -> bool:
        return bool(rng.random() < share)

    def between(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    def near(colour: Rgb, spread: float) -> Rgb:
        bright = 1 + between(-spread, spread)
        red, green, blue = (min(1.0, c * bright * (1 + between(-0.04, 0.04))) for c in colour)
        return red, green, blue

    def any_colour(low: float, high: float) -> Rgb:
        grey = between(low, high)
        red, green, blue = (0.45 * grey + 0.55 * between(low, high) for _ in range(3))
        return red, green, blue

    male = chance(0.5)
    lengths = (0.86, 0.08, 0.06) if male else (0.12, 0.33, 0.55)
    beards = (0.46, 0.18, 0.1, 0.12, 0.14)
    beard = BEARDS[int(rng.choice(5, p=beards))]
    tone = int(rng.integers(len(SKINS)))
    hair_name = tuple(HAIRS)[int(rng.choice(5, p=(0.27, 0.27, 0.22, 0.12, 0.12)))]
    lipstick, eyeshadow = chance(0.6) and not male, chance(0.5) and not male
    skin = near(SKINS[tone], 0.03)
    turn = between(-math.pi, math.pi)
    height = between(0.15, 0.75)  # how far the light is from straight ahead
    return Face(
        smiling=chance(0.5),
        eyeglasses=chance(0.5),
        bangs=chance(0.5),
        male=male,
        mouth_open=chance(0.5),
        lipstick=lipstick,
        eyeshadow=eyeshadow,
        rosy=chance(0.3),
        earrings=chance(0.08 if male else 0.45),
        necklace=chance(0.08 if male else 0.35),
        wavy=chance(0.4),
        beard=beard if male else "none",
        hair_length=HAIR_LENGTHS[int(rng.choice(3, p=lengths))],
        hair_name=hair_name,
        background=BACKGROUNDS[int(rng.integers(4))],
        skin_tone=tone,
        iris=near(IRISES[int(rng.integers(len(IRISES)))], 0.15),
        skin=skin,
        hair=near(HAIRS[hair_name], 0.18),
        cloth=any_colour(0.08, 0.95),
        metal=near((0.93, 0.78, 0.38) if chance(0.5) else (0.86, 0.87, 0.9), 0.08),
        frame=any_colour(0.02, 0.3) if chance(0.75) else near((0.75, 0.55, 0.3), 0.2),
        lip=near((0.74, 0.13, 0.2) if chance(0.6) else (0.75, 0.25, 0.42), 0.2),
        centre_px=(89 + between(-5, 5), 117 + between(-5, 5)),
        scale_px=between(46, 53),
        roll=between(-0.14, 0.14),
        yaw=between(-0.3, 0.3),
        pitch=between(-0.14, 0.14),
        light=(
            math.sin(height) * math.cos(turn),
            -abs(math.sin(height) * math.sin(turn)) - 0.1,
            math.cos(height),
        ),
        ambient=between(0.35, 0.6),
        warmth=between(-0.05, 0.07),
        jaw=between(2.25, 2.8) if male else between(2.0, 2.4),
        chin=between(1.22, 1.36),
        eye_width=between(0.185, 0.225),
        eye_height=between(0.075, 0.125),
        eye_distance=between(0.40, 0.46),
        brow_height=between(0.22, 0.29),
        brow_thickness=between(0.045, 0.08) if male else between(0.025, 0.06),
        brow_arch=between(0.01, 0.09),
        nose_width=between(0.13, 0.2),
        nose_length=between(0.37, 0.45),
        mouth_width=between(0.27, 0.34),
        mouth_y=between(0.69, 0.76),
        lip_thickness=between(0.05, 0.1),
        smile_lift=between(0.13, 0.19),
        frown=between(-0.035, 0.012),
        part=between(-0.5, 0.5),
        hairline=between(-1.04, -0.88),
        hair_volume=between(0.06, 0.2),
        fringe=between(-0.42, -0.33),
        fringe_slope=between(-0.14, 0.14),
        lens=float(rng.choice((2.0, 2.6, 4.0))),
        frame_px=between(1.3, 3.2),
        gaze=between(-0.25, 0.25),
        texture_seed=int(rng.integers(2**31)),
    )


def aligned(face: Face) -> Face:
    """The face straight ahead, with its eyes where those of every aligned face are.

    By the eyes alone, as CelebA's were: a smile moves no other part of the picture.
    """
    scale = ALIGNED_EYE_HALF_PX / face.eye_distance
    column, row = ALIGNED_EYES_PX
    return replace(
        face,
        roll=0.0,
        yaw=0.0,
        pitch=0.0,
        scale_px=scale,
        centre_px=(column, row - scale * EYES_Y),
    )


def squared(face: Face, size: int) -> Face:
    """The face in a square of `size` pixels, without what CelebA has above and below."""
    zoom = size / WIDTH
    column, row = face.centre_px
    return replace(
        face,
        width_px=size,
        height_px=size,
        zoom=zoom,
        # The middle of a pixel has its number, the picture's corner is at -0.5.
        centre_px=((column + 0.5) * zoom - 0.5, (row - _TOP + 0.5) * zoom - 0.5),
        scale_px=face.scale_px * zoom,
        frame_px=face.frame_px * zoom,
    )


def attributes(face: Face) -> dict[str, bool]:
    """Which of CelebA's 40 names hold. What the drawing leaves open does not."""
    true = {
        "5_o_Clock_Shadow": face.beard == "stubble",
        "Arched_Eyebrows": face.brow_arch > 0.06,
        "Bangs": face.bangs,
        "Big_Lips": face.lip_thickness > 0.083,
        "Big_Nose": face.nose_width > 0.177,
        "Bushy_Eyebrows": face.brow_thickness > 0.064,
        "Eyeglasses": face.eyeglasses,
        "Goatee": face.beard == "goatee",
        "Heavy_Makeup": face.lipstick and face.eyeshadow,
        "Male": face.male,
        "Mouth_Slightly_Open": face.mouth_open,
        "Mustache": face.beard in ("mustache", "goatee", "full"),
        "Narrow_Eyes": face.eye_height < 0.085,
        "No_Beard": face.beard in ("none", "stubble", "mustache"),
        "Oval_Face": face.jaw < 2.2,
        "Pale_Skin": face.skin_tone < NUM_PALE,
        "Rosy_Cheeks": face.rosy,
        "Smiling": face.smiling,
        "Straight_Hair": not face.wavy,
        "Wavy_Hair": face.wavy,
        "Wearing_Earrings": face.earrings,
        "Wearing_Lipstick": face.lipstick,
        "Wearing_Necklace": face.necklace,
        face.hair_name: True,
    }
    return {name: true.get(name, False) for name in ATTRIBUTES}


def to_pixels(face: Face, x: float, y: float) -> tuple[float, float]:
    """Where a point on the face's front lies in the image, as (column, row) in pixels."""
    u, v = x, y
    for _ in range(8):  # the inverse of facedrawing's surface coordinates
        depth = surface_depth(u, v)
        u = x * math.cos(face.yaw) + depth * math.sin(face.yaw)
        v = y * math.cos(face.pitch) + depth * math.sin(face.pitch)
    cos, sin = math.cos(face.roll), math.sin(face.roll)
    column = face.centre_px[0] + face.scale_px * (cos * u - sin * v)
    row = face.centre_px[1] + face.scale_px * (sin * u + cos * v)
    return column, row


def surface_depth(u: float, v: float) -> float:
    """How far the face bulges forward; works on arrays too."""
    return 0.62 - 0.4 * u * u - 0.2 * v * v


def mouth_shape(face: Face) -> tuple[float, float, float]:
    """Half width of the mouth, how far its corners rise, and where its middle is."""
    if face.smiling:
        return face.mouth_width * 1.46, face.smile_lift, face.mouth_y + 0.05
    return face.mouth_width, face.frown, face.mouth_y


def landmarks(face: Face) -> list[int]:
    """Columns and rows of CelebA's five landmarks, rounded, in the order of LANDMARKS."""
    half, lift, middle = mouth_shape(face)
    points = (
        (-face.eye_distance, EYES_Y),
        (face.eye_distance, EYES_Y),
        (0.0, face.nose_length - 0.04),
        (-half, middle - lift),
        (half, middle - lift),
    )
    return [round(value) for point in points for value in to_pixels(face, *point)]
