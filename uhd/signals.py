"""Ctrl-C and SIGTERM: a run stops between two steps, with its last epoch saved."""

from __future__ import annotations

import os
import signal
from types import FrameType


class Stopped(Exception):  # noqa: N818 - a request, not an error
    """A signal asked the run to stop; exit_code is 130 or 143."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


def _leave_to_parent() -> None:
    """Signals in a forked worker: Ctrl-C, which reaches every process of a terminal, is the parent's to answer.

    SIGTERM ends the worker at once: an exception inside a queue's lock would leave the others waiting for ever.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


class StopSignals:
    """Turns SIGINT and SIGTERM into `Stopped`: at once, or, after `defer`, at the next `check`.

    received is the signal that has come, if any.
    """

    def __init__(self) -> None:
        self.received: Stopped | None = None
        self._deferred = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)
        os.register_at_fork(after_in_child=_leave_to_parent)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        # At once where nothing is in the middle that must end, or where the user asks twice.
        at_once = self.received is not None or not self._deferred
        self.received = Stopped(number)
        if at_once:
            raise self.received

    def defer(self) -> None:
        """From here on a first signal waits for `check`."""
        self._deferred = True

    def check(self) -> None:
        """Raises Stopped when a signal has come."""
        if self.received is not None:
            raise self.received
