"""The criterion of anchor heads: terms worked by hand, what is left out, and that gradients reach everything."""

import dataclasses
import math

import pytest
import torch
from helpers import padded_targets

from uhd import codec
from uhd.config import AssignConfig, LossConfig, UltraTinyODConfig
from uhd.losses import build_criterion
from uhd.losses.terms import varifocal_loss
from uhd.models import build_model
from uhd.types import IGNORED, PADDING

SOFTPLUS_OF_ONE = math.log(math.e - 1)
ANCHORS = ((0.5, 0.5), (0.15, 0.3))
ASSIGNERS = ["legacy", "simota", "tal"]


def terms_of(raw, targets, model, loss=None, assigner="legacy"):
    criterion = build_criterion(model, loss or LossConfig(), AssignConfig(anchor_assigner=assigner))
    layout = codec.AnchorLayout(model.num_anchors, model.num_classes, model.has_quality)
    anchors = torch.tensor(model.anchors)
    return criterion({layout.raw_name: raw, "anchors": anchors, "wh_scale": torch.ones_like(anchors)}, targets)


def bce(logit, target):
    p = 1 / (1 + math.exp(-logit))
    return -target * math.log(p) - (1 - target) * math.log(1 - p)


# --- one cell, one anchor -----------------------------------------------------------------------------

UNIT = {f"loss_weight_{name}": 1.0 for name in ("box", "obj", "cls", "quality")}
PLAIN = UltraTinyODConfig(anchors=ANCHORS[:1], num_anchors=1, num_classes=2)
IMPROVED = dataclasses.replace(PLAIN, use_improved_head=True)
# Predicted (0.25, 0.25, 0.75, 0.75) and a truth that is half as high again below.
TRUTH, IOU = (0.25, 0.25, 0.75, 1.0), 2 / 3
CENTRE_TERM = 0.125**2 / (0.5**2 + 0.75**2)
ASPECT = 4 / math.pi**2 * (math.atan(1) - math.atan(2 / 3)) ** 2
CIOU = IOU - CENTRE_TERM - ASPECT**2 / (1 - IOU + ASPECT)
OBJ, QUALITY, CLASSES = 0.7, -0.4, (-1.2, 0.3)


def one_prior(model):
    values = [0, 0, SOFTPLUS_OF_ONE, SOFTPLUS_OF_ONE, OBJ, *([QUALITY] if model.has_quality else []), *CLASSES]
    return torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1)


def varifocal_negative(logit):
    return 0.75 / (1 + math.exp(-logit)) ** 2 * bce(logit, 0)


@pytest.mark.parametrize(
    ("model", "loss", "assigner", "expected"),
    [
        pytest.param(PLAIN, {}, "legacy", {"box": 1 - IOU, "obj": bce(OBJ, 1)}, id="plain"),
        pytest.param(PLAIN, {"iou_loss": "iou"}, "legacy", {"box": 1 - IOU}, id="iou"),
        pytest.param(PLAIN, {"iou_loss": "ciou"}, "legacy", {"box": 1 - CIOU}, id="ciou"),
        pytest.param(
            IMPROVED, {"iou_loss": "ciou"}, "simota", {"obj": bce(OBJ, IOU), "quality": bce(QUALITY, IOU)}, id="quality"
        ),
        pytest.param(
            IMPROVED,
            {},
            "tal",
            {"box": IOU * (1 - IOU), "obj": bce(OBJ, IOU), "quality": bce(QUALITY, IOU)},
            id="tal weighs the box",
        ),
        pytest.param(PLAIN, {}, "tal", {"box": IOU * (1 - IOU), "obj": bce(OBJ, 1)}, id="tal without quality"),
        pytest.param(PLAIN, {}, "legacy", {"cls": bce(CLASSES[0], 0) + bce(CLASSES[1], 1)}, id="classes"),
        pytest.param(IMPROVED, {}, "tal", {"cls": bce(CLASSES[0], 0) + bce(CLASSES[1], 1)}, id="classes stay one-hot"),
        pytest.param(
            IMPROVED,
            {"anchor_cls_loss": "vfl"},
            "legacy",
            {"cls": varifocal_negative(CLASSES[0]) + IOU * bce(CLASSES[1], IOU)},
            id="varifocal",
        ),
    ],
)
def test_terms_worked_by_hand(model, loss, assigner, expected):
    terms = terms_of(one_prior(model), padded_targets([[(TRUTH, 1)]]), model, LossConfig(**UNIT | loss), assigner)

    assert set(terms) == {"box", "obj", "cls", *(["quality"] if model.has_quality else [])}
    assert {name: terms[name].item() for name in expected} == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["iou", "giou", "ciou"])
