"""Colour ops of the augmentation: against torchvision, by hand, and how they draw."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest
import torch
from torchvision.transforms import functional as tv

from uhd.augment.photometric import CLAHE, Distortion, RandomHSV, RandomPhotometricDistort, distort, scale_hsv


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

    monkeypatch.setattr("uhd.augment.photometric.scale_hsv", record)
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
