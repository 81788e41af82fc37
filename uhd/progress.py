"""The bar of a long loop."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

from uhd import dist

T = TypeVar("T")


def progress_bar(items: Iterable[T], title: str, count: int | None = None) -> tqdm[T]:
    """A bar on terminals that vanishes at the end; of several processes of a run, the first one's alone."""
    hidden = None if dist.is_main() else True  # None: where there is no terminal
    return tqdm(items, desc=title, total=count, leave=False, dynamic_ncols=True, disable=hidden)
