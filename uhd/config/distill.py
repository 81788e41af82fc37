"""What a student learns from a teacher."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from uhd.config.options import Scope, Section, flag_of, option
from uhd.config.values import Size, parse_activation, parse_optional_path, parse_size

TERMS = (
    "distill_kl",
    "distill_box_l1",
    "distill_obj",
    "distill_quality",
    "distill_feat",
    "distill_weight",
    "feature_distill_weight",
)
"""The fields that are weights of terms."""
_FILES = ("teacher_ckpt", "teacher_backbone", "teacher_cache")


@dataclass(frozen=True)
class DistillConfig(Section):
    """Teachers and the weights of what is learned from them; all weights 0 is no distillation."""

    scope: ClassVar[Scope] = "training"
    title: ClassVar[str] = "Distillation"

    teacher_ckpt: str | None = option(
        None,
        "Checkpoint of the teacher, of any architecture of this program; it rebuilds the teacher.",
        parse=parse_optional_path,
        metavar="FILE",
    )
    teacher_arch: str | None = option(None, "Architecture that the teacher's checkpoint must be of.", metavar="ARCH")
    teacher_num_queries: int | None = option(
        None, "Queries of a transformer teacher; its checkpoint must have as many."
    )
    teacher_d_model: int | None = option(None, "Width of a transformer teacher; its checkpoint must have the same.")
    teacher_heads: int | None = option(None, "Attention heads of a transformer teacher, instead of its checkpoint's.")
    teacher_layers: int | None = option(None, "Layers of a transformer teacher; its checkpoint must have as many.")
    teacher_dim_feedforward: int | None = option(
        None, "Feedforward width of a transformer teacher; its checkpoint must have the same."
    )
    teacher_use_skip: bool = option(False, "The teacher, a cnn, has skip connections whatever its checkpoint says.")
    teacher_activation: Literal["relu", "swish"] | None = option(
        None, "Activation function of the teacher, instead of its checkpoint's.", parse=parse_activation
    )
    teacher_use_fpn: bool = option(False, "The teacher, a transformer, has a pyramid whatever its checkpoint says.")
    teacher_img_size: Size | None = option(
        None, "Size HxW that the teacher sees. Default: that of its checkpoint.", parse=parse_size, metavar="HxW"
    )
    teacher_backbone: str | None = option(
        None,
        "Weights of a frozen vision transformer whose features are learned by --distill-feat.",
        parse=parse_optional_path,
        metavar="FILE",
    )
    teacher_backbone_arch: Literal["dinov3_vits16", "dinov3_vitb16", "vit_tiny"] = option(
        "dinov3_vits16", "What --teacher-backbone holds."
    )
    teacher_backbone_norm: Literal["imagenet", "none"] = option(
        "imagenet", "How its pictures are normalised: by the mean and deviation of ImageNet, or not."
    )
    teacher_cache: str | None = option(
        None,
        "Folder where the teacher's outputs for the training pictures are kept, so that it runs once and not in every "
        "epoch; only for pictures that are the same in every epoch (--no-aug).",
        parse=parse_optional_path,
        scope="session",
        metavar="DIR",
    )
    distill_kl: float = option(
        0.0,
        "Weight of the divergence of the classes' probabilities from the teacher's; of unlike heads, of the scores.",
    )
    distill_box_l1: float = option(0.0, "Weight of the distance of the boxes from the teacher's, by its scores.")
    distill_obj: float = option(0.0, "Weight of the divergence of objectness from the teacher's (anchors).")
    distill_quality: float = option(0.0, "Weight of the divergence of quality from the teacher's (anchors).")
    distill_feat: float = option(
        0.0, "Weight of the distance of the feature maps from the teacher's, each cell brought to length 1."
    )
    distill_weight: float = option(
        0.0, "Weight of the mean square difference of all raw maps; for a teacher of the same maps."
    )
    feature_distill_weight: float = option(
        0.0, "Weight of the mean square difference of the features; for a teacher of the same features."
    )
    distill_temperature: float = option(1.0, "Temperature of the probabilities in --distill-kl.")
    distill_cosine: bool = option(False, "Let the weights of distillation rise from 0 to 1 times themselves.")

    def __post_init__(self) -> None:
        for name in TERMS:
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{flag_of(name)} {getattr(self, name)}: expected a number >= 0")
        if not 0 < self.distill_temperature < math.inf:
            raise ValueError(f"--distill-temperature {self.distill_temperature}: expected a number > 0")
        on = [flag_of(name) for name in TERMS if getattr(self, name)]
        if on and not (self.teacher_ckpt or self.teacher_backbone):
            raise ValueError(f"{on[0]}: needs a teacher, by --teacher-ckpt or --teacher-backbone")
        if self.teacher_backbone and not self.distill_feat:
            raise ValueError("--teacher-backbone: only --distill-feat learns from it; give it a weight above 0")
        others = [flag for flag in on if flag != "--distill-feat"]
        if others and not self.teacher_ckpt:
            raise ValueError(f"{others[0]}: needs --teacher-ckpt; --teacher-backbone has features only")
        if self.teacher_ckpt and self.teacher_backbone and not others:
            raise ValueError(
                "--teacher-ckpt: nothing is learned from it; --distill-feat learns from --teacher-backbone"
            )
        if self.teacher_ckpt and not on:
            raise ValueError(f"--teacher-ckpt: nothing is learned from it; give one of {_listed()} a weight above 0")
        if self.teacher_cache and not on:
            raise ValueError("--teacher-cache: there is no teacher")

    @property
    def compares_outputs(self) -> bool:
        """Whether anything is learned from what the teacher's head says, and not from its features alone."""
        return any(getattr(self, name) for name in TERMS if name not in ("distill_feat", "feature_distill_weight"))

    @property
    def is_on(self) -> bool:
        """Whether there is anything to learn from a teacher."""
        return any(getattr(self, name) for name in TERMS)

    def idle(self) -> dict[str, str]:
        """Fields without effect beside the others, with the end of the sentence that says why."""
        idle = {}
        if not self.is_on:
            idle["distill_cosine"] = "has no effect without a teacher"
        if not self.distill_kl:
            idle["distill_temperature"] = "has no effect without --distill-kl"
        owners = {"teacher_backbone_": "teacher_backbone", "teacher_": "teacher_ckpt"}
        for f in dataclasses.fields(self):
            owner = next((owner for prefix, owner in owners.items() if f.name.startswith(prefix)), None)
            if owner and f.name not in _FILES and not getattr(self, owner):
                idle[f.name] = f"has no effect without {flag_of(owner)}"
        return idle


def _listed() -> str:
    return ", ".join(map(flag_of, TERMS))
