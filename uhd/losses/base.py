"""What a criterion is to the rest of the program, beside being called."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from uhd.types import Targets


class SeparableCriterion(nn.Module, ABC):
    """A criterion whose terms are sums over pictures, divided by a number that the truths alone give.

    So a batch can be judged in parts: the terms of the whole are the parts' terms, each times the part's `normaliser`
    and divided by the whole's, added up.
    """

    @abstractmethod
    def normaliser(self, targets: Targets) -> Tensor:
        """What the sums over a batch are divided by."""
