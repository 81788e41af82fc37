"""The section of `python -m uhd.data.convert`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from uhd.config.options import Scope, Section, option
from uhd.config.values import parse_optional_path

FORMATS = {
    "yolo": "a txt file a picture, shares of its size",
    "voc": "an XML file a picture, corners in pixels",
    "coco": "one json of all pictures",
    "csv": "one table of all boxes, corners in pixels",
}
"""The formats of annotations, and what each is."""


@dataclass(frozen=True)
class ConvertConfig(Section):
    """Which annotations become which."""

    scope: ClassVar[Scope] = "session"
    title: ClassVar[str] = "Convert"

    from_: str = option(
        "",
        "What to convert: a COCO json, a csv (img_name,label,xmin,ymin,xmax,ymax), a Pascal VOC XML file or a folder "
        "of them, or a folder of YOLO txt files.",
        metavar="FILE|DIR",
    )
    to: str = option("", "The format to write.", choices=lambda: FORMATS)
    out: str = option(
        "",
        "Where to write: a file (coco, csv) or a folder (yolo, voc). What is there already is never overwritten.",
        metavar="PATH",
    )
    image_dir: str | None = option(
        None,
        "Folder of the pictures, for their sizes: needed where the annotations do not tell them (yolo, csv). Default: "
        "the folder of the YOLO files.",
        parse=parse_optional_path,
        metavar="DIR",
    )
    names: str | None = option(
        None,
        "File of class names, one a line: those of the ids of yolo and csv, or the order of the classes of other "
        "formats, which lose the classes that are not in it. Default for yolo: classes.txt or obj.names in its folder "
        "or above.",
        parse=parse_optional_path,
        metavar="FILE",
    )

    def __post_init__(self) -> None:
        for flag, value, what in (
            ("--from", self.from_, "what to convert"),
            ("--to", self.to, "which format to write; expected yolo, voc, coco or csv"),
            ("--out", self.out, "where to write"),
        ):
            if not value:
                raise ValueError(f"{flag}: {what}")
