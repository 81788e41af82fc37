"""Train, validate and inspect people detectors: `python train.py --help`."""

from __future__ import annotations

import uhd.process  # noqa: F401  # isort: skip - settings that torch reads when it is loaded
from uhd.cli import check_args, parse_args  # isort: skip
from uhd.program import exit_code_of, leave_on_mistake  # isort: skip
from uhd.signals import StopSignals, leave_at_once  # isort: skip

if __name__ == "__main__":
    # torch takes seconds to load: a signal, a mistake in the flags and --help are answered before.
    leave_at_once("train.py")
    leave_on_mistake("train.py", check_args)

import json
import logging
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from uhd import dist, notices
from uhd.augment import load_pipeline
from uhd.checkpoint import Checkpoint, load_fitting, names_file
from uhd.config import Config, Size
from uhd.data.build import build_datasets
from uhd.data.cache import available_cores
from uhd.data.dataset import DetectionDataset
from uhd.data.loader import BatchLoader, build_loader
from uhd.data.synthetic import write_demo_data
from uhd.distill_task import DistillTask, Teachers, build_distill_task, load_teachers
from uhd.engine import Progress, Validation, evaluate, train_one_epoch
from uhd.files import write_whole
from uhd.gradcam import explain_pictures
from uhd.inspection import inspect_data
from uhd.logger import finite_or_none, log_to_console, make_folder, open_run_dir
from uhd.models import build_model, count_macs, count_parameters
from uhd.optim import TrainState
from uhd.preview import preview_augmentation
from uhd.recorder import Recorder, summarise
from uhd.reports import write_reports
from uhd.resolve import name_classes, resolve
from uhd.task import DetectionTask

SECONDS_TO_STOP = 20.0
"""What a signal leaves a process that may be waiting for another one."""

log = logging.getLogger("uhd")


def main(argv: Sequence[str] | None = None) -> int:
    """Does what the flags ask for; returns the exit code: 2 for a mistake of the user's, 130 and 143 for signals."""
    exit_code = exit_code_of("train.py", lambda signals: run(argv, signals))
    dist.leave(exit_code)
    return exit_code


def run(argv: Sequence[str] | None, signals: StopSignals) -> None:
    """One session: prepare, then inspect, validate or train."""
    log_to_console(quiet=not dist.is_main())
    cfg, checkpoint = parse_args(argv)
    if cfg.run.gradcam:
        assert checkpoint is not None
        show_heat(cfg, checkpoint)
        return
    device = dist.setup(cfg.run.device)
    if dist.world_size() > 1:
        signals.insist(SECONDS_TO_STOP)
    teachers = None if cfg.run.val_only or cfg.run.inspect or cfg.run.preview_aug else load_teachers(cfg)
    with dist.main_first():
        train_set, val_set = build_data(cfg, teachers.picture_size(cfg.input.img_size) if teachers else None)
    if checkpoint is None:
        cfg = name_classes(cfg, train_set)
    notices.on_swaps(cfg, train_set)
    if cfg.run.inspect or cfg.run.preview_aug:
        if dist.is_main():
            show_data(cfg, train_set, val_set)
        return
    if not cfg.run.val_only:
        cfg = resolve(cfg, train_set, teachers.section if teachers and cfg.distill.compares_outputs else None)
    torch.manual_seed(cfg.data.seed)
    train_loader = None if cfg.run.val_only else loader_of(train_set, cfg, device, shuffle=True)
    if train_loader:
        notices.on_precision(cfg, device)
        if cfg.data.background_share:
            notices.on_backgrounds(train_set, train_loader, cfg)
    pictures = train_loader.batch_sampler.pictures_in_epoch if train_loader else 0
    state = state_of(cfg, checkpoint, teachers, pictures, device)
    val_loader = loader_of(val_set, cfg, device, shuffle=False)
    if train_loader is None:
        validate_only(cfg, state, val_loader, signals)
        return
    if isinstance(state.task, DistillTask) and cfg.distill.teacher_cache:
        state.task.remember(train_set, cfg, progress_of("teacher", signals))
    last_epoch = cfg.optim.stop_epoch or cfg.optim.epochs
    if state.epoch >= last_epoch:
        log.info("nothing is left to do: %d of %d epochs are finished", state.epoch, last_epoch)
        summarise(Path(cfg.run.run_dir), state, None)
        return
    recorder: Recorder | None = None
    if dist.is_main():
        folder = open_run_dir(cfg.run, continues=goes_on_in_place(cfg, checkpoint))
        recorder = Recorder(folder, cfg, state, val_set)
    train(cfg, recorder, state, (train_loader, val_loader), signals)


