"""The IoU family and suppression, against torchvision and against cases worked by hand."""

import math

import numpy as np
import pytest
import torch
import torchvision
from torchvision.ops import complete_box_iou_loss, generalized_box_iou_loss

from uhd.boxes import box_area, box_iou, box_similarity, soft_suppress, suppress
from uhd.types import IGNORED, PADDING, Detections

SIZE_MISMATCH = 4 / math.pi**2 * (math.atan(2) - math.atan(0.5)) ** 2  # of a 2x1 and a 1x2 box


def random_boxes(count, seed, span=64.0):
    """[count,4] float64 of very different sizes, many of which overlap."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.rand(count, 2, generator=generator, dtype=torch.float64) * span
    size = span * 0.6 * torch.rand(count, 2, generator=generator, dtype=torch.float64) ** 2 + 0.01 * span
    return torch.cat([centre - size / 2, centre + size / 2], dim=1)


def torchvision_loss(kind, a, b):
    if kind == "iou":
        return 1 - torchvision.ops.box_iou(a, b).diagonal()
    return {"giou": generalized_box_iou_loss, "ciou": complete_box_iou_loss}[kind](a, b)


# --- IoU, GIoU, CIoU ----------------------------------------------------------------------------------


def test_pairwise_iou_agrees_with_torchvision():
    a, b = random_boxes(80, 0), random_boxes(50, 1)

    assert torch.allclose(box_iou(a[:, None], b), torchvision.ops.box_iou(a, b), atol=1e-12)


@pytest.mark.parametrize("kind", ["iou", "giou", "ciou"])
def test_values_and_gradients_agree_with_torchvision(kind):
    a, b = random_boxes(500, 2), random_boxes(500, 3)
    ours, theirs = a.clone().requires_grad_(), a.clone().requires_grad_()

    iou, similarity = box_similarity(ours, b, kind)
    expected = torchvision_loss(kind, theirs, b)
    similarity.sum().backward()
    expected.sum().backward()

    assert torch.allclose(iou, torchvision.ops.box_iou(a, b).diagonal(), atol=1e-9)
    assert torch.allclose(1 - similarity, expected, atol=1e-6)
    assert torch.allclose(-ours.grad, theirs.grad, atol=1e-6)
    assert (similarity < iou + 1e-12).all()


@pytest.mark.parametrize(
    ("a", "b", "iou", "giou", "ciou"),
    [
        pytest.param((0, 0, 1, 1), (0, 0, 1, 1), 1, 1, 1, id="identical"),
        pytest.param((0, 0, 2, 2), (1, 1, 3, 3), 1 / 7, 1 / 7 - 2 / 9, 1 / 7 - 1 / 9, id="overlapping"),
        pytest.param((0, 0, 1, 1), (1, 0, 2, 1), 0, 0, -1 / 5, id="touching at an edge"),
        pytest.param((0, 0, 1, 1), (1, 1, 2, 2), 0, -1 / 2, -1 / 4, id="touching at a corner"),
        pytest.param((0, 0, 1, 1), (9, 0, 10, 1), 0, -8 / 10, -81 / 101, id="far apart"),
        pytest.param((0, 0, 4, 4), (1, 1, 3, 3), 1 / 4, 1 / 4, 1 / 4, id="inside, same centre"),
        pytest.param((-1e4, -1e4, 1e4, 1e4), (-1, -1, 1, 1), 1e-8, 1e-8, 1e-8, id="huge"),
        pytest.param((0, 0, 1e-3, 1e-3), (0, 0, 1e-3, 5e-4), 0.5, 0.5, None, id="a fraction of a pixel"),
        pytest.param(
            (-1, -0.5, 1, 0.5),
            (-0.5, -1, 0.5, 1),
            1 / 3,
            1 / 3 - 1 / 4,
            1 / 3 - SIZE_MISMATCH**2 / (2 / 3 + SIZE_MISMATCH),
            id="turned by a quarter",
        ),
    ],
)
def test_worked_pairs(a, b, iou, giou, ciou):
    a, b = torch.tensor(a, dtype=torch.float32), torch.tensor(b, dtype=torch.float32)

    for first, second in ((a, b), (b, a)):
        assert box_iou(first, second).item() == pytest.approx(iou, rel=1e-5, abs=1e-7)
        assert box_similarity(first, second, "iou")[1].item() == pytest.approx(iou, rel=1e-5, abs=1e-7)
        assert box_similarity(first, second, "giou")[1].item() == pytest.approx(giou, rel=1e-5, abs=1e-6)
        if ciou is not None:
            assert box_similarity(first, second, "ciou")[1].item() == pytest.approx(ciou, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("box", [(0.5, 0.5, 0.5, 0.5), (0.2, 0.2, 0.2, 0.8), (0.8, 0.8, 0.2, 0.2)])
def test_a_box_without_area_overlaps_nothing(box):
    flat = torch.tensor(box)

    assert box_area(flat) == 0
    assert box_iou(flat, torch.tensor([[0.0, 0.0, 1.0, 1.0], list(box)])).tolist() == [0, 0]


@pytest.mark.parametrize("kind", ["iou", "giou", "ciou"])
@pytest.mark.parametrize(
    "predicted",
    [(0.5, 0.5, 0.5, 0.5), (0.1, 0.1, 0.3, 0.3), (0.3, 0.1, 0.5, 0.3), (-1e3, -1e3, 1e3, 1e3), (0.9, 0.9, 0.9, 1.0)],
)
def test_gradients_are_finite_for_every_prediction(kind, predicted):
    box = torch.tensor(predicted, requires_grad=True)

    box_similarity(box, torch.tensor([0.1, 0.1, 0.3, 0.3]), kind)[1].backward()

    assert box.grad.isfinite().all()


def test_the_iou_family_of_no_pairs_is_empty():
    for kind in ("iou", "giou", "ciou"):
        assert [part.shape for part in box_similarity(torch.zeros(0, 4), torch.zeros(0, 4), kind)] == [(0,), (0,)]


# --- suppression --------------------------------------------------------------------------------------


def random_candidates(batch, count, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.stack([random_boxes(count, seed + image, span=1.0).float() for image in range(batch)])
    scores = torch.rand(batch, count, generator=generator)
    return Detections(boxes, scores, torch.randint(classes, (batch, count), generator=generator))


def expected_rows(candidates, image, conf_thresh, iou_thresh, topk):
    """(box, score, label) of one picture, best first: torchvision's suppression, which knows one picture only."""
    fields = (candidates.boxes[image], candidates.scores[image], candidates.labels[image])
    enough = (fields[1] >= conf_thresh) & (fields[2] >= 0)
    boxes, scores, labels = (values[enough] for values in fields)
    keep = torchvision.ops.batched_nms(boxes.double(), scores.double(), labels, iou_thresh)[:topk]
    return list(zip(boxes[keep].tolist(), scores[keep].tolist(), labels[keep].tolist(), strict=True))


