"""The command line: which flags there are and what they turn into."""

import argparse
import dataclasses
import json

import pytest
import yaml

from uhd.cli import build_parser, flag_fields, parse_args
from uhd.config import DEMO_PRESET, MODEL_CONFIGS, SECTIONS, Config, flag_of, section_from_dict


def words(text):
    """The words of a text."""
    return text.split()


FLAGS = words("""
--img-size --resize-mode
--classes --names --num-classes
--arch --activation --use-batchnorm
--cnn-width --output-stride --num-anchors --anchors --use-improved-head --quality-power
--utod-residual --use-iou-aware-head --utod-head-ese --use-head-ese --utod-context-rfb --utod-context-dilation
--utod-large-obj-branch --utod-large-obj-depth --utod-large-obj-ch-scale
--use-anchor --use-skip --last-se --last-width-scale
--backbone --backbone-channels --backbone-blocks --backbone-se --backbone-skip --backbone-skip-cat
--backbone-skip-shuffle-cat --backbone-skip-s2d-cat --backbone-fpn --backbone-out-stride
--nanodet-size --nanodet-depth --nanodet-width --nanodet-strides --nanodet-neck-channels --nanodet-kernel --nanodet-act
--ghost-block-type --nanodet-aux-width --nanodet-aux-depth
--num-queries --d-model --heads --layers --dim-feedforward --use-fpn --dropout
--tinyssd-body --tinyssd-levels --tinyssd-priors --tinyssd-cls-loss
--auto-anchors
--image-dir --train-list --val-list --annotations --train-split --val-split --val-count --seed
--skip-bad-labels --demo-data
--aug-config --aug --cache-px --close-mosaic --background-share
--num-workers --cache --cache-dir --max-pixels --max-boxes
--iou-loss --anchor-cls-loss --cls-loss-type
--loss-weight-box --loss-weight-obj --loss-weight-cls --loss-weight-quality
--loss-weight-hm --loss-weight-off --loss-weight-wh --loss-weight-l1 --loss-weight-iou --loss-weight-dfl
--anchor-assigner --assigner --simota-topk
--teacher-ckpt --teacher-arch --teacher-num-queries --teacher-d-model --teacher-heads --teacher-layers
--teacher-dim-feedforward --teacher-use-skip --teacher-activation --teacher-use-fpn --teacher-img-size
--teacher-backbone --teacher-backbone-arch --teacher-backbone-norm --teacher-cache
--distill-kl --distill-box-l1 --distill-obj --distill-quality --distill-feat --distill-weight --feature-distill-weight
--distill-temperature --distill-cosine
--epochs --stop-epoch --patience --batch-size --grad-accum --sync-bn --optimizer --lr --lr-schedule
--warmup-epochs --weight-decay
--grad-clip-norm --use-amp --use-ema --ema-decay
--conf-thresh --topk --nms-iou --nms --nms-sigma --pre-nms-topk
--eval-interval --map-conf-thresh --coco-eval --coco-per-class
--exp-name --ckpt-out --log-dir --device --resume --ckpt --ckpt-non-strict --val-only --inspect --preview-aug --gradcam
--log-interval
""")

SWITCHES = words("""
--use-batchnorm --use-improved-head --utod-residual --use-iou-aware-head --utod-head-ese --use-head-ese
--utod-context-rfb --utod-large-obj-branch
--use-anchor --use-skip --backbone-skip --backbone-skip-cat --backbone-skip-shuffle-cat --backbone-skip-s2d-cat
--backbone-fpn --use-fpn --auto-anchors --skip-bad-labels --aug --use-amp --use-ema --sync-bn
--coco-eval --coco-per-class --ckpt-non-strict --val-only --inspect
--teacher-use-skip --teacher-use-fpn --distill-cosine
""")