def state_of(
    cfg: Config, checkpoint: Checkpoint | None, teachers: Teachers | None, pictures: int, device: torch.device
) -> TrainState:
    """The network and what trains it, on the device: new, with a checkpoint's weights, or as a resumed run left it.

    pictures: that many are seen in an epoch.
    """
    student = build_model(cfg.model)
    if cfg.optim.sync_bn:
        dist.share_batch_statistics(student, device)
    task = build_distill_task(cfg, student, teachers, pictures)
    task = task.to(device).to(memory_format=torch.channels_last)
    describe_model(task, cfg)
    goes_on = bool(cfg.run.resume) and not cfg.run.val_only
    if checkpoint and goes_on:
        notices.on_changed_augmentation(cfg, checkpoint.path.parent)
    elif checkpoint:
        load_weights(task, checkpoint, cfg)
    state = TrainState(cfg.optim, task, device)
    if checkpoint and goes_on:
        with names_file(checkpoint, "--resume"):
            state.load_state_dict(checkpoint.state)
    return state


def train(
    cfg: Config,
    recorder: Recorder | None,
    state: TrainState,
    loaders: tuple[BatchLoader, BatchLoader],
    signals: StopSignals,
) -> None:
    """The epochs that are left; each ends with a saved state. The recorder is the first process's."""
    train_loader, val_loader = loaders
    last_epoch = cfg.optim.stop_epoch or cfg.optim.epochs
    validation: Validation | None = None
    signals.defer()
    try:
        if recorder:
            recorder.start()
        while state.epoch < last_epoch:
            title = f"epoch {state.epoch + 1}/{cfg.optim.epochs}"
            stats = train_one_epoch(
                state.task, train_loader, state, Progress(title, cfg.run.log_interval, signals.check)
            )
            is_due = state.epoch % cfg.eval.eval_interval == 0 or state.epoch == last_epoch
            is_best = False
            if is_due and len(dataset_of(val_loader)):
                validation = evaluate(state.eval_model, state.task, val_loader, cfg, progress_of("validation", signals))
                stats |= validation.metrics
                is_best = state.note_map(dist.of_main(validation.evaluation.map50))
                if not math.isfinite(stats["val/loss"] or 0):
                    log.warning("epoch %d: the validation loss is not finite", state.epoch)
            if recorder:
                recorder.epoch(stats, validation if is_best else None)
            # Only a validation can say that nothing got better.
            if is_due and validation and 0 < cfg.optim.patience <= state.epoch - state.best.epoch:
                log.info("no better mAP for %d epochs: stopping (--patience)", cfg.optim.patience)
                break
            signals.check()
        if recorder:
            recorder.finish(validation)
    finally:
        if recorder:
            recorder.close()


def goes_on_in_place(cfg: Config, checkpoint: Checkpoint | None) -> bool:
    """Whether the run writes on in the folder of the checkpoint that it resumes from."""
    if not cfg.run.resume or checkpoint is None:
        return False
    return checkpoint.path.resolve().parent == Path(cfg.run.run_dir).resolve()


def validate_only(cfg: Config, state: TrainState, val_loader: BatchLoader, signals: StopSignals) -> None:
    """Validates the loaded weights and writes val.json and the pictures into the run folder."""
    if not len(dataset_of(val_loader)):
        raise ValueError(f"--val-only: no picture to validate with (--val-split {cfg.data.val_split})")
    run_dir = make_folder(Path(cfg.run.run_dir), "--ckpt-out" if cfg.run.ckpt_out else "--exp-name")
    validation = evaluate(state.eval_model, state.task, val_loader, cfg, progress_of("validation", signals))
    if not dist.is_main():
        return
    figures = {key: finite_or_none(value) for key, value in validation.metrics.items()}
    write_whole(run_dir / "val.json", (json.dumps(figures, indent=2) + "\n").encode())
    for key, value in figures.items():
        log.info("%-38s %s", key, "-" if value is None else f"{value:.5f}")
    write_reports(run_dir, validation, dataset_of(val_loader), cfg, [], prefix="val_")
    log.info("mAP@0.5 %.5f; figures and pictures: %s", validation.evaluation.map50, run_dir / "val.json")


