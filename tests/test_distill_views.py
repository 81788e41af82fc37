"""What networks say in a common form, and the pictures that a teacher's are made of."""

import numpy as np
import pytest
import torch
from helpers import make_config
from torchvision.ops import box_iou

from uhd.data.resize import resize
from uhd.distill.resize import resize_batch
from uhd.distill.terms import MATCHED, match_by_boxes
from uhd.distill.views import View, covers, resample, view_of, with_classes
from uhd.models import build_model

NETS = {
    "anchors": {},
    "anchors, quality": {"model": {"use_improved_head": True, "quality_power": 0.5}},
    "anchors, iou-aware": {"model": {"use_iou_aware_head": True}},
    "anchors, three classes": {"model": {"num_classes": 3}, "img_size": (32, 48)},
    "cnn, anchors": {"arch": "cnn", "model": {"use_anchor": True, "output_stride": 4, "use_improved_head": True}},
    "cnn, centres": {"arch": "cnn", "model": {"output_stride": 8, "num_classes": 2}, "img_size": (32, 48)},
    "grids": {"arch": "nanodet", "model": {"num_classes": 2}, "img_size": (32, 64)},
    "queries": {"arch": "transformer"},
    "queries, three classes": {"arch": "transformer", "model": {"num_classes": 3}},
}


def outputs(name):
    """A network's config, the network, and raw maps that differ from cell to cell."""
    torch.manual_seed(3)
    cfg = make_config(**NETS[name])
    model = build_model(cfg.model).eval()
    with torch.no_grad():
        preds = model(torch.rand(2, 3, *cfg.input.img_size))
    fixed = ("anchors", "wh_scale")
    return cfg, model, {name: value if name in fixed else torch.randn_like(value) for name, value in preds.items()}


def random_view(cells, batch=2, classes=2, seed=0):
    """A view of a grid of which every value is another."""
    torch.manual_seed(seed)
    count = cells[0] * cells[1] * cells[2]
    shape = (batch, count)
    scores, logits = torch.rand(*shape, classes), torch.randn(*shape, classes)
    return View(torch.rand(*shape, 4), scores, scores, logits, torch.randn(shape), torch.randn(shape), False, cells)


def parts(view):
    return {name: getattr(view, name) for name in ("boxes", "scores", "ranking", "cls", "obj", "quality")}


def check_same(view, other):
    for name, value in parts(view).items():
        assert torch.equal(value, parts(other)[name]), name
    assert (view.is_softmax, view.cells) == (other.is_softmax, other.cells)


# --- views --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETS)
def test_boxes_and_scores_are_those_that_decoding_starts_from(name):
    cfg, model, preds = outputs(name)
    view = view_of(preds, cfg.model)
    boxes, scores = model.candidates(preds)
    torch.testing.assert_close(view.boxes, boxes)
    if cfg.model.head == "center":
        # Decoding hides what is not a peak; a view shows it.
        peaks = scores > 0
        assert 0 < peaks.sum() < peaks.numel()
        torch.testing.assert_close(view.scores[peaks], scores[peaks])
        assert view.scores.min() > 0
    else:
        torch.testing.assert_close(view.scores, scores)


