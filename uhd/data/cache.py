"""Pictures decoded and resized once, and what was found in their label files: on disk, in memory, or each time."""

from __future__ import annotations

import hashlib
import logging
import mmap
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal, Protocol, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from uhd.config import ResizeMode
from uhd.data.annotations import AnnotationSource
from uhd.data.disk_cache import open_disk
from uhd.data.entries import NOT_LISTED, Entries, EntriesBuilder, Entry, Found
from uhd.data.images import decode_image, read_image_and_size
from uhd.data.labels import NO_LABELS, parse_labels, read_labels
from uhd.data.limits import DEFAULT_LIMITS, Limits
from uhd.data.listing import label_candidates
from uhd.data.resize import resize
from uhd.data.tar_shards import members_by_tar, stream_tar

Size = tuple[int, int]
"""(height, width) in pixels."""

CacheKind = Literal["auto", "ram", "disk", "none"]

_FORMAT = 2  # of the disk cache: another one is another name
_CHUNK = 8
_CHUNKS_AHEAD = 4  # for each core: enough that none waits, and little memory
_MEMORY_SHARE = 0.5

_log = logging.getLogger("uhd")


@dataclass(frozen=True)
class ImageSpec:
    """How pictures are stored: (height, width), resize mode, whether JPEGs may be decoded at a fraction; the limits."""

    size: tuple[int, int]
    mode: ResizeMode
    reduced: bool = False
    limits: Limits = DEFAULT_LIMITS

    @property
    def at_least(self) -> tuple[int, int] | None:
        """The size that a picture may be decoded down to; None where it must not be."""
        return self.size if self.reduced else None


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
    image, size = read_image_and_size(path, spec.at_least, spec.limits)
    return resize(image, spec.size, spec.mode), size


def open_images(
    paths: Sequence[str],
    spec: ImageSpec,
    kind: CacheKind,
    folder: str | Path,
    title: str,
    annotations: AnnotationSource | None = None,
) -> tuple[ImageStore, Entries]:
    """The pictures at absolute paths, or in tar files, and their labels; row i belongs to paths[i].

    Labels are those of annotations, where there are some, else in files beside the pictures. folder holds the disk
    cache; title names the set in the progress bar and the log. A picture that cannot be read has an entry with an
    error, and zeros for pixels. Raises ValueError where kind is disk and folder cannot be written, where it is auto and
    memory is too small as well, where a tar is damaged, or is to be read without a cache, and where annotations are
    malformed as a whole.
    """
    source = PictureFiles(paths, spec, title, annotations)
    shape = (len(paths), *spec.size, 3)
    if not paths:
        return ArrayStore(np.empty(shape, np.uint8)), source.blank()
    if kind == "none":
        if source.tars:
            raise ValueError(f"--cache none: {source.tars[0]} is read from end to end only; expected auto, disk or ram")
        return DecodingStore(paths, spec), _keep(source, None)
    if kind in ("auto", "disk"):
        place = cache_path(paths, spec, Path(folder), annotations.path if annotations else None)
        try:
            return open_disk(source, shape, place)
        except OSError as error:
            _check_alternative(kind, folder, error, int(np.prod(shape)))
    images = _shared_array(shape)
    return ArrayStore(images), _keep(source, images)


def _check_alternative(kind: CacheKind, folder: str | Path, error: OSError, num_bytes: int) -> None:
    """Says that pictures go to memory; raises ValueError where they must not or cannot."""
    problem = f"--cache-dir {folder}: cannot be written ({error.strerror})"
    if kind == "disk":
        raise ValueError(problem) from None
    size = f"{num_bytes / 2**30:.1f} GiB"
    if num_bytes > available_memory() * _MEMORY_SHARE:
        raise ValueError(f"{problem}, and {size} of pictures are too much for memory; expected a folder with room")
    _log.info("--cache-dir %s cannot be written (%s): the cache is kept in memory", folder, error.strerror)


def _keep(source: PictureFiles, images: NDArray[np.uint8] | None) -> Entries:
    """Reads all pictures, and keeps them where there is an array [n,H,W,3] of zeros."""
    builder = EntriesBuilder(source.blank())
    for index, entry, image in source.read(np.arange(len(source.paths))):
        builder.add(index, entry)
        if image is not None and images is not None:
            images[index] = image
    return builder.build(source.class_names)


def cache_path(paths: Sequence[str], spec: ImageSpec, folder: Path, annotations: str | None = None) -> Path:
    """The folder, in that of all caches, for these pictures in this form, with these annotations."""
    form = (_FORMAT, spec) if annotations is None else (_FORMAT, spec, os.path.abspath(annotations))
    digest = hashlib.sha256(repr(form).encode())
    for path in paths:
        digest.update(b"\0" + os.fsencode(path))
    return folder / f"{digest.hexdigest()[:20]}.uhdcache"


# --- reading the files --------------------------------------------------------------------------

T = TypeVar("T")


