"""Hungarian matching against a search of all matchings, and the criterion against figures worked by hand."""

import itertools
import math

import pytest
import torch
from helpers import padded_targets
from torch.nn import functional as F

from uhd.assigners.base import Predictions
from uhd.assigners.hungarian import centre_form, match_queries, pair_costs
from uhd.config import LossConfig, TransformerConfig
from uhd.losses.query import QueryCriterion, in_ignored_place
from uhd.models.transformer import Transformer
from uhd.types import IGNORED, PADDING

PLAIN = LossConfig(loss_weight_cls=1.0, loss_weight_l1=1.0, loss_weight_iou=1.0)
LEFT, RIGHT = (0.1, 0.2, 0.3, 0.6), (0.6, 0.3, 0.9, 0.8)


def box_logits_of(boxes):
    """Logits whose boxes are these."""
    return torch.logit(centre_form(torch.as_tensor(boxes, dtype=torch.float32)))


def random_boxes(*shape):
    centres, sizes = 0.2 + 0.6 * torch.rand(*shape, 2), 0.05 + 0.3 * torch.rand(*shape, 2)
    return torch.cat([centres - sizes / 2, centres + sizes / 2], dim=-1)


def random_targets(counts, num_classes=2):
    return padded_targets(
        [[(random_boxes(), int(torch.randint(num_classes, ()))) for _ in range(count)] for count in counts]
    )


def random_preds(batch, queries=6, num_classes=2):
    return {
        "class_logits": torch.randn(batch, queries, num_classes + 1, requires_grad=True),
        "box_logits": torch.randn(batch, queries, 4, requires_grad=True),
    }


def predictions_of(batch, queries, num_classes=2):
    return Predictions(random_boxes(batch, queries), torch.rand(batch, queries, num_classes))


def pairs_of(matches):
    return list(zip(*(part.tolist() for part in matches), strict=True))


# --- matching -----------------------------------------------------------------------------------------


def plain_cost(box, scores, truth, label):
    """5 L1 + 2 (1 - GIoU) - p in plain numbers."""

    def centred(b):
        return ((b[0] + b[2]) / 2, (b[1] + b[3]) / 2, b[2] - b[0], b[3] - b[1])

    distance = sum(abs(a - b) for a, b in zip(centred(box), centred(truth), strict=True))
    width = max(0.0, min(box[2], truth[2]) - max(box[0], truth[0]))
    height = max(0.0, min(box[3], truth[3]) - max(box[1], truth[1]))
    union = (box[2] - box[0]) * (box[3] - box[1]) + (truth[2] - truth[0]) * (truth[3] - truth[1]) - width * height
    hull = (max(box[2], truth[2]) - min(box[0], truth[0])) * (max(box[3], truth[3]) - min(box[1], truth[1]))
    giou = width * height / union - (hull - union) / hull
    return 5 * distance + 2 * (1 - giou) - scores[label]


def lowest_total(costs):
    """Cost of the best of all matchings of a matrix [Q][T], tried one by one."""
    queries, truths = len(costs), len(costs[0]) if costs else 0
    if queries >= truths:
        orders = itertools.permutations(range(queries), truths)
        return min(sum(costs[query][truth] for truth, query in enumerate(order)) for order in orders)
    orders = itertools.permutations(range(truths), queries)
    return min(sum(costs[query][truth] for query, truth in enumerate(order)) for order in orders)


