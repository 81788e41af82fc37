"""The transformer against torch's own layers, hand-made positions and onnxruntime, and what an exported graph needs."""

import io
import math
import warnings

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from uhd.config import TransformerConfig
from uhd.models.attention import Attention, DecoderLayer, EncoderLayer, positions
from uhd.models.base import count_parameters, fold_batchnorm
from uhd.models.transformer import PRIOR_PROBABILITY, Transformer

TINY = {"d_model": 8, "heads": 2, "layers": 2, "dim_feedforward": 12, "num_queries": 3}
TORCH_ACTIVATIONS = {"swish": F.silu, "relu": F.relu}


def net(**changes):
    torch.manual_seed(0)
    return Transformer(TransformerConfig(**{**TINY, **changes}))


# --- parameters ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({}, 253_958),
        ({"use_fpn": True}, 268_358),
        ({"num_classes": 3}, 253_958 + 2 * 65),
        ({"num_queries": 20}, 253_958 + 10 * 64),
        # An encoder and a decoder layer: attentions of 4 d² + 4 d, a feed-forward block, norms of 2 d.
        ({"layers": 4}, 253_958 + 3 * (4 * 64**2 + 4 * 64) + 2 * (2 * 64 * 128 + 128 + 64) + 5 * 2 * 64),
    ],
)
def test_number_of_parameters(flags, expected):
    assert count_parameters(Transformer(TransformerConfig(**flags))) == expected


def test_a_deeper_net_has_all_the_names_of_a_shallower_one():
    shallow, deep = net(layers=3).state_dict(), net(layers=4).state_dict()
    assert all(name in deep and deep[name].shape == value.shape for name, value in shallow.items())
    assert {name.split(".")[1] for name in deep if name not in shallow} == {"3"}


def test_positions_are_not_stored():
    assert all(isinstance(value, nn.Parameter) for value in net().state_dict(keep_vars=True).values())


# --- layers against torch's ---------------------------------------------------------------------------


def copy_attention(ours: Attention, theirs: nn.MultiheadAttention):
    theirs.in_proj_weight.data, theirs.in_proj_bias.data = ours.in_proj.weight.data, ours.in_proj.bias.data
    theirs.out_proj.weight.data, theirs.out_proj.bias.data = ours.out_proj.weight.data, ours.out_proj.bias.data


