import json
import multiprocessing
import os
import resource
import shutil
import time

import numpy as np
import pytest
import torch
from helpers import draw_people, make_config, metric_rows, same, start, targets_of, train_args, visible_checkpoints

import train
import uhd
from uhd.checkpoint import (
    KEEP,
    find_resumable,
    load_fitting,
    load_model,
    read_checkpoint,
    remove_temporary_files,
    save_checkpoint,
)
from uhd.config import Config, DataConfig
from uhd.engine import sum_terms
from uhd.models import build_model
from uhd.optim import TrainState
from uhd.task import build_task


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch):
    """Plots of a run take longer than its training."""
    monkeypatch.setattr("uhd.recorder.write_reports", lambda *args, **kwargs: None)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run of two epochs with an average; its data lie beside it."""
    base = tmp_path_factory.mktemp("finished")
    draw_people(base / "data", 16, side=32)
    flags = {"use_ema": True, "use_batchnorm": True, "lr": 0.01, "aug": False, "cnn_width": 8}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "write_reports", lambda *args, **kwargs: None)
        assert train.main(train_args(base / "data", base / "run", **flags)) == 0
    return base / "run"


@pytest.fixture
def run_dir(finished, tmp_path):
    """A copy of it that a test may change."""
    return shutil.copytree(finished, tmp_path / "run", symlinks=True)


def stepped_state(model=None, optim=None):
    """A config and a state after one step, so that the optimizer holds its moments."""
    cfg = make_config(model=model, optim=optim)
    task, state = start(cfg)
    terms = task(torch.rand(2, 3, 32, 32), targets_of([(0, 0.2, 0.2, 0.7, 0.9)], []))
    state.scaler.scale(sum_terms(terms)).backward()
    state.step(torch.tensor(True))
    return cfg, state


def save(folder, cfg, state, epoch, map50, is_best=False, metrics=None):
    state.epoch, state.last_map = epoch, map50
    return save_checkpoint(folder, cfg, state, metrics or {}, is_best=is_best)


def names(folder, prefix):
    return sorted(path.name for path in folder.glob(f"{prefix}_*.pt"))


# --- what is in a file --------------------------------------------------------------------------


def leaves(value):
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from leaves(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from leaves(item)
    else:
        yield value


@pytest.mark.parametrize("name", ["last.pt", "best.pt"])
def test_holds_tensors_and_plain_values_only(finished, name):
    content = torch.load(finished / name, weights_only=True)
    kinds = {type(leaf) for leaf in leaves(content)}
    assert kinds <= {str, int, float, bool, type(None), torch.Tensor}
    assert content["program"] == "uhd"
    assert content["versions"]["uhd"] == uhd.__version__
    assert {"torch", "torchvision", "numpy", "python"} < content["versions"].keys()
    assert all(type(version) is str for version in content["versions"].values())
    assert {"model", "ema", "optimizer", "scaler", "epoch", "rng", "best"} <= content["state"].keys()


def test_config_and_metrics_are_those_of_the_run(finished):
    checkpoint = read_checkpoint(finished / "last.pt")
    assert Config.from_dict(checkpoint.config.to_dict()) == checkpoint.config
    assert checkpoint.config.model.anchors is not None
    row = metric_rows(finished)[-1]
    assert row["epoch"] == checkpoint.state["epoch"] == 2
    for key, value in checkpoint.metrics.items():
        assert value == row[key] or (row[key] is None and np.isnan(value)), key
    assert checkpoint.state["last_map"] == row["val/mAP@0.5"]


def test_a_file_from_before_a_setting_was_there_means_what_its_run_did(run_dir):
    """Its epochs, resumed, are as long as they were, whatever the default of --background-share is now."""
    content = torch.load(run_dir / "last.pt", weights_only=True)
    del content["config"]["data"]["background_share"]
    torch.save(content, run_dir / "old.pt")
    assert DataConfig().background_share > 0
    assert read_checkpoint(run_dir / "old.pt").config.data.background_share == 0


@pytest.mark.parametrize("with_data", [True, False])
@pytest.mark.parametrize("flag", ["--ckpt", "--resume"])
def test_val_only_reproduces_the_recorded_figures(run_train, run_dir, finished, flag, with_data):
    shown = ["--image-dir", finished.parent / "data"] if with_data else []
    before = visible_checkpoints(run_dir)
    outcome = run_train("--val-only", flag, run_dir / "last.pt", *shown)
    assert outcome.code == 0, outcome.err
    found = json.loads((run_dir / "val.json").read_text())
    recorded = {key: value for key, value in metric_rows(run_dir)[-1].items() if key.startswith("val/")}
    assert found.keys() == recorded.keys()
    assert recorded["val/loss"] > 0
    for key, value in recorded.items():
        assert found[key] == pytest.approx(value, abs=1e-6), key
    assert visible_checkpoints(run_dir) == before
    assert len(metric_rows(run_dir)) == 2


def test_loaded_model_is_the_validated_one(finished):
    model, cfg = load_model(finished / "best.pt")
    checkpoint = read_checkpoint(finished / "best.pt")
    assert cfg == checkpoint.config
    assert not model.training
    assert same(dict(model.state_dict()), dict(checkpoint.state["ema"]["model"]))


def test_weights_without_an_average_are_the_raw_ones(tmp_path):
    cfg, state = stepped_state()
    path = save(tmp_path, cfg, state, 1, 0.5)
    model, _ = load_model(path)
    assert same(dict(model.state_dict()), dict(state.task.student.state_dict()))


def test_fitting_weights_are_loaded_and_the_rest_named():
    source = start(make_config(model={"use_improved_head": True}), seed=1)[0].student.state_dict()
    target = start(make_config(model={"num_classes": 2}), seed=2)[0].student
    before = {name: value.clone() for name, value in target.state_dict().items()}
    notes = load_fitting(target, source)
    after = target.state_dict()
    assert any(note.startswith("head.quality.") and note.endswith("not in this model") for note in notes)
    assert "head.cls.2.weight: [3, 8, 1, 1] in the checkpoint, [6, 8, 1, 1] here" in notes
    assert torch.equal(after["head.cls.2.weight"], before["head.cls.2.weight"])
    assert torch.equal(after["backbone.stem.0.weight"], source["backbone.stem.0.weight"])
    assert not torch.equal(after["backbone.stem.0.weight"], before["backbone.stem.0.weight"])


def test_fitting_weights_name_what_the_checkpoint_lacks():
    source = start(make_config())[0].student.state_dict()
    notes = load_fitting(start(make_config(model={"use_improved_head": True}))[0].student, source)
    assert notes
    assert all(note.endswith("not in the checkpoint") for note in notes)


# --- names, links, pruning ----------------------------------------------------------------------


def test_names_and_links(tmp_path):
    cfg, state = stepped_state()
    assert save(tmp_path, cfg, state, 7, 0.123456, is_best=True).name == "last_utod_0007_map_0.12346.pt"
    save(tmp_path, cfg, state, 12345, 1.0)
    assert visible_checkpoints(tmp_path) == [
        "best.pt",
        "best_utod_0007_map_0.12346.pt",
        "last.pt",
        "last_utod_0007_map_0.12346.pt",
        "last_utod_12345_map_1.00000.pt",
    ]
    assert os.readlink(tmp_path / "last.pt") == "last_utod_12345_map_1.00000.pt"
    assert os.readlink(tmp_path / "best.pt") == "best_utod_0007_map_0.12346.pt"
    assert find_resumable(tmp_path) == (tmp_path / "last_utod_12345_map_1.00000.pt").resolve()
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".pt"]


def test_moved_folder_keeps_its_links(tmp_path):
    cfg, state = stepped_state()
    (tmp_path / "a").mkdir()
    save(tmp_path / "a", cfg, state, 1, 0.5, is_best=True)
    (tmp_path / "a").rename(tmp_path / "b")
    assert read_checkpoint(tmp_path / "b/best.pt").state["epoch"] == 1


def test_newest_ten_and_best_ten_stay(tmp_path):
    cfg, state = stepped_state()
    # Best epochs with falling mAP among them, as runs that were resumed leave them.
    scores = [0.1, 0.9, 0.2, 0.8, 0.3, 0.7, 0.4, 0.6, 0.5, 0.55, 0.65, 0.75, 0.85]
    for epoch, score in enumerate(scores, start=1):
        save(tmp_path, cfg, state, epoch, score, is_best=True)
    kept = [int(name.split("_")[2]) for name in names(tmp_path, "last")]
    assert kept == list(range(4, 14))
    best = sorted((float(name[:-3].split("_")[-1]) for name in names(tmp_path, "best")), reverse=True)
    assert best == sorted(scores, reverse=True)[:KEEP]
    assert os.readlink(tmp_path / "best.pt") == "best_utod_0013_map_0.85000.pt"


def test_what_the_links_name_is_never_pruned(tmp_path):
    cfg, state = stepped_state()
    for epoch in range(20, 30):
        save(tmp_path, cfg, state, epoch, 0.9, is_best=True)
    save(tmp_path, cfg, state, 2, 0.1, is_best=True)
    for link in ("last.pt", "best.pt"):
        assert read_checkpoint(tmp_path / link).state["epoch"] == 2
    save(tmp_path, cfg, state, 3, 0.05)
    assert read_checkpoint(tmp_path / "last.pt").state["epoch"] == 3
    assert read_checkpoint(tmp_path / "best.pt").state["epoch"] == 2


def test_repeated_epoch_with_another_map_replaces_its_file(tmp_path):
    cfg, state = stepped_state()
    save(tmp_path, cfg, state, 4, 0.4)
    save(tmp_path, cfg, state, 4, 0.6)
    assert names(tmp_path, "last") == ["last_utod_0004_map_0.60000.pt"]
    assert read_checkpoint(tmp_path / "last.pt").state["last_map"] == 0.6


def test_file_names_carry_the_last_known_map(run_train, tmp_path, finished):
    flags = {"epochs": 3, "eval_interval": 2, "aug": False}
    assert run_train(*train_args(finished.parent / "data", tmp_path / "run", **flags)).code == 0
    maps = {row["epoch"]: row.get("val/mAP@0.5") for row in metric_rows(tmp_path / "run")}
    assert maps[1] is None
    assert names(tmp_path / "run", "last") == [
        "last_utod_0000_map_0.00000.pt",
        "last_utod_0001_map_0.00000.pt",
        f"last_utod_0002_map_{maps[2]:.5f}.pt",
        f"last_utod_0003_map_{maps[3]:.5f}.pt",
    ]


def test_best_is_the_first_of_equal_epochs(run_dir):
    rows = metric_rows(run_dir)
    best = max(rows, key=lambda row: row["val/mAP@0.5"])
    checkpoint = read_checkpoint(run_dir / "best.pt")
    assert checkpoint.state["epoch"] == best["epoch"]
    assert checkpoint.state["best"] == {"map50": best["val/mAP@0.5"], "epoch": best["epoch"]}


def test_file_system_without_links_gets_copies(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(os, "symlink", refuse)
    cfg, state = stepped_state()
    for epoch in (1, 2):
        save(tmp_path, cfg, state, epoch, 0.5, is_best=True)
    for name in visible_checkpoints(tmp_path):
        assert not (tmp_path / name).is_symlink()
        assert read_checkpoint(tmp_path / name)
    assert read_checkpoint(find_resumable(tmp_path)).state["epoch"] == 2
    assert read_checkpoint(tmp_path / "best.pt").state["epoch"] == 2


# --- files that cannot be used ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "not a complete checkpoint"),
        (b"hello\n", "not a complete checkpoint"),
        (None, "not a complete checkpoint"),
        ({"model": {}}, "not a checkpoint of this program"),
        ([1, 2], "not a checkpoint of this program"),
        (
            {"program": "uhd", "format": 99, "versions": {"uhd": "9.9"}, "config": {}, "state": {}, "metrics": {}},
            "newer version (9.9)",
        ),
    ],
)
def test_unusable_files_are_named(run_dir, tmp_path, content, expected):
    path = tmp_path / "wrong.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is None:
        whole = (run_dir / "last.pt").read_bytes()
        path.write_bytes(whole[: len(whole) * 2 // 3])
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=r"wrong\.pt") as error:
        read_checkpoint(path)
    assert expected in str(error.value)
    assert str(error.value).startswith("--ckpt ")
    assert "\n" not in str(error.value)


# --- saves that do not end ----------------------------------------------------------------------


def save_for_ever(folder, cfg, state, epoch, seed):
    rng = np.random.default_rng(seed)
    while True:
        epoch += 1
        state.epoch = epoch
        is_best = state.note_map(float(rng.uniform()) if epoch % 3 else state.best.map50 + 0.001)
        save_checkpoint(folder, cfg, state, {}, is_best=is_best)


def test_a_save_killed_at_any_moment_leaves_complete_files(run_train, tmp_path, finished):
    folder = tmp_path / "run"
    data = finished.parent / "data"
    flags = {"epochs": 100_000, "stop_epoch": 1, "cnn_width": 16, "use_ema": True, "aug": False, "eval_interval": 9}
    assert run_train(*train_args(data, folder, **flags)).code == 0
    cfg = read_checkpoint(find_resumable(folder)).config
    rng = np.random.default_rng(0)
    seen = 1
    for trial in range(10):
        state = resumed_state(cfg, find_resumable(folder))
        before = os.readlink(folder / "last.pt")
        args = (folder, cfg, state, state.epoch, trial)
        process = multiprocessing.get_context("fork").Process(target=save_for_ever, args=args)
        process.start()
        # One save of each trial ends before the kill, which then comes at any moment of the following ones.
        while os.readlink(folder / "last.pt") == before and process.is_alive():
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.08))
        process.kill()
        process.join()
        for name in visible_checkpoints(folder):
            assert read_checkpoint(folder / name), name
        assert {"last.pt", "best.pt"} <= set(visible_checkpoints(folder))
        found = read_checkpoint(find_resumable(folder)).state
        assert found["epoch"] > seen
        seen = found["epoch"]
        best = found["best"]
        assert f"best_utod_{best['epoch']:04d}_map_{best['map50']:.5f}.pt" in visible_checkpoints(folder)
        assert len(names(folder, "last")) <= KEEP + 2
    outcome = run_train("--resume", folder, "--stop-epoch", seen + 1, "--cache", "ram", "--num-workers", 0)
    assert outcome.code == 0, outcome.err
    assert read_checkpoint(folder / "last.pt").state["epoch"] == seen + 1
    assert not list(folder.glob("*.tmp"))
    assert len(names(folder, "last")) == min(KEEP, seen + 2)


def resumed_state(cfg, path):
    task = build_task(cfg, build_model(cfg.model))
    state = TrainState(cfg.optim, task, torch.device("cpu"))
    state.load_state_dict(read_checkpoint(path).state)
    return state


def test_remnants_of_a_killed_save_are_cleared(tmp_path):
    (tmp_path / "last_utod_0003_map_0.1.tmp").write_bytes(b"half")
    (tmp_path / "notes.txt").touch()
    remove_temporary_files(tmp_path)
    assert os.listdir(tmp_path) == ["notes.txt"]


@pytest.fixture
def small_disk():
    """Lets files grow to a number of bytes only, as on a full disk; None lifts the limit."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size if size is not None else before[0], before[1]))

    yield limit
    limit(None)


