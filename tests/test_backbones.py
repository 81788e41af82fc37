"""The backbones of the CNN: sizes, shapes, gradients, what the fusions compute, folding, and their graphs."""

import io
import itertools
import warnings

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from uhd.config import CNNConfig
from uhd.models.backbones import Backbone, EnhancedShuffleNet, ShuffleUnit, StridedShuffleUnit, UltraTinyResNet
from uhd.models.base import count_macs, count_parameters, fold_batchnorm
from uhd.models.layers import ESE, SqueezeExcite, Style, channel_attention
from uhd.models.resnet import REDUCTIONS, ChannelShuffle, Pyramid, SkipCat, SkipSum

BN = Style("swish", batchnorm=True)
PLAIN = Style("relu", batchnorm=False)
NAMES = ("microcspnet", "ultratinyresnet", "enhanced-shufflenet")
SKIPS = ("backbone_skip", "backbone_skip_cat", "backbone_skip_shuffle_cat", "backbone_skip_s2d_cat")
ODD = {"backbone_channels": (7, 9, 11, 13), "backbone_blocks": (1, 0, 2, 1)}
FUSIONS = [
    dict.fromkeys(flags, True)
    for skip, fpn in itertools.product(((), *((skip,) for skip in SKIPS)), ((), ("backbone_fpn",)))
    if (flags := (*skip, *fpn))
]
"""Every way of joining the stages of ultratinyresnet."""
VARIANTS = [
    *((name, {}) for name in NAMES),
    ("enhanced-shufflenet", {"backbone_skip": True}),
    *(("ultratinyresnet", options) for options in FUSIONS),
]


def identify(value):
    if isinstance(value, dict):
        return " ".join(key.removeprefix("backbone_") for key in value) or "no options"
    return None


variants = pytest.mark.parametrize(("name", "options"), VARIANTS, ids=identify)


def build(name, style=BN, seed=0, **options):
    torch.manual_seed(seed)
    return Backbone(CNNConfig(backbone=name, **options), style)


