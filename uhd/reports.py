"""The pictures of a run, from what a validation found."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from uhd.config import Config
from uhd.data.dataset import DetectionDataset
from uhd.engine import Validation
from uhd.eval import report
from uhd.logger import Row

NUM_SAMPLES = 24


def write_reports(
    run_dir: Path, validation: Validation, val_set: DetectionDataset, cfg: Config, history: list[Row], prefix: str = ""
) -> None:
    """Samples with truth and prediction, PR curve, confidence curve and, with a history, loss and mAP curves.

    A picture that cannot be written is a warning: a full disk must not end a training run.
    """
    try:
        _write(run_dir, validation, val_set, cfg, history, prefix)
    except OSError as error:
        logging.getLogger("uhd").warning("the pictures of the run cannot be written: %s", error)


def _write(
    run_dir: Path, validation: Validation, val_set: DetectionDataset, cfg: Config, history: list[Row], prefix: str
) -> None:
    evaluation = validation.evaluation
    report.save_samples(run_dir / f"{prefix}samples.png", pick_samples(validation, val_set, cfg))
    report.save_pr_curve(run_dir / f"{prefix}pr_curve.png", evaluation, cfg.labels.class_names)
    report.save_f1_curve(run_dir / f"{prefix}f1_curve.png", evaluation)
    if history:
        report.save_loss_curves(run_dir / f"{prefix}loss_curves.png", history)


def pick_samples(validation: Validation, val_set: DetectionDataset, cfg: Config) -> list[report.Sample]:
    """Pictures spread evenly over the validation set, with detections from the threshold of best F1 up."""
    found = validation.samples
    threshold = validation.evaluation.at_best_f1.threshold
    samples = []
    for row in np.unique(np.linspace(0, len(found.ids) - 1, NUM_SAMPLES).round().astype(int)).tolist():
        index = int(found.ids[row])
        shown = (found.images == row) & (found.scores >= threshold)
        shown[np.flatnonzero(shown)[cfg.decode.topk :]] = False
        samples.append(
            report.Sample(
                image=val_set[index].image,
                truths=found.truth_boxes[found.truth_images == row],
                boxes=found.boxes[shown],
                scores=found.scores[shown],
                caption=Path(val_set.paths[index]).name,
            )
        )
    return samples
