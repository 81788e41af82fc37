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

from uhd.data.dataset import DetectionDataset
from uhd.export.build import Export, build_network
from uhd.export.decode_np import Candidates, build_decoder
from uhd.export.graph import constant_outputs
from uhd.export.metadata import INPUT_NAME
from uhd.export.outputs_np import finish
from uhd.export.pictures import Detect, detect_from_files, drawn_pictures, inputs_of, judge, read_pictures
from uhd.export.tflite import run_tflite
from uhd.models import Preds
from uhd.runtime import Detector, Overrides, load_session

log = logging.getLogger("uhd")

RAW_TOLERANCE = 1e-4
"""Largest difference of a raw value below 1; of a larger one, of its ten-thousandth part."""
MAP_TOLERANCE = {"float32": 0.0005, "int8": 0.01}
DETECTION_TOLERANCE = 0.01
"""Share of the detections that may differ: an overlap next to the limit of the suppression can fall to either side."""
_SAME = 1e-3
"""Difference of scores and of coordinates up to which two detections are one."""
ROUNDING = 1e-6
"""How far the arithmetic of two programs puts a raw value below 1 apart, or a larger one by its millionth part."""
_DRAWS = 4
"""Roundings that a picture is tried with. One that leaves its detections may be luck where their scores are close."""
MAX_RAW_PICTURES = 200
"""Pictures whose raw maps and detections are compared; mAP is that of all."""
_FEW = 0.1
"""Share of these that are not compared without a warning: a trained network too has one whose scores are close."""

Maps = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Comparison:
    """PyTorch against a file.

    raw_difference: the largest of the raw maps, of a value above 1 as its share of that value.
    detection_difference: share of the detections that have no equal, in pictures where PyTorch finds the same in its
    own raw maps, in the file's and in some that differ by rounding; unstable is the number of the others (in a network
    that has hardly learned, all scores are nearly equal). map_torch, map_file: mAP@0.5, None without labels.
    """

    raw_difference: float
    detection_difference: float
    unstable: int
    map_torch: float | None
    map_file: float | None


