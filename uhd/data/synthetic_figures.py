"""People-like figures: a pose gives the joints, an outfit the shapes and colours on them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from uhd.data.synthetic_shapes import Colour, Point, Sketch, hsv, limb_outline, pick, shade

Pair = tuple[float, float]
"""A value for the near (side view) or left (front view) limb, and one for the other."""


@dataclass(frozen=True)
class Pose:
    """Angles in degrees. A limb at 0 hangs straight down; positive swings it the way the figure faces, outwards in a
    front view. Knees bend backwards, elbows forwards, both relative to the upper part. reach shortens thighs that
    point at the viewer; seat is the height of the seat in body heights, 0 for none.
    """

    frontal: bool
    thighs: Pair
    shoulders: Pair
    knees: Pair = (0.0, 0.0)
    elbows: Pair = (8.0, 8.0)
    lean: float = 0.0
    reach: float = 1.0
    seat: float = 0.0


_STANDING = (
    Pose(True, (4, 4), (9, 9)),
    Pose(True, (7, 4), (12, 8)),
    Pose(True, (3, 9), (35, 35), elbows=(-80, -80)),
    Pose(True, (4, 4), (10, 35), elbows=(5, -100)),
    Pose(False, (3, -4), (6, -8), elbows=(15, 12)),
    Pose(False, (2, -3), (75, 5), elbows=(10, 10)),
    Pose(False, (4, -2), (35, 30), elbows=(75, 70), lean=3),
)
_WALKING = (
    Pose(False, (26, -18), (-26, 24), (6, 16), (18, 24), lean=3),
    Pose(False, (-20, 24), (22, -24), (18, 5), (22, 16), lean=4),
    Pose(False, (14, -8), (-14, 14), (4, 30), (14, 20), lean=2),
    Pose(False, (52, -22), (-50, 40), (50, 62), (85, 85), lean=13),
    Pose(True, (3, 6), (14, 10), (0, -6), (-12, 6)),
)
_ARMS_UP = (
    Pose(True, (6, 6), (155, 158), elbows=(12, 10)),
    Pose(True, (4, 5), (10, 148), elbows=(6, 20)),
    Pose(True, (18, 18), (118, 118)),
    Pose(True, (8, 8), (84, 84), elbows=(0, 0)),
    Pose(False, (8, -10), (150, 135), elbows=(10, 5), lean=-3),
)
_SITTING = (
    Pose(False, (84, 82), (32, 26), (82, 78), (45, 55), lean=2, seat=0.25),
    Pose(False, (86, 80), (20, 40), (95, 66), (60, 30), lean=-6, seat=0.25),
    Pose(True, (13, 13), (14, 14), elbows=(-28, -28), reach=0.3, seat=0.25),
)
_CROUCHING = (
    Pose(False, (112, 104), (42, 34), (132, 122), (36, 40), lean=24),
    Pose(False, (92, 20), (34, 14), (96, 104), (30, 30), lean=12),
    Pose(False, (8, -4), (28, 14), (2, 2), (6, 6), lean=62),
)
_POSES = (
    *(_STANDING * 3),
    *(_WALKING * 4),
    *(_ARMS_UP * 2),
    *(_SITTING * 3),
    *(_CROUCHING * 2),
)

# Lengths and half-widths in body heights.
_THIGH, _SHIN, _ANKLE = 0.235, 0.235, 0.04
_TORSO, _NECK = 0.30, 0.115
_UPPER_ARM, _FOREARM = 0.165, 0.155

_SKIN = ((255, 224, 196), (241, 194, 160), (224, 172, 130), (198, 134, 94), (141, 85, 56), (94, 58, 42))
_HAIR = ((34, 26, 22), (60, 40, 28), (104, 68, 38), (160, 110, 60), (214, 176, 108), (150, 60, 34), (176, 176, 178))


@dataclass(frozen=True)
class _Outfit:
    """What a figure wears and carries; build multiplies all half-widths, head the size of the head."""

    skin: Colour
    hair: Colour
    top: Colour
    legs: Colour
    shoes: Colour
    hat: Colour | None
    bag: Colour | None
    long_sleeves: bool
    bare_shins: bool
    skirt: bool
    long_hair: bool
    from_behind: bool
    build: float
    head: float


@dataclass(frozen=True)
class _Joints:
    """Points of the body in body heights, the lowest foot on the ground."""

    hip: Point
    chest: Point
    head: Point
    knees: tuple[Point, Point]
    ankles: tuple[Point, Point]
    shoulders: tuple[Point, Point]
    elbows: tuple[Point, Point]
    hands: tuple[Point, Point]
    frontal: bool


@dataclass(frozen=True)
class Figure:
    """body is what the label's box encloses; seat is drawn behind it and belongs to the scene."""

    body: Sketch
    seat: Sketch | None


