"""Distances between a student and a teacher: against torch's own, by hand, and zero where both say the same."""

import dataclasses
import math

import pytest
import torch
from helpers import make_config
from torch.distributions import Bernoulli, Categorical, kl_divergence
from torch.nn import functional as F

from uhd.config import DistillConfig
from uhd.distill import terms
from uhd.distill.distillation import Distillation, Lesson, TeacherPlan
from uhd.distill.views import View
from uhd.models import build_model

ALL = ("distill_kl", "distill_box_l1", "distill_feat", "distill_weight", "feature_distill_weight")
ANCHOR_TERMS = (*ALL, "distill_obj")
QUALITY_TERMS = (*ANCHOR_TERMS, "distill_quality")

HEADS = {
    "anchors": ({}, ANCHOR_TERMS),
    "anchors, quality": ({"model": {"use_improved_head": True, "quality_power": 0.5}}, QUALITY_TERMS),
    "anchors, three classes": ({"model": {"num_classes": 3}}, ANCHOR_TERMS),
    "cnn, anchors": ({"arch": "cnn", "model": {"use_anchor": True, "output_stride": 8}}, ANCHOR_TERMS),
    "centres": ({"arch": "cnn", "model": {"output_stride": 8, "num_classes": 2}}, ALL),
    "grids": ({"arch": "nanodet", "model": {"num_classes": 2}}, ALL),
    "queries": ({"arch": "transformer", "model": {"num_classes": 2}}, ALL),
}


def view(logits, *, scores=None, boxes=None, obj=None, quality=None, is_softmax=False):
    """A view of hand-made logits [B,N,C]; scores are theirs unless given."""
    logits = torch.tensor(logits)
    scores = logits.sigmoid() if scores is None else torch.tensor(scores)
    boxes = torch.zeros(*logits.shape[:2], 4) if boxes is None else torch.tensor(boxes)
    return View(boxes, scores, scores, logits, obj, quality, is_softmax, None)


def logit(p):
    return math.log(p / (1 - p))


def bernoulli(p, q):
    """KL(p || q) by its definition."""
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


# --- divergences --------------------------------------------------------------------------------------


def test_divergence_of_two_probabilities_by_hand():
    ours, theirs = torch.tensor([0.0, logit(0.9)]), torch.tensor([logit(0.8), logit(0.5)])
    by_hand = [0.8 * math.log(1.6) + 0.2 * math.log(0.4), 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(5)]
    assert terms.bernoulli_kl(ours, theirs).tolist() == pytest.approx(by_hand, abs=1e-6)
    # The logits of these probabilities at a temperature of 3, nine times as much.
    assert terms.bernoulli_kl(3 * ours, 3 * theirs, 3).tolist() == pytest.approx([9 * x for x in by_hand], abs=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.5])
def test_divergences_are_those_of_torch(temperature):
    torch.manual_seed(0)
    ours, theirs = 3 * torch.randn(2, 4, 5), 3 * torch.randn(2, 4, 5)
    s, t = ours / temperature, theirs / temperature
    expected = kl_divergence(Bernoulli(logits=t), Bernoulli(logits=s)) * temperature**2
    torch.testing.assert_close(terms.bernoulli_kl(ours, theirs, temperature), expected, atol=1e-5, rtol=1e-4)
    expected = kl_divergence(Categorical(logits=t), Categorical(logits=s)) * temperature**2
    found = terms.softmax_kl(ours, theirs, temperature)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    flat = F.kl_div(s.flatten(0, 1).log_softmax(1), t.flatten(0, 1).softmax(1), reduction="batchmean")
    torch.testing.assert_close(found.mean(), flat * temperature**2)


@pytest.mark.parametrize("divergence", [terms.bernoulli_kl, terms.softmax_kl])
def test_certain_logits_stay_finite(divergence):
    ours = torch.tensor([[100.0, -100.0, 0.0], [-500.0, 500.0, 500.0]], requires_grad=True)
    theirs = torch.tensor([[-100.0, 100.0, 100.0], [-500.0, 500.0, -500.0]])
    divergence(ours, theirs).sum().backward()
    assert ours.grad.isfinite().all()
    assert ours.grad.abs().max() > 0.5


