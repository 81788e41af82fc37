"""Settings of the process. Importing this module makes them; import it before torch and onnxruntime.

Those for training on a CPU change speed only, never a result. What they bring is measured by
benchmarks/process_settings.py. onnxruntime sends usage data where it is not told otherwise. OpenCV decodes no picture
larger than --max-pixels can allow, whatever the readers of headers may have overlooked.
"""

from __future__ import annotations

import ctypes
import os
import sys

from uhd.config.run import MAX_PIXELS

SPIN_COUNT = "2000"
"""Rounds that a thread of libgomp spins at a barrier before it sleeps; its own default is 300,000.

With loader processes on the same cores a spinning thread takes the time of the thread it waits for.
"""

_M_MMAP_MAX = -4
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_NEVER_TRIM = 2**31 - 1
_TOP_PAD = 64 * 2**20


def _keep_freed_memory() -> None:
    """Tells glibc's malloc to keep freed memory: activations would else be mapped and zeroed anew each step."""
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, _NEVER_TRIM)
        mallopt(_M_TOP_PAD, _TOP_PAD)


os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(MAX_PIXELS))
_keep_freed_memory()
