"""Releases of Enhanced NanoDet: how they are fed, and what their one output means. numpy only.

The file has one input `data` [1,3,H,W] and one output `output` [1,N,C+32]. A row is a prior: the scores of C classes,
then for each of the sides left, top, right and bottom 8 logits of a distribution over 0..7 strides (generalized focal
loss, Li et al., arXiv:2006.04388, section 3.2). Priors stand level by level, finest first, each row by row, at the
upper left corner of their cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from uhd.config.inputs import MAX_CLASSES
from uhd.export.coco_names import COCO_NAMES
from uhd.export.decode_np import Candidates, Floats, best_of_each
from uhd.export.metadata import MAX_ROWS, Metadata

NAME = "nanodet"
"""Of the decoder, and of the range of the input, in the contract of such a file."""
INPUT_NAME = "data"
OUTPUT_NAME = "output"
CONF_THRESH = 0.05
"""Score from which the release's own program keeps a box."""

_NMS_IOU = 0.6
_MOST_BOXES = 100
_NUM_SIDES = 4
_NUM_BINS = 8
_NUM_LOGITS = _NUM_SIDES * _NUM_BINS
_HIGHEST = 1 + 1e-3
"""Score, with the rounding that a file of less precision may have."""
_MEAN = np.array([103.53, 116.28, 123.675], dtype=np.float32)
_STD = np.array([57.375, 57.12, 58.395], dtype=np.float32)
_STRIDES = (4, 8, 16, 32, 64, 128)

Strides = tuple[int, ...]


def _stride_sets() -> tuple[Strides, ...]:
    """Neighbouring strides, at least two of them, from 4, 8 or 16 on; those that releases have stand first."""
    released = ((8, 16, 32, 64), (8, 16, 32))
    runs = (_STRIDES[i:j] for i in range(3) for j in range(i + 2, len(_STRIDES) + 1))
    return (*released, *(run for run in runs if run not in released))


STRIDE_SETS = _stride_sets()
"""The strides of a file are the first of these that give its number of rows; from 32x32 pixels up only one does."""


def feed(image: NDArray[np.uint8], out: Floats) -> None:
    """Writes [H,W,3] BGR uint8 into out [3,H,W]: BGR, less the mean, over the deviation of ImageNet's levels."""
    out[...] = ((image.astype(np.float32) - _MEAN) / _STD).transpose(2, 0, 1)


def num_priors(img_size: tuple[int, int], strides: Strides) -> int:
    """Cells of all levels of an input of (height, width); a cell that is cut off counts."""
    return sum(-(-img_size[0] // stride) * -(-img_size[1] // stride) for stride in strides)


def find_strides(img_size: tuple[int, int], rows: int) -> Strides:
    """The strides that give so many priors at (height, width); ValueError where none do."""
    for strides in STRIDE_SETS:
        if num_priors(img_size, strides) == rows:
            return strides
    known = (f"{num_priors(img_size, strides)} ({', '.join(map(str, strides))})" for strides in STRIDE_SETS[:2])
    raise ValueError(
        f"a NanoDet output of {rows} rows, which no set of strides gives at {img_size[0]}x{img_size[1]}; "
        f"expected {' or '.join(known)} or those of other neighbouring strides"
    )


def looks_like_release(input_name: str, output_names: Sequence[str], shape: Sequence[int | None]) -> bool:
    """Whether a file that says nothing of itself is one by its names, and the shape of its output.

    Other detectors have outputs of the same shape: the names have to be the release's too.
    """
    is_wide = len(shape) == 3 and (shape[2] or 0) > _NUM_LOGITS
    return input_name == INPUT_NAME and tuple(output_names) == (OUTPUT_NAME,) and is_wide


def contract(img_size: tuple[int | None, int | None], shape: Sequence[int | None]) -> Metadata:
    """What there is to know about a file of this input (height, width) and output shape [B,N,C+32].

    Classes have COCO's names where there are 80 of them, else `class0`, `class1`... ValueError for an open size, for
    another shape, and for rows that fit no strides.
    """
    height, width = img_size
    if not (height and width):
        raise ValueError("the input size of this NanoDet file is open; expected a fixed one, as its export writes it")
    rows, columns = (shape[1], shape[2]) if len(shape) == 3 else (None, None)
    if not rows or not columns or not _NUM_LOGITS < columns <= _NUM_LOGITS + MAX_CLASSES:
        raise ValueError(f"not a NanoDet file: its output is {list(shape)}; expected one, [1,N,C+{_NUM_LOGITS}]")
    num_classes = columns - _NUM_LOGITS
    strides = find_strides((height, width), rows)
    is_coco = num_classes == len(COCO_NAMES)
    return Metadata(
        uhd_version="",
        arch=NAME,
        outputs="raw",
        class_names=COCO_NAMES if is_coco else tuple(f"class{index}" for index in range(num_classes)),
        img_size=(height, width),
        resize_mode="opencv_inter_linear",
        decoder=NAME,
        decoding={"num_classes": num_classes, "img_size": (height, width), "strides": strides},
        nms_iou=_NMS_IOU,
        topk=_MOST_BOXES,
        pre_nms_topk=MAX_ROWS,
        input_channels="BGR",
        input_range=NAME,
    )


@dataclass(frozen=True)
class NanoDetDecoder:
    """The output [B,N,C+32] of an input of img_size (height, width); boxes are clipped to it.

    Scores are the class columns as they are: the graph ends them with a sigmoid. ValueError where one is above 1, as in
    a file that looks like a release and has no sigmoid, or box logits of more bins.
    """

    num_classes: int
    img_size: tuple[int, int]
    strides: Strides

    def __call__(self, maps: Sequence[Floats], conf_thresh: float, limit: int) -> list[Candidates]:
        """See `uhd.export.decode_np.MapDecoder`."""
        (table,) = maps
        by_prior = table[:, :, : self.num_classes]
        if by_prior.max(initial=0) > _HIGHEST:
            raise ValueError(
                f"a class score of {by_prior.max():.3g} in the first {self.num_classes} columns; expected scores "
                f"up to 1, and distributions of {_NUM_BINS} bins after them, as releases of NanoDet have"
            )
        corners, strides = self._priors
        height, width = self.img_size
        across = np.array([width, height, width, height], dtype=np.float32)

        def boxes_of(image: int, rows: NDArray[np.int64]) -> Floats:
            logits = table[image, rows, self.num_classes :].reshape(-1, _NUM_SIDES, _NUM_BINS)
            sides = _expected(logits) * strides[rows, None]
            boxes = np.concatenate([corners[rows] - sides[:, :2], corners[rows] + sides[:, 2:]], axis=1)
            clipped: Floats = np.clip(boxes / across, 0, 1).astype(np.float32)
            return clipped

        return best_of_each(by_prior, boxes_of, conf_thresh, limit)

    @cached_property
    def _priors(self) -> tuple[Floats, Floats]:
        """Of all priors the place (x, y) in pixels [N,2] and the stride [N]."""
        places, strides = [], []
        for stride in self.strides:
            rows, columns = (np.arange(-(-side // stride)) * stride for side in self.img_size)
            x, y = np.meshgrid(columns, rows)
            places.append(np.stack([x.ravel(), y.ravel()], axis=1))
            strides.append(np.full(x.size, stride))
        return np.concatenate(places).astype(np.float32), np.concatenate(strides).astype(np.float32)


def _expected(logits: Floats) -> Floats:
    """The mean of the distribution over 0, 1, 2... whose logits stand in the last dimension."""
    shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
    means: Floats = (shares @ np.arange(logits.shape[-1], dtype=np.float32)) / shares.sum(axis=-1)
    return means
