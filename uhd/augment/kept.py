"""The augmentation file as a run read it, kept in the run's folder: the path alone does not say what was in it."""

from __future__ import annotations

from pathlib import Path

from uhd.augment import locate
from uhd.augment.config_file import MOST_BYTES
from uhd.files import write_whole
from uhd.reading import read_plain

KEPT = "aug.yaml"


def keep_file(path: str | Path, run_dir: Path) -> None:
    """Copies a file that --aug-config names to a run's folder; one that has gone since it was read is left out."""
    try:
        content = read_plain(locate(path), MOST_BYTES)
    except (OSError, ValueError):
        return
    write_whole(run_dir / KEPT, content)


def has_changed(path: str | Path, run_dir: Path) -> bool:
    """Whether a file differs from the one that a run kept; not where one of them cannot be read."""
    try:
        return read_plain(locate(path), MOST_BYTES) != read_plain(run_dir / KEPT, MOST_BYTES)
    except (OSError, ValueError):
        return False
