"""NanoDet: its sizes against the published counts, its blocks by their definitions, and what only training has."""

import pytest
import torch
from exporting import randomise
from helpers import make_config, start, targets_of
from torch import nn
from torch.nn import functional as F

from uhd.config import NanoDetConfig
from uhd.models import build_model, count_macs, count_parameters, fold_batchnorm
from uhd.models.layers import Style
from uhd.models.mobilenext import MobileNeXt, RefinedDepthwise, rows_of
from uhd.models.nanodet import DETACH_EPOCH
from uhd.models.nanodet_heads import AuxiliaryHead

FOUR = {"nanodet_strides": (8, 16, 32, 64), "num_classes": 80}
COUNTS = {
    "s": (FOUR, (382_336, 291_840, 139_456)),
    "m": ({**FOUR, "nanodet_size": "m"}, (851_782, 319_488, 139_456)),
    "l": ({**FOUR, "nanodet_size": "l"}, (1_430_344, 798_720, 435_008)),
    "l, three blocks": ({**FOUR, "nanodet_size": "l", "nanodet_depth": 3}, (1_760_906, 798_720, 435_008)),
    "s, normal": ({**FOUR, "ghost_block_type": "normal"}, (382_336, 287_040, 139_456)),
    "one class": ({}, (382_336, 267_840, 81_603)),
    "one class, four grids": ({"nanodet_strides": (8, 16, 32, 64)}, (382_336, 291_840, 108_804)),
}
"""Parameters of backbone, neck and heads."""
TOTALS = {
    "half": ({"nanodet_width": 0.5, "nanodet_neck_channels": 64}, 270_843),
    "half, 3x3": ({"nanodet_width": 0.5, "nanodet_neck_channels": 48, "nanodet_kernel": 3}, 204_171),
    **{name: (options, sum(parts)) for name, (options, parts) in COUNTS.items()},
}
MACS = {
    "s": ({}, {64: 23.1, 128: 92.4, 192: 207.8}),
    "half": (TOTALS["half"][0], {64: 8.2, 128: 32.9, 192: 74.1}),
    "half, 3x3": (TOTALS["half, 3x3"][0], {64: 6.6, 128: 26.6, 192: 59.8}),
    "80 classes": (FOUR, {320: 594.57}),
    "l, 80 classes": (COUNTS["l"][0], {320: 1153.86}),
}
"""Millions of multiply-adds by side of the picture."""
STAGES_OF_S = {4: [3_680, 10_674], 8: [13_312, 16_962, 16_962], 16: [26_880, 34_658, 34_658]}
STAGES_OF_S |= {32: [48_128, 58_498, 58_498, 58_498]}
"""Parameters of each block of size s, by stride."""


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_of_the_parts(name):
    options, expected = COUNTS[name]
    model = build_model(NanoDetConfig(**options))
    assert tuple(count_parameters(part) for part in (model.backbone, model.neck, model.heads)) == expected


@pytest.mark.parametrize("name", TOTALS)
def test_parameters(name):
    options, expected = TOTALS[name]
    assert count_parameters(build_model(NanoDetConfig(**options))) == expected


@pytest.mark.parametrize("name", MACS)
def test_multiply_adds(name):
    options, by_side = MACS[name]
    model = build_model(NanoDetConfig(**options))
    for side, millions in by_side.items():
        assert round(count_macs(model, side, side) / 1e6, 1 if side < 320 else 2) == millions


def test_parameters_of_the_blocks():
    backbone = MobileNeXt(rows_of("s", 2), 1.0, (4, 8, 16, 32))
    assert count_parameters(backbone.stem) == 928
    found = [[count_parameters(block) for block in stage] for stage in backbone.stages]
    assert found == list(STAGES_OF_S.values())


