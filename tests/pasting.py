"""Cut-out targets and backgrounds for the tests of the paste generator."""

from pathlib import Path

import cv2
import numpy as np

from uhd.config import PasteConfig

MAGENTA = (255, 0, 255)
GREY = 120


def cutout_of(mask, color=MAGENTA):
    """An RGBA target [h,w,4] of one colour where mask [h,w] is set; what is invisible is white."""
    rgba = np.full((*mask.shape, 4), 255, np.uint8)
    rgba[mask > 0, :3] = color
    rgba[..., 3] = np.where(mask > 0, 255, 0)
    return rgba


def shape_mask(shape, height=120, width=80):
    """A shape that touches no border of [height,width]."""
    mask = np.zeros((height, width), np.uint8)
    left, top, right, bottom = 9, 7, width - 12, height - 5
    if shape == "bar":
        mask[top:bottom, left:right] = 1
    elif shape == "ellipse":
        center, axes = ((left + right) // 2, (top + bottom) // 2), ((right - left) // 2, (bottom - top) // 2)
        cv2.ellipse(mask, center, axes, 0, 0, 360, 1, -1)
    elif shape == "triangle":
        cv2.fillConvexPoly(mask, np.array([(left, bottom), (right, bottom), (left, top)]), 1)
    elif shape == "ell":
        mask[top:bottom, left : left + 14] = 1
        mask[bottom - 14 : bottom, left:right] = 1
    elif shape == "two parts":
        mask[top : top + 20, left : left + 20] = 1
        mask[bottom - 20 : bottom, right - 20 : right] = 1
    assert mask.any()
    return mask


def write_rgba(path: Path, rgba) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    code = cv2.COLOR_RGBA2BGRA if rgba.shape[2] == 4 else cv2.COLOR_RGB2BGR
    assert cv2.imwrite(str(path), cv2.cvtColor(rgba, code))
    return path


def write_sources(folder: Path, sizes=((90, 120), (120, 80), (100, 100))) -> tuple[Path, Path]:
    """Two targets, and backgrounds of these (height, width): their two folders."""
    write_rgba(folder / "targets/a.png", cutout_of(shape_mask("ellipse")))
    write_rgba(folder / "targets/b.png", cutout_of(shape_mask("triangle"), (0, 255, 0)))
    rng = np.random.default_rng(0)
    for i, size in enumerate(sizes):
        coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        write_rgba(folder / f"backgrounds/{i}.png", cv2.resize(coarse, size[::-1]))
    return folder / "targets", folder / "backgrounds"


def config(**options) -> PasteConfig:
    """Flags that paste one plain target at full strength; compose needs no folder."""
    plain = {"min_targets": 1, "max_targets": 1, "color_match": 0.0, "feather": 0.0, "rotation": 0.0, "flips": "none"}
    return PasteConfig(**{"targets": "t", "backgrounds": "b", "out": "o", **plain, **options})
