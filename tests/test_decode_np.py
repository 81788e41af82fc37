"""Raw maps of centres and queries read without torch, against the networks' own decoding; anchors: test_outputs_np."""

import itertools
import warnings

import numpy as np
import pytest
import torch

from uhd import codec
from uhd.config import CNNConfig, NanoDetConfig, TransformerConfig
from uhd.export.decode_np import CenterDecoder, GridDecoder, QueryDecoder, build_decoder
from uhd.models import build_model

MANY = 10_000
THRESHOLDS = [0.0, 0.3, 1.0]


def center_net(classes):
    return build_model(CNNConfig(cnn_width=4, num_classes=classes)).eval()


def query_net(classes):
    return build_model(
        TransformerConfig(num_classes=classes, d_model=4, heads=1, layers=1, dim_feedforward=4, num_queries=2)
    ).eval()


def level_net(classes):
    return build_model(NanoDetConfig(nanodet_width=0.25, nanodet_neck_channels=2, num_classes=classes)).eval()


def level_maps(classes=1, grids=((8, 8), (4, 4), (2, 2)), batch=2, scale=2.0):
    rng = np.random.default_rng([classes, *grids[0], batch])
    return [rng.normal(0, scale, (batch, classes + 32, *grid)).astype(np.float32) for grid in grids]


def center_maps(classes=1, grid=(8, 8), batch=2, scale=3.0):
    rng = np.random.default_rng([classes, *grid, batch])
    shapes = [(batch, channels, *grid) for channels in (classes, 2, 2)]
    return [rng.normal(0, scale, shape).astype(np.float32) for shape in shapes]


def query_maps(classes=1, queries=10, batch=2, scale=2.0):
    rng = np.random.default_rng([classes, queries, batch])
    shapes = [(batch, queries, classes + 1), (batch, queries, 4)]
    return [rng.normal(0, scale, shape).astype(np.float32) for shape in shapes]


CENTERS = [
    {},
    {"classes": 4},
    {"batch": 1, "grid": (3, 16), "classes": 2},
    {"grid": (1, 1)},
    {"grid": (1, 9), "batch": 3},
    {"grid": (7, 1), "classes": 3},
    {"grid": (13, 5)},
]
QUERIES = [
    {},
    {"classes": 4},
    {"batch": 1, "queries": 1},
    {"queries": 70, "classes": 3, "batch": 3},
    {"queries": 5, "classes": 80},
]
LEVELS = [
    {},
    {"classes": 4, "batch": 1},
    {"grids": ((4, 12), (2, 6), (1, 3)), "classes": 2, "batch": 3},
]
CASES = [("center", form) for form in CENTERS] + [("query", form) for form in QUERIES]
CASES += [("gfl", form) for form in LEVELS]


def case(kind, form):
    """A network of a head's kind, random maps for it, and the decoder that a file of it would name."""
    makers = {"center": (center_net, center_maps), "query": (query_net, query_maps), "gfl": (level_net, level_maps)}
    net, maps = makers[kind]
    model = net(form.get("classes", 1))
    return model, maps(**form), build_decoder(model.decoder, model.decoding())


@torch.no_grad()
def found_by_torch(model, maps, conf_thresh, limit):
    """Boxes, scores and labels of each picture: the best candidates, without those below the threshold or at 0."""
    preds = dict(zip(model.raw_names, map(torch.from_numpy, maps), strict=True))
    best = codec.best_candidates(*model.candidates(preds), limit)
    kept = (best.scores >= conf_thresh) & (best.scores > 0)
    rows = zip(best.boxes, best.scores, best.labels, kept, strict=True)
    return [(boxes[keep].numpy(), scores[keep].numpy(), labels[keep].numpy()) for boxes, scores, labels, keep in rows]


