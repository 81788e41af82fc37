"""OpenCV and its libraries write to stderr by themselves; what the user should know, the demo says in its own words."""

from __future__ import annotations

import os

import cv2

_FFMPEG_SILENT = "-8"  # AV_LOG_QUIET
_QT_SILENT = "*.warning=false"  # it complains of a folder of fonts that OpenCV's packages leave out


def silence_opencv() -> None:
    """Turns off the messages of OpenCV, FFmpeg and Qt, unless the environment sets them; before any of them begins."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", _FFMPEG_SILENT)
    os.environ.setdefault("QT_LOGGING_RULES", _QT_SILENT)
    if "OPENCV_LOG_LEVEL" not in os.environ:
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
