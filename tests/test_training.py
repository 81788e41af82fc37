"""Steps and epochs: overfitting, what is skipped, what stops a run, mixed precision."""

import math

import pytest
import torch
from helpers import QUIET, draw_people, loader_of, make_config, metric_rows, start, targets_of, train_args
from torch import nn

import train
from uhd import engine
from uhd.dist import own
from uhd.engine import TermMeans, evaluate, sum_terms, to_input, train_one_epoch
from uhd.optim import build_optimizer, lr_at

ASSIGNERS = ("legacy", "simota", "tal")


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch):
    """Plots of a run take longer than its training."""
    monkeypatch.setattr("uhd.recorder.write_reports", lambda *args, **kwargs: None)


@pytest.fixture
def folder(tmp_path):
    return draw_people(tmp_path / "data", 8, side=32)


def finite(tensors):
    return all(tensor.isfinite().all() for tensor in tensors if tensor.is_floating_point())


# --- learning -----------------------------------------------------------------------------------


PEOPLE = ((0.15, 0.35), (0.2, 0.5), (0.25, 0.5), (0.3, 0.6))
OVERFITTED = {
    **{f"ultratinyod, {name}": {"assign": {"anchor_assigner": name}} for name in ASSIGNERS},
    "cnn, CenterNet": {"arch": "cnn", "model": {"output_stride": 8, "cnn_width": 16}},
    "cnn, anchors": {
        "arch": "cnn",
        "model": {"output_stride": 8, "cnn_width": 16, "use_anchor": True, "use_improved_head": True},
    },
    "nanodet": {
        "arch": "nanodet",
        "model": {"nanodet_width": 0.5, "nanodet_neck_channels": 32},
        "optim": {"lr": 0.01, "epochs": 150},
    },
    **{
        f"tinyssd, {loss}": {
            "arch": "tinyssd",
            "model": {"tinyssd_levels": 2, "num_anchors": 2, "anchors": PEOPLE, "tinyssd_cls_loss": loss},
            # Its own default: with that of the other heads it depends on rounding whether all are found.
            "loss": {"loss_weight_box": 1.0},
            "optim": {"lr": 0.006, "epochs": 250, "grad_clip_norm": 10.0},
        }
        for loss in ("focal", "mined")
    },
    "transformer": {
        "arch": "transformer",
        "img_size": (32, 32),
        "model": {"d_model": 32, "heads": 2, "layers": 1, "dim_feedforward": 64},
        "optim": {"lr": 0.006, "epochs": 300},
    },
}


@pytest.mark.parametrize("name", OVERFITTED)
def test_one_batch_is_overfitted(tmp_path, name):
    row = OVERFITTED[name]
    folder = draw_people(tmp_path, 8, side=64, seed=3)
    optim = {"batch_size": 8, "lr": 0.02, "weight_decay": 0.0, "epochs": 180, "lr_schedule": "cosine"}
    wide = row.get("arch") not in ("nanodet", "tinyssd", "transformer")
    model = {"cnn_width": 8, "use_batchnorm": True} if wide else {}
    cfg = make_config(
        **{"img_size": (64, 64), **row, "model": model | row.get("model", {}), "optim": optim | row.get("optim", {})}
    )
    task, state = start(cfg)
    loader = loader_of(folder, cfg)
    assert len(loader) == 1
    for _ in range(cfg.optim.epochs):
        train_one_epoch(task, loader, state, QUIET)
    found = evaluate(state.eval_model, task, loader_of(folder, cfg, shuffle=False), cfg, QUIET)
    assert found.evaluation.map50 > 0.95
    assert found.metrics["val/mAP@0.5"] == found.evaluation.map50
    # Every truth is at least 8x19 pixels: both figures count the same truths.
    assert found.metrics["val/AP50_ge9px2"] > 0.95


def test_loss_is_the_sum_and_the_mean_over_pictures():
    means = TermMeans()
    terms = {"box": torch.tensor(1.0), "cls": torch.tensor(2.0)}
    means.add(terms, 3)
    means.add({"box": torch.tensor(5.0), "cls": torch.tensor(0.0)}, 1)
    assert sum_terms(terms) == 3
    assert means.read() == {"loss": 3.5, "box": 2.0, "cls": 1.5}
    assert TermMeans().read() == {}


