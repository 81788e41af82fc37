"""Several levels of anchors: offsets by hand, which prior learns which truth, the terms, and reading without torch."""

import copy

import numpy as np
import pytest
import torch
from helpers import targets_of
from torch.nn import functional as F
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import box_convert, box_iou, sigmoid_focal_loss

from uhd import codec
from uhd.assigners import assign_by_iou
from uhd.assigners.max_iou import one_each
from uhd.codec import LevelLayout
from uhd.config import LossConfig
from uhd.export.decode_np import SSDDecoder, build_decoder
from uhd.losses.ssd import SSDCriterion
from uhd.losses.terms import focal_loss
from uhd.types import IGNORED

WEIGHTS = LossConfig(loss_weight_box=1.0)
GRIDS = ((4, 6), (2, 3), (1, 1))


def random_maps(layout, grids=GRIDS, batch=2, scale=1.0, seed=0):
    """Maps of all levels, and anchors from a tenth of the picture up."""
    generator = torch.Generator().manual_seed(seed)
    preds = {}
    for level, (count, grid) in enumerate(zip(layout.counts, grids, strict=True)):
        for kind, channels in (("cls", layout.outputs), ("box", 4)):
            preds[f"{kind}_{level}"] = scale * torch.randn(batch, count * channels, *grid, generator=generator)
    return preds | {"anchors": 0.1 + 0.5 * torch.rand(sum(layout.counts), 2, generator=generator)}


# --- formulas -----------------------------------------------------------------------------------------


def test_one_offset_by_hand():
    place = torch.tensor([0.5, 0.25, 0.2, 0.4])
    offsets = torch.tensor([1.0, -2.0, 5 * np.log(2), 0.0])
    box = codec.decode_offsets(offsets, place)
    # Centre .5 + .2 * .1, .25 - .4 * .2; twice as wide, as high.
    assert box.tolist() == pytest.approx([0.52 - 0.2, 0.17 - 0.2, 0.52 + 0.2, 0.17 + 0.2], abs=1e-6)


def test_offsets_are_those_of_torchvision():
    torch.manual_seed(0)
    places = torch.rand(50, 4) * 0.8 + 0.1
    truths = box_convert(torch.rand(50, 4) * 0.8 + 0.1, "cxcywh", "xyxy")
    priors = box_convert(places, "cxcywh", "xyxy")
    coder = BoxCoder((10.0, 10.0, 5.0, 5.0))
    encoded = codec.encode_offsets(truths, places)
    torch.testing.assert_close(encoded, coder.encode_single(truths, priors), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(codec.decode_offsets(encoded, places), truths, rtol=1e-4, atol=1e-5)


def test_extreme_offsets_stay_finite():
    place = torch.tensor([0.5, 0.5, 0.1, 0.1])
    for value, factor in ((1e30, np.exp(4)), (-1e30, np.exp(-4))):
        box = codec.decode_offsets(torch.tensor([0.0, 0.0, value, value]), place)
        assert (box[2:] - box[:2]).tolist() == pytest.approx([0.1 * factor] * 2, rel=1e-4)
    assert codec.encode_offsets(torch.tensor([[0.5, 0.5, 0.5, 0.5]]), place[None]).isfinite().all()


@pytest.mark.parametrize("has_background", [False, True])
def test_channels_are_anchor_major_and_go_to_their_prior(has_background):
    layout = LevelLayout((2, 1, 3), 2, has_background)
    preds = random_maps(layout)
    priors = codec.split_levels(preds, layout)
    assert priors.grids == GRIDS
    row, first = 0, 0
    for level, (count, (height, width)) in enumerate(zip(layout.counts, GRIDS, strict=True)):
        for anchor, y, x in np.ndindex(count, height, width):
            for kind, size, values in (("cls", layout.outputs, priors.cls), ("box", 4, priors.box)):
                expected = preds[f"{kind}_{level}"][1, anchor * size : (anchor + 1) * size, y, x]
                assert torch.equal(values[1, row], expected)
            place = [(x + 0.5) / width, (y + 0.5) / height, *preds["anchors"][first + anchor].tolist()]
            assert priors.places[row].tolist() == pytest.approx(place)
            row += 1
        first += count
    assert row == priors.cls.shape[1]


# --- which prior learns which truth -------------------------------------------------------------------


def greedy(closeness):
    """The pairs (truth, prior) of one picture: the closest first."""
    values, pairs = closeness.clone(), []
    for _ in range(min(values.shape)):
        truth, prior = divmod(int(values.argmax()), values.shape[1])
        pairs.append((truth, prior))
        values[truth], values[:, prior] = -torch.inf, -torch.inf
    return sorted(pairs)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_one_each_is_the_greedy_matching(seed, tied):
    generator = torch.Generator().manual_seed(seed)
    image = torch.tensor([0, 0, 0, 0, 1, 2, 2, 2])
    closeness = torch.rand(8, 5, generator=generator)
    closeness = (closeness * 3).round() if tied else closeness
    found = one_each(closeness, image)
    for picture in range(3):
        rows = image == picture
        assert sorted(map(tuple, found[rows].nonzero().tolist())) == greedy(closeness[rows])


def test_more_truths_than_priors_and_none_at_all():
    assert one_each(torch.rand(4, 2), torch.zeros(4, dtype=torch.long)).sum(dim=0).tolist() == [1, 1]
    assert one_each(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long)).shape == (0, 3)


