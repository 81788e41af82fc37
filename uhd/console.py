"""What programs with progress bars write to the terminal."""

from __future__ import annotations

import contextlib
import logging
import sys

from tqdm import tqdm


class BarFriendlyHandler(logging.Handler):
    """Prints above the progress bars; warnings and errors go to stderr, the rest to stdout."""

    def emit(self, record: logging.LogRecord) -> None:
        """One line a record."""
        stream = sys.stderr if record.levelno >= logging.WARNING else sys.stdout
        prefix = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        # A terminal that was closed, or a full disk behind stdout, ends no training.
        with contextlib.suppress(OSError):
            tqdm.write(prefix + record.getMessage(), file=stream)