def test_pictures_become_rgb_planes_from_0_to_1():
    images = torch.tensor([[[[0, 51, 255]] * 2] * 4], dtype=torch.uint8)
    inputs = to_input(images, torch.device("cpu"))
    assert inputs.shape == (1, 3, 4, 2)
    torch.testing.assert_close(inputs[0, :, 0, 0], torch.tensor([0.0, 0.2, 1.0]))


@pytest.mark.parametrize(
    ("flags", "epoch", "lr"),
    [
        ({"warmup_epochs": 2, "epochs": 10}, 0.5, 0.25),
        ({"warmup_epochs": 2, "epochs": 10}, 2, 1.0),
        ({"warmup_epochs": 2, "epochs": 10}, 6, 0.505),
        ({"warmup_epochs": 2, "epochs": 10}, 10, 0.01),
        ({"warmup_epochs": 0, "epochs": 10}, 0, 1.0),
        ({"warmup_epochs": 0, "epochs": 4}, 1, 0.01 + 0.99 * (1 + math.sqrt(0.5)) / 2),
        ({"warmup_epochs": 2, "lr_schedule": "constant"}, 1, 0.5),
        ({"warmup_epochs": 2, "lr_schedule": "constant"}, 99, 1.0),
        ({"warmup_epochs": 5, "epochs": 2}, 2, 0.4),
        ({"warmup_epochs": 2, "epochs": 2}, 2, 1.0),
    ],
)
def test_learning_rate(flags, epoch, lr):
    cfg = make_config(optim={"lr_schedule": "cosine", "lr": 1.0, **flags}).optim
    assert lr_at(epoch, cfg) == pytest.approx(lr, abs=1e-9)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_norms_biases_and_scale_do_not_decay(optimizer):
    cfg = make_config(
        model={"use_batchnorm": True, "use_improved_head": True, "utod_head_ese": True},
        optim={"optimizer": optimizer, "weight_decay": 0.1},
    )
    task, _ = start(cfg)
    decays = {
        id(parameter): group["weight_decay"]
        for group in build_optimizer(task, cfg.optim).param_groups
        for parameter in group["params"]
    }
    exempt = {"student.wh_scale"}
    for name, module in task.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            exempt |= {f"{name}.weight", f"{name}.bias"}
        elif isinstance(module, nn.Conv2d) and module.bias is not None:
            exempt.add(f"{name}.bias")
    assert len(decays) == len(list(task.parameters()))
    for name, parameter in task.named_parameters():
        assert decays[id(parameter)] == (0.0 if name in exempt else 0.1), name


@pytest.mark.parametrize(("clip", "moved"), [(0.001, 0.001), (0, None)])
def test_gradient_is_clipped_to_the_norm(clip, moved):
    cfg = make_config(optim={"optimizer": "sgd", "lr": 1.0, "weight_decay": 0, "grad_clip_norm": clip})
    task, state = start(cfg)
    before = torch.cat([parameter.detach().flatten().clone() for parameter in task.parameters()])
    terms = task.train()(torch.rand(2, 3, 32, 32), targets_of([(0, 0.2, 0.2, 0.7, 0.9)], []))
    state.scaler.scale(sum_terms(terms)).backward()
    norm = torch.cat([parameter.grad.flatten() for parameter in task.parameters()]).norm()
    state.step(torch.tensor(True))
    after = torch.cat([parameter.detach().flatten() for parameter in task.parameters()])
    # Nesterov's first step is 1 + momentum times the gradient.
    assert (after - before).norm() == pytest.approx(1.9 * (moved or float(norm)), rel=1e-3)


@pytest.mark.parametrize(("count", "batch", "steps"), [(8, 4, 2), (8, 3, 3), (7, 3, 2), (1, 4, 1), (3, 64, 1)])
def test_partial_batches_count(tmp_path, monkeypatch, count, batch, steps):
    # A rest of one picture is left out, unless it is all there is.
    folder = draw_people(tmp_path / "data", count, side=32)
    cfg = make_config(optim={"batch_size": batch})
    task, state = start(cfg)
    taken = []
    step = state.step
    monkeypatch.setattr(state, "step", lambda finite: taken.append(1) or step(finite))
    stats = train_one_epoch(task, loader_of(folder, cfg), state, QUIET)
    assert len(taken) == steps
    assert state.epoch == 1
    assert {"train/loss", "train/box", "train/obj", "train/cls", "lr", "seconds", "images_per_second"} == stats.keys()
    terms = stats["train/box"] + stats["train/obj"] + stats["train/cls"]
    assert stats["train/loss"] == pytest.approx(terms, rel=1e-5)


