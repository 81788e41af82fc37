"""What a user can get wrong: one line that names it, exit code 2, and nothing left behind."""

import errno
import os
import pickle
import re
import signal
from pathlib import Path

import pytest
import torch
from conftest import PERSON, SMALL_RUN

import train
from uhd.data.dataset import DetectionDataset

TWO_NAMES = "person\nchair\n"
UNVALIDATED = (*SMALL_RUN, "--val-split", "0")


def files_below(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} | {
        path: 0 for path in folder.rglob("*") if path.is_dir()
    }


def counted(lines, pattern):
    """The sum of the numbers that the pattern finds at the starts of lines."""
    return sum(int(match[1]) for match in map(re.compile(pattern).match, lines) if match)


@pytest.fixture
def refused(run_train, tmp_path):
    """Runs the program; it must refuse with one line that holds all fragments, and change no file. Gives the line."""

    def check(*flags, mentions=()):
        before = files_below(tmp_path)
        outcome = run_train(*SMALL_RUN, *flags)
        assert outcome.code == 2
        assert len(outcome.errors) == 1, outcome.errors
        line = outcome.errors[0]
        assert line.startswith("train.py: error: ")
        for fragment in mentions:
            assert fragment in line
        assert files_below(tmp_path) == before
        return line

    return check


@pytest.fixture
def accepted(run_train):
    """Reads the data on flags that the program must accept; gives the outcome."""

    def check(*flags):
        outcome = run_train(*SMALL_RUN, "--inspect", *flags)
        assert outcome.code == 0, outcome.err
        assert outcome.errors == []
        return outcome

    return check


# --- flags --------------------------------------------------------------------------------------

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
    "unknown architecture": ("--arch yolo", "--arch", "'yolo'", "cnn, transformer, ultratinyod"),
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
    "width 0": ("--cnn-width 0", "--cnn-width 0", "at least 1"),
    "no anchor": ("--num-anchors 0", "--num-anchors 0", "at least 1"),
    "decay 1": ("--use-ema --ema-decay 1", "--ema-decay 1", "below 1"),
    "negative clip": ("--grad-clip-norm -1", "--grad-clip-norm -1", "at least 0"),
    "negative warm-up": ("--warmup-epochs -1", "--warmup-epochs -1", "at least 0"),
    "weight of nan": ("--loss-weight-box nan", "--loss-weight-box nan", ">= 0"),
    "threshold 2": ("--conf-thresh 2", "--conf-thresh 2", "from 0 to 1"),
    "mAP threshold -1": ("--map-conf-thresh -1", "--map-conf-thresh -1", "from 0 to 1"),
    "no detection": ("--topk 0", "--topk 0", "at least 1"),
    "no candidate": ("--pre-nms-topk 0", "--pre-nms-topk 0", "at least 1"),
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


NOT_BUILT = [
    ("--arch cnn", "--arch cnn"),
    ("--arch transformer", "--arch transformer"),
    ("--backbone microcspnet", "--backbone"),
    ("--use-skip", "--use-skip"),
    ("--num-queries=10", "--num-queries"),
    ("--teacher-ckpt t.pt", "--teacher-ckpt"),
    ("--distill-cosine", "--distill-cosine"),
]


@pytest.mark.parametrize(("flags", "named"), NOT_BUILT)
def test_flag_of_a_part_that_is_not_built(flags, named, refused, yolo_folder):
    yolo_folder()
    refused("--image-dir", "data", *flags.split(), mentions=(named, "not built yet"))


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
    ],
)
def test_flag_without_effect_is_one_warning(flags, named, run_train, yolo_folder):
    yolo_folder()
    outcome = run_train(*SMALL_RUN, "--image-dir", "data", "--inspect", *flags.split())
    assert outcome.code == 0
    assert len(outcome.err) == 1
    assert all(name in outcome.warnings[0] for name in named)


# --- labels -------------------------------------------------------------------------------------

BAD_LINES = {
    "too few fields": ("0 0.5 0.5 0.1", "4 fields", "class cx cy w h"),
    "only a class": ("0", "1 fields", "class cx cy w h"),
    "a score too many": ("0 0.5 0.5 0.1 0.1 0.9", "6 fields", "class cx cy w h"),
    "a polygon": ("0 0.1 0.1 0.2 0.2 0.3 0.3", "7 fields", "polygon"),
    "words": ("0 left top wide high", "'left'", "not a number"),
    "commas": ("0,0.5,0.5,0.1,0.1", "1 fields"),
    "nan": ("0 nan 0.5 0.1 0.1", "'nan'", "not a number"),
    "inf": ("0 0.5 0.5 inf 0.1", "'inf'", "not a number"),
    "overflow": ("0 0.5 0.5 1e999 0.1", "'1e999'", "not a number"),
    "negative class": ("-1 0.5 0.5 0.1 0.1", "'-1'", "integer >= 0"),
    "fraction as class": ("0.0 0.5 0.5 0.1 0.1", "'0.0'", "integer >= 0"),
    "name as class": ("person 0.5 0.5 0.1 0.1", "'person'", "integer >= 0"),
    "huge word": ("0 0.5 0.5 0.1 " + "9x" * 5000, "not a number"),
}