def randomise_norms(module):
    """Batch norms that change what passes."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for values, low, high in (
                (norm.running_mean, -0.3, 0.3),
                (norm.running_var, 0.3, 1.0),
                (norm.weight, 0.8, 1.5),
                (norm.bias, -0.3, 0.3),
            ):
                nn.init.uniform_(values, low, high)
    return module.eval()


def close(actual, expected, tolerance=1e-5):
    np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), rtol=tolerance, atol=tolerance)


# --- sizes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "with_head"), [("microcspnet", 137_525), ("ultratinyresnet", 119_029), ("enhanced-shufflenet", 323_853)]
)
def test_parameters_are_those_of_the_original_program(name, with_head):
    backbone = build(name)
    head = nn.Conv2d(backbone.out_channels, 5, 1)

    assert count_parameters(backbone) + count_parameters(head) == with_head


@pytest.mark.parametrize(
    ("name", "options", "more"),
    [
        # 1x1 projections with their norms
        ("enhanced-shufflenet", {"backbone_skip": True}, (32 + 112) * 128 + 2 * 2 * 128),
        ("ultratinyresnet", {"backbone_skip": True}, (16 + 24 + 32) * 48 + 3 * 2 * 48),
        # one 1x1 of everything that is concatenated
        ("ultratinyresnet", {"backbone_skip_cat": True}, (16 + 24 + 32 + 48) * 48 + 2 * 48),
        ("ultratinyresnet", {"backbone_skip_s2d_cat": True}, (16 * 64 + 24 * 16 + 32 * 4 + 48) * 48 + 2 * 48),
        # 3x3 of two groups: 16-16-16-48, 24-24-48, 32-48; then the 1x1 of four times 48
        (
            "ultratinyresnet",
            {"backbone_skip_shuffle_cat": True},
            9 * (8 * 16 + 8 * 16 + 8 * 48 + 12 * 24 + 12 * 48 + 16 * 48)
            + 2 * (16 + 16 + 48 + 24 + 48 + 48)
            + 4 * 48 * 48
            + 2 * 48,
        ),
        # four laterals, the depthwise and the pointwise convolution
        ("ultratinyresnet", {"backbone_fpn": True}, (16 + 24 + 32 + 48) * 48 + 48 * 9 + 48 * 48 + 6 * 2 * 48),
        ("microcspnet", {"backbone_se": "se"}, 64 * 16 + 16 + 16 * 64 + 64),
        ("microcspnet", {"backbone_se": "ese"}, 64 * 64 + 64),
        ("microcspnet", {"backbone_out_stride": 8}, 0),
        ("microcspnet", {"backbone_out_stride": 16}, 9 * 64 * 64 + 2 * 64),
        ("microcspnet", {"backbone_out_stride": 32}, 2 * (9 * 64 * 64 + 2 * 64)),
    ],
    ids=identify,
)
def test_parameters_that_an_option_adds(name, options, more):
    assert count_parameters(build(name, **options)) - count_parameters(build(name)) == more


@pytest.mark.parametrize("name", NAMES)
def test_no_batchnorm_and_no_bias_unless_asked_for(name):
    plain = build(name, PLAIN)

    assert not any(isinstance(module, nn.BatchNorm2d) for module in plain.modules())
    assert all(parameter.dim() == 4 for parameter in plain.parameters())
    assert count_parameters(plain) == count_parameters(fold_batchnorm(build(name))) - sum(
        module.num_features for module in build(name).modules() if isinstance(module, nn.BatchNorm2d)
    )


def test_a_pyramid_costs_a_fraction_of_its_backbone():
    plain, pyramid = (count_macs(build("ultratinyresnet", backbone_fpn=fpn), 64, 64) for fpn in (False, True))

    assert pyramid < 1.15 * plain


# --- shapes and gradients -----------------------------------------------------------------------------


@variants
@torch.no_grad()
def test_shapes(name, options):
    backbone = build(name, **options).eval()

    for height, width in ((64, 64), (96, 64), (40, 72), (8, 8)):
        assert backbone(torch.rand(2, 3, height, width)).shape == (2, backbone.out_channels, height // 8, width // 8)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("stride", "attention"), [(8, "se"), (16, "none"), (16, "ese"), (32, "se")])
@torch.no_grad()
def test_shapes_at_other_strides(name, stride, attention):
    backbone = build(name, backbone_out_stride=stride, backbone_se=attention).eval()

    for height, width in ((64, 64), (96, 32)):
        expected = (1, backbone.out_channels, height // stride, width // stride)
        assert backbone(torch.rand(1, 3, height, width)).shape == expected


@variants
@pytest.mark.parametrize("style", [BN, PLAIN], ids=["swish, batchnorm", "relu, plain"])
def test_every_parameter_learns(name, options, style):
    backbone = build(name, style, backbone_out_stride=16, backbone_se="se", **options)
    features = backbone(torch.rand(2, 3, 32, 16))
    (features * torch.randn(features.shape)).sum().backward()

    idle = [key for key, value in backbone.named_parameters() if value.grad is None or not value.grad.any()]
    assert idle == []


@pytest.mark.parametrize("options", [{}, *FUSIONS], ids=identify)
def test_odd_widths(options):
    backbone = build("ultratinyresnet", backbone_se="se", backbone_out_stride=16, **ODD, **options)
    features = backbone(torch.rand(2, 3, 48, 32))
    features.square().sum().backward()

    assert features.shape == (2, 13, 3, 2)
    assert all(value.grad is not None for value in backbone.parameters())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("activation", ["relu", "swish"])
@torch.no_grad()
def test_a_fresh_net_without_batchnorm_tells_pictures_apart(name, activation):
    """Under torch's own weights, the features of two pictures differ by 2e-6 to 3e-3."""
    backbone = build(name, Style(activation, batchnorm=False))
    features = backbone(torch.rand(8, 3, 1, 1) * torch.rand(8, 3, 64, 64))

    assert 0.02 < features.std(0).mean() < 5


# --- what the blocks compute --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("groups", "expected"), [(1, [0, 1, 2, 3, 4, 5]), (2, [0, 3, 1, 4, 2, 5]), (3, [0, 2, 4, 1, 3, 5])]
)
def test_channel_shuffle(groups, expected):
    x = torch.arange(6.0).reshape(1, 6, 1, 1).expand(2, 6, 3, 4)

    shuffled = ChannelShuffle(groups)(x)

    assert shuffled.shape == x.shape
    assert shuffled[1, :, 2, 3].tolist() == expected


@torch.no_grad()
def test_shuffle_unit_passes_half_of_the_channels():
    unit = ShuffleUnit(4, PLAIN)
    convolve = [[1.0, 0.0], [10.0, 1.0]]  # out by in
    unit.blocks[0][0].weight.copy_(torch.tensor(convolve)[..., None, None])
    unit.blocks[1][0].weight.zero_()[:, 0, 1, 1] = torch.tensor([1.0, 2.0])
    unit.blocks[2][0].weight.copy_(torch.tensor([[0.0, 1.0], [-1.0, 0.0]])[..., None, None])

    out = unit(torch.tensor([-1.0, 2.0, 3.0, 4.0]).reshape(1, 4, 1, 1))

    # 3, 4 become 3, 34; then 3, 68; then 68, -3 before the activation
    assert out.flatten().tolist() == [-1, 68, 2, 0]


