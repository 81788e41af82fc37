"""The demonstration data set: drawn scenes with people-like figures, in files as a user's own data would be."""

from __future__ import annotations

import contextlib
import functools
import json
import multiprocessing
import os
import re
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from uhd.data.synthetic_scene import Scene, draw_scene

__all__ = ["GENERATOR_VERSION", "Scene", "draw_scene", "write_demo_data"]

GENERATOR_VERSION = 2
"""Raise it when the same seed gives other pictures or labels: data sets of another version are drawn anew."""

_MARKER_NAME = "demo-data.json"
_README_NAME = "README.txt"
_SCENE_NAME = re.compile(r"scene_\d{5,}\.(?:jpg|txt)")
_JPEG_QUALITY = 90
_CHUNK = 16

_README_TITLE = "Demonstration data set of UHD\n"
_README = f"""{_README_TITLE}
train.py --demo-data drew these scenes; they show no real person or place. The folder may be deleted:
the same command draws the same scenes again. Put nothing of your own here.

scene_NNNNN.jpg  a scene
scene_NNNNN.txt  its labels, a line for each person: class cx cy w h
                 class is 0 (person); cx cy is the middle of the box and w h its size, as shares of the
                 picture's width and height; an empty file says that nobody is in the scene
{_MARKER_NAME}   what was drawn, so that a second call can see that nothing is left to do

A box encloses the whole figure as far as it lies in the picture, parts hidden behind other things included.
"""


def write_demo_data(directory: Path, count: int, seed: int, workers: int = 0) -> None:
    """Makes directory hold exactly the count scenes of this seed, as JPEG pictures with YOLO label files.

    Scene i depends on seed and i alone, whatever the number of workers (processes that draw; 0 and 1 are this one
    alone). A complete data set of the same count, seed and generator version is left as it is; another one, or one
    that was interrupted, is replaced.

    Raises ValueError where count is below 1 or seed below 0, where directory cannot be made, and where it
    holds anything that this function has not written (hidden files apart): nothing is deleted then.
    """
    if count < 1:
        raise ValueError(f"--demo-data {count}: expected at least 1 scene")
    if seed < 0:
        raise ValueError(f"--seed {seed}: expected at least 0")
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--demo-data: cannot make the folder {directory}: {error.strerror}") from error
    facts = {"generator_version": GENERATOR_VERSION, "count": count, "seed": seed}
    found = _own_files(directory)
    expected = {_README_NAME, _MARKER_NAME, *(name for index in range(count) for name in _scene_names(index))}
    if found == expected and _read_marker(directory) == facts:
        return
    # The README goes in first and the marker out first: at any moment one of them tells that the scenes are ours.
    _write_atomically(directory / _README_NAME, _README)
    (directory / _MARKER_NAME).unlink(missing_ok=True)
    for name in found - {_README_NAME, _MARKER_NAME}:
        (directory / name).unlink()
    _write_scenes(directory, count, seed, workers)
    _write_atomically(directory / _MARKER_NAME, json.dumps(facts) + "\n")


def _scene_names(index: int) -> tuple[str, str]:
    return f"scene_{index:05d}.jpg", f"scene_{index:05d}.txt"


def _own_files(directory: Path) -> set[str]:
    """Names of the files in directory, hidden ones apart; ValueError where one of them is not ours."""
    entries = [entry for entry in directory.iterdir() if not entry.name.startswith(".")]
    names = {entry.name for entry in entries}
    readme = directory / _README_NAME
    is_ours = _read_marker(directory) is not None or (
        readme.is_file() and readme.read_text(encoding="utf-8", errors="replace").startswith(_README_TITLE)
    )
    for entry in sorted(entries):
        known = entry.name in (_README_NAME, _MARKER_NAME) or _SCENE_NAME.fullmatch(entry.name)
        if not (is_ours and known and entry.is_file()):
            raise ValueError(
                f"--demo-data: {directory} holds {entry.name}, which is no part of a demonstration data set; "
                "expected a new or empty folder, or one that --demo-data made"
            )
    return names


def _read_marker(directory: Path) -> dict[str, int] | None:
    """The facts of the data set in directory; None where there is no readable marker."""
    try:
        facts = json.loads((directory / _MARKER_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return facts if isinstance(facts, dict) and "generator_version" in facts else None


def _write_atomically(path: Path, text: str) -> None:
    """Writes path in one step; the half-written file is hidden, so an interrupted call leaves nothing foreign."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def _write_scenes(directory: Path, count: int, seed: int, workers: int) -> None:
    write = functools.partial(_write_scene, directory, seed)
    with contextlib.ExitStack() as stack:
        if workers > 1:
            pool = stack.enter_context(multiprocessing.Pool(min(workers, count), initializer=_use_one_thread))
            written: Iterable[None] = pool.imap_unordered(write, range(count), chunksize=_CHUNK)
        else:
            written = map(write, range(count))
        for _ in tqdm(written, total=count, desc="drawing scenes", unit="scene", disable=None):
            pass


def _use_one_thread() -> None:
    """In a worker: the processes share the cores already, and OpenCV's threads do not survive a fork."""
    cv2.setNumThreads(0)


def _write_scene(directory: Path, seed: int, index: int) -> None:
    scene = draw_scene(np.random.default_rng([seed, index]))
    picture, labels = (directory / name for name in _scene_names(index))
    bgr = cv2.cvtColor(scene.image, cv2.COLOR_RGB2BGR)
    _, encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    picture.write_bytes(encoded.tobytes())
    labels.write_text(_label_lines(scene.boxes), encoding="utf-8")


def _label_lines(boxes: NDArray[np.float32]) -> str:
    """YOLO lines of xyxy boxes [n,4] in 0-1, all of class 0."""
    centres, sizes = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    rows = np.concatenate([centres, sizes], axis=1).tolist()
    return "".join("0 {:.6f} {:.6f} {:.6f} {:.6f}\n".format(*row) for row in rows)
