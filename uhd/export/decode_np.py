"""Raw maps to candidates in numpy: the twin of `uhd.codec` for programs without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from uhd.config import ScoreMode

Floats = NDArray[np.float32]


class Candidates(NamedTuple):
    """Boxes of one picture, before suppression: boxes [n,4] xyxy 0-1, scores [n] descending, labels [n] class."""

    boxes: Floats
    scores: Floats
    labels: NDArray[np.int64]

    def take(self, rows: Any) -> Candidates:
        """Some of the rows, chosen as an array is indexed."""
        return Candidates(self.boxes[rows], self.scores[rows], self.labels[rows])


class MapDecoder(Protocol):
    """Decodes the raw maps of one kind of head."""

    def __call__(self, maps: Sequence[Floats], conf_thresh: float, limit: int) -> list[Candidates]:
        """The raw maps of a batch, in the order of the graph, to the `limit` best candidates of each picture.

        Candidates that score below conf_thresh are left out.
        """
        ...


@dataclass(frozen=True)
class AnchorDecoder:
    """One anchor map [B,A*(5+q+C),h,w], anchor-major, and after it anchors [A,2] and their scale [A,2].

    See `uhd.codec` for the layout and the formulas. score_mode names the factors of a score, such as
    obj*quality*cls; quality_power is the exponent of the quality.
    """

    num_classes: int
    score_mode: str
    has_quality: bool
    quality_power: float = 1.0

    def __post_init__(self) -> None:
        known = get_args(ScoreMode)
        if self.score_mode not in known:
            raise ValueError(f"score_mode {self.score_mode!r}; expected one of {', '.join(known)}")
        if not isinstance(self.num_classes, int) or self.num_classes < 1 or not isinstance(self.has_quality, bool):
            raise ValueError(f"num_classes {self.num_classes!r}, has_quality {self.has_quality!r}")
        if not isinstance(self.quality_power, int | float) or not 0 <= self.quality_power < np.inf:
            raise ValueError(f"quality_power {self.quality_power!r}; expected a number >= 0")
        if "quality" in self.score_mode and not self.has_quality:
            raise ValueError(f"score_mode {self.score_mode}: its raw map has no quality channel")

    def __call__(self, maps: Sequence[Floats], conf_thresh: float, limit: int) -> list[Candidates]:
        """See `MapDecoder`."""
        raw, anchors, wh_scale = maps
        batch, _, height, width = raw.shape
        # [B,A,5+q+C,h*w]: priors are numbered anchor by anchor, each row by row.
        channels = raw.reshape(batch, len(anchors), -1, height * width)
        scores = self._scores(channels)
        sizes = anchors * wh_scale
        return [_best(channels[i], scores[i], sizes, (height, width), conf_thresh, limit) for i in range(batch)]

    def _scores(self, channels: Floats) -> Floats:
        """[B,A,5+q+C,n] to [B,A,C,n] in 0..1."""
        factors = self.score_mode.split("*")
        scores = _sigmoid(channels[:, :, -self.num_classes :])
        if "quality" in factors:
            quality = _sigmoid(channels[:, :, 5:6])
            scores = scores * (quality if self.quality_power == 1 else quality**self.quality_power)
        if "obj" in factors:
            scores = scores * _sigmoid(channels[:, :, 4:5])
        return scores


def _best(
    channels: Floats, scores: Floats, sizes: Floats, grid: tuple[int, int], conf_thresh: float, limit: int
) -> Candidates:
    """The best priors of one picture: channels [A,5+q+C,n], scores [A,C,n], sizes [A,2] scaled anchors."""
    anchor, label, cell = np.nonzero(scores >= conf_thresh)
    chosen = scores[anchor, label, cell]
    # Stable, and by prior first as `codec.best_candidates` numbers them: where scores tie, the order is the same.
    order = np.lexsort((label, cell, anchor, -chosen))[:limit]
    anchor, label, cell, chosen = anchor[order], label[order], cell[order], chosen[order]
    logits = channels[anchor, :4, cell]
    corner = np.stack([cell % grid[1], cell // grid[1]], axis=1).astype(np.float32)
    centres = (_sigmoid(logits[:, :2]) + corner) / np.array(grid[::-1], dtype=np.float32)
    half = np.logaddexp(np.float32(0), logits[:, 2:]) * sizes[anchor] / np.float32(2)
    return Candidates(np.concatenate([centres - half, centres + half], axis=1), chosen, label)


def _sigmoid(logits: Floats) -> Floats:
    """The logistic function, in a form that never overflows."""
    shares: Floats = np.float32(0.5) * (np.tanh(np.float32(0.5) * logits) + np.float32(1))
    return shares


DECODERS = {"anchor": AnchorDecoder}


def build_decoder(name: str, decoding: Mapping[str, Any]) -> MapDecoder:
    """The decoder that a file's metadata name; ValueError for a name or settings that this version does not know."""
    if name not in DECODERS:
        raise ValueError(f"raw maps of an unknown kind {name!r}; this version knows {', '.join(DECODERS)}")
    try:
        return DECODERS[name](**decoding)
    except TypeError:
        raise ValueError(f"unknown settings {sorted(decoding)} of raw maps of kind {name!r}") from None
