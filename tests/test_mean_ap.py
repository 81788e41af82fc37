"""mAP and what is reported beside it, against pycocotools and against cases worked by hand."""

import contextlib
import io
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from uhd.eval.mean_ap import AREA_RANGES, MeanAP, to_metrics
from uhd.eval.samples import PaddedDetections, PaddedTruths, merge_samples
from uhd.types import IGNORED

SIZE = (64, 64)
LEFT, RIGHT, TINY = (0.0, 0.0, 0.5, 0.5), (0.5, 0.0, 1.0, 0.5), (0.0, 0.0, 1 / 64, 2 / 64)


def padded(images):
    """Arrays of a batch from [(detections [(box, score, label)], truths [(box, label)])], as MeanAP takes them."""
    most = max((len(detections) for detections, _ in images), default=0)
    most_truths = max((len(truths) for _, truths in images), default=0)
    detections = PaddedDetections(
        np.zeros((len(images), most, 4), np.float32),
        np.zeros((len(images), most), np.float32),
        np.full((len(images), most), -1),
    )
    truths = PaddedTruths(np.zeros((len(images), most_truths, 4), np.float32), np.full((len(images), most_truths), -1))
    for image, (found, present) in enumerate(images):
        for row, (box, score, label) in enumerate(found):
            detections.boxes[image, row] = box
            detections.scores[image, row] = score
            detections.labels[image, row] = label
        for row, (box, label) in enumerate(present):
            truths.boxes[image, row] = box
            truths.labels[image, row] = label
    return detections, truths


def evaluate(images, num_classes=1, conf_thresh=0.5, batch_size=None):
    mean_ap = MeanAP(num_classes, SIZE, conf_thresh)
    batch_size = batch_size or max(len(images), 1)
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        ids = np.arange(start, start + len(batch))
        mean_ap.update(ids, np.full((len(batch), 2), 64), *padded(batch))
    return mean_ap.compute()


def reference(images, num_classes):
    """AP50 [classes, all areas and AREA_RANGES] of COCOeval on boxes in network pixels; nan where undefined."""

    def pixels(box):
        x1, y1, x2, y2 = (float(np.float32(value)) * 64 for value in box)
        return [x1, y1, x2 - x1, y2 - y1]

    truths = [(image, *truth, 0) for image, (_, present) in enumerate(images) for truth in present if truth[1] >= 0]
    regions = [(image, box) for image, (_, present) in enumerate(images) for box, label in present if label == IGNORED]
    truths += [(image, box, label, 1) for image, box in regions for label in range(num_classes)]
    detections = [(image, *found) for image, (found_here, _) in enumerate(images) for found in found_here]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "info": {},
            "images": [{"id": image} for image in range(len(images))],
            "categories": [{"id": label} for label in range(num_classes)],
            "annotations": [
                {
                    "id": row + 1,
                    "image_id": image,
                    "category_id": label,
                    "bbox": pixels(box),
                    "area": pixels(box)[2] * pixels(box)[3],
                    "iscrowd": crowd,
                }
                for row, (image, box, label, crowd) in enumerate(truths)
            ],
        }
        coco.createIndex()
        results = coco.loadRes(
            [
                {"image_id": image, "category_id": label, "bbox": pixels(box), "score": float(np.float32(score))}
                for image, box, score, label in detections
            ]
        )
        evaluation = COCOeval(coco, results, "bbox")
        evaluation.params.iouThrs = np.array([0.5])
        ranges = [(0, math.inf), *AREA_RANGES.values()]
        evaluation.params.areaRng = [list(area_range) for area_range in ranges]
        evaluation.params.areaRngLbl = [str(area_range) for area_range in ranges]
        evaluation.params.maxDets = [100]
        evaluation.evaluate()
        evaluation.accumulate()
    ap = evaluation.eval["precision"][0, :, :, :, 0].mean(axis=0)
    return np.where(ap < 0, np.nan, ap)


