"""export_onnx.py as it is used: its flags, the files it writes, and what --info says of them."""

import argparse
import re
import shutil

import numpy as np
import onnx
import pytest
import torch
from conftest import PERSON, PERSON_AND_CHAIR, files_below, write_yolo_folder
from exporting import (
    METRICS,
    assert_same_rows,
    pictures,
    prepared,
    randomise,
    rows_of_torch,
    run_model,
    write_checkpoint,
)
from helpers import make_config, start
from test_cli import SHORTCUTS, words
from variants import variant_config

from uhd.checkpoint import read_checkpoint, save_checkpoint
from uhd.cli import build_export_parser, parse_export_args
from uhd.config import ExportConfig
from uhd.export.metadata import MERGED_NAME
from uhd.models import build_model, count_macs, count_parameters, fold_batchnorm

FLAGS = words("""
--checkpoint --output --info --opset --dynamic --ema --merge-postprocess --separate-outputs --topk --conf-thresh
--nms-iou --simplify --verify --image-dir --image-count --int8 --calib-dir --calib-count --calib-method --weight-bits
--tflite --report
--img-size --resize-mode --classes --names --num-classes --arch --activation --use-batchnorm
--cnn-width --output-stride --num-anchors --anchors --use-improved-head
--utod-residual --use-iou-aware-head --utod-head-ese --use-head-ese --utod-context-rfb --utod-context-dilation
--utod-large-obj-branch --utod-large-obj-depth --utod-large-obj-ch-scale
--use-anchor --use-skip --last-se --last-width-scale
--backbone --backbone-channels --backbone-blocks --backbone-se --backbone-skip --backbone-skip-cat
--backbone-skip-shuffle-cat --backbone-skip-s2d-cat --backbone-fpn --backbone-out-stride
--nanodet-size --nanodet-depth --nanodet-width --nanodet-strides --nanodet-neck-channels --nanodet-kernel --nanodet-act
--ghost-block-type
--num-queries --d-model --heads --layers --dim-feedforward --use-fpn --dropout
--tinyssd-body --tinyssd-levels --tinyssd-priors --tinyssd-cls-loss
""")

SWITCHES = words("""
--ema --merge-postprocess --separate-outputs --simplify --verify --int8 --report
--use-batchnorm --use-improved-head --utod-residual --use-iou-aware-head --utod-head-ese --use-head-ese
--utod-context-rfb --utod-large-obj-branch
--use-anchor --use-skip --backbone-skip --backbone-skip-cat --backbone-skip-shuffle-cat --backbone-skip-s2d-cat
--backbone-fpn --use-fpn
""")

DEFAULTS = {
    **{"checkpoint": "m.pt", "output": None, "info": None, "opset": 17, "dynamic": None, "ema": True},
    **{"merge_postprocess": True, "separate_outputs": False, "topk": 100, "conf_thresh": 0.0, "nms_iou": None},
    **{"simplify": True, "verify": False, "image_dir": None, "image_count": 200, "int8": False, "calib_dir": None},
    **{"calib_count": 1000, "calib_method": "auto", "weight_bits": 7, "tflite": None, "report": False},
}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """The folder of a checkpoint, best.pt, with batch norm, quality, averaged weights and validation."""
    folder = tmp_path_factory.mktemp("run")
    write_checkpoint(folder, variant_config("ema"))
    return folder


@pytest.fixture
def checkpoint(run_dir, tmp_path):
    """A copy of it where the program runs."""
    shutil.copy(run_dir / "best.pt", tmp_path / "best.pt")
    return tmp_path / "best.pt"


def rows_of(text):
    """The table that --info prints, by name; what stands in several lines or rows is joined."""
    table, name = {}, ""
    width = max(len(line.split("  ")[0]) for line in text if not line.startswith(" ")) + 2
    for line in text:
        name = line[:width].strip() or name
        table[name] = f"{table[name]}\n{line[width:]}" if name in table else line[width:]
    return table


