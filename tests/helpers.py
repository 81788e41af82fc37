"""Small data sets, flags and settings shared by the tests of training as a whole."""

import json
import os
from pathlib import Path

import cv2
import numpy as np
import torch

from uhd.checkpoint import save_checkpoint
from uhd.config import (
    MODEL_CONFIGS,
    AssignConfig,
    Config,
    DataConfig,
    DistillConfig,
    InputConfig,
    LabelsConfig,
    LossConfig,
    OptimConfig,
)
from uhd.data import build_datasets, build_loader
from uhd.distill_task import build_distill_task, load_teachers
from uhd.engine import Progress
from uhd.models import build_model
from uhd.optim import TrainState
from uhd.task import build_task
from uhd.types import PADDING, Targets

CPU = torch.device("cpu")
ANCHORS = ((0.15, 0.3), (0.25, 0.45), (0.4, 0.7))
QUIET = Progress("test", 10, lambda: None)


def draw_people(folder, count, side=64, seed=0, names="{:03}"):
    """Pictures of one or two bright upright rectangles on dark noise, with their YOLO labels."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for i in range(count):
        image = rng.integers(0, 60, (side, side, 3), dtype=np.uint8)
        lines = []
        for half in range(1 + i % 2):
            # One in each half, so that no two touch; at least an eighth of the picture wide.
            w, h = (rng.uniform((0.13, 0.3), (0.35, 0.7)) * side).astype(int)
            x = rng.integers(0, side // 2 - w) + half * side // 2
            y = rng.integers(0, side - h)
            image[y : y + h, x : x + w] = rng.integers(150, 256, 3)
            lines.append(f"0 {(x + w / 2) / side} {(y + h / 2) / side} {w / side} {h / side}\n")
        assert cv2.imwrite(str(folder / f"{names.format(i)}.png"), image)
        (folder / f"{names.format(i)}.txt").write_text("".join(lines))
    return folder


def train_args(data, run_dir, **flags):
    """The command line of a tiny training run; a value of True or False is a switch."""
    chosen = {
        "arch": "ultratinyod",
        "image_dir": data,
        "ckpt_out": run_dir,
        "img_size": "32x32",
        "cnn_width": 4,
        "batch_size": 4,
        "epochs": 2,
        "num_workers": 0,
        "cache": "ram",
        "device": "cpu",
        **flags,
    }
    return to_args(chosen)


def to_args(flags):
    """Flags by field name to a command line; None leaves one out."""
    args = []
    for name, value in flags.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            args.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            args += [f"--{flag}", str(value)]
    return args


def metric_rows(run_dir):
    """The rows of a run's metrics.jsonl."""
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def targets_of(*pictures):
    """Targets from one list of (label, x1, y1, x2, y2) a picture."""
    most = max(1, *(len(rows) for rows in pictures))
    boxes = torch.zeros(len(pictures), most, 4)
    labels = torch.full((len(pictures), most), PADDING)
    for i, rows in enumerate(pictures):
        for j, (label, *box) in enumerate(rows):
            labels[i, j] = label
            boxes[i, j] = torch.tensor(box)
    sizes = torch.full((len(pictures), 2), 64)
    return Targets(boxes, labels, torch.arange(len(pictures)), sizes)


def padded_targets(images):
    """Targets of [(box, label)] lists, padded to the longest."""
    most = max(map(len, images), default=0)
    boxes, labels = torch.zeros(len(images), most, 4), torch.full((len(images), most), PADDING)
    for image, truths in enumerate(images):
        for row, (box, label) in enumerate(truths):
            boxes[image, row], labels[image, row] = torch.as_tensor(box), label
    return Targets(boxes, labels, torch.arange(len(images)), torch.full((len(images), 2), 64))


SMALLEST = {
    "cnn": {"cnn_width": 4},
    "nanodet": {
        "nanodet_width": 0.25,
        "nanodet_neck_channels": 8,
        "nanodet_aux_width": 32,
        "nanodet_aux_depth": 1,
    },
    "transformer": {"d_model": 8, "heads": 2, "layers": 1, "dim_feedforward": 8, "num_queries": 5},
    "ultratinyod": {"cnn_width": 4, "anchors": ANCHORS, "num_anchors": 3},
    "tinyssd": {"tinyssd_levels": 2, "num_anchors": 1, "anchors": ((0.3, 0.55), (0.35, 0.7))},
}
"""The model section of a tiny network of each architecture."""


def make_config(*, arch="ultratinyod", img_size=(32, 32), model=None, labels=None, distill=None, **sections):
    """A resolved Config of a tiny network; each argument holds a section's values."""
    loss, assign, optim, data = (sections.pop(name, None) for name in ("loss", "assign", "optim", "data"))
    assert not sections, sections
    section = {**SMALLEST[arch], **(model or {})}
    if section.get("use_anchor"):
        section = {"anchors": ANCHORS, "num_anchors": 3, **section}
    known = LabelsConfig(**(labels or {"num_classes": section.get("num_classes", 1)})).resolved()
    section["num_classes"] = len(known.class_names)
    return Config(
        input=InputConfig(img_size=img_size),
        labels=known,
        model=MODEL_CONFIGS[arch](**section).completed(img_size),
        data=DataConfig(cache="ram", num_workers=0, **(data or {})),
        loss=LossConfig(**(loss or {})),
        assign=AssignConfig(**(assign or {})),
        distill=DistillConfig(**(distill or {})),
        optim=OptimConfig(**{"warmup_epochs": 0, "lr_schedule": "constant", **(optim or {})}),
    )


def start(cfg, seed=0):
    """The task of a config and its fresh training state, on the CPU."""
    torch.manual_seed(seed)
    task = build_task(cfg, build_model(cfg.model))
    return task, TrainState(cfg.optim, task, CPU)


def write_teacher(folder, cfg, seed=1, *, shaken=True):
    """A checkpoint of a config's fresh network, and its path; shaken, it says something else of each cell."""
    folder.mkdir(parents=True, exist_ok=True)
    task, state = start(cfg, seed)
    with torch.no_grad():
        for name, value in task.student.named_parameters():
            if shaken and value.dim() < 2 and not name.endswith("wh_scale"):
                value.copy_(0.7 * torch.randn_like(value))
    return save_checkpoint(folder, cfg, state, {}, is_best=False)


def start_distilled(cfg, seed=0, pictures=8):
    """The task of a config with teachers in files, and its fresh training state; pictures: those of an epoch."""
    teachers = load_teachers(cfg)
    torch.manual_seed(seed)
    task = build_distill_task(cfg, build_model(cfg.model), teachers, pictures)
    return task, TrainState(cfg.optim, task, CPU)


def loader_of(folder, cfg, *, shuffle=True):
    """All pictures of a folder, without augmentation."""
    data = DataConfig(image_dir=str(folder), train_split=1, val_split=0, cache="ram")
    dataset = build_datasets(cfg.input, cfg.labels, data)[0]
    return build_loader(dataset, cfg.optim.batch_size, 0, shuffle=shuffle, device_is_cuda=False)


def same(a, b):
    """Whether two nests of dicts, lists, tensors and plain values are equal to the bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and (a == b or (a != a and b != b))  # nan is equal to nan here


def visible_checkpoints(run_dir):
    """Names of everything in a run folder that looks like a checkpoint, dangling links included."""
    return sorted(name for name in os.listdir(run_dir) if name.endswith(".pt"))


def write_yaml(folder: Path, text: str) -> Path:
    """An augmentation file of this text."""
    path = folder / "aug.yaml"
    path.write_text(text)
    return path
