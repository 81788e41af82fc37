"""Augmentation: what holds for every op, and what the geometric ones do to truths."""

from __future__ import annotations

import colorsys
import logging
import pickle
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers import write_yaml

from uhd.augment import Pipeline, RemoveOutliers, Sample, load_pipeline
from uhd.augment.geometric import HorizontalFlip
from uhd.augment.photometric import CLAHE, RandomHSV, RandomPhotometricDistort
from uhd.augment.pipeline import Op
from uhd.types import IGNORED

ROOT = Path(__file__).resolve().parents[1]

MakeOp = Callable[[float], Op]
OPS: dict[str, MakeOp] = {
    "distort": lambda prob: RandomPhotometricDistort(prob=prob),
    "hsv": lambda prob: RandomHSV(prob=prob, hue_gain=0.015, saturation_gain=0.7, value_gain=0.4),
    "flip": lambda prob: HorizontalFlip(prob=prob),
    "clahe": lambda prob: CLAHE(prob=prob, clip_limit=4.0),
    "outliers": lambda prob: RemoveOutliers(prob=prob, min_area=9 / 4096),
}
SIZES = [(64, 64), (48, 96), (1, 1), (7, 130), (33, 2)]
every_op = pytest.mark.parametrize("make", OPS.values(), ids=OPS.keys())


def all_ops(prob: float = 1.0) -> Pipeline:
    return Pipeline([make(prob) for make in OPS.values()])


def random_sample(count: int, size: tuple[int, int] = (64, 64), seed: int = 0) -> Sample:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    corners = np.sort(rng.random((count, 2, 2), dtype=np.float32), axis=1)
    return Sample(image, corners.reshape(-1, 4), rng.integers(0, 3, count))


def one_box(box: tuple[float, ...], label: int = 0, size: tuple[int, int] = (8, 8)) -> Sample:
    return Sample(np.zeros((*size, 3), np.uint8), np.array([box], np.float32), np.array([label]))


def coloured_rectangles(rects: list[tuple[int, int, int, int]], size: tuple[int, int]) -> Sample:
    """Rectangles (x1, y1, x2, y2 in pixels) of one pure hue each on grey; the label is the rectangle's number."""
    image = np.full((*size, 3), 60, np.uint8)
    for i, (x1, y1, x2, y2) in enumerate(rects):
        image[y1:y2, x1:x2] = np.rint(np.array(colorsys.hsv_to_rgb(i / len(rects), 1, 1)) * 200)
    scale = np.array([size[1], size[0]] * 2)
    return Sample(image, (np.array(rects).reshape(-1, 4) / scale).astype(np.float32), np.arange(len(rects)))


def coloured_regions(image: np.ndarray) -> list[tuple[int, ...]]:
    """Corners of the connected regions that are not grey, sorted."""
    mask = (np.ptp(image, axis=2) > 4).astype(np.uint8)
    stats = cv2.connectedComponentsWithStats(mask)[2][1:]
    return sorted((x, y, x + w, y + h) for x, y, w, h, _ in stats.tolist())


def assert_same(a: Sample, b: Sample) -> None:
    np.testing.assert_array_equal(a.image, b.image)
    np.testing.assert_array_equal(a.boxes, b.boxes)
    np.testing.assert_array_equal(a.labels, b.labels)


# What holds for every op


@every_op
def test_probability_0_changes_nothing_and_draws_nothing(make: MakeOp) -> None:
    sample, rng = random_sample(4), np.random.default_rng(1)
    assert_same(Pipeline([make(0.0)])(sample, rng), random_sample(4))
    assert rng.random() == np.random.default_rng(1).random()


def test_probability_1_always_applies() -> None:
    pipeline, rng = Pipeline([HorizontalFlip(prob=1.0)]), np.random.default_rng(0)
    sample = one_box((0.0, 0.0, 0.25, 1.0))
    assert all(pipeline(sample, rng).boxes[0, 0] == 0.75 for _ in range(1000))


@every_op
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", [0, 1, 300])
def test_types_shapes_and_ranges_hold(make: MakeOp, size: tuple[int, int], count: int) -> None:
    sample = random_sample(count, size)
    for seed in range(5):
        out = make(1.0).apply(sample, np.random.default_rng(seed))
        assert out.image.dtype == np.uint8
        assert out.image.shape == (*size, 3)
        assert out.boxes.dtype == np.float32
        assert out.boxes.shape == (count, 4)
        assert out.labels.dtype == np.int64
        assert out.labels.shape == (count,)
        assert np.all((out.boxes >= 0) & (out.boxes <= 1))
        assert np.all(out.boxes[:, :2] <= out.boxes[:, 2:])


