"""Locks between processes, which the kernel releases when their holder dies."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # not a Unix: there runs are not kept apart
    fcntl = None  # type: ignore[assignment]

_PATIENCE = 2.0  # seconds of silence
_PAUSE = 0.05

_log = logging.getLogger("uhd")
_held: set[int] = set()


def _close_in_child() -> None:
    """A forked worker would otherwise keep a lock beyond the death of the process that took it."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)


class Claim:
    """A lock that is held until it is released or the process ends."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        _held.add(descriptor)

    @classmethod
    def take(cls, file: Path) -> Claim | None:
        """Locks a file, which is made where there is none; None where another holds it.

        On file systems without locks every claim succeeds. Raises OSError where the file can be neither opened nor
        made.
        """
        claim = cls(os.open(file, os.O_RDWR | os.O_CREAT, 0o666))
        if _try(claim._descriptor) is not False:
            return claim
        claim.release()
        return None

    def release(self) -> None:
        """Gives the lock back; once is enough."""
        if self._descriptor in _held:
            _held.remove(self._descriptor)
            os.close(self._descriptor)


@contextmanager
def exclusive(file: Path, what: str) -> Iterator[bool]:
    """Holds the lock of a file, which is made where there is none, against all other processes.

    Gives whether the lock is held: some network file systems have none. Waits for another holder, and after a moment
    says in the log what for. Raises OSError where the file can be neither opened nor made.
    """
    claim = Claim(os.open(file, os.O_RDWR | os.O_CREAT, 0o666))
    try:
        yield _wait(claim._descriptor, what)
    finally:
        claim.release()


def _wait(descriptor: int, what: str) -> bool:
    start, said = time.monotonic(), False
    while (held := _try(descriptor)) is False:
        if not said and time.monotonic() - start > _PATIENCE:
            said = True
            _log.info("waiting for another run, which is making %s", what)
        time.sleep(_PAUSE)
    return held is True


def _try(descriptor: int) -> bool | None:
    """Whether the lock was free and is taken; None where there are no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True
