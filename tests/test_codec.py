"""Raw maps to boxes and back: layout, a case worked by hand, and the round trip."""

import math

import pytest
import torch

from uhd.codec import (
    AnchorLayout,
    Priors,
    anchor_scores,
    best_candidates,
    cell_corners,
    decode_anchor_boxes,
    encode_anchor_boxes,
    split_anchor_map,
)

GRIDS = [(1, 1), (8, 8), (2, 5), (6, 3)]
SOFTPLUS_OF = {size: math.log(math.exp(size) - 1) for size in (0.5, 1.0, 2.0)}


def priors_of(box, grid):
    """Priors whose boxes matter only."""
    empty = torch.zeros(box.shape[:2])
    return Priors(box, empty, None, empty.unsqueeze(-1), grid)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("num_classes", [1, 3])
@pytest.mark.parametrize("has_quality", [False, True])
@pytest.mark.parametrize("num_anchors", [1, 4])
def test_channels_are_anchor_major_and_go_to_their_prior(grid, num_classes, has_quality, num_anchors):
    height, width = grid
    channels = 5 + has_quality + num_classes
    raw = torch.arange(2 * num_anchors * channels * height * width).float().view(2, -1, height, width)

    priors = split_anchor_map(raw, AnchorLayout(num_anchors, num_classes, has_quality))

    assert priors.grid == grid
    assert (priors.quality is not None) == has_quality
    for image in range(2):
        for anchor in range(num_anchors):
            for row in range(height):
                for column in range(width):
                    prior = (anchor * height + row) * width + column
                    values = raw[image, anchor * channels : (anchor + 1) * channels, row, column].tolist()
                    assert priors.box[image, prior].tolist() == values[:4]
                    assert priors.obj[image, prior].item() == values[4]
                    if has_quality:
                        assert priors.quality[image, prior].item() == values[5]
                    assert priors.cls[image, prior].tolist() == values[5 + has_quality :]


def test_the_layout_is_read_from_a_channels_last_map_too():
    raw = torch.randn(2, 3 * 7, 4, 5, generator=torch.Generator().manual_seed(0))
    layout = AnchorLayout(3, 1, True)

    plain = split_anchor_map(raw, layout)
    channels_last = split_anchor_map(raw.contiguous(memory_format=torch.channels_last), layout)

    assert torch.equal(plain.box, channels_last.box)
    assert torch.equal(plain.cls, channels_last.cls)


def test_cells_are_numbered_row_by_row():
    assert cell_corners((2, 3), torch.device("cpu")).tolist() == [[0, 0], [1, 0], [2, 0], [0, 1], [1, 1], [2, 1]]


