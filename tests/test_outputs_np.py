"""Reading outputs without torch: the decoder against `uhd.codec`, suppression against torchvision's."""

import warnings

import numpy as np
import pytest
import torch
import torchvision

from uhd import codec
from uhd.boxes import soft_suppress as soft_suppress_by_torch
from uhd.export.decode_np import AnchorDecoder, Candidates, build_decoder
from uhd.export.outputs_np import read_rows, read_separate, soft_suppress, suppress
from uhd.types import Detections

SCORE_MODES = ("obj*quality*cls", "quality*cls", "obj*cls", "cls")


def random_maps(classes=1, has_quality=True, anchors=3, grid=(8, 8), batch=2, seed=0, scale=2.0):
    """A raw map [B,A*(5+q+C),h,w], anchors and their scale [A,2]."""
    rng = np.random.default_rng(seed)
    raw = rng.normal(0, scale, (batch, anchors * (5 + has_quality + classes), *grid))
    sizes = rng.uniform(0.05, 0.6, (anchors, 2)), rng.uniform(0.5, 1.5, (anchors, 2))
    return [each.astype(np.float32) for each in (raw, *sizes)]


def expected_candidates(maps, classes, has_quality, mode, power, limit):
    """What `uhd.codec` finds: boxes, scores and labels, best first, scores in the mode's factors."""
    raw, anchors, wh_scale = map(torch.from_numpy, maps)
    priors = codec.split_anchor_map(raw, codec.AnchorLayout(len(anchors), classes, has_quality))
    if "quality" not in mode:
        priors = priors._replace(quality=None)
    scores = codec.anchor_scores(priors, "obj" not in mode, power)
    return codec.best_candidates(codec.decode_anchor_boxes(priors, anchors, wh_scale), scores, limit)


