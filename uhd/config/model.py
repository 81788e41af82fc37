"""Sections of the network: what all architectures have, and what those with anchors share."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from uhd.config.options import Head, Scope, Section, derived, option
from uhd.config.values import Pairs, Size, parse_activation, parse_anchors, parse_stride

MAX_WIDTH = 4096
MAX_ANCHORS = 256
"""Of a cell. Networks have 3 to 12; what is far beyond is a slip of the hand that would be computed for hours."""


@dataclass(frozen=True)
class ModelConfig(Section, ABC):
    """What every architecture has; a subclass a name in `MODEL_CONFIGS`."""

    scope: ClassVar[Scope] = "weights"
    title: ClassVar[str] = "Model"
    summary: ClassVar[str] = ""
    """What the architecture is for, in a line of the help text."""
    training_defaults: ClassVar[Mapping[str, Any]] = {}
    """Values of the sections of training, by field, that suit the architecture better than the fields' defaults."""

    arch: str = option(
        "cnn", "Architecture.", choices=lambda: {name: section.summary for name, section in MODEL_CONFIGS.items()}
    )
    activation: Literal["relu", "swish"] = option(
        "swish", "Activation function; silu is another name of swish.", parse=parse_activation
    )
    use_batchnorm: bool = option(False, "Batch normalisation after each convolution.")
    num_classes: int = derived(1)

    @property
    @abstractmethod
    def head(self) -> Head:
        """What the raw maps are: it decides on the criterion, and on the flags that have an effect."""

    @property
    def stride(self) -> int:
        """What each side of the input must be a multiple of, in pixels."""
        return 1

    def next_size(self, size: Size) -> Size:
        """The size itself where the network can have it, or the next one that it can."""
        height, width = (-(-side // self.stride) * self.stride for side in size)
        return height, width

    def completed(self, img_size: Size) -> ModelConfig:
        """With the fields filled in that follow from the others, for pictures of this size (height, width)."""
        return self

    def beside(self, changed: Mapping[str, Any]) -> ModelConfig:
        """What is kept of a checkpoint's section where fields take these other values (--ckpt-non-strict).

        Fields that contradict the new values, or were filled in from the old ones, are back at their defaults.
        """
        return self

    def idle(self) -> dict[str, str]:
        """Fields that have no effect beside the others, each with the end of the sentence that says so."""
        return {}


MODEL_CONFIGS: dict[str, type[ModelConfig]] = {}
"""The architectures by name; `uhd.config.archs` enters those of the program."""


@dataclass(frozen=True)
class AnchorSizesConfig(ModelConfig):
    """Nets that have, or can have, anchors: boxes of given sizes at each cell of one grid or several."""

    title: ClassVar[str] = "Anchors"

    num_anchors: int = option(
        3, "Number of anchors a cell, where they are computed; tinyssd: at each level.", heads=("anchor", "ssd")
    )
    anchors: Pairs | None = option(
        None,
        "Anchor sizes as normalised w,h pairs; computed from the training boxes where not given. tinyssd: level by "
        "level, the finest first, as many for each.",
        parse=parse_anchors,
        metavar='"w,h w,h"',
    )

    def __post_init__(self) -> None:
        if not 1 <= self.num_anchors <= MAX_ANCHORS:
            raise ValueError(f"--num-anchors {self.num_anchors}: expected 1 to {MAX_ANCHORS}")

    @property
    @abstractmethod
    def num_grids(self) -> int:
        """How many grids the anchors are divided among."""

    @property
    def anchor_counts(self) -> tuple[int, ...]:
        """Anchors a cell of each grid, the finest first; empty where the network has none."""
        return (self.num_anchors,) * self.num_grids

    def counted(self) -> AnchorSizesConfig:
        """With the number of anchors a cell that `anchors` holds; ValueError where the grids get unequal shares."""
        assert self.anchors is not None
        each, rest = divmod(len(self.anchors), self.num_grids)
        if rest or not each:
            raise ValueError(
                f"--anchors has {len(self.anchors)} pairs: expected as many for each of {self.num_grids} levels"
            )
        if each > MAX_ANCHORS:
            raise ValueError(f"--anchors has {each} pairs a cell: expected at most {MAX_ANCHORS}")
        return dataclasses.replace(self, num_anchors=each)


@dataclass(frozen=True)
class AnchorModelConfig(AnchorSizesConfig):
    """Nets that have, or can have, an anchor head on one grid."""

    title: ClassVar[str] = "Grid"

    cnn_width: int = option(
        32, "Channels of the stem; all other widths are multiples of it. --backbone has its own widths."
    )
    output_stride: int | None = option(
        None,
        "Pixels per cell of the output grid: 4, 8 or 16 (for --backbone see --backbone-out-stride). Default: 8 for "
        "ultratinyod, 16 for cnn.",
        parse=parse_stride,
        metavar="{4,8,16}",
    )
    use_improved_head: bool = option(
        False,
        "Quality branch (predicted IoU); for ultratinyod also a learnable anchor scale and a residual context block.",
    )
    quality_power: float = option(1.0, "Exponent of the quality in the score.", scope="training", heads=("anchor",))

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.cnn_width <= MAX_WIDTH:
            raise ValueError(f"--cnn-width {self.cnn_width}: expected 1 to {MAX_WIDTH}")
        if not 0 <= self.quality_power < math.inf:
            raise ValueError(f"--quality-power {self.quality_power}: expected a number >= 0")

    @property
    def head(self) -> Head:
        """Anchors, unless the subclass has a choice."""
        return "anchor"

    @property
    def num_grids(self) -> int:
        """One, or none beside another head."""
        return int(self.head == "anchor")

    @property
    def default_stride(self) -> int:
        """Pixels per cell where none are asked for."""
        return 8

    @property
    def stride(self) -> int:
        """Pixels per cell of the output grid."""
        return self.output_stride or self.default_stride

    @property
    def has_quality(self) -> bool:
        """Whether there is a quality channel."""
        return self.use_improved_head

    @property
    def scores_without_obj(self) -> bool:
        """Whether the score leaves objectness out (an IoU-aware head)."""
        return False

    def idle(self) -> dict[str, str]:
        """The exponent of a quality that is not there."""
        return {} if self.has_quality else {"quality_power": "without --use-improved-head"}

    def completed(self, img_size: Size) -> AnchorModelConfig:
        """With the output stride."""
        return dataclasses.replace(self, output_stride=self.stride)
