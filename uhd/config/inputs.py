"""Sections that fix the weights beside the network itself: the input and the labels."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from uhd.config.options import Scope, Section, derived, option
from uhd.config.values import (
    ResizeMode,
    Size,
    parse_classes,
    parse_optional_path,
    parse_resize_mode,
    parse_size,
)

MAX_CLASSES = 10_000
MAX_NAMES_BYTES = 2**20


@dataclass(frozen=True)
class InputConfig(Section):
    """What the network is fed with."""

    scope: ClassVar[Scope] = "weights"
    title: ClassVar[str] = "Input"

    img_size: Size = option((64, 64), "Input size HxW in pixels.", parse=parse_size, metavar="HxW")
    resize_mode: ResizeMode = option(
        "opencv_inter_area",
        "How a picture is brought to the input size; part of the model, so validation, export and demo "
        "obey it. Also as bare flags (--opencv_inter_nearest); keras_bilinear and keras_nearest are "
        "other names of torch_bilinear and torch_nearest.",
        parse=parse_resize_mode,
    )


@dataclass(frozen=True)
class LabelsConfig(Section):
    """Which classes are detected and what they are called."""

    scope: ClassVar[Scope] = "weights"
    title: ClassVar[str] = "Labels"

    classes: tuple[int, ...] | None = option(
        None,
        "Class ids to keep, mapped to 0..C-1 in this order. Default: every id of --names, or "
        "0..N-1 of --num-classes, else 0.",
        parse=parse_classes,
        metavar="0,2,5",
    )
    names: str | None = option(
        None, "File of class names, one a line in the order of the ids.", parse=parse_optional_path, metavar="FILE"
    )
    num_classes: int | None = option(None, "Number of classes in the label files, where --names is not given.")
    class_names: tuple[str, ...] = derived(())

    def __post_init__(self) -> None:
        if self.num_classes is not None and not 1 <= self.num_classes <= MAX_CLASSES:
            raise ValueError(f"--num-classes {self.num_classes}: expected 1 to {MAX_CLASSES}")

    def resolved(self) -> LabelsConfig:
        """With `classes` and `class_names` filled in; reads the names file.

        Raises ValueError when the file is missing or empty, or an id has no name in it.
        """
        listed = read_names(self.names) if self.names else None
        count = len(listed) if listed else self.num_classes
        if listed and self.num_classes not in (None, len(listed)):
            raise ValueError(f"--num-classes {self.num_classes} but --names {self.names} lists {len(listed)} names")
        classes = self.classes or tuple(range(count or 1))
        beyond = [index for index in classes if count is not None and index >= count]
        if beyond:
            source = f"--names {self.names}" if listed else "--num-classes"
            raise ValueError(f"--classes names class {beyond[0]}, but {source} has only {count} classes")
        if listed:
            names = tuple(listed[index] for index in classes)
        elif classes == (0,):
            names = ("person",)
        else:
            names = tuple(map(made_up_name, classes))
        return dataclasses.replace(self, classes=classes, class_names=names)


def made_up_name(index: int) -> str:
    """What a class is called that nothing names."""
    return f"class{index}"


def read_names(path: str) -> list[str]:
    """The class names in a file, one a line; ValueError that names --names where it is malformed."""
    file = Path(path)
    # Not only for its size: a pipe, which has none, would make the reader wait.
    if file.exists() and not file.is_dir() and (not file.is_file() or file.stat().st_size > MAX_NAMES_BYTES):
        raise ValueError(f"--names {path}: cannot be read; expected a file of at most {MAX_NAMES_BYTES} bytes")
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise ValueError(f"--names {path}: cannot be read ({reason}); expected one name a line") from None
    names = [line.strip() for line in "\n".join(lines).rstrip().splitlines()]
    if not names:
        raise ValueError(f"--names {path}: no name in it; expected one a line")
    if len(names) > MAX_CLASSES:
        raise ValueError(f"--names {path}: {len(names)} names; expected at most {MAX_CLASSES}")
    for number, name in enumerate(names, start=1):
        if not name:
            raise ValueError(f"{path}:{number}: no name; expected one for each class id in --names")
        if names.index(name) + 1 < number:
            raise ValueError(f"{path}:{number}: {name!r} stands in line {names.index(name) + 1} too (--names)")
    return names
