"""The section of `python -m uhd.data.paste`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from uhd.config.inputs import MAX_CLASSES
from uhd.config.options import Scope, Section, flag_of, option
from uhd.config.run import MAX_PIXELS_HELP, DataConfig, check_max_pixels, check_thresholds
from uhd.config.values import Size, parse_optional_path, parse_size

Flips = Literal["none", "horizontal", "vertical", "both"]
"""How a target may be mirrored."""


@dataclass(frozen=True)
class PasteConfig(Section):
    """What is pasted on what, how, and where the data set goes."""

    scope: ClassVar[Scope] = "session"
    title: ClassVar[str] = "Pasted data"

    targets: str | None = option(
        None,
        "Cut-outs to paste: a folder, searched recursively, of PNG or WebP files whose alpha says what belongs to the "
        "target.",
        parse=parse_optional_path,
        metavar="DIR",
    )
    backgrounds: str | None = option(
        None,
        "Pictures to paste on: a folder, searched recursively, or a text file that lists them. What they show is not "
        "labelled: they should hold no targets.",
        parse=parse_optional_path,
        metavar="DIR",
    )
    out: str | None = option(
        None,
        "Folder of the pictures and label files: new, empty, or one that this program filled, which is then replaced.",
        parse=parse_optional_path,
        metavar="DIR",
    )
    count: int = option(1000, "Pictures to make.", metavar="N")
    seed: int = option(0, "Seed; picture i depends on it and on i alone.", metavar="S")
    min_targets: int = option(0, "Fewest targets to paste on a picture.", metavar="N")
    max_targets: int = option(3, "Most targets to paste on a picture.", metavar="N")
    min_scale: float = option(
        0.15, "Smallest longer side of a target, before it is turned, as a share of the picture's shorter side."
    )
    max_scale: float = option(0.8, "Largest longer side of a target, as --min-scale; evenly in the logarithm.")
    rotation: float = option(8.0, "Largest angle by which a target is turned, in degrees, either way.")
    flips: Flips = option("horizontal", "How a target may be mirrored; each mirroring half of the time.")
    min_visible: float = option(
        0.5,
        "Least share of a target's area that is seen: not beyond a border, and not covered by later targets. Where "
        "that cannot be had, a target is put elsewhere or left out.",
    )
    max_overlap: float = option(
        0.3, "Most that a target covers of an earlier one, as a share of the smaller of the two areas."
    )
    color_match: float = option(
        0.3,
        "How far a target's colours move to those of the background around it: mean and deviation in Lab; 1 is all.",
    )
    feather: float = option(
        1.0,
        "Softness of a target's edge in pixels, at most a hundredth of its longer side; inwards, so that the target "
        "does not grow.",
    )
    alpha_threshold: float = option(0.05, "Alpha (0 to 1) from which a pixel counts for a target's box and area.")
    class_id: int = option(0, "Class of all targets.", metavar="N")
    class_per_folder: bool = option(
        False,
        "Each folder directly below --targets is a class; they are numbered by name, and names.txt lists them.",
    )
    size: Size | None = option(
        None,
        "Size of the pictures; the background is cropped to this shape, at a random place, and resized. Default: the "
        "background's own.",
        parse=parse_size,
        metavar="HxW",
    )
    format: Literal["jpg", "png"] = option("jpg", "Kind of the pictures.")
    quality: int = option(90, "Quality of JPEG pictures, 1 to 100.", metavar="N")
    preview: int = option(
        24, "Pictures on the sheet beside the folder (OUT-preview.png), with their boxes; 0 makes none.", metavar="N"
    )
    workers: int = option(0, "Processes that make pictures; 0 and 1 are this one alone.", metavar="N")
    max_pixels: int = option(DataConfig.max_pixels, MAX_PIXELS_HELP, metavar="N")

    def __post_init__(self) -> None:
        for name in ("targets", "backgrounds", "out"):
            if not getattr(self, name):
                raise ValueError(f"{flag_of(name)}: which folder; --targets, --backgrounds and --out are needed")
        check_thresholds(self, "min_visible", "max_overlap", "color_match", "alpha_threshold")
        check_max_pixels(self.max_pixels)
        limits: dict[str, tuple[float, float]] = {
            "count": (1, 10_000_000),
            "seed": (0, 2**63),
            "min_targets": (0, DataConfig.max_boxes),
            "max_targets": (0, DataConfig.max_boxes),
            "min_scale": (0.001, 2),
            "max_scale": (0.001, 2),
            "rotation": (0, 180),
            "feather": (0, 100),
            "class_id": (0, MAX_CLASSES),
            "quality": (1, 100),
            "preview": (0, 1000),
            "workers": (0, 256),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{flag_of(name)} {value}: expected {low} to {high}")
        if not self.alpha_threshold:
            raise ValueError("--alpha-threshold 0: expected a number above 0; else the whole file is the target")
        for name in ("targets", "scale"):
            low, high = getattr(self, f"min_{name}"), getattr(self, f"max_{name}")
            if low > high:
                raise ValueError(f"--min-{name} {low} and --max-{name} {high}: expected them in this order")
        if self.class_per_folder and self.class_id:
            raise ValueError(f"--class-id {self.class_id} and --class-per-folder: choose one")
