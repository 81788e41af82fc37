"""Distances of sides on several grids to boxes and back, against numbers worked by hand."""

import pytest
import torch

from uhd import codec

ONE_HOT = 1e4
"""A logit beside which all others have no share."""


def maps_of(*grids, classes=1, batch=1):
    return [torch.zeros(batch, classes + 4 * codec.BINS, *grid) for grid in grids]


def test_places_are_numbered_grid_by_grid_and_row_by_row():
    places = codec.split_grids(maps_of((2, 4), (1, 2)), 1)
    first = [[(column + 0.5) / 4, (row + 0.5) / 2] for row in range(2) for column in range(4)]
    torch.testing.assert_close(places.points, torch.tensor([*first, [0.25, 0.5], [0.75, 0.5]]))
    torch.testing.assert_close(places.cells, torch.tensor([[0.25, 0.5]] * 8 + [[0.5, 1.0]] * 2))
    assert places.grids == [(2, 4), (1, 2)]


def test_channels_are_classes_and_then_the_sides_bin_by_bin():
    raw = torch.arange(2 * (3 + 32) * 2 * 2.0).reshape(2, 35, 2, 2)
    places = codec.split_grids([raw], 3)
    assert places.cls.shape == (2, 4, 3)
    assert places.sides.shape == (2, 4, 4, 8)
    assert torch.equal(places.cls[1, 2], raw[1, :3, 1, 0])
    assert torch.equal(places.sides[1, 2, 3], raw[1, 3 + 24 :, 1, 0])


def test_a_box_by_hand():
    """Column 1 of 4, row 0 of 2: distances 1, 0, 2.5 and 1 cells."""
    maps = maps_of((2, 4))
    sides = maps[0][0, 1:, 0, 1].view(4, 8)
    for side, bins in enumerate(([1], [0], [2, 3], [1])):
        sides[side, bins] = ONE_HOT
    places = codec.split_grids(maps, 1)
    box = codec.decode_distances(places.sides, places.points, places.cells)[0, 1]
    assert box.tolist() == pytest.approx([0.5 / 4, 0.5 / 2, 4 / 4, 1.5 / 2])


def test_equal_logits_are_the_mean_distance():
    places = codec.split_grids(maps_of((1, 1)), 1)
    box = codec.decode_distances(places.sides, places.points, places.cells)
    assert box.flatten().tolist() == pytest.approx([0.5 - 3.5, 0.5 - 3.5, 0.5 + 3.5, 0.5 + 3.5])


def test_boxes_through_both_directions():
    torch.manual_seed(0)
    places = codec.split_grids(maps_of((6, 8), (3, 4)), 1)
    distances = torch.rand(len(places.points), 4) * codec.FARTHEST
    low = places.points - distances[:, :2] * places.cells
    high = places.points + distances[:, 2:] * places.cells
    boxes = torch.cat([low, high], dim=1)
    found = codec.encode_distances(boxes, places.points, places.cells)
    torch.testing.assert_close(found, distances, rtol=1e-4, atol=1e-4)
    below = found.long()
    share = (found - below).unsqueeze(-1)
    one, next_one = (torch.nn.functional.one_hot(index, codec.BINS) for index in (below, below + 1))
    shares = (1 - share) * one + share * next_one
    again = codec.decode_distances(shares.clamp(min=1e-30).log(), places.points, places.cells)
    torch.testing.assert_close(again, boxes, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((0.6, 0.4, 0.9, 0.6), [0, 1, 4, 1]),  # the point is left of the box
        ((-3.0, 0.5, 5.0, 0.5), [6.9, 0, 6.9, 0]),  # farther than can be said, and without height
        ((0.5, 0.5, 0.5, 0.5), [0, 0, 0, 0]),
    ],
)
def test_distances_stay_in_their_range(box, expected):
    found = codec.encode_distances(torch.tensor([box]), torch.tensor([[0.5, 0.5]]), torch.tensor([[0.1, 0.1]]))
    assert found[0].tolist() == pytest.approx(expected, abs=1e-5)


def test_grids_are_found_by_their_names_and_sorted():
    preds = {"grid32": torch.ones(1), "features": torch.ones(1), "aux_grid8": torch.zeros(1).bfloat16()}
    preds |= {"grid8": torch.full((1,), 2.0), "grid16": torch.full((1,), 3.0)}
    assert [value.item() for value in codec.grids_in(preds)] == [2, 3, 1]
    (auxiliary,) = codec.grids_in(preds, codec.AUX)
    assert auxiliary.dtype == torch.float32
    assert codec.grids_in({"features": torch.ones(1)}) == []
    assert codec.grid_names((8, 16), codec.AUX) == ("aux_grid8", "aux_grid16")
