"""What an augmentation is: an op with checked parameters, and the pipeline that runs ops in order.

An op is a frozen dataclass whose name is its name in the YAML file. Each parameter is one field
made by `param`: its name, default and check stand there and nowhere else.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from uhd.augment.sample import Sample

Check = Callable[[Any], Any]
"""Turns what YAML read into the parameter's value; a ValueError says what was expected."""


def param(default: Any, check: Check) -> Any:
    """A dataclass field that is also a parameter in the YAML file."""
    return dataclasses.field(default=default, metadata={"check": check})


def number(low: float, high: float) -> Check:
    """Accepts an int or a float from low to high, both included."""

    def check(value: Any) -> float:
        # A bool is an int to Python, but `prob: yes` is a slip; nan fails the comparison.
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise ValueError(f"expected a number from {low:g} to {high:g}")
        return float(value)

    return check


def whole_number_pair(low: int, high: int) -> Check:
    """Accepts a list of two ints from low to high, both included."""

    def check(value: Any) -> tuple[int, int]:
        if not isinstance(value, list) or len(value) != 2 or not all(_is_int(v) and low <= v <= high for v in value):
            raise ValueError(f"expected a list of two whole numbers from {low} to {high}")
        return value[0], value[1]

    return check


def class_map(value: Any) -> tuple[tuple[int, int], ...]:
    """Accepts a mapping of class ids to class ids; gives its pairs."""
    if not isinstance(value, dict) or not all(_is_int(v) and v >= 0 for pair in value.items() for v in pair):
        raise ValueError("expected a mapping of class ids to class ids, such as {1: 2, 2: 1}")
    return tuple(value.items())


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


@dataclass(frozen=True)
class Op(ABC):
    """One augmentation. prob: the share of samples that it is applied to, 0..1."""

    bare: ClassVar[str] = "prob"
    """The parameter that a bare number in the YAML file sets."""

    prob: float = param(0.0, number(0, 1))

    def bind(self, classes: Sequence[int]) -> Op:
        """The op for a data set whose class index i has the original id classes[i]."""
        return self

    @abstractmethod
    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """The augmented sample.

        Neither the given sample nor its arrays are changed; the result may share them. Boxes stay
        within 0..1 and rows stay in place: a truth that goes gets the label `uhd.types.IGNORED`.
        """


def checks(op_type: type[Op]) -> dict[str, Check]:
    """The parameters of an op, each with its check."""
    return {f.name: f.metadata["check"] for f in dataclasses.fields(op_type) if "check" in f.metadata}


class Pipeline:
    """Applies ops in order, each to its share `prob` of the samples.

    ops: those with a probability above 0; one that is off costs nothing and draws nothing, so that
    it leaves the other ops' random numbers as they are.
    """

    def __init__(self, ops: Sequence[Op]) -> None:
        self.ops = tuple(op for op in ops if op.prob > 0)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """The augmented sample; its image has the shape of the given one.

        The given sample and its arrays are never changed; the result may share them.
        """
        for op in self.ops:
            if rng.random() < op.prob:
                sample = op.apply(sample, rng)
        return sample
