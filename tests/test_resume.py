"""A run that stops and goes on, by --resume and by signals."""

import dataclasses
import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT
from helpers import draw_people, metric_rows, same, train_args, visible_checkpoints

import train
from uhd.checkpoint import find_resumable, read_checkpoint

TIMES = {"seconds", "images_per_second"}
AUGMENTATION = str(ROOT / "uhd/aug.yaml")


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch):
    """Plots of a run take longer than its training."""
    monkeypatch.setattr("uhd.recorder.write_reports", lambda *args, **kwargs: None)


@pytest.fixture
def folder(tmp_path):
    return draw_people(tmp_path / "data", 20, side=32)


@pytest.fixture
def run(run_train, folder, tmp_path):
    """Trains into a folder of tmp_path; `out` names it, or is None to leave --ckpt-out to the program."""

    def start(out="run", code=0, **flags):
        flags = {"aug": False, "ckpt_out": tmp_path / out if out else None, **flags}
        outcome = run_train(*train_args(folder, None, **flags))
        assert outcome.code == code, outcome.err
        return outcome

    return start


@pytest.fixture
def resume(run_train, tmp_path):
    """Goes on with a run without any other flag than the session's."""

    def start(path="run", *flags, code=0):
        outcome = run_train("--resume", tmp_path / path, "--num-workers", 0, "--cache", "ram", *flags)
        assert outcome.code == code, outcome.err
        return outcome

    return start


def timeless(rows):
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def epochs_of(run_dir):
    return [row["epoch"] for row in metric_rows(run_dir)]


def last_state(run_dir):
    return read_checkpoint(run_dir / "last.pt").state


def numbered(run_dir, epoch):
    return next(run_dir.glob(f"last_utod_{epoch:04d}_map_*.pt"))


# --- bit for bit --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flags",
    [
        {"num_workers": 2, "aug": None, "aug_config": AUGMENTATION, "use_ema": True, "use_batchnorm": True},
        {"optimizer": "sgd", "lr": 0.01, "lr_schedule": "constant", "use_improved_head": True},
    ],
    ids=["augmented, averaged, two workers", "sgd"],
)
def test_one_epoch_and_one_more_are_two_to_the_bit(run, resume, tmp_path, flags):
    run("straight", **flags)
    run("parts", **flags, stop_epoch=1)
    assert epochs_of(tmp_path / "parts") == [1]
    resume("parts", "--num-workers", flags.get("num_workers", 0))
    straight, parts = (read_checkpoint(tmp_path / name / "last.pt") for name in ("straight", "parts"))
    assert straight.state.keys() == parts.state.keys()
    for part in straight.state:
        assert same(parts.state[part], straight.state[part]), part
    assert same(timeless([parts.metrics]), timeless([straight.metrics]))
    rows = metric_rows(tmp_path / "parts")
    assert timeless(rows) == timeless(metric_rows(tmp_path / "straight"))
    assert rows[0].keys() > TIMES
    assert rows[0]["train/loss"] != rows[1]["train/loss"]
    assert visible_checkpoints(tmp_path / "parts") == visible_checkpoints(tmp_path / "straight")
    assert replaced_run(parts.config) == replaced_run(straight.config)


def replaced_run(cfg):
    """A config without the session's values, which a resumed run does not keep."""
    return dataclasses.replace(cfg, run=None, data=dataclasses.replace(cfg.data, num_workers=None))


def test_number_of_workers_changes_nothing(run, tmp_path):
    for workers in (0, 2):
        run(f"workers{workers}", epochs=1, num_workers=workers, aug=None, aug_config=AUGMENTATION)
    assert same(last_state(tmp_path / "workers0"), last_state(tmp_path / "workers2"))


# --- folders and epochs -------------------------------------------------------------------------


def test_stop_epoch_ends_early_on_the_whole_schedule(run, tmp_path):
    run("whole", epochs=3)
    run("stopped", epochs=3, stop_epoch=2)
    assert epochs_of(tmp_path / "stopped") == [1, 2]
    assert timeless(metric_rows(tmp_path / "stopped")) == timeless(metric_rows(tmp_path / "whole"))[:2]