@pytest.mark.parametrize("assigner", ["legacy", "simota"])
def test_the_quality_target_is_the_iou_between_0_and_1_whatever_the_box_loss(kind, assigner):
    # The predicted box ends where the truth begins, so that GIoU and CIoU are below 0.
    raw, truth = one_prior(IMPROVED), (0.75, 0.75, 1.0, 1.0)
    terms = terms_of(raw, padded_targets([[(truth, 0)]]), IMPROVED, LossConfig(**UNIT, iou_loss=kind), assigner)

    assert terms["quality"].item() == pytest.approx(bce(QUALITY, 0), rel=1e-5)
    assert terms["obj"].item() == pytest.approx(bce(OBJ, 0), rel=1e-5)
    assert (terms["box"].item() > 1) == (kind != "iou")


def test_priors_without_a_truth_learn_background():
    """A second picture without any box adds its obj and quality, and nothing to what divides."""
    raw = one_prior(IMPROVED).repeat(2, 1, 1, 1)

    terms = terms_of(raw, padded_targets([[(TRUTH, 1)], []]), IMPROVED, LossConfig(**UNIT))

    assert terms["obj"].item() == pytest.approx(bce(OBJ, IOU) + bce(OBJ, 0), rel=1e-5)
    assert terms["quality"].item() == pytest.approx(bce(QUALITY, IOU) + bce(QUALITY, 0), rel=1e-5)
    assert terms["cls"].item() == pytest.approx(bce(CLASSES[0], 0) + bce(CLASSES[1], 1), rel=1e-5)


@pytest.mark.parametrize(("assigner", "normaliser"), [("legacy", 4), ("simota", 4), ("tal", 4 * IOU)])
def test_sums_are_divided_by_the_positives_or_by_their_quality(assigner, normaliser):
    raw = one_prior(IMPROVED).repeat(5, 1, 1, 1)

    terms = terms_of(raw, padded_targets([[(TRUTH, 1)]] * 4 + [[]]), IMPROVED, LossConfig(**UNIT), assigner)

    expected = {
        "box": 4 * (1 - IOU) * (IOU if assigner == "tal" else 1),
        "obj": 4 * bce(OBJ, IOU) + bce(OBJ, 0),
        "cls": 4 * (bce(CLASSES[0], 0) + bce(CLASSES[1], 1)),
        "quality": 4 * bce(QUALITY, IOU) + bce(QUALITY, 0),
    }
    assert {name: value.item() * normaliser for name, value in terms.items()} == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("logit", "target", "expected"),
    [
        (0.0, 0.0, 0.75 * 0.25 * math.log(2)),
        (0.0, 1.0, math.log(2)),
        (0.5, 0.4, 0.4 * bce(0.5, 0.4)),
        (-50.0, 0.0, 0.0),
        (50.0, 0.0, 0.75 * 50),
    ],
)
def test_varifocal_loss_by_hand(logit, target, expected):
    assert varifocal_loss(torch.tensor(logit), torch.tensor(target)).item() == pytest.approx(expected, rel=1e-5)


# --- what divides and what weighs ---------------------------------------------------------------------


def random_batch(model, seed=0, grid=(8, 8), pictures=2):
    """A raw map and truths of which many are predicted almost rightly."""
    generator = torch.Generator().manual_seed(seed)
    layout = codec.AnchorLayout(model.num_anchors, model.num_classes, model.has_quality)
    channels = model.num_anchors * (5 + model.has_quality + model.num_classes)
    raw = torch.randn(pictures, channels, *grid, generator=generator)
    anchors = torch.tensor(model.anchors)
    boxes = codec.decode_anchor_boxes(codec.split_anchor_map(raw, layout), anchors, torch.ones_like(anchors))
    chosen = torch.randint(boxes.shape[1], (pictures, 6), generator=generator)
    images = []
    for image in range(pictures):
        truths = boxes[image, chosen[image]].clamp(0, 1)
        labels = torch.randint(model.num_classes, (6,), generator=generator).tolist()
        images.append(list(zip(truths.tolist(), labels, strict=True)))
    return raw, images


WIDE = dataclasses.replace(IMPROVED, anchors=ANCHORS, num_anchors=2)


