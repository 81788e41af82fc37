"""Augmentation: what each op does to pictures and truths, and what the YAML file may say."""

from __future__ import annotations

import colorsys
import logging
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torchvision.transforms import functional as tv

from uhd.augment import Pipeline, RemoveOutliers, Sample, load_pipeline
from uhd.augment.geometric import HorizontalFlip
from uhd.augment.photometric import CLAHE, Distortion, RandomHSV, RandomPhotometricDistort, distort, scale_hsv
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


def write_yaml(folder: Path, text: str) -> Path:
    path = folder / "aug.yaml"
    path.write_text(text)
    return path


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


# Colours


def photograph() -> np.ndarray:
    rng = np.random.default_rng(3)
    return cv2.resize(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8), (64, 64), interpolation=cv2.INTER_CUBIC)


@pytest.mark.parametrize(
    ("distortion", "reference", "tolerance"),
    [
        pytest.param(Distortion(), lambda x: x, 0, id="nothing"),
        *(
            pytest.param(Distortion(brightness=f), lambda x, f=f: tv.adjust_brightness(x, f), 1, id=f"brightness {f}")
            for f in (0.875, 1.125)
        ),
        *(
            pytest.param(Distortion(contrast=f), lambda x, f=f: tv.adjust_contrast(x, f), 1, id=f"contrast {f}")
            for f in (0.5, 1.5)
        ),
        *(
            pytest.param(Distortion(saturation=f), lambda x, f=f: tv.adjust_saturation(x, f), 1, id=f"saturation {f}")
            for f in (0.5, 1.5)
        ),
        *(  # OpenCV's 8-bit hue has steps of 2 degrees, one worth up to 255 / 30 levels.
            pytest.param(Distortion(hue=f), lambda x, f=f: tv.adjust_hue(x, f), 9, id=f"hue {f}") for f in (-0.05, 0.05)
        ),
        pytest.param(Distortion(channels=[2, 0, 1]), lambda x: x[[2, 0, 1]], 0, id="channels"),
        pytest.param(
            Distortion(contrast=1.5, saturation=0.5),
            lambda x: tv.adjust_saturation(tv.adjust_contrast(x, 1.5), 0.5),
            2,
            id="contrast first",
        ),
        pytest.param(
            Distortion(contrast=1.5, saturation=0.5, contrast_first=False),
            lambda x: tv.adjust_contrast(tv.adjust_saturation(x, 0.5), 1.5),
            3,
            id="contrast last",
        ),
    ],
)
def test_distortion_equals_torchvision(
    distortion: Distortion, reference: Callable[[torch.Tensor], torch.Tensor], tolerance: int
) -> None:
    image = photograph()
    expected = reference(torch.from_numpy(image).permute(2, 0, 1)).permute(1, 2, 0).numpy()
    difference = np.abs(distort(image, distortion).astype(int) - expected)
    assert difference.max() <= tolerance
    assert difference.mean() <= max(tolerance / 4, 0.6 * (tolerance > 0))


def test_random_distortion_does_each_part_half_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Distortion] = []

    def record(image: np.ndarray, distortion: Distortion) -> np.ndarray:
        drawn.append(distortion)
        return image

    monkeypatch.setattr("uhd.augment.photometric.distort", record)
    op, rng = RandomPhotometricDistort(prob=1.0), np.random.default_rng(0)
    for _ in range(2000):
        op.apply(one_box((0, 0, 1, 1)), rng)
    ranges = {"brightness": (0.875, 1.125, 1), "contrast": (0.5, 1.5, 1), "saturation": (0.5, 1.5, 1)}
    ranges["hue"] = (-0.05, 0.05, 0)
    for name, (low, high, off) in ranges.items():
        values = np.array([getattr(d, name) for d in drawn])
        on = values[values != off]
        assert 0.46 < on.size / 2000 < 0.54
        assert low <= on.min() < low + 0.02 * (high - low)
        assert high - 0.02 * (high - low) < on.max() <= high
    assert 0.46 < np.mean([d.contrast_first for d in drawn]) < 0.54
    assert 0.46 < np.mean([d.channels is not None for d in drawn]) < 0.54
    assert len({tuple(d.channels) for d in drawn if d.channels}) == 6


