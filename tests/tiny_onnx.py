"""Detectors of a few operators, as ONNX files: how red each half of the picture is, or constants."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from uhd.export.metadata import Metadata

SIDE = 16
LEFT, RIGHT = (0.25, 0.5, 0.5, 1.0), (0.75, 0.5, 0.5, 1.0)
"""cx, cy, w, h of the halves."""


def write_halves(path: Path, labels: Sequence[int] = (0, 0), **says: object) -> Path:
    """A file of finished rows, [1,2,6]: each half of the picture scores the mean of its red channel.

    says: what its metadata say (fields of Metadata); without it the file says nothing of itself, as releases of the
    original program do.
    """
    nodes, rows = [], []
    for i, (label, box) in enumerate(zip(labels, (LEFT, RIGHT), strict=True)):
        start = i * SIDE // 2
        for name, value in (("from", (0, start)), ("to", (1, start + SIDE // 2)), ("axes", (1, 3)), ("last", (3,))):
            nodes.append(_constant(f"{name}{i}", np.array(value)))
        nodes.append(_constant(f"rest{i}", np.array([[[label, *box]]], np.float32)))
        nodes.append(helper.make_node("Slice", ["images", f"from{i}", f"to{i}", f"axes{i}"], [f"half{i}"]))
        nodes.append(helper.make_node("ReduceMean", [f"half{i}"], [f"mean{i}"], axes=[1, 2, 3], keepdims=1))
        nodes.append(helper.make_node("Squeeze", [f"mean{i}", f"last{i}"], [f"score{i}"]))
        nodes.append(helper.make_node("Concat", [f"score{i}", f"rest{i}"], [f"row{i}"], axis=2))
        rows.append(f"row{i}")
    output = "score_classid_cxcywh"
    nodes.append(helper.make_node("Concat", rows, [output], axis=1))
    return _save(path, nodes, {output: (1, 2, 6)}, **says)


def write_rows(path: Path, rows: Sequence[Sequence[float]], output: str = "detections") -> Path:
    """A file that finds the same rows (score, class, cx, cy, w, h) in every picture."""
    values = np.array([rows], np.float32)
    return _save(path, [_constant(output, values)], {output: values.shape})


def write_raw(path: Path, logits: np.ndarray, anchors: np.ndarray, wh_scale: np.ndarray) -> Path:
    """A file of raw maps, named as in the original program's releases: [1,A*(5+q+C),h,w], [A,2] and [A,2]."""
    outputs = {"pred": logits, "anchors": anchors, "wh_scale": wh_scale}
    nodes = [_constant(name, values.astype(np.float32)) for name, values in outputs.items()]
    return _save(path, nodes, {name: values.shape for name, values in outputs.items()})


def write_nanodet(
    path: Path,
    table: np.ndarray,
    size: tuple[int | str, int | str],
    names: tuple[str, str] = ("data", "output"),
    **says: object,
) -> Path:
    """A file laid out as a release of Enhanced NanoDet: input [1,3,*size], output the same [N,C+32] for every picture.

    A size that is a text is open. The first score of the first row is not the table's: it is half of 1 and the mean of
    the input's first channel.
    """
    data, output = names
    values = table.astype(np.float32)[None]
    nodes = [
        _constant("first", np.array([0])),
        _constant("half", np.array(0.5, np.float32)),
        _constant("rest", values[:, :1, 1:]),
        _constant("others", values[:, 1:]),
        _constant("shape", np.array([1, 1, 1])),
        helper.make_node("Gather", [data, "first"], ["channel"], axis=1),
        helper.make_node("ReduceMean", ["channel"], ["mean"], axes=[1, 2, 3], keepdims=1),
        helper.make_node("Mul", ["mean", "half"], ["halved"]),
        helper.make_node("Add", ["halved", "half"], ["score"]),
        helper.make_node("Reshape", ["score", "shape"], ["flat"]),
        helper.make_node("Concat", ["flat", "rest"], ["row"], axis=2),
        helper.make_node("Concat", ["row", "others"], [output], axis=1),
    ]
    return _save(path, nodes, {output: values.shape}, {data: (1, 3, *size)}, **says)


def write_broken(path: Path) -> Path:
    """A file that can be loaded as a detector and fails when it runs: an index beyond its end."""
    nodes = [
        _constant("table", np.zeros((1, 1, 6), np.float32)),
        helper.make_node("ReduceMax", ["images"], ["most"], keepdims=0),
        helper.make_node("Cast", ["most"], ["index"], to=TensorProto.INT64),
        _constant("far", np.array(7)),
        helper.make_node("Add", ["index", "far"], ["beyond"]),
        helper.make_node("Gather", ["table", "beyond"], ["row"], axis=1),
        _constant("shape", np.array([1, 1, 6])),
        helper.make_node("Reshape", ["row", "shape"], ["detections"]),
    ]
    return _save(path, nodes, {"detections": (1, 1, 6)})


def metadata_of(class_names: Sequence[str] = ("person",), **says: object) -> Metadata:
    """What a file of export_onnx.py with finished rows says."""
    return Metadata(
        **{
            "uhd_version": "0.1.0",
            "arch": "ultratinyod",
            "outputs": "merged",
            "class_names": tuple(class_names),
            "img_size": (SIDE, SIDE),
            "resize_mode": "opencv_inter_area",
            "decoder": "anchor",
            **says,
        }
    )


def _constant(name: str, values: np.ndarray) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(values, name))


def _save(
    path: Path,
    nodes: list[onnx.NodeProto],
    outputs: dict[str, tuple[int, ...]],
    inputs: Mapping[str, tuple[int | str, ...]] = MappingProxyType({"images": (1, 3, SIDE, SIDE)}),
    **says: object,
) -> Path:
    ports = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in each.items()]
        for each in (inputs, outputs)
    ]
    graph = helper.make_graph(nodes, "tiny", *ports)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    if says:
        helper.set_model_props(model, metadata_of(**says).to_props())
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path