@pytest.mark.parametrize(
    ("size", "depth", "widths", "refined"),
    [("s", 2, [144, 192, 288, 384], 8), ("m", 2, [144, 192, 384, 576], 11), ("l", 2, [144, 192, 384, 960], 12)],
)
def test_maps_of_the_backbone(size, depth, widths, refined):
    backbone = MobileNeXt(rows_of(size, depth), 1.0, (4, 8, 16, 32)).eval()
    assert backbone.widths == widths
    with torch.no_grad():
        maps = backbone(torch.rand(1, 3, 64, 96))
    assert [tuple(x.shape[1:]) for x in maps] == [
        (w, 64 // s, 96 // s) for w, s in zip(widths, (4, 8, 16, 32), strict=True)
    ]
    assert sum(isinstance(module, RefinedDepthwise) for module in backbone.modules()) == refined


@pytest.mark.parametrize(
    ("classes", "channels", "width", "depth", "grids", "expected"),
    [(80, 192, 192, 4, 4, 2_850_932), (80, 320, 192, 4, 4, 3_293_300), (80, 320, 320, 4, 4, 7_700_596),
     (1, 192, 96, 2, 3, 526_980)],
)  # fmt: skip
def test_parameters_of_the_auxiliary_head(classes, channels, width, depth, grids, expected):
    head = AuxiliaryHead(channels, classes, width, depth, grids=grids, activation="leakyrelu")
    assert count_parameters(head) == expected


def test_all_that_is_trained():
    """Network, and a second neck and head of 4 convolutions of 192 channels."""
    model = build_model(NanoDetConfig(**FOUR, nanodet_aux_width=192, nanodet_aux_depth=4))
    assert count_parameters(model) + count_parameters(model.auxiliary()) == 3_956_404


def test_refined_kernels_by_their_definition():
    torch.manual_seed(0)
    layer = RefinedDepthwise(3).eval()
    layer.gate_norm.running_mean.fill_(0.2)
    layer.gate_norm.running_var.fill_(4.0)
    x = torch.randn(2, 3, 5, 4)
    summed = sum(layer.conv.weight[c].sum() * x[:, c : c + 1] for c in range(3))
    gate = torch.sigmoid((summed - 0.2) / (4.0 + 1e-5) ** 0.5)
    plain = F.conv2d(x, layer.conv.weight, padding=1, groups=3) / (1 + 1e-5) ** 0.5
    torch.testing.assert_close(layer(x), gate * plain)


def test_the_gate_teaches_the_kernels():
    """A kernel that gives nothing for this picture still changes the gate of the other channels."""
    torch.manual_seed(0)
    layer = RefinedDepthwise(2).eval()
    layer.conv.weight.data[0] = 0
    layer(torch.rand(1, 2, 4, 4))[:, 1].sum().backward()
    assert layer.conv.weight.grad[0].any()


@pytest.mark.parametrize("size", ["s", "l"])
def test_folding_changes_no_output(size):
    cfg = make_config(arch="nanodet", img_size=(64, 64), model={"nanodet_size": size})
    model = build_model(cfg.model)
    randomise(model, (64, 64))
    folded = fold_batchnorm(model.double())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    images = torch.rand(2, 3, 64, 64).double()
    with torch.no_grad():
        expected, found = model(images), folded(images)
    assert list(found) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("strides", [(4, 8), (8, 16), (16, 32), (32, 64), (4, 8, 16, 32, 64)])
def test_grids(strides):
    cfg = make_config(arch="nanodet", img_size=(128, 64), model={"nanodet_strides": strides})
    model = build_model(cfg.model).eval()
    with torch.no_grad():
        preds = model(torch.rand(1, 3, 128, 64))
    shapes = [preds[f"grid{stride}"].shape[1:] for stride in strides]
    assert shapes == [(1 + 32, 128 // stride, 64 // stride) for stride in strides]
    assert model.stride == max(strides)


def test_first_scores_are_low_and_first_boxes_large():
    """Seven cells: each side is as likely at each distance from 0 to 7."""
    cfg = make_config(arch="nanodet", img_size=(64, 64))
    torch.manual_seed(0)
    model = build_model(cfg.model).eval()
    with torch.no_grad():
        boxes, scores = model.candidates(model(torch.rand(2, 3, 64, 64)))
    assert scores.sub(0.01).abs().max() < 0.005
    size = (boxes[..., 2:] - boxes[..., :2]) * 64
    for rows, stride in ((slice(0, 64), 8), (slice(64, 80), 16), (slice(80, 84), 32)):
        assert size[:, rows].sub(7 * stride).abs().max() < 0.2 * stride


# --- what only training has -----------------------------------------------------------------------------


def task_of(**model):
    cfg = make_config(arch="nanodet", img_size=(64, 64), model=model)
    return (*start(cfg), torch.rand(2, 3, 64, 64), targets_of([(0, 0.1, 0.1, 0.45, 0.8)], [(0, 0.5, 0.3, 0.8, 0.95)]))


def test_the_auxiliary_branch_is_no_part_of_the_network():
    task, state, images, targets = task_of()
    assert not any("auxiliary" in name for name in state.state_dict()["model"])
    assert any(name.startswith("auxiliary.") for name in state.state_dict()["criterion"])
    in_training = task.train()(images, targets)
    in_validation = task.eval()(images, targets)
    own = ["cls", "iou", "dfl"]
    assert list(in_validation) == own
    assert list(in_training) == [*own, *(f"aux_{name}" for name in own)]


def test_the_second_neck_starts_as_the_first():
    task, *_ = task_of()
    for name, value in task.student.neck.state_dict().items():
        copied = task.criterion.auxiliary.neck.state_dict()[name]
        assert torch.equal(copied, value)
        assert copied.data_ptr() != value.data_ptr()


@pytest.mark.parametrize(("epoch", "reaches"), [(0, True), (DETACH_EPOCH - 1, True), (DETACH_EPOCH, False)])
def test_the_auxiliary_gradient_reaches_the_backbone_until_an_epoch(epoch, reaches):
    task, _, images, targets = task_of()
    task.train().set_progress(epoch)
    terms = task(images, targets)
    sum(value for name, value in terms.items() if name.startswith("aux_")).backward()
    grads = [parameter.grad for parameter in task.student.parameters()]
    assert any(grad is not None and grad.any() for grad in grads) == reaches
    own = task.criterion.auxiliary
    assert all(parameter.grad is not None for parameter in own.parameters())


def test_boxes_and_scales_of_a_grid_learn_from_its_positives():
    """Where one grid alone has boxes that fit, all parameters of its head have a gradient."""
    # Middles of the distances, in cells, of which boxes of some 50 pixels come.
    for index, middle in enumerate((3, 2, 1)):
        task, _, images, _ = task_of(nanodet_size="l")
        auxiliary = task.criterion.auxiliary
        with torch.no_grad():
            # Turned round by its scale, this favours the farthest bin: boxes of the other grids are far too large.
            auxiliary.head.boxes.bias.copy_(-6.0 * (torch.arange(8) - middle).abs().repeat(4))
            auxiliary.head.scales.copy_(torch.tensor([1.0 if i == index else -5.0 for i in range(3)]))
        task.train()
        terms = task(images, targets_of([(0, 0.2, 0.2, 0.95, 0.95)], [(0, 0.05, 0.05, 0.8, 0.8)]))
        sum(terms.values()).backward()
        assert auxiliary.head.scales.grad[index] != 0
        assert all(parameter.grad.any() for parameter in task.student.heads[index].parameters())


def test_styles():
    by_size = {size: NanoDetConfig(nanodet_size=size) for size in ("s", "m", "l")}
    assert [cfg.neck_channels for cfg in by_size.values()] == [96, 96, 160]
    assert [cfg.neck_activation for cfg in by_size.values()] == ["leakyrelu", "leakyrelu", "hardswish"]
    slopes = [m.negative_slope for m in build_model(by_size["s"]).modules() if isinstance(m, nn.LeakyReLU)]
    assert set(slopes) == {0.1}
    norms = [m for m in build_model(by_size["s"]).modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(m.eps, m.momentum) for m in norms} == {(1e-5, 0.1)}
    assert Style("relu", True) == Style("relu", True, eps=1e-3, momentum=0.03)