@torch.no_grad()
def test_strided_shuffle_unit_interleaves_its_branches():
    unit = StridedShuffleUnit(1, 4, PLAIN)
    for branch, depthwise, pointwise in ((unit.short, 0, 1), (unit.long, 1, 2)):
        branch[depthwise][0].weight.zero_()[:, 0, 1, 1] = 1
        branch[pointwise][0].weight.zero_()
    unit.long[0][0].weight.fill_(1)
    unit.short[1][0].weight[:, 0, 0, 0] = torch.tensor([1.0, 2.0])
    unit.long[2][0].weight[:, 0, 0, 0] = torch.tensor([3.0, 4.0])

    out = unit(torch.arange(1.0, 17).reshape(1, 1, 4, 4))

    assert out[0, :, 0, 0].tolist() == [1, 3, 2, 4]
    assert out[0, 0].tolist() == [[1, 3], [9, 11]]


def test_space_to_depth():
    module, width = REDUCTIONS["s2d"](1, 2, 5, PLAIN)

    out = module(torch.arange(16.0).reshape(1, 1, 4, 4))

    assert width == 4
    assert out[0].tolist() == [[[0, 2], [8, 10]], [[1, 3], [9, 11]], [[4, 6], [12, 14]], [[5, 7], [13, 15]]]


@torch.no_grad()
def test_space_to_depth_reaches_the_fusion():
    fusion = SkipCat((1,), 1, PLAIN, "s2d")
    fusion.fuse[0].weight.copy_(torch.tensor([1.0, 10, 100, 1000, 10000]).reshape(1, 5, 1, 1))

    out = fusion([torch.tensor([[[[1.0, 2], [3, 4]]]])], torch.tensor([[[[5.0]]]]))

    assert out.item() == 54321


def shrink(x, factor):
    """Means of squares of pixels [B,F,h*factor,w*factor], in numpy."""
    batch, channels, height, width = x.shape
    return x.reshape(batch, channels, height // factor, factor, width // factor, factor).mean((3, 5))


def mix(x, conv):
    return np.einsum("oi,bihw->bohw", conv.weight.numpy()[:, :, 0, 0], x)


def maps_of(widths, out_channels):
    generator = np.random.default_rng(0)
    count = len(widths)
    earlier = [
        generator.standard_normal((2, width, 3 * 2 ** (count - index), 2 * 2 ** (count - index)), np.float32)
        for index, width in enumerate(widths)
    ]
    return earlier, generator.standard_normal((2, out_channels, 3, 2), np.float32)


def run(fusion, earlier, last):
    with torch.no_grad():
        return fusion([torch.from_numpy(x) for x in earlier], torch.from_numpy(last)).numpy()


@torch.no_grad()
def test_skips_are_sums_of_means():
    fusion = SkipSum((2, 3, 5), 4, PLAIN)
    earlier, last = maps_of((2, 3, 5), 4)

    expected = last + sum(
        mix(shrink(x, factor), projection[1][0])
        for x, factor, projection in zip(earlier, (8, 4, 2), fusion.projections, strict=True)
    )

    close(run(fusion, earlier, last), expected)


@torch.no_grad()
def test_skips_are_concatenated_means():
    fusion = SkipCat((2, 3, 5), 4, PLAIN, "pool")
    earlier, last = maps_of((2, 3, 5), 4)
    shrunk = [shrink(x, factor) for x, factor in zip(earlier, (8, 4, 2), strict=True)]

    expected = mix(np.concatenate([*shrunk, last], axis=1), fusion.fuse[0]).clip(0)

    close(run(fusion, earlier, last), expected)


@torch.no_grad()
def test_shuffled_skips_see_every_pixel():
    fusion = SkipCat((2, 4), 6, Style("swish", batchnorm=False), "shuffle")
    earlier, last = maps_of((2, 4), 6)
    before = run(fusion, earlier, last)

    for x in earlier:
        for y, x_ in np.ndindex(4, 4):
            x[:, :, y, x_] += 3
            assert abs(run(fusion, earlier, last) - before).max() > 1e-4
            x[:, :, y, x_] -= 3


@torch.no_grad()
def test_pyramid():
    fusion = Pyramid((2, 3), 4, PLAIN)
    earlier, last = maps_of((2, 3), 4)
    fine, middle, coarse = (mix(x, lateral[0]) for x, lateral in zip((*earlier, last), fusion.laterals, strict=True))
    summed = fine + (middle + coarse.repeat(2, 2).repeat(2, 3)).repeat(2, 2).repeat(2, 3)
    padded = np.pad(summed, ((0, 0), (0, 0), (1, 1), (1, 1)))
    height, width = summed.shape[2:]
    kernel = fusion.smooth[0][0].weight.numpy()
    smoothed = sum(
        kernel[None, :, 0, y, x, None, None] * padded[:, :, y : y + height, x : x + width] for y, x in np.ndindex(3, 3)
    )

    expected = last + mix(shrink(smoothed.clip(0), 4), fusion.smooth[2][0]).clip(0)

    close(run(fusion, earlier, last), expected)


@torch.no_grad()
def test_the_pyramid_stands_on_the_skips():
    net = build("ultratinyresnet", backbone_skip=True, backbone_fpn=True).eval().trunk
    assert isinstance(net, UltraTinyResNet)
    images = torch.rand(1, 3, 32, 32)
    maps = list(itertools.accumulate(net.stages, lambda x, stage: stage(x), initial=images))[1:]
    skips, pyramid = net.fusions
    assert isinstance(skips, SkipSum)
    assert isinstance(pyramid, Pyramid)

    close(net(images), pyramid(maps[:-1], skips(maps[:-1], maps[-1])))


@pytest.mark.parametrize("skip", SKIPS[1:])
def test_a_concatenation_implies_the_skips(skip):
    alone = build("ultratinyresnet", **{skip: True})
    both = build("ultratinyresnet", **{skip: True, "backbone_skip": True})

    assert list(alone.state_dict()) == list(both.state_dict())


@torch.no_grad()
def test_shufflenet_skips_start_at_the_stem_and_the_first_stage():
    net = build("enhanced-shufflenet", backbone_skip=True).eval().trunk
    assert isinstance(net, EnhancedShuffleNet)
    images = torch.rand(1, 3, 32, 32)
    early = net.stem(images)
    middle = net.stage2(early)

    close(net(images), net.skip([early, middle], net.project(net.stage3(middle))))


# --- channel attention --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "channels", "expected"), [("none", 80, 0), ("se", 80, 3300), ("se", 3, 10), ("ese", 80, 6480)]
)
def test_attention_parameters(kind, channels, expected):
    attention = channel_attention(kind, channels)

    assert count_parameters(attention) == expected
    assert attention(torch.rand(2, channels, 3, 5)).shape == (2, channels, 3, 5)


