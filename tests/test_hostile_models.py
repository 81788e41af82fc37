"""Checkpoints and ONNX files made to break things: none runs code or takes memory that its size does not explain."""

import copy
import io
import json
import os
import struct
import zipfile

import onnx
import pytest
import torch
from exporting import write_onnx
from helpers import make_config, start
from onnx import TensorProto, helper
from tiny_onnx import metadata_of, write_halves

from uhd.checkpoint import read_checkpoint, save_checkpoint
from uhd.distill.vit_files import read_vit
from uhd.export.info import describe_file
from uhd.runtime import Detector
from uhd.tensor_file import load_tensors

# --- checkpoints --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The file of a small run with averaged weights that has made a step."""
    cfg = make_config(optim={"use_ema": True})
    _, state = start(cfg)
    for parameter in state.task.parameters():
        parameter.grad = torch.zeros_like(parameter)
    state.optimizer.step()
    return save_checkpoint(tmp_path_factory.mktemp("whole"), cfg, state, {"val/mAP@0.5": 0.5}, is_best=False)


def put(content, place, value):
    """The content with another value at a place such as state/epoch."""
    content = copy.deepcopy(content)
    *above, last = place.split("/")
    inner = content
    for name in above:
        inner = inner[name]
    inner[last] = value
    return content


def weights_like(shape):
    """Replaces a weight by one that says it has this shape."""
    return lambda content: put_weight(content, torch.zeros(1).expand(shape))


def put_weight(content, value):
    content = copy.deepcopy(content)
    content["state"]["model"][next(iter(content["state"]["model"]))] = value
    return content


def many(count, value):
    return lambda content: put(content, "metrics", {str(i): value for i in range(count)})


def nested(depth):
    value = 1.0
    for _ in range(depth):
        value = [value]
    return value


def shared(levels):
    value = ["x"] * 10
    for _ in range(levels):
        value = [value] * 10
    return value


CONFIG = {
    "model/cnn_width": (10**9, 0, -1, 4.5, "wide", None, True, [4], float("nan"), 10**30),
    "model/num_classes": (10**9, 0, -1, "1"),
    "model/num_anchors": (0, 10**9, "3"),
    "model/anchors": (None, [], [[1]], [["a", "b"]], [[0.1, 0.2]] * 5000),
    "model/output_stride": (5, 10**6, -8),
    "model/activation": ("cubic", 3, None),
    "model/quality_power": (float("nan"), -1.0),
    "input/img_size": ([10**9, 10**9], [0, 64], [-64, 64], [64], [64, 64, 64], "64", [64.5, 64], None),
    "input/resize_mode": ("cubic", "", 7),
    "labels/classes": (None, [0] * 20_000, ["a"], 0),
    "labels/class_names": ([], ["a"] * 20_000, ["a", "b"], [7], "person", ["x" * 5000]),
    "decode/conf_thresh": (float("nan"), 7, "low"),
    "decode/topk": (0, -1, 1.5),
    "optim/lr": (float("nan"), -1, "fast"),
    "data/image_dir": (7, "x" * 5000, "a\0b"),
}
CONFIG_CASES = [
    pytest.param(place, value, id=f"{place} {str(value)[:20]}") for place, values in CONFIG.items() for value in values
]


def refused_checkpoint(content, folder):
    """The error of a checkpoint of this content; one line that names it."""
    path = folder / "x.pt"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(ValueError, match=r"^--ckpt .*x\.pt: ") as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    return str(caught.value)


@pytest.mark.parametrize(("place", "value"), CONFIG_CASES)
def test_settings_that_no_run_has(place, value, whole, tmp_path):
    refused_checkpoint(put(torch.load(whole, weights_only=True), f"config/{place}", value), tmp_path)


@pytest.mark.parametrize("field", ["layers", "num_queries", "dim_feedforward", "d_model"])
@pytest.mark.parametrize("value", [4096, 10**6])
def test_network_that_is_larger_than_its_weights(field, value, tmp_path):
    cfg = make_config(arch="transformer")
    path = save_checkpoint(tmp_path, cfg, start(cfg)[1], {}, is_best=False)
    refused_checkpoint(put(torch.load(path, weights_only=True), f"config/model/{field}", value), tmp_path)


@pytest.mark.parametrize(
    "values",
    [{"utod_large_obj_depth": 10**7}, {"utod_large_obj_ch_scale": 1e300}, {"utod_large_obj_ch_scale": 1e6}],
    ids=str,
)
def test_branch_that_is_larger_than_its_weights(values, whole, tmp_path):
    content = torch.load(whole, weights_only=True)
    content["config"]["model"] |= {"utod_large_obj_branch": True, **values}
    refused_checkpoint(content, tmp_path)


