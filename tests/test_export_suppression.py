"""Suppression inside the graph against torchvision's: same boxes, same order, outputs of one fixed size."""

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from uhd.config import DecodeConfig
from uhd.export.metadata import MERGED_NAME, SEPARATE_NAMES
from uhd.export.suppression import INPUTS, suppression_graph
from uhd.runtime import load_session

OPSETS = (13, 17, 20)


def run_graph(boxes, scores, separate=False, uses_nms=True, is_open=False, opset=17, **settings):
    """Rows [B,topk,6] of score, class, x1, y1, x2, y2 that the graph gives for candidates [B,N,4] and [B,N,C]."""
    cfg = DecodeConfig(**{"conf_thresh": 0.0, "nms_iou": 0.5, "topk": 100, **settings})
    names = SEPARATE_NAMES if separate else (MERGED_NAME,)
    count = None if is_open else scores.shape[1]
    graph = suppression_graph(cfg, scores.shape[2], names, opset, uses_nms=uses_nms, num_priors=count)
    graph.ir_version = helper.find_min_ir_version_for(graph.opset_import)
    session = load_session(graph.SerializeToString())
    outputs = session.run(list(names), dict(zip(INPUTS, (boxes, scores), strict=True)))
    if separate:
        boxes, scores, labels = outputs
        assert labels.dtype == np.int64
        return np.concatenate([scores[..., None], labels[..., None], boxes], axis=-1)
    rows = outputs[0]
    half = rows[..., 4:] / 2
    return np.concatenate([rows[..., :2], rows[..., 2:4] - half, rows[..., 2:4] + half], axis=-1)


def expected_rows(boxes, scores, conf_thresh=0.0, nms_iou=0.5, topk=100, pre_nms_topk=512, uses_nms=True):
    """The same by torchvision, picture by picture: threshold, best candidates, class-wise NMS, best rows."""
    result = np.zeros((len(boxes), topk, 6), np.float32)
    for picture, picture_scores, rows in zip(boxes, scores, result, strict=True):
        flat = picture_scores.reshape(-1)
        best = np.argsort(-flat, kind="stable")[:pre_nms_topk]
        best = best[flat[best] >= conf_thresh]
        prior, label = np.divmod(best, picture_scores.shape[1])
        if uses_nms:
            shifted = torch.from_numpy(picture[prior]).double()
            kept = torchvision.ops.batched_nms(
                shifted - (shifted.min() if len(shifted) else 0),
                torch.from_numpy(-np.arange(len(best), dtype=np.float64)),  # in this very order, ties too
                torch.from_numpy(label),
                nms_iou,
            ).numpy()
        else:
            kept = np.arange(len(best))
        kept = kept[:topk]
        rows[: len(kept), 0] = flat[best[kept]]
        rows[: len(kept), 1] = label[kept]
        rows[: len(kept), 2:] = picture[prior[kept]]
    result[result[..., 0] == 0] = 0
    return result


def check(boxes, scores, **options):
    """The graph, in all its forms, gives what torchvision gives; gives the rows."""
    settings = {name: value for name, value in options.items() if name != "opset"}
    expected = expected_rows(boxes, scores, **settings)
    for separate in (False, True):
        for is_open in (False, True):
            found = run_graph(boxes, scores, separate=separate, is_open=is_open, **options)
            assert found.shape == expected.shape
            np.testing.assert_array_equal(found[..., :2], expected[..., :2])
            np.testing.assert_allclose(found[..., 2:], expected[..., 2:], rtol=0, atol=1e-5)
    return expected


