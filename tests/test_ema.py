import copy
import json

import numpy as np
import pytest
import torch
from helpers import CPU, QUIET, draw_people, loader_of, make_config, metric_rows, start, to_args, train_args
from torch import nn

import train
from uhd.checkpoint import read_checkpoint
from uhd.data import build_datasets, build_loader
from uhd.ema import ModelEMA
from uhd.engine import evaluate, train_one_epoch
from uhd.models import build_model
from uhd.optim import TrainState
from uhd.task import build_task


class Single(nn.Module):
    """One weight and one counter."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch):
    """Plots of a run take longer than its training."""
    monkeypatch.setattr("uhd.recorder.write_reports", lambda *args, **kwargs: None)


@pytest.fixture
def folder(tmp_path):
    return draw_people(tmp_path / "data", 12, side=32)


def test_first_steps_follow_the_ramp():
    # With n = 1, 2, 3 the decays are 2/11, 3/12 and 4/13; the model holds 0, then 1.
    model = Single()
    average = ModelEMA(model, 0.9998)
    model.weight.data.fill_(1.0)
    remaining = 1.0
    for decay in (2 / 11, 3 / 12, 4 / 13):
        average.update()
        remaining *= decay
        assert average.model.weight.item() == pytest.approx(1 - remaining, abs=1e-6)


def test_decay_is_the_ramps_end():
    # (1 + n) / (10 + n) passes 0.5 at n = 8; from there on each step halves the distance.
    model = Single()
    average = ModelEMA(model, 0.5)
    for _ in range(8):
        average.update()
    model.weight.data.fill_(1.0)
    for distance in (0.5, 0.25, 0.125):
        average.update()
        assert average.model.weight.item() == pytest.approx(1 - distance, abs=1e-6)


def test_decay_of_zero_is_the_model():
    model = Single()
    average = ModelEMA(model, 0.0)
    model.weight.data.fill_(3.0)
    average.update()
    assert average.model.weight.item() == 3.0


def test_equals_an_average_written_as_a_loop():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    average = ModelEMA(model, 0.6)
    names = [name for name, value in model.state_dict().items() if value.is_floating_point()]
    expected = {name: model.state_dict()[name].double().numpy().copy() for name in names}
    for n in range(1, 21):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
            model(torch.randn(2, 3, 8, 8) * n)
        average.update()
        decay = min(0.6, (1 + n) / (10 + n))
        for name in names:
            expected[name] = decay * expected[name] + (1 - decay) * model.state_dict()[name].double().numpy()
    for name in names:
        np.testing.assert_allclose(average.model.state_dict()[name].numpy(), expected[name], rtol=1e-5, atol=1e-6)


def test_integers_are_copied():
    model = Single()
    average = ModelEMA(model, 0.9)
    model.seen.fill_(7)
    average.update()
    assert average.model.seen.item() == 7


@pytest.mark.parametrize("improved", [False, True])
def test_copy_shares_no_storage_with_the_model(improved):
    task, state = start(make_config(model={"use_improved_head": improved, "use_batchnorm": True}, optim={"use_ema": 1}))
    own = {value.untyped_storage().data_ptr() for value in task.student.state_dict().values()}
    averaged = state.ema.model.state_dict()
    assert {"anchors", "wh_scale"} <= averaged.keys()
    assert all(value.untyped_storage().data_ptr() not in own for value in averaged.values())
    assert not any(parameter.requires_grad for parameter in state.ema.model.parameters())
    assert not state.ema.model.training


def test_saved_average_continues_to_the_bit():
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    straight = ModelEMA(model, 0.9)
    model.weight.data.normal_()
    straight.update()
    resumed_model = copy.deepcopy(model)
    resumed = ModelEMA(resumed_model, 0.9)
    resumed.load_state_dict(copy.deepcopy(straight.state_dict()))
    for value in (1.0, -2.0):
        for source, average in ((model, straight), (resumed_model, resumed)):
            source.weight.data.fill_(value)
            average.update()
    assert torch.equal(straight.model.weight, resumed.model.weight)
    assert straight.updates == resumed.updates == 3


@pytest.mark.parametrize("improved", [False, True])
def test_anchors_scale_and_statistics_stay_right_over_many_steps(folder, improved):
    model = {"use_batchnorm": True, "use_improved_head": improved}
    cfg = make_config(model=model, optim={"use_ema": True, "batch_size": 4, "lr": 0.01})
    task, state = start(cfg)
    names = [name for name in task.student.state_dict() if name.endswith(("running_mean", "running_var", "wh_scale"))]
    seen = {name: [task.student.state_dict()[name].clone()] for name in names}
    update = state.ema.update

    def watched():
        for name in names:
            seen[name].append(task.student.state_dict()[name].clone())
        update()

    state.ema.update = watched
    loader = loader_of(folder, cfg)
    for _ in range(10):
        train_one_epoch(task, loader, state, QUIET)
    assert len(seen[names[0]]) == 31
    averaged = state.ema.model.state_dict()
    assert torch.equal(task.student.anchors, torch.tensor(cfg.model.anchors))
    assert torch.equal(averaged["anchors"], task.student.anchors)
    moved = 0
    for name in names:
        values = torch.stack(seen[name])
        slack = 1e-5 * (1 + values.abs().amax())
        assert (averaged[name] >= values.amin(0) - slack).all(), name
        assert (averaged[name] <= values.amax(0) + slack).all(), name
        moved += bool((averaged[name] != seen[name][0]).any())
    assert moved == len(names) - (not improved)  # a scale that is not learned stays 1
    assert all((averaged[name] > 0).all() for name in names if name.endswith("running_var"))


def test_anchors_of_the_average_are_the_computed_ones(folder, tmp_path):
    args = train_args(folder, tmp_path / "run", use_ema=True, auto_anchors=True, use_batchnorm=True, epochs=3)
    assert train.main(args) == 0
    checkpoint = read_checkpoint(tmp_path / "run/last.pt")
    anchors = torch.tensor(checkpoint.config.model.anchors)
    assert anchors.shape == (3, 2)
    assert anchors.min() > 0.1
    assert torch.equal(checkpoint.state["model"]["anchors"], anchors)
    assert torch.equal(checkpoint.state["ema"]["model"]["anchors"], anchors)


def test_validation_and_best_take_the_average_and_no_use_ema_the_raw_weights(folder, tmp_path):
    run = tmp_path / "run"
    args = train_args(folder, run, use_ema=True, lr=0.02, epochs=3, train_split=0.6, val_split=0.4)
    assert train.main(args) == 0
    trained = metric_rows(run)[-1]
    found = {}
    for use_ema in (True, False):
        flags = {"val_only": True, "ckpt": run / "last.pt", "cache": "ram", "device": "cpu", "num_workers": 0}
        assert train.main(to_args({**flags, "ckpt_out": tmp_path / str(use_ema), "use_ema": use_ema})) == 0
        found[use_ema] = json.loads((tmp_path / str(use_ema) / "val.json").read_text())
    assert found[True]["val/loss"] == pytest.approx(trained["val/loss"], abs=1e-6)

    checkpoint = read_checkpoint(run / "last.pt")
    cfg = checkpoint.config
    task = build_task(cfg, build_model(cfg.model))
    task.student.load_state_dict(checkpoint.state["model"])
    val_set = build_datasets(cfg.input, cfg.labels, cfg.data, need_train=False)[1]
    loader = build_loader(val_set, cfg.optim.batch_size, 0, shuffle=False, device_is_cuda=False)
    raw = evaluate(task.student, task, loader, cfg, QUIET).metrics
    assert found[False]["val/loss"] == pytest.approx(raw["val/loss"], abs=1e-6)
    assert abs(found[True]["val/loss"] - found[False]["val/loss"]) > 1e-3


def test_resuming_without_an_average_starts_one_from_the_weights():
    cfg = make_config(optim={"use_ema": False})
    _, plain = start(cfg)
    saved = plain.state_dict()
    cfg = make_config(optim={"use_ema": True})
    task = build_task(cfg, build_model(cfg.model))
    state = TrainState(cfg.optim, task, CPU)
    state.load_state_dict(saved)
    weights = state.ema.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in saved["model"].items())
    state.ema.update()
    assert state.ema.updates == 1
