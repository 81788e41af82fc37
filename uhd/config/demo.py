"""The section of demo_uhd.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from uhd.config.options import Scope, Section, flag_of, option
from uhd.config.run import MAX_PIXELS_HELP, DataConfig, check_max_pixels, check_sigma, check_thresholds
from uhd.config.values import (
    OnnxFormat,
    ResizeMode,
    ScoreMode,
    Size,
    Suppression,
    parse_optional_path,
    parse_resize_mode,
    parse_size,
    parse_words,
)


@dataclass(frozen=True)
class DemoConfig(Section):
    """Which file looks at what, and where the result goes."""

    scope: ClassVar[Scope] = "session"
    title: ClassVar[str] = "Demo"

    onnx: str | None = option(
        None,
        "Detector to show: a file of export_onnx.py, or a release of the original program or of Enhanced NanoDet.",
        parse=parse_optional_path,
        metavar="FILE",
    )
    onnx_format: OnnxFormat = option(
        "auto",
        "Whose file --onnx is: of this or the original program (uhd), or a release of Enhanced NanoDet, which auto "
        "tells by the names and shapes of its input and output.",
    )
    camera: int | None = option(None, "Look at camera N; without a number at the first, 0.", bare=0, metavar="N")
    video: str | None = option(None, "Look at a video file.", parse=parse_optional_path, metavar="FILE")
    images: str | None = option(
        None,
        "Look at a picture, or at all pictures of a folder and its subfolders, sorted.",
        parse=parse_optional_path,
        metavar="PATH",
        aliases=("--image", "--image-dir"),
    )
    save: str | None = option(
        None,
        "Where the result goes. FILE.jsonl: a line of detections for each picture; a video file (.mp4 .avi .mkv .mov "
        ".webm); a folder: annotated pictures; for a single picture also a picture file.",
        parse=parse_optional_path,
        metavar="OUT",
    )
    window: bool = option(
        True, "Show a window. Keys: q or Esc leaves, space pauses, any other key goes to the next picture."
    )
    conf_thresh: float | None = option(
        None,
        "Score from which a detection is shown. Default: the file's, at which its F1 is best, else 0.3 "
        "(NanoDet: 0.05).",
    )
    nms_iou: float | None = option(
        None,
        "Overlap (IoU) above which the lower-scored box of a class goes, where the file does not suppress by itself. "
        "Default: the file's, else 0.5 (NanoDet: 0.6).",
    )
    nms: Suppression | None = option(
        None,
        "What becomes of boxes that overlap a better one of their class, where the file does not suppress by itself: "
        "hard: they go; soft: their scores fall with the overlap (Gaussian soft-NMS). Default: the file's, else hard.",
    )
    nms_sigma: float | None = option(
        None,
        "Width of soft suppression: a score falls by exp(-IoU^2 / sigma) for each better box. Default: the file's, "
        "else 0.5.",
    )
    topk: int | None = option(None, "Most detections a picture. Default: the file's, else 100.")
    resize_mode: ResizeMode | None = option(
        None,
        "How a picture is brought to the input size. Default: the file's, else opencv_inter_area (NanoDet: "
        "opencv_inter_linear). Also as bare flags (--opencv_inter_nearest).",
        parse=parse_resize_mode,
    )
    score_mode: ScoreMode | None = option(
        None, "What a score is the product of, for raw maps. Default: the file's, else all factors that it has."
    )
    names: str | None = option(
        None, "File of class names, one a line. Default: the file's.", parse=parse_optional_path, metavar="FILE"
    )
    class_filter: tuple[str, ...] | None = option(
        None,
        "Only these classes, by name or number: person,car. Default: all.",
        parse=parse_words,
        metavar="NAMES",
    )
    img_size: Size | None = option(
        None,
        "Input size of a file whose size is open. Default: the size it was made for.",
        parse=parse_size,
        metavar="HxW",
    )
    threads: int = option(1, "Threads of onnxruntime; 0 leaves their number to it.", metavar="N")
    mirror: bool = option(False, "Flip the camera's picture, as a mirror does.")
    camera_size: Size | None = option(
        None, "Size to ask the camera for. Default: the camera's own.", parse=parse_size, metavar="HxW"
    )
    max_frames: int = option(0, "Stop after this many pictures; 0 is all.", metavar="N")
    max_pixels: int = option(DataConfig.max_pixels, MAX_PIXELS_HELP + " Of --images.", metavar="N")

    def __post_init__(self) -> None:
        if not self.onnx:
            raise ValueError("--onnx: which ONNX file to show")
        sources = {"--camera": self.camera, "--video": self.video, "--images": self.images}
        given = [flag for flag, value in sources.items() if value is not None]
        if not given:
            raise ValueError("--camera, --video or --images: what to look at; expected one of them")
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)}: choose one to look at")
        check_thresholds(self, "conf_thresh", "nms_iou")
        check_sigma(self.nms_sigma)
        check_max_pixels(self.max_pixels)
        for name, minimum in {"camera": 0, "topk": 1, "threads": 0, "max_frames": 0}.items():
            value = getattr(self, name)
            if value is not None and value < minimum:
                raise ValueError(f"{flag_of(name)} {value}: expected at least {minimum}")
        for name in ("mirror", "camera_size"):
            if getattr(self, name) and self.camera is None:
                raise ValueError(f"{flag_of(name)}: needs --camera")
