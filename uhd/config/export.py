"""The section of export_onnx.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from uhd.config.options import Scope, Section, option
from uhd.config.run import check_thresholds
from uhd.config.values import parse_optional_path

DynamicAxes = Literal["batch", "hw", "all"]
MIN_OPSET, MAX_OPSET = 13, 20
"""Between them every operator that a file uses has one form."""


@dataclass(frozen=True)
class ExportConfig(Section):
    """What is exported, and how."""

    scope: ClassVar[Scope] = "session"
    title: ClassVar[str] = "Export"

    checkpoint: str | None = option(
        None, "Checkpoint to export; it alone rebuilds its network.", parse=parse_optional_path, metavar="FILE"
    )
    output: str | None = option(
        None,
        "File to write. Default: the checkpoint's name with .onnx, or _int8.onnx.",
        parse=parse_optional_path,
        metavar="FILE",
    )
    info: str | None = option(
        None,
        "Print what an ONNX file or a checkpoint is (settings, anchors, size, mAP), and stop.",
        parse=parse_optional_path,
        metavar="FILE",
    )
    opset: int = option(17, f"ONNX operator set, {MIN_OPSET} to {MAX_OPSET}.")
    dynamic: DynamicAxes | None = option(
        None, "Leave sizes of the input open: the number of pictures, height and width, or both.", bare="batch"
    )
    ema: bool = option(True, "Export the averaged weights where the run kept them.")
    merge_postprocess: bool = option(
        True, "Decoding and suppression inside the graph; without it the raw maps are the outputs."
    )
    separate_outputs: bool = option(
        False, "Boxes (x1 y1 x2 y2, normalised), scores and labels as three outputs instead of one table."
    )
    topk: int = option(100, "Rows of the output.")
    conf_thresh: float = option(0.0, "Score below which the graph leaves candidates out.")
    nms_iou: float | None = option(
        None, "Overlap (IoU) above which the lower-scored box of a class goes. Default: the checkpoint's."
    )
    simplify: bool = option(True, "Simplify the graph with onnxsim.")
    verify: bool = option(
        False,
        "Compare with PyTorch on pictures of --image-dir, --calib-dir or, without either, drawn ones: raw maps, "
        "detections and, where there are labels, mAP. Beyond the tolerance: exit code 1 and no file.",
    )
    image_dir: str | None = option(
        None,
        "Pictures for --verify and --report: a folder, or a text file that lists them.",
        parse=parse_optional_path,
        metavar="DIR",
    )
    image_count: int = option(200, "Most pictures of --image-dir to look at; 0 is all.", metavar="N")
    int8: bool = option(
        False, "Quantise the network to INT8 (QDQ, static, per channel); decoding and NMS stay in float."
    )
    calib_dir: str | None = option(
        None,
        "Pictures that the INT8 ranges are measured on: a folder, or a text file that lists them.",
        parse=parse_optional_path,
        metavar="DIR",
    )
    calib_count: int = option(1000, "Most pictures of --calib-dir to use, spread over it; 0 is all.", metavar="N")
    calib_method: Literal["auto", "minmax", "entropy", "percentile"] = option(
        "auto", "How a range is chosen; auto measures which one loses least."
    )
    weight_bits: Literal[7, 8] = option(
        7,
        "Bits of INT8 weights: 7 is exact on every processor; 8 is a little closer where there are instructions for "
        "it (VNNI, ARM), and far off where there are none, since sums of products then do not fit.",
    )
    tflite: str | None = option(
        None,
        "Also write the network as INT8 TFLite for microcontrollers, with ranges from --calib-dir. Needs the packages "
        "of tflite/ (README).",
        parse=parse_optional_path,
        metavar="FILE",
    )
    report: bool = option(
        False,
        "With --int8 or --tflite: compare mAP, size and latency with FP32, as a table and a PNG beside the output.",
    )

    def __post_init__(self) -> None:
        if not MIN_OPSET <= self.opset <= MAX_OPSET:
            raise ValueError(f"--opset {self.opset}: expected {MIN_OPSET} to {MAX_OPSET}")
        check_thresholds(self, "conf_thresh", "nms_iou")
        if self.topk < 1:
            raise ValueError(f"--topk {self.topk}: expected at least 1")
        for name, value in (("--image-count", self.image_count), ("--calib-count", self.calib_count)):
            if value < 0:
                raise ValueError(f"{name} {value}: expected at least 0")
        needs = {
            "--separate-outputs": (self.separate_outputs, self.merge_postprocess, "--merge-postprocess"),
            "--int8": (self.int8, self.calib_dir, "--calib-dir, the pictures that the ranges are measured on"),
            "--tflite": (self.tflite, self.calib_dir, "--calib-dir, the pictures that the ranges are measured on"),
            "--report": (self.report, self.int8 or self.tflite, "--int8 or --tflite"),
        }
        for flag, (given, needed, what) in needs.items():
            if given and not needed:
                raise ValueError(f"{flag}: needs {what}")
        if self.tflite and self.dynamic:
            raise ValueError("--tflite and --dynamic: a TFLite file has one fixed input size")
        if not (self.checkpoint or self.info):
            raise ValueError("--checkpoint: which file to export (or --info FILE to look at one)")
        if self.checkpoint and self.info:
            raise ValueError("--checkpoint and --info: export or look, not both")
