"""Bringing a picture to the network's input size: a part of the model, so every mode has one exact definition."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from uhd.config import ResizeMode
from uhd.data.area import shrink

_OPENCV_FLAGS = {
    "opencv_inter_area": cv2.INTER_AREA,
    "opencv_inter_linear": cv2.INTER_LINEAR,
    "opencv_inter_nearest": cv2.INTER_NEAREST,
}


def resize(image: NDArray[np.uint8], size: tuple[int, int], mode: ResizeMode) -> NDArray[np.uint8]:
    """Stretches image [h,w,3] uint8 to size (height, width); the result is rounded to uint8.

    opencv_*: `cv2.resize` with that interpolation. torch_bilinear and torch_nearest: what
    `torch.nn.functional.interpolate` gives for mode bilinear (align_corners and antialias off) and
    nearest; a bilinear value that falls on a half may be rounded to its other neighbour. Raises
    ValueError for an unknown mode.
    """
    if mode == "opencv_inter_area":
        averaged = shrink(image, size)
        if averaged is not None:
            return averaged
    if mode in _OPENCV_FLAGS:
        stretched: NDArray[np.uint8] = cv2.resize(image, (size[1], size[0]), interpolation=_OPENCV_FLAGS[mode])
        return stretched
    if mode == "torch_bilinear":
        return _bilinear(image, size)
    if mode == "torch_nearest":
        rows, columns = (_nearest_indices(image.shape[axis], size[axis]) for axis in (0, 1))
        return image[rows[:, None], columns]
    raise ValueError(f"unknown resize mode {mode!r}")


def _nearest_indices(source: int, target: int) -> NDArray[np.int64]:
    """floor(i * source / target), in float32 as torch computes it."""
    indices = np.floor(np.arange(target, dtype=np.float32) * (np.float32(source) / np.float32(target)))
    inside: NDArray[np.int64] = np.minimum(indices.astype(np.int64), source - 1)
    return inside


def _bilinear(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    top, bottom, down = _linear_weights(image.shape[0], size[0])
    left, right, across = _linear_weights(image.shape[1], size[1])
    down, across = down[:, None, None], across[:, None]
    upper = _mix(image[top[:, None], left], image[top[:, None], right], across)
    lower = _mix(image[bottom[:, None], left], image[bottom[:, None], right], across)
    return np.rint(upper * (1 - down) + lower * down).astype(np.uint8)


def _mix(first: NDArray[np.uint8], second: NDArray[np.uint8], share: NDArray[np.float32]) -> NDArray[np.float32]:
    return first * (1 - share) + second * share


def _linear_weights(source: int, target: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """The two neighbours of each target pixel's centre and the second one's share."""
    scale = np.float32(source) / np.float32(target)
    # Rounded to float32 once, as torch's fused multiply-add does: this decides ties.
    centres = np.maximum((np.arange(target) + 0.5) * np.float64(scale) - 0.5, 0).astype(np.float32)
    first = np.minimum(centres.astype(np.int64), source - 1)
    second = np.minimum(first + 1, source - 1)
    return first, second, (centres - first).astype(np.float32)
