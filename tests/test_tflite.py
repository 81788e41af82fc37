"""The TFLite path as far as it goes without its own environment: what is asked of onnx2tf, and how a file is read."""

import sys
import types

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from uhd.export import tflite


def raw_graph(path, channels=6, size=(32, 64), anchors=True):
    """images [1,3,H,W] to the mean of each 8x8 cell, repeated to `channels`, and two outputs that are constants."""
    height, width = size
    weights = np.full((channels, 3, 8, 8), 1 / 192, np.float32)
    nodes = [helper.make_node("Conv", ["images", "weights"], ["raw"], strides=[8, 8], kernel_shape=[8, 8])]
    outputs = [helper.make_tensor_value_info("raw", TensorProto.FLOAT, [1, channels, height // 8, width // 8])]
    initializers = [numpy_helper.from_array(weights, "weights")]
    if anchors:
        initializers.append(numpy_helper.from_array(np.ones((1, 2), np.float32), "values"))
        nodes += [helper.make_node("Identity", ["values"], [name]) for name in ("anchors", "wh_scale")]
        outputs += [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2]) for name in ("anchors", "wh_scale")]
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, height, width])
    graph = helper.make_graph(nodes, "raw", [images], outputs, initializers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


class FakeInterpreter:
    """Stands for ai_edge_litert's: gives each 8x8 cell's mean, as the graph above, in any layout and type."""

    layout, dtype, scale, zero_point = "NHWC", np.int8, 1 / 255, -128
    channels, size, seen = 6, (32, 64), None

    def __init__(self, model_content, experimental_op_resolver_type):
        if model_content != b"a tflite file":
            raise ValueError("Model provided has model identifier 'xxxx', should be 'TFL3'")

    def allocate_tensors(self):
        pass

    def _details(self, shape, index):
        quantization = (0.0, 0) if self.dtype is np.float32 else (self.scale, self.zero_point)
        return [{"index": index, "shape": np.array(shape), "dtype": self.dtype, "quantization": quantization}]

    def get_input_details(self):
        height, width = self.size
        return self._details((1, height, width, 3) if self.layout == "NHWC" else (1, 3, height, width), 0)

    def get_output_details(self):
        rows, columns = (side // 8 for side in self.size)
        return self._details((1, rows, columns, self.channels) if self.layout == "NHWC" else (1, 6, rows, columns), 1)

    def set_tensor(self, index, value):
        type(self).seen = value

    def invoke(self):
        pass

    def get_tensor(self, index):
        rows, columns = (side // 8 for side in self.size)
        image = self.seen[0] if self.layout == "NHWC" else self.seen[0].transpose(1, 2, 0)
        means = image.astype(np.float64).reshape(rows, 8, columns, 8, 3).mean(axis=(1, 3, 4))
        stored = means if self.dtype is np.float32 else np.rint(means)
        found = np.repeat(stored[..., None], self.channels, axis=2).astype(self.dtype)
        return found[None] if self.layout == "NHWC" else found.transpose(2, 0, 1)[None]


@pytest.fixture
def interpreter(monkeypatch):
    """The fake in place of the package."""
    kernels = types.SimpleNamespace(BUILTIN_REF=0, AUTO=1)
    module = types.SimpleNamespace(Interpreter=FakeInterpreter, OpResolverType=kernels)
    monkeypatch.setitem(sys.modules, "ai_edge_litert", types.ModuleType("ai_edge_litert"))
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", module)
    return FakeInterpreter


def pictures(count=3, size=(32, 64)):
    return np.random.default_rng(0).random((count, 3, *size), dtype=np.float32)


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize("dtype", [np.int8, np.float32])
def test_a_file_is_read_in_its_own_layout_and_type(layout, dtype, interpreter, monkeypatch, tmp_path):
    monkeypatch.setattr(interpreter, "layout", layout)
    monkeypatch.setattr(interpreter, "dtype", dtype)
    path = tmp_path / "a.tflite"
    path.write_bytes(b"a tflite file")
    images = pictures()
    found = tflite.run_tflite(path, images)
    expected = images.reshape(3, 3, 4, 8, 8, 8).mean(axis=(1, 3, 5))
    assert found.shape == (3, 6, 4, 8)
    assert found.dtype == np.float32
    tolerance = 1e-6 if dtype is np.float32 else 1 / 255
    assert np.abs(found - expected[:, None]).max() <= tolerance
    differences = tflite.compare(raw_graph(tmp_path / "raw.onnx"), path, images, ["tx", "ty", "tw", "th", "obj", "cls"])
    assert list(differences) == ["tx", "ty", "tw", "th", "obj", "cls"]
    assert all(each.mean <= each.largest <= tolerance for each in differences.values())


def test_pictures_of_another_size_are_refused(interpreter, tmp_path):
    path = tmp_path / "a.tflite"
    path.write_bytes(b"a tflite file")
    with pytest.raises(ValueError, match=r"a\.tflite: takes \[1, 32, 64, 3\], not pictures of 64x64"):
        tflite.run_tflite(path, pictures(size=(64, 64)))


@pytest.mark.parametrize(("content", "reason"), [(b"text", "not a TFLite file"), (None, "cannot be read")])
def test_what_is_no_tflite_file_is_named(content, reason, interpreter, tmp_path):
    path = tmp_path / "a.tflite"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.tflite: {reason}"):
        tflite.run_tflite(path, pictures())


def test_outputs_that_do_not_depend_on_the_picture_are_cut(tmp_path):
    model = onnx.load(raw_graph(tmp_path / "raw.onnx"))
    cut = tflite.without_constant_outputs(model, tmp_path)
    assert [value.name for value in cut.graph.output] == ["raw"]
    assert [node.op_type for node in cut.graph.node] == ["Conv"]
    assert [value.name for value in cut.graph.initializer] == ["weights"]


def test_a_graph_with_several_maps_is_refused(tmp_path):
    model = onnx.load(raw_graph(tmp_path / "raw.onnx"))
    model.graph.node.append(helper.make_node("Relu", ["raw"], ["more"]))
    model.graph.output.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, None))
    with pytest.raises(ValueError, match="raw, more"):
        tflite.without_constant_outputs(model, tmp_path)


def no_environment(monkeypatch, tmp_path):
    monkeypatch.setattr(tflite.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(tflite, "_ENVIRONMENT", tmp_path / "tflite")


def test_without_the_converter_the_command_that_installs_it_is_named(interpreter, monkeypatch, tmp_path):
    no_environment(monkeypatch, tmp_path)
    with pytest.raises(ValueError, match="onnx2tf is not installed; install it with `uv sync --project tflite`"):
        tflite.convert(raw_graph(tmp_path / "raw.onnx"), pictures(), tmp_path / "a.tflite")
    assert not (tmp_path / "a.tflite").exists()


def test_another_version_of_the_converter_is_refused(interpreter, monkeypatch, tmp_path):
    no_environment(monkeypatch, tmp_path)
    python = tmp_path / "tflite" / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\necho 2.6.9\n")
    python.chmod(0o755)
    with pytest.raises(ValueError, match=r"onnx2tf 2\.6\.9 .*expected 1\.29"):
        tflite.convert(raw_graph(tmp_path / "raw.onnx"), pictures(), tmp_path / "a.tflite")


def test_a_failed_conversion_ends_with_the_converters_last_line(interpreter, monkeypatch, tmp_path):
    no_environment(monkeypatch, tmp_path)
    python = tmp_path / "tflite" / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    script = '#!/bin/sh\ncase "$*" in -c*) echo 1.29.24;; *) ls >"$SEEN"; echo ERROR: no such operator; exit 3;; esac\n'
    python.write_text(script)
    python.chmod(0o755)
    monkeypatch.setenv("SEEN", str(tmp_path / "seen"))
    with pytest.raises(ValueError, match=r"raw\.onnx: onnx2tf could not convert it .*ERROR: no such operator"):
        tflite.convert(raw_graph(tmp_path / "raw.onnx"), pictures(), tmp_path / "a.tflite")
    # Our pictures lie where the converter would else download its own.
    assert (tmp_path / "seen").read_text().split() == [
        "calibration_image_sample_data_20x128x128x3_float32.npy",
        "raw.onnx",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw.onnx", "seen", "tflite"]


def test_without_the_interpreter_the_command_that_installs_it_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    with pytest.raises(ValueError, match="uv sync --group tflite"):
        tflite.run_tflite(tmp_path / "a.tflite", pictures())


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        (np.zeros((0, 3, 32, 64), np.float32), "expected float32"),
        (np.zeros((2, 3, 64, 64), np.float32), "expected float32"),
        (np.zeros((2, 3, 32, 64), np.uint8), "expected float32"),
        (np.full((2, 3, 32, 64), 255, np.float32), "expected 0 to 1"),
        (np.full((2, 3, 32, 64), np.nan, np.float32), "expected 0 to 1"),
    ],
    ids=["none", "size", "type", "range", "nan"],
)
def test_calibration_pictures_are_checked(images, reason):
    with pytest.raises(ValueError, match=reason):
        tflite._check_calibration(images, (1, 3, 32, 64))
