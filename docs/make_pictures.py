"""Draws the README's picture from demonstration scenes: `uv run python -m docs.make_pictures`."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from uhd.config import DataConfig, InputConfig
from uhd.data.resize import resize
from uhd.data.synthetic import Scene, draw_scene
from uhd.eval.draw import Image, draw_boxes, sheet, write_whole

TARGET = Path(__file__).resolve().parent / "demo.jpg"
SCENES = 12
COLUMNS = 3
SCALE = 3
GAP = 6
JPEG_QUALITY = 82


def main() -> None:
    """Writes docs/demo.jpg: the first scenes that --demo-data draws with the default seed."""
    seed = DataConfig().seed
    pairs = [beside_input(draw_scene(np.random.default_rng([seed, index]))) for index in range(SCENES)]
    bgr = cv2.cvtColor(sheet(pairs, COLUMNS), cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    write_whole(TARGET, data.tobytes())


def beside_input(scene: Scene) -> Image:
    """The scene and, to its right, what the network gets of it, enlarged, with the truth boxes."""
    cfg = InputConfig()
    seen = draw_boxes(resize(scene.image, cfg.img_size, cfg.resize_mode), scene.boxes, scale=SCALE)
    height, width = scene.image.shape[:2]
    original = cv2.resize(
        scene.image, (width * seen.shape[0] // height, seen.shape[0]), interpolation=cv2.INTER_AREA
    ).astype(np.uint8)
    gap = np.zeros((seen.shape[0], GAP, 3), np.uint8)
    return np.concatenate([original, gap, seen], axis=1)


if __name__ == "__main__":
    main()
