"""Geometric augmentations: truths stay on what they mark, and the strengths are drawn as documented."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from coloured import (
    GREY,
    assert_same,
    assert_truths_follow,
    clipped,
    coloured_rectangles,
    find_pieces,
    place_picture,
    place_steps,
    polygon_area,
    random_rectangles,
)
from helpers import write_yaml
from scipy import stats
from torchvision.transforms import RandomResizedCrop as TorchvisionCrop

from uhd.augment import Op, Sample, load_pipeline
from uhd.augment.geometric import (
    HorizontalFlip,
    RandomCrop,
    RandomResizedCrop,
    RandomScale,
    Rotate,
    Translation,
    VerticalFlip,
)
from uhd.augment.turned import clip_turned
from uhd.types import IGNORED

MOVES: dict[str, tuple[type[Op], dict[str, object]]] = {
    "mirrored": (HorizontalFlip, {}),
    "upside down": (VerticalFlip, {}),
    "in": (RandomScale, {"scale_range": (1.0, 3.0)}),
    "out": (RandomScale, {"scale_range": (0.4, 1.0)}),
    "stretched": (RandomScale, {"scale_range": (0.5, 2.0), "keep_aspect_ratio": False}),
    "shifted": (Translation, {"translate": 0.6}),
    "tilted": (Rotate, {"degrees": 20.0}),
    "turned": (Rotate, {"degrees": 180.0}),
    "cropped": (RandomCrop, {"ratio": 0.6}),
    "cropped and stretched": (RandomResizedCrop, {"scale": (0.1, 1.0), "ratio": (0.3, 3.0)}),
}

PICTURES = {
    "none": ([], (64, 64)),
    "whole picture": ([(0, 0, 64, 64)], (64, 64)),
    "borders": ([(0, 0, 10, 10), (54, 0, 64, 9), (0, 50, 12, 64), (50, 54, 64, 64), (20, 20, 40, 44)], (64, 64)),
    "one pixel": ([(3, 3, 4, 4), (30, 31, 31, 32), (63, 63, 64, 64), (0, 40, 1, 41)], (64, 64)),
    "thin": ([(2, 3, 30, 40), (60, 5, 61, 47), (90, 0, 96, 48), (32, 44, 59, 45)], (48, 96)),
    "touching": ([(8, 8, 24, 40), (24, 8, 50, 40), (8, 40, 50, 60)], (64, 64)),
    "grid, wide": ((5, 7), (60, 120)),
    "grid, tall": ((6, 3), (97, 41)),
    "300": ((15, 20), (60, 80)),
}


def picture(name: str, rng: np.random.Generator) -> Sample:
    rects, size = PICTURES[name]
    return coloured_rectangles(random_rectangles(rng, size, rects) if isinstance(rects, tuple) else rects, size)


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("name", PICTURES)
def test_boxes_enclose_their_own_colours(name: str, move: str) -> None:
    op_type, params = MOVES[move]
    hides = not move.startswith(("mirrored", "upside"))
    for seed in range(4 if name == "300" else 16):
        min_visibility = (0.2, 0.0, 0.5, 1.0)[seed % 4] if hides else 0.0
        op = op_type(prob=1.0, **params, **({"min_visibility": min_visibility} if hides else {}))
        sample = picture(name, np.random.default_rng([seed, 1]))
        out = op.apply(sample, np.random.default_rng(seed))
        pieces = find_pieces(
            lambda pictures, op=op, seed=seed: op.apply(pictures[0], np.random.default_rng(seed)).image,
            sample.image.shape[:2],
        )
        upright = op_type is not Rotate
        # The corners of a turned picture show the fill, and yet its boxes may reach into them.
        whole = (0, 0, sample.image.shape[1], sample.image.shape[0])
        pieces = {0: pieces[0]._replace(window=whole)}
        assert_truths_follow(out, [sample], pieces, min_visibility, upright=upright)


@pytest.mark.parametrize("min_visibility", [0.0, 0.2])
@pytest.mark.parametrize("length", [60, 97, 120, 130])
def test_truth_that_ends_where_the_view_begins_goes(length: int, min_visibility: float) -> None:
    """Of a truth whose pixels are not shown nothing is left, whatever float32 makes of its border."""
    sample = coloured_rectangles([(i, 0, i + 1, 7) for i in range(length)], (7, length))
    for seed in range(10):
        op = Translation(translate=0.5, min_visibility=min_visibility)
        out = op.apply(sample, np.random.default_rng(seed))
        columns_shown = (out.image != GREY).any(axis=(0, 2)).sum()
        assert len(out.labels) == columns_shown
        assert (out.boxes[:, 2:] > out.boxes[:, :2]).all()


def test_hidden_truth_stays_as_ignored_where_some_of_it_is_seen() -> None:
    """A person of whom an arm is seen is no background either."""
    sample = coloured_rectangles([(0, 0, 64, 64)], (64, 64))
    out = RandomResizedCrop(scale=(0.05, 0.05), ratio=(1.0, 1.0)).apply(sample, np.random.default_rng(0))
    assert out.labels.tolist() == [IGNORED]
    assert out.boxes.tolist() == [[0, 0, 1, 1]]


@pytest.mark.parametrize("op_type", [RandomScale, Translation, Rotate, RandomCrop, RandomResizedCrop])
def test_label_is_kept_and_what_was_ignored_stays_ignored(op_type: type[Op]) -> None:
    sample = coloured_rectangles([(20, 20, 29, 29), (30, 30, 40, 40)], (64, 64))
    sample.labels[:] = [IGNORED, 3]
    for seed in range(10):
        op = op_type(min_visibility=0.0)
        assert op.apply(sample, np.random.default_rng(seed)).labels.tolist() == [IGNORED, 3]


# --- what changes nothing -------------------------------------------------------------------------

STILL = {
    "scale": lambda shape: RandomScale(min_visibility=1.0),
    "two scales": lambda shape: RandomScale(scale_range=(1.0, 1.0), keep_aspect_ratio=False),
    "translation": lambda shape: Translation(min_visibility=1.0),
    "rotation": lambda shape: Rotate(min_visibility=1.0),
    "crop": lambda shape: RandomCrop(ratio=1.0, min_visibility=1.0),
    "resized crop": lambda shape: RandomResizedCrop(scale=(1.0, 1.0), ratio=(shape, shape), min_visibility=1.0),
}
SIZES = [(64, 64), (48, 96), (7, 130), (33, 2), (1, 1)]


def noise(size: tuple[int, int], count: int = 50) -> Sample:
    rng = np.random.default_rng(3)
    corners = np.sort(rng.random((count, 2, 2), dtype=np.float32), axis=1).reshape(-1, 4)
    return Sample(rng.integers(0, 256, (*size, 3), dtype=np.uint8), corners, rng.integers(0, 3, count))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("still", STILL)
def test_move_by_nothing_changes_nothing(still: str, size: tuple[int, int]) -> None:
    op = STILL[still](size[1] / size[0])
    assert_same(op.apply(noise(size), np.random.default_rng(0)), noise(size))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("flip", [HorizontalFlip(), VerticalFlip()])
def test_flip_twice_changes_nothing(flip: Op, size: tuple[int, int]) -> None:
    sample, rng = noise(size), np.random.default_rng(0)
    sample.boxes[:] = np.rint(sample.boxes * 2**20) / 2**20  # 1 - x of these is exact
    once = flip.apply(sample, rng)
    assert min(size) == 1 or not np.array_equal(once.image, sample.image)
    assert_same(flip.apply(once, rng), sample)


@pytest.mark.parametrize("size", [(64, 64), (48, 96), (50, 70)])
def test_translation_there_and_back(size: tuple[int, int]) -> None:
    """Turned half round, the same shift leads back."""
    sample = noise(size, 1)
    sample.boxes[:] = (0.4, 0.4, 0.5, 0.6)
    op = Translation(translate=0.3)
    moved = 0
    for seed in range(50):
        out = sample
        for _ in range(2):
            for step in (op, HorizontalFlip(), VerticalFlip()):
                out = step.apply(out, np.random.default_rng(seed))
        margin = np.ceil(np.array(size) * 0.3).astype(int)
        inside = np.s_[margin[0] : -margin[0], margin[1] : -margin[1]]
        np.testing.assert_array_equal(out.image[inside], sample.image[inside])
        np.testing.assert_allclose(out.boxes, sample.boxes, atol=1e-6)
        moved += not np.array_equal(op.apply(sample, np.random.default_rng(seed)).image, sample.image)
    assert moved > 45


# --- how strengths are drawn ----------------------------------------------------------------------

DRAWS = 800


def windows(op: Op, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """(x1, y1, x2, y2) [n,4] of what an op that never shrinks shows of the picture, and where it shows it."""
    given = place_picture(size)
    shown, places = [], []
    steps = place_steps(size)
    rng = np.random.default_rng(0)
    for _ in range(DRAWS):
        image = op.apply(given, rng).image
        rows, columns = np.nonzero(np.abs(image[..., 2].astype(int) - 250) <= 2)
        first, last = image[rows[0], columns[0], :2] // steps, image[rows[-1], columns[-1], :2] // steps
        shown.append([*first, *(last + 1)])
        places.append([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    return np.array(shown), np.array(places)


def alike(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two sets of numbers may come from one distribution; the draws are the same in every run."""
    return bool(stats.ks_2samp(a, b).pvalue > 1e-3)