@pytest.mark.parametrize(
    ("rgb", "factors", "expected"),
    [
        pytest.param((200, 40, 120), (1, 1, 1), (200, 40, 120), id="nothing"),
        pytest.param((200, 40, 120), (1, 0, 1), (200, 200, 200), id="no saturation leaves the value"),
        pytest.param((200, 40, 120), (1, 1, 0.5), (100, 20, 60), id="half the value"),
        pytest.param((200, 40, 120), (1, 1, 0), (0, 0, 0), id="no value"),
        pytest.param((200, 0, 0), (1, 1, 2), (255, 0, 0), id="value stops at 255"),
        pytest.param((200, 20, 20), (1, 2, 1), (200, 0, 0), id="saturation stops at 255"),
        pytest.param((200, 100, 100), (1, 0.5, 1), (200, 150, 150), id="half the saturation"),
        pytest.param((255, 0, 0), (1.5, 1, 1), (255, 0, 0), id="hue 0 stays"),
        pytest.param((0, 255, 0), (1.5, 1, 1), (0, 255, 255), id="green 120 to cyan 180 degrees"),
        pytest.param((0, 0, 255), (1.5, 1, 1), (255, 0, 0), id="blue 240 to red 360 degrees"),
        pytest.param((0, 0, 255), (2, 1, 1), (0, 255, 0), id="blue 240 to green 480 degrees"),
        pytest.param((90, 90, 90), (1.9, 1.9, 1), (90, 90, 90), id="grey has no hue"),
    ],
)
def test_hsv_scaling_by_hand(rgb: tuple[int, ...], factors: tuple[float, ...], expected: tuple[int, ...]) -> None:
    out = scale_hsv(np.full((3, 5, 3), rgb, np.uint8), np.array(factors, float))
    np.testing.assert_allclose(out.astype(int), np.broadcast_to(expected, (3, 5, 3)), atol=2)