@pytest.mark.parametrize("assigner", ASSIGNERS)
@pytest.mark.parametrize("cls_loss", ["bce", "vfl"])
def test_repeating_the_batch_changes_no_term(assigner, cls_loss):
    raw, images = random_batch(WIDE)
    loss = LossConfig(anchor_cls_loss=cls_loss)

    once = terms_of(raw, padded_targets(images), WIDE, loss, assigner)
    twice = terms_of(raw.repeat(2, 1, 1, 1), padded_targets(images * 2), WIDE, loss, assigner)

    assert {k: v.item() for k, v in twice.items()} == pytest.approx({k: v.item() for k, v in once.items()}, rel=1e-4)


@pytest.mark.parametrize("name", ["box", "obj", "cls", "quality"])
@pytest.mark.parametrize("weight", [0.0, 3.0])
def test_a_weight_scales_its_term_and_no_other(name, weight):
    raw, images = random_batch(WIDE)
    targets = padded_targets(images)

    plain = terms_of(raw, targets, WIDE, LossConfig(**UNIT))
    weighted = terms_of(raw, targets, WIDE, LossConfig(**UNIT | {f"loss_weight_{name}": weight}))

    expected = {key: value.item() * (weight if key == name else 1) for key, value in plain.items()}
    assert {key: value.item() for key, value in weighted.items()} == pytest.approx(expected, rel=1e-5)
    assert all(value > 0 for value in plain.values())


@pytest.mark.parametrize("assigner", ASSIGNERS)
def test_terms_are_single_precision_under_autocast(assigner):
    raw, images = random_batch(WIDE)
    half = raw.bfloat16()

    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = terms_of(half, padded_targets(images), WIDE, assigner=assigner)
    expected = terms_of(half.float(), padded_targets(images), WIDE, assigner=assigner)

    assert {name: term.dtype for name, term in terms.items()} == dict.fromkeys(terms, torch.float32)
    assert {name: term.item() for name, term in terms.items()} == {name: v.item() for name, v in expected.items()}


# --- places that are left out -------------------------------------------------------------------------


def gradients(images, assigner="legacy", cls_loss="vfl", grid=(4, 4)):
    """|d loss / d logit| [A,h,w] of obj, quality and cls (summed over classes), of the first picture."""
    raw = torch.zeros(len(images), 2 * 8, *grid, requires_grad=True)
    sum(terms_of(raw, padded_targets(images), WIDE, LossConfig(anchor_cls_loss=cls_loss), assigner).values()).backward()
    parts = raw.grad[0].view(2, 8, *grid).abs()
    return {"obj": parts[:, 4], "quality": parts[:, 5], "cls": parts[:, 6:].sum(dim=1)}


@pytest.mark.parametrize(
    ("box", "cells"),
    [
        pytest.param((0.25, 0.25, 0.75, 0.75), {(1, 1), (1, 2), (2, 1), (2, 2)}, id="covers four centres"),
        pytest.param((0.3, 0.55, 0.32, 0.6), {(2, 1)}, id="tiny: the cell of its centre"),
        pytest.param((0.0, 0.0, 1.0, 1.0), {(y, x) for y in range(4) for x in range(4)}, id="all"),
        pytest.param((0.9, 0.95, 1.0, 1.0), {(3, 3)}, id="in the corner"),
    ],
)
def test_the_place_of_an_ignored_truth_teaches_neither_person_nor_background(box, cells):
    found = gradients([[(box, IGNORED)]])

    for name in ("obj", "quality", "cls"):
        for anchor in range(2):
            silent = {(y, x) for y in range(4) for x in range(4) if found[name][anchor, y, x] == 0}
            assert silent == cells, name


@pytest.mark.parametrize("assigner", ASSIGNERS)
def test_a_person_in_an_ignored_place_is_still_learned(assigner):
    person = ((0.25, 0.25, 0.5, 0.5), 0)

    found = gradients([[person, ((0.0, 0.0, 1.0, 1.0), IGNORED)]], assigner)

    assert found["obj"][:, 1, 1].any()
    assert found["quality"][:, 1, 1].any()
    assert found["cls"][:, 1, 1].any()
    assert not found["obj"][:, 3, 3].any()


def test_an_ignored_truth_is_ignored_in_its_own_picture_only():
    found = gradients([[], [((0.0, 0.0, 1.0, 1.0), IGNORED)]])

    assert all((values > 0).all() for values in found.values())


def test_class_cross_entropy_teaches_positives_only():
    found = gradients([[((0.25, 0.25, 0.5, 0.5), 0)]], cls_loss="bce")

    assert (found["cls"] > 0).sum() == 1
    assert (found["obj"] > 0).all()


# --- gradients reach every parameter ------------------------------------------------------------------

