"""Drawing and the pictures of a run, read back with OpenCV."""

import cv2
import numpy as np
import pytest

from uhd.eval.draw import GREEN, ORANGE, draw_boxes, save_png, sheet, write_whole
from uhd.eval.mean_ap import MeanAP
from uhd.eval.report import Sample, save_f1_curve, save_loss_curves, save_pr_curve, save_samples
from uhd.eval.samples import PaddedDetections, PaddedTruths

GRAY = np.full((8, 8, 3), 100, np.uint8)
NO_BOXES = np.zeros((0, 4), np.float32)
HALF = np.array([[0.25, 0.25, 0.75, 0.75]], np.float32)


def read(path):
    return cv2.imread(str(path), cv2.IMREAD_COLOR)[..., ::-1]


def is_color(image, color):
    return (image == color).all(axis=-1)


def evaluation(num_classes=1, found=True):
    """Of one picture with a truth of each class, found with score 0.75, and a false alarm of 0.25 beside each."""
    labels = np.arange(num_classes)[None]
    hits, misses = (np.tile(np.array(box, np.float32), (1, num_classes, 1)) for box in ((0, 0, 0.5, 0.5), (0, 0, 1, 1)))
    detections = PaddedDetections(
        np.concatenate([hits, misses], axis=1),
        np.array([[0.75, 0.25]]).repeat(num_classes, axis=1),
        np.tile(labels, 2) if found else np.full((1, 2 * num_classes), -1),
    )
    mean_ap = MeanAP(num_classes, (64, 64), 0.5)
    mean_ap.update(np.array([0]), np.array([[64, 64]]), detections, PaddedTruths(hits, labels))
    return mean_ap.compute()


# Rows of a mask 8x8: the outline of each box, its far edge inside the box.
@pytest.mark.parametrize(
    ("box", "rows", "columns"),
    [
        pytest.param((0, 0, 1, 1), (0, 7), (0, 7), id="whole picture"),
        pytest.param((0.25, 0.25, 0.75, 0.75), (2, 5), (2, 5), id="middle"),
        pytest.param((-1, -3, 0.5, 9), (0, 7), (0, 3), id="clipped"),
        pytest.param((0.5, 0.5, 0.5, 0.5), (4, 4), (4, 4), id="no area"),
        pytest.param((0.25, 0, 0.375, 1), (0, 7), (2, 2), id="one pixel wide"),
    ],
)
def test_outline_of_a_box(box, rows, columns):
    drawn = is_color(draw_boxes(GRAY, np.array([box], np.float32)), GREEN)
    expected = np.zeros((8, 8), bool)
    expected[rows[0] : rows[1] + 1, list(columns)] = True
    expected[list(rows), columns[0] : columns[1] + 1] = True
    assert (drawn == expected).all()


def test_the_picture_is_enlarged_before_the_box_is_drawn():
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    assert (draw_boxes(image, NO_BOXES, scale=3) == np.kron(image, np.ones((3, 3, 1), np.uint8))).all()
    drawn = is_color(draw_boxes(image, HALF, color=ORANGE, scale=10), ORANGE)
    assert drawn.sum() == 4 * 19
    assert drawn[10, 10:30].all()
    assert drawn[29, 10:30].all()


def test_the_given_picture_stays_as_it_is():
    image = GRAY.copy()
    image.flags.writeable = False
    draw_boxes(image, HALF, ["0.50"])
    assert (image == GRAY).all()


@pytest.mark.parametrize(
    "box", [(0, 0, 1, 1), (0.9, 0.9, 1, 1), (0, 0.98, 0.02, 1), (0.98, 0, 1, 0.02), (0.4, 0.4, 0.6, 0.6)]
)
def test_a_label_is_inside_the_picture(box):
    image = np.full((100, 100, 3), 100, np.uint8)
    boxes = np.array([box], np.float32)
    added = is_color(draw_boxes(image, boxes, ["0.98"]), GREEN) & ~is_color(draw_boxes(image, boxes), GREEN)
    assert added.sum() > 50
    assert not (draw_boxes(image, boxes, [""]) != draw_boxes(image, boxes)).any()


