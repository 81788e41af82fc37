"""From raw ONNX to INT8 TFLite for microcontrollers: onnx2tf, calibrated with pictures of ours, and the interpreter.

onnx2tf pins old versions of packages that the program also uses, so it has an environment of its own, `tflite/`, and
runs as a program. Only running a .tflite file needs a package here (ai-edge-litert).
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

from uhd.export.build import Export
from uhd.export.onnx_file import load_onnx
from uhd.export.pictures import inputs_of, read_pictures
from uhd.files import write_whole
from uhd.runtime import load_session

log = logging.getLogger("uhd")

Floats = NDArray[np.float32]

CONVERTER = "1.29"
"""The onnx2tf that is known to work. Later ones quantise by themselves by default, and what they write is wrong."""
_ENVIRONMENT = Path(__file__).resolve().parents[2] / "tflite"
_INSTALL_CONVERTER = "install it with `uv sync --project tflite`"
_INSTALL_INTERPRETER = "install it with `uv sync --group tflite` (or run inside `uv run --group tflite ...`)"
# Without a file of this name in its working directory onnx2tf downloads pictures of that name: to calibrate with, and
# to compare its operators with those of ONNX, which its repair of wrong transpositions rests on. So ours stand there.
# (-cind names another file to calibrate with, but breaks the comparison, which would feed ONNX the NHWC array.)
_SAMPLES = "calibration_image_sample_data_20x128x128x3_float32.npy"
_NOWHERE = "http://127.0.0.1:9"  # the discard port: a download fails at once instead of being done unasked
_CHECKED_IMAGES = 4
_DARK = 2 / 255  # calibration that reaches both ends this closely gives the input the scale 1/255
_FLOAT_TOLERANCE = 1e-3  # of the largest value; the float graph was measured equal to about 1e-6 of it


class Tensor(NamedTuple):
    """The input or output of a .tflite file: real value = (stored - zero_point) * scale; scale 0 where it is float."""

    shape: tuple[int, ...]
    dtype: str
    scale: float
    zero_point: int

    def describe(self) -> str:
        """For a log: type, shape and, where it is integer, scale and zero point."""
        sizes = ",".join(map(str, self.shape))
        form = f" of scale {self.scale:.6g} and zero point {self.zero_point}" if self.scale else ""
        return f"{self.dtype} [{sizes}]{form}"


class Difference(NamedTuple):
    """Absolute differences of raw values (logits): their mean, the greatest, and for scale the values' own spread."""

    mean: float
    largest: float
    spread: float


def check_environment(output: Path) -> None:
    """Before long work: ValueError that says how to install what is missing."""
    try:
        _converter_python()
        _interpreter_module()
    except ValueError as error:
        raise ValueError(f"--tflite {output}: {error}") from None


def write_tflite(export: Export, network: onnx.ModelProto, output: Path) -> None:
    """Writes the network of an export as INT8 TFLite, with ranges measured on --calib-dir; ValueError with one line."""
    options = export.options
    assert options.calib_dir
    pictures = read_pictures(options.calib_dir, "--calib-dir", options.calib_count, export.config, need_labels=False)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        onnx.save(network, path)
        try:
            convert(path, inputs_of(pictures), output)
        except ValueError as error:
            raise ValueError(f"--tflite {output}: {str(error).removeprefix(f'{path}: ')}") from None


def convert(raw_onnx: Path, calibration: Floats, output: Path) -> None:
    """Writes the network as a TFLite file that is INT8 throughout: weights, activations, input and output.

    raw_onnx: float graph [1,3,H,W], RGB 0..1, to one raw map; outputs that do not depend on the picture (anchors,
    wh_scale) are left out, as a .tflite reader takes them from the ONNX file. calibration [N,3,H,W] float32 in 0..1:
    pictures that the ranges of the activations are measured on (min and max, so a few hundred ordinary ones). output
    appears whole or not at all, and nothing else is left. What onnx2tf gives is checked: its float file must compute
    what the ONNX file computes, and its INT8 file must hold no float. Raises ValueError with one line.
    """
    python = _converter_python()
    _interpreter_module()  # before the minute of work
    model = without_constant_outputs(load_onnx(raw_onnx), raw_onnx)
    _check_calibration(calibration, _input_shape(model, raw_onnx))
    checked = calibration[:_CHECKED_IMAGES]
    expected = _run_onnx(model.SerializeToString(), checked)
    if _channels_last(raw_onnx, expected.shape[1:], checked.shape[2:]):
        raise ValueError(f"{raw_onnx}: its output {list(expected.shape[1:])} is no map [C,h,w]")
    with tempfile.TemporaryDirectory(prefix="uhd-tflite-") as name:
        folder = Path(name)
        onnx.save(model, folder / "raw.onnx")
        np.save(folder / _SAMPLES, np.ascontiguousarray(calibration.transpose(0, 2, 3, 1)))
        _run_onnx2tf(python, folder, raw_onnx)
        try:
            _check_float(folder / "out" / "raw_float32.tflite", checked, expected)
            data = _checked_integer(folder / "out" / "raw_full_integer_quant.tflite")
        except ValueError as error:
            raise ValueError(f"{raw_onnx}: onnx2tf did not convert it rightly ({error})") from None
    try:
        write_whole(output, data)
    except OSError as error:
        raise ValueError(f"{output}: cannot be written ({error.strerror})") from None
    source, target = tensors(output)
    log.info("%s: %.0f KiB, input %s, output %s", output, len(data) / 1024, source.describe(), target.describe())


