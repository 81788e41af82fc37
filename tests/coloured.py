"""Pictures whose colours say what they show: rectangles known by their colour, pixels that hold their own place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.ndimage import find_objects
from scipy.spatial import cKDTree

from uhd.augment import Sample
from uhd.types import IGNORED

GREY = (114, 114, 114)


def _sphere(count: int) -> np.ndarray:
    """Colours [count,3] spread evenly over a sphere inside the colour cube, in mixed order.

    Grey is its centre, so that the blend of a colour with grey never looks like another colour.
    """
    height = 1 - 2 * (np.arange(count) + 0.5) / count
    angle = np.pi * (1 + 5**0.5) * np.arange(count)
    ring = np.sqrt(1 - height**2)
    points = np.stack([ring * np.cos(angle), ring * np.sin(angle), height], axis=1)
    return np.random.default_rng(0).permutation(np.rint(127.5 + 120 * points))


COLOURS = _sphere(400)
_COLOUR_TREE = cKDTree(COLOURS)


def coloured_rectangles(rects: Sequence[Sequence[int]], size: tuple[int, int], first: int = 0) -> Sample:
    """Rectangles (x1, y1, x2, y2 in pixels) on grey, the i-th in the colour and with the label first + i."""
    image = np.full((*size, 3), GREY, np.uint8)
    corners = np.array(rects, np.int64).reshape(-1, 4)
    for i, (x1, y1, x2, y2) in enumerate(corners):
        image[y1:y2, x1:x2] = COLOURS[first + i]
    boxes = corners / np.array([size[1], size[0]] * 2)
    return Sample(image, boxes.astype(np.float32), first + np.arange(len(corners)))


def random_rectangles(rng: np.random.Generator, size: tuple[int, int], grid: tuple[int, int]) -> list[list[int]]:
    """One rectangle somewhere in each cell of a grid of (rows, columns), in pixels; some touch the borders.

    No two touch each other, so that interpolation mixes their colours with grey alone.
    """
    rects = []
    for row, column in np.ndindex(*grid):
        spans = []
        for axis, cell in ((1, column), (0, row)):
            edges = np.linspace(0, size[axis], grid[axis] + 1).astype(int)
            places = np.arange(edges[cell], edges[cell + 1] + (cell == grid[axis] - 1))
            spans.append(np.sort(rng.choice(places, 2, replace=False)).tolist())
        (x1, x2), (y1, y2) = spans
        rects.append([x1, y1, x2, y2])
    return rects


def colour_numbers(image: np.ndarray) -> np.ndarray:
    """For each pixel [H,W] of an image the number of the colour that it shows (nearly) unmixed; -1 for none."""
    numbers = np.full(image.shape[:2], -1)
    coloured = np.abs(image.astype(int) - GREY).max(axis=2) > 8
    found = _COLOUR_TREE.query(image[coloured], distance_upper_bound=7)[1]
    numbers[coloured] = np.where(found < len(COLOURS), found, -1)
    return numbers


def colour_extents(image: np.ndarray) -> dict[int, tuple[int, int, int, int]]:
    """(x1, y1, x2, y2) around all pixels of each colour that an image shows, by the colour's number."""
    slices = find_objects(colour_numbers(image) + 1)
    return {i: (s[1].start, s[0].start, s[1].stop, s[0].stop) for i, s in enumerate(slices) if s is not None}


def in_pixels(sample: Sample) -> np.ndarray:
    """The boxes [G,4] of a sample in pixels of its image."""
    return sample.boxes * np.array([sample.image.shape[1], sample.image.shape[0]] * 2)


