"""The assigners against slow references: one loop over pictures, truths and priors, in double precision.

Where two choices differ by less than single precision can tell apart, the input is drawn again.
"""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from uhd.assigners import Predictions, PriorGrid, build_assigner
from uhd.config import AssignConfig
from uhd.types import IGNORED, PADDING, Assignment, Targets

GRIDS = [(8, 8), (4, 6), (6, 3), (2, 2), (1, 1)]
NAMES = ["legacy", "simota", "tal"]


@dataclass
class Case:
    """Plain numbers of a batch: boxes [B,N,4], scores [B,N,C], anchors [A,2], truths [B,M,4] and labels [B,M]."""

    grid: tuple[int, int]
    anchors: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    truths: np.ndarray
    labels: np.ndarray

    def assign(self, name: str, topk: int = 10) -> Assignment:
        assigner = build_assigner(AssignConfig(anchor_assigner=name, simota_topk=topk))
        tensors = [torch.from_numpy(a) for a in (self.boxes, self.scores, self.anchors, self.truths, self.labels)]
        batch = len(self.labels)
        targets = Targets(tensors[3], tensors[4], torch.arange(batch), torch.full((batch, 2), 64))
        return assigner(Predictions(*tensors[:2]), PriorGrid(tensors[2], self.grid), targets)

    def pictures(self):
        """Of each picture: its real truths {row: (box, label)}, predicted boxes and scores, as plain numbers."""
        for image, labels in enumerate(self.labels):
            truths = {row: (self.truths[image, row].tolist(), int(k)) for row, k in enumerate(labels) if k >= 0}
            yield truths, self.boxes[image].tolist(), self.scores[image].tolist()

    def cell_centre(self, prior: int) -> tuple[float, float]:
        height, width = self.grid
        return prior % width + 0.5, prior // width % height + 0.5


class UndecidedError(Exception):
    """Two choices are too close for single precision."""


# --- the references -----------------------------------------------------------------------------------


def iou_of(a, b):
    inter = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter
    return inter / union


def is_inside(case, prior, box):
    (x, y), (height, width) = case.cell_centre(prior), case.grid
    return box[0] * width < x < box[2] * width and box[1] * height < y < box[3] * height


def is_near(case, prior, box, cells):
    (x, y), (height, width) = case.cell_centre(prior), case.grid
    middle = (box[0] + box[2]) / 2 * width, (box[1] + box[3]) / 2 * height
    return max(abs(x - middle[0]), abs(y - middle[1])) < cells


def require_gap(a, b):
    """Equal values (identical truths) and clearly different ones are decided; what lies between is not."""
    if a != b and abs(a - b) < 4 * float(np.spacing(np.float32(max(abs(a), abs(b))))):
        raise UndecidedError


def cheapest(costs, count):
    """The `count` keys of lowest cost."""
    order = sorted(costs, key=costs.get)
    if count < len(order):
        require_gap(costs[order[count - 1]], costs[order[count]])
        if costs[order[count - 1]] == costs[order[count]]:
            raise UndecidedError
    return order[:count]


def settle_by_cost(wishes, num_priors):
    """wishes {(row, prior): cost} to the truth of each prior: the cheapest, the first where identical."""
    truth = [-1] * num_priors
    lowest = {}
    for (row, prior), cost in sorted(wishes.items()):
        if prior in lowest:
            require_gap(cost, lowest[prior])
        if prior not in lowest or cost < lowest[prior]:
            lowest[prior], truth[prior] = cost, row
    return truth


def legacy_reference(case, _):
    height, width = case.grid
    result = []
    for truths, boxes, _ in case.pictures():
        wishes = {}
        for row, (box, _) in truths.items():
            size = (0, 0, box[2] - box[0], box[3] - box[1])
            fits = {index: -iou_of(size, (0, 0, w, h)) for index, (w, h) in enumerate(case.anchors.tolist())}
            (anchor,) = cheapest(fits, 1)
            column = min(int((box[0] + box[2]) / 2 * width), width - 1)
            line = min(int((box[1] + box[3]) / 2 * height), height - 1)
            wishes[row, (anchor * height + line) * width + column] = fits[anchor]
        result.append(settle_by_cost(wishes, len(boxes)))
    return result, None