def props_of(path):
    return {prop.key: prop.value for prop in onnx.load(path).metadata_props}


# --- flags --------------------------------------------------------------------------------------


def test_flag_list_is_frozen():
    shown, hidden = [], []
    for action in build_export_parser()._actions:
        (hidden if action.help == argparse.SUPPRESS else shown).extend(action.option_strings)
    negations = [f"--no-{flag.removeprefix('--')}" for flag in SWITCHES]
    assert sorted(shown) == sorted(["-h", "--help", *FLAGS, *negations])
    assert {*hidden} == {*SHORTCUTS}


def test_flags_of_another_architecture_are_one_warning(checkpoint, run_export):
    outcome = run_export("--checkpoint", checkpoint, "--no-simplify", "--num-queries", 99, "--use-skip")
    assert outcome.code == 0
    assert outcome.errors == []
    (warning,) = outcome.warnings
    assert "--num-queries, --use-skip: no effect with --arch ultratinyod" in warning


def test_defaults():
    options, typed = parse_export_args(["--checkpoint", "m.pt"])
    assert options == ExportConfig(**DEFAULTS)
    assert vars(options) == DEFAULTS
    assert typed == {}


def test_what_is_typed():
    flags = "--checkpoint m.pt --dynamic --no-ema --opset 13 --cnn-width 8 --img-size 96x64 --opencv_inter_nearest"
    options, typed = parse_export_args(flags.split())
    assert (options.dynamic, options.ema, options.opset) == ("batch", False, 13)
    assert typed == {"cnn_width": 8, "img_size": (96, 64), "resize_mode": "opencv_inter_nearest"}
    assert parse_export_args(["--checkpoint", "m.pt", "--dynamic", "hw"])[0].dynamic == "hw"


# --- files --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "warned"),
    [
        ((), []),
        (("--topk", 7, "--nms-iou", 0.4, "--no-merge-postprocess"), []),  # the runtime reads them from the file
        (("--conf-thresh", 0.2, "--no-merge-postprocess"), ["--conf-thresh", "--merge-postprocess"]),
        (("--image-dir", "nowhere"), ["--image-dir", "--verify or --report"]),
        (("--calib-dir", "nowhere"), ["--calib-dir", "--int8 or --tflite"]),
        (("--calib-method", "entropy"), ["--calib-method", "--int8"]),
        (("--weight-bits", 8), ["--weight-bits", "--int8"]),
    ],
)
def test_flags_without_effect_are_named(run_export, checkpoint, flags, warned):
    outcome = run_export("--checkpoint", "best.pt", "--output", "m.onnx", *flags)
    assert (outcome.code, outcome.errors) == (0, [])
    assert len(outcome.warnings) == bool(warned)
    assert all(word in line for line in outcome.warnings for word in warned)


def test_default_output_stands_beside_the_checkpoint(run_export, checkpoint, tmp_path):
    before = files_below(tmp_path)
    outcome = run_export("--checkpoint", "best.pt")
    assert outcome.code == 0
    assert outcome.err == []
    assert files_below(tmp_path).keys() - before.keys() == {tmp_path / "best.onnx"}
    assert outcome.out[-1].startswith("wrote best.onnx (")


def test_name_with_several_dots(run_export, checkpoint, tmp_path):
    (tmp_path / "deep").mkdir()
    checkpoint.rename(tmp_path / "deep/last_utod_0007_map_0.62500.pt")
    assert run_export("--checkpoint", "deep/last_utod_0007_map_0.62500.pt").code == 0
    assert (tmp_path / "deep/last_utod_0007_map_0.62500.onnx").is_file()


def test_output_is_replaced(run_export, checkpoint, tmp_path):
    (tmp_path / "m.onnx").write_text("old")
    assert run_export("--checkpoint", "best.pt", "--output", "m.onnx").code == 0
    onnx.checker.check_model(onnx.load(tmp_path / "m.onnx"))


