"""INT8 files: what is quantised and what is not, how well they detect, and the report beside them."""

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import PERSON, files_below, write_yolo_folder
from exporting import built, prepared, run_model, write_checkpoint
from helpers import make_config
from onnx import TensorProto, numpy_helper
from variants import variant_config

from uhd.checkpoint import read_checkpoint
from uhd.export import quantize, report
from uhd.export.metadata import Metadata
from uhd.models import build_model, count_macs, count_parameters, fold_batchnorm
from uhd.runtime import Detector, Overrides

OUTPUT_KINDS = {
    "merged": (),
    "separate": ("--separate-outputs", "--opset", 20),
    "raw": ("--no-merge-postprocess", "--opset", 13),
    "open": ("--dynamic", "all"),
    "not simplified": ("--no-simplify",),
}
QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")


@pytest.fixture
def _no_search(monkeypatch):
    """Every layer is quantised: looking for those that had better stay in float is most of the time."""
    monkeypatch.setattr(quantize, "MAX_FLOAT_WEIGHTS", 0.0)


@pytest.fixture
def export_all(run_export, finder):
    """Exports the finder, or another checkpoint, with ranges of a dozen pictures; gives the outcome."""

    def run(*flags, checkpoint=finder / "best.pt", calib_dir=finder.parent / "data"):
        flags = ("--int8", "--calib-dir", calib_dir, "--calib-count", 12, "--calib-method", "minmax", *flags)
        return run_export("--checkpoint", checkpoint, "--output", "m.onnx", *flags)

    return run


@pytest.fixture
def export_int8(export_all, _no_search):
    """The same without the search for layers that stay in float."""
    return export_all


def nodes_after(model, names):
    """The nodes that depend on these tensors, these tensors' own makers left out."""
    known, found = set(names), []
    for node in model.graph.node:
        if known & set(node.input):
            known |= set(node.output)
            found.append(node)
    return found


def nodes_before(model, name):
    """The nodes that a tensor comes from, back to the convolutions before it."""
    makers = {output: node for node in model.graph.node for output in node.output}
    found, pending = [], [name]
    while pending:
        node = makers.get(pending.pop())
        if node is not None:
            found.append(node)
            values = {"Conv": 0, "Concat": len(node.input)}.get(node.op_type, 1)  # the others are shapes and settings
            pending += node.input[:values]
    return found


def props_of(model):
    return {prop.key: prop.value for prop in model.metadata_props}


@pytest.mark.parametrize("kind", OUTPUT_KINDS)
def test_what_is_quantised(export_int8, finder, tmp_path, kind):
    outcome = export_int8(*OUTPUT_KINDS[kind])
    assert (outcome.code, outcome.errors) == (0, [])
    model = onnx.load(tmp_path / "m.onnx")
    onnx.checker.check_model(model, full_check=True)
    flags = OUTPUT_KINDS[kind]
    opset = flags[flags.index("--opset") + 1] if "--opset" in flags else 17
    assert {each.domain: each.version for each in model.opset_import} == {"": opset}
    metadata = Metadata.from_props(props_of(model))
    assert metadata.precision == "int8"
    # Nearly all weights are stored in eight bits, those of one layer by channel.
    sizes = {tensor.name: int(np.prod(tensor.dims)) for tensor in model.graph.initializer}
    eight = [each for each in model.graph.initializer if each.data_type == TensorProto.INT8 and len(each.dims) == 4]
    layers = [node for node in model.graph.node if node.op_type == "Conv"]
    assert len(eight) > 0.6 * len(layers)
    stored = sum(sizes[each.name] for each in eight)
    whole = count_parameters(fold_batchnorm(build_model(read_checkpoint(finder / "best.pt").config.model)))
    assert stored > 0.7 * whole
    for tensor in eight:
        values = numpy_helper.to_array(tensor).reshape(len(numpy_helper.to_array(tensor)), -1)
        assert 62 <= np.abs(values.astype(int)).max(axis=1).min() <= 64  # seven bits are in use
    # The layers that give the raw map are not, nor is what follows it.
    raw_name = "txtywh_obj_quality_cls"
    assert not any(node.op_type in QUANTIZERS for node in nodes_after(model, [raw_name]))
    makers = nodes_before(model, raw_name)
    assert {node.op_type for node in makers} <= {"Conv", "Concat", "Reshape"}
    last = [node for node in makers if node.op_type == "Conv"]
    assert len(last) == 4  # box, objectness, quality, class
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert {kinds[node.input[1]] for node in last} == {TensorProto.FLOAT}


