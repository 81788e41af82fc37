"""Raw maps to candidates in numpy: the twin of `uhd.codec` for programs without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from uhd.config import ScoreMode

Floats = NDArray[np.float32]
_MAX_LOG_RATIO = np.float32(4)
"""`codec.MAX_LOG_RATIO`."""


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
        # [B,N,C] as `codec` numbers priors: anchor by anchor, each row by row.
        by_prior = scores.transpose(0, 1, 3, 2).reshape(batch, -1, self.num_classes)
        sizes = anchors * wh_scale

        def boxes_of(image: int, priors: NDArray[np.int64]) -> Floats:
            anchor, cell = np.divmod(priors, height * width)
            logits = channels[image, anchor, :4, cell]
            centres = (_sigmoid(logits[:, :2]) + _corners(cell, width)) / np.array([width, height], dtype=np.float32)
            half = np.logaddexp(np.float32(0), logits[:, 2:]) * sizes[anchor] / np.float32(2)
            return np.concatenate([centres - half, centres + half], axis=1)

        return best_of_each(by_prior, boxes_of, conf_thresh, limit)

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


@dataclass(frozen=True)
class CenterDecoder:
    """A heat map of logits [B,C,h,w], and after it offsets and sizes [B,2,h,w], in cells; see `uhd.codec`."""

    def __call__(self, maps: Sequence[Floats], conf_thresh: float, limit: int) -> list[Candidates]:
        """See `MapDecoder`."""
        heatmap, offsets, sizes = maps
        height, width = heatmap.shape[2:]
        across = np.array([width, height], dtype=np.float32)
        scores = _sigmoid(heatmap) * (heatmap == _highest_around(heatmap))
        by_cell = scores.reshape(*heatmap.shape[:2], -1).transpose(0, 2, 1)

        def boxes_of(image: int, cells: NDArray[np.int64]) -> Floats:
            offset, size = (each[image].reshape(2, -1)[:, cells].T for each in (offsets, sizes))
            centres = (_corners(cells, width) + offset) / across
            half = np.maximum(size, np.float32(0)) / (np.float32(2) * across)
            return np.concatenate([centres - half, centres + half], axis=1)

        return best_of_each(by_cell, boxes_of, conf_thresh, limit)


@dataclass(frozen=True)
class QueryDecoder:
    """Class logits [B,Q,C+1], the background last, and box logits [B,Q,4]; see `uhd.codec`."""

    def __call__(self, maps: Sequence[Floats], conf_thresh: float, limit: int) -> list[Candidates]:
        """See `MapDecoder`."""
        logits, box_logits = maps
        scores = _softmax(logits)[:, :, :-1]

        def boxes_of(image: int, queries: NDArray[np.int64]) -> Floats:
            box = _sigmoid(box_logits[image, queries])
            half = box[:, 2:] / np.float32(2)
            return np.concatenate([box[:, :2] - half, box[:, :2] + half], axis=1)

        return best_of_each(scores, boxes_of, conf_thresh, limit)


@dataclass(frozen=True)
class GridDecoder:
    """Maps [B,C+4*K,h,w] of several grids, finest first: class logits, and distributions over K distances of each side.

    See `uhd.codec` for the layout and the formulas.
    """

    num_classes: int

    def __post_init__(self) -> None:
        if not isinstance(self.num_classes, int) or self.num_classes < 1:
            raise ValueError(f"num_classes {self.num_classes!r}; expected a whole number >= 1")

    def __call__(self, maps: Sequence[Floats], conf_thresh: float, limit: int) -> list[Candidates]:
        """See `MapDecoder`."""
        rows = np.concatenate([each.reshape(*each.shape[:2], -1) for each in maps], axis=2).transpose(0, 2, 1)
        bins = (rows.shape[2] - self.num_classes) // 4
        across = [np.array(each.shape[:1:-1], dtype=np.float32) for each in maps]
        corners = [_corners(np.arange(each.shape[2] * each.shape[3]), each.shape[3]) for each in maps]
        points = np.concatenate([(cell + np.float32(0.5)) / size for cell, size in zip(corners, across, strict=True)])
        cells = np.concatenate([np.ones_like(cell) / size for cell, size in zip(corners, across, strict=True)])

        def boxes_of(image: int, places: NDArray[np.int64]) -> Floats:
            logits = rows[image, places, self.num_classes :].reshape(len(places), 4, bins)
            shares = _softmax(logits)
            distances = (shares * np.arange(shares.shape[2], dtype=np.float32)).sum(axis=2)
            point, cell = points[places], cells[places]
            return np.concatenate([point - distances[:, :2] * cell, point + distances[:, 2:] * cell], axis=1)

        return best_of_each(_sigmoid(rows[:, :, : self.num_classes]), boxes_of, conf_thresh, limit)


@dataclass(frozen=True)
class SSDDecoder:
    """For each level class logits [B,n*K,h,w] and offsets [B,n*4,h,w], and last the anchors [A,2]; see `uhd.codec`.

    counts are the anchors n of the levels; has_background: the logits are a softmax's, whose last is the background.
    """

    counts: Sequence[int]
    has_background: bool

    def __post_init__(self) -> None:
        counts = self.counts
        if not isinstance(counts, list | tuple) or not counts or not all(isinstance(n, int) and n > 0 for n in counts):
            raise ValueError(f"counts {counts!r}; expected the anchors of each level")
        if not isinstance(self.has_background, bool):
            raise ValueError(f"has_background {self.has_background!r}; expected true or false")

    def __call__(self, maps: Sequence[Floats], conf_thresh: float, limit: int) -> list[Candidates]:
        """See `MapDecoder`."""
        *levels, anchors = maps
        by_level = [
            each.reshape(len(each), count, -1, each.shape[2] * each.shape[3])
            for each, count in zip(levels, np.repeat(self.counts, 2).tolist(), strict=True)
        ]
        # [B,N,K] and [B,N,4] as `codec` numbers priors: level by level, and in each anchor by anchor.
        cls, offsets = (_by_prior(by_level[kind::2]) for kind in range(2))
        scores = _softmax(cls)[:, :, :-1] if self.has_background else _sigmoid(cls)
        places = self._places([each.shape[2:] for each in levels[::2]], anchors)

        def boxes_of(image: int, priors: NDArray[np.int64]) -> Floats:
            own, place = offsets[image, priors], places[priors]
            centres = place[:, :2] + place[:, 2:] * own[:, :2] / np.float32(10)
            growth = np.exp(np.clip(own[:, 2:] / np.float32(5), -_MAX_LOG_RATIO, _MAX_LOG_RATIO))
            half = place[:, 2:] * growth / np.float32(2)
            return np.concatenate([centres - half, centres + half], axis=1)

        return best_of_each(scores, boxes_of, conf_thresh, limit)

    def _places(self, grids: Sequence[tuple[int, ...]], anchors: Floats) -> Floats:
        """cx cy w h of all priors, [N,4]."""
        rows = []
        for (height, width), sizes in zip(grids, np.split(anchors, np.cumsum(self.counts)[:-1]), strict=True):
            centres = (_corners(np.arange(height * width), width) + np.float32(0.5)) / np.array(
                [width, height], dtype=np.float32
            )
            rows.append(np.hstack([np.tile(centres, (len(sizes), 1)), sizes.repeat(height * width, axis=0)]))
        return np.concatenate(rows)


def _by_prior(levels: Sequence[Floats]) -> Floats:
    """Maps [B,n,K,h*w] of several levels to one row a prior, [B,N,K]."""
    return np.concatenate([each.transpose(0, 1, 3, 2).reshape(len(each), -1, each.shape[2]) for each in levels], axis=1)


def best_of_each(
    scores: Floats, boxes_of: Callable[[int, NDArray[np.int64]], Floats], conf_thresh: float, limit: int
) -> list[Candidates]:
    """The best candidates of each picture: scores [B,N,C]; boxes_of gives those of some rows of one picture.

    The order is that of `codec.best_candidates`, also where scores tie. A score of 0 is no detection.
    """
    found = []
    for image, of_image in enumerate(scores):
        row, label = np.nonzero((of_image >= conf_thresh) & (of_image > 0))
        chosen = of_image[row, label]
        order = np.lexsort((label, row, -chosen))[:limit]
        row, label, chosen = row[order], label[order], chosen[order]
        found.append(Candidates(boxes_of(image, row), chosen, label))
    return found


def _corners(cells: NDArray[np.int64], width: int) -> Floats:
    """Column and row of cells [n] of a grid, [n,2]."""
    return np.stack([cells % width, cells // width], axis=1).astype(np.float32)


def _highest_around(maps: Floats) -> Floats:
    """The highest of each value of [B,C,h,w] and its eight neighbours."""
    padded = np.pad(maps, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    highest: Floats = windows.max(axis=(4, 5))
    return highest


def _sigmoid(logits: Floats) -> Floats:
    """The logistic function, in a form that never overflows."""
    shares: Floats = np.float32(0.5) * (np.tanh(np.float32(0.5) * logits) + np.float32(1))
    return shares


def _softmax(logits: Floats) -> Floats:
    """Shares [...,n] that add up to 1, in a form that never overflows."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    shares: Floats = powers / powers.sum(axis=-1, keepdims=True)
    return shares


DECODERS: dict[str, Callable[..., MapDecoder]] = {
    "anchor": AnchorDecoder,
    "center": CenterDecoder,
    "query": QueryDecoder,
    "gfl": GridDecoder,
    "ssd": SSDDecoder,
}


def build_decoder(name: str, decoding: Mapping[str, Any]) -> MapDecoder:
    """The decoder that a file's metadata name; ValueError for a name or settings that this version does not know."""
    if name not in DECODERS:
        raise ValueError(f"raw maps of an unknown kind {name!r}; this version knows {', '.join(DECODERS)}")
    try:
        return DECODERS[name](**decoding)
    except TypeError:
        raise ValueError(f"unknown settings {sorted(decoding)} of raw maps of kind {name!r}") from None