FORMS = {
    # flags, names of the outputs, operator set, metadata
    "merged": ("", [MERGED_NAME], 17, {"outputs": "merged", "topk": "100", "conf_thresh": "0.0", "nms_iou": "0.5"}),
    "separate": ("--separate-outputs --topk 20", ["boxes", "scores", "labels"], 17, {"outputs": "separate"}),
    "raw": (
        "--no-merge-postprocess --opset 13",
        ["txtywh_obj_quality_cls", "anchors", "wh_scale"],
        13,
        {"outputs": "raw"},
    ),
    "thresholds": ("--conf-thresh 0.25 --nms-iou 0.4", [MERGED_NAME], 17, {"conf_thresh": "0.25", "nms_iou": "0.4"}),
    "not simplified": ("--no-simplify --opset 20", [MERGED_NAME], 20, {}),
    "another size": ("--img-size 96x64", [MERGED_NAME], 17, {"img_size": "[96, 64]", "map50": "null"}),
    "what the checkpoint says": (
        "--arch ultratinyod --cnn-width 4 --num-anchors 3 --use-improved-head --use-batchnorm --classes 0 "
        "--img-size 64x64 --opencv_inter_area",
        [MERGED_NAME],
        17,
        {"img_size": "[64, 64]", "map50": "0.625"},
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms(run_export, checkpoint, tmp_path, form):
    flags, outputs, opset, says = FORMS[form]
    outcome = run_export("--checkpoint", "best.pt", "--output", "m.onnx", *flags.split())
    assert (outcome.code, outcome.err) == (0, [])
    model = onnx.load(tmp_path / "m.onnx")
    assert [value.name for value in model.graph.output] == outputs
    assert {each.domain: each.version for each in model.opset_import} == {"": opset}
    assert props_of(tmp_path / "m.onnx").items() >= says.items()


def test_averaged_or_last_weights(run_export, checkpoint, tmp_path):
    image = pictures(1, (64, 64))
    found = []
    for flag, ema, map50 in (("--ema", True, "0.625"), ("--no-ema", False, "null")):
        assert run_export("--checkpoint", "best.pt", "--output", "m.onnx", flag).code == 0
        rows = run_model(onnx.load(tmp_path / "m.onnx"), image)[MERGED_NAME][0]
        assert_same_rows(rows, rows_of_torch(prepared(checkpoint, ema=ema), image)[0])
        assert props_of(tmp_path / "m.onnx")["map50"] == map50  # what was validated are the averaged ones
        found.append(rows)
    assert np.abs(found[0] - found[1]).max() > 0.01


def test_run_without_averaged_weights_keeps_its_figures(run_export, tmp_path):
    write_checkpoint(tmp_path)
    assert run_export("--checkpoint", "best.pt", "--no-ema", "--output", "m.onnx").code == 0
    assert props_of(tmp_path / "m.onnx")["map50"] == "0.625"


def test_export_of_a_training_run(run_export, finder, tmp_path):
    """From train.py's file to a file whose figures are those of the run."""
    data = finder.parent / "data"
    flags = ("--output", "m.onnx", "--verify", "--image-dir", data)
    outcome = run_export("--checkpoint", finder / "best.pt", *flags)
    assert (outcome.code, outcome.err) == (0, [])
    metrics = read_checkpoint(finder / "best.pt").metrics
    props = props_of(tmp_path / "m.onnx")
    assert float(props["best_f1_threshold"]) == metrics["val/best_f1_threshold"]
    assert float(props["map50"]) == metrics["val/mAP@0.5"] > 0.5


# --- --verify -----------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", ["", "--no-merge-postprocess --dynamic all", "--separate-outputs --img-size 96x64"])
def test_verify_on_drawn_pictures(run_export, checkpoint, tmp_path, flags):
    outcome = run_export("--checkpoint", "best.pt", "--output", "m.onnx", "--verify", *flags.split())
    assert (outcome.code, outcome.err) == (0, [])
    assert (tmp_path / "m.onnx").is_file()
    assert any("verified on 64 pictures" in line for line in outcome.out)
    assert any(line.startswith("mAP@0.5: PyTorch ") for line in outcome.out)


def test_verify_on_pictures_without_labels(run_export, checkpoint, tmp_path):
    write_yolo_folder(tmp_path / "in", [None] * 3)
    outcome = run_export("--checkpoint", "best.pt", "--output", "m.onnx", "--verify", "--image-dir", "in")
    assert (outcome.code, outcome.errors) == (0, [])
    assert any("no labels" in line for line in outcome.out)


@pytest.mark.parametrize(("count", "looked_at"), [(0, 9), (1, 1), (4, 4), (200, 9)])
def test_number_of_pictures(run_export, tmp_path, count, looked_at):
    write_checkpoint(tmp_path, make_config())
    write_yolo_folder(tmp_path / "in", [PERSON] * 9, size=(8, 8))
    flags = ("--verify", "--image-dir", "in", "--image-count", count)
    outcome = run_export("--checkpoint", "best.pt", "--output", "m.onnx", *flags)
    assert outcome.code == 0
    assert any(f"verified on {looked_at} pictures" in line for line in outcome.out)


def test_verify_with_several_classes(run_export, tmp_path):
    write_checkpoint(tmp_path, variant_config("three classes"))
    write_yolo_folder(tmp_path / "in", [PERSON_AND_CHAIR, PERSON, "2 0.5 0.5 0.2 0.2\n"])
    assert run_export("--checkpoint", "best.pt", "--verify", "--image-dir", "in").code == 0


@pytest.mark.parametrize(("bias", "scale", "most"), [(0, 1e-6, 200), (3, 1e-5, 200), (3, 1e-5, 4)])
def test_verify_of_a_network_that_has_hardly_learned(run_export, tmp_path, monkeypatch, bias, scale, most):
    """Its scores are so nearly equal that rounding decides which of the boxes stays: such pictures are not compared.

    Whether they are many is a matter of the pictures whose maps are compared, not of all.
    """
    monkeypatch.setattr("uhd.export.verify.MAX_RAW_PICTURES", most)
    cfg = make_config(img_size=(64, 64), model={"use_batchnorm": True, "use_improved_head": True})
    task, state = start(cfg)
    randomise(task.student, cfg.input.img_size)
    head = task.student.head
    with torch.no_grad():
        for branch in (head.obj, head.quality, head.cls):
            branch[-1].weight.mul_(scale)
            branch[-1].bias.fill_(bias)
    save_checkpoint(tmp_path, cfg, state, METRICS, is_best=True)
    outcome = run_export("--checkpoint", "best.pt", "--output", "m.onnx", "--verify")
    assert (outcome.code, outcome.errors) == (0, [])
    (warning,) = outcome.warnings
    assert int(re.search(r"detections of (\d+) pictures are not compared", warning)[1]) > min(64, most) / 2
    assert (tmp_path / "m.onnx").is_file()


# --- --info -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        *((name, ()) for name in ("plain", "ema", "full head", "large objects", "three classes")),
        ("full head", ("--no-merge-postprocess",)),
        ("three classes", ("--no-simplify", "--separate-outputs")),
    ],
)
def test_info_counts(run_export, tmp_path, name, flags):
    """The network's own: neither what follows it nor the scale of the anchors."""
    checkpoint = write_checkpoint(tmp_path, variant_config(name))
    assert run_export("--checkpoint", "best.pt", "--output", "m.onnx", *flags).code == 0
    outcome = run_export("--info", "m.onnx")
    assert (outcome.code, outcome.err) == (0, [])
    table = rows_of(outcome.out)
    model = fold_batchnorm(build_model(read_checkpoint(checkpoint).config.model))
    scale = sum(parameter.numel() for key, parameter in model.named_parameters() if key == "wh_scale")
    assert table["parameters"] == f"{count_parameters(model) - scale:,}"
    assert table["multiply-adds"] == f"{count_macs(model, 64, 64):,}"


