"""Where pictures come from: a camera, a video file, picture files."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import cv2

from uhd.config import DemoConfig
from uhd.data.images import read_image
from uhd.data.limits import Limits
from uhd.data.listing import IMAGE_SUFFIXES, find_images
from uhd.demo.frames import Frame
from uhd.muting import muted_stderr
from uhd.runtime import Image

DEFAULT_FPS = 30.0
"""Of a camera or video that does not say."""
_SANE_FPS = (1.0, 1000.0)
_MOST_OF = 0.9

_log = logging.getLogger("uhd")


class PictureSource:
    """Picture files, read as training and validation read them; iterating gives one Frame each.

    path: a picture, or a folder that is searched recursively. limits: how large a picture may be. One that cannot be
    read is left out with a warning; ValueError that names the flag where path is neither, holds no picture, or none can
    be read.
    """

    is_video = False

    def __init__(self, path: str, limits: Limits) -> None:
        self.path = path
        self._limits = limits
        self.is_single = os.path.isfile(path)
        if self.is_single and Path(path).suffix.lower() not in IMAGE_SUFFIXES:
            listed = ", ".join(sorted(IMAGE_SUFFIXES))
            raise ValueError(f"--images {path}: not a picture by its name; expected {listed}, or a folder")
        self.folder = os.path.dirname(os.path.abspath(path)) if self.is_single else os.path.abspath(path)
        self.files = [os.path.abspath(path)] if self.is_single else find_images(path, "--images")
        self.total: int | None = len(self.files)

    def name_of(self, file: str) -> str:
        """A picture's path relative to the folder."""
        return Path(os.path.relpath(file, self.folder)).as_posix()

    def __iter__(self) -> Iterator[Frame]:
        num_read = 0
        for number, file in enumerate(self.files, start=1):
            try:
                with muted_stderr():
                    image = read_image(file, limits=self._limits)
            except ValueError as error:
                if self.is_single:
                    raise ValueError(f"--images {self.path}: {str(error).removeprefix(f'{file}: ')}") from None
                _log.warning("%s; left out", error)
                continue
            num_read += 1
            yield Frame(cv2.cvtColor(image, cv2.COLOR_RGB2BGR), self.name_of(file), number)
        if not num_read:
            raise ValueError(f"--images {self.path}: none of its {len(self.files)} pictures can be read")

    def close(self) -> None:
        """Nothing is held open."""


class CaptureSource:
    """A camera or a video file that is open and has given its first picture; iterating gives one Frame each.

    name stands in the results, flag in errors; file is None for a camera. fps and size (height, width) are of what is
    delivered.
    """

    is_video = True

    def __init__(
        self, capture: cv2.VideoCapture, name: str, flag: str, *, file: str | None = None, mirror: bool = False
    ) -> None:
        self.name = name
        self.flag = flag
        self.file = file
        self.is_camera = file is None
        self._capture = capture
        self._mirror = mirror
        first = self._read()
        if first is None:
            self.close()
            what = "it delivers no picture" if self.is_camera else "no picture of it can be decoded"
            raise ValueError(f"{flag}: {what}")
        self._next: Image | None = first
        self.size: tuple[int, int] = (first.shape[0], first.shape[1])
        fps = capture.get(cv2.CAP_PROP_FPS)
        self.fps: float = fps if _SANE_FPS[0] <= fps <= _SANE_FPS[1] else DEFAULT_FPS
        count = int(max(capture.get(cv2.CAP_PROP_FRAME_COUNT), 0))
        self.total: int | None = None if self.is_camera else count or None

    def _read(self) -> Image | None:
        with muted_stderr():
            is_read, image = self._capture.read()
        if not is_read or image is None:
            return None
        read: Image = cv2.flip(image, 1) if self._mirror else image
        return read

    def __iter__(self) -> Iterator[Frame]:
        number = 0
        while self._next is not None:
            number += 1
            yield Frame(self._next, self.name, number)
            self._next = self._read()
        if self.is_camera:
            raise OSError(f"{self.flag}: it delivers no more pictures")
        # Some containers only estimate their count.
        if self.total and number < _MOST_OF * self.total:
            _log.warning("%s: ends after %d of %d pictures; is it damaged?", self.flag, number, self.total)

    def close(self) -> None:
        """Gives the camera or file back."""
        self._capture.release()


Source = PictureSource | CaptureSource


def open_source(cfg: DemoConfig) -> Source:
    """The source that the flags name; ValueError that names flag and file where it cannot be opened."""
    if cfg.camera is not None:
        return _open_camera(cfg, cfg.camera)
    if cfg.video:
        return _open_video(cfg.video)
    assert cfg.images
    return PictureSource(cfg.images, Limits(max_pixels=cfg.max_pixels))


def _open_camera(cfg: DemoConfig, index: int) -> CaptureSource:
    flag = f"--camera {index}"
    with muted_stderr():
        capture = cv2.VideoCapture(index)
    if not capture.isOpened():
        raise ValueError(f"{flag}: there is no such camera, or another program has it")
    if cfg.camera_size:
        capture.set(cv2.CAP_PROP_FRAME_HEIGHT, cfg.camera_size[0])
        capture.set(cv2.CAP_PROP_FRAME_WIDTH, cfg.camera_size[1])
    source = CaptureSource(capture, f"camera {index}", flag, mirror=cfg.mirror)
    if cfg.camera_size and source.size != cfg.camera_size:
        asked, got = ("x".join(map(str, size)) for size in (cfg.camera_size, source.size))
        _log.warning("--camera-size %s: this camera gives %s", asked, got)
    return source


def _open_video(path: str) -> CaptureSource:
    flag = f"--video {path}"
    if os.path.isdir(path):
        raise ValueError(f"{flag}: a folder; expected a video file (pictures: --images)")
    if not os.path.isfile(path):
        raise ValueError(f"{flag}: no such file (looked for {os.path.abspath(path)})")
    if Path(path).suffix.lower() in IMAGE_SUFFIXES:
        raise ValueError(f"{flag}: a picture; expected a video file (pictures: --images)")
    with muted_stderr():
        # Absolute, because FFmpeg takes the part of a name before a colon for a protocol.
        capture = cv2.VideoCapture(os.path.abspath(path))
    if not capture.isOpened():
        raise ValueError(f"{flag}: not a video that can be decoded")
    return CaptureSource(capture, os.path.basename(path), flag, file=path)