@pytest.mark.parametrize("method", ["auto", "minmax", "entropy", "percentile"])
def test_methods(export_int8, tmp_path, method):
    outcome = export_int8("--calib-method", method)
    assert (outcome.code, outcome.errors) == (0, [])
    tried = [line.split(" by ")[1].split(":")[0] for line in outcome.out if line.startswith("INT8, ranges by ")]
    percentiles = ["percentile 99.99", "percentile 99.999"]
    expected = {"minmax": ["minmax"], "entropy": ["entropy"], "percentile": percentiles}
    assert tried == expected.get(method, ["minmax", "entropy", *percentiles])
    assert sum(line.startswith("left in float: ") for line in outcome.out) == 1


@pytest.mark.parametrize(("bits", "largest"), [(7, 64), (8, 127)])
def test_weight_bits(export_int8, tmp_path, bits, largest):
    assert export_int8("--weight-bits", bits).code == 0
    model = onnx.load(tmp_path / "m.onnx")
    weights = [numpy_helper.to_array(each) for each in model.graph.initializer if len(each.dims) == 4]
    assert max(np.abs(each.astype(int)).max() for each in weights if each.dtype == np.int8) in (largest - 1, largest)


def test_integers_compute_what_the_file_says(export_int8, finder, tmp_path):
    """Without optimisation onnxruntime runs the same graph in float: no sum overflows, whatever the processor is."""
    assert export_int8("--no-merge-postprocess").code == 0
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    detector = Detector(tmp_path / "m.onnx")
    in_float = onnxruntime.InferenceSession(tmp_path / "m.onnx", options)
    for path in sorted((finder.parent / "data").glob("*.png"))[:8]:
        image = detector.preprocess([cv2.imread(str(path))])
        (found, *_), (expected, *_) = (
            session.run(["txtywh_obj_quality_cls"], {"images": image}) for session in (detector.session, in_float)
        )
        # Where a value lies between two steps, either is right; what follows carries that on.
        assert np.abs(found - expected).mean() < 0.02 * expected.std()


@pytest.mark.parametrize("kind", ["merged", "raw"])
def test_detects_like_the_float_file(export_int8, run_export, finder, tmp_path, kind):
    data = finder.parent / "data"
    assert run_export("--checkpoint", finder / "best.pt", "--output", "float.onnx", *OUTPUT_KINDS[kind]).code == 0
    assert export_int8(*OUTPUT_KINDS[kind]).code == 0
    threshold = Overrides(conf_thresh=0.1)
    exact, small = (Detector(tmp_path / name, threshold) for name in ("float.onnx", "m.onnx"))
    counts, gaps = [], []
    for path in sorted(data.glob("*.png"))[:60]:
        image = cv2.imread(str(path))
        expected, found = exact(image), small(image)
        counts.append((len(expected), len(found)))
        if len(expected) and len(found):
            gaps.append(np.abs(expected.boxes[:1] - found.boxes).max(axis=1).min())
    counts = np.array(counts)
    assert counts[:, 0].sum() > 40
    assert np.abs(counts[:, 0] - counts[:, 1]).mean() < 0.5
    assert np.median(gaps) < 1.5  # pixels of 32
    assert (tmp_path / "m.onnx").stat().st_size < 0.9 * (tmp_path / "float.onnx").stat().st_size


def test_verify_finds_a_lower_map(export_int8, finder, tmp_path, monkeypatch):
    def broken(network, inputs, method, settings):
        ranges = measure(network, inputs, method, settings)
        return {name: (np.float32(0), np.float32(0.1) * high) for name, (low, high) in ranges.items()}

    measure = quantize.measure_ranges
    monkeypatch.setattr(quantize, "measure_ranges", broken)
    before = files_below(tmp_path)
    outcome = export_int8("--verify", "--image-dir", finder.parent / "data", "--image-count", 50)
    assert outcome.code == 1
    assert len(outcome.errors) == 1
    assert "--verify: mAP@0.5 of the file is" in outcome.errors[0]
    assert files_below(tmp_path) == before