@pytest.mark.parametrize("texts", [[], ["a", "b"]])
def test_one_label_a_box(texts):
    with pytest.raises(ValueError, match="argument 2"):
        draw_boxes(GRAY, HALF, texts)


@pytest.mark.parametrize("scale", [0, -1])
def test_scale_is_at_least_one(scale):
    with pytest.raises(ValueError, match="scale"):
        draw_boxes(GRAY, HALF, scale=scale)


@pytest.mark.parametrize(
    ("count", "columns", "grid"), [(1, 1, (1, 1)), (1, 5, (1, 1)), (4, 2, (2, 2)), (5, 3, (2, 3)), (7, 1, (7, 1))]
)
def test_tiles_stand_row_by_row(count, columns, grid):
    tiles = [np.full((20, 30, 3), 100 + index, np.uint8) for index in range(count)]
    image = sheet(tiles, columns)
    assert image.shape == (grid[0] * 28 + 8, grid[1] * 38 + 8, 3)
    for index in range(count):
        top, left = 8 + index // grid[1] * 28, 8 + index % grid[1] * 38
        assert (image[top : top + 20, left : left + 30] == 100 + index).all()
    assert sum((image == 100 + index).all(axis=-1).sum() for index in range(count)) == count * 600


def test_tiles_of_several_sizes_stand_in_the_middle_of_their_cells():
    image = sheet([np.full((20, 30, 3), 100, np.uint8), np.full((10, 10, 3), 200, np.uint8)], 2)
    ys, xs = np.nonzero(is_color(image, (200, 200, 200)))
    assert (ys.min(), ys.max(), xs.min(), xs.max()) == (8 + 5, 8 + 14, 46 + 10, 46 + 19)


@pytest.mark.parametrize("caption", ["a", "a very long name of a picture, far too long for this cell.jpg", ""])
def test_captions_are_below_and_no_wider_than_the_tile(caption):
    tiles = [np.full((20, 60, 3), 100, np.uint8)] * 2
    without, image = sheet(tiles, 2), sheet(tiles, 2, [caption, ""])
    assert image.shape[0] > without.shape[0]
    written = image != image[0, 0]
    below = written[28:]
    assert below.any() == bool(caption)
    assert not below[:, 68:].any()
    assert not below[:, :7].any()


@pytest.mark.parametrize(("count", "columns"), [(0, 1), (0, 0), (2, 0)])
def test_a_sheet_needs_tiles_and_columns(count, columns):
    with pytest.raises(ValueError, match="sheet"):
        sheet([GRAY] * count, columns)


def test_one_caption_a_tile():
    with pytest.raises(ValueError, match="argument 2"):
        sheet([GRAY, GRAY], 2, ["a"])


