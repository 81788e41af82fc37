"""Mistakes on export_onnx.py's command line and in its files: one line, an exit code, and nothing left behind."""

import shutil

import cv2
import numpy as np
import onnx
import pytest
import torch
from conftest import PERSON, files_below, write_yolo_folder
from exporting import write_checkpoint
from onnx import numpy_helper

import export_onnx
from uhd.export import build

MISTAKES = {
    # Which file
    "nothing": ("", "--checkpoint"),
    "no such checkpoint": ("--checkpoint nope.pt", "--checkpoint nope.pt", "no such file"),
    "folder as checkpoint": ("--checkpoint in", "--checkpoint in", "a folder"),
    "text as checkpoint": ("--checkpoint text.pt", "--checkpoint text.pt", "not a complete checkpoint"),
    "foreign checkpoint": ("--checkpoint foreign.pt", "--checkpoint foreign.pt", "not a checkpoint of this program"),
    "weights alone": ("--checkpoint weights.pt", "--checkpoint weights.pt", "not a checkpoint of this program"),
    "weights of another width": ("--checkpoint other.pt", "--checkpoint other.pt", "does not fit"),
    "empty checkpoint": ("--checkpoint empty.pt", "--checkpoint empty.pt"),
    "an ONNX file": ("--checkpoint m.onnx", "--checkpoint", "m.onnx"),
    "export and look": ("--checkpoint best.pt --info best.pt", "--checkpoint and --info"),
    # Where to
    "no such folder": ("--checkpoint best.pt --output nope/m.onnx", "--output nope/m.onnx", "nope"),
    "a folder": ("--checkpoint best.pt --output in", "--output in", "a folder"),
    "below a file": ("--checkpoint best.pt --output text.pt/m.onnx", "--output text.pt/m.onnx"),
    # What is said about the network
    "another width": ("--checkpoint best.pt --cnn-width 64", "--cnn-width 64", "best.pt", "trained with 4"),
    "another stride": ("--checkpoint best.pt --output-stride 4", "--output-stride 4", "best.pt", "trained with 8"),
    "another activation": ("--checkpoint best.pt --activation relu", "--activation relu", "trained with swish"),
    "other anchors": ("--checkpoint best.pt --num-anchors 5", "--num-anchors 5", "best.pt", "trained with 3"),
    "another head": ("--checkpoint best.pt --no-use-improved-head", "--use-improved-head off", "trained with on"),
    "another resize mode": (
        "--checkpoint best.pt --resize-mode torch_nearest",
        "--resize-mode torch_nearest",
        "trained with opencv_inter_area",
    ),
    "other classes": ("--checkpoint best.pt --classes 0,1", "--classes 0,1", "best.pt", "classes 0"),
    "another architecture": ("--checkpoint best.pt --arch cnn", "--arch", "cnn"),
    "a flag of distillation": ("--checkpoint best.pt --teacher-ckpt t.pt", "--teacher-ckpt"),
    "a flag of another out of range": ("--checkpoint best.pt --backbone-channels 0", "--backbone-channels", "'0'"),
    "size between strides": ("--checkpoint best.pt --img-size 60x40", "--img-size 60x40", "stride 8", "64x40"),
    "size of nothing": ("--checkpoint best.pt --img-size 0x64", "--img-size"),
    "size in words": ("--checkpoint best.pt --img-size small", "--img-size", "'small'"),
    # The form
    "operator set 12": ("--checkpoint best.pt --opset 12", "--opset 12", "13 to 20"),
    "operator set 21": ("--checkpoint best.pt --opset 21", "--opset 21", "13 to 20"),
    "operator set x": ("--checkpoint best.pt --opset x", "--opset", "'x'", "whole number"),
    "unknown open size": ("--checkpoint best.pt --dynamic width", "--dynamic", "'width'", "batch, hw, all"),
    "separate and raw": (
        "--checkpoint best.pt --separate-outputs --no-merge-postprocess",
        "--separate-outputs",
        "--merge-postprocess",
    ),
    "no row": ("--checkpoint best.pt --topk 0", "--topk 0", "at least 1"),
    "threshold 2": ("--checkpoint best.pt --conf-thresh 2", "--conf-thresh 2", "0 to 1"),
    "threshold nan": ("--checkpoint best.pt --conf-thresh nan", "--conf-thresh nan", "0 to 1"),
    "overlap -1": ("--checkpoint best.pt --nms-iou -1", "--nms-iou -1", "0 to 1"),
    "unknown flag": ("--checkpoint best.pt --half", "--half"),
    "abbreviated flag": ("--checkpoint best.pt --out m.onnx", "--out"),
    "stray word": ("--checkpoint best.pt m.onnx", "m.onnx"),
    # INT8 and pictures
    "INT8 without pictures": ("--checkpoint best.pt --int8", "--int8", "--calib-dir"),
    "report of one file": ("--checkpoint best.pt --report", "--report", "--int8"),
    "no such calibration folder": ("--checkpoint best.pt --int8 --calib-dir nope", "--calib-dir nope"),
    "calibration without pictures": ("--checkpoint best.pt --int8 --calib-dir bare", "--calib-dir bare", "no"),
    "unreadable calibration pictures": ("--checkpoint best.pt --int8 --calib-dir bad", "--calib-dir bad"),
    "unknown method": (
        "--checkpoint best.pt --int8 --calib-dir in --calib-method best",
        "--calib-method",
        "'best'",
        "entropy",
    ),
    "six bits": ("--checkpoint best.pt --int8 --calib-dir in --weight-bits 6", "--weight-bits", "6", "7, 8"),
    "negative count": ("--checkpoint best.pt --calib-count -1", "--calib-count -1", "at least 0"),
    "negative number of pictures": ("--checkpoint best.pt --image-count -1", "--image-count -1", "at least 0"),
    "no such pictures": ("--checkpoint best.pt --verify --image-dir nope", "--image-dir nope"),
    "folder without pictures": ("--checkpoint best.pt --verify --image-dir bare", "--image-dir bare", "no"),
    "bad label": ("--checkpoint best.pt --verify --image-dir mislabelled", "000.txt:1"),
    # Looking
    "look at nothing": ("--info nope.onnx", "--info nope.onnx", "no such file"),
    "look at a folder": ("--info in", "--info in", "a folder"),
    "look at a text": ("--info text.onnx", "--info text.onnx", "not an ONNX file"),
    "look at an empty file": ("--info empty.onnx", "--info empty.onnx", "not an ONNX file"),
    "look at half a file": ("--info half.onnx", "--info half.onnx", "not an ONNX file"),
    "look at a picture": ("--info in/000.png", "--info in/000.png", "not an ONNX file"),
    "look at damaged metadata": ("--info damaged.onnx", "--info damaged.onnx", "metadata", "img_size"),
    "look at a foreign checkpoint": ("--info foreign.pt", "--info foreign.pt", "not a checkpoint of this program"),
    "look at a text called a checkpoint": ("--info text.pt", "--info text.pt", "not a complete checkpoint"),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """What the table's flags name."""
    folder = tmp_path_factory.mktemp("mistakes")
    checkpoint = write_checkpoint(tmp_path_factory.mktemp("run"))
    (folder / "best.pt").write_bytes(checkpoint.read_bytes())
    write_yolo_folder(folder / "in", [PERSON] * 4)
    write_yolo_folder(folder / "mislabelled", ["0 0.5 nan 0.1 0.1\n", PERSON])
    for name in ("bare", "bad"):
        (folder / name).mkdir()
    for name in ("text.pt", "text.onnx", "bad/a.png", "bad/b.jpg", "bare/notes.txt"):
        (folder / name).write_text("text\n")
    for name in ("empty.pt", "empty.onnx"):
        (folder / name).touch()
    torch.save({"model": torch.zeros(3), "epoch": 1}, folder / "foreign.pt")
    content = torch.load(checkpoint, weights_only=True)
    torch.save(content["state"]["model"], folder / "weights.pt")
    content["config"]["model"]["cnn_width"] = 8
    torch.save(content, folder / "other.pt")
    assert export_onnx.main(["--checkpoint", str(checkpoint), "--output", str(folder / "m.onnx")]) == 0
    raw = (folder / "m.onnx").read_bytes()
    (folder / "half.onnx").write_bytes(raw[: len(raw) // 2])
    model = onnx.load(folder / "m.onnx")
    kept = {prop.key: prop.value for prop in model.metadata_props if prop.key != "img_size"}
    onnx.helper.set_model_props(model, kept)
    onnx.save(model, folder / "damaged.onnx")
    return folder


@pytest.fixture
def refused(files, capsys, monkeypatch):
    """Runs the export; it must refuse with one line that holds all fragments, and change no file. Gives the line."""
    monkeypatch.chdir(files)

    def check(*flags, mentions=(), code=2):
        before = files_below(files)
        capsys.readouterr()
        assert export_onnx.main([str(flag) for flag in flags]) == code
        lines = capsys.readouterr().err.splitlines()
        errors = [line for line in lines if not line.startswith("warning: ")]
        assert len(errors) == 1, lines
        assert errors[0].startswith("export_onnx.py: error: ")
        assert len(errors[0]) < 400
        for fragment in mentions:
            assert fragment in errors[0]
        assert files_below(files) == before
        return errors[0]

    return check


@pytest.mark.parametrize("case", MISTAKES)
def test_mistake(refused, case):
    flags, *mentions = MISTAKES[case]
    refused(*flags.split(), mentions=mentions)


@pytest.mark.parametrize("output", ["x.pt", "./x.pt", "link.onnx"])
def test_output_that_is_the_checkpoint(run_export, files, tmp_path, output):
    raw = (files / "best.pt").read_bytes()
    (tmp_path / "x.pt").write_bytes(raw)
    (tmp_path / "link.onnx").symlink_to("x.pt")
    outcome = run_export("--checkpoint", "x.pt", "--output", output)
    assert (tmp_path / "x.pt").read_bytes() == raw
    assert (outcome.code, len(outcome.errors)) in ((2, 1), (0, 0) if output == "link.onnx" else (2, 1))


@pytest.mark.parametrize("share", [0.01, 0.3, 0.5, 0.9, 0.999])
def test_truncated_checkpoint(refused, files, tmp_path, share):
    raw = (files / "best.pt").read_bytes()
    path = tmp_path / "cut.pt"
    path.write_bytes(raw[: int(len(raw) * share)])
    refused("--checkpoint", path, "--output", "out.onnx", mentions=(f"--checkpoint {path}", "not a complete"))
    refused("--info", path, mentions=(f"--info {path}",))


DAMAGED = {
    # where in the file, and what is found there
    "weights of another form": (("state", "model"), {"a": 1}),
    "weights that are none": (("state", "model"), None),
    "averaged weights without weights": (("state", "ema"), {"a": 1}),
    "epoch in words": (("state", "epoch"), "seven"),
    "no epoch": (("state", "epoch"), None),
    "no anchors": (("config", "model", "anchors"), None),
    "two anchors of three": (("config", "model", "anchors"), [[0.1, 0.2], [0.2, 0.3]]),
    "no metrics": (("metrics",), None),
}


def damage(case, source, path):
    """A copy of the checkpoint with a part of it replaced."""
    keys, value = DAMAGED[case]
    content = torch.load(source, weights_only=True)
    part = content
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = value
    torch.save(content, path)
    return path


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_checkpoint(refused, files, tmp_path, case):
    path = damage(case, files / "best.pt", tmp_path / "x.pt")
    refused("--checkpoint", path, "--output", "x.onnx", mentions=(f"--checkpoint {path}",))


@pytest.mark.parametrize("case", DAMAGED)
def test_look_at_a_damaged_checkpoint(run_export, files, tmp_path, case):
    """What can be told is told; what cannot is one line."""
    outcome = run_export("--info", damage(case, files / "best.pt", tmp_path / "x.pt"))
    assert (outcome.code, len(outcome.errors)) in ((0, 0), (2, 1))
    assert all("x.pt" in line for line in outcome.errors)


@pytest.mark.parametrize("share", [0.1, 0.9, 0.999])
def test_look_at_a_truncated_file(refused, files, tmp_path, share):
    raw = (files / "m.onnx").read_bytes()
    path = tmp_path / "cut.onnx"
    path.write_bytes(raw[: int(len(raw) * share)])
    refused("--info", path, mentions=(f"--info {path}", "not an ONNX file"))


def test_an_earlier_file_outlives_a_failure(refused, files):
    """A file that is there stays as it is, down to its time."""
    refused("--checkpoint", "best.pt", "--output", "m.onnx", "--topk", 0)
    refused("--checkpoint", "best.pt", "--output", "m.onnx", "--verify", "--image-dir", "bare")


def tampered(network):
    """The network with one weight in three somewhat larger."""
    for tensor in list(network.graph.initializer)[::3]:
        values = numpy_helper.to_array(tensor)
        if values.ndim == 4:
            tensor.CopyFrom(numpy_helper.from_array(values * np.float32(1.05), tensor.name))
    return network


@pytest.mark.parametrize("flags", [(), ("--image-dir", "in"), ("--no-merge-postprocess",), ("--separate-outputs",)])
def test_verify_finds_a_difference(refused, monkeypatch, flags):
    monkeypatch.setattr(export_onnx, "build_network", lambda export: tampered(build.build_network(export)))
    flags = ("--checkpoint", "best.pt", "--output", "out.onnx", "--verify", *flags)
    refused(*flags, mentions=("--verify", "raw maps differ", "0.0001"), code=1)


def test_verify_finds_what_is_no_number(refused, monkeypatch):
    def without_numbers(export):
        network = build.build_network(export)
        for tensor in network.graph.initializer:
            if tensor.name.endswith("weight") or len(tensor.dims) == 4:
                tensor.CopyFrom(
                    numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(np.nan), tensor.name)
                )
        return network

    monkeypatch.setattr(export_onnx, "build_network", without_numbers)
    refused("--checkpoint", "best.pt", "--output", "out.onnx", "--verify", mentions=("--verify",), code=1)


def shrink_boxes(export, network, precision="float32"):
    """A finished model whose network is right and whose boxes are not."""
    model = build.finish(export, network, precision)
    (tensor,) = (each for each in model.graph.initializer if each.name.endswith("to_cxcywh"))
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(0.3), tensor.name))
    return model