def simota_reference(case, topk):
    result = []
    for truths, boxes, scores in case.pictures():
        wishes = {}
        for row, (box, label) in truths.items():
            costs, overlaps = {}, []
            for prior, predicted in enumerate(boxes):
                inside, near = is_inside(case, prior, box), is_near(case, prior, box, 2.5)
                if not (inside or near):
                    continue
                overlap = iou_of(box, predicted)
                overlaps.append(overlap)
                bce = sum(-math.log(p if k == label else 1 - p) for k, p in enumerate(scores[prior]))
                outside = 0 if inside and near else 1e5
                costs[prior] = bce - 3 * math.log(overlap + 1e-8) + outside
            total = sum(sorted(overlaps, reverse=True)[:topk])
            if total > 0.5 and abs(total - round(total)) < 1e-5:
                raise UndecidedError
            for prior in cheapest(costs, max(1, math.floor(total))):
                wishes[row, prior] = costs[prior]
        result.append(settle_by_cost(wishes, len(boxes)))
    return result, None


def tal_reference(case, _):
    result, qualities = [], []
    for truths, boxes, scores in case.pictures():
        wishes, alignment = {}, {}
        for row, (box, label) in truths.items():
            own = {}
            for prior, predicted in enumerate(boxes):
                inside = is_inside(case, prior, box) and is_near(case, prior, box, 2.5)
                overlap = iou_of(box, predicted)
                # A prior that does not overlap its truth has quality 0, whichever of them is taken.
                if overlap > 0 and (inside or is_near(case, prior, box, 1)):
                    own[prior] = -(scores[prior][label] ** 0.5 * overlap**4)
            for prior in cheapest(own, 10):
                alignment[row, prior] = -own[prior]
                wishes[row, prior] = -iou_of(box, boxes[prior])
        truth = settle_by_cost(wishes, len(boxes))
        quality = [0.0] * len(boxes)
        for row in truths:
            mine = [prior for prior, owner in enumerate(truth) if owner == row]
            for prior in mine:
                best_alignment = max(alignment[row, p] for p in mine)
                best_iou = max(-wishes[row, p] for p in mine)
                quality[prior] = alignment[row, prior] / best_alignment * best_iou
        result.append(truth)
        qualities.append(quality)
    return result, qualities


REFERENCES = {"legacy": legacy_reference, "simota": simota_reference, "tal": tal_reference}


# --- random inputs ------------------------------------------------------------------------------------


def random_truth(rng):
    """A box inside the picture: ordinary, a pixel, all of the picture, or at its border."""
    kind = rng.integers(5)
    low, high = [(0.1, 0.6), (0.1, 0.6), (0.005, 0.02), (0.9, 1.0), (0.1, 0.6)][kind]
    size = rng.uniform(low, high, 2)
    corner = rng.uniform(0, 1 - size)
    if kind == 4:
        corner = np.where(rng.random(2) < 0.5, corner, rng.choice([0.0, 1.0], 2) * (1 - size))
    return np.concatenate([corner, np.minimum(corner + size, 1)])


def random_case(rng, truths_per_picture=None, draw=random_truth):
    grid = GRIDS[rng.integers(len(GRIDS))] if truths_per_picture is None else (8, 8)
    batch, num_anchors, num_classes = int(rng.integers(1, 4)), int(rng.integers(1, 4)), int(rng.choice([1, 3]))
    counts = rng.integers(0, 13, batch) if truths_per_picture is None else np.full(1, truths_per_picture)
    batch, most = len(counts), int(counts.max()) + int(rng.integers(0, 4))
    truths, labels = np.zeros((batch, most, 4), np.float32), np.full((batch, most), PADDING)
    for image, count in enumerate(counts):
        for row in rng.permutation(most)[:count]:
            truths[image, row] = draw(rng)
            labels[image, row] = IGNORED if rng.random() < 0.1 else rng.integers(num_classes)
        if count >= 2 and rng.random() < 0.4:
            first, second = np.flatnonzero(labels[image] != PADDING)[:2]
            truths[image, second], labels[image, second] = truths[image, first], labels[image, first]
    anchors = np.exp(rng.uniform(math.log(0.03), 0, (num_anchors, 2))).astype(np.float32)
    height, width = grid
    cells = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1).reshape(-1, 2)
    centre = (np.tile(cells, (num_anchors, 1)) + rng.random((batch, num_anchors * height * width, 2))) / (width, height)
    half = np.repeat(anchors, height * width, axis=0) * np.exp(rng.normal(0, 0.5, centre.shape)) / 2
    boxes = np.concatenate([centre - half, centre + half], axis=2)
    for image, count in enumerate(counts):
        # Some priors have learned a truth, or IoUs would hardly ever add up to 2.
        learned = (rng.random(boxes.shape[1]) < 0.5) & (count > 0)
        row = rng.integers(0, most, learned.sum())
        noise = rng.normal(0, 0.05, (learned.sum(), 4)) * np.tile(half[image, learned] * 2, 2)
        boxes[image, learned] = truths[image, row] + noise
    boxes = np.concatenate([np.minimum(boxes[..., :2], boxes[..., 2:] - 1e-3), boxes[..., 2:]], axis=2)
    scores = 1 / (1 + np.exp(-rng.normal(-1, 3, (*boxes.shape[:2], num_classes))))
    extreme = rng.random(scores.shape)
    scores = np.where(extreme < 0.03, 1e-12, np.where(extreme > 0.97, 1 - 2**-24, scores))
    return Case(grid, anchors, boxes.astype(np.float32), scores.astype(np.float32), truths, labels)


