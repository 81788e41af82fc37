"""What the photometric ops share, and the way to the functions of albumentations."""

from __future__ import annotations

import functools
import os
from abc import abstractmethod
from dataclasses import dataclass
from types import ModuleType

import numpy as np

from uhd.augment.pipeline import Op
from uhd.augment.sample import Image, Sample


@functools.cache
def pixel_functions() -> ModuleType:
    """The functions of albumentations on the levels of pixels.

    The import takes seconds (scipy, pydantic, torch), so it waits until an op that needs it is
    built: early enough for workers forked later to share it. The functions are called without the
    transform classes around them, which draw from random numbers of their own and cost several
    times the arithmetic on a 64x64 picture.
    """
    # Without this the import asks PyPI for a newer version.
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    import albumentations.augmentations.pixel.functional as pixel

    module: ModuleType = pixel
    return module


@functools.cache
def blur_functions() -> ModuleType:
    """The functions of albumentations that blur; the import waits like that of `pixel_functions`."""
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    import albumentations.augmentations.blur.functional as blur

    module: ModuleType = blur
    return module


@dataclass(frozen=True)
class PhotometricOp(Op):
    """An op on the image alone."""

    @abstractmethod
    def change_colors(self, image: Image, rng: np.random.Generator) -> Image:
        """The changed image, uint8 [H,W,3] RGB like the given one, which stays as it is."""

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """The sample with its image changed."""
        return Sample(self.change_colors(sample.image, rng), sample.boxes, sample.labels)


@dataclass(frozen=True)
class AlbumentationsOp(PhotometricOp):
    """An op that calls functions of albumentations: one that is in use imports them when it is built."""

    def __post_init__(self) -> None:
        if self.prob > 0:
            pixel_functions()
            blur_functions()