def run_tflite(path: Path, images: Floats, *, reference: bool = True) -> Floats:
    """The raw map [N,C,h,w] of a .tflite file, as real values, for images [N,3,H,W] float32, RGB 0..1.

    Either layout (NHWC, NCHW) and any precision of the file: they are taken from the file itself. reference runs the
    plain kernels, as TFLite Micro has them; without it the fast ones of this computer (30 times as fast), whose INT8
    results differ by single steps. Raises ValueError where the file is not such a network of pictures of this size.
    """
    interpreter = _open(path, reference=reference)
    interpreter.allocate_tensors()
    source, target = interpreter.get_input_details(), interpreter.get_output_details()
    feed, read = _tensor(path, source), _tensor(path, target)
    _, channels, height, width = images.shape
    last = feed.shape == (1, height, width, channels)
    if not last and feed.shape != (1, channels, height, width):
        raise ValueError(f"{path}: takes {list(feed.shape)}, not pictures of {height}x{width}")
    out_last = _channels_last(path, read.shape[1:], (height, width))
    maps = []
    for image in images:
        picture = image[None].transpose(0, 2, 3, 1) if last else image[None]
        interpreter.set_tensor(source[0]["index"], np.ascontiguousarray(_stored(picture, feed)))
        interpreter.invoke()
        found = _real(interpreter.get_tensor(target[0]["index"]), read)
        maps.append(found.transpose(0, 3, 1, 2) if out_last else found)
    shape = (0, *(read.shape[i] for i in ((3, 1, 2) if out_last else (1, 2, 3))))
    return np.concatenate(maps) if maps else np.zeros(shape, np.float32)


def compare(
    raw_onnx: Path, tflite: Path, images: Floats, kinds: Sequence[str], *, reference: bool = True
) -> dict[str, Difference]:
    """How far the raw map of a .tflite file is from that of the ONNX file, for each kind of channel.

    images [N,3,H,W] float32 in 0..1. kinds names the channels of one anchor in their order, such as tx ty tw th obj
    quality cls; equal names are one kind. Raises ValueError where the maps do not fit each other or the kinds.
    """
    expected = _run_onnx(str(raw_onnx), images)
    found = run_tflite(tflite, images, reference=reference)
    if expected.shape != found.shape:
        raise ValueError(f"{tflite}: gives {list(found.shape)}, {raw_onnx} {list(expected.shape)}")
    count, channels, height, width = expected.shape
    if channels % len(kinds):
        raise ValueError(f"{raw_onnx}: its {channels} channels are not anchors of {len(kinds)} ({' '.join(kinds)})")
    by_anchor = (count, -1, len(kinds), height, width)
    expected, found = expected.reshape(by_anchor), found.reshape(by_anchor)
    result = {}
    for kind in dict.fromkeys(kinds):
        chosen = [i for i, each in enumerate(kinds) if each == kind]
        error = np.abs(found[:, :, chosen] - expected[:, :, chosen])
        result[kind] = Difference(float(error.mean()), float(error.max()), float(expected[:, :, chosen].std()))
    return result


def tensors(path: Path) -> tuple[Tensor, Tensor]:
    """The input and the output of a .tflite file; ValueError where it is none, or has several."""
    interpreter = _open(path, reference=True)
    return _tensor(path, interpreter.get_input_details()), _tensor(path, interpreter.get_output_details())


