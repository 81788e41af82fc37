"""The pictures of a disk cache: raw uint8 [H,W,3] one after the other in a few files, each read when it is needed.

Pictures are read into the batch's array, not mapped: what a process holds of a set stays small however large the set
is, and the kernel keeps as much of the files in its cache as there is room for. Every picture has a checksum, which is
compared when the first of all worker processes reads it. One for a whole file would have all files read in the first
batch of a shuffled epoch.
"""

from __future__ import annotations

import contextlib
import errno
import math
import mmap
import os
import shutil
import uuid
import weakref
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

SHARD_BYTES = 64 << 20
"""About the size of a shard; larger where there would be more than MAX_SHARDS."""
MAX_SHARDS = 128
"""Each shard is an open file, of which a process may often have but 1024."""

SUFFIX = ".rgb"
"""Of the shards' names."""


@dataclass(frozen=True)
class Layout:
    """Where pictures lie: shape [n,H,W,3] of all of them, and how many stand in one shard (the last may have less)."""

    shape: tuple[int, ...]
    per_shard: int

    @classmethod
    def of(cls, shape: tuple[int, ...]) -> Self:
        """The layout for new shards."""
        smallest = -(-shape[0] // MAX_SHARDS)
        return cls(shape, max(SHARD_BYTES // math.prod(shape[1:]), smallest, 1))

    @property
    def picture_bytes(self) -> int:
        """Size of a picture."""
        return math.prod(self.shape[1:])

    @property
    def num_shards(self) -> int:
        """Number of shards."""
        return -(-self.shape[0] // self.per_shard)

    def pictures(self, shard: int) -> range:
        """Indices of a shard's pictures."""
        return range(shard * self.per_shard, min((shard + 1) * self.per_shard, self.shape[0]))

    def place(self, index: int) -> tuple[int, int]:
        """The shard of a picture, and its first byte there."""
        shard, row = divmod(index, self.per_shard)
        return shard, row * self.picture_bytes


class ShardStore:
    """Pictures in shards; an `ImageStore`. The files stay open, so that they may be replaced meanwhile.

    checksums [n] uint32, CRC-32 of each picture. Raises OSError where a file cannot be opened.
    """

    def __init__(self, files: list[Path], layout: Layout, checksums: NDArray[np.uint32]) -> None:
        self._files = files
        self._layout = layout
        self._checksums = checksums
        # In memory that forked workers share: what one of them has compared need not be compared again.
        self._compared = mmap.mmap(-1, max(len(checksums), 1))
        self._descriptors: list[int] = []
        weakref.finalize(self, _close, self._descriptors)
        for file in files:
            self._descriptors.append(os.open(file, os.O_RDONLY))

    def gather(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """New array [len(indices),H,W,3] uint8 RGB. Raises OSError that names a damaged file, and removes it."""
        images = np.empty((len(indices), *self._layout.shape[1:]), np.uint8)
        per_shard, num_bytes, descriptors = self._layout.per_shard, self._layout.picture_bytes, self._descriptors
        compared = self._compared
        for image, index in zip(images, indices.tolist(), strict=True):
            shard, row = divmod(index, per_shard)
            if os.preadv(descriptors[shard], [image], row * num_bytes) != num_bytes:
                raise self._damaged(index)
            if not compared[index]:
                if zlib.crc32(image) != self._checksums[index]:
                    raise self._damaged(index)
                compared[index] = 1
        return images

    def _damaged(self, index: int) -> OSError:
        file = self._files[index // self._layout.per_shard]
        try:
            file.unlink(missing_ok=True)
            remedy = "it is removed, and the next start makes it again"
        except OSError as error:
            remedy = f"remove it ({error.strerror} here), and the next start makes it again"
        return OSError(f"{file}: this part of the picture cache is damaged; {remedy}")


class ShardWriter:
    """Writes new shards into a folder, under names of their own that no other file has.

    A context, which closes them at its end and, where that is an error, removes them. names: of all shards; those that
    stay as they are keep theirs. checksums [n] of all pictures.
    """

    def __init__(self, folder: Path, layout: Layout) -> None:
        self._folder = folder
        self._layout = layout
        self._descriptors: dict[int, int] = {}
        self.names = [""] * layout.num_shards
        self.checksums = np.full(layout.shape[0], zlib.crc32(bytes(layout.picture_bytes)), np.uint32)

    def keep(self, shard: int, name: str, checksums: NDArray[np.uint32]) -> None:
        """Leaves a shard as it is. checksums [n] of the older set."""
        self.names[shard] = name
        pictures = self._layout.pictures(shard)
        self.checksums[pictures.start : pictures.stop] = checksums[pictures.start : pictures.stop]

    def start(self, shards: Iterable[int]) -> None:
        """Makes the shards that are to be written. Raises OSError, at once where the disk has not enough room."""
        sizes = {shard: len(self._layout.pictures(shard)) * self._layout.picture_bytes for shard in shards}
        free = shutil.disk_usage(self._folder).free
        if sum(sizes.values()) > free:
            room = f"{sum(sizes.values()) / 2**30:.1f} GiB are needed, {free / 2**30:.1f} GiB free"
            raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {room}")
        for shard, size in sizes.items():
            self.names[shard] = f"{shard:05}-{uuid.uuid4().hex[:12]}{SUFFIX}"
            self._descriptors[shard] = os.open(self._folder / self.names[shard], os.O_RDWR | os.O_CREAT | os.O_EXCL)
            os.ftruncate(self._descriptors[shard], size)

    def copy(self, shard: int, file: Path, checksums: NDArray[np.uint32], wanted: NDArray[np.bool_]) -> list[int]:
        """Takes over those pictures of an older shard that are wanted [n]; returns which of them are damaged."""
        damaged = []
        with open(file, "rb") as stream:
            for index in self._layout.pictures(shard):
                data = stream.read(self._layout.picture_bytes)
                if not wanted[index]:
                    continue
                if zlib.crc32(data) == checksums[index]:
                    self._write(index, data)
                else:
                    damaged.append(index)
        return damaged

    def put(self, index: int, image: NDArray[np.uint8] | None) -> None:
        """Writes one picture, in any order; the place of one that cannot be read (None) stays zero. Raises OSError."""
        if image is not None:
            self._write(index, image.tobytes())

    def _write(self, index: int, data: bytes) -> None:
        shard, position = self._layout.place(index)
        self.checksums[index] = zlib.crc32(data)
        rest = memoryview(data)
        while rest:
            written = os.pwrite(self._descriptors[shard], rest, position)
            rest, position = rest[written:], position + written

    def finish(self) -> None:
        """Brings the new shards to the disk. Raises OSError."""
        for descriptor in self._descriptors.values():
            os.fsync(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        _close(list(self._descriptors.values()))
        if kind is not None:
            for shard in self._descriptors:
                with contextlib.suppress(OSError):
                    (self._folder / self.names[shard]).unlink()


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