def test_info_of_a_file(run_export, checkpoint, tmp_path):
    assert run_export("--checkpoint", "best.pt", "--output", "m.onnx", "--opset", 15).code == 0
    before = files_below(tmp_path)
    table = rows_of(run_export("--info", "m.onnx").out)
    assert files_below(tmp_path) == before
    assert table["file"] == "m.onnx"
    assert table["size"] == f"{(tmp_path / 'm.onnx').stat().st_size:,} bytes"
    assert table["operator set"] == "ai.onnx 15"
    assert table["input"] == "images float [1, 3, 64, 64]"
    assert table["output"] == f"{MERGED_NAME} float [1, 100, 6]"
    assert table["operators"] == str(len(onnx.load(tmp_path / "m.onnx").graph.node))
    assert table.items() >= {"arch": "ultratinyod", "img_size": "64, 64", "class_names": "person"}.items()
    assert (table["map50"], table["best_f1_threshold"], table["stride"]) == ("0.625", "0.375", "8")
    assert (table["score_mode"], table["precision"]) == ("obj*quality*cls", "float32")
    assert len(table["anchors"].splitlines()) == 3


def test_info_of_an_open_size(run_export, checkpoint):
    assert run_export("--checkpoint", "best.pt", "--output", "m.onnx", "--dynamic", "all").code == 0
    table = rows_of(run_export("--info", "m.onnx").out)
    assert table["input"] == "images float [batch, 3, height, width]"
    assert table["multiply-adds"].startswith("open")


