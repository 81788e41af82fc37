"""What raw maps say, in a form in which those of two networks can be compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from uhd import codec
from uhd.config import AnchorModelConfig, Head, ModelConfig, TinySSDConfig

Preds = dict[str, Tensor]


@dataclass(frozen=True)
class View:
    """The N candidates of each picture of a batch.

    boxes [B,N,4] xyxy; scores [B,N,C] in 0..1; ranking [B,N,C], the scores by which decoding ranks: of a heat map those
    of its peaks, the others 0; cls logits [B,N,C], or with the background
    [B,N,C+1] where is_softmax; obj and quality logits [B,N], where the head has them. cells (per_cell, h, w): the
    candidates are those of each cell of a grid, numbered (candidate of the cell, row, column); None for queries and for
    several grids, whose (h, w) are grids.
    """

    boxes: Tensor
    scores: Tensor
    ranking: Tensor
    cls: Tensor
    obj: Tensor | None
    quality: Tensor | None
    is_softmax: bool
    cells: tuple[int, int, int] | None
    grids: tuple[tuple[int, int], ...] = ()

    @property
    def weights(self) -> Tensor:
        """How much each candidate of a teacher counts, [B,N]: its best class's share of the ranking."""
        return self.ranking.amax(dim=2)

    def take(self, index: Tensor) -> View:
        """The candidates of index [B,M], which are no longer a grid's."""
        obj, quality = (None if value is None else _gathered(value, index) for value in (self.obj, self.quality))
        boxes, scores, ranking, cls = (
            _gathered(value, index) for value in (self.boxes, self.scores, self.ranking, self.cls)
        )
        return View(boxes, scores, ranking, cls, obj, quality, self.is_softmax, None)


def _gathered(value: Tensor, index: Tensor) -> Tensor:
    rest = value.shape[2:]
    return value.gather(1, index.reshape(*index.shape, *(1 for _ in rest)).expand(-1, -1, *rest))


def view_of(preds: Preds, cfg: ModelConfig) -> View:
    """The view of a network's raw maps; cfg is its section."""
    return _VIEWS[cfg.head](preds, cfg)


def _anchor_view(preds: Preds, cfg: ModelConfig) -> View:
    assert isinstance(cfg, AnchorModelConfig)
    layout = codec.AnchorLayout(cfg.num_anchors, cfg.num_classes, cfg.has_quality)
    priors = codec.split_anchor_map(preds[layout.raw_name].float(), layout)
    scores = codec.anchor_scores(priors, cfg.scores_without_obj, cfg.quality_power)
    return View(
        codec.decode_anchor_boxes(priors, preds["anchors"].float(), preds["wh_scale"].float()),
        scores,
        scores,
        priors.cls,
        priors.obj,
        priors.quality,
        False,
        (cfg.num_anchors, *priors.grid),
    )


def _center_view(preds: Preds, _: ModelConfig) -> View:
    heatmap, offsets, sizes = (preds[name].float() for name in codec.CENTER_NAMES)
    logits = heatmap.flatten(2).transpose(1, 2)
    grid = heatmap.shape[2], heatmap.shape[3]
    boxes, peaks = codec.decode_centers(offsets, sizes), codec.center_scores(heatmap)
    return View(boxes, logits.sigmoid(), peaks, logits, None, None, False, (1, *grid))


def _query_view(preds: Preds, _: ModelConfig) -> View:
    logits, boxes = (preds[name].float() for name in codec.QUERY_NAMES)
    scores = codec.query_scores(logits)
    return View(codec.decode_query_boxes(boxes), scores, scores, logits, None, None, True, None)


def _gfl_view(preds: Preds, cfg: ModelConfig) -> View:
    places = codec.split_grids(codec.grids_in(preds), cfg.num_classes)
    scores = places.cls.sigmoid()
    boxes = codec.decode_distances(places.sides, places.points, places.cells)
    return View(boxes, scores, scores, places.cls, None, None, False, None, tuple(places.grids))


def _ssd_view(preds: Preds, cfg: ModelConfig) -> View:
    assert isinstance(cfg, TinySSDConfig)
    layout = codec.LevelLayout(cfg.anchor_counts, cfg.num_classes, cfg.has_background)
    priors = codec.split_levels(preds, layout)
    boxes, scores = codec.decode_offsets(priors.box, priors.places), codec.level_scores(priors.cls, layout)
    return View(boxes, scores, scores, priors.cls, None, None, cfg.has_background, None, priors.grids)


_VIEWS: dict[Head, Callable[[Preds, ModelConfig], View]] = {
    "anchor": _anchor_view,
    "center": _center_view,
    "query": _query_view,
    "gfl": _gfl_view,
    "ssd": _ssd_view,
}


def covers(view: View, grid: tuple[int, int]) -> bool:
    """Whether the view's grid is the other one, or divides each of its cells into whole cells."""
    if view.cells is None:
        return False
    return all(own % other == 0 for own, other in zip(view.cells[1:], grid, strict=True))


def resample(view: View, grid: tuple[int, int]) -> View:
    """The view of a grid that covers another (h, w), for that one.

    Each cell takes, of those that it is divided into, the one of the highest score, with all that it says: a mean of
    two boxes would be neither.
    """
    assert view.cells is not None
    per_cell, height, width = view.cells
    if (height, width) == grid:
        return view
    best = view.scores.amax(dim=2).reshape(-1, per_cell, height, width)
    numbers = torch.arange(per_cell * height * width, device=best.device).reshape(per_cell, height, width)
    blocks = (-1, per_cell, grid[0], height // grid[0], grid[1], width // grid[1])
    order = (0, 1, 2, 4, 3, 5)
    highest = best.reshape(blocks).permute(order).flatten(4).argmax(dim=4, keepdim=True)
    divided = numbers.expand(len(best), -1, -1, -1).reshape(blocks).permute(order).flatten(4)
    index = divided.gather(4, highest).flatten(1)
    return replace(view.take(index), cells=(per_cell, *grid))


def with_classes(view: View, classes: list[int]) -> View:
    """The view of some of its classes, in this order; what a softmax says of the others belongs to the background."""
    cls = view.cls[..., classes]
    if view.is_softmax:
        others = [i for i in range(view.cls.shape[2]) if i not in classes]
        cls = torch.cat([cls, view.cls[..., others].logsumexp(dim=2, keepdim=True)], dim=2)
    return replace(view, scores=view.scores[..., classes], ranking=view.ranking[..., classes], cls=cls)
