"""Files of unknown origin: read only where they are plain files, and only as much as is allowed."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

_PLAIN = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
_CHUNK = 2**20


def read_plain(path: str | Path, limit: int) -> bytes:
    """The content of a file of at most limit bytes; OSError, whose strerror says why, where it cannot be had.

    A pipe or a device is refused: it would make the reader wait, or deliver bytes without end.
    """
    with _opened(path) as (descriptor, size):
        if size > limit:
            raise _too_large(size, limit)
        data = _read_all(descriptor, size, limit)
    if len(data) > limit:
        raise _too_large(len(data), limit)
    return data


@contextlib.contextmanager
def _opened(path: str | Path) -> Iterator[tuple[int, int]]:
    """The descriptor of a plain file, and the size that it is said to have."""
    try:
        # Without waiting: to open a pipe that nobody writes to would hang before its kind can be asked for.
        descriptor = os.open(path, _PLAIN)
    except ValueError:  # a NUL, or characters that no file name has
        raise OSError(errno.EINVAL, "no file can have this name") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            kind = errno.EISDIR if stat.S_ISDIR(status.st_mode) else errno.EINVAL
            raise OSError(kind, _kind(status.st_mode))
        yield descriptor, status.st_size
    finally:
        os.close(descriptor)


def read_start(path: str | Path, count: int) -> bytes:
    """The first bytes of a file, at most count; errors as those of `read_plain`."""
    with _opened(path) as (descriptor, _):
        return os.read(descriptor, count)


def _read_all(descriptor: int, size: int, limit: int) -> bytes:
    """All bytes, but not many more than limit: a file may grow meanwhile, and some file systems give a size of 0."""
    parts = [os.read(descriptor, size + 1)]
    while parts[-1] and sum(map(len, parts)) <= limit:
        parts.append(os.read(descriptor, _CHUNK))
    return b"".join(parts)


def _too_large(size: int, limit: int) -> OSError:
    return OSError(errno.EFBIG, f"{size:,} bytes; expected at most {limit:,}")


def why_not_plain(path: Path, expected: str = "a file") -> str:
    """What keeps a path from being a plain file; empty where it is one."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return "no such file"
    if stat.S_ISREG(mode):
        return ""
    return f"{_kind(mode)}; expected {expected}"


def _kind(mode: int) -> str:
    return "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
