"""One demonstration scene: people and things in a place, arranged, labelled and rendered.

Everything comes from the generator that is passed in, so a scene is a function of its state.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from uhd.data.synthetic_backdrops import Place, draw_place
from uhd.data.synthetic_figures import draw_figure
from uhd.data.synthetic_objects import draw_object
from uhd.data.synthetic_shapes import SUPERSAMPLING, Box, FloatArray, Image, Point, Sprite, pick

EMPTY_SHARE = 0.12
"""Share of the scenes that hold nobody."""
MIN_VISIBLE = 0.35
"""A figure of which less is seen (hidden or outside of the picture) is put elsewhere, or left out."""

_SIZES = ((320, 240), (320, 240), (320, 240), (352, 240), (320, 256), (240, 320), (256, 256), (288, 224))
_PEOPLE = (1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 5)
_BODY_HEIGHT = (0.28, 0.9)  # of a 1.7 m person, in picture heights
_FAR_BODY_HEIGHT = (0.12, 0.25)
_FAR_SHARE = 0.06
_TRIES = 6
_NOISE_SIZE = 512
_NOISE_DEVIATION = 32.0


@dataclass(frozen=True)
class Scene:
    """image [H,W,3] uint8 RGB; boxes [n,4] float32 xyxy in 0-1, one a person, nearest first."""

    image: Image
    boxes: NDArray[np.float32]


@dataclass(frozen=True)
class Item:
    """Sprites that stand together; behind is drawn before body, and only body is labelled."""

    body: Sprite
    behind: Sprite | None
    is_person: bool


@dataclass(frozen=True)
class Finish:
    """How the picture is taken: light [3,4,3] (128 is unchanged), blur sigma in pixels (0 is none), noise strength
    (in grey levels) and the corner of the noise table that is used.
    """

    light: Image
    blur: float
    noise: float
    noise_corner: tuple[int, int]


@dataclass(frozen=True)
class Arrangement:
    """All that makes up a scene: the background canvas, the items (nearest first) and the finish."""

    canvas: Image
    items: tuple[Item, ...]
    finish: Finish


def draw_scene(rng: np.random.Generator) -> Scene:
    """A random scene of about 320x240 pixels with 0 to 5 people; the same generator state gives the same scene."""
    arrangement = arrange(rng)
    return Scene(render(arrangement), label_boxes(arrangement))


def arrange(rng: np.random.Generator) -> Arrangement:
    """Chooses the place and puts people and things in it so that each person is seen well enough."""
    width, height = pick(rng, _SIZES)
    people = 0 if rng.random() < EMPTY_SHARE else pick(rng, _PEOPLE)
    place = draw_place(rng, width, height)
    things = int(rng.integers(2, 7))
    scales = [(_scale(rng, place, height), index < people) for index in range(people + things)]
    items: list[Item] = []
    occupied = np.zeros((height, width), np.uint8)
    for scale, is_person in sorted(scales, reverse=True):
        item = _put(rng, place, scale, is_person, occupied, items)
        if item is not None:
            items.append(item)
    canvas = place.canvas
    for item in reversed(items):
        _cast_shadow(canvas, item.behind or item.body)
    return Arrangement(canvas, tuple(items), _random_finish(rng))


def render(arrangement: Arrangement) -> Image:
    """The picture [H,W,3] of an arrangement, RGB."""
    canvas = arrangement.canvas.copy()
    for item in reversed(arrangement.items):
        if item.behind is not None:
            item.behind.paint(canvas)
        item.body.paint(canvas)
    size = (canvas.shape[1] // SUPERSAMPLING, canvas.shape[0] // SUPERSAMPLING)
    image = cv2.resize(canvas, size, interpolation=cv2.INTER_AREA)
    finish = arrangement.finish
    image = cv2.multiply(image, cv2.resize(finish.light, size, interpolation=cv2.INTER_LINEAR), scale=1 / 128)
    if finish.blur:
        image = cv2.GaussianBlur(image, (5, 5), finish.blur)
    row, column = finish.noise_corner
    noise = _noise_table()[row : row + size[1], column : column + size[0]]
    weight = finish.noise / _NOISE_DEVIATION
    finished: Image = cv2.addWeighted(image, 1.0, noise, weight, -128 * weight)
    return finished


def label_boxes(arrangement: Arrangement) -> NDArray[np.float32]:
    """The people's boxes [n,4] xyxy in 0-1, nearest first: all of a figure that the picture's borders leave, what
    other things hide included.
    """
    height, width = (side // SUPERSAMPLING for side in arrangement.canvas.shape[:2])
    boxes = [_box_inside(item.body, width, height) for item in arrangement.items if item.is_person]
    pixels = np.array(boxes, np.float64).reshape(-1, 4)
    normalised: FloatArray = np.clip(pixels / (width, height, width, height), 0.0, 1.0)
    return normalised.astype(np.float32)


def _box_inside(sprite: Sprite, width: int, height: int) -> Box:
    """xyxy pixels of the sprite's part inside of the picture; to whole pixels where something is cut off."""
    left, top, right, bottom = sprite.box()
    if left >= 0 and top >= 0 and right <= width and bottom <= height:
        return left, top, right, bottom
    # The corners of the whole do not tell: a hand below the lower border may be what reaches farthest left.
    left, top, wide, high = cv2.boundingRect(sprite.silhouette((0, 0), (width, height)))
    return left, top, left + wide, top + high


@functools.cache
def _noise_table() -> Image:
    """Grey-level noise around 128 of standard deviation _NOISE_DEVIATION, [_NOISE_SIZE,_NOISE_SIZE,3]."""
    grains = np.random.default_rng(0).normal(128.0, _NOISE_DEVIATION, (_NOISE_SIZE, _NOISE_SIZE, 3))
    noise: Image = np.clip(grains, 0, 255).astype(np.uint8)
    return noise


