"""Show what an ONNX detector finds on a camera, a video or pictures: `python demo_uhd.py --help`.

Needs numpy, opencv-python and onnxruntime only.
"""

from __future__ import annotations

import uhd.process  # noqa: F401  # isort: skip - settings that onnxruntime reads when it is loaded
from uhd.signals import StopSignals, leave_at_once  # isort: skip

if __name__ == "__main__":
    leave_at_once("demo_uhd.py")  # until `main`: OpenCV and onnxruntime take a moment to load

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from itertools import islice

from uhd.cli import parse_demo_args
from uhd.config import DemoConfig
from uhd.demo.console import Lines, Progress, log_to_console
from uhd.demo.frames import View
from uhd.demo.meter import Meter
from uhd.demo.model import describe, load_detector
from uhd.demo.outputs import open_output
from uhd.demo.overlay import annotate
from uhd.demo.quiet import silence_opencv
from uhd.demo.sources import Source, open_source
from uhd.demo.window import Window
from uhd.program import exit_code_of

log = logging.getLogger("uhd")


def main(argv: Sequence[str] | None = None) -> int:
    """Does what the flags ask for; returns the exit code: 2 for a mistake of the user's, 130 and 143 for signals."""
    return exit_code_of("demo_uhd.py", lambda signals: run(argv, signals))


def run(argv: Sequence[str] | None, signals: StopSignals) -> None:
    """One session: open everything, look at the pictures, say how fast it was."""
    log_to_console()
    silence_opencv()
    cfg = parse_demo_args(argv)
    detector = load_detector(cfg)
    meter = Meter(detector)
    with closing(open_source(cfg)) as source:
        try:
            with open_views(cfg, source, meter, signals) as views:
                log.info("%s", describe(detector))
                signals.defer()
                look(source, cfg.max_frames, meter, views, signals)
        finally:
            if meter.num_pictures:
                log.info("%s", meter.summary())


@contextmanager
def open_views(cfg: DemoConfig, source: Source, meter: Meter, signals: StopSignals) -> Iterator[list[View]]:
    """Everything that the flags want each result shown to; closed at the end."""
    with ExitStack() as opened:
        views: list[View] = []
        if cfg.save:
            views.append(opened.enter_context(closing(open_output(cfg.save, source, meter.detector.class_names))))
        if cfg.window:
            views.append(opened.enter_context(closing(Window(source, signals, meter))))
        else:
            views.append(Progress(source.total) if cfg.save else Lines(is_video=source.is_video))
        yield views


def look(source: Source, max_frames: int, meter: Meter, views: Sequence[View], signals: StopSignals) -> None:
    """Detects in picture after picture, until there is no more, the user has seen enough or a signal comes."""
    names = meter.detector.class_names
    needs_picture = any(view.needs_picture for view in views)
    meter.start()
    for frame in islice(source, max_frames or None):
        result = meter.measure(frame)
        # The speed of a video is worth a corner of the picture; pictures stay the same whatever the speed.
        corner = meter.speed() if source.is_video else ""
        picture = annotate(result, names, corner) if needs_picture else None
        wants_more = [view.take(result, picture, meter.speed()) for view in views]
        signals.check()
        if not all(wants_more):
            break


if __name__ == "__main__":
    sys.exit(main())