def rows_of(found, image):
    used = found.labels[image] != PADDING
    boxes, scores, labels = found.boxes[image][used], found.scores[image][used], found.labels[image][used]
    return list(zip(boxes.tolist(), scores.tolist(), labels.tolist(), strict=True))


@pytest.mark.parametrize("classes", [1, 5])
@pytest.mark.parametrize(
    ("batch", "count", "conf_thresh", "iou_thresh", "topk"),
    [
        (3, 60, 0.3, 0.5, 50),
        (1, 60, 0.0, 0.5, 50),
        (4, 40, 0.5, 0.3, 5),
        (3, 60, 0.3, 0.0, 50),
        (3, 60, 0.3, 1.0, 50),
        (3, 60, 0.3, 0.5, 1),
        (3, 60, 1.0, 0.5, 50),
        (2, 1, 0.1, 0.5, 50),
        (3, 500, 0.001, 0.7, 100),
        (3, 500, 0.001, 0.9, 1000),
    ],
)
def test_suppression_agrees_with_torchvision_picture_by_picture(batch, count, conf_thresh, iou_thresh, topk, classes):
    candidates = random_candidates(batch, count, classes, seed=count)

    found = suppress(candidates, conf_thresh, iou_thresh, topk)

    assert found.boxes.shape == (batch, topk, 4)
    assert found.scores.shape == found.labels.shape == (batch, topk)
    for image in range(batch):
        expected = expected_rows(candidates, image, conf_thresh, iou_thresh, topk)
        assert rows_of(found, image) == expected
        unused = found.labels[image] == PADDING
        assert unused.sum() == topk - len(expected)
        assert not found.scores[image][unused].any()
        assert not found.boxes[image][unused].any()


