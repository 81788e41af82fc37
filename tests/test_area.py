"""The fast area averaging is OpenCV's, to the bit."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uhd.data.area import shrink
from uhd.data.resize import resize

FRAMES = [(480, 640), (360, 640), (720, 1280), (1080, 1920), (600, 800), (480, 480), (240, 320), (1440, 1080)]
TARGETS = [(64, 64), (96, 64), (48, 80), (128, 128)]


def pictures(size):
    """Noise, near constants whose means lie around every rounding boundary, black and white dots, one colour."""
    rng = np.random.default_rng(sum(size))
    yield rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    yield rng.integers(100, 102, (*size, 3), dtype=np.uint8)
    yield rng.integers(0, 2, (*size, 3), dtype=np.uint8) * np.uint8(255)
    yield np.full((*size, 3), 255, np.uint8)


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("size", FRAMES, ids=str)
def test_frames_of_cameras_are_averaged_as_opencv_does(size, target):
    for image in pictures(size):
        expected = cv2.resize(image, target[::-1], interpolation=cv2.INTER_AREA)
        found = shrink(image, target)
        assert found is None or np.array_equal(found, expected)
        assert np.array_equal(resize(image, target, "opencv_inter_area"), expected)


def test_the_usual_frame_takes_the_fast_way():
    assert shrink(np.zeros((480, 640, 3), np.uint8), (64, 64)) is not None


@pytest.mark.parametrize(
    ("size", "target"),
    [
        ((640, 640), (64, 64)),
        ((427, 640), (64, 64)),
        ((100, 100), (64, 64)),
        ((64, 64), (64, 64)),
        ((20, 20), (64, 64)),
    ],
    ids=str,
)
def test_sizes_that_opencv_does_as_fast_are_left_to_it(size, target):
    assert shrink(np.zeros((*size, 3), np.uint8), target) is None


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.integers(2, 40), st.integers(2, 40)),
    st.tuples(st.integers(2, 12), st.integers(2, 12)),
    st.tuples(st.sampled_from([8, 16, 32]), st.sampled_from([8, 16, 32])),
    st.integers(0, 2**32 - 1),
)
def test_any_ratio(steps, cells, blocks, seed):
    """Sizes blocks*steps to blocks*cells, whatever the ratio of steps to cells."""
    size = blocks[0] * steps[0], blocks[1] * steps[1]
    target = blocks[0] * cells[0], blocks[1] * cells[1]
    image = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    found = shrink(image, target)
    assert found is None or np.array_equal(found, cv2.resize(image, target[::-1], interpolation=cv2.INTER_AREA))
