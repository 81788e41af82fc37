"""Files that are complete or not there."""

from __future__ import annotations

import os
from pathlib import Path


def check_writable(path: Path, flag: str) -> None:
    """Before long work: ValueError that names the flag and the file where it could not be written at the end."""
    reason = None
    if path.is_dir():
        reason = "a folder; expected a file"
    elif not path.parent.is_dir():
        reason = f"the folder {path.parent} does not exist"
    elif not os.access(path.parent, os.W_OK):
        reason = f"the folder {path.parent} cannot be written to"
    if reason:
        raise ValueError(f"{flag} {path}: {reason}")


def write_whole(path: Path | str, data: bytes) -> None:
    """Writes a file under a temporary name beside it, then renames; creates no folder. Raises OSError.

    Whoever reads the file meanwhile sees the old one or the new one, and a full disk leaves the old one.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
