"""Pictures decoded and resized once, and what was found in their label files: on disk, in memory, or each time."""

from __future__ import annotations

import hashlib
import json
import logging
import mmap
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from uhd.config import ResizeMode
from uhd.data.cache_file import Entry, Found, read_cache, write_cache
from uhd.data.images import read_image_and_size
from uhd.data.labels import read_labels
from uhd.data.listing import label_candidates
from uhd.data.resize import resize

CacheKind = Literal["auto", "ram", "disk", "none"]

_CHUNK = 32

_log = logging.getLogger("uhd")


@dataclass(frozen=True)
class ImageSpec:
    """How pictures are stored: (height, width), resize mode, and whether JPEGs may be decoded at a fraction."""

    size: tuple[int, int]
    mode: ResizeMode
    reduced: bool = False


class ImageStore(Protocol):
    """Resized pictures by index."""

    def gather(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """New array [len(indices),H,W,3] uint8 RGB."""


class ArrayStore:
    """Pictures in one array [n,H,W,3] whose memory all worker processes share."""

    def __init__(self, array: NDArray[np.uint8]) -> None:
        self._array = array

    def gather(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """New array [len(indices),H,W,3] uint8 RGB."""
        return self._array[indices]


class DecodingStore:
    """Pictures decoded each time they are asked for."""

    def __init__(self, paths: Sequence[str], spec: ImageSpec) -> None:
        self._paths = paths
        self._spec = spec

    def gather(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """New array [len(indices),H,W,3] uint8 RGB."""
        images = np.empty((len(indices), *self._spec.size, 3), np.uint8)
        for row, index in enumerate(indices):
            images[row] = load_resized(self._paths[index], self._spec)[0]
        return images


def load_resized(path: str, spec: ImageSpec) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """One picture [H,W,3] as the network sees it, and its own (height, width); ValueError names the file."""
    image, size = read_image_and_size(path, spec.size if spec.reduced else None)
    return resize(image, spec.size, spec.mode), size


def open_images(
    paths: Sequence[str], spec: ImageSpec, kind: CacheKind, folder: str | Path, title: str
) -> tuple[ImageStore, list[Entry]]:
    """The pictures at absolute paths and what their label files hold; entries[i] and row i belong to paths[i].

    folder holds the disk cache; title names the set in the progress bar and the log. A picture that cannot be read
    has an Entry with an error, and zeros for pixels. Raises ValueError where kind is disk and folder cannot be written.
    """
    if not paths:
        return ArrayStore(np.empty((0, *spec.size, 3), np.uint8)), []
    if kind == "none":
        return DecodingStore(paths, spec), [entry for _, entry, _ in _read_all(paths, range(len(paths)), spec, title)]
    if kind in ("auto", "disk"):
        try:
            return _open_disk(paths, spec, Path(folder), title)
        except OSError as error:
            if kind == "disk":
                raise ValueError(f"--cache-dir {folder}: cannot be written ({error.strerror})") from None
            _log.info("--cache-dir %s cannot be written (%s): the cache is kept in memory", folder, error.strerror)
    shape = (len(paths), *spec.size, 3)
    images = _shared_array(shape)
    entries = []
    for index, entry, image in _read_all(paths, range(len(paths)), spec, title):
        entries.append(entry)
        if image is not None:
            images[index] = image
    return ArrayStore(images), entries


def cache_path(paths: Sequence[str], spec: ImageSpec, folder: Path) -> Path:
    """The disk cache of these pictures in this form."""
    key = json.dumps([spec.size, spec.mode, spec.reduced, [os.fsencode(path).hex() for path in paths]])
    return folder / f"{hashlib.sha256(key.encode()).hexdigest()[:20]}.uhdcache"


# --- reading the files --------------------------------------------------------------------------


def _read_all(paths: Sequence[str], indices: Sequence[int], spec: ImageSpec, title: str) -> Iterator[Found]:
    """Reads pictures and labels with all cores, in order; threads do, because decoding leaves Python's lock."""
    chunks = [indices[start : start + _CHUNK] for start in range(0, len(indices), _CHUNK)]
    with (
        _calm_opencv(),
        tqdm(total=len(indices), desc=f"Reading {title} pictures", unit="img", disable=None, leave=False) as progress,
    ):
        pool = ThreadPoolExecutor(available_cores())
        try:
            for results in pool.map(lambda chunk: [(i, *_read_one(paths[i], spec)) for i in chunk], chunks):
                yield from results
                progress.update(len(results))
        finally:
            pool.shutdown(cancel_futures=True)


def _read_one(path: str, spec: ImageSpec) -> tuple[Entry, NDArray[np.uint8] | None]:
    label_path = _find_label(path)[0]
    labels = read_labels(label_path)
    try:
        image, size = load_resized(path, spec)
    except ValueError as error:
        return Entry((0, 0), labels, label_path, str(error)), None
    return Entry(size, labels, label_path), image


def available_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _calm_opencv() -> Iterator[None]:
    """OpenCV without threads of its own, and without its lines about damaged pictures, which are named in the log."""
    threads, level = cv2.getNumThreads(), cv2.utils.logging.getLogLevel()
    cv2.setNumThreads(0)
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)
        cv2.utils.logging.setLogLevel(level)


def _file_states(paths: Sequence[str]) -> NDArray[np.int64]:
    """[n,4]: size and mtime (ns) of each picture and of its label file; -1 where there is none to read."""
    states = [(*_state(path), *_find_label(path)[1]) for path in paths]
    return np.array(states, dtype=np.int64).reshape(-1, 4)


def _find_label(image: str) -> tuple[str, tuple[int, int]]:
    """The label file of a picture and its state; the place beside the picture where there is none."""
    candidates = label_candidates(image)
    for candidate in candidates:
        if os.path.lexists(candidate):
            return candidate, _state(candidate)
    return candidates[0], (-1, -1)


def _state(path: str) -> tuple[int, int]:
    # Asked for besides the times, because a change of permissions leaves them as they are.
    if not os.access(path, os.R_OK):
        return -1, -1
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


# --- on disk ------------------------------------------------------------------------------------


def _open_disk(paths: Sequence[str], spec: ImageSpec, folder: Path, title: str) -> tuple[ImageStore, list[Entry]]:
    """Maps the cache file, after bringing it up to date. Raises OSError where it cannot be written."""
    states = _file_states(paths)
    file = cache_path(paths, spec, folder)
    shape = (len(paths), *spec.size, 3)
    cached = read_cache(file, shape)
    changed = np.arange(len(paths)) if cached is None else np.flatnonzero((cached.states != states).any(axis=1))
    if cached is None or len(changed):
        folder.mkdir(parents=True, exist_ok=True)
        if cached is not None:
            _log.info("%s: %d of %d pictures or labels changed and are read again", file, len(changed), len(paths))
        write_cache(file, shape, states, cached, _read_all(paths, changed.tolist(), spec, title))
        cached = read_cache(file, shape)
        if cached is None:
            raise OSError(None, "the file just written cannot be read back")
    return ArrayStore(cached.images), cached.entries


def _shared_array(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Anonymous memory that forked workers share instead of copying."""
    num_bytes = int(np.prod(shape))
    return np.frombuffer(mmap.mmap(-1, num_bytes), np.uint8).reshape(shape)
