"""Every setting of a run: one frozen dataclass per concern, one field per command-line flag.

A field's default, type and help text stand in its section and nowhere else: `uhd.cli` makes the argparse
groups from them, the README tables are generated from them, and a checkpoint stores them as plain
values (`Config.to_dict`). The package imports the standard library only.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from uhd.config.archs import CNNConfig, TransformerConfig, UltraTinyODConfig
from uhd.config.convert import ConvertConfig
from uhd.config.demo import DemoConfig
from uhd.config.distill import DistillConfig
from uhd.config.export import DynamicAxes, ExportConfig
from uhd.config.inputs import InputConfig, LabelsConfig, made_up_name, read_names
from uhd.config.model import MODEL_CONFIGS, AnchorModelConfig, AnchorSizesConfig, ModelConfig
from uhd.config.nanodet import NanoDetConfig
from uhd.config.options import Head, Scope, Section, field_scope, flag_of, plain, section_from_dict
from uhd.config.paste import PasteConfig
from uhd.config.run import (
    AssignConfig,
    AutoAnchorsConfig,
    DataConfig,
    DecodeConfig,
    EvalConfig,
    LossConfig,
    OptimConfig,
    RunConfig,
)
from uhd.config.tinyssd import TinySSDConfig
from uhd.config.values import RESIZE_MODE_ALIASES, OnnxFormat, ResizeMode, ScoreMode, Size, parse_size

__all__ = [
    "DEMO_PRESET",
    "MODEL_CONFIGS",
    "RESIZE_MODE_ALIASES",
    "SECTIONS",
    "AnchorModelConfig",
    "AnchorSizesConfig",
    "AssignConfig",
    "AutoAnchorsConfig",
    "CNNConfig",
    "Config",
    "ConvertConfig",
    "DataConfig",
    "DecodeConfig",
    "DemoConfig",
    "DistillConfig",
    "DynamicAxes",
    "EvalConfig",
    "ExportConfig",
    "Head",
    "InputConfig",
    "LabelsConfig",
    "LossConfig",
    "ModelConfig",
    "NanoDetConfig",
    "OnnxFormat",
    "OptimConfig",
    "PasteConfig",
    "ResizeMode",
    "RunConfig",
    "Scope",
    "ScoreMode",
    "Section",
    "Size",
    "TinySSDConfig",
    "TransformerConfig",
    "UltraTinyODConfig",
    "field_scope",
    "flag_of",
    "made_up_name",
    "parse_size",
    "read_names",
    "section_from_dict",
]


@dataclass(frozen=True)
class Config:
    """Everything that a run is made of."""

    input: InputConfig = InputConfig()
    labels: LabelsConfig = LabelsConfig()
    model: ModelConfig = CNNConfig()
    auto_anchors: AutoAnchorsConfig = AutoAnchorsConfig()
    data: DataConfig = DataConfig()
    loss: LossConfig = LossConfig()
    assign: AssignConfig = AssignConfig()
    distill: DistillConfig = DistillConfig()
    optim: OptimConfig = OptimConfig()
    decode: DecodeConfig = DecodeConfig()
    eval: EvalConfig = EvalConfig()
    run: RunConfig = RunConfig()

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Plain values (numbers, texts, lists, None), as stored in checkpoints and config.yaml."""
        return {
            section.name: plain(dataclasses.asdict(getattr(self, section.name))) for section in dataclasses.fields(self)
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


SECTIONS: dict[str, type[Section]] = {
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
    "aug_config": "uhd/aug_uhd.yaml",
    "background_share": 0.0,
    "epochs": 10,
    "batch_size": 32,
    "exp_name": "demo",
    "image_dir": "data/demo",
}