def assert_same(a: Sample, b: Sample) -> None:
    """Equal to the bit."""
    for name in ("image", "boxes", "labels"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


# --- where an op puts a picture -------------------------------------------------------------------


class Piece(NamedTuple):
    """What an op shows of one picture.

    window: (x1, y1, x2, y2) in pixels of the result; place: [2,3], the result's x, y of (x, y, 1) in the picture.
    """

    window: tuple[int, int, int, int]
    place: np.ndarray


def place_steps(size: tuple[int, int]) -> np.ndarray:
    """Levels from one column of a `place_picture` to the next, and from one row to the next: as many as 255 allow."""
    return 255 // np.array(size[::-1])


def place_picture(size: tuple[int, int], number: int = 0) -> Sample:
    """A picture whose red and green hold the pixel's x and y in `place_steps`, and blue the number of the picture."""
    image = np.empty((*size, 3), np.uint8)
    steps = place_steps(size)
    image[..., 0], image[..., 1] = np.arange(size[1]) * steps[0], np.arange(size[0])[:, None] * steps[1]
    image[..., 2] = 250 - 20 * number
    return Sample(image, np.zeros((0, 4), np.float32), np.zeros(0, np.int64))


def find_pieces(run: Callable[[list[Sample]], np.ndarray], size: tuple[int, int], count: int = 1) -> dict[int, Piece]:
    """The pieces of a result, by the number of their picture; run makes the result's image of `count` pictures."""
    image = run([place_picture(size, number) for number in range(count)]).astype(int)
    pieces = {}
    for number in range(count):
        mask = np.abs(image[..., 2] - (250 - 20 * number)) <= 2
        if not mask.any():
            continue
        rows, columns = np.nonzero(mask)
        window = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        shown = image[mask][:, :2] / place_steps(size)
        # An enlarged picture's outermost pixel is repeated at its border.
        inner = ((shown > shown.min(axis=0)) & (shown < shown.max(axis=0))).all(axis=1)
        places = np.column_stack([columns, rows, np.full(len(rows), 0.5)])[inner] + [0.5, 0.5, 0.5]
        back = np.linalg.lstsq(places, shown[inner] + 0.5, rcond=None)[0].T
        there = np.linalg.inv(back[:, :2])
        pieces[number] = Piece(tuple(map(int, window)), np.column_stack([there, -there @ back[:, 2]]))
    return pieces


def moved_boxes(sample: Sample, piece: Piece) -> tuple[np.ndarray, np.ndarray]:
    """The boxes [G,4], in pixels of the result, that enclose what a piece shows of each truth; and the shares shown.

    A share is that of the moved truth's area, which may be turned; -1 for one that lies clearly outside.
    """
    x1, y1, x2, y2 = in_pixels(sample).T
    corners = np.stack([[x1, y1], [x2, y1], [x2, y2], [x1, y2]])
    moved = np.einsum("ij,cjg->gci", piece.place[:, :2], corners) + piece.place[:, 2]
    start, end = np.array(piece.window[:2]), np.array(piece.window[2:])
    shown, shares = [], []
    for quadrangle in moved:
        points = clipped(quadrangle, start, end)
        area = polygon_area(points)
        points = points if len(points) else np.clip(quadrangle, start, end)
        shown.append([*points.min(axis=0), *points.max(axis=0)])
        outside = (quadrangle.min(axis=0) > end + 0.5) | (quadrangle.max(axis=0) < start - 0.5)
        shares.append(-1 if outside.any() else area / polygon_area(quadrangle))
    return np.array(shown).reshape(-1, 4), np.array(shares)


def clipped(polygon: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """A convex polygon [n,2] cut off at one border of a window after the other (Sutherland and Hodgman)."""
    for axis, limit, sign in ((0, start[0], 1), (0, end[0], -1), (1, start[1], 1), (1, end[1], -1)):
        points = []
        for a, b in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
            inside_a, inside_b = (sign * (point[axis] - limit) >= 0 for point in (a, b))
            if inside_a:
                points.append(a)
            if inside_a != inside_b:
                points.append(a + (b - a) * (limit - a[axis]) / (b[axis] - a[axis]))
        polygon = np.array(points).reshape(-1, 2)
    return polygon


def polygon_area(polygon: np.ndarray) -> float:
    """Of corners [n,2] in order; 0 for none."""
    x, y = polygon.T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def assert_truths_follow(
    out: Sample,
    pictures: list[Sample],
    pieces: dict[int, Piece],
    min_visibility: float,
    *,
    upright: bool = True,
) -> None:
    """Each truth's box in the result is where the pieces say and encloses its own colour; hidden ones are not learned.

    The pictures' labels are the numbers of their colours. upright: boxes are tight around their colours.
    """
    boxes = in_pixels(out)
    learned = dict(zip(out.labels[out.labels != IGNORED].tolist(), boxes[out.labels != IGNORED], strict=True))
    assert len(learned) == (out.labels != IGNORED).sum(), "a truth stands twice"
    ignored = boxes[out.labels == IGNORED]
    seen = colour_extents(out.image)
    expected: set[int] = set()
    for number, piece in pieces.items():
        sample = pictures[number]
        stretch = np.tile(np.abs(piece.place[:, :2]).sum(axis=1), 2)
        rows = zip(sample.labels.tolist(), in_pixels(sample), *moved_boxes(sample, piece), strict=True)
        for label, before, shown, share in rows:
            rounding = 0.02 + 0.2 / min(before[2:] - before[:2])
            if share < max(min_visibility - rounding, 0):
                assert label not in learned, f"{label} is learned with {share:.3f} of its area"
            elif share > min_visibility + rounding:
                assert label in learned, f"{label} is not learned with {share:.3f} of its area"
            expected.add(label)
            own = [learned[label]] if label in learned else [*ignored]
            assert own or label not in seen, f"{label} is seen, and no truth says so"
            if label in learned:
                np.testing.assert_allclose(learned[label], shown, atol=1)
            if label in seen:
                coloured = np.array(seen[label])
                outside = np.array([[*(box[:2] - coloured[:2]), *(coloured[2:] - box[2:])] for box in own])
                assert outside.max(axis=1).min() <= 1, f"{label} reaches out of its box"
                if upright and label in learned:
                    assert (outside >= -1 - np.maximum(stretch, 1)).all(), f"the box of {label} is too large"
    assert set(learned) <= expected, "truths of pictures that are not shown"
    assert set(seen) <= expected