class PictureFiles:
    """The files of a set's pictures and labels, some of them perhaps in tar files; the `Source` of a disk cache."""

    def __init__(
        self, paths: Sequence[str], spec: ImageSpec, title: str, annotations: AnnotationSource | None = None
    ) -> None:
        self.paths = paths
        self._spec = spec
        self._title = title
        self._annotations = annotations
        self._in_tars = members_by_tar(paths)

    @property
    def tars(self) -> list[str]:
        """The tar files."""
        return list(self._in_tars)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Those of the annotations; empty where there are none, or they have only numbers."""
        return self._annotations.class_names if self._annotations else ()

    def blank(self) -> Entries:
        """Entries without anything in them."""
        return Entries.blank(self.paths, self._annotations.path if self._annotations else "")

    def states(self) -> NDArray[np.int64]:
        """[n,4]: size and mtime (ns) of each picture, or of its tar, and of its label file; -1 where there is none.

        With annotations their state stands in the place of the label file's.
        """
        labels = np.full((len(self.paths), 2), -1, np.int64)
        if self._annotations:
            labels[:] = self._annotations.state()
        else:
            for index in self._alone(np.arange(len(self.paths))):
                labels[index] = _find_label(self.paths[index])[1]
        return np.concatenate([picture_states(self.paths), labels], axis=1)

    def read_labels(self, indices: NDArray[np.int64], sizes: NDArray[np.int64]) -> Iterator[tuple[int, Entry]]:
        """The labels of pictures that are not read again, because their sizes [n,2] are known."""
        for index in indices.tolist():
            height, width = sizes[index].tolist()
            yield index, self._entry(index, (height, width))

    def read(self, indices: NDArray[np.int64]) -> Iterator[Found]:
        """Reads pictures and labels with all cores; threads do, because decoding leaves Python's lock."""
        if self._annotations and len(indices):
            self._annotations.load()
        title = f"Reading {self._title} pictures"
        with (
            _calm_opencv(),
            tqdm(total=len(indices), desc=title, unit="img", disable=None, leave=False) as progress,
        ):
            for found in _in_parallel(self._jobs(indices)):
                yield found
                progress.update()

    def _alone(self, indices: NDArray[np.int64]) -> list[int]:
        """Those of the pictures that are files of their own."""
        packed = {index for members in self._in_tars.values() for index in members.values()}
        return [index for index in indices.tolist() if index not in packed]

    def _jobs(self, indices: NDArray[np.int64]) -> Iterator[Callable[[], Found]]:
        for index in self._alone(indices):
            yield partial(self._read, index, partial(load_resized, self.paths[index], self._spec))
        asked = set(indices.tolist()) if self._in_tars else set()
        for tar, members in self._in_tars.items():
            wanted = {member: index for member, index in members.items() if index in asked}
            if wanted:
                for index, picture, labels in stream_tar(tar, wanted):
                    decode = partial(_decode_resized, picture, self.paths[index], self._spec)
                    yield partial(self._read, index, decode, labels)

    def _read(
        self, index: int, load: Callable[[], tuple[NDArray[np.uint8], Size]], labels: bytes | None = None
    ) -> Found:
        """One picture; labels: the content of its label file, where that is not on the disk."""
        if self._annotations and self._annotations.leaves_out(self.paths[index]):
            return index, self._entry(index, (0, 0)), None
        try:
            image, size = load()
        except ValueError as error:
            return index, replace(self._entry(index, (0, 0), labels), error=str(error)), None
        return index, self._entry(index, size, labels), image

    def _entry(self, index: int, size: Size, labels: bytes | None = None) -> Entry:
        """The labels of a picture of this size; (0, 0) is one that cannot be read."""
        path, limits = self.paths[index], self._spec.limits
        if self._annotations:
            source = self._annotations
            if source.leaves_out(path):
                return Entry((0, 0), NO_LABELS, source.path, NOT_LISTED)
            picture = source.picture(path) if all(size) else None
            return Entry(size, picture.label_rows(size, limits) if picture else NO_LABELS, source.path)
        if labels is not None:
            return Entry(size, parse_labels(labels, limits), label_candidates(path)[0])
        label_path = _find_label(path)[0]
        return Entry(size, read_labels(label_path, limits), label_path)


def _in_parallel(jobs: Iterator[Callable[[], T]]) -> Iterator[T]:
    """The jobs' results, in order, with few more jobs under way than there are cores."""
    pool = ThreadPoolExecutor(available_cores())
    running: deque[Future[list[T]]] = deque()
    try:
        while chunk := list(islice(jobs, _CHUNK)):
            running.append(pool.submit(_run_all, chunk))
            if len(running) > _CHUNKS_AHEAD * available_cores():
                yield from running.popleft().result()
        while running:
            yield from running.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _run_all(jobs: Sequence[Callable[[], T]]) -> list[T]:
    return [job() for job in jobs]


def _decode_resized(data: bytes, name: str, spec: ImageSpec) -> tuple[NDArray[np.uint8], Size]:
    """`load_resized` of a file's content."""
    image, size = decode_image(data, name, spec.at_least, spec.limits)
    return resize(image, spec.size, spec.mode), size


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


def picture_states(paths: Sequence[str]) -> NDArray[np.int64]:
    """[n,2]: size and mtime (ns) of each picture, or of the tar file that it is in; -1 where it cannot be read."""
    tars = {index: tar for tar, members in members_by_tar(paths).items() for index in members.values()}
    tar_states = {tar: _state(tar) for tar in set(tars.values())}
    states = [tar_states[tars[index]] if index in tars else _state(path) for index, path in enumerate(paths)]
    return np.array(states, dtype=np.int64).reshape(-1, 2)


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
    try:
        status = os.stat(path)
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


# --- memory -------------------------------------------------------------------------------------


def available_memory() -> int:
    """Bytes of memory that could be used without swapping."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _shared_array(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Anonymous memory that forked workers share instead of copying."""
    num_bytes = int(np.prod(shape))
    return np.frombuffer(mmap.mmap(-1, num_bytes), np.uint8).reshape(shape)
