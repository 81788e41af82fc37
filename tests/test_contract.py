"""What every architecture must hold to: one table of variants, the same checks for each. A new one adds its rows."""

import dataclasses
import itertools

import pytest
import torch
from helpers import VARIANTS, make_config, start, targets_of, variant_config

from uhd.checkpoint import load_model, save_checkpoint
from uhd.engine import sum_terms
from uhd.types import Detections


@pytest.fixture(params=list(VARIANTS))
def cfg(request):
    return variant_config(request.param)


def batch_of(cfg, count=2, seed=0):
    """Pictures [B,3,H,W] and truths: one box, two boxes, ..."""
    images = torch.rand(count, 3, *cfg.input.img_size, generator=torch.Generator().manual_seed(seed))
    last = cfg.model.num_classes - 1
    rows = [(0, 0.1, 0.1, 0.45, 0.8), (last, 0.5, 0.3, 0.8, 0.95)]
    return images, targets_of(*(rows[: 1 + i % 2] for i in range(count)))


def step(task, state, images, targets):
    """One step of training; returns the loss before it."""
    loss = sum_terms(task(images, targets))
    state.scaler.scale(loss).backward()
    state.step()
    return loss.item()


def test_shapes_of_the_raw_maps(cfg):
    model = start(cfg)[0].student.eval()
    height, width = (side // cfg.model.stride for side in cfg.input.img_size)
    anchors = cfg.model.num_anchors
    channels = anchors * (5 + cfg.model.has_quality + cfg.model.num_classes)
    with torch.no_grad():
        preds = model(batch_of(cfg)[0])
    assert list(preds) == [*model.raw_names, "features"]
    quality = "_quality" if cfg.model.has_quality else ""
    assert model.raw_names == (f"txtywh_obj{quality}_cls", "anchors", "wh_scale")
    assert preds[model.raw_names[0]].shape == (2, channels, height, width)
    assert preds["anchors"].shape == preds["wh_scale"].shape == (anchors, 2)
    assert preds["features"].shape == (2, 4 * cfg.model.cnn_width, height, width)
    assert model.stride == cfg.model.stride


def test_every_parameter_gets_a_gradient(cfg):
    task = start(cfg)[0].train()
    terms = task(*batch_of(cfg, 4))
    sum_terms(terms).backward()
    assert all(term.shape == () and term.dtype == torch.float32 and term > 0 for term in terms.values())
    for name, parameter in task.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_batch_without_boxes_trains(cfg):
    task, state = start(cfg)
    task.train()
    images, targets = batch_of(cfg)
    with_boxes = task(images, targets)
    terms = task(images, targets_of([], []))
    assert list(terms) == list(with_boxes)
    assert terms["box"] == 0
    sum_terms(terms).backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in task.parameters())
    state.optimizer.zero_grad()
    before = [parameter.detach().clone() for parameter in task.parameters()]
    step(task, state, images, targets_of([], []))
    assert all(parameter.isfinite().all() for parameter in task.parameters())
    assert any(not torch.equal(parameter, old) for parameter, old in zip(task.parameters(), before, strict=True))


def test_loss_falls_and_anchors_stay(cfg):
    task, state = start(cfg)
    task.train()
    images, targets = batch_of(cfg, 4)
    losses = [step(task, state, images, targets) for _ in range(24)]
    assert losses[-1] < 0.95 * losses[0]
    for model in (task.student, state.eval_model):
        assert torch.equal(model.anchors, torch.tensor(cfg.model.anchors))
    if not cfg.model.use_improved_head:
        assert torch.equal(task.student.wh_scale, torch.ones(cfg.model.num_anchors, 2))


def test_detections_are_sorted_candidates_of_one_size(cfg):
    model = start(cfg)[0].student.eval()
    height, width = (side // cfg.model.stride for side in cfg.input.img_size)
    pairs = height * width * cfg.model.num_anchors * cfg.model.num_classes
    for most, seed in ((512, 0), (7, 1)):
        decode = dataclasses.replace(cfg.decode, pre_nms_topk=most)
        with torch.no_grad():
            found = model.decode(model(batch_of(cfg, 2, seed)[0]), decode)
        count = min(most, pairs)
        assert found.boxes.shape == (2, count, 4)
        assert found.scores.shape == found.labels.shape == (2, count)
        assert (found.scores.diff(dim=1) <= 0).all()
        assert found.scores.min() >= 0
        assert found.scores.max() <= 1
        assert found.labels.min() >= 0
        assert found.labels.max() < cfg.model.num_classes
        assert (found.boxes[..., 2:] > found.boxes[..., :2]).all()


class Decoded(torch.nn.Module):
    """Pictures to the fields of the candidates, as an exported graph gives them."""

    def __init__(self, model, cfg):
        super().__init__()
        self.model = model
        self.cfg = cfg

    def forward(self, images):
        found: Detections = self.model.decode(self.model(images), self.cfg)
        return found.boxes, found.scores, found.labels


@pytest.mark.filterwarnings("ignore")  # the tracer warns of every shape that it takes as constant
def test_decoding_can_be_traced(cfg):
    decoded = Decoded(start(cfg)[0].student.eval(), cfg.decode)
    with torch.no_grad():
        traced = torch.jit.trace(decoded, batch_of(cfg, 2, 0)[0], check_trace=False)
        other = batch_of(cfg, 2, 5)[0]
        for expected, found in zip(decoded(other), traced(other), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_checkpoint_rebuilds_the_model(cfg, tmp_path):
    task, state = start(cfg)
    task.train()
    images, targets = batch_of(cfg)
    step(task, state, images, targets)
    state.epoch = 1
    path = save_checkpoint(tmp_path, cfg, state, {}, is_best=True)
    for name in (path, tmp_path / "last.pt", tmp_path / "best.pt"):
        model, loaded = load_model(name)
        assert loaded == cfg
        assert not model.training
        with torch.no_grad():
            expected, found = state.eval_model.eval()(images), model(images)
        assert list(found) == list(expected)
        assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_variants_differ():
    configs = [make_config(**{"img_size": (64, 64), **values}) for values in VARIANTS.values()]
    assert all(a != b for a, b in itertools.combinations(configs, 2))
