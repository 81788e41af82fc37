"""An exported file computes what PyTorch computes, for every architecture and in every form."""

import numpy as np
import onnx
import onnxsim
import pytest
import torch
from exporting import (
    assert_same_rows,
    built,
    pictures,
    prepared,
    rows_of_torch,
    run_model,
    write_checkpoint,
)
from helpers import make_config
from torch import nn
from variants import NETWORKS, variant_config

import export_onnx
from uhd.export import graph
from uhd.export.build import build_network, finish
from uhd.export.metadata import MERGED_NAME, SEPARATE_NAMES

RAW_TOLERANCE = 1e-4
DEEP = 110
"""Convolutions from which on rounding adds up to ten times as much in a random network, whose values reach 80."""
SOME = (
    "full head",
    "context",
    "large objects, deep",
    "three classes, vfl",
    "cnn, skip, wider last",
    "cnn, anchors, full",
    "cnn, three classes",
    "cnn, resnet, skip s2d",
    "cnn, shufflenet, skip, se",
    "nanodet, medium, hardswish",
    "transformer, fpn",
    "transformer, three classes",
)
"""Rows that between them have every operator."""


@pytest.fixture(params=NETWORKS, scope="module")
def row(request, tmp_path_factory):
    """A checkpoint of a row of the table, and its network as a graph."""
    checkpoint = write_checkpoint(tmp_path_factory.mktemp("export"), variant_config(request.param))
    return checkpoint, build_network(prepared(checkpoint))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A network with batch norm, quality and a learned scale of the anchors."""
    return write_checkpoint(tmp_path_factory.mktemp("export"))


def operators(model):
    return {node.op_type for node in model.graph.node}


def raw_maps_of_torch(export, images):
    with torch.no_grad():
        preds = export.model(images)
    return {name: preds[name].detach().numpy() for name in export.model.raw_names}


def merged_rows(model, images):
    """Rows of each picture, one picture at a time: [n,topk,6]."""
    return np.concatenate([run_model(model, image[None])[MERGED_NAME] for image in images])


def assert_rows_of_torch(model, export, images):
    for found, expected in zip(merged_rows(model, images), rows_of_torch(export, images), strict=True):
        assert_same_rows(found, expected)


def to_rows(outputs):
    """Separate outputs as rows of a merged one."""
    boxes, scores, labels = (outputs[name] for name in SEPARATE_NAMES)
    size = boxes[..., 2:] - boxes[..., :2]
    return np.concatenate([scores[..., None], labels[..., None], boxes[..., :2] + size / 2, size], axis=-1)


# --- every architecture -------------------------------------------------------------------------


def assert_same_maps(found, export, images):
    depth = sum(isinstance(module, nn.Conv2d) for module in export.model.modules())
    atol = RAW_TOLERANCE * (10 if depth >= DEEP else 1)
    for name, expected in raw_maps_of_torch(export, images).items():
        assert found[name].shape == expected.shape
        np.testing.assert_allclose(found[name], expected, rtol=0, atol=atol * max(1, np.abs(expected).max() / 10))


def test_raw_maps_are_those_of_torch(row):
    checkpoint, network = row
    export = prepared(checkpoint, merge_postprocess=False)
    model = finish(export, network)
    images = pictures(3, export.config.input.img_size)
    assert [value.name for value in model.graph.output] == list(export.model.raw_names)
    for image in images:
        assert_same_maps(run_model(model, image[None]), export, image[None])


def test_detections_are_those_of_torch(row):
    checkpoint, network = row
    export = prepared(checkpoint)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in export.model.modules())
    assert "BatchNormalization" not in operators(network)
    model = finish(export, network)
    images = pictures(3, export.config.input.img_size)
    rows = merged_rows(model, images)
    assert rows.shape == (3, 100, 6)
    assert np.ptp(rows[..., 0], axis=1).max() > 0.1  # scores that could be told apart
    for found, expected in zip(rows, rows_of_torch(export, images), strict=True):
        assert_same_rows(found, expected)


@pytest.mark.parametrize("name", ["plain", "three classes", "stride 4", "cnn, three classes", "transformer, plain"])
def test_separate_outputs_are_the_merged_ones(name, tmp_path):
    checkpoint = write_checkpoint(tmp_path, variant_config(name))
    network = build_network(prepared(checkpoint))
    merged, separate = (finish(prepared(checkpoint, separate_outputs=each), network) for each in (False, True))
    image = pictures(1, prepared(checkpoint).config.input.img_size)
    outputs = run_model(separate, image)
    assert list(outputs) == list(SEPARATE_NAMES)
    assert [outputs[name].shape for name in SEPARATE_NAMES] == [(1, 100, 4), (1, 100), (1, 100)]
    assert outputs["labels"].dtype == np.int64
    np.testing.assert_allclose(to_rows(outputs), run_model(merged, image)[MERGED_NAME], rtol=0, atol=1e-6)


@pytest.mark.parametrize("opset", [13, 20])
@pytest.mark.parametrize("name", SOME)
def test_every_operator_set(name, opset, tmp_path):
    checkpoint = write_checkpoint(tmp_path, variant_config(name))
    images = pictures(2, variant_config(name).input.img_size)
    network = build_network(prepared(checkpoint, opset=opset))
    for options in ({}, {"separate_outputs": True}, {"merge_postprocess": False}):
        export = prepared(checkpoint, opset=opset, **options)
        model = finish(export, network)
        assert {each.domain: each.version for each in model.opset_import} == {"": opset}
        assert {node.domain for node in model.graph.node} == {""}
        assert not model.functions
        if not options:
            assert_rows_of_torch(model, export, images)


# --- the form of a file -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["full head", "large objects, deep", "stride 4"])
def test_not_simplified(name, tmp_path):
    checkpoint = write_checkpoint(tmp_path, variant_config(name))
    export = prepared(checkpoint, simplify=False)
    model = built(export)
    images = pictures(2, (64, 64))
    assert_rows_of_torch(model, export, images)
    assert "BatchNormalization" not in operators(model)
    assert len(built(prepared(checkpoint)).graph.node) <= len(model.graph.node)


@pytest.mark.parametrize(
    ("kind", "options"),
    {
        "merged": {},
        "separate": {"separate_outputs": True},
        "raw": {"merge_postprocess": False},
    }.items(),
)
def test_shapes_that_a_file_announces(checkpoint, kind, options):
    fixed, free = (built(prepared(checkpoint, dynamic=dynamic, topk=7, **options)) for dynamic in (None, "all"))
    assert shape_of(fixed.graph.input) == {"images": [1, 3, 64, 64]}
    assert shape_of(free.graph.input) == {"images": ["batch", 3, "height", "width"]}
    expected = {
        "merged": {MERGED_NAME: [1, 7, 6]},
        "separate": {"boxes": [1, 7, 4], "scores": [1, 7], "labels": [1, 7]},
        "raw": {"txtywh_obj_quality_cls": [1, 21, 8, 8], "anchors": [3, 2], "wh_scale": [3, 2]},
    }[kind]
    assert shape_of(fixed.graph.output) == expected
    for name, shape in shape_of(free.graph.output).items():
        assert shape[0] == ("batch" if name not in ("anchors", "wh_scale") else 3)
    if kind == "raw":
        assert shape_of(free.graph.output)["txtywh_obj_quality_cls"] == ["batch", 21, "rows", "columns"]


def shape_of(values):
    return {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in values
    }


OPEN_SIZES = [
    # row, outputs, what is open, simplified
    *((name, "merged", "all", True) for name in ("full head", "large objects, deep", "three classes", "stride 4")),
    ("full head", "merged", "batch", True),
    ("full head", "merged", "hw", True),
    ("large objects, deep", "merged", "all", False),
    ("three classes", "separate", "all", True),
    ("full head", "separate", "batch", False),
    ("large objects, deep", "raw", "all", True),
    ("full head", "raw", "batch", True),
    ("full head", "raw", "hw", False),
    ("cnn, three classes", "merged", "all", True),
    ("cnn, skip, wider last", "raw", "all", True),
    ("cnn, resnet, fpn, ese", "merged", "all", True),
    ("cnn, shufflenet, skip, se", "merged", "all", False),
    ("nanodet, plain", "merged", "all", True),
    ("nanodet, five grids, three classes", "raw", "all", False),
    ("tinyssd, published", "merged", "all", True),
    ("tinyssd, three classes, mined, not square", "raw", "all", False),
    ("tinyssd, published, conv", "merged", "all", False),
    ("tinyssd, published, conv", "raw", "hw", True),
    ("transformer, fpn", "merged", "all", True),
    ("transformer, three classes", "raw", "all", False),
]


@pytest.mark.parametrize(("name", "kind", "dynamic", "simplify"), OPEN_SIZES)
def test_open_sizes(name, kind, dynamic, simplify, tmp_path):
    """Batches give what single pictures give; other sizes what PyTorch gives there, also with few priors."""
    checkpoint = write_checkpoint(tmp_path, variant_config(name))
    options = {"separate_outputs": kind == "separate", "merge_postprocess": kind != "raw", "simplify": simplify}
    export = prepared(checkpoint, dynamic=dynamic, **options)
    model = built(export)
    for size in (export.config.input.img_size,) if dynamic == "batch" else ((96, 64), (32, 32)):
        for batch in (1,) if dynamic == "hw" else (1, 3):
            images = pictures(batch, size)
            outputs = run_model(model, images)
            if kind == "raw":
                assert_same_maps(outputs, export, images)
                continue
            rows = outputs[MERGED_NAME] if kind == "merged" else to_rows(outputs)
            assert rows.shape == (batch, 100, 6)
            for found, expected in zip(rows, rows_of_torch(export, images), strict=True):
                assert_same_rows(found, expected)


@pytest.fixture(params=["three classes", "stride 4"], scope="module")
def threshold_row(request, tmp_path_factory):
    """As `row`, of networks with one and with several classes."""
    checkpoint = write_checkpoint(tmp_path_factory.mktemp("export"), variant_config(request.param))
    return checkpoint, build_network(prepared(checkpoint))


@pytest.mark.parametrize(
    "options",
    [
        {"topk": 1},
        {"topk": 5, "conf_thresh": 0.3},
        {"topk": 600},
        {"conf_thresh": 1.0},
        {"conf_thresh": 0.5, "nms_iou": 0.2},
        {"nms_iou": 0.0},
        {"nms_iou": 1.0},
    ],
    ids=str,
)
def test_thresholds(threshold_row, options):
    checkpoint, network = threshold_row
    export = prepared(checkpoint, **options)
    images = pictures(2, (64, 64))
    rows = merged_rows(finish(export, network), images)
    assert rows.shape == (2, options.get("topk", 100), 6)
    for found, expected in zip(rows, rows_of_torch(export, images), strict=True):
        assert_same_rows(found, expected)
        used = found[:, 0] > 0
        assert not found[~used].any()
        assert (found[used, 0] >= options.get("conf_thresh", 0)).all()
    assert options.get("conf_thresh") != 1.0 or not rows.any()


def test_another_size_than_the_checkpoint(checkpoint):
    export = prepared(checkpoint, img_size=(96, 40))
    images = pictures(2, (96, 40))
    model = built(export)
    assert shape_of(model.graph.input) == {"images": [1, 3, 96, 40]}
    assert_rows_of_torch(model, export, images)


def test_averaged_and_last_weights_differ(tmp_path):
    checkpoint = write_checkpoint(tmp_path, variant_config("ema"))
    exports = [prepared(checkpoint, ema=ema) for ema in (True, False)]
    state = torch.load(checkpoint, weights_only=True)["state"]
    image = pictures(1, (64, 64))
    outputs = []
    for export, saved in zip(exports, (state["ema"]["model"], state["model"]), strict=True):
        torch.testing.assert_close(export.model.wh_scale.detach(), saved["wh_scale"], rtol=0, atol=0)
        rows = run_model(built(export), image)[MERGED_NAME]
        assert_same_rows(rows[0], rows_of_torch(export, image)[0])
        outputs.append(rows)
    assert np.abs(outputs[0] - outputs[1]).max() > 0.01


def test_same_bytes_twice(checkpoint):
    first, second = (built(prepared(checkpoint)).SerializeToString(deterministic=True) for _ in range(2))
    assert first == second


def test_an_older_runtime_can_read_it(checkpoint):
    assert {opset: built(prepared(checkpoint, opset=opset)).ir_version for opset in (13, 15, 17, 19)} == {
        13: 7,
        15: 8,
        17: 8,
        19: 9,
    }


def test_no_names_of_the_machine_in_a_file(checkpoint):
    """Neither folders nor the tracer's remarks on where an operator comes from."""
    content = built(prepared(checkpoint)).SerializeToString()
    assert b".py" not in content
    assert str(checkpoint.parent).encode() not in content


