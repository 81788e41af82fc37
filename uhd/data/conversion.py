"""Annotations of one format to those of another: read with the sizes of the pictures, written whole or not at all."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from uhd.config import ConvertConfig, read_names
from uhd.data.formats import AnnotationSet, Picture, read_annotations, xml_files
from uhd.data.formats.base import MAX_SIDE, rows_of
from uhd.data.formats.coco import write_coco
from uhd.data.formats.table import is_id, write_csv
from uhd.data.formats.voc import write_voc
from uhd.data.formats.yolo import NAMES_FILES, write_names, write_yolo
from uhd.data.labels import read_labels, shortened
from uhd.data.limits import Limits
from uhd.data.listing import find_images, label_candidates
from uhd.data.matching import match_pictures
from uhd.data.shown_size import shown_size

_MOST_NAMED = 10_000
_LIMITS = Limits(max_boxes=1_000_000)

T = TypeVar("T")

_log = logging.getLogger("uhd")


def convert(cfg: ConvertConfig) -> None:
    """Reads, checks and writes; ValueError that names flag, file and place for a mistake of the user's."""
    content = _read(cfg)
    _check(content, cfg)
    ignored = sum(int((picture.rows[:, 0] < 0).sum()) for picture in content.pictures)
    _log.info("read %d pictures and %d boxes", len(content.pictures), content.num_boxes)
    if ignored and cfg.to in ("yolo", "csv"):
        _log.warning("%d crowds and difficult objects are left out: %s has nothing for them", ignored, cfg.to)
    files = _write(content, cfg)
    _log.info("wrote %s (%d files)", cfg.out, files)


# --- reading ------------------------------------------------------------------------------------


def _read(cfg: ConvertConfig) -> AnnotationSet:
    if os.path.isdir(cfg.from_) and next(xml_files(cfg.from_), None) is None:
        return _with_names(_read_yolo(cfg), cfg)
    content = read_annotations(cfg.from_, "--from")
    if content.refused:
        first = content.refused[0]
        raise ValueError(f"--from {first.place(cfg.from_)}: {first.problem}")
    for remark in content.remarks:
        _log.warning("--from %s: %s", cfg.from_, remark)
    return _with_names(_with_sizes(content, cfg.image_dir, cfg.from_) if cfg.image_dir else content, cfg)


def _read_yolo(cfg: ConvertConfig) -> AnnotationSet:
    """The label files of all pictures: in the place that a picture has in its own folder, or beside it."""
    source = os.path.abspath(cfg.from_)
    images = os.path.abspath(cfg.image_dir or cfg.from_)
    try:
        paths = _pictures_in(images)
    except ValueError:
        if cfg.image_dir:
            raise
        what = "neither XML files nor pictures in it; for YOLO files expected --image-dir, the folder of their pictures"
        raise ValueError(f"--from {cfg.from_}: {what}") from None
    pictures, found = [], 0
    for path in _progress(paths, "Reading labels"):
        name = Path(path).relative_to(images).as_posix()
        mirrored = os.path.splitext(os.path.join(source, name))[0] + ".txt"
        beside = [file for file in label_candidates(path) if file.startswith(source + os.sep)]
        label_path = next((file for file in (mirrored, *beside) if os.path.lexists(file)), None)
        found += label_path is not None
        size = shown_size(path)
        pictures.append(Picture((name,), size, _pixel_rows(label_path, size), file=label_path or ""))
    if not found:
        raise ValueError(
            f"--from {cfg.from_}: no label file of the {len(pictures)} pictures in {images}; expected .txt"
        )
    return AnnotationSet(pictures)


def _pictures_in(folder: str) -> list[str]:
    if os.path.isfile(folder):
        raise ValueError(f"--image-dir {folder}: a file; expected the folder of the pictures")
    return find_images(folder)


def _progress(items: Iterable[T], title: str, count: int | None = None) -> Iterable[T]:
    """The items, with a bar on terminals."""
    return tqdm(items, desc=title, total=count, leave=False, disable=None)


