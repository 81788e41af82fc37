"""Trainings for tables of accuracy: each is done once, goes on where it was stopped, and gives its best epoch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

TRAIN = Path(__file__).resolve().parents[1] / "train.py"


def best_epoch(folder: Path, flags: Sequence[str], epochs: int, files: Any = None) -> dict[str, float]:
    """The figures of a run's epoch of best mAP@0.5; trains it, or what is left of it, where it is not finished.

    flags: of train.py, but for the number of epochs and the run's folder. files: what stands in files that the flags
    name. Both are noted beside the folder. Raises SystemExit where it was trained with others, or where train.py fails.
    """
    flags = [*flags, "--epochs", str(epochs), "--ckpt-out", str(folder)]
    settings = {"flags": flags, "files": files}
    noted = folder.with_name(f"{folder.name}.json")
    if noted.exists() and json.loads(noted.read_text()) != settings:
        raise SystemExit(f"{folder} was trained with other flags ({noted}); choose another --out")
    folder.parent.mkdir(parents=True, exist_ok=True)
    noted.write_text(json.dumps(settings))
    if len(validated_epochs(folder)) < epochs:
        resume = ["--resume", str(folder)] if (folder / "last.pt").exists() else []
        log_path = folder.with_name(f"{folder.name}.log")
        with open(log_path, "a") as log:
            command = [sys.executable, str(TRAIN), *flags, *resume]
            if subprocess.run(command, check=False, stdout=log, stderr=log).returncode:
                raise SystemExit(f"the training of {folder.name} failed; see {log_path}")
    return max(validated_epochs(folder), key=lambda epoch: epoch["val/mAP@0.5"])


def validated_epochs(folder: Path) -> list[dict[str, float]]:
    """The epochs of a run that were validated."""
    file = folder / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return [epoch for epoch in map(json.loads, lines) if epoch.get("val/mAP@0.5") is not None]


HEAD = "mAP@0.5 | lowest to highest | of each seed | epoch | AP50 of 9 px² and more | best F1"
"""Columns of `summary`."""


def summary(best: Sequence[dict[str, float]]) -> str:
    """Cells of a table: the means over the seeds of a training, and what each seed gave."""
    found = [epoch["val/mAP@0.5"] for epoch in best]
    visible, f1 = (np.mean([epoch[f"val/{key}"] for epoch in best]) for key in ("AP50_ge9px2", "best_f1"))
    each_seed = " ".join(f"{value:.3f}" for value in found)
    epochs = " ".join(str(epoch["epoch"]) for epoch in best)
    spread = f"{min(found):.3f} to {max(found):.3f}"
    return f"{np.mean(found):.3f} | {spread} | {each_seed} | {epochs} | {visible:.3f} | {f1:.3f}"


def split_flags(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """A command line's own arguments, and those for train.py that stand behind --."""
    own = list(arguments)
    if "--" not in own:
        return own, []
    place = own.index("--")
    return own[:place], own[place + 1 :]