@pytest.mark.parametrize("path", ["run", "run/last.pt"])
def test_resume_writes_on_in_the_checkpoints_own_folder(run, resume, tmp_path, path):
    run(stop_epoch=1)
    resume(path)
    assert epochs_of(tmp_path / "run") == [1, 2]
    assert last_state(tmp_path / "run")["epoch"] == 2
    assert not (tmp_path / "runs").exists()


def test_typed_name_moves_the_run(run, resume, tmp_path):
    run(stop_epoch=1)
    before = visible_checkpoints(tmp_path / "run")
    resume("run", "--exp-name", "moved")
    assert epochs_of(tmp_path / "runs/moved") == [2]
    assert last_state(tmp_path / "runs/moved")["epoch"] == 2
    assert visible_checkpoints(tmp_path / "run") == before
    assert epochs_of(tmp_path / "run") == [1]


def test_moving_onto_another_run_leaves_that_one_alone(run, resume, tmp_path):
    run(stop_epoch=1)
    run("runs/taken", epochs=3)
    before = visible_checkpoints(tmp_path / "runs/taken")
    outcome = resume("run", "--exp-name", "taken")
    assert visible_checkpoints(tmp_path / "runs/taken") == before
    assert epochs_of(tmp_path / "runs/taken") == [1, 2, 3]
    assert epochs_of(tmp_path / "runs/taken-2") == [2]
    assert any("runs/taken-2" in line for line in outcome.out)


def test_same_folder_without_resume_gets_a_suffix(run, tmp_path):
    for _ in range(3):
        run(epochs=1)
    assert [epochs_of(tmp_path / name) for name in ("run", "run-2", "run-3")] == [[1], [1], [1]]


def test_resume_from_an_older_file_cuts_back_what_came_after(run, resume, tmp_path):
    run(epochs=3)
    run_dir = tmp_path / "run"
    rows, state = timeless(metric_rows(run_dir)), last_state(run_dir)
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 4, "half a li')
    resume(numbered(run_dir, 1), "--stop-epoch", 2)
    assert timeless(metric_rows(run_dir)) == rows[:2]
    assert last_state(run_dir)["epoch"] == 2
    resume()
    assert timeless(metric_rows(run_dir)) == rows
    assert same(last_state(run_dir), state)


def test_resume_far_back_keeps_its_own_newest_file(run, resume, tmp_path):
    # Of thirteen epochs the files of the last ten are there, and the best of an early one.
    run(epochs=13, eval_interval=13, train_split=0.2, val_split=0.1)
    run_dir = tmp_path / "run"
    assert len(list(run_dir.glob("last_*.pt"))) == 10
    early = run_dir / "best_utod_0001_map_0.00000.pt"
    run("short", epochs=13, stop_epoch=1, train_split=0.2, val_split=0.1)
    early.write_bytes((tmp_path / "short/last.pt").read_bytes())
    resume(early, "--stop-epoch", 3)
    assert last_state(run_dir)["epoch"] == 3
    assert find_resumable(run_dir).name.startswith("last_utod_0003_")
    assert all(read_checkpoint(run_dir / name) for name in visible_checkpoints(run_dir))


@pytest.mark.parametrize("flags", [(), ("--stop-epoch", 1)])
def test_finished_run_has_nothing_left_to_do(run, resume, tmp_path, flags):
    run(epochs=1)
    before = visible_checkpoints(tmp_path / "run"), metric_rows(tmp_path / "run")
    outcome = resume("run", *flags)
    assert any("nothing is left to do" in line for line in outcome.out)
    assert (visible_checkpoints(tmp_path / "run"), metric_rows(tmp_path / "run")) == before


def test_more_epochs_go_on_with_a_finished_run(run, resume, tmp_path):
    run(epochs=1)
    resume("run", "--epochs", 2)
    assert epochs_of(tmp_path / "run") == [1, 2]


