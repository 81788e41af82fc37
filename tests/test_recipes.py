"""The published command lines of UltraTinyOD, as their readers type them."""

import json

import pytest
import torch
from conftest import ROOT

from uhd.cli import parse_args

LR_OF_WIDTH = {64: "0.005", 96: "0.004", 128: "0.003", 160: "0.001", 192: "0.001", 256: "0.001"}

START = "--arch ultratinyod --image-dir data/wholebody34/obj_train_data --img-size 64x64 --exp-name {name}"
SCHEDULE = "--batch-size 64 --epochs 300 --lr {lr} --weight-decay 0.0001 --num-workers 12 --device cuda --use-amp"
DETECTOR = "--classes 0 --cnn-width {width} --auto-anchors --num-anchors 8 --iou-loss ciou --conf-thresh 0.15"
AVERAGE = "--use-ema --ema-decay 0.9999 --grad-clip-norm 10.0 --use-batchnorm"

FAMILIES = {
    "quality": (
        "ultratinyod_res_anc8_w{width}_64x64_quality_lr{lr}",
        f"{START} {SCHEDULE} {DETECTOR} --utod-residual {AVERAGE} --use-improved-head",
    ),
    "ese": (
        "ultratinyod_res_anc8_w{width}_se_64x64_quality_lr{lr}",
        f"{START} {SCHEDULE} {DETECTOR} --utod-residual {AVERAGE} --use-improved-head --utod-head-ese",
    ),
    "ese and iou-aware": (
        "ultratinyod_res_anc8_w{width}_se_iou_64x64_quality_lr{lr}",
        f"{START} {SCHEDULE} {DETECTOR} {AVERAGE} "
        "--utod-residual --use-improved-head --use-iou-aware-head --utod-head-ese",
    ),
}

VALIDATION = (
    "--arch ultratinyod --img-size 64x64 --cnn-width {width} --classes 0 --conf-thresh 0.15 --ckpt {ckpt} "
    "--val-only --use-ema"
)

KERAS_NAME = "ultratinyod_res_anc8_w64_loese_64x64_lr0.0003_opencv_inter_nearest"
KERAS = (
    f"--image-dir data/wholebody34/obj_train_data --img-size 64x64 --exp-name {KERAS_NAME} "
    "--batch-size 64 --epochs 300 --lr 0.0003 --weight-decay 0.0001 --classes 0 --cnn-width 64 --auto-anchors "
    "--num-anchors 8 --iou-loss ciou --conf-thresh 0.15 --use-ema --ema-decay 0.9999 --grad-clip-norm 10.0 "
    "--use-batchnorm --utod-residual --use-improved-head --use-iou-aware-head --utod-head-ese --activation relu "
    "--utod-large-obj-branch --utod-large-obj-depth 2 --utod-large-obj-ch-scale 1.25 --opencv_inter_nearest"
)

KERAS_DISTILLATION = (
    "--image-dir data/wholebody34/obj_train_data --names data/wholebody34/obj.names "
    "--teacher-ckpt path/to/teacher_weights --distill-weight 1.0 --feature-distill-weight 0.5 "
    "--ckpt-out runs/ultratinyod_student_distill"
)

KERAS_KNOBS = [
    "--auto-anchors --num-anchors 5",
    "--utod-residual --activation relu",
    "--activation silu",
    "--activation swish",
    "--use-improved-head --use-head-ese --use-iou-aware-head --quality-power 1.0",
    "--assigner legacy --iou-loss iou --cls-loss-type bce",
    "--assigner simota --iou-loss giou --cls-loss-type vfl",
    "--anchors 0.1,0.2;0.2,0.3;0.3,0.4",
    "--resize-mode opencv_inter_nearest",
    "--resize-mode keras_bilinear",
    "--resize-mode keras_nearest",
    "--grad-clip-norm 10",
    "--train-split 0.8 --val-split 0.2 --seed 42 --eval-interval 1 --log-interval 10",
    "--aug-config path/to/aug.yaml",
    "--no-aug --log-dir runs/tensorboard",
    "--num-classes 3",
]


def recipe(family, width):
    """The flags of a family's recipe and the name of its run."""
    name, text = FAMILIES[family]
    name = name.format(width=width, lr=LR_OF_WIDTH[width])
    return text.format(name=name, width=width, lr=LR_OF_WIDTH[width]).split(), name


