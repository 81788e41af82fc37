"""Checkpoints: complete or not there, plain values only, enough to rebuild the model alone."""

from __future__ import annotations

import contextlib
import os
import platform
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision

import uhd
from uhd.checkpoint_reading import FORMAT, STATE_PARTS, Checkpoint, names_file, read_checkpoint
from uhd.config import Config
from uhd.models import Detector, build_model
from uhd.optim import TrainState

__all__ = [
    "FORMAT",
    "KEEP",
    "STATE_PARTS",
    "Checkpoint",
    "find_resumable",
    "load_fitting",
    "load_model",
    "names_file",
    "read_checkpoint",
    "remove_temporary_files",
    "save_checkpoint",
    "versions",
]

KEEP = 10
TEMPORARY = ".tmp"


def load_model(path: Path | str) -> tuple[Detector, Config]:
    """The validated model of a checkpoint, in evaluation mode, and the config it was trained with."""
    checkpoint = read_checkpoint(path)
    model = build_model(checkpoint.config.model)
    model.load_state_dict(checkpoint.weights)
    return model.eval(), checkpoint.config


def load_fitting(model: Detector, weights: dict[str, torch.Tensor]) -> list[str]:
    """Loads what fits by name and shape; returns a line for each entry that does not, and each left as it was."""
    own = model.state_dict()
    fitting = {name: value for name, value in weights.items() if name in own and own[name].shape == value.shape}
    notes = []
    for name, value in weights.items():
        if name not in own:
            notes.append(f"{name}: not in this model")
        elif name not in fitting:
            notes.append(f"{name}: {list(value.shape)} in the checkpoint, {list(own[name].shape)} here")
    notes += [f"{name}: not in the checkpoint" for name in own if name not in weights]
    model.load_state_dict(fitting, strict=False)
    return notes


def find_resumable(path: Path | str) -> Path:
    """The file to resume from: the path itself, or the newest checkpoint of a run folder."""
    path = Path(path)
    if not path.is_dir():
        return path
    link = path / "last.pt"
    if link.is_file():
        return link.resolve()
    found = _numbered(path, "last")
    if not found:
        raise ValueError(f"--resume {path}: no checkpoint in this folder; expected last.pt or last_*.pt")
    return found[-1]


def save_checkpoint(
    run_dir: Path, cfg: Config, state: TrainState, metrics: dict[str, float | None], *, is_best: bool
) -> Path:
    """Writes last_<tag>_<epoch>_map_<m>.pt (and best_...), moves the plain links, removes all but the newest.

    Each file appears under its name only when it is complete and on the disk. OSError passes through.
    """
    content = {
        "program": "uhd",
        "format": FORMAT,
        "versions": versions(),
        "config": cfg.to_dict(),
        "state": state.state_dict(),
        "metrics": metrics,
    }
    tag = state.eval_model.tag
    path = run_dir / f"last_{tag}_{state.epoch:04d}_map_{state.last_map:.5f}.pt"
    _write(content, path)
    # last.pt moves after best.pt: a run that is killed in between does this epoch, and its best, again.
    if is_best:
        best = run_dir / path.name.replace("last_", "best_", 1)
        _duplicate(path, best)
        _link(best, run_dir / "best.pt")
    _link(path, run_dir / "last.pt")
    # A resumed epoch can end with another mAP; its older file would otherwise stay beside the new one.
    for stale in run_dir.glob(f"last_{tag}_{state.epoch:04d}_map_*.pt"):
        if stale != path:
            stale.unlink()
    _sync_folder(run_dir)
    _prune(run_dir)
    return path


def remove_temporary_files(run_dir: Path) -> None:
    """Clears what a killed save has left."""
    for path in run_dir.glob(f"*{TEMPORARY}"):
        path.unlink(missing_ok=True)


def versions() -> dict[str, str]:
    """Versions of what decides a result."""
    return {
        "uhd": uhd.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "numpy": np.__version__,
    }


def _write(content: dict[str, Any], path: Path) -> None:
    """A file that appears under its name when it is on the disk; what a failure leaves half-written goes."""
    temporary = path.with_suffix(TEMPORARY)
    try:
        with temporary.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _duplicate(source: Path, target: Path) -> None:
    """A second name of the file, or a copy where the file system has no hard links."""
    temporary = target.with_suffix(TEMPORARY)
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        temporary.write_bytes(source.read_bytes())
    temporary.replace(target)


def _link(target: Path, link: Path) -> None:
    """A relative symbolic link, moved in one step; a second name or copy where there are none."""
    temporary = link.with_suffix(TEMPORARY)
    temporary.unlink(missing_ok=True)
    try:
        temporary.symlink_to(target.name)
    except OSError:
        _duplicate(target, link)
        return
    temporary.replace(link)


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # some file systems cannot sync a folder; the files themselves are safe
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _prune(run_dir: Path) -> None:
    """Keeps the newest `last` files, the best `best` files and what the plain links name.

    A run that goes on from far back writes epochs below those of the files that are there.
    """
    ranked = sorted(_numbered(run_dir, "best"), key=lambda path: (float(path.stem.rpartition("_")[2]), path.name))
    linked = {(run_dir / link).resolve() for link in ("last.pt", "best.pt")}
    for path in (*_numbered(run_dir, "last")[:-KEEP], *ranked[:-KEEP]):
        if path.resolve() not in linked:
            path.unlink(missing_ok=True)


def _numbered(run_dir: Path, prefix: str) -> list[Path]:
    pattern = re.compile(rf"{prefix}_[^_]+_(\d{{4,}})_map_\d\.\d{{5}}\.pt")
    found = [(int(match[1]), path) for path in run_dir.iterdir() if (match := pattern.fullmatch(path.name))]
    return [path for _, path in sorted(found)]
