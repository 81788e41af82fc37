"""Where a run writes down what happens: console, train.log, metrics.jsonl, TensorBoard, config.yaml."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import sys
from pathlib import Path
from typing import Any

import yaml
from torch.utils.tensorboard import SummaryWriter

from uhd.config import Config, RunConfig
from uhd.console import BarFriendlyHandler
from uhd.locking import Claim

Row = dict[str, Any]
LOCK = ".lock"
log = logging.getLogger("uhd")


class Backlog(logging.Handler):
    """Keeps what is logged before there is a run folder, for its train.log."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps one record."""
        self.records.append(record)


class LogFile(logging.FileHandler):
    """A file that is given up, with one warning, where it cannot be written."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Takes itself out of the log."""
        log.removeHandler(self)
        log.warning("%s cannot be written (%s)", self.baseFilename, sys.exc_info()[1])

    def close(self) -> None:
        """Ends the file, whether or not its last lines can be written."""
        with contextlib.suppress(OSError):
            super().close()


def log_to_console(*, quiet: bool = False) -> None:
    """Sets up the program's log once; a quiet one keeps to errors, for processes that say what another one says."""
    log.setLevel(logging.ERROR if quiet else logging.INFO)
    log.handlers = [BarFriendlyHandler(), Backlog()]
    log.propagate = False


def log_to_file(path: Path) -> None:
    """From here on, and from the start of the session, into this file."""
    file = LogFile(path, encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(file)
    for backlog in [handler for handler in log.handlers if isinstance(handler, Backlog)]:
        log.removeHandler(backlog)
        for record in backlog.records:
            if file in log.handlers:
                file.handle(record)


def open_run_dir(run: RunConfig, *, continues: bool) -> tuple[Path, Claim]:
    """Makes the run's folder, and claims it until the claim is released or the process ends.

    A folder that already holds a run, or that another process is about to write one into, is used only to continue its
    run; else NAME-2, NAME-3, ... is. Raises ValueError where that run is still being written.
    """
    base = folder = Path(run.run_dir)
    flag = "--ckpt-out" if run.ckpt_out else "--exp-name"
    if run.log_dir:
        make_folder(Path(run.log_dir), "--log-dir")
    if continues:
        claim = Claim.take(make_folder(folder, flag) / LOCK)
        if claim is None:
            raise ValueError(f"--resume {folder}: another process is writing this run")
        return folder, claim
    number = 1
    while _holds_run(folder) or (claim := _claim_fresh(make_folder(folder, flag))) is None:
        number += 1
        folder = base.with_name(f"{base.name}-{number}")
    if folder != base:
        log.info("%s already holds a run; this one goes to %s", base, folder)
    return folder, claim


def _claim_fresh(folder: Path) -> Claim | None:
    """Claims a folder for a new run; None where another process was quicker."""
    claim = Claim.take(folder / LOCK)
    if claim is not None and _holds_run(folder):
        claim.release()
        return None
    return claim


def make_folder(folder: Path, flag: str) -> Path:
    """Makes a folder where there is none; ValueError names the flag and the folder when it cannot be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{flag}: the folder {folder} cannot be made ({error.strerror})") from None
    if not os.access(folder, os.W_OK):
        raise ValueError(f"{flag}: the folder {folder} cannot be written to")
    return folder


def _holds_run(folder: Path) -> bool:
    return (folder / "config.yaml").exists() or (folder / "metrics.jsonl").exists() or any(folder.glob("last*.pt"))


class RunLog:
    """The files of a run that grow epoch by epoch; `history` holds the rows of metrics.jsonl."""

    def __init__(self, run_dir: Path, cfg: Config, epoch: int) -> None:
        """Continues after `epoch` finished epochs: what was logged beyond them is cut off."""
        self.metrics_path = run_dir / "metrics.jsonl"
        self.history = [row for row in read_metrics(self.metrics_path) if row["epoch"] <= epoch]
        self._rewrite()
        log_to_file(run_dir / "train.log")
        with (run_dir / "config.yaml").open("w", encoding="utf-8") as file:
            yaml.safe_dump(cfg.to_dict(), file, sort_keys=False, allow_unicode=True)
        events = Path(cfg.run.log_dir) if cfg.run.log_dir else run_dir
        self.writer = SummaryWriter(str(events), purge_step=epoch + 1)

    def epoch(self, row: Row) -> None:
        """Writes one epoch's row everywhere."""
        row = {key: finite_or_none(value) for key, value in row.items()}
        self.history.append(row)
        with self.metrics_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        for key, value in row.items():
            if key != "epoch" and value is not None:
                self.writer.add_scalar(key, value, row["epoch"])
        self.writer.flush()
        log.info("%s", describe(row))

    def close(self) -> None:
        """Ends the files."""
        self.writer.close()
        for handler in [handler for handler in log.handlers if isinstance(handler, logging.FileHandler)]:
            log.removeHandler(handler)
            handler.close()

    def _rewrite(self) -> None:
        temporary = self.metrics_path.with_suffix(".jsonl.tmp")
        temporary.write_text("".join(json.dumps(row) + "\n" for row in self.history), encoding="utf-8")
        temporary.replace(self.metrics_path)


def read_metrics(path: Path) -> list[Row]:
    """The complete rows of a metrics file; a last line that a killed run left half-written is dropped."""
    rows: list[Row] = []
    if not path.is_file():
        return rows
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def finite_or_none(value: Any) -> Any:
    """JSON has no nan: a figure that does not exist is null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def describe(row: Row) -> str:
    """One line for the console."""
    parts = [f"epoch {row['epoch']}"]
    parts += [f"{key.removeprefix('train/')} {row[key]:.4f}" for key in row if key.startswith("train/")]
    if row.get("val/mAP@0.5") is not None:
        parts.append(f"| mAP@0.5 {row['val/mAP@0.5']:.5f}")
        parts.append(f"F1 {row['val/f1']:.3f}")
    parts.append(f"| {row['images_per_second']:.0f} images/s")
    return " ".join(parts)
