"""Which map of a CenterNet head costs how much: mAP with some of its maps replaced by the truth.

    python -m benchmarks.center_maps --ckpt runs/cnn/best.pt --val-list people/val.txt

At the cell of each true centre the true offset or size is put in place of the network's. "heat map" leaves exactly the
true centres, with the network's offsets and sizes.
"""

from __future__ import annotations

import uhd.process  # noqa: F401  # isort: skip - settings that torch reads when it is loaded

import argparse
import dataclasses

import torch

from uhd import codec
from uhd.boxes import suppress
from uhd.checkpoint import load_model
from uhd.data.build import build_datasets
from uhd.data.loader import BatchLoader, build_loader
from uhd.engine import MAP_DETECTIONS, to_input
from uhd.eval.mean_ap import MeanAP
from uhd.eval.samples import PaddedDetections, PaddedTruths
from uhd.models import Detector, Preds
from uhd.types import Targets

REPLACED = ((), ("offset",), ("size",), ("offset", "size"), ("heatmap",))
CERTAIN = 20.0
"""Logit of a cell that is, or is not, a centre."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ckpt", required=True, help="a checkpoint with a CenterNet head")
    parser.add_argument("--val-list", required=True, help="text file of pictures with YOLO labels")
    args = parser.parse_args()
    model, cfg = load_model(args.ckpt)
    data = dataclasses.replace(
        cfg.data, image_dir=args.val_list, train_list=None, val_list=None, train_split=0.0, val_split=1.0, cache="ram"
    )
    _, pictures = build_datasets(cfg.input, cfg.labels, data, need_train=False)
    loader = build_loader(pictures, 64, 0, shuffle=False, device_is_cuda=False)
    print("| true | mAP@0.5 |")
    print("| --- | --- |")
    for names in REPLACED:
        metric = MeanAP(len(cfg.labels.class_names), cfg.input.img_size, cfg.decode.conf_thresh)
        print(f"| {', '.join(names) or 'nothing'} | {score(model, loader, names, metric):.3f} |")


@torch.no_grad()
def score(model: Detector, loader: BatchLoader, names: tuple[str, ...], metric: MeanAP) -> float:
    """mAP@0.5 with the maps of these names replaced."""
    for images, targets in loader:
        preds = model(to_input(images, torch.device("cpu")))
        replace(preds, targets, names)
        boxes, scores = model.candidates(preds)
        found = suppress(codec.best_candidates(boxes, scores, 512), 0.001, None, MAP_DETECTIONS)
        metric.update(
            targets.image_ids.numpy(),
            targets.sizes.numpy(),
            PaddedDetections(found.boxes.numpy(), found.scores.numpy(), found.labels.numpy()),
            PaddedTruths(targets.boxes.numpy(), targets.labels.numpy()),
        )
    return metric.compute().map50


def replace(preds: Preds, targets: Targets, names: tuple[str, ...]) -> None:
    """Puts the truth into some maps."""
    heatmap = preds["heatmap"]
    image, row = torch.nonzero(targets.labels >= 0, as_tuple=True)
    cells, offsets, sizes = codec.encode_centers(targets.boxes[image, row], (heatmap.shape[2], heatmap.shape[3]))
    for name, true in (("offset", offsets), ("size", sizes)):
        if name in names:
            preds[name].flatten(2)[image, :, cells] = true
    if "heatmap" in names:
        heatmap.fill_(-CERTAIN)
        # Equal ones, so that of two centres side by side none suppresses the other.
        heatmap.flatten(2)[image, targets.labels[image, row], cells] = CERTAIN


if __name__ == "__main__":
    main()
