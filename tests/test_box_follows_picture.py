"""A box drawn around a colour still surrounds it after resize and augmentation, the whole way from files."""

import typing

import cv2
import numpy as np
import pytest

from uhd.augment import load_pipeline
from uhd.config import DataConfig, InputConfig, LabelsConfig, ResizeMode
from uhd.data import build_datasets


def write_coloured_rectangles(folder, suffix, sizes):
    """Grey pictures with one rectangle each of a pure hue, and its label; the pictures' (height, width) are given."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for i, (height, width) in enumerate(sizes):
        left, top = (int(rng.integers(0, side // 2)) for side in (width, height))
        right, bottom = (
            int(rng.integers(start + side // 4, side + 1)) for start, side in ((left, width), (top, height))
        )
        picture = np.full((height, width, 3), 90, np.uint8)
        picture[top:bottom, left:right] = np.roll((220, 20, 20), i)
        assert cv2.imwrite(str(folder / f"{i:03}{suffix}"), picture)
        centre = ((left + right) / 2 / width, (top + bottom) / 2 / height)
        (folder / f"{i:03}.txt").write_text(
            f"0 {centre[0]} {centre[1]} {(right - left) / width} {(bottom - top) / height}"
        )
    return folder


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("mode", typing.get_args(ResizeMode))
def test_box_surrounds_its_colour_after_resize_and_augmentation(tmp_path, mode, suffix):
    """The whole way from files; large .jpg are decoded at a fraction where the mode allows it."""
    sizes = [(480, 640), (64, 64), (40, 24), (300, 1000), (129, 257)] * 6
    folder = write_coloured_rectangles(tmp_path / "data", suffix, sizes)
    data = DataConfig(image_dir=str(folder), train_split=1, val_split=0, cache="ram")
    augmentation = load_pipeline("uhd/aug_uhd.yaml", [0])
    dataset = build_datasets(InputConfig(resize_mode=mode), LabelsConfig().resolved(), data, augmentation)[0]
    flipped = 0
    for epoch in range(4):
        images, targets = dataset.__getitems__([(epoch, index) for index in range(len(sizes))])
        for index, (image, boxes) in enumerate(zip(images, targets.boxes, strict=True)):
            rows, columns = np.nonzero(np.ptp(image.numpy(), axis=2) > 40)
            coloured = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            height, width = sizes[index]
            # Interpolation and JPEG's half-size colour planes spread a border over two of the picture's own pixels.
            spread = 1.3 + 2 * 64 / np.array([width, height] * 2)
            assert (np.abs(boxes[0].numpy() * 64 - coloured) <= spread).all()
            flipped += not np.array_equal(boxes[0], dataset.boxes[index][0])
    assert 0 < flipped < 4 * len(sizes)
