"""INT8 networks: static quantisation by onnxruntime (QDQ, weights per channel), with what loses left in float.

Decoding and suppression are not part of the network and stay in float. So do the layers that give the raw maps: the
parts of a map (box, score) have ranges of their own, and one scale for all would cost the narrow ones precision. Of
attention only the linear layers are quantised: the products of tokens have no weights that would become smaller.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QDQQuantizer,
    QuantType,
    TensorsData,
    create_calibrator,
)
from tqdm import tqdm

from uhd.boxes import box_iou
from uhd.export.build import Export
from uhd.export.metadata import INPUT_NAME
from uhd.export.pictures import inputs_of, read_pictures
from uhd.models import Preds
from uhd.runtime import load_session

log = logging.getLogger("uhd")

METHODS: dict[str, tuple[tuple[CalibrationMethod, dict[str, Any]], ...]] = {
    "minmax": ((CalibrationMethod.MinMax, {}),),
    "entropy": ((CalibrationMethod.Entropy, {}),),
    "percentile": tuple(
        (CalibrationMethod.Percentile, {"percentile": share, "symmetric": False}) for share in (99.99, 99.999)
    ),
}
METHODS["auto"] = tuple(way for ways in list(METHODS.values()) for way in ways)

QUANTIZED = (
    *("Conv", "Sigmoid", "Mul", "Add", "Concat", "MaxPool", "AveragePool", "ReduceMean", "GlobalAveragePool", "Relu"),
    *("Resize", "Clip", "LeakyRelu", "HardSwish"),
)
QUANTIZED_WITH_ATTENTION = ("Conv", "MatMul", "Gemm")
"""Between linear layers and norms, all of them in float, other operators gain nothing from eight bits."""
_ACTIVATIONS = ("Sigmoid", "Mul", "Relu", "Clip", "LeakyRelu", "HardSwish")
_LAYERS = ("Conv", "MatMul", "Gemm")
"""Operators that have weights, where their second input is constant."""
SWISH_FLOOR = -6.0
"""Where the range of swish's input ends below: swish(-6) is -0.015, less than one step of its output."""
CALIBRATION_CHUNK = 16
"""Pictures whose activations are held in memory at once."""
FEW_PICTURES = 100
JUDGED = 100
"""Pictures that quantised networks are compared on."""
MIN_GAIN = 0.05
"""A layer is left in float where that lowers the error by at least this share."""
MAX_FLOAT_WEIGHTS, MAX_FLOAT_MACS = 0.02, 0.06
"""Shares of the network's weights and multiply-adds that such layers may have together."""

Ranges = dict[str, tuple[np.float32, np.float32]]


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer with its activation: names of its nodes, shares of weights and multiply-adds."""

    name: str
    nodes: tuple[str, ...]
    weights: float
    macs: float


def quantize_network(export: Export, network: ModelProto) -> ModelProto:
    """The network in INT8, with ranges measured on --calib-dir; ways and layers are chosen by what they lose.

    What is compared is the decoded result on calibration pictures (`candidate_error`), so no labels are needed.
    """
    options = export.options
    assert options.calib_dir
    pictures = read_pictures(options.calib_dir, "--calib-dir", options.calib_count, export.config, need_labels=False)
    if len(pictures) < FEW_PICTURES:
        log.warning("--calib-dir: ranges from %d pictures are rough; some hundred are better", len(pictures))
    inputs = inputs_of(pictures)
    judged = inputs[np.linspace(0, len(inputs) - 1, min(JUDGED, len(inputs))).round().astype(int)]
    judge = _Judge(export, network, judged)
    quantizer = _Quantizer(network, options.weight_bits)
    ways = METHODS[options.calib_method]
    found: list[tuple[float, str, Ranges]] = []
    for method, settings in tqdm(ways, desc="ranges", leave=False, dynamic_ncols=True, disable=None):
        ranges = measure_ranges(network, inputs, method, settings)
        name = " ".join([method.name.lower(), *(f"{value}" for key, value in settings.items() if key == "percentile")])
        found.append((judge.error(quantizer.quantize(ranges)), name, ranges))
    for error, name, _ in found:
        log.info("INT8, ranges by %s: error %.4f", name, error)
    error, name, ranges = min(found, key=lambda each: each[0])
    chosen = _layers_to_leave(network, judge, quantizer, ranges, error)
    quantized = quantizer.quantize(ranges, [node for layer in chosen for node in layer.nodes])
    log.info("INT8: ranges by %s, error %.4f", name, judge.error(quantized))
    kept = [*quantizer.output_layers, *(layer.name for layer in chosen)]
    log.info("left in float: %s", ", ".join(kept))
    return _with_short_names(quantized, {value.name for value in network.graph.output})


def measure_ranges(
    network: ModelProto, inputs: NDArray[np.float32], method: CalibrationMethod, settings: dict[str, Any]
) -> Ranges:
    """The range of each activation on pictures [n,3,H,W]; swish's input ends at SWISH_FLOOR below."""
    # The calibrator prints what it does, and reads its model from a file.
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        path = Path(folder) / "network.onnx"
        onnx.save(network, path)
        calibrator = create_calibrator(
            path, _operators_of(network), str(Path(folder) / "augmented.onnx"), method, extra_options=settings
        )
        # The weights of attention, one for each pair of tokens, are among what is held.
        chunk = 1 if _token_products(network) else CALIBRATION_CHUNK
        for start in range(0, len(inputs), chunk):
            calibrator.collect_data(_Reader(inputs[start : start + chunk]))
        measured = calibrator.compute_data()
    ranges = {}
    for name, data in measured.items():
        low, high = (np.float32(np.ravel(limit)[0]) for limit in data.range_value)
        ranges[name] = low, high
    for name in _swish_inputs(network):
        if name not in ranges:
            continue
        low, high = ranges[name]
        ranges[name] = max(low, np.float32(SWISH_FLOOR)), high
    return ranges