@every_op
def test_read_only_input_stays_as_it_is(make: MakeOp, tmp_path: Path) -> None:
    before = random_sample(20)
    np.save(tmp_path / "images.npy", before.image[None])
    given = Sample(np.load(tmp_path / "images.npy", mmap_mode="r")[0], before.boxes.copy(), before.labels.copy())
    given.boxes.setflags(write=False)
    given.labels.setflags(write=False)
    for seed in range(10):
        make(1.0).apply(given, np.random.default_rng(seed))
    assert_same(given, before)


def test_same_seed_gives_the_same_samples() -> None:
    pipeline, sample = all_ops(0.5), random_sample(5)
    runs = [[pipeline(sample, rng) for _ in range(20)] for rng in (np.random.default_rng(7), np.random.default_rng(7))]
    for a, b in zip(*runs, strict=True):
        assert_same(a, b)


def test_other_seeds_give_other_samples() -> None:
    outputs = {all_ops()(random_sample(1), np.random.default_rng(seed)).image.tobytes() for seed in range(20)}
    assert len(outputs) == 20


def test_global_random_state_has_no_part() -> None:
    outputs = []
    for seed in (1, 2):
        np.random.seed(seed)
        torch.manual_seed(seed)
        outputs.append(all_ops()(random_sample(2), np.random.default_rng(0)))
    assert_same(*outputs)


def test_pipeline_survives_pickling_to_a_worker() -> None:
    pipeline = Pipeline([*all_ops().ops, HorizontalFlip(prob=1.0, class_swap_map=((5, 6), (6, 5))).bind([5, 6, 7])])
    copy = pickle.loads(pickle.dumps(pipeline))
    assert_same(copy(random_sample(5), np.random.default_rng(0)), pipeline(random_sample(5), np.random.default_rng(0)))


# Pictures and truths stay together

