"""Which pictures belong to the training and the validation set."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from uhd.config import DataConfig

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})

_log = logging.getLogger("uhd")


def list_sets(cfg: DataConfig, *, need_train: bool = True) -> tuple[list[str], list[str]]:
    """The absolute paths of the training and validation pictures, each sorted; no picture is in both.

    need_train=False leaves the training set empty, and --val-list may then stand alone. Raises ValueError where a
    flag, folder or list is wrong, no picture is found, or the two lists share one.
    """
    if cfg.train_list and not cfg.val_list:
        raise ValueError(f"--train-list {cfg.train_list} without --val-list; expected both or neither")
    if cfg.val_list and not cfg.train_list and need_train:
        raise ValueError(f"--val-list {cfg.val_list} without --train-list; expected both or neither")
    if cfg.val_list:
        val = read_list(cfg.val_list, "--val-list")
        train = read_list(cfg.train_list, "--train-list") if cfg.train_list else []
        _check_disjoint(train, val, cfg)
    else:
        train, val = split(find_images(cfg.image_dir), cfg.train_split, cfg.val_split, cfg.seed)
    if cfg.val_count:
        val = val[: cfg.val_count]
    return train if need_train else [], val


def find_images(source: str | Path, flag: str = "--image-dir") -> list[str]:
    """Absolute paths, sorted, of the pictures in a folder and its subfolders, or in a text file that lists them.

    Hidden files and folders are passed over; a picture that is reached twice through links counts once. flag is named
    in errors.
    """
    if os.path.isfile(source):
        return read_list(source, flag)
    if not os.path.isdir(source):
        raise ValueError(f"{flag} {source}: no such folder (looked in {os.path.abspath(source)})")
    found: list[str] = []
    visited = set()
    for folder, subfolders, names in os.walk(os.path.abspath(source), followlinks=True):
        real = os.path.realpath(folder)
        if real in visited:
            subfolders.clear()
            continue
        visited.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        found += [os.path.join(folder, name) for name in names if _is_image(name)]
    if not found:
        suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
        raise ValueError(f"{flag} {source}: no picture ({suffixes}) in {os.path.abspath(source)} or below")
    return _unique(found)


def read_list(path: str | Path, flag: str) -> list[str]:
    """Absolute paths, sorted, from a text file with one a line: relative to that file, then to the working directory.

    flag is named in errors: a missing or empty list, a line that names no picture.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise ValueError(f"{flag} {path}: cannot be read ({reason}); expected one picture path a line") from None
    folder = os.path.dirname(os.path.abspath(path))
    paths = [
        _listed_path(line.strip(), folder, f"{flag} {path}:{n}") for n, line in enumerate(lines, 1) if line.strip()
    ]
    if not paths:
        raise ValueError(f"{flag} {path}: the list is empty; expected one picture path a line")
    unique = _unique(paths)
    if len(unique) < len(paths):
        _log.warning("%s %s: %d pictures are listed twice; each counts once", flag, path, len(paths) - len(unique))
    return unique


def split(paths: Sequence[str], train_split: float, val_split: float, seed: int) -> tuple[list[str], list[str]]:
    """Shuffles sorted paths with the seed and deals out the two shares of the whole, each sorted again.

    A share above 0 gets at least one picture where there are two. The validation set does not depend on train_split.
    """
    count = len(paths)
    least = 1 if count > 1 else 0
    num_val = max(round(count * val_split), least) if val_split > 0 else 0
    num_val = min(num_val, count - least) if train_split > 0 else num_val
    num_train = max(round(count * train_split), 1) if train_split > 0 else 0
    order = np.random.default_rng(seed).permutation(count)
    val, train = order[:num_val], order[num_val : num_val + num_train]
    return [paths[i] for i in np.sort(train)], [paths[i] for i in np.sort(val)]


def label_candidates(image: str) -> tuple[str, ...]:
    """Where the label file of a picture may be, best first: beside it, then in the `labels` twin of `images`."""
    stem = os.path.splitext(image)[0]
    parts = stem.split(os.sep)
    beside = stem + ".txt"
    if "images" not in parts[:-1]:
        return (beside,)
    last = len(parts) - 2 - parts[-2::-1].index("images")
    return beside, os.sep.join([*parts[:last], "labels", *parts[last + 1 :]]) + ".txt"


def count_shared_stems(paths: Sequence[str]) -> int:
    """How many pictures share their label file with another one: same folder, same stem."""
    stems = [os.path.splitext(path)[0] for path in paths]
    return len(stems) - len(set(stems))


def _listed_path(text: str, folder: str, place: str) -> str:
    if not _is_image(text):
        raise ValueError(f"{place}: {text!r} is not a picture; expected a name that ends in .jpg, .png, .bmp or .webp")
    candidates = [os.path.normpath(os.path.join(base, text)) for base in (folder, os.getcwd())]
    for candidate in candidates:
        if os.path.isfile(candidate):
            return candidate
    raise ValueError(f"{place}: no such picture (looked for {' and '.join(dict.fromkeys(candidates))})")


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not os.path.basename(name).startswith(".")


def _unique(paths: Sequence[str]) -> list[str]:
    """Sorted, and each file once however many links lead to it."""
    first_of: dict[tuple[int, int], str] = {}
    for path in sorted(paths):
        first_of.setdefault(_identity(path), path)
    return list(first_of.values())


def _identity(path: str) -> tuple[int, int]:
    """The same for every path and link to one file."""
    try:
        status = os.stat(path)
    except OSError:
        return 0, hash(path)
    return status.st_dev, status.st_ino


def _check_disjoint(train: Sequence[str], val: Sequence[str], cfg: DataConfig) -> None:
    in_val = {_identity(path) for path in val}
    shared = [path for path in train if _identity(path) in in_val]
    if shared:
        lists = f"--train-list {cfg.train_list} and --val-list {cfg.val_list}"
        raise ValueError(f"{lists} share {len(shared)} pictures, first {shared[0]}; expected none")
