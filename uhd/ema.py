"""A moving average of a model's weights."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn


class ModelEMA:
    """A copy of a model that follows it: average = d * average + (1 - d) * model after each step.

    d ramps up as min(decay, (1 + n) / (10 + n)) with n steps, so that the first, bad weights are
    soon forgotten. Batch-norm statistics are averaged like weights; integer buffers are copied.
    The copy shares no tensor with the model.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.updates = 0
        averaged, source = self.model.state_dict(), model.state_dict()
        floating = [name for name, value in source.items() if value.is_floating_point()]
        self._averaged = [averaged[name] for name in floating]
        self._source = [source[name] for name in floating]
        self._copied = [(averaged[name], source[name]) for name in source if name not in set(floating)]

    @torch.no_grad()
    def update(self) -> None:
        """One step towards the model's present weights."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self._averaged, self._source, 1 - decay)
        for averaged, source in self._copied:
            averaged.copy_(source)

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors."""
        return {"model": self.model.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over a saved average, in place."""
        self.model.load_state_dict(state["model"])
        self.updates = state["updates"]
