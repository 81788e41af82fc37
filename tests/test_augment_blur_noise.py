"""Blur, noise and compression of the augmentation: against scipy and torchvision, and by hand."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import torch
from matplotlib.colors import rgb_to_hsv
from PIL import Image
from torchvision.transforms import functional as tv

from uhd.augment.photometric import (
    Blur,
    GaussianBlur,
    GaussNoise,
    ImageCompression,
    ISONoise,
    MedianBlur,
    MotionBlur,
)
from uhd.augment.photometric.base import PhotometricOp
from uhd.augment.photometric.blur import nearest_kernel


def photograph(side: int = 64) -> np.ndarray:
    rng = np.random.default_rng(3)
    return cv2.resize(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8), (side, side), interpolation=cv2.INTER_CUBIC)


def dot(level: int, side: int = 64) -> np.ndarray:
    """A black picture with one pixel of a level, at (side // 2, side // 2)."""
    image = np.zeros((side, side, 3), np.uint8)
    image[side // 2, side // 2] = level
    return image


def applied(op: PhotometricOp, image: np.ndarray, seed: int = 0) -> np.ndarray:
    return op.change_colors(image, np.random.default_rng(seed)).astype(int)


# Blur


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (0.0, (3, 0.0)),
        (0.3, (3, 0.1)),
        (1.5, (3, 0.5)),
        (3.0, (3, 1.0)),
        (3.9, (3, 1.0)),
        (4.1, (5, 1.0)),
        (5.9, (5, 1.0)),
        (6.1, (7, 1.0)),
        (70.0, (71, 1.0)),
        (1000.0, (255, 1.0)),
    ],
)
def test_nearest_kernel(size: float, expected: tuple[int, float]) -> None:
    assert nearest_kernel(size) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("side", "limit", "pixels"), [(640, 7, 7), (640, 3, 3), (64, 70, 7), (128, 25, 5), (64, 30, 3)], ids=str
)
def test_blur_is_the_mean_of_a_square_that_scales_with_the_picture(side: int, limit: float, pixels: int) -> None:
    image = photograph(side)
    out = applied(Blur(1.0, (limit, limit)), image)
    expected = scipy.ndimage.uniform_filter(image.astype(float), (pixels, pixels, 1), mode="mirror")
    assert np.abs(out - expected).max() <= 0.51


