"""Boxes on pictures, pictures on sheets, sheets on disk: RGB uint8 arrays, no plotting library."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from uhd.files import write_whole

Image = NDArray[np.uint8]
Color = tuple[int, int, int]

GREEN: Color = (60, 220, 90)
ORANGE: Color = (255, 150, 30)

_BACKGROUND = 24
_CAPTION_COLOR: Color = (225, 225, 225)
_GAP = 8
_CAPTION_HEIGHT = 20
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_CAPTION_SIZE = 0.4
_LABEL_SIZE = 0.36


def draw_boxes(
    image: Image,
    boxes: NDArray[np.floating],
    texts: Sequence[str] | None = None,
    color: Color = GREEN,
    scale: int = 1,
) -> Image:
    """A copy of the picture with boxes on it, one pixel wide.

    image [H,W,3] RGB uint8; boxes [n,4] xyxy normalised 0-1, clipped to the picture. scale enlarges
    the picture first (nearest neighbour, whole factor), so that lines stay thin on a small one.
    texts are one label a box, written above it or, where there is no room, inside. Returns
    [H*scale,W*scale,3].
    """
    if scale < 1:
        raise ValueError(f"scale {scale}: expected a whole number >= 1")
    canvas = np.ascontiguousarray(image.repeat(scale, axis=0).repeat(scale, axis=1))
    height, width = canvas.shape[:2]
    corners = np.rint(np.clip(np.asarray(boxes).reshape(-1, 4), 0, 1) * (width, height, width, height)).astype(int)
    for x1, y1, x2, y2 in corners.tolist():
        # The far edge of a box is the border of its last pixel, not a pixel of its own.
        cv2.rectangle(canvas, (x1, y1), (max(x2 - 1, x1), max(y2 - 1, y1)), color, thickness=1)
    if texts is not None:
        for (x1, y1, _, _), text in zip(corners.tolist(), texts, strict=True):
            _draw_label(canvas, text, x1, y1, color)
    return canvas


def _draw_label(canvas: Image, text: str, x: int, y: int, color: Color) -> None:
    """Dark text on the box's colour, its lower left corner at (x, y) and all of it inside the picture."""
    if not text:
        return
    (width, height), _ = cv2.getTextSize(text, _FONT, _LABEL_SIZE, 1)
    left = max(min(x, canvas.shape[1] - width - 2), 0)
    bottom = y if y >= height + 3 else y + height + 3
    cv2.rectangle(canvas, (left, bottom - height - 3), (left + width + 1, bottom - 1), color, thickness=-1)
    cv2.putText(canvas, text, (left + 1, bottom - 2), _FONT, _LABEL_SIZE, (0, 0, 0), 1, cv2.LINE_AA)


def sheet(tiles: Sequence[Image], columns: int, captions: Sequence[str] | None = None) -> Image:
    """Pictures in a grid, row by row, on a dark ground.

    tiles are RGB uint8 of any size; a cell has the size of the largest and a tile stands in its
    middle. captions are one a tile, below it, shortened to the cell's width. Returns [H,W,3].
    Raises ValueError for no tiles and for columns < 1.
    """
    if not tiles or columns < 1:
        raise ValueError(f"a sheet of {len(tiles)} pictures in {columns} columns: expected at least 1 of each")
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    cell_height = max(tile.shape[0] for tile in tiles)
    cell_width = max(tile.shape[1] for tile in tiles)
    pitch_y = cell_height + _GAP + (0 if captions is None else _CAPTION_HEIGHT)
    pitch_x = cell_width + _GAP
    canvas = np.full((rows * pitch_y + _GAP, columns * pitch_x + _GAP, 3), _BACKGROUND, dtype=np.uint8)
    lines = [""] * len(tiles) if captions is None else captions
    for index, (tile, line) in enumerate(zip(tiles, lines, strict=True)):
        height, width = tile.shape[:2]
        cell_top, cell_left = _GAP + index // columns * pitch_y, _GAP + index % columns * pitch_x
        top, left = cell_top + (cell_height - height) // 2, cell_left + (cell_width - width) // 2
        canvas[top : top + height, left : left + width] = tile
        baseline = (cell_left, cell_top + cell_height + _CAPTION_HEIGHT - 6)
        cv2.putText(
            canvas, _shortened(line, cell_width), baseline, _FONT, _CAPTION_SIZE, _CAPTION_COLOR, 1, cv2.LINE_AA
        )
    return canvas


def _shortened(text: str, width: int) -> str:
    """The longest start of the text that fits into width pixels, with dots where something is missing."""

    def fits(candidate: str) -> bool:
        return bool(cv2.getTextSize(candidate, _FONT, _CAPTION_SIZE, 1)[0][0] <= width)

    if fits(text):
        return text
    length = len(text)
    while length > 0 and not fits(text[:length] + ".."):
        length -= 1
    return text[:length] + ".." if length else ""


def save_png(path: Path | str, image: Image) -> None:
    """Writes a picture ([H,W,3] RGB uint8) as PNG, whole or not at all; creates no folder. Raises OSError."""
    encoded, data = cv2.imencode(".png", np.ascontiguousarray(image[..., ::-1]))
    assert encoded
    write_whole(path, data.tobytes())
