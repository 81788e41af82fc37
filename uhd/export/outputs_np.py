"""What the outputs of a graph mean: files of ours by their metadata, others by their shapes. numpy and OpenCV only."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from uhd.config import OnnxFormat
from uhd.export import nanodet_np
from uhd.export.decode_np import Candidates, build_decoder
from uhd.export.metadata import MERGED_NAME, SEPARATE_NAMES, Metadata

Outputs = Sequence[NDArray[Any]]
Reader = Callable[[Outputs, float, int], list[Candidates]]
"""(outputs, conf_thresh, limit) to the candidates of each picture from conf_thresh up, at most limit, best first."""


class Port(NamedTuple):
    """An input or output of a graph; a dimension without a fixed size is None."""

    name: str
    shape: tuple[int | None, ...]


def read_rows(outputs: Outputs, conf_thresh: float, limit: int) -> list[Candidates]:
    """One output [B,K,6] of rows score, class, cx, cy, w, h, normalised; rows that score 0 are unused."""
    found = []
    for rows in outputs[0]:
        used = rows[(rows[:, 0] >= conf_thresh) & (rows[:, 0] > 0)]
        half = used[:, 4:6] / 2
        boxes = np.concatenate([used[:, 2:4] - half, used[:, 2:4] + half], axis=1)
        found.append(_best(Candidates(boxes, used[:, 0], used[:, 1].astype(np.int64)), limit))
    return found


def read_separate(outputs: Outputs, conf_thresh: float, limit: int) -> list[Candidates]:
    """boxes [B,K,4] xyxy 0-1, scores [B,K] and labels [B,K]; entries that score 0 are unused."""
    found = []
    for boxes, scores, labels in zip(*outputs, strict=True):
        used = (scores >= conf_thresh) & (scores > 0)
        found.append(_best(Candidates(boxes, scores, labels.astype(np.int64)).take(used), limit))
    return found


def _best(found: Candidates, limit: int) -> Candidates:
    """By falling score; rows that stand so already keep their order."""
    return found.take(np.argsort(-found.scores, kind="stable")[:limit])


def suppress(found: Candidates, iou_thresh: float | None, topk: int) -> Candidates:
    """Class-wise non-maximum suppression of candidates sorted by score; None leaves it out. At most topk remain."""
    if iou_thresh is None or len(found.scores) < 2:
        return found.take(slice(topk))
    corners = found.boxes.astype(np.float64)
    # OpenCV keeps classes apart by shifting their boxes, which is right for coordinates >= 0 only.
    corners -= corners.min()
    corners[:, 2:] -= corners[:, :2]
    boxes, scores, labels = corners.tolist(), found.scores.tolist(), found.labels.tolist()
    kept = cv2.dnn.NMSBoxesBatched(boxes, scores, labels, -1.0, iou_thresh)
    return found.take(np.sort(np.asarray(kept, dtype=np.int64))[:topk])


def soft_suppress(found: Candidates, conf_thresh: float, sigma: float, topk: int) -> Candidates:
    """Class-wise Gaussian soft suppression of candidates sorted by score: the twin of `boxes.soft_suppress`."""
    boxes, left = found.boxes.astype(np.float64), found.scores.astype(np.float64)
    chosen: list[int] = []
    scores: list[np.floating[Any]] = []
    while len(chosen) < min(topk, len(left)):
        best = int(left.argmax())
        score = left[best].astype(found.scores.dtype)
        if score <= 0 or score < conf_thresh:
            break
        chosen.append(best)
        scores.append(score)
        falls = np.exp(-np.square(_iou(boxes, boxes[best])) / sigma)
        left = np.where(found.labels == found.labels[best], left * falls, left)
        left[best] = 0
    return found.take(np.array(chosen, dtype=np.int64))._replace(scores=np.array(scores, dtype=found.scores.dtype))


def _iou(boxes: NDArray[np.float64], box: NDArray[np.float64]) -> NDArray[np.float64]:
    """IoU of boxes [K,4] with one [4]; boxes without area give 0."""
    sides = np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2])
    inter = sides.clip(min=0).prod(axis=1)
    areas = (boxes[:, 2:] - boxes[:, :2]).clip(min=0).prod(axis=1)
    overlap: NDArray[np.float64] = inter / (areas + (box[2:] - box[:2]).clip(min=0).prod() - inter).clip(min=1e-9)
    return overlap


def finish(found: Candidates, metadata: Metadata, conf_thresh: float) -> Candidates:
    """The detections among a picture's candidates, which score conf_thresh or more, by the rules of a file."""
    if metadata.uses_nms and metadata.nms == "soft":
        return soft_suppress(found, conf_thresh, metadata.nms_sigma, metadata.topk)
    return suppress(found, metadata.nms_iou if metadata.uses_nms else None, metadata.topk)


