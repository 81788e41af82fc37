"""What --save writes: lines of JSON, a video, annotated pictures."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import tempfile
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2

from uhd.data.listing import IMAGE_SUFFIXES
from uhd.demo.frames import Frame, Result, View
from uhd.demo.overlay import zoom_of
from uhd.demo.sources import CaptureSource, PictureSource, Source
from uhd.files import check_writable, write_whole
from uhd.muting import muted_stderr
from uhd.runtime import Image, name_of

# What each container is written with: codecs that OpenCV's packages can encode everywhere.
VIDEO_CODECS = {".mp4": "mp4v", ".avi": "MJPG", ".mkv": "mp4v", ".mov": "mp4v", ".webm": "VP80"}
LINES_SUFFIX = ".jsonl"
_ROOM = 2**16

_log = logging.getLogger("uhd")


class Output(View):
    """A file or folder that grows by each result; OSErrors name --save.

    Whatever ends the program, `close` keeps what is finished.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._num_taken = 0

    def take(self, result: Result, picture: Image | None, speed: str) -> bool:
        """Adds a result."""
        with self._named():
            self._write(result, picture)
        self._num_taken += 1
        return True

    def close(self) -> None:
        """Puts the result at its place, if there is any, and says so."""
        with self._named():
            self._finish()
        if self._num_taken:
            _log.info("wrote %s", self.path)

    @abstractmethod
    def _write(self, result: Result, picture: Image | None) -> None:
        """Adds the result to what is there."""

    @abstractmethod
    def _finish(self) -> None:
        """Puts what is finished at its place."""

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except (OSError, cv2.error) as error:
            raise OSError(f"--save {self.path}: {getattr(error, 'strerror', None) or error}") from None


class JsonLines(Output):
    """One JSON object a line for each picture, see `as_plain`."""

    def __init__(self, path: Path, class_names: tuple[str, ...]) -> None:
        super().__init__(path)
        self._class_names = class_names
        self._temporary = _temporary(path)
        self._file = self._temporary.open("wb")
        self._num_complete_bytes = 0

    def _write(self, result: Result, picture: Image | None) -> None:
        self._file.write((json.dumps(as_plain(result, self._class_names)) + "\n").encode("ascii"))
        self._file.flush()
        self._num_complete_bytes = self._file.tell()

    def _finish(self) -> None:
        """Renames the file, without a line that is not complete; no line leaves no file."""
        with contextlib.suppress(OSError):  # every complete line is flushed: only a line that failed can fail again
            self._file.close()
        try:
            if self._num_complete_bytes:
                with self._temporary.open("r+b") as file:
                    file.truncate(self._num_complete_bytes)
                    os.fsync(file.fileno())
                self._temporary.replace(self.path)
        finally:
            self._temporary.unlink(missing_ok=True)


class VideoFile(Output):
    """The annotated pictures of a camera or video, at its rate. ValueError where OpenCV lacks the codec."""

    needs_picture = True

    def __init__(self, path: Path, source: CaptureSource) -> None:
        super().__init__(path)
        self._temporary = _temporary(path)
        zoom = zoom_of(source.size)
        self._size = (source.size[1] * zoom, source.size[0] * zoom)
        codec = VIDEO_CODECS[path.suffix.lower()]
        with muted_stderr():
            self._writer = cv2.VideoWriter(
                str(self._temporary.absolute()), cv2.VideoWriter.fourcc(*codec), source.fps, self._size
            )
        if not self._writer.isOpened():
            self._temporary.unlink(missing_ok=True)
            raise ValueError(f"--save {path}: OpenCV cannot write {path.suffix} ({codec}) here")

    def _write(self, result: Result, picture: Image | None) -> None:
        assert picture is not None
        if (picture.shape[1], picture.shape[0]) != self._size:
            picture = cv2.resize(picture, self._size)  # else the writer drops it without a word
        self._writer.write(picture)

    def _finish(self) -> None:
        try:
            with muted_stderr():
                self._writer.release()
            if self._num_taken:
                self._check()
        finally:
            self._temporary.unlink(missing_ok=True)

    def _check(self) -> None:
        """The writer hides failures, such as a full disk, so file and disk are asked; what can be seen is kept."""
        with muted_stderr():
            capture = cv2.VideoCapture(str(self._temporary.absolute()))
            is_readable = capture.read()[0]
            capture.release()
        if not is_readable:
            raise OSError("the video that was written cannot be read; is the disk full?")
        try:
            _check_room(self._temporary)
        finally:
            self._temporary.replace(self.path)


