"""Runs of two processes that share every batch, against runs of one."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from conftest import ROOT
from forking import fork_processes, wait
from helpers import draw_people, metric_rows, train_args, visible_checkpoints
from two_processes import run_all

import train
from uhd import dist
from uhd.checkpoint import read_checkpoint
from uhd.data.loader import EpochBatchSampler
from uhd.optim import TrainState

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
ANCHOR_HEAD = {"use_improved_head": True, "use_ema": True, "auto_anchors": True}
SGD = {"optimizer": "sgd", "lr": 0.01, "weight_decay": 0.01}

RUNS = {
    "task-aligned": {**ANCHOR_HEAD, **SGD},
    "simota": {"anchor_assigner": "simota", **SGD},
    "legacy, accumulated": {"anchor_assigner": "legacy", "grad_accum": 3, **SGD},
    "centres": {"arch": "cnn", **SGD},
    "levels": {"arch": "tinyssd", "cnn_width": None, "tinyssd_levels": 2, "num_anchors": 2, **SGD},
    "levels, mined": {
        "arch": "tinyssd", "cnn_width": None, "tinyssd_levels": 1, "tinyssd_cls_loss": "mined", **SGD,
    },
    "queries, in parts": {
        "arch": "transformer", "cnn_width": None, "d_model": 8, "heads": 2, "layers": 1, "dim_feedforward": 8,
        "num_queries": 5, "batch_size": 17, "epochs": 4, **SGD,
    },
    "distilled": {
        "teacher_ckpt": "teacher/last.pt", "distill_kl": 1.0, "distill_feat": 1.0, "distill_cosine": True, **SGD,
    },
    "augmented": {"aug": True, **SGD},
}  # fmt: skip
"""Flags by field name; without batch norm, whose statistics are of the pictures that a process sees."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs of one process and of two, by name and number of processes, trained in one start each."""
    root = tmp_path_factory.mktemp("runs")
    data = draw_people(root / "data", 55, side=32)
    single = [args_of(data, "teacher", batch_size=8, epochs=1)]
    single += [args_of(data, f"{name}-1", **flags) for name, flags in RUNS.items()]
    single.append(args_of(data, "grown", stop_epoch=2, **RUNS["task-aligned"]))
    shared = [args_of(data, f"{name}-2", **flags) for name, flags in RUNS.items()]
    shared.append(args_of(data, "norms", use_batchnorm=True, use_ema=True, epochs=15, lr=0.02))
    shared.append(args_of(data, "shrunk", stop_epoch=2, **RUNS["task-aligned"]))
    shared.append(["--resume", "grown", "--num-workers", "0", "--cache", "ram", "--stop-epoch", "0"])
    before, threads = Path.cwd(), torch.get_num_threads()
    os.chdir(root)
    torch.set_num_threads(1)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("uhd.recorder.write_reports", lambda *args, **kwargs: None)
            assert [train.main(argv) for argv in single] == [0] * len(single)
            with open("errors", "w") as errors:
                processes = fork_processes(lambda: run_all(shared), 2, free_port(), stderr=errors.fileno())
            assert [wait(process) for process in processes] == [0, 0], Path("errors").read_text()
        assert train.main(["--resume", "shrunk", "--num-workers", "0", "--cache", "ram", "--stop-epoch", "0"]) == 0
    finally:
        torch.set_num_threads(threads)
        os.chdir(before)
    return root


def args_of(data, name, **flags):
    """Four epochs of 44 pictures in batches of 8: the last batch is of four."""
    chosen = {"aug": False, "batch_size": 8, "epochs": 4, "seed": 1, **flags}
    return train_args(data, name, **chosen)


def state_of(run):
    return read_checkpoint(run / "last.pt").state


