"""The size that training pictures have while they are augmented (--cache-px), and the last epochs (--close-mosaic)."""

from __future__ import annotations

import typing
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import SMALL_RUN
from helpers import draw_people, train_args, write_yaml

import train
from uhd.augment import Pipeline
from uhd.augment.geometric import HorizontalFlip, RandomCrop, RandomScale, Translation
from uhd.augment.multi_image import CopyPaste, MixUp, Mosaic
from uhd.augment.photometric import RandomHSV
from uhd.checkpoint import read_checkpoint
from uhd.config import DataConfig, InputConfig, LabelsConfig, ResizeMode
from uhd.data import build_datasets, build_loader
from uhd.data.cache import ImageSpec, load_resized
from uhd.data.dataset import DetectionDataset
from uhd.data.resize import resize
from uhd.types import PADDING

PERSON = LabelsConfig().resolved()
STILL = Pipeline([RandomScale(prob=1.0)])
"""Asks for detail and changes nothing."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pictures of several sizes, PNG and JPEG."""
    folder = tmp_path_factory.mktemp("data")
    for i, size in enumerate([(90, 160), (300, 260), (33, 47), (64, 64)] * 2):
        pixels = np.random.default_rng(i).integers(0, 256, (size[0] // 8, size[1] // 8, 3), dtype=np.uint8)
        picture = cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_CUBIC)
        assert cv2.imwrite(str(folder / f"{i}{'.jpg' if i % 2 else '.png'}"), picture)
        (folder / f"{i}.txt").write_text("0 .5 .5 .4 .6\n" * (i % 3))
    return folder


def sets_of(folder: Path, transform: Pipeline | None, size=(32, 48), mode="opencv_inter_area", **flags):
    data = DataConfig(**{"image_dir": str(folder), "train_split": 0.5, "val_split": 0.5, "cache": "ram", **flags})
    return build_datasets(InputConfig(size, mode), PERSON, data, transform)


def all_of(dataset: DetectionDataset, epoch: int = 0):
    return dataset.__getitems__([(epoch, i) for i in range(len(dataset))])


# --- data sets ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", typing.get_args(ResizeMode))
def test_training_pictures_are_kept_larger_and_resized_at_the_end(folder: Path, mode: str) -> None:
    dataset, _ = sets_of(folder, STILL, mode=mode, cache_px=80)  # the next multiples of 32 and of 48
    images, targets = all_of(dataset)
    assert images.shape[1:] == (32, 48, 3)
    for i, path in enumerate(dataset.paths):
        stored = load_resized(path, ImageSpec((96, 96), mode, reduced=mode == "opencv_inter_area"))[0]
        assert np.array_equal(dataset[i].image, stored)
        assert np.array_equal(images[i], resize(stored, (32, 48), mode))
        real = targets.labels[i] != PADDING
        assert np.array_equal(targets.boxes[i][real], dataset.boxes[i])


@pytest.mark.parametrize(
    ("transform", "size", "px", "stored"),
    [
        pytest.param(STILL, (32, 48), 49, (64, 96), id="larger than both sides"),
        pytest.param(STILL, (32, 48), 48, (32, 48), id="as large as one"),
        pytest.param(STILL, (32, 48), 40, (32, 48), id="between them"),
        pytest.param(STILL, (32, 48), 1, (32, 48), id="smaller"),
        pytest.param(STILL, (48, 32), 128, (144, 128), id="default"),
        pytest.param(STILL, (64, 64), 128, (128, 128), id="whole multiple"),
        pytest.param(STILL, (48, 48), 97, (144, 144), id="one above a multiple"),
        pytest.param(Pipeline([RandomCrop(prob=0.01)]), (32, 32), 64, (64, 64), id="rare op"),
        pytest.param(Pipeline([RandomCrop(prob=0.0)]), (32, 32), 64, (32, 32), id="op that is off"),
        pytest.param(Pipeline([Mosaic(prob=1.0)]), (32, 32), 64, (64, 64), id="mosaic"),
        pytest.param(Pipeline([CopyPaste(prob=1.0)]), (32, 32), 64, (64, 64), id="copy and paste"),
        pytest.param(Pipeline([HorizontalFlip(prob=1.0)]), (32, 32), 64, (32, 32), id="flip"),
        pytest.param(Pipeline([MixUp(prob=1.0)]), (32, 32), 64, (32, 32), id="mixup"),
        pytest.param(Pipeline([RandomHSV(prob=1.0)]), (32, 32), 64, (32, 32), id="colours"),
        pytest.param(Pipeline([]), (32, 32), 64, (32, 32), id="no op"),
        pytest.param(None, (32, 32), 64, (32, 32), id="no augmentation"),
    ],
)
def test_pictures_are_larger_only_where_an_op_gains_by_it(
    folder: Path, transform: Pipeline | None, size: tuple[int, int], px: int, stored: tuple[int, int]
) -> None:
    dataset, validation = sets_of(folder, transform, size, cache_px=px)
    assert dataset[0].image.shape == (*stored, 3)
    assert all_of(dataset).images.shape[1:] == (*size, 3)
    assert all_of(validation).images.shape[1:] == (*size, 3)


@pytest.mark.parametrize("size", [(64, 64), (96, 96), (112, 80)])
def test_training_pictures_are_as_sharp_as_those_of_validation(folder: Path, size: tuple[int, int]) -> None:
    """What no op moves is, of pictures that are shrunk to it, within rounding twice of what one step makes."""
    dataset, _ = sets_of(folder, STILL, size, cache_px=128)
    images = all_of(dataset).images.numpy().astype(int)
    large = [i for i in range(len(dataset)) if dataset.sizes[i].min() >= 224]
    assert large
    for i in large:
        once = load_resized(dataset.paths[i], ImageSpec(size, "opencv_inter_area"))[0]
        assert np.abs(images[i] - once).max() <= 2


@pytest.mark.parametrize("cache", ["ram", "disk", "none"])
@pytest.mark.parametrize("mode", ["opencv_inter_area", "torch_nearest"])
def test_validation_pictures_are_as_ever(folder: Path, tmp_path: Path, cache: str, mode: str) -> None:
    for px in (1, 64, 200):
        _, validation = sets_of(folder, STILL, mode=mode, cache_px=px, cache=cache, cache_dir=str(tmp_path))
        images = all_of(validation).images
        for i, path in enumerate(validation.paths):
            expected = load_resized(path, ImageSpec((32, 48), mode))[0]
            assert np.array_equal(images[i], expected)
            assert np.array_equal(validation[i].image, expected)


def test_working_size_of_the_input_changes_nothing(folder: Path) -> None:
    """Without an op that gains by it, no size does; at 64, none of the ops sees anything else than before."""
    flip = Pipeline([HorizontalFlip(prob=0.5), RandomHSV(prob=0.7, value_gain=0.4)])
    plain, _ = sets_of(folder, flip, (64, 64), cache_px=64)
    for px in (1, 64, 300):
        other, _ = sets_of(folder, flip, (64, 64), cache_px=px)
        assert torch.equal(all_of(other).images, all_of(plain).images)
    still, _ = sets_of(folder, STILL, (64, 64), cache_px=64)
    for i, path in enumerate(still.paths):
        expected = load_resized(path, ImageSpec((64, 64), "opencv_inter_area", reduced=True))[0]
        assert np.array_equal(all_of(still).images[i], expected)


def test_zoom_shows_detail_of_the_larger_picture(folder: Path) -> None:
    """The middle of the picture at twice its size: from pictures of twice the size it is not blurred."""
    zoom = Pipeline([RandomScale(prob=1.0, scale_range=(2.0, 2.0))])
    detailed, coarse = (sets_of(folder, zoom, (32, 32), cache_px=px)[0] for px in (64, 32))
    for i in range(len(detailed)):
        middle = detailed[i].image[16:48, 16:48].astype(int)
        blurred, sharp = (np.abs(all_of(each).images[i].numpy() - middle).mean() for each in (coarse, detailed))
        assert sharp < 0.7 * blurred


def test_ops_behind_the_last_that_gains_see_the_small_picture(folder: Path) -> None:
    ops = [Translation(prob=1.0), HorizontalFlip(prob=1.0)]
    late, early = (sets_of(folder, Pipeline(order), cache_px=97)[0] for order in (ops, ops[::-1]))
    for i in range(len(late)):
        large = late[i].image
        mirrored_late = resize(large, (32, 48), "opencv_inter_area")[:, ::-1]
        mirrored_early = resize(np.ascontiguousarray(large[:, ::-1]), (32, 48), "opencv_inter_area")
        assert np.array_equal(all_of(late).images[i], mirrored_late)
        assert np.array_equal(all_of(early).images[i], mirrored_early)


@pytest.mark.parametrize("cache", ["ram", "disk"])
def test_workers_and_caches_change_nothing(folder: Path, tmp_path: Path, cache: str) -> None:
    pipeline = Pipeline([Mosaic(prob=0.8), RandomScale(prob=1.0, scale_range=(0.7, 1.5)), MixUp(prob=0.5)])
    plain, _ = sets_of(folder, pipeline, cache="none", cache_px=70)
    dataset, _ = sets_of(folder, pipeline, cache=cache, cache_dir=str(tmp_path), cache_px=70)
    expected = all_of(plain, epoch=2)
    loader = build_loader(dataset, len(dataset), 1, shuffle=False, device_is_cuda=False)
    loader.set_epoch(2)
    (batch,) = loader
    assert torch.equal(batch.images, expected.images)
    assert torch.equal(batch.targets.boxes, expected.targets.boxes)


# --- the program ----------------------------------------------------------------------------------


@pytest.fixture
def people(tmp_path: Path) -> Path:
    return draw_people(tmp_path / "data", 10, side=32)


@pytest.fixture
def run(run_train, people, tmp_path, monkeypatch):
    """Trains with a mosaic in every picture; gives the partners drawn in each epoch of this session."""
    monkeypatch.setattr("uhd.recorder.write_reports", lambda *args, **kwargs: None)
    config = write_yaml(tmp_path, "data_augment: {Mosaic: 1, HorizontalFlip: 0.5}")
    drawn, epochs = [], []
    draw, one_epoch = DetectionDataset.draw, train.train_one_epoch

    def counted_epoch(*args):
        before = len(drawn)
        stats = one_epoch(*args)
        epochs.append(len(drawn) - before)
        return stats

    monkeypatch.setattr(DetectionDataset, "draw", lambda self, rng: drawn.append(1) or draw(self, rng))
    monkeypatch.setattr(train, "train_one_epoch", counted_epoch)

    def start(*resume, **flags):
        flags = {"epochs": 3, "eval_interval": 3, "aug_config": config, **flags}
        epochs.clear()
        outcome = run_train(*(resume or train_args(people, tmp_path / "run", **flags)))
        assert outcome.code == 0, outcome.err
        return list(epochs)

    return start


EIGHT_PICTURES = 8 * 3
"""Partners of an epoch: the training set's eight pictures with three each."""


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({}, [EIGHT_PICTURES] * 3),
        ({"close_mosaic": 1}, [EIGHT_PICTURES, EIGHT_PICTURES, 0]),
        ({"close_mosaic": 2, "stop_epoch": 2}, [EIGHT_PICTURES, 0]),
        ({"close_mosaic": 7}, [0, 0, 0]),
    ],
)
def test_mosaic_is_closed_for_exactly_the_last_epochs(run, flags, expected) -> None:
    assert run(**flags) == expected


