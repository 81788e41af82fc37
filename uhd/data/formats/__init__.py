"""Annotations of whole sets: COCO json, Pascal VOC XML, the csv of Tiny SSD; read as one `AnnotationSet`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePath

from tqdm import tqdm

from uhd.data.formats.base import AnnotationSet, Box, Format, Picture
from uhd.data.formats.coco import parse_coco
from uhd.data.formats.table import parse_csv
from uhd.data.formats.voc import MalformedError, VocFile, join_voc, parse_voc
from uhd.data.labels import BadLine
from uhd.reading import read_plain, read_start

__all__ = ["AnnotationSet", "Box", "Format", "Picture", "format_of", "read_annotations", "xml_files"]

ANNOTATION_BYTES = 2**30
"""The largest json or csv. That of COCO's 118,000 training pictures has 470 MB."""
XML_BYTES = 2**23
"""The largest XML file of a picture."""

_SUFFIXES: dict[str, Format] = {".json": "coco", ".csv": "csv", ".xml": "voc"}


def format_of(path: str) -> Format:
    """The format of a file by its suffix, or by its first letter; a folder is one of XML files."""
    if os.path.isdir(path):
        return "voc"
    suffix = PurePath(path).suffix.lower()
    if suffix in _SUFFIXES:
        return _SUFFIXES[suffix]
    start = read_start(path, 100).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    return "coco" if start in (b"{", b"[") else "voc" if start == b"<" else "csv"


def read_annotations(path: str, flag: str) -> AnnotationSet:
    """All of a json, csv or XML file, or of the XML files in a folder and its subfolders.

    Raises ValueError that names flag, file and place where it cannot be read or is malformed as a whole; a malformed
    box is a bad line of its picture, and an XML file that cannot be read is one of the set's `refused`.
    """
    source = f"{flag} {path}"
    if not os.path.exists(path):
        raise ValueError(f"{source}: no such file or folder (looked for {os.path.abspath(path)})")
    if os.path.isdir(path):
        return _read_folder(path, source)
    try:
        kind = format_of(path)
        if kind == "voc":
            return join_voc(*_read_xml(path, PurePath(path).stem))
        data = read_plain(path, ANNOTATION_BYTES)
    except OSError as error:
        raise ValueError(f"{source}: cannot be read ({error.strerror})") from None
    return parse_coco(data, source) if kind == "coco" else parse_csv(data, source)


def xml_files(folder: str) -> Iterator[str]:
    """The XML files in a folder and its subfolders, sorted; hidden ones are passed over."""
    for above, subfolders, names in os.walk(folder):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        yield from (
            os.path.join(above, name)
            for name in sorted(names)
            if name.lower().endswith(".xml") and not name.startswith(".")
        )


def _read_folder(path: str, source: str) -> AnnotationSet:
    files: list[VocFile] = []
    refused: list[BadLine] = []
    for file in tqdm(list(xml_files(path)), desc="Reading annotations", unit="file", disable=None, leave=False):
        read, bad = _read_xml(file, Path(file).relative_to(path).with_suffix("").as_posix())
        files += read
        refused += bad
    if not files and not refused:
        raise ValueError(f"{source}: no .xml file in {os.path.abspath(path)} or below; a json or csv is named itself")
    return join_voc(files, refused)


def _read_xml(file: str, name: str) -> tuple[list[VocFile], list[BadLine]]:
    """One file, or why it is refused."""
    try:
        return [parse_voc(read_plain(file, XML_BYTES), file, name)], []
    except OSError as error:
        return [], [BadLine(0, f"cannot be read ({error.strerror})", file)]
    except MalformedError as error:
        return [], [BadLine(error.line, error.problem, file)]
