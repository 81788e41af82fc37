"""Partners of Mosaic, MixUp and CopyPaste: pictures of the training set, as they are stored, drawn by the seed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from coloured import colour_extents, colour_numbers, coloured_rectangles

import uhd.data.cache
from uhd.augment import Op, Pipeline
from uhd.augment.geometric import HorizontalFlip
from uhd.augment.multi_image import CopyPaste, MixUp, Mosaic
from uhd.config import DataConfig, InputConfig, LabelsConfig
from uhd.data import build_datasets, build_loader
from uhd.types import IGNORED, PADDING

ALL_OPS = (Mosaic(prob=0.7), CopyPaste(prob=0.8, sample_num=2), HorizontalFlip(prob=0.5), MixUp(prob=0.4))
SMALL = InputConfig(img_size=(32, 48))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fourteen pictures of 64x96, number i in colour 2i with an object of class 0, and in 2i+1 with one of class 5."""
    folder = tmp_path_factory.mktemp("data")
    for i in range(14):
        sample = coloured_rectangles([(5 + i, 10, 45 + i, 50), (70, 20 + i, 90, 45 + i)], (64, 96), 2 * i)
        assert cv2.imwrite(str(folder / f"{i:02}.png"), sample.image[..., ::-1])
        x1, y1, x2, y2 = sample.boxes.T
        rows = np.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], axis=1).tolist()
        lines = [f"{c} {' '.join(map(str, row))}\n" for c, row in zip((0, 5), rows, strict=True)]
        (folder / f"{i:02}.txt").write_text("".join(lines))
    return folder


def train_set(folder, ops=ALL_OPS, *, input_cfg=SMALL, classes=(0, 5), train_split=1.0, **flags):
    data = DataConfig(
        **{"image_dir": str(folder), "cache": "ram", "train_split": train_split, "val_split": 1 - train_split, **flags}
    )
    return build_datasets(input_cfg, LabelsConfig(classes=classes).resolved(), data, Pipeline(ops))[0]


def epochs_of(loader, epochs):
    for epoch in epochs:
        loader.set_epoch(epoch)
        yield from loader


def test_batches_do_not_depend_on_the_number_of_workers(folder: Path) -> None:
    dataset = train_set(folder)
    runs = []
    for workers in (0, 1, 4):
        loader = build_loader(dataset, 3, workers, shuffle=True, device_is_cuda=False)
        runs.append(list(epochs_of(loader, (0, 1))))
    for other in runs[1:]:
        for a, b in zip(runs[0], other, strict=True):
            assert torch.equal(a.images, b.images)
            for name in ("boxes", "labels", "image_ids", "sizes"):
                assert torch.equal(getattr(a.targets, name), getattr(b.targets, name))


def test_sample_depends_on_seed_epoch_and_picture_alone(folder: Path) -> None:
    first = train_set(folder, seed=3)
    alone = [first.__getitems__([(1, i)]).images[0] for i in range(14)]
    together = train_set(folder, seed=3).__getitems__([(1, i) for i in reversed(range(14))]).images
    assert all(torch.equal(a, b) for a, b in zip(alone, reversed(list(together)), strict=True))
    for other in (first.__getitems__([(2, i) for i in range(14)]), train_set(folder, seed=4).__getitems__([(1, 0)])):
        assert not torch.equal(other.images[0], alone[0])


@pytest.mark.parametrize(("cache", "decodes"), [("ram", False), ("disk", False), ("none", True)])
def test_partners_are_not_decoded_again(folder, tmp_path, monkeypatch, cache, decodes) -> None:
    dataset = train_set(folder, cache=cache, cache_dir=str(tmp_path))
    read = []
    real = uhd.data.cache.read_image_and_size
    monkeypatch.setattr(
        uhd.data.cache, "read_image_and_size", lambda path, *rest: read.append(path) or real(path, *rest)
    )
    dataset.__getitems__([(0, i) for i in range(14)])
    assert (len(read) > 14) == decodes
    assert bool(read) == decodes


@pytest.mark.parametrize("op", [Mosaic(prob=1.0), CopyPaste(prob=1.0)])
@pytest.mark.parametrize("classes", [(0,), (5,), (5, 0)])
def test_partners_have_the_chosen_classes_only(folder: Path, op: Op, classes: tuple[int, ...]) -> None:
    dataset = train_set(folder, [op], classes=classes, input_cfg=InputConfig(img_size=(64, 96)))
    images, targets = dataset.__getitems__([(epoch, i) for epoch in range(4) for i in range(14)])
    assert set(targets.labels.unique().tolist()) <= {*range(len(classes)), IGNORED, PADDING}
    checked = 0
    for image, boxes, labels in zip(images.numpy(), targets.boxes.numpy(), targets.labels.numpy(), strict=True):
        numbers = colour_numbers(image)
        for (x1, y1, x2, y2), label in zip((boxes * (96, 64, 96, 64)).round().astype(int), labels, strict=True):
            if label >= 0 and min(x2 - x1, y2 - y1) > 6:
                seen = numbers[y1:y2, x1:x2]
                assert classes[label] in np.array([0, 5])[seen[seen >= 0] % 2]
                checked += 1
    assert checked > 50


def test_mixed_partner_has_the_chosen_classes_only(folder: Path) -> None:
    dataset = train_set(folder, [MixUp(prob=1.0)], classes=(5,))
    targets = dataset.__getitems__([(0, i) for i in range(14)]).targets
    assert targets.labels.tolist() == [[0, 0]] * 14
    widths = (targets.boxes[..., 2] - targets.boxes[..., 0]).numpy() * 96
    np.testing.assert_allclose(widths, 20, atol=1e-3)


def test_partners_are_of_the_training_set_alone(folder: Path) -> None:
    dataset = train_set(
        folder, [Mosaic(prob=1.0)], train_split=0.5, input_cfg=InputConfig(img_size=(64, 96)), cache_px=1
    )
    own = {int(Path(path).stem) for path in dataset.paths}
    assert len(own) == 7
    images = dataset.__getitems__([(epoch, i) for epoch in range(20) for i in range(7)]).images.numpy()
    seen = {number // 2 for image in images for number in colour_extents(image)}
    assert seen == own


def test_set_of_one_picture_is_its_own_partner(folder: Path, tmp_path: Path) -> None:
    for name in ("03.png", "03.txt"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    images = (
        train_set(tmp_path, [replace(op, prob=1.0) for op in ALL_OPS]).__getitems__([(e, 0) for e in range(5)]).images
    )
    assert images.shape == (5, 32, 48, 3)


@pytest.mark.parametrize("closed_from", [0, 1, 3, 9])
def test_mixing_ends_with_the_epoch_that_closes_it(folder: Path, closed_from: int) -> None:
    mixing, closing, plain = (train_set(folder, cache_px=1) for _ in range(3))
    closing.close_mixing(closed_from)
    plain.transform = Pipeline([HorizontalFlip(prob=0.5)])
    for epoch in range(5):
        keys = [(epoch, i) for i in range(14)]
        expected = (plain if epoch >= closed_from else mixing).__getitems__(keys)
        assert torch.equal(closing.__getitems__(keys).images, expected.images)
        assert not torch.equal(mixing.__getitems__(keys).images, plain.__getitems__(keys).images)
