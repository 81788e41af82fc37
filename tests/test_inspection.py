from dataclasses import replace

import cv2
import numpy as np
import pytest

from uhd.augment import Pipeline, RemoveOutliers
from uhd.config import Config, DataConfig, InputConfig, LabelsConfig, UltraTinyODConfig
from uhd.data import build_datasets
from uhd.inspection import area_shares, inspect_data


def make_set(folder, labels):
    """Grey pictures with these label texts; the whole folder is the training set."""
    for i, text in enumerate(labels):
        assert cv2.imwrite(str(folder / f"{i:02}.png"), np.full((64, 64, 3), 90, np.uint8))
        (folder / f"{i:02}.txt").write_text(text)
    data = DataConfig(image_dir=str(folder), train_split=1, val_split=0, cache="ram", skip_bad_labels=True)
    return Config(data=data, labels=LabelsConfig(classes=(0, 4)).resolved(), model=UltraTinyODConfig(num_anchors=1))


def inspect(folder, cfg, transform=None):
    train, val = build_datasets(cfg.input, cfg.labels, cfg.data, transform)
    return inspect_data(train, val, cfg, folder / "out")


@pytest.mark.parametrize(
    ("areas", "shares"),
    [
        ([], [0, 0, 0, 0]),
        ([4], [1, 0, 0, 0]),
        ([8.999, 9, 63.9, 64, 399, 400, 1e9, 5000], [0.125, 0.25, 0.25, 0.375]),
    ],
)
def test_area_shares(areas, shares):
    assert area_shares(np.array(areas, dtype=float)).tolist() == shares


def test_text_says_what_the_data_holds(tmp_path):
    # A box of 32x16 pixels, one of 2x2, one clipped, one outside, one of another class, one bad line.
    lines = "0 .5 .5 .5 .25\n0 .5 .5 .03125 .03125\n0 1 .5 .5 .25\n0 3 3 .1 .1\n7 .5 .5 .1 .1\nx\n"
    cfg = make_set(tmp_path, [lines, "", ""])
    (tmp_path / "02.png").write_bytes(b"")
    text = inspect(tmp_path, cfg)
    for expected in (
        "training: 2 pictures, 3 boxes, 1 without a box",
        "class0: 3 boxes",
        "class4: 0 boxes",
        "class class4 has no box",
        "below 9: 33.3%, 9-64: 0.0%, 64-400: 33.3%, above 400: 33.3%",
        "1 pictures cannot be read",
        "02.png",
        "1 bad label lines",
        "1 boxes reach out",
        "1 boxes have no area",
        "1 boxes are of other classes than those chosen",
    ):
        assert expected in text
    assert "validation" not in text


@pytest.mark.parametrize(
    ("anchors", "expected"),
    [(None, "32.0x16.0; mean best IoU 1.000"), (((0.25, 0.25),), "16.0x16.0; mean best IoU 0.500")],
)
def test_anchors_and_their_fit(tmp_path, anchors, expected):
    cfg = make_set(tmp_path, ["0 .5 .5 .5 .25\n0 .2 .2 .02 .02\n"])
    cfg = replace(cfg, model=replace(cfg.model, anchors=anchors))
    pipeline = Pipeline([RemoveOutliers(prob=1, min_area=0.01)])
    assert f"anchors (width x height in network pixels): {expected}" in inspect(tmp_path, cfg, pipeline)


def test_sizes_are_in_pixels_of_the_input(tmp_path):
    cfg = replace(make_set(tmp_path, ["0 .5 .5 .5 .5\n"]), input=InputConfig(img_size=(32, 128)))
    text = inspect(tmp_path, cfg)
    width, height = (next(line for line in text.splitlines() if key in line) for key in ("  width", "  height"))
    assert set(width.split()[1:]) == {"64.0"}
    assert set(height.split()[1:]) == {"16.0"}


def test_sheet_shows_taught_boxes_green_and_ignored_ones_orange(tmp_path):
    cfg = make_set(tmp_path, ["0 .5 .5 .5 .5\n4 .1 .1 .1 .1\n"] * 3)
    inspect(tmp_path, cfg, Pipeline([RemoveOutliers(prob=1, min_area=0.1)]))
    picture = cv2.imread(str(tmp_path / "out" / "samples.png"))[..., ::-1].astype(int)
    green = (picture[..., 1] > picture[..., 0] + 50) & (picture[..., 1] > picture[..., 2] + 50)
    orange = (picture[..., 0] > picture[..., 1] + 50) & (picture[..., 1] > picture[..., 2] + 50)
    # Three frames of 96 and of 19 pixels a side (at three times the size), with text on the first.
    assert 3 * 4 * 90 < green.sum() < 3 * 4 * 90 * 3
    assert 3 * 4 * 15 < orange.sum() < 3 * 4 * 22
    assert cv2.imread(str(tmp_path / "out" / "box_sizes.png")).shape[0] > 300


@pytest.mark.parametrize("labels", [[], [""], ["0 .5 .5 .1 .1\n"]])
def test_few_or_no_boxes(tmp_path, labels):
    cfg = make_set(tmp_path, labels or ["0 .5 .5 .1 .1\n"])
    train, val = build_datasets(cfg.input, cfg.labels, cfg.data, None)
    text = inspect_data(train if labels else val, val, cfg, tmp_path / "out")
    assert ("training: 1 pictures" in text) == bool(labels)
    assert (tmp_path / "out" / "samples.png").exists() == bool(labels)
    assert (tmp_path / "out" / "box_sizes.png").exists()
