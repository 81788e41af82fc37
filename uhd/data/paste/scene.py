"""One picture: a background, the targets that find a place on it, and their boxes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from uhd.config import PasteConfig
from uhd.data.paste.color import match_colors
from uhd.data.paste.cutout import RGBA, Box, Floats, Pose, cut_out
from uhd.data.paste.placing import Placed, find_place
from uhd.data.paste.targets import Target

Image = NDArray[np.uint8]

_SURROUNDINGS = 0.25
"""How far around a target the background counts for its colours, as a share of the target's sides."""


@dataclass(frozen=True)
class Scene:
    """image [H,W,3] uint8 RGB; boxes, one a target, in the order of labels; how many targets found no place."""

    image: Image
    boxes: tuple[Box, ...]
    labels: tuple[int, ...]
    num_left_out: int


def compose(
    rng: np.random.Generator,
    cfg: PasteConfig,
    background: Image,
    targets: Sequence[Target],
    read: Callable[[Target], RGBA],
) -> Scene:
    """Pastes some of the targets on a background [h,w,3] RGB; the same generator state gives the same scene.

    Smaller targets are pasted first, as what is farther away. Where one would cover an earlier one too much, or is
    seen too little itself, another place is tried, and at last it is left out: nothing is shown without its box.
    """
    ground = fitted(rng, background, cfg.size)
    height, width = ground.shape[:2]
    count = int(rng.integers(cfg.min_targets, cfg.max_targets + 1))
    chosen = rng.integers(len(targets), size=count)
    sides = min(height, width) * np.exp(rng.uniform(math.log(cfg.min_scale), math.log(cfg.max_scale), count))
    placed: list[Placed] = []
    labels: list[int] = []
    for index, side in zip(chosen.tolist(), np.sort(sides).tolist(), strict=True):
        pose = _random_pose(rng, cfg, side)
        cutout = cut_out(read(targets[index]), pose, cfg.feather, cfg.alpha_threshold)
        found = cutout and find_place(rng, cfg, cutout, placed, (height, width))
        if found:
            placed.append(found)
            labels.append(targets[index].label)
    image = ground.copy()
    for each in placed:
        _blend(image, each, match_colors(each.cutout, _surroundings(ground, each.window), cfg.color_match))
    return Scene(image, tuple(each.box() for each in placed), tuple(labels), count - len(placed))


def fitted(rng: np.random.Generator, image: Image, size: tuple[int, int] | None) -> Image:
    """The largest window of a picture that has the shape of size (height, width), at a random place, in that size."""
    if size is None:
        return image
    height, width = image.shape[:2]
    factor = min(height / size[0], width / size[1])
    down, across = max(1, min(height, round(size[0] * factor))), max(1, min(width, round(size[1] * factor)))
    y, x = int(rng.integers(height - down + 1)), int(rng.integers(width - across + 1))
    window = image[y : y + down, x : x + across]
    way = cv2.INTER_AREA if factor > 1 else cv2.INTER_LINEAR
    resized: Image = cv2.resize(window, (size[1], size[0]), interpolation=way)
    return resized


def _random_pose(rng: np.random.Generator, cfg: PasteConfig, side: float) -> Pose:
    degrees = float(rng.uniform(-cfg.rotation, cfg.rotation))
    heads = rng.random(2) < 0.5
    return Pose(
        side,
        degrees,
        mirror_x=bool(heads[0]) and cfg.flips in ("horizontal", "both"),
        mirror_y=bool(heads[1]) and cfg.flips in ("vertical", "both"),
    )


def _surroundings(ground: Image, window: Box) -> Image:
    """The background below a target and around it."""
    x = round((window.x2 - window.x1) * _SURROUNDINGS)
    y = round((window.y2 - window.y1) * _SURROUNDINGS)
    return ground[max(window.y1 - y, 0) : window.y2 + y, max(window.x1 - x, 0) : window.x2 + x]


def _blend(image: Image, placed: Placed, colors: Floats) -> None:
    """Lays a target over its window of the picture, in place."""
    window = placed.window
    below = image[window.y1 : window.y2, window.x1 : window.x2]
    alpha = placed.part_of(placed.cutout.alpha)[..., None]
    mixed = below + alpha * (placed.part_of(colors) - below)
    below[...] = np.rint(mixed).astype(np.uint8)