SHORTCUTS = {
    "--opencv_inter_area": "opencv_inter_area",
    "--opencv_inter_linear": "opencv_inter_linear",
    "--opencv_inter_nearest": "opencv_inter_nearest",
    "--torch_bilinear": "torch_bilinear",
    "--torch_nearest": "torch_nearest",
    "--keras_bilinear": "torch_bilinear",
    "--keras_nearest": "torch_nearest",
}

PUBLISHED_DEFAULTS = {
    "input.img_size": (64, 64),
    "labels.classes": (0,),
    "model.arch": "cnn",
    "model.activation": "swish",
    "model.use_batchnorm": False,
    "model.cnn_width": 32,
    "model.output_stride": 16,
    "model.use_anchor": False,
    "model.use_skip": False,
    "model.last_se": "none",
    "model.last_width_scale": 1.0,
    "model.backbone": "none",
    "model.backbone_channels": None,
    "model.backbone_blocks": None,
    "model.backbone_se": "none",
    "model.backbone_skip": False,
    "model.backbone_skip_cat": False,
    "model.backbone_skip_shuffle_cat": False,
    "model.backbone_skip_s2d_cat": False,
    "model.backbone_fpn": False,
    "model.backbone_out_stride": None,
    "model.num_anchors": 3,
    "model.anchors": None,
    "model.use_improved_head": False,
    "auto_anchors.auto_anchors": False,
    "data.image_dir": "data/wholebody34/obj_train_data",
    "data.train_split": 0.8,
    "data.val_split": 0.2,
    "data.seed": 42,
    "data.aug_config": "uhd/aug.yaml",
    "loss.iou_loss": "giou",
    "loss.anchor_cls_loss": "bce",
    "assign.simota_topk": 10,
    "optim.epochs": 100,
    "optim.batch_size": 64,
    "optim.lr": 0.008,
    "optim.weight_decay": 0.5,
    "optim.grad_clip_norm": 5.0,
    "optim.use_amp": False,
    "optim.use_ema": False,
    "optim.ema_decay": 0.9998,
    "decode.conf_thresh": 0.3,
    "decode.topk": 50,
    "eval.eval_interval": 1,
    "eval.coco_eval": False,
    "eval.coco_per_class": False,
    **dict.fromkeys((f"distill.teacher_{name}" for name in ("ckpt", "arch", "activation", "backbone")), None),
    **dict.fromkeys((f"distill.teacher_{name}" for name in ("num_queries", "d_model", "heads", "layers")), None),
    "distill.teacher_dim_feedforward": None,
    "distill.teacher_backbone_norm": "imagenet",
    **dict.fromkeys(("distill.teacher_use_skip", "distill.teacher_use_fpn", "distill.distill_cosine"), False),
    **dict.fromkeys(("distill.distill_kl", "distill.distill_box_l1", "distill.distill_feat"), 0.0),
    "distill.distill_temperature": 1.0,
    "run.exp_name": "default",
    "run.resume": None,
    "run.ckpt": None,
    "run.ckpt_non_strict": False,
    "run.val_only": False,
    "run.log_interval": 10,
}
"""What the tables of the original documents promise."""

PUBLISHED_DEFAULTS_OF_THE_TRANSFORMER = {
    "model.num_queries": 10,
    "model.d_model": 64,
    "model.heads": 4,
    "model.layers": 3,
    "model.dim_feedforward": 128,
    "model.use_fpn": False,
    "optim.lr": 0.001,
    "optim.weight_decay": 0.0001,
}


def options(*, hidden):
    actions = [action for action in build_parser()._actions if (action.help == argparse.SUPPRESS) is hidden]
    return [option for action in actions for option in action.option_strings]


def parse(flags):
    return parse_args(flags.split() if isinstance(flags, str) else flags)[0]


def value(cfg, path):
    section, name = path.split(".")
    return getattr(getattr(cfg, section), name)


def values(cfg, paths):
    return {path: value(cfg, path) for path in paths}


# --- which flags there are ----------------------------------------------------------------------