@pytest.mark.parametrize(
    "name",
    [
        *("relu", "full head", "large objects, deep", "context", "stride 16, residual"),
        *("cnn, skip, wider last", "cnn, anchors, full", "cnn, shufflenet, skip, se", "cnn, resnet, skip s2d"),
        *("transformer, plain", "transformer, fpn", "nanodet, plain"),
        *("tinyssd, relu, mined", "tinyssd, published, conv"),
    ],
)
def test_architectures(export_int8, tmp_path, name):
    checkpoint = write_checkpoint(tmp_path, variant_config(name))
    data = write_yolo_folder(tmp_path / "in", [PERSON] * 4, size=(64, 64))
    outcome = export_int8("--no-merge-postprocess", checkpoint=checkpoint, calib_dir=data)
    assert (outcome.code, outcome.errors) == (0, [])
    detector = Detector(tmp_path / "m.onnx")
    image = detector.preprocess([cv2.imread(str(data / "000.png"))])
    exact = run_model(built(prepared(checkpoint, merge_postprocess=False)), image)
    found = run_model(onnx.load(tmp_path / "m.onnx"), image)
    for output, expected in exact.items():
        if output in ("anchors", "wh_scale"):
            assert np.array_equal(found[output], expected)
        else:
            # nanodet's coarsest grid has four cells, behind all layers of a random network.
            least = 0.9 if output == "grid32" else 0.95
            assert np.corrcoef(found[output].ravel(), expected.ravel())[0, 1] > least


def test_layers_that_lose_most_stay_in_float(export_all, tmp_path, monkeypatch):
    """Where much may stay in float and every gain counts, several layers do; the last ones always. The same each time.

    The last layers are those of box, objectness, quality and class. A search among the first ten is enough here.
    """
    layers_of = quantize.layers_of
    monkeypatch.setattr(quantize, "layers_of", lambda network: layers_of(network)[:10])
    monkeypatch.setattr(quantize, "MAX_FLOAT_WEIGHTS", 0.5)
    monkeypatch.setattr(quantize, "MAX_FLOAT_MACS", 0.5)
    monkeypatch.setattr(quantize, "MIN_GAIN", 0.001)
    contents = []
    for _ in range(2):
        outcome = export_all()
        assert (outcome.code, outcome.errors) == (0, [])
        contents.append((tmp_path / "m.onnx").read_bytes())
    assert contents[0] == contents[1]
    assert len(layers_in_float(outcome)) > 4
    monkeypatch.setattr(quantize, "MAX_FLOAT_WEIGHTS", 0.0)
    outcome = export_all()
    assert len(layers_in_float(outcome)) == 4
    assert len(contents[0]) > (tmp_path / "m.onnx").stat().st_size


def layers_in_float(outcome):
    """The layers that the log lists."""
    (line,) = (line for line in outcome.out if line.startswith("left in float: "))
    return line.removeprefix("left in float: ").split(", ")


def test_info(export_int8, run_export, finder):
    assert export_int8().code == 0
    outcome = run_export("--info", "m.onnx")
    assert (outcome.code, outcome.err) == (0, [])
    table = dict(line.split("  ", 1) for line in outcome.out if not line.startswith(" "))
    table = {name: text.strip() for name, text in table.items()}
    model = fold_batchnorm(build_model(read_checkpoint(finder / "best.pt").config.model))
    assert table["parameters"] == f"{count_parameters(model) - 4:,}"  # without the scale of two anchors
    assert table["multiply-adds"] == f"{count_macs(model, 32, 32):,}"
    assert table["precision"] == "int8"


@pytest.mark.usefixtures("_no_search")
def test_default_name(run_export, tmp_path):
    write_checkpoint(tmp_path, make_config())
    data = write_yolo_folder(tmp_path / "in", [PERSON] * 3)
    outcome = run_export("--checkpoint", "best.pt", "--int8", "--calib-dir", data)
    assert (outcome.code, outcome.errors) == (0, [])
    assert outcome.out[-1].startswith("wrote best_int8.onnx (")
    assert (tmp_path / "best_int8.onnx").is_file()
    assert not (tmp_path / "best.onnx").exists()