def without_constant_outputs(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """The graph with only the outputs that depend on its input, and only what they need.

    path names the file in the ValueError for a graph of which not exactly one output is left.
    """
    depends = {value.name for value in model.graph.input} - {value.name for value in model.graph.initializer}
    for node in model.graph.node:  # in topological order, as ONNX has it
        if depends.intersection(node.input):
            depends.update(node.output)
    kept = [value.name for value in model.graph.output if value.name in depends]
    if len(kept) != 1:
        names = ", ".join(kept) or "none"
        raise ValueError(f"{path}: expected one output that depends on the picture, the raw map; it has {names}")
    return onnx.utils.Extractor(model).extract_model([value.name for value in _inputs(model)], kept)


def _converter_python() -> Path:
    """The Python that has onnx2tf: this one, or that of the tflite environment."""
    folder = _ENVIRONMENT / ".venv" / ("Scripts" if os.name == "nt" else "bin")
    candidate = folder / ("python.exe" if os.name == "nt" else "python")
    python = Path(sys.executable) if importlib.util.find_spec("onnx2tf") else candidate
    if not python.exists():
        raise ValueError(f"onnx2tf is not installed; {_INSTALL_CONVERTER}")
    asked = "from importlib.metadata import version; print(version('onnx2tf'))"
    answer = subprocess.run([python, "-c", asked], capture_output=True, text=True)
    version = answer.stdout.strip()
    if answer.returncode:
        raise ValueError(f"onnx2tf is not installed in {python.parent.parent}; {_INSTALL_CONVERTER}")
    if not version.startswith(f"{CONVERTER}."):
        raise ValueError(f"onnx2tf {version} in {python.parent.parent}: expected {CONVERTER}; {_INSTALL_CONVERTER}")
    return python


def _run_onnx2tf(python: Path, folder: Path, raw_onnx: Path) -> None:
    """Converts raw.onnx of the folder to the files in its out/."""
    arguments = ["-i", "raw.onnx", "-o", "out", "-oiqt", "-iqd", "int8", "-oqd", "int8"]
    # The pictures are 0..1 already, as the network wants them: no mean and deviation of another data set.
    arguments += ["-qnm", "[[[[0,0,0]]]]", "-qns", "[[[[1,1,1]]]]"]
    environment = {key: value for key, value in os.environ.items() if key.lower() not in ("no_proxy", "all_proxy")}
    environment |= dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), _NOWHERE)
    environment |= {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONIOENCODING": "utf-8"}
    environment["PATH"] = f"{python.parent}{os.pathsep}{environment.get('PATH', '')}"  # it calls onnxsim by its name
    log.info("onnx2tf: converting and quantising, which takes about half a minute")
    done = subprocess.run(
        [python, "-m", "onnx2tf", *arguments],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    )
    missing = [
        name for name in ("float32", "full_integer_quant") if not (folder / "out" / f"raw_{name}.tflite").is_file()
    ]
    if done.returncode or missing:  # it ends with 0 also where it could not quantise
        lines = [line for line in re.sub(r"\x1b\[[0-9;]*m", "", done.stdout).splitlines() if line.strip()]
        reason = (lines or ["no message"])[-1].strip()[:200]
        raise ValueError(f"{raw_onnx}: onnx2tf could not convert it (exit code {done.returncode}: {reason})")


def _check_float(path: Path, images: Floats, expected: Floats) -> None:
    """ValueError where the float file does not compute what the graph does: a wrong transposition."""
    found = run_tflite(path, images)
    if expected.shape != found.shape:
        raise ValueError(f"its output {list(expected.shape[1:])} became {list(found.shape[1:])}")
    error, size = float(np.abs(found - expected).max()), max(1.0, float(np.abs(expected).max()))
    if not error <= _FLOAT_TOLERANCE * size:
        raise ValueError(f"float values differ by {error:.3g}, of {size:.3g}")


def _checked_integer(path: Path) -> bytes:
    """The INT8 file; ValueError where a tensor of it is float: a microcontroller without float would not run it."""
    kinds = {np.dtype(each["dtype"]).name for each in _open(path, reference=True).get_tensor_details()}
    if not kinds <= {"int8", "int32"} or {each.dtype for each in tensors(path)} != {"int8"}:
        raise ValueError(f"in part not quantised: {', '.join(sorted(kinds))}")
    return path.read_bytes()


def _inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The inputs proper; graphs of old versions list their weights as well."""
    weights = {value.name for value in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in weights]


def _input_shape(model: onnx.ModelProto, path: Path) -> tuple[int, int, int, int]:
    """[1,3,H,W] of the one input; ValueError for anything else, also where a size is open."""
    shapes = [[each.dim_value for each in value.type.tensor_type.shape.dim] for value in _inputs(model)]
    match shapes:
        case [[1, 3, int(height), int(width)]] if height > 0 and width > 0:
            return 1, 3, height, width
    raise ValueError(f"{path}: expected one input [1,3,H,W] of fixed size; it has {shapes} (0 is open)")


def _check_calibration(images: Floats, shape: tuple[int, int, int, int]) -> None:
    """ValueError unless the pictures are float32 [N,3,H,W] of the graph's size and in 0..1."""
    if images.dtype != np.float32 or images.ndim != 4 or images.shape[1:] != shape[1:] or not len(images):
        expected = ",".join(map(str, shape[1:]))
        raise ValueError(f"calibration pictures: {images.dtype} {list(images.shape)}; expected float32 [N,{expected}]")
    low, high = float(images.min()), float(images.max())
    if not (low >= 0 and high <= 1):
        raise ValueError(f"calibration pictures: values from {low:g} to {high:g}; expected 0 to 1")
    if low > _DARK or high < 1 - _DARK:
        log.warning("calibration pictures: values from %.3f to %.3f only; pixels beyond will be clipped", low, high)


def _run_onnx(model: str | bytes, images: Floats) -> Floats:
    """The first output of an ONNX file, or of its content, which is its raw map: picture by picture."""
    session = load_session(model, threads=0)
    source, target = session.get_inputs()[0].name, session.get_outputs()[0].name
    return np.concatenate([session.run([target], {source: image[None]})[0] for image in images])


def _interpreter_module() -> Any:
    """ai_edge_litert.interpreter; ValueError where it is not installed."""
    try:
        return importlib.import_module("ai_edge_litert.interpreter")
    except ModuleNotFoundError:
        raise ValueError(f"ai-edge-litert (the TFLite interpreter) is not installed; {_INSTALL_INTERPRETER}") from None


def _open(path: Path, *, reference: bool) -> Any:
    """An interpreter of the file, its tensors not yet allocated."""
    module = _interpreter_module()
    kernels = module.OpResolverType.BUILTIN_REF if reference else module.OpResolverType.AUTO
    try:
        return module.Interpreter(model_content=path.read_bytes(), experimental_op_resolver_type=kernels)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path}: not a TFLite file that this interpreter runs ({reason})") from None