class PictureFiles(Output):
    """Annotated pictures, each whole or not there. path: a folder or one file; place_of: where a frame's picture goes.

    ValueError where the folder cannot be made or written to.
    """

    needs_picture = True

    def __init__(self, path: Path, place_of: Callable[[Frame], Path], *, is_folder: bool) -> None:
        super().__init__(path)
        self._place_of = place_of
        self._is_new_folder = is_folder and not path.exists()
        if is_folder:
            with _said_as_mistake(path):
                path.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=path):
                    pass

    def _write(self, result: Result, picture: Image | None) -> None:
        assert picture is not None
        path = self._place_of(result.frame)
        is_encoded, data = cv2.imencode(path.suffix.lower(), picture)
        if not is_encoded:
            raise OSError(f"a picture of {picture.shape[1]}x{picture.shape[0]} cannot be encoded as {path.suffix}")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, data.tobytes())

    def _finish(self) -> None:
        if self._is_new_folder and not any(self.path.iterdir()):
            self.path.rmdir()


def open_output(save: str, source: Source, class_names: tuple[str, ...]) -> Output:
    """The output that --save names; ValueError where it does not suit the source or cannot be written."""
    path = Path(save)
    suffix = path.suffix.lower()
    if path.is_dir() or save.endswith(("/", os.sep)) or not suffix:
        return _open_folder(path, source)
    if suffix not in {LINES_SUFFIX, *VIDEO_CODECS, *IMAGE_SUFFIXES}:
        known = ", ".join([LINES_SUFFIX, *VIDEO_CODECS, *sorted(IMAGE_SUFFIXES)])
        raise ValueError(f"--save {save}: unknown kind of file; expected {known}, or a folder (name/)")
    check_writable(path, "--save")
    if suffix == LINES_SUFFIX:
        with _said_as_mistake(path):
            return JsonLines(path, class_names)
    return _open_video(path, source) if suffix in VIDEO_CODECS else _open_picture(path, source)


def as_plain(result: Result, class_names: tuple[str, ...]) -> dict[str, object]:
    """A result as numbers, texts, lists and dicts; boxes x1 y1 x2 y2 in pixels, rounded to hundredths."""
    frame, found = result.frame, result.found
    detections = [
        {
            "label": label,
            "name": name_of(label, class_names),
            "score": round(score, 5),
            "box": [round(side, 2) for side in box],
        }
        for label, score, box in zip(found.labels.tolist(), found.scores.tolist(), found.boxes.tolist(), strict=True)
    ]
    height, width = frame.image.shape[:2]
    return {
        "source": frame.name,
        "frame": frame.number,
        "width": width,
        "height": height,
        "detections": detections,
        "ms": round(result.ms, 3),
    }


def _open_folder(folder: Path, source: Source) -> PictureFiles:
    if isinstance(source, CaptureSource):
        return PictureFiles(folder, lambda frame: folder / f"frame_{frame.number:06}.jpg", is_folder=True)
    inside = Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(source.folder))
    if inside and not source.is_single:
        raise ValueError(f"--save {folder}: inside --images {source.path}; expected a folder outside of it")
    _check_originals(folder, [folder / source.name_of(file) for file in source.files], source)
    return PictureFiles(folder, lambda frame: folder / frame.name, is_folder=True)


def _open_video(path: Path, source: Source) -> VideoFile:
    if isinstance(source, PictureSource):
        raise ValueError(f"--save {path}: pictures have no rate; expected a folder or a {LINES_SUFFIX} file")
    if source.file and os.path.realpath(path) == os.path.realpath(source.file):
        raise ValueError(f"--save {path}: the video that is read; expected another file")
    return VideoFile(path, source)


def _open_picture(path: Path, source: Source) -> PictureFiles:
    if isinstance(source, CaptureSource) or not source.is_single:
        raise ValueError(f"--save {path}: one file for many pictures; expected a folder or a {LINES_SUFFIX} file")
    _check_originals(path, [path], source)
    return PictureFiles(path, lambda frame: path, is_folder=False)


def _check_originals(save: Path, places: list[Path], source: PictureSource) -> None:
    """ValueError where a picture would be written over one that is read, also through a link."""
    originals = {os.path.realpath(file) for file in source.files}
    for place in places:
        if os.path.realpath(place) in originals:
            raise ValueError(f"--save {save}: would write over {place}, a picture of --images")


@contextmanager
def _said_as_mistake(save: Path) -> Iterator[None]:
    """Before any work, what cannot be written is a wrong flag, not a failure of the machine."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"--save {save}: cannot be written ({error.strerror})") from None


def _check_room(path: Path) -> None:
    """OSError with the disk's own reason where the file could not have become longer; the file stays as it is."""
    size = path.stat().st_size
    with path.open("r+b", buffering=0) as file:
        file.seek(size)
        try:
            if file.write(bytes(_ROOM)) < _ROOM:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            file.truncate(size)
        os.fsync(file.fileno())


def _temporary(path: Path) -> Path:
    """Beside the file and of its kind, since the ending tells OpenCV the container."""
    return path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
