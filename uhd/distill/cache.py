"""A frozen teacher's outputs for a fixed set of pictures, on disk: one array a map, row i of picture i."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uhd.distill.distillation import NETWORK_ENTRIES, Lesson
from uhd.distill.views import Preds

_FEATURES = "lesson_features"
"""The array of `Lesson.features` where they are not among the network's own maps."""


class LessonCache:
    """Lessons by the index of their picture.

    fixed: entries of the teacher's `Preds` that are the same for all pictures; None without a network.
    """

    def __init__(self, arrays: dict[str, NDArray[np.float32]], fixed: Preds | None) -> None:
        self._arrays = arrays
        self._fixed = fixed

    def lesson(self, indices: Tensor, device: torch.device) -> Lesson:
        """What the teachers say of the pictures of indices [B], which are on the host."""
        found = {name: _on(device, array[indices.numpy()]) for name, array in self._arrays.items()}
        features = found.pop(_FEATURES, found.get("features"))
        return Lesson(None if self._fixed is None else {**found, **self._fixed}, features)


def _on(device: torch.device, rows: NDArray[np.float32]) -> Tensor:
    """The rows on a device, without waiting for it."""
    value = torch.from_numpy(rows)
    return value.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else value


def cache_folder(folder: Path, facts: dict[str, Any]) -> Path:
    """Where the outputs lie that these facts (plain values: the teacher, the pictures, their sizes) decide on."""
    return folder / hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:20]


def file_digest(path: str) -> str:
    """SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_lessons(folder: Path, count: int, names: set[str], fixed: Preds | None) -> LessonCache | None:
    """The cache of a folder; None where there is none. names: the arrays that a lesson is made of.

    Raises ValueError, naming the folder, where it is damaged.
    """
    if not folder.exists():
        return None
    try:
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in names}
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"--teacher-cache: {folder} is damaged ({error}); delete it") from None
    if any(len(array) != count for array in arrays.values()):
        raise ValueError(f"--teacher-cache: {folder} is damaged (it holds other pictures); delete it")
    return LessonCache(arrays, fixed)


def write_lessons(folder: Path, count: int, lessons: Iterable[Lesson]) -> None:
    """Writes the lessons of count pictures, given part after part; the folder appears when it is complete.

    Raises OSError. The arrays are written as files, not as mapped memory, where a full disk would kill the process.
    """
    temporary = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}.tmp")
    temporary.mkdir(parents=True)
    try:
        with contextlib.ExitStack() as opened:
            files: dict[str, BinaryIO] = {}
            for lesson in lessons:
                for name, value in arrays_of(lesson).items():
                    if name not in files:
                        files[name] = opened.enter_context(open(temporary / f"{name}.npy", "wb"))
                        shape = (count, *value.shape[1:])
                        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
                        np.lib.format.write_array_header_1_0(files[name], header)
                    files[name].write(value.float().cpu().numpy().astype("<f4").tobytes())
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another run was faster
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def arrays_of(lesson: Lesson) -> dict[str, Tensor]:
    """What of a lesson differs from picture to picture, by the name of its array."""
    arrays = {name: value for name, value in (lesson.preds or {}).items() if name not in NETWORK_ENTRIES}
    if lesson.features is not None and lesson.features is not arrays.get("features"):
        arrays[_FEATURES] = lesson.features
    return arrays