def test_full_disk_ends_the_run_with_the_old_checkpoint_intact(run_train, run_dir, small_disk):
    before = visible_checkpoints(run_dir)
    old = (run_dir / "last.pt").read_bytes()
    resumed = ("--resume", run_dir, "--epochs", 4, "--cache", "ram", "--num-workers", 0)
    small_disk(len(old) // 2)
    try:
        outcome = run_train(*resumed)
    finally:
        small_disk(None)
    assert outcome.code == 1
    assert len(outcome.errors) == 1, outcome.errors
    assert outcome.errors[0].startswith("train.py: error: ")
    assert visible_checkpoints(run_dir) == before
    assert not list(run_dir.glob("*.tmp"))
    assert (run_dir / "last.pt").read_bytes() == old
    assert run_train(*resumed).code == 0
    assert read_checkpoint(run_dir / "last.pt").state["epoch"] == 4
    assert [row["epoch"] for row in metric_rows(run_dir)] == [1, 2, 3, 4]


def test_full_disk_while_an_epoch_is_repeated_keeps_its_older_file(tmp_path, small_disk):
    cfg, state = stepped_state()
    for epoch in (1, 2):
        path = save(tmp_path, cfg, state, epoch, 0.5, is_best=True)
    before = visible_checkpoints(tmp_path)
    small_disk(path.stat().st_size // 2)
    with pytest.raises((OSError, RuntimeError)):
        save(tmp_path, cfg, state, 2, 0.7, is_best=True)
    small_disk(None)
    assert visible_checkpoints(tmp_path) == before
    assert all(read_checkpoint(tmp_path / name) for name in before)
