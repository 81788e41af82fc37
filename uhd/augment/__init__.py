"""Augmentation of training pictures: a YAML file (--aug-config) becomes a `Pipeline`."""

from __future__ import annotations

import difflib
import logging
import reprlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from uhd.augment.config_file import read_entries
from uhd.augment.geometric import (
    HorizontalFlip,
    RandomCrop,
    RandomResizedCrop,
    RandomScale,
    RemoveOutliers,
    Rotate,
    Translation,
    VerticalFlip,
)
from uhd.augment.multi_image import CopyPaste, MixUp, Mosaic
from uhd.augment.photometric import (
    CLAHE,
    Blur,
    GaussianBlur,
    GaussNoise,
    ImageCompression,
    ISONoise,
    MedianBlur,
    MotionBlur,
    RandomBrightness,
    RandomContrast,
    RandomFog,
    RandomHSV,
    RandomPhotometricDistort,
    RandomRain,
    RandomSaturation,
    RandomSunFlare,
    ToGray,
)
from uhd.augment.pipeline import Op, Pipeline, checks
from uhd.augment.sample import Sample

__all__ = ["OPS", "Op", "Pipeline", "RemoveOutliers", "Sample", "load_pipeline", "locate"]

_LOG = logging.getLogger("uhd")

_MULTI_IMAGE: tuple[type[Op], ...] = (Mosaic, MixUp, CopyPaste)
_GEOMETRIC: tuple[type[Op], ...] = (
    *(HorizontalFlip, VerticalFlip, RandomScale, Translation, Rotate, RandomCrop, RandomResizedCrop),
    RemoveOutliers,
)
_PHOTOMETRIC: tuple[type[Op], ...] = (
    *(RandomBrightness, RandomContrast, RandomSaturation, RandomHSV, RandomPhotometricDistort, CLAHE, ToGray),
    *(Blur, MedianBlur, MotionBlur, GaussianBlur, GaussNoise, ISONoise, ImageCompression),
    *(RandomRain, RandomFog, RandomSunFlare),
)

OPS: dict[str, type[Op]] = {op_type.__name__: op_type for op_type in (*_MULTI_IMAGE, *_GEOMETRIC, *_PHOTOMETRIC)}
"""Every op by its name in the YAML file."""


def load_pipeline(path: str | Path, classes: Sequence[int]) -> Pipeline:
    """Builds the augmentation pipeline that a YAML file describes.

    path: file whose `data_augment:` maps ops to parameters, in the order in which they run.
    classes: original id of each class index, for parameters that name classes.

    An unknown op or parameter is skipped with a warning. A file that cannot be read or a value that
    does not fit is a ValueError that names --aug-config and the file.
    """
    try:
        entries, others = read_entries(locate(path))
        for name in OPS.keys() & others:
            _LOG.warning("--aug-config %s: %s stands beside data_augment, not under it, and is not applied", path, name)
        ops = [_build(name, value, path) for name, value in entries.items() if _is_known(name, path)]
    except ValueError as error:
        raise ValueError(f"--aug-config {path}: {error}") from error
    return Pipeline([op.bind(classes) for op in ops])


def locate(path: str | Path) -> Path:
    """The path itself, or where a relative one that is not in the working folder lies beside the package.

    ValueError where no file can have this name.
    """
    path = Path(path)
    beside = Path(__file__).resolve().parents[2] / path
    try:
        return beside if not path.exists() and beside.is_file() else path
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from error


def _is_known(name: object, path: str | Path) -> bool:
    if name in OPS:
        return True
    _LOG.warning("--aug-config %s: unknown op %s is skipped (nearest: %s)", path, _shown(name), _nearest(name, OPS))
    return False


def _build(name: str, value: Any, path: str | Path) -> Op:
    op_type = OPS[name]
    known = checks(op_type)
    given = value if isinstance(value, dict) else {op_type.bare: value}
    params: dict[str, Any] = {}
    for key, item in given.items():
        if key not in known:
            nearest = _nearest(key, known)
            message = "--aug-config %s: unknown parameter %s.%s is skipped (nearest: %s)"
            _LOG.warning(message, path, name, _shown(key), nearest)
            continue
        try:
            params[key] = known[key](item)
        except ValueError as error:
            raise ValueError(f"{name}.{key} {reprlib.repr(item)}: {error}") from error
    return op_type(**params)


def _shown(name: object) -> str:
    """A name in the file as it stands there; escaped where a terminal would not show it but obey it."""
    text = str(name)
    return text if text.isprintable() else reprlib.repr(text)


def _nearest(name: object, known: Iterable[str]) -> str:
    names = {candidate.lower(): candidate for candidate in known}
    return names[difflib.get_close_matches(str(name).lower(), names, n=1, cutoff=0)[0]]
