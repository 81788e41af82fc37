"""Weather of the augmentation: rain, fog and the flare of the sun look alike at every working size."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest

from uhd.augment.photometric import RandomFog, RandomRain, RandomSunFlare
from uhd.augment.photometric.base import PhotometricOp

SIZES = [(64, 64), (128, 128), (96, 192), (416, 416), (900, 800)]
every_size = pytest.mark.parametrize("size", SIZES, ids=str)


def even(size: tuple[int, int], level: int = 0) -> np.ndarray:
    return np.full((*size, 3), level, np.uint8)


def applied(op: PhotometricOp, image: np.ndarray, seed: int = 0) -> np.ndarray:
    return op.change_colors(image, np.random.default_rng(seed)).astype(int)


def rain(density: float, length: float, width: float, slant: float = 0) -> RandomRain:
    return RandomRain(1.0, (density, density), (length, length), (width, width), (slant, slant))


# Rain: drops of level 200 that cover 0.7 of what is behind them


@every_size
@pytest.mark.parametrize(("density", "length", "width"), [(0.002, 20, 1.5), (0.006, 30, 2), (0.004, 15, 1)])
def test_rain_covers_the_same_share_at_every_size(
    size: tuple[int, int], density: float, length: float, width: float
) -> None:
    """Drops at random places leave exp(-density * their area) free."""
    op = rain(density, length, width)
    covered = np.mean([applied(op, even(size), seed).mean() for seed in range(5)]) / (0.7 * 200)
    assert covered == pytest.approx(1 - math.exp(-density * length * width), rel=0.06)


def test_rain_is_as_dense_at_the_edges() -> None:
    rows = np.mean([applied(rain(0.004, 30, 2, 10), even((64, 64)), seed)[..., 0] for seed in range(60)], axis=0)
    for edge in (rows[:3], rows[-3:], rows[:, :3], rows[:, -3:]):
        assert edge.mean() == pytest.approx(rows.mean(), rel=0.1)


def test_single_drop_has_its_length_and_width() -> None:
    sizes = []
    for seed in range(40):
        y, x = np.nonzero(applied(rain(1 / 640**2, 20, 3), even((640, 640)), seed)[..., 0])
        if y.size and min(y.min(), x.min()) > 0 and max(y.max(), x.max()) < 639:
            sizes.append((np.ptp(y) + 1, np.ptp(x) + 1))
    assert len(sizes) > 30
    assert set(sizes) == {(20, 3)}


@pytest.mark.parametrize(("slant", "right"), [(45, 10), (-45, -10), (0, 0)])
def test_rain_is_slanted(slant: float, right: int) -> None:
    drops = applied(rain(0.002, 60, 1, slant), even((640, 640)))[..., 0] > 0

    def overlap(shift: int) -> float:
        return float((drops[20:-20, 20:-20] & np.roll(drops, (-10, -shift), (0, 1))[20:-20, 20:-20]).sum())

    assert max((-10, 0, 10), key=overlap) == right


def test_drops_are_thin_at_small_sizes() -> None:
    """Five drops of a tenth of a pixel by two are nowhere a whole pixel."""
    out = applied(rain(5 / 640**2, 20, 1), even((64, 64)))
    assert 0 < out.max() <= 0.7 * 200 * 0.4


def test_rain_colour() -> None:
    assert applied(rain(0.1, 100, 10), even((64, 64))).min() == 140
    assert applied(rain(0.1, 100, 10), even((64, 64), 255)).max() == pytest.approx(255 - 0.7 * 55, abs=1)
    np.testing.assert_array_equal(applied(rain(0.004, 20, 1), even((64, 64), 200)), 200)


@pytest.mark.parametrize("op", [rain(0, 20, 1), rain(0.004, 20, 0)], ids=["no drops", "no width"])
def test_no_rain(op: RandomRain) -> None:
    assert applied(op, even((64, 64))).max() == 0


# Fog


@every_size
@pytest.mark.parametrize("coefficient", [0.0, 0.3, 0.6])
def test_fog_has_its_share_of_white(size: tuple[int, int], coefficient: float) -> None:
    op = RandomFog(1.0, (coefficient, coefficient))
    fogs = np.array([applied(op, even(size), seed)[::4, ::4, 0] for seed in range(12)])
    assert fogs.mean() == pytest.approx(255 * coefficient, rel=0.06)
    assert np.all(fogs.std(axis=(1, 2)) >= 0.05 * 255 * coefficient)


def test_fog_leaves_white_and_keeps_grey_grey() -> None:
    assert applied(RandomFog(1.0), even((64, 64), 255)).min() == 255
    assert np.ptp(applied(RandomFog(1.0), even((64, 64), 90)), axis=2).max() == 0


def test_fog_takes_contrast() -> None:
    image = even((64, 64))
    image[::2] = 200
    lines = applied(RandomFog(1.0, (0.5, 0.5)), image)[..., 0]
    assert np.mean(lines[::2] - lines[1::2]) == pytest.approx(100, rel=0.1)


# Sun


@pytest.mark.parametrize("make", [RandomFog, RandomSunFlare])
def test_same_numbers_give_the_same_weather_at_every_size(make: type[PhotometricOp]) -> None:
    for seed in range(10):
        small, large = (applied(make(1.0), even((side, side)), seed)[..., 0] for side in (128, 640))
        reduced = cv2.resize(large.astype(np.uint8), (128, 128), interpolation=cv2.INTER_AREA)
        assert np.abs(small - reduced).mean() < 1.5


@pytest.mark.parametrize("intensity", [0.4, 0.6, 1.0])
def test_middle_of_the_sun_has_its_intensity_and_lies_in_the_upper_half(intensity: float) -> None:
    places = []
    for seed in range(60):
        flare = applied(RandomSunFlare(1.0, (150, 150), (intensity, intensity)), even((128, 192)), seed)[..., 0]
        # Each disc in the lens that lies over the sun adds at most a fifth of the intensity to what is left.
        assert 0.93 * 255 * intensity < flare.max() <= 255 * (1 - (1 - intensity) * (1 - 0.2 * intensity) ** 6)
        places.append(np.unravel_index(flare.argmax(), flare.shape))
    y, x = np.transpose(places)
    assert y.max() <= 64
    assert y.min() < 8
    assert y.max() > 56
    assert x.min() < 16
    assert x.max() > 176


@pytest.mark.parametrize("radius", [50, 100, 150])
@pytest.mark.parametrize("size", [(64, 64), (640, 640), (48, 96)], ids=str)
def test_glow_ends_at_the_radius(size: tuple[int, int], radius: float) -> None:
    """The discs in the lens are even and faint (at most 0.2 each); the light above that is the sun's glow."""
    pixels = radius * math.sqrt(size[0] * size[1]) / 640
    for seed in range(10):
        flare = applied(RandomSunFlare(1.0, (radius, radius), (1.0, 1.0)), even(size), seed)[..., 0]
        y, x = np.nonzero(flare > 0.6 * 255)
        assert max(np.ptp(x), np.ptp(y)) + 1 <= 2 * 0.7 * pixels + 2
        assert (flare > 0.6 * 255).sum() <= math.pi * (0.55 * pixels + 1) ** 2


@pytest.mark.parametrize("op", [RandomSunFlare(1.0, (0, 0)), RandomSunFlare(1.0, (50, 150), (0, 0))])
def test_no_sun(op: RandomSunFlare) -> None:
    np.testing.assert_array_equal(applied(op, even((64, 64), 77)), 77)


def test_sun_never_darkens() -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert np.all(applied(RandomSunFlare(1.0), image) >= image)
