"""Mistakes in the flags: one line that names it, exit code 2, and nothing left behind."""

import pytest
import torch
from conftest import SMALL_RUN

TWO_NAMES = "person\nchair\n"


FLAG_MISTAKES = {
    # Spelling
    "unknown flag": ("--imgsize 32", "--imgsize"),
    "abbreviation": ("--epoch 3", "--epoch"),
    "stray word": ("stray", "stray"),
    "no value": ("--lr", "--lr: expected one argument"),
    "empty name": ("--exp-name=", "--exp-name", "name"),
    "name that leaves runs": ("--exp-name ../out", "--exp-name ../out", "runs"),
    "absolute name": ("--exp-name /out", "--exp-name /out", "runs"),
    # Values of the wrong kind
    "word as whole number": ("--epochs many", "--epochs", "'many'", "whole number"),
    "fraction as whole number": ("--epochs 1.5", "--epochs", "'1.5'", "whole number"),
    "word as number": ("--lr fast", "--lr", "'fast'", "a number"),
    "word as count of scenes": ("--demo-data few", "--demo-data", "'few'", "whole number"),
    "unknown architecture": ("--arch yolo", "--arch", "'yolo'", "cnn, nanodet, tinyssd, transformer, ultratinyod"),
    "unknown activation": ("--activation gelu", "--activation", "'gelu'", "relu, swish"),
    "unknown device": ("--device tpu", "--device", "'tpu'", "cpu, cuda"),
    "unknown resize mode": ("--resize-mode cubic", "--resize-mode", "'cubic'", "opencv_inter_area"),
    "unknown assigner": ("--assigner atss", "'atss'", "legacy, simota, tal"),
    "unknown stride": ("--output-stride 5", "--output-stride", "'5'", "4, 8, 16"),
    # Values out of range
    "size 0": ("--img-size 0", "--img-size", "'0'", "HxW"),
    "size of three sides": ("--img-size 8x8x8", "--img-size", "'8x8x8'", "HxW"),
    "size in another script": ("--img-size ²", "--img-size", "'²'", "HxW"),
    "size off the stride": ("--img-size 33x64", "--img-size 33x64", "stride 8", "40x64"),
    "size off a typed stride": ("--img-size 40 --output-stride 16", "--img-size 40x40", "stride 16", "48x48"),
    "no epoch": ("--epochs 0", "--epochs 0", "at least 1"),
    "stop beyond the end": ("--stop-epoch 5", "--stop-epoch 5", "--epochs 1"),
    "lr 0": ("--lr 0", "--lr 0", "> 0"),
    "lr nan": ("--lr nan", "--lr nan", "> 0"),
    "lr inf": ("--lr inf", "--lr inf", "> 0"),
    "batch 0": ("--batch-size 0", "--batch-size 0", "at least 1"),
    "width 0": ("--cnn-width 0", "--cnn-width 0", "1 to 4096"),
    "width beyond memory": ("--cnn-width 100000", "--cnn-width 100000", "1 to 4096"),
    "size beyond memory": ("--img-size 100000x64", "--img-size", "4096"),
    "more classes than memory": ("--num-classes 1000000000", "--num-classes 1000000000", "1 to 10000"),
    "no anchor": ("--num-anchors 0", "--num-anchors 0", "1 to 256"),
    "anchors for hours": ("--num-anchors 1000000", "--num-anchors 1000000", "1 to 256"),
    "more anchors typed than a cell can have": (f"--anchors {'.1,.1;' * 257}", "--anchors has 257", "at most 256"),
    "decay 1": ("--use-ema --ema-decay 1", "--ema-decay 1", "below 1"),
    "negative clip": ("--grad-clip-norm -1", "--grad-clip-norm -1", "at least 0"),
    "negative warm-up": ("--warmup-epochs -1", "--warmup-epochs -1", "at least 0"),
    "weight of nan": ("--loss-weight-box nan", "--loss-weight-box nan", ">= 0"),
    "threshold 2": ("--conf-thresh 2", "--conf-thresh 2", "from 0 to 1"),
    "mAP threshold -1": ("--map-conf-thresh -1", "--map-conf-thresh -1", "from 0 to 1"),
    "no detection": ("--topk 0", "--topk 0", "at least 1"),
    "no candidate": ("--pre-nms-topk 0", "--pre-nms-topk 0", "at least 1"),
    "another suppression": ("--nms none", "--nms", "'none'", "hard, soft"),
    "sigma 0": ("--nms soft --nms-sigma 0", "--nms-sigma 0", "above 0"),
    "sigma inf": ("--nms soft --nms-sigma inf", "--nms-sigma inf", "above 0"),
    "overlap nan": ("--nms-iou nan", "--nms-iou nan", "from 0 to 1"),
    "seed -1": ("--seed -1", "--seed -1", "0"),
    "seed beyond 64 bits": ("--seed 18446744073709551616", "--seed 18446744073709551616", "0"),
    "fewer than no workers": ("--num-workers -1", "--num-workers -1", "at least 0"),
    "interval 0": ("--eval-interval 0", "--eval-interval 0", "at least 1"),
    "log interval 0": ("--log-interval 0", "--log-interval 0", "at least 1"),
    "negative count": ("--val-count -1", "--val-count -1", "at least 0"),
    "dilation 0": ("--utod-context-rfb --utod-context-dilation 0", "--utod-context-dilation 0", "at least 1"),
    "scale 0": ("--utod-large-obj-branch --utod-large-obj-ch-scale 0", "--utod-large-obj-ch-scale 0", "> 0"),
    "negative depth": ("--utod-large-obj-branch --utod-large-obj-depth -1", "--utod-large-obj-depth -1", "at least 0"),
    "quality power nan": ("--use-improved-head --quality-power nan", "--quality-power nan", ">= 0"),
    # Anchors
    "anchor of words": ("--anchors a,b", "--anchors", "'a,b'", "w,h"),
    "anchor of one number": ("--anchors 0.1", "--anchors", "'0.1'", "w,h"),
    "anchor in pixels": ("--anchors 12,30", "--anchors", "'12,30'", "normalised"),
    "anchor nan": ("--anchors nan,nan", "--anchors", "'nan,nan'"),
    "anchors against their number": ("--anchors .1,.2;.3,.4 --num-anchors 3", "--anchors", "2", "--num-anchors", "3"),
    # Classes
    "no class": ("--classes=", "--classes", "0,2,5"),
    "class by name": ("--classes person", "--classes", "'person'", "0,2,5"),
    "negative class": ("--classes -1", "--classes", "'-1'"),
    "class twice": ("--classes 0,0", "--classes", "'0,0'", "twice"),
    "class beyond the count": ("--classes 0,3 --num-classes 3", "--classes", "3", "--num-classes"),
    "class beyond the names": ("--classes 2 --names names.txt", "--classes", "2", "names.txt"),
    "names against their number": ("--names names.txt --num-classes 3", "--num-classes 3", "names.txt", "2"),
    "names file missing": ("--names nowhere.txt", "--names nowhere.txt", "cannot be read"),
    "names file is a folder": ("--names data", "--names data", "cannot be read"),
    "name missing in the middle": ("--names gap.txt", "gap.txt:2", "no name"),
    "name twice": ("--names twice.txt", "twice.txt:3", "'person'", "line 1"),
    "names file empty": ("--names empty.txt", "--names empty.txt", "one a line"),
    "class without a box": ("--classes 7", "--auto-anchors", "no box"),
    # Where the pictures are
    "folder missing": ("--image-dir nowhere", "--image-dir nowhere", "no such folder", "nowhere"),
    "folder without pictures": ("--image-dir hollow", "--image-dir hollow", "no picture", ".jpg"),
    "picture as folder": ("--image-dir data/000.png", "--image-dir data/000.png", "one picture path a line"),
    "splits beyond 1": ("--train-split .9 --val-split .2", "--train-split 0.9", "--val-split 0.2", "more than 1"),
    "split nan": ("--train-split nan", "--train-split nan", "between 0 and 1"),
    "nothing to train with": ("--train-split 0", "--train-split 0", "train"),
    "one list": ("--train-list all.txt", "--train-list all.txt", "--val-list"),
    "the other list": ("--val-list all.txt", "--val-list all.txt", "--train-list"),
    "lists missing": ("--train-list no.txt --val-list all.txt", "--train-list no.txt", "cannot be read"),
    "list empty": ("--train-list empty.txt --val-list all.txt", "--train-list empty.txt", "empty"),
    "list of a missing picture": ("--train-list lost.txt --val-list all.txt", "lost.txt:2", "gone.png"),
    "list of labels": ("--train-list labels.txt --val-list all.txt", "labels.txt:1", "000.txt", ".png"),
    "lists that share": ("--train-list all.txt --val-list one.txt", "all.txt", "one.txt", "000.png"),
    "few scenes": ("--demo-data 5", "--demo-data"),
    "cache folder in the way": ("--cache disk --cache-dir empty.txt", "--cache-dir empty.txt"),
    # Augmentation
    "augmentation missing": ("--aug --aug-config no.yaml", "--aug-config no.yaml", "cannot be read"),
    "augmentation not YAML": ("--aug --aug-config bad.yaml", "--aug-config bad.yaml", "YAML"),
    "augmentation without its key": ("--aug --aug-config names.txt", "--aug-config names.txt", "data_augment"),
    "augmentation out of range": ("--aug --aug-config prob.yaml", "prob.yaml", "HorizontalFlip.prob", "from 0 to 1"),
    # Contradictions
    "validate and inspect": ("--val-only --inspect --ckpt x.pt", "--val-only", "--inspect"),
    "no augmentation from a file": ("--no-aug --aug-config bad.yaml", "--no-aug", "--aug-config"),
    "two ways of resizing": ("--torch_nearest --opencv_inter_area", "--torch_nearest", "opencv_inter_area"),
    "resize flag and mode": (
        *("--keras_bilinear --resize-mode opencv_inter_area", "--keras_bilinear", "--resize-mode opencv_inter_area"),
    ),
    "demo data and a folder": ("--demo-data --image-dir data", "--demo-data", "--image-dir"),
    "go on and start": ("--resume a --ckpt b", "--resume", "--ckpt"),
    "validate nothing": ("--val-only", "--val-only", "--ckpt", "--resume"),
    "loosely nothing": ("--ckpt-non-strict", "--ckpt-non-strict", "--ckpt"),
    # Checkpoints that are not there
    "resume nothing": ("--resume nowhere", "--resume nowhere", "no such file"),
    "resume an empty folder": ("--resume hollow", "--resume hollow", "no checkpoint", "last.pt"),
    "start from nothing": ("--ckpt nowhere.pt", "--ckpt nowhere.pt", "no such file"),
    "start from a folder": ("--ckpt data", "--ckpt data", "folder"),
    "start from a picture": ("--ckpt data/000.png", "--ckpt data/000.png", "not a complete checkpoint"),
    "start from an empty file": ("--ckpt empty.txt", "--ckpt empty.txt", "not a complete checkpoint"),
    # Folders that cannot be written
    "file for run folder": ("--ckpt-out empty.txt", "--ckpt-out", "folder empty.txt"),
    "file above run folder": ("--ckpt-out empty.txt/run", "--ckpt-out", "folder empty.txt/run"),
    "file for events": ("--log-dir empty.txt", "--log-dir", "folder empty.txt"),
    "file for inspection": ("--inspect --ckpt-out empty.txt", "--ckpt-out", "folder empty.txt"),
}


