"""Parameters of ops: a field with a default, and the check that turns what YAML read into its value."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

Check = Callable[[Any], Any]
"""Turns what YAML read into the parameter's value; a ValueError says what was expected."""

FILL = (114, 114, 114)
"""Grey of the places that no picture covers."""


def param(default: Any, check: Check) -> Any:
    """A dataclass field that is also a parameter in the YAML file."""
    return dataclasses.field(default=default, metadata={"check": check})


def number(low: float, high: float) -> Check:
    """Accepts an int or a float from low to high, both included."""

    def check(value: Any) -> float:
        if not _is_number(value) or not low <= value <= high:
            raise ValueError(f"expected a number from {low:g} to {high:g}")
        return float(value)

    return check


def whole_number(low: int, high: int) -> Check:
    """Accepts an int from low to high, both included."""

    def check(value: Any) -> int:
        if not _is_int(value) or not low <= value <= high:
            raise ValueError(f"expected a whole number from {low} to {high}")
        return int(value)

    return check


def number_range(low: float, high: float) -> Check:
    """Accepts a list of two numbers from low to high, the smaller first; a single one x means [x, x]."""

    def check(value: Any) -> tuple[float, float]:
        pair = [value, value] if _is_number(value) else value
        if not _is_pair(pair, _is_number) or not low <= pair[0] <= pair[1] <= high:
            raise ValueError(f"expected a list of two numbers from {low:g} to {high:g}, the smaller first")
        return float(pair[0]), float(pair[1])

    return check


def whole_number_pair(low: int, high: int) -> Check:
    """Accepts a list of two ints from low to high, both included."""

    def check(value: Any) -> tuple[int, int]:
        if not _is_pair(value, _is_int) or not all(low <= v <= high for v in value):
            raise ValueError(f"expected a list of two whole numbers from {low} to {high}")
        return value[0], value[1]

    return check


def switch(value: Any) -> bool:
    """Accepts true or false."""
    if not isinstance(value, bool):
        raise ValueError("expected true or false")
    return value


def color(value: Any) -> tuple[int, int, int]:
    """Accepts a list of three grey levels, or one for all three."""
    levels = [value] * 3 if _is_int(value) else value
    if not isinstance(levels, list) or len(levels) != 3 or not all(_is_int(v) and 0 <= v <= 255 for v in levels):
        raise ValueError("expected a list of three whole numbers from 0 to 255 (red, green, blue)")
    return levels[0], levels[1], levels[2]


def class_map(value: Any) -> tuple[tuple[int, int], ...]:
    """Accepts a mapping of class ids to class ids; gives its pairs."""
    if not isinstance(value, dict) or not all(_is_int(v) and v >= 0 for pair in value.items() for v in pair):
        raise ValueError("expected a mapping of class ids to class ids, such as {1: 2, 2: 1}")
    return tuple(value.items())


def _is_int(value: Any) -> bool:
    # A bool is an int to Python, but `prob: yes` is a slip.
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_int(value) or isinstance(value, float)


def _is_pair(value: Any, is_valid: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(is_valid, value))