@pytest.mark.parametrize("queries", [1, 2, 4, 5])
def test_matching_is_the_cheapest_of_all(queries):
    torch.manual_seed(queries)
    counts = [0, 1, 2, 3, 4, 4, 0, 2]
    targets = random_targets(counts)
    predictions = predictions_of(len(counts), queries)
    matches = pairs_of(match_queries(predictions, targets))
    for image, count in enumerate(counts):
        own = [(query, row) for at, query, row in matches if at == image]
        assert len(own) == min(queries, count)
        assert len({query for query, _ in own}) == len({row for _, row in own}) == len(own)
        boxes, scores = predictions.boxes[image].tolist(), predictions.scores[image].tolist()
        truths, labels = targets.boxes[image].tolist(), targets.labels[image].tolist()
        costs = [
            [plain_cost(boxes[query], scores[query], truths[row], labels[row]) for row in range(count)]
            for query in range(queries)
        ]
        total = sum(costs[query][row] for query, row in own)
        assert total == pytest.approx(lowest_total(costs) if count else 0, abs=1e-5)


def test_costs_are_those_of_the_plain_formula():
    torch.manual_seed(1)
    predictions, targets = predictions_of(2, 3), random_targets([2, 2])
    costs = pair_costs(predictions, targets)
    for image, query, row in itertools.product(range(2), range(3), range(2)):
        expected = plain_cost(
            predictions.boxes[image, query].tolist(),
            predictions.scores[image, query].tolist(),
            targets.boxes[image, row].tolist(),
            int(targets.labels[image, row]),
        )
        assert costs[image, query, row].item() == pytest.approx(expected, abs=1e-5)


def test_equal_queries_and_equal_truths_are_matched_one_to_one():
    predictions = Predictions(torch.tensor([[LEFT] * 3]), torch.full((1, 3, 1), 0.5))
    matches = match_queries(predictions, padded_targets([[(LEFT, 0), (LEFT, 0)]]))
    assert len(matches.query.unique()) == len(matches.row.unique()) == 2


def test_rows_that_are_no_truth_are_never_matched():
    # The nearest query to each: an ignored truth, padding between the rows, and a real truth.
    targets = padded_targets([[(LEFT, IGNORED), (LEFT, PADDING), (RIGHT, 0)], [(LEFT, IGNORED)], []])
    predictions = Predictions(torch.tensor([[LEFT, RIGHT]] * 3), torch.full((3, 2, 1), 0.5))
    assert pairs_of(match_queries(predictions, targets)) == [(0, 1, 2)]


@pytest.mark.parametrize("images", [[], [[]], [[], []]])
def test_no_truths_at_all(images):
    targets = padded_targets(images)
    matches = match_queries(predictions_of(len(images), 3), targets)
    assert [part.shape for part in matches] == [(0,)] * 3
    assert all(part.dtype == torch.int64 for part in matches)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_predictions_that_are_not_finite(value):
    predictions = Predictions(torch.tensor([[LEFT, LEFT, RIGHT]]), torch.full((1, 3, 1), 0.5))
    predictions.boxes[0, 0] = value
    predictions.scores[0, 0] = math.nan
    targets = padded_targets([[(LEFT, 0), (RIGHT, 0)]])
    assert pairs_of(match_queries(predictions, targets)) == [(0, 1, 0), (0, 2, 1)]
    predictions.boxes[:] = value
    assert len(match_queries(predictions, targets).query) == 2


def test_matching_has_no_gradient():
    boxes = random_boxes(1, 3).requires_grad_()
    matches = match_queries(Predictions(boxes, torch.rand(1, 3, 1)), padded_targets([[(LEFT, 0)]]))
    assert not any(part.requires_grad for part in matches)


# --- the terms ----------------------------------------------------------------------------------------


def test_terms_by_hand():
    # Query 0 is a quarter of the picture at (0, 0), its truth the same moved right by a quarter of the picture:
    # intersection 1/8, union 3/8, hull 3/8 -> GIoU 1/3. Query 1 has nobody to find.
    boxes = [[(0.0, 0.0, 0.5, 0.5), (0.5, 0.5, 1.0, 1.0)]]
    preds = {
        "class_logits": torch.tensor([[[math.log(3), 0.0], [math.log(3), 0.0]]]),
        "box_logits": box_logits_of(boxes),
    }
    targets = padded_targets([[((0.25, 0.0, 0.75, 0.5), 0)]])
    terms = QueryCriterion(PLAIN, 1)(preds, targets)
    expected = {"cls": -math.log(0.75) - 0.1 * math.log(0.25), "l1": 0.25, "iou": 2 / 3}
    assert {name: value.item() for name, value in terms.items()} == pytest.approx(expected, abs=1e-5)
    weighted = QueryCriterion(LossConfig(), 1)(preds, targets)
    assert {name: value.item() for name, value in weighted.items()} == pytest.approx(
        {"cls": expected["cls"], "l1": 5 * 0.25, "iou": 2 * 2 / 3}, abs=1e-5
    )


