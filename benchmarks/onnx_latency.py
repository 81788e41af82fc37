"""Milliseconds of exported graphs for one picture, and of the whole way from a camera's frame to boxes.

    python -m benchmarks.onnx_latency
    python -m benchmarks.onnx_latency --ckpt runs/w32/best.pt runs/w64/best.pt --calib-dir people/train.txt
    python -m benchmarks.onnx_latency --network "--arch nanodet --img-size 320x320"
    python -m benchmarks.onnx_latency --widths 16 --onnx ultratinyod_res_anc8_w64_64x64_quality.onnx

One thread, batch 1, median of 1,000 runs; the graphs take turns. Without --ckpt the networks have random weights, which
changes the time of the suppression only. "post" is what decoding and suppression add inside the FP32 graph. "demo" is
the call of `Detector` with that graph on a 640x480 frame, beside its limit: 1.3 times the bare run and 0.3 ms.
"""

from __future__ import annotations

import uhd.process  # noqa: F401  # isort: skip - settings that torch reads when it is loaded

import argparse
import shlex
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.common import ANCHORS, FLAGS, bare, untrained
from uhd.checkpoint import Checkpoint, read_checkpoint
from uhd.config import Config, ExportConfig
from uhd.data.synthetic import write_demo_data
from uhd.export.build import build_network, finish, prepare, save
from uhd.export.pictures import inputs_of, read_pictures
from uhd.export.quantize import quantize_network
from uhd.export.report import median_milliseconds
from uhd.logger import log_to_console
from uhd.runtime import Detector, Overrides

RUNS = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 32, 64, 96, 128])
    parser.add_argument(
        "--network", type=shlex.split, help="train.py's flags of an untrained one, in place of the widths"
    )
    parser.add_argument("--ckpt", nargs="+", default=[], help="trained networks, in place of random ones")
    parser.add_argument("--onnx", nargs="*", default=[], help="further files, such as the original program's")
    parser.add_argument("--calib-dir", help="pictures to calibrate INT8 and to run on; drawn scenes without it")
    args = parser.parse_args()
    log_to_console()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pictures = args.calib_dir
        if pictures is None:
            pictures = str(folder / "scenes")
            write_demo_data(Path(pictures), 64, seed=0)
        networks = [[*FLAGS, "--cnn-width", str(width), "--anchors", ANCHORS] for width in args.widths]
        checkpoints = [read_checkpoint(path) for path in args.ckpt] or [
            untrained(flags, folder / str(number))
            for number, flags in enumerate([args.network] if args.network else networks)
        ]
        rows = [measure(checkpoint, pictures, folder) for checkpoint in checkpoints]
        print(f"\n{'':>22}" + "".join(f"{title:>12}" for title in (*rows[0][1], "post", "demo limit")))
        for title, times in rows:
            post = times["FP32 merged"] - times["FP32 raw"]
            limit = 1.3 * times["FP32 merged"] + 0.3
            print(f"{title:>22}" + "".join(f"{value:>12.3f}" for value in (*times.values(), post, limit)))
        frame = noise(480, 640)
        for path in args.onnx:
            detector = Detector(path, Overrides())
            times = median_milliseconds({"bare": bare(detector), "demo": lambda d=detector: d(frame)}, RUNS)
            print(f"{Path(path).name}: " + ", ".join(f"{key} {value:.3f} ms" for key, value in times.items()))


def measure(checkpoint: Checkpoint, pictures: str, folder: Path) -> tuple[str, dict[str, float]]:
    """Milliseconds of each form of one network."""
    cfg: Config = checkpoint.config
    forms: dict[str, dict[str, bool]] = {
        "FP32 raw": {"merge_postprocess": False},
        "FP32 merged": {},
        "INT8 raw": {"int8": True, "merge_postprocess": False},
        "INT8 merged": {"int8": True},
    }
    detectors = {}
    quantized = None
    for title, flags in forms.items():
        options = ExportConfig(checkpoint=str(checkpoint.path), calib_dir=pictures, calib_count=100, **flags)
        export = prepare(checkpoint, cfg, options)
        network = build_network(export)
        if options.int8:
            network = quantized = quantized or quantize_network(export, network)
        path = folder / f"{checkpoint.path.stem} {title}.onnx"
        save(finish(export, network), path)
        detectors[title] = Detector(path)
    inputs = inputs_of(read_pictures(pictures, "--calib-dir", 100, cfg, need_labels=False))
    frame = noise(480, 640)
    calls = {title: bare(detector, inputs) for title, detector in detectors.items()}
    calls["demo"] = lambda: detectors["FP32 merged"](frame)
    width = getattr(cfg.model, "cnn_width", None)
    size = "x".join(map(str, cfg.input.img_size))
    return f"{cfg.model.arch} {f'w{width}' if width else size}", median_milliseconds(calls, RUNS)


def noise(height: int, width: int) -> np.ndarray:
    """A frame that compresses and caches no better than a photograph."""
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


if __name__ == "__main__":
    main()
