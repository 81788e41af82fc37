"""What `--annotations` names, as the source of a set's labels: read once, and only where the cache is out of date."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from uhd.config import DataConfig
from uhd.data.formats import AnnotationSet, Picture, read_annotations, xml_files
from uhd.data.matching import match_pictures

FLAG = "--annotations"

_log = logging.getLogger("uhd")


class AnnotationSource:
    """A file or folder of annotations and the pictures that they may be of.

    path: as it was typed. pictures: absolute paths of all sets, since a name must not stand for two pictures. roots:
    folders that the names may start from.
    """

    def __init__(self, path: str, pictures: Sequence[str], roots: Sequence[str], *, skip_bad: bool = False) -> None:
        self.path = path
        self._pictures = pictures
        self._roots = roots
        self._skip_bad = skip_bad
        self._content: AnnotationSet | None = None
        self._of: dict[str, int] = {}

    @classmethod
    def of(cls, cfg: DataConfig, pictures: Sequence[str]) -> AnnotationSource | None:
        """Those that the flags name; None where labels are files beside the pictures."""
        if cfg.annotations is None:
            return None
        if cfg.val_list:
            lists = [path for path in (cfg.train_list, cfg.val_list) if path]
            roots = [*(os.path.dirname(os.path.abspath(path)) for path in lists), os.getcwd()]
        else:
            is_list = os.path.isfile(cfg.image_dir)
            roots = [os.path.abspath(os.path.dirname(cfg.image_dir) if is_list else cfg.image_dir)]
        return cls(cfg.annotations, pictures, roots, skip_bad=cfg.skip_bad_labels)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, in their order; empty where they have only numbers."""
        return self._read().class_names

    def state(self) -> tuple[int, int]:
        """Two numbers that change when the file, or one in the folder, does; ValueError where there is none."""
        if not os.path.exists(self.path):
            raise ValueError(f"{FLAG} {self.path}: no such file or folder (looked for {os.path.abspath(self.path)})")
        if not os.path.isdir(self.path):
            return _state(self.path)
        digest, total = hashlib.sha256(), 0
        for file in xml_files(self.path):
            size, time = _state(file)
            digest.update(repr((file, size, time)).encode("utf-8", "surrogatepass"))
            total += size
        return total, int.from_bytes(digest.digest()[:8], "little", signed=True)

    def picture(self, path: str) -> Picture | None:
        """What they say of the picture at an absolute path; None where they do not name it."""
        content = self._read()
        return content.pictures[self._of[path]] if path in self._of else None

    def leaves_out(self, path: str) -> bool:
        """Whether the picture at an absolute path was never labelled, instead of being empty."""
        return self._read().lists_pictures and path not in self._of

    def load(self) -> None:
        """Reads them, if that is still to be done.

        Raises ValueError that names flag, file and place where they are malformed, or of none of the pictures.
        """
        self._read()

    def _read(self) -> AnnotationSet:
        if self._content is None:
            content = read_annotations(self.path, FLAG)
            self._check_refused(content)
            try:
                self._of = match_pictures(self._pictures, content.pictures, self._roots)
            except ValueError as error:
                raise ValueError(f"{FLAG} {self.path}: {error}") from None
            if not self._of:
                first = f", first {content.pictures[0].names[0]!r:.100}" if content.pictures else ""
                raise ValueError(
                    f"{FLAG} {self.path}: none of its {len(content.pictures)} pictures{first}, is among the "
                    f"{len(self._pictures)} given; expected names that the pictures' paths end in"
                )
            self._describe(content)
            self._content = content
        return self._content

    def _check_refused(self, content: AnnotationSet) -> None:
        if not content.refused:
            return
        first = content.refused[0]
        said = f"{FLAG} {first.place(self.path)}: {first.problem}"
        if not self._skip_bad:
            more = f"; {len(content.refused)} such files" if len(content.refused) > 1 else ""
            raise ValueError(f"{said}{more} (--skip-bad-labels leaves out what is wrong)")
        _log.warning("%d files of annotations are left out, first %s", len(content.refused), said)

    def _describe(self, content: AnnotationSet) -> None:
        ignored = sum(int((picture.rows[:, 0] < 0).sum()) for picture in content.pictures)
        _log.info(
            "%s %s: %d pictures, %d of them given, and %d boxes, %d of them ignored (crowds, difficult objects)",
            FLAG,
            self.path,
            len(content.pictures),
            len(self._of),
            content.num_boxes,
            ignored,
        )
        if content.class_names:
            shown = ", ".join(f"{i} {name}" for i, name in enumerate(content.class_names[:100]))
            more = f" and {len(content.class_names) - 100} more" if len(content.class_names) > 100 else ""
            _log.info("%s: its classes are %s%s", FLAG, shown, more)
        for remark in content.remarks:
            _log.warning("%s %s: %s", FLAG, self.path, remark)


def _state(path: str) -> tuple[int, int]:
    try:
        status = Path(path).stat()
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns
