"""What several test files share: small data sets in files, one trained run, and runs of the program inside the test."""

import uhd.process  # noqa: F401  # isort: skip - settings that torch reads when it is loaded

import functools
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers import draw_people, train_args

import export_onnx
import train
from uhd.cli import build_parser
from uhd.data.labels import parse_labels

if "PYTEST_XDIST_WORKER" in os.environ:
    # The tests share the cores among them; what they start inherits it.
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)

ROOT = Path(train.__file__).parent

SLOW_FILES = (
    *("test_processes.py", "test_resume.py", "test_kills.py", "test_checkpoint.py", "test_distill_backbones.py"),
    *("test_training.py", "test_export_int8.py", "test_paste_program.py", "test_faults.py", "test_recipes.py"),
)
"""They go first, so that at the end no process waits for another that has just begun one of them."""

PERSON = "0 0.5 0.5 0.4 0.8\n"
PERSON_AND_CHAIR = "0 0.3 0.5 0.3 0.6\n1 0.75 0.75 0.4 0.4\n"
LABELS: tuple[str | None, ...] = (
    PERSON,
    PERSON_AND_CHAIR,
    "0 0.7 0.4 0.2 0.6\n0 0.25 0.5 0.4 0.5\n",
    "",
    PERSON,
    None,
) * 2
"""Twelve label files: one or two boxes, class 1 in two of them, empty ones and missing ones."""

SMALL_RUN = (
    *("--arch", "ultratinyod", "--img-size", "32x32", "--cnn-width", "4", "--batch-size", "4", "--epochs", "1"),
    *("--num-workers", "0", "--device", "cpu", "--cache", "ram", "--no-aug"),
)
"""Flags of a run of about a second."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in SLOW_FILES)


def write_yolo_folder(
    folder: Path, labels: Sequence[str | None] = LABELS, size: tuple[int, int] = (40, 48), suffix: str = ".png"
) -> Path:
    """Pictures 000.png, 001.png, ... of (height, width) with these label texts beside them (None: no file).

    Each picture is dark noise with a bright rectangle where its label has a box, so that a net can learn it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for i, text in enumerate(labels):
        image = np.random.default_rng(i).integers(0, 80, (*size, 3), dtype=np.uint8)
        for _, cx, cy, w, h in parse_labels((text or "").encode()).rows:
            left, top, right, bottom = (
                (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2) * np.tile(size[::-1], 2)
            ).round()
            image[max(0, int(top)) : max(0, int(bottom)), max(0, int(left)) : max(0, int(right))] = 230
        assert cv2.imwrite(str(folder / f"{i:03}{suffix}"), image)
        if text is not None:
            (folder / f"{i:03}.txt").write_text(text)
    return folder


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch with one thread, for tests that fork."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def yolo_folder(tmp_path: Path) -> Callable[..., Path]:
    """Makes a small data set: `yolo_folder(labels, size, suffix, name="data")`; see `write_yolo_folder`."""

    def make(*args: object, name: str = "data", **kwargs: object) -> Path:
        return write_yolo_folder(tmp_path / name, *args, **kwargs)

    return make


@pytest.fixture(autouse=True)
def _restored_process() -> Iterator[None]:
    """Puts back what a run of the program changes for the whole process: its log, hooks and signal handlers."""
    log = logging.getLogger("uhd")
    before = log.handlers, log.level, log.propagate
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    unraisable = sys.unraisablehook
    yield
    sys.unraisablehook = unraisable
    log.handlers, log.propagate = before[0], before[2]
    log.setLevel(before[1])
    for number, handler in handlers.items():
        signal.signal(number, handler)


@dataclass(frozen=True)
class Outcome:
    """What a run of the program left: exit code and the lines of both streams."""

    code: int
    out: list[str]
    err: list[str]

    @property
    def warnings(self) -> list[str]:
        """The lines of stderr that warn."""
        return [line for line in self.err if line.startswith("warning: ")]

    @property
    def errors(self) -> list[str]:
        """All other lines of stderr."""
        return [line for line in self.err if not line.startswith("warning: ")]


def _runner(
    main: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str], folder: Path, patch: pytest.MonkeyPatch
) -> Callable[..., Outcome]:
    patch.chdir(folder)

    def run(*flags: object) -> Outcome:
        capsys.readouterr()
        code = main([str(flag) for flag in flags])
        streams = capsys.readouterr()
        return Outcome(code, streams.out.splitlines(), streams.err.splitlines())

    return run


@pytest.fixture
def run_train(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Outcome]:
    """Runs train.py in this process with the flags given, working directory tmp_path."""
    return _runner(train.main, capsys, tmp_path, monkeypatch)


@pytest.fixture
def run_export(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Outcome]:
    """Runs export_onnx.py in this process with the flags given, working directory tmp_path."""
    return _runner(export_onnx.main, capsys, tmp_path, monkeypatch)


def files_below(folder: Path) -> dict[Path, int]:
    """Modification time of each file below a folder; 0 for the folders."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} | {
        path: 0 for path in folder.rglob("*") if path.is_dir()
    }


@pytest.fixture(scope="module")
def fast() -> Iterator[None]:
    """Making the parser is most of the time that reading a line takes, drawing the reports most of a tiny run's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("uhd.cli.build_parser", functools.cache(build_parser))
        patch.setattr("uhd.recorder.write_reports", lambda *args, **kwargs: None)
        yield


@pytest.fixture
def refused(run_train, tmp_path):
    """Runs the program; it must refuse with one line that holds all fragments, and change no file. Gives the line."""

    def check(*flags, mentions=()):
        before = files_below(tmp_path)
        outcome = run_train(*SMALL_RUN, *flags)
        assert outcome.code == 2
        assert len(outcome.errors) == 1, outcome.errors
        line = outcome.errors[0]
        assert line.startswith("train.py: error: ")
        for fragment in mentions:
            assert fragment in line
        assert files_below(tmp_path) == before
        return line

    return check


@pytest.fixture
def accepted(run_train):
    """Reads the data on flags that the program must accept; gives the outcome."""

    def check(*flags):
        outcome = run_train(*SMALL_RUN, "--inspect", *flags)
        assert outcome.code == 0, outcome.err
        assert outcome.errors == []
        return outcome

    return check


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished one-epoch run (SMALL_RUN) on `trained.parent / "data"`; copy it before changing it."""
    folder = tmp_path_factory.mktemp("trained")
    data = write_yolo_folder(folder / "data")
    run_dir = folder / "run"
    assert train.main([*SMALL_RUN, "--image-dir", str(data), "--ckpt-out", str(run_dir), "--num-anchors", "2"]) == 0
    return run_dir


@pytest.fixture(scope="session")
def finder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that learned, at 32x32, to find the people of `helpers.draw_people`: mAP@0.5 of about 0.85.

    Its scores stay off 1, where the next number below is so near that rounding would decide which box is the better.
    """
    folder = tmp_path_factory.mktemp("finder")
    flags = {
        **{"cnn_width": 6, "use_batchnorm": True, "use_improved_head": True, "num_anchors": 2, "aug": False},
        **{"train_split": 0.7, "val_split": 0.3, "batch_size": 16, "lr": 0.05, "weight_decay": 0},
        **{"warmup_epochs": 2, "epochs": 12, "eval_interval": 12},
    }
    data = draw_people(folder / "data", 200, side=32, seed=5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("uhd.recorder.write_reports", lambda *args, **kwargs: None)
        assert train.main(train_args(data, folder / "run", **flags)) == 0
    return folder / "run"
