"""The window, and the keys in it."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import cv2

from uhd.demo.frames import Result, View
from uhd.demo.meter import Meter
from uhd.demo.sources import CaptureSource, Source
from uhd.runtime import Image
from uhd.signals import StopSignals

_TITLE = "demo_uhd"
_LEAVE_KEYS = {ord("q"), 27}
_PAUSE_KEY = ord(" ")
_POLL_MS = 50
_SMALLEST_SIDE = 640
_PROBE_SECONDS = 30


class Window(View):
    """Shows annotated pictures: a video at its rate, a camera at once, picture files until a key is pressed.

    Raises ValueError that names --no-window where no window can be opened.
    """

    needs_picture = True

    def __init__(self, source: Source, signals: StopSignals, meter: Meter) -> None:
        check_display()
        self._signals = signals
        self._meter = meter
        self._waits_for_key = not isinstance(source, CaptureSource)
        self._interval = 1 / source.fps if isinstance(source, CaptureSource) and not source.is_camera else 0.0
        self._due = 0.0
        self._is_sized = False
        try:
            cv2.namedWindow(_TITLE, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO | cv2.WINDOW_GUI_NORMAL)
        except cv2.error:
            raise ValueError("this OpenCV is built without windows; --no-window does without") from None

    def take(self, result: Result, picture: Image | None, speed: str) -> bool:
        """Shows a picture for its time; False when the user leaves. Raises Stopped when a signal comes meanwhile."""
        assert picture is not None
        if not self._is_sized:
            height, width = picture.shape[:2]
            factor = max(1.0, _SMALLEST_SIDE / max(height, width))
            cv2.resizeWindow(_TITLE, round(width * factor), round(height * factor))
            self._is_sized = True
        pace = f"{result.ms:.2f} ms" if self._waits_for_key else speed
        cv2.setWindowTitle(_TITLE, f"{result.frame.name}: {len(result.found)} found, {pace}")
        cv2.imshow(_TITLE, picture)
        if self._waits_for_key:
            return self._wait_for_key() not in _LEAVE_KEYS
        now = time.perf_counter()
        key = cv2.waitKey(max(1, int((self._due - now) * 1000))) & 0xFF
        # A key ends the wait early; a wait that took too long is made up for at the next picture.
        self._due = min(max(self._due, now), time.perf_counter()) + self._interval
        if key == _PAUSE_KEY:
            key = self._wait_for_key()
        return key not in _LEAVE_KEYS and not self._is_closed()

    def _wait_for_key(self) -> int:
        """The next key; `q` where the window is closed instead."""
        start = time.perf_counter()
        key = -1
        while key == -1:
            key = cv2.waitKey(_POLL_MS)
            self._signals.check()
            if self._is_closed():
                key = ord("q")
        self._meter.leave_out(time.perf_counter() - start)
        return key & 0xFF

    def _is_closed(self) -> bool:
        try:
            return bool(cv2.getWindowProperty(_TITLE, cv2.WND_PROP_VISIBLE) < 1)
        except cv2.error:  # Qt: the last window is gone, and all of Qt with it
            return True

    def close(self) -> None:
        """Takes the window away."""
        cv2.destroyAllWindows()


def check_display() -> None:
    """ValueError where OpenCV would end the whole process because it finds no display (Linux)."""
    if sys.platform != "linux":
        return
    if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise ValueError("no display for a window (DISPLAY is not set); --no-window does without")
    # A display that is named but cannot be reached shows in the attempt only, so another process makes it.
    attempt = [sys.executable, "-c", "import cv2; cv2.namedWindow('demo_uhd')"]
    try:
        subprocess.run(attempt, check=True, capture_output=True, timeout=_PROBE_SECONDS)
    except (subprocess.SubprocessError, OSError):
        display = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
        raise ValueError(f"no window can be opened on display {display}; --no-window does without") from None