def test_one_box_worked_by_hand():
    grid, anchors = (2, 4), torch.tensor([[0.1, 0.1], [0.2, 0.4]])
    wh_scale = torch.tensor([[1.0, 1.0], [1.5, 0.5]])
    box = torch.zeros(1, 2 * 2 * 4, 4)
    prior = (1 * 2 + 1) * 4 + 2  # second anchor, second row, third column
    box[0, prior] = torch.tensor([0.0, math.log(3), SOFTPLUS_OF[1.0], SOFTPLUS_OF[2.0]])

    decoded = decode_anchor_boxes(priors_of(box, grid), anchors, wh_scale)[0, prior]

    centre_x, centre_y = (0.5 + 2) / 4, (0.75 + 1) / 2
    width, height = 0.2 * 1.5 * 1, 0.4 * 0.5 * 2
    expected = [centre_x - width / 2, centre_y - height / 2, centre_x + width / 2, centre_y + height / 2]
    assert decoded.tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(
    "relative_size", [(0.8, 1.25), (0.001, 0.01), (30.0, 100.0)], ids=["as the anchor", "tiny", "huge"]
)
def test_decoding_reverses_encoding(grid, relative_size):
    """Every prior gets a box of its own whose centre lies in its cell."""
    generator = torch.Generator().manual_seed(sum(grid))
    height, width = grid
    anchors, wh_scale = torch.rand(3, 2, generator=generator) + 0.05, torch.rand(3, 2, generator=generator) + 0.5
    cells = torch.tensor([[column, row] for _ in anchors for row in range(height) for column in range(width)]).float()
    sizes = torch.stack([size for size in anchors * wh_scale for _ in range(height * width)])
    centre = (cells + 0.02 + 0.96 * torch.rand(cells.shape, generator=generator)) / torch.tensor([width, height])
    low, high = relative_size
    half = sizes * (low + (high - low) * torch.rand(cells.shape, generator=generator)) / 2
    boxes = torch.cat([centre - half, centre + half], dim=1)

    raw = encode_anchor_boxes(boxes, cells, sizes, grid)
    decoded = decode_anchor_boxes(priors_of(raw[None], grid), anchors, wh_scale)[0]

    assert raw.isfinite().all()
    assert torch.allclose(decoded, boxes, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("centre", "brought_to"), [((0.9, 0.3), (0.5, 0.3)), ((0.1, -0.2), (0.1, 0.0)), ((0.5, 0.5), (0.5, 0.5))]
)
def test_a_centre_outside_its_cell_is_encoded_at_the_border(centre, brought_to):
    half = torch.tensor([0.1, 0.1])
    box = torch.cat([torch.tensor(centre) - half, torch.tensor(centre) + half])[None]
    grid, anchors = (2, 2), torch.tensor([[0.2, 0.2]])

    raw = torch.zeros(1, 4, 4)
    raw[0, 0] = encode_anchor_boxes(box, torch.zeros(1, 2), anchors, grid)[0]
    decoded = decode_anchor_boxes(priors_of(raw, grid), anchors, torch.ones(1, 2))[0, 0]

    assert raw.isfinite().all()
    assert ((decoded[:2] + decoded[2:]) / 2).tolist() == pytest.approx(brought_to, abs=1e-5)


def test_no_box_is_encoded_to_nothing():
    assert encode_anchor_boxes(torch.zeros(0, 4), torch.zeros(0, 2), torch.zeros(0, 2), (2, 2)).shape == (0, 4)


OBJ, QUALITY, CLASSES = 0.8, 0.25, (0.5, 0.1)


@pytest.mark.parametrize(
    ("has_quality", "iou_aware", "power", "factor"),
    [
        (False, False, 1.0, OBJ),
        (True, False, 1.0, OBJ * QUALITY),
        (True, False, 0.5, OBJ * 0.5),
        (True, False, 0.0, OBJ),
        (True, True, 1.0, QUALITY),
        (True, True, 2.0, QUALITY**2),
        (True, True, 0.5, 0.5),
    ],
)
def test_scores(has_quality, iou_aware, power, factor):
    logits = {name: torch.logit(torch.tensor(value)).view(1, 1) for name, value in (("o", OBJ), ("q", QUALITY))}
    cls = torch.logit(torch.tensor(CLASSES)).view(1, 1, 2)
    priors = Priors(torch.zeros(1, 1, 4), logits["o"], logits["q"] if has_quality else None, cls, (1, 1))

    scores = anchor_scores(priors, iou_aware, power)

    assert scores.flatten().tolist() == pytest.approx([factor * p for p in CLASSES], rel=1e-5)


@pytest.mark.parametrize("num_classes", [1, 3])
@pytest.mark.parametrize(("num_priors", "count"), [(1, 5), (40, 1), (40, 17), (40, 120), (40, 1000)])
def test_best_candidates_agree_with_sorting_every_pair(num_priors, num_classes, count):
    generator = torch.Generator().manual_seed(num_priors + count)
    boxes = torch.rand(3, num_priors, 4, generator=generator)
    scores = torch.rand(3, num_priors, num_classes, generator=generator)

    found = best_candidates(boxes, scores, count)

    for image in range(3):
        pairs = [
            (scores[image, prior, label].item(), label, boxes[image, prior].tolist())
            for prior in range(num_priors)
            for label in range(num_classes)
        ]
        expected = sorted(pairs, reverse=True)[:count]
        rows = zip(found.scores[image].tolist(), found.labels[image].tolist(), found.boxes[image].tolist(), strict=True)
        assert list(rows) == expected
