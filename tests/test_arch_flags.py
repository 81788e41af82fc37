"""Flags of one architecture or one head: what they turn into, which mistakes they allow, where they have no effect."""

import dataclasses
import functools

import pytest
import torch
from conftest import SMALL_RUN, write_yolo_folder
from helpers import metric_rows
from test_cli import parse, value, vars_of
from test_cli_checkpoint import beside, write_checkpoint

import train
from uhd.cli import build_parser, flag_fields
from uhd.config import DEMO_PRESET, MODEL_CONFIGS, CNNConfig, ModelConfig, TransformerConfig, flag_of

RESNET = "--backbone ultratinyresnet"
NEW_WEIGHTS = ("hm", "off", "wh", "l1", "iou")


@pytest.fixture(autouse=True, scope="module")
def _fast():
    """Making the parser is most of the time that reading a line takes, drawing the reports most of a tiny run's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("uhd.cli.build_parser", functools.cache(build_parser))
        patch.setattr(train, "write_reports", lambda *args, **kwargs: None)
        yield


# --- what they turn into ------------------------------------------------------------------------

READINGS = {
    "": ("model.arch", "cnn"),
    "--arch cnn": ("model.head", "center"),
    "--arch transformer": ("model.head", "query"),
    "--arch ultratinyod": ("model.head", "anchor"),
    "--arch transformer --arch cnn": ("model.arch", "cnn"),
    # The CNN
    "--use-anchor": ("model.head", "anchor"),
    "--use-anchor --no-use-anchor": ("model.use_anchor", False),
    "--use-anchor --anchors .1,.2;.3,.4": ("model.num_anchors", 2),
    "--use-anchor --anchors=": ("model.anchors", None),
    "--anchors=": ("model.anchors", None),
    "--use-anchor --use-improved-head": ("model.has_quality", True),
    "--use-skip": ("model.use_skip", True),
    "--last-se none": ("model.last_se", "none"),
    "--last-se se": ("model.last_se", "se"),
    "--last-se ese": ("model.last_se", "ese"),
    "--last-width-scale 1.25": ("model.last_width_scale", 1.25),
    "--last-width-scale 5e-1": ("model.last_width_scale", 0.5),
    "--backbone none": ("model.backbone", "none"),
    "--backbone microcspnet": ("model.backbone", "microcspnet"),
    "--backbone ultratinyresnet": ("model.backbone", "ultratinyresnet"),
    "--backbone enhanced-shufflenet": ("model.backbone", "enhanced-shufflenet"),
    f"{RESNET} --backbone none": ("model.backbone", "none"),
    f"{RESNET} --backbone-channels 8,16,24,32": ("model.backbone_channels", (8, 16, 24, 32)),
    f"{RESNET} --backbone-channels=": ("model.stages", ((16, 24, 32, 48), (1, 1, 2, 1))),
    "--backbone-channels=": ("model.backbone_channels", None),
    f"{RESNET} --backbone-blocks 1,2,2,1": ("model.backbone_blocks", (1, 2, 2, 1)),
    "--backbone-blocks=": ("model.backbone_blocks", None),
    f"{RESNET} --backbone-channels 1,2,3,4 --backbone-blocks 2,2,2,2": ("model.stages", ((1, 2, 3, 4), (2, 2, 2, 2))),
    f"{RESNET} --backbone-se se": ("model.backbone_se", "se"),
    "--backbone microcspnet --backbone-se ese": ("model.backbone_se", "ese"),
    "--backbone-se none": ("model.backbone_se", "none"),
    f"{RESNET} --backbone-skip": ("model.backbone_skip", True),
    "--backbone enhanced-shufflenet --backbone-skip": ("model.backbone_skip", True),
    f"{RESNET} --backbone-skip-cat": ("model.backbone_skip_cat", True),
    f"{RESNET} --backbone-skip --backbone-skip-cat": ("model.backbone_skip_cat", True),
    f"{RESNET} --backbone-skip-shuffle-cat": ("model.backbone_skip_shuffle_cat", True),
    f"{RESNET} --backbone-skip-s2d-cat": ("model.backbone_skip_s2d_cat", True),
    f"{RESNET} --backbone-fpn": ("model.backbone_fpn", True),
    f"{RESNET} --backbone-out-stride 32": ("model.backbone_out_stride", 32),
    # The transformer
    "--arch transformer --num-queries 7": ("model.num_queries", 7),
    "--arch transformer --d-model 32": ("model.d_model", 32),
    "--arch transformer --heads 8": ("model.heads", 8),
    "--arch transformer --layers 1": ("model.layers", 1),
    "--arch transformer --dim-feedforward 4096": ("model.dim_feedforward", 4096),
    "--arch transformer --use-fpn": ("model.use_fpn", True),
    "--arch transformer --dropout .1": ("model.dropout", 0.1),
    # The loss
    "--loss-weight-hm 2": ("loss.loss_weight_hm", 2.0),
    "--loss-weight-off 0": ("loss.loss_weight_off", 0.0),
    "--loss-weight-wh .25": ("loss.loss_weight_wh", 0.25),
    "--arch transformer --loss-weight-l1 1e1": ("loss.loss_weight_l1", 10.0),
    "--arch transformer --loss-weight-iou 3": ("loss.loss_weight_iou", 3.0),
}


@pytest.mark.parametrize("flags", READINGS)
def test_reading(flags, caplog):
    path, expected = READINGS[flags]
    found = value(parse(flags), path)
    assert (found, type(found)) == (expected, type(expected))
    assert caplog.records == []


def test_every_new_flag_is_read_somewhere():
    own = {f.name for config in (CNNConfig, TransformerConfig) for f in dataclasses.fields(config)}
    own -= {f.name for f in dataclasses.fields(MODEL_CONFIGS["ultratinyod"])}
    own |= {f"loss_weight_{name}" for name in NEW_WEIGHTS}
    assert own <= {path.partition(".")[2] for path, _ in READINGS.values()}


def test_lists_may_have_spaces():
    assert parse([*RESNET.split(), "--backbone-channels", " 8, 16,24 ,32 "]).model.stages[0] == (8, 16, 24, 32)


# --- mistakes -----------------------------------------------------------------------------------

FOUR_BY_TWO = "--backbone-channels 8,16 --backbone-blocks 1,1"

MISTAKES = {
    # Contradictions
    "quality without anchors": ("--arch cnn --use-improved-head", "--use-improved-head", "--use-anchor"),
    "quality, no anchors": ("--arch cnn --no-use-anchor --use-improved-head", "--use-improved-head", "--use-anchor"),
    "anchors without their head": ("--arch cnn --anchors .1,.2", "--anchors", "--use-anchor"),
    "channels of the built-in": ("--arch cnn --backbone-channels 8,16,24,32", "--backbone-channels", "--backbone:"),
    "blocks of the built-in": ("--arch cnn --backbone-blocks 1,1,1,1", "--backbone-blocks", "--backbone:"),
    "attention of the built-in": ("--arch cnn --backbone-se se", "--backbone-se", "--backbone:"),
    "skips of the built-in": ("--arch cnn --backbone-skip", "--backbone-skip", "--backbone:"),
    "cat of the built-in": ("--arch cnn --backbone-skip-cat", "--backbone-skip-cat", "--backbone:"),
    "shuffle of the built-in": ("--arch cnn --backbone-skip-shuffle-cat", "--backbone-skip-shuffle-cat", "--backbone:"),
    "s2d of the built-in": ("--arch cnn --backbone-skip-s2d-cat", "--backbone-skip-s2d-cat", "--backbone:"),
    "fpn of the built-in": ("--arch cnn --backbone-fpn", "--backbone-fpn", "--backbone:"),
    "stride of the built-in": ("--arch cnn --backbone-out-stride 8", "--backbone-out-stride", "--backbone:"),
    "fpn of a backbone of none": ("--arch cnn --backbone none --backbone-fpn", "--backbone-fpn", "--backbone:"),
    "skip of another": ("--arch cnn --use-skip --backbone microcspnet", "--use-skip", "--backbone microcspnet"),
    "attention of another": (f"--arch cnn --last-se ese {RESNET}", "--last-se", RESNET),
    "width of another": (f"--arch cnn --last-width-scale 1.25 {RESNET}", "--last-width-scale", RESNET),
    "two strides": (
        *(f"--arch cnn {RESNET} --output-stride 16", "--output-stride 16", RESNET),
        *("stride is 8", "--backbone-out-stride"),
    ),
    "two other strides": (
        *(f"--arch cnn {RESNET} --backbone-out-stride 16 --output-stride 8", "--output-stride 8"),
        "--backbone-out-stride 16",
    ),
    "stride of 4": (f"--arch cnn {RESNET} --output-stride 4", "--output-stride 4", RESNET, "stride is 8"),
    "two ways to join": (
        *(f"--arch cnn {RESNET} --backbone-skip-cat --backbone-skip-s2d-cat", "--backbone-skip-cat"),
        "--backbone-skip-s2d-cat",
    ),
    "two further ways to join": (
        *(f"--arch cnn {RESNET} --backbone-skip-s2d-cat --backbone-skip-shuffle-cat", "--backbone-skip-shuffle-cat"),
        "--backbone-skip-s2d-cat",
    ),
    "cat for another": (
        *("--arch cnn --backbone microcspnet --backbone-skip-cat", "--backbone-skip-cat"),
        *("--backbone microcspnet", "ultratinyresnet"),
    ),
    "shuffle for another": (
        *("--arch cnn --backbone enhanced-shufflenet --backbone-skip-shuffle-cat", "--backbone-skip-shuffle-cat"),
        *("--backbone enhanced-shufflenet", "ultratinyresnet"),
    ),
    "s2d for another": (
        *("--arch cnn --backbone enhanced-shufflenet --backbone-skip-s2d-cat", "--backbone-skip-s2d-cat"),
        *("--backbone enhanced-shufflenet", "ultratinyresnet"),
    ),
    "fpn for another": (
        *("--arch cnn --backbone enhanced-shufflenet --backbone-fpn", "--backbone-fpn"),
        *("--backbone enhanced-shufflenet", "ultratinyresnet"),
    ),
    "channels for another": (
        *("--arch cnn --backbone microcspnet --backbone-channels 8,16,24,32", "--backbone-channels"),
        *("--backbone microcspnet", "ultratinyresnet"),
    ),
    "blocks for another": (
        *("--arch cnn --backbone microcspnet --backbone-blocks 1,1,1,1", "--backbone-blocks"),
        *("--backbone microcspnet", "ultratinyresnet"),
    ),
    "skips for one without": (
        *("--arch cnn --backbone microcspnet --backbone-skip", "--backbone-skip", "--backbone microcspnet"),
    ),
    "channels against blocks": (
        *(f"--arch cnn {RESNET} --backbone-channels 8,16,24,32 --backbone-blocks 1,1,1", "--backbone-channels has 4"),
        "--backbone-blocks 3",
    ),
    "channels against the default": (
        *(f"--arch cnn {RESNET} --backbone-channels 8,16,24", "--backbone-channels has 3", "--backbone-blocks 4"),
    ),
    "blocks against the default": (
        *(f"--arch cnn {RESNET} --backbone-blocks 1,1", "--backbone-channels has 4", "--backbone-blocks 2"),
    ),
    "two stages": (f"--arch cnn {RESNET} {FOUR_BY_TWO}", "--backbone-channels of 2", "4", "--backbone-out-stride"),
    "heads that share unevenly": ("--arch transformer --d-model 64 --heads 3", "--d-model 64", "--heads 3"),
    "heads against the default": ("--arch transformer --heads 5", "--d-model 64", "--heads 5", "multiple"),
    "width against the default": ("--arch transformer --d-model 20 --heads 8", "--d-model 20", "--heads 8"),
    # Values of the CNN
    "unknown attention": ("--arch cnn --last-se eca", "--last-se", "'eca'", "none, se, ese"),
    "no attention": ("--arch cnn --last-se=", "--last-se", "''", "none, se, ese"),
    "last width of 0": ("--arch cnn --last-width-scale 0", "--last-width-scale 0", "> 0"),
    "last width below 0": ("--arch cnn --last-width-scale -1", "--last-width-scale -1", "> 0"),
    "last width nan": ("--arch cnn --last-width-scale nan", "--last-width-scale nan", "> 0"),
    "last width inf": ("--arch cnn --last-width-scale inf", "--last-width-scale inf", "> 0"),
    "last width in words": ("--arch cnn --last-width-scale wide", "--last-width-scale", "'wide'", "a number"),
    "unknown backbone": ("--arch cnn --backbone resnet50", "--backbone", "'resnet50'", "none, microcspnet"),
    "no backbone": ("--arch cnn --backbone=", "--backbone", "''", "none, microcspnet"),
    "attention 2": (f"--arch cnn {RESNET} --backbone-se 2", "--backbone-se", "'2'", "none, se, ese"),
    "channels of 0": (f"--arch cnn {RESNET} --backbone-channels 8,0,8,8", "--backbone-channels", "'8,0,8,8'", "from 1"),
    "channels below 0": (f"--arch cnn {RESNET} --backbone-channels=-8,8,8,8", "--backbone-channels", "'-8,8,8,8'"),
    "channels nan": (f"--arch cnn {RESNET} --backbone-channels nan,8,8,8", "--backbone-channels", "'nan,8,8,8'"),
    "channels in words": (f"--arch cnn {RESNET} --backbone-channels many", "--backbone-channels", "'many'", "1,2,2,1"),
    "channels beyond memory": (
        *(f"--arch cnn {RESNET} --backbone-channels 8,8,8,100000", "--backbone-channels", "1 to 4096"),
    ),
    "channels in halves": (f"--arch cnn {RESNET} --backbone-channels 8,8,8,8.5", "--backbone-channels", "whole"),
    "a channel left out": (f"--arch cnn {RESNET} --backbone-channels 8,,8,8", "--backbone-channels", "'8,,8,8'"),
    "channels in another script": (f"--arch cnn {RESNET} --backbone-channels ²,8,8,8", "--backbone-channels", "'²"),
    "no blocks": (f"--arch cnn {RESNET} --backbone-blocks 1,0,1,1", "--backbone-blocks", "'1,0,1,1'", "from 1"),
    "blocks beyond memory": (f"--arch cnn {RESNET} --backbone-blocks 1,1,1,{10**30}", "--backbone-blocks", "4096"),
    "blocks in words": (f"--arch cnn {RESNET} --backbone-blocks a,b", "--backbone-blocks", "'a,b'"),
    "stride 4 of a backbone": (f"--arch cnn {RESNET} --backbone-out-stride 4", "--backbone-out-stride", "8, 16, 32"),
    "stride in words": (
        f"--arch cnn {RESNET} --backbone-out-stride x",
        "--backbone-out-stride",
        "'x'",
        "a whole number",
    ),
    "stride 32 of the built-in": ("--arch cnn --output-stride 32", "--output-stride", "'32'", "4, 8, 16"),
    # Values of the transformer
    "dropout of all": ("--arch transformer --dropout 1", "--dropout 1", "below 1"),
    "dropout below 0": ("--arch transformer --dropout -0.1", "--dropout -0.1", "at least 0"),
    "dropout nan": ("--arch transformer --dropout nan", "--dropout nan", "at least 0"),
    "dropout in words": ("--arch transformer --dropout some", "--dropout", "'some'", "a number"),
    "width no multiple of 4": ("--arch transformer --d-model 66 --heads 2", "--d-model 66", "multiple of 4"),
    **{
        f"{flag} {text}": (f"--arch transformer --{flag} {text}", f"--{flag} {text}", "1 to 4096")
        for flag in ("num-queries", "d-model", "heads", "layers", "dim-feedforward")
        for text in ("0", "-4", "100000", str(10**30))
    },
    **{
        f"{flag} {text}": (f"--arch transformer --{flag} {text}", f"--{flag}", f"'{text}'", "a whole number")
        for flag in ("num-queries", "d-model", "heads", "layers", "dim-feedforward")
        for text in ("many", "nan", "4.0")
    },
    # Weights of the losses
    **{
        f"weight {name} {text}": (f"--loss-weight-{name} {text}", f"--loss-weight-{name} {text}", ">= 0")
        for name in NEW_WEIGHTS
        for text in ("-1.0", "nan", "inf")
    },
    **{
        f"weight {name} in words": (f"--loss-weight-{name} much", f"--loss-weight-{name}", "'much'", "a number")
        for name in NEW_WEIGHTS
    },
    # Switches
    **{
        f"value of {flag}": (f"{flag}=3", flag, "'3'")
        for flag in ("--use-anchor", "--use-skip", "--use-fpn", "--backbone-skip", "--backbone-fpn")
    },
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake(mistake, refused):
    flags, *mentions = MISTAKES[mistake]
    line = refused(*flags.split(), mentions=mentions)
    assert len(line) < 300


@pytest.mark.parametrize("text", ["1e308", "1e6"])
def test_last_width_beyond_memory_is_a_mistake(text):
    with pytest.raises(ValueError, match="--last-width-scale"):
        parse(f"--arch cnn --last-width-scale {text}")


def test_every_new_flag_has_a_mistake():
    tested = {word.partition("=")[0] for flags, *_ in MISTAKES.values() for word in flags.split()}
    assert {flag_of(path.partition(".")[2]) for flags, (path, _) in READINGS.items() if flags} - tested <= {
        *("--arch", "--head", "--stages", "--num-anchors", "--has-quality"),
    }


# --- flags without effect -----------------------------------------------------------------------

NETWORKS = {
    "center": "--arch cnn",
    "anchor": "--arch cnn --use-anchor --use-improved-head --assigner simota",
    "resnet": f"--arch cnn {RESNET}",
    "transformer": "--arch transformer",
    "ultratinyod": (
        "--arch ultratinyod --use-improved-head --assigner simota --utod-context-rfb --utod-large-obj-branch"
    ),
}
"""One of each kind, with what further flags need to have an effect."""

CNN, GRIDS, ANCHOR_HEADS = "center anchor resnet", "center anchor resnet ultratinyod", "anchor ultratinyod"

USES = {
    "--cnn-width 8": ("center anchor ultratinyod", ""),
    "--output-stride 8": (GRIDS, ""),
    "--num-anchors 1": (ANCHOR_HEADS, ""),
    "--anchors .1,.2": (ANCHOR_HEADS, "center resnet"),
    "--use-improved-head": (ANCHOR_HEADS, "center resnet"),
    "--quality-power 2": (ANCHOR_HEADS, ""),
    "--auto-anchors": (ANCHOR_HEADS, ""),
    "--iou-loss iou": (ANCHOR_HEADS, ""),
    "--anchor-cls-loss vfl": (ANCHOR_HEADS, ""),
    "--anchor-assigner simota": (ANCHOR_HEADS, ""),
    "--simota-topk 5": (ANCHOR_HEADS, ""),
    "--loss-weight-box 2": (ANCHOR_HEADS, ""),
    "--loss-weight-obj 2": (ANCHOR_HEADS, ""),
    "--loss-weight-quality 2": (ANCHOR_HEADS, ""),
    "--loss-weight-cls 2": ("anchor ultratinyod transformer", ""),
    "--nms-iou .4": (ANCHOR_HEADS, ""),
    "--loss-weight-hm 2": ("center resnet", ""),
    "--loss-weight-off 2": ("center resnet", ""),
    "--loss-weight-wh 2": ("center resnet", ""),
    "--loss-weight-l1 2": ("transformer", ""),
    "--loss-weight-iou 3": ("transformer", ""),
    "--use-anchor": (CNN, ""),
    "--use-skip": ("center anchor", "resnet"),
    "--last-se se": ("center anchor", "resnet"),
    "--last-width-scale 2": ("center anchor", "resnet"),
    "--backbone ultratinyresnet": (CNN, ""),
    "--backbone-channels 8,8,8,8": ("resnet", "center anchor"),
    "--backbone-blocks 1,1,1,1": ("resnet", "center anchor"),
    "--backbone-se se": ("resnet", "center anchor"),
    "--backbone-skip": ("resnet", "center anchor"),
    "--backbone-skip-cat": ("resnet", "center anchor"),
    "--backbone-skip-shuffle-cat": ("resnet", "center anchor"),
    "--backbone-skip-s2d-cat": ("resnet", "center anchor"),
    "--backbone-fpn": ("resnet", "center anchor"),
    "--backbone-out-stride 16": ("resnet", "center anchor"),
    "--num-queries 5": ("transformer", ""),
    "--d-model 32": ("transformer", ""),
    "--heads 2": ("transformer", ""),
    "--layers 2": ("transformer", ""),
    "--dim-feedforward 64": ("transformer", ""),
    "--use-fpn": ("transformer", ""),
    "--dropout .1": ("transformer", ""),
    "--utod-residual": ("ultratinyod", ""),
    "--use-iou-aware-head": ("ultratinyod", ""),
    "--utod-head-ese": ("ultratinyod", ""),
    "--utod-context-rfb": ("ultratinyod", ""),
    "--utod-context-dilation 3": ("ultratinyod", ""),
    "--utod-large-obj-branch": ("ultratinyod", ""),
    "--utod-large-obj-depth 2": ("ultratinyod", ""),
    "--utod-large-obj-ch-scale 2": ("ultratinyod", ""),
}
"""Each flag that not all networks have: those that use it, and those that refuse it; the rest warn."""


def flag_in(typed):
    return typed.split()[0]


def said(caplog):
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


OWN_WIDTHS = ("--cnn-width 8", "resnet")
"""A flag of this architecture that one of its backbones leaves without effect, with a warning of its own."""


def test_table_of_uses_is_complete():
    everywhere = {f.name for f in dataclasses.fields(ModelConfig)}
    names = {
        f.name
        for section, f in flag_fields()
        if f.metadata["heads"] or (issubclass(section, ModelConfig) and f.name not in everywhere)
    }
    assert {flag_in(typed) for typed in USES} == set(map(flag_of, names))


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("typed", USES)
def test_flag_has_an_effect_or_a_warning_or_is_refused(typed, network, caplog):
    users, refusers = USES[typed]
    line = f"{NETWORKS[network]} {typed}"
    if network in refusers.split():
        with pytest.raises(ValueError, match=flag_in(typed)):
            parse(line)
        return
    arch = parse(line).model.arch
    if network in users.split():
        assert said(caplog) == []
    elif (typed, network) == OWN_WIDTHS:
        assert said(caplog) == ["--cnn-width has no effect beside --backbone ultratinyresnet"]
    else:
        (warning,) = said(caplog)
        assert warning.startswith(f"{flag_in(typed)}: no effect with --arch {arch}")


@pytest.mark.parametrize("network", NETWORKS)
def test_all_flags_of_others_are_one_warning_and_change_nothing(network, caplog):
    others = [typed for typed, (users, refusers) in USES.items() if network not in f"{users} {refusers}".split()]
    others = [typed for typed in others if (typed, network) != OWN_WIDTHS]
    before = parse(NETWORKS[network])
    cfg = parse(f"{NETWORKS[network]} {' '.join(others)}")
    (warning,) = said(caplog)
    named, text = warning.split(": ")
    assert named == ", ".join(map(flag_in, others))
    assert text.startswith(f"no effect with --arch {before.model.arch}")
    changed = {name for name, item in vars(before.model).items() if vars(cfg.model)[name] != item}
    assert {flag_of(name) for name in changed} <= set(map(flag_in, others))


def test_warning_of_an_alias_names_the_flag_itself(caplog):
    parse("--arch transformer --assigner simota --use-head-ese")
    assert said(caplog) == ["--anchor-assigner, --utod-head-ese: no effect with --arch transformer"]


def test_warning_of_a_missing_anchor_head_says_how_to_get_one(caplog):
    parse("--arch cnn --num-anchors 5")
    assert said(caplog) == ["--num-anchors: no effect with --arch cnn without --use-anchor"]


@pytest.mark.parametrize("line", [f"--arch cnn {RESNET} --cnn-width 64", "--arch transformer --use-batchnorm"])
def test_flag_that_changes_nothing_in_the_network_is_one_warning(line, caplog):
    parse(line)
    (warning,) = said(caplog)
    assert line.split()[-2 if "64" in line else -1] in warning


def test_warning_of_another_architecture_does_not_ask_for_an_anchor_head(caplog):
    parse("--arch cnn --utod-residual --layers 4")
    assert "--use-anchor" not in said(caplog)[0]


SHARED = (
    "--image-dir data --train-split 0.8 --val-split 0.2 --img-size 64x64 --exp-name shared --batch-size 64 "
    "--epochs 500 --resume= --ckpt= --lr 0.001 --weight-decay 0.0001 --grad-clip-norm 10.0 --num-workers 12 "
    "--device cpu --seed 42 --log-interval 10 --eval-interval 1 --conf-thresh 0.3 --topk 50 --use-amp "
    "--aug-config uhd/aug.yaml --use-ema --ema-decay 0.9999 --coco-eval --coco-per-class --classes 0 --activation relu"
)
"""The flags that the original documents list for no architecture in particular."""


@pytest.mark.parametrize("network", NETWORKS)
def test_shared_flags_are_taken_by_all(network, caplog):
    cfg = parse(f"{NETWORKS[network]} {SHARED}")
    assert caplog.records == []
    assert (cfg.optim.epochs, cfg.optim.ema_decay, cfg.model.activation) == (500, 0.9999, "relu")


# --- strides and sizes --------------------------------------------------------------------------

STRIDES = {
    "": 16,
    "--use-anchor": 16,
    "--output-stride 4": 4,
    "--output-stride 8 --use-anchor": 8,
    "--backbone none": 16,
    "--backbone none --output-stride 8": 8,
    "--backbone microcspnet": 8,
    "--backbone ultratinyresnet --use-anchor": 8,
    "--backbone enhanced-shufflenet --output-stride 8": 8,
    "--backbone microcspnet --backbone-out-stride 8": 8,
    "--backbone ultratinyresnet --backbone-out-stride 16": 16,
    "--backbone ultratinyresnet --backbone-out-stride 16 --output-stride 16": 16,
    "--backbone enhanced-shufflenet --backbone-out-stride 32": 32,
    "--arch ultratinyod": 8,
}


@pytest.mark.parametrize("flags", STRIDES)
def test_stride(flags):
    model = parse(flags).model
    assert (model.stride, model.output_stride) == (STRIDES[flags], STRIDES[flags])


@pytest.mark.parametrize(
    ("flags", "stride", "valid"),
    [
        ("--img-size 50x70", 16, "64x80"),
        ("--img-size 64x65 --use-anchor", 16, "64x80"),
        ("--img-size 50x70 --output-stride 4", 4, "52x72"),
        ("--img-size 50x70 --backbone microcspnet", 8, "56x72"),
        ("--img-size 48 --backbone ultratinyresnet --backbone-out-stride 32", 32, "64x64"),
        ("--img-size 1x1", 16, "16x16"),
        ("--img-size 50x70 --arch ultratinyod", 8, "56x72"),
    ],
)
def test_size_off_the_stride_names_the_next_one(flags, stride, valid):
    with pytest.raises(ValueError, match=f"multiple of the output stride {stride}; the next valid size is {valid}"):
        parse(flags)
    assert parse(f"{flags} --img-size {valid}").model.stride == stride


@pytest.mark.parametrize("size", ["50x70", "1x1", "33", "64x64", "4096x1"])
@pytest.mark.parametrize("further", ["", "--use-fpn"])
def test_transformer_takes_any_size(size, further):
    height, _, width = size.partition("x")
    cfg = parse(f"--arch transformer --img-size {size} {further}")
    assert cfg.input.img_size == (int(height), int(width or height))
    assert cfg.model.stride == 1


# --- defaults of the training that an architecture has of its own -------------------------------


@pytest.mark.parametrize("further", ["", "--demo-data"])
def test_transformer_learns_by_its_own_defaults(further):
    for arch, expected in (("cnn", (0.008, 0.5)), ("ultratinyod", (0.008, 0.5)), ("transformer", (0.001, 0.0001))):
        optim = parse(f"--arch {arch} {further}").optim
        assert (optim.lr, optim.weight_decay) == expected
    typed = parse(f"--arch transformer {further} --lr .008 --weight-decay .5").optim
    assert (typed.lr, typed.weight_decay) == (0.008, 0.5)


@pytest.mark.parametrize(
    ("name", "way", "typed", "expected"),
    [
        ("transformer", "--ckpt", "", 0.001),
        ("transformer", "--ckpt", "--lr .5", 0.5),
        ("transformer", "--resume", "", 0.001),
        ("transformer", "--ckpt", "--demo-data", 0.001),
        ("fast transformer", "--resume", "", 0.02),
        ("fast transformer", "--resume", "--lr .5", 0.5),
        ("fast transformer", "--ckpt", "", 0.001),
        ("transformer", "--ckpt-non-strict --ckpt", "--arch cnn --img-size 64", 0.008),
        ("center", "--ckpt-non-strict --ckpt", "--arch transformer", 0.001),
        ("center", "--ckpt", "", 0.008),
    ],
)
def test_learning_rate_beside_a_checkpoint(name, way, typed, expected, saved):
    assert beside(saved[name], way, typed).optim.lr == expected


# --- the demonstration's preset -----------------------------------------------------------------


@pytest.mark.parametrize("arch", ["cnn", "transformer"])
def test_demo_data_leaves_the_network_of_another_architecture_alone(arch, caplog):
    plain, demo = (vars_of(parse(f"--arch {arch} {flags}")) for flags in ("", "--demo-data"))
    changed = {name for name in plain if plain[name] != demo[name]}
    of_networks = {f.name for config in MODEL_CONFIGS.values() for f in dataclasses.fields(config)} - {"use_batchnorm"}
    assert changed <= {*DEMO_PRESET, "demo_data", "run_dir"} - of_networks
    assert {"epochs", "batch_size", "use_ema", "image_dir", "run_dir"} <= changed
    assert {name: demo[name] for name in DEMO_PRESET if name in demo and name not in of_networks} == {
        name: preset for name, preset in DEMO_PRESET.items() if name not in of_networks
    }
    assert caplog.records == []


def test_typed_network_wins_over_the_demo_preset():
    cfg = parse("--demo-data 20 --arch cnn --use-anchor --num-anchors 5 --cnn-width 8 --no-use-batchnorm --epochs 3")
    assert (cfg.model.num_anchors, cfg.model.cnn_width, cfg.model.use_batchnorm) == (5, 8, False)
    assert (cfg.optim.epochs, cfg.optim.use_ema, cfg.data.image_dir) == (3, True, "data/demo")


# --- beside a checkpoint ------------------------------------------------------------------------

SAVED = {
    "center": "--arch cnn --cnn-width 8 --use-skip --last-se se --last-width-scale 1.25 --loss-weight-wh .5",
    "anchor": "--arch cnn --cnn-width 8 --use-anchor --anchors .1,.2;.3,.4 --output-stride 8",
    "resnet": f"--arch cnn {RESNET} --backbone-channels 8,8,8,8 --backbone-out-stride 16",
    "plain resnet": f"--arch cnn {RESNET}",
    "transformer": "--arch transformer --d-model 32 --heads 2 --dropout .1 --img-size 50x70 --loss-weight-l1 3",
    "fast transformer": "--arch transformer --lr .02",
    "ultratinyod": "--arch ultratinyod --anchors .1,.2",
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Checkpoints of these settings, by name; their weights do not matter."""
    folder = tmp_path_factory.mktemp("saved")
    return {name: write_checkpoint(folder / f"{name}.pt".replace(" ", "-"), flags) for name, flags in SAVED.items()}


