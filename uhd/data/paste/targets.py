"""Which targets there are, of which class, and which of them can be pasted."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from uhd.config import PasteConfig
from uhd.data.images import read_rgba
from uhd.data.limits import Limits
from uhd.data.listing import find_images

_log = logging.getLogger("uhd")


class Target(NamedTuple):
    """A file to paste, and its class."""

    path: str
    label: int


class Finding(NamedTuple):
    """What is wrong with a target (empty: nothing), and whether it has no transparent pixel."""

    problem: str
    is_opaque: bool


def list_targets(cfg: PasteConfig) -> tuple[list[Target], tuple[str, ...]]:
    """The files below --targets, sorted, and the names of the classes where folders are classes.

    Raises ValueError where there is no file, or one that lies in no folder of a class.
    """
    assert cfg.targets
    paths = find_images(cfg.targets, "--targets")
    if not cfg.class_per_folder:
        return [Target(path, cfg.class_id) for path in paths], ()
    if not os.path.isdir(cfg.targets):
        raise ValueError(f"--targets {cfg.targets}: a list; --class-per-folder expects a folder")
    parts = [os.path.relpath(path, os.path.abspath(cfg.targets)).split(os.sep) for path in paths]
    for path, part in zip(paths, parts, strict=True):
        if len(part) == 1:
            raise ValueError(f"--targets {path}: lies in no folder of its class, which --class-per-folder expects")
    names = tuple(sorted({part[0] for part in parts}))
    numbers = {name: number for number, name in enumerate(names)}
    return [Target(path, numbers[part[0]]) for path, part in zip(paths, parts, strict=True)], names


def inspect(target: Target, cfg: PasteConfig) -> Finding:
    """Reads a target to see whether it can be pasted."""
    try:
        rgba = read_rgba(target.path, Limits(max_pixels=cfg.max_pixels))
    except ValueError as error:
        return Finding(str(error), False)
    alpha = rgba[..., 3]
    if alpha.max() < 255 * cfg.alpha_threshold:
        return Finding(f"{target.path}: nothing to see; its alpha is {alpha.max() / 255:.2g} at most", False)
    return Finding("", bool(alpha.min() == 255))


def usable(targets: Iterable[Target], findings: Iterable[Finding], cfg: PasteConfig) -> Iterator[Target]:
    """The targets that can be pasted; warns of the others, and of those without a transparent pixel.

    Raises ValueError at the end where none can be pasted, or where none has a transparent pixel.
    """
    count, num_opaque, problems = 0, 0, []
    for target, finding in zip(targets, findings, strict=True):
        if finding.problem:
            problems.append(finding.problem)
            _log.warning("--targets %s; left out", finding.problem)
            continue
        if finding.is_opaque:
            num_opaque += 1
            _log.warning("--targets %s: no transparent pixel; its box is the whole picture", target.path)
        count += 1
        yield target
    if not count:
        raise ValueError(f"--targets {cfg.targets}: none of {len(problems)} can be pasted; the first: {problems[0]}")
    if num_opaque == count:
        raise ValueError(
            f"--targets {cfg.targets}: no target with alpha among {count}; expected cut-outs, PNG files with "
            "transparent pixels around the target"
        )
