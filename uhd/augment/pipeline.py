"""What an augmentation is: an op with checked parameters, and the pipeline that runs ops in order.

An op is a frozen dataclass whose name is its name in the YAML file. Each parameter is one field
made by `param`: its name, default and check stand there and nowhere else.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from uhd.augment.params import Check, number, param
from uhd.augment.sample import Image, Sample

Draw = Callable[[], Sample]
"""Gives a picture of the training set, drawn at random: as it is stored, not augmented, of the working size."""


@dataclass(frozen=True)
class Op(ABC):
    """One augmentation. prob: the share of samples that it is applied to, 0..1.

    An op draws its strength by `rng.uniform` and everything else (places, coin flips, noise) by other methods of
    the generator, so that a preview can show one strength after the other.
    """

    bare: ClassVar[str] = "prob"
    """The parameter that a bare number in the YAML file sets."""
    needs_detail: ClassVar[bool] = False
    """Whether a picture larger than the network's input gives a better result: it may show a part of it enlarged."""

    prob: float = param(0.0, number(0, 1))

    def bind(self, classes: Sequence[int]) -> Op:
        """The op for a data set whose class index i has the original id classes[i]."""
        return self

    @abstractmethod
    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """The augmented sample, its picture of the same size.

        Neither the given sample nor its arrays are changed; the result may share them. Boxes stay
        within 0..1. A truth that is no longer to be learned, but of which something may be seen,
        gets the label `uhd.types.IGNORED`; one of which nothing is left goes.
        """


@dataclass(frozen=True)
class MultiImageOp(Op):
    """An op that shows parts of other pictures of the training set too."""

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """The sample combined with itself, as in a set of one picture."""
        return self.combine(sample, rng, lambda: sample)

    @abstractmethod
    def combine(self, sample: Sample, rng: np.random.Generator, draw: Draw) -> Sample:
        """The sample combined with pictures from `draw`; what is said of `apply` holds."""


def checks(op_type: type[Op]) -> dict[str, Check]:
    """The parameters of an op, each with its check."""
    return {f.name: f.metadata["check"] for f in dataclasses.fields(op_type) if "check" in f.metadata}


class Pipeline:
    """Applies ops in order, each to its share `prob` of the samples.

    ops: those with a probability above 0; one that is off costs nothing and draws nothing, so that
    it leaves the other ops' random numbers as they are.
    to_output: brings a picture of the working size to the network's. This is done after the last op
    that gains by the larger picture: flips and colours come to the same on the smaller one, at a
    fraction of the time. None keeps the size.
    """

    def __init__(self, ops: Sequence[Op], to_output: Callable[[Image], Image] | None = None) -> None:
        self.ops = tuple(op for op in ops if op.prob > 0)
        self.to_output = to_output
        self._detailed = max((i for i, op in enumerate(self.ops, start=1) if op.needs_detail), default=0)

    @property
    def needs_detail(self) -> bool:
        """Whether any op gains by pictures larger than the network's input."""
        return self._detailed > 0

    @property
    def mixes(self) -> bool:
        """Whether any op shows more than one picture."""
        return any(isinstance(op, MultiImageOp) for op in self.ops)

    def without_mixing(self) -> Pipeline:
        """The same pipeline less the ops that show more than one picture."""
        return Pipeline([op for op in self.ops if not isinstance(op, MultiImageOp)], self.to_output)

    def with_output(self, to_output: Callable[[Image], Image]) -> Pipeline:
        """The same ops with this last resize."""
        return Pipeline(self.ops, to_output)

    def __call__(self, sample: Sample, rng: np.random.Generator, draw: Draw | None = None) -> Sample:
        """The augmented sample; without `draw` it is the only picture that there is.

        The given sample and its arrays are never changed; the result may share them.
        """
        others = draw or (lambda: sample)
        detailed = _run(self.ops[: self._detailed], sample, rng, others)
        return _run(self.ops[self._detailed :], self.resized(detailed), rng, lambda: self.resized(others()))

    def resized(self, sample: Sample) -> Sample:
        """A sample of the working size as the network's."""
        if self.to_output is None:
            return sample
        return Sample(self.to_output(sample.image), sample.boxes, sample.labels)

    def sees_output(self, op: Op) -> bool:
        """Whether an op of the pipeline works on pictures of the network's size."""
        return op in self.ops[self._detailed :]


def _run(ops: Sequence[Op], sample: Sample, rng: np.random.Generator, draw: Draw) -> Sample:
    for op in ops:
        if rng.random() < op.prob:
            sample = apply_op(op, sample, rng, draw)
    return sample


def apply_op(op: Op, sample: Sample, rng: np.random.Generator, draw: Draw) -> Sample:
    """What an op makes of a sample, whatever its probability."""
    return op.combine(sample, rng, draw) if isinstance(op, MultiImageOp) else op.apply(sample, rng)
