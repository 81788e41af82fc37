"""Running an exported detector: numpy, OpenCV and onnxruntime only, never torch.

    from uhd.runtime import Detector

    detector = Detector("model.onnx")
    found = detector(cv2.imread("street.jpg"))
    for box, score, label in zip(found.boxes, found.scores, found.labels): ...

Files of `export_onnx.py` say by themselves how to feed them. Files of the original program are recognised by the shapes
of their outputs, those of Enhanced NanoDet by names and shapes; what they do not say (resize mode, score mode) are
arguments.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from uhd.config import OnnxFormat, ResizeMode, ScoreMode
from uhd.config.values import MAX_SIDE, Suppression
from uhd.data.resize import resize
from uhd.export import nanodet_np
from uhd.export.class_filter import labels_of, only
from uhd.export.decode_np import Candidates, Floats
from uhd.export.inputs_np import build_feeder
from uhd.export.metadata import MAX_ROWS, Metadata
from uhd.export.outputs_np import Port, build_reader, finish, recognise
from uhd.reading import why_not_plain

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # else it sends usage data; read when it is loaded
import onnxruntime as ort

DEFAULT_CONF_THRESH = 0.3
"""Score from which a box is shown where the file holds no threshold of best F1."""
MAX_INPUT_PIXELS = 2**26
"""Of all pictures of a batch together, where it is fixed; 800 MB as the network gets them."""
Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Detections:
    """What was found in a picture: boxes [n,4] xyxy in its pixels, scores [n] in 0..1 descending, labels [n] class.

    Boxes are as they were validated: those of people at a border may reach out of the picture. `name_of` gives the name
    of a label.
    """

    boxes: Floats
    scores: Floats
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True)
class Overrides:
    """What the caller says in place of the file; None keeps the file's, or the default of a file that says nothing.

    conf_thresh: lowest score, default the file's threshold of best F1. nms_iou: overlap above which
    the lower-scored box of a class goes. nms: hard, or soft of width nms_sigma. topk: most boxes a
    picture. resize_mode: see `uhd.data.resize`. score_mode: the factors of a score, for raw maps. quality_power:
    exponent of the quality in it. class_names: one a class. class_filter: names, or numbers, of the classes that are
    looked for.
    """

    conf_thresh: float | None = None
    nms_iou: float | None = None
    nms: Suppression | None = None
    nms_sigma: float | None = None
    topk: int | None = None
    resize_mode: ResizeMode | None = None
    score_mode: ScoreMode | None = None
    quality_power: float | None = None
    class_names: tuple[str, ...] | None = None
    class_filter: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("conf_thresh", "nms_iou"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} {value}: expected a number from 0 to 1")
        if self.nms is not None and self.nms not in get_args(Suppression):
            raise ValueError(f"nms {self.nms!r}: expected one of {', '.join(get_args(Suppression))}")
        if self.nms_sigma is not None and not 0 < self.nms_sigma < np.inf:
            raise ValueError(f"nms_sigma {self.nms_sigma}: expected a number above 0")
        if self.quality_power is not None and not 0 <= self.quality_power < np.inf:
            raise ValueError(f"quality_power {self.quality_power}: expected a number >= 0")
        if self.topk is not None and self.topk < 1:
            raise ValueError(f"topk {self.topk}: expected at least 1")
        if self.resize_mode is not None and self.resize_mode not in get_args(ResizeMode):
            raise ValueError(f"resize_mode {self.resize_mode!r}: expected one of {', '.join(get_args(ResizeMode))}")
        if self.score_mode is not None and self.score_mode not in get_args(ScoreMode):
            raise ValueError(f"score_mode {self.score_mode!r}: expected one of {', '.join(get_args(ScoreMode))}")


class Detector:
    """A detector in an ONNX file; calls are safe from several threads at once.

    threads: of onnxruntime for one call; 0 leaves the number to it. img_size: (height, width) for a
    file whose input size is open. onnx_format: whose file it is, where its layout does not tell. Raises ValueError,
    which names the file, where it cannot be read or is no detector of a known form.
    """

    def __init__(
        self,
        path: str | Path,
        overrides: Overrides | None = None,
        *,
        threads: int = 1,
        img_size: tuple[int, int] | None = None,
        onnx_format: OnnxFormat = "auto",
    ) -> None:
        if threads < 0:
            raise ValueError(f"threads {threads}: expected at least 0")
        self.path = Path(path)
        self.session = open_session(self.path, threads)
        self._input, self.batch_size, *size = _read_input(self.session, self.path)
        overrides = overrides or Overrides()
        try:
            ports = [Port(each.name, _fixed(each.shape)) for each in self.session.get_outputs()]
            stored = Metadata.from_props(self.session.get_modelmeta().custom_metadata_map)
            if stored and onnx_format == "nanodet":
                raise ValueError("onnx_format nanodet: its metadata say that it is a file of export_onnx.py")
            found = stored or recognise((size[0], size[1]), ports, self._input, onnx_format)
            self.metadata = _override(found, overrides)
            self._read_outputs = build_reader(self.metadata, ports)
            self._feed = build_feeder(self.metadata)
            self.img_size = _settle_size(size, img_size, self.metadata)
            wanted = overrides.class_filter
            self._labels = labels_of(wanted, self.class_names) if wanted else None
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from None
        default = nanodet_np.CONF_THRESH if self.metadata.decoder == nanodet_np.NAME else DEFAULT_CONF_THRESH
        chosen = (overrides.conf_thresh, self.metadata.best_f1_threshold, default)
        self.conf_thresh: float = next(value for value in chosen if value is not None)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of each label that the file is known to have."""
        return self.metadata.class_names

    @property
    def shown_names(self) -> tuple[str, ...]:
        """Those of the names that the class filter lets through."""
        return self.class_names if self._labels is None else tuple(self.class_names[label] for label in self._labels)

    def __call__(self, image: Image) -> Detections:
        """Detects in one picture, [h,w,3] BGR uint8 as OpenCV reads it."""
        return self.detect_batch([image])[0]

    def detect_batch(self, images: Sequence[Image]) -> list[Detections]:
        """Detects in several pictures of any sizes; a file of fixed batch size is run as often as needed."""
        step = self.batch_size or max(len(images), 1)
        found: list[Detections] = []
        for start in range(0, len(images), step):
            group = images[start : start + step]
            candidates = self.infer(self.preprocess(group))[: len(group)]
            found += [self._finish(each, image.shape) for each, image in zip(candidates, group, strict=True)]
        return found

    def preprocess(self, images: Sequence[Image]) -> Floats:
        """[h,w,3] BGR uint8 pictures to the input [B,3,H,W]; padded with zeros to a fixed batch.

        It is RGB in 0..1, but for a release of NanoDet: see `uhd.export.nanodet_np.feed`.
        """
        batch = np.zeros((self.batch_size or len(images), 3, *self.img_size), dtype=np.float32)
        for row, image in zip(batch, images, strict=False):
            if not isinstance(image, np.ndarray):
                raise ValueError(f"{type(image).__name__} is no picture; expected uint8 [h,w,3] (BGR). Was it read?")
            if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
                raise ValueError(f"a picture of {image.dtype} {list(image.shape)}; expected uint8 [h,w,3] (BGR)")
            self._feed(resize(image, self.img_size, self.metadata.resize_mode), row)
        return batch

    def infer(self, inputs: Floats) -> list[Candidates]:
        """[B,3,H,W] to what remains of each picture after threshold, suppression and top-k; boxes xyxy, 0-1."""
        try:
            outputs = self.session.run(None, {self._input: inputs})
        except Exception as error:  # onnxruntime has a class of its own for each kind of failure
            raise ValueError(f"{self.path}: cannot be run on {list(inputs.shape)} ({_reason(error)})") from None
        threshold = max(self.conf_thresh, self.metadata.conf_thresh)
        limit = self.metadata.pre_nms_topk
        try:
            # The classes that nobody looks for must not fill the limit.
            candidates = self._read_outputs(outputs, threshold, limit if self._labels is None else MAX_ROWS)
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from None
        if self._labels is not None:
            candidates = [only(each, self._labels).take(slice(limit)) for each in candidates]
        if _is_finished(self.metadata):
            return [each.take(slice(self.metadata.topk)) for each in candidates]
        return [finish(each, self.metadata, threshold) for each in candidates]

    def _finish(self, found: Candidates, shape: tuple[int, ...]) -> Detections:
        """Boxes in pixels of the picture."""
        height, width = shape[:2]
        boxes = found.boxes * np.array([width, height, width, height], dtype=np.float32)
        return Detections(boxes, found.scores, found.labels)


