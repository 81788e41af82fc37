"""The section of Enhanced NanoDet."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from uhd.config.model import MAX_WIDTH, ModelConfig
from uhd.config.options import Head, option
from uhd.config.values import Size, parse_strides

STRIDES = (4, 8, 16, 32, 64)
"""Pixels per cell of the grids that there can be."""


@dataclass(frozen=True)
class NanoDetConfig(ModelConfig):
    """Enhanced NanoDet."""

    title: ClassVar[str] = "NanoDet"
    summary: ClassVar[str] = (
        "boxes by the distances of their sides on several grids, for people of very different sizes (731,779 "
        "parameters, 23 million multiply-adds at size s)"
    )

    arch: Literal["nanodet"] = "nanodet"
    nanodet_size: Literal["s", "m", "l"] = option(
        "s", "Size: m and l have more layers, l also a wider neck and a larger head."
    )
    nanodet_depth: Literal[2, 3] = option(2, "Blocks in the last stage of the backbone (size l).")
    nanodet_width: float = option(1.0, "Width of the backbone, relative to its size's; in multiples of 8 channels.")
    nanodet_strides: tuple[int, ...] = option(
        (8, 16, 32),
        "Pixels per cell of the grids, neighbours of 4,8,16,32,64; a picture's sides are multiples of the last one.",
        parse=parse_strides,
        metavar="N,N,...",
    )
    nanodet_neck_channels: int | None = option(
        None, "Channels of the neck and the head. Default: 96; 160 for size l.", metavar="N"
    )
    nanodet_kernel: Literal[3, 5] = option(5, "Side of the depthwise kernels in the neck and the head.")
    nanodet_act: Literal["leakyrelu", "hardswish"] | None = option(
        None, "Activation function of the neck and the heads. Default: leakyrelu; hardswish for size l."
    )
    ghost_block_type: Literal["plus", "normal"] = option(
        "plus", "Blocks of the neck: plus multiplies its two branches (ghost2former), normal adds them (ghost_res)."
    )
    nanodet_aux_width: int = option(
        96, "Channels of the head that only training has; in multiples of 32.", scope="criterion"
    )
    nanodet_aux_depth: int = option(
        2, "Convolutions in each of its two branches before the last one.", scope="criterion"
    )

    def __post_init__(self) -> None:
        if not 0 < self.nanodet_width <= 4:
            raise ValueError(f"--nanodet-width {self.nanodet_width}: expected a number above 0 and at most 4")
        _check_strides(self.nanodet_strides)
        channels = self.nanodet_neck_channels
        if channels is not None and not (2 <= channels <= MAX_WIDTH and channels % 2 == 0):
            raise ValueError(f"--nanodet-neck-channels {channels}: expected an even number from 2 to {MAX_WIDTH}")
        if not 32 <= self.nanodet_aux_width <= MAX_WIDTH or self.nanodet_aux_width % 32:
            raise ValueError(
                f"--nanodet-aux-width {self.nanodet_aux_width}: expected a multiple of 32 from 32 to {MAX_WIDTH}"
            )
        if not 1 <= self.nanodet_aux_depth <= 16:
            raise ValueError(f"--nanodet-aux-depth {self.nanodet_aux_depth}: expected 1 to 16")

    @property
    def head(self) -> Head:
        """Distances of the sides on several grids."""
        return "gfl"

    @property
    def stride(self) -> int:
        """Pixels per cell of the coarsest grid."""
        return self.nanodet_strides[-1]

    @property
    def neck_channels(self) -> int:
        """Channels of the neck, asked for or the size's own."""
        return self.nanodet_neck_channels or (160 if self.nanodet_size == "l" else 96)

    @property
    def neck_activation(self) -> Literal["leakyrelu", "hardswish"]:
        """Activation function of the neck and the heads, asked for or the size's own."""
        return self.nanodet_act or ("hardswish" if self.nanodet_size == "l" else "leakyrelu")

    def completed(self, img_size: Size) -> NanoDetConfig:
        """With the neck's channels and activation."""
        return dataclasses.replace(self, nanodet_neck_channels=self.neck_channels, nanodet_act=self.neck_activation)

    def beside(self, changed: Mapping[str, Any]) -> NanoDetConfig:
        """Without what was filled in for another size."""
        if "nanodet_size" not in changed:
            return self
        return dataclasses.replace(self, nanodet_neck_channels=None, nanodet_act=None)

    def idle(self) -> dict[str, str]:
        """Batch norm, which it always has, the common activation, and the depth of a stage that is not there."""
        found = dict.fromkeys(("use_batchnorm", "activation"), "with --arch nanodet")
        if self.nanodet_size != "l":
            found["nanodet_depth"] = "without --nanodet-size l"
        elif self.stride < 32:
            found["nanodet_depth"] = "without a grid of 32 pixels a cell (--nanodet-strides)"
        return found


def _check_strides(strides: tuple[int, ...]) -> None:
    """ValueError for strides of the grids that are not two or more neighbours of 4, 8, 16, 32 and 64."""
    first = STRIDES.index(strides[0]) if strides and strides[0] in STRIDES else 0
    if len(strides) < 2 or strides != STRIDES[first : first + len(strides)]:
        shown = ",".join(map(str, strides)) or "''"
        raise ValueError(f"--nanodet-strides {shown}: expected two or more neighbours of 4,8,16,32,64, such as 8,16,32")