def _tensor(path: Path, details: Sequence[Any]) -> Tensor:
    """The one input or output that the interpreter's details describe."""
    if len(details) != 1:
        raise ValueError(f"{path}: expected one input and one output; it has {len(details)}")
    dtype = np.dtype(details[0]["dtype"])
    scale, zero_point = details[0]["quantization"]
    if dtype.kind != "f" and not scale:
        raise ValueError(f"{path}: its {dtype.name} input or output has no scale")
    return Tensor(tuple(int(size) for size in details[0]["shape"]), dtype.name, float(scale), int(zero_point))


def _channels_last(path: Path, shape: tuple[int, ...], size: tuple[int, ...]) -> bool:
    """Whether a map is [h,w,C] rather than [C,h,w]: its grid has the proportions of the picture, (H, W)."""
    fits = []
    if len(shape) == 3:
        grids = {False: shape[1:], True: shape[:2]}
        fits = [last for last, (height, width) in grids.items() if height * size[1] == width * size[0]]
    if len(fits) != 1:
        reason = "can be read as both [C,h,w] and [h,w,C]" if fits else "is no map of such pictures"
        raise ValueError(f"{path}: its output {list(shape)} {reason}")
    return fits[0]


def _stored(values: Floats, form: Tensor) -> NDArray[Any]:
    """Real values to what the file takes."""
    dtype = np.dtype(form.dtype)
    if dtype.kind == "f":
        return values.astype(dtype)
    limits = np.iinfo(dtype)
    steps = np.rint(values / np.float32(form.scale)) + form.zero_point
    return np.asarray(np.clip(steps, limits.min, limits.max), dtype)


def _real(stored: NDArray[Any], form: Tensor) -> Floats:
    """What the file gives to real values."""
    if not form.scale:
        return stored.astype(np.float32)
    return (stored.astype(np.float32) - np.float32(form.zero_point)) * np.float32(form.scale)
