"""Flags of one architecture or one head: which mistakes they allow, and sizes off the stride."""

import pytest
from test_arch_flags import READINGS
from test_cli import parse

from uhd.config import flag_of

RESNET = "--backbone ultratinyresnet"
NEW_WEIGHTS = ("hm", "off", "wh", "l1", "iou", "dfl")


pytestmark = pytest.mark.usefixtures("fast")

# --- mistakes -----------------------------------------------------------------------------------

FOUR_BY_TWO = "--backbone-channels 8,16 --backbone-blocks 1,1"

MISTAKES = {
    # Tiny SSD
    "more levels than fire has": ("--arch tinyssd --tinyssd-levels 7", "--tinyssd-levels 7", "1 to 6"),
    "more levels than conv has": (
        "--arch tinyssd --tinyssd-levels 6 --tinyssd-body conv",
        "--tinyssd-levels 6",
        "1 to 5",
    ),
    "no level": ("--arch tinyssd --tinyssd-levels 0", "--tinyssd-levels 0", "1 to 6"),
    "anchors for some levels": ("--arch tinyssd --tinyssd-levels 2 --anchors .1,.2", "--anchors has 1 ", "2 levels"),
    "uneven anchors": ("--arch tinyssd --tinyssd-levels 2 --anchors .1,.2;.2,.3;.3,.4", "--anchors has 3 ", "2 levels"),
    "anchors against their number": (
        *("--arch tinyssd --tinyssd-levels 2 --anchors .1,.2;.2,.3 --num-anchors 2", "--anchors has 2"),
        *("--num-anchors is 2", "2 levels"),
    ),
    "two sources of priors": (
        *("--arch tinyssd --tinyssd-levels 1 --tinyssd-priors published --anchors .1,.2", "--anchors"),
        "--tinyssd-priors published",
    ),
    "unknown body": ("--arch tinyssd --tinyssd-body vgg", "--tinyssd-body", "'vgg'", "fire, conv"),
    "unknown priors": ("--arch tinyssd --tinyssd-priors own", "--tinyssd-priors", "'own'", "auto, published"),
    "unknown class loss": ("--arch tinyssd --tinyssd-cls-loss ce", "--tinyssd-cls-loss", "'ce'", "focal, mined"),
    "levels in words": ("--arch tinyssd --tinyssd-levels all", "--tinyssd-levels", "'all'", "a whole number"),
    "size between cells": ("--arch tinyssd --img-size 60x100", "--img-size 60x100", "64x104"),
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
        *("stride is 16", "--backbone-out-stride"),
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
    # Values of NanoDet
    "nanodet size": ("--arch nanodet --nanodet-size xl", "--nanodet-size", "'xl'", "s, m, l"),
    "nanodet depth": ("--arch nanodet --nanodet-depth 4", "--nanodet-depth", "2, 3"),
    "nanodet kernel": ("--arch nanodet --nanodet-kernel 4", "--nanodet-kernel", "3, 5"),
    "nanodet activation": ("--arch nanodet --nanodet-act relu", "--nanodet-act", "'relu'", "leakyrelu, hardswish"),
    "ghost block": ("--arch nanodet --ghost-block-type both", "--ghost-block-type", "'both'", "plus, normal"),
    **{
        f"nanodet width {text}": (f"--arch nanodet --nanodet-width {text}", f"--nanodet-width {text}", "at most 4")
        for text in ("0", "-1.0", "nan", "inf", "4.5")
    },
    **{
        f"nanodet strides {text}": (
            f"--arch nanodet --nanodet-strides {text}",
            f"--nanodet-strides {text}",
            "neighbours",
        )
        for text in ("8", "8,32", "16,8", "2,4,8", "32,64,128", "8,16,16")
    },
    "no nanodet strides": ("--arch nanodet --nanodet-strides=", "--nanodet-strides ''", "neighbours"),
    "nanodet strides in words": ("--arch nanodet --nanodet-strides a,b", "--nanodet-strides", "'a,b'"),
    **{
        f"nanodet neck {text}": (f"--arch nanodet --nanodet-neck-channels {text}", f"-channels {text}", "even number")
        for text in ("0", "33", "-2", "100000")
    },
    **{
        f"nanodet aux {text}": (f"--arch nanodet --nanodet-aux-width {text}", f"-width {text}", "multiple of 32")
        for text in ("0", "48", "-32", "8192")
    },
    "nanodet aux depth 0": ("--arch nanodet --nanodet-aux-depth 0", "--nanodet-aux-depth 0", "1 to 16"),
    "nanodet aux depth 17": ("--arch nanodet --nanodet-aux-depth 17", "--nanodet-aux-depth 17", "1 to 16"),
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
        *("--arch", "--head", "--stages", "--stride", "--num-anchors", "--has-quality", "--neck-channels"),
    }


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
        ("--img-size 50x70 --arch nanodet", 32, "64x96"),
        ("--img-size 416 --arch nanodet --nanodet-strides 8,16,32,64", 64, "448x448"),
        ("--img-size 72 --arch nanodet --nanodet-strides 4,8,16", 16, "80x80"),
    ],
)
def test_size_off_the_stride_names_the_next_one(flags, stride, valid):
    with pytest.raises(
        ValueError,
        match=f"multiple of the output stride {stride}; the next valid size is {valid}",
    ):
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
    for arch, expected in (
        ("cnn", (0.008, 0.5)),
        ("ultratinyod", (0.008, 0.5)),
        ("transformer", (0.001, 0.0001)),
        ("nanodet", (0.008, 0.5)),
    ):
        optim = parse(f"--arch {arch} {further}").optim
        assert (optim.lr, optim.weight_decay) == expected
    typed = parse(f"--arch transformer {further} --lr .008 --weight-decay .5").optim
    assert (typed.lr, typed.weight_decay) == (0.008, 0.5)