@pytest.mark.parametrize("power", [1.0, 0.5, 2.0, 0.0])
@pytest.mark.parametrize("mode", SCORE_MODES)
@pytest.mark.parametrize(
    "form",
    [
        {},
        {"classes": 4},
        {"grid": (12, 5)},
        {"anchors": 1, "grid": (1, 1)},
        {"batch": 1, "grid": (3, 16), "classes": 2},
    ],
    ids=str,
)
def test_candidates_are_those_of_torch(form, mode, power):
    maps = random_maps(**form)
    classes = form.get("classes", 1)
    found = AnchorDecoder(classes, mode, True, power)(maps, 0.0, 50)
    expected = expected_candidates(maps, classes, True, mode, power, 50)
    assert len(found) == len(maps[0])
    for one, boxes, scores, labels in zip(found, expected.boxes, expected.scores, expected.labels, strict=True):
        np.testing.assert_allclose(one.scores, scores, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(one.boxes, boxes, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(one.labels, labels)


@pytest.mark.parametrize("mode", ["obj*cls", "cls"])
def test_map_without_quality(mode):
    maps = random_maps(classes=3, has_quality=False)
    (found, _), expected = (
        AnchorDecoder(3, mode, False)(maps, 0.0, 50),
        expected_candidates(maps, 3, False, mode, 1.0, 50),
    )
    np.testing.assert_allclose(found.scores, expected.scores[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found.labels, expected.labels[0])


@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.9999, 1.0])
def test_threshold_and_limit(threshold):
    maps = random_maps(seed=3)
    everything = AnchorDecoder(1, "obj*cls", True)(maps, 0.0, 10_000)
    for limit in (0, 1, 7, 10_000):
        for every, found in zip(everything, AnchorDecoder(1, "obj*cls", True)(maps, threshold, limit), strict=True):
            count = min(limit, int((every.scores >= threshold).sum()))
            np.testing.assert_array_equal(found.scores, every.scores[:count])
            assert found.boxes.shape == (count, 4)


def test_threshold_that_a_score_reaches():
    decoder = AnchorDecoder(1, "cls", False)
    maps = [np.zeros((1, 6, 1, 2), np.float32), np.ones((1, 2), np.float32), np.ones((1, 2), np.float32)]
    assert len(decoder(maps, 0.5, 9)[0].scores) == 2
    assert len(decoder(maps, 0.500001, 9)[0].scores) == 0


def test_ties_keep_the_order_of_the_priors():
    maps = [np.zeros((1, 14, 2, 2), np.float32), np.ones((2, 2), np.float32), np.ones((2, 2), np.float32)]
    found = AnchorDecoder(2, "cls", False)(maps, 0.0, 100)[0]
    assert found.labels.tolist() == [0, 1] * 8
    centres = (found.boxes[::2, 0] + found.boxes[::2, 2]) / 2, (found.boxes[::2, 1] + found.boxes[::2, 3]) / 2
    np.testing.assert_allclose(centres[0], [0.25, 0.75] * 4)
    np.testing.assert_allclose(centres[1], [0.25, 0.25, 0.75, 0.75] * 2)


@pytest.mark.parametrize("value", [-1e4, -200.0, 200.0, 1e4])
@pytest.mark.parametrize("power", [1.0, 0.5])
def test_extreme_logits(value, power):
    maps = random_maps()
    maps[0][:, ::2] = value
    with warnings.catch_warnings(), np.errstate(all="raise", under="ignore"):
        warnings.simplefilter("error")
        found = AnchorDecoder(1, "obj*quality*cls", True, power)(maps, 0.0, 600)
    for one in found:
        assert np.isfinite(one.boxes).all()
        assert ((one.scores >= 0) & (one.scores <= 1)).all()
    expected = expected_candidates(maps, 1, True, "obj*quality*cls", power, 600)
    scores = expected.scores[0]
    np.testing.assert_allclose(found[0].scores, scores[scores > 0], atol=1e-6)  # a score of 0 is no detection


@pytest.mark.parametrize(
    ("name", "decoding"),
    [
        ("heat map", {}),
        ("", {}),
        ("anchor", {"num_classes": 1}),
        ("anchor", {"num_classes": 1, "score_mode": "cls", "has_quality": False, "wings": 2}),
    ],
)
def test_decoder_that_is_not_known(name, decoding):
    with pytest.raises(ValueError, match="unknown"):
        build_decoder(name, decoding)


# --- suppression --------------------------------------------------------------------------------


def found_in(boxes, scores, labels):
    order = np.argsort(-np.asarray(scores), kind="stable")
    fields = (np.array(boxes, np.float32), np.array(scores, np.float32), np.array(labels, np.int64))
    return Candidates(*(field[order] for field in fields))


@pytest.mark.parametrize("classes", [1, 5])
@pytest.mark.parametrize("count", [1, 2, 60, 400])
@pytest.mark.parametrize("iou", [0.0, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("low", [0.0, -3.0])
def test_suppression_is_torchvisions(classes, count, iou, low):
    rng = np.random.default_rng(count)
    corner = rng.uniform(low, low + 1, (count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0.05, 0.6, (count, 2))], axis=1)
    candidates = found_in(boxes, rng.permutation(count) / count, rng.integers(0, classes, count))
    shifted = torch.from_numpy(candidates.boxes).double() - float(candidates.boxes.min())
    expected = torchvision.ops.batched_nms(
        shifted, torch.from_numpy(candidates.scores).double(), torch.from_numpy(candidates.labels), iou
    ).numpy()
    for topk in (1, 10, 1000):
        for field, found in zip(candidates.take(expected[:topk]), suppress(candidates, iou, topk), strict=True):
            np.testing.assert_array_equal(found, field)


BOX, OTHER, TOUCHING = (0.1, 0.1, 0.3, 0.5), (0.6, 0.1, 0.8, 0.5), (0.3, 0.1, 0.5, 0.5)
FEW = {
    # boxes by falling score, labels, overlap, what remains
    "nothing": ([], [], 0.5, []),
    "one": ([BOX], [0], 0.5, [0]),
    "identical": ([BOX, BOX, BOX], [0, 0, 0], 0.5, [0]),
    "identical of two classes": ([BOX, BOX, BOX], [0, 1, 0], 0.5, [0, 1]),
    "touching": ([BOX, TOUCHING], [0, 0], 0.0, [0, 1]),
    "apart": ([OTHER, BOX], [0, 0], 0.5, [0, 1]),
    "no suppression": ([BOX, BOX], [0, 0], None, [0, 1]),
    "large and far": ([(0, 0, 1, 1), (-40, -40, 50, 50), (0, 0, 1, 1)], [0, 1, 1], 0.5, [0, 1, 2]),
}


@pytest.mark.parametrize("case", FEW)
def test_few_boxes(case):
    boxes, labels, iou, remain = FEW[case]
    scores = np.full(len(boxes), 0.5, np.float32)  # ties: the order stays
    candidates = Candidates(np.array(boxes, np.float32).reshape(-1, 4), scores, np.array(labels, np.int64))
    found = suppress(candidates, iou, 100)
    np.testing.assert_array_equal(found.boxes, candidates.boxes[remain])
    np.testing.assert_array_equal(found.labels, candidates.labels[remain])


@pytest.mark.parametrize("classes", [1, 5])
@pytest.mark.parametrize("count", [0, 1, 2, 60, 400])
@pytest.mark.parametrize("sigma", [0.1, 0.5])
def test_soft_suppression_is_that_of_training(classes, count, sigma):
    rng = np.random.default_rng(count)
    corner = rng.uniform(-1, 1, (count, 2))
    corners = np.concatenate([corner, corner + rng.uniform(0, 0.6, (count, 2))], axis=1)
    scores = np.round(rng.uniform(0, 1, count), 1)  # many tie
    candidates = found_in(corners, scores, rng.integers(0, classes, count))
    for threshold in (0.0, 0.4):
        expected = boxes_of_training(candidates, threshold, sigma, 100)
        found = soft_suppress(candidates, threshold, sigma, 100)
        np.testing.assert_array_equal(found.labels, expected.labels)
        np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-6)
        np.testing.assert_array_equal(found.boxes, expected.boxes)


def boxes_of_training(candidates, threshold, sigma, topk):
    batch = Detections(*(torch.from_numpy(field)[None] for field in candidates))
    shown = soft_suppress_by_torch(batch, threshold, sigma, topk)
    rows = (each[0].numpy() for each in (shown.boxes, shown.scores, shown.labels))
    return Candidates(*rows).take(shown.labels[0].numpy() >= 0)


# --- finished outputs ---------------------------------------------------------------------------

ROWS = np.array([[[0.9, 1, 0.5, 0.5, 0.2, 0.4], [0.3, 0, 0.2, 0.2, 0.1, 0.1], [0, 0, 0, 0, 0, 0]]] * 2, np.float32)


@pytest.mark.parametrize(("threshold", "count"), [(0.0, 2), (0.3, 2), (0.31, 1), (0.95, 0)])
def test_finished_rows(threshold, count):
    found = read_rows([ROWS], threshold, 100)
    assert [len(one.scores) for one in found] == [count, count]
    boxes = np.array([[0.4, 0.3, 0.6, 0.7], [0.15, 0.15, 0.25, 0.25]])
    np.testing.assert_allclose(found[0].boxes, boxes[:count], atol=1e-6)
    assert found[0].labels.tolist() == [1, 0][:count]
    assert found[0].labels.dtype == np.int64


def test_finished_rows_are_sorted_and_limited():
    """The original program's files may give them in any order."""
    rows = ROWS[:, ::-1]
    assert read_rows([rows], 0.0, 100)[0].scores.tolist() == ROWS[0, :2, 0].tolist()
    assert read_rows([rows], 0.0, 1)[1].scores.tolist() == ROWS[0, :1, 0].tolist()


def test_separate_outputs():
    boxes = np.array([[[0.4, 0.3, 0.6, 0.7], [0, 0, 0, 0]]], np.float32)
    (found,) = read_separate([boxes, np.array([[0.8, 0]], np.float32), np.array([[2, 0]])], 0.0, 100)
    assert (found.boxes.tolist(), found.labels.tolist()) == (boxes[0, :1].tolist(), [2])
