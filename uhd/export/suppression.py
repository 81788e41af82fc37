"""The end of a merged graph, the twin of `codec.best_candidates` and `boxes.suppress`, with outputs of one fixed size.

It is written as ONNX rather than traced: torch has no suppression of a fixed output size, and where the whole takes a
tenth of a millisecond every operator counts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, helper, numpy_helper

from uhd.config import DecodeConfig

NAME = "suppression"
"""Of the graph; in a whole file it begins the names of what belongs to it."""
INPUTS = ("candidate_boxes", "candidate_scores")

# Columns x1, y1, x2, y2 to label, cx, cy, w, h; with a label before them where there are several classes.
_TO_CXCYWH = np.array([[0, 0.5, 0, -1, 0], [0, 0, 0.5, 0, -1], [0, 0.5, 0, 1, 0], [0, 0, 0.5, 0, 1]], dtype=np.float32)
_KEEP_LABEL = np.array([[1, 0, 0, 0, 0]], dtype=np.float32)
_OFF = np.float32(-1)
"""Score of a candidate for the classes that it is not of; below every threshold."""

# The candidates: boxes [B,K,4] and scores [B,K], and of several classes their labels [B,K].
_EVERY_PRIOR = """
    kept_boxes = Identity (candidate_boxes)
    pair_scores = Reshape (candidate_scores, flat)
"""
_BEST_PRIORS = """
    flat_scores = Reshape (candidate_scores, flat)
    all_shape = Shape (flat_scores)
    all_count = Gather <axis = 0> (all_shape, one)
    candidate_count = Min (all_count, most_candidates)
    pair_scores, pairs = TopK <axis = 1> (flat_scores, candidate_count)
"""
_ONE_LABEL = """
    priors = Identity (pairs)
"""
_LABELS = """
    priors = Div (pairs, num_classes)
    first_pairs = Mul (priors, num_classes)
    pair_labels = Sub (pairs, first_pairs)
"""
_CHOSEN_BOXES = """
    prior_places = Unsqueeze (priors, two)
    kept_boxes = GatherND <batch_dims = 1> (candidate_boxes, prior_places)
"""
_ONE_CLASS = """
    class_scores = Unsqueeze (pair_scores, one)
"""
_ALL_CLASSES = """
    labels_of_all = Unsqueeze (pair_labels, one)
    is_class = Equal (labels_of_all, class_ids)
    scores_of_all = Unsqueeze (pair_scores, one)
    class_scores = Where (is_class, scores_of_all, off)
"""
# The selected (picture, class, candidate) come class by class: their scores go back to where the candidates stand, all
# others become 0, and one sort of each picture puts the classes in order.
_NMS = """
    selected = NonMaxSuppression (kept_boxes, class_scores, most_rows, nms_iou, below_conf_thresh)
    places = Gather <axis = 1> (selected, picture_and_candidate)
    selected_scores = GatherND (pair_scores, places)
    no_scores = Mul (pair_scores, zero)
    kept_scores = ScatterND (no_scores, places, selected_scores)
"""
_THRESHOLD = """
    is_kept = Greater (pair_scores, below_conf_thresh)
    kept_scores = Where (is_kept, pair_scores, zero)
"""
_BEST_ROWS = """
    shape = Shape (pair_scores)
    count = Gather <axis = 0> (shape, one)
    num_rows = Min (count, most_rows)
    best_scores, best = TopK <axis = 1> (kept_scores, num_rows)
    best_places = Unsqueeze (best, two)
    is_used = Sign (best_scores)
    is_used_column = Unsqueeze (is_used, two)
    missing = Sub (most_rows, num_rows)
    padding = Concat <axis = 0> (pads_before, missing, pads_after)
"""
_WITH_LABELS = """
    label_values = Cast <to = 1> (pair_labels)
    label_column = Unsqueeze (label_values, two)
    labelled_boxes = Concat <axis = 2> (label_column, kept_boxes)
    chosen = GatherND <batch_dims = 1> (labelled_boxes, best_places)
    used = Mul (chosen, is_used_column)
"""
_WITHOUT_LABELS = """
    chosen = GatherND <batch_dims = 1> (kept_boxes, best_places)
    used = Mul (chosen, is_used_column)
