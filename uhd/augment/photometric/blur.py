"""Ops that blur. Kernel sizes and sigmas are in pixels of a 640x640 picture and scale with the working size."""

from __future__ import annotations

import random
from abc import abstractmethod
from dataclasses import dataclass

import cv2
import numpy as np

from uhd.augment.params import number_range, param
from uhd.augment.photometric.base import AlbumentationsOp, blur_functions, pixel_functions
from uhd.augment.sample import Image, length_scale

# The largest kernel that OpenCV's median takes.
_LARGEST = 255
# Samples of a narrower Gaussian, one for each pixel, no longer have its variance.
_NARROWEST_SAMPLED = 0.7
# create_motion_kernel asks for one, and draws from it only to shift the picture.
_NOT_DRAWN_FROM = random.Random(0)


def nearest_kernel(size: float) -> tuple[int, float]:
    """The odd kernel size nearest to `size` pixels, at least 3, and the share of its result in the picture.

    size: any length >= 0, often less than a pixel: 7 pixels of a 640-pixel picture are 0.7 of a
    64-pixel one. A kernel of less than 3 pixels is one of 3 whose result is mixed with the picture
    by the share size / 3, so that the blur grows steadily with the size; from 3 on the share is 1.
    """
    return 2 * int(min(max(size, 3), _LARGEST) / 2) + 1, min(size / 3, 1.0)


@dataclass(frozen=True)
class KernelBlur(AlbumentationsOp):
    """A blur with a square kernel. blur_limit: range of its side, in pixels of a 640x640 picture."""

    blur_limit: tuple[float, float] = param((3.0, 7.0), number_range(0, _LARGEST))

    @abstractmethod
    def blur(self, image: Image, kernel: int, rng: np.random.Generator) -> Image:
        """The image, uint8 [H,W,3], blurred with a kernel of an odd number of pixels, at least 3."""

    def change_colors(self, image: Image, rng: np.random.Generator) -> Image:
        """The image blurred with a random kernel size; see `nearest_kernel` for one of less than 3 pixels."""
        kernel, share = nearest_kernel(rng.uniform(*self.blur_limit) * length_scale(image))
        blurred = self.blur(image, kernel, rng)
        if share < 1:
            blurred = cv2.addWeighted(blurred, share, image, 1 - share, 0)
        return blurred


@dataclass(frozen=True)
class Blur(KernelBlur):
    """Each pixel becomes the mean of a square around it."""

    def blur(self, image: Image, kernel: int, rng: np.random.Generator) -> Image:
        """The image's means."""
        blurred: Image = blur_functions().box_blur(image, kernel)
        return blurred


@dataclass(frozen=True)
class MedianBlur(KernelBlur):
    """Each pixel becomes the median of a square around it, in each channel."""

    def blur(self, image: Image, kernel: int, rng: np.random.Generator) -> Image:
        """The image's medians."""
        blurred: Image = blur_functions().median_blur(image, kernel)
        return blurred


@dataclass(frozen=True)
class MotionBlur(KernelBlur):
    """Each pixel becomes the mean of a line through it, at a random angle.

    The line has its middle in the pixel, so that the boxes stay where the persons are. blur_limit:
    range of its length, in pixels of a 640x640 picture.
    """

    blur_limit: tuple[float, float] = param((5.0, 15.0), number_range(0, _LARGEST))

    def blur(self, image: Image, kernel: int, rng: np.random.Generator) -> Image:
        """The image's means along a line."""
        line = blur_functions().create_motion_kernel(kernel, 180 * rng.random(), 0.0, False, _NOT_DRAWN_FROM)
        blurred: Image = pixel_functions().convolve(image, line / line.sum())
        return blurred


@dataclass(frozen=True)
class GaussianBlur(AlbumentationsOp):
    """Each pixel becomes the mean of its neighbourhood, weighted by a Gaussian.

    sigma_limit: range of the Gaussian's standard deviation. blur_limit: range of the side of the
    square beyond which it is cut off. Both are in pixels of a 640x640 picture. A Gaussian whose
    sigma is less than 0.7 pixels of this picture lies within 3 pixels and is not cut off: 3 taps
    stand for it, with its variance.
    """

    blur_limit: tuple[float, float] = param((3.0, 7.0), number_range(0, _LARGEST))
    sigma_limit: tuple[float, float] = param((0.1, 2.0), number_range(0, 50))

    def change_colors(self, image: Image, rng: np.random.Generator) -> Image:
        """The image blurred with a random kernel size and sigma."""
        scale = length_scale(image)
        size = rng.uniform(*self.blur_limit) * scale
        sigma = rng.uniform(*self.sigma_limit) * scale
        if sigma < _NARROWEST_SAMPLED:
            side = sigma**2 / 2
            taps = np.array((side, 1 - 2 * side, side))
        else:
            taps = blur_functions().create_gaussian_kernel_1d(sigma, nearest_kernel(size)[0])
        blurred: Image = pixel_functions().separable_convolve(image, taps)
        return blurred