@pytest.mark.parametrize(
    ("count", "accum", "shares"), [(8, 1, [1, 1, 1, 1]), (8, 3, [1 / 3] * 3 + [1]), (8, 9, [0.25] * 4)]
)
def test_accumulated_batches_are_averaged(tmp_path, count, accum, shares):
    """Against one step by hand: the mean of the batches' gradients, of those that an epoch has left at its end."""
    folder = draw_people(tmp_path / "data", 8, side=32)
    optim = {"batch_size": 2, "optimizer": "sgd", "lr": 0.01, "weight_decay": 0.0, "grad_clip_norm": 0.0}
    optim |= {"lr_schedule": "constant", "warmup_epochs": 0.0}
    cfg = make_config(optim=optim | {"grad_accum": accum})
    task, state = start(cfg)
    by_hand, _ = start(cfg)
    loader = loader_of(folder, cfg)
    stats = train_one_epoch(task, loader, state, QUIET)
    assert "train/skipped_steps" not in stats

    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.01, momentum=0.9, nesterov=True)
    by_hand.train()
    loader.set_epoch(0)
    for index, ((images, targets), share) in enumerate(zip(loader, shares, strict=True)):
        (share * sum_terms(by_hand(to_input(images, torch.device("cpu")), targets))).backward()
        if (index + 1) % accum == 0 or index + 1 == len(shares):
            optimizer.step()
            optimizer.zero_grad()
    for ours, theirs in zip(task.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


# --- steps that are not finite ------------------------------------------------------------------


class Poison:
    """Pictures of nan at the steps chosen (counted from 0 over all epochs)."""

    def __init__(self, steps):
        self.steps = steps
        self.seen = 0

    def __call__(self, images, device):
        inputs = to_input(images, device)
        if self.seen in self.steps:
            inputs = inputs * math.nan
        self.seen += 1
        return inputs


class PoisonedCriterion(nn.Module):
    """A criterion whose box term is nan at the steps chosen."""

    def __init__(self, criterion, steps):
        super().__init__()
        self.criterion = criterion
        self.steps = steps
        self.seen = 0

    def forward(self, preds, targets, total):
        terms = self.criterion(preds, targets, total)
        if self.seen in self.steps:
            terms = {**terms, "box": terms["box"] * math.nan}
        self.seen += 1
        return terms


@pytest.mark.parametrize("assigner", ASSIGNERS)
@pytest.mark.parametrize("steps", [{2}, {1, 2, 3}, {0}, {7}])
def test_pictures_of_nan_are_skipped_and_leave_nothing_behind(folder, monkeypatch, assigner, steps):
    cfg = make_config(
        model={"use_batchnorm": True, "use_improved_head": True},
        assign={"anchor_assigner": assigner},
        optim={"batch_size": 1, "use_ema": True, "lr": 0.003},
    )
    task, state = start(cfg)
    monkeypatch.setattr(engine, "to_input", Poison(steps))
    stats = train_one_epoch(task, loader_of(folder, cfg), state, QUIET)
    assert stats["train/skipped_steps"] == len(steps)
    assert math.isfinite(stats["train/loss"])
    assert finite(task.state_dict().values())
    assert finite(state.ema.model.state_dict().values())
    again = train_one_epoch(task, loader_of(folder, cfg), state, QUIET)
    assert "train/skipped_steps" not in again
    assert again["train/loss"] > 0


def test_skipped_step_moves_no_weight(folder):
    cfg = make_config(optim={"batch_size": 8, "lr": 0.01})
    task, state = start(cfg)
    task.criterion = PoisonedCriterion(task.criterion, {0, 1, 2})
    loader = loader_of(folder, cfg)
    before = [parameter.detach().clone() for parameter in task.parameters()]
    for _ in range(3):
        assert train_one_epoch(task, loader, state, QUIET)["train/skipped_steps"] == 1
    assert all(torch.equal(parameter, old) for parameter, old in zip(task.parameters(), before, strict=True))
    stats = train_one_epoch(task, loader, state, QUIET)
    assert "train/skipped_steps" not in stats
    assert any(not torch.equal(parameter, old) for parameter, old in zip(task.parameters(), before, strict=True))


def test_many_skipped_steps_over_a_run_do_not_end_its_learning(folder):
    # Every other step is bad, far oftener in all than a float's exponent could be halved.
    cfg = make_config(optim={"batch_size": 8, "lr": 0.001})
    task, state = start(cfg)
    weight = next(task.parameters())
    images, targets = torch.rand(1, 3, 32, 32), targets_of([(0, 0.2, 0.2, 0.7, 0.9)])
    for _ in range(160):
        state.scaler.scale(weight.sum() * math.nan).backward()
        state.step(torch.tensor(True))
    before = weight.detach().clone()
    state.scaler.scale(sum_terms(task(images, targets))).backward()
    state.step(torch.tensor(True))
    assert weight.isfinite().all()
    assert not torch.equal(weight, before)


@pytest.mark.parametrize(
    ("batch", "bad", "code"),
    [
        (1, range(1, 12), 1),  # eleven in a row
        (1, range(1, 11), 0),  # ten
        (1, [*range(0, 10), *range(11, 16)], 0),  # fifteen, but not in a row
        (4, range(100), 1),  # fewer steps an epoch than it takes
        (8, range(3, 14), 1),
        (8, range(3, 13), 0),
    ],
)
def test_run_stops_after_more_than_ten_bad_steps_in_a_row(run_train, tmp_path, monkeypatch, folder, batch, bad, code):
    build_task = train.build_distill_task

    def poisoned(*args):
        task = build_task(*args)
        task.criterion = PoisonedCriterion(task.criterion, set(bad))
        return task

    monkeypatch.setattr(train, "build_distill_task", poisoned)
    flags = {"train_split": 1, "val_split": 0, "aug": False, "batch_size": batch, "epochs": 16 if batch > 1 else 2}
    outcome = run_train(*train_args(folder, tmp_path / "run", **flags))
    assert outcome.code == code
    if code:
        assert len(outcome.errors) == 1
        assert "not finite" in outcome.errors[0]
        for term in ("box nan", "obj ", "cls "):
            assert term in outcome.errors[0]
    else:
        skipped = [row.get("train/skipped_steps", 0) for row in metric_rows(tmp_path / "run")]
        assert sum(skipped) == len(bad)


# --- mixed precision ----------------------------------------------------------------------------


def test_bfloat16_trains_a_step_and_judges_in_float32(folder, monkeypatch):
    cfg = make_config(
        model={"use_batchnorm": True, "use_improved_head": True}, optim={"use_amp": True, "batch_size": 8, "lr": 0.003}
    )
    task, state = start(cfg)
    kinds = []
    terms_of = task.terms

    def watched(preds, targets, total=own):
        terms = terms_of(preds, targets, total)
        kinds.append((preds["features"].dtype, {term.dtype for term in terms.values()}))
        return terms

    monkeypatch.setattr(task, "terms", watched)
    before = [parameter.detach().clone() for parameter in task.parameters()]
    stats = train_one_epoch(task, loader_of(folder, cfg), state, QUIET)
    assert kinds == [(torch.bfloat16, {torch.float32})]
    assert all(math.isfinite(stats[f"train/{name}"]) for name in ("loss", "box", "obj", "cls", "quality"))
    assert finite(task.state_dict().values())
    assert {parameter.dtype for parameter in task.parameters()} == {torch.float32}
    assert any(not torch.equal(parameter, old) for parameter, old in zip(task.parameters(), before, strict=True))


def test_validation_of_a_mixed_precision_run_is_in_float32(folder):
    cfg = make_config(optim={"use_amp": True, "batch_size": 4})
    task, state = start(cfg)
    plain = make_config(optim={"batch_size": 4})
    loader = loader_of(folder, cfg, shuffle=False)
    mixed = evaluate(state.eval_model, task, loader, cfg, QUIET).metrics
    assert mixed["val/loss"] == evaluate(state.eval_model, task, loader, plain, QUIET).metrics["val/loss"]