def decided(name, seed, topk=10, **options):
    """The first random input that the reference can decide, and its answer."""
    for attempt in range(200):
        case = random_case(np.random.default_rng([seed, attempt]), **options)
        try:
            return case, *REFERENCES[name](case, topk)
        except UndecidedError:
            continue
    raise AssertionError("no input could be decided")


def compare(assignment, truth, quality):
    assert assignment.truth.dtype == torch.int64
    found = assignment.truth
    if quality is None:
        assert assignment.quality is None
    else:
        assert np.allclose(assignment.quality.numpy(), quality, atol=1e-6)
        found = found.masked_fill(assignment.quality == 0, -1)
    assert found.tolist() == truth


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize("name", NAMES)
def test_random_batches(name, seed):
    case, truth, quality = decided(name, seed)

    compare(case.assign(name), truth, quality)


@pytest.mark.parametrize("topk", [1, 3, 1000])
@pytest.mark.parametrize("seed", range(5))
def test_simota_sums_as_many_ious_as_it_is_told(seed, topk):
    case, truth, quality = decided("simota", 100 + seed, topk)

    compare(case.assign("simota", topk), truth, quality)


def large_truth(rng):
    size = rng.uniform(0.3, 0.9, 2)
    corner = rng.uniform(0, 1 - size)
    return np.concatenate([corner, corner + size])


@pytest.mark.parametrize("name", NAMES)
def test_three_hundred_truths_in_a_picture(name):
    case, truth, quality = decided(name, 7, truths_per_picture=300, draw=large_truth)

    compare(case.assign(name), truth, quality)


# --- worked by hand -----------------------------------------------------------------------------------


def worked(truths, predicted=None, scores=None, grid=(4, 4), anchors=((0.25, 0.25),), labels=None):
    """One picture; predictions fill their own cell and score 0.5 where nothing else is said."""
    height, width = grid
    cells = [(column / width, row / height) for row in range(height) for column in range(width)] * len(anchors)
    boxes = np.array([[x, y, x + 1 / width, y + 1 / height] for x, y in cells], np.float32)
    all_scores = np.full((1, len(boxes), 1), 0.5, np.float32)
    for prior, box in (predicted or {}).items():
        boxes[prior] = box
    for prior, score in (scores or {}).items():
        all_scores[0, prior] = score
    labels = labels or [0] * len(truths)
    truths = np.array(truths, np.float32).reshape(1, -1, 4)
    return Case(grid, np.array(anchors, np.float32), boxes[None], all_scores, truths, np.array([labels], np.int64))


def positives(assignment):
    """{prior: truth} of the only picture."""
    return {prior: row for prior, row in enumerate(assignment.truth[0].tolist()) if row >= 0}


