"""Where in a picture a network's strongest detection comes from: Grad-CAM, HiResCAM and EigenCAM, as pictures."""

from __future__ import annotations

import itertools
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uhd.checkpoint import load_model
from uhd.config import Config
from uhd.data.images import read_image
from uhd.data.limits import Limits
from uhd.data.listing import find_images
from uhd.data.resize import resize
from uhd.eval.draw import ORANGE, Image, draw_boxes, save_png, sheet
from uhd.models import Detector

Heat = NDArray[np.float32]
"""[h,w], 0 to 1."""

SIDE = 512
"""Pixels of a tile's longer side."""
_HEAT_SHARE = 0.5


class Explanation(NamedTuple):
    """The strongest detection: box [4] xyxy 0-1, score and label; and the heat of each method by its name."""

    box: NDArray[np.float32]
    score: float
    label: int
    heat: dict[str, Heat]


def grad_cam(features: Tensor, gradient: Tensor) -> Tensor:
    """Grad-CAM (arXiv:1610.02391) of features [B,F,h,w] and a score's gradient by them: [B,h,w], 0 to 1.

    Each channel counts by the mean of the gradient over it, so places alike have the same heat wherever they are; what
    speaks against the score is 0.
    """
    return _to_unit((gradient.mean(dim=(2, 3), keepdim=True) * features).sum(dim=1))


def hires_cam(features: Tensor, gradient: Tensor) -> Tensor:
    """HiResCAM (arXiv:2011.08891), of and to the same: each place counts by the gradient at that place.

    Of a detector, whose score comes from a few places, this tells which.
    """
    return _to_unit((gradient * features).sum(dim=1))


def eigen_cam(features: Tensor) -> Tensor:
    """EigenCAM (arXiv:2008.00299) of features [B,F,h,w]: [B,h,w], 0 to 1.

    The projection of each place on the first right singular vector of the places' features. Its sign is free; it is
    the one in which the places add up to more than 0.
    """
    rows = features.flatten(2).transpose(1, 2)
    first = torch.linalg.svd(rows, full_matrices=False).Vh[:, 0]
    heat = (rows @ first.unsqueeze(2)).squeeze(2)
    heat = torch.where(heat.sum(dim=1, keepdim=True) < 0, -heat, heat)
    return _to_unit(heat.view(len(features), *features.shape[2:]))


def _to_unit(heat: Tensor) -> Tensor:
    """What is above 0, divided by its largest value; all 0 where nothing is."""
    heat = heat.clamp(min=0)
    return heat / heat.amax(dim=(1, 2), keepdim=True).clamp(min=torch.finfo(heat.dtype).tiny)


def explain(model: Detector, image: Image) -> Explanation:
    """What the network, in evaluation mode, finds first in a picture [H,W,3] RGB uint8 of its input size, and why.

    Heat is of the `features` that the heads are built on; of several grids, the finest.
    """
    device = next(model.parameters()).device
    pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None].to(device).float() / 255
    with torch.enable_grad():
        # Frozen weights too have features that depend on the picture.
        preds = model(pixels.requires_grad_())
        boxes, scores = model.candidates(preds)
        best = int(scores[0].argmax())
        place, label = divmod(best, scores.shape[2])
        score = scores[0, place, label]
        # Of the logarithm, whose gradient does not vanish where the score is near 0; the picture is the same.
        (gradient,) = torch.autograd.grad(score.clamp(min=torch.finfo(score.dtype).tiny).log(), preds["features"])
    features = preds["features"].detach()
    heat = {
        "Grad-CAM": grad_cam(features, gradient),
        "HiResCAM": hires_cam(features, gradient),
        "EigenCAM": eigen_cam(features),
    }
    return Explanation(
        boxes[0, place].detach().cpu().numpy(),
        float(score.detach()),
        label,
        {name: each[0].cpu().numpy() for name, each in heat.items()},
    )


def draw_explanation(picture: Image, found: Explanation, class_names: Sequence[str]) -> Image:
    """The picture [H,W,3] RGB with the detection, beside it under each heat."""
    scale = SIDE / max(picture.shape[:2])
    size = tuple(max(round(side * scale), 1) for side in picture.shape[1::-1])
    large = cv2.resize(picture, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    text = f"{class_names[found.label]} {found.score:.2f}"
    tiles = [draw_boxes(large, found.box[None], [text], color=ORANGE)]
    tiles += [draw_boxes(_under_heat(large, heat), found.box[None], color=ORANGE) for heat in found.heat.values()]
    return sheet(tiles, len(tiles), ["strongest detection", *found.heat])


def _under_heat(picture: Image, heat: Heat) -> Image:
    """The picture mixed with the heat, from blue (0) to red (1)."""
    large = cv2.resize(heat, picture.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    colours = cv2.applyColorMap(np.rint(large * 255).astype(np.uint8), cv2.COLORMAP_JET)[..., ::-1]
    mixed: Image = cv2.addWeighted(picture, 1 - _HEAT_SHARE, np.ascontiguousarray(colours), _HEAT_SHARE, 0)
    return mixed


def explain_pictures(cfg: Config, checkpoint: Path, out_dir: Path) -> list[Path]:
    """Writes gradcam_NAME.png for the picture of --gradcam, or for each of its folder; returns the files.

    NAME has the folders between, and a number where another picture has the same.
    Raises ValueError that names a picture which cannot be read, OSError where out_dir cannot be written to.
    """
    assert cfg.run.gradcam
    source = Path(cfg.run.gradcam)
    pictures = find_images(source, "--gradcam") if source.is_dir() else [str(source)]
    model, _ = load_model(checkpoint)
    written: dict[Path, None] = {}
    for path in pictures:
        try:
            picture = read_image(path, limits=Limits.of(cfg.data))
        except ValueError as error:
            raise ValueError(f"--gradcam {error}") from None
        found = explain(model, resize(picture, cfg.input.img_size, cfg.input.resize_mode))
        # A folder's pictures have absolute paths, however it was typed.
        name = Path(os.path.relpath(path, source)).with_suffix("") if source.is_dir() else Path(source.stem)
        file = _unused(out_dir / f"gradcam_{'_'.join(name.parts)}.png", written)
        save_png(file, draw_explanation(picture, found, cfg.labels.class_names))
        written[file] = None
    return list(written)


def _unused(file: Path, written: Collection[Path]) -> Path:
    """The file, or where it is one of those written the next of NAME-2, NAME-3, ... that is not."""
    names = itertools.chain([file], (file.with_stem(f"{file.stem}-{number}") for number in itertools.count(2)))
    return next(name for name in names if name not in written)
