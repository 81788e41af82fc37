"""What an exported file says about itself, through a real file and back."""

import dataclasses
import json

import onnx
import onnxruntime
import pytest
import torch
from exporting import METRICS, built, prepared, write_checkpoint, write_onnx
from helpers import make_config
from tiny_onnx import metadata_of, write_halves
from variants import variant_config

import uhd
from uhd.config import InputConfig, LabelsConfig
from uhd.export.metadata import Metadata
from uhd.runtime import Detector

KINDS = {
    "merged": {},
    "separate": {"separate_outputs": True},
    "raw": {"merge_postprocess": False},
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("run"), variant_config("full head"))


def props_of(path):
    return onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map


def with_props(source, path, change):
    """A copy of a file whose metadata are changed."""
    model = onnx.load(source)
    props = {prop.key: prop.value for prop in model.metadata_props}
    change(props)
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, props)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip(checkpoint, tmp_path, kind):
    export = prepared(checkpoint, **KINDS[kind])
    path = write_onnx(tmp_path / "m.onnx", checkpoint, **KINDS[kind])
    found = Metadata.from_props(props_of(path))
    assert found == export.metadata
    assert Detector(path).metadata == found
    assert found.outputs == kind


def test_what_a_file_says(checkpoint, tmp_path):
    found = props_of(write_onnx(tmp_path / "m.onnx", checkpoint))
    weights = torch.load(checkpoint, weights_only=True)["state"]["model"]
    expected = {
        **{"uhd_version": uhd.__version__, "arch": "ultratinyod", "outputs": "merged", "precision": "float32"},
        **{"class_names": '["person"]', "img_size": "[64, 64]", "resize_mode": "opencv_inter_area"},
        **{"input_layout": "NCHW", "input_channels": "RGB", "input_range": "0-1"},
        **{"score_mode": "quality*cls", "has_quality": "true", "quality_power": "1.0", "num_classes": "1"},
        **{"stride": "8", "conf_thresh": "0.0", "nms_iou": "0.5", "topk": "100", "pre_nms_topk": "512"},
        **{"best_f1_threshold": "0.375", "map50": "0.625", "epoch": "7", "uses_nms": "true"},
    }
    assert found.items() >= expected.items()
    for name in ("anchors", "wh_scale"):
        assert json.loads(found[name]) == weights[name].tolist()


@pytest.mark.parametrize(
    ("name", "mode", "power"),
    [
        ("plain", "obj*cls", 1.0),
        ("improved", "obj*quality*cls", 1.0),
        ("quality power", "obj*quality*cls", 0.5),
        ("iou-aware", "quality*cls", 1.0),
    ],
)
def test_scores(tmp_path, name, mode, power):
    metadata = prepared(write_checkpoint(tmp_path, variant_config(name))).metadata
    assert (metadata.decoding["score_mode"], metadata.decoding["quality_power"]) == (mode, power)


def test_options_of_the_export(checkpoint):
    options = {"conf_thresh": 0.25, "nms_iou": 0.4, "topk": 20}
    merged = prepared(checkpoint, **options).metadata
    assert (merged.conf_thresh, merged.nms_iou, merged.topk) == (0.25, 0.4, 20)
    # The maps of a raw file know no threshold.
    assert prepared(checkpoint, merge_postprocess=False, **options).metadata.conf_thresh == 0


MEASURED = {
    # row, figures of the checkpoint, size and options of the export, threshold and mAP that the file carries
    "validated": ("plain", METRICS, None, {}, (0.375, 0.625)),
    "never validated": ("plain", {}, None, {}, (None, None)),
    "figures without a value": ("plain", dict.fromkeys(METRICS), None, {}, (None, None)),
    "at the same size": ("plain", METRICS, (64, 64), {}, (0.375, 0.625)),
    "at another size": ("plain", METRICS, (96, 64), {}, (None, None)),
    "averaged": ("ema", METRICS, None, {}, (0.375, 0.625)),
    "not the averaged ones": ("ema", METRICS, None, {"ema": False}, (None, None)),
    "nothing averaged": ("plain", METRICS, None, {"ema": False}, (0.375, 0.625)),
}