def _scale(rng: np.random.Generator, place: Place, height: int) -> float:
    """Pixels a metre of an item: log-uniform body heights, as far as the place goes and as near as faces still show."""
    # The viewer's height decides how far down the feet are; 45 % of a body may be below the picture.
    nearest = (1.0 - place.horizon) / max(place.eye / 1.7 - 0.45, 0.3)
    low, high = _FAR_BODY_HEIGHT if rng.random() < _FAR_SHARE else _BODY_HEIGHT
    low = max(low, place.farthest_body)
    high = max(min(high, nearest), low * 1.05)
    body = math.exp(rng.uniform(math.log(low), math.log(high)))
    return body * height / 1.7


def _put(
    rng: np.random.Generator, place: Place, scale: float, is_person: bool, occupied: Image, nearer: list[Item]
) -> Item | None:
    """An item at this scale behind all that is occupied, which it joins; None for a person who finds no room."""
    height, width = occupied.shape
    ground = place.horizon * height + place.eye * scale
    for _ in range(_TRIES):
        foot = (_column(rng, width, nearer), ground)
        item = _figure_at(rng, foot, scale) if is_person else _object_at(rng, foot, scale, place.indoors)
        if is_person and _visible_share(item.body, occupied) < MIN_VISIBLE:
            continue
        for sprite in (item.body, item.behind):
            if sprite is not None:
                _occupy(sprite, occupied)
        return item
    return None


def _column(rng: np.random.Generator, width: int, nearer: list[Item]) -> float:
    """Where to stand, in pixels: anywhere, or (in one case of four) half behind something nearer."""
    if nearer and rng.random() < 0.25:
        left, _, right, _ = pick(rng, nearer).body.box()
        return float(rng.uniform(left - 0.2 * (right - left), right + 0.2 * (right - left)))
    return float(rng.uniform(-0.02, 1.02)) * width


def _figure_at(rng: np.random.Generator, foot: Point, scale: float) -> Item:
    figure = draw_figure(rng)
    mirrored = bool(rng.random() < 0.5)
    seat = figure.seat.placed(foot, scale, mirrored) if figure.seat else None
    return Item(figure.body.placed(foot, scale, mirrored), seat, is_person=True)


def _object_at(rng: np.random.Generator, foot: Point, scale: float, indoors: bool) -> Item:
    sketch = draw_object(rng, indoors)
    return Item(sketch.placed(foot, scale, bool(rng.random() < 0.5)), None, is_person=False)


def _window(sprite: Sprite) -> tuple[tuple[int, int], tuple[int, int]]:
    """The whole pixels that a sprite touches: origin (x, y) and size (width, height)."""
    left, top, right, bottom = sprite.box()
    origin = (math.floor(left), math.floor(top))
    return origin, (math.ceil(right) - origin[0] + 1, math.ceil(bottom) - origin[1] + 1)


def _overlap(occupied: Image, origin: tuple[int, int], silhouette: Image) -> tuple[Image, Image]:
    """The parts of the picture and of a silhouette that lie on each other (both empty for none)."""
    rows, columns = silhouette.shape
    top, left = max(origin[1], 0), max(origin[0], 0)
    bottom = max(min(origin[1] + rows, occupied.shape[0]), top)
    right = max(min(origin[0] + columns, occupied.shape[1]), left)
    return (
        occupied[top:bottom, left:right],
        silhouette[top - origin[1] : bottom - origin[1], left - origin[0] : right - origin[0]],
    )


def _visible_share(sprite: Sprite, occupied: Image) -> float:
    """The share of the whole silhouette that is inside of the picture and not occupied."""
    origin, size = _window(sprite)
    silhouette = sprite.silhouette(origin, size)
    under, over = _overlap(occupied, origin, silhouette)
    return float(np.count_nonzero(over > under)) / float(np.count_nonzero(silhouette))


def _occupy(sprite: Sprite, occupied: Image) -> None:
    origin, size = _window(sprite)
    under, over = _overlap(occupied, origin, sprite.silhouette(origin, size))
    np.maximum(under, over, out=under)


def _cast_shadow(canvas: Image, sprite: Sprite) -> None:
    """A soft dark patch on the ground at the sprite's foot."""
    left, _, right, bottom = (SUPERSAMPLING * side for side in sprite.box())
    half = min(0.55 * (right - left), 0.2 * canvas.shape[1])
    x, y = round((left + right) / 2), round(bottom) - 1
    if not (0 <= y < canvas.shape[0] and 0 <= x < canvas.shape[1]):
        return
    ground = canvas[y, x].astype(int)
    for size, tone in ((1.0, 0.86), (0.75, 0.72)):
        red, green, blue = (round(channel * tone) for channel in ground.tolist())
        axes = (max(1, round(half * size)), max(1, round(half * size * 0.16)))
        cv2.ellipse(canvas, (x, y), axes, 0, 0, 360, (red, green, blue), cv2.FILLED)


def _random_finish(rng: np.random.Generator) -> Finish:
    brightness = rng.uniform(0.78, 1.12)
    field = rng.uniform(-0.07, 0.07, (3, 4, 1)) + rng.uniform(-0.04, 0.04, 3) + brightness
    light = np.clip(field * 128, 0, 255).astype(np.uint8)
    blur = float(rng.uniform(0.4, 1.0)) if rng.random() < 0.3 else 0.0
    row, column = rng.integers(0, _NOISE_SIZE - max(max(size) for size in _SIZES), 2).tolist()
    return Finish(light, blur, float(rng.uniform(0.5, 5.0)), (row, column))