RECTANGLES = [
    pytest.param([], (64, 64), id="none"),
    pytest.param([(20, 12, 40, 50)], (64, 64), id="one"),
    pytest.param([(0, 0, 10, 10), (54, 0, 64, 9), (0, 50, 12, 64), (50, 54, 64, 64)], (64, 64), id="borders"),
    pytest.param([(3, 3, 4, 4), (30, 31, 31, 32), (63, 63, 64, 64), (0, 40, 1, 41)], (64, 64), id="one-pixel"),
    pytest.param([(2, 3, 30, 40), (60, 5, 61, 47), (90, 0, 96, 48)], (48, 96), id="wide"),
    pytest.param([(0, 0, 64, 64)], (64, 64), id="whole-picture"),
    pytest.param(
        [(4 * (i % 20), 4 * (i // 20), 4 * (i % 20) + 2, 4 * (i // 20) + 3) for i in range(300)], (64, 80), id="300"
    ),
]


@pytest.mark.parametrize("name", [*OPS, "all"])
@pytest.mark.parametrize(("rects", "size"), RECTANGLES)
def test_boxes_enclose_their_own_rectangles(name: str, rects: list[tuple[int, int, int, int]], size: tuple[int, int]):
    sample = coloured_rectangles(rects, size)
    pipeline = all_ops() if name == "all" else Pipeline([OPS[name](1.0)])
    height, width = size
    flipped = name in ("flip", "all")
    for seed in range(8):
        out = pipeline(sample, np.random.default_rng(seed))
        in_pixels = out.boxes * (width, height, width, height)
        np.testing.assert_allclose(
            np.array(sorted(in_pixels.round().astype(int).tolist())).reshape(-1, 4),
            np.array(coloured_regions(out.image)).reshape(-1, 4),
            atol=1,
        )
        expected = [(width - x2, y1, width - x1, y2) if flipped else (x1, y1, x2, y2) for x1, y1, x2, y2 in rects]
        np.testing.assert_allclose(in_pixels, np.array(expected).reshape(-1, 4), atol=1e-3)


def test_flipped_box_holds_the_colour_it_held_before() -> None:
    rects = [(0, 0, 5, 5), (10, 3, 20, 40), (40, 20, 64, 21), (30, 60, 31, 61)]
    sample = coloured_rectangles(rects, (64, 64))
    out = HorizontalFlip(prob=1.0).apply(sample, np.random.default_rng(0))
    for before, after in zip(sample.boxes, out.boxes, strict=True):
        x, y = (np.array([before[0], before[1]]) * 64).round().astype(int)
        x1, y1, x2, y2 = (after * 64).round().astype(int)
        assert np.all(out.image[y1:y2, x1:x2] == sample.image[y, x])


# Horizontal flip


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
    out = HorizontalFlip(prob=1.0).apply(one_box(box), np.random.default_rng(0))
    np.testing.assert_array_equal(out.boxes, [mirrored])


@pytest.mark.parametrize("swaps", [(), ((10, 20), (20, 10))])
def test_flip_twice_changes_nothing(swaps: tuple[tuple[int, int], ...]) -> None:
    flip = HorizontalFlip(prob=1.0, class_swap_map=swaps).bind([10, 20, 30])
    sample, rng = random_sample(300, (48, 96)), np.random.default_rng(0)
    out = flip.apply(flip.apply(sample, rng), rng)
    np.testing.assert_array_equal(out.image, sample.image)
    np.testing.assert_array_equal(out.labels, sample.labels)
    np.testing.assert_allclose(out.boxes, sample.boxes, atol=1e-6)


def test_flip_is_applied_to_its_share_of_the_samples() -> None:
    pipeline, rng = Pipeline([HorizontalFlip(prob=0.5)]), np.random.default_rng(0)
    sample = one_box((0.0, 0.0, 0.25, 1.0))
    flips = sum(pipeline(sample, rng).boxes[0, 0] == 0.75 for _ in range(2000))
    assert 0.46 < flips / 2000 < 0.54  # 3.5 standard deviations


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
    [({1: 7, 7: 1}, [0, 1], True), ({7: 1}, [0, 1], False), ({8: 9}, [0, 1], False), ({0: 1}, [0, 1], False)],
)
def test_swap_to_an_untrained_class_is_left_with_one_warning(
    swaps: dict[int, int], classes: list[int], warned: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_yaml(tmp_path, f"data_augment: {{HorizontalFlip: {{prob: 1, class_swap_map: {swaps}}}}}")
    with caplog.at_level(logging.WARNING, logger="uhd"):
        pipeline = load_pipeline(path, classes)
        out = [pipeline(one_box((0, 0, 1, 1), label=1), np.random.default_rng(0)) for _ in range(3)]
    assert all(sample.labels.tolist() == [1] for sample in out)
    assert [("class_swap_map" in r.message and "1: 7" in r.message) for r in caplog.records] == [True] * warned


# Removal of small truths


@pytest.mark.parametrize(
    ("box", "label", "expected"),
    [
        pytest.param((0.0, 0.0, 3 / 64, 3 / 64), 0, 0, id="exactly the minimum"),
        pytest.param((0.3, 0.7, 0.3 + 3 / 64, 0.7 + 3 / 64), 1, 1, id="the minimum, rounded corners"),
        pytest.param((0.0, 0.0, 3 / 64, 2.9 / 64), 0, IGNORED, id="just below"),
        pytest.param((0.5, 0.5, 0.5 + 1 / 64, 0.5 + 9 / 64), 2, 2, id="thin, same area"),
        pytest.param((0.5, 0.5, 0.5 + 1 / 64, 0.5 + 1 / 64), 0, IGNORED, id="one pixel"),
        pytest.param((0.5, 0.5, 0.5, 1.0), 0, IGNORED, id="no area"),
        pytest.param((0.0, 0.0, 1.0, 1.0), 0, 0, id="whole picture"),
        pytest.param((0.0, 0.0, 1.0, 1.0), IGNORED, IGNORED, id="taken away before"),
    ],
)
def test_small_truths_become_ignored_in_place(box: tuple[float, ...], label: int, expected: int) -> None:
    sample = one_box(box, label)
    out = RemoveOutliers(min_area=9 / 4096).apply(sample, np.random.default_rng(0))
    assert out.labels.tolist() == [expected]
    np.testing.assert_array_equal(out.boxes, sample.boxes)
    np.testing.assert_array_equal(out.image, sample.image)