def test_resumed_run_closes_the_mosaic_where_it_would_have(run, tmp_path) -> None:
    assert run(close_mosaic=1, stop_epoch=1, cache_px=40) == [EIGHT_PICTURES]
    saved = read_checkpoint(tmp_path / "run/last.pt").config.data
    assert (saved.close_mosaic, saved.cache_px) == (1, 40)
    assert run("--resume", tmp_path / "run", "--num-workers", 0, "--cache", "ram", "--device", "cpu") == [
        EIGHT_PICTURES,
        0,
    ]
    assert read_checkpoint(tmp_path / "run/last.pt").config.data == saved


def test_working_size_reaches_the_training_set(run, monkeypatch) -> None:
    shapes = []
    build = train.build_datasets

    def build_and_note(*args, **kwargs):
        sets = build(*args, **kwargs)
        shapes.extend(dataset[0].image.shape[:2] for dataset in sets)
        return sets

    monkeypatch.setattr(train, "build_datasets", build_and_note)
    run(epochs=1, cache_px=50)
    run(epochs=1)
    assert shapes == [(64, 64), (32, 32), (128, 128), (32, 32)]


@pytest.mark.parametrize(
    ("flag", "value", "expected"),
    [
        *(("--cache-px", value, "expected 1 to") for value in ("0", "-1", "99999")),
        *(("--cache-px", value, "whole number") for value in ("x", "1.5", "64x64")),
        ("--close-mosaic", "-1", "at least 0"),
        ("--close-mosaic", "x", "whole number"),
    ],
)
def test_value_that_cannot_be_is_one_line(refused, yolo_folder, flag, value, expected) -> None:
    yolo_folder()
    refused("--image-dir", "data", f"{flag}={value}", mentions=(flag, value, expected))