def build_data(cfg: Config, train_size: Size | None = None) -> tuple[DetectionDataset, DetectionDataset]:
    """The training and the validation set, drawn first where the demonstration data are asked for.

    train_size: size of the training pictures, where it is not the network's.
    """
    assert cfg.labels.classes is not None
    augments = cfg.data.aug and not cfg.run.val_only
    transform = load_pipeline(cfg.data.aug_config, cfg.labels.classes) if augments else None
    notices.on_augmentation(cfg, transform, train_size or cfg.input.img_size)
    if cfg.data.demo_data:
        write_demo_data(Path(cfg.data.image_dir), cfg.data.demo_data, cfg.data.seed, available_cores())
    need_train = not cfg.run.val_only
    train_set, val_set = build_datasets(
        cfg.input, cfg.labels, cfg.data, transform, need_train=need_train, train_size=train_size
    )
    if cfg.data.close_mosaic:
        train_set.close_mixing(cfg.optim.epochs - cfg.data.close_mosaic)
    return train_set, val_set


def show_data(cfg: Config, train_set: DetectionDataset, val_set: DetectionDataset) -> None:
    """What --inspect and --preview-aug ask for: text and pictures of what the data hold, or of their augmentation."""
    if cfg.run.inspect:
        train_set.close_mixing(0)  # a tile shows the picture whose name it bears
        folder = make_folder(Path(cfg.run.run_dir) / "inspect", "--ckpt-out")
        log.info("%s", inspect_data(train_set, val_set, cfg, folder))
        return
    assert cfg.run.preview_aug is not None
    folder = make_folder(Path(cfg.run.run_dir) / "preview", "--ckpt-out" if cfg.run.ckpt_out else "--exp-name")
    for path in preview_augmentation(train_set, cfg.run.preview_aug, folder):
        log.info("wrote %s", path)
    log.info("green: learned, orange: not learned")


def show_heat(cfg: Config, checkpoint: Checkpoint) -> None:
    """What --gradcam asks for: pictures of where the strongest detection comes from."""
    folder = make_folder(Path(cfg.run.run_dir), "--ckpt-out" if cfg.run.ckpt_out else "--exp-name")
    for path in explain_pictures(cfg, checkpoint.path, folder):
        log.info("wrote %s", path)


def describe_model(task: DetectionTask, cfg: Config) -> None:
    """One line on the network's size."""
    height, width = cfg.input.img_size
    size = count_parameters(task.student), count_macs(task.student, height, width)
    log.info(
        "%s: %s parameters, %s multiply-adds at %dx%d", cfg.model.arch, f"{size[0]:,}", f"{size[1]:,}", height, width
    )


def load_weights(task: DetectionTask, checkpoint: Checkpoint, cfg: Config) -> None:
    """A checkpoint's weights alone; what does not fit is left, with a line each, where --ckpt-non-strict is given."""
    weights = checkpoint.weights if cfg.optim.use_ema or not cfg.run.val_only else checkpoint.state["model"]
    if not cfg.run.ckpt_non_strict:
        with names_file(checkpoint, "--resume" if cfg.run.resume else "--ckpt"):
            task.student.load_state_dict(weights)
        return
    for note in load_fitting(task.student, weights):
        log.info("--ckpt-non-strict: %s", note)


def loader_of(dataset: DetectionDataset, cfg: Config, device: torch.device, *, shuffle: bool) -> BatchLoader:
    """A loader as the flags ask for it."""
    return build_loader(
        dataset,
        cfg.optim.batch_size,
        cfg.data.num_workers,
        shuffle=shuffle,
        device_is_cuda=device.type == "cuda",
        background_share=cfg.data.background_share,
    )


def dataset_of(loader: BatchLoader) -> DetectionDataset:
    """The loader's data set."""
    assert isinstance(loader.dataset, DetectionDataset)
    return loader.dataset


def progress_of(title: str, signals: StopSignals) -> Progress:
    """A bar that updates at every step."""
    return Progress(title, 1, signals.check)


if __name__ == "__main__":
    sys.exit(main())