@pytest.mark.parametrize("case", MEASURED)
def test_figures_belong_to_what_was_measured(tmp_path, case):
    name, metrics, size, options, expected = MEASURED[case]
    path = write_checkpoint(tmp_path, variant_config(name), metrics=metrics)
    metadata = Metadata.from_props(prepared(path, img_size=size, **options).metadata.to_props())
    assert (metadata.best_f1_threshold, metadata.map50) == expected


def test_names_and_resize_mode(tmp_path):
    names = ("Mädchen", "人", '"quoted", with comma', "7", "null", "")
    cfg = make_config(img_size=(64, 64), model={"num_classes": 6})
    labels = LabelsConfig(classes=tuple(range(6)), num_classes=6, class_names=names)
    cfg = dataclasses.replace(cfg, labels=labels, input=InputConfig((64, 64), "torch_nearest"))
    path = write_onnx(tmp_path / "m.onnx", write_checkpoint(tmp_path, cfg))
    detector = Detector(path)
    assert detector.class_names == names
    assert detector.metadata.resize_mode == "torch_nearest"
    assert "Mädchen" in props_of(path)["class_names"]  # readable in the file, too


def test_texts_that_look_like_numbers():
    metadata = metadata_of(("1",), arch="007", uhd_version="2", details={"note": "text", "stride": 8})
    assert Metadata.from_props(metadata.to_props()) == metadata


def test_a_file_of_another_program():
    assert Metadata.from_props({}) is None
    assert Metadata.from_props({"author": "someone", "arch": "x"}) is None


DAMAGED = {
    **{
        f"no {key}": (lambda props, key=key: props.pop(key))
        for key in metadata_of().to_props()
        if key not in ("uhd_version", "nms", "nms_sigma")
    },
    "unknown outputs": lambda props: props.update(outputs="heat map"),
    "size of one number": lambda props: props.update(img_size="[64]"),
    "size in words": lambda props: props.update(img_size="large"),
    "not JSON": lambda props: props.update(class_names="[person"),
    "names that are none": lambda props: props.update(class_names="null"),
    "names that are a number": lambda props: props.update(class_names="3"),
    "threshold in words": lambda props: props.update(conf_thresh="low"),
    "no suppression": lambda props: props.update(nms="none"),
    "suppression of no width": lambda props: props.update(nms_sigma="0"),
    "no threshold": lambda props: props.update(conf_thresh="null"),
    "rows in words": lambda props: props.update(topk="many"),
    "another range": lambda props: props.update(input_range="0-255"),
    "another layout": lambda props: props.update(input_layout="NHWC"),
    "other channels": lambda props: props.update(input_channels="BGR"),
    "an unknown way of resizing": lambda props: props.update(resize_mode="cubic"),
    "keys that are not there": lambda props: props.update(decoding_keys='["wings"]'),
    "keys that are none": lambda props: props.update(decoding_keys="null"),
    "outputs of another kind": lambda props: props.update(outputs="separate"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_metadata(tmp_path, case):
    source = write_halves(tmp_path / "whole.onnx", class_names=("person",))
    path = with_props(source, tmp_path / "m.onnx", DAMAGED[case])
    with pytest.raises(ValueError, match=r"m\.onnx: ") as caught:
        Detector(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "change", [{"decoder": "heat map"}, {"score_mode": "best"}, {"num_classes": "0"}, {"has_quality": "maybe"}], ids=str
)
def test_damaged_decoding(checkpoint, tmp_path, change):
    source = write_onnx(tmp_path / "whole.onnx", checkpoint, merge_postprocess=False)
    path = with_props(source, tmp_path / "m.onnx", lambda props: props.update(change))
    with pytest.raises(ValueError, match=r"m\.onnx: "):
        Detector(path)


def test_keys_of_a_later_version_are_left_alone(checkpoint, tmp_path):
    source = write_onnx(tmp_path / "whole.onnx", checkpoint)
    path = with_props(source, tmp_path / "m.onnx", lambda props: props.update(wings="2"))
    assert Detector(path).metadata.details["wings"] == 2


def test_producer(checkpoint):
    model = built(prepared(checkpoint))
    assert (model.producer_name, model.producer_version) == ("uhd", uhd.__version__)