@pytest.mark.parametrize("gains", [(0.0, 0.0, 0.0), (0.015, 0.7, 0.4), (1.0, 1.0, 1.0)])
def test_random_hsv_factors_span_the_gains(gains: tuple[float, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[np.ndarray] = []

    def record(image: np.ndarray, factors: np.ndarray) -> np.ndarray:
        drawn.append(factors)
        return image

    monkeypatch.setattr("uhd.augment.photometric.scale_hsv", record)
    op, rng = RandomHSV(1.0, *gains), np.random.default_rng(0)
    for _ in range(1000):
        op.apply(one_box((0, 0, 1, 1)), rng)
    np.testing.assert_allclose(np.min(drawn, axis=0), 1 - np.array(gains), atol=0.02)
    np.testing.assert_allclose(np.max(drawn, axis=0), 1 + np.array(gains), atol=0.02)
    assert np.all(np.abs(np.array(drawn) - 1) <= gains)


def test_clahe_raises_local_contrast_of_lightness_only() -> None:
    ramp = np.linspace(100, 130, 64).astype(np.uint8)
    image = np.repeat(np.tile(ramp, (64, 1))[..., None], 3, axis=2)
    rng = np.random.default_rng(0)
    weak, strong = (CLAHE(1.0, clip, (2, 2)).change_colors(image, rng) for clip in (1.5, 8.0))
    assert image.std() < weak.std() < strong.std()
    assert np.ptp(strong.astype(int), axis=2).max() <= 2


# The file


@pytest.mark.parametrize("name", ["aug.yaml", "aug_uhd.yaml"])
def test_default_files_say_what_is_documented(name: str) -> None:
    pipeline = load_pipeline(ROOT / "uhd" / name, [0])
    assert pipeline.ops == (
        RandomPhotometricDistort(prob=0.5),
        RandomHSV(prob=0.75, hue_gain=0.015, saturation_gain=0.7, value_gain=0.4),
        HorizontalFlip(prob=0.5),
        CLAHE(prob=0.01, clip_limit=4.0, tile_grid_size=(8, 8)),
        RemoveOutliers(prob=1.0, min_area=(3 / 64) ** 2),
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("data_augment: {}", (), id="empty"),
        pytest.param("data_augment: {HorizontalFlip: {}}", (), id="off by default"),
        pytest.param("data_augment: {RandomHSV: {prob: 0, hue_gain: 0.1}}", (), id="off"),
        pytest.param("data_augment: {HorizontalFlip: 0.25}", (HorizontalFlip(prob=0.25),), id="bare number"),
        pytest.param("data_augment: {HorizontalFlip: 1}", (HorizontalFlip(prob=1.0),), id="whole number"),
        pytest.param("data_augment: {RemoveOutliers: 0.01}", (RemoveOutliers(min_area=0.01),), id="bare area"),
        pytest.param("data_augment: {CLAHE: {prob: 1}}", (CLAHE(1.0, 2.0, (8, 8)),), id="documented defaults"),
        pytest.param("data_augment: {RandomPhotometricDistort: {}}", (RandomPhotometricDistort(0.5),), id="on"),
        pytest.param(
            "other: 3\ndata_augment: {RemoveOutliers: 0.01, CLAHE: 1, HorizontalFlip: 1}",
            (RemoveOutliers(min_area=0.01), CLAHE(prob=1.0), HorizontalFlip(prob=1.0)),
            id="file order",
        ),
    ],
)
def test_file_becomes_ops(text: str, expected: tuple[Op, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING, logger="uhd"):
        assert load_pipeline(write_yaml(tmp_path, text), [0]).ops == expected
    assert not caplog.records


@pytest.mark.parametrize(
    ("text", "ops", "named"),
    [
        ("{HorizontalFlop: 0.5, CLAHE: 1}", (CLAHE(prob=1.0),), ["HorizontalFlop", "HorizontalFlip"]),
        ("{clahe: 1}", (), ["clahe", "CLAHE"]),
        ("{Mosaik: 1}", (), ["Mosaik", "Mosaic"]),
        ("{7: 1}", (), ["7", "nearest"]),
        ("{RandomHSV: {prob: 1, hue_gian: 0.1}}", (RandomHSV(prob=1.0),), ["RandomHSV.hue_gian", "hue_gain"]),
        ("{RemoveOutliers: {area: 0.1}}", (RemoveOutliers(),), ["RemoveOutliers.area", "min_area"]),
        ("{HorizontalFlip: {prob: 1, mirrored_class: 0}}", (HorizontalFlip(prob=1.0),), ["mirrored_class"]),
    ],
)
def test_unknown_names_are_skipped_with_one_warning(
    text: str, ops: tuple[Op, ...], named: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_yaml(tmp_path, f"data_augment: {text}")
    with caplog.at_level(logging.WARNING, logger="uhd"):
        assert load_pipeline(path, [0]).ops == ops
    (record,) = caplog.records
    assert all(part in record.message for part in ["--aug-config", str(path), *named])


@pytest.mark.parametrize(
    ("text", "named"),
    [
        pytest.param("", ["data_augment"], id="empty file"),
        pytest.param("[1, 2]", ["data_augment"], id="a list"),
        pytest.param("augment: {}", ["data_augment"], id="no data_augment"),
        pytest.param("data_augment:", ["data_augment", "mapping"], id="nothing under it"),
        pytest.param("data_augment: [HorizontalFlip]", ["data_augment", "mapping"], id="a list under it"),
        pytest.param("data_augment: {a: [", ["YAML", "line 1"], id="bad YAML"),
        pytest.param("data_augment: !!python/object:os.system {}", ["YAML"], id="code in YAML"),
        pytest.param("data_augment: {Mosaic: 0.5}", ["Mosaic", "not available yet"], id="not available"),
        pytest.param("data_augment: {Rotate: {prob: 1}}", ["Rotate", "not available yet"], id="not available 2"),
        pytest.param("data_augment: {HorizontalFlip: 1.5}", ["HorizontalFlip.prob 1.5", "0 to 1"], id="prob > 1"),
        pytest.param("data_augment: {HorizontalFlip: {prob: -0.1}}", ["HorizontalFlip.prob -0.1"], id="prob < 0"),
        pytest.param("data_augment: {HorizontalFlip: .nan}", ["HorizontalFlip.prob nan"], id="nan"),
        pytest.param("data_augment: {HorizontalFlip: .inf}", ["HorizontalFlip.prob inf"], id="inf"),
        pytest.param("data_augment: {HorizontalFlip: yes}", ["HorizontalFlip.prob True", "number"], id="bool"),
        pytest.param("data_augment: {HorizontalFlip: }", ["HorizontalFlip.prob None", "number"], id="nothing"),
        pytest.param("data_augment: {HorizontalFlip: often}", ["HorizontalFlip.prob 'often'"], id="text"),
        pytest.param("data_augment: {HorizontalFlip: [0.5]}", ["HorizontalFlip.prob [0.5]"], id="list for number"),
        pytest.param("data_augment: {RandomHSV: {hue_gain: 2}}", ["RandomHSV.hue_gain 2"], id="gain > 1"),
        pytest.param("data_augment: {RemoveOutliers: 9}", ["RemoveOutliers.min_area 9", "0 to 1"], id="pixels"),
        pytest.param("data_augment: {CLAHE: {clip_limit: -1}}", ["CLAHE.clip_limit -1"], id="clip limit"),
        pytest.param("data_augment: {CLAHE: {tile_grid_size: 8}}", ["CLAHE.tile_grid_size 8", "two"], id="grid"),
        pytest.param("data_augment: {CLAHE: {tile_grid_size: [8]}}", ["CLAHE.tile_grid_size [8]"], id="half a grid"),
        pytest.param("data_augment: {CLAHE: {tile_grid_size: [0, 8]}}", ["tile_grid_size [0, 8]"], id="no tiles"),
        pytest.param("data_augment: {CLAHE: {tile_grid_size: [2.5, 8]}}", ["tile_grid_size"], id="part of a tile"),
        pytest.param("data_augment: {CLAHE: {tile_grid_size: [true, 8]}}", ["tile_grid_size"], id="bool tile"),
        *(
            pytest.param(
                f"data_augment: {{HorizontalFlip: {{class_swap_map: {value}}}}}",
                ["HorizontalFlip.class_swap_map", "class ids"],
                id=f"swap map {value}",
            )
            for value in ("3", "[1, 2]", "{a: 1}", "{1: b}", "{1: -1}", "{1: 2.0}", "{1: true}", "")
        ),
    ],
)
def test_mistakes_in_the_file_are_named_in_one_line(text: str, named: list[str], tmp_path: Path) -> None:
    path = write_yaml(tmp_path, text)
    with pytest.raises(ValueError, match=r"^--aug-config") as caught:
        load_pipeline(path, [0])
    message = str(caught.value)
    assert "\n" not in message
    assert all(part in message for part in [str(path), *named])


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--aug-config .*nowhere\.yaml: cannot be read"):
        load_pipeline(tmp_path / "nowhere.yaml", [0])


def test_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--aug-config .*cannot be read"):
        load_pipeline(tmp_path, [0])


def test_binary_file_is_no_yaml(tmp_path: Path) -> None:
    path = tmp_path / "picture.jpg"
    path.write_bytes(b"\xff\xd8\xff\xe0\x00\x10JFIF")
    with pytest.raises(ValueError, match=r"--aug-config .*picture\.jpg: expected YAML"):
        load_pipeline(path, [0])


def test_albumentations_is_imported_only_for_ops_that_need_it(tmp_path: Path) -> None:
    path = write_yaml(tmp_path, "data_augment: {HorizontalFlip: 1, RandomHSV: 1, RemoveOutliers: 0.1, CLAHE: 0}")
    code = (
        "import sys; from uhd.augment import load_pipeline; "
        f"load_pipeline({str(path)!r}, [0]); "
        "print([name for name in ('albumentations', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