@pytest.mark.parametrize("picture", ["000", "011"])
@pytest.mark.parametrize("kind", BAD_LINES)
def test_bad_label_line_names_file_and_line(kind, picture, refused, yolo_folder):
    line, *mentions = BAD_LINES[kind]
    label = yolo_folder() / f"{picture}.txt"
    label.write_text(f"{PERSON}\n{line}\n{PERSON}")
    error = refused("--image-dir", "data", mentions=(f"{label}:3", "--skip-bad-labels", *mentions))
    assert len(error) < 400


def test_label_file_that_is_no_text(refused, yolo_folder):
    label = yolo_folder() / "003.txt"
    label.write_bytes(b"\xff\xfe\x00\x01")
    refused("--image-dir", "data", mentions=(str(label), "class cx cy w h"))


def test_bad_label_lines_are_dropped_and_counted_on_request(accepted, yolo_folder):
    data = yolo_folder([PERSON + "".join(f"{line}\n" for line, *_ in BAD_LINES.values()), PERSON] * 5)
    outcome = accepted("--image-dir", "data", "--skip-bad-labels")
    assert counted(outcome.warnings, r"warning: \w+ labels: (\d+) bad lines dropped") == 5 * len(BAD_LINES)
    assert counted(outcome.out, r"(?:training|validation): \d+ pictures, (\d+) boxes, \d+ pictures") == 10
    assert str(data) in outcome.warnings[0]


def test_boxes_that_leave_the_picture_are_clipped_or_dropped_and_counted(accepted, yolo_folder):
    clipped = "0 1.0 0.5 0.5 0.5\n"
    dropped = "0 1.5 0.5 0.5 0.5\n0 0.5 0.5 0 0.3\n0 0.5 0.5 -0.2 0.3\n"
    touching = "0 0.5 0.5 1 1\n"
    yolo_folder([clipped + dropped + touching] * 10)
    outcome = accepted("--image-dir", "data", "--train-split", "0.5", "--val-split", "0.5")
    for title in ("training", "validation"):
        assert any(line.startswith(f"{title}: 5 pictures, 10 boxes") for line in outcome.out)
        assert any(f"{title}: 5 boxes reach out" in line for line in outcome.warnings)
        assert any(f"{title}: 15 boxes have no area" in line for line in outcome.warnings)


def test_class_without_a_box_is_warned_of_by_its_name(accepted, yolo_folder, tmp_path):
    yolo_folder([PERSON] * 10)
    (tmp_path / "names.txt").write_text(TWO_NAMES)
    outcome = accepted("--image-dir", "data", "--names", "names.txt")
    assert [("chair" in line, "person" in line) for line in outcome.warnings] == [(True, False)] * 2


def test_many_classes_without_a_box_stay_readable(run_train, yolo_folder):
    yolo_folder([PERSON] * 10)
    outcome = run_train(*SMALL_RUN, "--image-dir", "data", "--num-classes", "5000", "--inspect")
    assert outcome.code == 0
    assert len(outcome.warnings) < 50


# --- pictures -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["empty", "text", "truncated", "folder of that name", "broken link"])
def test_unreadable_pictures_are_named_and_skipped(kind, accepted, yolo_folder):
    data = yolo_folder([PERSON] * 10)
    spoiled = [data / "002.png", data / "007.png"]
    for path in spoiled:
        content = path.read_bytes()
        path.unlink()
        if kind == "broken link":
            path.symlink_to(data / "nowhere.png")
        elif kind == "folder of that name":
            path.mkdir()
        else:
            path.write_bytes({"empty": b"", "text": b"hello", "truncated": content[:200]}[kind])
    outcome = accepted("--image-dir", "data")
    assert counted(outcome.out, r"(?:training|validation): (\d+) pictures, \d+ boxes, \d+ pictures") == 8
    if kind != "folder of that name":
        assert counted(outcome.warnings, r"warning: \w+: (\d+) pictures cannot be read and are skipped") == 2
        assert all(any(str(path) in line for line in outcome.warnings) for path in spoiled)


