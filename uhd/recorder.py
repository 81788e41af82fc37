"""What a run leaves behind, epoch by epoch: checkpoints, figures, pictures and its last words."""

from __future__ import annotations

import logging
from pathlib import Path

from uhd import dist
from uhd.augment.kept import keep_file
from uhd.checkpoint import remove_temporary_files, save_checkpoint
from uhd.config import Config
from uhd.data.dataset import DetectionDataset
from uhd.engine import Validation
from uhd.locking import Claim
from uhd.logger import RunLog
from uhd.optim import TrainState
from uhd.reports import write_reports

Stats = dict[str, float | None]

log = logging.getLogger("uhd")


class Recorder:
    """Writes into a run's folder; of several processes, the first one's alone."""

    def __init__(self, folder: tuple[Path, Claim], cfg: Config, state: TrainState, val_set: DetectionDataset) -> None:
        """folder: as `open_run_dir` gives it."""
        self.run_dir, self.claim = folder
        self.cfg = cfg
        self.state = state
        self.val_set = val_set
        self.run_log: RunLog | None = None

    def start(self) -> None:
        """Continues after the finished epochs of the state; a run that begins gets a checkpoint at once.

        So one that is stopped inside its first epoch can be resumed too.
        """
        remove_temporary_files(self.run_dir)
        # First of all files: one that is killed before it leaves a folder that does not count as a run's.
        if self.state.epoch == 0:
            save_checkpoint(self.run_dir, self.cfg, self.state, {}, is_best=False)
        if self.cfg.data.aug:
            keep_file(self.cfg.data.aug_config, self.run_dir)
        self.run_log = RunLog(self.run_dir, self.cfg, self.state.epoch)
        log.info("run folder %s, device %s", self.run_dir, self.state.device)
        if dist.world_size() > 1:
            log.info("%d processes share each batch of %d pictures", dist.world_size(), self.cfg.optim.batch_size)

    def epoch(self, stats: Stats, best: Validation | None) -> None:
        """Writes the finished epoch down; best is its validation where none before was better."""
        assert self.run_log is not None
        # The row goes first: where the run ends between the two, resuming cuts it off and does the epoch again.
        self.run_log.epoch({"epoch": self.state.epoch, **stats})
        save_checkpoint(self.run_dir, self.cfg, self.state, stats, is_best=best is not None)
        if best is not None:
            write_reports(self.run_dir, best, self.val_set, self.cfg, self.run_log.history)

    def finish(self, last: Validation | None) -> None:
        """Draws the newest validation, and says how good the run is and where everything lies."""
        if last is not None and self.run_log is not None:
            write_reports(self.run_dir, last, self.val_set, self.cfg, self.run_log.history, prefix="last_")
        summarise(self.run_dir, self.state, last)

    def close(self) -> None:
        """Ends the files and gives the folder free."""
        if self.run_log is not None:
            self.run_log.close()
        self.claim.release()


def summarise(run_dir: Path, state: TrainState, last: Validation | None) -> None:
    """The last lines: how good it is and where everything lies."""
    if last:
        best = last.evaluation.at_best_f1
        log.info("last epoch: mAP@0.5 %.5f, best F1 %.3f at score %.3f", last.evaluation.map50, best.f1, best.threshold)
    if state.best.epoch:
        log.info("best epoch %d: mAP@0.5 %.5f", state.best.epoch, state.best.map50)
    files = {
        "checkpoint": "best.pt" if state.best.epoch else "last.pt",
        "curves": "loss_curves.png, pr_curve.png, f1_curve.png",
        "sample pictures": "samples.png",
        "figures by epoch": "metrics.jsonl",
    }
    for what, names in files.items():
        written = [str(run_dir / name) for name in names.split(", ") if (run_dir / name).exists()]
        if written:
            log.info("%-16s %s", what, ", ".join(written))