@pytest.mark.parametrize(("limit", "pixels"), [(30, 3), (70, 7), (150, 15)])
def test_median_is_that_of_a_square_that_scales_with_the_picture(limit: float, pixels: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    expected = scipy.ndimage.median_filter(image, (pixels, pixels, 1), mode="nearest")
    np.testing.assert_array_equal(applied(MedianBlur(1.0, (limit, limit)), image), expected)


def test_kernel_below_3_pixels_is_mixed_with_the_picture_by_hand() -> None:
    """15 pixels of 640 are 1.5 of 64: half of a kernel of 3, in which the mean around a dot of 180 is 20."""
    expected = np.zeros((64, 64, 3), int)
    expected[31:34, 31:34] = 10
    expected[32, 32] = 100
    np.testing.assert_array_equal(applied(Blur(1.0, (15, 15)), dot(180)), expected)
    np.testing.assert_array_equal(applied(MedianBlur(1.0, (15, 15)), dot(180)), dot(90))


@pytest.mark.parametrize("op_type", [Blur, MedianBlur, MotionBlur])
def test_more_blur_takes_more_detail(op_type: type[PhotometricOp]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    changes = [np.abs(applied(op_type(1.0, (k, k)), image) - image).mean() for k in (0, 3, 7, 15, 30, 70)]
    assert changes[0] == 0
    assert np.all(np.diff(changes) > 0)


@pytest.mark.parametrize("seed", range(12))
def test_motion_blur_spreads_a_dot_along_a_line_through_it(seed: int) -> None:
    out = applied(MotionBlur(1.0, (150, 150)), dot(255), seed)[..., 0]
    y, x = (places - 32 for places in np.nonzero(out))
    assert len(set(out[out > 0])) == 1
    assert abs(out.sum() - 255) <= 0.5 * y.size
    assert 11 <= max(np.ptp(x), np.ptp(y)) + 1 <= 15
    assert abs(x.mean()) < 0.5
    assert abs(y.mean()) < 0.5
    assert np.linalg.eigvalsh(np.cov(x, y))[0] < 0.3  # within half a pixel of a straight line


def test_motion_blur_goes_in_all_directions() -> None:
    shapes = {applied(MotionBlur(1.0, (150, 150)), dot(255), seed).tobytes() for seed in range(100)}
    assert len(shapes) > 20


@pytest.mark.parametrize(
    ("side", "limit", "sigma", "pixels", "pixel_sigma"),
    [
        pytest.param(640, 7, 1.5, 7, 1.5, id="large picture"),
        pytest.param(64, 70, 15, 7, 1.5, id="both scale"),
        pytest.param(64, 30, 20, 3, 2.0, id="cut off"),
        pytest.param(64, 70, 7, 7, 0.7, id="narrowest that is sampled"),
    ],
)
def test_gaussian_blur_equals_torchvision(
    side: int, limit: float, sigma: float, pixels: int, pixel_sigma: float
) -> None:
    image = photograph(side)
    out = applied(GaussianBlur(1.0, (limit, limit), (sigma, sigma)), image)
    expected = tv.gaussian_blur(torch.from_numpy(image).permute(2, 0, 1), [pixels, pixels], [pixel_sigma, pixel_sigma])
    assert np.abs(out - expected.permute(1, 2, 0).numpy()).max() <= 1


def test_narrow_gaussian_by_hand() -> None:
    """Sigma 4 of 640 is 0.4 of 64: side taps of 0.4 squared / 2 = 0.08, the middle one 0.84."""
    out = applied(GaussianBlur(1.0, (3, 7), (4, 4)), dot(200))[31:34, 31:34, 0]
    np.testing.assert_allclose(out, [[1.28, 13.44, 1.28], [13.44, 141.12, 13.44], [1.28, 13.44, 1.28]], atol=0.6)


@pytest.mark.parametrize("sigma", [0.3, 0.5, 0.69, 0.71, 1.0, 2.0])
def test_gaussian_has_the_variance_of_its_sigma(sigma: float) -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, 32:] = 255
    row = applied(GaussianBlur(1.0, (200, 200), (10 * sigma, 10 * sigma)), image)[32, :, 0]
    taps = np.diff(row) / 255
    places = np.arange(63) - 31
    assert taps @ places**2 == pytest.approx(sigma**2, rel=0.05)


@pytest.mark.parametrize(
    "op",
    [Blur(1.0), MedianBlur(1.0), MotionBlur(1.0), GaussianBlur(1.0), GaussianBlur(1.0, (70, 70), (20, 20))],
    ids=lambda op: type(op).__name__,
)
def test_blur_leaves_an_even_picture(op: PhotometricOp) -> None:
    for level in (0, 91, 255):
        np.testing.assert_array_equal(applied(op, np.full((20, 30, 3), level, np.uint8)), level)


# Noise


@pytest.mark.parametrize(("variance", "mean"), [(10.0, 0.0), (50.0, 0.0), (400.0, 0.0), (100.0, 20.0), (100.0, -20.0)])
def test_gauss_noise_is_normal_with_the_given_mean_and_variance(variance: float, mean: float) -> None:
    noise = applied(GaussNoise(1.0, mean, (variance, variance)), np.full((256, 256, 3), 128, np.uint8)) - 128
    assert noise.mean() == pytest.approx(mean, abs=4 * (variance / noise.size) ** 0.5)
    assert noise.var() == pytest.approx(variance + 1 / 12, rel=0.02)  # rounding adds the variance of one level
    assert scipy.stats.skew(noise, axis=None) == pytest.approx(0, abs=0.03)
    assert scipy.stats.kurtosis(noise, axis=None) == pytest.approx(0, abs=0.06)
    channels = noise.reshape(-1, 3).T
    assert np.abs(np.corrcoef(channels) - np.eye(3)).max() < 0.02
    assert abs(np.corrcoef(noise[:, 1:].ravel(), noise[:, :-1].ravel())[0, 1]) < 0.02


def test_gauss_noise_draws_its_variance_from_the_range() -> None:
    op, image, rng = GaussNoise(1.0, 0.0, (10, 50)), np.full((64, 64, 3), 128, np.uint8), np.random.default_rng(0)
    variances = np.array([op.change_colors(image, rng).var() for _ in range(300)])
    assert 9.5 < variances.min() < 12
    assert 48 < variances.max() < 53
    assert abs(variances.mean() - 30) < 2


@pytest.mark.parametrize("level", [0, 255])
def test_gauss_noise_stops_at_black_and_white(level: int) -> None:
    out = applied(GaussNoise(1.0, 0.0, (25, 25)), np.full((64, 64, 3), level, np.uint8))
    assert np.abs(out - level).max() < 30
    assert 0.4 < np.mean(out == level) < 0.6


@pytest.mark.parametrize("intensity", [0.05, 0.15, 0.5])
def test_iso_noise_of_lightness_is_poisson(intensity: float) -> None:
    """Half 63, half 191: the deviation is 64 levels, so the mean is 64 times the intensity, less where it is light."""
    image = np.full((256, 256, 3), 63, np.uint8)
    image[:, 128:] = 191
    out = applied(ISONoise(1.0, (intensity, intensity), (0.0, 0.0)), image)
    assert np.ptp(out, axis=2).max() == 0
    for level in (63, 191):
        noise, share, mean = out[image == level] - level, 1 - level / 255, 64 * intensity
        assert noise.mean() == pytest.approx(share * mean, abs=0.15)
        assert noise.std() == pytest.approx((share**2 * mean + 1 / 12) ** 0.5, rel=0.05)


@pytest.mark.parametrize(
    ("intensity", "color_shift", "degrees"), [(1.0, 0.02, 7.2), (1.0, 0.05, 18.0), (0.15, 0.05, 2.7)]
)
def test_iso_noise_of_hue_is_normal(intensity: float, color_shift: float, degrees: float) -> None:
    op = ISONoise(1.0, (intensity, intensity), (color_shift, color_shift))
    out = applied(op, np.full((128, 128, 3), (250, 5, 5), np.uint8))
    hue = (360 * rgb_to_hsv(out / 255)[..., 0] + 180) % 360 - 180
    assert hue.mean() == pytest.approx(0, abs=0.5)
    assert hue.std() == pytest.approx(degrees, rel=0.04)


# Compression


@pytest.mark.parametrize("quality", [10, 40, 90])
def test_compression_equals_pillows_jpeg(quality: int) -> None:
    image = photograph()
    out = applied(ImageCompression(1.0, (quality, quality)), image)
    encoded = io.BytesIO()
    Image.fromarray(image).save(encoded, "JPEG", quality=quality)
    assert np.abs(out - np.asarray(Image.open(encoded), int)).mean() < 0.5


def test_compression_draws_its_quality_from_the_range() -> None:
    image = photograph()
    every = {q: applied(ImageCompression(1.0, (q, q)), image).tobytes() for q in range(1, 101)}
    drawn = {applied(ImageCompression(1.0, (40, 43)), image, seed).tobytes() for seed in range(60)}
    assert drawn == {every[q] for q in (40, 41, 42, 43)}