def is_even(values: np.ndarray, low: float, high: float) -> bool:
    return bool(stats.kstest(values, "uniform", (low, high - low)).pvalue > 1e-3)


@pytest.mark.parametrize("size", [(200, 200), (125, 250)])
def test_resized_crop_draws_what_torchvision_draws(size: tuple[int, int]) -> None:
    """With areas so small that torchvision never has to draw again."""
    scale, ratio = (0.1, 0.35), (0.75, 1.33)
    x1, y1, x2, y2 = windows(RandomResizedCrop(scale=scale, ratio=ratio), size)[0].T
    torch.manual_seed(0)
    image = torch.zeros(3, *size)
    drawn = [TorchvisionCrop.get_params(image, list(scale), list(ratio)) for _ in range(DRAWS)]
    top, left, height, width = np.array(drawn).T
    assert alike((x2 - x1) * (y2 - y1), width * height)
    assert alike((x2 - x1) / (y2 - y1), width / height)
    assert alike(x1 / (size[1] - x2 + x1), left / (size[1] - width))
    assert alike(y1 / (size[0] - y2 + y1), top / (size[0] - height))


def test_resized_crop_of_all_areas_and_shapes_stays_inside_the_ranges() -> None:
    x1, y1, x2, y2 = windows(RandomResizedCrop(), (200, 200))[0].T
    area, ratio = (x2 - x1) * (y2 - y1) / 200**2, (x2 - x1) / (y2 - y1)
    assert 0.59 < area.min() < 0.62
    assert area.max() <= 1
    assert 0.745 < ratio.min() < 0.77
    assert 1.3 < ratio.max() < 1.34
    assert x1.min() == y1.min() == 0
    assert x2.max() == y2.max() == 200


