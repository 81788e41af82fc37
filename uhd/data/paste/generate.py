"""The whole data set: every picture by itself, in one process or several."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import cv2
import numpy as np
from tqdm import tqdm

from uhd.config import PasteConfig
from uhd.data.images import read_image, read_rgba
from uhd.data.limits import Limits
from uhd.data.listing import find_images
from uhd.data.paste import folder
from uhd.data.paste.cutout import RGBA
from uhd.data.paste.scene import Image, Scene, compose
from uhd.data.paste.targets import Target, inspect, list_targets, usable

_CHUNK = 8
_BACKGROUND_TRIES = 10

_log = logging.getLogger("uhd")
T = TypeVar("T")
R = TypeVar("R")


class Totals(NamedTuple):
    """How many targets are on the pictures, and how many found no place."""

    pasted: int
    left_out: int


class Made(NamedTuple):
    """One picture: how many targets are on it, how many found no place, and which backgrounds could not be read."""

    pasted: int
    left_out: int
    unreadable: tuple[str, ...]


@dataclass(frozen=True)
class Job:
    """All that a picture depends on, but its number."""

    cfg: PasteConfig
    targets: Sequence[Target]
    backgrounds: Sequence[str]
    out: Path

    def make(self, index: int) -> Made:
        """Writes picture `index` and its labels; ValueError where no background can be read, OSError on a full disk."""
        rng = np.random.default_rng([self.cfg.seed, index])
        background, unreadable = self._background(rng)
        scene = compose(rng, self.cfg, background, self.targets, self._read_target)
        path = self.out / folder.picture_name(index, self.cfg)
        try:
            # The labels first: a picture without them would be one without targets.
            path.with_suffix(".txt").write_text(label_lines(scene), encoding="utf-8")
            path.write_bytes(self._encoded(scene.image))
        except OSError as error:
            raise OSError(f"--out {path}: cannot be written ({error.strerror})") from None
        return Made(len(scene.boxes), scene.num_left_out, tuple(unreadable))

    def _background(self, rng: np.random.Generator) -> tuple[Image, list[str]]:
        """A random background, and what was wrong with those that were drawn before it."""
        problems: list[str] = []
        for _ in range(_BACKGROUND_TRIES):
            path = self.backgrounds[int(rng.integers(len(self.backgrounds)))]
            try:
                return read_image(path, limits=Limits(max_pixels=self.cfg.max_pixels)), problems
            except ValueError as error:
                problems.append(str(error))
        raise ValueError(
            f"--backgrounds {self.cfg.backgrounds}: {_BACKGROUND_TRIES} pictures in a row cannot be read; the last: "
            f"{problems[-1]}"
        )

    def _read_target(self, target: Target) -> RGBA:
        try:
            return read_rgba(target.path, Limits(max_pixels=self.cfg.max_pixels))
        except ValueError as error:
            raise ValueError(f"--targets {error}") from None

    def _encoded(self, image: Image) -> bytes:
        flags = [cv2.IMWRITE_JPEG_QUALITY, self.cfg.quality] if self.cfg.format == "jpg" else []
        _, data = cv2.imencode(f".{self.cfg.format}", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), flags)
        return data.tobytes()


def generate(cfg: PasteConfig) -> Totals:
    """Fills --out with --count pictures and their labels.

    Picture i depends on the flags, the files and i alone, whatever the number of workers. Targets and backgrounds that
    cannot be read are named and left out. Raises ValueError where nothing remains of either, and where --out is not to
    be written to.
    """
    assert cfg.backgrounds
    folder.check(cfg)
    targets, class_names = list_targets(cfg)
    backgrounds = find_images(cfg.backgrounds, "--backgrounds")
    findings = _each(partial(inspect, cfg=cfg), targets, cfg.workers, "looking at targets")
    job = Job(cfg, list(usable(targets, findings, cfg)), backgrounds, folder.prepare(cfg, class_names))
    pasted, left_out = 0, 0
    named: set[str] = set()
    for made in _each(job.make, range(cfg.count), cfg.workers, "pasting"):
        pasted, left_out = pasted + made.pasted, left_out + made.left_out
        for problem in sorted({*made.unreadable} - named):
            _log.warning("--backgrounds %s; another one is taken", problem)
        named.update(made.unreadable)
    return Totals(pasted, left_out)


def label_lines(scene: Scene) -> str:
    """YOLO lines, one a target: class cx cy w h."""
    height, width = scene.image.shape[:2]
    lines = []
    for (x1, y1, x2, y2), label in zip(scene.boxes, scene.labels, strict=True):
        shares = (x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height
        lines.append(f"{label} {' '.join(f'{share:.6f}' for share in shares)}\n")
    return "".join(lines)


def _each(function: Callable[[T], R], items: Sequence[T], workers: int, title: str) -> Iterator[R]:
    """The function's results in the order of the items, with a bar on terminals."""
    with contextlib.ExitStack() as stack:
        results: Iterable[R] = map(function, items)
        if workers > 1 and len(items) > 1:
            # The function goes to each worker once, not along with the items: it holds the lists of all files.
            # Fresh processes: OpenCV's threads do not survive a fork, and one that waits for them waits for ever.
            context = multiprocessing.get_context("spawn")
            pool = stack.enter_context(context.Pool(min(workers, len(items)), _start_worker, (function,)))
            results = pool.imap(_call, items, chunksize=_CHUNK)
        yield from tqdm(results, total=len(items), desc=title, unit="file", leave=False, disable=None)


_function_of_worker: Callable[[Any], Any]


def _start_worker(function: Callable[[Any], Any]) -> None:
    """Ctrl-C, which reaches every process of a terminal, is the parent's to answer; the cores are shared already."""
    global _function_of_worker
    _function_of_worker = function
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(0)


def _call(item: Any) -> Any:
    return _function_of_worker(item)