def test_png_holds_rgb(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    save_png(tmp_path / "a.png", image)
    assert (read(tmp_path / "a.png") == image).all()
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    write_whole(path, b"old")

    def full_disk(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_no_folder_is_created(tmp_path):
    with pytest.raises(FileNotFoundError):
        save_png(tmp_path / "missing" / "a.png", GRAY)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("side", "scale"), [(8, 32), (64, 4), (96, 4)])
def test_samples_are_enlarged_with_truths_green_and_detections_orange(tmp_path, side, scale):
    image = np.full((side, side, 3), 100, np.uint8)
    other = np.array([[0, 0.5, 0.25, 1]], np.float32)
    save_samples(tmp_path / "samples.png", [Sample(image, HALF, other, np.array([0.5]), "one")])
    drawn = read(tmp_path / "samples.png")
    tile = drawn[8 : 8 + side * scale, 8 : 8 + side * scale]
    assert drawn.shape[1] == side * scale + 16
    middle = slice(side * scale // 4, side * scale * 3 // 4)
    # The detection's box crosses no edge of the truth's: all of the green frame is there.
    assert is_color(tile, GREEN)[middle, middle.start].mean() > 0.9
    assert is_color(tile, ORANGE)[-1, : side * scale // 4].all()


@pytest.mark.parametrize("count", [1, 5, 50])
def test_a_sheet_of_samples_without_boxes(tmp_path, count):
    save_samples(tmp_path / "samples.png", [Sample(GRAY, NO_BOXES, NO_BOXES, np.zeros(0))] * count)
    assert is_color(read(tmp_path / "samples.png"), (100, 100, 100)).sum() == count * 256 * 256


def test_samples_need_a_picture(tmp_path):
    with pytest.raises(ValueError, match="0 pictures"):
        save_samples(tmp_path / "samples.png", [])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("num_classes", "options"),
    [(1, {}), (3, {}), (30, {}), (1, {"found": False})],
)
@pytest.mark.filterwarnings("error")
def test_curves_of_an_evaluation(tmp_path, num_classes, options):
    result = evaluation(num_classes, **options)
    # A name is shown as it is: neither a formula nor hidden for its underscore.
    save_pr_curve(tmp_path / "pr.png", result, ["_$x$ \\frac{"] * num_classes)
    save_f1_curve(tmp_path / "f1.png", result)
    for name in ("pr.png", "f1.png"):
        assert min(read(tmp_path / name).shape[:2]) >= 400


def test_curves_before_anything_is_evaluated(tmp_path):
    nothing = MeanAP(2, (64, 64), 0.5).compute()
    save_pr_curve(tmp_path / "pr.png", nothing, ["person", "dog"])
    save_f1_curve(tmp_path / "f1.png", nothing)
    assert {path.name for path in tmp_path.iterdir()} == {"pr.png", "f1.png"}


def epoch(number, **values):
    losses = {"train/loss": 3.0 / number, "train/box": 1.0 / number, "val/loss": 4.0 / number}
    return {"epoch": number, "lr": 0.001, "seconds": 1.0, **losses, "val/mAP@0.5": 0.1 * number, **values}


def loss_curves(tmp_path, history):
    save_loss_curves(tmp_path / "loss.png", history)
    return read(tmp_path / "loss.png")


@pytest.mark.parametrize(
    "history",
    [
        pytest.param([], id="none"),
        pytest.param([{"epoch": 1}], id="nothing but the epoch"),
        pytest.param([epoch(1)], id="one epoch"),
        pytest.param([epoch(number) for number in range(1, 40)], id="many epochs"),
        pytest.param([epoch(1), epoch(2, **{"train/box": 0.0, "val/loss": -1.0})], id="zero and negative losses"),
        pytest.param([epoch(1, **{"train/loss": None, "train/box": None, "val/loss": None})], id="all null"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_loss_curves_of_any_history(tmp_path, history):
    height, width = loss_curves(tmp_path, history).shape[:2]
    assert height >= 400
    assert width >= 1000


@pytest.mark.parametrize("absent", [None, float("nan"), float("inf")])
def test_a_value_that_is_no_number_is_as_good_as_missing(tmp_path, absent):
    keys = ("train/box", "val/loss", "val/mAP@0.5", "lr")
    missing = {key: value for key, value in epoch(2).items() if key not in keys}
    expected = loss_curves(tmp_path, [epoch(1), missing, epoch(3)])
    assert (loss_curves(tmp_path, [epoch(1), epoch(2, **dict.fromkeys(keys, absent)), epoch(3)]) == expected).all()
    assert (loss_curves(tmp_path, [epoch(1), epoch(2), epoch(3)]) != expected).any()


@pytest.mark.parametrize(
    "key", ["train/quality", "val/box", "val/AP50_ge9px2", "val/AP50_9_64px2", "val/AP50_gt400px2"]
)
def test_every_figure_of_the_history_is_drawn(tmp_path, key):
    without = loss_curves(tmp_path, [epoch(1), epoch(2)])
    shown = loss_curves(tmp_path, [epoch(1, **{key: 0.25}), epoch(2, **{key: 0.5})])
    assert shown.shape == without.shape
    assert (shown != without).any()


def test_figures_that_are_no_losses_stay_out_of_the_loss_panel(tmp_path):
    without = loss_curves(tmp_path, [epoch(1), epoch(2)])
    others = {"val/precision": 0.5, "val/false_alarms_per_image": 30.0, "images_per_second": 900.0}
    assert (loss_curves(tmp_path, [epoch(1, **others), epoch(2, **others)]) == without).all()
