"""A checkpoint's detector to one ONNX model: network, post-processing, metadata."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import onnx
import onnxsim
from onnx import ModelProto, helper

import uhd
from uhd.checkpoint import Checkpoint, names_file
from uhd.config import Config, DecodeConfig, ExportConfig
from uhd.export.graph import GraphSpec, bind, constant_outputs, join, network_graph, postprocess_graph
from uhd.export.metadata import Metadata, Outputs, Precision
from uhd.files import write_whole
from uhd.models import Detector, build_model, fold_batchnorm
from uhd.muting import muted_stderr

log = logging.getLogger("uhd")


@dataclasses.dataclass(frozen=True)
class Export:
    """What is exported: the network with its batch norms folded, its config (at the exported size), and the form.

    metadata is that of the float file. warned: what was said of onnxsim, which is run several times.
    """

    model: Detector
    config: Config
    spec: GraphSpec
    decode: DecodeConfig
    options: ExportConfig
    metadata: Metadata
    warned: list[str] = dataclasses.field(default_factory=list)


def prepare(checkpoint: Checkpoint, cfg: Config, options: ExportConfig) -> Export:
    """Rebuilds the checkpoint's network and settles the form of the file.

    cfg is the checkpoint's config, where the size of the input may differ. Raises ValueError where the weights do not
    fit the network.
    """
    weights = checkpoint.weights if options.ema else checkpoint.state["model"]
    with names_file(checkpoint, "--checkpoint"):
        model = build_model(cfg.model)
        model.load_state_dict(weights)
    if options.nms_iou is not None and not model.uses_nms:
        log.warning("--nms-iou has no effect: the boxes of this %s are not suppressed", cfg.model.arch)
    folded = fold_batchnorm(model)
    assert isinstance(folded, Detector)
    if cfg.decode.nms == "soft" and options.merge_postprocess:
        log.warning("--merge-postprocess: a graph suppresses hard, where this run's soft; raw maps keep --nms soft")
    decode = dataclasses.replace(
        cfg.decode,
        nms="hard" if options.merge_postprocess else cfg.decode.nms,
        conf_thresh=options.conf_thresh,
        topk=options.topk,
        nms_iou=cfg.decode.nms_iou if options.nms_iou is None else options.nms_iou,
    )
    spec = GraphSpec(cfg.input.img_size, options.opset, options.dynamic)
    return Export(folded, cfg, spec, decode, options, _metadata(folded, checkpoint, cfg, decode, options))


def _metadata(
    model: Detector, checkpoint: Checkpoint, cfg: Config, decode: DecodeConfig, options: ExportConfig
) -> Metadata:
    outputs = _output_kind(options)
    # What was measured belongs to the averaged weights, where the run kept them, and to the size it was measured at.
    measured = (options.ema or checkpoint.state["ema"] is None) and (
        cfg.input.img_size == checkpoint.config.input.img_size
    )
    metrics = checkpoint.metrics if measured else {}
    return Metadata(
        uhd_version=uhd.__version__,
        arch=cfg.model.arch,
        outputs=outputs,
        class_names=cfg.labels.class_names,
        img_size=cfg.input.img_size,
        resize_mode=cfg.input.resize_mode,
        decoder=model.decoder,
        decoding=model.decoding(),
        details=model.details(),
        uses_nms=model.uses_nms,
        conf_thresh=0.0 if outputs == "raw" else decode.conf_thresh,
        nms_iou=decode.nms_iou,
        nms=decode.nms,
        nms_sigma=decode.nms_sigma,
        topk=decode.topk,
        pre_nms_topk=decode.pre_nms_topk,
        best_f1_threshold=metrics.get("val/best_f1_threshold"),
        map50=metrics.get("val/mAP@0.5"),
        epoch=int(checkpoint.state["epoch"]),
    )


def _output_kind(options: ExportConfig) -> Outputs:
    if not options.merge_postprocess:
        return "raw"
    return "separate" if options.separate_outputs else "merged"


def build_network(export: Export) -> ModelProto:
    """The network alone: `images` to the raw maps, in float."""
    graph = network_graph(export.model, export.spec)
    return _simplified(graph, export)


def finish(export: Export, network: ModelProto, precision: Precision = "float32") -> ModelProto:
    """The whole model around a network of either precision, checked, with its metadata.

    A raw file is the network itself. Else what follows the network is simplified apart from it: a simplifier would
    fold the quantised weights of an INT8 network back to float.
    """
    options = export.options
    if export.metadata.outputs != "raw":
        tail = postprocess_graph(export.model, export.spec, export.decode, export.metadata.outputs)
        network = _without_outputs(network, constants := constant_outputs(network))
        model = join(network, _simplified(bind(tail, constants), export))
    else:
        model = ModelProto()
        model.CopyFrom(network)
    metadata = dataclasses.replace(export.metadata, precision=precision)
    model.graph.name = "uhd"
    model.producer_name, model.producer_version = "uhd", uhd.__version__
    # The lowest that knows the operator set, so that older runtimes load the file.
    model.ir_version = helper.find_min_ir_version_for(model.opset_import)
    del model.metadata_props[:]
    helper.set_model_props(model, metadata.to_props())
    check(model, options.opset)
    return model


def check(model: ModelProto, opset: int) -> None:
    """RuntimeError where the model is not valid, or not of standard operators of exactly this operator set."""
    found = {each.domain: each.version for each in model.opset_import}
    if found != {"": opset}:
        raise RuntimeError(f"the exporter wrote the operator sets {found} where {opset} was asked for")
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise RuntimeError(f"the exported graph is not valid ({' '.join(str(error).split())[:200]})") from None


def save(model: ModelProto, path: Path) -> None:
    """Writes the file, whole or not at all; OSError that names --output where the disk fails."""
    try:
        write_whole(path, model.SerializeToString())
    except OSError as error:
        raise OSError(f"--output {path}: cannot be written ({error.strerror})") from None


def _without_outputs(model: ModelProto, names: dict[str, Any]) -> ModelProto:
    """The model without some of its outputs."""
    left = ModelProto()
    left.CopyFrom(model)
    kept = [value for value in left.graph.output if value.name not in names]
    del left.graph.output[:]
    left.graph.output.extend(kept)
    nodes = [node for node in left.graph.node if not set(node.output) <= names.keys()]
    del left.graph.node[:]
    left.graph.node.extend(nodes)
    initializers = [value for value in left.graph.initializer if value.name not in names]
    del left.graph.initializer[:]
    left.graph.initializer.extend(initializers)
    return left


def _simplified(model: ModelProto, export: Export) -> ModelProto:
    """Folded and simplified by onnxsim, or as it was, with one warning an export, where that fails."""
    if not export.options.simplify:
        return model
    try:
        simplified: ModelProto
        with muted_stderr():  # of each operator with an open size it says that it cannot fold it
            simplified, is_equal = onnxsim.simplify(model)
    except Exception as error:  # it raises whatever its optimiser and onnxruntime raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        return _unsimplified(model, export, f"onnxsim failed and is left out ({reason})")
    return simplified if is_equal else _unsimplified(model, export, "onnxsim changed what the graph computes: left out")


def _unsimplified(model: ModelProto, export: Export, warning: str) -> ModelProto:
    if not export.warned:
        log.warning(warning)
        export.warned.append(warning)
    return model
