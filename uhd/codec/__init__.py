"""Raw maps to boxes and back: the one place that knows how they are laid out; a module for each kind of head.

While a graph is traced for export, torch gives sizes as tensors. They are used as they come, never turned into plain
numbers, so that a graph can be exported whose height and width stay open.
"""

from __future__ import annotations

from uhd.codec.anchors import (
    AnchorLayout,
    Priors,
    anchor_scores,
    decode_anchor_boxes,
    decode_box_logits,
    encode_anchor_boxes,
    prior_places,
    split_anchor_map,
)
from uhd.codec.candidates import SMALLEST_DIFFERENCE, best_candidates
from uhd.codec.cells import EPS, cell_corners, cells_across
from uhd.codec.centers import CENTER_NAMES, center_scores, decode_centers, encode_centers
from uhd.codec.grids import (
    AUX,
    BINS,
    FARTHEST,
    Places,
    decode_distances,
    encode_distances,
    grid_names,
    grids_in,
    split_grids,
)
from uhd.codec.levels import (
    CENTRE_SCALE,
    MAX_LOG_RATIO,
    SIZE_SCALE,
    LevelLayout,
    LevelPriors,
    decode_offsets,
    encode_offsets,
    level_places,
    level_scores,
    split_levels,
)
from uhd.codec.queries import QUERY_NAMES, decode_query_boxes, query_scores

__all__ = [
    "AUX",
    "BINS",
    "CENTER_NAMES",
    "CENTRE_SCALE",
    "EPS",
    "FARTHEST",
    "MAX_LOG_RATIO",
    "QUERY_NAMES",
    "SIZE_SCALE",
    "SMALLEST_DIFFERENCE",
    "AnchorLayout",
    "LevelLayout",
    "LevelPriors",
    "Places",
    "Priors",
    "anchor_scores",
    "best_candidates",
    "cell_corners",
    "cells_across",
    "center_scores",
    "decode_anchor_boxes",
    "decode_box_logits",
    "decode_centers",
    "decode_distances",
    "decode_offsets",
    "decode_query_boxes",
    "encode_anchor_boxes",
    "encode_centers",
    "encode_distances",
    "encode_offsets",
    "grid_names",
    "grids_in",
    "level_places",
    "level_scores",
    "prior_places",
    "query_scores",
    "split_anchor_map",
    "split_grids",
    "split_levels",
]