@pytest.mark.usefixtures("_no_search")
@pytest.mark.parametrize("labels", [["no label\n", PERSON, "0 nan 0 0 0\n"], [None] * 3, ["", "", ""]], ids=str)
def test_calibration_needs_no_labels(run_export, tmp_path, labels):
    write_checkpoint(tmp_path, make_config())
    write_yolo_folder(tmp_path / "in", labels)
    outcome = run_export("--checkpoint", "best.pt", "--int8", "--calib-dir", "in", "--calib-method", "minmax")
    assert (outcome.code, outcome.errors) == (0, [])


@pytest.mark.usefixtures("_no_search")
@pytest.mark.parametrize("count", [0, 1, 3])
def test_number_of_calibration_pictures(run_export, tmp_path, count):
    write_checkpoint(tmp_path, make_config())
    write_yolo_folder(tmp_path / "in", [PERSON] * 5)
    flags = ("--calib-dir", "in", "--calib-count", count, "--calib-method", "minmax")
    outcome = run_export("--checkpoint", "best.pt", "--int8", *flags)
    assert outcome.code == 0
    assert any(f"--calib-dir in: {count or 5} pictures" in line for line in outcome.out)


def test_stdout_is_that_of_the_program(export_int8):
    """onnxruntime's calibrators print; that is not let through."""
    outcome = export_int8("--calib-method", "entropy")
    known = ("ultratinyod: ", "--calib-dir ", "INT8", "left in float: ", "wrote ")
    assert [line for line in outcome.out if not line.startswith(known)] == []
    (warning,) = outcome.err
    assert "ranges from 12 pictures are rough" in warning


# --- the report ---------------------------------------------------------------------------------


@pytest.fixture
def _few_runs(monkeypatch):
    monkeypatch.setattr(report, "LATENCY_RUNS", 5)


@pytest.mark.usefixtures("_few_runs")
def test_report(export_int8, finder, tmp_path):
    outcome = export_int8("--report", "--image-dir", finder.parent / "data", "--image-count", 40)
    assert (outcome.code, outcome.errors) == (0, [])
    assert {path.name for path in tmp_path.iterdir()} == {"m.onnx", "m_report.md", "m_report.png"}
    heading, empty, *lines = (tmp_path / "m_report.md").read_text().splitlines()
    assert heading.startswith("m.onnx, from ")
    assert heading.endswith("mAP on 40 pictures, 60 boxes")
    assert empty == ""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [row[0] for row in rows] == ["", "---", "FP32", "INT8"]
    assert len({len(row) for row in rows}) == 1
    assert rows[3][3] == f"{(tmp_path / 'm.onnx').stat().st_size:,}"
    assert rows[2][2] == "+0.00000"
    float_map, int8_map = (float(row[1]) for row in rows[2:])
    assert float_map > 0.7
    assert int8_map > float_map - 0.1  # a dozen pictures are few to measure ranges on
    assert all(float(row[5]) > 0 for row in rows[2:])
    assert [line for line in outcome.out if line.startswith("|")] == lines
    assert min(cv2.imread(str(tmp_path / "m_report.png")).shape[:2]) > 100


@pytest.mark.usefixtures("_few_runs")
def test_report_without_labels(export_int8, tmp_path):
    write_yolo_folder(tmp_path / "in", [None] * 3)
    outcome = export_int8("--report", "--image-dir", "in")
    assert (outcome.code, outcome.errors) == (0, [])
    assert (tmp_path / "m_report.md").read_text().splitlines()[4].startswith("| FP32 | - | - |")
    assert (tmp_path / "m_report.png").is_file()


@pytest.mark.usefixtures("_few_runs")
def test_report_on_the_calibration_pictures(export_int8):
    """Where no others are given, those of --calib-dir."""
    outcome = export_int8("--report", "--image-count", 20)
    assert outcome.code == 0
    assert sum("--calib-dir " in line and "pictures" in line for line in outcome.out) == 2
