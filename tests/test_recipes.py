"""The published command lines, as their readers type them."""

import json
import math
import shlex

import pytest
import torch
from conftest import LABELS, ROOT
from dinov3 import official_shapes, random_state
from helpers import make_config, write_teacher

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

EARLY_DATA = "--image-dir data/wholebody34/obj_train_data --img-size 64x64 --classes 0"
EARLY_STEPS = "--batch-size 64 --lr 0.001 --weight-decay 0.0001 --num-workers 12 --device cuda --use-amp --use-ema"
EARLY_SPELT_OUT = (
    "--train-split 0.8 --val-split 0.2 --seed 42 --log-interval 10 --eval-interval 1 --conf-thresh 0.3 --topk 50 "
    "--aug-config uhd/aug.yaml"
)
EARLY_ANCHORS = (
    f"--arch cnn {EARLY_DATA} {EARLY_STEPS} --ema-decay 0.9999 --epochs 300 --cnn-width 64 --use-anchor --auto-anchors "
    "--num-anchors 5 --iou-loss ciou --last-se se --last-width-scale 1.25 --use-skip"
)
EARLY_TOKENS = (
    f"--arch transformer {EARLY_DATA} {EARLY_STEPS} {EARLY_SPELT_OUT} --ema-decay 0.9999 --num-queries 10 --d-model 64 "
    "--heads 4 --dim-feedforward 128"
)

EARLY = {
    "cnn": (
        f"--arch cnn {EARLY_DATA} {EARLY_STEPS} {EARLY_SPELT_OUT} --exp-name cnn_64x64 --epochs 500 --resume '' "
        "--activation swish --cnn-width 32 --use-skip"
    ),
    "cnn with anchors": f"{EARLY_ANCHORS} --exp-name cnn_anchor_64x64 --output-stride 16",
    "student of DINOv3 S": (
        f"{EARLY_ANCHORS} --exp-name cnn_anchor_dino_64x64 --output-stride 8 --distill-feat 1.0 "
        "--teacher-backbone ckpts/dinov3_vits16_pretrain_lvd1689m-08c60483.pth --teacher-backbone-arch dinov3_vits16"
    ),
    "student of DINOv3 S, stride 16": (
        f"{EARLY_ANCHORS} --exp-name cnn_anchor_dino_s16_64x64 --output-stride 16 --distill-feat 1.0 "
        "--teacher-backbone ckpts/dinov3_vits16_pretrain_lvd1689m-08c60483.pth --teacher-backbone-arch dinov3_vits16"
    ),
    "student of DINOv3 B": (
        f"{EARLY_ANCHORS} --exp-name cnn_anchor_dino_b16_64x64 --output-stride 8 --distill-feat 1.0 "
        "--teacher-backbone ckpts/dinov3_vitb16_pretrain_lvd1689m-73cec8be.pth --teacher-backbone-arch dinov3_vitb16"
    ),
    "student of ViT-Tiny": (
        f"{EARLY_ANCHORS} --exp-name cnn_anchor_vitt_64x64 --output-stride 8 --distill-feat 1.0 "
        "--teacher-backbone ckpts/vitt_distill.pt --teacher-backbone-arch vit_tiny"
    ),
    "transformer": f"{EARLY_TOKENS} --exp-name transformer_64x64 --epochs 500 --resume '' --layers 3 --use-fpn",
    "transformer of 4 layers": (
        f"{EARLY_TOKENS} --exp-name transformer_64x64 --epochs 500 --resume '' --layers 4 --use-fpn"
    ),
    "student of a transformer": (
        f"{EARLY_TOKENS} --exp-name transformer_distill_64x64 --epochs 200 --layers 4 "
        "--teacher-ckpt runs/teacher_640x640/best_tf_0500_map_0.12345.pt --teacher-arch transformer --teacher-layers 3 "
        "--distill-kl 1.0 --distill-box-l1 1.0 --distill-temperature 2.0 --distill-cosine"
    ),
}
"""The early document's recipes."""

EARLY_GROWTH = f"{EARLY_TOKENS} --exp-name transformer_64x64 --epochs 500 --ckpt {{ckpt}} --ckpt-non-strict --layers 4"
"""Its recipe from three layers to four."""

