"""Averaging frames of cameras to the network's input: `uhd.data.area` beside `cv2.resize`, both on one thread.

python -m benchmarks.area
"""

from __future__ import annotations

import cv2
import numpy as np

from uhd.data.area import shrink
from uhd.export.report import median_milliseconds

FRAMES = [(480, 640), (360, 640), (720, 1280), (1080, 1920), (600, 800), (480, 480), (427, 640)]
TARGET = (64, 64)


def main() -> None:
    cv2.setNumThreads(1)
    print(f"{'frame':>12}{'cv2, ms':>10}{'ours, ms':>10}{'times faster':>14}")
    for size in FRAMES:
        frame = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
        calls = {"cv2": lambda frame=frame: cv2.resize(frame, TARGET[::-1], interpolation=cv2.INTER_AREA)}
        if shrink(frame, TARGET) is not None:
            calls["ours"] = lambda frame=frame: shrink(frame, TARGET)
        times = median_milliseconds(calls, 200)
        ours = times.get("ours")
        cells = f"{ours:>10.3f}{times['cv2'] / ours:>14.2f}" if ours else f"{'left to cv2':>24}"
        print(f"{size[0]:>5} x {size[1]:>4}{times['cv2']:>10.3f}{cells}")


if __name__ == "__main__":
    main()