def test_flag_list_is_frozen():
    negations = [f"--no-{flag.removeprefix('--')}" for flag in SWITCHES]
    assert sorted(options(hidden=False)) == sorted(["-h", "--help", *FLAGS, *negations])


def test_hidden_flags_are_shortcuts():
    assert sorted(options(hidden=True)) == sorted(SHORTCUTS)


def test_flags_are_named_after_their_fields():
    assert {flag_of(f.name) for _, f in flag_fields()} <= {*FLAGS}


def test_every_flag_says_what_it_does():
    for action in build_parser()._actions:
        if action.help != argparse.SUPPRESS:
            assert action.help, action.option_strings
            assert action.help.rstrip()[-1] in ".)" or action.dest == "help", action.option_strings


def test_help_shows_every_flag(capsys):
    with pytest.raises(SystemExit) as leaving:
        parse_args(["--help"])
    assert leaving.value.code == 0
    text = capsys.readouterr().out
    for flag in FLAGS:
        assert flag in text
    assert "%%" not in text


@pytest.mark.parametrize("arch", MODEL_CONFIGS)
def test_defaults_are_the_fields(arch):
    cfg = parse(f"--arch {arch}")
    filled = {"arch": arch, "classes": (0,), "output_stride": 8 if arch == "ultratinyod" else 16}
    if arch == "nanodet":
        filled |= {"nanodet_neck_channels": 96, "nanodet_act": "leakyrelu"}
    filled |= {"tinyssd_levels": 6}
    filled |= MODEL_CONFIGS[arch].training_defaults
    seen = set()
    for section, f in flag_fields():
        for name in SECTIONS:
            if isinstance(getattr(cfg, name), section):
                seen.add(f.name)
                assert value(cfg, f"{name}.{f.name}") == filled.get(f.name, f.default), f.name
    assert {f.name for f in dataclasses.fields(MODEL_CONFIGS[arch])} - {"num_classes"} <= seen


def test_defaults_are_the_published_ones():
    assert values(parse(""), PUBLISHED_DEFAULTS) == PUBLISHED_DEFAULTS
    tokens = PUBLISHED_DEFAULTS_OF_THE_TRANSFORMER
    assert values(parse("--arch transformer"), tokens) == tokens


@pytest.mark.parametrize("flag", SWITCHES)
def test_switches_turn_on_and_off_and_the_last_one_counts(flag):
    parser, off = build_parser(), flag.replace("--", "--no-", 1)
    for typed, expected in (([flag], True), ([off], False), ([flag, off], False), ([off, flag], True)):
        assert set(vars(parser.parse_args(typed)).values()) == {expected}


def test_no_abbreviations():
    parser = build_parser()
    for flag in FLAGS:
        for short in {flag[:cut] for cut in range(4, len(flag))} - {*FLAGS}:
            with pytest.raises(ValueError, match=f"unrecognized arguments: {short}"):
                parser.parse_args([short])


# --- what they turn into ------------------------------------------------------------------------

