"""The folder that the pictures go to: whose it is, and what the files in it are called."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from uhd.config import PasteConfig

MARKER_NAME = "paste.json"
NAMES_NAME = "names.txt"

_PROGRAM = "uhd.data.paste"
_OWN_NAME = re.compile(r"paste_\d{5,}\.(?:jpg|png|txt)")
_NOT_STORED = ("out", "workers", "preview", "max_pixels")
"""What changes no picture."""


def picture_name(index: int, cfg: PasteConfig) -> str:
    """Of picture `index`; that of its label file differs in the ending."""
    return f"paste_{index:05d}.{cfg.format}"


def preview_path(cfg: PasteConfig) -> Path:
    """Beside the folder: within it train.py would take the sheet for one of the pictures."""
    folder = Path(os.path.abspath(cfg.out or ""))
    return folder.with_name(f"{folder.name}-preview.png")


def check(cfg: PasteConfig) -> None:
    """ValueError where --out or the sheet beside it is not this program's, or --out lies within a folder that is read.

    A sheet is taken for the program's where the folder is.
    """
    assert cfg.out
    out = Path(cfg.out)
    for flag, source in (("--targets", cfg.targets), ("--backgrounds", cfg.backgrounds)):
        assert source
        if os.path.isdir(source) and Path(os.path.realpath(out)).is_relative_to(os.path.realpath(source)):
            raise ValueError(f"--out {out}: inside {flag} {source}; expected a folder outside of it")
    with _said_as_mistake(out):
        if out.exists():
            _own_files(out)
        sheet = preview_path(cfg)
        if cfg.preview and os.path.lexists(sheet) and not _is_marker(out / MARKER_NAME):
            raise ValueError(
                f"--out {out}: the preview would overwrite {sheet}, which this program has not made; expected another "
                "folder, or --preview 0"
            )


def prepare(cfg: PasteConfig, class_names: Sequence[str]) -> Path:
    """Makes --out, or empties it where this program filled it; leaves paste.json in it, which says how it is filled.

    Raises ValueError as `check` does, and where the folder cannot be written.
    """
    assert cfg.out
    out = Path(cfg.out)
    settings = {f.name: getattr(cfg, f.name) for f in dataclasses.fields(cfg) if f.name not in _NOT_STORED}
    with _said_as_mistake(out):
        out.mkdir(parents=True, exist_ok=True)
        for file in _own_files(out):
            file.unlink()
        (out / MARKER_NAME).write_text(json.dumps({"program": _PROGRAM, **settings}, indent=1) + "\n", encoding="utf-8")
        if class_names:
            (out / NAMES_NAME).write_text("".join(f"{name}\n" for name in class_names), encoding="utf-8")
    return out


@contextmanager
def _said_as_mistake(out: Path) -> Iterator[None]:
    """Before any work, what cannot be written is a wrong flag, not a failure of the machine."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"--out {out}: cannot be written ({error.strerror})") from None


def _own_files(out: Path) -> list[Path]:
    """The files in the folder but the marker; ValueError where the folder, or one of them, is not this program's."""
    files = sorted(file for file in out.iterdir() if file.name != MARKER_NAME)
    is_ours = _is_marker(out / MARKER_NAME)
    for file in files:
        known = file.name == NAMES_NAME or _OWN_NAME.fullmatch(file.name)
        if not (is_ours and known and file.is_file()):
            raise ValueError(
                f"--out {out}: holds {file.name}, which this program has not made; expected a new or empty folder, or "
                "one that it filled"
            )
    return files


def _is_marker(path: Path) -> bool:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("program") == _PROGRAM
