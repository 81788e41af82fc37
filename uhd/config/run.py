"""Sections of a run around the network: data, loss, optimisation, evaluation, and the session's own."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from uhd.config.options import Scope, Section, derived, flag_of, option
from uhd.config.values import NMS_SIGMA, Suppression, parse_optional_path

MAX_CACHE_PX = 2048
MAX_BACKGROUND_SHARE = 0.9
MAX_BACKGROUND_SHOWS = 4
"""How often an epoch shows a picture without a box at most."""
MAX_PIXELS = 2**28
"""The most that --max-pixels allows; OpenCV is told never to decode more (uhd.process)."""
MAX_BOXES = 1_000_000

MAX_PIXELS_HELP = "Most pixels of a picture; a larger one is left out before it is decoded."


@dataclass(frozen=True)
class AutoAnchorsConfig(Section):
    """How anchors are found."""

    scope: ClassVar[Scope] = "training"
    title: ClassVar[str] = "Auto-anchors"

    auto_anchors: bool = option(
        False,
        "Compute the anchors from the training boxes; implied where --anchors is not given.",
        heads=("anchor", "ssd"),
    )


@dataclass(frozen=True)
class DataConfig(Section):
    """Where pictures and labels come from and how they are prepared."""

    scope: ClassVar[Scope] = "training"
    title: ClassVar[str] = "Data"

    image_dir: str = option(
        "data/wholebody34/obj_train_data",
        "Folder of pictures (searched recursively) with YOLO txt labels beside them or in a labels/ twin "
        "of images/; or a text file that lists pictures.",
        metavar="DIR",
    )
    train_list: str | None = option(
        None,
        "Text file of training pictures or tar shards, one path a line, or tar shards themselves "
        "(shards-{000..099}.tar); with --val-list.",
        parse=parse_optional_path,
        metavar="FILE",
    )
    val_list: str | None = option(
        None, "The same of validation pictures; with --train-list.", parse=parse_optional_path, metavar="FILE"
    )
    annotations: str | None = option(
        None,
        "Labels of all pictures in the place of txt files: a COCO json, a csv (img_name,label,xmin,ymin,xmax,ymax), a "
        "folder of Pascal VOC XML files, or one of them.",
        parse=parse_optional_path,
        metavar="FILE|DIR",
    )
    train_split: float = option(0.8, "Share of the pictures for training.")
    val_split: float = option(0.2, "Share of the pictures for validation.")
    val_count: int = option(0, "Validate on the first N pictures only, in sorted order; 0 is all.", metavar="N")
    seed: int = option(42, "Seed of the split, the anchors, the initial weights and the augmentation.")
    skip_bad_labels: bool = option(False, "Drop malformed label lines and count them, instead of stopping.")
    demo_data: int | None = option(
        None,
        "Draw a data set of N small scenes with people-like figures under data/demo/ and train on it; sets "
        "every flag that is not typed to values that suit it.",
        bare=6000,
        metavar="N",
    )
    aug_config: str = option("uhd/aug.yaml", "YAML file of augmentations, applied in file order.", metavar="FILE")
    aug: bool = option(True, "Augment training pictures.")
    cache_px: int = option(
        128,
        "Side of the square that training pictures are kept at while they are augmented, so that a zoom or a crop "
        "shows real detail, rounded up to whole multiples of the input's sides; without effect where no augmentation "
        "gains by it, or at or below the input size.",
        metavar="PX",
    )
    close_mosaic: int = option(
        0, "Leave out Mosaic, MixUp and CopyPaste in the last N epochs; 0 is never.", metavar="N"
    )
    background_share: float = option(
        0.3,
        f"Show training pictures without a box again, each at most {MAX_BACKGROUND_SHOWS} times an epoch, until they "
        "are this share of it: fewer false alarms on empty scenes; 0 shows each picture once.",
        metavar="SHARE",
    )
    num_workers: int | None = option(
        None,
        "Processes that load and augment; 0 is none beside the main one. Default: the cores, at most 8.",
        scope="session",
    )
    cache: Literal["auto", "ram", "disk", "none"] = option(
        "auto",
        "Where decoded pictures are kept: disk (read as needed, reused by later runs), ram, none (decode every "
        "time; not for tar shards), auto (disk, or ram where --cache-dir cannot be written and memory is enough).",
        scope="session",
    )
    cache_dir: str | None = option(
        None, "Folder of the disk cache. Default: runs/cache.", scope="session", metavar="DIR"
    )
    max_pixels: int = option(100_000_000, MAX_PIXELS_HELP, scope="session", metavar="N")
    max_boxes: int = option(
        1000, "Most boxes of a picture; a label file with more of them is malformed.", scope="session", metavar="N"
    )

    def __post_init__(self) -> None:
        for name, value in (("--train-split", self.train_split), ("--val-split", self.val_split)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} {value}: expected a share between 0 and 1")
        if self.train_split + self.val_split > 1 + 1e-9:
            raise ValueError(f"--train-split {self.train_split} and --val-split {self.val_split}: together more than 1")
        if self.val_count < 0:
            raise ValueError(f"--val-count {self.val_count}: expected at least 0")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"--seed {self.seed}: expected at least 0 and below 2^63")
        if self.demo_data is not None and self.demo_data < 10:
            raise ValueError(f"--demo-data {self.demo_data}: expected at least 10 scenes")
        if not 1 <= self.cache_px <= MAX_CACHE_PX:
            raise ValueError(f"--cache-px {self.cache_px}: expected 1 to {MAX_CACHE_PX}")
        if self.close_mosaic < 0:
            raise ValueError(f"--close-mosaic {self.close_mosaic}: expected at least 0")
        if not 0 <= self.background_share <= MAX_BACKGROUND_SHARE:
            raise ValueError(
                f"--background-share {self.background_share}: expected a share from 0 to {MAX_BACKGROUND_SHARE}"
            )
        if self.num_workers is not None and self.num_workers < 0:
            raise ValueError(f"--num-workers {self.num_workers}: expected at least 0")
        check_max_pixels(self.max_pixels)
        if not 1 <= self.max_boxes <= MAX_BOXES:
            raise ValueError(f"--max-boxes {self.max_boxes}: expected 1 to {MAX_BOXES}")


def check_max_pixels(value: int) -> None:
    """ValueError for a --max-pixels out of range."""
    if not 1 <= value <= MAX_PIXELS:
        raise ValueError(f"--max-pixels {value}: expected 1 to {MAX_PIXELS}")


@dataclass(frozen=True)
class LossConfig(Section):
    """What is minimised."""

    scope: ClassVar[Scope] = "training"
    title: ClassVar[str] = "Loss"

    iou_loss: Literal["iou", "giou", "ciou"] = option("giou", "IoU flavour of the box loss.", heads=("anchor",))
    anchor_cls_loss: Literal["bce", "vfl"] = option(
        "bce",
        "Class loss: cross entropy of positives, or varifocal loss of all priors.",
        aliases=("--cls-loss-type",),
        heads=("anchor",),
    )
    loss_weight_box: float = option(5.0, "Weight of the box term; tinyssd: 1.", heads=("anchor", "ssd"))
    loss_weight_obj: float = option(1.0, "Weight of the objectness term.", heads=("anchor",))
    loss_weight_cls: float = option(1.0, "Weight of the class term.", heads=("anchor", "query", "gfl", "ssd"))
    loss_weight_quality: float = option(1.0, "Weight of the quality term.", heads=("anchor",))

    loss_weight_hm: float = option(1.0, "Weight of the heat map's term (CenterNet head).", heads=("center",))
    loss_weight_off: float = option(1.0, "Weight of the centres' offsets (CenterNet head).", heads=("center",))
    loss_weight_wh: float = option(0.1, "Weight of the boxes' sizes (CenterNet head).", heads=("center",))
    loss_weight_l1: float = option(5.0, "Weight of the boxes' coordinates (transformer).", heads=("query",))
    loss_weight_iou: float = option(2.0, "Weight of the boxes' GIoU (transformer, nanodet).", heads=("query", "gfl"))
    loss_weight_dfl: float = option(
        0.25, "Weight of the distributions of the sides' distances (nanodet).", heads=("gfl",)
    )

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if f.name.startswith("loss_weight_") and not 0 <= value < math.inf:
                raise ValueError(f"{flag_of(f.name)} {value}: expected a number >= 0")


@dataclass(frozen=True)
class AssignConfig(Section):
    """Which priors learn which truth."""

    scope: ClassVar[Scope] = "training"
    title: ClassVar[str] = "Assigner"

    anchor_assigner: Literal["legacy", "simota", "tal"] = option(
        "tal",
        "legacy: the best-fitting anchor of the centre's cell; simota: cheapest priors, as many as their IoUs "
        "add up to; tal: task-aligned, the ten best by score and IoU.",
        aliases=("--assigner",),
        heads=("anchor",),
    )
    simota_topk: int = option(
        10, "IoUs that are summed to the number of positives of a truth (simota).", heads=("anchor",)
    )

    def __post_init__(self) -> None:
        if self.simota_topk < 1:
            raise ValueError(f"--simota-topk {self.simota_topk}: expected at least 1")


@dataclass(frozen=True)
class OptimConfig(Section):
    """How the weights are learned."""

    scope: ClassVar[Scope] = "training"
    title: ClassVar[str] = "Optimisation"

    epochs: int = option(100, "Number of epochs; the schedule's length.")
    stop_epoch: int = option(0, "Stop after this epoch, on the schedule of --epochs; 0 is off.", scope="session")
    patience: int = option(0, "Stop after this many epochs without a better mAP; 0 is off.")
    batch_size: int = option(64, "Pictures at once, of all processes together.")
    grad_accum: int = option(1, "Batches whose gradients are averaged for one step.", metavar="N")
    sync_bn: bool = option(
        False, "Batch statistics over the GPUs of all processes instead of each one's own.", scope="session"
    )
    optimizer: Literal["adamw", "sgd"] = option("adamw", "AdamW, or SGD with Nesterov momentum 0.9.")
    lr: float = option(0.008, "Highest learning rate.")
    lr_schedule: Literal["cosine", "constant"] = option("cosine", "After the warm-up: cosine to 1 %, or constant.")
    warmup_epochs: float = option(1.0, "Epochs of linear warm-up.")
    weight_decay: float = option(0.5, "Weight decay; not on norms, biases and wh_scale.")
    grad_clip_norm: float = option(5.0, "Largest norm of the whole gradient; 0 is off.")
    use_amp: bool = option(False, "Mixed precision: float16 with a scaled loss on CUDA, bfloat16 on the CPU.")
    use_ema: bool = option(
        False, "Keep a moving average of the weights and use it for validation, checkpoints and export."
    )
    ema_decay: float = option(0.9998, "Decay of that average a step.")

    def __post_init__(self) -> None:
        at_least = {"epochs": 1, "stop_epoch": 0, "patience": 0, "batch_size": 1, "grad_accum": 1, "warmup_epochs": 0}
        at_least |= {"weight_decay": 0, "grad_clip_norm": 0}
        for name, minimum in at_least.items():
            value = getattr(self, name)
            if not minimum <= value < math.inf:
                raise ValueError(f"--{name.replace('_', '-')} {value}: expected at least {minimum}")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"--lr {self.lr}: expected a number > 0")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"--ema-decay {self.ema_decay}: expected at least 0 and below 1")


def check_thresholds(section: Section, *names: str) -> None:
    """ValueError for a threshold that is no number from 0 to 1; None is one that is not set."""
    for name in names:
        value = getattr(section, name)
        if value is not None and not 0 <= value <= 1:
            raise ValueError(f"{flag_of(name)} {value}: expected a number from 0 to 1")


def check_sigma(value: float | None) -> None:
    """ValueError for a --nms-sigma that is no finite number above 0; None is one that is not set."""
    if value is not None and not 0 < value < math.inf:
        raise ValueError(f"--nms-sigma {value}: expected a number above 0")


@dataclass(frozen=True)
class DecodeConfig(Section):
    """From raw maps to detections."""

    scope: ClassVar[Scope] = "training"
    title: ClassVar[str] = "Decoding"

    conf_thresh: float = option(
        0.3,
        "Score from which a detection counts in precision, recall and false alarms; mAP has its own, and the "
        "sample pictures show what scores as at the best F1 or higher.",
    )
    topk: int = option(50, "Detections kept a picture; mAP always looks at 100.")
    nms_iou: float = option(
        0.5, "Overlap (IoU) above which the lower-scored box of a class goes.", heads=("anchor", "gfl", "ssd")
    )
    nms: Suppression = option(
        "hard",
        "What becomes of boxes that overlap a better one of their class: hard: they go; soft: their scores fall with "
        "the overlap (Gaussian soft-NMS).",
        heads=("anchor", "gfl", "ssd"),
    )
    nms_sigma: float = option(
        NMS_SIGMA,
        "Width of soft suppression: a score falls by exp(-IoU^2 / sigma) for each better box.",
        heads=("anchor", "gfl", "ssd"),
    )
    pre_nms_topk: int = option(512, "Best candidates that enter the suppression.")

    def __post_init__(self) -> None:
        check_thresholds(self, "conf_thresh", "nms_iou")
        check_sigma(self.nms_sigma)
        for name in ("topk", "pre_nms_topk"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)}: expected at least 1")


@dataclass(frozen=True)
class EvalConfig(Section):
    """What is measured, and when."""

    scope: ClassVar[Scope] = "training"
    title: ClassVar[str] = "Evaluation"

    eval_interval: int = option(1, "Epochs between validations; the last epoch is always validated.", scope="session")
    map_conf_thresh: float = option(0.001, "Score from which detections count for mAP.")
    coco_eval: bool = option(False, "Also report COCO's AP 0.5:0.95, AP50, AP75 and AP by size.", scope="session")
    coco_per_class: bool = option(False, "With --coco-eval: COCO's AP of each class.", scope="session")

    def __post_init__(self) -> None:
        if self.eval_interval < 1:
            raise ValueError(f"--eval-interval {self.eval_interval}: expected at least 1")
        if not 0 <= self.map_conf_thresh <= 1:
            raise ValueError(f"--map-conf-thresh {self.map_conf_thresh}: expected a number from 0 to 1")


@dataclass(frozen=True)
class RunConfig(Section):
    """This session: files, device, what to do."""

    scope: ClassVar[Scope] = "session"
    title: ClassVar[str] = "Run"

    exp_name: str = option("default", "Name of the run; its files go to runs/NAME/.")
    ckpt_out: str | None = option(None, "Folder of the run, instead of runs/NAME.", metavar="DIR")
    log_dir: str | None = option(None, "Folder of the TensorBoard events, instead of the run's.", metavar="DIR")
    device: Literal["cpu", "cuda"] | None = option(None, "Device. Default: cuda where there is one.")
    resume: str | None = option(
        None, "Go on with this run: a checkpoint, or its folder.", parse=parse_optional_path, metavar="PATH"
    )
    ckpt: str | None = option(None, "Start from this checkpoint's weights.", parse=parse_optional_path, metavar="FILE")
    ckpt_non_strict: bool = option(False, "With --ckpt: typed model flags win, and weights that do not fit are left.")
    val_only: bool = option(False, "Validate the checkpoint of --ckpt or --resume, and stop.")
    inspect: bool = option(False, "Show what the data holds (text and pictures), and stop.")
    preview_aug: int | None = option(
        None,
        "Draw what each augmentation does to N training pictures, over the range of its strength, and what they do "
        "together; then stop.",
        bare=4,
        metavar="N",
    )
    gradcam: str | None = option(
        None,
        "Draw where in a picture, or in each of a folder, the strongest detection of the network of --ckpt or --resume "
        "comes from (Grad-CAM, HiResCAM, EigenCAM), and stop.",
        parse=parse_optional_path,
        metavar="IMAGE",
    )
    log_interval: int = option(10, "Steps between updates of the progress bar.")
    run_dir: str = derived("runs/default")

    def __post_init__(self) -> None:
        if self.preview_aug is not None and not 1 <= self.preview_aug <= 100:
            raise ValueError(f"--preview-aug {self.preview_aug}: expected 1 to 100 pictures")
        if self.log_interval < 1:
            raise ValueError(f"--log-interval {self.log_interval}: expected at least 1")
        name = Path(self.exp_name)
        if not name.name or name.is_absolute() or ".." in name.parts:
            raise ValueError(f"--exp-name {self.exp_name or repr('')}: expected the name of a folder below runs/")