@pytest.mark.parametrize(("ratio", "sides"), [(0.9, (180, 90)), (0.5, (100, 50)), (0.333, (67, 33))])
def test_crop_has_one_size_and_any_place(ratio: float, sides: tuple[int, int]) -> None:
    x1, y1, x2, y2 = windows(RandomCrop(ratio=ratio), (100, 200))[0].T
    assert set((x2 - x1).tolist()) == {sides[0]}
    assert set((y2 - y1).tolist()) == {sides[1]}
    for start, length in ((x1, 200 - sides[0]), (y1, 100 - sides[1])):
        assert set(start.tolist()) == set(range(length + 1))


@pytest.mark.parametrize("keep_aspect_ratio", [True, False])
def test_scale_factors_are_even_in_their_logarithm(keep_aspect_ratio: bool) -> None:
    op = RandomScale(scale_range=(0.25, 4.0), keep_aspect_ratio=keep_aspect_ratio)
    factors = []
    for seed in range(150):
        piece = find_pieces(lambda p, seed=seed: op.apply(p[0], np.random.default_rng(seed)).image, (120, 120))[0]
        factors.append(piece.place[:, :2].diagonal())
        centre = piece.place @ (60, 60, 1)
        np.testing.assert_allclose(centre, 60, atol=1 + factors[-1].max())
    across, down = np.log2(factors).T
    for logarithm in (across, down):
        assert is_even(logarithm, -2, 2)
        assert abs(logarithm).max() < 2.05
    if keep_aspect_ratio:
        np.testing.assert_allclose(across, down, atol=0.02)
    else:
        assert abs(np.corrcoef(across, down)[0, 1]) < 0.15


