"""Anchors from the sizes of the training boxes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
MAX_ITERATIONS = 300


def size_iou(sizes: FloatArray, anchors: FloatArray) -> FloatArray:
    """IoU of boxes that share their centre: sizes [n,2] and anchors [A,2] (w, h) to [n,A]."""
    inter = np.minimum(sizes[:, None], anchors[None]).prod(axis=2)
    union = sizes.prod(axis=1)[:, None] + anchors.prod(axis=1)[None] - inter
    return np.asarray(inter / np.maximum(union, 1e-12))


def mean_best_iou(sizes: FloatArray, anchors: FloatArray) -> float:
    """How well the anchors fit: the mean over boxes of the IoU with the best one; nan without boxes."""
    if not len(sizes):
        return float("nan")
    return float(size_iou(sizes, anchors).max(axis=1).mean())


def auto_anchors(sizes: FloatArray, num_anchors: int, img_size: tuple[int, int], seed: int) -> tuple[FloatArray, float]:
    """k-means on box sizes with the distance 1 - IoU, from k-means++ seeds.

    sizes [n,2] are normalised (w, h); img_size is (H, W) in pixels: no anchor is smaller than one
    pixel. Returns the anchors [A,2] by ascending area and their mean best IoU. With fewer distinct
    sizes than anchors some anchors repeat. ValueError when there is no box.
    """
    sizes = np.asarray(sizes, dtype=np.float64).reshape(-1, 2)
    if not len(sizes):
        raise ValueError(
            "--auto-anchors: the training pictures hold no box to compute anchors from, or RemoveOutliers ignores all"
        )
    rng = np.random.default_rng(seed)
    anchors = _kmeans_plus_plus(sizes, num_anchors, rng)
    owner = np.full(len(sizes), -1)
    for _ in range(MAX_ITERATIONS):
        nearest = size_iou(sizes, anchors).argmax(axis=1)
        if np.array_equal(nearest, owner):
            break
        owner = nearest
        counts = np.bincount(owner, minlength=num_anchors)
        sums = np.stack([np.bincount(owner, weights=sizes[:, axis], minlength=num_anchors) for axis in (0, 1)], axis=1)
        anchors = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], anchors)
    height, width = img_size
    anchors = np.maximum(anchors, [1 / width, 1 / height])
    anchors = anchors[np.argsort(anchors.prod(axis=1), kind="stable")]
    return anchors, mean_best_iou(sizes, anchors)


def _kmeans_plus_plus(sizes: FloatArray, count: int, rng: np.random.Generator) -> FloatArray:
    """Seeds drawn with probability proportional to the squared distance from those already drawn."""
    chosen = [sizes[rng.integers(len(sizes))]]
    best = np.zeros(len(sizes))
    for _ in range(count - 1):
        best = np.maximum(best, size_iou(sizes, chosen[-1][None])[:, 0])
        distance = (1 - best) ** 2
        total = distance.sum()
        index = rng.choice(len(sizes), p=distance / total) if total > 0 else rng.integers(len(sizes))
        chosen.append(sizes[index])
    return np.array(chosen)