def candidate_error(expected: tuple[torch.Tensor, torch.Tensor], found: tuple[torch.Tensor, torch.Tensor]) -> float:
    """How far candidates (boxes [B,N,4], scores [B,N,C]) are from the expected ones; 0 is equal.

    Differences of the scores, and expected scores times what the boxes miss in IoU, as a share of all expected scores.
    """
    boxes, scores = expected
    missed = (scores.sum(-1) * (1 - box_iou(boxes, found[0]))).sum() + (scores - found[1]).abs().sum()
    return float(missed / scores.sum().clamp(min=1e-9))


class _Judge:
    """Compares quantised networks with the float one on pictures [n,3,H,W]."""

    def __init__(self, export: Export, network: ModelProto, inputs: NDArray[np.float32]) -> None:
        self.export = export
        self.inputs = inputs
        self.expected = self._candidates(network)

    def error(self, network: ModelProto) -> float:
        return candidate_error(self.expected, self._candidates(network))

    def _candidates(self, network: ModelProto) -> tuple[torch.Tensor, torch.Tensor]:
        session = load_session(network.SerializeToString(), threads=0)
        names = [each.name for each in session.get_outputs()]
        maps = [session.run(None, {INPUT_NAME: image[None]}) for image in self.inputs]
        boxes, scores = [], []
        for values in maps:
            preds: Preds = {name: torch.from_numpy(value) for name, value in zip(names, values, strict=True)}
            with torch.no_grad():
                found = self.export.model.candidates(preds)
            boxes.append(found[0])
            scores.append(found[1])
        return torch.cat(boxes), torch.cat(scores)