def draw_figure(rng: np.random.Generator) -> Figure:
    """A figure in a random pose, size (a child of 1 m to an adult of 1.95 m) and outfit, in metres."""
    pose = pick(rng, _POSES)
    child = rng.random() < 0.18
    size = float(rng.uniform(1.0, 1.45) if child else rng.uniform(1.55, 1.95))
    outfit = _random_outfit(rng, child)
    joints = _joints(_jittered(rng, pose), size, outfit.build)
    body = Sketch()
    if outfit.long_hair and joints.frontal and not outfit.from_behind:
        _long_hair(body, joints, outfit, size)
    _legs(body, joints, outfit, size)
    _arm(body, joints, outfit, size, side=1)
    _torso(body, joints, outfit, size)
    _head(body, joints, outfit, size)
    _arm(body, joints, outfit, size, side=0)
    return Figure(body, _seat(rng, joints, pose.seat * size, size) if pose.seat else None)


def _random_outfit(rng: np.random.Generator, child: bool) -> _Outfit:
    top = hsv(float(rng.random()), float(rng.uniform(0.05, 0.9)), float(rng.uniform(0.25, 0.98)))
    blue_or_grey = hsv(float(rng.uniform(0.56, 0.66)), float(rng.uniform(0.05, 0.6)), float(rng.uniform(0.15, 0.6)))
    any_colour = hsv(float(rng.random()), float(rng.uniform(0.1, 0.7)), float(rng.uniform(0.2, 0.9)))
    chances = rng.random(9)
    accent = hsv(float(rng.random()), 0.7, 0.75)
    return _Outfit(
        skin=pick(rng, _SKIN),
        hair=pick(rng, _HAIR),
        top=top,
        legs=blue_or_grey if chances[0] < 0.6 else any_colour,
        shoes=pick(rng, ((30, 28, 30), (80, 52, 34), (226, 226, 222), (170, 40, 44))),
        hat=accent if chances[1] < 0.14 else None,
        bag=shade(accent, 0.8) if chances[2] < 0.2 else None,
        long_sleeves=bool(chances[3] < 0.55),
        bare_shins=bool(chances[4] < 0.25),
        skirt=bool(chances[5] < 0.22),
        long_hair=bool(chances[6] < 0.35),
        from_behind=bool(chances[7] < 0.2),
        build=float(rng.uniform(0.9, 1.25)),
        head=1.3 if child else 1.05,
    )


def _jittered(rng: np.random.Generator, pose: Pose) -> Pose:
    """The pose with each angle a few degrees off; legs seen from the front stay as they are."""
    turns = rng.uniform(-5.0, 5.0, 9).tolist()
    pose = replace(
        pose,
        shoulders=(pose.shoulders[0] + turns[0], pose.shoulders[1] + turns[1]),
        elbows=(pose.elbows[0] + turns[2], pose.elbows[1] + turns[3]),
        lean=pose.lean + turns[4] / 2,
    )
    if pose.frontal:
        return pose
    return replace(
        pose,
        thighs=(pose.thighs[0] + turns[5], pose.thighs[1] + turns[6]),
        knees=(pose.knees[0] + abs(turns[7]), pose.knees[1] + abs(turns[8])),
    )


def _swing(start: Point, length: float, degrees: float) -> Point:
    """The end of a limb that leaves start at this angle from straight down."""
    angle = math.radians(degrees)
    return start[0] + length * math.sin(angle), start[1] - length * math.cos(angle)