def test_info_of_a_foreign_file(run_export, tmp_path):
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    ports = [onnx.helper.make_tensor_value_info(name, 1, [2, 3]) for name in "xy"]
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", ports[:1], ports[1:]))
    onnx.helper.set_model_props(model, {"author": "someone"})
    onnx.save(model, tmp_path / "m.onnx")
    table = rows_of(run_export("--info", "m.onnx").out)
    assert (table["parameters"], table["multiply-adds"], table["author"]) == ("0", "0", "someone")


def test_info_of_a_checkpoint(run_export, checkpoint, tmp_path):
    before = files_below(tmp_path)
    outcome = run_export("--info", "best.pt")
    assert (outcome.code, outcome.err) == (0, [])
    assert files_below(tmp_path) == before
    table = rows_of(outcome.out)
    assert table["epoch"] == "7 of 100"
    assert table["weights"].startswith("averaged")
    assert (table["mAP@0.5"], table["score of best F1"]) == ("0.625", "0.375")
    assert table["img-size"] == "64x64"
    assert table["cnn-width"] == "4"
    model = build_model(variant_config("ema").model)
    assert table["parameters"] == f"{count_parameters(model):,}"
    assert table["parameters, batch norm folded"] == f"{count_parameters(fold_batchnorm(model)):,}"
    assert table["multiply-adds"] == f"{count_macs(model, 64, 64):,}"
    assert table["anchors"].splitlines()[0] == "0.150000  0.300000"
    scale = torch.load(checkpoint, weights_only=True)["state"]["ema"]["model"]["wh_scale"]
    assert table["wh_scale"].splitlines()[0] == "  ".join(f"{value:.6f}" for value in scale[0].tolist())


def test_info_of_a_checkpoint_that_was_never_validated(run_export, tmp_path):
    write_checkpoint(tmp_path, make_config(), metrics={})
    outcome = run_export("--info", "best.pt")
    assert (outcome.code, outcome.err) == (0, [])
    assert not any(name in rows_of(outcome.out) for name in ("mAP@0.5", "best F1"))
    assert {"val/mAP@0.5"} < METRICS.keys()
