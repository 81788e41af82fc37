"""Flags of one architecture or one head: what they turn into, which mistakes they allow, where they have no effect."""

import dataclasses

import pytest
from test_cli import parse, value, vars_of

from uhd.cli import flag_fields
from uhd.config import (
    DEMO_PRESET,
    MODEL_CONFIGS,
    CNNConfig,
    ModelConfig,
    NanoDetConfig,
    TinySSDConfig,
    TransformerConfig,
    flag_of,
)

RESNET = "--backbone ultratinyresnet"
NEW_WEIGHTS = ("hm", "off", "wh", "l1", "iou", "dfl")


pytestmark = pytest.mark.usefixtures("fast")

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
    # NanoDet
    "--arch nanodet": ("model.head", "gfl"),
    "--arch nanodet --nanodet-size m": ("model.nanodet_size", "m"),
    "--arch nanodet --nanodet-size l": ("model.neck_channels", 160),
    "--arch nanodet --nanodet-size l --nanodet-depth 3": ("model.nanodet_depth", 3),
    "--arch nanodet --nanodet-width .5": ("model.nanodet_width", 0.5),
    "--arch nanodet --nanodet-strides 4,8,16": ("model.stride", 16),
    "--arch nanodet --nanodet-strides 8,16,32,64": ("model.nanodet_strides", (8, 16, 32, 64)),
    "--arch nanodet --nanodet-neck-channels 64": ("model.nanodet_neck_channels", 64),
    "--arch nanodet --nanodet-kernel 3": ("model.nanodet_kernel", 3),
    "--arch nanodet --nanodet-act hardswish": ("model.nanodet_act", "hardswish"),
    "--arch nanodet --ghost-block-type normal": ("model.ghost_block_type", "normal"),
    "--arch nanodet --nanodet-aux-width 192": ("model.nanodet_aux_width", 192),
    "--arch nanodet --nanodet-aux-depth 4": ("model.nanodet_aux_depth", 4),
    # Tiny SSD
    "--arch tinyssd": ("model.head", "ssd"),
    "--arch tinyssd --tinyssd-body conv": ("model.tinyssd_body", "conv"),
    "--arch tinyssd --tinyssd-body fire": ("model.tinyssd_levels", 6),
    "--arch tinyssd --tinyssd-levels 3": ("model.tinyssd_levels", 3),
    "--arch tinyssd --tinyssd-priors published": ("model.tinyssd_priors", "published"),
    "--arch tinyssd --tinyssd-cls-loss mined": ("model.tinyssd_cls_loss", "mined"),
    # The loss
    "--loss-weight-hm 2": ("loss.loss_weight_hm", 2.0),
    "--loss-weight-off 0": ("loss.loss_weight_off", 0.0),
    "--loss-weight-wh .25": ("loss.loss_weight_wh", 0.25),
    "--arch transformer --loss-weight-l1 1e1": ("loss.loss_weight_l1", 10.0),
    "--arch transformer --loss-weight-iou 3": ("loss.loss_weight_iou", 3.0),
    "--arch nanodet --loss-weight-dfl .5": ("loss.loss_weight_dfl", 0.5),
}


@pytest.mark.parametrize("flags", READINGS)
def test_reading(flags, caplog):
    path, expected = READINGS[flags]
    found = value(parse(flags), path)
    assert (found, type(found)) == (expected, type(expected))
    assert caplog.records == []


def test_every_new_flag_is_read_somewhere():
    configs = (CNNConfig, NanoDetConfig, TinySSDConfig, TransformerConfig)
    own = {f.name for config in configs for f in dataclasses.fields(config)}
    own -= {f.name for f in dataclasses.fields(MODEL_CONFIGS["ultratinyod"])}
    own |= {f"loss_weight_{name}" for name in NEW_WEIGHTS}
    assert own <= {path.partition(".")[2] for path, _ in READINGS.values()}


def test_lists_may_have_spaces():
    assert parse([*RESNET.split(), "--backbone-channels", " 8, 16,24 ,32 "]).model.stages[0] == (8, 16, 24, 32)


# --- flags without effect -----------------------------------------------------------------------