def test_translation_reaches_its_largest_shift_both_ways() -> None:
    shown, places = windows(Translation(translate=0.25), (80, 160))
    for axis, most in ((0, 40), (1, 20)):
        shifts = places[:, axis] - shown[:, axis]
        assert (shifts.min(), shifts.max()) == (-most, most)
        assert is_even(shifts + np.random.default_rng(0).uniform(-0.5, 0.5, DRAWS), -most, most)


@pytest.mark.parametrize(
    ("op", "extremes"),
    [(Rotate(degrees=30.0), 30), (Rotate(degrees=180.0), 180)],
)
def test_rotation_turns_either_way_by_up_to_its_angle(op: Op, extremes: float) -> None:
    angles = []
    for seed in range(150):
        piece = find_pieces(lambda p, seed=seed: op.apply(p[0], np.random.default_rng(seed)).image, (80, 60))[0]
        turn = piece.place[:, :2]
        np.testing.assert_allclose(turn @ turn.T, np.eye(2), atol=0.03)
        np.testing.assert_allclose(piece.place @ (30, 40, 1), (30, 40), atol=0.2)
        angles.append(np.degrees(np.arctan2(turn[0, 1], turn[0, 0])))
    assert is_even(np.array(angles), -extremes, extremes)


@pytest.mark.parametrize("degrees", [0.0, 30.0, 45.0, 90.0, 136.0, 180.0, -90.0])
def test_what_is_seen_of_turned_rectangles(degrees: float) -> None:
    """Of any size, wherever they lie: inside, across the borders and around the whole picture."""
    rng = np.random.default_rng(3)
    turn = np.deg2rad(degrees)
    matrix = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    unit = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) / 2
    sides, middles = np.exp(rng.uniform(-4, 1, (300, 1, 2))), rng.uniform(-0.3, 1.3, (300, 1, 2))
    corners = (unit * sides) @ matrix + middles
    expected = [clipped(each, np.zeros(2), np.ones(2)) for each in corners]
    shares = [polygon_area(seen) / np.prod(side) for seen, side in zip(expected, sides, strict=True)]
    for min_visibility in (0.0, 0.2, 0.7):
        boxes, labels = clip_turned(corners, np.arange(300), min_visibility)
        rows = dict(zip(labels.tolist(), boxes, strict=True))
        for label, (polygon, share) in enumerate(zip(expected, shares, strict=True)):
            if share > max(min_visibility, 1e-6) * (1 + 1e-4):
                np.testing.assert_allclose(rows[label], [*polygon.min(axis=0), *polygon.max(axis=0)], atol=1e-6)
            elif share < min_visibility * (1 - 1e-4) or not len(polygon):
                assert label not in rows
    assert len(clip_turned(corners[:0], np.arange(0), 0.2)[1]) == 0


