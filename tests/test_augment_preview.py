"""--preview-aug: what each augmentation does, as pictures, instead of training."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from conftest import SMALL_RUN
from helpers import write_yaml

from uhd.augment import OPS

FLAGS = [flag for flag in SMALL_RUN if flag != "--no-aug"]
SEVERAL = "{RandomScale: {prob: 0.5, scale_range: [0.5, 2]}, Mosaic: 1, CLAHE: 0, HorizontalFlip: 0.5, MixUp: 1}"


@pytest.fixture
def preview(run_train, yolo_folder, tmp_path):
    """Previews the ops of a file's text; gives the pictures by their names."""

    def run(text, *flags):
        yolo_folder()
        config = write_yaml(tmp_path, f"data_augment: {text}")
        flags = flags or ("--preview-aug", 2)
        outcome = run_train(*FLAGS, "--image-dir", "data", "--aug-config", config, "--ckpt-out", "run", *flags)
        assert outcome.code == 0, outcome.err
        assert [path.name for path in (tmp_path / "run").iterdir()] == ["preview"]
        paths = sorted((tmp_path / "run/preview").iterdir())
        assert all(any(str(path.name) in line for line in outcome.out) for path in paths)
        return {path.name: cv2.imread(str(path)) for path in paths}

    return run


def test_sheet_for_each_op_in_file_order_and_one_of_all(preview) -> None:
    sheets = preview(SEVERAL)
    assert list(sheets) == [
        "01_RandomScale.png",
        "02_Mosaic.png",
        "03_HorizontalFlip.png",
        "04_MixUp.png",
        "pipeline.png",
    ]
    for name, sheet in sheets.items():
        green = (sheet[..., 1].astype(int) > sheet[..., 2].astype(int) + 50) & (sheet[..., 1] > sheet[..., 0] + 50.0)
        assert green.sum() > 500, f"{name} shows no box"


def test_every_op_can_be_previewed(preview) -> None:
    sheets = preview("{" + ", ".join(f"{name}: {{prob: 1}}" for name in OPS) + "}", "--preview-aug", 1)
    assert list(sheets) == [*(f"{i:02}_{name}.png" for i, name in enumerate(OPS, start=1)), "pipeline.png"]


def test_number_is_that_of_the_pictures_and_four_by_default(preview) -> None:
    heights = [
        preview("{Translation: {prob: 1, translate: 0.5}}", *flags)["pipeline.png"].shape[0]
        for flags in (("--preview-aug", 1), ("--preview-aug", 2), ("--preview-aug",), ("--preview-aug", 90))
    ]
    row = heights[1] - heights[0]
    # Of the twelve pictures nine or ten are trained with, of which those with a box are shown: four at the least.
    assert heights[2] - heights[0] == 3 * row
    assert heights[3] >= heights[2]


def test_strength_grows_along_a_row(preview) -> None:
    sheet = preview("{RandomBrightness: {prob: 1, factor_range: [0.2, 1]}}", "--preview-aug", 1)[
        "01_RandomBrightness.png"
    ]
    means = [part.mean() for part in np.array_split(sheet, 8, axis=1)[1:]]
    assert means == sorted(means)
    assert means[-1] > 1.2 * means[0]


def test_same_preview_twice(preview) -> None:
    first, second = preview(SEVERAL), preview(SEVERAL)
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_mosaic_that_is_never_closed_is_shown_in_every_epoch_of_a_short_run(preview) -> None:
    """The epochs of the last sheet are the first seven, however few the run has."""
    short, long = (
        preview("{Mosaic: 1}", "--preview-aug", 1, "--epochs", epochs)["pipeline.png"] for epochs in (1, 100)
    )
    assert np.array_equal(short, long)


@pytest.mark.parametrize(
    ("flags", "mentions"),
    [
        ("--aug --preview-aug 0", ("--preview-aug 0", "1 to 100")),
        ("--preview-aug -1", ("--preview-aug",)),
        ("--aug --preview-aug 101", ("--preview-aug 101", "1 to 100")),
        ("--preview-aug many", ("--preview-aug", "'many'")),
        ("--preview-aug --no-aug", ("--preview-aug", "--no-aug")),
        ("--preview-aug --inspect", ("--preview-aug", "--inspect")),
        ("--preview-aug --val-only --ckpt x.pt", ("--preview-aug", "--val-only")),
        ("--preview-aug --aug --aug-config none.yaml", ("--preview-aug",)),
        ("--preview-aug --aug --ckpt-out none.yaml", ("--ckpt-out", "none.yaml")),
    ],
)
def test_preview_that_cannot_be_is_refused(refused, yolo_folder, tmp_path, flags, mentions) -> None:
    yolo_folder()
    (tmp_path / "none.yaml").write_text("data_augment: {CLAHE: 0}")
    refused("--image-dir", "data", *flags.split(), mentions=mentions)


def test_sheets_of_earlier_ops_go(preview, tmp_path) -> None:
    preview("{HorizontalFlip: 1, ToGray: 1}")
    (tmp_path / "run/preview/notes.txt").touch()
    (tmp_path / "run/preview/02_ToGray.png").rename(tmp_path / "run/preview/17_Blur.png")
    (tmp_path / "run/preview/notes.txt").unlink()
    assert list(preview("{VerticalFlip: 1}")) == ["01_VerticalFlip.png", "pipeline.png"]


def test_an_op_is_shown_at_the_size_at_which_it_works(preview) -> None:
    before = preview("{GaussNoise: {prob: 1, var_limit: [900, 900]}, Translation: {prob: 1, translate: 0}}")
    behind = preview("{Translation: {prob: 1, translate: 0}, GaussNoise: {prob: 1, var_limit: [900, 900]}}")
    # Enlarged to one tile width, the pixels of the network's size are the larger ones.
    first, second = (
        np.abs(np.diff(sheets[name].astype(int), axis=1)).astype(bool).mean()
        for sheets, name in ((before, "01_GaussNoise.png"), (behind, "02_GaussNoise.png"))
    )
    assert second < 0.7 * first
