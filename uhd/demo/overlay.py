"""Boxes, names, scores and speed on a picture, readable from 64 pixels to 4K, on dark and on light ground."""

from __future__ import annotations

import math

import cv2
import numpy as np

from uhd.demo.frames import Result
from uhd.runtime import Image, name_of

Color = tuple[int, int, int]

SMALLEST_SIDE = 256
"""A picture whose longer side is below this is enlarged by a whole factor: there is no room for text on it."""
# BGR, bright enough for black text on them and far from each other.
_COLORS: tuple[Color, ...] = (
    (90, 220, 60), (40, 165, 255), (255, 200, 70), (190, 120, 255),
    (60, 230, 240), (255, 150, 190), (200, 235, 140), (130, 160, 255),
)  # fmt: skip
_BLACK: Color = (0, 0, 0)
_WHITE: Color = (255, 255, 255)
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_PLATE_SHADE = 0.35


def zoom_of(size: tuple[int, int]) -> int:
    """The whole factor by which a picture of (height, width) is enlarged."""
    return math.ceil(SMALLEST_SIDE / max(size))


def annotate(result: Result, class_names: tuple[str, ...], speed: str = "") -> Image:
    """A copy of the picture, enlarged by `zoom_of`, with each box, its score and, of several classes, its name.

    speed: text for the lower left corner, where no label stands. Returns [h*zoom,w*zoom,3] BGR uint8.
    """
    image, found = result.frame.image, result.found
    zoom = zoom_of((image.shape[0], image.shape[1]))
    canvas = np.ascontiguousarray(image.repeat(zoom, axis=0).repeat(zoom, axis=1))
    side = max(canvas.shape[:2])
    line, text_size = max(2, round(side / 480)), 0.3 + side / 3200
    limits = (canvas.shape[1], canvas.shape[0]) * 2
    corners = np.rint(np.clip(found.boxes * zoom, 0, limits)).astype(int).tolist()
    # From the lowest score up, so that the best is never covered.
    order = range(len(corners) - 1, -1, -1)
    for index in order:
        _draw_box(canvas, corners[index], _color_of(int(found.labels[index])), line)
    if speed:
        _draw_plate(canvas, speed, text_size)
    for index in order:
        label = int(found.labels[index])
        text = f"{found.scores[index]:.2f}"
        if len(class_names) > 1 or label > 0:
            text = f"{name_of(label, class_names)} {text}"
        _draw_label(canvas, text, (corners[index][0], corners[index][1]), _color_of(label), text_size)
    return canvas


def _color_of(label: int) -> Color:
    return _COLORS[label % len(_COLORS)]


def _draw_box(canvas: Image, corners: list[int], color: Color, line: int) -> None:
    """A coloured line, and a thin dark one around it; the far edge of a box is the border of its last pixel."""
    x1, y1, x2, y2 = corners
    first, last = (x1, y1), (max(x2 - 1, x1), max(y2 - 1, y1))
    out = line // 2 + 1
    cv2.rectangle(canvas, (x1 - out, y1 - out), (last[0] + out, last[1] + out), _BLACK, thickness=1)
    cv2.rectangle(canvas, first, last, color, thickness=line)


def _draw_label(canvas: Image, text: str, corner: tuple[int, int], color: Color, text_size: float) -> None:
    """Black on the box's colour, above the box or, where there is no room, inside; all of it in the picture."""
    stroke = _stroke_of(text_size)
    (width, height), _ = cv2.getTextSize(text, _FONT, text_size, stroke)
    margin = max(2, height // 4)
    plate_width, plate_height = width + 2 * margin, height + 2 * margin
    left = max(min(corner[0], canvas.shape[1] - plate_width), 0)
    top = corner[1] - plate_height if corner[1] >= plate_height else corner[1]
    top = max(min(top, canvas.shape[0] - plate_height), 0)
    cv2.rectangle(canvas, (left, top), (left + plate_width - 1, top + plate_height - 1), color, thickness=-1)
    place = (left + margin, top + margin + height)
    cv2.putText(canvas, text, place, _FONT, text_size, _BLACK, stroke, cv2.LINE_AA)


def _draw_plate(canvas: Image, text: str, text_size: float) -> None:
    """White text in the lower left corner, on the darkened picture."""
    stroke = _stroke_of(text_size)
    (width, height), _ = cv2.getTextSize(text, _FONT, text_size, stroke)
    margin = max(3, height // 2)
    ground = canvas[-(height + 2 * margin) :, : width + 2 * margin]
    np.copyto(ground, (ground * _PLATE_SHADE).astype(np.uint8))
    cv2.putText(canvas, text, (margin, canvas.shape[0] - margin), _FONT, text_size, _WHITE, stroke, cv2.LINE_AA)


def _stroke_of(text_size: float) -> int:
    return max(1, round(text_size * 1.6))
