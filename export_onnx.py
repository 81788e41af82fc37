"""Export a checkpoint to ONNX, or look at a file: `python export_onnx.py --help`."""

from __future__ import annotations

import uhd.process  # noqa: F401  # isort: skip - settings that torch reads when it is loaded
from uhd.cli import parse_export_args  # isort: skip
from uhd.program import exit_code_of, leave_on_mistake  # isort: skip
from uhd.signals import leave_at_once  # isort: skip

if __name__ == "__main__":
    # torch takes seconds to load: a signal, a mistake in the flags and --help are answered before.
    leave_at_once("export_onnx.py")
    leave_on_mistake("export_onnx.py", parse_export_args)

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from uhd.checkpoint import read_checkpoint
from uhd.config import Config, ExportConfig
from uhd.data.listing import find_images
from uhd.export.build import build_network, finish, prepare, save
from uhd.export.info import describe_file
from uhd.export.quantize import quantize_network
from uhd.export.report import report_files, write_report
from uhd.export.tflite import check_environment, write_tflite
from uhd.export.verify import verify
from uhd.files import check_writable
from uhd.logger import log_to_console
from uhd.precedence import agree, warn_unused_export

log = logging.getLogger("uhd")


def main(argv: Sequence[str] | None = None) -> int:
    """Does what the flags ask for; exit code 2 for a mistake of the user's, 1 where --verify finds a difference."""
    return exit_code_of("export_onnx.py", lambda _: run(argv))


def run(argv: Sequence[str] | None) -> None:
    """One session: look at a file, or export."""
    log_to_console()
    options, typed = parse_export_args(argv)
    if options.info:
        print(describe_file(Path(options.info)))
        return
    assert options.checkpoint
    output = Path(options.output or default_output(options))
    check_targets(output, options)
    check_sources(options)
    warn_unused_export(options)
    checkpoint = read_checkpoint(options.checkpoint, "--checkpoint")
    cfg = agree(typed, checkpoint)
    if options.tflite:
        check_tflite(cfg, Path(options.tflite))
    export = prepare(checkpoint, cfg, options)
    network = build_network(export)
    log.info("%s: %d operators in the network, opset %d", export.metadata.arch, len(network.graph.node), options.opset)
    models = {"FP32": finish(export, network)}
    if options.int8:
        models["INT8"] = finish(export, quantize_network(export, network), "int8")
    *_, model = models.values()
    if options.verify:
        verify(export, model)
    save(model, output)
    log.info("wrote %s (%.2f MB)", output, output.stat().st_size / 1e6)
    if options.tflite:
        write_tflite(export, network, Path(options.tflite))
    if options.report:
        write_report(export, models, output)


def check_targets(output: Path, options: ExportConfig) -> None:
    """ValueError, before any work, where a file could not be written or would replace another that is needed."""
    targets = {"--checkpoint": Path(options.checkpoint or ""), "--output": output}
    if options.tflite:
        targets["--tflite"] = Path(options.tflite)
    if options.report:
        for path in report_files(output):
            check_writable(path, "--report")
    seen: dict[Path, str] = {}
    for flag, path in targets.items():
        if flag != "--checkpoint":
            check_writable(path, flag)
        other = seen.setdefault(path.resolve(), flag)
        if other != flag:
            raise ValueError(f"{flag} {path}: the same file as {other} {targets[other]}")


def check_sources(options: ExportConfig) -> None:
    """ValueError, before any work, where there is nothing to read."""
    for flag, source in (("--image-dir", options.image_dir), ("--calib-dir", options.calib_dir)):
        if source and (options.int8 or options.tflite or options.verify or options.report):
            find_images(source, flag)


def check_tflite(cfg: Config, path: Path) -> None:
    """ValueError, before any work, for a network that --tflite cannot write, or where its packages are not there."""
    if cfg.model.head != "anchor":
        raise ValueError(
            f"--tflite {path}: the network has several maps ({cfg.model.head} head); the readers of such files know "
            "one, as anchor heads have"
        )
    check_environment(path)


def default_output(options: ExportConfig) -> str:
    """The checkpoint's name with the ending of what is exported."""
    assert options.checkpoint
    return str(Path(options.checkpoint).with_suffix("")) + ("_int8.onnx" if options.int8 else ".onnx")


if __name__ == "__main__":
    sys.exit(main())
