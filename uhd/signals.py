"""Ctrl-C and SIGTERM: a run stops between two steps, with its last epoch saved."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from types import FrameType


class Stopped(BaseException):
    """A signal asked the run to stop; exit_code is 130 or 143.

    Not an Exception, so that code which survives any error does not swallow it.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


def leave_at_once(program: str) -> None:
    """Until `StopSignals` takes over, a signal ends the process with one line: nothing is under way yet."""

    def leave(number: int, frame: FrameType | None) -> None:
        print(f"{program}: stopped by {signal.Signals(number).name}", file=sys.stderr, flush=True)
        os._exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, leave)


def _leave_to_parent() -> None:
    """Signals in a forked worker: Ctrl-C, which reaches every process of a terminal, is the parent's to answer.

    SIGTERM ends the worker at once: an exception inside a queue's lock would leave the others waiting for ever.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _end_later(reader: int, seconds: float) -> None:
    """Waits for SIGINT or SIGTERM to be written to a pipe, and then for the time that it leaves the process."""
    while (number := os.read(reader, 1)[0]) not in (signal.SIGINT, signal.SIGTERM):
        pass
    time.sleep(seconds)
    os._exit(128 + number)


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

    def insist(self, seconds: float) -> None:
        """From here on a signal ends the process after so many seconds at the latest, whatever it is waiting for.

        Python's handlers run in the main thread, which may be inside a call that waits for another process of the run.
        """
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        threading.Thread(target=_end_later, args=(reader, seconds), daemon=True).start()

    def check(self) -> None:
        """Raises Stopped when a signal has come."""
        if self.received is not None:
            raise self.received
