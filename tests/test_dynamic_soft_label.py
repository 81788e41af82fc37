"""The assigner of NanoDet: which place learns which truth, against hand-worked cases and a plain loop."""

import math

import pytest
import torch
from helpers import padded_targets, targets_of
from torchvision.ops import box_iou

from uhd import codec
from uhd.assigners import DynamicSoftLabelAssigner, Predictions
from uhd.types import IGNORED

SIZE = 64
GRIDS = ((8, 8), (4, 4), (2, 2))


def places_of(grids=GRIDS):
    places = codec.split_grids([torch.zeros(1, 33, *grid) for grid in grids], 1)
    return places.points, places.cells


def predictions(batch=1, classes=1, seed=0, extent=2.0):
    """Boxes around each point, of random sides, and random scores."""
    generator = torch.Generator().manual_seed(seed)
    points, cells = places_of()
    distances = torch.rand(batch, len(points), 4, generator=generator) * extent
    boxes = torch.cat([points - distances[..., :2] * cells, points + distances[..., 2:] * cells], dim=2)
    return Predictions(boxes, torch.rand(batch, len(points), classes, generator=generator))


def assign(found, targets):
    return DynamicSoftLabelAssigner()(found, *places_of(), targets)


def pixels(*box):
    return tuple(side / SIZE for side in box)


def by_loop(found, boxes, labels):
    """Truth of each place, or -1: each truth takes its cheapest, a place keeps the truth that costs it least."""
    points, _ = places_of()
    iou = box_iou(boxes, found.boxes[0])
    owner, price = [-1] * len(points), [math.inf] * len(points)
    for g, box in enumerate(boxes):
        inside = [n for n, (x, y) in enumerate(points.tolist()) if box[0] < x < box[2] and box[1] < y < box[3]]
        costs = {}
        for n in inside:
            costs[n] = -3 * math.log(iou[g, n] + 1e-7)
            for c, p in enumerate(found.scores[0, n].tolist()):
                y = iou[g, n].item() if c == labels[g] else 0.0
                costs[n] -= (y * math.log(p) + (1 - y) * math.log(1 - p)) * (y - p) ** 2
        best = sorted((iou[g, n].item() for n in inside), reverse=True)[:13]
        for n in sorted(costs, key=costs.get)[: max(1, int(sum(best)))]:
            if costs[n] < price[n]:
                owner[n], price[n] = g, costs[n]
    return owner, iou


@pytest.mark.parametrize("seed", range(5))
def test_against_a_plain_loop(seed):
    found = predictions(classes=2, seed=seed)
    boxes = torch.tensor([pixels(2, 3, 40, 60), pixels(20, 10, 62, 50), pixels(0, 0, 64, 64)])
    labels = [0, 1, 1]
    owner, iou = by_loop(found, boxes, labels)
    assert all(g in owner for g in range(3))  # so that none needs a home
    assignment = assign(found, padded_targets([list(zip(boxes, labels, strict=True))]))
    assert assignment.truth[0].tolist() == owner
    expected = [iou[g, n].item() if g >= 0 else 0.0 for n, g in enumerate(owner)]
    assert assignment.quality[0].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("box", "place"),
    [
        (pixels(0, 0, 8, 8), 0),
        (pixels(0, 16, 8, 24), 2 * 8),
        (pixels(16, 0, 24, 8), 2),
        (pixels(56, 56, 64, 64), 63),
        (pixels(0, 0, 7, 7), 0),
    ],
)
def test_the_first_row_and_column_can_learn(box, place):
    assignment = assign(predictions(), targets_of([(0, *box)]))
    assert assignment.truth[0].nonzero().flatten().tolist() != []
    assert (assignment.truth[0] >= 0).nonzero().flatten().tolist() == [place]