def _joints(pose: Pose, size: float, build: float) -> _Joints:
    """The joints in metres; both hips and both shoulders lie on the middle line in a side view."""
    outwards = (-1.0, 1.0) if pose.frontal else (1.0, 1.0)
    hip_offset = 0.05 * size * build if pose.frontal else 0.0
    shoulder_offset = 0.105 * size * build if pose.frontal else 0.0
    knees, ankles = [], []
    for side, way in enumerate(outwards):
        hip = (way * hip_offset, 0.0)
        knee = _swing(hip, _THIGH * pose.reach * size, way * pose.thighs[side])
        knees.append(knee)
        shin_angle = 0.0 if pose.frontal and pose.seat else pose.thighs[side] - pose.knees[side]
        ankles.append(_swing(knee, _SHIN * size, way * shin_angle))
    rise = _ANKLE * size - min(ankle[1] for ankle in ankles)
    chest = _swing((0.0, rise), -_TORSO * size, -pose.lean)
    elbows, hands, shoulders = [], [], []
    for side, way in enumerate(outwards):
        shoulder = (chest[0] + way * shoulder_offset, chest[1])
        elbow = _swing(shoulder, _UPPER_ARM * size, way * pose.shoulders[side])
        shoulders.append(shoulder)
        elbows.append(elbow)
        hands.append(_swing(elbow, _FOREARM * size, way * (pose.shoulders[side] + pose.elbows[side])))
    return _Joints(
        hip=(0.0, rise),
        chest=chest,
        head=_swing(chest, -_NECK * size, -pose.lean * 0.6),
        knees=((knees[0][0], knees[0][1] + rise), (knees[1][0], knees[1][1] + rise)),
        ankles=((ankles[0][0], ankles[0][1] + rise), (ankles[1][0], ankles[1][1] + rise)),
        shoulders=(shoulders[0], shoulders[1]),
        elbows=(elbows[0], elbows[1]),
        hands=(hands[0], hands[1]),
        frontal=pose.frontal,
    )


def _legs(body: Sketch, joints: _Joints, outfit: _Outfit, size: float) -> None:
    unit = size * outfit.build
    for side in (1, 0):
        tone = 0.78 if side == 1 and not joints.frontal else 1.0
        knee, ankle = joints.knees[side], joints.ankles[side]
        way = (-1.0, 1.0)[side] if joints.frontal else 1.0
        hip = (joints.hip[0] + (way * 0.05 * unit if joints.frontal else 0.0), joints.hip[1])
        shin = outfit.skin if outfit.bare_shins or outfit.skirt else outfit.legs
        thigh = outfit.skin if outfit.skirt else outfit.legs
        toe = (ankle[0] + way * (0.02 if joints.frontal else 0.075) * size, ankle[1] - 0.022 * size)
        heel = (ankle[0] - way * 0.008 * size, ankle[1] - 0.02 * size)
        body.limb(knee, ankle, (0.038 * unit, 0.026 * unit), shade(shin, tone))
        body.limb(heel, toe, (0.024 * size, 0.02 * size), shade(outfit.shoes, tone))
        body.limb(hip, knee, (0.056 * unit, 0.041 * unit), shade(thigh, tone))


def _torso(body: Sketch, joints: _Joints, outfit: _Outfit, size: float) -> None:
    unit = size * outfit.build
    hip, chest = joints.hip, joints.chest
    if outfit.skirt:
        hems = [(hip[0] + 0.55 * (knee[0] - hip[0]), hip[1] + 0.75 * (knee[1] - hip[1])) for knee in joints.knees]
        body.hull([limb_outline(hem, hip, (0.075 * unit, 0.06 * unit)) for hem in hems], outfit.legs)
    if outfit.bag and not joints.frontal:
        back = (chest[0] * 0.6 - 0.1 * unit, hip[1] + (chest[1] - hip[1]) * 0.62)
        body.limb(back, (back[0], back[1] + 0.06 * size), (0.062 * size, 0.05 * size), outfit.bag)
    body.limb(chest, joints.head, (0.032 * unit, 0.03 * unit), shade(outfit.skin, 0.85))
    if not joints.frontal:
        body.limb((chest[0], chest[1] - 0.03 * size), hip, (0.075 * unit, 0.066 * unit), outfit.top)
        return
    flanks = [
        limb_outline((shoulder[0], shoulder[1] - 0.02 * size), (hip[0] + way * 0.04 * unit, hip[1]), (0.04 * unit,) * 2)
        for way, shoulder in zip((-1, 1), joints.shoulders, strict=True)
    ]
    body.hull(flanks, outfit.top)
    middle = limb_outline((0.05 * unit, chest[1]), hip, (0.006 * unit,) * 2)
    body.hull([flanks[1], middle], shade(outfit.top, 0.88))
    if outfit.bag and outfit.from_behind:
        pack = (0.0, hip[1] + (chest[1] - hip[1]) * 0.5)
        body.limb(pack, (0.0, pack[1] + 0.09 * size), (0.08 * size, 0.068 * size), outfit.bag)