def shaken(module: nn.Module) -> nn.Module:
    """With biases and norms that are not 0 and 1, so that a swapped one shows."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


def torch_layer(ours: EncoderLayer, cfg: TransformerConfig) -> nn.Module:
    kind = nn.TransformerDecoderLayer if isinstance(ours, DecoderLayer) else nn.TransformerEncoderLayer
    activation = TORCH_ACTIVATIONS[cfg.activation]
    theirs = kind(cfg.d_model, cfg.heads, cfg.dim_feedforward, 0.0, activation, batch_first=True)
    copy_attention(ours.attention, theirs.self_attn)
    norms = [ours.attention_norm, ours.feed_forward_norm]
    if isinstance(ours, DecoderLayer):
        copy_attention(ours.cross_attention, theirs.multihead_attn)
        norms.insert(1, ours.cross_norm)
    for number, norm in enumerate(norms, start=1):
        getattr(theirs, f"norm{number}").load_state_dict(norm.state_dict())
    theirs.linear1.load_state_dict(ours.feed_forward[0].state_dict())
    theirs.linear2.load_state_dict(ours.feed_forward[2].state_dict())
    return theirs


@pytest.mark.parametrize("activation", ["swish", "relu"])
@pytest.mark.parametrize("kind", [EncoderLayer, DecoderLayer])
def test_layers_are_those_of_torch(kind, activation):
    torch.manual_seed(1)
    cfg = TransformerConfig(**TINY, activation=activation)
    ours = shaken(kind(cfg))
    theirs = torch_layer(ours, cfg)
    inputs = [torch.randn(2, 5, 8), torch.randn(2, 7, 8)][: 2 if kind is DecoderLayer else 1]
    results, gradients = [], []
    for layer in (ours, theirs):
        given = [tensor.clone().requires_grad_() for tensor in inputs]
        result = layer(*given)
        gradients.append(torch.autograd.grad(result.square().sum(), given))
        results.append(result)
    torch.testing.assert_close(*results, rtol=0, atol=2e-6)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_attention_starts_as_torch_does():
    torch.manual_seed(2)
    ours = Attention(64, 4)
    bound = math.sqrt(6 / (64 + 3 * 64))
    assert ours.in_proj.weight.abs().max() <= bound
    assert ours.in_proj.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert not ours.in_proj.bias.any()
    assert not ours.out_proj.bias.any()


def test_the_whole_net_is_the_layers_one_after_the_other_without_a_last_norm():
    model = shaken(net())
    images = torch.rand(2, 3, 6, 10)
    tokens = model.patches(images).flatten(2).transpose(1, 2) + positions((3, 5), 8, images.device)
    queries = model.queries.expand(2, -1, -1)
    for layer in model.encoder_layers:
        tokens = torch_layer(layer, model.cfg)(tokens)
    for layer in model.decoder_layers:
        queries = torch_layer(layer, model.cfg)(queries, tokens)
    preds = model(images)
    torch.testing.assert_close(preds["class_logits"], model.class_head(queries), rtol=0, atol=1e-5)
    torch.testing.assert_close(preds["box_logits"], model.box_head(queries), rtol=0, atol=1e-5)
    torch.testing.assert_close(preds["features"].flatten(2).transpose(1, 2), tokens, rtol=0, atol=1e-5)


def test_dropout_acts_in_training_only():
    model, images = net(dropout=0.5), torch.rand(1, 3, 8, 8)
    assert not torch.equal(model(images)["box_logits"], model(images)["box_logits"])
    model.eval()
    assert torch.equal(model(images)["box_logits"], model(images)["box_logits"])


# --- positions ----------------------------------------------------------------------------------------


def test_positions_by_hand():
    """Two cells below each other, at y 1/4 and 3/4 and x 1/2; waves of half a cycle and of 16 across the picture."""
    result = positions((2, 1), 8, torch.device("cpu"))
    x = [1.0, 0.0, 0.0, 1.0]  # sines of a quarter and of 8 turns, their cosines
    half = math.sqrt(0.5)
    expected = [[half, 0.0, half, 1.0, *x], [half, 0.0, -half, 1.0, *x]]
    torch.testing.assert_close(result, torch.tensor(expected), rtol=0, atol=1e-4)


@pytest.mark.parametrize("grid", [(1, 1), (5, 3), (3, 5), (32, 32), (33, 7), (1, 64)])
@pytest.mark.parametrize("channels", [4, 64])
def test_every_cell_has_a_position_of_its_own(grid, channels):
    places = positions(grid, channels, torch.device("cpu"))
    assert places.shape == (grid[0] * grid[1], channels)
    distances = torch.cdist(places, places) + 9 * torch.eye(len(places))
    assert distances.min() > 0.04


def test_positions_of_two_levels_fit_together():
    fine = positions((9, 15), 16, torch.device("cpu")).view(9, 15, 16)
    coarse = positions((3, 5), 16, torch.device("cpu")).view(3, 5, 16)
    torch.testing.assert_close(fine[1::3, 1::3], coarse)


# --- the pictures' way through ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "use_fpn", "tokens", "last"),
    [
        ((64, 64), False, 1024, (32, 32)),
        ((64, 64), True, 1024 + 1024 + 256 + 64, (8, 8)),
        ((33, 50), False, 17 * 25, (17, 25)),
        ((33, 50), True, 17 * 25 * 2 + 9 * 13 + 5 * 7, (5, 7)),
        ((1, 1), True, 4, (1, 1)),
    ],
)
def test_sizes(size, use_fpn, tokens, last):
    model = net(use_fpn=use_fpn, num_classes=2).eval()
    images = torch.rand(2, 3, *size)
    embedded, grid = model.embed(images)
    assert embedded.shape == (2, tokens, 8)
    assert grid == last
    preds = model(images)
    assert {name: tuple(value.shape) for name, value in preds.items()} == {
        "class_logits": (2, 3, 3),
        "box_logits": (2, 3, 4),
        "features": (2, 8, *last),
    }


def test_levels_of_the_pyramid_stand_one_after_the_other():
    model = net(use_fpn=True).eval()
    images = torch.rand(1, 3, 32, 32)
    tokens, _ = model.embed(images)
    x, start = model.patches(images), 0
    for block in (nn.Identity(), *model.pyramid.blocks):
        x = block(x)
        level = x.flatten(2).transpose(1, 2) + positions(tuple(x.shape[2:]), 8, images.device)
        torch.testing.assert_close(tokens[:, start : start + level.shape[1]], level)
        start += level.shape[1]
    assert start == tokens.shape[1]


@pytest.mark.parametrize("use_fpn", [False, True])
def test_attend_treats_each_picture_alone(use_fpn):
    model = net(use_fpn=use_fpn)  # in training mode: what mixes the pictures is in `embed`
    tokens, grid = model.embed(torch.rand(5, 3, 16, 12))
    whole = model.attend(tokens, grid)
    parts = [model.attend(part, grid) for part in tokens.split(2)]
    for name, value in whole.items():
        torch.testing.assert_close(torch.cat([part[name] for part in parts]), value, rtol=0, atol=1e-5)


def test_folded_batchnorm_changes_nothing():
    model = net(use_fpn=True)
    model(torch.rand(4, 3, 16, 16))
    images = torch.rand(2, 3, 16, 16)
    folded = fold_batchnorm(model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    torch.testing.assert_close(folded(images), model.eval()(images), rtol=0, atol=1e-5)


@pytest.mark.parametrize("use_fpn", [False, True])
def test_low_precision(use_fpn):
    model, images = net(use_fpn=use_fpn).eval(), torch.rand(2, 3, 16, 16)
    expected = model.candidates(model(images))
    with torch.autocast("cpu", torch.bfloat16):
        preds = model(images)
    boxes, scores = model.candidates(preds)
    assert boxes.dtype == scores.dtype == torch.float32
    torch.testing.assert_close((boxes, scores), expected, rtol=0, atol=0.05)


# --- candidates ---------------------------------------------------------------------------------------


def test_candidates_by_hand():
    box = [0.0, math.log(1 / 3), math.log(3), 0.0]  # the middle, a quarter down; three quarters wide, half as high
    preds = {"class_logits": torch.tensor([[[0.0, math.log(2), math.log(5)]]]), "box_logits": torch.tensor([[box]])}
    model = net(num_classes=2)
    boxes, scores = model.candidates(preds)
    torch.testing.assert_close(boxes, torch.tensor([[[0.125, 0.0, 0.875, 0.5]]]))
    torch.testing.assert_close(scores, torch.tensor([[[1 / 8, 2 / 8]]]))
    assert model.decoding() == {}
    assert model.details() == {"stride": 1, "num_queries": 3}


@pytest.mark.parametrize("num_classes", [1, 3])
def test_first_scores_are_low_and_first_boxes_apart(num_classes):
    torch.manual_seed(3)
    model = Transformer(TransformerConfig(num_classes=num_classes, num_queries=50)).eval()
    first = model.class_head.bias.softmax(0)
    assert first.tolist() == pytest.approx([PRIOR_PROBABILITY / num_classes] * num_classes + [1 - PRIOR_PROBABILITY])
    boxes, scores = model.candidates(model(torch.rand(1, 3, 16, 16)))
    assert scores.sum(dim=2).mean() < 0.3
    centres = (boxes[0, :, :2] + boxes[0, :, 2:]) / 2
    assert (centres.std(dim=0) > 0.05).all()


# --- tracing and export -------------------------------------------------------------------------------


@pytest.mark.parametrize("use_fpn", [False, True])
def test_what_a_tracer_follows_is_the_same_net(use_fpn):
    model, images = net(use_fpn=use_fpn).eval(), torch.rand(2, 3, 14, 18)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(model, (images,), strict=False)
    assert "scaled_dot_product_attention" not in str(traced.inlined_graph)
    other = torch.rand(3, 3, 11, 20)
    torch.testing.assert_close(traced(other), model(other), rtol=0, atol=1e-5)


class Exported(nn.Module):
    """Raw maps, candidates and features as a tuple."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        preds = self.model(images)
        return (*preds.values(), *self.model.candidates(preds))


@pytest.mark.parametrize("opset", [13, 17])
@pytest.mark.parametrize("use_fpn", [False, True])
def test_an_exported_graph_takes_any_size(opset, use_fpn):
    model = Exported(shaken(net(use_fpn=use_fpn, num_classes=2))).eval()
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (torch.rand(1, 3, 12, 16),),
            file,
            dynamo=False,
            opset_version=opset,
            input_names=["images"],
            dynamic_axes={"images": {0: "batch", 2: "height", 3: "width"}},
        )
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    for shape in ((1, 3, 12, 16), (2, 3, 20, 9), (3, 3, 7, 31)):
        images = torch.rand(shape)
        results = session.run(None, {"images": images.numpy()})
        for result, expected in zip(results, model(images), strict=True):
            np.testing.assert_allclose(result, expected.detach().numpy(), rtol=0, atol=1e-4)
