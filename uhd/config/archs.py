"""The sections of the architectures, one class each, and their table."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from uhd.config.model import MAX_WIDTH, MODEL_CONFIGS, AnchorModelConfig, ModelConfig
from uhd.config.nanodet import NanoDetConfig
from uhd.config.options import Head, flag_of, option
from uhd.config.tinyssd import TinySSDConfig
from uhd.config.values import Size, parse_counts

Attention = Literal["none", "se", "ese"]
MAX_COUNT = 4096


@dataclass(frozen=True)
class CNNConfig(AnchorModelConfig):
    """A small CNN with a CenterNet head or an anchor head."""

    title: ClassVar[str] = "CNN"
    summary: ClassVar[str] = (
        "for the smallest budgets, with a heat map of centres or anchors, and three other backbones (5,221 parameters, "
        "1.3 million multiply-adds, 0.07 ms at w32)"
    )

    arch: Literal["cnn"] = "cnn"
    use_anchor: bool = option(False, "Anchor head instead of the CenterNet head (heat map of centres).")
    use_skip: bool = option(False, "Add pooled stages 1 and 2 to the last one (built-in backbone).")
    last_se: Attention = option("none", "Channel attention on the last block (built-in backbone).")
    last_width_scale: float = option(1.0, "Width of the last block, relative to the others (built-in backbone).")
    backbone: Literal["none", "microcspnet", "ultratinyresnet", "enhanced-shufflenet"] = option(
        "none", "Another backbone, of stride 8; none is the built-in one."
    )
    backbone_channels: tuple[int, ...] | None = option(
        None, "Widths of the stages of ultratinyresnet. Default: 16,24,32,48.", parse=parse_counts, metavar="N,N,..."
    )
    backbone_blocks: tuple[int, ...] | None = option(
        None,
        "Residual blocks of the stages of ultratinyresnet. Default: 1,1,2,1.",
        parse=parse_counts,
        metavar="N,N,...",
    )
    backbone_se: Attention = option("none", "Channel attention on the output of --backbone.")
    backbone_skip: bool = option(
        False, "Add earlier stages, pooled and projected, to the last one (ultratinyresnet, enhanced-shufflenet)."
    )
    backbone_skip_cat: bool = option(
        False,
        "Concatenate earlier stages, pooled, with the last one and fuse them by a 1x1 convolution (ultratinyresnet).",
    )
    backbone_skip_shuffle_cat: bool = option(
        False,
        "--backbone-skip-cat with strided 3x3 projections and a channel shuffle in place of pooling (ultratinyresnet).",
    )
    backbone_skip_s2d_cat: bool = option(
        False, "--backbone-skip-cat with space-to-depth in place of pooling (ultratinyresnet)."
    )
    backbone_fpn: bool = option(
        False, "Top-down fusion of all stages, after a skip where there is one (ultratinyresnet)."
    )
    backbone_out_stride: Literal[8, 16, 32] | None = option(
        None, "Pixels per cell of --backbone's output; above 8, strided convolutions are appended. Default: 8."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.last_width_scale < math.inf:
            raise ValueError(f"--last-width-scale {self.last_width_scale}: expected a number > 0")
        if self.cnn_width * self.last_width_scale > MAX_WIDTH:
            raise ValueError(
                f"--last-width-scale {self.last_width_scale:g} and --cnn-width {self.cnn_width}: more than the "
                f"{MAX_WIDTH} channels that a layer may have"
            )
        self._check_head()
        self._check_backbone()
        self._check_resnet()

    def _check_head(self) -> None:
        if self.use_anchor:
            return
        if self.use_improved_head:
            raise ValueError("--use-improved-head without --use-anchor: the CenterNet head has no quality branch")
        if self.anchors:
            raise ValueError("--anchors without --use-anchor: the CenterNet head has no anchors")

    def _check_backbone(self) -> None:
        if self.backbone == "none":
            for name in _BACKBONE_FLAGS:
                if getattr(self, name) not in (None, False, "none"):
                    raise ValueError(f"{flag_of(name)} without --backbone: the built-in backbone does not have it")
            return
        for name, neutral in _BUILT_IN_FLAGS.items():
            if getattr(self, name) != neutral:
                raise ValueError(
                    f"{flag_of(name)} and --backbone {self.backbone}: the flag changes the built-in backbone only"
                )
        if self.output_stride not in (None, self.default_stride):
            raise ValueError(
                f"--output-stride {self.output_stride} and --backbone {self.backbone}: its stride is "
                f"{self.default_stride}; set it by --backbone-out-stride"
            )

    def _check_resnet(self) -> None:
        chosen = [name for name in _SKIPS if getattr(self, name)]
        if len(chosen) > 1:
            raise ValueError(f"{flag_of(chosen[0])} and {flag_of(chosen[1])}: one way of joining the stages, not two")
        given = [name for name in _RESNET_FLAGS if getattr(self, name)]
        if given and self.backbone not in ("none", "ultratinyresnet"):
            raise ValueError(f"{flag_of(given[0])} and --backbone {self.backbone}: the flag is ultratinyresnet's")
        if self.backbone_skip and self.backbone == "microcspnet":
            raise ValueError("--backbone-skip and --backbone microcspnet: it has no skips to add")
        channels, blocks = self.stages
        if len(channels) != len(blocks):
            raise ValueError(
                f"--backbone-channels has {len(channels)} stages and --backbone-blocks {len(blocks)}; expected as many"
            )
        if self.backbone == "ultratinyresnet" and len(channels) != 4:
            raise ValueError(
                f"--backbone-channels of {len(channels)} stages: expected 4 (three halvings, to stride 8); "
                "see --backbone-out-stride"
            )

    def completed(self, img_size: Size) -> CNNConfig:
        """With the output stride, and what is the other backbone's default."""
        whole = super().completed(img_size)
        assert isinstance(whole, CNNConfig)
        if whole.backbone != "none":
            whole = dataclasses.replace(whole, backbone_out_stride=self.backbone_out_stride or 8)
        if whole.backbone == "ultratinyresnet":
            channels, blocks = self.stages
            whole = dataclasses.replace(whole, backbone_channels=channels, backbone_blocks=blocks)
        return whole

    def beside(self, changed: Mapping[str, Any]) -> CNNConfig:
        """Without the flags of another backbone than the new one, and without anchors where they are dropped."""
        stale: set[str] = set()
        if "backbone" in changed:
            stale |= {*_RESNET_FLAGS, "backbone_skip", *_BUILT_IN_FLAGS, "output_stride"}
        if changed.get("backbone") == "none":
            stale |= set(_BACKBONE_FLAGS)
        if "backbone_out_stride" in changed:
            stale |= {"output_stride"}
        if "use_anchor" in changed:
            stale |= {"anchors", "use_improved_head"}
        defaults: dict[str, Any] = {f.name: f.default for f in dataclasses.fields(self)}
        return dataclasses.replace(self, **{name: defaults[name] for name in stale})

    def idle(self) -> dict[str, str]:
        """The width, which the other backbones have their own of."""
        return super().idle() | ({} if self.backbone == "none" else {"cnn_width": f"beside --backbone {self.backbone}"})

    @property
    def stages(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Widths and numbers of residual blocks of ultratinyresnet's stages."""
        return self.backbone_channels or (16, 24, 32, 48), self.backbone_blocks or (1, 1, 2, 1)

    @property
    def head(self) -> Head:
        """Anchors or a heat map of centres."""
        return "anchor" if self.use_anchor else "center"

    @property
    def default_stride(self) -> int:
        """16, or what the other backbone has."""
        return 16 if self.backbone == "none" else self.backbone_out_stride or 8


_SKIPS = ("backbone_skip_cat", "backbone_skip_shuffle_cat", "backbone_skip_s2d_cat")
_RESNET_FLAGS = (*_SKIPS, "backbone_fpn", "backbone_channels", "backbone_blocks")
_BUILT_IN_FLAGS = {"use_skip": False, "last_se": "none", "last_width_scale": 1.0}
_BACKBONE_FLAGS = (*_RESNET_FLAGS, "backbone_skip", "backbone_se", "backbone_out_stride")


@dataclass(frozen=True)
class TransformerConfig(ModelConfig):
    """A tiny DETR."""

    title: ClassVar[str] = "Transformer"
    summary: ClassVar[str] = (
        "a tiny DETR: queries in place of anchors and suppression (253,958 parameters, 535 million, 21 ms)"
    )

    training_defaults: ClassVar[Mapping[str, Any]] = {"lr": 0.001, "weight_decay": 0.0001}

    arch: Literal["transformer"] = "transformer"
    num_queries: int = option(10, "Learned queries: the most people that can be found in a picture.")
    d_model: int = option(64, "Width of the tokens.")
    heads: int = option(4, "Attention heads.")
    layers: int = option(3, "Layers of the encoder; the decoder has as many.")
    dim_feedforward: int = option(128, "Width of the feed-forward blocks.")
    use_fpn: bool = option(
        False, "Tokens of three further levels of a convolutional pyramid; about five times the multiply-adds."
    )
    dropout: float = option(0.0, "Share of the activations that are dropped in training.")

    def __post_init__(self) -> None:
        for name in ("num_queries", "d_model", "heads", "layers", "dim_feedforward"):
            if not 1 <= getattr(self, name) <= MAX_COUNT:
                raise ValueError(f"{flag_of(name)} {getattr(self, name)}: expected 1 to {MAX_COUNT}")
        if self.d_model % 4:
            raise ValueError(f"--d-model {self.d_model}: expected a multiple of 4 (sine and cosine of x and y)")
        if self.d_model % self.heads:
            raise ValueError(
                f"--d-model {self.d_model} and --heads {self.heads}: the first must be a multiple of the second"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"--dropout {self.dropout}: expected at least 0 and below 1")

    @property
    def head(self) -> Head:
        """Queries."""
        return "query"

    def idle(self) -> dict[str, str]:
        """Batch norm, which the pyramid always has and nothing else could have."""
        return {"use_batchnorm": "with --arch transformer"}


@dataclass(frozen=True)
class UltraTinyODConfig(AnchorModelConfig):
    """UltraTinyOD."""

    title: ClassVar[str] = "UltraTinyOD"
    summary: ClassVar[str] = (
        "anchors on a depthwise-separable backbone, scores that know how well a box fits (417,928 parameters, "
        "26 million, 0.7 ms at w32 with its full head)"
    )

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

    @property
    def scores_without_obj(self) -> bool:
        """Whether the score is quality x class."""
        return self.use_iou_aware_head

    def idle(self) -> dict[str, str]:
        """What belongs to blocks that are not there."""
        found = super().idle()
        if not self.utod_context_rfb:
            found["utod_context_dilation"] = "without --utod-context-rfb"
        if not self.utod_large_obj_branch:
            found |= dict.fromkeys(
                ("utod_large_obj_depth", "utod_large_obj_ch_scale"), "without --utod-large-obj-branch"
            )
        return found


MODEL_CONFIGS |= {
    "cnn": CNNConfig,
    "nanodet": NanoDetConfig,
    "tinyssd": TinySSDConfig,
    "transformer": TransformerConfig,
    "ultratinyod": UltraTinyODConfig,
}
