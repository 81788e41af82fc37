"""What a criterion is to the rest of the program.

It is called with raw maps, targets and, where several processes share a batch, `total`: the sums over the pictures of
one process are divided by the positives of all, so that the processes' terms, and their gradients, add up to what one
process would have. Called once with it by every process, a criterion calls it the same number of times in each.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from uhd.dist import Total, own
from uhd.types import Targets


class SeparableCriterion(nn.Module, ABC):
    """A criterion whose terms are sums over pictures, divided by a number that the truths alone give.

    So a batch can be judged in parts: the terms of the whole are the parts' terms, each times the part's `normaliser`
    and divided by the whole's, added up.
    """

    @abstractmethod
    def normaliser(self, targets: Targets, total: Total = own) -> Tensor:
        """What the sums over a batch are divided by."""