def assert_same_weights(ours, theirs):
    for part in ("model", "criterion"):
        for name, value in theirs[part].items():
            torch.testing.assert_close(ours[part][name], value, rtol=2e-4, atol=2e-6, msg=lambda m, n=name: f"{n}: {m}")
    if theirs["ema"]:
        for name, value in theirs["ema"]["model"].items():
            torch.testing.assert_close(ours["ema"]["model"][name], value, rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_learn_what_one_learns(folder, name):
    one, two = folder / f"{name}-1", folder / f"{name}-2"
    assert_same_weights(state_of(two), state_of(one))
    ours, theirs = metric_rows(two), metric_rows(one)
    assert len(ours) == len(theirs) == 4
    for our_row, their_row in zip(ours, theirs, strict=True):
        assert our_row.keys() == their_row.keys()
        for key, value in their_row.items():
            if value is None:
                assert our_row[key] is None, key
            elif key not in ("seconds", "images_per_second"):
                # Half of a softmax's scores of four epochs differ by less than rounding does: their order may change.
                least = 2e-3 if name == "levels, mined" and key.startswith("val/") else 1e-6
                assert our_row[key] == pytest.approx(value, rel=1e-4, abs=least), key


def test_validation_is_exact(folder, run_train, tmp_path):
    """The same weights: every figure of two processes is one process's."""
    flags = ("--num-workers", 0, "--cache", "ram", "--ckpt-out", tmp_path)
    outcome = run_train("--val-only", "--ckpt", folder / "norms/last.pt", *flags)
    assert outcome.code == 0, outcome.err
    figures = json.loads((tmp_path / "val.json").read_text())
    row = metric_rows(folder / "norms")[-1]
    assert figures["val/mAP@0.5"] > 0
    for key, value in figures.items():
        assert row[key] == (value if value is None else pytest.approx(value, rel=1e-5, abs=1e-6)), key


def test_batch_norms_are_learned_by_all(folder):
    rows = metric_rows(folder / "norms")
    assert rows[-1]["train/loss"] < rows[0]["train/loss"]
    assert rows[-1]["val/mAP@0.5"] > 0


@pytest.mark.parametrize("name", ["shrunk", "grown"])
def test_number_of_processes_may_change_when_a_run_is_resumed(folder, name):
    assert [row["epoch"] for row in metric_rows(folder / name)] == [1, 2, 3, 4]
    assert_same_weights(state_of(folder / name), state_of(folder / "task-aligned-1"))


def test_first_process_alone_writes(folder):
    def names(run):
        return sorted(path.name for path in run.iterdir() if not path.name.startswith(("events", "last_", "best_")))

    assert names(folder / "simota-2") == names(folder / "simota-1")
    assert len(list((folder / "simota-2").glob("events*"))) == 1


# --- who sees which pictures --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pictures", "batch", "processes", "sizes"),
    [
        (8, 4, 2, [[2, 2], [2, 2]]),
        (8, 4, 3, [[2, 2], [1, 1], [1, 1]]),
        # A last batch of less than two pictures a process is left out.
        (12, 8, 2, [[4, 2], [4, 2]]),
        (11, 8, 2, [[4], [4]]),
        (11, 8, 1, [[8, 3]]),
        (9, 8, 1, [[8]]),
        # Unless it is all there is.
        (3, 8, 2, [[2], [1]]),
        (2, 8, 2, [[1], [1]]),
        (1, 8, 1, [[1]]),
    ],
)
def test_shares_of_training(pictures, batch, processes, sizes):
    samplers = [
        EpochBatchSampler(pictures, batch, shuffle=True, seed=3, share=(rank, processes)) for rank in range(processes)
    ]
    alone = EpochBatchSampler(pictures, batch, shuffle=True, seed=3)
    for epoch in (0, 1):
        for sampler in (*samplers, alone):
            sampler.set_epoch(epoch)
        shares = [list(sampler) for sampler in samplers]
        assert [[len(part) for part in share] for share in shares] == sizes
        assert [len(sampler) for sampler in samplers] == [len(sizes[0])] * processes
        for index, (whole, *parts) in enumerate(zip(alone, *shares, strict=False)):
            assert sorted(key for part in parts for key in part) == sorted(whole)
            assert samplers[0].pictures_in(index) == len(whole)
        assert samplers[0].pictures_in_epoch == sum(map(sum, sizes))


@pytest.mark.parametrize("processes", [1, 2, 3, 9])
@pytest.mark.parametrize("pictures", [0, 1, 7, 8, 30])
def test_shares_of_validation_are_whole_batches(pictures, processes):
    alone = list(EpochBatchSampler(pictures, 4, shuffle=False, seed=0))
    shares = [
        EpochBatchSampler(pictures, 4, shuffle=False, seed=0, share=(rank, processes)) for rank in range(processes)
    ]
    assert [len(list(share)) for share in shares] == [len(share) for share in shares]
    assert sorted(batch for share in shares for batch in share) == sorted(alone)


