"""Checkpoints to export, their files, and what PyTorch finds: shared by the tests of the export and of the runtime."""

import numpy as np
import torch
from helpers import make_config, start
from onnx import ModelProto
from torch import nn
from torch.nn import functional as F

from uhd.checkpoint import read_checkpoint, save_checkpoint
from uhd.config import ExportConfig
from uhd.export.build import Export, build_network, finish, prepare, save
from uhd.models.mobilenext import RefinedDepthwise
from uhd.precedence import agree
from uhd.runtime import load_session

METRICS = {"val/mAP@0.5": 0.625, "val/best_f1": 0.5, "val/best_f1_threshold": 0.375}
"""What the checkpoints of `write_checkpoint` were found to be."""


def randomise(model, img_size, seed=0):
    """Batch norms that change what passes, and raw maps that spread: a fresh net scores all priors alike."""
    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values, low, high in (
                (module.running_mean, -0.3, 0.3),
                (module.running_var, 0.5, 2.0),
                (module.weight, 0.5, 1.5),
                (module.bias, -0.3, 0.3),
            ):
                nn.init.uniform_(values, low, high)

    def spread(layer, _, output):
        if layer.bias is None:
            layer.weight.div_(output.std())
            return output / output.std()
        if output.shape[2:].numel() == 1:
            return None
        # Where all places are nearly alike, their difference is mostly rounding: it is not made larger than the rest.
        deviation = torch.maximum(output.std(dim=(0, 2, 3)), output.abs().mean(dim=(0, 2, 3)) / 10)
        scale = 1.5 / deviation
        shift = torch.randn(len(scale)) - output.mean(dim=(0, 2, 3)) * scale
        layer.weight.mul_(scale[:, None, None, None])
        layer.bias.copy_(layer.bias * scale + shift)
        return output * scale[:, None, None] + shift[:, None, None]

    def spread_rows(layer, _, output):
        scale = 1.5 / output.std(dim=(0, 1))
        shift = torch.randn(len(scale)) - output.mean(dim=(0, 1)) * scale
        layer.weight.mul_(scale[:, None])
        layer.bias.copy_(layer.bias * scale + shift)
        return output * scale + shift

    def open_half(layer, inputs):
        # Random statistics would saturate the gate, or make it so steep that it shows the order of a sum.
        gate = F.conv2d(inputs[0], layer.conv.weight.sum(dim=(2, 3), keepdim=True).transpose(0, 1))
        layer.gate_norm.running_mean.fill_(gate.mean())
        layer.gate_norm.running_var.fill_(gate.var())

    hooks = [m.register_forward_hook(spread) for m in model.modules() if isinstance(m, nn.Conv2d)]
    hooks += [m.register_forward_pre_hook(open_half) for m in model.modules() if isinstance(m, RefinedDepthwise)]
    heads = [m for name, m in model.named_modules() if isinstance(m, nn.Linear) and name.endswith("_head")]
    hooks += [head.register_forward_hook(spread_rows) for head in heads]
    with torch.no_grad():
        model.eval()(torch.rand(4, 3, *img_size))
        for name, parameter in model.named_parameters():
            if name == "wh_scale":
                parameter.uniform_(0.5, 1.5)
    for hook in hooks:
        hook.remove()


def write_checkpoint(folder, cfg=None, metrics=METRICS, seed=0):
    """The best.pt of a run in this folder, whose weights are random and spread the scores; averaged ones are others."""
    cfg = cfg or make_config(img_size=(64, 64), model={"use_batchnorm": True, "use_improved_head": True})
    task, state = start(cfg, seed)
    randomise(task.student, cfg.input.img_size, seed)
    if state.eval_model is not task.student:
        randomise(state.eval_model, cfg.input.img_size, seed + 1)
    state.epoch = 7
    save_checkpoint(folder, cfg, state, metrics, is_best=True)
    return folder / "best.pt"


def prepared(path, img_size=None, **options) -> Export:
    """The export of a checkpoint, ready to be built."""
    checkpoint = read_checkpoint(path)
    typed = {"img_size": img_size} if img_size else {}
    return prepare(checkpoint, agree(typed, checkpoint), ExportConfig(checkpoint=str(path), **options))


def built(export) -> ModelProto:
    """The whole model of an export."""
    return finish(export, build_network(export))


def write_onnx(path, checkpoint, **options):
    """An exported file."""
    save(built(prepared(checkpoint, **options)), path)
    return path


def run_model(model, images):
    """The outputs of a model, by name, for pictures [B,3,H,W] in 0..1."""
    session = load_session(model.SerializeToString())
    names = [each.name for each in session.get_outputs()]
    outputs = dict(zip(names, session.run(names, {"images": np.asarray(images)}), strict=True))
    assert all(np.isfinite(values).all() for values in outputs.values())
    return outputs


def pictures(count, size, seed=0):
    """Random pictures [count,3,H,W] in 0..1."""
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def rows_of_torch(export, images):
    """What PyTorch finds: rows [B,topk,6] of score, class, cx, cy, w, h."""
    decode = export.decode
    candidates = export.model.decode(export.model(images), decode)
    found = export.model.finish(candidates, decode, decode.conf_thresh, decode.topk)
    size = found.boxes[..., 2:] - found.boxes[..., :2]
    centres = found.boxes[..., :2] + size / 2
    rows = torch.cat([found.scores[..., None], found.labels[..., None].clamp(min=0), centres, size], dim=-1)
    return rows.numpy()


def assert_same_rows(found, expected, atol=1e-4):
    """Rows [topk,6] of one picture are the same ones in the same order; where scores tie, the order is free.

    atol is that of values up to 1; of a box larger than the picture it is that share of its size.
    """
    assert found.shape == expected.shape
    assert (np.diff(found[:, 0]) <= 0).all()
    np.testing.assert_allclose(found[:, 0], expected[:, 0], rtol=0, atol=atol)
    for rows, others in ((found, expected), (expected, found)):
        gaps = (np.abs(rows[:, None] - others[None]) / np.maximum(np.abs(rows[:, None]), 1)).max(axis=-1).min(axis=1)
        assert gaps.max(initial=0) <= atol
