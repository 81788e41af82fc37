"""What a heat map of centres is taught: the bells around the centres, the focal loss, the terms of the criterion."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from helpers import targets_of
from test_center_codec import maps_with

from uhd.codec import encode_centers
from uhd.config import AssignConfig, CNNConfig, LossConfig
from uhd.losses import SeparableCriterion, build_criterion
from uhd.losses.center import MIN_IOU, gaussian_radius, splat
from uhd.losses.terms import penalty_reduced_focal_loss
from uhd.models import build_model
from uhd.types import IGNORED

GRIDS = [(1, 1), (8, 8), (4, 12), (7, 3), (1, 9), (9, 1)]
"""Rows and columns."""
PLAIN = LossConfig(loss_weight_hm=1.0, loss_weight_off=1.0, loss_weight_wh=1.0)


def seeded(*numbers):
    return torch.Generator().manual_seed(sum(number * 1000**i for i, number in enumerate(numbers)))


# --- the Gaussian's radius ------------------------------------------------------------------------------


def exact_iou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return Fraction(0)
    areas = ((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return width * height / (sum(areas) - width * height)


def holds(width, height, r):
    """Whether each way of moving both corners by r leaves an IoU of 0.7: the same way, inwards, outwards."""
    box = (0, 0, width, height)
    inner = (r, r, width - r, height - r)
    moved = [(r, r, width + r, height + r), (-r, -r, width + r, height + r)]
    if inner[0] >= inner[2] or inner[1] >= inner[3]:
        return False
    return all(exact_iou(box, other) >= Fraction(7, 10) for other in (inner, *moved))


def largest_radius(width, height):
    return next(r - 1 for r in itertools.count(1) if not holds(width, height, r))


def radii_of(sizes):
    return gaussian_radius(torch.tensor([[float(width), float(height)] for width, height in sizes])).tolist()


@pytest.mark.parametrize(
    "sides",
    [
        [Fraction(n) for n in range(1, 49)],
        [Fraction(n, 4) for n in (1, 2, 3, 5, 9, 17, 30, 45, 46, 47, 49, 51, 90, 181, 333)],
        [Fraction(n, 3) for n in (1, 2, 4, 20, 31, 35, 37, 38, 70, 128, 193, 500)],
        [Fraction(1, 64), Fraction(1), Fraction(13), Fraction(256), Fraction(1024)],
    ],
    ids=["whole", "quarters", "thirds", "extremes"],
)
def test_radius_is_the_largest_that_keeps_the_overlap(sides):
    pairs = list(itertools.product(sides, sides))
    assert radii_of(pairs) == [largest_radius(*pair) for pair in pairs]


def test_radius_where_an_overlap_is_exactly_the_least():
    """(8 + 2) x (14 + 2) moved inwards by 1: 112 of 160 is 0.7."""
    pairs = [(Fraction(width), Fraction(height)) for width, height in ((10, 16), (9, 20), (8, 30), (7, 100))]
    assert all(exact_iou((0, 0, w, h), (1, 1, w - 1, h - 1)) == Fraction(7, 10) for w, h in pairs)
    assert radii_of(pairs) == [largest_radius(*pair) for pair in pairs] == [1, 1, 1, 1]


def test_radius_is_never_below_0():
    sizes = torch.tensor([[0.0, 0.0], [1e-6, 1e-6], [0.0, 50.0], [1e-3, 1e4]])
    assert gaussian_radius(sizes).tolist() == [0, 0, 0, 0]
    assert gaussian_radius(torch.zeros(0, 2)).shape == (0,)
    assert MIN_IOU == 0.7


# --- the heat map that is taught --------------------------------------------------------------------------


def plain_splat(shape, truths):
    """The heat map of [(image, label, cell, (w, h))], cell by cell."""
    batch, classes, height, width = shape
    maps = np.zeros((batch, classes, height, width))
    for image, label, cell, (w, h) in truths:
        radius = largest_radius(Fraction(w), Fraction(h))
        sigma = (2 * radius + 1) / 6
        for row in range(height):
            for column in range(width):
                dx, dy = column - cell % width, row - cell // width
                if max(abs(dx), abs(dy)) <= radius:
                    value = math.exp(-(dx * dx + dy * dy) / (2 * sigma**2))
                    maps[image, label, row, column] = max(maps[image, label, row, column], value)
    return maps


def splatted(shape, truths):
    image, labels, cells = (torch.tensor([truth[i] for truth in truths], dtype=torch.int64) for i in range(3))
    sizes = torch.tensor([truth[3] for truth in truths], dtype=torch.float32).view(-1, 2)
    return splat(torch.Size(shape), image, labels, cells, sizes)


SPLATS = {
    "one, radius 0": ((1, 1, 3, 4), [(0, 0, 5, (2, 2))]),
    "one, radius 1": ((1, 1, 5, 6), [(0, 0, 14, (12, 14))]),
    "radius 3": ((1, 1, 9, 11), [(0, 0, 49, (40, 41))]),
    "overlap of one class": ((1, 1, 9, 9), [(0, 0, 30, (40, 40)), (0, 0, 33, (25, 25)), (0, 0, 48, (13, 13))]),
    "overlap of two classes": ((1, 2, 9, 9), [(0, 0, 30, (40, 40)), (0, 1, 33, (25, 25))]),
    "one cell, one class": ((1, 1, 5, 5), [(0, 0, 12, (12, 12)), (0, 0, 12, (30, 30)), (0, 0, 12, (1, 1))]),
    "one cell, two classes": ((1, 3, 5, 5), [(0, 0, 12, (12, 12)), (0, 2, 12, (30, 30))]),
    "corners": ((1, 1, 6, 4), [(0, 0, cell, (30, 28)) for cell in (0, 3, 20, 23)]),
    "larger than the grid": ((2, 1, 4, 7), [(1, 0, 10, (300, 310))]),
    "several pictures": ((3, 2, 5, 4), [(0, 1, 3, (13, 13)), (2, 0, 3, (13, 13)), (2, 1, 19, (2, 30))]),
    "no truth": ((2, 3, 4, 4), []),
    "one row": ((1, 1, 1, 9), [(0, 0, 0, (30, 30)), (0, 0, 8, (14, 14))]),
    "one cell in all": ((1, 1, 1, 1), [(0, 0, 0, (1, 1))]),
}


@pytest.mark.parametrize(("shape", "truths"), SPLATS.values(), ids=SPLATS)
def test_heat_map_is_that_of_a_plain_loop(shape, truths):
    found = splatted(shape, truths)
    assert found.shape == shape
    np.testing.assert_allclose(found.numpy(), plain_splat(shape, truths), rtol=1e-5, atol=1e-7)
    for image, label, cell, _ in truths:
        assert found[image, label].flatten()[cell] == 1
    assert (found == 1).sum() == len({truth[:3] for truth in truths})


def test_heat_map_of_many_random_truths():
    rng = np.random.default_rng(0)
    shape = (4, 3, 8, 13)
    sizes = np.float32(rng.uniform(0.5, 60, (40, 2))).tolist()
    truths = [(*map(int, rng.integers(0, (4, 3, 8 * 13))), tuple(size)) for size in sizes]
    expected = plain_splat(shape, truths)
    np.testing.assert_allclose(splatted(shape, truths).numpy(), expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(splatted(shape, truths[::-1]).numpy(), splatted(shape, truths).numpy())


# --- focal loss -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("p", "target", "expected"),
    [
        (0.5, 1.0, 0.25 * math.log(2)),
        (0.9, 1.0, 0.01 * -math.log(0.9)),
        (0.1, 1.0, 0.81 * math.log(10)),
        (0.5, 0.0, 0.25 * math.log(2)),
        (0.1, 0.0, 0.01 * -math.log(0.9)),
        (0.5, 0.5, 0.0625 * 0.25 * math.log(2)),
        (0.9, 0.8, 0.0016 * 0.81 * math.log(10)),
        (0.5, 0.999, 1e-12 * 0.25 * math.log(2)),
    ],
)
def test_focal_loss_by_hand(p, target, expected):
    logits = torch.logit(torch.tensor([p], dtype=torch.float64))
    found = penalty_reduced_focal_loss(logits, torch.tensor([target], dtype=torch.float64))
    assert found.item() == pytest.approx(expected, rel=1e-6)


def test_focal_loss_has_the_gradients_of_its_differences():
    targets = torch.tensor([1.0, 0.0, 0.3, 0.99, 0.5], dtype=torch.float64).repeat(9)
    logits = torch.linspace(-6, 6, 45, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: penalty_reduced_focal_loss(x, targets), logits)


@pytest.mark.parametrize("logit", [-1e4, -88.0, -20.0, 20.0, 88.0, 1e4])
@pytest.mark.parametrize("target", [0.0, 0.5, 1.0])
def test_focal_loss_of_saturated_logits(logit, target):
    """Beyond the numbers that the sigmoid can tell apart the loss is a straight line, or 0."""
    logits = torch.tensor([logit], requires_grad=True)
    loss = penalty_reduced_focal_loss(logits, torch.tensor([target]))
    loss.backward()
    is_wrong = (logit < 0) == (target == 1)
    weight = 1 if target == 1 else (1 - target) ** 4
    assert loss.item() == pytest.approx(weight * abs(logit) if is_wrong else 0, rel=1e-6, abs=1e-6)
    assert logits.grad.item() == pytest.approx(math.copysign(weight, logit) if is_wrong else 0, rel=1e-5, abs=1e-6)


# --- the criterion ----------------------------------------------------------------------------------------


def criterion_of(loss=PLAIN):
    return build_criterion(CNNConfig(), loss, AssignConfig())


def preds_of(batch, classes, grid, seed=0, scale=1.0):
    generator = seeded(seed, *grid)
    shapes = {"heatmap": classes, "offset": 2, "size": 2}
    return {
        name: (torch.randn(batch, channels, *grid, generator=generator) * scale).requires_grad_()
        for name, channels in shapes.items()
    }


def constant_preds(batch, classes, grid, logit=0.4, offset=(0.1, 0.2), size=(1.5, 2.0)):
    def filled(values):
        return torch.tensor(values).view(1, -1, 1, 1).expand(batch, -1, *grid).clone().requires_grad_()

    return {"heatmap": filled([logit] * classes), "offset": filled(offset), "size": filled(size)}


def sum_of(terms):
    return torch.stack(list(terms.values())).sum()


def plain_criterion(preds, pictures):
    """The terms with all weights 1, cell by cell; a row of a picture is (label, x1, y1, x2, y2)."""
    heatmap, offsets, sizes = (preds[name].detach().double().numpy() for name in ("heatmap", "offset", "size"))
    batch, _, height, width = heatmap.shape
    truths, ignored = [], np.zeros((batch, height, width), bool)
    sums = {"hm": 0.0, "off": 0.0, "wh": 0.0}
    for image, rows in enumerate(pictures):
        for label, *box in rows:
            # In float32, so that a centre on an edge falls to the same side.
            corners, across = np.float32(box), np.float32([width, height])
            (cx, cy), (w, h) = (corners[:2] + corners[2:]) / 2 * across, ((corners[2:] - corners[:2]) * across).tolist()
            x1, y1, x2, y2 = corners * np.tile(across, 2)
            column, row = min(max(int(cx), 0), width - 1), min(max(int(cy), 0), height - 1)
            if label == IGNORED:
                ignored[image, row, column] = True
                for i, j in itertools.product(range(height), range(width)):
                    covered = x1 <= j + 0.5 <= x2 and y1 <= i + 0.5 <= y2
                    ignored[image, i, j] |= covered
                continue
            truths.append((image, label, row * width + column, (w, h)))
            sums["off"] += abs(offsets[image, 0, row, column] - (cx - column))
            sums["off"] += abs(offsets[image, 1, row, column] - (cy - row))
            sums["wh"] += abs(sizes[image, 0, row, column] - w) + abs(sizes[image, 1, row, column] - h)
    goal = plain_splat(heatmap.shape, truths)
    for index in np.ndindex(heatmap.shape):
        p = 1 / (1 + math.exp(-heatmap[index]))
        if goal[index] == 1:
            sums["hm"] -= (1 - p) ** 2 * math.log(p)
        elif not ignored[index[0], index[2], index[3]]:
            sums["hm"] -= (1 - goal[index]) ** 4 * p**2 * math.log(1 - p)
    return {name: value / max(1, len(truths)) for name, value in sums.items()}


def assert_terms(found, expected, rel=1e-5):
    assert list(found) == ["hm", "off", "wh"]
    assert {name: value.item() for name, value in found.items()} == pytest.approx(expected, rel=rel, abs=1e-7)


def test_a_batch_of_two_pictures_by_hand():
    """Grid 2 x 4, truths too small for a bell: one in the first picture, two of two classes in a cell of the other."""
    targets = targets_of(
        [(1, 0.0, 0.0, 0.25, 0.5)],  # centre (0.5, 0.5) cells in cell 0, size 1 x 1
        # Centres (2.5, 1.5) and (2.25, 1.5) in cell 6, sizes 1 x 0.5 and 0.5 x 1.
        [(0, 0.5, 0.625, 0.75, 0.875), (1, 0.5, 0.5, 0.625, 1.0)],
    )
    terms = criterion_of()(constant_preds(2, 2, (2, 4)), targets)
    p = 1 / (1 + math.exp(-0.4))
    expected = {
        "hm": (3 * (1 - p) ** 2 * -math.log(p) + (32 - 3) * p**2 * -math.log(1 - p)) / 3,
        "off": ((0.4 + 0.3) + (0.4 + 0.3) + (0.15 + 0.3)) / 3,
        "wh": ((0.5 + 1.0) + (0.5 + 1.5) + (1.0 + 1.0)) / 3,
    }
    assert_terms(terms, expected)
    assert all(term.shape == () and term.dtype == torch.float32 for term in terms.values())


def test_a_bell_of_radius_1_by_hand():
    """A truth that fills 13 x 13 cells, the smallest square that has one: sigma is 1/2, beside the centre exp(-2)."""
    terms = criterion_of()(constant_preds(1, 1, (13, 13), logit=0.0), targets_of([(0, 0.0, 0.0, 1.0, 1.0)]))
    beside, diagonal = math.exp(-2), math.exp(-4)
    background = 169 - 9 + 4 * (1 - beside) ** 4 + 4 * (1 - diagonal) ** 4
    expected = {"hm": (1 + background) * 0.25 * math.log(2), "off": 0.4 + 0.3, "wh": 11.5 + 11.0}
    assert_terms(terms, expected)


CASES = {
    "one each": [[(0, 0.1, 0.1, 0.45, 0.8)], [(2, 0.5, 0.3, 0.8, 0.95)]],
    "a crowd": [
        [(i % 3, x, 0.2 + x / 3, x + 0.1 + i / 30, 0.9) for i, x in enumerate(np.linspace(0, 0.8, 9).tolist())],
        [(1, 0.0, 0.0, 1.0, 1.0), (1, 0.0, 0.0, 1.0, 1.0), (0, 0.02, 0.02, 0.97, 0.99)],
    ],
    "at the borders": [[(0, 0.9, 0.9, 1.1, 1.1), (1, -0.2, -0.1, 0.2, 0.1), (2, 0.95, 0.0, 1.0, 0.05)], []],
    "no box": [[], []],
    "taken away": [[(IGNORED, 0.2, 0.2, 0.7, 0.9), (1, 0.75, 0.1, 0.95, 0.4)], [(IGNORED, 0.0, 0.0, 1.0, 1.0)]],
    "taken away, tiny": [[(IGNORED, 0.51, 0.51, 0.52, 0.52)], [(IGNORED, 0.99, 0.99, 1.0, 1.0)]],
    "a centre in it": [[(IGNORED, 0.0, 0.0, 1.0, 1.0), (0, 0.3, 0.3, 0.6, 0.7), (2, 0.1, 0.1, 0.9, 0.95)], []],
    "one in another picture": [[(IGNORED, 0.1, 0.1, 0.6, 0.6)], [(0, 0.1, 0.1, 0.6, 0.6)]],
}


@pytest.mark.parametrize("grid", [(4, 4), (16, 16), (24, 6), (1, 5)])
@pytest.mark.parametrize("pictures", CASES.values(), ids=CASES)
def test_terms_are_those_of_a_plain_loop(pictures, grid):
    preds = preds_of(2, 3, grid, seed=3)
    assert_terms(criterion_of()(preds, targets_of(*pictures)), plain_criterion(preds, pictures), rel=1e-4)


def test_terms_are_divided_by_the_number_of_centres():
    preds, pictures = preds_of(2, 3, (8, 8)), CASES["a crowd"]
    once = criterion_of()(preds, targets_of(*pictures))
    double = {name: torch.cat([value, value]) for name, value in preds.items()}
    twice = criterion_of()(double, targets_of(*pictures, *pictures))
    for name, value in once.items():
        torch.testing.assert_close(twice[name], value)
    # A background picture adds its background, and nothing to the divisor.
    more = criterion_of()(double, targets_of(*pictures, [], []))
    assert more["hm"] > once["hm"]
    assert (more["off"].item(), more["wh"].item()) == pytest.approx((once["off"].item(), once["wh"].item()))


@pytest.mark.parametrize("weights", [(2.0, 0.5, 0.25), (0.0, 1.0, 0.0), (0.0, 0.0, 0.0)])
def test_weights(weights):
    names = ("hm", "off", "wh")
    loss = LossConfig(**{f"loss_weight_{name}": weight for name, weight in zip(names, weights, strict=True)})
    preds, targets = preds_of(2, 3, (8, 8)), targets_of(*CASES["one each"])
    plain, weighted = criterion_of()(preds, targets), criterion_of(loss)(preds, targets)
    for name, weight in zip(names, weights, strict=True):
        assert weighted[name].item() == pytest.approx(weight * plain[name].item())
    sum_of(weighted).backward()
    for name, weight in zip(("heatmap", "offset", "size"), weights, strict=True):
        assert bool(preds[name].grad.any()) == (weight > 0)


def test_terms_are_float32_under_autocast():
    targets = targets_of(*CASES["one each"])
    preds = preds_of(2, 3, (8, 8))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = criterion_of()(preds, targets)
    outside = criterion_of()(preds, targets)
    for name, value in inside.items():
        assert value.dtype == torch.float32
        assert torch.equal(value, outside[name])
    half = {name: value.detach().bfloat16() for name, value in preds.items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        of_half = criterion_of()(half, targets)
    for name, value in criterion_of()({name: each.float() for name, each in half.items()}, targets).items():
        assert of_half[name].dtype == torch.float32
        assert torch.equal(of_half[name], value)


@pytest.mark.parametrize("pictures", [CASES["no box"], CASES["taken away, tiny"]], ids=["no box", "taken away"])
def test_batch_without_boxes(pictures):
    preds = preds_of(2, 3, (8, 8))
    terms = criterion_of()(preds, targets_of(*pictures))
    assert list(terms) == ["hm", "off", "wh"]
    assert all(term.requires_grad and term.shape == () and term.isfinite() for term in terms.values())
    assert terms["hm"] > 0
    assert terms["off"] == terms["wh"] == 0
    sum_of(terms).backward()
    assert preds["heatmap"].grad.any()
    assert not preds["offset"].grad.any()
    assert not preds["size"].grad.any()


def test_gradient_of_offsets_and_sizes_reaches_the_cells_of_centres_only():
    pictures = [[(0, 0.5, 0.5, 0.75, 1.0)], [(1, 0.0, 0.0, 0.25, 0.25), (0, 0.0, 0.0, 0.25, 0.25)]]
    preds = constant_preds(2, 2, (4, 4), offset=(5.0, -5.0), size=(-5.0, 5.0))
    sum_of(criterion_of()(preds, targets_of(*pictures))).backward()
    expected = torch.zeros(2, 2, 4, 4)
    expected[0, :, 3, 2] = torch.tensor([1.0, -1.0]) / 3
    expected[1, :, 0, 0] = torch.tensor([1.0, -1.0]) * 2 / 3  # both truths of a cell pull
    torch.testing.assert_close(preds["offset"].grad, expected)
    torch.testing.assert_close(preds["size"].grad, -expected)


def test_the_place_of_a_truth_that_was_taken_away_is_not_taught():
    """Columns 1 and 2 of rows 0 and 1 of a 4 x 4 grid, in the first picture only, for every class."""
    pictures = [[(IGNORED, 0.25, 0.0, 0.75, 0.5)], [(1, 0.25, 0.0, 0.75, 0.5)]]
    preds = preds_of(2, 2, (4, 4))
    sum_of(criterion_of()(preds, targets_of(*pictures))).backward()
    expected = torch.ones(2, 2, 4, 4, dtype=torch.bool)
    expected[0, :, :2, 1:3] = False
    assert torch.equal(preds["heatmap"].grad != 0, expected)
    assert not preds["offset"].grad[0].any()
    assert not preds["size"].grad[0].any()


def test_a_centre_in_such_a_place_is_taught():
    """Its own cell and class; the rest of the place is left alone, also around it."""
    pictures = [[(IGNORED, 0.0, 0.0, 1.0, 0.5), (1, 0.0, 0.0, 1.0, 1.0), (0, 0.25, 0.25, 0.375, 0.375)]]
    preds = preds_of(1, 2, (16, 16))
    sum_of(criterion_of()(preds, targets_of(*pictures))).backward()
    expected = torch.zeros(1, 2, 16, 16, dtype=torch.bool)
    expected[:, :, 8:] = True
    expected[0, 0, 5, 5] = True
    assert torch.equal(preds["heatmap"].grad != 0, expected)
    assert (preds["heatmap"].grad[0, 0, 5, 5] < 0) & (preds["heatmap"].grad[0, 1, 8, 8] < 0)
    cells = torch.zeros(16, 16, dtype=torch.bool)
    cells[5, 5] = cells[8, 8] = True
    for name in ("offset", "size"):
        assert torch.equal(preds[name].grad[0].ne(0).any(dim=0), cells)


@pytest.mark.parametrize("scale", [1e2, 1e4, 1e30])
def test_large_maps_stay_finite(scale):
    preds = preds_of(2, 3, (8, 8), scale=scale)
    terms = criterion_of()(preds, targets_of(*CASES["a crowd"]))
    assert all(term.isfinite() and term > 0 for term in terms.values())
    sum_of(terms).backward()
    assert all(value.grad.isfinite().all() for value in preds.values())


@pytest.mark.parametrize("grid", [(8, 8), (6, 20)])
def test_maps_that_the_criterion_calls_perfect_decode_to_the_truths(grid):
    """One definition of a centre for what is taught and what is found; no overlap, so that all are peaks."""
    rows = [(0, 0.02, 0.1, 0.2, 0.4), (1, 0.4, 0.05, 0.55, 0.97), (0, 0.8, 0.7, 1.05, 1.1), (1, 0.9, 0.1, 0.95, 0.2)]
    targets = targets_of(rows)
    cells, offsets, sizes = encode_centers(targets.boxes[0], grid)
    maps = dict(zip(("offset", "size"), maps_with(cells, offsets, sizes, grid), strict=True))
    maps = {name: value.nan_to_num(7.0) for name, value in maps.items()}
    heatmap = torch.full((1, 2, grid[0] * grid[1]), -30.0)
    heatmap[0, targets.labels[0], cells] = 15 - torch.arange(4.0)
    maps["heatmap"] = heatmap.view(1, 2, *grid)
    terms = criterion_of()(maps, targets)
    assert all(term < 1e-5 for term in terms.values())
    model = build_model(CNNConfig(cnn_width=4, num_classes=2))
    boxes, scores = model.candidates(maps)
    image_scores, found = scores[0].flatten().sort(descending=True)
    assert (image_scores[:4] > 0.999).all()
    assert (image_scores[4:] < 1e-5).all()
    assert (found[:4] % 2).tolist() == [label for label, *_ in rows]
    torch.testing.assert_close(boxes[0, found[:4] // 2], targets.boxes[0], rtol=1e-5, atol=1e-6)


def test_the_criterion_is_that_of_the_head():
    assert CNNConfig().head == "center"
    assert not isinstance(criterion_of(), SeparableCriterion)
    assert not list(criterion_of().parameters())
