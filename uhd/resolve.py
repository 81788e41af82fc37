"""The last changes of a config: what follows from the training data."""

from __future__ import annotations

import dataclasses
import logging
from typing import TypeGuard

import numpy as np

from uhd.anchors import FloatArray, auto_anchors
from uhd.config import AnchorSizesConfig, Config, ModelConfig
from uhd.data.dataset import DetectionDataset

log = logging.getLogger("uhd")


def name_classes(cfg: Config, train_set: DetectionDataset) -> Config:
    """With the classes called as the training set's annotations call them, where --names does not say otherwise."""
    if not train_set.class_names:
        return cfg
    return dataclasses.replace(cfg, labels=dataclasses.replace(cfg.labels, class_names=train_set.class_names))


def resolve(cfg: Config, train_set: DetectionDataset, teacher: ModelConfig | None = None) -> Config:
    """Computes the anchors where the config has none; after this nothing changes.

    teacher: section of a network whose outputs are learned. Where its head has as many anchors, they are taken: with
    others, and be it those of another seed, its places would not be the student's.
    """
    model = cfg.model
    if not isinstance(model, AnchorSizesConfig) or not model.anchor_counts:
        return cfg
    count = sum(model.anchor_counts)
    if model.anchors is not None:
        if len(model.anchors) != count:
            raise ValueError(f"--anchors has {len(model.anchors)} pairs, but --num-anchors is {model.num_anchors}")
        return cfg
    if _has_as_many(teacher, model):
        log.info("anchors: the teacher's, so that its places are the student's; --anchors gives others")
        return dataclasses.replace(cfg, model=dataclasses.replace(model, anchors=teacher.anchors))
    if not cfg.auto_anchors.auto_anchors:
        log.info("no --anchors given: computing them from the training boxes (--auto-anchors)")
    anchors, fit = auto_anchors(box_sizes(train_set), count, cfg.input.img_size, cfg.data.seed)
    height, width = cfg.input.img_size
    shown = " ".join(f"{w * width:.1f}x{h * height:.1f}" for w, h in anchors)
    log.info("anchors (width x height in network pixels): %s; mean best IoU %.3f", shown, fit)
    # Through float32, so that the config holds exactly what the network does.
    pairs = tuple((float(np.float32(w)), float(np.float32(h))) for w, h in anchors)
    return dataclasses.replace(cfg, model=dataclasses.replace(model, anchors=pairs))


def _has_as_many(teacher: ModelConfig | None, model: AnchorSizesConfig) -> TypeGuard[AnchorSizesConfig]:
    """Whether the teacher has anchors of the student's kind, on as many grids and in the same number."""
    if not isinstance(teacher, AnchorSizesConfig) or teacher.anchors is None:
        return False
    return teacher.head == model.head and teacher.anchor_counts == model.anchor_counts


def box_sizes(train_set: DetectionDataset) -> FloatArray:
    """Normalised (w, h) [n,2] of the boxes that training teaches: augmentation's outliers are left out."""
    taught = train_set.taught_boxes()
    sizes = [boxes[:, 2:] - boxes[:, :2] for boxes in taught]
    return np.concatenate(sizes).astype(np.float64) if sizes else np.zeros((0, 2))