def random_images(seed):
    """Pictures with near, doubled, tied, wrong and too many detections; every third has no truth."""
    rng = np.random.default_rng(seed)
    num_classes = int(rng.integers(1, 4))
    on_grid = seed % 2 == 0  # whole pixels: overlaps of exactly 0.5 and equal overlaps are frequent

    def box():
        low = rng.uniform(0, 52, 2)
        high = np.minimum(low + rng.choice([2, 3, 5, 8, 13, 20, 30]) * rng.uniform(0.6, 1.6, 2) + 0.5, 64)
        corners = np.concatenate([low, high])
        return (np.rint(corners) if on_grid else corners) / 64

    images = []
    for image in range(int(rng.integers(3, 9))):
        truths = [(box(), int(rng.integers(num_classes))) for _ in range(0 if image % 3 == 2 else rng.integers(1, 8))]
        detections = [(box(), rng.choice(20) / 20, int(rng.integers(num_classes))) for _ in range(rng.integers(0, 12))]
        for corners, label in truths:
            for _ in range(rng.integers(0, 4)):
                shift = rng.integers(-2, 3, 4) / 64 if on_grid else rng.normal(0, 1.5, 4) / 64
                moved = corners + shift
                if (moved[2:] > moved[:2]).all():
                    detections.append((moved, rng.choice(20) / 20, label))
        detections += detections[: len(detections) // 4]
        if seed % 10 == 0 and image == 0:
            detections += [(box(), rng.uniform(0, 0.9), 0) for _ in range(150)]
        order = rng.permutation(len(detections))
        images.append(([detections[row] for row in order], truths))
    return images, num_classes


@pytest.mark.parametrize("first_seed", range(1000, 1100, 20))
def test_agrees_with_pycocotools_on_crowds(first_seed):
    for seed in range(first_seed, first_seed + 20):
        images, num_classes = random_images(seed)
        images[0][0].append((LEFT, 0.5, 0))
        rng = np.random.default_rng(seed)
        images = [
            (found, [(box, IGNORED if rng.random() < 0.3 else label) for box, label in present])
            for found, present in images
        ]
        ours = evaluate(images, num_classes, batch_size=1 + seed % 4)
        assert ours.ap_by_class == pytest.approx(reference(images, num_classes)[:, 0], abs=1e-9, nan_ok=True)


def test_detections_in_an_ignored_region_are_neither_right_nor_wrong():
    inside, half, outside = (0.1, 0.1, 0.2, 0.2), (0.375, 0.0, 0.625, 0.5), (0.45, 0.0, 0.7, 0.5)
    found = [(inside, 0.9, 0), (half, 0.8, 0), (outside, 0.7, 0)]
    result = evaluate([(found, [(LEFT, IGNORED)]), ([(RIGHT, 0.9, 0)], [(RIGHT, 0)])])
    assert result.at_conf_thresh.false_alarms_per_image == 0.5
    assert math.isnan(result.at_conf_thresh.false_alarms_per_empty_image)
    assert result.at_conf_thresh.precision == 0.5
    taught = evaluate([([(inside, 0.9, 0)], [(inside, 0), (LEFT, IGNORED)])])
    assert (taught.map50, taught.at_conf_thresh.precision, taught.at_conf_thresh.recall) == (pytest.approx(1), 1, 1)


@pytest.mark.parametrize("first_seed", range(0, 200, 20))
def test_agrees_with_pycocotools(first_seed):
    for seed in range(first_seed, first_seed + 20):
        images, num_classes = random_images(seed)
        images[0][0].append((LEFT, 0.5, 0))  # loadRes needs one detection
        ours = evaluate(images, num_classes, batch_size=1 + seed % 4)
        by_class = reference(images, num_classes)
        assert ours.ap_by_class == pytest.approx(by_class[:, 0], abs=1e-9, nan_ok=True)
        assert ours.map50 == pytest.approx(np.nanmean(by_class[:, 0]), abs=1e-9)
        for name, expected in zip(AREA_RANGES, by_class[:, 1:].T, strict=True):
            expected = np.nanmean(expected) if not np.isnan(expected).all() else math.nan
            assert ours.ap_by_area[name] == pytest.approx(expected, abs=1e-9, nan_ok=True), (seed, name)


# A truth of exactly 64 px² belongs to two ranges beside the whole one, 400 likewise, and 8 to none.
@pytest.mark.parametrize(
    ("width", "height", "ranges"),
    [
        (4, 2, set()),
        (3, 3, {"ge9px2", "9_64px2"}),
        (8, 8, {"ge9px2", "9_64px2", "64_400px2"}),
        (20, 20, {"ge9px2", "64_400px2", "gt400px2"}),
        (64, 64, {"ge9px2", "gt400px2"}),
    ],
)
def test_area_ranges(width, height, ranges):
    box = (0, 0, width / 64, height / 64)
    result = evaluate([([(box, 0.9, 0)], [(box, 0)])])
    assert {name for name, ap in result.ap_by_area.items() if not math.isnan(ap)} == ranges
    assert all(result.ap_by_area[name] == pytest.approx(1) for name in ranges)
    assert result.map50 == pytest.approx(1)


def test_areas_are_measured_in_network_pixels():
    mean_ap = MeanAP(1, (32, 128), 0.5)
    box = (0, 0, 3 / 128, 4 / 32)
    mean_ap.update(np.array([0]), np.array([[1000, 1000]]), *padded([([(box, 0.9, 0)], [(box, 0)])]))
    assert mean_ap.compute().ap_by_area["9_64px2"] == pytest.approx(1)


# (detections, truths) a picture; mAP, then precision, recall, F1, false alarms an image at 0.5.
@pytest.mark.parametrize(
    ("images", "expected"),
    [
        pytest.param([([], [])], (0, 0, 0, 0, 0), id="nothing"),
        pytest.param([([], [(LEFT, 0)])], (0, 0, 0, 0, 0), id="no detection"),
        pytest.param([([(LEFT, 0.9, 0)], [])], (0, 0, 0, 0, 1), id="no truth"),
        pytest.param([([(LEFT, 0.9, 0)], [(LEFT, 0)])], (1, 1, 1, 1, 0), id="found"),
        pytest.param([([(LEFT, 0.5, 0)], [(LEFT, 0)])], (1, 1, 1, 1, 0), id="threshold is inclusive"),
        pytest.param([([(LEFT, 0.4, 0)], [(LEFT, 0)])], (1, 0, 0, 0, 0), id="found below the threshold"),
        pytest.param([([(RIGHT, 0.9, 0)], [(LEFT, 0)])], (0, 0, 0, 0, 1), id="touching is not overlapping"),
        pytest.param([([(LEFT, 0.9, 0)] * 3, [(LEFT, 0)])], (1, 1 / 3, 1, 0.5, 2), id="a truth counts once"),
        pytest.param([([((0, 0, 0.5, 0.25), 0.9, 0)], [(LEFT, 0)])], (1, 1, 1, 1, 0), id="IoU of exactly 0.5"),
        pytest.param([([((0, 0, 0.5, 0.24), 0.9, 0)], [(LEFT, 0)])], (0, 0, 0, 0, 1), id="IoU below 0.5"),
        pytest.param([([((0.5, 0.5, 0.5, 0.5), 0.9, 0)], [(LEFT, 0)])], (0, 0, 0, 0, 1), id="a box without area"),
        pytest.param(
            # Recalls up to 0.5 at precision 1 (51 of 101 points), the rest at 2/3.
            [([(LEFT, 0.9, 0), (TINY, 0.8, 0), (RIGHT, 0.7, 0)], [(LEFT, 0), (RIGHT, 0)])],
            ((51 + 50 * 2 / 3) / 101, 2 / 3, 1, 0.8, 1),
            id="a false alarm between two hits",
        ),
        pytest.param(
            [([(LEFT, 0.9, 0)], [(LEFT, 0)]), ([(LEFT, 0.6, 0), (RIGHT, 0.6, 0), (TINY, 0.1, 0)], []), ([], [])],
            (1, 1 / 3, 1, 0.5, 2 / 3),
            id="false alarms on an empty picture",
        ),
    ],
)
def test_worked_cases(images, expected):
    result = evaluate(images)
    point = result.at_conf_thresh
    figures = (result.map50, point.precision, point.recall, point.f1, point.false_alarms_per_image)
    assert figures == pytest.approx(expected)


def test_a_detection_of_another_class_is_a_false_alarm():
    result = evaluate([([(LEFT, 0.9, 1)], [(LEFT, 0)])], num_classes=3)
    assert result.map50 == 0
    assert result.ap_by_class == pytest.approx([0, math.nan, math.nan], nan_ok=True)
    assert result.at_conf_thresh.false_alarms_per_image == 1
    assert result.at_conf_thresh.recall == 0


def test_false_alarms_on_empty_images():
    images = [([(LEFT, 0.9, 0), (RIGHT, 0.9, 0)], [(LEFT, 0)]), ([(LEFT, 0.7, 0)] * 3, []), ([(LEFT, 0.4, 0)], [])]
    point = evaluate(images).at_conf_thresh
    assert point.false_alarms_per_image == pytest.approx(4 / 3)
    assert point.false_alarms_per_empty_image == pytest.approx(3 / 2)
    assert math.isnan(evaluate(images[:1]).at_conf_thresh.false_alarms_per_empty_image)


@pytest.mark.parametrize(
    ("detections", "threshold", "f1"),
    [
        pytest.param([(LEFT, 0.75, 0), (RIGHT, 0.25, 0), (TINY, 0.125, 0)], 0.25, 1, id="hits, then a false alarm"),
        pytest.param([(LEFT, 0.75, 0), (TINY, 0.5, 0), (TINY, 0.5, 0)], 0.75, 2 / 3, id="second truth never found"),
        pytest.param([(LEFT, 0.5, 0), (TINY, 0.5, 0), (RIGHT, 0.5, 0)], 0.5, 0.8, id="tied scores go together"),
        pytest.param([(LEFT, 0.75, 0), (TINY, 0.5, 0), (TINY, 0.5, 0), (RIGHT, 0.25, 0)], 0.75, 2 / 3, id="equal F1"),
        pytest.param([(TINY, 0.75, 0)], 0.5, 0, id="no hit: the given threshold"),
        pytest.param([], 0.5, 0, id="no detection: the given threshold"),
    ],
)
def test_best_f1(detections, threshold, f1):
    best = evaluate([(detections, [(LEFT, 0), (RIGHT, 0)])]).at_best_f1
    assert (best.threshold, best.f1) == pytest.approx((threshold, f1))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(1000, 100_000))