def assert_same(found, expected):
    assert len(found) == len(expected)
    for one, (boxes, scores, labels) in zip(found, expected, strict=True):
        assert one.boxes.shape == (len(scores), 4)
        assert (one.boxes.dtype, one.scores.dtype, one.labels.dtype) == (np.float32, np.float32, np.int64)
        np.testing.assert_allclose(one.scores, scores, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(one.labels, labels)
        np.testing.assert_allclose(one.boxes, boxes, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("limit", [1, 7, MANY])
@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize(("kind", "form"), CASES, ids=str)
def test_candidates_are_those_of_torch(kind, form, threshold, limit):
    model, maps, decoder = case(kind, form)
    found = decoder(maps, threshold, limit)
    assert_same(found, found_by_torch(model, maps, threshold, limit))
    assert len(found) == form.get("batch", 2)
    for one in found:
        assert len(one.scores) <= limit
        assert (one.scores >= threshold).all()
        assert (np.diff(one.scores) <= 0).all()
        if threshold == 0 and kind == "query":
            pairs = form.get("queries", 10) * form.get("classes", 1)
            assert len(one.scores) == min(limit, pairs)
        assert threshold or len(one.scores)


@pytest.mark.parametrize(("kind", "form"), CASES, ids=str)
def test_saturated_scores(kind, form):
    """Logits far beyond where float32 tells sigmoids apart: scores of exactly 1 stay, those of 0 are no detection."""
    model, maps, decoder = case(kind, form)
    for each in maps:
        each *= 1e4
    with warnings.catch_warnings(), np.errstate(all="raise", under="ignore"):
        warnings.simplefilter("error")
        found = decoder(maps, 1.0, MANY)
    for one, (boxes, scores, labels) in zip(found, found_by_torch(model, maps, 1.0, MANY), strict=True):
        assert set(one.scores.tolist()) <= {1.0}
        # All tie, where torch promises no order.
        own, others = np.lexsort((*one.boxes.T, one.labels)), np.lexsort((*boxes.T, labels))
        np.testing.assert_array_equal(one.labels[own], labels[others])
        np.testing.assert_allclose(one.boxes[own], boxes[others], rtol=1e-5, atol=1e-2)
        assert len(one.scores) == len(scores)


def in_order(scores, limit):
    """Row and label of the best pairs of scores [N,C]: by score, then by row, then by label."""
    pairs = sorted(itertools.product(*map(range, scores.shape)), key=lambda pair: -scores[pair])
    return pairs[:limit]


@pytest.mark.parametrize("limit", [1, 7, 20, MANY])
@pytest.mark.parametrize("classes", [1, 3])
def test_ties_of_centres_keep_the_order_of_cells_and_classes(classes, limit):
    """Plateaus: of few levels, every cell that no neighbour surpasses is found, row by row."""
    heatmap, offsets, sizes = center_maps(classes, (5, 9), batch=3)
    heatmap = np.round(heatmap / 4)
    decoded = CenterDecoder()((heatmap, offsets, sizes), 0.0, limit)
    boxes, scores = center_net(classes).candidates(
        dict(zip(codec.CENTER_NAMES, map(torch.from_numpy, (heatmap, offsets, sizes)), strict=True))
    )
    for found, all_boxes, of_image in zip(decoded, boxes.numpy(), scores.numpy(), strict=True):
        expected = [(row, label) for row, label in in_order(of_image, MANY) if of_image[row, label] > 0][:limit]
        assert found.labels.tolist() == [label for _, label in expected]
        np.testing.assert_allclose(found.boxes, all_boxes[[row for row, _ in expected]], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("limit", [1, 7, MANY])
def test_ties_of_queries_keep_their_order(limit):
    logits, boxes = query_maps(classes=3, queries=12)
    logits = np.zeros_like(logits)
    logits[:, 4:8, 1] = 1.0
    found = QueryDecoder()((logits, boxes), 0.0, limit)
    raised = [(query, 1) for query in range(4, 8)]
    plain = [(query, label) for query in (0, 1, 2, 3, 8, 9, 10, 11) for label in range(3)]
    lowered = [(query, label) for query in range(4, 8) for label in (0, 2)]
    expected = [*raised, *plain, *lowered][:limit]
    for one, of_image in zip(found, boxes, strict=True):
        assert one.labels.tolist() == [label for _, label in expected]
        own = codec.decode_query_boxes(torch.from_numpy(of_image)).numpy()
        np.testing.assert_allclose(one.boxes, own[[query for query, _ in expected]], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("limit", [10, 200])
def test_torch_keeps_the_order_of_ties_too(limit):
    """A picture without contrast: all cells of its middle are alike, and all are peaks."""
    model, maps, decoder = case("center", {"grid": (16, 16), "batch": 1})
    maps[0][:] = 0.0
    assert_same(decoder(maps, 0.0, limit), found_by_torch(model, maps, 0.0, limit))


@pytest.mark.parametrize("threshold", [0.0, 1e-6, 0.5])
def test_nothing_is_found(threshold):
    """Scores that are 0 in float32: not one detection of score 0."""
    heatmap, offsets, sizes = center_maps(classes=2)
    logits, boxes = query_maps(classes=2)
    background = np.where(np.arange(3) == 2, np.float32(200), np.float32(-200)) + np.zeros_like(logits)
    for found in (
        CenterDecoder()((np.full_like(heatmap, -200), offsets, sizes), threshold, 50),
        QueryDecoder()((background, boxes), threshold, 50),
    ):
        assert [len(one.scores) for one in found] == [0, 0]
        assert all(one.boxes.shape == (0, 4) and one.labels.shape == (0,) for one in found)


def test_a_limit_of_0_and_a_threshold_that_a_score_reaches():
    heatmap, offsets, sizes = (np.zeros((1, channels, 2, 2), np.float32) for channels in (1, 2, 2))
    logits, boxes = np.zeros((1, 3, 2), np.float32), np.zeros((1, 3, 4), np.float32)
    for decode, count in (
        (lambda *rest: CenterDecoder()((heatmap, offsets, sizes), *rest), 4),
        (lambda *rest: QueryDecoder()((logits, boxes), *rest), 3),
    ):
        assert [len(decode(threshold, 9)[0].scores) for threshold in (0.5, 0.500001)] == [count, 0]
        assert len(decode(0.5, 0)[0].scores) == 0


def test_one_centre_by_hand():
    heatmap, offsets, sizes = (np.full((1, channels, 2, 4), -9, np.float32) for channels in (2, 2, 2))
    heatmap[0, 1, 1, 2] = 0
    offsets[0, :, 1, 2], sizes[0, :, 1, 2] = (0.5, 0.25), (2, -3)
    found = CenterDecoder()((heatmap, offsets, sizes), 0.4, 9)[0]
    assert (found.scores.tolist(), found.labels.tolist()) == ([0.5], [1])
    assert found.boxes.tolist() == [[1.5 / 4, 1.25 / 2, 3.5 / 4, 1.25 / 2]]


def test_one_query_by_hand():
    logits, boxes = np.zeros((1, 2, 3), np.float32), np.zeros((1, 2, 4), np.float32)
    logits[0, 1] = np.log([2, 5, 3])
    boxes[0, 1] = np.log([1 / 3, 1, 1 / 4, 1])  # sigmoids 1/4, 1/2, 1/5, 1/2
    found = QueryDecoder()((logits, boxes), 0.4, 9)[0]
    assert found.labels.tolist() == [1]
    assert found.scores.tolist() == pytest.approx([0.5])
    assert found.boxes[0].tolist() == pytest.approx([0.15, 0.25, 0.35, 0.75])


def test_one_place_by_hand():
    """Column 1 of 4, row 0 of 2 of the second grid: distances 1, 0, 2.5 and 1 cells."""
    maps = [np.full((1, 33, *grid), -9, np.float32) for grid in ((4, 8), (2, 4))]
    maps[1][0, 0, 0, 1] = 0
    sides = maps[1][0, 1:].reshape(4, 8, 2, 4)[:, :, 0, 1]
    sides[:] = -1e4
    for side, bins in enumerate(([1], [0], [2, 3], [1])):
        sides[side, bins] = 0
    maps[1][0, 1:, 0, 1] = sides.ravel()
    found = GridDecoder(1)(maps, 0.4, 9)[0]
    assert (found.scores.tolist(), found.labels.tolist()) == ([0.5], [0])
    assert found.boxes[0].tolist() == pytest.approx([0.5 / 4, 0.5 / 2, 1, 1.5 / 2])


@pytest.mark.parametrize("classes", [0, -1, 1.5, "1"])
def test_levels_of_an_impossible_number_of_classes(classes):
    with pytest.raises(ValueError, match="num_classes"):
        build_decoder("gfl", {"num_classes": classes})


@pytest.mark.parametrize("kind", ["center", "query", "gfl"])
def test_maps_are_left_as_they_were(kind):
    _, maps, decoder = case(kind, {})
    before = [each.copy() for each in maps]
    for each in maps:
        each.setflags(write=False)
    decoder(maps, 0.0, 9)
    for each, old in zip(maps, before, strict=True):
        np.testing.assert_array_equal(each, old)


@pytest.mark.parametrize(
    ("name", "decoding"),
    [
        ("center", {"num_classes": 1}),
        ("center", {"stride": 8}),
        ("query", {"num_classes": 1}),
        ("query", {"classes": 1}),
        ("gfl", {}),
        ("gfl", {"num_classes": 1, "strides": [8]}),
        ("centre", {}),
        ("queries", {}),
    ],
)
def test_unknown_settings(name, decoding):
    with pytest.raises(ValueError, match=f"{name!r}"):
        build_decoder(name, decoding)