def test_no_readable_picture_is_an_error(refused, yolo_folder):
    data = yolo_folder([PERSON] * 4)
    for path in data.glob("*.png"):
        path.write_bytes(b"no picture")
    refused("--image-dir", "data", mentions=("none of the", "can be read", str(data)))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_very_few_pictures(count, run_train, yolo_folder):
    """One picture is trained on, and the lack of another to validate with is said."""
    yolo_folder([PERSON] * count)
    outcome = run_train(*SMALL_RUN, "--image-dir", "data", "--ckpt-out", "run")
    assert outcome.code == 0, outcome.err
    assert ["no picture to validate with" in line for line in outcome.err] == ([True] if count == 1 else [])


def test_pictures_without_any_box_need_anchors_but_can_be_inspected(refused, accepted, yolo_folder):
    yolo_folder(["", None] * 5)
    refused("--image-dir", "data", mentions=("--auto-anchors", "no box"))
    outcome = accepted("--image-dir", "data")
    assert counted(outcome.out, r"(?:training|validation): \d+ pictures, 0 boxes, (\d+) pictures") == 10


@pytest.mark.parametrize("workers", [0, 1])
def test_picture_that_vanishes_during_the_run_is_named_without_a_traceback(
    workers, run_train, yolo_folder, tmp_path, monkeypatch
):
    picture = yolo_folder([PERSON] * 4) / "001.png"
    open_run_dir = train.open_run_dir

    def without_picture(*args, **flags):
        picture.unlink()
        return open_run_dir(*args, **flags)

    monkeypatch.setattr(train, "open_run_dir", without_picture)
    flags = ("--cache", "none", "--num-workers", workers, "--val-split", 0, "--train-split", 1)
    outcome = run_train(*SMALL_RUN, "--image-dir", "data", "--ckpt-out", "run", *flags)
    assert outcome.code == 2
    assert len(outcome.errors) == 1, outcome.errors
    assert f"{picture}: cannot be read" in outcome.errors[0]


# --- checkpoints --------------------------------------------------------------------------------