@torch.no_grad()
def test_squeeze_and_excitation():
    attention = SqueezeExcite(4)
    squeeze, _, excite, _ = attention.gate
    squeeze.weight.copy_(torch.tensor([1.0, 0, 0, -1]).reshape(1, 4, 1, 1))
    squeeze.bias.fill_(0.5)
    excite.weight.copy_(torch.tensor([1.0, -1, 0, 2]).reshape(4, 1, 1, 1))
    excite.bias.copy_(torch.tensor([0.0, 0, 3, 0]))
    x = torch.stack([torch.full((1, 2), 2.0), torch.ones(1, 2), torch.ones(1, 2), torch.tensor([[0.0, 1]])])[None]

    out = attention(x)

    gates = 1 / (1 + np.exp(-np.array([2.0, -2, 3, 4])))  # the squeezed value is 2 - 0.5 + 0.5
    close(out[0, :, 0, 1], gates * np.array([2, 1, 1, 1]))
    assert isinstance(channel_attention("ese", 4), ESE)


# --- folding and export -------------------------------------------------------------------------------


@variants
@torch.no_grad()
def test_folded_equals_unfolded(name, options):
    backbone = randomise_norms(build(name, backbone_out_stride=16, backbone_se="se", **options))
    folded = fold_batchnorm(backbone)
    images = torch.rand(2, 3, 64, 48)

    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    close(folded(images), backbone(images), 1e-4)


@pytest.mark.parametrize(
    ("name", "options", "opset"),
    [
        *((name, {}, opset) for name in NAMES for opset in (13, 17)),
        ("enhanced-shufflenet", {"backbone_skip": True}, 13),
        *(("ultratinyresnet", options, 13) for options in FUSIONS if "backbone_fpn" in options),
        ("ultratinyresnet", {"backbone_skip_s2d_cat": True, "backbone_fpn": True}, 17),
    ],
    ids=identify,
)
@torch.no_grad()
def test_graph_equals_net(name, options, opset):
    backbone = randomise_norms(build(name, backbone_out_stride=16, backbone_se="ese", **options))
    graph = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):
        torch.onnx.export(
            backbone,
            (torch.rand(2, 3, 64, 64),),
            graph,
            input_names=["images"],
            output_names=["features"],
            dynamic_axes={"images": {0: "batch", 2: "height", 3: "width"}},
            opset_version=opset,
            dynamo=False,
        )
    (found,) = onnx.load_from_string(graph.getvalue()).opset_import
    session = onnxruntime.InferenceSession(graph.getvalue(), providers=["CPUExecutionProvider"])

    assert found.version == opset
    for shape in ((1, 3, 64, 64), (3, 3, 96, 48), (2, 3, 32, 80)):
        images = torch.rand(shape)
        (features,) = session.run(None, {"images": images.numpy()})
        close(features, backbone(images), 1e-4)
