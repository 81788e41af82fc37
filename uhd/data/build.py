"""From flags to the training and the validation set: listed, read, checked, reported."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from uhd.augment import Pipeline
from uhd.config import DataConfig, InputConfig, LabelsConfig, Size
from uhd.data.cache import ImageSpec, ImageStore, open_images
from uhd.data.dataset import Annotations, DetectionDataset, Problems, Ragged
from uhd.data.entries import Entries
from uhd.data.labels import clip_boxes
from uhd.data.limits import Limits
from uhd.data.listing import DEFAULT_CACHE_DIR, count_shared_stems, list_sets
from uhd.data.resize import resize

_log = logging.getLogger("uhd")


def build_datasets(
    input_cfg: InputConfig,
    labels_cfg: LabelsConfig,
    data_cfg: DataConfig,
    transform: Pipeline | None = None,
    *,
    need_train: bool = True,
    train_size: Size | None = None,
) -> tuple[DetectionDataset, DetectionDataset]:
    """Lists, reads and checks the training and the validation set; only the first is augmented.

    Where the transform gains by it, training pictures are kept at --cache-px and brought to the network's size at the
    end. labels_cfg is resolved. need_train=False leaves the training set empty. train_size: size of the training
    pictures where they are not to be of the network's (a teacher sees more).

    Raises ValueError for lists, folders and label lines that are wrong, and where no picture of a set is left; an empty
    validation set is one only where --val-split is 0 and warned of.
    """
    train_paths, val_paths = list_sets(data_cfg, need_train=need_train)
    shared = count_shared_stems(train_paths + val_paths)
    if shared:
        _log.warning("%d pictures share their label file with another picture of the same name", shared)
    if need_train and not train_paths:
        raise ValueError(f"--train-split {data_cfg.train_split}: no picture is left to train with")
    if not val_paths:
        _log.warning("no picture to validate with: --val-split is %s", data_cfg.val_split)
    spec = ImageSpec(input_cfg.img_size, input_cfg.resize_mode, limits=Limits.of(data_cfg))
    reduced = input_cfg.resize_mode == "opencv_inter_area"
    train_size = train_size or input_cfg.img_size
    larger = transform is not None and transform.needs_detail and data_cfg.cache_px > max(train_size)
    size = (data_cfg.cache_px, data_cfg.cache_px) if larger else train_size
    train = read_set("training", train_paths, replace(spec, size=size, reduced=reduced), labels_cfg, data_cfg)
    val = read_set("validation", val_paths, spec, labels_cfg, data_cfg)
    if transform is not None and larger:
        transform = transform.with_output(partial(resize, size=train_size, mode=input_cfg.resize_mode))
    train.transform = transform
    return train, val


def read_set(
    title: str, paths: Sequence[str], spec: ImageSpec, labels_cfg: LabelsConfig, data_cfg: DataConfig
) -> DetectionDataset:
    """Reads and checks the pictures of one set; title names it in messages.

    Raises ValueError where a label line is malformed or none of the pictures can be read.
    """
    images, entries = open_images(paths, spec, data_cfg.cache, data_cfg.cache_dir or DEFAULT_CACHE_DIR, title)
    bad_lines = _check_lines(entries, title, data_cfg.skip_bad_labels)
    unreadable = tuple(entries.errors[i] for i in sorted(entries.errors))
    readable = np.setdiff1d(np.arange(len(paths)), list(entries.errors), assume_unique=True)
    if unreadable and not len(readable):
        raise ValueError(f"none of the {len(paths)} {title} pictures can be read; first: {unreadable[0]}")
    annotations, problems = _annotate(entries, readable, labels_cfg)
    problems = replace(problems, unreadable=unreadable, bad_lines=bad_lines, shared_labels=count_shared_stems(paths))
    dataset = DetectionDataset(annotations, _Subset(images, readable), seed=data_cfg.seed, problems=problems)
    if paths:
        _report(title, dataset)
    return dataset


class _Subset:
    """Some of a store's pictures: the readable ones."""

    def __init__(self, images: ImageStore, chosen: NDArray[np.int64]) -> None:
        self._images = images
        self._chosen = chosen

    def gather(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        return self._images.gather(self._chosen[indices])


def _check_lines(entries: Entries, title: str, skip: bool) -> int:
    """The number of malformed label lines; raises ValueError naming the first, unless they are to be skipped."""
    count = sum(map(len, entries.bad_lines.values()))
    if not count:
        return 0
    first = min(entries.bad_lines)
    path, line = entries.label_path(first), entries.bad_lines[first][0]
    place = f"{path}:{line.number}" if line.number else path
    if not skip:
        more = f"; {count} bad lines in the {title} labels" if count > 1 else ""
        raise ValueError(f"{place}: {line.problem}{more} (--skip-bad-labels leaves out what is wrong)")
    _log.warning("%s labels: %d bad lines dropped, first %s: %s", title, count, place, line.problem)
    return count


def _annotate(entries: Entries, readable: NDArray[np.int64], cfg: LabelsConfig) -> tuple[Annotations, Problems]:
    """Keeps the boxes, in readable pictures, of the classes asked for, clipped to their pictures."""
    assert cfg.classes is not None
    is_readable = np.zeros(len(entries), bool)
    is_readable[readable] = True
    owners = np.repeat(np.arange(len(entries)), entries.counts)
    rows, owners = entries.rows[is_readable[owners]], owners[is_readable[owners]]
    matches = rows[:, :1] == np.array(cfg.classes, dtype=np.float64)
    wanted = matches.any(axis=1)
    boxes, inside, clipped = clip_boxes(rows[wanted, 1:])
    labels = matches[wanted].argmax(axis=1)[inside].astype(np.int64)
    counts = np.bincount(owners[wanted][inside], minlength=len(entries))[readable]
    annotations = Annotations(
        paths=[entries.paths[i] for i in readable],
        boxes=Ragged(boxes[inside], counts),
        labels=Ragged(labels, counts),
        sizes=entries.sizes[readable],
    )
    per_class = np.bincount(labels, minlength=len(cfg.classes))
    problems = Problems(
        clipped=int(clipped.sum()),
        dropped=int((~inside).sum()),
        first_dropped=entries.label_path(owners[wanted][~inside][0]) if not inside.all() else "",
        other_classes=int((~wanted).sum()),
        missing_classes=tuple(name for name, count in zip(cfg.class_names, per_class, strict=True) if not count),
    )
    return annotations, problems


def _report(title: str, dataset: DetectionDataset) -> None:
    """Says in the log what a set holds and what is wrong with it."""
    problems = dataset.problems
    _log.info(
        "%s: %d pictures, %d boxes, %d pictures without a box (background)",
        title,
        len(dataset),
        dataset.num_boxes,
        dataset.num_backgrounds,
    )
    if problems.other_classes:
        _log.info("%s: %d boxes of other classes than those chosen are left out", title, problems.other_classes)
    if problems.clipped:
        _log.warning("%s: %d boxes reach out of their pictures and are clipped", title, problems.clipped)
    if problems.dropped:
        _log.warning(
            "%s: %d boxes have no area inside their pictures (0..1) and are dropped, first in %s; labels are shares of "
            "the picture's size, not pixels",
            title,
            problems.dropped,
            problems.first_dropped,
        )
    if problems.unreadable:
        _log.warning("%s: %d pictures cannot be read and are skipped:", title, len(problems.unreadable))
        for line in problems.unreadable[:10]:
            _log.warning("  %s", line)
    for name in problems.missing_classes[:10]:
        _log.warning("%s: class %s has no box", title, name)
    if len(problems.missing_classes) > 10:
        _log.warning("%s: %d more classes have no box", title, len(problems.missing_classes) - 10)