READINGS = {
    "--img-size 64x32": ("input.img_size", (64, 32)),
    "--img-size 96": ("input.img_size", (96, 96)),
    "--img-size 64X64": ("input.img_size", (64, 64)),
    "--resize-mode keras_nearest": ("input.resize_mode", "torch_nearest"),
    "--resize-mode torch_bilinear --keras_bilinear": ("input.resize_mode", "torch_bilinear"),
    "--activation silu": ("model.activation", "swish"),
    "--activation swish": ("model.activation", "swish"),
    "--activation relu": ("model.activation", "relu"),
    "--assigner simota": ("assign.anchor_assigner", "simota"),
    "--anchor-assigner legacy": ("assign.anchor_assigner", "legacy"),
    "--cls-loss-type vfl": ("loss.anchor_cls_loss", "vfl"),
    "--anchor-cls-loss vfl": ("loss.anchor_cls_loss", "vfl"),
    "--arch ultratinyod --use-head-ese": ("model.utod_head_ese", True),
    "--arch ultratinyod --no-use-head-ese": ("model.utod_head_ese", False),
    "--arch ultratinyod --anchors 0.1,0.2;0.2,0.3;0.3,0.4": ("model.anchors", ((0.1, 0.2), (0.2, 0.3), (0.3, 0.4))),
    "--arch ultratinyod --anchors 1e-2,.5": ("model.anchors", ((0.01, 0.5),)),
    "--classes 0,2,5": ("labels.classes", (0, 2, 5)),
    "--classes 5,0": ("labels.classes", (5, 0)),
    "--num-classes 3": ("labels.classes", (0, 1, 2)),
    "--classes 5,2": ("labels.class_names", ("class5", "class2")),
    "--classes 0": ("labels.class_names", ("person",)),
    "--output-stride 16": ("model.output_stride", 16),
    "--no-aug": ("data.aug", False),
    "--demo-data": ("data.demo_data", 6000),
    "--demo-data 20": ("data.demo_data", 20),
    "--demo-data=20": ("data.demo_data", 20),
    "--coco-per-class": ("eval.coco_eval", True),
    "--lr 5e-3": ("optim.lr", 0.005),
    "--weight-decay -0": ("optim.weight_decay", 0.0),
    "--exp-name a_b-1.2": ("run.run_dir", "runs/a_b-1.2"),
    "--exp-name a --ckpt-out elsewhere/b": ("run.run_dir", "elsewhere/b"),
    "--epochs 3 --epochs 5": ("optim.epochs", 5),
}


@pytest.mark.parametrize("flags", READINGS)
def test_reading(flags):
    path, expected = READINGS[flags]
    assert value(parse(flags), path) == expected


@pytest.mark.parametrize("flag", SHORTCUTS)
def test_resize_shortcut_sets_the_mode(flag):
    assert parse(flag).input.resize_mode == SHORTCUTS[flag]
    assert parse(["--resize-mode", flag.removeprefix("--")]).input.resize_mode == SHORTCUTS[flag]


@pytest.mark.parametrize("text", ["0.1,0.2 0.3,0.4", "0.1,0.2;0.3,0.4", " 0.1,0.2 ; 0.3,0.4; "])
def test_anchors_may_be_parted_by_spaces_and_semicolons_and_count_themselves(text):
    model = parse(["--arch", "ultratinyod", "--anchors", text]).model
    assert model.anchors == ((0.1, 0.2), (0.3, 0.4))
    assert model.num_anchors == 2


@pytest.mark.parametrize("flag", ["--resume", "--ckpt", "--names", "--train-list", "--anchors"])
def test_empty_text_is_none(flag):
    cfg, checkpoint = parse_args([flag, ""])
    assert checkpoint is None
    assert cfg == parse("")


@pytest.mark.parametrize(
    ("flags", "classes", "names"),
    [
        ("--names N", (0, 1, 2), ("person", "head", "hand")),
        ("--names N --classes 2,0", (2, 0), ("hand", "person")),
        ("--names N --num-classes 3", (0, 1, 2), ("person", "head", "hand")),
    ],
)
def test_names_file(flags, classes, names, tmp_path):
    (tmp_path / "names").write_text("person\n  head \nhand\n\n")
    labels = parse(flags.replace("N", str(tmp_path / "names"))).labels
    assert (labels.classes, labels.class_names) == (classes, names)


def test_lists_leave_the_other_sources_without_effect(caplog):
    parse("--train-list a.txt --val-list b.txt --image-dir data --val-split 0.1")
    said = [record.getMessage() for record in caplog.records]
    assert said == [f"{flag} has no effect beside --train-list" for flag in ("--image-dir", "--val-split")]


def test_model_knows_the_number_of_classes():
    assert parse("--classes 0,3,7").model.num_classes == 3


