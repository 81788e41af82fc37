"""The graphs of a detector: its network, and what turns raw maps into finished detections."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, TensorShapeProto, helper, numpy_helper
from torch import Tensor, nn

from uhd.config import DecodeConfig, DynamicAxes
from uhd.export.metadata import INPUT_NAME, MERGED_NAME, SEPARATE_NAMES
from uhd.export.suppression import INPUTS, suppression_graph
from uhd.models import Detector, Preds


@dataclass(frozen=True)
class GraphSpec:
    """The form of a graph: input (height, width) in pixels, operator set, and which sizes of the input stay open."""

    img_size: tuple[int, int]
    opset: int
    dynamic: DynamicAxes | None = None

    @property
    def open_batch(self) -> bool:
        """Whether the number of pictures is open."""
        return self.dynamic in ("batch", "all")

    @property
    def open_size(self) -> bool:
        """Whether height and width are open."""
        return self.dynamic in ("hw", "all")


class _RawMaps(nn.Module):
    """Pictures to the raw maps, in their order."""

    def __init__(self, model: Detector) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        preds = self.model(images)
        return tuple(preds[name] for name in self.model.raw_names)


class _Decoding(nn.Module):
    """The raw maps, in their order, to all candidates."""

    def __init__(self, model: Detector) -> None:
        super().__init__()
        self.model = model

    def forward(self, *maps: Tensor) -> tuple[Tensor, Tensor]:
        preds: Preds = dict(zip(self.model.raw_names, maps, strict=True))
        return self.model.candidates(preds)


def network_graph(model: Detector, spec: GraphSpec) -> ModelProto:
    """`images` to the raw maps under their names; model is in evaluation mode, on the CPU."""
    images = torch.zeros(1, 3, *spec.img_size)
    axes = {INPUT_NAME: _open_axes(spec, "height", "width"), **_map_axes(model, spec)}
    return _trace(_RawMaps(model), (images,), ([INPUT_NAME], model.raw_names), spec, axes)


def _example_maps(model: Detector, spec: GraphSpec, batch: int = 1) -> tuple[Tensor, ...]:
    with torch.no_grad():
        maps: tuple[Tensor, ...] = _RawMaps(model)(torch.zeros(batch, 3, *spec.img_size))
    return maps


def _map_axes(model: Detector, spec: GraphSpec) -> dict[str, dict[int, str]]:
    """The open axes of each raw map; maps that do not grow with the batch, such as anchors, have none.

    Where maps are of several sizes, the names of their sides differ: runtimes take sides of one name for equal.
    """
    ones, twos = _example_maps(model, spec), _example_maps(model, spec, batch=2)
    several = len({each.shape[2:] for each in ones if each.dim() == 4}) > 1
    axes = {}
    for name, one, two in zip(model.raw_names, ones, twos, strict=True):
        if one.shape != two.shape:
            of = f" of {name}" if several else ""
            open_axes = _open_axes(spec, f"rows{of}", f"columns{of}")
            axes[name] = {axis: title for axis, title in open_axes.items() if axis == 0 or one.dim() == 4}
    return axes


def postprocess_graph(
    model: Detector, spec: GraphSpec, cfg: DecodeConfig, outputs: Literal["merged", "separate"]
) -> ModelProto:
    """The raw maps to finished detections: decoding, class-wise suppression in each picture, the best cfg.topk.

    The outputs are those of `uhd.export.suppression`.
    """
    maps, axes = _example_maps(model, spec), _map_axes(model, spec)
    decoding = _trace(_Decoding(model), maps, (model.raw_names, INPUTS), spec, axes)
    names = (MERGED_NAME,) if outputs == "merged" else SEPARATE_NAMES
    with torch.no_grad():
        num_priors = None if spec.open_size else _Decoding(model)(*maps)[0].shape[1]
    tail = suppression_graph(
        cfg, model.cfg.num_classes, names, spec.opset, uses_nms=model.uses_nms, num_priors=num_priors
    )
    batch = "batch" if spec.open_batch else 1
    for value in tail.graph.output:
        value.type.tensor_type.shape.dim[0].CopyFrom(_dimension(batch))
    return join(decoding, tail)


def join(first: ModelProto, second: ModelProto) -> ModelProto:
    """One graph of two, where the second's inputs are outputs of the first; its outputs are the second's."""
    second = onnx.compose.add_prefix(
        second, f"{second.graph.name}/", rename_inputs=False, rename_outputs=False, rename_functions=False
    )
    joined = ModelProto()
    joined.CopyFrom(first)
    graph = joined.graph
    graph.node.extend(second.graph.node)
    present = {value.name for value in graph.initializer}
    graph.initializer.extend(value for value in second.graph.initializer if value.name not in present)
    graph.value_info.extend(second.graph.value_info)
    graph.value_info.extend(value for value in graph.output)
    del graph.output[:]
    graph.output.extend(second.graph.output)
    return joined


def constant_outputs(model: ModelProto) -> dict[str, NDArray[np.generic]]:
    """Outputs that do not depend on the input, such as anchors, with their values."""
    values = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Identity" and node.input[0] in values:
            values[node.output[0]] = values[node.input[0]]
        elif node.op_type == "Constant" and node.attribute[0].name == "value":
            values[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    return {value.name: values[value.name] for value in model.graph.output if value.name in values}


def bind(model: ModelProto, values: dict[str, NDArray[np.generic]]) -> ModelProto:
    """The graph with some of its inputs fixed to values."""
    bound = ModelProto()
    bound.CopyFrom(model)
    inputs = [value for value in bound.graph.input if value.name not in values]
    del bound.graph.input[:]
    bound.graph.input.extend(inputs)
    bound.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in values.items())
    return bound


def _trace(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    names: tuple[Sequence[str], Sequence[str]],
    spec: GraphSpec,
    axes: dict[str, dict[int, str]],
) -> ModelProto:
    """The module as a graph. The tracing exporter writes the operator set asked for; torch's other one may not."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(action="ignore"), torch.no_grad():
        path = Path(folder) / "graph.onnx"
        torch.onnx.export(
            module.eval(),
            inputs,
            str(path),
            input_names=list(names[0]),
            output_names=list(names[1]),
            opset_version=spec.opset,
            dynamic_axes={name: open_ for name, open_ in axes.items() if open_} or None,
            dynamo=False,
        )
        model = onnx.load(path)
    model.graph.name = type(module).__name__.strip("_").lower()
    return model


def _open_axes(spec: GraphSpec, height: str, width: str) -> dict[int, str]:
    return {**({0: "batch"} if spec.open_batch else {}), **({2: height, 3: width} if spec.open_size else {})}


def _dimension(size: int | str) -> TensorShapeProto.Dimension:
    value = helper.make_tensor_value_info("", TensorProto.FLOAT, [size])
    dimension: TensorShapeProto.Dimension = value.type.tensor_type.shape.dim[0]
    return dimension
