"""Whether an exported file is the detector that was validated."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper

from uhd.boxes import suppress
from uhd.data.dataset import DetectionDataset
from uhd.export.build import Export, build_network, save
from uhd.export.decode_np import Candidates, build_decoder
from uhd.export.graph import constant_outputs
from uhd.export.metadata import INPUT_NAME
from uhd.export.outputs_np import suppress as suppress_np
from uhd.export.pictures import Detect, detect_from_files, drawn_pictures, inputs_of, judge, read_pictures
from uhd.export.tflite import run_tflite
from uhd.runtime import Detector, Overrides, load_session

log = logging.getLogger("uhd")

RAW_TOLERANCE = 1e-4
"""Largest difference of a raw value below 1; of a larger one, of its ten-thousandth part."""
MAP_TOLERANCE = {"float32": 0.0005, "int8": 0.01}
MAX_RAW_PICTURES = 200


@dataclass(frozen=True)
class Comparison:
    """PyTorch against a file: the largest difference of the raw maps, and mAP@0.5 of both (None without labels)."""

    raw_difference: float
    raw_excess: float
    map_torch: float | None
    map_file: float | None


def verify(export: Export, model: ModelProto) -> None:
    """Compares and logs; RuntimeError where the difference is beyond the tolerance.

    Of an INT8 file only the loss of mAP is judged.
    """
    precision = "int8" if export.options.int8 else "float32"
    with pictures_of(export) as dataset:
        found = compare(export, model, dataset)
    log.info("verified on %d pictures: raw maps differ by at most %.2e", len(dataset), found.raw_difference)
    if precision == "float32" and found.raw_excess > 0:
        raise RuntimeError(
            f"--verify: the raw maps differ from PyTorch's by {found.raw_difference:.2e}, more than {RAW_TOLERANCE:g}"
        )
    if found.map_torch is None or found.map_file is None:
        log.info("no labels: mAP is not compared")
        return
    log.info("mAP@0.5: PyTorch %.5f, file %.5f", found.map_torch, found.map_file)
    loss = found.map_torch - found.map_file
    if (loss if precision == "int8" else abs(loss)) > MAP_TOLERANCE[precision]:
        raise RuntimeError(
            f"--verify: mAP@0.5 of the file is {found.map_file:.5f} and PyTorch's {found.map_torch:.5f}; "
            f"they may differ by {MAP_TOLERANCE[precision]:g}"
        )


@contextlib.contextmanager
def pictures_of(export: Export) -> Iterator[DetectionDataset]:
    """The pictures to compare on: --image-dir's, else --calib-dir's, else drawn ones."""
    options, cfg = export.options, export.config
    if options.image_dir:
        yield read_pictures(options.image_dir, "--image-dir", options.image_count, cfg)
    elif options.calib_dir:
        yield read_pictures(options.calib_dir, "--calib-dir", options.image_count, cfg)
    else:
        with drawn_pictures(cfg) as dataset:
            yield dataset


def compare(export: Export, model: ModelProto, dataset: DetectionDataset) -> Comparison:
    """The model's raw maps and mAP against PyTorch's."""
    difference, excess = 0.0, -np.inf
    inputs = inputs_of(dataset)[:MAX_RAW_PICTURES]
    pairs = zip(raw_maps(model, export.model.raw_names, inputs), torch_maps(export, inputs), strict=True)
    for found, expected in pairs:
        for name in found:
            gap = np.abs(found[name] - expected[name])
            difference = max(difference, float(gap.max()))
            excess = max(excess, float((gap - RAW_TOLERANCE * np.maximum(np.abs(expected[name]), 1)).max()))
    map_torch = map_file = None
    if dataset.num_boxes:
        map_torch = judge(dataset, detect_with_torch(export), export.config).map50
        with detector_of(export, model) as detector:
            map_file = judge(dataset, detect_from_files(detector), export.config).map50
    return Comparison(difference, excess, map_torch, map_file)


@contextlib.contextmanager
def detector_of(export: Export, model: ModelProto) -> Iterator[Detector]:
    """The runtime's detector for a model that is not written yet, with the threshold that mAP is measured at."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        save(model, path)
        threshold = max(export.config.eval.map_conf_thresh, export.metadata.conf_thresh)
        yield Detector(path, Overrides(conf_thresh=threshold), img_size=export.config.input.img_size)


def detect_with_torch(export: Export) -> Detect:
    """What the validated network finds, by the same rules as the file: threshold, suppression and number of rows."""
    decode = export.decode
    threshold = max(export.config.eval.map_conf_thresh, export.metadata.conf_thresh)

    def detect(images: NDArray[np.uint8], _: list[str]) -> list[Candidates]:
        with torch.no_grad():
            inputs = torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(255)
            candidates = export.model.decode(export.model(inputs), decode)
            found = suppress(candidates, threshold, decode.nms_iou if export.model.uses_nms else None, decode.topk)
        rows = zip(found.boxes.numpy(), found.scores.numpy(), found.labels.numpy(), strict=True)
        return [Candidates(*row).take(row[2] >= 0) for row in rows]

    return detect


def detect_with_tflite(export: Export, path: Path) -> Detect:
    """What a TFLite file finds with its plain kernels, decoded and suppressed by the rules of the ONNX file."""
    decode = export.decode
    decoder = build_decoder(export.metadata.decoder, export.metadata.decoding)
    threshold = max(export.config.eval.map_conf_thresh, export.metadata.conf_thresh)
    found_constants = constant_outputs(build_network(export))
    constants = {name: value.astype(np.float32) for name, value in found_constants.items()}

    def detect(images: NDArray[np.uint8], _: list[str]) -> list[Candidates]:
        inputs = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).astype(np.float32) / np.float32(255)
        raw = run_tflite(path, inputs)
        maps = [constants.get(name, raw) for name in export.model.raw_names]
        found = decoder(maps, threshold, decode.pre_nms_topk)
        nms_iou = decode.nms_iou if export.model.uses_nms else None
        return [suppress_np(each, nms_iou, decode.topk) for each in found]

    return detect


Maps = dict[str, NDArray[np.float32]]


def torch_maps(export: Export, inputs: NDArray[np.float32]) -> Iterator[Maps]:
    """PyTorch's raw maps of each picture [n,3,H,W]."""
    for image in inputs:
        with torch.no_grad():
            preds = export.model(torch.from_numpy(image[None]))
        yield {name: preds[name].detach().numpy() for name in export.model.raw_names}


def raw_maps(model: ModelProto, names: tuple[str, ...], inputs: NDArray[np.float32]) -> Iterator[Maps]:
    """The raw maps inside a model, finished or raw, for each picture [n,3,H,W]; maps folded into it are left out."""
    opened = ModelProto()
    opened.CopyFrom(model)
    present = {value.name for value in opened.graph.output}
    produced = {name for node in opened.graph.node for name in node.output}
    asked = [name for name in names if name in produced or name in present]
    opened.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in asked if name not in present
    )
    session = load_session(opened.SerializeToString(), threads=0)
    for image in inputs:
        yield dict(zip(asked, session.run(asked, {INPUT_NAME: image[None]}), strict=True))