NETWORKS = {
    "center": "--arch cnn",
    "anchor": "--arch cnn --use-anchor --use-improved-head --assigner simota",
    "resnet": f"--arch cnn {RESNET}",
    "nanodet": "--arch nanodet --nanodet-size l",
    "transformer": "--arch transformer",
    "ultratinyod": (
        "--arch ultratinyod --use-improved-head --assigner simota --utod-context-rfb --utod-large-obj-branch"
    ),
    "tinyssd": "--arch tinyssd --tinyssd-levels 1",
}
"""One of each kind, with what further flags need to have an effect."""

CNN, GRIDS, ANCHOR_HEADS = "center anchor resnet", "center anchor resnet ultratinyod", "anchor ultratinyod"
PRIORS = f"{ANCHOR_HEADS} tinyssd"

USES = {
    "--cnn-width 8": ("center anchor ultratinyod", ""),
    "--output-stride 8": (GRIDS, ""),
    "--num-anchors 1": (PRIORS, ""),
    "--anchors .1,.2": (PRIORS, "center resnet"),
    "--use-improved-head": (ANCHOR_HEADS, "center resnet"),
    "--quality-power 2": (ANCHOR_HEADS, ""),
    "--auto-anchors": (PRIORS, ""),
    "--iou-loss iou": (ANCHOR_HEADS, ""),
    "--anchor-cls-loss vfl": (ANCHOR_HEADS, ""),
    "--anchor-assigner simota": (ANCHOR_HEADS, ""),
    "--simota-topk 5": (ANCHOR_HEADS, ""),
    "--loss-weight-box 2": (PRIORS, ""),
    "--loss-weight-obj 2": (ANCHOR_HEADS, ""),
    "--loss-weight-quality 2": (ANCHOR_HEADS, ""),
    "--loss-weight-cls 2": ("anchor ultratinyod transformer nanodet tinyssd", ""),
    "--nms soft": (f"{PRIORS} nanodet", ""),
    "--nms-sigma .3 --nms soft": (f"{PRIORS} nanodet", ""),
    "--nms-iou .4": (f"{PRIORS} nanodet", ""),
    "--loss-weight-hm 2": ("center resnet", ""),
    "--loss-weight-off 2": ("center resnet", ""),
    "--loss-weight-wh 2": ("center resnet", ""),
    "--loss-weight-l1 2": ("transformer", ""),
    "--loss-weight-iou 3": ("transformer nanodet", ""),
    "--loss-weight-dfl 3": ("nanodet", ""),
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
    "--nanodet-size l": ("nanodet", ""),
    "--nanodet-depth 3": ("nanodet", ""),
    "--nanodet-width .5": ("nanodet", ""),
    "--nanodet-strides 8,16,32,64": ("nanodet", ""),
    "--nanodet-neck-channels 64": ("nanodet", ""),
    "--nanodet-kernel 3": ("nanodet", ""),
    "--nanodet-act hardswish": ("nanodet", ""),
    "--ghost-block-type normal": ("nanodet", ""),
    "--nanodet-aux-width 192": ("nanodet", ""),
    "--nanodet-aux-depth 4": ("nanodet", ""),
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
    "--tinyssd-body conv": ("tinyssd", ""),
    "--tinyssd-levels 1": ("tinyssd", ""),
    "--tinyssd-priors auto": ("tinyssd", ""),
    "--tinyssd-cls-loss mined": ("tinyssd", ""),
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
        flags = ", ".join(word for word in typed.split() if word.startswith("--"))
        assert warning.startswith(f"{flags}: no effect with --arch {arch}")


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


def test_published_priors_leave_flags_of_computed_ones_without_effect(caplog):
    parse("--arch tinyssd --tinyssd-priors published --num-anchors 2 --auto-anchors")
    assert said(caplog) == [
        f"{flag} has no effect beside --tinyssd-priors published" for flag in ("--num-anchors", "--auto-anchors")
    ]


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
    # nanodet has a choice of its own, --nanodet-act.
    assert said(caplog) == ["--activation has no effect with --arch nanodet"] * (cfg.model.arch == "nanodet")
    assert (cfg.optim.epochs, cfg.optim.ema_decay, cfg.model.activation) == (500, 0.9999, "relu")


# --- the demonstration's preset -----------------------------------------------------------------


@pytest.mark.parametrize("arch", ["cnn", "transformer", "tinyssd"])
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