def slow_assignment(priors, boxes):
    """The truth of each prior of one picture, -1 for none, by torchvision's IoU."""
    iou = box_iou(boxes, priors)
    truth = torch.where(iou.amax(dim=0) >= 0.5, iou.argmax(dim=0), -1)
    for row, prior in greedy(iou):
        truth[prior] = row
    return truth


@pytest.mark.parametrize("seed", range(6))
def test_assignment_is_that_of_a_slow_loop(seed):
    generator = torch.Generator().manual_seed(seed)
    sizes = 0.3 + 0.5 * torch.rand(30, 2, generator=generator)
    places = torch.cat([0.3 + 0.4 * torch.rand(30, 2, generator=generator), sizes], dim=1)
    priors = box_convert(places, "cxcywh", "xyxy")
    middles = 0.4 + 0.2 * torch.rand(4, 2, generator=generator)
    truths = box_convert(
        torch.cat([middles, 0.2 + 0.5 * torch.rand(4, 2, generator=generator)], dim=1), "cxcywh", "xyxy"
    )
    rows = [(0, *box) for box in truths.tolist()]
    found = assign_by_iou(priors, targets_of(rows[:3], [], rows[3:])).truth
    assert torch.equal(found[0], slow_assignment(priors, truths[:3]))
    assert (found[1] == -1).all()
    assert torch.equal(found[2], slow_assignment(priors, truths[3:]))


def test_a_truth_that_meets_no_prior_goes_to_the_nearest():
    """Priors at the corners, tiny truths beside them: each has a prior, and none is another's."""
    priors = torch.tensor([[0.0, 0.0, 0.1, 0.1], [0.9, 0.9, 1.0, 1.0], [0.4, 0.4, 0.5, 0.5]])
    found = assign_by_iou(priors, targets_of([(0, 0.8, 0.8, 0.81, 0.81), (0, 0.42, 0.42, 0.43, 0.43)])).truth
    assert found.tolist() == [[-1, 0, 1]]


def test_one_prior_is_kept_for_each_of_two_equal_truths():
    priors = torch.tensor([[0.1, 0.1, 0.5, 0.5], [0.12, 0.1, 0.5, 0.5], [0.6, 0.6, 0.9, 0.9]])
    found = assign_by_iou(priors, targets_of([(0, 0.1, 0.1, 0.5, 0.5), (0, 0.1, 0.1, 0.5, 0.5)])).truth
    assert found.tolist() == [[0, 1, -1]]


# --- terms --------------------------------------------------------------------------------------------


