"""Which pictures belong to the training and the validation set."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from braceexpand import braceexpand

from uhd.config import DataConfig
from uhd.data import tar_shards
from uhd.data.limits import read_list_lines

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})
DEFAULT_CACHE_DIR = "runs/cache"
MAX_TARS = 1_000_000
"""The most tar files that a name with braces may stand for."""

_END_OF_RANGE = re.compile(r"0*(\d+)(?=\.\.)|(?<=\.\.)-?0*(\d+)")
_NESTED = re.compile(r"\{[^}]*\{")

ListTars = Callable[[Sequence[str]], list[str]]
"""From tar files to the names of the pictures in them."""

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
        folder = Path(cfg.cache_dir or DEFAULT_CACHE_DIR) if cfg.cache in ("auto", "disk") else None
        list_tars = partial(tar_shards.list_tars, suffixes=IMAGE_SUFFIXES, folder=folder)
        val = read_list(cfg.val_list, "--val-list", list_tars)
        train = read_list(cfg.train_list, "--train-list", list_tars) if cfg.train_list else []
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


def read_list(path: str | Path, flag: str, list_tars: ListTars | None = None) -> list[str]:
    """Absolute paths, sorted, from a text file with one a line: relative to that file, then to the working directory.

    Where tar files can be listed, a line may name them, and path may itself be one, with braces for several:
    `shards-{000..099}.tar`. flag is named in errors: a missing or empty list, a line that names no picture.
    """
    if str(path).endswith(tar_shards.SUFFIX):
        tars = _expand_tars(str(path), [os.getcwd()], f"{flag} {path}")
        return _pictures_in(tars, list_tars, f"{flag} {path}")
    bases = [os.path.dirname(os.path.abspath(path)), os.getcwd()]
    paths, tars = [], []
    for number, line in read_list_lines(path, flag):
        place = f"{flag} {path}:{number}"
        if line.endswith(tar_shards.SUFFIX):
            tars += _expand_tars(line, bases, place)
        else:
            paths.append(_listed_path(line, bases, place))
    if not paths and not tars:
        raise ValueError(f"{flag} {path}: the list is empty; expected one picture path a line")
    unique = _unique(paths)
    if len(unique) < len(paths):
        _log.warning("%s %s: %d pictures are listed twice; each counts once", flag, path, len(paths) - len(unique))
    return sorted(unique + _pictures_in(tars, list_tars, f"{flag} {path}")) if tars else unique


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


def _listed_path(text: str, bases: Sequence[str], place: str) -> str:
    if not _is_image(text):
        raise ValueError(f"{place}: {text!r} is not a picture; expected a name that ends in .jpg, .png, .bmp or .webp")
    return _existing(text, bases, f"{place}: no such picture")


def _existing(text: str, bases: Sequence[str], problem: str) -> str:
    """The absolute path of a file, relative to one of the folders; raises ValueError with the problem."""
    candidates = [os.path.normpath(os.path.join(base, text)) for base in bases]
    for candidate in candidates:
        if os.path.isfile(candidate):
            return candidate
    raise ValueError(f"{problem} (looked for {' and '.join(dict.fromkeys(candidates))})")


def _expand_tars(pattern: str, bases: Sequence[str], place: str) -> list[str]:
    """Absolute paths of tar files that a name with braces stands for, up to the first that is none."""
    # The library holds each range, and whatever stands in braces within braces, as a whole in memory.
    if sum(10 ** len("".join(digits)) for digits in _END_OF_RANGE.findall(pattern)) > 2 * MAX_TARS:
        raise ValueError(f"{place}: a range of too many tar files; expected braces as in shards-{{000..099}}.tar")
    if _NESTED.search(pattern):
        raise ValueError(f"{place}: braces within braces; expected them as in shards-{{000..099}}.tar")
    try:
        names = braceexpand(pattern)
    except ValueError as error:
        raise ValueError(f"{place}: {error}; expected braces as in shards-{{000..099}}.tar") from None
    found: list[str] = []
    for name in names:
        if len(found) == MAX_TARS:
            raise ValueError(f"{place}: stands for more than {MAX_TARS:,} tar files")
        found.append(_existing(name, bases, f"{place}: no such tar file"))
    return found


def _pictures_in(tars: Sequence[str], list_tars: ListTars | None, place: str) -> list[str]:
    if list_tars is None:
        raise ValueError(f"{place}: tar files can be named in --train-list and --val-list only")
    return list_tars(_unique(tars))


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not os.path.basename(name).startswith(".")


def _unique(paths: Sequence[str]) -> list[str]:
    """Sorted, and each file once however many links lead to it."""
    first_of: dict[Hashable, str] = {}
    for path in sorted(paths):
        first_of.setdefault(_identity(path), path)
    return list(first_of.values())


def _identity(path: str) -> Hashable:
    """The same for every path and link to one file."""
    try:
        status = os.stat(path)
    except OSError:
        return path
    return status.st_dev, status.st_ino


def _identities(paths: Sequence[str]) -> list[Hashable]:
    """The same for every path and link to one picture, be it a file or in a tar."""
    packed: dict[int, Hashable] = {}
    for tar, members in tar_shards.members_by_tar(paths).items():
        identity = _identity(tar)
        packed |= {index: (identity, member) for member, index in members.items()}
    return [packed[index] if index in packed else _identity(path) for index, path in enumerate(paths)]


def _check_disjoint(train: Sequence[str], val: Sequence[str], cfg: DataConfig) -> None:
    in_val = set(_identities(val))
    shared = [path for path, identity in zip(train, _identities(train), strict=True) if identity in in_val]
    if shared:
        lists = f"--train-list {cfg.train_list} and --val-list {cfg.val_list}"
        raise ValueError(f"{lists} share {len(shared)} pictures, first {shared[0]}; expected none")