def tiles(side):
    """Boxes [side*side,4] that touch but do not overlap."""
    edge = torch.arange(side) / side
    y, x = torch.meshgrid(edge, edge, indexing="ij")
    corner = torch.stack([x, y], dim=-1).reshape(-1, 2)
    return torch.cat([corner, corner + 1 / side], dim=1)


@pytest.mark.parametrize(("topk", "kept"), [(1, 1), (100, 100), (144, 144), (300, 144)])
def test_touching_boxes_all_survive_up_to_topk(topk, kept):
    boxes = tiles(12)[None]
    scores = torch.linspace(0.1, 0.9, 144)[None]

    found = suppress(Detections(boxes, scores, torch.zeros(1, 144, dtype=torch.long)), 0.0, 0.5, topk)

    assert (found.labels[0] == 0).sum() == kept
    assert torch.equal(found.scores[0, :kept], scores[0].flip(0)[:kept])


WHOLE, UPPER_HALF, ELSEWHERE = (0.0, 0.0, 1.0, 1.0), (0.0, 0.0, 1.0, 0.5), (2.0, 2.0, 3.0, 3.0)


@pytest.mark.parametrize(
    ("rows", "iou_thresh", "topk", "kept"),
    [
        pytest.param([(WHOLE, 0.9, 0), (WHOLE, 0.8, 0)], 0.5, 5, [0], id="the same box twice"),
        pytest.param([(WHOLE, 0.8, 0), (WHOLE, 0.9, 0)], 0.5, 5, [1], id="the better one stays"),
        pytest.param([(WHOLE, 0.9, 0), (WHOLE, 0.8, 1)], 0.5, 5, [0, 1], id="another class"),
        pytest.param([(WHOLE, 0.9, 0), (UPPER_HALF, 0.8, 0)], 0.5, 5, [0, 1], id="IoU equal to the threshold"),
        pytest.param([(WHOLE, 0.9, 0), (UPPER_HALF, 0.8, 0)], 0.49, 5, [0], id="IoU above the threshold"),
        pytest.param([(WHOLE, 0.9, 0), (WHOLE, 0.8, 0)], None, 5, [0, 1], id="no suppression"),
        pytest.param([(WHOLE, 0.4, 0), (ELSEWHERE, 0.9, 0), (WHOLE, 0.6, 0)], None, 2, [1, 2], id="none, but sorted"),
        pytest.param([(WHOLE, 0.7, 0), (WHOLE, 0.7, 0)], 0.5, 5, [0], id="tie on one place: the first"),
        pytest.param([(WHOLE, 0.7, 0), (ELSEWHERE, 0.7, 0)], 0.5, 1, [0], id="tie at the cut: the first"),
        pytest.param([(WHOLE, 0.3, 0), (ELSEWHERE, 0.2999, 0)], 0.5, 5, [0], id="score equal to the threshold"),
        pytest.param([(WHOLE, 0.9, PADDING), (ELSEWHERE, 0.9, IGNORED)], 0.5, 5, [], id="rows that are no box"),
        pytest.param([(WHOLE, 0.1, 0)], 0.5, 5, [], id="nothing good enough"),
        pytest.param([], 0.5, 5, [], id="no row at all"),
    ],
)
def test_what_stays(rows, iou_thresh, topk, kept):
    boxes = torch.tensor([box for box, _, _ in rows]).reshape(1, -1, 4)
    scores = torch.tensor([score for _, score, _ in rows]).reshape(1, -1)
    labels = torch.tensor([label for _, _, label in rows], dtype=torch.long).reshape(1, -1)

    found = suppress(Detections(boxes, scores, labels), 0.3, iou_thresh, topk)

    expected = [(boxes[0, row].tolist(), scores[0, row].item(), rows[row][2]) for row in kept]
    assert rows_of(found, 0) == expected


