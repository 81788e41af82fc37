"""Heat maps of centres: boxes to cells and back, and which cells are peaks."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import maximum_filter

from uhd.codec import center_scores, decode_centers, encode_centers
from uhd.config import LossConfig

GRIDS = [(1, 1), (8, 8), (4, 12), (7, 3), (1, 9), (9, 1)]
"""Rows and columns."""
PLAIN = LossConfig(loss_weight_hm=1.0, loss_weight_off=1.0, loss_weight_wh=1.0)


def seeded(*numbers):
    return torch.Generator().manual_seed(sum(number * 1000**i for i, number in enumerate(numbers)))


# --- boxes to cells and back ----------------------------------------------------------------------------


def maps_with(cells, offsets, sizes, grid):
    """Offsets and sizes [1,2,h,w], nan in every cell but these."""
    maps = torch.full((2, 2, grid[0] * grid[1]), torch.nan)
    maps[0, :, cells], maps[1, :, cells] = offsets.T, sizes.T
    return maps.view(2, 1, 2, *grid).unbind()


BOXES = {
    "inside": (0.21, 0.33, 0.47, 0.86),
    "whole picture": (0.0, 0.0, 1.0, 1.0),
    "one pixel of 64": (20 / 64, 41 / 64, 21 / 64, 42 / 64),
    "one pixel in the corner": (63 / 64, 63 / 64, 1.0, 1.0),
    "over one border": (-0.3, 0.2, 0.4, 0.6),
    "over all borders": (-0.5, -0.25, 1.75, 1.5),
    "centre on the last border": (0.75, 0.25, 1.25, 0.5),
    "centre on the first border": (-0.25, 0.25, 0.25, 0.5),
    "centre beyond the last border": (0.9, 1.0, 1.4, 1.25),
    "centre before the first border": (-0.5, -0.75, 0.25, 0.5),
    "no area": (0.5, 0.5, 0.5, 0.5),
    "a line": (0.0, 0.4, 1.0, 0.4),
}


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("box", BOXES.values(), ids=BOXES)
def test_decoding_reverses_encoding(box, grid):
    height, width = grid
    cells, offsets, sizes = encode_centers(torch.tensor([box]), grid)

    centre_x, centre_y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    column = min(max(math.floor(centre_x * width + 1e-6), 0), width - 1)
    row = min(max(math.floor(centre_y * height + 1e-6), 0), height - 1)
    assert (cells.dtype, cells.tolist()) == (torch.int64, [row * width + column])
    assert offsets[0].tolist() == pytest.approx([centre_x * width - column, centre_y * height - row], abs=1e-5)
    assert sizes[0].tolist() == pytest.approx([(box[2] - box[0]) * width, (box[3] - box[1]) * height], abs=1e-5)
    decoded = decode_centers(*maps_with(cells, offsets, sizes, grid))
    assert decoded.shape == (1, height * width, 4)
    assert decoded[0, cells[0]].tolist() == pytest.approx(box, abs=1e-6)


@pytest.mark.parametrize("grid", GRIDS)
def test_decoding_reverses_encoding_for_a_box_in_each_cell(grid):
    height, width = grid
    generator = seeded(height, width)
    places = torch.tensor([[column, row] for row in range(height) for column in range(width)]).float()
    centres = (places + 0.01 + 0.98 * torch.rand(places.shape, generator=generator)) / torch.tensor([width, height])
    half = torch.rand(places.shape, generator=generator)
    boxes = torch.cat([centres - half, centres + half], dim=1)

    cells, offsets, sizes = encode_centers(boxes, grid)

    assert cells.tolist() == list(range(height * width))
    assert ((offsets > 0) & (offsets < 1)).all()
    torch.testing.assert_close(decode_centers(*maps_with(cells, offsets, sizes, grid))[0], boxes, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("centre", "cell", "offset"),
    [
        ((0.0, 0.0), 0, (0.0, 0.0)),
        ((0.25, 0.5), 2 * 8 + 2, (0.0, 0.0)),  # on an edge: the cell to the right, and below
        ((0.5, 0.25), 1 * 8 + 4, (0.0, 0.0)),
        ((0.9375, 0.9375), 3 * 8 + 7, (0.5, 0.75)),
        ((1.0, 0.0), 7, (1.0, 0.0)),
        ((0.0, 1.0), 3 * 8, (0.0, 1.0)),
        ((1.0, 1.0), 3 * 8 + 7, (1.0, 1.0)),
        ((1.25, -0.5), 7, (3.0, -2.0)),
    ],
)
def test_cells_of_a_grid_of_4_by_8(centre, cell, offset):
    (x, y), (half_x, half_y) = centre, (0.125, 0.25)
    cells, offsets, sizes = encode_centers(torch.tensor([[x - half_x, y - half_y, x + half_x, y + half_y]]), (4, 8))
    assert cells.tolist() == [cell]
    assert offsets.tolist() == [list(offset)]
    assert sizes.tolist() == [[2.0, 2.0]]


def test_one_picture_decoded_by_hand():
    offsets, sizes = torch.zeros(2, 2, 2, 4), torch.zeros(2, 2, 2, 4)
    offsets[1, :, 1, 2] = torch.tensor([0.5, 0.25])
    sizes[1, :, 1, 2] = torch.tensor([3.0, 0.5])
    boxes = decode_centers(offsets, sizes)
    assert boxes.shape == (2, 8, 4)
    assert boxes[1, 6].tolist() == [2.5 / 4 - 1.5 / 4, 1.25 / 2 - 0.25 / 2, 2.5 / 4 + 1.5 / 4, 1.25 / 2 + 0.25 / 2]
    assert boxes[0, 6].tolist() == [0.5, 0.5, 0.5, 0.5]


@pytest.mark.parametrize("value", [-0.01, -3.0, -1e30, -torch.inf])
def test_a_size_below_0_is_0(value):
    sizes = torch.full((1, 2, 3, 5), 2.0)
    sizes[0, 0, 1, 1] = value
    sizes[0, :, 2, 4] = value
    boxes = decode_centers(torch.full((1, 2, 3, 5), 0.5), sizes)[0]
    extent = boxes[:, 2:] - boxes[:, :2]
    assert extent[6].tolist() == pytest.approx([0, 2 / 3], abs=1e-6)
    assert extent[14].tolist() == [0, 0]
    assert boxes[14, :2].tolist() == pytest.approx([4.5 / 5, 2.5 / 3])
    assert (extent >= 0).all()


def test_no_box_has_no_cell():
    cells, offsets, sizes = encode_centers(torch.zeros(0, 4), (3, 4))
    assert (cells.shape, offsets.shape, sizes.shape) == ((0,), (0, 2), (0, 2))
    assert cells.dtype == torch.int64


# --- peaks ----------------------------------------------------------------------------------------------


def peaks_of_scipy(heatmap):
    """Which values of [B,C,h,w] none of their eight neighbours surpasses."""
    values = heatmap.numpy()
    return values == maximum_filter(values, size=(1, 1, 3, 3), mode="constant", cval=-np.inf)


def assert_scores(heatmap):
    """The scores are the sigmoids of the peaks, and 0 elsewhere; returns how many peaks there are."""
    found = center_scores(heatmap)
    expected = np.where(peaks_of_scipy(heatmap), heatmap.sigmoid().numpy(), 0)
    batch, classes, height, width = heatmap.shape
    assert found.shape == (batch, height * width, classes)
    np.testing.assert_array_equal(found.transpose(1, 2).reshape(heatmap.shape).numpy(), expected)
    return int((expected > 0).sum())


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("grid", [*GRIDS, (2, 2), (16, 16)])
def test_peaks_are_those_of_a_maximum_filter(grid, classes):
    heatmap = torch.randn(4, classes, *grid, generator=seeded(*grid, classes)) * 4
    assert assert_scores(heatmap) >= 4 * classes


@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize("grid", [(8, 8), (3, 11), (1, 6)])
def test_all_of_a_plateau_are_peaks(grid, levels):
    heatmap = torch.randint(levels, (3, 2, *grid), generator=seeded(*grid, levels)).float() - 1
    count = assert_scores(heatmap)
    if levels == 1:
        assert count == heatmap.numel()


@pytest.mark.parametrize("place", [(0, 0), (0, 3), (4, 0), (4, 6), (2, 6), (2, 3)])
def test_a_peak_at_a_border_is_one(place):
    heatmap = torch.full((1, 1, 5, 7), -3.0)
    heatmap[0, 0, place[0], place[1]] = -2.0
    scores = center_scores(heatmap)[0, :, 0].view(5, 7)
    assert scores[place] > 0
    near = scores[max(place[0] - 1, 0) : place[0] + 2, max(place[1] - 1, 0) : place[1] + 2]
    assert near.count_nonzero() == 1


@pytest.mark.parametrize("scale", [40.0, 200.0, 1e6, 1e30])
def test_peaks_of_logits_whose_scores_are_all_0_or_1(scale):
    """The sigmoid of neighbours is the same number there; the peak is still one cell."""
    heatmap = torch.rand(2, 2, 6, 9, generator=seeded(1)) * scale + scale
    count = assert_scores(heatmap)
    assert 0 < count < heatmap.numel() / 3
    assert center_scores(heatmap).unique().tolist() == [0, 1]
    assert center_scores(heatmap - 10 * scale).max() <= math.exp(-100)


def test_classes_do_not_suppress_each_other():
    heatmap = torch.full((1, 2, 3, 3), -5.0)
    heatmap[0, 0, 1, 1], heatmap[0, 1, 1, 1], heatmap[0, 1, 1, 2] = 3.0, 1.0, 0.0
    scores = center_scores(heatmap)[0]
    assert scores[4].tolist() == pytest.approx([1 / (1 + math.exp(-3)), 1 / (1 + math.exp(-1))])
    assert scores[5].tolist() == [0, 0]