def test_folder_without_a_checkpoint_is_refused(run_train, tmp_path):
    (tmp_path / "empty").mkdir()
    outcome = run_train("--resume", tmp_path / "empty")
    assert outcome.code == 2
    assert len(outcome.errors) == 1
    assert f"--resume {tmp_path / 'empty'}" in outcome.errors[0]


def test_folder_without_its_link_resumes_from_the_newest_epoch(run, tmp_path):
    run()
    (tmp_path / "run/last.pt").unlink()
    assert read_checkpoint(find_resumable(tmp_path / "run")).state["epoch"] == 2


# --- patience -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("maps", "flags", "trained"),
    [
        ([0.1, 0.2, 0.2, 0.1, 0.3], {"patience": 2}, 4),
        ([0.1, 0.2, 0.3, 0.4, 0.5], {"patience": 1}, 5),
        ([0.0, 0.0, 0.0, 0.0, 0.0], {"patience": 1}, 2),
        ([0.5, 0.4, 0.3, 0.2, 0.1], {"patience": 0}, 5),
        # Epochs without a validation do not end the run.
        ([0.1, 0.2, 0.3], {"patience": 1, "eval_interval": 2}, 5),
        ([0.1, 0.1, 0.1], {"patience": 1, "eval_interval": 2}, 4),
        ([], {"patience": 1, "val_split": 0}, 5),
    ],
)
def test_patience(run, tmp_path, monkeypatch, maps, flags, trained):
    scripted = iter(maps)
    validate = train.evaluate

    def evaluate(*args):
        found = validate(*args)
        evaluation = dataclasses.replace(found.evaluation, map50=next(scripted))
        return dataclasses.replace(found, evaluation=evaluation)

    monkeypatch.setattr(train, "evaluate", evaluate)
    run(epochs=5, train_split=0.4, **flags)
    assert epochs_of(tmp_path / "run") == list(range(1, trained + 1))


# --- signals ------------------------------------------------------------------------------------


def wait_for(reached, process, seconds=240):
    deadline = time.monotonic() + seconds
    while not reached():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "the run did not get there"
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("number", "code", "epochs", "whole_group"),
    [
        (signal.SIGINT, 130, 1, True),  # Ctrl-C reaches the workers too
        (signal.SIGTERM, 143, 1, True),  # as job schedulers send it: the workers die of it at the same moment
        (signal.SIGINT, 130, 0, False),
    ],
    ids=["SIGINT in epoch 2", "SIGTERM in epoch 2", "SIGINT in epoch 1"],
)
def test_signals_end_a_run_with_its_last_epoch_saved(resume, tmp_path, number, code, epochs, whole_group):
    # For a signal inside the first epoch that epoch is made long: hundreds of steps of one picture.
    count, batch = (24, 4) if epochs else (300, 1)
    data = draw_people(tmp_path / "data", count, side=16)
    run_dir = tmp_path / "run"
    flags = {"num_workers": 2, "batch_size": batch, "epochs": 100_000, "aug": False, "val_count": 2}
    args = [str(arg) for arg in train_args(data, run_dir, **flags)]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *args],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        rows = run_dir / "metrics.jsonl"
        wait_for(lambda: rows.exists() and len(rows.read_text().splitlines()) >= epochs, process)
        if whole_group:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        errors = process.communicate(timeout=240)[1]
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    assert process.returncode == code
    lines = [line for line in errors.replace("\r", "\n").splitlines() if line.strip()]
    assert "Traceback" not in errors
    assert [line for line in lines if line.startswith("train.py:")] == [f"train.py: stopped by {number.name}"]
    finished = last_state(run_dir)["epoch"]
    assert finished == len(metric_rows(run_dir))
    assert finished >= epochs
    if not epochs:
        assert finished == 0
        for path in sorted(data.iterdir())[48:]:  # the rest of the test needs no long epoch
            path.unlink()
    resume("run", "--stop-epoch", finished + 1)
    assert last_state(run_dir)["epoch"] == finished + 1
    assert epochs_of(run_dir) == list(range(1, finished + 2))