WAYS = ["--resume", "--ckpt", "--val-only --ckpt"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", SAVED)
def test_network_comes_from_the_checkpoint(name, way, saved, caplog):
    cfg, before = beside(saved[name], way), parse(SAVED[name])
    if way == "--ckpt":  # a new run: what concerns training only is the defaults'
        before = dataclasses.replace(before, loss=parse("").loss)
    assert (cfg.input, cfg.labels, cfg.model, cfg.loss) == (before.input, before.labels, before.model, before.loss)
    assert said(caplog) == []


AGREEING = [
    ("center", "--arch cnn --output-stride 16"),
    ("center", "--no-use-anchor --backbone none"),
    ("center", SAVED["center"]),
    ("anchor", SAVED["anchor"]),
    ("anchor", "--num-anchors 2"),
    ("resnet", "--output-stride 16"),
    ("resnet", SAVED["resnet"]),
    ("plain resnet", "--output-stride 8"),
    ("transformer", SAVED["transformer"]),
    ("transformer", "--layers 3 --num-queries 10 --no-use-fpn"),
    ("plain resnet", "--backbone-out-stride 8"),
    ("plain resnet", "--backbone-channels 16,24,32,48 --backbone-blocks 1,1,2,1"),
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("name", "typed"), AGREEING)
def test_agreeing_flags_change_nothing(name, typed, way, saved):
    assert beside(saved[name], way, typed).model == beside(saved[name], way).model


DISAGREEING = [
    ("center", "--arch transformer", "--arch transformer: .* holds a cnn"),
    ("center", "--arch ultratinyod", "--arch ultratinyod: .* holds a cnn"),
    ("transformer", "--arch cnn", "--arch cnn: .* holds a transformer"),
    ("ultratinyod", "--arch cnn --use-anchor", "--arch cnn: .* holds a ultratinyod"),
    ("center", "--use-anchor", "--use-anchor on: .* was trained with off"),
    ("center", "--no-use-skip", "--use-skip off: .* was trained with on"),
    ("center", "--last-se ese", "--last-se ese: .* was trained with se"),
    ("center", "--last-width-scale 1", "--last-width-scale 1: .* was trained with 1.25"),
    ("center", "--output-stride 8", "--output-stride 8: .* was trained with 16"),
    ("center", "--backbone microcspnet", "--backbone microcspnet: .* was trained with none"),
    ("anchor", "--no-use-anchor", "--use-anchor off: .* was trained with on"),
    ("anchor", "--anchors .1,.2;.3,.5", "--anchors 0.1,0.2 0.3,0.5: .* was trained with 0.1,0.2 0.3,0.4"),
    ("resnet", "--backbone-channels 8,8,8,16", "--backbone-channels 8,8,8,16: .* was trained with 8,8,8,8"),
    ("resnet", "--backbone-out-stride 8", "--backbone-out-stride 8: .* was trained with 16"),
    ("resnet", "--backbone-fpn", "--backbone-fpn on: .* was trained with off"),
    ("transformer", "--d-model 64", "--d-model 64: .* was trained with 32"),
    ("transformer", "--heads 4", "--heads 4: .* was trained with 2"),
    ("transformer", "--layers 4", "--layers 4: .* was trained with 3"),
    ("transformer", "--num-queries 20", "--num-queries 20: .* was trained with 10"),
    ("transformer", "--use-fpn", "--use-fpn on: .* was trained with off"),
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("name", "typed", "message"), DISAGREEING)
def test_disagreeing_flag_is_an_error_that_names_both(name, typed, message, way, saved):
    with pytest.raises(ValueError, match=message) as error:
        beside(saved[name], way, typed)
    assert str(saved[name]) in str(error.value)


@pytest.mark.parametrize("way", WAYS)
def test_flags_of_another_network_are_one_warning(way, saved, caplog):
    beside(saved["transformer"], way, "--cnn-width 8 --use-anchor --loss-weight-hm 2")
    assert said(caplog) == ["--cnn-width, --use-anchor, --loss-weight-hm: no effect with --arch transformer"]


def test_training_values_of_the_new_heads_come_with_a_resumed_run(saved):
    assert beside(saved["center"], "--resume").loss.loss_weight_wh == 0.5
    assert beside(saved["center"], "--ckpt").loss.loss_weight_wh == 0.1
    assert beside(saved["transformer"], "--resume", "--loss-weight-l1 4").loss.loss_weight_l1 == 4


@pytest.mark.parametrize(("name", "size"), [("transformer", "33x47"), ("center", "32x48"), ("resnet", "32x48")])
def test_size_is_free_for_validation_only(name, size, saved):
    assert beside(saved[name], "--val-only --ckpt", f"--img-size {size}").model == beside(saved[name], "--ckpt").model
    with pytest.raises(ValueError, match=f"--img-size {size}: .* was trained with"):
        beside(saved[name], "--resume", f"--img-size {size}")


def test_size_of_a_validation_is_a_multiple_of_the_checkpoints_stride(saved):
    with pytest.raises(ValueError, match="output stride 16; the next valid size is 64x80"):
        beside(saved["center"], "--val-only --ckpt", "--img-size 50x70")


LOOSE = [
    ("transformer", "--layers 4", {"layers": 4, "d_model": 32, "heads": 2}),
    ("transformer", "--use-fpn --num-queries 20", {"use_fpn": True, "num_queries": 20, "d_model": 32}),
    ("transformer", "--arch cnn --cnn-width 8 --img-size 64", {"arch": "cnn", "cnn_width": 8, "output_stride": 16}),
    ("center", "--arch transformer --d-model 16", {"arch": "transformer", "d_model": 16, "layers": 3}),
    ("center", "--use-anchor", {"use_anchor": True, "anchors": None, "use_skip": True, "output_stride": 16}),
    ("center", "--use-anchor --anchors .1,.2", {"anchors": ((0.1, 0.2),), "num_anchors": 1}),
    ("center", "--use-anchor --use-improved-head --num-anchors 5", {"use_improved_head": True, "num_anchors": 5}),
    ("center", "--output-stride 8 --no-use-skip", {"output_stride": 8, "use_skip": False, "last_se": "se"}),
    ("anchor", "--auto-anchors", {"anchors": None, "num_anchors": 2}),
    ("anchor", "--num-anchors 5", {"anchors": None, "num_anchors": 5}),
    ("resnet", "--backbone-fpn", {"backbone_fpn": True, "backbone_channels": (8, 8, 8, 8), "output_stride": 16}),
    ("ultratinyod", "--arch cnn --use-anchor", {"arch": "cnn", "anchors": None, "cnn_width": 32}),
    ("anchor", "--no-use-anchor", {"use_anchor": False, "anchors": None}),
    ("plain resnet", "--backbone-out-stride 16", {"output_stride": 16}),
    pytest.param("resnet", "--backbone microcspnet --backbone-channels=", {"output_stride": 16}),
]


@pytest.mark.parametrize(("name", "typed", "expected"), LOOSE)
def test_typed_network_wins_where_loading_is_loose(name, typed, expected, saved):
    model = beside(saved[name], "--ckpt-non-strict --ckpt", typed).model
    assert {key: getattr(model, key) for key in expected} == expected


def test_another_backbone_wins_where_loading_is_loose(tmp_path):
    path = write_checkpoint(tmp_path / "x.pt", "--arch cnn --cnn-width 8")
    model = beside(path, "--ckpt-non-strict --ckpt", RESNET).model
    assert (model.backbone, model.output_stride) == ("ultratinyresnet", 8)


def test_demo_preset_beside_a_checkpoint_leaves_the_weights(saved, caplog):
    for name in ("center", "transformer"):
        cfg = beside(saved[name], "--ckpt", "--demo-data --epochs 3")
        assert (cfg.input, cfg.model) == (parse(SAVED[name]).input, parse(SAVED[name]).model)
        assert (cfg.optim.epochs, cfg.optim.use_ema, cfg.data.image_dir) == (3, True, "data/demo")
    assert said(caplog) == []


# --- with weights -------------------------------------------------------------------------------

TINY = {
    "cnn": "--arch cnn --use-skip --last-se ese",
    "transformer": "--arch transformer --d-model 8 --heads 2 --layers 1 --dim-feedforward 8 --num-queries 3",
}
IMPLIED = {"transformer": ["warning: --cnn-width: no effect with --arch transformer"]}
"""What the shared flags of these runs warn of."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with pictures in data/, and the run folder of each of TINY, one epoch each."""
    folder = tmp_path_factory.mktemp("runs")
    write_yolo_folder(folder / "data")
    for name, flags in TINY.items():
        where = ("--image-dir", str(folder / "data"), "--ckpt-out", str(folder / name))
        assert train.main([*SMALL_RUN, *flags.split(), *where]) == 0
    return folder


def weights_after(run_dir, epoch):
    (path,) = run_dir.glob(f"last_*_{epoch:04d}_map_*.pt")
    return torch.load(path, weights_only=True)["state"]["model"]


def test_centernet_gets_an_anchor_head(runs, run_train, tmp_path):
    start = ("--ckpt", runs / "cnn" / "best.pt", "--ckpt-non-strict", "--use-anchor", "--num-anchors", "2")
    outcome = run_train(*SMALL_RUN, "--arch", "cnn", "--image-dir", runs / "data", *start, "--ckpt-out", "run")
    assert (outcome.code, outcome.err) == (0, [])
    before, after = weights_after(runs / "cnn", 1), weights_after(tmp_path / "run", 0)
    kept = {name for name in before if name.startswith("backbone.")}
    assert kept
    assert all(torch.equal(before[name], after[name]) for name in kept)
    noted = {line.split(": ")[1] for line in outcome.out if line.startswith("--ckpt-non-strict: ")}
    assert noted == (before.keys() | after.keys()) - kept
    assert weights_after(tmp_path / "run", 1)["anchors"].shape == (2, 2)


def test_run_goes_on_with_the_stride_that_it_found_for_itself(runs, run_train, tmp_path):
    further = ("--output-stride", "16", "--epochs", "2", "--ckpt-out", "run")
    outcome = run_train(*SMALL_RUN, "--arch", "cnn", "--resume", runs / "cnn", *further)
    assert (outcome.code, outcome.err) == (0, [])
    assert [row["epoch"] for row in metric_rows(tmp_path / "run")] == [2]


@pytest.mark.parametrize("way", ["--resume", "--ckpt"])
def test_checkpoint_of_another_architecture_is_refused(way, runs, refused):
    path = runs / "cnn" / "best.pt"
    refused("--arch", "transformer", way, path, mentions=("--arch transformer", str(path), "holds a cnn"))


def test_transformer_validates_at_any_size(runs, run_train, tmp_path):
    start = ("--val-only", "--ckpt", runs / "transformer" / "best.pt", "--img-size", "33x47", "--ckpt-out", "run")
    outcome = run_train("--device", "cpu", "--num-workers", "0", "--cache", "ram", *start)
    assert (outcome.code, outcome.err) == (0, [])
    assert (tmp_path / "run" / "val.json").is_file()


@pytest.mark.parametrize("name", TINY)
def test_run_in_two_parts_is_the_run_in_one_go(name, runs, run_train, tmp_path):
    data = ("--image-dir", runs / "data")
    whole = run_train(*SMALL_RUN, *TINY[name].split(), *data, "--epochs", "2", "--ckpt-out", "whole")
    first = run_train(
        *SMALL_RUN, *TINY[name].split(), *data, "--epochs", "2", "--stop-epoch", "1", "--ckpt-out", "parts"
    )
    second = run_train("--device", "cpu", "--num-workers", "0", "--cache", "ram", "--resume", "parts")
    implied = IMPLIED.get(name, [])
    assert [whole.err, first.err, second.err] == [implied, implied, []]
    before, after = (weights_after(tmp_path / folder, 2) for folder in ("whole", "parts"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