def test_best_f1_is_the_highest_of_all_thresholds(seed):
    images, num_classes = random_images(seed)
    best = evaluate(images, num_classes).at_best_f1
    scores = {np.float32(score) for detections, _ in images for _, score, _ in detections}
    at_each = [evaluate(images, num_classes, conf_thresh=float(score)).at_conf_thresh for score in sorted(scores)[::3]]
    assert all(point.f1 <= best.f1 for point in at_each)
    assert evaluate(images, num_classes, conf_thresh=best.threshold).at_conf_thresh == best


def test_a_match_is_greedy_by_score():
    # The higher score takes the truth both want, although the lower one fits better.
    near, exact = (0, 0, 0.5, 0.4), LEFT
    result = evaluate([([(exact, 0.6, 0), (near, 0.9, 0)], [(LEFT, 0)])], conf_thresh=0.8)
    assert result.at_conf_thresh.precision == 1
    assert result.map50 == pytest.approx(1)


@pytest.mark.parametrize("first", ["upper", "lower"])
def test_equal_overlaps_go_to_the_last_truth_as_in_pycocotools(first):
    upper, between, lower = ((0, top / 64, 8 / 64, (top + 8) / 64) for top in (0, 2, 4))
    truths = [(upper, 0), (lower, 0)] if first == "upper" else [(lower, 0), (upper, 0)]
    images = [([(between, 0.9, 0), (upper, 0.8, 0)], truths)]
    result = evaluate(images)
    assert result.at_conf_thresh.recall == (1 if first == "upper" else 0.5)
    assert result.map50 == pytest.approx(reference(images, 1)[0, 0])