def _pixel_rows(label_path: str | None, size: tuple[int, int]) -> NDArray[np.float64]:
    if label_path is None:
        return rows_of([])
    labels = read_labels(label_path, _LIMITS)
    if labels.bad_lines:
        raise ValueError(f"--from {labels.bad_lines[0].place(label_path)}: {labels.bad_lines[0].problem}")
    scale = np.array([size[1], size[0]], dtype=np.float64)
    middle, half = labels.rows[:, 1:3] * scale, labels.rows[:, 3:] * scale / 2
    return np.concatenate([labels.rows[:, :1], middle - half, middle + half], axis=1)


def _with_sizes(content: AnnotationSet, folder: str, source: str) -> AnnotationSet:
    """Names below the folder of the pictures, and the pictures' own sizes; those without annotations are empty.

    source: where the annotations come from, for errors.
    """
    images = os.path.abspath(folder)
    paths = _pictures_in(images)
    try:
        of = match_pictures(paths, content.pictures, [images])
    except ValueError as error:
        raise ValueError(f"--from {source}: {error}") from None
    pictures = list(content.pictures)
    for path in _progress(paths, "Reading sizes"):
        name = Path(path).relative_to(images).as_posix()
        if path not in of:
            if not content.lists_pictures:
                pictures.append(Picture((name,), shown_size(path), rows_of([])))
            continue
        picture, size = pictures[of[path]], shown_size(path)
        if picture.size not in (None, size):
            problem = picture.label_rows(size, _LIMITS).bad_lines[0].problem
            raise ValueError(f"--from {picture.file or source}: {problem}")
        pictures[of[path]] = replace(picture, names=(name,), size=size)
    if not content.lists_pictures and len(of) < len(paths):
        _log.info("%d pictures have no annotations and count as empty", len(paths) - len(of))
    return replace(content, pictures=pictures)


# --- classes --------------------------------------------------------------------------------------


def _with_names(content: AnnotationSet, cfg: ConvertConfig) -> AnnotationSet:
    """Gives the classes names where the format has none, or brings them to the order of --names."""
    listed = read_names(cfg.names) if cfg.names else None
    if not content.class_names:
        return replace(content, class_names=_names_of_ids(content, listed, cfg))
    if listed is None:
        return content
    place = {name: index for index, name in enumerate(listed)}
    targets = [place.get(name) for name in content.class_names]
    if not any(target is not None for target in targets):
        raise ValueError(f"--names {cfg.names}: none of its classes is in --from {cfg.from_}")
    pictures = []
    for picture in content.pictures:
        boxes = []
        for box in picture.boxes():
            target = targets[box.label]
            if target is not None:
                boxes.append(box._replace(label=target))
        pictures.append(replace(picture, rows=rows_of(boxes)))
    named = replace(content, pictures=pictures, class_names=tuple(listed))
    if named.num_boxes < content.num_boxes:
        _log.info("%d boxes of other classes than those of --names are left out", content.num_boxes - named.num_boxes)
    return named


def _names_of_ids(content: AnnotationSet, listed: list[str] | None, cfg: ConvertConfig) -> tuple[str, ...]:
    count = 1 + int(max((picture.rows[:, 0].max(initial=-1) for picture in content.pictures), default=-1))
    source = cfg.names
    if listed is None and os.path.isdir(cfg.from_):
        folders = (Path(cfg.from_), Path(os.path.abspath(cfg.from_)).parent)
        files = [folder / name for folder in folders for name in NAMES_FILES]
        source = next((str(file) for file in files if file.is_file()), None)
        listed = read_names(source) if source else None
    if listed is not None:
        if count > len(listed):
            raise ValueError(f"--names {source}: {len(listed)} names, but there are boxes of class {count - 1}")
        return tuple(listed)
    if cfg.to == "csv":
        return ()  # whose labels may be ids
    if count > _MOST_NAMED:
        raise ValueError(f"--from {cfg.from_}: boxes of class {count - 1}; expected at most {_MOST_NAMED} classes")
    return ("person",) if count <= 1 else tuple(f"class{index}" for index in range(count))


