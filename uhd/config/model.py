"""Sections that fix the weights: input, labels, and the network's, one subclass for each architecture."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from uhd.config.options import Scope, Section, derived, option
from uhd.config.values import (
    Pairs,
    ResizeMode,
    Size,
    parse_activation,
    parse_anchors,
    parse_classes,
    parse_optional_path,
    parse_resize_mode,
    parse_size,
)

Stride = Literal[4, 8, 16]
MAX_CLASSES = 10_000
MAX_WIDTH = 4096


@dataclass(frozen=True)
class InputConfig(Section):
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
class LabelsConfig(Section):
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
        if self.num_classes is not None and not 1 <= self.num_classes <= MAX_CLASSES:
            raise ValueError(f"--num-classes {self.num_classes}: expected 1 to {MAX_CLASSES}")

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
    names = [line.strip() for line in "\n".join(lines).rstrip().splitlines()]
    if not names:
        raise ValueError(f"--names {path}: no name in it; expected one a line")
    for number, name in enumerate(names, start=1):
        if not name:
            raise ValueError(f"{path}:{number}: no name; expected one for each class id in --names")
        if names.index(name) + 1 < number:
            raise ValueError(f"{path}:{number}: {name!r} stands in line {names.index(name) + 1} too (--names)")
    return names


@dataclass(frozen=True)
class ModelConfig(Section):
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
    default_stride: ClassVar[Stride] = 8

    cnn_width: int = option(32, "Channels of the stem; all other widths are multiples of it.")
    output_stride: Stride | None = option(None, "Pixels per cell of the output grid. Default: 8 for ultratinyod.")
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
        if not 1 <= self.cnn_width <= MAX_WIDTH:
            raise ValueError(f"--cnn-width {self.cnn_width}: expected 1 to {MAX_WIDTH}")
        if self.num_anchors < 1:
            raise ValueError(f"--num-anchors {self.num_anchors}: expected at least 1")
        if not 0 <= self.quality_power < math.inf:
            raise ValueError(f"--quality-power {self.quality_power}: expected a number >= 0")

    @property
    def stride(self) -> Stride:
        """Pixels per cell of the output grid."""
        return self.output_stride or self.default_stride


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
    def has_quality(self) -> bool:
        """Whether there is a quality branch."""
        return self.use_improved_head or self.use_iou_aware_head


MODEL_CONFIGS: dict[str, type[ModelConfig]] = {"ultratinyod": UltraTinyODConfig}