@pytest.mark.parametrize(
    ("truths", "anchors", "expected"),
    [
        pytest.param([(0.3, 0.3, 0.45, 0.45)], [(0.25, 0.25)], {5: 0}, id="in its cell"),
        pytest.param([(0.4, 0.4, 0.6, 0.6)], [(0.25, 0.25)], {10: 0}, id="centre on a crossing: the later cell"),
        pytest.param([(0.0, 0.0, 0.02, 0.02), (0.98, 0.98, 1, 1)], [(0.5, 0.5)], {0: 0, 15: 1}, id="in the corners"),
        pytest.param([(1 - 2**-24, 0.5, 1, 1)], [(0.5, 0.5)], {15: 0}, id="x of the centre rounds to 1"),
        pytest.param([(0.5, 1 - 2**-24, 1, 1)], [(0.5, 0.5)], {15: 0}, id="y of the centre rounds to 1"),
        pytest.param([(0.25, 0.0, 0.5, 0.25)], [(0.5, 0.5), (0.25, 0.25)], {17: 0}, id="the second anchor fits"),
        pytest.param([(0.3, 0.3, 0.45, 0.45), (0.26, 0.26, 0.5, 0.5)], [(0.25, 0.25)], {5: 1}, id="better fit keeps"),
        pytest.param([(0.3, 0.3, 0.45, 0.45)] * 2, [(0.25, 0.25)], {5: 0}, id="identical: the first keeps"),
        pytest.param([(0.25, 0.25, 0.5, 0.5), (0.3, 0.35, 0.4, 0.4)], [(0.2, 0.2), (0.1, 0.05)], {5: 0, 21: 1}, id="2"),
    ],
)
def test_legacy_takes_the_best_anchor_of_the_centre_cell(truths, anchors, expected):
    assert positives(worked(truths, anchors=anchors).assign("legacy")) == expected


WHOLE, CELL = (0.0, 0.0, 1.0, 1.0), (0.26, 0.26, 0.49, 0.49)


@pytest.mark.parametrize(
    ("truths", "predicted", "scores", "expected"),
    [
        pytest.param([CELL], {}, {}, {5: 0}, id="IoUs below 2 make one positive"),
        pytest.param([CELL], {5: WHOLE, 6: CELL}, {6: 0.999}, {5: 0}, id="inside goes before all else"),
        pytest.param([WHOLE], {5: WHOLE, 10: WHOLE, 6: WHOLE}, {}, {5: 0, 6: 0, 10: 0}, id="three fit exactly"),
        pytest.param([(0.01, 0.01, 0.02, 0.02)], {}, {}, {0: 0}, id="no cell centre inside: the nearest box"),
        pytest.param([CELL, WHOLE], {5: WHOLE}, {}, {5: 1}, id="two want one: the cheaper gets it"),
    ],
)
def test_simota_by_hand(truths, predicted, scores, expected):
    assert positives(worked(truths, predicted, scores).assign("simota")) == expected


def test_tal_scales_the_alignment_to_the_best_iou():
    truth = (0.25, 0.25, 0.75, 0.75)
    half, quarter = (0.25, 0.25, 0.75, 0.5), (0.25, 0.25, 0.5, 0.5)
    case = worked([truth], {5: half, 6: quarter, 9: (0, 0, 0.1, 0.1), 10: (0, 0, 0.1, 0.1)}, {5: 0.04, 6: 0.64})

    assignment = case.assign("tal")

    # alignment 0.2 * 1/16 and 0.8 * 1/256: the first is the best and gets the best IoU, 1/2.
    expected = {5: 0.5, 6: 0.5 * (0.8 / 256) / (0.2 / 16)}
    assert {prior: assignment.truth[0, prior].item() for prior in expected} == {5: 0, 6: 0}
    quality = {prior: value for prior, value in enumerate(assignment.quality[0].tolist()) if value}
    assert quality == pytest.approx(expected)


# --- what all of them share ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("labels", [[], [PADDING] * 3, [IGNORED], [PADDING, IGNORED]])
def test_without_a_real_truth_all_is_background(name, labels):
    case = worked([(0.2, 0.2, 0.7, 0.7)] * len(labels), labels=labels)

    assignment = case.assign(name)

    assert (assignment.truth == -1).all()
    assert assignment.truth.shape == (1, 16)
    assert assignment.quality is None or not assignment.quality.any()


@pytest.mark.parametrize("name", NAMES)
def test_a_lone_truth_always_finds_a_prior(name):
    for seed in range(30):
        rng = np.random.default_rng(seed)
        case = worked([random_truth(rng)], grid=GRIDS[seed % len(GRIDS)])
        assert positives(case.assign(name))


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_padding_change_nothing(name):
    case = random_case(np.random.default_rng(3), truths_per_picture=6)
    longer = Case(
        case.grid,
        case.anchors,
        case.boxes,
        case.scores,
        np.concatenate([case.truths, np.full((1, 50, 4), 0.5, np.float32)], axis=1),
        np.concatenate([case.labels, np.full((1, 50), PADDING)], axis=1),
    )

    plain, padded = case.assign(name), longer.assign(name)

    assert torch.equal(plain.truth, padded.truth)
    assert plain.quality is None or torch.equal(plain.quality, padded.quality)
