"""Anchors: the IoU of sizes by hand, k-means by its properties and against a slow loop."""

import math

import numpy as np
import pytest

from uhd.anchors import auto_anchors, mean_best_iou, size_iou

NO_SMALLEST = (10**9, 10**9)  # a picture so large that one pixel is nothing


def people(count, seed=0):
    """Normalised (w, h) [count,2], from a fiftieth of the picture to all of it, higher than wide."""
    rng = np.random.default_rng(seed)
    height = np.exp(rng.uniform(math.log(0.02), 0, count))
    return np.stack([height * rng.uniform(0.2, 1, count), height], axis=1)


def slow_iou(size, anchor):
    inter = min(size[0], anchor[0]) * min(size[1], anchor[1])
    return inter / (size[0] * size[1] + anchor[0] * anchor[1] - inter)


@pytest.mark.parametrize(
    ("size", "anchor", "iou"),
    [
        ((0.2, 0.4), (0.2, 0.4), 1),
        ((0.1, 0.2), (0.2, 0.4), 0.25),
        ((0.2, 0.1), (0.1, 0.2), 0.01 / 0.03),
        ((1.0, 1.0), (0.001, 0.001), 1e-6),
        ((0.5, 0.1), (0.25, 0.2), 0.025 / 0.075),
    ],
)
def test_iou_of_sizes(size, anchor, iou):
    assert size_iou(np.array([size]), np.array([anchor])).item() == pytest.approx(iou)
    assert size_iou(np.array([anchor]), np.array([size])).item() == pytest.approx(iou)


def test_mean_best_iou_by_hand():
    sizes = np.array([[0.1, 0.2], [0.2, 0.4], [0.2, 0.2]])
    anchors = np.array([[0.2, 0.4], [0.1, 0.2]])

    assert mean_best_iou(sizes, anchors) == pytest.approx((1 + 1 + 0.5) / 3)
    assert math.isnan(mean_best_iou(np.zeros((0, 2)), anchors))


@pytest.mark.parametrize("sizes", [np.zeros((0, 2)), np.zeros((0,)), []])
def test_no_box_is_an_error(sizes):
    with pytest.raises(ValueError, match=r"--auto-anchors.*no box"):
        auto_anchors(sizes, 3, (64, 64), seed=0)


@pytest.mark.parametrize(
    ("sizes", "num_anchors"),
    [
        pytest.param([[0.25, 0.5]], 1, id="one box, one anchor"),
        pytest.param([[0.25, 0.5]], 8, id="one box"),
        pytest.param([[0.25, 0.5]] * 20, 8, id="identical boxes"),
        pytest.param([[0.25, 0.5], [0.5, 0.75]], 8, id="fewer boxes than anchors"),
        pytest.param([[0.25, 0.5], [0.5, 0.75]] * 10, 2, id="as many sizes as anchors"),
    ],
)
def test_few_sizes_are_the_anchors_themselves(sizes, num_anchors):
    anchors, fit = auto_anchors(np.array(sizes), num_anchors, (64, 64), seed=0)

    assert anchors.shape == (num_anchors, 2)
    assert {tuple(anchor) for anchor in anchors.round(9).tolist()} == {tuple(size) for size in sizes}
    assert fit == pytest.approx(1)


@pytest.mark.parametrize("seed", range(5))
def test_clusters_that_lie_far_apart_are_found(seed):
    rng = np.random.default_rng(seed)
    middles = np.array([[0.03, 0.06], [0.1, 0.3], [0.6, 0.9]])
    clusters = [middle * rng.uniform(0.95, 1.05, (50, 2)) for middle in middles]

    anchors, fit = auto_anchors(rng.permutation(np.concatenate(clusters)), 3, (64, 64), seed)

    assert np.allclose(anchors, [cluster.mean(axis=0) for cluster in clusters])
    assert fit > 0.9


@pytest.mark.parametrize("num_anchors", [1, 3, 8])
@pytest.mark.parametrize("seed", [0, 1, 42])
def test_the_result_is_a_fixed_point_of_a_slow_k_means(num_anchors, seed):
    sizes = people(200, seed)

    anchors, fit = auto_anchors(sizes, num_anchors, NO_SMALLEST, seed)

    members = [[] for _ in anchors]
    best = []
    for size in sizes:
        overlaps = [slow_iou(size, anchor) for anchor in anchors]
        members[int(np.argmax(overlaps))].append(size)
        best.append(max(overlaps))
    assert all(members)
    for anchor, cluster in zip(anchors, members, strict=True):
        assert anchor.tolist() == pytest.approx(np.mean(cluster, axis=0).tolist(), abs=1e-9)
    assert fit == pytest.approx(np.mean(best))


@pytest.mark.parametrize("num_anchors", [1, 2, 5, 16])
def test_anchors_ascend_in_area(num_anchors):
    anchors, _ = auto_anchors(people(300), num_anchors, (64, 64), seed=3)

    assert (np.diff(anchors.prod(axis=1)) >= 0).all()


@pytest.mark.parametrize(("height", "width"), [(64, 64), (64, 32), (32, 96)])
def test_no_anchor_is_smaller_than_a_pixel(height, width):
    rng = np.random.default_rng(0)
    sizes = np.concatenate([people(50), rng.uniform(0.0001, 0.02, (50, 2))])

    anchors, fit = auto_anchors(sizes, 6, (height, width), seed=0)

    assert (anchors >= [1 / width, 1 / height]).all()
    assert (anchors == [1 / width, 1 / height]).any()
    assert (np.diff(anchors.prod(axis=1)) >= 0).all()
    assert fit == pytest.approx(mean_best_iou(sizes, anchors))


def test_the_same_seed_gives_the_same_anchors():
    sizes = people(300)

    runs = [auto_anchors(sizes, 24, (64, 64), seed)[0] for seed in (1, 1, 2)]

    assert np.array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])


@pytest.mark.parametrize("seed", range(4))
def test_more_anchors_fit_better(seed):
    sizes = people(400, seed)

    fits = [auto_anchors(sizes, count, (64, 64), seed)[1] for count in (1, 2, 4, 8, 16, 32)]

    assert fits == sorted(fits)
    assert fits[0] < 0.5 < 0.8 < fits[-1] <= 1


def test_the_given_sizes_are_left_as_they_were():
    sizes = people(50)
    before = sizes.copy()

    auto_anchors(sizes, 4, (64, 64), seed=0)

    assert np.array_equal(sizes, before)
