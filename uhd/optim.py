"""Optimiser, learning-rate schedule and the state that a run resumes from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from uhd import dist
from uhd.config import OptimConfig
from uhd.ema import ModelEMA
from uhd.models import Detector
from uhd.task import DetectionTask

MOMENTUM = 0.9
FINAL_LR_SHARE = 0.01
MAX_BAD_STEPS = 10
"""A run stops when more steps than these in a row had a loss that is not finite."""


def build_optimizer(model: nn.Module, cfg: OptimConfig) -> torch.optim.Optimizer:
    """AdamW or SGD, fused; weight decay on matrices and kernels only (not on norms, biases, wh_scale)."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_plain = parameter.dim() < 2 or name.endswith("wh_scale")
        (plain if is_plain else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": cfg.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    if cfg.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=cfg.lr, momentum=MOMENTUM, nesterov=True, fused=True)
    return torch.optim.AdamW(groups, lr=cfg.lr, fused=True)


def lr_at(epoch: float, cfg: OptimConfig) -> float:
    """The learning rate after `epoch` (fractional) epochs: linear warm-up, then cosine to 1 % or constant."""
    if epoch < cfg.warmup_epochs:
        return cfg.lr * epoch / cfg.warmup_epochs
    if cfg.lr_schedule == "constant":
        return cfg.lr
    progress = (epoch - cfg.warmup_epochs) / max(cfg.epochs - cfg.warmup_epochs, 1e-9)
    share = (1 + math.cos(math.pi * min(progress, 1.0))) / 2
    return cfg.lr * (FINAL_LR_SHARE + (1 - FINAL_LR_SHARE) * share)


@dataclass
class Best:
    """The best validation so far: its mAP@0.5 and epoch (0 before the first)."""

    map50: float = -1.0
    epoch: int = 0


class TrainState:
    """Everything that changes while a task trains, as one state_dict: weights, EMA, optimiser, scaler, epoch, RNG.

    `epoch` is the number of finished epochs; `last_map` the mAP@0.5 of the newest validation.
    """

    def __init__(self, cfg: OptimConfig, task: DetectionTask, device: torch.device) -> None:
        self.cfg = cfg
        self.task = task
        self.device = device
        self.optimizer = build_optimizer(task, cfg)
        self.ema = ModelEMA(task.student, cfg.ema_decay) if cfg.use_ema else None
        # Float16 needs the scaled loss. In float32 the scaler only checks the gradients on the device and
        # skips a step that is not finite, without the host waiting for the answer.
        half = cfg.use_amp and device.type == "cuda"
        # There the scale stays 1: halved at each skipped step, it would reach 0 and make the weights nan.
        self.fixed_scale = None if half else 1.0
        self.scaler = torch.amp.GradScaler(device.type, init_scale=self.fixed_scale or 2.0**16)
        self.epoch = 0
        self.best = Best()
        self.last_map = 0.0
        # How many of the newest steps, in a row and over the epochs, had a loss that is not finite.
        self.bad_streak = torch.zeros((), device=device)

    @property
    def eval_model(self) -> Detector:
        """The weights that are validated and exported: the average where there is one."""
        model = self.ema.model if self.ema else self.task.student
        assert isinstance(model, Detector)
        return model

    def note_map(self, map50: float) -> bool:
        """Notes a validation's mAP@0.5 for the finished epoch; returns whether it is the best so far."""
        self.last_map = map50
        if map50 <= self.best.map50:
            return False
        self.best = Best(map50, self.epoch)
        return True

    def set_lr(self, epoch: float) -> float:
        """Sets and returns the learning rate for the step at `epoch` (fractional)."""
        lr = lr_at(epoch, self.cfg)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        return lr

    def backward(self, loss: torch.Tensor, share: float = 1.0) -> None:
        """Adds the scaled gradient of a loss; all nan where the loss is not finite, so that the step is skipped.

        share: of this loss in that of the step.
        """
        factor = torch.where(loss.detach().isfinite(), share, torch.nan)
        self.scaler.scale(loss * factor).backward()  # type: ignore[no-untyped-call]

    def step(self, finite: torch.Tensor) -> torch.Tensor:
        """After backward: clips, steps (unless a gradient is not finite), clears the gradients, moves the average.

        finite: whether the losses of this process were. The gradients of all processes are summed first; returns
        whether the losses of all were finite.
        """
        finite = dist.sum_gradients(self.task.parameters(), finite)
        if self.cfg.grad_clip_norm:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.task.parameters(), self.cfg.grad_clip_norm, foreach=True)
        self.scaler.step(self.optimizer)
        self.scaler.update(self.fixed_scale)
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema:
            self.ema.update()
        return finite

    def share_buffers(self) -> None:
        """Gives all processes the mean of their batch-norm statistics, each of which has seen a part of the batches."""
        dist.average(self._buffers())

    def snapshot_buffers(self) -> list[torch.Tensor]:
        """Copies of the floating buffers (batch-norm statistics) of the model and its average."""
        return [buffer.clone() for buffer in self._buffers()]

    @torch.no_grad()
    def restore_buffers(self, snapshot: list[torch.Tensor]) -> None:
        """Puts a snapshot back: a forward pass that overflowed leaves nan in the statistics for good."""
        for buffer, saved in zip(self._buffers(), snapshot, strict=True):
            buffer.copy_(saved)

    def _buffers(self) -> list[torch.Tensor]:
        models = [self.task.student, *([self.ema.model] if self.ema else [])]
        return [buffer for model in models for buffer in model.buffers() if buffer.is_floating_point()]

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values only."""
        return {
            "model": self.task.student.state_dict(),
            "criterion": self.task.criterion.state_dict(),
            "ema": self.ema.state_dict() if self.ema else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "epoch": self.epoch,
            "best": {"map50": self.best.map50, "epoch": self.best.epoch},
            "last_map": self.last_map,
            "rng": {
                "cpu": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state_all() if self.device.type == "cuda" else [],
            },
        }

    def _check_moments(self) -> None:
        """ValueError where what the optimiser keeps of a parameter is not of its shape: a fused step does not look."""
        for parameter, kept in self.optimizer.state.items():
            for name, value in kept.items():
                expected = torch.Size() if name == "step" else parameter.shape
                if value is not None and (not isinstance(value, torch.Tensor) or value.shape != expected):
                    found = list(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
                    raise ValueError(f"the optimizer's {name} is {found}; expected {list(expected)}")

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over a saved state, in place."""
        self.task.student.load_state_dict(state["model"])
        self.task.criterion.load_state_dict(state["criterion"])
        if self.ema and state["ema"]:
            self.ema.load_state_dict(state["ema"])
        elif self.ema:
            self.ema = ModelEMA(self.task.student, self.cfg.ema_decay)
        self.optimizer.load_state_dict(state["optimizer"])
        self._check_moments()
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.epoch = state["epoch"]
        self.best = Best(**state["best"])
        self.last_map = state["last_map"]
        torch.set_rng_state(state["rng"]["cpu"])
        if self.device.type == "cuda" and state["rng"]["cuda"]:
            torch.cuda.set_rng_state_all(state["rng"]["cuda"])
