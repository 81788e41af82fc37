"""Tiny SSD: its sizes as published, its levels and priors, and what each flag changes."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from helpers import draw_people, metric_rows, train_args
from test_cli import parse
from torch import nn

import train
from uhd.anchors import auto_anchors
from uhd.checkpoint import read_checkpoint
from uhd.config import AssignConfig, LossConfig, TinySSDConfig
from uhd.losses import build_criterion
from uhd.models import build_model, count_macs, count_parameters, fold_batchnorm

PAPER = {"tinyssd_priors": "published", "activation": "relu"}
PLAIN = {**PAPER, "tinyssd_body": "conv", "use_batchnorm": True, "tinyssd_cls_loss": "mined"}


def section(img_size=(64, 64), **fields):
    return TinySSDConfig(**fields).completed(img_size)


def sized(**fields):
    """A net of shapes without values, for counting."""
    with torch.device("meta"):
        return build_model(section(**fields))


def fresh(**fields):
    torch.manual_seed(0)
    return build_model(section(**fields)).eval()


# --- sizes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "counted", "of_heads"),
    [
        # The paper's network: 20 classes and the background, then one class by a sigmoid or by a softmax.
        ({**PAPER, "num_classes": 20, "tinyssd_cls_loss": "mined"}, 1_133_001, 658_250),
        ({**PAPER, "num_classes": 21}, 1_133_001, 658_250),
        (PAPER, 606_401, 131_650),
        ({**PAPER, "tinyssd_cls_loss": "mined"}, 632_731, 157_980),
        # The network of plain convolutions: one class and the background.
        (PLAIN, 1_010_376, 124_536),
    ],
    ids=str,
)
def test_parameters(fields, counted, of_heads):
    model = sized(**fields)
    assert count_parameters(model) == counted
    assert sum(map(count_parameters, (model.cls, model.box))) == of_heads


@pytest.mark.parametrize(
    ("fields", "side", "millions", "priors"),
    [
        *((PAPER, *row) for row in ((64, 17.2, 392), (96, 38.7, 880), (128, 68.5, 1538), (160, 107, 2432))),
        *((PAPER, 192, 154, 3466), (PLAIN, 64, 61, 344), (PLAIN, 96, 137, 764)),
        *((PLAIN, *row) for row in ((128, 244, 1364), (160, 381, 2120), (192, 549, 3064))),
        (PLAIN, 256, 976.6, 5444),
    ],
)
def test_multiply_adds_and_priors(fields, side, millions, priors):
    model = sized(**fields)
    found = count_macs(model, side, side) / 1e6
    assert found == pytest.approx(millions, abs=0.05 if millions in (17.2, 38.7, 68.5, 976.6) else 0.6)
    maps = model(torch.zeros(1, 3, side, side, device="meta"))
    layers = zip(model.layout.counts, (maps[f"cls_{level}"] for level in range(len(model.layout.counts))), strict=True)
    assert sum(count * each.shape[2] * each.shape[3] for count, each in layers) == priors


@pytest.mark.parametrize(
    ("level", "body", "cls", "box"),
    [(0, 72_528, 4_616, 9_232), (1, 221_952, 9_224, 18_448), (2, 295_680, 9_224, 18_448), (4, 0, 9_224, 18_448)],
)
def test_parameters_of_a_level(level, body, cls, box):
    model = sized(**PLAIN)
    assert [count_parameters(each[level]) for each in (model.levels, model.cls, model.box)] == [body, cls, box]


@pytest.mark.parametrize("body", ["fire", "conv"])
def test_fewer_levels_are_a_smaller_network(body):
    most = section(tinyssd_body=body, tinyssd_priors="published").num_grids
    counts = [
        count_parameters(sized(tinyssd_body=body, tinyssd_levels=n, tinyssd_priors="published"))
        for n in range(1, most + 1)
    ]
    assert counts == sorted(set(counts))
    assert counts[-1] == count_parameters(sized(tinyssd_body=body, tinyssd_priors="published"))


def test_batch_norms_follow_convolutions_and_can_be_folded():
    model = fresh(**PAPER, use_batchnorm=True)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 1 + 3 * 10 + 4
    for each in norms:
        nn.init.uniform_(each.running_mean, -0.3, 0.3)
        nn.init.uniform_(each.running_var, 0.5, 2)
    images = torch.rand(2, 3, 64, 64)
    folded = fold_batchnorm(model)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    assert count_parameters(folded) == 606_401
    with torch.no_grad():
        expected, found = model(images), folded(images)
    for name in model.raw_names:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-4)


# --- levels of all sizes ------------------------------------------------------------------------------


@pytest.mark.parametrize("body", ["fire", "conv"])
@pytest.mark.parametrize("size", [(64, 64), (72, 136), (104, 8), (104, 64), (200, 248), (416, 416)])
def test_all_multiples_of_8_have_all_levels(size, body):
    """Each level has half the cells of the one before, rounded up; of the plain body down, but at least one."""
    model = sized(tinyssd_body=body, tinyssd_priors="published")
    preds = model(torch.zeros(1, 3, *size, device="meta"))
    grid = tuple(side // 8 for side in size)
    for level in range(model.cfg.num_grids):
        if (body, level) == ("conv", 4):
            grid = (1, 1)
        assert preds[f"cls_{level}"].shape[2:] == preds[f"box_{level}"].shape[2:] == grid
        grid = tuple(-(-side // 2) if body == "fire" else max(side // 2, 1) for side in grid)


@pytest.mark.parametrize("body", ["fire", "conv"])
def test_fresh_scores_are_low(body):
    for loss in ("focal", "mined"):
        model = fresh(tinyssd_body=body, tinyssd_priors="published", tinyssd_cls_loss=loss, num_classes=3)
        with torch.no_grad():
            scores = model.candidates(model(torch.rand(2, 3, 64, 64)))[1]
        assert 0.003 < scores.mean() < 0.03


# --- priors -------------------------------------------------------------------------------------------


def test_published_priors_of_fire():
    """Of level 1 (99 px of 300 at level 2): squares of 45 and sqrt(45 * 99), then 45 in the ratios 2, 1/2, 3, 1/3."""
    cfg = section(**PAPER)
    level = np.array(cfg.anchors[4:10]) * 300
    squares = [(45, 45), (math.sqrt(45 * 99),) * 2]
    shaped = [(45 * math.sqrt(ratio), 45 / math.sqrt(ratio)) for ratio in (2, 1 / 2, 3, 1 / 3)]
    np.testing.assert_allclose(level, [*squares, *shaped], atol=1e-3)
    assert [min(w * h for w, h in part) ** 0.5 * 300 for part in by_level(cfg)] == pytest.approx(
        [21, 45, 99, 153, 207, 261], abs=1e-2
    )


def test_published_priors_of_conv():
    cfg = section(**PLAIN)
    root = math.sqrt(2)
    np.testing.assert_allclose(
        cfg.anchors[:4], [(0.2, 0.2), (0.272, 0.272), (0.2 * root, 0.2 / root), (0.2 / root, 0.2 * root)], atol=1e-6
    )
    assert [part[0] for part in by_level(cfg)] == [(s, s) for s in (0.2, 0.37, 0.54, 0.71, 0.88)]
    assert [part[1] for part in by_level(cfg)] == [(s, s) for s in (0.272, 0.447, 0.619, 0.79, 0.961)]


@pytest.mark.parametrize("size", [(64, 64), (64, 128), (192, 64), (72, 136), (8, 416)])
@pytest.mark.parametrize("body", ["fire", "conv"])
def test_published_priors_have_one_shape_in_pixels(size, body):
    """w = s * sqrt(ratio) * H / W and h = s / sqrt(ratio): as in a square picture of the same height."""
    height, width = size
    square = np.array(section((height, height), tinyssd_priors="published", tinyssd_body=body).anchors) * height
    cfg = section(size, tinyssd_priors="published", tinyssd_body=body)
    np.testing.assert_allclose(np.array(cfg.anchors) * (width, height), square, atol=3e-4)
    # As a checkpoint holds them: neither another picture's size nor the check of --anchors changes them.
    again = dataclasses.replace(cfg, tinyssd_cls_loss="mined").completed((64, 64))
    assert again.anchors == cfg.anchors


@pytest.mark.parametrize("place", [0, 5, -1])
def test_other_sizes_than_the_published_are_no_published_ones(place):
    anchors = list(section((64, 128), **PAPER).anchors)
    anchors[place] = (anchors[place][0] * 1.01, anchors[place][1])
    with pytest.raises(ValueError, match="--tinyssd-priors published"):
        section((64, 128), **PAPER, anchors=tuple(anchors))


def by_level(cfg):
    anchors = iter(cfg.anchors)
    return [list(itertools.islice(anchors, count)) for count in cfg.anchor_counts]


def test_published_priors_miss_small_people_and_computed_ones_do_not():
    """Boxes of 12 to 24 px in 256, as in the set that the plain network was published with."""
    rng = np.random.default_rng(0)
    sizes = rng.uniform(12, 24, (200, 2)) / 256
    computed, fit = auto_anchors(sizes, 3, (256, 256), seed=0)
    published = np.array(section(**PLAIN).anchors)
    inter = np.minimum(sizes[:, None], published).prod(axis=2)
    iou = inter / (sizes.prod(axis=1)[:, None] + published.prod(axis=1) - inter)
    assert iou.max() < 0.5
    assert fit > 0.75
    assert len(computed) == 3


@pytest.mark.parametrize(
    ("flags", "counts"),
    [
        ("--tinyssd-levels 3", (3, 3, 3)),
        ("--num-anchors 4", (4,) * 6),
        ("--tinyssd-body conv", (3,) * 5),
        ("--tinyssd-levels 2 --anchors .1,.2;.3,.4", (1, 1)),
        ("--tinyssd-levels 1 --anchors .1,.2;.3,.4 --num-anchors 2", (2,)),
        ("--tinyssd-priors published", (4, 6, 6, 6, 6, 4)),
        ("--tinyssd-priors published --tinyssd-levels 2", (4, 6)),
        ("--tinyssd-priors published --tinyssd-body conv", (4,) * 5),
    ],
)
def test_anchors_a_cell(flags, counts):
    model = parse(f"--arch tinyssd {flags}").model
    assert model.anchor_counts == counts
    assert model.anchors is None or len(model.anchors) == sum(counts)
    assert model.completed((64, 64)) == model


def test_a_missing_size_is_a_mistake():
    with pytest.raises(ValueError, match="--auto-anchors"):
        build_model(section())


# --- what the whole network learns ----------------------------------------------------------------------


def test_weight_of_the_boxes_is_1_where_none_is_typed():
    assert parse("--arch tinyssd").loss.loss_weight_box == 1
    assert parse("--arch tinyssd --loss-weight-box 5").loss.loss_weight_box == 5
    assert parse("--arch ultratinyod").loss.loss_weight_box == 5


@pytest.mark.parametrize("loss", ["focal", "mined"])
def test_criterion_is_that_of_the_section(loss):
    cfg = section(tinyssd_levels=2, tinyssd_cls_loss=loss, num_classes=2)
    criterion = build_criterion(cfg, LossConfig(), AssignConfig())
    assert (criterion.layout.counts, criterion.layout.outputs) == ((3, 3), 2 + (loss == "mined"))


@pytest.mark.parametrize("further", [{}, {"tinyssd_body": "conv", "tinyssd_cls_loss": "mined"}], ids=str)
def test_training_from_the_command_line(tmp_path, monkeypatch, further):
    """Anchors are computed, the smallest at the finest level; a resumed run has them and goes on."""
    monkeypatch.setattr("uhd.recorder.write_reports", lambda *args, **kwargs: None)
    data = draw_people(tmp_path / "data", 10, side=32)
    flags = {"arch": "tinyssd", "cnn_width": None, "tinyssd_levels": 2, "num_anchors": 2, "img_size": 32, **further}
    assert train.main(train_args(data, tmp_path / "run", stop_epoch=1, **flags)) == 0
    anchors = read_checkpoint(tmp_path / "run" / "last.pt").config.model.anchors
    areas = [w * h for w, h in anchors]
    assert (len(anchors), areas) == (4, sorted(areas))
    assert (
        train.main(["--resume", str(tmp_path / "run"), "--num-workers", "0", "--cache", "ram", "--device", "cpu"]) == 0
    )
    assert [row["epoch"] for row in metric_rows(tmp_path / "run")] == [1, 2]
    assert read_checkpoint(tmp_path / "run" / "last.pt").config.model.anchors == anchors
    assert sorted(tmp_path.glob("run/best_tinyssd_*.pt"))