CONTENTS = {
    "a tensor that repeats one element": (weights_like((10**12,)), "larger than the file"),
    "a weight of another shape": (lambda content: put_weight(content, torch.zeros(3)), "does not fit"),
    "a weight of another type": (
        lambda content: put_weight(content, next(iter(content["state"]["model"].values())).double()),
        "float64; expected",
    ),
    "a weight that is none": (lambda content: put_weight(content, "x"), "weights are none"),
    "a sparse weight": (lambda content: put_weight(content, torch.eye(3).to_sparse()), "plain values only"),
    "a weight without memory": (
        lambda content: put_weight(content, torch.empty(9, device="meta")),
        "plain values only",
    ),
    "an unknown weight": (lambda content: put(content, "state/model/x", torch.zeros(1)), "'x' is unknown"),
    "averaged weights of another shape": (
        lambda content: put(content, "state/ema/model", {"a": torch.zeros(1)}),
        "is missing",
    ),
    "epoch in words": (lambda content: put(content, "state/epoch", "x" * 9000), "its epoch"),
    "negative epoch": (lambda content: put(content, "state/epoch", -1), "its epoch"),
    "endless epoch": (lambda content: put(content, "state/epoch", 10**30), "its epoch"),
    "mAP that is none": (lambda content: put(content, "state/last_map", float("nan")), "last_map"),
    "mAP beyond 1": (lambda content: put(content, "state/last_map", 1e308), "last_map"),
    "best in words": (lambda content: put(content, "state/best", {"map50": "high", "epoch": 1}), "its best"),
    "random numbers in words": (lambda content: put(content, "state/rng", {"cpu": "x", "cuda": []}), "random numbers"),
    "metric in words": (lambda content: put(content, "metrics", {"val/best_f1_threshold": "low"}), "metric"),
    "optimizer in words": (lambda content: put(content, "state/optimizer", "sgd"), "optimizer"),
    "options in words": (
        lambda content: put(content, "state/optimizer", {"state": {}, "param_groups": [{"betas": ["a", "b"]}]}),
        "betas",
    ),
    "settings in a list": (lambda content: {**content, "config": []}, "settings"),
    "settings of a section in a list": (lambda content: put(content, "config/model", []), "settings"),
    "deep": (lambda content: put(content, "metrics", {"x": nested(300)}), "nested"),
    "billion laughs": (lambda content: put(content, "metrics", {"x": shared(9)}), "nested too deep, or too many"),
    "large text": (lambda content: put(content, "metrics", {"x": "y" * 100_000}), "100,000 characters"),
    "large pickle": (lambda content: put(content, "metrics", {"x": "y" * 5_000_000}), "data.pkl"),
    "bytes": (lambda content: put(content, "metrics", {"x": b"y"}), "plain values only"),
    "demonstration data elsewhere": (
        lambda content: put(put(content, "config/data/demo_data", 10), "config/data/image_dir", "/tmp/elsewhere"),
        "/tmp/elsewhere",
    ),
}


@pytest.mark.parametrize("kind", CONTENTS)
def test_contents_that_no_run_writes(kind, whole, tmp_path):
    change, problem = CONTENTS[kind]
    assert problem in refused_checkpoint(change(torch.load(whole, weights_only=True)), tmp_path)


def repacked(path, changes=None, compression=zipfile.ZIP_STORED):
    """The bytes of a checkpoint with other parts, by their names behind the archive's."""
    written = io.BytesIO()
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(written, "w") as target:
        for part in source.infolist():
            content = (changes or {}).get(part.filename.partition("/")[2], source.read(part))
            target.writestr(part.filename, content, compression)
    return written.getvalue()


HUGE = b"\x80\x02cbuiltins\nbytearray\nJ\0\0\0\x70\x85R."
ARCHIVES = {
    "compressed": (lambda path: repacked(path, compression=zipfile.ZIP_DEFLATED), "compressed"),
    "a bomb": (lambda path: repacked(path, {"data/0": bytes(2**24)}, zipfile.ZIP_DEFLATED), "compressed"),
    "a call with a large number": (lambda path: repacked(path, {"data.pkl": HUGE}), "plain values only"),
    "a pickle that is none": (lambda path: repacked(path, {"data.pkl": b"x"}), "not a complete checkpoint"),
    "a zip of nothing": (lambda _: b"PK\5\6" + bytes(18), "data.pkl"),
    "a long list of contents": (lambda _: b"PK\3\4" + b"PK\5\6" + bytes(8) + struct.pack("<LLH", 2**31, 0, 0), "list"),
}


@pytest.mark.parametrize("kind", ARCHIVES)
def test_archives_that_no_run_writes(kind, whole, tmp_path):
    change, problem = ARCHIVES[kind]
    assert problem in refused_checkpoint(change(whole), tmp_path)


def test_what_is_read_is_what_was_written(whole, tmp_path):
    """And owns its memory: the file may go."""
    (tmp_path / "x.pt").write_bytes(repacked(whole))
    found, expected = load_tensors(tmp_path / "x.pt"), torch.load(whole, weights_only=True)
    (tmp_path / "x.pt").write_bytes(b"")
    for name, value in expected["state"]["model"].items():
        assert torch.equal(found["state"]["model"][name], value)
    assert found["config"] == expected["config"]
    assert read_checkpoint(whole).state["ema"]["updates"] == expected["state"]["ema"]["updates"]


@pytest.mark.parametrize("content", [{"a": torch.zeros(1).expand(10**12)}, {"a": {1.5: torch.zeros(1)}}, [b"x"]])
def test_backbone_files_that_are_hostile(content, tmp_path):
    for old in (False, True):
        torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=not old)
        with pytest.raises(ValueError, match=r"^--teacher-backbone .*x\.pth: cannot be read"):
            read_vit(tmp_path / "x.pth", "vit_tiny")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("exp_avg", (1,)),
        ("exp_avg", ()),
        ("exp_avg_sq", (1,)),
        ("exp_avg_sq", (7, 7)),
        ("step", (1,)),
        ("step", (7, 7)),
    ],
)
def test_moments_of_another_shape_are_refused_before_a_step_writes_beyond_them(name, shape, whole):
    state = copy.deepcopy(read_checkpoint(whole).state)
    state["optimizer"]["state"][0][name] = torch.zeros(shape)
    fresh = start(make_config(optim={"use_ema": True}))[1]
    with pytest.raises(ValueError, match=f"optimizer's {name} is"):
        fresh.load_state_dict(state)


# --- ONNX ---------------------------------------------------------------------------------------

PROPS = {
    "img_size": ("[1000000000, 1000000000]", "[-64, 64]", "[0, 0]", '["64", "a"]', "[64.5, 64]", "[[64], 64]", "64"),
    "topk": ("0", "-1", "1000000000", '"many"', "1e999", "true", "NaN", "[1]"),
    "pre_nms_topk": ("0", "1000000000", "{}"),
    "conf_thresh": ("NaN", "-1", "2", "1e999", "[]"),
    "nms_iou": ("NaN", "7", '"x"'),
    "best_f1_threshold": ("NaN", "7", "[0.5]"),
    "class_names": ("[]", json.dumps(["x" * 300]), json.dumps(["a"] * 20_000), "[" * 100_000, '"person"'),
    "stride": ("0", "-8", "[8]", "1e999", '"x"', "1000000000"),
    "precision": ("float64", "[]"),
    "uses_nms": ("7", "[]", "maybe"),
    "decoding_keys": ("3", '"topk"', "[[]]", "[" * 100_000),
    "anything": ("[" * 100_000, '{"a":' * 100_000, "x" * (2**20 + 1)),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in PROPS.items() for value in values])
def test_metadata_that_no_export_writes(name, value, tmp_path):
    path = write_halves(tmp_path / "x.onnx")
    model = onnx.load(path)
    helper.set_model_props(model, {**metadata_of().to_props(), name: value})
    onnx.save(model, path)
    for read in (Detector, describe_file):
        with pytest.raises(ValueError, match=r"x\.onnx: its metadata are damaged") as caught:
            read(path)
        assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "shape",
    [(1, 3, 10**6, 10**6), (10**9, 3, 64, 64), (1, 3, 4097, 1), (65, 3, 1024, 1024), (1, 3, 2**62, 2**62)],
)
def test_input_larger_than_memory(shape, tmp_path):
    ports = [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)]
    rows = [helper.make_tensor_value_info("rows", TensorProto.FLOAT, (1, 1, 6))]
    value = helper.make_tensor("value", TensorProto.FLOAT, (1, 1, 6), [0.0] * 6)
    graph = helper.make_graph([helper.make_node("Constant", [], ["rows"], value=value)], "g", ports, rows)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    (tmp_path / "x.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ValueError, match=r"x\.onnx: "):
        Detector(tmp_path / "x.onnx")


@pytest.fixture(scope="module")
def network(whole):
    """The network of the small run as a file, whose weights are raw data."""
    return onnx.load(write_onnx(whole.parent / "m.onnx", whole, merge_postprocess=False))


@pytest.mark.parametrize("location", ["../../etc/passwd", "/etc/passwd", "pipe", "missing.bin"])
def test_information_about_weights_elsewhere(location, network, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    model = copy.deepcopy(network)
    tensor = max(model.graph.initializer, key=lambda each: len(each.raw_data))
    onnx.external_data_helper.set_external_data(tensor, location=location)
    tensor.ClearField("raw_data")
    (tmp_path / "x.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ValueError, match=r"^--info .*x\.onnx: ") as caught:
        describe_file(tmp_path / "x.onnx")
    assert "root:" not in str(caught.value)
