"""What the runtime refuses: files that are no detector, pictures of another kind, settings that cannot be."""

import numpy as np
import onnx
import pytest
from exporting import write_checkpoint, write_onnx
from onnx import TensorProto, helper
from tiny_onnx import write_halves, write_raw, write_rows
from variants import variant_config

from uhd.runtime import Detector, Overrides

BLACK = np.zeros((20, 20, 3), np.uint8)
FORMS = {"merged": {}, "separate": {"separate_outputs": True}, "raw": {"merge_postprocess": False}}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A file of each form, of a network with three classes."""
    folder = tmp_path_factory.mktemp("files")
    checkpoint = write_checkpoint(folder, variant_config("three classes, vfl"))
    return {
        form: write_onnx(folder / f"{form}.onnx", checkpoint, topk=30, **options) for form, options in FORMS.items()
    }


WRONG = {
    "conf_thresh": (-0.1, 1.5, float("nan")),
    "nms_iou": (-0.1, 1.5, float("nan")),
    "topk": (0, -1),
    "resize_mode": ("cubic", ""),
    "score_mode": ("best", "cls*obj", ""),
    "quality_power": (-1.0, float("nan"), float("inf")),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_overrides_out_of_range(name, value):
    with pytest.raises(ValueError, match=name):
        Overrides(**{name: value})


@pytest.mark.parametrize(
    ("form", "overrides", "fragment"),
    [
        ("merged", {"nms_iou": 0.3}, "nms_iou"),
        ("separate", {"nms_iou": 0.3}, "nms_iou"),
        ("merged", {"topk": 31}, "topk 31"),
        ("merged", {"score_mode": "cls"}, "score_mode"),
        ("merged", {"quality_power": 2.0}, "quality_power"),
        ("merged", {"class_names": ("a", "b")}, "2 class names"),
        ("raw", {"class_names": ("a",)}, "1 class names"),
    ],
)
def test_overrides_of_what_a_file_has_settled(files, form, overrides, fragment):
    with pytest.raises(ValueError, match=fragment) as caught:
        Detector(files[form], Overrides(**overrides))
    assert str(files[form]) in str(caught.value)


def test_lower_threshold_than_the_files(tmp_path):
    path = write_halves(tmp_path / "m.onnx", conf_thresh=0.25)
    with pytest.raises(ValueError, match=r"m\.onnx: conf_thresh 0\.1: .*0\.25"):
        Detector(path, Overrides(conf_thresh=0.1))


def test_quality_of_a_map_that_has_none(tmp_path):
    path = write_raw(tmp_path / "m.onnx", np.zeros((1, 6, 2, 2)), np.ones((1, 2)), np.ones((1, 2)))
    assert len(Detector(path, Overrides(conf_thresh=0.2, score_mode="cls"))(BLACK)) == 4
    with pytest.raises(ValueError, match=r"m\.onnx: score_mode quality\*cls"):
        Detector(path, Overrides(score_mode="quality*cls"))


def test_another_size_than_a_fixed_one(files):
    with pytest.raises(ValueError, match=r"merged\.onnx: .*32x32.* its input is 64x64"):
        Detector(files["merged"], img_size=(32, 32))


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((20, 20), np.uint8),
        np.zeros((20, 20, 1), np.uint8),
        np.zeros((20, 20, 4), np.uint8),
        np.zeros((20, 20, 3), np.uint16),
        np.zeros((20, 20, 3), np.float32),
        np.zeros((0, 20, 3), np.uint8),
        np.zeros((1, 20, 20, 3), np.uint8),
    ],
    ids=lambda image: f"{image.dtype}{list(image.shape)}",
)
def test_picture_of_another_kind(files, image):
    with pytest.raises(ValueError, match=r"a picture of .*; expected uint8 \[h,w,3\]"):
        Detector(files["merged"]).detect_batch([BLACK, image])


def classifier(path, size=(1, 3, 8, 8), outputs=1, kind=TensorProto.FLOAT):
    """A file that is no detector: the mean of each channel."""
    node = helper.make_node("ReduceMean", ["x"], ["y"], axes=[2, 3], keepdims=0)
    ports = [helper.make_tensor_value_info("x", kind, size), helper.make_tensor_value_info("y", kind, size[:2])]
    graph = helper.make_graph([node], "g", ports[:1], ports[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)


NO_DETECTORS = {
    "classifier": lambda path, whole: classifier(path),
    "grey pictures": lambda path, whole: classifier(path, (1, 1, 8, 8)),
    "double": lambda path, whole: classifier(path, kind=TensorProto.DOUBLE),
    "text": lambda path, whole: path.write_text("text\n"),
    "empty": lambda path, whole: path.touch(),
    "truncated": lambda path, whole: path.write_bytes(whole[: len(whole) // 2]),
    "without its end": lambda path, whole: path.write_bytes(whole[:-30]),
    "missing": lambda path, whole: None,
    "folder": lambda path, whole: path.mkdir(),
    "map of wrong channels": lambda path, whole: write_raw(
        path, np.zeros((1, 7, 2, 2)), np.ones((2, 2)), np.ones((2, 2))
    ),
    "rows of five": lambda path, whole: write_rows(path, [(0.9, 0, 0.5, 0.5, 0.1)]),
}


@pytest.mark.parametrize("case", NO_DETECTORS)
def test_file_that_is_no_detector(files, tmp_path, case):
    path = tmp_path / "x.onnx"
    NO_DETECTORS[case](path, files["merged"].read_bytes())
    with pytest.raises(ValueError, match=r"x\.onnx: ") as caught:
        Detector(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 450


def test_outputs_that_the_metadata_do_not_announce(files, tmp_path):
    model = onnx.load(files["merged"])
    props = {prop.key: prop.value for prop in model.metadata_props} | {"outputs": "separate"}
    helper.set_model_props(model, props)
    onnx.save(model, tmp_path / "x.onnx")
    with pytest.raises(ValueError, match=r"x\.onnx: its outputs are score_classid_cxcywh; .* boxes, scores, labels"):
        Detector(tmp_path / "x.onnx")


@pytest.mark.parametrize("place", ["../weights.bin", "weights.bin", "absolute"])
def test_weights_outside_the_file(files, tmp_path, place):
    """Only what lies in the model's folder may be read."""
    folder = tmp_path / "model"
    folder.mkdir()
    location = str(tmp_path / "weights.bin") if place == "absolute" else place
    model = onnx.load(files["raw"])
    tensor = max(model.graph.initializer, key=lambda each: len(each.raw_data))
    (folder / location).write_bytes(tensor.raw_data)
    onnx.external_data_helper.set_external_data(tensor, location=location)
    tensor.ClearField("raw_data")
    (folder / "x.onnx").write_bytes(model.SerializeToString())
    if place == "weights.bin":
        assert len(Detector(folder / "x.onnx", Overrides(conf_thresh=0.0))(BLACK)) > 0
        return
    with pytest.raises(ValueError, match=r"x\.onnx: "):
        Detector(folder / "x.onnx")
