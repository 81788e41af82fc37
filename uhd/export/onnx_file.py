"""ONNX files on disk."""

from __future__ import annotations

from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import ModelProto


def load_onnx(path: Path) -> ModelProto:
    """Reads a model; ValueError that names the file where it is none, or has weights outside its folder."""
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    except (DecodeError, onnx.checker.ValidationError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ValueError(f"{path}: not an ONNX file ({reason})") from None
    if not model.graph.node:
        raise ValueError(f"{path}: not an ONNX file (there is no graph in it)")
    return model