class _Quantizer:
    """Quantises one network with given ranges; the layers that give its outputs are never part of it.

    On x86 processors without VNNI onnxruntime adds two products of eight bits each in sixteen, where they do not fit;
    with weights of seven bits they always do.
    """

    def __init__(self, network: ModelProto, weight_bits: int = 7) -> None:
        self.network = network
        self.weight_bits = weight_bits
        self.output_layers, self.excluded = _output_part(network)
        self.operators = _operators_of(network)
        self.excluded += _token_products(network)

    def quantize(self, ranges: Ranges, excluded: Sequence[str] = ()) -> ModelProto:
        model = ModelProto()
        model.CopyFrom(self.network)
        quantizer = QDQQuantizer(
            model,
            True,  # weights by channel
            self.weight_bits == 7,
            QuantType.QInt8,
            QuantType.QUInt8,
            TensorsData(CalibrationMethod.MinMax, ranges),
            None,
            [*self.excluded, *excluded],
            list(self.operators),
            {},
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()
        quantized: ModelProto = quantizer.model.model
        return quantized


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """Pictures one by one."""

    def __init__(self, inputs: NDArray[np.float32]) -> None:
        self.rows = iter(inputs)

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        row = next(self.rows, None)
        return None if row is None else {INPUT_NAME: row[None]}


def _layers_to_leave(
    network: ModelProto, judge: _Judge, quantizer: _Quantizer, ranges: Ranges, error: float
) -> list[Layer]:
    """The layers whose quantisation costs most, within what may stay in float."""
    gains = []
    layers = [layer for layer in layers_of(network) if layer.name not in quantizer.output_layers]
    for layer in tqdm(layers, desc="layers", leave=False, dynamic_ncols=True, disable=None):
        if layer.weights <= MAX_FLOAT_WEIGHTS and layer.macs <= MAX_FLOAT_MACS:
            gains.append((error - judge.error(quantizer.quantize(ranges, layer.nodes)), layer))
    chosen: list[Layer] = []
    for gain, layer in sorted(gains, key=lambda each: -each[0]):
        weights, macs = (sum(getattr(each, name) for each in (*chosen, layer)) for name in ("weights", "macs"))
        if gain >= MIN_GAIN * error and weights <= MAX_FLOAT_WEIGHTS and macs <= MAX_FLOAT_MACS:
            chosen.append(layer)
            log.info("INT8: %s alone costs %.4f", layer.name, gain)
    return chosen


def layers_of(network: ModelProto) -> list[Layer]:
    """Every convolution and linear layer with the activation that follows it."""
    inferred = onnx.shape_inference.infer_shapes(network).graph
    sizes = {value.name: value.type.tensor_type.shape.dim for value in (*inferred.value_info, *inferred.output)}
    shapes = {each.name: tuple(each.dims) for each in network.graph.initializer}
    readers = _readers(network)
    measured: list[tuple[str, tuple[str, ...], int, int]] = []
    for node in network.graph.node:
        if node.op_type in _LAYERS and node.input[1] in shapes:
            weights = int(np.prod(shapes[node.input[1]]))
            places = sizes[node.output[0]][2:] if node.op_type == "Conv" else sizes[node.output[0]][:-1]
            grid = int(np.prod([max(dim.dim_value, 1) for dim in places]))
            activation = [n.name for n in readers.get(node.output[0], ()) if n.op_type in _ACTIVATIONS]
            measured.append((node.name, (node.name, *activation), weights, weights * grid))
    total_weights, total_macs = sum(row[2] for row in measured), sum(row[3] for row in measured)
    return [Layer(name, nodes, w / total_weights, macs / total_macs) for name, nodes, w, macs in measured]


def _output_part(network: ModelProto) -> tuple[list[str], list[str]]:
    """The layers from which only reshapes and joins lead to an output, and those with these nodes."""
    producers = {name: node for node in network.graph.node for name in node.output}
    constants = {each.name for each in network.graph.initializer}
    layers: list[str] = []
    nodes: list[str] = []
    pending = [value.name for value in network.graph.output]
    while pending:
        node = producers.pop(pending.pop(), None)
        if node is None:
            continue
        nodes.append(node.name)
        if node.op_type in _LAYERS:
            layers.append(node.name)
        elif node.op_type in ("Concat", "Reshape", "Transpose", "Flatten", "Identity") or _adds_bias(node, constants):
            pending.extend(node.input)
    return layers, nodes


def _adds_bias(node: NodeProto, constants: set[str]) -> bool:
    return node.op_type == "Add" and any(name in constants for name in node.input)


def _operators_of(network: ModelProto) -> tuple[str, ...]:
    """Which operators are quantised."""
    return QUANTIZED_WITH_ATTENTION if _token_products(network) else QUANTIZED


def _token_products(network: ModelProto) -> list[str]:
    """Matrix products without a constant factor."""
    constants = {each.name for each in network.graph.initializer}
    return [
        node.name
        for node in network.graph.node
        if node.op_type == "MatMul" and not any(name in constants for name in node.input)
    ]


def _readers(network: ModelProto) -> dict[str, list[NodeProto]]:
    readers: dict[str, list[NodeProto]] = {}
    for node in network.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    return readers


def _swish_inputs(network: ModelProto) -> Iterator[str]:
    """Tensors that are multiplied by their own sigmoid."""
    readers = _readers(network)
    for node in network.graph.node:
        if node.op_type == "Sigmoid":
            source = node.input[0]
            if any(n.op_type == "Mul" and source in n.input for n in readers.get(node.output[0], ())):
                yield source


def _with_short_names(model: ModelProto, kept: set[str]) -> ModelProto:
    """Short names for what nobody asks for: texts are a fifth of a small network's INT8 file. Node names stay."""
    del model.graph.value_info[:]
    kept = kept | {value.name for value in model.graph.input}
    names: dict[str, str] = {}
    for tensor in model.graph.initializer:
        tensor.name = names.setdefault(tensor.name, tensor.name if tensor.name in kept else f"c{len(names)}")
    for node in model.graph.node:
        for values in (node.input, node.output):
            for i, name in enumerate(values):
                if name and name not in kept:
                    values[i] = names.setdefault(name, f"t{len(names)}")
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            node.name = ""
    return model