def test_verify_finds_other_detections(refused, monkeypatch, finder):
    monkeypatch.setattr(export_onnx, "finish", shrink_boxes)
    flags = ("--checkpoint", finder / "best.pt", "--output", "out.onnx", "--verify")
    refused(*flags, "--image-dir", finder.parent / "data", mentions=("--verify", "differ"), code=1)


def test_verify_compares_detections_without_labels(refused, monkeypatch, finder, tmp_path):
    monkeypatch.setattr(export_onnx, "finish", shrink_boxes)
    for path in sorted((finder.parent / "data").glob("*.png"))[:20]:
        shutil.copy(path, tmp_path)
    flags = ("--checkpoint", finder / "best.pt", "--output", "out.onnx", "--verify")
    refused(*flags, "--image-dir", tmp_path, mentions=("--verify", "detections"), code=1)


def test_full_disk(refused, monkeypatch):
    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(build, "write_whole", full)
    flags = ("--checkpoint", "best.pt", "--output", "out.onnx")
    refused(*flags, mentions=("--output out.onnx", "No space left"), code=1)  # the machine's failure, not a mistake


def test_picture_that_cannot_be_read(files, run_export, tmp_path):
    """One damaged picture is left out with a warning, as in training."""
    folder = write_yolo_folder(tmp_path / "in", [PERSON] * 3)
    (folder / "001.png").write_bytes(b"no picture")
    outcome = run_export("--checkpoint", files / "best.pt", "--output", "m.onnx", "--verify", "--image-dir", folder)
    assert outcome.code == 0
    assert outcome.errors == []
    assert any("001.png" in line for line in outcome.warnings)
    assert any("2 pictures" in line for line in outcome.out)


def test_list_that_names_a_missing_picture(files, run_export, tmp_path):
    write_yolo_folder(tmp_path / "in", [PERSON] * 3)
    (tmp_path / "in/list.txt").write_text("000.png\ngone.png\n")
    outcome = run_export("--checkpoint", files / "best.pt", "--verify", "--image-dir", tmp_path / "in/list.txt")
    assert outcome.code == 2
    assert len(outcome.errors) == 1
    assert "gone.png" in outcome.errors[0]


def test_wide_picture(files, run_export, tmp_path):
    """Pictures of other sizes and kinds than the network's are brought to its own."""
    folder = write_yolo_folder(tmp_path / "in", [PERSON] * 2, size=(200, 37))
    cv2.imwrite(str(folder / "grey.png"), np.zeros((20, 90), np.uint8))
    outcome = run_export("--checkpoint", files / "best.pt", "--output", "m.onnx", "--verify", "--image-dir", folder)
    assert outcome.code == 0
    assert outcome.errors == outcome.warnings == []
