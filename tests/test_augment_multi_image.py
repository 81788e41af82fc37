"""Augmentations of several pictures: each truth stays on its own object, whatever is drawn over it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from coloured import (
    GREY,
    assert_same,
    assert_truths_follow,
    colour_extents,
    colour_numbers,
    coloured_rectangles,
    find_pieces,
    in_pixels,
    random_rectangles,
)
from scipy import stats

from uhd.augment import Sample
from uhd.augment.multi_image import CopyPaste, MixUp, Mosaic
from uhd.types import IGNORED

EMPTY = coloured_rectangles([], (64, 64))


def one_after_the_other(samples: list[Sample]) -> Callable[[], Sample]:
    """Draws each of the samples once."""
    left = iter(samples)
    return lambda: next(left)


def several(size: tuple[int, int], grid: tuple[int, int], count: int, seed: int) -> list[Sample]:
    """Pictures of rectangles, of which no two of any picture have one colour or label."""
    rng = np.random.default_rng([seed, 1])
    objects = grid[0] * grid[1]
    return [coloured_rectangles(random_rectangles(rng, size, grid), size, i * objects) for i in range(count)]


def learned(sample: Sample) -> dict[int, np.ndarray]:
    """The box, in pixels, of each learned truth by its label; no label may stand twice."""
    rows = [(label, box) for label, box in zip(sample.labels.tolist(), in_pixels(sample), strict=True) if label >= 0]
    assert len(dict(rows)) == len(rows)
    return dict(rows)


# --- mosaic ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale_range", [(0.5, 1.0), (1.0, 1.0), (0.3, 3.0)])
@pytest.mark.parametrize(
    ("size", "grid"), [((64, 64), (3, 3)), ((60, 120), (5, 7)), ((97, 41), (8, 3)), ((64, 64), (0, 0))]
)
def test_mosaic_boxes_enclose_their_own_colours(
    size: tuple[int, int], grid: tuple[int, int], scale_range: tuple[float, float]
) -> None:
    for seed in range(12):
        op = Mosaic(min_visibility=(0.2, 0.0, 0.5, 1.0)[seed % 4], scale_range=scale_range)

        def run(pictures: list[Sample], op: Mosaic = op, seed: int = seed) -> Sample:
            return op.combine(pictures[0], np.random.default_rng(seed), one_after_the_other(pictures[1:]))

        pictures = several(size, grid, 4, seed)
        pieces = find_pieces(lambda given, run=run: run(given).image, size, 4)
        assert len(pieces) == 4
        assert_truths_follow(run(pictures), pictures, pieces, op.min_visibility)


def test_mosaic_of_300_boxes_a_picture() -> None:
    rng = np.random.default_rng(0)
    sample = coloured_rectangles(random_rectangles(rng, (60, 80), (15, 20)), (60, 80))
    bare = coloured_rectangles([], (60, 80))
    for seed in range(4):

        def run(pictures: list[Sample], seed: int = seed) -> Sample:
            return Mosaic().combine(pictures[0], np.random.default_rng(seed), one_after_the_other(pictures[1:]))

        pieces = find_pieces(lambda given, run=run: run(given).image, (60, 80), 4)
        assert_truths_follow(run([sample] + [bare] * 3), [sample] + [bare] * 3, pieces, 0.2)


def test_mosaic_meets_around_a_random_point_and_puts_the_sample_anywhere() -> None:
    points, quarters, scales = [], [], []
    for seed in range(250):

        def run(pictures: list[Sample], seed: int = seed) -> np.ndarray:
            op = Mosaic(scale_range=(0.9, 1.8))
            return op.combine(pictures[0], np.random.default_rng(seed), one_after_the_other(pictures[1:])).image

        pieces = find_pieces(run, (80, 120), 4)
        x1, y1, x2, y2 = pieces[0].window
        points.append([x2 if x1 == 0 else x1, y2 if y1 == 0 else y1])
        quarters.append((x1 > 0, y1 > 0))
        scales += [np.log(piece.place[:, :2].diagonal().mean()) for piece in pieces.values()]
        corners = {(w[0] > 0, w[1] > 0): w for w in (piece.window for piece in pieces.values())}
        assert len(corners) == 4
        assert sum((w[2] - w[0]) * (w[3] - w[1]) for w in corners.values()) == 80 * 120
    x, y = np.array(points).T / [[120], [80]]
    for place in (x, y):
        assert 0.19 < place.min() < 0.3
        assert 0.7 < place.max() < 0.81
        assert 0.45 < place.mean() < 0.55
    assert min(quarters.count(quarter) for quarter in set(quarters)) > 35
    assert len(set(quarters)) == 4
    assert 0.85 < np.exp(min(scales)) < 1.0
    assert 1.7 < np.exp(max(scales)) < 1.9


def test_mosaic_draws_three_pictures() -> None:
    sample, drawn = several((64, 64), (2, 2), 2, 0)
    calls = []
    for seed in range(20):
        Mosaic().combine(sample, np.random.default_rng(seed), lambda: calls.append(1) or drawn)
    assert len(calls) == 60


# --- mixup ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 64), (48, 96), (97, 41)])
def test_mixup_shows_both_pictures_and_all_truths(size: tuple[int, int]) -> None:
    """One picture in red and the other in green: each channel shows one of them, at its share."""
    shares = []
    for seed in range(70):
        rng = np.random.default_rng([seed, 1])
        levels = np.arange(60, 60 + 15 * 12, 15)  # at half the share still clearly apart
        pictures, rects = [], []
        for channel in (0, 1):
            rects.append(np.array(random_rectangles(rng, size, (3, 4))))
            image = np.zeros((*size, 3), np.uint8)
            for level, (x1, y1, x2, y2) in zip(levels, rects[-1], strict=True):
                image[y1:y2, x1:x2, channel] = level
            boxes = (rects[-1] / np.array([size[1], size[0]] * 2)).astype(np.float32)
            pictures.append(Sample(image, boxes, np.arange(12) + 12 * channel))
        out = MixUp().combine(pictures[0], np.random.default_rng(seed), lambda pictures=pictures: pictures[1])
        boxes = learned(out)
        assert sorted(boxes) == list(range(24))
        share = np.array([out.image[..., channel].max() / levels[-1] for channel in (0, 1)])
        np.testing.assert_allclose(share.sum(), 1, atol=0.01)
        assert (out.image[..., 2] == 0).all()
        shares.append(share[0])
        for label, box in boxes.items():
            channel, i = divmod(label, 12)
            shown = np.abs(out.image[..., channel] - levels[i] * share[channel]) <= 1.5
            rows, columns = np.nonzero(shown)
            seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            np.testing.assert_allclose(box, seen, atol=1e-3)
    assert 0.3 < min(shares) < max(shares) < 0.7
    assert stats.kstest(shares, stats.beta(32, 32).cdf).pvalue > 1e-3


def test_mixup_keeps_what_is_ignored() -> None:
    sample, other = several((64, 64), (2, 2), 2, 0)
    sample.labels[1], other.labels[2] = IGNORED, IGNORED
    out = MixUp().combine(sample, np.random.default_rng(0), lambda: other)
    assert out.labels.tolist() == [*sample.labels, *other.labels]
    assert_same(Sample(out.image, out.boxes[:4], out.labels[:4]), Sample(out.image, sample.boxes, sample.labels))


# --- copy and paste -------------------------------------------------------------------------------


def run_copy_paste(op: CopyPaste, pictures: list[Sample], seed: int) -> Sample:
    return op.combine(pictures[0], np.random.default_rng(seed), one_after_the_other(pictures[1:]))


@pytest.mark.parametrize("min_visibility", [0.0, 0.2, 0.6, 1.0])
@pytest.mark.parametrize(("size", "grid"), [((64, 64), (3, 3)), ((60, 120), (4, 8)), ((97, 41), (6, 3))])
def test_pasted_objects_of_their_own_size(size: tuple[int, int], grid: tuple[int, int], min_visibility: float) -> None:
    """Without a change of size every pixel of the result is known by its colour, so that all can be counted."""
    pasted, hidden = 0, 0
    for seed in range(16):
        op = CopyPaste(min_visibility=min_visibility, sample_num=3, max_paste_objects=4, scale_jitter=(1.0, 1.0))
        pictures = several(size, grid, 4, seed)
        out = run_copy_paste(op, pictures, seed)
        numbers, extents = colour_numbers(out.image), colour_extents(out.image)
        boxes = learned(out)
        areas = {
            label: np.prod(np.rint(box[2:] - box[:2]))
            for sample in pictures
            for label, box in zip(sample.labels.tolist(), in_pixels(sample), strict=True)
        }
        for label in areas:
            seen = (numbers == label).sum() / areas[label]
            if label in boxes:
                assert seen >= min_visibility - 1e-6
                assert seen > 0
                np.testing.assert_allclose(boxes[label], extents[label], atol=1e-3)
            else:
                assert seen < min_visibility or seen == 0
                hidden += 1
        ignored = in_pixels(out)[out.labels == IGNORED]
        expected = sorted(extent for label, extent in extents.items() if label not in boxes)
        assert sorted(map(tuple, ignored.round(3).tolist())) == [tuple(map(float, extent)) for extent in expected]
        pasted += sum(label >= grid[0] * grid[1] for label in extents)
    assert 16 * 3 < pasted <= 16 * 3 * 4
    assert hidden > 0


@pytest.mark.parametrize("scale_jitter", [(0.8, 1.2), (0.4, 0.6), (1.5, 3.0)])
def test_pasted_objects_of_jittered_size(scale_jitter: tuple[float, float]) -> None:
    rects = [(5, 3, 25, 13), (40, 20, 50, 50), (10, 30, 30, 50), (0, 54, 10, 64), (54, 0, 64, 10)]
    factors = []
    for seed in range(70):
        source = coloured_rectangles(rects, (64, 64))
        op = CopyPaste(max_paste_objects=1, scale_jitter=scale_jitter)
        out = run_copy_paste(op, [EMPTY, source], seed)
        (label, box), *more = learned(out).items()
        assert not more
        x1, y1, x2, y2 = rects[label]
        sides = box[2:] - box[:2]
        assert (box >= 0).all()
        assert (box <= 64).all()
        np.testing.assert_allclose(colour_extents(out.image)[label], box, atol=1e-3)
        if (sides < 64).all():
            np.testing.assert_allclose(sides[0] / (x2 - x1), sides[1] / (y2 - y1), atol=0.11)
        factors.append(sides.max() / max(x2 - x1, y2 - y1))
    low, high = scale_jitter
    assert low - 0.05 <= min(factors) < low + 0.2 * (high - low)
    assert high - 0.4 * (high - low) < max(factors) <= high + 0.05


def test_objects_are_chosen_and_placed_at_random() -> None:
    source = coloured_rectangles([(8 * i, 5, 8 * i + 6, 15) for i in range(8)], (64, 64))
    chosen, places = [], []
    for seed in range(500):
        out = run_copy_paste(CopyPaste(max_paste_objects=1, scale_jitter=(1.0, 1.0)), [EMPTY, source], seed)
        ((label, box),) = learned(out).items()
        chosen.append(label)
        places.append(box[:2].round())
    assert np.bincount(chosen, minlength=8).min() > 35
    places = np.array(places)
    assert set(places[:, 0]) == set(range(64 - 6 + 1))
    assert set(places[:, 1]) == set(range(64 - 10 + 1))


@pytest.mark.parametrize(
    ("sample_num", "max_paste_objects", "most"), [(0, 5, 0), (1, 0, 0), (1, 5, 5), (2, 3, 6), (1, 100, 9)]
)
def test_pictures_and_objects_are_counted(sample_num: int, max_paste_objects: int, most: int) -> None:
    rects = [(20 * (i % 3), 20 * (i // 3), 20 * (i % 3) + 4, 20 * (i // 3) + 4) for i in range(9)]
    sources = [coloured_rectangles(rects, (64, 64), 9 * i) for i in range(sample_num)]
    op = CopyPaste(sample_num=sample_num, max_paste_objects=max_paste_objects, scale_jitter=(1.0, 1.0))
    counts = [len(colour_extents(run_copy_paste(op, [EMPTY, *sources], seed).image)) for seed in range(30)]
    assert max(counts) == most
    assert most == 0 or min(counts) > 0


@pytest.mark.parametrize("ignored", [True, False])
def test_what_is_ignored_or_cannot_be_seen_is_not_pasted(ignored: bool) -> None:
    source = coloured_rectangles([(3, 3, 30, 30)] if ignored else [(3, 3, 5, 40), (40, 60, 64, 62)], (64, 64))
    source.labels[:] = IGNORED if ignored else 0
    out = run_copy_paste(CopyPaste(), [EMPTY, source], 0)
    assert (out.image == GREY).all()
    assert len(out.labels) == 0


def test_object_in_front_of_a_pasted_one_comes_with_its_truth() -> None:
    """Where an object is cut out, so is what stands before it or reaches into it: all that is seen has its box."""
    rects = [(10, 10, 40, 50), (20, 20, 30, 40), (36, 44, 60, 60), (38, 5, 50, 14)]
    seen = 0
    for seed in range(200):
        source = coloured_rectangles(rects, (64, 64))
        out = run_copy_paste(CopyPaste(max_paste_objects=2, scale_jitter=(0.7, 1.4)), [EMPTY, source], seed)
        numbers, boxes = colour_numbers(out.image), in_pixels(out)
        for number in np.unique(numbers[numbers >= 0]):
            rows, columns = np.nonzero(numbers == number)
            own = boxes[(out.labels == number) | (out.labels == IGNORED)]
            inside = (own[:, :2] <= np.array([columns, rows]).T[:, None] + 2).all(axis=2)
            inside &= (own[:, 2:] >= np.array([columns, rows]).T[:, None] - 1).all(axis=2)
            assert inside.any(axis=1).all(), f"seed {seed}: {number} is seen outside of its boxes"
            seen += 1
    assert seen > 300


def test_box_that_ends_inside_pixels_keeps_its_size() -> None:
    source = coloured_rectangles([(10, 10, 20, 30)], (64, 64))
    source.boxes[:] = np.array([10.3, 9.6, 19.8, 30.4]) / 64
    for seed in range(20):
        out = run_copy_paste(CopyPaste(scale_jitter=(1.0, 1.0)), [EMPTY, source], seed)
        (box,) = learned(out).values()
        np.testing.assert_allclose(box[2:] - box[:2], [9.5, 20.8], atol=1e-3)
        np.testing.assert_allclose(box, colour_extents(out.image)[0], atol=1)
