"""Some of a detector's classes, chosen by name. numpy only."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from uhd.export.decode_np import Candidates

_NUM_NEAREST = 3


def labels_of(wanted: Sequence[str], class_names: Sequence[str]) -> NDArray[np.int64]:
    """The labels of the wanted classes, sorted: names in any case, or numbers.

    Raises ValueError that lists the names nearest to one that is not there.
    """
    by_name = {name.casefold(): label for label, name in reversed(list(enumerate(class_names)))}
    by_number = {str(label): label for label in range(len(class_names))}
    known = {**by_number, **by_name}
    for each in wanted:
        if each.casefold() not in known:
            spelled = difflib.get_close_matches(each.casefold(), by_name, n=_NUM_NEAREST, cutoff=0.0)
            nearest = ", ".join(class_names[by_name[name]] for name in spelled)
            raise ValueError(f"class_filter {each}: no such class among {len(class_names)}; the nearest: {nearest}")
    return np.unique(np.array([known[each.casefold()] for each in wanted], dtype=np.int64))


def only(found: Candidates, labels: NDArray[np.int64]) -> Candidates:
    """Those of the candidates that have one of the labels."""
    return found.take(np.isin(found.labels, labels))