def test_at_most_100_detections_a_picture_and_class():
    misses = [(RIGHT, 0.9, 0)] * 100
    hit, other_class = (LEFT, 0.5, 0), (LEFT, 0.5, 1)
    result = evaluate([([*misses, hit, other_class], [(LEFT, 0), (LEFT, 1)])], num_classes=2)
    assert result.ap_by_class == pytest.approx([0, 1])
    assert result.at_conf_thresh.false_alarms_per_image == 100


def test_pictures_count_once_and_in_any_order():
    images, num_classes = random_images(4)
    expected = to_metrics(evaluate(images, num_classes))
    mean_ap = MeanAP(num_classes, SIZE, 0.5)
    for image in [2, 0, 1, 0, *range(3, len(images)), 2]:
        mean_ap.update(np.array([image]), np.array([[64, 64]]), *padded([images[image]]))
    assert to_metrics(mean_ap.compute()) == pytest.approx(expected, nan_ok=True)


def test_compute_leaves_the_collected_samples_as_they_are():
    images, num_classes = random_images(6)
    mean_ap = MeanAP(num_classes, SIZE, 0.5)
    mean_ap.update(np.arange(3), np.full((3, 2), 64), *padded(images[:3]))
    mean_ap.compute()
    mean_ap.update(np.arange(3, len(images)), np.full((len(images) - 3, 2), 64), *padded(images[3:]))
    assert to_metrics(mean_ap.compute()) == pytest.approx(to_metrics(evaluate(images, num_classes)), nan_ok=True)