def test_class_term_is_the_weighted_cross_entropy_of_torch():
    torch.manual_seed(4)
    preds, targets = random_preds(3), random_targets([2, 0, 4])
    image, query, row = match_queries(
        Predictions(
            torch.zeros(3, 6, 4) + decoded(preds["box_logits"]), preds["class_logits"].softmax(-1)[..., :2].detach()
        ),
        targets,
    )
    classes = torch.full((3, 6), 2)
    classes[image, query] = targets.labels[image, row]
    expected = F.cross_entropy(
        preds["class_logits"].flatten(0, 1),
        classes.flatten(),
        weight=torch.tensor([1.0, 1.0, 0.1]),
        reduction="sum",
    )
    terms = QueryCriterion(PLAIN, 2)(preds, targets)
    torch.testing.assert_close(terms["cls"], expected / 6)


def decoded(logits):
    cx, cy, w, h = logits.detach().sigmoid().unbind(-1)
    return torch.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], dim=-1)


@pytest.mark.parametrize("counts", [[2, 1], [0, 3], [0, 0], [9, 1]])
def test_keys_and_dtype_are_always_the_same(counts):
    preds = {name: value.bfloat16() for name, value in random_preds(2).items()}
    with torch.autocast("cpu", torch.bfloat16):
        terms = QueryCriterion(LossConfig(), 2)(preds, random_targets(counts))
    assert list(terms) == ["cls", "l1", "iou"]
    assert all(value.dtype == torch.float32 and value.dim() == 0 and value.isfinite() for value in terms.values())


@pytest.mark.parametrize("images", [[[]], [[], []], [[(LEFT, IGNORED)], []]])
def test_a_batch_without_truths_teaches_background_alone(images):
    torch.manual_seed(5)
    preds = random_preds(len(images))
    terms = QueryCriterion(PLAIN, 2)(preds, padded_targets(images))
    assert terms["l1"].item() == terms["iou"].item() == 0
    assert terms["cls"] > 0
    for value in terms.values():
        assert value.requires_grad
    sum(terms.values()).backward()
    assert preds["box_logits"].grad.eq(0).all()
    assert preds["class_logits"].grad.isfinite().all()
    assert (preds["class_logits"].grad[..., -1] < 0).all()  # towards more background


def test_a_prediction_of_nan_gives_a_loss_of_nan_and_no_error():
    preds = random_preds(2)
    preds["box_logits"].data[:] = math.nan
    preds["class_logits"].data[:] = math.nan
    terms = QueryCriterion(PLAIN, 2)(preds, random_targets([2, 0]))
    assert all(value.isnan() for value in terms.values())


# --- places of truths that were taken away ------------------------------------------------------------


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        (LEFT, True),
        ((0.1, 0.2, 0.3, 0.41), True),  # IoU 0.525
        ((0.1, 0.2, 0.3, 0.39), False),  # IoU 0.475
        (RIGHT, False),
    ],
)
def test_in_ignored_place(box, expected):
    targets = padded_targets([[(RIGHT, 0), (LEFT, IGNORED)], [(LEFT, 0), (LEFT, PADDING)]])
    result = in_ignored_place(torch.tensor([[box], [box]]), targets)
    assert result.tolist() == [[expected], [False]]