def candidates(batch, count, classes, seed=0, low=-0.2, high=1.2, side=(0.05, 0.5)):
    """Random boxes [B,N,4] xyxy, some beyond the picture, and scores [B,N,C] all of which differ."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(low, high, (batch, count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(*side, (batch, count, 2))], axis=2).astype(np.float32)
    scores = rng.permutation(np.linspace(0.001, 0.999, batch * count * classes)).reshape(batch, count, classes)
    return boxes, scores.astype(np.float32)


def alone(*rows):
    """One picture with these candidates: (score, x1, y1, x2, y2), of one class."""
    table = np.array(rows, np.float32).reshape(1, -1, 5)
    return np.ascontiguousarray(table[..., 1:]), np.ascontiguousarray(table[..., :1])


def used(rows):
    return [int((picture[:, 0] > 0).sum()) for picture in rows]


# --- random boxes -------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("classes", [1, 5])
@pytest.mark.parametrize("count", [1, 2, 30, 300])
def test_random_boxes(batch, classes, count):
    rows = check(*candidates(batch, count, classes, seed=count))
    assert min(used(rows)) > 0


@pytest.mark.parametrize("uses_nms", [True, False])
@pytest.mark.parametrize("classes", [1, 5])
@pytest.mark.parametrize(
    "settings",
    [
        {"pre_nms_topk": 1},
        {"pre_nms_topk": 40},
        {"pre_nms_topk": 120},
        {"pre_nms_topk": 10_000},
        {"topk": 1},
        {"topk": 7},
        {"topk": 700},
        {"pre_nms_topk": 5, "topk": 9},
        {"nms_iou": 0.0},
        {"nms_iou": 0.15},
        {"nms_iou": 1.0},
        {"conf_thresh": 0.5},
        {"conf_thresh": 0.9999},
        {"conf_thresh": 1.0},
    ],
    ids=str,
)
def test_settings(settings, classes, uses_nms):
    """120 candidates of one class: fewer, as many and more than enter the suppression."""
    boxes, scores = candidates(2, 120, classes, seed=4)
    check(boxes, scores, uses_nms=uses_nms, **settings)


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("classes", [1, 3])
def test_operator_sets(opset, classes):
    boxes, scores = candidates(2, 50, classes, seed=7)
    check(boxes, scores, opset=opset)
    check(boxes, scores, opset=opset, pre_nms_topk=20, topk=30, uses_nms=False)


@settings(max_examples=30, deadline=None)
@given(
    count=st.integers(1, 40),
    classes=st.sampled_from([1, 2]),
    grid=st.integers(2, 6),
    levels=st.integers(1, 5),
    seed=st.integers(0, 1000),
)
def test_boxes_and_scores_that_tie(count, classes, grid, levels, seed):
    """Corners on a coarse grid and few different scores: many boxes are equal, touch or tie."""
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, grid, (1, count, 2))
    boxes = (np.concatenate([corner, corner + rng.integers(1, 4, (1, count, 2))], axis=2) / 8).astype(np.float32)
    scores = (rng.integers(1, levels + 1, (1, count, classes)) / 8).astype(np.float32)
    # Overlaps of a half would hang on the last bit; 0.45 is none that such a grid can have.
    check(boxes, scores, nms_iou=0.45)


# --- by hand ------------------------------------------------------------------------------------

BOX, OTHER, TOUCHING = (0.1, 0.1, 0.3, 0.5), (0.6, 0.1, 0.8, 0.5), (0.3, 0.1, 0.5, 0.5)
CLOSE = (0.12, 0.1, 0.32, 0.5)
BY_HAND = {
    # candidates (score, box), settings, what remains by place
    "one": ([(0.5, *BOX)], {}, [0]),
    "identical": ([(0.5, *BOX), (0.9, *BOX), (0.7, *BOX)], {}, [1]),
    "close": ([(0.5, *BOX), (0.9, *CLOSE)], {}, [1]),
    "apart": ([(0.5, *BOX), (0.9, *OTHER)], {}, [1, 0]),
    "touching": ([(0.5, *BOX), (0.9, *TOUCHING)], {"nms_iou": 0.0}, [1, 0]),
    "negative": ([(0.5, -0.4, -0.4, -0.1, -0.1), (0.4, -0.39, -0.4, -0.1, -0.1), (0.3, 0, 0, 1, 1)], {}, [0, 2]),
    "beyond the picture": ([(0.5, 0.9, 0.9, 1.6, 1.6), (0.4, 0.9, 0.9, 1.6, 1.59)], {}, [0]),
    "tie": ([(0.5, *OTHER), (0.5, *BOX), (0.5, *TOUCHING)], {}, [0, 1, 2]),
    "identical with one score": ([(0.5, *OTHER), (0.5, *BOX), (0.5, *BOX)], {}, [0, 1]),
    "chain": ([(0.9, *BOX), (0.8, 0.15, 0.1, 0.35, 0.5), (0.7, 0.2, 0.1, 0.4, 0.5)], {"nms_iou": 0.4}, [0, 2]),
    "all below": ([(0.5, *BOX), (0.4, *OTHER)], {"conf_thresh": 0.6}, []),
    "exactly the threshold": ([(0.3, *BOX), (0.29999, *OTHER)], {"conf_thresh": 0.3}, [0]),
    "threshold of a sixteenth": ([(0.0625, *BOX), (0.0624, *OTHER)], {"conf_thresh": 0.0625}, [0]),
    "threshold 1": ([(1.0, *BOX), (0.9999, *OTHER)], {"conf_thresh": 1.0}, [0]),
    "hidden by one below": ([(0.5, *BOX), (0.4, *CLOSE)], {"conf_thresh": 0.45}, [0]),
    "very small score": ([(1e-30, *BOX), (1e-20, *OTHER)], {}, [1, 0]),
    "score 0": ([(0.0, *BOX), (0.4, *OTHER)], {}, [1]),
    "no area": ([(0.5, 0.2, 0.2, 0.2, 0.2), (0.4, 0.2, 0.2, 0.2, 0.2)], {}, [0, 1]),
    "only one place": ([(0.5, *BOX), (0.9, *OTHER)], {"topk": 1}, [1]),
    "suppressed ones take no place": ([(0.9, *BOX), (0.8, *CLOSE), (0.1, *OTHER)], {"topk": 2}, [0, 2]),
}


@pytest.mark.parametrize("case", BY_HAND)
def test_by_hand(case):
    rows, settings, remain = BY_HAND[case]
    boxes, scores = alone(*rows)
    found = check(boxes, scores, **settings)[0]
    count = int((found[:, 0] > 0).sum())
    assert count == len(remain)
    np.testing.assert_allclose(found[:count, 2:], boxes[0, remain], atol=1e-6)
    assert not found[count:].any()


def test_classes_do_not_suppress_each_other():
    boxes, _ = alone((0, *BOX), (0, *BOX))
    scores = np.array([[[0.9, 0.2, 0.5], [0.8, 0.3, 0.6]]], np.float32)
    found = check(boxes, scores)[0]
    assert found[:4, :2].tolist() == pytest.approx(np.array([[0.9, 0], [0.6, 2], [0.3, 1], [0, 0]]))


def test_pictures_do_not_suppress_each_other():
    boxes = np.array([BOX, OTHER], np.float32)[None].repeat(3, axis=0)
    scores = np.array([[[0.9], [0.1]], [[0.2], [0.8]], [[0.0], [0.7]]], np.float32)
    assert used(check(boxes, scores)) == [2, 2, 1]


def test_fewer_candidates_than_rows():
    """Rows that cannot be filled are zero."""
    boxes, scores = candidates(2, 3, 1, side=(0.01, 0.02), seed=1)
    found = check(boxes, scores, topk=50)
    assert found.shape == (2, 50, 6)
    assert used(found) == [3, 3]


@pytest.mark.parametrize(("count", "remain"), [(99, 99), (100, 100), (101, 100), (250, 100)])
@pytest.mark.parametrize("classes", [1, 2])
def test_as_many_survivors_as_rows(count, remain, classes):
    """Boxes on a grid, none over another."""
    rows, columns = np.divmod(np.arange(count), 16)
    corner = np.stack([columns, rows], axis=1) / 16
    boxes = np.concatenate([corner, corner + 1 / 20], axis=1)[None].astype(np.float32)
    scores = np.zeros((1, count, classes), np.float32)
    scores[0, :, -1] = np.random.default_rng(0).permutation(count) / count + 0.001
    found = check(boxes, scores)[0]
    assert used([found]) == [remain]
    assert (found[:remain, 1] == classes - 1).all()
