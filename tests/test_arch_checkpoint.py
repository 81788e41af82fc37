"""Flags of one architecture or head beside a checkpoint: what agrees, what is refused, what wins in loose loading."""

import dataclasses

import pytest
import torch
from conftest import SMALL_RUN, write_yolo_folder
from helpers import metric_rows
from test_arch_flags import said
from test_cli import parse
from test_cli_checkpoint import beside, write_checkpoint

import train

RESNET = "--backbone ultratinyresnet"


pytestmark = pytest.mark.usefixtures("fast")

# --- beside a checkpoint ------------------------------------------------------------------------

SAVED = {
    "center": "--arch cnn --cnn-width 8 --use-skip --last-se se --last-width-scale 1.25 --loss-weight-wh .5",
    "anchor": "--arch cnn --cnn-width 8 --use-anchor --anchors .1,.2;.3,.4 --output-stride 8",
    "resnet": f"--arch cnn {RESNET} --backbone-channels 8,8,8,8 --backbone-out-stride 16",
    "plain resnet": f"--arch cnn {RESNET}",
    "transformer": "--arch transformer --d-model 32 --heads 2 --dropout .1 --img-size 50x70 --loss-weight-l1 3",
    "fast transformer": "--arch transformer --lr .02",
    "nanodet": "--arch nanodet --nanodet-width .25 --loss-weight-dfl 1 --img-size 64x96",
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


@pytest.mark.parametrize(("flag", "value"), [("--nanodet-aux-width", 64), ("--nanodet-aux-depth", 3)])
def test_what_only_training_has_weights_for_is_fixed_while_a_run_goes_on(flag, value, saved):
    field = flag[2:].replace("-", "_")
    own = getattr(parse(SAVED["nanodet"]).model, field)
    with pytest.raises(ValueError, match=f"{flag} {value}: .*nanodet.pt was trained with {own}"):
        beside(saved["nanodet"], "--resume", f"{flag} {value}")
    assert beside(saved["nanodet"], "--resume", f"{flag} {own}") == beside(saved["nanodet"], "--resume")
    for way in ("--ckpt", "--val-only --ckpt"):
        assert getattr(beside(saved["nanodet"], way, f"{flag} {value}").model, field) == value


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
