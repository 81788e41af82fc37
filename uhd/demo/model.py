"""The detector that the flags describe."""

from __future__ import annotations

import dataclasses
import logging
import re

import numpy as np

from uhd.config import DemoConfig, LabelsConfig, flag_of
from uhd.runtime import Detector, Overrides

log = logging.getLogger("uhd")


def load_detector(cfg: DemoConfig) -> Detector:
    """Loads --onnx with what is typed about it, and runs it once, so that the first picture is timed like any other.

    Raises ValueError that names flag and file where it is no detector, cannot be run, or contradicts what is typed.
    """
    assert cfg.onnx
    names = LabelsConfig(names=cfg.names).resolved().class_names if cfg.names else None
    overrides = Overrides(
        conf_thresh=cfg.conf_thresh,
        nms_iou=cfg.nms_iou,
        nms=cfg.nms,
        nms_sigma=cfg.nms_sigma,
        topk=cfg.topk,
        resize_mode=cfg.resize_mode,
        score_mode=cfg.score_mode,
        class_names=names,
        class_filter=cfg.class_filter,
    )
    try:
        detector = Detector(
            cfg.onnx, overrides, threads=cfg.threads, img_size=cfg.img_size, onnx_format=cfg.onnx_format
        )
        detector(np.zeros((*detector.img_size, 3), dtype=np.uint8))
    except ValueError as error:
        reason = str(error).removeprefix(f"{cfg.onnx}: ")
        raise ValueError(f"--onnx {cfg.onnx}: {_in_flags(reason)}") from None
    assumed = detector.metadata.decoding.get("score_mode")
    if assumed and not detector.metadata.uhd_version and not cfg.score_mode:
        log.warning("%s does not say what a score is; %s is assumed (--score-mode)", cfg.onnx, assumed)
    return detector


def describe(detector: Detector) -> str:
    """One line on how pictures are fed to the detector and what is shown of its output."""
    names = detector.shown_names
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    size = "x".join(map(str, detector.img_size))
    threshold = f"scores from {detector.conf_thresh:.3g}"
    return f"{detector.path}: {size} pixels ({detector.metadata.resize_mode}), {shown}, {threshold}"


def _in_flags(text: str) -> str:
    """The names of the overrides as they are typed."""
    names = "|".join(["img_size", "onnx_format", *(f.name for f in dataclasses.fields(Overrides))])
    return re.sub(rf"\b({names})\b", lambda match: flag_of(match[1]), text)