KERAS_NAME = "ultratinyod_res_anc8_w64_loese_64x64_lr0.0003_opencv_inter_nearest"
KERAS = (
    f"--arch ultratinyod --image-dir data/wholebody34/obj_train_data --img-size 64x64 --exp-name {KERAS_NAME} "
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
    parse_args(["--arch", "ultratinyod", *knobs.split()])
    assert caplog.records == []


def test_keras_distillation_is_read_as_it_is_meant(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    names = tmp_path / "data/wholebody34/obj.names"
    names.parent.mkdir(parents=True)
    names.write_text("person\nface\n")
    cfg, _ = parse_args(KERAS_DISTILLATION.split())
    distill = cfg.distill
    assert (distill.teacher_ckpt, distill.distill_weight, distill.feature_distill_weight) == (
        *("path/to/teacher_weights", 1.0, 0.5),
    )
    assert (cfg.run.run_dir, cfg.labels.class_names) == ("runs/ultratinyod_student_distill", ("person", "face"))
    assert caplog.records == []


@pytest.mark.parametrize("name", EARLY)
def test_early_recipe_is_read_as_it_is_meant(name, caplog):
    cfg, checkpoint = parse_args(shlex.split(EARLY[name]))
    assert checkpoint is None
    assert (cfg.input.img_size, cfg.labels.class_names, cfg.run.device) == ((64, 64), ("person",), "cuda")
    assert (cfg.optim.lr, cfg.optim.weight_decay, cfg.optim.batch_size) == (0.001, 0.0001, 64)
    assert (cfg.optim.use_amp, cfg.optim.use_ema, cfg.data.num_workers) == (True, True, 12)
    assert cfg.optim.ema_decay == (0.9998 if name == "cnn" else 0.9999)
    model = cfg.model
    if "transformer" in name:
        assert (model.arch, model.num_queries, model.d_model, model.heads) == ("transformer", 10, 64, 4)
        assert (model.layers, model.dim_feedforward) == (3 if name == "transformer" else 4, 128)
        assert model.use_fpn == (name != "student of a transformer")
    else:
        anchors = name != "cnn"
        assert (model.arch, model.use_skip, model.use_anchor) == ("cnn", True, anchors)
        assert model.stride == (8 if name.startswith("student") and "stride 16" not in name else 16)
        assert (model.cnn_width, model.last_se) == ((64, "se") if anchors else (32, "none"))
        assert (model.num_anchors, model.last_width_scale) == ((5, 1.25) if anchors else (3, 1.0))
    distill = cfg.distill
    assert distill.is_on == ("student" in name)
    assert distill.distill_feat == (1.0 if distill.teacher_backbone else 0.0)
    arch = {"S": "dinov3_vits16", "B": "dinov3_vitb16"}.get(name.partition("DINOv3 ")[2][:1], "vit_tiny")
    assert distill.teacher_backbone_arch == (arch if distill.teacher_backbone else "dinov3_vits16")
    if name == "student of a transformer":
        assert distill.teacher_ckpt == "runs/teacher_640x640/best_tf_0500_map_0.12345.pt"
        assert (distill.teacher_arch, distill.teacher_layers) == ("transformer", 3)
        assert (distill.distill_kl, distill.distill_box_l1, distill.distill_temperature) == (1.0, 1.0, 2.0)
        assert distill.distill_cosine
    assert caplog.records == []


def without_device(flags):
    place = flags.index("--device")
    return flags[:place] + flags[place + 2 :]


@pytest.fixture
def cut(yolo_folder, tmp_path):
    """Flags that make a recipe small, typed after its own; the default augmentation file is where it expects it."""
    yolo_folder()
    (tmp_path / "uhd").symlink_to(ROOT / "uhd")
    return ["--image-dir", "data", "--cnn-width", "4", "--epochs", "1", "--batch-size", "4", "--num-workers", "0"]


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


@pytest.fixture
def few(yolo_folder, tmp_path, monkeypatch):
    """Flags that make an early recipe small but leave its network, typed after its own; no pictures are drawn.

    Without mixed precision: many processors only imitate it, slowly, and other tests have it.
    """
    monkeypatch.setattr("uhd.recorder.write_reports", lambda *args, **kwargs: None)
    yolo_folder(LABELS[:3])
    (tmp_path / "uhd").symlink_to(ROOT / "uhd")
    return ["--image-dir", "data", "--epochs", "1", "--num-workers", "0", "--device", "cpu", "--no-use-amp"]


def test_keras_distillation_trains(run_train, few, tmp_path):
    write_teacher(tmp_path / "path/to", make_config()).rename(tmp_path / "path/to/teacher_weights")
    (tmp_path / "data/obj.names").write_text("person\n")
    flags = KERAS_DISTILLATION.replace("data/wholebody34/obj.names", "data/obj.names").split()
    same_network = ["--arch", "ultratinyod", "--cnn-width", "4", "--img-size", "32x32", "--auto-anchors"]
    outcome = run_train(*flags, *few, *same_network)
    assert outcome.code == 0, outcome.err
    assert outcome.errors == []
    (row,) = [json.loads(line) for line in (tmp_path / flags[-1] / "metrics.jsonl").read_text().splitlines()]
    assert all(0 < row[f"train/{name}"] < math.inf for name in ("distill_weight", "feature_distill_weight"))


def last_weights(run_dir, epoch):
    """The weights after an epoch, read from its file."""
    (path,) = run_dir.glob(f"last_*_{epoch:04d}_map_*.pt")
    return torch.load(path, weights_only=True)["state"]["model"]


def check_early_recipe(name, run, tmp_path):
    """Trains by a recipe of EARLY and looks at what it leaves; gives the best checkpoint's path."""
    flags = shlex.split(EARLY[name])
    outcome = run(*without_device(flags))
    assert outcome.code == 0, outcome.err
    assert outcome.err == []
    run_dir = tmp_path / "runs" / flags[flags.index("--exp-name") + 1]
    (row,) = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    terms = {"cnn": {"hm", "off", "wh"}, "tf": {"cls", "l1", "iou"}, "anchors": {"box", "obj", "cls"}}
    tag = "tf" if "transformer" in name else "cnn"
    kind = "anchors" if "--use-anchor" in flags else tag
    learned = {"student of a transformer": {"distill_kl", "distill_box_l1"}, "student of ViT-Tiny": {"distill_feat"}}
    wanted = {"loss", *terms[kind], *learned.get(name, ())}
    assert {key.removeprefix("train/") for key in row if key.startswith("train/")} == wanted
    assert 0 < row["train/loss"] < math.inf
    best = (run_dir / "best.pt").resolve()
    assert best.name == f"best_{tag}_0001_map_{row['val/mAP@0.5']:.5f}.pt"
    return best.relative_to(tmp_path)


@pytest.mark.parametrize("name", [name for name in EARLY if name != "transformer" and "DINOv3" not in name])
def test_early_recipe_trains(name, run_train, few, tmp_path):
    if name == "student of ViT-Tiny":
        (tmp_path / "ckpts").mkdir()
        torch.save(random_state(official_shapes(192)), tmp_path / "ckpts/vitt_distill.pt")
    if name == "student of a transformer":
        sizes = {"num_queries": 10, "d_model": 64, "heads": 4, "layers": 3, "dim_feedforward": 128}
        cfg = make_config(arch="transformer", img_size=(96, 96), model=sizes)
        path = write_teacher(tmp_path / "runs/teacher_640x640", cfg)
        path.rename(path.with_name("best_tf_0500_map_0.12345.pt"))
    check_early_recipe(name, lambda *flags: run_train(*flags, *few), tmp_path)


def test_early_recipe_of_a_transformer_trains_and_another_adds_a_layer(run_train, few, tmp_path):
    ckpt = check_early_recipe("transformer", lambda *flags: run_train(*flags, *few), tmp_path)
    before = torch.load(tmp_path / ckpt, weights_only=True)["state"]["ema"]["model"]

    outcome = run_train(*without_device(shlex.split(EARLY_GROWTH.format(ckpt=ckpt))), *few)
    assert outcome.code == 0, outcome.err
    assert outcome.err == []
    left = dict(line.split(": ")[1:] for line in outcome.out if line.startswith("--ckpt-non-strict: "))
    assert {*left.values()} == {"not in the checkpoint"}
    assert {".".join(name.split(".")[:2]) for name in left} == {"encoder_layers.3", "decoder_layers.3"}
    run_dir = tmp_path / "runs" / "transformer_64x64-2"
    first, trained = (last_weights(run_dir, epoch) for epoch in (0, 1))
    assert left.keys() == first.keys() - before.keys()
    assert all(torch.equal(first[name], value) for name, value in before.items())
    assert all(not torch.equal(trained[name], value) for name, value in first.items() if name.endswith("weight"))