def verify(export: Export, model: ModelProto) -> None:
    """Compares and logs; RuntimeError where the difference is beyond the tolerance.

    Of an INT8 file only the loss of mAP is judged.
    """
    precision = "int8" if export.options.int8 else "float32"
    with pictures_of(export) as dataset:
        found = compare(export, model, dataset)
    if precision == "int8":
        log.info("verified on %d pictures; of an INT8 file only mAP is judged", len(dataset))
    else:
        tried = min(len(dataset), MAX_RAW_PICTURES)
        compared = tried - found.unstable
        apart = f"{100 * found.detection_difference:.2f} % of the detections of {compared} pictures differ"
        log.info(
            "verified on %d pictures: raw maps differ by at most %.2e (of values above 1 by that share), %s",
            len(dataset), found.raw_difference, apart if compared else "no detections are compared",
        )  # fmt: skip
        if found.unstable > _FEW * tried:
            log.warning(
                "--verify: detections of %d pictures are not compared: rounding alone changes them, as the scores of a "
                "network that has hardly learned are nearly equal",
                found.unstable,
            )
    if precision == "float32" and not found.raw_difference <= RAW_TOLERANCE:  # nan is a difference too
        raise RuntimeError(
            f"--verify: the raw maps differ from PyTorch's by {found.raw_difference:.2e}, more than {RAW_TOLERANCE:g}"
        )
    if found.map_torch is None or found.map_file is None:
        log.info("no labels: mAP is not compared")
    else:
        log.info("mAP@0.5: PyTorch %.5f, file %.5f", found.map_torch, found.map_file)
        loss = found.map_torch - found.map_file
        if (loss if precision == "int8" else abs(loss)) > MAP_TOLERANCE[precision]:
            raise RuntimeError(
                f"--verify: mAP@0.5 of the file is {found.map_file:.5f} and PyTorch's {found.map_torch:.5f}; "
                f"they may differ by {MAP_TOLERANCE[precision]:g}"
            )
    if precision == "float32" and found.detection_difference > DETECTION_TOLERANCE:
        raise RuntimeError(
            f"--verify: {found.detection_difference:.1%} of the detections differ from PyTorch's; "
            f"{DETECTION_TOLERANCE:.0%} may"
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
    inputs = inputs_of(dataset)[:MAX_RAW_PICTURES]
    gaps: list[float] = []
    by_torch: list[Candidates] = []
    stable: list[int] = []
    rng = np.random.default_rng(0)
    pairs = zip(raw_maps(model, export.model.raw_names, inputs), torch_maps(export, inputs), strict=True)
    for number, (found, expected) in enumerate(pairs):
        gaps.append(_raw_difference(expected, found))
        by_torch.append(decode_with_torch(export, expected))
        copies = ({**expected, **found}, *_rounded(expected, gaps[-1], rng))
        if not any(differing_share([by_torch[-1]], [decode_with_torch(export, maps)]) for maps in copies):
            stable.append(number)
    difference = float(np.max(gaps))
    by_file: list[Candidates] = []
    map_torch = judge(dataset, detect_with_torch(export), export.config).map50
    with detector_of(export, model) as detector:
        map_file = judge(dataset, _kept(detect_from_files(detector), by_file), export.config).map50
    apart = differing_share([by_torch[i] for i in stable], [by_file[i] for i in stable])
    unstable = len(by_torch) - len(stable)
    if not dataset.num_boxes:
        return Comparison(difference, apart, unstable, None, None)
    return Comparison(difference, apart, unstable, map_torch, map_file)


def _raw_difference(expected: Maps, found: Maps) -> float:
    """The largest difference, of an expected value above 1 as its share of that value; nan where one is no number."""
    gaps = [np.abs(found[name] - expected[name]) / np.maximum(np.abs(expected[name]), 1) for name in found]
    return float(np.max([gap.max() for gap in gaps]))


def _rounded(maps: Maps, difference: float, rng: np.random.Generator) -> Iterator[Maps]:
    """The maps as another program's rounding might have left them, several times.

    difference: what the file's were found to be apart, which a network's depth makes more than ROUNDING.
    """
    most = min(max(ROUNDING, difference), RAW_TOLERANCE)
    for _ in range(_DRAWS):
        yield {
            name: (value + rng.uniform(-most, most, value.shape) * np.maximum(np.abs(value), 1)).astype(np.float32)
            for name, value in maps.items()
        }


def differing_share(expected: list[Candidates], found: list[Candidates]) -> float:
    """The share of detections, of either side, that the other side does not have."""
    lone, total = 0, 0
    for left, right in zip(expected, found, strict=True):
        for some, others in ((left, right), (right, left)):
            gaps = np.abs(some.boxes[:, None] - others.boxes[None]).max(axis=2, initial=0)
            gaps = np.maximum(gaps, np.abs(some.scores[:, None] - others.scores[None]))
            is_same = (gaps <= _SAME) & (some.labels[:, None] == others.labels[None])
            lone += int((~is_same.any(axis=1)).sum())
            total += len(some.scores)
    return lone / max(total, 1)


def _kept(detect: Detect, kept: list[Candidates]) -> Detect:
    """The same, with what it finds noted."""

    def noting(images: NDArray[np.uint8], paths: list[str]) -> list[Candidates]:
        found = detect(images, paths)
        kept.extend(found)
        return found

    return noting


@contextlib.contextmanager
def detector_of(export: Export, model: ModelProto) -> Iterator[Detector]:
    """The runtime's detector for a model that is not written yet, with the threshold that mAP is measured at."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(model.SerializeToString())
        threshold = max(export.config.eval.map_conf_thresh, export.metadata.conf_thresh)
        yield Detector(path, Overrides(conf_thresh=threshold), img_size=export.config.input.img_size)


def detect_with_torch(export: Export) -> Detect:
    """What the validated network finds, by the same rules as the file: threshold, suppression and number of rows."""

    def detect(images: NDArray[np.uint8], _: list[str]) -> list[Candidates]:
        with torch.no_grad():
            inputs = torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(255)
            return _finished(export, export.model(inputs))

    return detect


def decode_with_torch(export: Export, maps: Maps) -> Candidates:
    """What PyTorch makes of the raw maps of one picture, by the same rules."""
    with torch.no_grad():
        (found,) = _finished(export, {name: torch.from_numpy(value) for name, value in maps.items()})
    return found


def _finished(export: Export, preds: Preds) -> list[Candidates]:
    decode = export.decode
    threshold = max(export.config.eval.map_conf_thresh, export.metadata.conf_thresh)
    found = export.model.finish(export.model.decode(preds, decode), decode, threshold, decode.topk)
    rows = zip(found.boxes.numpy(), found.scores.numpy(), found.labels.numpy(), strict=True)
    return [Candidates(*row).take(row[2] >= 0) for row in rows]


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
        return [finish(each, export.metadata, threshold) for each in found]

    return detect


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