VARIANTS = {
    "plain": {},
    "residual": {"utod_residual": True},
    "improved": {"use_improved_head": True},
    "iou-aware": {"use_iou_aware_head": True},
    "ese": {"utod_head_ese": True},
    "rfb": {"utod_context_rfb": True},
    "large objects": {"utod_large_obj_branch": True, "utod_large_obj_depth": 2},
    "no batch norm": {"use_improved_head": True, "use_iou_aware_head": True, "use_batchnorm": False},
    "everything": {
        "utod_residual": True,
        "use_improved_head": True,
        "use_iou_aware_head": True,
        "utod_head_ese": True,
        "utod_context_rfb": True,
        "utod_large_obj_branch": True,
    },
}
BOXES = [[((0.1, 0.1, 0.6, 0.9), 0), ((0.6, 0.2, 0.8, 0.5), 1)], [((0.0, 0.4, 0.5, 1.0), 1)]]


def backward(variant, assigner, images, cls_loss="bce"):
    """The model after one backward pass, and its terms."""
    torch.manual_seed(0)
    model_config = UltraTinyODConfig(
        cnn_width=4, num_anchors=2, anchors=ANCHORS, num_classes=2, **{"use_batchnorm": True} | VARIANTS[variant]
    )
    model = build_model(model_config)
    loss = LossConfig(anchor_cls_loss=cls_loss)
    criterion = build_criterion(model_config, loss, AssignConfig(anchor_assigner=assigner))
    terms = criterion(model(torch.rand(len(images), 3, 64, 64)), padded_targets(images))
    sum(terms.values()).backward()
    return model, terms


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("assigner", ASSIGNERS)
@pytest.mark.parametrize("cls_loss", ["bce", "vfl"])
def test_every_parameter_learns(variant, assigner, cls_loss):
    model, terms = backward(variant, assigner, BOXES, cls_loss)

    assert all(term.isfinite() for term in terms.values())
    idle = [name for name, p in model.named_parameters() if p.grad is None or not (p.grad != 0).any()]
    assert idle == []
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize(
    "images",
    [
        pytest.param([[], []], id="no row"),
        pytest.param([[((0.0, 0.0, 0.0, 0.0), PADDING)], []], id="padding"),
        pytest.param([[((0.0, 0.0, 1.0, 1.0), IGNORED)], [((0.2, 0.2, 0.3, 0.4), IGNORED)]], id="ignored"),
        pytest.param([[((0.0, 0.0, 1.0, 1.0), IGNORED)]] * 2, id="all of the batch ignored"),
    ],
)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("assigner", ASSIGNERS)
@pytest.mark.parametrize("cls_loss", ["bce", "vfl"])
def test_a_batch_without_boxes_reaches_every_parameter(images, variant, assigner, cls_loss):
    model, terms = backward(variant, assigner, images, cls_loss)

    assert set(terms) == {"box", "obj", "cls", *(["quality"] if model.cfg.has_quality else [])}
    assert all(term.isfinite() and term.requires_grad and term.dim() == 0 for term in terms.values())
    assert terms["box"] == 0
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@pytest.mark.parametrize("term", ["box", "obj", "cls", "quality"])
@pytest.mark.parametrize("images", [BOXES, [[], []]], ids=["boxes", "none"])
def test_each_term_alone_is_attached(term, images):
    raw = torch.zeros(2, 2 * 8, 4, 4, requires_grad=True)

    terms_of(raw, padded_targets(images), WIDE)[term].backward()

    assert raw.grad is not None
    assert raw.grad.isfinite().all()


@pytest.mark.parametrize("term", ["obj", "cls", "quality"])
@pytest.mark.parametrize("assigner", ASSIGNERS)
def test_the_iou_is_a_target_and_no_way_to_move_boxes(term, assigner):
    raw, images = random_batch(WIDE)
    raw.requires_grad_()

    terms_of(raw, padded_targets(images), WIDE, LossConfig(anchor_cls_loss="vfl"), assigner)[term].backward()

    grad = raw.grad.unflatten(1, (2, 8))
    assert not grad[:, :, :4].any()
    assert grad[:, :, 4:].any()


@pytest.mark.parametrize("assigner", ASSIGNERS)
@pytest.mark.parametrize("value", [-60.0, 60.0])
def test_saturated_logits_keep_terms_and_gradients_finite(assigner, value):
    raw = torch.full((2, 2 * 8, 4, 4), value, requires_grad=True)

    terms = terms_of(raw, padded_targets(BOXES), WIDE, LossConfig(iou_loss="ciou"), assigner)
    sum(terms.values()).backward()

    assert all(term.isfinite() for term in terms.values())
    assert raw.grad.isfinite().all()
