"""Quality and distribution focal loss, and the criterion of NanoDet that is made of them."""

import math

import pytest
import torch
from helpers import targets_of
from torch.nn import functional as F

from uhd import codec
from uhd.assigners import DynamicSoftLabelAssigner, Predictions
from uhd.config import LossConfig
from uhd.losses import GFLCriterion
from uhd.losses.terms import distribution_focal_loss, quality_focal_loss
from uhd.types import IGNORED

GRIDS = {8: (8, 8), 16: (4, 4)}
TRUTHS = targets_of([(0, 0.1, 0.1, 0.45, 0.8)], [(1, 0.5, 0.3, 0.8, 0.95), (0, 0.05, 0.05, 0.3, 0.6)], [])


def maps(prefix="", batch=3, classes=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        f"{prefix}grid{stride}": torch.randn(batch, classes + 32, *grid, generator=generator).requires_grad_()
        for stride, grid in GRIDS.items()
    }


def criterion(classes=2, **weights):
    return GFLCriterion(LossConfig(**weights), DynamicSoftLabelAssigner(), classes)


@pytest.mark.parametrize(
    ("p", "target", "expected"),
    [
        (0.5, 0.0, 0.25 * math.log(2)),
        (0.9, 0.0, 0.81 * -math.log(0.1)),
        (0.2, 0.7, 0.25 * -(0.7 * math.log(0.2) + 0.3 * math.log(0.8))),
        (0.7, 0.7, 0.0),
    ],
)
def test_quality_focal_loss_by_hand(p, target, expected):
    found = quality_focal_loss(torch.tensor(math.log(p / (1 - p))), torch.tensor(target))
    assert found.item() == pytest.approx(expected, abs=1e-6)


def test_distribution_focal_loss_by_hand():
    logits = torch.tensor([[0.3, -1.0, 2.0, 0.5]]).repeat(3, 1)
    log_p = torch.log_softmax(logits[0], 0).tolist()
    found = distribution_focal_loss(logits, torch.tensor([0.0, 1.25, 2.9]))
    expected = [-log_p[0], -0.75 * log_p[1] - 0.25 * log_p[2], -0.1 * log_p[2] - 0.9 * log_p[3]]
    assert found.tolist() == pytest.approx(expected, abs=1e-6)


def test_terms_by_their_definition():
    """A loop over the positives, with the labels that the auxiliary maps give."""
    own, aux = maps(), maps("aux_", seed=1)
    terms = criterion()(own | aux, TRUTHS)
    guide = codec.split_grids(codec.grids_in(aux, "aux_"), 2)
    places = codec.split_grids(codec.grids_in(own), 2)
    boxes = codec.decode_distances(guide.sides, guide.points, guide.cells)
    assigned = DynamicSoftLabelAssigner()(Predictions(boxes, guide.cls.sigmoid()), guide.points, guide.cells, TRUTHS)
    target = torch.zeros_like(places.cls)
    iou = dfl = weights = positives = 0.0
    for image, place in (assigned.truth >= 0).nonzero().tolist():
        row = assigned.truth[image, place]
        truth, label = TRUTHS.boxes[image, row], TRUTHS.labels[image, row]
        target[image, place, label] = assigned.quality[image, place]
        w = places.cls[image, place].sigmoid().max().item()
        point, cell = places.points[place], places.cells[place]
        box = codec.decode_distances(places.sides[image, place], point, cell)
        iou += w * generalized(box.tolist(), truth.tolist())
        away = codec.encode_distances(truth[None], point[None], cell[None])[0]
        for side, d in zip(places.sides[image, place], away, strict=True):
            left = int(d)
            both = F.cross_entropy(side.repeat(2, 1), torch.tensor([left, left + 1]), reduction="none")
            dfl += w * (both[0] * (left + 1 - d) + both[1] * (d - left)).item()
        weights, positives = weights + w, positives + 1
    p = places.cls.sigmoid()
    qfl = F.binary_cross_entropy_with_logits(places.cls, target, reduction="none") * (target - p) ** 2
    weights = max(weights, 1.0)
    expected = {"cls": qfl.sum().item() / positives, "iou": 2 * iou / weights, "dfl": 0.25 * dfl / (4 * weights)}
    for name, value in expected.items():
        assert terms[name].item() == pytest.approx(value, rel=1e-4), name


def generalized(a, b):
    """1 - GIoU by its definition."""
    area = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    width, height = (max(0.0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1))
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    union = sum(area) - width * height
    return 1 - (width * height / union - (hull - union) / hull)


def test_both_heads_have_the_same_terms():
    own = maps()
    copied = {f"aux_{name}": value for name, value in own.items()}
    terms = criterion()(own | copied, TRUTHS)
    for name in ("cls", "iou", "dfl"):
        assert terms[name].item() == pytest.approx(terms[f"aux_{name}"].item())


@pytest.mark.parametrize("name", ["cls", "iou", "dfl"])
def test_weights(name):
    plain = criterion()(maps(), TRUTHS)
    doubled = criterion(**{f"loss_weight_{name}": 2 * getattr(LossConfig(), f"loss_weight_{name}")})(maps(), TRUTHS)
    for other, value in plain.items():
        torch.testing.assert_close(doubled[other], value * (2 if other == name else 1))


def test_processes_add_up():
    """Terms and gradients of two processes with one and two pictures are those of one process with three."""
    whole = maps() | maps("aux_", seed=1)
    one = criterion()(whole, TRUTHS)
    expected = torch.autograd.grad(sum(one.values()), list(whole.values()))
    parts = (slice(0, 1), slice(1, 3))

    def divisors(rows):
        seen = []
        with torch.no_grad():
            criterion()({n: v[rows] for n, v in whole.items()}, TRUTHS.rows(rows), lambda x: seen.append(x) or x)
        assert len(seen) == 1
        return seen[0]

    shared = sum(divisors(rows) for rows in parts)
    summed = dict.fromkeys(one, 0.0)
    for rows in parts:
        terms = criterion()({n: v[rows] for n, v in whole.items()}, TRUTHS.rows(rows), lambda _: shared)
        summed = {name: summed[name] + value for name, value in terms.items()}
    torch.testing.assert_close(summed, one)
    torch.testing.assert_close(torch.autograd.grad(sum(summed.values()), list(whole.values())), expected)


@pytest.mark.parametrize("targets", [targets_of([], [], []), targets_of([(0, 0.3, 0.3, 0.3, 0.9)], [], [])])
def test_without_a_truth(targets):
    preds = maps()
    terms = criterion()(preds, targets)
    assert (terms["iou"], terms["dfl"]) == (0, 0)
    background = quality_focal_loss(codec.split_grids(codec.grids_in(preds), 2).cls, torch.zeros(()).expand(3, 80, 2))
    assert terms["cls"].item() == pytest.approx(background.sum().item(), rel=1e-5)
    gradients = torch.autograd.grad(sum(terms.values()), list(preds.values()))
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_nothing_is_taught_where_a_truth_was_taken_away():
    preds = {name: value[:1] for name, value in maps().items()}
    terms = criterion()(preds, targets_of([(IGNORED, 0.0, 0.0, 0.5, 1.0)]))
    for name, gradient in zip(preds, torch.autograd.grad(sum(terms.values()), list(preds.values())), strict=True):
        half = gradient.shape[3] // 2
        assert not gradient[..., :half].any(), name
        assert gradient[:, :2, :, half:].all(), name


def test_half_precision_is_judged_in_full():
    low = {name: value.detach().bfloat16() for name, value in maps().items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = criterion()(low, TRUTHS)
    assert {value.dtype for value in terms.values()} == {torch.float32}
