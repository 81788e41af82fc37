"""The figures of --coco-eval: cases worked by hand, the names, and silence."""

import math
from dataclasses import replace

import numpy as np
import pytest

from uhd.eval.coco import coco_metrics
from uhd.eval.samples import Samples

NAMES = ("person", "dog")
FIGURES = {"coco/AP", "coco/AP50", "coco/AP75", "coco/APs", "coco/APm", "coco/APl", "coco/AR100"}
LEFT = (0.0, 0.0, 0.5, 0.5)


def samples(detections, truths, sizes=((480, 640),)):
    """Rows (picture, box, score, label) and (picture, box, label) as Samples."""
    return Samples(
        ids=np.arange(len(sizes)) * 7,
        sizes=np.array(sizes, dtype=np.int64).reshape(-1, 2),
        boxes=np.array([row[1] for row in detections], dtype=np.float64).reshape(-1, 4),
        scores=np.array([row[2] for row in detections], dtype=np.float64),
        labels=np.array([row[3] for row in detections], dtype=np.int64),
        images=np.array([row[0] for row in detections], dtype=np.int64),
        truth_boxes=np.array([row[1] for row in truths], dtype=np.float64).reshape(-1, 4),
        truth_labels=np.array([row[2] for row in truths], dtype=np.int64),
        truth_images=np.array([row[0] for row in truths], dtype=np.int64),
    )


def test_detection_in_a_crowd_counts_for_nothing():
    found, truths = [(0, LEFT, 0.8, 0), (1, (0.6, 0.6, 0.7, 0.7), 0.9, 0)], [(0, LEFT, 0)]
    plain = samples(found, truths, sizes=((480, 640),) * 2)
    crowd = {"ignored_boxes": np.array([[0.5, 0.5, 1, 1]]), "ignored_images": np.array([1])}
    assert coco_metrics(plain, NAMES, per_class=False)["coco/AP"] == pytest.approx(0.5)
    assert coco_metrics(replace(plain, **crowd), NAMES, per_class=False)["coco/AP"] == pytest.approx(1)


def test_a_perfect_detection():
    metrics = coco_metrics(samples([(0, LEFT, 0.9, 0)], [(0, LEFT, 0)]), NAMES, per_class=False)
    assert metrics.keys() == FIGURES
    assert [metrics[f"coco/{name}"] for name in ("AP", "AP50", "AP75", "APl", "AR100")] == pytest.approx([1] * 5)
    assert math.isnan(metrics["coco/APs"])
    assert math.isnan(metrics["coco/APm"])


# IoU 0.82 passes seven of the ten thresholds 0.50, 0.55 .. 0.95, IoU 0.62 three, IoU 0.4 none.
@pytest.mark.parametrize(("height", "ap", "ap75"), [(0.41, 0.7, 1), (0.31, 0.3, 0), (0.2, 0, 0)])
def test_ap_is_the_mean_over_thresholds(height, ap, ap75):
    metrics = coco_metrics(samples([(0, (0, 0, 0.5, height), 0.9, 0)], [(0, LEFT, 0)]), NAMES, per_class=False)
    assert metrics["coco/AP"] == pytest.approx(ap)
    assert metrics["coco/AP75"] == pytest.approx(ap75)
    assert metrics["coco/AR100"] == pytest.approx(ap)


# The same box is small, medium or large with the size of the original picture.
@pytest.mark.parametrize(
    ("size", "defined"), [((40, 60), "coco/APs"), ((100, 150), "coco/APm"), ((480, 640), "coco/APl")]
)
def test_areas_are_measured_in_the_original_picture(size, defined):
    metrics = coco_metrics(samples([(0, LEFT, 0.9, 0)], [(0, LEFT, 0)], [size]), NAMES, per_class=False)
    assert {name for name in ("coco/APs", "coco/APm", "coco/APl") if not math.isnan(metrics[name])} == {defined}


def test_each_picture_has_its_own_size():
    truths = [(0, LEFT, 0), (1, LEFT, 0)]
    metrics = coco_metrics(samples([(1, LEFT, 0.9, 0)], truths, [(40, 60), (480, 640)]), NAMES, per_class=False)
    assert (metrics["coco/APs"], metrics["coco/APl"]) == pytest.approx((0, 1))


def test_per_class():
    found = [(0, LEFT, 0.9, 0), (0, (0, 0, 0.5, 0.31), 0.9, 1)]
    metrics = coco_metrics(samples(found, [(0, LEFT, 0), (0, LEFT, 1)]), (*NAMES, "cat"), per_class=True)
    assert metrics.keys() == FIGURES | {f"coco/{ap}/{name}" for ap in ("AP", "AP50") for name in (*NAMES, "cat")}
    assert (metrics["coco/AP/person"], metrics["coco/AP/dog"]) == pytest.approx((1, 0.3))
    assert (metrics["coco/AP50/person"], metrics["coco/AP50/dog"]) == pytest.approx((1, 1))
    assert metrics["coco/AP"] == pytest.approx(0.65)
    assert math.isnan(metrics["coco/AP/cat"])


@pytest.mark.parametrize(
    ("detections", "truths", "sizes", "ap"),
    [
        pytest.param([], [(0, LEFT, 0)], [(480, 640)], 0, id="no detection"),
        pytest.param([(0, LEFT, 0.9, 0)], [], [(480, 640)], math.nan, id="no truth"),
        pytest.param([], [], [(480, 640)], math.nan, id="neither"),
        pytest.param([], [], [], math.nan, id="no picture"),
    ],
)
def test_with_nothing_to_measure(detections, truths, sizes, ap):
    metrics = coco_metrics(samples(detections, truths, sizes), NAMES, per_class=True)
    assert metrics["coco/AP"] == pytest.approx(ap, nan_ok=True)
    assert metrics["coco/AP50/person"] == pytest.approx(ap, nan_ok=True)
    assert math.isnan(metrics["coco/AP/dog"])


def test_prints_nothing(capsys):
    coco_metrics(samples([(0, LEFT, 0.9, 0)], [(0, LEFT, 0)]), NAMES, per_class=True)
    assert capsys.readouterr() == ("", "")
