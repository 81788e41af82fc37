"""Every setting of a run: one frozen dataclass per concern, one field per command-line flag.

A field's default, type and help text stand here and nowhere else: `uhd.cli` makes the argparse
groups from them, the README tables are generated from them, and a checkpoint stores them as plain
values (`Config.to_dict`). This module imports the standard library only.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

Scope = Literal["weights", "training", "session"]
"""Where a value comes from when a checkpoint is loaded.

weights: fixes the network; always the checkpoint's. training: the checkpoint's on --resume and
--val-only unless typed. session: never the checkpoint's.
"""

ResizeMode = Literal[
    "opencv_inter_area", "opencv_inter_linear", "opencv_inter_nearest", "torch_bilinear", "torch_nearest"
]
RESIZE_MODE_ALIASES = {"keras_bilinear": "torch_bilinear", "keras_nearest": "torch_nearest"}

Size = tuple[int, int]
Pairs = tuple[tuple[float, float], ...]


def option(
    default: Any,
    help: str,
    *,
    parse: Callable[[str], Any] | None = None,
    metavar: str | None = None,
    aliases: tuple[str, ...] = (),
    scope: Scope | None = None,
    bare: Any = None,
) -> Any:
    """A dataclass field that is also a command-line flag.

    parse turns the typed text into the value (default: the field's type); aliases are further
    option strings; scope overrides the section's; bare is the value of the flag typed without one.
    """
    metadata = {
        "help": help,
        "parse": parse,
        "metavar": metavar,
        "aliases": aliases,
        "scope": scope,
        "bare": bare,
    }
    return field(default=default, metadata=metadata)


def derived(default: Any) -> Any:
    """A field without a flag: filled in while the run is set up, stored in the checkpoint."""
    return field(default=default, metadata={"derived": True})


# --- values that need parsing -------------------------------------------------------------------


def parse_size(text: str) -> Size:
    """`HxW` or `N` (square) to (height, width) in pixels."""
    parts = text.lower().split("x")
    if len(parts) == 1:
        parts *= 2
    if len(parts) != 2 or not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise ValueError(f"{text!r} is not a size; expected HxW in pixels, such as 64x64")
    return int(parts[0]), int(parts[1])


def parse_classes(text: str) -> tuple[int, ...]:
    """`0,2,5` to class ids, in the order typed."""
    try:
        ids = tuple(int(part) for part in text.split(","))
    except ValueError:
        ids = ()
    if not ids or min(ids) < 0:
        raise ValueError(f"{text!r} is not a list of class ids; expected integers >= 0 such as 0,2,5")
    if len(set(ids)) < len(ids):
        raise ValueError(f"{text!r} names a class id twice")
    return ids


def parse_anchors(text: str) -> Pairs | None:
    """`w,h w,h` (spaces or `;` between pairs) to normalised anchor sizes; empty text is None."""
    pairs = []
    for item in text.replace(";", " ").split():
        try:
            width, height = (float(part) for part in item.split(","))
        except ValueError:
            raise ValueError(f"{item!r} is not an anchor; expected w,h pairs such as '0.1,0.2 0.3,0.6'") from None
        if not (0 < width <= 2 and 0 < height <= 2):
            raise ValueError(f"anchor {item!r} is outside 0..2; anchors are normalised by the picture's size")
        pairs.append((width, height))
    return tuple(pairs) or None


def parse_resize_mode(text: str) -> str:
    """A resize mode under its own name."""
    return RESIZE_MODE_ALIASES.get(text, text)


def parse_activation(text: str) -> str:
    """An activation under its own name."""
    return "swish" if text == "silu" else text


def parse_optional_path(text: str) -> str | None:
    """A path, or None for the empty text that recipes write for "none"."""
    return text or None


# --- sections -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class InputConfig:
    """What the network is fed with."""

    scope: ClassVar[Scope] = "weights"
    title: ClassVar[str] = "Input"

    img_size: Size = option((64, 64), "Input size HxW in pixels.", parse=parse_size, metavar="HxW")
    resize_mode: ResizeMode = option(
        "opencv_inter_area",
        "How a picture is brought to the input size; part of the model, so validation, export and demo "
        "obey it. Also as bare flags (--opencv_inter_nearest); keras_bilinear and keras_nearest are "
        "other names of torch_bilinear and torch_nearest.",
        parse=parse_resize_mode,
    )


@dataclass(frozen=True)
class LabelsConfig:
    """Which classes are detected and what they are called."""

    scope: ClassVar[Scope] = "weights"
    title: ClassVar[str] = "Labels"

    classes: tuple[int, ...] | None = option(
        None,
        "Class ids to keep, mapped to 0..C-1 in this order. Default: every id of --names, or "
        "0..N-1 of --num-classes, else 0.",
        parse=parse_classes,
        metavar="0,2,5",
    )
    names: str | None = option(
        None, "File of class names, one a line in the order of the ids.", parse=parse_optional_path, metavar="FILE"
    )
    num_classes: int | None = option(None, "Number of classes in the label files, where --names is not given.")
    class_names: tuple[str, ...] = derived(())

    def __post_init__(self) -> None:
        if self.num_classes is not None and self.num_classes < 1:
            raise ValueError(f"--num-classes {self.num_classes}: expected at least 1")

    def resolved(self) -> LabelsConfig:
        """With `classes` and `class_names` filled in; reads the names file.

        Raises ValueError when the file is missing or empty, or an id has no name in it.
        """
        listed = _read_names(self.names) if self.names else None
        count = len(listed) if listed else self.num_classes
        if listed and self.num_classes not in (None, len(listed)):
            raise ValueError(f"--num-classes {self.num_classes} but --names {self.names} lists {len(listed)} names")
        classes = self.classes or tuple(range(count or 1))
        beyond = [index for index in classes if count is not None and index >= count]
        if beyond:
            source = f"--names {self.names}" if listed else "--num-classes"
            raise ValueError(f"--classes names class {beyond[0]}, but {source} has only {count} classes")
        if listed:
            names = tuple(listed[index] for index in classes)
        elif classes == (0,):
            names = ("person",)
        else:
            names = tuple(f"class{index}" for index in classes)
        return dataclasses.replace(self, classes=classes, class_names=names)


def _read_names(path: str) -> list[str]:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise ValueError(f"--names {path}: cannot be read ({reason}); expected one name a line") from None
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise ValueError(f"--names {path}: no name in it; expected one a line")
    return names


ARCHS = ("cnn", "transformer", "ultratinyod")
BUILT_ARCHS = ("ultratinyod",)


@dataclass(frozen=True)
class ModelConfig:
    """What every architecture has."""

    scope: ClassVar[Scope] = "weights"
    title: ClassVar[str] = "Model"

    arch: Literal["cnn", "transformer", "ultratinyod"] = option(
        "ultratinyod", "Architecture. cnn and transformer are not built yet."
    )
    activation: Literal["relu", "swish"] = option(
        "swish", "Activation function; silu is another name of swish.", parse=parse_activation
    )
    use_batchnorm: bool = option(False, "Batch normalisation after each convolution.")
    num_classes: int = derived(1)


@dataclass(frozen=True)
class AnchorModelConfig(ModelConfig):
    """Nets with an anchor head."""

    title: ClassVar[str] = "Anchor head"

    cnn_width: int = option(32, "Channels of the stem; all other widths are multiples of it.")
    output_stride: Literal[4, 8, 16] | None = option(
        None, "Pixels per cell of the output grid. Default: 8 for ultratinyod."
    )
    num_anchors: int = option(3, "Number of anchors a cell, where they are computed.")
    anchors: Pairs | None = option(
        None,
        "Anchor sizes as normalised w,h pairs; computed from the training boxes where not given.",
        parse=parse_anchors,
        metavar='"w,h w,h"',
    )
    use_improved_head: bool = option(
        False, "Quality branch (predicted IoU), learnable anchor scale and a residual context block."
    )
    quality_power: float = option(1.0, "Exponent of the quality in the score.", scope="training")

    def __post_init__(self) -> None:
        if self.cnn_width < 1:
            raise ValueError(f"--cnn-width {self.cnn_width}: expected at least 1")
        if self.num_anchors < 1:
            raise ValueError(f"--num-anchors {self.num_anchors}: expected at least 1")
        if not 0 <= self.quality_power < math.inf:
            raise ValueError(f"--quality-power {self.quality_power}: expected a number >= 0")


@dataclass(frozen=True)
class UltraTinyODConfig(AnchorModelConfig):
    """UltraTinyOD."""

    title: ClassVar[str] = "UltraTinyOD"

    arch: Literal["ultratinyod"] = "ultratinyod"
    utod_residual: bool = option(False, "Residual connections around the last two stages.")
    use_iou_aware_head: bool = option(
        False, "Twice as deep box, quality and class branches; the score is quality x class."
    )
    utod_head_ese: bool = option(False, "Channel attention (eSE) before the branches.", aliases=("--use-head-ese",))
    utod_context_rfb: bool = option(False, "Receptive-field block before the branches.")
    utod_context_dilation: int = option(2, "Dilation of that block's 3x3 convolution.")
    utod_large_obj_branch: bool = option(False, "A branch at half resolution for large objects.")
    utod_large_obj_depth: int = option(1, "Blocks in that branch.")
    utod_large_obj_ch_scale: float = option(1.0, "Channels of that branch, relative to the head's.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.utod_context_dilation < 1:
            raise ValueError(f"--utod-context-dilation {self.utod_context_dilation}: expected at least 1")
        if self.utod_large_obj_depth < 0:
            raise ValueError(f"--utod-large-obj-depth {self.utod_large_obj_depth}: expected at least 0")
        if not 0 < self.utod_large_obj_ch_scale < math.inf:
            raise ValueError(f"--utod-large-obj-ch-scale {self.utod_large_obj_ch_scale}: expected a number > 0")

    @property
    def stride(self) -> int:
        """Pixels per cell of the output grid."""
        return self.output_stride or 8

    @property
    def has_quality(self) -> bool:
        """Whether there is a quality branch."""
        return self.use_improved_head or self.use_iou_aware_head


MODEL_CONFIGS: dict[str, type[ModelConfig]] = {"ultratinyod": UltraTinyODConfig}


@dataclass(frozen=True)
class AutoAnchorsConfig:
    """How anchors are found."""

    scope: ClassVar[Scope] = "training"
    title: ClassVar[str] = "Auto-anchors"

    auto_anchors: bool = option(
        False, "Compute the anchors from the training boxes; implied where --anchors is not given."
    )


@dataclass(frozen=True)
class DataConfig:
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
        "Text file of training pictures, one path a line; with --val-list.",
        parse=parse_optional_path,
        metavar="FILE",
    )
    val_list: str | None = option(
        None, "Text file of validation pictures; with --train-list.", parse=parse_optional_path, metavar="FILE"
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
        bare=3000,
        metavar="N",
    )
    aug_config: str = option("uhd/aug.yaml", "YAML file of augmentations, applied in file order.", metavar="FILE")
    aug: bool = option(True, "Augment training pictures.")
    num_workers: int | None = option(
        None,
        "Processes that load and augment; 0 is none beside the main one. Default: the cores, at most 8.",
        scope="session",
    )
    cache: Literal["auto", "ram", "disk", "none"] = option(
        "auto",
        "Where decoded pictures are kept: disk (a memory-mapped file, reused by later runs), ram, none (decode "
        "every time), auto (disk, or ram where --cache-dir cannot be written).",
        scope="session",
    )
    cache_dir: str | None = option(
        None, "Folder of the disk cache. Default: runs/cache.", scope="session", metavar="DIR"
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
        if self.num_workers is not None and self.num_workers < 0:
            raise ValueError(f"--num-workers {self.num_workers}: expected at least 0")


@dataclass(frozen=True)
class LossConfig:
    """What is minimised."""

    scope: ClassVar[Scope] = "training"
    title: ClassVar[str] = "Loss"

    iou_loss: Literal["iou", "giou", "ciou"] = option("giou", "IoU flavour of the box loss.")
    anchor_cls_loss: Literal["bce", "vfl"] = option(
        "bce",
        "Class loss: cross entropy of positives, or varifocal loss of all priors.",
        aliases=("--cls-loss-type",),
    )
    loss_weight_box: float = option(2.5, "Weight of the box term.")
    loss_weight_obj: float = option(1.0, "Weight of the objectness term.")
    loss_weight_cls: float = option(1.0, "Weight of the class term.")
    loss_weight_quality: float = option(1.0, "Weight of the quality term.")

    def __post_init__(self) -> None:
        for name in ("box", "obj", "cls", "quality"):
            value = getattr(self, f"loss_weight_{name}")
            if not 0 <= value < math.inf:
                raise ValueError(f"--loss-weight-{name} {value}: expected a number >= 0")


@dataclass(frozen=True)
class AssignConfig:
    """Which priors learn which truth."""

    scope: ClassVar[Scope] = "training"
    title: ClassVar[str] = "Assigner"

    anchor_assigner: Literal["legacy", "simota", "tal"] = option(
        "tal",
        "legacy: the best-fitting anchor of the centre's cell; simota: cheapest priors, as many as their IoUs "
        "add up to; tal: task-aligned, the ten best by score and IoU.",
        aliases=("--assigner",),
    )
    simota_topk: int = option(10, "IoUs that are summed to the number of positives of a truth (simota).")

    def __post_init__(self) -> None:
        if self.simota_topk < 1:
            raise ValueError(f"--simota-topk {self.simota_topk}: expected at least 1")


@dataclass(frozen=True)
class OptimConfig:
    """How the weights are learned."""

    scope: ClassVar[Scope] = "training"
    title: ClassVar[str] = "Optimisation"

    epochs: int = option(100, "Number of epochs; the schedule's length.")
    stop_epoch: int = option(0, "Stop after this epoch, on the schedule of --epochs; 0 is off.", scope="session")
    patience: int = option(0, "Stop after this many epochs without a better mAP; 0 is off.")
    batch_size: int = option(64, "Pictures a step.")
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
        at_least = {"epochs": 1, "stop_epoch": 0, "patience": 0, "batch_size": 1, "warmup_epochs": 0}
        at_least |= {"weight_decay": 0, "grad_clip_norm": 0}
        for name, minimum in at_least.items():
            value = getattr(self, name)
            if not minimum <= value < math.inf:
                raise ValueError(f"--{name.replace('_', '-')} {value}: expected at least {minimum}")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"--lr {self.lr}: expected a number > 0")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"--ema-decay {self.ema_decay}: expected at least 0 and below 1")


@dataclass(frozen=True)
class DecodeConfig:
    """From raw maps to detections."""

    scope: ClassVar[Scope] = "training"
    title: ClassVar[str] = "Decoding"

    conf_thresh: float = option(
        0.3, "Score from which a detection is drawn and counted in precision, recall and false alarms; not mAP's."
    )
    topk: int = option(50, "Detections kept a picture; mAP always looks at 100.")
    nms_iou: float = option(0.5, "Overlap (IoU) above which the lower-scored box of a class goes.")
    pre_nms_topk: int = option(512, "Best candidates that enter the suppression.")

    def __post_init__(self) -> None:
        for name in ("conf_thresh", "nms_iou"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"--{name.replace('_', '-')} {value}: expected a number from 0 to 1")
        for name in ("topk", "pre_nms_topk"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)}: expected at least 1")


@dataclass(frozen=True)
class EvalConfig:
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
class RunConfig:
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
    log_interval: int = option(10, "Steps between updates of the progress bar.")
    run_dir: str = derived("runs/default")

    def __post_init__(self) -> None:
        if self.log_interval < 1:
            raise ValueError(f"--log-interval {self.log_interval}: expected at least 1")
        name = Path(self.exp_name)
        if not name.name or name.is_absolute() or ".." in name.parts:
            raise ValueError(f"--exp-name {self.exp_name or repr('')}: expected the name of a folder below runs/")


@dataclass(frozen=True)
class Config:
    """Everything that a run is made of."""

    input: InputConfig = InputConfig()
    labels: LabelsConfig = LabelsConfig()
    model: ModelConfig = UltraTinyODConfig()
    auto_anchors: AutoAnchorsConfig = AutoAnchorsConfig()
    data: DataConfig = DataConfig()
    loss: LossConfig = LossConfig()
    assign: AssignConfig = AssignConfig()
    optim: OptimConfig = OptimConfig()
    decode: DecodeConfig = DecodeConfig()
    eval: EvalConfig = EvalConfig()
    run: RunConfig = RunConfig()

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Plain values (numbers, texts, lists, None), as stored in checkpoints and config.yaml."""
        return {
            section.name: _plain(dataclasses.asdict(getattr(self, section.name)))
            for section in dataclasses.fields(self)
        }

    @classmethod
    def from_dict(cls, values: dict[str, dict[str, Any]]) -> Config:
        """The reverse of `to_dict`; an unknown section or field is a ValueError that names it."""
        arch = values.get("model", {}).get("arch", "")
        if arch not in MODEL_CONFIGS:
            raise ValueError(f"unknown architecture {arch!r}; this version knows {', '.join(MODEL_CONFIGS)}")
        section_types = {**SECTIONS, "model": MODEL_CONFIGS[arch]}
        unknown = values.keys() - section_types.keys()
        if unknown:
            raise ValueError(f"unknown settings {sorted(unknown)}")
        return cls(**{name: section_from_dict(section_types[name], values[name]) for name in values})


SECTIONS: dict[str, type] = {
    f.name: type(f.default) for f in dataclasses.fields(Config) if f.default is not dataclasses.MISSING
}

# What --demo-data sets where nothing is typed: the full head at a width that trains in minutes.
DEMO_PRESET: dict[str, Any] = {
    "arch": "ultratinyod",
    "cnn_width": 16,
    "use_improved_head": True,
    "use_iou_aware_head": True,
    "utod_head_ese": True,
    "utod_residual": True,
    "use_batchnorm": True,
    "use_ema": True,
    "auto_anchors": True,
    "num_anchors": 8,
    "iou_loss": "ciou",
    "epochs": 10,
    "batch_size": 32,
    "exp_name": "demo",
    "image_dir": "data/demo",
}


def field_scope(section: type, f: dataclasses.Field[Any]) -> Scope:
    """The scope of one field: its own, or its section's."""
    return f.metadata.get("scope") or section.scope  # type: ignore[attr-defined, no-any-return]


def section_from_dict(section: type, values: dict[str, Any]) -> Any:
    """Builds one section from plain values; an unknown field is a ValueError that names it."""
    hints = typing.get_type_hints(section)
    known = {f.name for f in dataclasses.fields(section)}
    unknown = values.keys() - known
    if unknown:
        raise ValueError(f"unknown settings {sorted(unknown)} in {section.__name__}")
    return section(**{name: _typed(hints[name], value) for name, value in values.items()})


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _typed(hint: Any, value: Any) -> Any:
    """Lists back to tuples where the field's type is one."""
    if value is None:
        return None
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        hint = next(arg for arg in typing.get_args(hint) if arg is not type(None))
    if typing.get_origin(hint) is tuple:
        inner = typing.get_args(hint)[0]
        return tuple(_typed(inner, item) for item in value)
    return value