def test_samples_of_several_processes_add_up():
    images, num_classes = random_images(8)
    workers = [MeanAP(num_classes, SIZE, 0.5) for _ in range(2)]
    for image, content in enumerate(images):
        workers[image % 2].update(np.array([image]), np.array([[48, 64]]), *padded([content]))
    gathered = MeanAP(num_classes, SIZE, 0.5)
    for worker in workers:
        gathered.add(worker.samples())
    assert to_metrics(gathered.compute()) == pytest.approx(to_metrics(evaluate(images, num_classes)), nan_ok=True)
    assert gathered.samples().sizes.tolist() == [[48, 64]] * len(images)


def test_nothing_collected():
    metrics = to_metrics(MeanAP(2, SIZE, 0.3).compute())
    assert metrics["mAP@0.5"] == 0
    assert metrics["best_f1_threshold"] == 0.3
    assert math.isnan(metrics["AP50_ge9px2"])
    assert len(merge_samples([]).ids) == 0


def test_metric_names():
    names = "mAP@0.5 AP50_ge9px2 AP50_9_64px2 AP50_64_400px2 AP50_gt400px2 precision recall f1 false_alarms_per_image"
    metrics = to_metrics(evaluate([([(LEFT, 0.9, 0)], [(LEFT, 0)])]))
    assert set(names.split()) <= metrics.keys()
    assert all(type(value) is float for value in metrics.values())


def test_curves_against_confidence():
    result = evaluate([([(LEFT, 0.75, 0), (TINY, 0.25, 0)], [(LEFT, 0), (RIGHT, 0)])])
    curves = result.by_confidence
    at = {threshold: np.flatnonzero(curves.threshold == threshold)[0] for threshold in (0, 0.25, 0.5, 0.75, 1)}
    assert [curves.precision[row] for row in at.values()] == pytest.approx([0.5, 0.5, 1, 1, math.nan], nan_ok=True)
    assert [curves.recall[row] for row in at.values()] == pytest.approx([0.5, 0.5, 0.5, 0.5, 0])
    assert [curves.f1[row] for row in at.values()] == pytest.approx([0.5, 0.5, 2 / 3, 2 / 3, 0])
    # Recalls 0 to 0.50 are reached at precision 1, higher ones never.
    assert result.precision_by_recall[0].tolist() == [1] * 51 + [0] * 50


def test_rows_of_padding_do_not_count():
    detections, truths = padded([([(LEFT, 0.9, 0)], [(LEFT, 0)]), ([], [])])
    detections.boxes[1], detections.scores[1] = LEFT, 0.99
    truths.boxes[1] = RIGHT
    mean_ap = MeanAP(1, SIZE, 0.5)
    mean_ap.update(np.arange(2), np.full((2, 2), 64), detections, truths)
    result = mean_ap.compute()
    assert (result.map50, result.at_conf_thresh.f1) == pytest.approx((1, 1))
    assert result.at_conf_thresh.false_alarms_per_empty_image == 0


def test_a_large_data_set_in_blocks(monkeypatch):
    images, num_classes = random_images(10)
    expected = to_metrics(evaluate(images, num_classes))
    monkeypatch.setattr("uhd.eval.matching._PAIRS_AT_ONCE", 7)
    assert to_metrics(evaluate(images, num_classes)) == pytest.approx(expected, nan_ok=True, abs=0)
