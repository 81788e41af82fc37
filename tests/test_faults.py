"""Faults of the machine, made for real: files that may not grow, files that vanish, folders that are none."""

import pytest
import torch
from forking import run_forked
from helpers import draw_people, metric_rows, same, train_args

from uhd.checkpoint import find_resumable, read_checkpoint


@pytest.fixture
def run(tmp_path, monkeypatch, one_thread):
    """A run of two epochs that has ended after the first."""
    monkeypatch.setattr("uhd.recorder.write_reports", lambda *args, **kwargs: None)
    draw_people(tmp_path / "data", 12, side=32)
    code, errors = run_forked(train_args(tmp_path / "data", tmp_path / "run", epochs=3, stop_epoch=1))
    assert (code, errors) == (0, [])
    return tmp_path / "run"


def resume_args(folder, *flags):
    return ["--resume", folder, "--num-workers", 0, "--cache", "ram", "--stop-epoch", 0, *flags]


@pytest.mark.parametrize("largest", [0, 2_000, 60_000])
def test_full_disk_ends_a_run_with_one_line_and_leaves_the_last_checkpoint(run, largest):
    """Whatever file it is that cannot grow: the table, the log, TensorBoard's, the checkpoint."""
    before = read_checkpoint(run / "last.pt").state
    code, errors = run_forked(resume_args(run), largest_file=largest)
    problems = [line for line in errors if not line.startswith("warning: ")]
    assert code == 1, errors
    assert len(problems) == 1, errors
    assert problems[0].startswith("train.py: error: "), errors
    assert "File too large" in problems[0]
    checkpoint = read_checkpoint(find_resumable(run))
    if checkpoint.state["epoch"] == 1:
        assert same(checkpoint.state, before)
    assert run_forked(resume_args(run))[0] == 0
    assert read_checkpoint(run / "last.pt").state["epoch"] == 3
    assert [row["epoch"] for row in metric_rows(run)] == [1, 2, 3]
    assert not list(run.glob("*.tmp"))


@pytest.mark.parametrize("largest", [0, 20_000])
def test_full_disk_at_the_start_of_a_run(tmp_path, one_thread, largest):
    data = draw_people(tmp_path / "data", 12, side=32)
    argv = train_args(data, tmp_path / "run", epochs=1)
    code, errors = run_forked(argv, largest_file=largest)
    assert code == 1, errors
    assert len([line for line in errors if not line.startswith("warning: ")]) == 1, errors
    assert not any(path.suffix == ".pt" for path in (tmp_path / "run").iterdir())
    assert run_forked(argv)[0] == 0


def test_full_disk_while_pictures_are_drawn_is_a_warning(tmp_path, one_thread):
    """Charts can be drawn again; an epoch of a long training cannot."""
    data = draw_people(tmp_path / "data", 40, side=32)
    flags = {"epochs": 1, "train_split": 0.3, "val_split": 0.7}
    assert run_forked(train_args(data, tmp_path / "run", **flags))[0] == 0
    largest = max(path.stat().st_size for path in (tmp_path / "run").glob("*.pt"))
    assert largest + 1000 < (tmp_path / "run/samples.png").stat().st_size
    code, errors = run_forked(train_args(data, tmp_path / "again", **flags), largest_file=largest + 1000)
    assert code == 0, errors
    assert errors
    assert all(line.startswith("warning: the pictures of the run cannot be written") for line in errors), errors
    assert read_checkpoint(tmp_path / "again/last.pt").state["epoch"] == 1


@pytest.mark.parametrize("kind", ["file", "below a file", "dangling link"])
def test_run_folder_that_cannot_be_is_named_before_anything_is_trained(tmp_path, one_thread, kind):
    data = draw_people(tmp_path / "data", 12, side=32)
    folder = tmp_path / "taken"
    if kind == "dangling link":
        folder.symlink_to(tmp_path / "nowhere/at/all")
    else:
        folder.write_text("")
        folder = folder / "below" if kind == "below a file" else folder
    code, errors = run_forked(train_args(data, folder, epochs=1))
    assert code == 2
    assert len(errors) == 1, errors
    assert errors[0].startswith(f"train.py: error: --ckpt-out: the folder {folder} cannot be made")


def test_checkpoint_that_was_cut_off_is_refused_and_the_one_before_it_goes_on(run):
    assert run_forked(resume_args(run, "--stop-epoch", 2))[0] == 0
    newest = find_resumable(run)
    newest.write_bytes(newest.read_bytes()[:-1000])
    code, errors = run_forked(resume_args(run))
    assert code == 2
    assert len(errors) == 1
    assert f"--resume {newest}: not a complete checkpoint" in errors[0]
    older = next(path for path in run.glob("last_*_0001_*.pt"))
    assert run_forked(resume_args(older, "--ckpt-out", run))[0] == 0
    assert read_checkpoint(run / "last.pt").state["epoch"] == 3
    assert torch.load(run / "last.pt", weights_only=True)