@pytest.mark.parametrize("mistake", FLAG_MISTAKES)
def test_mistake_in_the_flags(mistake, refused, yolo_folder, tmp_path):
    flags, *mentions = FLAG_MISTAKES[mistake]
    data = yolo_folder()
    (tmp_path / "hollow").mkdir()
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "names.txt").write_text(TWO_NAMES)
    (tmp_path / "gap.txt").write_text("person\n\nface\n")
    (tmp_path / "twice.txt").write_text("person\nface\nperson\n")
    (tmp_path / "all.txt").write_text("".join(f"{path}\n" for path in sorted(data.glob("*.png"))))
    (tmp_path / "one.txt").write_text("data/000.png\n")
    (tmp_path / "lost.txt").write_text("data/000.png\ndata/gone.png\n")
    (tmp_path / "labels.txt").write_text("data/000.txt\n")
    (tmp_path / "bad.yaml").write_text("data_augment: [")
    (tmp_path / "prob.yaml").write_text("data_augment: {HorizontalFlip: {prob: 2}}")
    source = () if "--demo-data" in flags or "-list" in flags else ("--image-dir", "data")
    line = refused(*source, *flags.split(), mentions=mentions)
    assert "Traceback" not in line
    assert "Errno" not in line


def test_cuda_that_is_not_there(refused, yolo_folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    yolo_folder()
    refused("--image-dir", "data", "--device", "cuda", mentions=("--device cuda", "--device cpu"))


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("--utod-context-dilation 3", ("--utod-context-dilation", "--utod-context-rfb")),
        ("--utod-large-obj-depth 2", ("--utod-large-obj-depth", "--utod-large-obj-branch")),
        ("--simota-topk 5 --assigner tal", ("--simota-topk", "simota")),
        ("--quality-power 2", ("--quality-power", "--use-improved-head")),
        ("--ema-decay 0.9", ("--ema-decay", "--use-ema")),
    ],
)
def test_flag_without_effect_is_one_warning(flags, named, run_train, yolo_folder):
    yolo_folder()
    outcome = run_train(*SMALL_RUN, "--image-dir", "data", "--inspect", *flags.split())
    assert outcome.code == 0
    assert len(outcome.err) == 1
    assert all(name in outcome.warnings[0] for name in named)