"""
_MERGED = """
    converted = MatMul (used, to_cxcywh)
    score_column = Unsqueeze (best_scores, two)
    detections = Concat <axis = 2> (score_column, converted)
    {0} = Pad (detections, padding)
"""
_SEPARATE = """
    flat_padding = Concat <axis = 0> (flat_pads_before, missing)
    {0} = Pad (used_boxes, padding)
    {1} = Pad (best_scores, flat_padding)
    {2} = Pad (used_labels, flat_padding)
"""
_SPLIT_LABELS = """
    used_boxes = Slice (used, one, five, two)
    label_floats = Gather <axis = 2> (used, first)
    used_labels = Cast <to = 7> (label_floats)
"""
_ZERO_LABELS = """
    used_boxes = Identity (used)
    no_labels = Mul (is_used, zero)
    used_labels = Cast <to = 7> (no_labels)
"""


def suppression_graph(
    cfg: DecodeConfig, num_classes: int, outputs: Sequence[str], opset: int, *, uses_nms: bool, num_priors: int | None
) -> ModelProto:
    """Inputs candidate_boxes [B,N,4] xyxy and candidate_scores [B,N,C], what `Detector.candidates` gives.

    num_priors is N, None where it is open. One name in outputs: rows [B,topk,6] of score, class, cx, cy, w, h. Three:
    boxes [B,topk,4] xyxy, scores [B,topk], labels [B,topk] int64. Rows are sorted by score, unused ones are zero.
    Pictures are suppressed apart.
    """
    topk, merged, one_class = cfg.topk, len(outputs) == 1, num_classes == 1
    # A sort of all candidates is of no use where all of them are kept: suppression sorts by itself.
    if one_class and num_priors is not None and num_priors <= cfg.pre_nms_topk:
        body = [_EVERY_PRIOR]
    else:
        body = [_BEST_PRIORS, _ONE_LABEL if one_class else _LABELS, _CHOSEN_BOXES]
    if uses_nms:
        body += [_ONE_CLASS if one_class else _ALL_CLASSES, _NMS]
    else:
        body += [_THRESHOLD]
    body += [_BEST_ROWS, _WITHOUT_LABELS if one_class else _WITH_LABELS]
    if not merged:
        body += [_ZERO_LABELS if one_class else _SPLIT_LABELS]
    body += [(_MERGED if merged else _SEPARATE).format(*outputs)]
    signature = (
        f"float[B,{topk},6] {outputs[0]}"
        if merged
        else f"float[B,{topk},4] {outputs[0]}, float[B,{topk}] {outputs[1]}, int64[B,{topk}] {outputs[2]}"
    )
    inputs = f"float[B,N,4] {INPUTS[0]}, float[B,N,{num_classes}] {INPUTS[1]}"
    graph = onnx.parser.parse_graph(f"{NAME} ({inputs}) => ({signature}) {{{''.join(body)}}}")
    used = {name for node in graph.node for name in node.input}
    constants = _constants(cfg, num_classes)
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items() if name in used)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


def _constants(cfg: DecodeConfig, num_classes: int) -> dict[str, NDArray[np.generic]]:
    # ONNX keeps what scores above a threshold, we what reaches it.
    below = np.nextafter(np.float32(cfg.conf_thresh), _OFF) if cfg.conf_thresh > 0 else _OFF / 2
    return {
        "zero": np.array(0, dtype=np.float32),
        "off": np.array(_OFF),
        "one": np.array([1]),
        "two": np.array([2]),
        "five": np.array([5]),
        "first": np.array(0),
        "flat": np.array([0, -1]),
        "pads_after": np.zeros(1, dtype=np.int64),
        "flat_pads_before": np.zeros(3, dtype=np.int64),
        "pads_before": np.zeros(4, dtype=np.int64),
        "picture_and_candidate": np.array([0, 2]),
        "num_classes": np.array([num_classes]),
        "class_ids": np.arange(num_classes).reshape(1, -1, 1),
        "most_candidates": np.array([cfg.pre_nms_topk]),
        "most_rows": np.array([cfg.topk]),
        "nms_iou": np.array([cfg.nms_iou], dtype=np.float32),
        "below_conf_thresh": np.array([below], dtype=np.float32),
        "to_cxcywh": _TO_CXCYWH if num_classes == 1 else np.concatenate([_KEEP_LABEL, _TO_CXCYWH]),
    }
