"""Convert annotations between YOLO text, Pascal VOC, COCO and csv: `python -m uhd.data.convert --help`."""

from __future__ import annotations

import uhd.process  # noqa: F401  # isort: skip - settings that OpenCV reads when it is loaded

import logging
import sys
from collections.abc import Sequence

from uhd.cli import parse_convert_args
from uhd.console import BarFriendlyHandler
from uhd.data.conversion import convert
from uhd.program import exit_code_of


def main(argv: Sequence[str] | None = None) -> int:
    """Does what the flags ask for; exit code 2 for a mistake of the user's, 130 and 143 for signals."""
    return exit_code_of("uhd.data.convert", lambda _: run(argv))


def run(argv: Sequence[str] | None) -> None:
    """One session."""
    log = logging.getLogger("uhd")
    log.setLevel(logging.INFO)
    log.handlers, log.propagate = [BarFriendlyHandler()], False
    convert(parse_convert_args(argv))


if __name__ == "__main__":
    sys.exit(main())