def test_a_query_in_an_ignored_place_is_not_taught_as_background():
    preds = {
        "class_logits": torch.randn(1, 3, 2, requires_grad=True),
        "box_logits": box_logits_of([[LEFT] * 2 + [RIGHT]]),
    }
    terms = QueryCriterion(PLAIN, 1)(preds, padded_targets([[(LEFT, IGNORED)]]))
    terms["cls"].backward()
    assert preds["class_logits"].grad.abs().sum(-1).gt(0).tolist() == [[False, False, True]]


def test_a_query_in_an_ignored_place_may_learn_a_truth_that_is_there_too():
    preds = {"class_logits": torch.randn(1, 2, 2, requires_grad=True), "box_logits": box_logits_of([[LEFT, RIGHT]])}
    QueryCriterion(PLAIN, 1)(preds, padded_targets([[(LEFT, IGNORED), (LEFT, 0)]]))["cls"].backward()
    gradient = preds["class_logits"].grad[0, :, -1]
    assert gradient[0] > 0  # away from background
    assert gradient[1] < 0


# --- a batch in parts ---------------------------------------------------------------------------------


@pytest.mark.parametrize("counts", [[2, 1, 0, 4, 0, 3], [0, 0, 0, 0, 5, 1], [0] * 6])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_parts_add_up_to_the_whole(counts, size):
    torch.manual_seed(6)
    criterion, targets, preds = QueryCriterion(LossConfig(), 2), random_targets(counts), random_preds(6)
    if targets.labels.shape[1]:
        targets.labels[3, 0] = IGNORED
    whole = criterion(preds, targets)
    expected = torch.autograd.grad(sum(whole.values()), list(preds.values()))
    total = dict.fromkeys(whole, 0.0)
    for start in range(0, 6, size):
        rows = slice(start, start + size)
        part = targets.rows(rows)
        share = criterion.normaliser(part) / criterion.normaliser(targets)
        terms = criterion({name: value[rows] for name, value in preds.items()}, part)
        for name, value in terms.items():
            total[name] = total[name] + value * share
    torch.testing.assert_close(total, whole)
    torch.testing.assert_close(torch.autograd.grad(sum(total.values()), list(preds.values())), expected)


# --- with the net -------------------------------------------------------------------------------------


def tiny_net(**changes):
    torch.manual_seed(7)
    sizes = {"d_model": 16, "heads": 2, "layers": 1, "dim_feedforward": 16, "num_queries": 4}
    return Transformer(TransformerConfig(**{**sizes, **changes}))


@pytest.mark.parametrize("use_fpn", [False, True])
@pytest.mark.parametrize("counts", [[2, 1, 0], [0, 0, 0]])
def test_every_parameter_gets_a_gradient(use_fpn, counts):
    model = tiny_net(use_fpn=use_fpn, layers=2)
    terms = QueryCriterion(LossConfig(), 1)(model(torch.rand(3, 3, 16, 16)), random_targets(counts, num_classes=1))
    sum(terms.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        if sum(counts):
            assert parameter.grad.any(), name


def test_two_pictures_are_learned_by_heart():
    model = tiny_net(num_queries=2)
    criterion, optimizer = QueryCriterion(LossConfig(), 1), torch.optim.AdamW(model.parameters(), lr=0.01)
    images = torch.zeros(2, 3, 8, 8)
    images[0, :, :, :4] = 1.0
    images[1, :, 4:, :] = 1.0
    targets = padded_targets([[((0.0, 0.0, 0.5, 1.0), 0)], [((0.0, 0.5, 1.0, 1.0), 0)]])
    losses = []
    for _ in range(150):
        loss = sum(criterion(model(images), targets).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[30] < 0.5 * losses[0]
    assert losses[-1] < 0.1 * losses[0]
    boxes, scores = model.candidates(model(images))
    best = scores[..., 0].argmax(dim=1)
    torch.testing.assert_close(boxes[torch.arange(2), best], targets.boxes[:, 0], rtol=0, atol=0.12)