def build_reader(metadata: Metadata, ports: Sequence[Port]) -> Reader:
    """The reader of a file's outputs; ValueError where they are not those that its metadata announce."""
    if metadata.decoder == nanodet_np.NAME and not metadata.uhd_version:
        return nanodet_np.NanoDetDecoder(**metadata.decoding)
    if metadata.outputs == "raw":
        return build_decoder(metadata.decoder, metadata.decoding)
    if not metadata.uhd_version:
        return read_rows
    expected = (MERGED_NAME,) if metadata.outputs == "merged" else SEPARATE_NAMES
    names = tuple(port.name for port in ports)
    if names != expected:
        raise ValueError(f"its outputs are {', '.join(names)}; its metadata announce {', '.join(expected)}")
    return read_rows if metadata.outputs == "merged" else read_separate


def recognise(
    image_size: tuple[int | None, int | None], ports: Sequence[Port], input_name: str = "", form: OnnxFormat = "auto"
) -> Metadata:
    """The contract of a file that says nothing of itself: a release, told by its names and shapes.

    image_size is (height, width) of the input. form says which program's release it is; auto looks. ValueError for
    outputs of any other form.
    """
    names = [port.name for port in ports]
    shape = ports[0].shape if len(ports) == 1 else ()
    if form == "nanodet" or (form == "auto" and nanodet_np.looks_like_release(input_name, names, shape)):
        return nanodet_np.contract(image_size, shape)
    return _original_release(image_size, ports)


def _original_release(image_size: tuple[int | None, int | None], ports: Sequence[Port]) -> Metadata:
    """The contract of a release of the original program."""
    base = Metadata(
        uhd_version="",
        arch="unknown",
        outputs="merged",
        class_names=("person",),
        img_size=(image_size[0] or 0, image_size[1] or 0),
        resize_mode="opencv_inter_area",
        decoder="",
    )
    shapes = [port.shape for port in ports]
    if len(shapes) == 1 and len(shapes[0]) == 3 and shapes[0][2] == 6:
        return base
    if [len(shape) for shape in shapes] == [4, 2, 2] and shapes[1] == shapes[2] and shapes[1][1] == 2:
        entries, rest = divmod(shapes[0][1] or 0, shapes[1][0] or 1)
        if not rest and entries >= 6:
            return _raw_release(base, entries, ports[0].name)
    listed = ", ".join(f"{port.name} {list(port.shape)}" for port in ports)
    raise ValueError(
        f"not a detector: its outputs are {listed}; expected [1,K,6], or [1,A*(5+q+C),h,w] and two of [A,2], or "
        "[1,N,C+32] named output from an input named data (NanoDet)"
    )


def _raw_release(base: Metadata, entries: int, name: str) -> Metadata:
    """An anchor map of `entries` channels an anchor.

    Seven are box, objectness, quality and one class (all releases are), unless the map's name speaks of no quality.
    """
    has_quality = entries > 6 and "obj_cls" not in name
    num_classes = entries - 5 - has_quality
    names = ("person",) if num_classes == 1 else tuple(f"class{index}" for index in range(num_classes))
    decoding = {
        "num_classes": num_classes,
        "has_quality": has_quality,
        "score_mode": "obj*quality*cls" if has_quality else "obj*cls",
    }
    return dataclasses.replace(base, outputs="raw", class_names=names, decoder="anchor", decoding=decoding)