# --- checks and writing ---------------------------------------------------------------------------


def _check(content: AnnotationSet, cfg: ConvertConfig) -> None:
    """ValueError for a malformed box, a size that is not known, and names that the format cannot hold."""
    for name in content.class_names:
        if not name.isprintable():
            raise ValueError(f"--from {cfg.from_}: the class name {name!a:.100} has characters that are no letters")
        if cfg.to == "csv" and is_id(name):
            raise ValueError(f"--to csv: the class name {name!r:.100} would be read back as a class id")
    empty = 0
    for picture in content.pictures:
        if picture.bad_lines:
            bad = picture.bad_lines[0]
            raise ValueError(f"--from {bad.place(cfg.from_)}: {bad.problem}")
        if picture.size is None and cfg.to != "csv":
            what = "no picture of that name is in it" if cfg.image_dir else "expected the folder of the pictures"
            flag = f"--image-dir {cfg.image_dir}" if cfg.image_dir else "--image-dir"
            raise ValueError(f"{flag}: the size of {shortened(picture.names[0])} is not known; {what}")
        if ".." in PurePosixPath(picture.names[0]).parts:
            where = f"{picture.file or cfg.from_}: {picture.place + ': ' if picture.place else ''}"
            raise ValueError(
                f"--from {where}{shortened(picture.names[0])} leads out of its folder; expected names without .."
            )
        height, width = picture.size or (MAX_SIDE, MAX_SIDE)
        corners = picture.rows[:, 1:].clip(0, [width, height, width, height])
        empty += int((corners[:, 2:] <= corners[:, :2]).any(axis=1).sum())
    if empty:
        _log.warning("%d boxes have no area inside their pictures; training drops such boxes", empty)


def _write(content: AnnotationSet, cfg: ConvertConfig) -> int:
    """Writes all files, or none; returns how many there are."""
    targets: dict[Path, str] = {}
    for file, name, _ in _files(content, cfg):
        if file in targets:
            raise ValueError(f"--out {cfg.out}: {name} and {targets[file]} would both be written to {file}")
        if os.path.lexists(file):
            which = "" if str(file) == cfg.out else f"{file} "
            raise ValueError(f"--out {cfg.out}: {which}is there already; expected a new file or folder")
        targets[file] = name
    written: list[Path] = []
    try:
        for file, _, picture in _progress(_files(content, cfg), "Writing", len(targets)):
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("xb") as stream:
                written.append(file)
                stream.write(_content_of(file, picture, content, cfg))
    except BaseException:
        for file in written:
            file.unlink(missing_ok=True)
        raise
    return len(written)


def _files(content: AnnotationSet, cfg: ConvertConfig) -> Iterator[tuple[Path, str, Picture | None]]:
    """Every file, what it is of, and its picture, if it is of one."""
    out = Path(cfg.out)
    if cfg.to in ("coco", "csv"):
        yield out, "all pictures", None
        return
    suffix = ".txt" if cfg.to == "yolo" else ".xml"
    for picture in content.pictures:
        name = PurePosixPath(picture.names[0])
        yield out / name.with_name(os.path.splitext(name.name)[0] + suffix), str(name), picture
    if cfg.to == "yolo":
        yield out / NAMES_FILES[0], "the names of the classes", None


def _content_of(file: Path, picture: Picture | None, content: AnnotationSet, cfg: ConvertConfig) -> bytes:
    if picture is not None:
        return write_yolo(picture) if cfg.to == "yolo" else write_voc(picture, content.class_names)
    if cfg.to == "yolo":
        return write_names(content.class_names)
    if cfg.to == "csv":
        return write_csv(content.pictures, content.class_names)
    return write_coco(content.pictures, content.class_names)
