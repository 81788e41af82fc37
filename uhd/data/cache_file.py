"""The index of a disk cache: which shards hold the pictures, their checksums, and what the label files hold.

The file is an npz without pickle, its checksum and a signature. It is written under a temporary name, flushed and
renamed: a reader sees a whole one or none. What a folder holds is what its index names.
"""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from uhd.data.entries import Entries
from uhd.data.labels import BadLine
from uhd.data.shards import Layout
from uhd.files import write_whole

_SIGNATURE = b"uhdindx1"
_TRAILER = struct.Struct("<L8s")


@dataclass(frozen=True)
class Index:
    """What a cache holds.

    shards: names of the files, in order; checksums [n] uint32 of the pictures; states [n,4] int64, by which a change
    of the pictures' files is known.
    """

    layout: Layout
    shards: list[str]
    checksums: NDArray[np.uint32]
    states: NDArray[np.int64]
    entries: Entries


def read_index(file: Path, shape: tuple[int, ...], paths: Sequence[str]) -> Index | None:
    """The index for pictures of that shape [n,H,W,3]; None where there is none. ValueError says how it is damaged."""
    try:
        content = file.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ValueError(error.strerror) from None
    return _parse(content, shape, paths)


def write_index(file: Path, index: Index) -> None:
    """Replaces the index of a cache. Raises OSError."""
    entries = index.entries
    texts = [
        list(entries.errors.items()),
        [[i, [astuple(bad) for bad in lines]] for i, lines in entries.bad_lines.items()],
        index.shards,
        *([entries.annotations, entries.class_names] if entries.annotations else []),
    ]
    body = io.BytesIO()
    np.savez(
        body,
        shape=np.array(index.layout.shape),
        per_shard=np.array(index.layout.per_shard),
        checksums=index.checksums,
        states=index.states,
        sizes=entries.sizes,
        counts=entries.counts,
        rows=entries.rows,
        twins=entries.twins,
        texts=np.frombuffer(json.dumps(texts).encode(), dtype=np.uint8),
    )
    write_whole(file, body.getvalue() + _TRAILER.pack(zlib.crc32(body.getbuffer()), _SIGNATURE))


def _parse(content: bytes, shape: tuple[int, ...], paths: Sequence[str]) -> Index:
    body, trailer = memoryview(content)[: -_TRAILER.size], content[-_TRAILER.size :]
    if len(trailer) < _TRAILER.size:
        raise ValueError("it ends early")
    checksum, signature = _TRAILER.unpack(trailer)
    if signature != _SIGNATURE or zlib.crc32(body) != checksum:
        raise ValueError("its checksum is wrong")
    with np.load(io.BytesIO(body), allow_pickle=False) as file:
        arrays = dict(file)
    if tuple(arrays["shape"].tolist()) != shape:
        raise ValueError("it holds other pictures")
    errors, bad_lines, shards, *annotated = json.loads(arrays["texts"].tobytes())
    found = {index: tuple(BadLine(*bad) for bad in lines) for index, lines in bad_lines}
    sizes, counts, rows, twins = (arrays[name] for name in ("sizes", "counts", "rows", "twins"))
    entries = Entries(paths, sizes, counts, rows, twins, dict(errors), found)
    if annotated:
        entries = replace(entries, annotations=annotated[0], class_names=tuple(annotated[1]))
    layout = Layout(shape, int(arrays["per_shard"]))
    return Index(layout, shards, arrays["checksums"], arrays["states"], entries)
