"""What lies behind the people and things of a scene: street, park, room, and places without a horizon."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from uhd.data.synthetic_shapes import SUPERSAMPLING, Colour, Image, hsv, pick, shade


@dataclass(frozen=True)
class Place:
    """An empty place and how things stand in it.

    canvas: the background, [H,W,3] RGB times SUPERSAMPLING a side. horizon: y of the horizon, in picture
    heights. eye: height of the viewer in metres; the ground at scale s (pixels a metre) lies eye*s below the
    horizon. farthest_body: how high, in picture heights, a person of 1.7 m is at the far end of the ground.
    """

    canvas: Image
    horizon: float
    eye: float
    farthest_body: float
    indoors: bool


def draw_place(rng: np.random.Generator, width: int, height: int) -> Place:
    """A random place for a picture of this size in pixels."""
    return pick(rng, _PLACES)(rng, width * SUPERSAMPLING, height * SUPERSAMPLING)


def _gradient(canvas: Image, top: int, bottom: int, colours: tuple[Colour, Colour]) -> None:
    """Fills rows top to bottom with a vertical blend of two colours."""
    top, bottom = max(top, 0), min(bottom, len(canvas))
    if bottom > top:
        blend = np.linspace(colours[0], colours[1], bottom - top).astype(np.uint8)
        # In two steps, because repeating single pixels is ten times slower than repeating strips.
        strip = cv2.repeat(blend[:, None], 1, 32)
        canvas[top:bottom] = cv2.repeat(strip, 1, math.ceil(canvas.shape[1] / 32))[:, : canvas.shape[1]]


def _mottle(rng: np.random.Generator, canvas: Image, top: int, cells: int, strength: float) -> None:
    """Lightens and darkens the rows from top on in soft patches; strength is the share at the most."""
    region = canvas[top:]
    if not region.size:
        return
    patches = rng.uniform(128 * (1 - strength), 128 * (1 + strength), (cells, cells)).astype(np.uint8)
    field = cv2.resize(patches, (region.shape[1], region.shape[0]), interpolation=cv2.INTER_LINEAR)
    canvas[top:] = cv2.multiply(region, cv2.merge([field, field, field]), scale=1 / 128)


def _sky(rng: np.random.Generator, canvas: Image, horizon: int) -> None:
    kind = rng.random()
    if kind < 0.65:
        blue = float(rng.uniform(0.54, 0.61))
        _gradient(canvas, 0, horizon, (hsv(blue, float(rng.uniform(0.35, 0.65)), 0.92), hsv(blue, 0.15, 0.97)))
    elif kind < 0.85:
        grey = float(rng.uniform(0.6, 0.9))
        _gradient(canvas, 0, horizon, (hsv(0.6, 0.06, grey), hsv(0.6, 0.03, min(grey + 0.1, 1.0))))
    else:
        _gradient(canvas, 0, horizon, (hsv(0.65, 0.4, 0.6), hsv(float(rng.uniform(0.04, 0.1)), 0.5, 0.95)))
    width = canvas.shape[1]
    for _ in range(int(rng.integers(0, 4))):
        x, y = float(rng.uniform(0, width)), float(rng.uniform(0, 0.7 * horizon))
        size = float(rng.uniform(0.03, 0.08)) * width
        for step in (-1.1, 0.0, 1.0):
            centre, axes = (round(x + step * size), round(y)), (round(size), round(size * 0.4))
            cv2.ellipse(canvas, centre, axes, 0, 0, 360, (244, 246, 250), cv2.FILLED)


def _buildings(rng: np.random.Generator, canvas: Image, base: int) -> None:
    """A row of houses whose feet are at row base."""
    width, x = canvas.shape[1], -int(rng.integers(0, 60))
    while x < width:
        wide, high = int(rng.integers(110, 240)), int(base * rng.uniform(0.45, 1.05))
        wall = hsv(float(rng.uniform(0.0, 0.15)), float(rng.uniform(0.05, 0.5)), float(rng.uniform(0.45, 0.9)))
        cv2.rectangle(canvas, (x, base - high), (x + wide, base), wall, cv2.FILLED)
        cv2.rectangle(canvas, (x, base - high), (x + wide, base - high + 8), shade(wall, 0.75), cv2.FILLED)
        pane = pick(rng, ((70, 90, 110), (120, 150, 170), (250, 226, 160)))
        column, row = int(rng.integers(34, 56)), int(rng.integers(44, 64))
        for left in range(x + 14, x + wide - 26, column):
            for top in range(base - high + 22, base - 76, row):
                cv2.rectangle(canvas, (left, top), (left + 18, top + 28), pane, cv2.FILLED)
        door, dark = x + int(rng.integers(14, wide - 40)), shade(wall, float(rng.uniform(0.4, 0.6)))
        cv2.rectangle(canvas, (door, base - 62), (door + 28, base), dark, cv2.FILLED)
        x += wide


def _street(rng: np.random.Generator, width: int, height: int) -> Place:
    canvas = np.empty((height, width, 3), np.uint8)
    horizon, eye, farthest = (
        float(rng.uniform(0.28, 0.45)),
        float(rng.uniform(1.5, 2.4)),
        float(rng.uniform(0.08, 0.16)),
    )
    ground = round((horizon + eye * farthest / 1.7) * height)
    _sky(rng, canvas, ground)
    _buildings(rng, canvas, ground)
    paving = hsv(float(rng.uniform(0.05, 0.15)), float(rng.uniform(0.02, 0.12)), float(rng.uniform(0.5, 0.75)))
    _gradient(canvas, ground, height, (shade(paving, 0.95), shade(paving, 1.1)))
    if rng.random() < 0.75:
        kerb = ground + int((height - ground) * rng.uniform(0.12, 0.3))
        end = kerb + int((height - ground) * rng.uniform(0.3, 0.5))
        asphalt = float(rng.uniform(0.3, 0.45))
        _gradient(canvas, kerb, end, (hsv(0.6, 0.05, asphalt), hsv(0.6, 0.05, asphalt * 1.15)))
        cv2.rectangle(canvas, (0, kerb - 5), (width, kerb), shade(paving, 1.2), cv2.FILLED)
        middle = (kerb + end) // 2
        for left in range(-int(rng.integers(0, 90)), width, 110):
            cv2.rectangle(canvas, (left, middle - 3), (left + 56, middle + 2), (226, 222, 206), cv2.FILLED)
    _mottle(rng, canvas, ground, 14, 0.07)
    return Place(canvas, horizon, eye, farthest, indoors=False)


def _park(rng: np.random.Generator, width: int, height: int) -> Place:
    canvas = np.empty((height, width, 3), np.uint8)
    horizon, eye, farthest = (
        float(rng.uniform(0.25, 0.45)),
        float(rng.uniform(1.5, 2.6)),
        float(rng.uniform(0.07, 0.13)),
    )
    ground = round((horizon + eye * farthest / 1.7) * height)
    _sky(rng, canvas, ground)
    hue, value = float(rng.uniform(0.2, 0.33)), float(rng.uniform(0.45, 0.7))
    if rng.random() < 0.2:
        hue, value = float(rng.uniform(0.1, 0.13)), float(rng.uniform(0.75, 0.9))  # a beach
    for _ in range(3):
        centre = (int(rng.integers(0, width)), ground)
        axes = (int(width * rng.uniform(0.2, 0.5)), int(height * rng.uniform(0.05, 0.2)))
        cv2.ellipse(canvas, centre, axes, 0, 180, 360, hsv(hue + 0.05, 0.3, value + 0.1), cv2.FILLED)
    for x in range(-20, width, 44):
        radius = int(rng.integers(22, 46))
        tone = hsv(hue + 0.04, 0.5, value * float(rng.uniform(0.55, 0.8)))
        cv2.circle(canvas, (x, ground - radius // 2), radius, tone, cv2.FILLED)
    _gradient(canvas, ground, height, (hsv(hue, 0.5, value * 0.95), hsv(hue, 0.6, value)))
    if rng.random() < 0.6:
        top, bottom = float(rng.uniform(0.2, 0.8)) * width, float(rng.uniform(-0.1, 1.0)) * width
        path = [(top, ground), (top + 0.05 * width, ground), (bottom + 0.45 * width, height), (bottom, height)]
        cv2.fillConvexPoly(canvas, np.array(path, np.int32), hsv(0.1, 0.2, 0.8))
    _mottle(rng, canvas, ground, 20, 0.12)
    return Place(canvas, horizon, eye, farthest, indoors=False)


def _wall_pieces(rng: np.random.Generator, canvas: Image, floor: int, wall: Colour) -> None:
    """Windows, pictures and doors on a wall that ends at row floor."""
    height, width = canvas.shape[:2]
    unit = height // 12
    for _ in range(int(rng.integers(1, 4))):
        x, kind = int(rng.integers(0, width)), rng.random()
        top = max(floor - int(rng.integers(5, 8)) * unit, 4)
        if kind < 0.35:
            _window(rng, canvas, (x, top), 3 * unit)
        elif kind < 0.7:
            _picture(rng, canvas, (x, top), (int(rng.integers(1, 4)) * unit, int(rng.integers(1, 3)) * unit))
        else:
            frame = shade(wall, 0.7)
            wide, high = 5 * unit // 2, min(floor, 6 * unit)
            door = pick(rng, (hsv(0.08, 0.5, float(rng.uniform(0.35, 0.6))), shade(wall, 0.8), (236, 234, 228)))
            cv2.rectangle(canvas, (x - 5, floor - high - 5), (x + wide + 5, floor), frame, cv2.FILLED)
            cv2.rectangle(canvas, (x, floor - high), (x + wide, floor), door, cv2.FILLED)
            cv2.circle(canvas, (x + 2 * unit, floor - high // 2), 5, (210, 180, 90), cv2.FILLED)


def _window(rng: np.random.Generator, canvas: Image, corner: tuple[int, int], side: int) -> None:
    (x, y), frame = corner, (240, 238, 232)
    sky = hsv(0.57, float(rng.uniform(0.1, 0.45)), 0.95)
    cv2.rectangle(canvas, (x, y), (x + side, y + side), frame, cv2.FILLED)
    cv2.rectangle(canvas, (x + 6, y + 6), (x + side - 6, y + side - 6), sky, cv2.FILLED)
    cv2.line(canvas, (x + side // 2, y), (x + side // 2, y + side), frame, 6)


def _picture(rng: np.random.Generator, canvas: Image, corner: tuple[int, int], size: tuple[int, int]) -> None:
    """A framed landscape: one colour with a hill."""
    (x, y), (wide, high) = corner, size
    colour = hsv(float(rng.random()), 0.4, 0.8)
    cv2.rectangle(canvas, (x, y), (x + wide, y + high), (70, 54, 44), cv2.FILLED)
    cv2.rectangle(canvas, (x + 5, y + 5), (x + wide - 5, y + high - 5), colour, cv2.FILLED)
    hill = shade(colour, 0.6)
    cv2.ellipse(canvas, (x + wide // 2, y + high - 5), (wide // 3, high // 3), 0, 180, 360, hill, cv2.FILLED)


def _room(rng: np.random.Generator, width: int, height: int) -> Place:
    canvas = np.empty((height, width, 3), np.uint8)
    horizon, eye, farthest = float(rng.uniform(0.2, 0.35)), float(rng.uniform(1.4, 2.0)), float(rng.uniform(0.28, 0.42))
    floor = round((horizon + eye * farthest / 1.7) * height)
    wall = hsv(float(rng.random()), float(rng.uniform(0.03, 0.35)), float(rng.uniform(0.55, 0.95)))
    _gradient(canvas, 0, floor, (shade(wall, 0.92), wall))
    if rng.random() < 0.3:
        step = int(rng.integers(24, 60))
        for x in range(0, width, step):
            cv2.rectangle(canvas, (x, 0), (x + step // 2, floor), shade(wall, 0.95), cv2.FILLED)
    _wall_pieces(rng, canvas, floor, wall)
    boards = hsv(float(rng.uniform(0.04, 0.12)), float(rng.uniform(0.1, 0.55)), float(rng.uniform(0.35, 0.75)))
    _gradient(canvas, floor, height, (shade(boards, 0.85), shade(boards, 1.1)))
    vanishing = round(horizon * height)
    spread = (height - vanishing) / max(floor - vanishing, 1)
    for offset in range(-6, 7):
        away = offset * width / 10
        start, end = (round(width / 2 + away), floor), (round(width / 2 + away * spread), height)
        cv2.line(canvas, start, end, shade(boards, 0.78), 2)
    cv2.rectangle(canvas, (0, floor - 10), (width, floor), shade(wall, 0.8), cv2.FILLED)
    return Place(canvas, horizon, eye, farthest, indoors=True)


def _plain(rng: np.random.Generator, width: int, height: int) -> Place:
    """A studio: one colour, a little lighter towards the top or the bottom."""
    canvas = np.empty((height, width, 3), np.uint8)
    colour = hsv(float(rng.random()), float(rng.uniform(0.0, 0.45)), float(rng.uniform(0.3, 0.95)))
    darker = shade(colour, float(rng.uniform(0.65, 0.9)))
    _gradient(canvas, 0, height, pick(rng, ((colour, darker), (darker, colour))))
    horizon, eye = float(rng.uniform(0.0, 0.3)), float(rng.uniform(1.6, 3.0))
    return Place(canvas, horizon, eye, float(rng.uniform(0.1, 0.3)), indoors=bool(rng.random() < 0.5))


def _textured(rng: np.random.Generator, width: int, height: int) -> Place:
    """Patches of two colours at several sizes: foliage, plaster, gravel, as the colours fall."""
    low = np.array(hsv(float(rng.random()), float(rng.uniform(0.1, 0.6)), float(rng.uniform(0.2, 0.6))), np.float32)
    high = np.array(hsv(float(rng.random()), float(rng.uniform(0.05, 0.5)), float(rng.uniform(0.5, 0.95))), np.float32)
    half = (width // 2, height // 2)
    field = np.zeros((half[1], half[0]), np.float32)
    for level in range(4):
        cells = 3 * 2 ** (level + int(rng.integers(0, 2)))
        rows = max(2, math.ceil(cells * height / width))
        patches = rng.random((rows, cells), dtype=np.float32)
        field += cv2.resize(patches, half, interpolation=cv2.INTER_LINEAR) * 0.6**level
    field *= 1.0 / 2.176
    small = np.clip(low + field[..., None] * (high - low), 0, 255).astype(np.uint8)
    canvas = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
    horizon, eye = float(rng.uniform(0.0, 0.3)), float(rng.uniform(1.6, 3.0))
    return Place(canvas, horizon, eye, float(rng.uniform(0.1, 0.3)), indoors=bool(rng.random() < 0.3))


_PLACES: tuple[Callable[[np.random.Generator, int, int], Place], ...] = (
    *(_street, _street, _street, _park, _park, _park, _room, _room, _room),
    *(_plain, _textured),
)