@pytest.mark.parametrize(
    "box", [pixels(29, 25, 35, 39), pixels(5, 5, 7, 7), pixels(32, 32, 32.5, 32.5), pixels(0, 0, 3, 3)]
)
def test_a_truth_that_holds_no_point_has_a_place_near_its_centre(box):
    points, cells = places_of()
    (place,) = (assign(predictions(), targets_of([(0, *box)])).truth[0] >= 0).nonzero().flatten().tolist()
    centre = torch.tensor([(box[0] + box[2]) / 2, (box[1] + box[3]) / 2])
    assert ((points[place] - centre).abs() < cells[place]).all()


@pytest.mark.parametrize("seed", range(8))
def test_small_truths_inside_a_large_one_each_have_a_place_of_their_own(seed):
    """The large one is learned too, and no truth by a place outside it that another holds."""
    small = [pixels(29, 25, 35, 39), pixels(13, 13, 18, 19), pixels(44, 45, 51, 51)]
    truths = [(0, *box) for box in (pixels(0, 0, 64, 64), *small)]
    truth = assign(predictions(seed=seed), targets_of(truths)).truth[0]
    assert {*truth.tolist()} == {-1, 0, 1, 2, 3}


@pytest.mark.parametrize(("count", "seed"), [(2, 0), (8, 1), (12, 2)])
def test_each_of_many_truths_has_a_place_wherever_they_lie(count, seed):
    """100 pictures, 3 to 50 pixels a side, nested and overlapping, with boxes and scores of a fresh network."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.rand(100, count, 2, generator=generator)
    side = (3 / SIZE) * (50 / 3) ** torch.rand(100, count, 2, generator=generator)
    boxes = torch.cat([centre - side / 2, centre + side / 2], dim=2).clamp(0, 1)
    found = predictions(batch=100, seed=seed)
    found.scores[:] = 0.01
    truth = assign(found, targets_of(*([(0, *box) for box in picture] for picture in boxes.tolist()))).truth
    assert [set(row) >= set(range(count)) for row in truth.tolist()] == [True] * 100


def test_a_truth_is_not_learned_inside_another_alone():
    """No place of the right half learns the left truth, however well its box fits."""
    found = predictions()
    left, right = pixels(0, 0, 30, 64), pixels(34, 0, 64, 64)
    found.boxes[:] = torch.tensor(left)
    truth = assign(found, targets_of([(0, *left), (0, *right)])).truth[0]
    points, _ = places_of()
    assert (points[truth == 0][:, 0] < 0.5).all()
    assert (points[truth == 1][:, 0] > 0.5).all()
    assert (truth == 1).any()


@pytest.mark.parametrize(
    "box", [(0.4, 0.4, 0.4, 0.8), (0.4, 0.4, 0.8, 0.4), (0.5, 0.5, 0.5, 0.5), (0.6, 0.2, 0.4, 0.8)]
)
def test_boxes_without_area_are_no_truths(box):
    other = pixels(4, 4, 40, 40)
    targets = targets_of([(0, *box), (0, *other)])
    assert 0 not in assign(predictions(), targets).truth[0]
    assert 1 in assign(predictions(), targets).truth[0]


def test_what_is_no_truth():
    targets = targets_of([(IGNORED, *pixels(4, 4, 40, 40))], [])
    assignment = assign(predictions(batch=2), targets)
    assert (assignment.truth == -1).all()
    assert not assignment.quality.any()


@pytest.mark.parametrize("value", [float("nan"), 0.0, 1.0])
def test_scores_at_their_limits(value):
    found = predictions()
    found.scores[:] = value
    assignment = assign(found, targets_of([(0, *pixels(4, 4, 40, 40))]))
    assert assignment.quality.isfinite().all()
    assert (assignment.truth >= 0).any() == (value == value)


def test_pictures_of_a_batch_are_apart():
    found = predictions(batch=3)
    rows = [[(0, *pixels(4, 4, 40, 40))], [], [(0, *pixels(2, 3, 40, 60)), (0, *pixels(20, 10, 62, 50))]]
    together = assign(found, targets_of(*rows))
    for image, row in enumerate(rows):
        alone = assign(Predictions(found.boxes[image : image + 1], found.scores[image : image + 1]), targets_of(row))
        assert torch.equal(together.truth[image], alone.truth[0])
        assert torch.equal(together.quality[image], alone.quality[0])