@pytest.mark.parametrize(
    ("flags", "augmentation", "warning"),
    [
        ("--close-mosaic 1", "{HorizontalFlip: 1}", "--close-mosaic has no effect"),
        ("--close-mosaic 1", "{Mosaic: 1}", "no epoch of 1 mixes"),
        ("--cache-px 96", "{HorizontalFlip: 1}", "--cache-px has no effect"),
        ("--cache-px 96", "{RandomCrop: 1}", None),
        ("--cache-px 32", "{RandomCrop: 1}", None),
    ],
)
def test_settings_without_effect_are_warned_of(run_train, yolo_folder, tmp_path, flags, augmentation, warning):
    yolo_folder()
    config = write_yaml(tmp_path, f"data_augment: {augmentation}")
    small = [flag for flag in SMALL_RUN if flag != "--no-aug"]
    outcome = run_train(*small, "--image-dir", "data", "--aug-config", config, "--preview-aug", 1, *flags.split())
    warned = [line for line in outcome.warnings if "has no effect" in line or "mixes" in line]
    assert [warning in line for line in warned] == [True] * (warning is not None)


def test_a_bad_file_is_found_before_anything_is_drawn(run_train, tmp_path):
    config = write_yaml(tmp_path, "data_augment: {Mosaic: .nan}")
    outcome = run_train("--demo-data", 10, "--aug-config", config)
    assert outcome.code == 2
    assert not (tmp_path / "data").exists()