def vars_of(cfg):
    """All fields of all sections."""
    return {key: item for section in SECTIONS for key, item in vars(getattr(cfg, section)).items()}


# --- the demonstration's preset -----------------------------------------------------------------


def test_demo_data_sets_what_is_not_typed():
    plain, demo = (vars_of(parse(flags)) for flags in ("--arch ultratinyod", "--demo-data"))
    changed = {name for name in plain if plain[name] != demo[name]}
    assert {name: demo[name] for name in DEMO_PRESET} == DEMO_PRESET
    assert changed <= {*DEMO_PRESET, "demo_data", "run_dir"}


@pytest.mark.parametrize(
    ("typed", "path", "expected"),
    [
        ("--epochs 3", "optim.epochs", 3),
        ("--no-use-ema", "optim.use_ema", False),
        ("--cnn-width 32", "model.cnn_width", 32),
        ("--exp-name mine", "run.run_dir", "runs/mine"),
        ("--no-use-batchnorm", "model.use_batchnorm", False),
        ("--anchors .1,.2", "model.num_anchors", 1),
    ],
)
def test_typed_flags_win_over_the_demo_preset(typed, path, expected):
    for flags in (f"--demo-data {typed}", f"{typed} --demo-data"):
        assert value(parse(flags), path) == expected


# --- Config to plain values and back ------------------------------------------------------------

EVERYTHING = words(
    "--arch ultratinyod --img-size 64x32 --torch_nearest --classes 4,2 --activation relu --use-batchnorm --cnn-width 8 "
    "--output-stride 4 --anchors .1,.2;.3,.4 --use-improved-head --use-iou-aware-head --quality-power 2 "
    "--utod-residual --utod-head-ese --utod-context-rfb --utod-large-obj-branch --auto-anchors "
    "--train-list a --val-list b --demo-data 30 --no-aug --iou-loss ciou --assigner simota "
    "--optimizer sgd --lr 1e-3 --use-ema --topk 7 --coco-per-class --device cpu"
)


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--demo-data"],
        [flag for flag in EVERYTHING if flag not in {"--demo-data", "30"}],
        words("--arch cnn --use-anchor --anchors .1,.2;.3,.4 --use-skip --last-se ese --last-width-scale 1.25"),
        words("--backbone ultratinyresnet --backbone-channels 8,8,16,16 --backbone-blocks 2,1,1,1 --backbone-fpn"),
        words("--arch nanodet --nanodet-size l --nanodet-strides 8,16 --nanodet-kernel 3 --loss-weight-dfl 2"),
        words("--arch transformer --img-size 50x70 --d-model 32 --use-fpn --dropout .1 --loss-weight-l1 2"),
    ],
    ids=["none", "demo", "ultratinyod", "cnn", "backbone", "nanodet", "transformer"],
)
@pytest.mark.parametrize(
    "through",
    [
        lambda values: values,
        lambda values: json.loads(json.dumps(values)),
        lambda values: yaml.safe_load(yaml.safe_dump(values, sort_keys=False)),
    ],
    ids=["dict", "json", "yaml"],
)
def test_config_survives_plain_values(flags, through):
    cfg = parse(flags)
    again = Config.from_dict(through(cfg.to_dict()))
    assert again == cfg
    assert hash(again) == hash(cfg)


def test_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        parse("").optim.lr = 1.0


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"wings": {}}, "wings"),
        ({"optim": {"speed": 3}}, "speed"),
        ({"model": {"arch": "ultratinyod", "wings": 2}}, "wings"),
        ({"model": {"arch": "hexformer"}}, "hexformer"),
        ({"model": {}}, "architecture"),
    ],
)
def test_unknown_settings_are_named(change, named):
    with pytest.raises(ValueError, match=named):
        Config.from_dict({**Config().to_dict(), **change})


def test_checks_hold_for_values_from_files():
    with pytest.raises(ValueError, match="--lr"):
        section_from_dict(SECTIONS["optim"], {"lr": -1.0})
