"""The file of a disk cache: resized pictures and what was found in their label files.

The pictures come first as raw uint8 [n,H,W,3], so that every process maps the same pages; then an index (npz, no
pickle), then its length, a checksum of all that and a signature. A file is written under a temporary name, flushed
and renamed: a reader sees a whole one or none, and a run that still maps an older one keeps it.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import struct
import time
import uuid
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from uhd.data.labels import BadLine, LabelRows

_SIGNATURE = b"uhdcach1"
_TRAILER = struct.Struct("<QL8s")
_COPIED_AT_ONCE = 256
_ABANDONED_AFTER = 3600.0  # seconds without a write

_log = logging.getLogger("uhd")


@dataclass(frozen=True)
class Entry:
    """What was found in one picture's files.

    size (height, width) of the picture in its own pixels, (0, 0) where it cannot be read, and error then says why;
    labels of every class, as they stand in the file; label_path the file they came from.
    """

    size: tuple[int, int]
    labels: LabelRows
    label_path: str
    error: str = ""


Found = tuple[int, Entry, NDArray[np.uint8] | None]
"""A picture's index, what its files hold, and its pixels [H,W,3] where it could be read."""


@dataclass(frozen=True)
class CachedSet:
    """The content of a cache file.

    images [n,H,W,3] uint8, mapped; states [n,4] int64, by which a change of the files is known; n entries.
    """

    images: NDArray[np.uint8]
    states: NDArray[np.int64]
    entries: list[Entry]


def read_cache(file: Path, shape: tuple[int, ...]) -> CachedSet | None:
    """The cache of pictures of that shape [n,H,W,3]; None where there is none, or, with a note, where it is damaged."""
    try:
        with open(file, "rb") as stream:
            return _parse(stream, shape)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, OSError) as error:
        _log.warning("%s: the cache is damaged (%s) and is made again", file, error)
        return None


def write_cache(
    file: Path, shape: tuple[int, ...], states: NDArray[np.int64], older: CachedSet | None, changes: Iterable[Found]
) -> None:
    """Writes a cache file: the older one's pictures, if there is one, with the changes. Raises OSError."""
    _remove_abandoned(file)
    temporary = file.with_name(f"{file.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "x+b") as stream:
            entries = _write_pictures(stream, shape, older, changes)
            _write_index(stream, shape, states, entries)
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def _remove_abandoned(file: Path) -> None:
    """Deletes what a killed process left of this file; one that is still being written has a recent time."""
    for temporary in file.parent.glob(f"{file.name}.*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - temporary.stat().st_mtime > _ABANDONED_AFTER:
                temporary.unlink()


def _write_pictures(
    stream: BinaryIO,
    shape: tuple[int, ...],
    older: CachedSet | None,
    changes: Iterable[Found],
) -> list[Entry]:
    """Writes the pictures: those of the older cache, then the changed ones over them. Returns all entries."""
    blank = np.zeros(shape[1:], np.uint8)
    entries = [] if older is None else list(older.entries)
    if older is not None:
        for start in range(0, shape[0], _COPIED_AT_ONCE):
            stream.write(older.images[start : start + _COPIED_AT_ONCE].tobytes())
    for index, entry, image in changes:
        stream.seek(index * blank.nbytes)
        stream.write((blank if image is None else image).tobytes())
        entries[index : index + 1] = [entry]
    return entries


def _write_index(stream: BinaryIO, shape: tuple[int, ...], states: NDArray[np.int64], entries: Sequence[Entry]) -> None:
    """Writes the index behind the pictures, its length and the signature, and flushes the file to the disk."""
    texts = [
        [entry.label_path, entry.error, [[bad.number, bad.problem] for bad in entry.labels.bad_lines]]
        for entry in entries
    ]
    index = io.BytesIO()
    np.savez(
        index,
        shape=np.array(shape),
        states=states,
        sizes=np.array([entry.size for entry in entries], dtype=np.int64).reshape(-1, 2),
        counts=np.array([len(entry.labels.rows) for entry in entries], dtype=np.int64),
        rows=np.concatenate([np.empty((0, 5)), *(entry.labels.rows for entry in entries)]),
        texts=np.frombuffer(json.dumps(texts).encode(), dtype=np.uint8),
    )
    stream.seek(int(np.prod(shape)))
    stream.write(index.getvalue())
    stream.flush()
    checksum = zlib.crc32(np.memmap(stream, np.uint8, "r").data)
    stream.seek(0, os.SEEK_END)
    stream.write(_TRAILER.pack(len(index.getvalue()), checksum, _SIGNATURE))
    stream.flush()
    os.fsync(stream.fileno())


def _parse(stream: BinaryIO, shape: tuple[int, ...]) -> CachedSet:
    content = np.memmap(stream, np.uint8, "r").view(np.ndarray)
    body, trailer = content[: -_TRAILER.size], content[-_TRAILER.size :]
    if len(trailer) < _TRAILER.size:
        raise ValueError("it ends early")
    index_length, checksum, signature = _TRAILER.unpack(trailer.tobytes())
    if signature != _SIGNATURE or zlib.crc32(body.data) != checksum:
        raise ValueError("its checksum is wrong")
    num_bytes = len(body) - index_length
    with np.load(io.BytesIO(body[num_bytes:].tobytes()), allow_pickle=False) as index:
        arrays = dict(index)
    if tuple(arrays["shape"]) != shape:
        raise ValueError("it holds other pictures")
    return CachedSet(body[:num_bytes].reshape(shape), arrays["states"], _entries(arrays))


def _entries(arrays: dict[str, NDArray[np.generic]]) -> list[Entry]:
    texts = json.loads(arrays["texts"].tobytes())
    rows = np.split(arrays["rows"], np.cumsum(arrays["counts"])[:-1]) if texts else []
    return [
        Entry((height, width), LabelRows(kept, tuple(BadLine(*bad) for bad in bad_lines)), label_path, error)
        for (height, width), kept, (label_path, error, bad_lines) in zip(
            arrays["sizes"].tolist(), rows, texts, strict=True
        )
    ]
