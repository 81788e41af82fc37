"""What an exported file says about itself: how to feed it and how to read its outputs."""

from __future__ import annotations

import dataclasses
import json
import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from uhd.config import ResizeMode
from uhd.config.inputs import MAX_CLASSES
from uhd.config.values import MAX_SIDE, NMS_SIGMA, Suppression

Outputs = Literal["merged", "separate", "raw"]
Precision = Literal["float32", "int8"]
OUTPUT_KINDS: tuple[Outputs, ...] = get_args(Outputs)
MERGED_NAME = "score_classid_cxcywh"
SEPARATE_NAMES = ("boxes", "scores", "labels")
INPUT_NAME = "images"

MAX_ROWS = 2**16
_MOST_CHARACTERS = 2**20
_MOST_NAME_CHARACTERS = 200
_PROGRAM_KEY = "uhd_version"
_CONSTANT_FIELDS = {"input_layout": "NCHW", "input_channels": "RGB", "input_range": "0-1"}


@dataclass(frozen=True)
class Metadata:
    """The contract of one file, stored as texts in the file's `metadata_props`.

    outputs: merged is one tensor of finished rows, separate three tensors, raw the maps of the
    network, which `decoder` with `decoding` turns into boxes. details are further figures for the
    reader (anchors, stride). The input is always float32 NCHW, RGB
    in 0..1; img_size is its (height, width) in pixels, the one it was made for where it is dynamic.
    best_f1_threshold and map50 come from the validation of the checkpoint; None where there was none.
    precision is float32 or int8.
    """

    uhd_version: str
    arch: str
    outputs: Outputs
    class_names: tuple[str, ...]
    img_size: tuple[int, int]
    resize_mode: ResizeMode
    decoder: str
    decoding: Mapping[str, Any] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    uses_nms: bool = True
    conf_thresh: float = 0.0
    nms_iou: float = 0.5
    nms: Suppression = "hard"
    nms_sigma: float = NMS_SIGMA
    topk: int = 100
    pre_nms_topk: int = 512
    best_f1_threshold: float | None = None
    map50: float | None = None
    epoch: int = 0
    precision: Precision = "float32"
    input_layout: str = "NCHW"
    input_channels: str = "RGB"
    input_range: str = "0-1"

    def to_props(self) -> dict[str, str]:
        """Texts for the file: a text as it is, anything else as JSON; decoding and details are spread out."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        decoding, details = values.pop("decoding"), values.pop("details")
        values["decoding_keys"] = sorted(decoding)
        assert not values.keys() & {*decoding, *details}, "a network's own key hides one of the file's"
        return {
            key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            for key, value in {**values, **details, **decoding}.items()
        }

    @classmethod
    def from_props(cls, props: Mapping[str, str]) -> Metadata | None:
        """The reverse of `to_props`; None for a file of another program, ValueError where ours are damaged."""
        if _PROGRAM_KEY not in props:
            return None
        try:
            return cls._read(props)
        except (KeyError, ValueError, TypeError, OverflowError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else error
            raise ValueError(f"its metadata are damaged ({' '.join(str(reason).split())[:200]})") from None

    @classmethod
    def _read(cls, props: Mapping[str, str]) -> Metadata:
        found = {key: _plain(key, text) for key, text in props.items()}
        values = {
            f.name: found.pop(f.name, f.default) if f.name in _LATER else found.pop(f.name)
            for f in dataclasses.fields(cls)
            if f.name not in ("decoding", "details")
        }
        values["decoding"] = {key: found.pop(key) for key in found.pop("decoding_keys")}
        values["details"] = found
        for name in ("uhd_version", "arch", "resize_mode", "decoder", *_CONSTANT_FIELDS):
            values[name] = props[name]  # a text, also where it looks like a number
        if not isinstance(values["class_names"], list) or not 1 <= len(values["class_names"]) <= MAX_CLASSES:
            raise ValueError(f"class_names {reprlib.repr(values['class_names'])}")
        values["class_names"] = tuple(_name(each) for each in values["class_names"])
        height, width = (_whole("img_size", side, 1, MAX_SIDE) for side in values["img_size"])
        values["img_size"] = (height, width)
        for name, known in _CHOICES.items():
            if values[name] not in known:
                raise ValueError(
                    f"{name} {reprlib.repr(values[name])}; this version knows {', '.join(map(str, known))}"
                )
        for name in ("best_f1_threshold", "map50"):
            values[name] = None if values[name] is None else _share(name, values[name])
        for name in ("conf_thresh", "nms_iou"):
            values[name] = _share(name, values[name])
        values["nms_sigma"] = _positive("nms_sigma", values["nms_sigma"])
        for name in ("topk", "pre_nms_topk"):
            values[name] = _whole(name, values[name], 1, MAX_ROWS)
        values["epoch"] = _whole("epoch", values["epoch"], 0, 2**31)
        if "stride" in found:
            _whole("stride", found["stride"], 1, MAX_SIDE)
        metadata = cls(**values)
        for name, expected in _CONSTANT_FIELDS.items():
            if getattr(metadata, name) != expected:
                raise ValueError(f"{name} {getattr(metadata, name)!r}; this version feeds {expected}")
        return metadata


_CHOICES: dict[str, tuple[object, ...]] = {
    "outputs": OUTPUT_KINDS,
    "resize_mode": get_args(ResizeMode),
    "precision": get_args(Precision),
    "uses_nms": (True, False),
    "nms": get_args(Suppression),
}
_LATER = ("nms", "nms_sigma")
"""Fields that files of earlier versions do not have."""


def _plain(key: str, text: str) -> Any:
    """A stored value: JSON where it is some, else the text itself."""
    if len(text) > _MOST_CHARACTERS:
        raise ValueError(f"{key[:40]} has {len(text):,} characters")
    try:
        return json.loads(text)
    except ValueError:
        return text
    except RecursionError:
        raise ValueError(f"{key[:40]} is nested too deep") from None


def _name(value: object) -> str:
    text = str(value)
    if len(text) > _MOST_NAME_CHARACTERS:
        raise ValueError(f"a class name of {len(text):,} characters")
    return text


def _share(name: str, value: Any) -> float:
    number = float(value)
    if not 0 <= number <= 1:
        raise ValueError(f"{name} {number}; expected 0 to 1")
    return number


def _positive(name: str, value: Any) -> float:
    number = float(value)
    if not 0 < number < math.inf:
        raise ValueError(f"{name} {number}; expected a number above 0")
    return number


def _whole(name: str, value: Any, low: int, high: int) -> int:
    number = int(value)
    if isinstance(value, bool) or number != value or not low <= number <= high:
        raise ValueError(f"{name} {reprlib.repr(value)}; expected a whole number from {low} to {high}")
    return number
