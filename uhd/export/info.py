"""What a file is: the tables of `export_onnx.py --info`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from pathlib import Path

import onnx
import torch
from onnx import ModelProto, NodeProto, TensorProto, shape_inference

from uhd.checkpoint import Checkpoint, names_file, read_checkpoint
from uhd.config import flag_of
from uhd.export.metadata import Metadata
from uhd.export.onnx_file import load_onnx
from uhd.export.suppression import NAME as SUPPRESSION
from uhd.models import build_model, count_macs, count_parameters, fold_batchnorm
from uhd.precedence import show
from uhd.reading import why_not_plain

Rows = list[tuple[str, str]]

_ZIP_START = b"PK\x03\x04"
_MOST_CHARACTERS = 10_000
_LAYERS = {"Conv": 1, "ConvTranspose": 0, "Gemm": 1, "MatMul": 1}
"""Operators with weights, and where their output's channels are counted."""


def describe_file(path: Path) -> str:
    """A table of an ONNX file or a checkpoint; ValueError that names --info and the file where it is neither."""
    reason = why_not_plain(path)
    if reason:
        raise ValueError(f"--info {path}: {reason}")
    with path.open("rb") as file:
        is_checkpoint = file.read(4) == _ZIP_START or path.suffix in (".pt", ".pth")
    rows = _describe_checkpoint(read_checkpoint(path, "--info")) if is_checkpoint else _describe_onnx(path)
    return _table([("file", str(path)), ("size", f"{path.stat().st_size:,} bytes"), *rows])


def count_onnx(model: ModelProto) -> tuple[int, int | None]:
    """Parameters and multiply-adds of a model's convolutions and linear layers; None where a size is open.

    What follows the network in a file of ours is not counted.
    """
    inferred = shape_inference.infer_shapes(model)
    graph = inferred.graph
    shapes = {value.name: _shape(value) for value in (*graph.value_info, *graph.output, *graph.input)}
    sizes = _weight_sizes(graph)
    parameters, macs, is_known = 0, 0, True
    for node in graph.node:
        if node.op_type not in _LAYERS or not any(name in sizes for name in node.input[1:]):
            continue
        if any(f"{SUPPRESSION}/" in name for name in node.input):
            continue
        parameters += sum(sizes.get(name, 0) for name in node.input[1:])
        shape = shapes.get(node.output[0])
        if node.input[1] not in sizes or not shape or None in shape:
            is_known = False
            continue
        channels = shape[1 if node.op_type.startswith("Conv") and len(shape) > 1 else -1]
        macs += math.prod(side or 0 for side in shape) // (channels or 1) * sizes[node.input[1]]
    return parameters, macs if is_known else None


def _weight_sizes(graph: onnx.GraphProto) -> dict[str, int]:
    """Elements of constants by the name under which a layer reads them: directly, or through a DequantizeLinear."""
    sizes = {each.name: math.prod(each.dims) for each in graph.initializer if not each.external_data}
    nodes: Iterable[NodeProto] = graph.node
    for node in nodes:
        if node.op_type in ("DequantizeLinear", "Identity") and node.input and node.input[0] in sizes:
            sizes[node.output[0]] = sizes[node.input[0]]
    return sizes


def _shape(value: onnx.ValueInfoProto) -> tuple[int | None, ...]:
    dims = value.type.tensor_type.shape.dim
    return tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in dims)


def _describe_onnx(path: Path) -> Rows:
    try:
        model = load_onnx(path)
    except ValueError as error:
        raise ValueError(f"--info {error}; expected an ONNX file or a checkpoint") from None
    try:
        return _model_rows(model)
    except (shape_inference.InferenceError, RuntimeError, ValueError, IndexError) as error:
        raise ValueError(f"--info {path}: {' '.join(str(error).split())[:200]}") from None