@pytest.mark.parametrize("count", [40, 600])
def test_ties_stay_in_the_order_of_the_candidates(count):
    boxes = torch.cat([tiles(25)[:count], tiles(25)[:count]]).reshape(2, count, 4)

    found = suppress(
        Detections(boxes, torch.full((2, count), 0.5), torch.zeros(2, count, dtype=torch.long)), 0.1, 0.5, 30
    )

    assert torch.equal(found.boxes, boxes[:, :30])


@pytest.mark.parametrize(
    "neighbour", [(0.0, 0.0, 1.0, 1.0), (-1e6, -1e6, 1e6, 1e6), (-3.0, -3.0, 3.0, 3.0), (-50.0, -50.0, -49.0, -49.0)]
)
@pytest.mark.parametrize("iou_thresh", [0.05, 0.5])
def test_a_picture_is_judged_alone_whatever_else_is_in_the_batch(neighbour, iou_thresh):
    alone = random_candidates(3, 30, 5, seed=9)
    batch = Detections(alone.boxes.clone(), alone.scores, alone.labels)
    batch.boxes[0, :5] = torch.tensor(neighbour)

    found = suppress(batch, 0.1, iou_thresh, 30)

    for image in (1, 2):
        assert rows_of(found, image) == expected_rows(alone, image, 0.1, iou_thresh, 30)


def test_huge_boxes_of_two_classes_do_not_meet():
    boxes = torch.tensor([[[-3.0, -3.0, 4.0, 4.0], [-2.9, -2.9, 4.0, 4.0], [-3.0, -3.0, 4.0, 4.1]]])

    found = suppress(Detections(boxes, torch.tensor([[0.9, 0.8, 0.7]]), torch.tensor([[0, 1, 2]])), 0.1, 0.0, 5)

    assert found.labels[0].tolist() == [0, 1, 2, PADDING, PADDING]


def test_pictures_without_candidates_stay_empty_beside_others():
    candidates = random_candidates(4, 20, 1, seed=3)
    candidates.scores[[0, 2]] = 0

    found = suppress(candidates, 0.2, 0.5, 10)

    assert [len(rows_of(found, image)) > 0 for image in range(4)] == [False, True, False, True]
    assert rows_of(found, 3) == expected_rows(candidates, 3, 0.2, 0.5, 10)


# --- soft suppression ---------------------------------------------------------------------------


def soft_by_definition(boxes, scores, labels, threshold, sigma):
    """Bodla et al. (arXiv:1704.04503), figure 2, in plain Python: indices and scores."""
    left = dict(enumerate(scores))
    found = []
    while left:
        best = max(left, key=lambda index: (left[index], -index))
        score = left.pop(best)
        if score < threshold or score <= 0:
            break
        found.append((best, score))
        for index in left:
            if labels[index] == labels[best]:
                left[index] *= math.exp(
                    -(float(torchvision.ops.box_iou(boxes[best][None], boxes[index][None])) ** 2) / sigma
                )
    return found


