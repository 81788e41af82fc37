"""UltraTinyOD: its size in parameters and multiply-adds, its shapes, and what each option adds."""

import pytest
import torch
from torch import nn

from uhd.config import CNNConfig, DecodeConfig, NanoDetConfig, TransformerConfig, UltraTinyODConfig
from uhd.models import build_model, count_macs, count_parameters, fold_batchnorm

RESIDUAL = {"use_improved_head": True, "utod_residual": True}
ESE = RESIDUAL | {"utod_head_ese": True}
FULL = ESE | {"use_iou_aware_head": True}


def config(cnn_width=4, num_anchors=2, **options):
    anchors = tuple((0.1 * (index + 1), 0.11 * (index + 1)) for index in range(num_anchors))
    options = {"use_batchnorm": True} | options
    return UltraTinyODConfig(cnn_width=cnn_width, num_anchors=num_anchors, anchors=anchors, **options)


def seeded(seed=0, **options):
    torch.manual_seed(seed)
    return build_model(config(**options))


def sized(width, options):
    """A net of shapes without values, for counting."""
    with torch.device("meta"):
        return build_model(config(width, 8, **options))


# --- sizes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "options", "counted", "folded"),
    [
        (16, FULL, 112_232, None),
        (32, FULL, 417_928, None),
        (64, RESIDUAL, 1_388_360, 1_381_192),
        (64, ESE, 1_454_152, 1_446_984),
        (64, FULL, 1_609_928, 1_601_480),
        (96, RESIDUAL, 3_083_976, 3_073_224),
        (96, ESE, 3_231_816, 3_221_064),
        (96, FULL, 3_576_072, 3_563_400),
        (128, RESIDUAL, 5_447_240, 5_432_904),
        (128, ESE, 5_709_896, 5_695_560),
        (128, FULL, 6_316_360, 6_299_464),
        (160, RESIDUAL, 8_478_152, 8_460_232),
        (160, ESE, 8_888_392, 8_870_472),
        (160, FULL, 9_830_792, 9_809_672),
        (192, RESIDUAL, 12_176_712, 12_155_208),
        (192, ESE, 12_767_304, 12_745_800),
        (192, FULL, 14_119_368, 14_094_024),
        (256, RESIDUAL, 21_576_776, 21_548_104),
        (256, ESE, 22_626_376, 22_597_704),
        (256, FULL, 25_018_952, 24_985_160),
    ],
)
def test_parameters(width, options, counted, folded):
    model = sized(width, options)

    assert count_parameters(model) == counted
    if folded is not None:
        assert count_parameters(fold_batchnorm(model)) == folded


@pytest.mark.parametrize(
    ("width", "macs"),
    [
        (16, 7_186_432),
        (32, 26_439_680),
        (64, 101_146_624),
        (96, 224_120_832),
        (128, 395_362_304),
        (160, 614_871_040),
        (192, 882_647_040),
        (256, 1_563_000_832),
    ],
)
def test_multiply_adds(width, macs):
    assert count_macs(sized(width, FULL), 64, 64) == macs


def test_counting_leaves_the_model_as_it_was():
    model = seeded().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}

    count_macs(model, 64, 64)

    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("options", "added"),
    [
        ({"utod_context_rfb": True}, 141_312),
        ({"utod_large_obj_branch": True}, 203_776),
        (
            {"utod_large_obj_branch": True, "utod_large_obj_depth": 2, "utod_large_obj_ch_scale": 1.25},
            380_928,
        ),
    ],
)
def test_what_the_context_blocks_add_at_width_64(options, added):
    assert count_parameters(sized(64, FULL | options)) - count_parameters(sized(64, FULL)) == added


@pytest.mark.parametrize("cnn_width", [1, 2, 3])
def test_the_class_branch_is_at_least_eight_wide(cnn_width):
    assert seeded(cnn_width=cnn_width).head.cls[-1].in_channels == 8


def test_a_net_without_anchors_is_refused():
    with pytest.raises(ValueError, match="--anchors"):
        build_model(UltraTinyODConfig())


# --- batch norm ---------------------------------------------------------------------------------------


