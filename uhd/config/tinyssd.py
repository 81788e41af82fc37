"""The section of Tiny SSD, and the priors that its two networks were published with."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from uhd.config.model import AnchorSizesConfig
from uhd.config.options import Head, option
from uhd.config.values import Pairs, Size

Body = Literal["fire", "conv"]

_FIRE_SIDE = 300
_FIRE_SIZES = (21, 45, 99, 153, 207, 261, 315)
"""Sides in pixels of _FIRE_SIDE; each level goes from one to the next."""
_FIRE_COUNTS = (4, 6, 6, 6, 6, 4)
_FIRE_RATIOS = (2, 1 / 2, 3, 1 / 3)
_CONV_SIZES = ((0.2, 0.272), (0.37, 0.447), (0.54, 0.619), (0.71, 0.79), (0.88, 0.961))
_CONV_RATIOS = (2, 1 / 2)
_DECIMALS = 6
_STRETCH_TOLERANCE = 1e-3
"""Of a width, whose last decimal is rounded, beside the others' of the same picture."""


def _shaped(side: float, ratio: float) -> tuple[float, float]:
    """(w, h) of a box of this area's side and of this ratio w / h."""
    return round(side * math.sqrt(ratio), _DECIMALS), round(side / math.sqrt(ratio), _DECIMALS)


def _priors(small: float, large: float, ratios: tuple[float, ...]) -> Pairs:
    """Of one level: two squares, and the smaller one's area in other ratios."""
    return (_shaped(small, 1), _shaped(large, 1), *(_shaped(small, ratio) for ratio in ratios))


PUBLISHED_PRIORS: dict[Body, tuple[Pairs, ...]] = {
    "fire": tuple(
        _priors(
            _FIRE_SIZES[level] / _FIRE_SIDE,
            math.sqrt(_FIRE_SIZES[level] * _FIRE_SIZES[level + 1]) / _FIRE_SIDE,
            _FIRE_RATIOS[: count - 2],
        )
        for level, count in enumerate(_FIRE_COUNTS)
    ),
    "conv": tuple(_priors(*sizes, _CONV_RATIOS) for sizes in _CONV_SIZES),
}
"""Of each level, the finest first: the priors of a cell, (w, h) as shares of the sides of a square picture."""


@dataclass(frozen=True)
class TinySSDConfig(AnchorSizesConfig):
    """Tiny SSD (arXiv:1802.06488)."""

    title: ClassVar[str] = "Tiny SSD"
    summary: ClassVar[str] = (
        "anchors on up to six grids, each of half the resolution of the one before (552,196 parameters, 16 million)"
    )
    training_defaults: ClassVar[Mapping[str, Any]] = {"loss_weight_box": 1.0}

    arch: Literal["tinyssd"] = "tinyssd"
    tinyssd_body: Body = option(
        "fire", "fire: the paper's Fire modules, six levels; conv: plain 3x3 convolutions, five levels."
    )
    tinyssd_levels: int | None = option(
        None, "Levels that are used, from the finest (stride 8) on. Default: all of the body.", metavar="N"
    )
    tinyssd_priors: Literal["auto", "published"] = option(
        "auto", "auto: the sizes of --anchors, or those of the training boxes; published: the body's own."
    )
    tinyssd_cls_loss: Literal["focal", "mined"] = option(
        "focal",
        "focal: a sigmoid for each class and focal loss of all priors; mined: a softmax with the background and cross "
        "entropy of the positives and three times as many of the hardest negatives.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        most = len(PUBLISHED_PRIORS[self.tinyssd_body])
        if self.tinyssd_levels is not None and not 1 <= self.tinyssd_levels <= most:
            raise ValueError(
                f"--tinyssd-levels {self.tinyssd_levels}: expected 1 to {most}, the levels of --tinyssd-body "
                f"{self.tinyssd_body}"
            )
        if self.tinyssd_priors == "published" and self.anchors and not self._are_published(self.anchors):
            raise ValueError("--anchors and --tinyssd-priors published: the sizes come from one or the other")

    @property
    def head(self) -> Head:
        """Anchors on several grids."""
        return "ssd"

    @property
    def stride(self) -> int:
        """Pixels per cell of the finest level."""
        return 8

    @property
    def num_grids(self) -> int:
        """The levels."""
        return self.tinyssd_levels or len(PUBLISHED_PRIORS[self.tinyssd_body])

    @property
    def anchor_counts(self) -> tuple[int, ...]:
        """Anchors a cell of each level; the published ones differ."""
        if self.tinyssd_priors == "auto":
            return super().anchor_counts
        return tuple(map(len, PUBLISHED_PRIORS[self.tinyssd_body][: self.num_grids]))

    @property
    def has_background(self) -> bool:
        """Whether the class logits are a softmax's, whose last entry is the background."""
        return self.tinyssd_cls_loss == "mined"

    @property
    def _published(self) -> Pairs:
        """Those of a square picture."""
        return sum(PUBLISHED_PRIORS[self.tinyssd_body][: self.num_grids], ())

    def _are_published(self, anchors: Pairs) -> bool:
        """Whether they are the published priors of pictures of any shape."""
        published = self._published
        if [h for _, h in anchors] != [h for _, h in published]:
            return False
        stretch = anchors[0][0] / published[0][0]
        return all(
            math.isclose(w, own * stretch, rel_tol=_STRETCH_TOLERANCE)
            for (w, _), (own, _) in zip(anchors, published, strict=True)
        )

    def completed(self, img_size: Size) -> TinySSDConfig:
        """With the number of levels and the published priors, of one shape in pixels whatever the picture's."""
        anchors = self.anchors
        if self.tinyssd_priors == "published" and not anchors:
            height, width = img_size
            anchors = tuple((round(w * height / width, _DECIMALS), h) for w, h in self._published)
        return dataclasses.replace(self, tinyssd_levels=self.num_grids, anchors=anchors)

    def beside(self, changed: Mapping[str, Any]) -> TinySSDConfig:
        """Without the levels of another body, and without anchors for other levels."""
        levels = None if "tinyssd_body" in changed else self.tinyssd_levels
        stale = changed.keys() & {"tinyssd_body", "tinyssd_levels", "tinyssd_priors"}
        return dataclasses.replace(self, tinyssd_levels=levels, anchors=None if stale else self.anchors)

    def idle(self) -> dict[str, str]:
        """What is said of anchors that are not computed."""
        if self.tinyssd_priors == "auto":
            return {}
        return dict.fromkeys(("num_anchors", "auto_anchors"), "beside --tinyssd-priors published")