@pytest.mark.parametrize("sigma", [0.1, 0.5, 3.0])
@pytest.mark.parametrize("threshold", [0.0, 0.3])
@pytest.mark.parametrize("classes", [1, 3])
def test_soft_suppression_is_that_of_its_definition(classes, threshold, sigma):
    generator = torch.Generator().manual_seed(classes)
    corner = torch.rand(2, 40, 2, generator=generator, dtype=torch.float64)
    boxes = torch.cat([corner, corner + torch.rand(2, 40, 2, generator=generator, dtype=torch.float64) * 0.6], dim=2)
    scores = torch.rand(2, 40, generator=generator, dtype=torch.float64).sort(dim=1, descending=True).values
    labels = torch.randint(0, classes, (2, 40), generator=generator)
    for topk in (1, 7, 60):
        found = soft_suppress(Detections(boxes, scores, labels), threshold, sigma, topk)
        for image in range(2):
            expected = soft_by_definition(boxes[image], scores[image].tolist(), labels[image], threshold, sigma)[:topk]
            rows = [index for index, _ in expected]
            shown = len(rows)
            torch.testing.assert_close(
                found.scores[image, :shown], torch.tensor([score for _, score in expected]).double()
            )
            assert torch.equal(found.boxes[image, :shown], boxes[image, rows])
            assert torch.equal(found.labels[image, :shown], labels[image, rows])
            assert (found.labels[image, shown:] == PADDING).all()
            assert not found.scores[image, shown:].any()
            assert not found.boxes[image, shown:].any()


BOX, NEAR = (0.0, 0.0, 0.4, 0.4), (0.0, 0.0, 0.4, 0.2)  # IoU 0.5
SOFT = {
    # boxes, scores, labels, threshold, what is shown with its score; sigma 0.5: a factor of e^-0.5
    "nothing": ([], [], [], 0.1, []),
    "one": ([BOX], [0.9], [0], 0.1, [(0, 0.9)]),
    "below": ([BOX], [0.05], [0], 0.1, []),
    "none of score 0": ([BOX], [0.0], [0], 0.0, []),
    "two": ([BOX, NEAR], [0.9, 0.8], [0, 0], 0.1, [(0, 0.9), (1, 0.8 * math.exp(-0.5))]),
    "falls below": ([BOX, NEAR], [0.9, 0.8], [0, 0], 0.5, [(0, 0.9)]),
    "of two classes": ([BOX, NEAR], [0.9, 0.8], [0, 1], 0.5, [(0, 0.9), (1, 0.8)]),
    "identical": ([BOX, BOX], [0.9, 0.9], [0, 0], 0.1, [(0, 0.9), (1, 0.9 * math.exp(-2))]),
    "touching": ([BOX, (0.4, 0.0, 0.8, 0.4)], [0.9, 0.8], [0, 0], 0.1, [(0, 0.9), (1, 0.8)]),
    "sorted anew": ([BOX, NEAR, (0.6, 0.6, 1, 1)], [0.9, 0.8, 0.7], [0] * 3, 0.1, [(0, 0.9), (2, 0.7), (1, 0.485225)]),
    "without area": ([BOX, (0.1, 0.1, 0.1, 0.1)], [0.9, 0.8], [0, 0], 0.1, [(0, 0.9), (1, 0.8)]),
    "unused rows": ([BOX, BOX], [0.9, 0.8], [0, PADDING], 0.1, [(0, 0.9)]),
}


@pytest.mark.parametrize("case", SOFT)
def test_soft_suppression_of_few(case):
    boxes, scores, labels, threshold, expected = SOFT[case]
    candidates = Detections(
        torch.tensor(boxes).view(1, -1, 4), torch.tensor(scores).view(1, -1), torch.tensor(labels).long().view(1, -1)
    )
    found = soft_suppress(candidates, threshold, 0.5, 5)
    assert found.boxes.shape == (1, 5, 4)
    count = int((found.labels[0] != PADDING).sum())
    assert count == len(expected)
    np.testing.assert_allclose(found.scores[0, :count], [score for _, score in expected], rtol=1e-5)
    assert torch.equal(found.boxes[0, :count], candidates.boxes[0, [row for row, _ in expected]])