def test_gradient_keeps_its_size_at_high_temperatures():
    sizes = []
    for temperature in (20.0, 40.0):
        ours = torch.tensor([1.0, -1.0, 0.5], requires_grad=True)
        terms.softmax_kl(ours, torch.tensor([-1.0, 2.0, 0.0]), temperature).backward()
        sizes.append(float(ours.grad.norm()))
    assert sizes[0] == pytest.approx(sizes[1], rel=0.1)


# --- weighting ----------------------------------------------------------------------------------------


def test_classes_of_queries_all_count_alike():
    ours = [[[0.0, 0.0], [1.0, 0.0]], [[2.0, 0.0], [0.0, 0.0]]]
    theirs = [[[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [3.0, 0.0]]]
    student, teacher = (view(logits, scores=[[[0.1]] * 2] * 2, is_softmax=True) for logits in (ours, theirs))
    found = terms.class_divergence(student, teacher, 2.0)
    # A softmax of two is the sigmoid of their difference.
    pairs = [[(1, 0), (1, 1)], [(-1, 2), (3, 0)]]
    expected = [
        sum(4 * bernoulli(1 / (1 + math.exp(-t / 2)), 1 / (1 + math.exp(-s / 2))) for t, s in row) / 2 for row in pairs
    ]
    assert found.tolist() == pytest.approx(expected, abs=1e-5)


def test_classes_of_priors_count_by_the_teachers_score():
    ours = view([[[logit(0.5), logit(0.3)], [logit(0.9), logit(0.5)]]], obj=torch.zeros(1, 2))
    theirs = view(
        [[[logit(0.8), logit(0.3)], [logit(0.9), logit(0.1)]]], scores=[[[0.6, 0.9], [0.6, 0.2]]], obj=torch.zeros(1, 2)
    )
    expected = (0.9 * bernoulli(0.8, 0.5) + 0.6 * bernoulli(0.1, 0.5)) / (0.9 + 0.6)
    assert terms.class_divergence(ours, theirs, 1.0).tolist() == pytest.approx([expected], abs=1e-6)


def test_classes_of_priors_that_are_low_elsewhere_count_everywhere():
    """As varifocal loss teaches them; the sum is divided by the teacher's scores."""
    objectness = torch.zeros(1, 2)
    ours = view([[[logit(0.5)], [logit(0.9)]]], obj=objectness)
    theirs = view([[[logit(0.8)], [logit(0.01)]]], scores=[[[1.2], [0.3]]], obj=objectness)
    expected = (bernoulli(0.8, 0.5) + bernoulli(0.01, 0.9)) / 1.5
    found = terms.class_divergence(ours, theirs, 1.0, everywhere=True)
    assert found.tolist() == pytest.approx([expected], abs=1e-6)


def test_every_cell_of_a_heat_map_counts():
    ours, theirs = [[[logit(0.5)], [logit(0.2)]]], [[[logit(0.9)], [logit(0.7)]]]
    expected = (bernoulli(0.9, 0.5) + bernoulli(0.7, 0.2)) / (0.9 + 0.7)
    assert terms.class_divergence(view(ours), view(theirs), 1.0).tolist() == pytest.approx([expected], abs=1e-6)


def test_little_score_does_not_blow_a_picture_up():
    """Scores of less than one person in sum count as one's."""
    ours, theirs = [[[logit(0.5)], [logit(0.5)]]], [[[logit(0.2)], [logit(0.1)]]]
    expected = bernoulli(0.2, 0.5) + bernoulli(0.1, 0.5)
    assert terms.class_divergence(view(ours), view(theirs), 1.0).tolist() == pytest.approx([expected], abs=1e-6)
    boxes = [[[0.0, 0.0, 0.5, 0.5], [0.0, 0.0, 0.0, 0.0]]]
    found = terms.box_distance(view(ours, boxes=boxes), view(theirs))
    assert found.tolist() == pytest.approx([0.2 * 1.0], abs=1e-6)


def test_scores_of_different_heads():
    ours, theirs = ([[[0.5], [0.2]]], [[[0.8], [0.6]]])
    student, teacher = (view([[[9.0], [9.0]]], scores=scores) for scores in (ours, theirs))
    expected = (0.8 * bernoulli(0.8, 0.5) + 0.6 * bernoulli(0.6, 0.2)) / 1.4
    assert terms.score_divergence(student, teacher, 1.0).tolist() == pytest.approx([expected], abs=1e-5)


def test_scores_of_0_and_1_are_finite():
    scores = torch.tensor([[[0.0], [1.0], [0.5]]], requires_grad=True)
    student = dataclasses.replace(view([[[0.0]] * 3]), scores=scores)
    found = terms.score_divergence(student, view([[[0.0]] * 3], scores=[[[1.0], [0.0], [0.5]]]), 1.0)
    found.sum().backward()
    assert found.isfinite().all()
    assert scores.grad.isfinite().all()


def test_boxes_by_hand():
    logits = [[[0.0, 0.0], [0.0, 0.0]]]
    ours = view(logits, boxes=[[[0.1, 0.2, 0.5, 0.6], [0.0, 0.0, 1.0, 1.0]]])
    theirs = view(logits, scores=[[[0.2, 0.9], [0.3, 0.1]]], boxes=[[[0.2, 0.0, 0.5, 0.7], [0.5, 0.5, 1.0, 1.0]]])
    expected = (0.9 * (0.1 + 0.2 + 0 + 0.1) + 0.3 * (0.5 + 0.5)) / 1.2
    assert terms.box_distance(ours, theirs).tolist() == pytest.approx([expected], abs=1e-6)


def test_objectness_by_hand():
    ours, theirs = torch.tensor([[logit(0.5), logit(0.1)]]), torch.tensor([[logit(0.9), logit(0.8)]])
    expected = (bernoulli(0.9, 0.5) + bernoulli(0.8, 0.1)) / 1.7
    assert terms.logit_divergence(ours, theirs).tolist() == pytest.approx([expected], abs=1e-6)


def test_features_differ_by_two_minus_two_cosines():
    torch.manual_seed(0)
    ours, theirs = torch.randn(3, 5, 2, 4), torch.randn(3, 5, 2, 4)
    expected = (2 - 2 * F.cosine_similarity(ours, theirs, dim=1)).mean(dim=(1, 2))
    torch.testing.assert_close(terms.feature_distance(ours, theirs), expected)
    torch.testing.assert_close(terms.feature_distance(ours, 7 * ours), torch.zeros(3))
    torch.testing.assert_close(terms.feature_distance(ours, -ours), torch.full((3,), 4.0))


def test_features_of_nothing_have_a_gradient():
    """A ReLU leaves cells of zeros only."""
    ours = torch.zeros(1, 4, 2, 2, requires_grad=True)
    terms.feature_distance(ours, torch.ones(1, 4, 2, 2)).sum().backward()
    assert ours.grad.isfinite().all()


def test_maps_differ_by_the_mean_square():
    ours, theirs = torch.randn(3, 5, 2, 4), torch.randn(3, 5, 2, 4)
    found = terms.square_difference(ours, theirs)
    torch.testing.assert_close(found.mean(), F.mse_loss(ours, theirs))
    torch.testing.assert_close(found[1], F.mse_loss(ours[1], theirs[1]))


# --- between networks ---------------------------------------------------------------------------------


def same_networks(name, seed=0, **distill):
    """The distillation of a network to its like, and random raw maps of a batch, as a student's and as a teacher's."""
    row, _ = HEADS[name]
    cfg = make_config(**row)
    torch.manual_seed(seed)
    model = build_model(cfg.model)
    with torch.no_grad():
        model.eval()(torch.rand(1, 3, *cfg.input.img_size))
        preds = model(torch.rand(3, 3, *cfg.input.img_size))
    maps = {key: value if key in ("anchors", "wh_scale") else torch.randn_like(value) for key, value in preds.items()}
    plan = TeacherPlan(cfg.model, list(range(cfg.model.num_classes)))
    width = preds["features"].shape[1]
    section = DistillConfig(teacher_ckpt="teacher.pt", **distill)
    return Distillation(section, cfg.model, plan, (width, width), 100), preds, maps


@pytest.mark.parametrize(("name", "term"), [(name, term) for name, (_, found) in HEADS.items() for term in found])
def test_nothing_is_to_be_learned_from_oneself(name, term):
    distillation, preds, others = same_networks(name, **{term: 3.0}, distill_temperature=2.0)
    mine = {key: value.detach().clone().requires_grad_() for key, value in preds.items()}
    (value,) = distillation(mine, Lesson(preds, preds["features"])).values()
    assert value.item() == pytest.approx(0, abs=1e-6)
    value.backward()
    assert all(leaf.grad is None or leaf.grad.abs().max() < 1e-5 for leaf in mine.values())
    (value,) = distillation(mine, Lesson(others, others["features"])).values()
    assert value.item() > 1e-3


@pytest.mark.parametrize("name", HEADS)
def test_each_term_has_its_weight_and_its_name(name):
    found = HEADS[name][1]
    plain = {}
    for term in found:
        distillation, preds, others = same_networks(name, **{term: 1.0})
        ((key, plain[term]),) = distillation(preds, Lesson(others, others["features"])).items()
        assert key == term
    weights = {term: 0.5 + i for i, term in enumerate(found)}
    distillation, preds, others = same_networks(name, **weights)
    together = distillation(preds, Lesson(others, others["features"]))
    assert together.keys() == set(found)
    for term, weight in weights.items():
        value = together[term]
        assert value.item() == pytest.approx(weight * plain[term].item(), rel=1e-5)


@pytest.mark.parametrize("name", HEADS)
def test_a_batch_is_the_mean_of_its_pictures(name):
    distillation, preds, others = same_networks(name, **dict.fromkeys(HEADS[name][1], 1.0))
    lesson = Lesson(others, others["features"])
    whole = distillation(preds, lesson)
    alone = [
        distillation(Lesson(preds, None).rows(slice(i, i + 1)).preds, lesson.rows(slice(i, i + 1))) for i in range(3)
    ]
    for term, value in whole.items():
        torch.testing.assert_close(value, torch.stack([row[term] for row in alone]).mean())


def test_plain_difference_is_that_of_all_raw_maps():
    distillation, preds, others = same_networks("centres", distill_weight=2.0)
    value = distillation(preds, Lesson(others, None))["distill_weight"]
    expected = sum(F.mse_loss(preds[name], others[name]) for name in ("heatmap", "offset", "size"))
    torch.testing.assert_close(value, 2 * expected)


# --- the ramp -----------------------------------------------------------------------------------------


def test_weights_rise_as_half_a_cosine():
    distillation, preds, others = same_networks("centres", distill_kl=2.0, distill_cosine=True)
    lesson = Lesson(others, None)
    found = []
    for _ in range(11):
        found.append((float(distillation.ramp()), distillation(preds, lesson)["distill_kl"].item()))
        distillation.advance(10)
    shares = [share for share, _ in found]
    assert shares[0] == 0
    assert shares[5] == pytest.approx(0.5)
    assert shares[10] == 1
    assert shares == sorted(set(shares))
    assert shares == pytest.approx([(1 - math.cos(math.pi * i / 10)) / 2 for i in range(11)])
    full = found[-1][1]
    assert [value for _, value in found] == pytest.approx([share * full for share in shares], rel=1e-5)
    assert float(distillation.ramp()) == 1  # it stays there


def test_without_a_ramp_the_weights_are_whole():
    distillation, _, _ = same_networks("centres", distill_kl=2.0)
    assert distillation.ramp() == 1
    distillation.advance(50)
    assert distillation.ramp() == 1
