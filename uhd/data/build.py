"""From flags to the training and the validation set: listed, read, checked, reported."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from uhd.augment import Pipeline
from uhd.config import DataConfig, InputConfig, LabelsConfig, Size, made_up_name
from uhd.data.annotations import FLAG, AnnotationSource
from uhd.data.cache import ImageSpec, ImageStore, open_images
from uhd.data.dataset import Annotations, DetectionDataset, Problems, Ragged
from uhd.data.entries import NOT_LISTED, Entries
from uhd.data.labels import clip_boxes
from uhd.data.limits import Limits
from uhd.data.listing import DEFAULT_CACHE_DIR, count_shared_stems, list_sets
from uhd.data.resize import resize
from uhd.types import IGNORED

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

    Where the transform gains by it, training pictures are kept at `working_size` and brought to the network's size at
    the end. labels_cfg is resolved. need_train=False leaves the training set empty. train_size: size of the training
    pictures where they are not to be of the network's (a teacher sees more).

    Raises ValueError for lists, folders and label lines that are wrong, and where no picture of a set is left; an empty
    validation set is one only where --val-split is 0 and warned of.
    """
    train_paths, val_paths = list_sets(data_cfg, need_train=need_train)
    annotations = AnnotationSource.of(data_cfg, train_paths + val_paths)
    shared = 0 if annotations else count_shared_stems(train_paths + val_paths)
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
    size = working_size(data_cfg.cache_px, train_size) if larger else train_size
    train_spec = replace(spec, size=size, reduced=reduced)
    train = read_set("training", train_paths, train_spec, labels_cfg, data_cfg, annotations)
    val = read_set("validation", val_paths, spec, labels_cfg, data_cfg, annotations)
    if transform is not None and larger:
        transform = transform.with_output(partial(resize, size=train_size, mode=input_cfg.resize_mode))
    train.transform = transform
    return train, val


