"""What the demo writes to the terminal: warnings, a line for each picture, progress."""

from __future__ import annotations

import logging
import sys
import time
from typing import TextIO

from uhd.demo.frames import Result, View
from uhd.runtime import Image

_PROGRESS_INTERVAL = 0.1
_LINE_INTERVAL = 1.0
_CLEAR_LINE = "\r\033[K"

log = logging.getLogger("uhd")


class ConsoleHandler(logging.Handler):
    """Warnings and errors go to stderr, the rest to stdout."""

    def emit(self, record: logging.LogRecord) -> None:
        """One line a record."""
        if record.levelno >= logging.WARNING:
            write_line(sys.stderr, f"{record.levelname.lower()}: {record.getMessage()}")
        else:
            write_line(sys.stdout, record.getMessage())


def log_to_console() -> None:
    """Sets up the program's log; unlike that of a run it needs no progress bars and no file."""
    log.setLevel(logging.INFO)
    log.handlers = [ConsoleHandler()]
    log.propagate = False


def write_line(stream: TextIO, text: str) -> None:
    """One line, above a progress line if there is one; what the terminal cannot show (a file's name) is escaped."""
    encoding = stream.encoding or "utf-8"
    if sys.stderr.isatty():
        sys.stderr.write(_CLEAR_LINE)
        sys.stderr.flush()
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
    stream.flush()


class Lines(View):
    """Without a window and a file: a line for each picture, or one a second for a video."""

    def __init__(self, *, is_video: bool) -> None:
        self._interval = _LINE_INTERVAL if is_video else 0.0
        self._last = -_LINE_INTERVAL

    def take(self, result: Result, picture: Image | None, speed: str) -> bool:
        """Writes the line, if it is due."""
        now = time.perf_counter()
        if now - self._last < self._interval:
            return True
        self._last = now
        count = len(result.found)
        best = f", best {result.found.scores[0]:.2f}" if count else ""
        if self._interval:
            log.info("picture %d: %d found%s, %s", result.frame.number, count, best, speed)
        else:
            log.info("%s: %d found%s, %.2f ms", result.frame.name, count, best, result.ms)
        return True


class Progress(View):
    """Without a window, while files are written: how far it is, on one line of the terminal; silent elsewhere."""

    def __init__(self, total: int | None) -> None:
        self._total = f"/{total}" if total else ""
        self._last = 0.0

    def take(self, result: Result, picture: Image | None, speed: str) -> bool:
        """Writes the line, if it is due."""
        now = time.perf_counter()
        if sys.stderr.isatty() and now - self._last >= _PROGRESS_INTERVAL:
            self._last = now
            sys.stderr.write(f"{_CLEAR_LINE}{result.frame.number}{self._total}  {speed}")
            sys.stderr.flush()
        return True