@pytest.mark.parametrize(("pictures", "batch"), [(2, 8), (100, 2)])
def test_less_pictures_than_processes_are_refused(pictures, batch):
    with pytest.raises(ValueError, match=f"--batch-size {batch}: 2 pictures at once for 3 processes"):
        EpochBatchSampler(pictures, batch, shuffle=True, seed=0, share=(0, 3))


def test_shared_statistics_need_gpus():
    with pytest.raises(ValueError, match="--sync-bn: statistics are shared between GPUs only"):
        dist.share_batch_statistics(torch.nn.BatchNorm2d(3), torch.device("cpu"))


def test_one_process_exchanges_nothing():
    value = torch.ones(3)
    assert dist.total(value) is value
    assert dist.gather(value) == [value]
    assert (dist.rank(), dist.world_size(), dist.is_main(), dist.total_count(7)) == (0, 1, True, 7)


# --- one that dies ------------------------------------------------------------------------------


def said_by_programs(errors):
    return [line for line in errors.splitlines() if line.startswith("train.py")]


def test_a_process_that_is_killed_ends_all(tmp_path):
    data = draw_people(tmp_path / "data", 40, side=32)
    args = args_of(data, tmp_path / "run", epochs=10_000, eval_interval=10_000)
    command = [*TORCHRUN, str(ROOT / "train.py"), *args]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    wait_for_epoch(3, tmp_path / "run", process.poll)
    children = psutil.Process(process.pid).children(recursive=True)
    chosen = [child for child in children if child.environ().get("RANK") == "1"]
    chosen[0].send_signal(signal.SIGKILL)
    # Beside other work torchrun itself takes its time; the test below measures the programs' own.
    _, errors = process.communicate(timeout=120)
    assert process.returncode
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)
    said = said_by_programs(errors)
    assert len(said) == 1, errors
    assert "another process of this run is gone" in said[0] or "stopped by SIGTERM" in said[0]
    epochs = metric_rows(tmp_path / "run")
    assert visible_checkpoints(tmp_path / "run")
    assert state_of(tmp_path / "run")["epoch"] in (len(epochs) - 1, len(epochs))


@pytest.mark.parametrize("victim", [0, 1])
def test_without_torchrun_too_the_others_notice(victim, tmp_path, one_thread):
    data = draw_people(tmp_path / "data", 40, side=32)
    args = args_of(data, tmp_path / "run", epochs=10_000, eval_interval=10_000)
    with open(tmp_path / "errors", "w") as errors:
        processes = fork_processes(lambda: train.main(args), 2, free_port(), stderr=errors.fileno())
    wait_for_epoch(3, tmp_path / "run", lambda: None)
    os.kill(processes[victim], signal.SIGKILL)
    start = time.monotonic()
    assert wait(processes[victim]) == -signal.SIGKILL
    assert wait(processes[1 - victim]) == 1
    assert time.monotonic() - start < 30
    name = "train.py" if victim else "train.py (process 1)"
    said = said_by_programs((tmp_path / "errors").read_text())
    assert len(said) == 1
    assert said[0].startswith(f"{name}: error: another process of this run is gone")


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_fails_ends_all_and_its_error_comes_first(victim, tmp_path, monkeypatch, one_thread):
    step, steps = TrainState.step, []

    def failing_step(state, *args, **kwargs):
        steps.append(1)
        if len(steps) == 5 and dist.rank() == victim:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "somewhere")
        return step(state, *args, **kwargs)

    monkeypatch.setattr(TrainState, "step", failing_step)
    data = draw_people(tmp_path / "data", 40, side=32)
    args = args_of(data, tmp_path / "run", epochs=10_000, eval_interval=10_000)
    with open(tmp_path / "errors", "w") as errors:
        processes = fork_processes(lambda: train.main(args), 2, free_port(), stderr=errors.fileno())
    assert [wait(process) for process in processes] == [1, 1]
    name, other = ("train.py (process 1)", "train.py") if victim else ("train.py", "train.py (process 1)")
    said = said_by_programs((tmp_path / "errors").read_text())
    assert len(said) == 2
    assert said[0] == f"{name}: error: [Errno 28] No space left on device: 'somewhere'"
    assert said[1].startswith(f"{other}: error: another process of this run is gone")
    assert state_of(tmp_path / "run")["epoch"] == 1


def wait_for_epoch(epoch, run, poll):
    rows = run / "metrics.jsonl"
    deadline = time.monotonic() + 240
    while not (rows.exists() and rows.read_text().count("\n") >= epoch):
        assert time.monotonic() < deadline
        assert poll() is None
        time.sleep(0.05)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