def working_size(cache_px: int, size: Size) -> Size:
    """Size (height, width) that training pictures are kept at: --cache-px, rounded up to whole multiples of size.

    A picture that is brought to the network's size in two steps is then the one that validation makes in one; of 128
    pixels 96 would be read between the pixels, softer by a tenth.
    """
    height, width = (-(-cache_px // side) * side for side in size)
    if (height, width) != (cache_px, cache_px):
        _log.info("training pictures are kept at %dx%d, the next multiples from --cache-px %d", height, width, cache_px)
    return height, width


def read_set(
    title: str,
    paths: Sequence[str],
    spec: ImageSpec,
    labels_cfg: LabelsConfig,
    data_cfg: DataConfig,
    source: AnnotationSource | None = None,
) -> DetectionDataset:
    """Reads and checks the pictures of one set; title names it in messages. source: of labels that are no txt files.

    Raises ValueError where a label line is malformed or none of the pictures can be read.
    """
    folder = data_cfg.cache_dir or DEFAULT_CACHE_DIR
    images, entries = open_images(paths, spec, data_cfg.cache, folder, title, source)
    bad_lines = _check_lines(entries, title, data_cfg.skip_bad_labels)
    unlisted = [i for i in sorted(entries.errors) if entries.errors[i] == NOT_LISTED]
    unreadable = tuple(entries.errors[i] for i in sorted(entries.errors) if entries.errors[i] != NOT_LISTED)
    readable = np.setdiff1d(np.arange(len(paths)), list(entries.errors), assume_unique=True)
    if entries.errors and not len(readable):
        first = unreadable[0] if unreadable else f"{paths[0]}, {NOT_LISTED} {entries.annotations}"
        raise ValueError(f"none of the {len(paths)} {title} pictures can be read; first: {first}")
    annotations, problems = _annotate(entries, readable, labels_cfg)
    problems = replace(
        problems,
        unreadable=unreadable,
        bad_lines=bad_lines,
        shared_labels=0 if source else count_shared_stems(paths),
        unlisted=len(unlisted),
        first_unlisted=paths[unlisted[0]] if unlisted else "",
    )
    dataset = DetectionDataset(annotations, _Subset(images, readable), seed=data_cfg.seed, problems=problems)
    if paths:
        _warn_of_names(title, dataset, labels_cfg, entries.annotations)
        _report(title, dataset, is_annotated=source is not None)
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
    line = entries.bad_lines[first][0]
    place = f"{FLAG} " * bool(entries.annotations) + line.place(entries.label_path(first))
    if not skip:
        more = f"; {count} bad lines in the {title} labels" if count > 1 else ""
        raise ValueError(f"{place}: {line.problem}{more} (--skip-bad-labels leaves out what is wrong)")
    _log.warning("%s labels: %d bad lines dropped, first %s: %s", title, count, place, line.problem)
    return count


def _annotate(entries: Entries, readable: NDArray[np.int64], cfg: LabelsConfig) -> tuple[Annotations, Problems]:
    """Keeps the boxes, in readable pictures, of the classes asked for, clipped to their pictures."""
    wanted_ids = _wanted_ids(entries, cfg)
    is_readable = np.zeros(len(entries), bool)
    is_readable[readable] = True
    owners = np.repeat(np.arange(len(entries)), entries.counts)
    rows, owners = entries.rows[is_readable[owners]], owners[is_readable[owners]]
    is_ignored = rows[:, 0] < 0
    classes = np.where(is_ignored, -1 - rows[:, 0], rows[:, 0])  # `ignored_class`
    matches = classes[:, None] == np.array(wanted_ids, dtype=np.float64)
    wanted = matches.any(axis=1)
    boxes, inside, clipped = clip_boxes(rows[wanted, 1:])
    labels = np.where(is_ignored[wanted], IGNORED, matches[wanted].argmax(axis=1))[inside].astype(np.int64)
    counts = np.bincount(owners[wanted][inside], minlength=len(entries))[readable]
    annotations = Annotations(
        paths=[entries.paths[i] for i in readable],
        boxes=Ragged(boxes[inside], counts),
        labels=Ragged(labels, counts),
        sizes=entries.sizes[readable],
        class_names=_names_of_source(entries, cfg),
    )
    per_class = np.bincount(labels[labels != IGNORED], minlength=len(wanted_ids))
    problems = Problems(
        clipped=int(clipped.sum()),
        dropped=int((~inside).sum()),
        first_dropped=_first_place(entries, owners[wanted][~inside]),
        other_classes=int((~wanted).sum()),
        missing_classes=tuple(name for name, count in zip(cfg.class_names, per_class, strict=True) if not count),
        ignored=int((labels == IGNORED).sum()),
    )
    return annotations, problems


def _wanted_ids(entries: Entries, cfg: LabelsConfig) -> tuple[int, ...]:
    """What stands for each class in the label rows: annotations that name their classes are asked by names, if given.

    Raises ValueError where they have none of the classes.
    """
    assert cfg.classes is not None
    if entries.class_names and not cfg.names and min(cfg.classes) >= len(entries.class_names):
        asked = ",".join(map(str, cfg.classes))
        theirs = ", ".join(f"{index} {name}" for index, name in enumerate(entries.class_names[:20]))
        raise ValueError(f"--classes {asked}: none of them is in {FLAG} {entries.annotations}, which has {theirs}")
    if not (cfg.names and entries.class_names):
        return cfg.classes
    own = {name: index for index, name in enumerate(entries.class_names)}
    if not own.keys() & set(cfg.class_names):
        theirs = ", ".join(entries.class_names[:20])
        raise ValueError(
            f"--names {cfg.names}: none of its classes is in {FLAG} {entries.annotations}, which has {theirs}"
        )
    return tuple(own.get(name, len(own) + place) for place, name in enumerate(cfg.class_names))


def _names_of_source(entries: Entries, cfg: LabelsConfig) -> tuple[str, ...]:
    """What annotations call the classes; empty where they have no names, or where --names gives them."""
    assert cfg.classes is not None
    theirs = entries.class_names
    if not theirs or cfg.names:
        return ()
    return tuple(
        theirs[index] if index < len(theirs) else name for index, name in zip(cfg.classes, cfg.class_names, strict=True)
    )


def _warn_of_names(title: str, dataset: DetectionDataset, cfg: LabelsConfig, source: str) -> None:
    """Says where annotations have another name for a class than the one that is expected of it."""
    assert cfg.classes is not None
    for index, theirs, name in zip(cfg.classes, dataset.class_names, cfg.class_names, strict=False):
        if theirs != name != made_up_name(index):
            message = "%s: class %d of %s %s is %r, not %r; --classes and --names FILE choose others"
            _log.warning(message, title, index, FLAG, source, theirs, name)
            return


def _first_place(entries: Entries, owners: NDArray[np.int64]) -> str:
    """Where the labels of the first of some pictures stand; empty where there is none."""
    if not len(owners):
        return ""
    label_path = entries.label_path(owners[0])
    return f"{label_path}, {entries.paths[owners[0]]}" if entries.annotations else label_path


def _report(title: str, dataset: DetectionDataset, *, is_annotated: bool) -> None:
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
            "%s: %d boxes have no area inside their pictures (0..1) and are dropped, first in %s%s",
            title,
            problems.dropped,
            problems.first_dropped,
            "" if is_annotated else "; labels are shares of the picture's size, not pixels",
        )
    if problems.ignored:
        _log.info(
            "%s: %d regions (crowds, difficult objects) are neither taught nor background", title, problems.ignored
        )
    if problems.unlisted:
        _log.warning(
            "%s: %d pictures are %s and are left out, first %s",
            title,
            problems.unlisted,
            NOT_LISTED,
            problems.first_unlisted,
        )
    if problems.unreadable:
        _log.warning("%s: %d pictures cannot be read and are skipped:", title, len(problems.unreadable))
        for line in problems.unreadable[:10]:
            _log.warning("  %s", line)
    for name in problems.missing_classes[:10]:
        _log.warning("%s: class %s has no box", title, name)
    if len(problems.missing_classes) > 10:
        _log.warning("%s: %d more classes have no box", title, len(problems.missing_classes) - 10)
