"""A set's pictures in a folder of their own: opened as they are where nothing has changed, else brought up to date.

A process that opens a cache which is up to date takes no lock and writes nothing, so the folder may be read-only. One
that changes it holds the lock; what it replaces is removed only when the new index is in place, and stays readable to
those who have it open.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from uhd.data.cache_file import Index, read_index, write_index
from uhd.data.entries import Entries, EntriesBuilder, Entry, Found
from uhd.data.shards import Layout, ShardStore, ShardWriter
from uhd.locking import exclusive

_INDEX = "index"
_LOCK = "lock"

_log = logging.getLogger("uhd")


class Source(Protocol):
    """The files that a set's pictures come from."""

    paths: Sequence[str]

    @property
    def class_names(self) -> tuple[str, ...]:
        """Those of the annotations, once something has been read."""

    def blank(self) -> Entries:
        """Entries for its pictures without anything in them."""

    def states(self) -> NDArray[np.int64]:
        """[n,4]: numbers that change when a picture's file does, and others for its labels."""

    def read(self, indices: NDArray[np.int64]) -> Iterator[Found]:
        """What the files of these pictures hold, in any order."""

    def read_labels(self, indices: NDArray[np.int64], sizes: NDArray[np.int64]) -> Iterator[tuple[int, Entry]]:
        """The same without the pictures, of which sizes [n,2] are known."""


def open_disk(source: Source, shape: tuple[int, ...], folder: Path) -> tuple[ShardStore, Entries]:
    """The pictures [n,H,W,3] kept in a folder, which is made or brought up to date where need be.

    Raises OSError where it cannot be written.
    """
    # A shard that is gone a moment later was replaced by another run, whose work is found below.
    with contextlib.suppress(ValueError, FileNotFoundError):
        index = read_index(folder / _INDEX, shape, source.paths)
        if index is not None and not (index.states != source.states()).any() and not _missing(folder, index):
            return _store(folder, index), index.entries
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive(folder / _LOCK, f"the picture cache {folder}") as held:
        index = _bring_up_to_date(folder, source, shape)
        store = _store(folder, index)
        if held:
            _remove_unnamed(folder, index)
    return store, index.entries


def _store(folder: Path, index: Index) -> ShardStore:
    return ShardStore([folder / name for name in index.shards], index.layout, index.checksums)


def _missing(folder: Path, index: Index) -> set[int]:
    """The shards that are not there, or not whole."""
    layout = index.layout
    sizes = {shard: len(layout.pictures(shard)) * layout.picture_bytes for shard in range(layout.num_shards)}
    return {shard for shard, size in sizes.items() if _size_of(folder / index.shards[shard]) != size}


def _size_of(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return -1


def _bring_up_to_date(folder: Path, source: Source, shape: tuple[int, ...]) -> Index:
    """Reads again what has changed, and replaces the shards that hold it."""
    # Looked at again behind the lock: another run may just have done the work.
    states = source.states()
    older = _sound_index(folder, shape, source.paths)
    layout = Layout.of(shape) if older is None else older.layout
    with ShardWriter(folder, layout) as writer:
        if older is None:
            writer.start(range(layout.num_shards))
            changed, relabelled = np.ones(shape[0], bool), np.zeros(shape[0], bool)
        else:
            changed, relabelled = _take_over(folder, older, states, writer)
            if not (changed | relabelled).any():
                return older
        entries = source.blank() if older is None else older.entries
        builder = EntriesBuilder(entries)
        for position, entry, image in source.read(np.flatnonzero(changed)):
            writer.put(position, image)
            builder.add(position, entry)
        for position, entry in source.read_labels(np.flatnonzero(relabelled), entries.sizes):
            builder.add(position, entry)
        writer.finish()
        index = Index(layout, writer.names, writer.checksums, states, builder.build(source.class_names))
        write_index(folder / _INDEX, index)
    return index


def _sound_index(folder: Path, shape: tuple[int, ...], paths: Sequence[str]) -> Index | None:
    try:
        return read_index(folder / _INDEX, shape, paths)
    except ValueError as error:
        _log.warning("%s: the picture cache is damaged (%s) and is made again", folder / _INDEX, error)
        return None


def _take_over(
    folder: Path, older: Index, states: NDArray[np.int64], writer: ShardWriter
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Keeps or copies what is sound in an older cache; returns which pictures [n], and which labels, must be read."""
    layout = older.layout
    differs = older.states != states
    if differs.any():
        count = differs.any(axis=1).sum()
        _log.info("%s: %d of %d pictures or labels changed and are read again", folder, count, len(differs))
    relabelled: NDArray[np.bool_] = differs[:, 2:].any(axis=1)
    changed: NDArray[np.bool_] = differs[:, :2].any(axis=1)
    without_size = list(older.entries.errors)
    changed[without_size] |= relabelled[without_size]
    missing = _missing(folder, older)
    renewed = missing | set((np.flatnonzero(changed) // layout.per_shard).tolist())
    for shard in set(range(layout.num_shards)) - renewed:
        writer.keep(shard, older.shards[shard], older.checksums)
    writer.start(sorted(renewed))
    for shard in sorted(renewed):
        file, pictures = folder / older.shards[shard], layout.pictures(shard)
        damaged = list(pictures) if shard in missing else writer.copy(shard, file, older.checksums, ~changed)
        if damaged:
            _log.warning("%s: the picture cache is damaged; %d pictures are read again", file, len(damaged))
            changed[damaged] = True
    return changed, relabelled & ~changed


def _remove_unnamed(folder: Path, index: Index) -> None:
    """Deletes what the index does not name: older shards, and what a killed run left."""
    for file in folder.iterdir():
        if file.name not in {_INDEX, _LOCK, *index.shards}:
            with contextlib.suppress(OSError):
                file.unlink()
