"""The folder of a run: taken names, and what faults and stop signals leave in it."""

import errno
import os
import signal
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, SMALL_RUN

import train
from uhd.data.dataset import DetectionDataset

UNVALIDATED = (*SMALL_RUN, "--val-split", "0")


def test_full_run_folder_gets_a_fresh_suffix(run_train, yolo_folder, tmp_path):
    yolo_folder()
    for number in range(3):
        outcome = run_train(*UNVALIDATED, "--image-dir", "data", "--exp-name", "again")
        assert outcome.code == 0
        said = [line for line in outcome.out if "already holds a run" in line]
        assert len(said) == (1 if number else 0)
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"again", "again-2", "again-3"}
    assert "again-3" in said[0]
    assert len((tmp_path / "runs" / "again" / "metrics.jsonl").read_text().splitlines()) == 1


def one_more_epoch(run_train, folder, *flags):
    return run_train(
        "--resume", folder, "--epochs", "2", "--num-workers", "0", "--cache", "ram", "--device", "cpu", *flags
    )


@pytest.fixture
def run_of_one_epoch(run_train, yolo_folder, tmp_path):
    """A finished run that can go on."""
    yolo_folder()
    assert run_train(*UNVALIDATED, "--image-dir", "data", "--ckpt-out", "run").code == 0
    return tmp_path / "run"


def saved_epoch(folder):
    return torch.load(folder / "last.pt", weights_only=True)["state"]["epoch"]


def test_run_folder_with_a_run_goes_on_with_resume(run_train, run_of_one_epoch, tmp_path):
    outcome = one_more_epoch(run_train, run_of_one_epoch)
    assert outcome.code == 0
    assert saved_epoch(run_of_one_epoch) == 2
    assert not list(tmp_path.glob("run-*"))


def test_full_disk_leaves_the_last_checkpoint(run_train, run_of_one_epoch, monkeypatch):
    def no_space(content, file):
        file.write(b"half of it")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", no_space)
        outcome = one_more_epoch(run_train, run_of_one_epoch)
    assert outcome.code == 1
    assert len(outcome.errors) == 1
    assert "No space left" in outcome.errors[0]
    assert saved_epoch(run_of_one_epoch) == 1


def test_crashed_worker_leaves_the_last_checkpoint(run_train, run_of_one_epoch, monkeypatch):
    monkeypatch.setattr(DetectionDataset, "__getitems__", lambda self, keys: os._exit(1))
    outcome = one_more_epoch(run_train, run_of_one_epoch, "--num-workers", "1")
    assert outcome.code == 1
    assert len(outcome.errors) == 1
    assert "worker" in outcome.errors[0]
    assert saved_epoch(run_of_one_epoch) == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stop_signal_leaves_the_last_checkpoint(number, code, run_train, run_of_one_epoch, monkeypatch):
    train_one_epoch = train.train_one_epoch

    def with_signal(*args):
        signal.raise_signal(number)
        return train_one_epoch(*args)

    with monkeypatch.context() as patch:
        patch.setattr(train, "train_one_epoch", with_signal)
        outcome = one_more_epoch(run_train, run_of_one_epoch)
    assert outcome.code == code
    assert outcome.errors == [f"train.py: stopped by {signal.Signals(number).name}"]
    assert saved_epoch(run_of_one_epoch) == 1
    assert one_more_epoch(run_train, run_of_one_epoch).code == 0
    assert saved_epoch(run_of_one_epoch) == 2


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stop_signal_before_the_program_has_loaded_is_one_line(number, code):
    program = (
        "import signal; from uhd.signals import leave_at_once; "
        f"leave_at_once('train.py'); signal.raise_signal({int(number)}); print('still here')"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr == f"train.py: stopped by {number.name}\n"


@pytest.mark.parametrize("flag", ["--ckpt", "--resume"])
def test_stop_signal_while_a_checkpoint_is_read(flag, run_train, run_of_one_epoch, monkeypatch):
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: signal.raise_signal(signal.SIGTERM))
    outcome = run_train(flag, run_of_one_epoch / "last.pt")
    assert outcome.code == 143
    assert outcome.errors == ["train.py: stopped by SIGTERM"]


def test_train_log_holds_what_was_said_before_there_was_a_folder(run_train, yolo_folder, tmp_path):
    folder = yolo_folder()
    (folder / "000.png").write_bytes(b"no picture")
    outcome = run_train(*UNVALIDATED, "--image-dir", "data", "--exp-name", "said")
    assert outcome.code == 0
    log = (tmp_path / "runs" / "said" / "train.log").read_text()
    for line in [*outcome.out, *outcome.warnings]:
        assert line.removeprefix("warning: ") in log