def test_focal_loss_is_that_of_torchvision():
    torch.manual_seed(0)
    logits, targets = 4 * torch.randn(6, 9), (torch.rand(6, 9) > 0.7).float()
    expected = sigmoid_focal_loss(logits, targets, alpha=0.25, gamma=2.0)
    torch.testing.assert_close(focal_loss(logits, targets), expected)


def one_level(has_background, classes=2):
    """A layout of one anchor on a 2x2 grid, and a truth of class 1 that is the prior of the second cell."""
    layout = LevelLayout((1,), classes, has_background)
    preds = random_maps(layout, ((2, 2),), batch=1) | {"anchors": torch.tensor([[0.4, 0.4]])}
    return layout, preds, targets_of([(1, 0.55, 0.05, 0.95, 0.45)])


def test_terms_of_focal_by_hand():
    layout, preds, targets = one_level(has_background=False)
    terms = SSDCriterion(WEIGHTS, layout)(preds, targets)
    one_hot = torch.zeros(1, 2, 2, 2)
    one_hot[0, 1, 0, 1] = 1
    expected = sigmoid_focal_loss(preds["cls_0"], one_hot, alpha=0.25, gamma=2.0, reduction="sum")
    box = F.smooth_l1_loss(preds["box_0"][0, :, 0, 1], torch.zeros(4), reduction="sum")
    assert {name: float(value) for name, value in terms.items()} == {
        "box": pytest.approx(float(box), rel=1e-5),
        "cls": pytest.approx(float(expected), rel=1e-5),
    }


def test_terms_of_mining_by_hand():
    """One positive, three other priors: all are learned; of a larger grid only the three that lose most."""
    for side in (2, 4):
        layout = LevelLayout((1,), 2, True)
        preds = random_maps(layout, ((side, side),), batch=1) | {"anchors": torch.tensor([[1 / side, 1 / side]])}
        targets = targets_of([(1, 1 / side, 0.0, 2 / side, 1 / side)])
        logits = preds["cls_0"].flatten(2)[0].T
        entropy = F.cross_entropy(logits, torch.tensor([1 if i == 1 else 2 for i in range(side**2)]), reduction="none")
        others = torch.cat([entropy[:1], entropy[2:]]).sort(descending=True).values
        found = SSDCriterion(WEIGHTS, layout)(preds, targets)["cls"]
        assert float(found) == pytest.approx(float(entropy[1] + others[:3].sum()), rel=1e-5)


@pytest.mark.parametrize("has_background", [False, True])
def test_sums_are_divided_by_the_positives_not_by_the_priors(has_background):
    """The same picture twice is the same loss, whatever the number of priors."""
    layout, preds, targets = one_level(has_background)
    criterion = SSDCriterion(WEIGHTS, layout)
    once = criterion(preds, targets)
    twice = {name: value if name == "anchors" else value.repeat(2, 1, 1, 1) for name, value in preds.items()}
    for name, value in criterion(twice, targets_of(*[[(1, 0.55, 0.05, 0.95, 0.45)]] * 2)).items():
        assert float(value) == pytest.approx(float(once[name]), rel=1e-5)


@pytest.mark.parametrize("has_background", [False, True])
def test_classes_stay_apart(has_background):
    """A truth of class 1 raises the logit of class 1 and lowers the other one's."""
    layout, preds, targets = one_level(has_background)
    preds["cls_0"].requires_grad_()
    SSDCriterion(WEIGHTS, layout)(preds, targets)["cls"].backward()
    assert (preds["cls_0"].grad[0, :2, 0, 1].sign()).tolist() == [1, -1]


@pytest.mark.parametrize("has_background", [False, True])
def test_the_place_of_an_ignored_truth_is_not_taught(has_background):
    layout, preds, _ = one_level(has_background)
    preds["cls_0"].requires_grad_()
    targets = targets_of([(IGNORED, 0.55, 0.05, 0.95, 0.45)])
    terms = SSDCriterion(WEIGHTS, layout)(preds, targets)
    assert terms["box"] == 0
    terms["cls"].backward()
    taught = preds["cls_0"].grad[0].abs().sum(dim=0) > 0
    assert taught.tolist() == [[True, False], [True, True]]