def name_of(label: int, class_names: tuple[str, ...]) -> str:
    """The name of a class, also of one that a file without metadata has and nobody named."""
    return class_names[label] if 0 <= label < len(class_names) else f"class{label}"


def open_session(path: Path, threads: int = 1) -> ort.InferenceSession:
    """An onnxruntime session on the CPU; ValueError that names the file where it cannot be loaded."""
    reason = why_not_plain(path, "an ONNX file")
    if reason:
        raise ValueError(f"{path}: {reason}")
    try:
        return load_session(str(path), threads)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def load_session(model: str | bytes, threads: int = 1) -> ort.InferenceSession:
    """A session on the CPU for a file's path or a model's bytes; ValueError where onnxruntime cannot load it."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a class of its own for each kind of failure, without a common base
        raise ValueError(f"not an ONNX file that onnxruntime can run ({_reason(error)})") from None


def _reason(error: Exception) -> str:
    """What onnxruntime says, on one line, without its error class and the place in its source."""
    text = " ".join(str(error).split())
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : (Load model from \S+ failed:)?", "", text)
    text = re.sub(r"/\S*onnxruntime\S*:\d+ .*?\) (?=[A-Z])", "", text)
    return text.strip()[:200]


def _read_input(session: ort.InferenceSession, path: Path) -> tuple[str, int | None, int | None, int | None]:
    """Name of the input, and batch, height and width where they are fixed."""
    inputs = session.get_inputs()
    shape = inputs[0].shape if len(inputs) == 1 else []
    if len(shape) != 4 or shape[1] != 3 or inputs[0].type != "tensor(float)":
        listed = ", ".join(f"{each.name} {each.type} {each.shape}" for each in inputs)[:200]
        raise ValueError(f"{path}: not a detector: its inputs are {listed}; expected one float [1,3,H,W]")
    batch, _, height, width = _fixed(shape)
    sides = [1 if side is None else side for side in (batch, height, width)]
    if min(sides) < 1 or max(sides[1:]) > MAX_SIDE or math.prod(sides) > MAX_INPUT_PIXELS:
        raise ValueError(
            f"{path}: its input is {shape}; expected sides of 1 to {MAX_SIDE} pixels, and {MAX_INPUT_PIXELS:,} in all"
        )
    return inputs[0].name, batch, height, width


def _settle_size(fixed: Sequence[int | None], asked: tuple[int, int] | None, metadata: Metadata) -> tuple[int, int]:
    """(height, width) to bring pictures to; ValueError where the graph cannot take it."""
    height, width = fixed
    if height and width:
        if asked not in (None, (height, width)):
            raise ValueError(f"img_size {asked[0]}x{asked[1]}: its input is {height}x{width}")
        return height, width
    size = asked or metadata.img_size
    if not min(size):
        raise ValueError("its input size is open; an img_size is needed")
    stride = max(1, int(metadata.details.get("stride", 1)))
    if any(side % stride for side in size):
        raise ValueError(f"img_size {size[0]}x{size[1]}: expected multiples of its stride {stride}")
    return size


def _fixed(shape: Sequence[Any]) -> tuple[int | None, ...]:
    """A shape as onnxruntime gives it: open dimensions are texts or None there."""
    return tuple(side if isinstance(side, int) else None for side in shape)


def _override(metadata: Metadata, overrides: Overrides) -> Metadata:
    """The contract with what the caller says otherwise; ValueError for what the graph has settled already."""
    fields = ("nms_iou", "nms", "nms_sigma", "topk", "resize_mode", "class_names")
    typed = {name: getattr(overrides, name) for name in fields if getattr(overrides, name) is not None}
    decoding = dict(metadata.decoding)
    for name in ("score_mode", "quality_power"):
        value = getattr(overrides, name)
        if value is not None:
            if metadata.outputs != "raw" or "score_mode" not in decoding:
                raise ValueError(f"{name} is part of this graph; it can be set for raw maps only")
            decoding[name] = value
    if _is_finished(metadata):
        for name in ("nms_iou", "nms", "nms_sigma"):
            own = getattr(metadata, name)
            if typed.get(name, own) != own:
                raise ValueError(f"{name} is part of this graph ({own}); export it anew or use raw maps")
        if typed.get("topk", 0) > metadata.topk:
            raise ValueError(f"topk {typed['topk']}: this graph gives at most {metadata.topk} boxes")
    if overrides.conf_thresh is not None and overrides.conf_thresh < metadata.conf_thresh:
        raise ValueError(
            f"conf_thresh {overrides.conf_thresh:g}: this file leaves out what scores below {metadata.conf_thresh:g}"
        )
    names = typed.get("class_names")
    # How many classes the rows of a finished file of another program have is not written in it.
    is_known = bool(metadata.uhd_version) or metadata.outputs == "raw"
    if names and len(names) != len(metadata.class_names) and is_known:
        raise ValueError(f"{len(names)} class names; this file has {len(metadata.class_names)} classes")
    return dataclasses.replace(metadata, decoding=decoding, **typed)


def _is_finished(metadata: Metadata) -> bool:
    """Whether the graph suppresses by itself."""
    return bool(metadata.uhd_version) and metadata.outputs != "raw"
