"""The pictures that an export is calibrated, verified and judged with."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from uhd.config import Config, DataConfig
from uhd.data.build import read_set
from uhd.data.cache import ImageSpec
from uhd.data.dataset import DetectionDataset
from uhd.data.images import read_image
from uhd.data.listing import find_images
from uhd.data.synthetic import write_demo_data
from uhd.eval.mean_ap import Evaluation, MeanAP
from uhd.eval.samples import PaddedDetections, PaddedTruths
from uhd.export.decode_np import Candidates
from uhd.runtime import Detector
from uhd.types import PADDING

DRAWN = 64
"""Scenes that are drawn where no pictures are given."""
_BATCH = 32

Detect = Callable[[NDArray[np.uint8], list[str]], list[Candidates]]
"""Pictures [B,H,W,3] uint8 RGB at the network's size, and the files they come from, to what is found in each."""


def read_pictures(source: str, flag: str, count: int, cfg: Config, *, need_labels: bool = True) -> DetectionDataset:
    """At most count pictures (0: all) of a folder or list, spread evenly over it, at the network's size.

    Raises ValueError that names the flag where there is no picture; malformed labels are one only where labels are
    needed.
    """
    paths = find_images(source, flag)
    if count and len(paths) > count:
        paths = [paths[i] for i in np.linspace(0, len(paths) - 1, count).round().astype(int)]
    data = DataConfig(cache="ram", skip_bad_labels=not need_labels)
    return read_set(f"{flag} {source}", paths, ImageSpec(cfg.input.img_size, cfg.input.resize_mode), cfg.labels, data)


@contextlib.contextmanager
def drawn_pictures(cfg: Config) -> Iterator[DetectionDataset]:
    """Scenes of the demonstration data; their files are there while the context lasts."""
    with tempfile.TemporaryDirectory() as folder:
        write_demo_data(Path(folder), DRAWN, seed=0)
        yield read_pictures(folder, "drawn scenes", 0, cfg)


def inputs_of(dataset: DetectionDataset) -> NDArray[np.float32]:
    """All pictures as the network gets them, [n,3,H,W] RGB in 0..1."""
    batches = [images for images, _, _ in _batches(dataset)]
    stacked: NDArray[np.float32] = np.concatenate(batches).transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
    return np.ascontiguousarray(stacked)


def judge(dataset: DetectionDataset, detect: Detect, cfg: Config) -> Evaluation:
    """mAP and the rest of what `detect` finds; at cfg.decode.conf_thresh for precision and recall."""
    metric = MeanAP(len(cfg.labels.class_names), cfg.input.img_size, cfg.decode.conf_thresh)
    for images, indices, truths in _batches(dataset):
        found = detect(images, [dataset.paths[i] for i in indices])
        metric.update(indices, dataset.sizes[indices], _padded(found), truths)
    return metric.compute()


def detect_from_files(detector: Detector) -> Detect:
    """What a user of the file gets: each picture read from its file and brought to size by the runtime."""

    def detect(_: NDArray[np.uint8], paths: list[str]) -> list[Candidates]:
        found = []
        for path in paths:
            image = cv2.cvtColor(read_image(path), cv2.COLOR_RGB2BGR)
            found += detector.infer(detector.preprocess([image.astype(np.uint8, copy=False)]))
        return found

    return detect


def _batches(
    dataset: DetectionDataset,
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64], PaddedTruths]]:
    for start in range(0, len(dataset), _BATCH):
        indices = np.arange(start, min(start + _BATCH, len(dataset)))
        images, targets = dataset.__getitems__([(0, int(i)) for i in indices])
        yield images.numpy(), indices, PaddedTruths(targets.boxes.numpy(), targets.labels.numpy())


def _padded(found: list[Candidates]) -> PaddedDetections:
    most = max((len(each.scores) for each in found), default=0)
    boxes = np.zeros((len(found), most, 4), np.float32)
    scores = np.zeros((len(found), most), np.float32)
    labels = np.full((len(found), most), PADDING, np.int64)
    for row, each in enumerate(found):
        count = len(each.scores)
        boxes[row, :count], scores[row, :count], labels[row, :count] = each
    return PaddedDetections(boxes, scores, labels)
