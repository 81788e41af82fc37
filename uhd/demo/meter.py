"""How long the detector takes, and how many pictures a second go through the whole program."""

from __future__ import annotations

import time
from array import array
from collections import deque
from statistics import median

from uhd.demo.frames import Frame, Result
from uhd.runtime import Detector

_NUM_RECENT = 31


class Meter:
    """Runs a detector and keeps the times, from `start` on.

    What is shown meanwhile is the median over the last pictures, so that it can be read and one hiccup does not move
    it.
    """

    def __init__(self, detector: Detector) -> None:
        self.detector = detector
        self.num_found = 0
        self._times = array("d")  # ms; 20 MB for a day of a camera
        self._recent: deque[float] = deque(maxlen=_NUM_RECENT)
        self._periods: deque[float] = deque(maxlen=_NUM_RECENT)
        self._started = 0.0
        self._last = 0.0
        self._idle = 0.0

    def start(self) -> None:
        """From here on the time of the whole counts."""
        self._started = time.perf_counter()

    def measure(self, frame: Frame) -> Result:
        """Detects in one picture."""
        start = time.perf_counter()
        found = self.detector(frame.image)
        ms = (time.perf_counter() - start) * 1000
        self.num_found += len(found)
        self._times.append(ms)
        self._recent.append(ms)
        if self.num_pictures > 1:
            self._periods.append(start - self._last)
        self._last = start
        return Result(frame, found, ms)

    @property
    def num_pictures(self) -> int:
        """How many pictures were looked at."""
        return len(self._times)

    def leave_out(self, seconds: float) -> None:
        """Time in which the program waited for the user."""
        self._idle += seconds

    def speed(self) -> str:
        """The recent speed, such as `0.41 ms  230 FPS`; the first picture has no rate."""
        ms = f"{median(self._recent):.2f} ms"
        return f"{ms}  {1 / max(median(self._periods), 1e-9):.0f} FPS" if self._periods else ms

    def summary(self) -> str:
        """One line on all pictures, of which there is at least one."""
        count = self.num_pictures
        mean, middle = sum(self._times) / count, median(self._times)
        seconds = max(time.perf_counter() - self._started - self._idle, 1e-9)
        return (
            f"{count} {'picture' if count == 1 else 'pictures'}, {self.num_found} detections; "
            f"detector {mean:.2f} ms in the mean, {middle:.2f} in the median; {count / seconds:.1f} FPS altogether"
        )
