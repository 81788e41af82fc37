"""What `--annotations` names, as the source of a set's labels: read once, and only where the cache is out of date."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from uhd.config import DataConfig
from uhd.data.formats import AnnotationSet, Picture, read_annotations, xml_files
from uhd.data.formats.base import plain_name, rows_of
from uhd.data.formats.voc import own_names
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
        self._refused: set[str] = set()

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
        # The number goes up when the files' names lead to other pictures than they did.
        digest, total = hashlib.sha256(b"2"), 0
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
        """Whether nobody knows what is in the picture at an absolute path, instead of that nothing is.

        It was never labelled, or its file is one of those that --skip-bad-labels leaves out.
        """
        return (self._read().lists_pictures and path not in self._of) or path in self._refused

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
                unclaimed = [path for path in self._pictures if path not in self._of]
                self._refused = set(match_pictures(unclaimed, self._pictures_of_refused(content), self._roots))
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
        _log.warning("%d files of annotations are left out with their pictures, first %s", len(content.refused), said)

    def _pictures_of_refused(self, content: AnnotationSet) -> list[Picture]:
        """The pictures of the files that could not be read, by the files' names."""
        names = (os.path.splitext(os.path.relpath(line.file, self.path))[0] for line in content.refused)
        return [Picture(own_names(plain_name(name)), None, rows_of([])) for name in names]

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
        claimed = set(self._of.values())
        strangers = [index for index in range(len(content.pictures)) if index not in claimed]
        lacking = [path for path in self._pictures if path not in self._of and path not in self._refused]
        if strangers and lacking and not content.lists_pictures:
            _log.warning(
                "%s %s: %d of its pictures are none of those given, first %s, and %d of those given are not in it and "
                "count as empty, first %s",
                *(FLAG, self.path, len(strangers), content.pictures[strangers[0]].names[0]),
                *(len(lacking), lacking[0]),
            )
        for remark in content.remarks:
            _log.warning("%s %s: %s", FLAG, self.path, remark)


def _state(path: str) -> tuple[int, int]:
    try:
        status = Path(path).stat()
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns
