"""How the command line mixes with the values of the checkpoint that a run starts from."""

import pytest
import torch
from test_cli import parse, value, values, words

from uhd.cli import parse_args
from uhd.models import build_model
from uhd.optim import TrainState
from uhd.task import build_task

SAVED = (
    "--arch ultratinyod --img-size 32x64 --torch_nearest --classes 0,2 --activation relu --use-batchnorm --cnn-width 8 "
    "--anchors .1,.2;.3,.4 --use-improved-head --quality-power 2 --image-dir photos --train-split .6 --val-split .3 "
    "--seed 7 --aug-config mine.yaml --skip-bad-labels --epochs 30 --stop-epoch 3 --patience 9 --batch-size 8 "
    "--lr .01 --use-ema --ema-decay .99 --iou-loss ciou --assigner simota --conf-thresh .15 --topk 9 "
    "--map-conf-thresh .01 --exp-name first --device cpu --eval-interval 4 --log-interval 3 --num-workers 2 "
    "--cache none --cache-dir c --coco-eval --log-dir logs"
)

WEIGHTS = {
    "input.img_size": (32, 64),
    "input.resize_mode": "torch_nearest",
    "labels.classes": (0, 2),
    "labels.class_names": ("class0", "class2"),
    "model.activation": "relu",
    "model.use_batchnorm": True,
    "model.cnn_width": 8,
    "model.num_anchors": 2,
    "model.anchors": ((0.1, 0.2), (0.3, 0.4)),
    "model.use_improved_head": True,
    "model.num_classes": 2,
}
TRAINING = {
    "model.quality_power": 2.0,
    "data.image_dir": "photos",
    "data.train_split": 0.6,
    "data.val_split": 0.3,
    "data.seed": 7,
    "data.aug_config": "mine.yaml",
    "data.skip_bad_labels": True,
    "optim.epochs": 30,
    "optim.patience": 9,
    "optim.batch_size": 8,
    "optim.lr": 0.01,
    "optim.use_ema": True,
    "optim.ema_decay": 0.99,
    "loss.iou_loss": "ciou",
    "assign.anchor_assigner": "simota",
    "decode.conf_thresh": 0.15,
    "decode.topk": 9,
    "eval.map_conf_thresh": 0.01,
}
SESSION = words(
    "optim.stop_epoch run.exp_name run.device run.log_interval run.log_dir eval.eval_interval eval.coco_eval "
    "data.num_workers data.cache data.cache_dir"
)


def write_checkpoint(path, flags):
    cfg = parse(flags)
    state = TrainState(cfg.optim, build_task(cfg, build_model(cfg.model)), torch.device("cpu")).state_dict()
    content = {
        "program": "uhd",
        "format": 1,
        "versions": {},
        "config": cfg.to_dict(),
        "state": {**state, "epoch": 1},
        "metrics": {},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return path


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint whose config has no default in it."""
    return write_checkpoint(tmp_path_factory.mktemp("saved") / "runs" / "first" / "last.pt", SAVED)


def beside(checkpoint, way, typed=""):
    """The config of `--resume`, `--ckpt` or `--val-only --ckpt` with further flags."""
    return parse([*way.split(), str(checkpoint), *typed.split()])


@pytest.mark.parametrize("way", ["--resume", "--ckpt", "--val-only --ckpt", "--val-only --resume"])
def test_what_fixes_the_weights_comes_from_the_checkpoint(way, saved):
    assert values(beside(saved, way), WEIGHTS) == WEIGHTS


@pytest.mark.parametrize("way", ["--resume", "--val-only --ckpt", "--val-only --resume"])
def test_training_values_come_from_the_checkpoint_of_a_run_that_goes_on(way, saved):
    assert values(beside(saved, way), TRAINING) == TRAINING


def test_training_values_of_a_new_run_are_the_defaults(saved):
    assert values(beside(saved, "--ckpt"), TRAINING) == values(parse(""), TRAINING)


@pytest.mark.parametrize("way", ["--resume", "--ckpt", "--val-only --ckpt"])
def test_session_values_never_come_from_the_checkpoint(way, saved):
    assert values(beside(saved, way), SESSION) == values(parse(""), SESSION)


@pytest.mark.parametrize("way", ["--resume", "--ckpt", "--val-only --ckpt"])
@pytest.mark.parametrize(
    ("typed", "path", "expected"),
    [
        ("--lr .5", "optim.lr", 0.5),
        ("--lr .001", "optim.lr", 0.001),
        ("--epochs 40", "optim.epochs", 40),
        ("--no-use-ema", "optim.use_ema", False),
        ("--quality-power 1", "model.quality_power", 1.0),
        ("--conf-thresh .3", "decode.conf_thresh", 0.3),
        ("--seed 42", "data.seed", 42),
        ("--device cpu", "run.device", "cpu"),
        ("--eval-interval 2", "eval.eval_interval", 2),
        ("--image-dir other", "data.image_dir", "other"),
    ],
)
def test_typed_training_and_session_values_win(typed, path, expected, way, saved):
    assert value(beside(saved, way, typed), path) == expected


SAME_AS_SAVED = (
    "--img-size 32x64",
    "--torch_nearest",
    "--resize-mode keras_nearest",
    "--classes 0,2",
    "--activation relu",
    "--use-batchnorm",
    "--cnn-width 8",
    "--num-anchors 2",
    "--anchors .1,.2;.3,.4",
    "--use-improved-head",
    "--output-stride 8",
    "--arch ultratinyod",
)
OTHER_THAN_SAVED = (
    "--resize-mode opencv_inter_area",
    "--activation swish",
    "--no-use-batchnorm",
    "--cnn-width 16",
    "--num-anchors 3",
    "--anchors .1,.2;.3,.5",
    "--no-use-improved-head",
    "--use-iou-aware-head",
    "--utod-residual",
    "--output-stride 16",
    "--classes 0,1",
    "--classes 2,0",
    "--num-classes 3",
)


@pytest.mark.parametrize("way", ["--resume", "--ckpt", "--val-only --ckpt"])
@pytest.mark.parametrize("typed", SAME_AS_SAVED)
def test_agreeing_weights_flag_changes_nothing(typed, way, saved):
    assert beside(saved, way, typed) == beside(saved, way)


@pytest.mark.parametrize("way", ["--resume", "--ckpt", "--val-only --ckpt"])
@pytest.mark.parametrize("typed", OTHER_THAN_SAVED)
def test_disagreeing_weights_flag_is_an_error(typed, way, saved):
    with pytest.raises(ValueError, match=typed.split()[0].replace("--no-", "--")) as error:
        beside(saved, way, typed)
    assert str(saved) in str(error.value)


def test_size_is_free_for_validation_only(saved):
    assert beside(saved, "--val-only --ckpt", "--img-size 64x64").input.img_size == (64, 64)
    for way in ("--resume", "--ckpt"):
        with pytest.raises(ValueError, match=r"--img-size 64x64: .* was trained with 32x64"):
            beside(saved, way, "--img-size 64x64")


@pytest.mark.parametrize(
    ("typed", "path", "expected"),
    [
        ("--cnn-width 16", "model.cnn_width", 16),
        ("--no-use-improved-head", "model.use_improved_head", False),
        ("--img-size 64x64", "input.img_size", (64, 64)),
        ("--opencv_inter_area", "input.resize_mode", "opencv_inter_area"),
        ("--classes 0", "model.num_classes", 1),
        ("--classes 0", "labels.class_names", ("person",)),
        ("--num-anchors 5", "model.anchors", None),
        ("--num-anchors 5", "model.num_anchors", 5),
        ("--num-anchors 2", "model.anchors", ((0.1, 0.2), (0.3, 0.4))),
        ("--auto-anchors", "model.anchors", None),
        ("--anchors .5,.5", "model.num_anchors", 1),
        ("", "model.cnn_width", 8),
    ],
)
def test_typed_weights_flags_win_where_loading_is_loose(typed, path, expected, saved):
    assert value(beside(saved, "--ckpt-non-strict --ckpt", typed), path) == expected


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("--image-dir other", ("other", None, None, None)),
        ("--demo-data 20", ("data/demo", None, None, 20)),
        ("--val-split .1", ("photos", "a", "b", None)),
    ],
)
@pytest.mark.parametrize("way", ["--resume", "--val-only --ckpt"])
def test_typed_source_of_pictures_replaces_the_saved_one_as_a_whole(typed, expected, way, tmp_path):
    path = write_checkpoint(tmp_path / "x.pt", "--image-dir photos --train-list a --val-list b --val-split .1")
    data = beside(path, way, typed).data
    assert (data.image_dir, data.train_list, data.val_list, data.demo_data) == expected


def test_typed_lists_replace_saved_demo_data(tmp_path):
    path = write_checkpoint(tmp_path / "x.pt", "--demo-data 20 --num-anchors 1 --anchors .1,.2")
    data = beside(path, "--resume", "--train-list a --val-list b").data
    assert (data.train_list, data.val_list, data.demo_data) == ("a", "b", None)
    assert beside(path, "--val-only --ckpt", "--val-list b").data.val_list == "b"
    assert beside(path, "--resume").data.demo_data == 20


def test_demo_preset_beside_a_checkpoint_leaves_the_weights(saved):
    cfg = beside(saved, "--ckpt", "--demo-data --epochs 3")
    assert values(cfg, WEIGHTS) == WEIGHTS
    assert (cfg.optim.epochs, cfg.optim.use_ema, cfg.loss.iou_loss) == (3, True, "ciou")
    assert (cfg.data.image_dir, cfg.run.run_dir) == ("data/demo", "runs/demo")


@pytest.mark.parametrize(
    ("way", "typed", "expected"),
    [
        ("--resume", "", "own"),
        ("--val-only --ckpt", "", "own"),
        ("--val-only --resume", "", "own"),
        ("--resume", "--exp-name first", "runs/first"),
        ("--resume", "--exp-name next", "runs/next"),
        ("--resume", "--ckpt-out out", "out"),
        ("--val-only --ckpt", "--ckpt-out out", "out"),
        ("--ckpt", "", "runs/default"),
        ("--ckpt", "--exp-name tuned", "runs/tuned"),
    ],
)
def test_run_folder(way, typed, expected, saved):
    folder = beside(saved, way, typed).run.run_dir
    assert folder == (str(saved.parent.resolve()) if expected == "own" else expected)


def test_training_flags_beside_val_only_are_warned_of(saved, caplog):
    parse_args(["--val-only", "--ckpt", str(saved), "--lr", "0.5", "--epochs", "3", "--batch-size", "8"])
    said = [record.getMessage() for record in caplog.records if "no effect" in record.getMessage()]
    assert said == [f"{flag} has no effect beside --val-only" for flag in ("--epochs", "--lr")]


def test_resume_takes_the_newest_of_a_folder(saved, tmp_path):
    for name in ("last_utod_0002_map_0.10000.pt", "last_utod_0010_map_0.05000.pt", "best_utod_0011_map_0.10000.pt"):
        write_checkpoint(tmp_path / name, "--arch ultratinyod --cnn-width 8 --anchors .1,.2")
    assert parse_args(["--resume", str(tmp_path)])[1].path.name == "last_utod_0010_map_0.05000.pt"
    (tmp_path / "last.pt").symlink_to("last_utod_0002_map_0.10000.pt")
    assert parse_args(["--resume", str(tmp_path)])[1].path.name == "last_utod_0002_map_0.10000.pt"
    assert parse_args(["--resume", str(saved.parent)])[1].path.name == saved.name