def enliven(model):
    """Weights and statistics that let a signal through: with fresh ones the output is almost constant."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.3, 2)


@pytest.mark.parametrize(
    "options",
    [{}, FULL, FULL | {"utod_context_rfb": True, "utod_large_obj_branch": True, "activation": "relu"}],
    ids=["plain", "full", "everything"],
)
def test_folding_changes_no_output(options):
    model = seeded(**options).eval()
    enliven(model)
    images = torch.rand(2, 3, 64, 64)

    folded = fold_batchnorm(model)

    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    before, after = model(images), folded(images)
    assert before.keys() == after.keys()
    for name in before:
        assert torch.allclose(before[name], after[name], atol=1e-4), name


def test_batch_norms_have_the_settings_of_the_original():
    norms = [module for module in seeded(**FULL).modules() if isinstance(module, nn.BatchNorm2d)]

    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.03)}


@pytest.mark.parametrize("use_batchnorm", [False, True])
def test_biases_are_at_the_outputs_only(use_batchnorm):
    options = FULL | {"utod_context_rfb": True, "utod_large_obj_branch": True}
    model = seeded(use_batchnorm=use_batchnorm, **options)

    biased = {name for name, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.bias is not None}
    head = model.head
    outputs = {id(branch[-1]) for branch in (head.box, head.obj, head.quality, head.cls)}
    attention = {name for name in biased if id(model.get_submodule(name)) not in outputs}

    assert any(isinstance(m, nn.BatchNorm2d) for m in model.modules()) == use_batchnorm
    assert len(biased) == len(outputs) + 1
    assert [model.get_submodule(name).kernel_size for name in attention] == [(1, 1)]


@pytest.mark.parametrize("options", [{}, FULL], ids=["plain", "full"])
def test_objectness_quality_and_class_start_at_one_percent(options):
    model = seeded(num_classes=3, **options)

    for branch in filter(None, (model.head.obj, model.head.quality, model.head.cls)):
        assert branch[-1].bias.sigmoid().tolist() == pytest.approx([0.01] * len(branch[-1].bias), rel=1e-5)


@pytest.mark.parametrize(("activation", "kind", "other"), [("relu", nn.ReLU, nn.SiLU), ("swish", nn.SiLU, nn.ReLU)])
def test_one_activation_is_used_throughout(activation, kind, other):
    kinds = {type(module) for module in seeded(activation=activation, **FULL).modules()}

    assert kind in kinds
    assert other not in kinds


# --- shapes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, FULL | {"utod_context_rfb": True, "utod_large_obj_branch": True}])
@pytest.mark.parametrize("size", [(64, 64), (96, 64), (32, 80), (48, 48)])
@pytest.mark.parametrize(("output_stride", "stride"), [(None, 8), (4, 4), (8, 8), (16, 16)])
def test_the_grid_follows_from_size_and_stride(options, size, output_stride, stride):
    model = seeded(output_stride=output_stride, num_classes=2, **options).eval()
    grid = (size[0] // stride, size[1] // stride)

    preds = model(torch.rand(2, 3, *size))

    quality = model.cfg.has_quality
    raw_name = "txtywh_obj_quality_cls" if quality else "txtywh_obj_cls"
    assert model.raw_names == (raw_name, "anchors", "wh_scale")
    assert model.stride == stride
    assert {name: tuple(value.shape) for name, value in preds.items()} == {
        raw_name: (2, 2 * (5 + quality + 2), *grid),
        "anchors": (2, 2),
        "wh_scale": (2, 2),
        "features": (2, 16, *grid),
    }


@pytest.mark.parametrize("num_classes", [1, 3])
@pytest.mark.parametrize("topk", [1, 100, 100_000])
def test_decoding_gives_a_fixed_number_of_candidates_best_first(num_classes, topk):
    model = seeded(num_classes=num_classes, **FULL).eval()
    preds = model(torch.rand(3, 3, 32, 64))

    found = model.decode(preds, DecodeConfig(pre_nms_topk=topk))

    count = min(topk, 4 * 8 * 2 * num_classes)
    assert found.boxes.shape == (3, count, 4)
    assert found.scores.shape == found.labels.shape == (3, count)
    assert (found.scores.diff(dim=1) <= 0).all()
    assert ((found.scores >= 0) & (found.scores <= 1)).all()
    assert set(found.labels.unique().tolist()) <= set(range(num_classes))


# --- what each option does ----------------------------------------------------------------------------


def twins(option):
    """A net with and one without an option, without batch norm and alike in all weights that both have."""
    plain, extended = (seeded(use_batchnorm=False, **extra).eval() for extra in ({}, option))
    enliven(plain)
    enliven(extended)
    # The optional block follows the others in the context, so that what both nets have goes by the same names.
    extended.load_state_dict(plain.state_dict(), strict=False)
    return plain, extended


def raw_map(model, images):
    return model(images)[model.raw_names[0]]


@pytest.mark.parametrize(
    "option",
    [
        {"utod_context_rfb": True},
        {"utod_context_rfb": True, "utod_context_dilation": 3},
        {"utod_large_obj_branch": True},
        {"utod_large_obj_branch": True, "utod_large_obj_depth": 0},
    ],
    ids=str,
)
def test_a_context_block_is_added_to_its_input(option):
    plain, extended = twins(option)
    images = torch.rand(1, 3, 48, 64)
    assert not torch.allclose(raw_map(plain, images), raw_map(extended, images), atol=1e-3)

    last = [module for module in extended.head.context[1].modules() if isinstance(module, nn.Conv2d)][-1]
    nn.init.zeros_(last.weight)

    assert torch.allclose(raw_map(plain, images), raw_map(extended, images), atol=1e-6)


@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_the_context_dilation_is_the_reach_of_the_small_kernel(dilation):
    model = seeded(utod_context_rfb=True, utod_context_dilation=dilation, use_batchnorm=False)
    small, wide, fuse = [m for m in model.head.context[1].modules() if isinstance(m, nn.Conv2d)]
    point = torch.zeros(1, 16, 9, 9)
    point[..., 4, 4] = 1

    def reach(conv):
        nn.init.ones_(conv.weight)
        rows, columns = torch.nonzero(conv(point)[0, 0], as_tuple=True)
        return set(zip((rows - 4).tolist(), (columns - 4).tolist(), strict=True))

    assert reach(small) == {(y * dilation, x * dilation) for y in (-1, 0, 1) for x in (-1, 0, 1)}
    assert reach(wide) == {(y, x) for y in range(-2, 3) for x in range(-2, 3)}
    assert (fuse.in_channels, fuse.out_channels, fuse.kernel_size) == (32, 16, (1, 1))


def test_ese_halves_all_channels_where_its_weights_are_zero():
    attention = seeded(utod_head_ese=True).head.context[-1]
    for parameter in attention.parameters():
        nn.init.zeros_(parameter)
    features = torch.randn(2, 16, 3, 5)

    assert torch.allclose(attention(features), features / 2)


def test_ese_weighs_channels_by_their_means():
    attention = seeded(utod_head_ese=True).head.context[-1]
    features = torch.randn(2, 16, 3, 5)

    weight, bias = attention.fc.weight.view(16, 16), attention.fc.bias
    expected = features * torch.sigmoid(features.mean(dim=(2, 3)) @ weight.T + bias)[..., None, None]

    assert torch.allclose(attention(features), expected, atol=1e-6)


def test_the_improved_head_has_a_residual_context_and_a_learned_anchor_scale():
    plain, improved = twins({"use_improved_head": True})
    features = torch.randn(1, 16, 4, 4)
    convs = [module for module in improved.head.context[1].modules() if isinstance(module, nn.Conv2d)]
    nn.init.zeros_(convs[-1].weight)

    assert torch.allclose(improved.head.context(features), plain.head.context(features), atol=1e-6)
    assert torch.equal(improved.wh_scale, torch.ones(2, 2))
    assert dict(improved.named_parameters()).keys() - dict(plain.named_parameters()).keys() >= {"wh_scale"}
    assert "wh_scale" not in dict(plain.named_parameters())


def test_the_residual_backbone_adds_what_enters_the_last_two_stages():
    plain, residual = twins({"utod_residual": True})
    images = torch.rand(1, 3, 64, 64)
    assert not torch.allclose(plain.backbone(images), residual.backbone(images), atol=1e-3)
    backbone = residual.backbone

    entering = backbone.stage3(backbone.stage2(backbone.stem(images)))
    fourth = backbone.stage4(entering) + backbone.project(entering)
    expected = backbone.sppf(backbone.stage5(fourth) + fourth)

    assert torch.allclose(backbone(images), expected, atol=1e-6)
    normed = seeded(utod_residual=True).backbone.project
    assert [type(module) for module in normed] == [nn.Conv2d, nn.BatchNorm2d]


@pytest.mark.parametrize(("options", "doubled"), [({}, ()), ({"use_iou_aware_head": True}, ("box", "quality", "cls"))])
def test_the_iou_aware_head_doubles_all_branches_but_objectness(options, doubled):
    head = seeded(use_improved_head=True, **options).head

    for name in ("box", "obj", "quality", "cls"):
        depthwise = [m for m in getattr(head, name).modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
        assert len(depthwise) == (2 if name in doubled else 1), name


@pytest.mark.parametrize(("iou_aware", "quality_power"), [(False, 0.5), (False, 2.0), (True, 0.5), (True, 2.0)])
def test_an_iou_aware_head_is_not_scored_by_objectness(iou_aware, quality_power):
    model = seeded(use_improved_head=True, use_iou_aware_head=iou_aware, quality_power=quality_power).eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        for branch, bias in ((model.head.obj, -3.0), (model.head.quality, 0.5), (model.head.cls, 1.0)):
            nn.init.zeros_(branch[-1].weight)
            nn.init.constant_(branch[-1].bias, bias)

        found = model.decode(model(images), DecodeConfig())

    obj, quality, cls = torch.tensor([-3.0, 0.5, 1.0]).sigmoid().tolist()
    expected = quality**quality_power * cls * (1 if iou_aware else obj)
    assert found.scores.flatten().tolist() == pytest.approx([expected] * found.scores.numel(), rel=1e-5)


@pytest.mark.parametrize(
    "cfg",
    [CNNConfig(use_batchnorm=True), NanoDetConfig(), TransformerConfig(), config(32, 8, **FULL)],
    ids=["cnn", "nanodet", "transformer", "ultratinyod"],
)
def test_help_text_counts_parameters_right(cfg):
    assert f"({count_parameters(build_model(cfg)):,} parameters" in type(cfg).summary
