"""Paste cut-out targets on backgrounds, for a data set that train.py can be given: `--help` lists the flags."""

from __future__ import annotations

import uhd.process  # noqa: F401  # isort: skip - a setting that OpenCV reads when it is loaded

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from uhd.cli import parse_paste_args
from uhd.config import PasteConfig, read_names
from uhd.data.images import read_image
from uhd.data.labels import clip_boxes, read_labels
from uhd.data.paste import folder
from uhd.data.paste.generate import generate
from uhd.demo.console import log_to_console
from uhd.eval.draw import Image, draw_boxes, save_png, sheet
from uhd.program import exit_code_of

_COLUMNS = 6
_TILE_SIDE = 256

log = logging.getLogger("uhd")


def main(argv: Sequence[str] | None = None) -> int:
    """Does what the flags ask for; returns the exit code: 2 for a mistake of the user's, 130 and 143 for signals."""
    return exit_code_of("uhd.data.paste", lambda _: run(argv))


def run(argv: Sequence[str] | None) -> None:
    """Makes the pictures, and the sheet that shows some of them."""
    log_to_console()
    cfg = parse_paste_args(argv)
    totals = generate(cfg)
    left_out = f"; {totals.left_out} found no place" if totals.left_out else ""
    log.info("wrote %d pictures with %d targets to %s%s", cfg.count, totals.pasted, cfg.out, left_out)
    if cfg.preview:
        path = folder.preview_path(cfg)
        save_png(path, preview(cfg))
        log.info("wrote %s", path)


def preview(cfg: PasteConfig) -> Image:
    """A sheet of pictures spread evenly over the data set, as they lie on the disk, with their labels."""
    assert cfg.out
    names = read_names(str(Path(cfg.out) / folder.NAMES_NAME)) if cfg.class_per_folder else None
    tiles, captions = [], []
    for index in np.unique(np.linspace(0, cfg.count - 1, min(cfg.preview, cfg.count)).astype(int)).tolist():
        path = Path(cfg.out) / folder.picture_name(index, cfg)
        image, rows = read_image(path), read_labels(path.with_suffix(".txt")).rows
        factor = _TILE_SIDE / max(image.shape[:2])
        size = max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor))
        shown = cv2.resize(image, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_NEAREST)
        texts = [names[int(row[0])] for row in rows] if names else None
        tiles.append(draw_boxes(shown, clip_boxes(rows[:, 1:])[0], texts))
        captions.append(f"{path.name} {image.shape[1]}x{image.shape[0]}")
    return sheet(tiles, _COLUMNS, captions)


if __name__ == "__main__":
    sys.exit(main())
