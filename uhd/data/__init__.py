"""Pictures and labels on disk to batches for the network.

`images`, `resize`, `labels` and `listing` need no torch, so the two names that do are imported when they are asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uhd.data.build import build_datasets
    from uhd.data.loader import build_loader

__all__ = ["build_datasets", "build_loader"]

_HOMES = {"build_datasets": "uhd.data.build", "build_loader": "uhd.data.loader"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
