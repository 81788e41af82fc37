"""What a run says before it begins: settings without effect or to its harm, and what is done beside the flags."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from uhd.augment import Pipeline
from uhd.augment.geometric import HorizontalFlip
from uhd.augment.kept import KEPT, has_changed
from uhd.config import Config, DataConfig, Size
from uhd.data.dataset import DetectionDataset
from uhd.data.loader import BatchLoader

log = logging.getLogger("uhd")


def on_augmentation(cfg: Config, transform: Pipeline | None, size: Size) -> None:
    """Warns of settings that the augmentation leaves without effect; ValueError where there is nothing to preview.

    size: (height, width) of the training pictures that the network sees.
    """
    if cfg.run.preview_aug and not (transform and transform.ops):
        reason = f"--aug-config {cfg.data.aug_config} turns nothing on" if transform else "the run is one with --no-aug"
        raise ValueError(f"--preview-aug: {reason}")
    if cfg.run.val_only:
        return
    if cfg.data.close_mosaic:
        _on_closing(cfg, transform)
    is_default = cfg.data.cache_px == DataConfig.cache_px
    if transform is None and not is_default:
        log.warning("--cache-px has no effect beside --no-aug")
    elif transform and not transform.needs_detail and not is_default:
        log.warning("--cache-px has no effect: no op of --aug-config %s gains by it", cfg.data.aug_config)
    elif transform and transform.needs_detail and cfg.data.cache_px <= max(size):
        message = "zooms and crops show no more detail than there is: --cache-px %d is not above the input's %d"
        log.info(message, cfg.data.cache_px, max(size))


def _on_closing(cfg: Config, transform: Pipeline | None) -> None:
    if transform is None:
        log.warning("--close-mosaic has no effect beside --no-aug")
    elif not transform.mixes:
        log.warning("--close-mosaic has no effect: --aug-config %s mixes no pictures", cfg.data.aug_config)
    elif cfg.data.close_mosaic >= cfg.optim.epochs:
        log.warning("--close-mosaic %d: no epoch of %d mixes pictures", cfg.data.close_mosaic, cfg.optim.epochs)


def on_changed_augmentation(cfg: Config, run_dir: Path) -> None:
    """A warning where the file of --aug-config is not what the run in this folder began with."""
    if cfg.data.aug and has_changed(cfg.data.aug_config, run_dir):
        message = "--aug-config %s differs from %s, which the run was trained with; the epochs left follow it"
        log.warning(message, cfg.data.aug_config, run_dir / KEPT)


def on_swaps(cfg: Config, train_set: DetectionDataset) -> None:
    """The classes that a flip swaps, by their names: the file gives numbers, which are easily those of others."""
    names = cfg.labels.class_names
    for op in train_set.transform.ops if train_set.transform else ():
        if isinstance(op, HorizontalFlip) and op.mirrored_class is not None:
            changed = enumerate(op.mirrored_class.tolist())
            swaps = [f"{names[index]} to {names[mirrored]}" for index, mirrored in changed if index != mirrored]
            log.info("HorizontalFlip.class_swap_map: %s", ", ".join(swaps))


def on_backgrounds(train_set: DetectionDataset, loader: BatchLoader, cfg: Config) -> None:
    """One line on how often pictures without a box are shown, where that is more than once."""
    backgrounds, shown = train_set.num_backgrounds, loader.batch_sampler.shown
    if shown > len(train_set):
        again = shown - len(train_set) + backgrounds
        log.info("%d training pictures without a box are shown %d times in an epoch of %d", backgrounds, again, shown)
    elif cfg.data.background_share != DataConfig.background_share:
        numbers = cfg.data.background_share, backgrounds, len(train_set)
        log.warning("--background-share %g has no effect: %d of %d training pictures are without a box", *numbers)


def on_precision(cfg: Config, device: torch.device) -> None:
    """A warning where mixed precision makes training slower: processors without AVX-512 only imitate bfloat16."""
    if cfg.optim.use_amp and device.type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX2":
        log.warning(
            "--use-amp: this processor has no bfloat16 of its own (AVX2); training is many times slower with it"
        )
