"""Hungarian matching (DETR, arXiv:2005.12872): each truth gets one query, at the lowest cost of the whole picture."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from uhd.assigners.base import Predictions
from uhd.boxes import box_similarity
from uhd.types import Targets

L1_WEIGHT = 5.0
IOU_WEIGHT = 2.0
NEVER = 1e6
"""Cost of a pair whose prediction is not finite: above all others, and a number, which scipy asks for."""


class Matches(NamedTuple):
    """Queries and what they learn: image [P], query [P], row in Targets [P]; ordered by image, then query."""

    image: Tensor
    query: Tensor
    row: Tensor


def centre_form(boxes: Tensor) -> Tensor:
    """Boxes [...,4] xyxy to cx cy w h."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], dim=-1)


@torch.no_grad()
def match_queries(predictions: Predictions, targets: Targets) -> Matches:
    """The cheapest matching of queries and real truths, as many pairs as the fewer of the two.

    cost = 5 * L1 of (cx, cy, w, h) + 2 * (1 - GIoU) - score of the truth's class.
    """
    is_truth = targets.labels >= 0
    cost = pair_costs(predictions, targets).nan_to_num(nan=NEVER, posinf=NEVER)
    # What is no truth is marked in the matrix itself, so that one transfer brings everything.
    costs = cost.masked_fill(~is_truth[:, None], torch.nan).cpu().numpy()
    pairs = [np.empty((3, 0), dtype=np.int64)]
    for image, matrix in enumerate(costs):
        rows = np.flatnonzero(~np.isnan(matrix[0]))
        query, column = linear_sum_assignment(matrix[:, rows])
        pairs.append(np.stack([np.full_like(query, image), query, rows[column]]))
    return Matches(*torch.from_numpy(np.concatenate(pairs, axis=1)).to(cost.device))


def pair_costs(predictions: Predictions, targets: Targets) -> Tensor:
    """Cost of each query for each row of targets, [B,Q,M]; rows that are no truth count as class 0."""
    boxes, truths = predictions.boxes[:, :, None], targets.boxes[:, None]
    distance = (centre_form(boxes) - centre_form(truths)).abs().sum(dim=-1)
    _, giou = box_similarity(boxes, truths, "giou")
    labels = targets.labels.clamp(min=0)[:, None].expand(-1, boxes.shape[1], -1)
    return L1_WEIGHT * distance + IOU_WEIGHT * (1 - giou) - predictions.scores.gather(2, labels)
