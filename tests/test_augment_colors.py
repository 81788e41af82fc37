"""Colour ops of the augmentation, against torchvision, by hand, and how they draw; what every photometric op keeps."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torchvision.transforms import functional as tv

from uhd.augment import photometric
from uhd.augment.photometric import (
    CLAHE,
    Distortion,
    RandomBrightness,
    RandomContrast,
    RandomHSV,
    RandomPhotometricDistort,
    RandomSaturation,
    ToGray,
    distort,
    scale_hsv,
)
from uhd.augment.photometric.base import PhotometricOp
from uhd.augment.pipeline import Op, checks

EVERY = [op for op in map(vars(photometric).get, photometric.__all__) if isinstance(op, type) and issubclass(op, Op)]


def photograph() -> np.ndarray:
    rng = np.random.default_rng(3)
    return cv2.resize(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8), (64, 64), interpolation=cv2.INTER_CUBIC)


def by_torchvision(change: Callable[[torch.Tensor], torch.Tensor], image: np.ndarray) -> np.ndarray:
    """A change of a [3,H,W] picture of floats, which torchvision does not round, in grey levels [H,W,3]."""
    return 255 * change(torch.from_numpy(image).permute(2, 0, 1) / 255).permute(1, 2, 0).numpy()


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
    expected = by_torchvision(reference, image)
    difference = np.abs(distort(image, distortion).astype(int) - expected)
    assert difference.max() <= tolerance
    assert difference.mean() <= max(tolerance / 4, 0.3)


FACTORS = (0.0, 0.3, 0.8, 1.0, 1.2, 2.0, 10.0)


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize(
    ("op_type", "reference"),
    [
        (RandomBrightness, tv.adjust_brightness),
        (RandomContrast, tv.adjust_contrast),
        (RandomSaturation, tv.adjust_saturation),
    ],
)
def test_factors_equal_torchvision(op_type: Any, reference: Callable[..., torch.Tensor], factor: float) -> None:
    image = photograph()
    out = op_type(1.0, (factor, factor)).change_colors(image, np.random.default_rng(0))
    expected = by_torchvision(lambda x: reference(x, factor), image)
    assert np.abs(out - expected).max() <= 0.75 + 0.02 * factor


@pytest.mark.parametrize(
    ("rgb", "op", "expected"),
    [
        pytest.param((100, 50, 200), RandomBrightness(1.0, (0.5, 0.5)), (50, 25, 100), id="half the light"),
        pytest.param((100, 50, 200), RandomBrightness(1.0, (2.0, 2.0)), (200, 100, 255), id="light stops at 255"),
        # Its grey is 0.299 * 100 + 0.587 * 50 + 0.114 * 200 = 82.
        pytest.param((100, 50, 200), RandomSaturation(1.0, (0.5, 0.5)), (91, 66, 141), id="half the colour"),
        pytest.param((100, 50, 200), RandomSaturation(1.0, (0.0, 0.0)), (82, 82, 82), id="no colour"),
        pytest.param((100, 50, 200), ToGray(1.0), (82, 82, 82), id="grey"),
        pytest.param((100, 50, 200), RandomContrast(1.0, (0.0, 0.0)), (82, 82, 82), id="no contrast"),
        pytest.param((90, 90, 90), RandomContrast(1.0, (3.0, 3.0)), (90, 90, 90), id="no contrast to enlarge"),
        pytest.param((90, 90, 90), RandomSaturation(1.0, (3.0, 3.0)), (90, 90, 90), id="no colour to enlarge"),
    ],
)
def test_colours_by_hand(rgb: tuple[int, ...], op: PhotometricOp, expected: tuple[int, ...]) -> None:
    out = op.change_colors(np.full((3, 5, 3), rgb, np.uint8), np.random.default_rng(0))
    np.testing.assert_allclose(out.astype(int), np.broadcast_to(expected, (3, 5, 3)), atol=1)


def test_factor_spans_its_range() -> None:
    op, image, rng = RandomBrightness(1.0, (0.5, 2.0)), np.full((1, 1, 3), 100, np.uint8), np.random.default_rng(0)
    levels = np.array([op.change_colors(image, rng)[0, 0, 0] for _ in range(1000)])
    assert (levels.min(), levels.max()) == (50, 200)
    assert abs(levels.mean() - 125) < 4


def test_gray_equals_torchvision() -> None:
    image = photograph()
    out = ToGray(1.0).change_colors(image, np.random.default_rng(0))
    expected = by_torchvision(lambda x: tv.rgb_to_grayscale(x, 3), image)
    assert np.abs(out - expected).max() <= 0.6
    assert np.ptp(out, axis=2).max() == 0


def test_random_distortion_does_each_part_half_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Distortion] = []

    def record(image: np.ndarray, distortion: Distortion) -> np.ndarray:
        drawn.append(distortion)
        return image

    monkeypatch.setattr("uhd.augment.photometric.color.distort", record)
    op, rng = RandomPhotometricDistort(prob=1.0), np.random.default_rng(0)
    for _ in range(2000):
        op.change_colors(np.zeros((8, 8, 3), np.uint8), rng)
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

    monkeypatch.setattr("uhd.augment.photometric.color.scale_hsv", record)
    op, rng = RandomHSV(1.0, *gains), np.random.default_rng(0)
    for _ in range(1000):
        op.change_colors(np.zeros((8, 8, 3), np.uint8), rng)
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


# What every photometric op keeps


@pytest.mark.parametrize("size", [(1, 1), (7, 130), (33, 2), (64, 64), (48, 96)], ids=str)
@pytest.mark.parametrize("op_type", EVERY)
def test_any_picture_comes_back_in_its_size_and_untouched(op_type: Any, size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    before = image.copy()
    image.setflags(write=False)
    op = op_type(prob=1.0)
    for seed in range(4):
        out, again = (op.change_colors(image, np.random.default_rng(seed)) for _ in range(2))
        assert (out.shape, out.dtype) == (image.shape, np.uint8)
        assert out.flags.c_contiguous
        np.testing.assert_array_equal(out, again)
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("op_type", EVERY)
def test_same_seed_gives_the_same_picture_in_another_process(op_type: Any) -> None:
    op, image = op_type(prob=1.0), photograph()
    expected = op.change_colors(image, np.random.default_rng(1))
    np.random.seed(1)
    cv2.setRNGSeed(1)
    copy = pickle.loads(pickle.dumps(op))
    np.testing.assert_array_equal(copy.change_colors(image, np.random.default_rng(1)), expected)


DEFAULTS: dict[str, dict[str, Any]] = {
    "RandomBrightness": {"factor_range": (0.8, 1.2)},
    "RandomContrast": {"factor_range": (0.8, 1.2)},
    "RandomSaturation": {"factor_range": (0.8, 1.2)},
    "RandomHSV": {"hue_gain": 0, "saturation_gain": 0, "value_gain": 0},
    "RandomPhotometricDistort": {"prob": 0.5},
    "CLAHE": {"clip_limit": 2, "tile_grid_size": (8, 8)},
    "ToGray": {},
    "Blur": {"blur_limit": (3, 7)},
    "MedianBlur": {"blur_limit": (3, 7)},
    "MotionBlur": {"blur_limit": (5, 15)},
    "GaussianBlur": {"blur_limit": (3, 7), "sigma_limit": (0.1, 2)},
    "GaussNoise": {"mean": 0, "var_limit": (10, 50)},
    "ImageCompression": {"quality_range": (40, 90)},
    "ISONoise": {"intensity": (0.05, 0.15), "color_shift": (0.01, 0.05)},
    "RandomRain": {
        "density": (0.002, 0.006),
        "drop_length": (15, 30),
        "drop_width_range": (1, 2),
        "slant_range": (-10, 10),
    },
    "RandomFog": {"fog_coef": (0.3, 0.6)},
    "RandomSunFlare": {"src_radius_range": (50, 150), "src_intensity": (0.6, 1)},
}


@pytest.mark.parametrize("op_type", EVERY)
def test_parameters_and_their_defaults(op_type: Any) -> None:
    op = op_type()
    assert {name: getattr(op, name) for name in checks(op_type)} == {"prob": 0, **DEFAULTS[op_type.__name__]}
    for name, check in checks(op_type).items():
        value = getattr(op, name)
        assert check(list(value) if isinstance(value, tuple) else value) == value


@pytest.mark.parametrize(
    ("name", "parameter", "value"),
    [
        ("RandomBrightness", "factor_range", [-0.1, 1]),
        ("RandomContrast", "factor_range", [1.2, 0.8]),
        ("RandomSaturation", "factor_range", 11),
        ("Blur", "blur_limit", [3, 256]),
        ("MedianBlur", "blur_limit", -1),
        ("MotionBlur", "blur_limit", [15, 5]),
        ("GaussianBlur", "blur_limit", "3"),
        ("GaussianBlur", "sigma_limit", [0, 51]),
        ("GaussNoise", "mean", 256),
        ("GaussNoise", "var_limit", [-1, 10]),
        ("ImageCompression", "quality_range", [0, 90]),
        ("ImageCompression", "quality_range", [40, 101]),
        ("ISONoise", "intensity", 1.1),
        ("ISONoise", "color_shift", [0, 2]),
        ("RandomRain", "density", 0.2),
        ("RandomRain", "drop_length", [1, 101]),
        ("RandomRain", "drop_width_range", [0, 11]),
        ("RandomRain", "slant_range", [-60, 0]),
        ("RandomFog", "fog_coef", [0, 1.1]),
        ("RandomSunFlare", "src_radius_range", [0, 2000]),
        ("RandomSunFlare", "src_intensity", 1.5),
    ],
)
def test_values_out_of_range_are_refused(name: str, parameter: str, value: object) -> None:
    with pytest.raises(ValueError, match="expected a "):
        checks(getattr(photometric, name))[parameter](value)