@pytest.mark.parametrize("fill", [GREY, (0, 0, 0), (255, 7, 99)])
@pytest.mark.parametrize(
    "op",
    [
        lambda fill: RandomScale(scale_range=(0.5, 0.5), fill=fill),
        lambda fill: Translation(translate=0.5, fill=fill),
        lambda fill: Rotate(degrees=90.0, fill=fill),
    ],
    ids=["scale", "translation", "rotation"],
)
def test_places_left_have_the_fill_colour(op: object, fill: tuple[int, int, int]) -> None:
    white = Sample(np.full((40, 60, 3), 200, np.uint8), np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
    image = op(fill).apply(white, np.random.default_rng(3)).image.reshape(-1, 3)
    filled, pictured = (image == fill).all(axis=1), (image == 200).all(axis=1)
    assert filled.mean() > 0.1
    assert pictured.mean() > 0.1
    assert (filled | pictured).mean() > 0.9  # the rest is blended where a turned border runs


def test_shift_by_the_whole_picture_leaves_the_fill_alone() -> None:
    sample = coloured_rectangles([(0, 0, 64, 64)], (64, 64))
    op = Translation(translate=1.0, min_visibility=0.0)
    for seed in range(200):
        out = op.apply(sample, np.random.default_rng(seed))
        assert len(out.labels) == (out.image != GREY).any()


# --- horizontal flip ------------------------------------------------------------------------------


def black(box: tuple[float, ...], label: int = 0) -> Sample:
    return Sample(np.zeros((8, 8, 3), np.uint8), np.array([box], np.float32), np.array([label]))


@pytest.mark.parametrize(
    ("box", "mirrored"),
    [
        ((0.0, 0.25, 0.25, 0.5), (0.75, 0.25, 1.0, 0.5)),
        ((0.0, 0.0, 1.0, 1.0), (0.0, 0.0, 1.0, 1.0)),
        ((0.5, 0.125, 0.75, 1.0), (0.25, 0.125, 0.5, 1.0)),
        ((0.25, 0.5, 0.25, 0.5), (0.75, 0.5, 0.75, 0.5)),
    ],
)
def test_flip_mirrors_corners(box: tuple[float, ...], mirrored: tuple[float, ...]) -> None:
    out = HorizontalFlip(prob=1.0).apply(black(box), np.random.default_rng(0))
    np.testing.assert_array_equal(out.boxes, [mirrored])


def test_swapped_classes_swap_back() -> None:
    flip = HorizontalFlip(prob=1.0, class_swap_map=((10, 20), (20, 10))).bind([10, 20, 30])
    sample, rng = noise((48, 96)), np.random.default_rng(0)
    once = flip.apply(sample, rng)
    assert not np.array_equal(once.labels, sample.labels)
    np.testing.assert_array_equal(flip.apply(once, rng).labels, sample.labels)


@pytest.mark.parametrize(
    ("swaps", "classes", "labels", "expected"),
    [
        pytest.param({}, [0, 1], [0, 1], [0, 1], id="none"),
        pytest.param({1: 2, 2: 1}, [0, 1, 2], [0, 1, 2, 1], [0, 2, 1, 2], id="both directions"),
        pytest.param({1: 2}, [0, 1, 2], [0, 1, 2], [0, 2, 2], id="as listed"),
        pytest.param({5: 9, 9: 5}, [9, 0, 5], [0, 1, 2], [2, 1, 0], id="original ids"),
        pytest.param({1: 2, 2: 3, 3: 1}, [1, 2, 3], [0, 1, 2], [1, 2, 0], id="no chain"),
        pytest.param({1: 2, 2: 1}, [1, 2], [IGNORED, 0, IGNORED], [IGNORED, 1, IGNORED], id="ignored stay"),
        pytest.param({0: 0}, [0], [IGNORED, 0], [IGNORED, 0], id="one class"),
        pytest.param({1: 2, 2: 1}, [1, 2], [], [], id="no truths"),
    ],
)
def test_flip_swaps_classes(
    swaps: dict[int, int], classes: list[int], labels: list[int], expected: list[int], tmp_path: Path
) -> None:
    path = write_yaml(tmp_path, f"data_augment: {{HorizontalFlip: {{prob: 1, class_swap_map: {swaps}}}}}")
    sample = Sample(
        np.zeros((4, 4, 3), np.uint8), np.zeros((len(labels), 4), np.float32), np.array(labels, dtype=np.int64)
    )
    out = load_pipeline(path, classes)(sample, np.random.default_rng(0))
    assert out.labels.tolist() == expected
    assert sample.labels.tolist() == labels


@pytest.mark.parametrize(
    ("swaps", "classes", "warned"),
    [({1: 7, 7: 1}, [0, 1], True), ({7: 1}, [0, 1], False), ({8: 9}, [0, 1], False)],
)
def test_swap_to_an_untrained_class_is_left_with_one_warning(
    swaps: dict[int, int], classes: list[int], warned: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_yaml(tmp_path, f"data_augment: {{HorizontalFlip: {{prob: 1, class_swap_map: {swaps}}}}}")
    with caplog.at_level(logging.WARNING, logger="uhd"):
        pipeline = load_pipeline(path, classes)
        out = [pipeline(black((0, 0, 1, 1), label=1), np.random.default_rng(0)) for _ in range(3)]
    assert all(sample.labels.tolist() == [1] for sample in out)
    assert [("class_swap_map" in r.message and "1: 7" in r.message) for r in caplog.records] == [True] * warned
