"""Typed text to value: what the flags' own parsers accept, each with an error that says what was expected."""

from __future__ import annotations

from typing import Literal

ResizeMode = Literal[
    "opencv_inter_area", "opencv_inter_linear", "opencv_inter_nearest", "torch_bilinear", "torch_nearest"
]
RESIZE_MODE_ALIASES = {"keras_bilinear": "torch_bilinear", "keras_nearest": "torch_nearest"}

ScoreMode = Literal["obj*quality*cls", "quality*cls", "obj*cls", "cls"]
"""The factors of a detection's score."""

Suppression = Literal["hard", "soft"]
"""What becomes of a box that overlaps a better one of its class: it goes, or its score falls with the overlap."""
NMS_SIGMA = 0.5
"""Width of soft suppression: a score falls by exp(-IoU^2 / sigma) (arXiv:1704.04503)."""
OnnxFormat = Literal["auto", "uhd", "nanodet"]
"""Whose detector an ONNX file is; auto looks at its metadata, names and shapes."""

Size = tuple[int, int]
MAX_SIDE = 4096
Pairs = tuple[tuple[float, float], ...]


def parse_size(text: str) -> Size:
    """`HxW` or `N` (square) to (height, width) in pixels."""
    parts = text.lower().split("x")
    if len(parts) == 1:
        parts *= 2
    if len(parts) != 2 or not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise ValueError(f"{text!r} is not a size; expected HxW in pixels, such as 64x64")
    if max(map(int, parts)) > MAX_SIDE:
        raise ValueError(f"{text!r} is too large; expected sides of at most {MAX_SIDE} pixels")
    return int(parts[0]), int(parts[1])


def parse_classes(text: str) -> tuple[int, ...]:
    """`0,2,5` to class ids, in the order typed."""
    try:
        ids = tuple(int(part) for part in text.split(","))
    except ValueError:
        ids = ()
    if not ids or min(ids) < 0:
        raise ValueError(f"{text!r} is not a list of class ids; expected integers >= 0 such as 0,2,5")
    if len(set(ids)) < len(ids):
        raise ValueError(f"{text!r} names a class id twice")
    return ids


def parse_words(text: str) -> tuple[str, ...]:
    """`person,car` to texts without the space around them."""
    words = tuple(word.strip() for word in text.split(","))
    if not all(words):
        raise ValueError(f"{text!r} is not a list of names; expected names such as person,car")
    return words


def parse_anchors(text: str) -> Pairs | None:
    """`w,h w,h` (spaces or `;` between pairs) to normalised anchor sizes; empty text is None."""
    pairs = []
    for item in text.replace(";", " ").split():
        try:
            width, height = (float(part) for part in item.split(","))
        except ValueError:
            raise ValueError(f"{item!r} is not an anchor; expected w,h pairs such as '0.1,0.2 0.3,0.6'") from None
        if not (0 < width <= 2 and 0 < height <= 2):
            raise ValueError(f"anchor {item!r} is outside 0..2; anchors are normalised by the picture's size")
        pairs.append((width, height))
    return tuple(pairs) or None


def parse_stride(text: str) -> int:
    """4, 8 or 16."""
    if text not in ("4", "8", "16"):
        raise ValueError(f"{text!r} is not one of 4, 8, 16")
    return int(text)


def parse_counts(text: str) -> tuple[int, ...] | None:
    """`16,32,48` to whole numbers >= 1; empty text is None."""
    parts = text.replace(" ", "").split(",") if text.strip() else []
    if not all(part.isascii() and part.isdigit() and 1 <= int(part) <= MAX_SIDE for part in parts):
        raise ValueError(
            f"{text!r} is not a list of counts; expected whole numbers from 1 to {MAX_SIDE} such as 1,2,2,1"
        )
    return tuple(map(int, parts)) or None


def parse_strides(text: str) -> tuple[int, ...]:
    """`8,16,32` to whole numbers; which of them go together is the section's to check."""
    return parse_counts(text) or ()


def parse_resize_mode(text: str) -> str:
    """A resize mode under its own name."""
    return RESIZE_MODE_ALIASES.get(text, text)


def parse_activation(text: str) -> str:
    """An activation under its own name."""
    return "swish" if text == "silu" else text


def parse_optional_path(text: str) -> str | None:
    """A path, or None for the empty text that recipes write for "none"."""
    return text or None