@pytest.mark.parametrize("name", NETS)
def test_a_view_has_what_its_head_has(name):
    cfg, _, preds = outputs(name)
    view = view_of(preds, cfg.model)
    count, classes = view.scores.shape[1:]
    assert classes == cfg.model.num_classes
    assert view.cls.shape == (2, count, classes + (cfg.model.head == "query"))
    assert view.is_softmax == (cfg.model.head == "query")
    for part, present in (("obj", cfg.model.head == "anchor"), ("quality", getattr(cfg.model, "has_quality", False))):
        value = getattr(view, part)
        assert (value is not None) == present
        assert value is None or value.shape == (2, count)
    if cfg.model.head == "gfl":
        assert view.cells is None
        assert count == 4 * 8 + 2 * 4 + 1 * 2
    elif cfg.model.head == "query":
        assert view.cells is None
    else:
        per_cell = cfg.model.num_anchors if cfg.model.head == "anchor" else 1
        grid = tuple(side // cfg.model.stride for side in cfg.input.img_size)
        assert view.cells == (per_cell, *grid)
        assert count == per_cell * grid[0] * grid[1]


def test_logits_of_a_prior_are_the_channels_of_its_anchor_and_cell():
    cfg, _, preds = outputs("anchors, quality")
    view = view_of(preds, cfg.model)
    raw = preds["txtywh_obj_quality_cls"]  # [2, 3 * 7, 4, 4]
    for anchor, row, column in ((0, 0, 0), (1, 2, 3), (2, 3, 1)):
        index = (anchor * 4 + row) * 4 + column
        _, _, _, _, obj, quality, cls = raw[1, anchor * 7 : anchor * 7 + 7, row, column]
        assert (view.obj[1, index], view.quality[1, index], view.cls[1, index, 0]) == (obj, quality, cls)


def test_low_precision_is_left_behind():
    cfg, _, preds = outputs("queries")
    view = view_of({name: value.bfloat16() for name, value in preds.items()}, cfg.model)
    assert {value.dtype for value in parts(view).values() if value is not None} == {torch.float32}


def test_take():
    view = random_view((1, 2, 3))
    index = torch.tensor([[4, 0, 0], [1, 5, 2]])
    taken = view.take(index)
    assert taken.cells is None
    for name, value in parts(view).items():
        expected = torch.stack([picture[rows] for picture, rows in zip(value, index, strict=True)])
        assert torch.equal(parts(taken)[name], expected), name


# --- other grids --------------------------------------------------------------------------------------


def cell_of(view, picture, anchor, row, column):
    """All that a view says of one candidate."""
    index = (anchor * view.cells[1] + row) * view.cells[2] + column
    return torch.cat([value[picture, index].reshape(-1) for value in parts(view).values()])


@pytest.mark.parametrize(
    ("cells", "grid"),
    [
        ((1, 4, 4), (2, 2)),
        ((3, 6, 4), (2, 2)),
        ((2, 4, 6), (4, 2)),
        ((2, 3, 4), (1, 1)),
    ],
)
def test_of_a_finer_grid_the_best_cell_speaks(cells, grid):
    view = random_view(cells)
    found = resample(view, grid)
    assert found.cells == (cells[0], *grid)
    down, across = cells[1] // grid[0], cells[2] // grid[1]
    for picture in range(2):
        for anchor, row, column in np.ndindex(cells[0], *grid):
            covered = [(row * down + y, column * across + x) for y in range(down) for x in range(across)]
            place = [(anchor * cells[1] + y) * cells[2] + x for y, x in covered]
            best = max(range(len(place)), key=lambda i: float(view.scores[picture, place[i]].max()))
            expected = cell_of(view, picture, anchor, *covered[best])
            assert torch.equal(cell_of(found, picture, anchor, row, column), expected)


@pytest.mark.parametrize(
    ("cells", "grid", "expected"),
    [
        *(((2, 4, 6), (4, 6), True), ((2, 4, 6), (2, 2), True), ((1, 4, 6), (4, 3), True), ((1, 8, 8), (1, 1), True)),
        *(((2, 2, 2), (4, 4), False), ((1, 5, 3), (2, 3), False), ((1, 4, 4), (3, 2), False)),
    ],
)
def test_only_a_grid_that_divides_the_cells_covers_them(cells, grid, expected):
    assert covers(random_view(cells), grid) is expected


def test_a_heat_map_is_ranked_by_its_peaks():
    cfg, model, preds = outputs("cnn, centres")
    view = view_of(preds, cfg.model)
    assert torch.equal(view.ranking, model.candidates(preds)[1])
    assert bool((view.ranking <= view.scores).all())
    assert torch.equal(view.weights, view.ranking.amax(dim=2))


def test_same_grid_is_the_same_view():
    view = random_view((3, 4, 2))
    check_same(resample(view, (4, 2)), view)


def test_some_classes_in_another_order():
    view = random_view((1, 2, 2), classes=4)
    found = with_classes(view, [2, 0])
    assert torch.equal(found.scores, torch.stack([view.scores[..., 2], view.scores[..., 0]], dim=2))
    assert torch.equal(found.cls, torch.stack([view.cls[..., 2], view.cls[..., 0]], dim=2))
    assert torch.equal(found.boxes, view.boxes)
    check_same(with_classes(view, [0, 1, 2, 3]), view)


def test_other_classes_of_a_softmax_are_background():
    cfg, _, preds = outputs("queries, three classes")
    view = view_of(preds, cfg.model)
    found = with_classes(view, [2, 0])
    shares = view.cls.softmax(dim=2)
    assert torch.equal(found.scores, view.scores[:, :, [2, 0]])
    assert torch.allclose(found.cls.softmax(dim=2)[..., :2], found.scores, atol=1e-6)
    assert torch.allclose(found.cls.softmax(dim=2)[..., 2], shares[..., 1] + shares[..., 3], atol=1e-6)


# --- candidates of the same objects -------------------------------------------------------------------


@pytest.mark.parametrize(("teachers", "students"), [(6, 9), (50, 12), (1, 1)])
def test_each_of_the_best_is_matched_to_the_nearest_box(teachers, students):
    teacher, student = random_view((1, 1, teachers), seed=1), random_view((1, 1, students), seed=2)
    ours, theirs = match_by_boxes(student, teacher)
    count = min(MATCHED, teachers)
    assert ours.shape == theirs.weights.shape == (2, count)
    for picture in range(2):
        order = teacher.weights[picture].argsort(descending=True).tolist()
        boxes = teacher.boxes[picture]
        alone = [
            number
            for rank, number in enumerate(order)
            if all(box_iou(boxes[better][None], boxes[number][None]) <= 0.5 for better in order[:rank])
        ]
        weighty = theirs.weights[picture] > 0
        assert int(weighty.sum()) == min(count, len(alone))
        for mine, number in zip(ours[picture][weighty].tolist(), alone, strict=False):
            box = boxes[number]
            assert box.tolist() in theirs.boxes[picture].tolist()
            costs = [
                float((box - mine_box).abs().sum() - box_iou(box[None], mine_box[None]).nan_to_num())
                for mine_box in student.boxes[picture]
            ]
            assert costs[mine] == pytest.approx(min(costs), abs=1e-6)


# --- pictures of another size -------------------------------------------------------------------------

MODES = ("opencv_inter_area", "opencv_inter_linear", "opencv_inter_nearest", "torch_bilinear", "torch_nearest")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("source", "size"),
    [
        ((32, 48), (16, 24)),
        ((64, 32), (16, 16)),
        ((40, 56), (24, 32)),
        ((33, 47), (20, 16)),
        ((48, 32), (32, 32)),
    ],
)
def test_pictures_are_resized_as_those_of_the_data(mode, source, size):
    image = np.random.default_rng(5).integers(0, 256, (*source, 3), dtype=np.uint8)
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    found = resize_batch(tensor, size, mode)
    assert found.shape == (1, 3, *size)
    levels = found[0].permute(1, 2, 0).numpy() * 255
    np.testing.assert_allclose(levels, levels.round(), atol=1e-3)
    difference = np.abs(levels - resize(image, size, mode))
    assert difference.max() < 1.01


@pytest.mark.parametrize("mode", MODES)
def test_pictures_of_the_size_stay_as_they_are(mode):
    images = torch.rand(2, 3, 8, 12)
    assert resize_batch(images, (8, 12), mode) is images