# --- what can go wrong in the libraries ---------------------------------------------------------


def failing_simplifier(model):
    raise RuntimeError("cannot fold\nthis graph")


@pytest.mark.parametrize(
    ("simplify", "reason"),
    [(failing_simplifier, "cannot fold this graph"), (lambda model: (model, False), "changed what the graph computes")],
)
def test_simplifier_that_fails_is_left_out(checkpoint, monkeypatch, caplog, simplify, reason):
    monkeypatch.setattr(onnxsim, "simplify", simplify)
    export = prepared(checkpoint)
    images = pictures(2, (64, 64))
    assert_rows_of_torch(built(export), export, images)
    built(export)  # as for a second file of the same export, of INT8
    (message,) = caplog.messages
    assert reason in message
    assert "onnxsim" in message


def write_other_opset(monkeypatch):
    """An exporter that writes another operator set than it is asked for, as torch's newer one does."""
    trace = graph._trace

    def drifted(*args):
        model = trace(*args)
        return onnx.version_converter.convert_version(model, 18)

    monkeypatch.setattr(graph, "_trace", drifted)


def test_exporter_that_writes_another_operator_set(checkpoint, monkeypatch, tmp_path, capsys):
    write_other_opset(monkeypatch)
    assert export_onnx.main(["--checkpoint", str(checkpoint), "--output", str(tmp_path / "m.onnx")]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("export_onnx.py: error: ")
    assert "18" in error
    assert "17 was asked for" in error
    assert list(tmp_path.iterdir()) == []


def test_scores_of_these_tests_spread(tmp_path):
    """A fresh network scores all priors alike: comparing its detections would say nothing."""
    cfg = make_config(img_size=(64, 64))
    scores = rows_of_torch(prepared(write_checkpoint(tmp_path, cfg)), pictures(1, (64, 64)))[0, :, 0]
    assert len(np.unique(scores[scores > 0])) > 20