class Bomb:
    """Runs code where it is unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def with_config(content, **model):
    config = {**content["config"], "model": {**content["config"]["model"], **model}}
    return {**content, "config": config}


CHECKPOINTS = {
    "truncated": lambda content, raw: raw[: len(raw) // 2],
    "without its end": lambda content, raw: raw[:-100],
    "empty": lambda content, raw: b"",
    "text": lambda content, raw: b"not a checkpoint\n",
    "weights alone": lambda content, raw: content["state"]["model"],
    "a tensor": lambda content, raw: torch.zeros(3),
    "another program's": lambda content, raw: {"model": {}, "optimizer": {}, "epoch": 3},
    "without its parts": lambda content, raw: {"program": "uhd"},
    "unknown setting": lambda content, raw: with_config(content, wings=2),
    "of a later architecture": lambda content, raw: with_config(content, arch="hexformer"),
    "of a later version": lambda content, raw: {**content, "format": 99},
}


@pytest.mark.parametrize("flag", ["--ckpt", "--resume"])
@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_file_that_is_no_checkpoint_of_ours(kind, flag, refused, trained, tmp_path):
    raw = (trained / "last.pt").read_bytes()
    made = CHECKPOINTS[kind](torch.load(trained / "last.pt", weights_only=True), raw)
    if isinstance(made, bytes):
        (tmp_path / "x.pt").write_bytes(made)
    else:
        torch.save(made, tmp_path / "x.pt")
    error = refused(flag, "x.pt", mentions=(f"{flag} x.pt",))
    assert len(error) < 300


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
@pytest.mark.parametrize("wrap", [lambda bomb: bomb, lambda bomb: {"program": "uhd", "format": 1, "state": bomb}])
def test_code_inside_a_checkpoint_is_not_run(save, wrap, refused, tmp_path, recwarn):
    target = tmp_path / "was_run"
    save(wrap(Bomb(target)), tmp_path / "x.pt")
    refused("--ckpt", "x.pt", "--val-only", mentions=("--ckpt x.pt",))
    assert not target.exists()
    assert not recwarn.list


@pytest.mark.parametrize(
    ("flags", "typed", "saved"),
    [
        ("--cnn-width 8", "--cnn-width 8", "4"),
        ("--img-size 64x64", "--img-size 64x64", "32x32"),
        ("--resize-mode torch_nearest", "--resize-mode torch_nearest", "opencv_inter_area"),
        ("--torch_nearest", "--resize-mode torch_nearest", "opencv_inter_area"),
        ("--use-improved-head", "--use-improved-head on", "off"),
        ("--activation relu", "--activation relu", "swish"),
        ("--num-anchors 5", "--num-anchors 5", "2"),
        ("--output-stride 16", "--output-stride 16", "8"),
        ("--classes 0,1", "--classes 0,1", "0"),
        ("--classes 1", "--classes 1", "0"),
    ],
)
@pytest.mark.parametrize("flag", ["--ckpt", "--resume"])
def test_checkpoint_of_another_shape_names_both_values(flags, typed, saved, flag, run_train, trained, tmp_path):
    source = ("--image-dir", trained.parent / "data", "--ckpt-out", "run", "--device", "cpu")
    outcome = run_train(flag, trained / "last.pt", *source, *flags.split())
    assert outcome.code == 2
    assert len(outcome.errors) == 1
    assert typed in outcome.errors[0]
    assert "last.pt" in outcome.errors[0]
    assert outcome.errors[0].split("last.pt")[1].split("with ")[1].removeprefix("classes ") == saved
    assert not (tmp_path / "run").exists()


def test_checkpoint_can_be_validated_at_another_size_on_the_stride(run_train, trained):
    flags = ("--val-only", "--ckpt", trained / "last.pt", "--ckpt-out", "val", "--num-workers", "0", "--cache", "ram")
    assert run_train(*flags, "--img-size", "48x64").code == 0
    outcome = run_train(*flags, "--img-size", "50x64")
    assert outcome.code == 2
    assert "56x64" in outcome.errors[0]


# --- the run folder -----------------------------------------------------------------------------


def test_full_run_folder_gets_a_fresh_suffix(run_train, yolo_folder, tmp_path):
    yolo_folder()
    for number in range(3):
        outcome = run_train(*UNVALIDATED, "--image-dir", "data", "--exp-name", "again")
        assert outcome.code == 0
        said = [line for line in outcome.out if "already holds a run" in line]
        assert len(said) == (1 if number else 0)
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"again", "again-2", "again-3"}
    assert "again-3" in said[0]
    assert len((tmp_path / "runs" / "again" / "metrics.jsonl").read_text().splitlines()) == 1


def one_more_epoch(run_train, folder, *flags):
    return run_train(
        "--resume", folder, "--epochs", "2", "--num-workers", "0", "--cache", "ram", "--device", "cpu", *flags
    )


@pytest.fixture
def run_of_one_epoch(run_train, yolo_folder, tmp_path):
    """A finished run that can go on."""
    yolo_folder()
    assert run_train(*UNVALIDATED, "--image-dir", "data", "--ckpt-out", "run").code == 0
    return tmp_path / "run"


def saved_epoch(folder):
    return torch.load(folder / "last.pt", weights_only=True)["state"]["epoch"]


def test_run_folder_with_a_run_goes_on_with_resume(run_train, run_of_one_epoch, tmp_path):
    outcome = one_more_epoch(run_train, run_of_one_epoch)
    assert outcome.code == 0
    assert saved_epoch(run_of_one_epoch) == 2
    assert not list(tmp_path.glob("run-*"))


def test_full_disk_leaves_the_last_checkpoint(run_train, run_of_one_epoch, monkeypatch):
    def no_space(content, file):
        file.write(b"half of it")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch, "save", no_space)
    outcome = one_more_epoch(run_train, run_of_one_epoch)
    assert outcome.code == 1
    assert len(outcome.errors) == 1
    assert "No space left" in outcome.errors[0]
    monkeypatch.undo()
    assert saved_epoch(run_of_one_epoch) == 1


def test_crashed_worker_leaves_the_last_checkpoint(run_train, run_of_one_epoch, monkeypatch):
    monkeypatch.setattr(DetectionDataset, "__getitems__", lambda self, keys: os._exit(1))
    outcome = one_more_epoch(run_train, run_of_one_epoch, "--num-workers", "1")
    assert outcome.code == 1
    assert len(outcome.errors) == 1
    assert "worker" in outcome.errors[0]
    assert saved_epoch(run_of_one_epoch) == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stop_signal_leaves_the_last_checkpoint(number, code, run_train, run_of_one_epoch, monkeypatch):
    train_one_epoch = train.train_one_epoch

    def with_signal(*args):
        signal.raise_signal(number)
        return train_one_epoch(*args)

    with monkeypatch.context() as patch:
        patch.setattr(train, "train_one_epoch", with_signal)
        outcome = one_more_epoch(run_train, run_of_one_epoch)
    assert outcome.code == code
    assert outcome.errors == [f"train.py: stopped by {signal.Signals(number).name}"]
    assert saved_epoch(run_of_one_epoch) == 1
    assert one_more_epoch(run_train, run_of_one_epoch).code == 0
    assert saved_epoch(run_of_one_epoch) == 2
