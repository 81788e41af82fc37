"""Runs that are killed without warning, again and again: what is on the disk is complete, and nothing is lost."""

import os
import random
import signal
import time

from forking import fork_train, wait
from helpers import draw_people, metric_rows, same, train_args

from uhd.checkpoint import find_resumable, read_checkpoint

KILLS = 30
EPOCHS = 12


def flags_of(data, folder, cache_dir):
    return train_args(
        data, folder, epochs=EPOCHS, use_batchnorm=True, use_ema=True, lr=0.01, cache="disk", cache_dir=cache_dir
    )


def test_killed_runs_go_on_from_a_complete_checkpoint_and_end_as_undisturbed_ones(tmp_path, monkeypatch, one_thread):
    monkeypatch.setattr("uhd.recorder.write_reports", lambda *args, **kwargs: None)
    data = draw_people(tmp_path / "data", 20, side=32)
    start = time.monotonic()
    assert wait(fork_train(flags_of(data, tmp_path / "undisturbed", tmp_path / "cache"))) == 0
    seconds = time.monotonic() - start
    expected = read_checkpoint(tmp_path / "undisturbed/last.pt")

    chance = random.Random(7)
    folders = [tmp_path / "run"]
    for _ in range(KILLS):
        folder = folders[-1]
        child = fork_train(next_command(data, folder))
        time.sleep(chance.uniform(0, 0.6 * seconds))
        os.kill(child, signal.SIGKILL)
        assert wait(child) in (-signal.SIGKILL, 0)
        if saved_epoch(folder) == EPOCHS:
            folders.append(tmp_path / f"run{len(folders)}")
    for folder in folders:
        assert wait(fork_train(next_command(data, folder))) == 0
        assert same(read_checkpoint(folder / "last.pt").state, expected.state), folder
        assert [row["epoch"] for row in metric_rows(folder)] == list(range(1, EPOCHS + 1))


def next_command(data, folder):
    """The command line that begins a run, or goes on with it once there is something to go on from."""
    if saved_epoch(folder) is None:
        return flags_of(data, folder, folder.with_name(f"{folder.name}-cache"))
    return ["--resume", folder, "--cache-dir", folder.with_name(f"{folder.name}-cache"), "--num-workers", 0]


def saved_epoch(folder):
    """The finished epochs of the checkpoint that a run goes on from; None before the first. It has to be complete."""
    if not any(folder.glob("last*.pt")):
        return None
    return read_checkpoint(find_resumable(folder)).state["epoch"]