def _model_rows(model: ModelProto) -> Rows:
    parameters, macs = count_onnx(model)
    opsets = ", ".join(f"{each.domain or 'ai.onnx'} {each.version}" for each in model.opset_import)
    rows = [
        ("kind", "ONNX"),
        ("operator set", opsets),
        ("written by", f"{model.producer_name} {model.producer_version}".strip() or "unknown"),
        *(("input", _port(value)) for value in model.graph.input),
        *(("output", _port(value)) for value in model.graph.output),
        ("operators", f"{len(model.graph.node):,}"),
        ("parameters", f"{parameters:,}"),
        ("multiply-adds", "open (the input size is)" if macs is None else f"{macs:,}"),
    ]
    props = {prop.key: prop.value for prop in model.metadata_props}
    metadata = Metadata.from_props(props)
    if metadata is None:
        return [*rows, *((name, value[:_MOST_CHARACTERS]) for name, value in sorted(props.items()))]
    values = {f.name: getattr(metadata, f.name) for f in dataclasses.fields(metadata)}
    details = {**values.pop("details"), **values.pop("decoding")}
    return [*rows, *((name, _plain(value)) for name, value in {**values, **details}.items())]


def _port(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    sides = ", ".join(str(dim.dim_value) if dim.HasField("dim_value") else dim.dim_param for dim in tensor.shape.dim)
    return f"{value.name} {TensorProto.DataType.Name(tensor.elem_type).lower()} [{sides}]"


def _describe_checkpoint(checkpoint: Checkpoint) -> Rows:
    cfg, metrics = checkpoint.config, checkpoint.metrics
    with names_file(checkpoint, "--info"):
        model = build_model(cfg.model)
        model.load_state_dict(checkpoint.weights)
    height, width = cfg.input.img_size
    rows = [
        ("kind", "checkpoint"),
        ("epoch", f"{checkpoint.state['epoch']} of {cfg.optim.epochs}"),
        ("weights", "averaged (EMA) and last" if checkpoint.state["ema"] else "last"),
        ("parameters", f"{count_parameters(model):,}"),
        ("parameters, batch norm folded", f"{count_parameters(fold_batchnorm(model)):,}"),
        ("multiply-adds", f"{count_macs(model, height, width):,}"),
        *((name, _plain(metrics[key])) for key, name in _METRICS.items() if metrics.get(key) is not None),
    ]
    for section in (cfg.input, cfg.labels, cfg.model, cfg.decode):
        for f in dataclasses.fields(section):
            value = getattr(section, f.name)
            if f.name != "anchors":
                separator = "x" if f.name == "img_size" else ","
                rows.append((flag_of(f.name).removeprefix("--"), show(value, separator)))
    weights = checkpoint.weights
    for name in ("anchors", "wh_scale"):
        if isinstance(weights.get(name), torch.Tensor):
            rows.append((name, _pairs(weights[name].tolist())))
    return rows


_METRICS = {
    "val/mAP@0.5": "mAP@0.5",
    "val/AP50_ge9px2": "AP50 of 9 px2 and more",
    "val/best_f1": "best F1",
    "val/best_f1_threshold": "score of best F1",
}


def _plain(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, list | tuple):
        if value and all(isinstance(row, list | tuple) and all(map(_is_number, row)) for row in value):
            return _pairs(value)
        return ", ".join(map(str, value))
    return "-" if value is None else str(value)[:_MOST_CHARACTERS]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


def _pairs(values: Iterable[Iterable[float]]) -> str:
    """Rows of numbers, one a line."""
    return "\n".join("  ".join(f"{number:.6f}" for number in row) for row in values)


def _table(rows: Rows) -> str:
    """Two columns; a value of several lines stays in its column."""
    width = max(len(name) for name, _ in rows)
    lines = []
    for name, value in rows:
        first, *others = value.splitlines() or [""]
        lines += [f"{name:<{width}}  {first}", *(f"{'':<{width}}  {line}" for line in others)]
    return "\n".join(lines)