@pytest.mark.parametrize("width", LR_OF_WIDTH)
@pytest.mark.parametrize("family", FAMILIES)
def test_recipe_is_read_as_it_is_meant(family, width, caplog):
    flags, name = recipe(family, width)
    cfg, checkpoint = parse_args(flags)
    assert checkpoint is None
    model = cfg.model
    assert (model.arch, model.cnn_width, model.num_anchors, model.stride) == ("ultratinyod", width, 8, 8)
    assert (model.utod_residual, model.use_batchnorm, model.use_improved_head) == (True, True, True)
    assert (model.utod_head_ese, model.use_iou_aware_head) == (family != "quality", family == "ese and iou-aware")
    assert (model.activation, model.num_classes, model.anchors) == ("swish", 1, None)
    assert (cfg.input.img_size, cfg.labels.class_names) == ((64, 64), ("person",))
    assert (cfg.optim.epochs, cfg.optim.batch_size, cfg.optim.lr) == (300, 64, float(LR_OF_WIDTH[width]))
    assert (cfg.optim.weight_decay, cfg.optim.grad_clip_norm, cfg.optim.use_amp) == (0.0001, 10.0, True)
    assert (cfg.optim.use_ema, cfg.optim.ema_decay) == (True, 0.9999)
    assert (cfg.loss.iou_loss, cfg.decode.conf_thresh, cfg.auto_anchors.auto_anchors) == ("ciou", 0.15, True)
    assert (cfg.run.run_dir, cfg.run.device, cfg.data.num_workers) == (f"runs/{name}", "cuda", 12)
    assert caplog.records == []


def test_keras_recipe_is_read_as_it_is_meant(caplog):
    cfg, _ = parse_args(KERAS.split())
    model = cfg.model
    assert (model.arch, model.activation, model.cnn_width) == ("ultratinyod", "relu", 64)
    assert (model.utod_large_obj_branch, model.utod_large_obj_depth, model.utod_large_obj_ch_scale) == (True, 2, 1.25)
    assert (model.use_improved_head, model.use_iou_aware_head, model.utod_head_ese) == (True, True, True)
    assert cfg.input.resize_mode == "opencv_inter_nearest"
    assert (cfg.optim.lr, cfg.run.run_dir) == (0.0003, f"runs/{KERAS_NAME}")
    assert caplog.records == []


@pytest.mark.parametrize("knobs", KERAS_KNOBS)
def test_keras_knobs_are_known(knobs, caplog):
    parse_args(knobs.split())
    assert caplog.records == []


def test_keras_distillation_says_that_it_is_not_built():
    with pytest.raises(ValueError, match="--teacher-ckpt belongs to distillation, which is not built yet"):
        parse_args(KERAS_DISTILLATION.split())


def without_device(flags):
    place = flags.index("--device")
    return flags[:place] + flags[place + 2 :]


@pytest.fixture
def cut(yolo_folder, tmp_path):
    """Flags that make a recipe small, typed after its own; the default augmentation file is where it expects it."""
    yolo_folder()
    (tmp_path / "uhd").symlink_to(ROOT / "uhd")
    return "--image-dir data --cnn-width 4 --epochs 1 --batch-size 4 --num-workers 0".split()  # noqa: SIM905


def test_recipe_without_cuda_asks_for_the_cpu(run_train, cut, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    outcome = run_train(*recipe("ese and iou-aware", 256)[0], *cut)
    assert outcome.code == 2
    assert outcome.err == ["train.py: error: --device cuda: no CUDA device is available here; use --device cpu"]
    assert not (tmp_path / "runs").exists()


def test_recipe_trains_and_its_checkpoint_validates(run_train, cut, tmp_path):
    flags, name = recipe("ese and iou-aware", 256)
    outcome = run_train(*without_device(flags), *cut)
    assert outcome.code == 0, outcome.err
    assert outcome.errors == []
    run_dir = tmp_path / "runs" / name
    (trained,) = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    (best,) = run_dir.glob("best_utod_0001_map_*.pt")
    assert best.name == f"best_utod_0001_map_{trained['val/mAP@0.5']:.5f}.pt"
    assert (run_dir / "best.pt").resolve() == best.resolve()

    validation = VALIDATION.format(width=4, ckpt=best.relative_to(tmp_path)).split()
    outcome = run_train(*validation, "--num-workers", "0")
    assert outcome.code == 0, outcome.err
    assert outcome.errors == []
    found = json.loads((run_dir / "val.json").read_text())
    assert found.keys() == {key for key in trained if key.startswith("val/")}
    assert found == pytest.approx({key: trained[key] for key in found}, abs=1e-6, nan_ok=True)


def test_keras_recipe_trains(run_train, cut, tmp_path):
    outcome = run_train(*KERAS.split(), *cut)
    assert outcome.code == 0, outcome.err
    assert outcome.errors == []
    run_dir = tmp_path / "runs" / KERAS_NAME
    assert {"last.pt", "best.pt", "metrics.jsonl", "config.yaml", "train.log"} <= {
        path.name for path in run_dir.iterdir()
    }
    saved = torch.load(run_dir / "best.pt", weights_only=True)["config"]
    assert (saved["input"]["resize_mode"], saved["model"]["activation"]) == ("opencv_inter_nearest", "relu")