@pytest.mark.parametrize("has_background", [False, True])
def test_shares_of_processes_add_up(has_background):
    layout = LevelLayout((2, 1, 3), 2, has_background)
    preds = random_maps(layout, batch=4)
    pictures = [[(0, 0.1, 0.1, 0.5, 0.6)], [], [(1, 0.2, 0.3, 0.9, 0.9), (0, 0.6, 0.1, 0.8, 0.4)], []]
    criterion = SSDCriterion(WEIGHTS, layout)
    whole = criterion(preds, targets_of(*pictures))
    counted = []

    def note(value):
        counted.append(value)
        return value

    parts = [slice(0, 2), slice(2, 4)]
    rows = [{name: value if name == "anchors" else value[part] for name, value in preds.items()} for part in parts]
    for part, own in zip(parts, rows, strict=True):
        criterion(own, targets_of(*pictures[part]), note)
    assert len(counted) == 2
    shares = [
        criterion(own, targets_of(*pictures[part]), lambda _: sum(counted))
        for part, own in zip(parts, rows, strict=True)
    ]
    for name, value in whole.items():
        assert float(shares[0][name] + shares[1][name]) == pytest.approx(float(value), rel=1e-5)


# --- without torch ------------------------------------------------------------------------------------

DECODED = [
    (LevelLayout((3,), 1, False), ((4, 4),)),
    (LevelLayout((2, 1, 3), 1, True), GRIDS),
    (LevelLayout((2, 1, 3), 4, False), GRIDS),
    (LevelLayout((1, 2), 3, True), ((1, 1), (1, 1))),
]


@pytest.mark.parametrize("scale", [0.0, 2.0, 1e4])
@pytest.mark.parametrize("limit", [1, 7, 10_000])
@pytest.mark.parametrize(("layout", "grids"), DECODED, ids=str)
@pytest.mark.filterwarnings("error")
def test_candidates_are_those_of_torch(layout, grids, limit, scale):
    """Random, tied and saturated maps."""
    preds = random_maps(layout, grids, scale=scale)
    priors = codec.split_levels(preds, layout)
    best = codec.best_candidates(
        codec.decode_offsets(priors.box, priors.places), codec.level_scores(priors.cls, layout), limit
    )
    maps = [preds[name].numpy() for name in layout.raw_names]
    before = copy.deepcopy(maps)
    decoder = build_decoder("ssd", {"counts": list(layout.counts), "has_background": layout.has_background})
    # Saturated sigmoids of numpy and torch part where float32 ends.
    for threshold in (0.3,) if scale > 100 else (0.0, 0.3):
        found = decoder(maps, threshold, limit)
        for one, boxes, scores, labels in zip(found, best.boxes, best.scores, best.labels, strict=True):
            keep = (scores >= threshold) & (scores > 0)
            np.testing.assert_allclose(one.scores, scores[keep], rtol=1e-5, atol=1e-6)
            np.testing.assert_array_equal(one.labels, labels[keep])
            np.testing.assert_allclose(one.boxes, boxes[keep], rtol=1e-4, atol=1e-5)
            assert (one.boxes.dtype, one.scores.dtype, one.labels.dtype) == (np.float32, np.float32, np.int64)
    for each, old in zip(maps, before, strict=True):
        np.testing.assert_array_equal(each, old)


@pytest.mark.parametrize(
    "decoding",
    [
        {"counts": [], "has_background": True},
        {"counts": [3, 0], "has_background": True},
        {"counts": 3, "has_background": True},
        {"counts": [1.5], "has_background": True},
        {"counts": [3], "has_background": 1},
    ],
    ids=str,
)
def test_damaged_settings(decoding):
    with pytest.raises(ValueError, match=r"counts|has_background"):
        SSDDecoder(**decoding)


@pytest.mark.parametrize("decoding", [{}, {"counts": [3]}, {"counts": [3], "has_background": True, "num_classes": 1}])
def test_unknown_settings(decoding):
    with pytest.raises(ValueError, match="'ssd'"):
        build_decoder("ssd", decoding)