def _arm(body: Sketch, joints: _Joints, outfit: _Outfit, size: float, side: int) -> None:
    unit = size * outfit.build
    tone = 0.78 if side == 1 and not joints.frontal else 0.93
    shoulder, elbow, hand = joints.shoulders[side], joints.elbows[side], joints.hands[side]
    shoulder = (shoulder[0], shoulder[1] - 0.015 * size)
    sleeve = outfit.top if outfit.long_sleeves else outfit.skin
    body.limb(elbow, hand, (0.028 * unit, 0.021 * unit), shade(sleeve, tone))
    body.ellipse(hand, (0.027 * size, 0.027 * size), shade(outfit.skin, tone))
    body.limb(shoulder, elbow, (0.037 * unit, 0.03 * unit), shade(outfit.top, tone))


def _long_hair(body: Sketch, joints: _Joints, outfit: _Outfit, size: float) -> None:
    radius = 0.07 * size * outfit.head
    ends = (joints.head[0], joints.head[1] - 1.5 * radius)
    body.limb(joints.head, ends, (radius * 1.15, radius * 1.05), shade(outfit.hair, 0.85))


def _head(body: Sketch, joints: _Joints, outfit: _Outfit, size: float) -> None:
    wide, high = 0.062 * size * outfit.head, 0.076 * size * outfit.head
    x, y = joints.head
    if joints.frontal and outfit.from_behind:
        body.ellipse((x, y), (wide, high), outfit.hair)
        if outfit.long_hair:
            body.limb((x, y), (x, y - 1.6 * high), (wide * 1.05, wide * 0.9), outfit.hair)
    elif joints.frontal:
        body.ellipse((x, y), (wide, high), outfit.skin)
        for way in (-1, 1):
            body.ellipse((x + way * 0.36 * wide, y - 0.05 * high), (0.12 * wide, 0.11 * high), (40, 32, 30))
        body.ellipse((x, y - 0.52 * high), (0.3 * wide, 0.07 * high), shade(outfit.skin, 0.62))
        body.dome((x, y + 0.18 * high), (wide * 1.08, high * 0.92), outfit.hair)
    else:
        if outfit.long_hair:
            body.limb((x - 0.5 * wide, y), (x - 0.8 * wide, y - 1.7 * high), (wide * 0.8, wide * 0.5), outfit.hair)
        body.ellipse((x - 0.12 * wide, y + 0.08 * high), (wide * 1.1, high * 1.04), outfit.hair)
        body.ellipse((x + 0.28 * wide, y - 0.12 * high), (wide * 0.78, high * 0.88), outfit.skin)
        body.ellipse((x + 1.05 * wide, y - 0.15 * high), (0.16 * wide, 0.16 * high), outfit.skin)
        body.ellipse((x + 0.66 * wide, y + 0.08 * high), (0.11 * wide, 0.13 * high), (40, 32, 30))
    if outfit.hat:
        body.dome((x, y + 0.3 * high), (wide * 1.12, high * 0.95), outfit.hat)
        brim = 0.0 if joints.frontal else 0.6 * wide
        body.limb(
            (x - wide + brim, y + 0.34 * high),
            (x + wide + brim, y + 0.34 * high),
            (0.12 * high, 0.12 * high),
            shade(outfit.hat, 0.75),
        )


def _seat(rng: np.random.Generator, joints: _Joints, height: float, size: float) -> Sketch:
    """A chair, a block or a bench whose top is at the figure's hips."""
    colour = hsv(float(rng.uniform(0.03, 0.15)), float(rng.uniform(0.2, 0.7)), float(rng.uniform(0.3, 0.8)))
    top = max(joints.hip[1] - 0.05 * size, height * 0.5)
    half = 0.17 * size
    seat = Sketch()
    kind = int(rng.integers(3))
    if kind == 0:
        seat.rectangle(-half, 0.0, half, top, shade(colour, 0.85))
        seat.rectangle(-half - 0.02, top - 0.08, half + 0.02, top, colour)
        return seat
    reach = half * (3.2 if kind == 2 else 1.0)
    for x in (-reach, reach - 0.06):
        seat.rectangle(x, 0.0, x + 0.06, top, shade(colour, 0.7))
    seat.rectangle(-reach - 0.02, top - 0.07, reach + 0.02, top, colour)
    if joints.frontal:
        seat.rectangle(-reach, top, reach, top + 0.22 * size, shade(colour, 0.85))
    else:
        seat.rectangle(-reach, top, -reach + 0.07, top + 0.28 * size, shade(colour, 0.85))
    return seat
