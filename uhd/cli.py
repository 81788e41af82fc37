"""Command line to Config: the dataclasses of `uhd.config` as argparse groups.

A flag's default, help text and type come from its field. The parser keeps only what was typed, so
that a preset or a checkpoint can fill the rest (`uhd.precedence`).
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import inspect
import types
import typing
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NoReturn, cast

from uhd.config import (
    MODEL_CONFIGS,
    RESIZE_MODE_ALIASES,
    SECTIONS,
    Config,
    ConvertConfig,
    DemoConfig,
    ExportConfig,
    PasteConfig,
    ResizeMode,
    Section,
    field_scope,
    flag_of,
)
from uhd.precedence import Typed, check_flags, configure

if TYPE_CHECKING:
    from uhd.checkpoint import Checkpoint


class Parser(argparse.ArgumentParser):
    """argparse that reports a mistake as a ValueError of one line."""

    def error(self, message: str) -> NoReturn:
        """Raises instead of printing the usage and leaving."""
        raise ValueError(message.removeprefix("argument "))


class NotBuilt(argparse.Action):
    """A flag whose part of the program does not exist yet."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        """Raises ValueError."""
        raise ValueError(f"{option_string} belongs to {self.metavar}, which is not built yet")


def model_sections() -> list[type[Section]]:
    """The model sections from the base down, each once."""
    seen: dict[type[Section], None] = {}
    for config in MODEL_CONFIGS.values():
        for base in reversed(config.__mro__):
            if issubclass(base, Section):
                seen.setdefault(base)
    return list(seen)


def flag_fields() -> Iterator[tuple[type[Section], dataclasses.Field[Any]]]:
    """Each section of train.py with each of its own fields that has a flag, in the order of the help text."""
    for name, section in SECTIONS.items():
        for part in model_sections() if name == "model" else [section]:
            for f in own_flags(part):
                yield part, f


def own_flags(section: type[Section]) -> Iterator[dataclasses.Field[Any]]:
    """A section's own fields that have a flag, without those of its bases."""
    own = inspect.get_annotations(section)
    for f in dataclasses.fields(section):
        if f.name in own and "help" in f.metadata:
            yield f


def build_parser() -> argparse.ArgumentParser:
    """The parser of train.py."""
    parser = _new_parser("train.py", "Train, validate and inspect ultra-lightweight people detectors.")
    _add_flags(parser, flag_fields())
    return parser


def build_export_parser() -> argparse.ArgumentParser:
    """The parser of export_onnx.py: its own flags, and those that describe a network, for scripts that repeat them."""
    parser = _new_parser("export_onnx.py", "Export a checkpoint to ONNX, or look at a checkpoint or an ONNX file.")
    _add_flags(parser, ((ExportConfig, f) for f in own_flags(ExportConfig)))
    fixed = ((section, f) for section, f in flag_fields() if field_scope(section, f) == "weights")
    _add_flags(parser, fixed, "; the checkpoint's: another value than its own is an error")
    return parser


def build_demo_parser() -> argparse.ArgumentParser:
    """The parser of demo_uhd.py."""
    parser = _new_parser("demo_uhd.py", "Show what an ONNX detector finds on a camera, a video or pictures.")
    _add_flags(parser, ((DemoConfig, f) for f in own_flags(DemoConfig)))
    _add_not_built(parser, {"tracking": ("--track",)})
    return parser


def build_convert_parser() -> argparse.ArgumentParser:
    """The parser of `python -m uhd.data.convert`."""
    parser = _new_parser("python -m uhd.data.convert", "Convert annotations from one format into another.")
    _add_flags(parser, ((ConvertConfig, f) for f in own_flags(ConvertConfig)))
    return parser


def build_paste_parser() -> argparse.ArgumentParser:
    """The parser of `python -m uhd.data.paste`."""
    description = "Paste cut-out targets on backgrounds: a labelled data set for train.py."
    parser = _new_parser("python -m uhd.data.paste", description)
    _add_flags(parser, ((PasteConfig, f) for f in own_flags(PasteConfig)))
    return parser


def _new_parser(program: str, description: str) -> Parser:
    return Parser(
        prog=program,
        description=description,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, width=100, max_help_position=32),
    )


def _add_flags(
    parser: Parser, fields: Iterable[tuple[type[Section], dataclasses.Field[Any]]], remark: str = ""
) -> None:
    """A group for each section; remark follows its title."""
    groups: dict[type[Section], Any] = {}
    for section, f in fields:
        if section not in groups:
            groups[section] = parser.add_argument_group(section.title + remark)
        _add_flag(groups[section], section, f)
        if f.name == "resize_mode":
            _add_resize_shortcuts(groups[section])


def _add_not_built(parser: Parser, parts: Mapping[str, tuple[str, ...]]) -> None:
    for part, flags in parts.items():
        for flag in flags:
            parser.add_argument(flag, action=NotBuilt, nargs="?", metavar=part, help=argparse.SUPPRESS)


def _add_flag(group: Any, section: type[Section], f: dataclasses.Field[Any]) -> None:
    hint = value_type(section, f)
    meta = f.metadata
    names = [flag_of(f.name), *meta["aliases"]]
    help_text = meta["help"].replace("%", "%%")
    described = described_choices(f)
    help_text += "".join(f" {name}: {text};" for name, text in described.items()).rstrip(";") + (
        "." if described else ""
    )
    if f.default not in (None, ""):
        help_text += f" Default: {plain_default(f)}.".replace("%", "%%")
    if hint is bool:
        group.add_argument(*names, dest=f.name, action=argparse.BooleanOptionalAction, help=help_text)
        return
    choices = tuple(described) or (typing.get_args(hint) if typing.get_origin(hint) is Literal else None)
    convert = meta["parse"] or (type(choices[0]) if choices else hint)
    metavar = meta["metavar"] or ("{" + ",".join(map(str, choices)) + "}" if choices else None)
    optional = {} if meta["bare"] is None else {"nargs": "?", "const": meta["bare"]}
    group.add_argument(
        *names,
        dest=f.name,
        type=_converter(names[0], convert, choices),
        metavar=metavar,
        help=help_text,
        **optional,
    )


def _converter(flag: str, convert: Any, choices: tuple[Any, ...] | None) -> Any:
    """Text to value with an error that says what was expected; argparse's own hides a parser's reason."""
    kinds = {int: "a whole number", float: "a number"}

    def read(text: str) -> Any:
        try:
            value = convert(text)
        except ValueError as error:
            reason = f"{text!r} is not {kinds[convert]}" if convert in kinds else str(error)
            raise ValueError(f"{flag}: {reason}") from None
        if choices and value not in choices:
            raise ValueError(f"{flag}: {text!r} is not one of {', '.join(map(str, choices))}")
        return value

    def checked(text: str) -> Any:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error).removeprefix(f"{flag}: ")) from None

    return checked


def _add_resize_shortcuts(group: Any) -> None:
    for name in (*typing.get_args(ResizeMode), *RESIZE_MODE_ALIASES):
        mode = RESIZE_MODE_ALIASES.get(name, name)
        group.add_argument(
            f"--{name}", dest="resize_shortcut", action="append_const", const=(name, mode), help=argparse.SUPPRESS
        )


@functools.cache
def _type_hints(section: Hashable) -> dict[str, Any]:
    """The types of a section's fields; resolving them takes long, and is asked for once a field."""
    return typing.get_type_hints(section)


def value_type(section: type[Section], f: dataclasses.Field[Any]) -> Any:
    """A field's type without its `| None`."""
    hint = _type_hints(cast(Hashable, section))[f.name]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        hint = next(arg for arg in typing.get_args(hint) if arg is not type(None))
    return hint


def described_choices(f: dataclasses.Field[Any]) -> dict[str, str]:
    """The values of a field whose type does not list them, with what each is."""
    return dict(f.metadata["choices"]()) if f.metadata["choices"] else {}


def plain_default(f: dataclasses.Field[Any]) -> str:
    """A default as it would be typed, with those of architectures that have their own."""
    own = (
        f"{arch}: {section.training_defaults[f.name]}"
        for arch, section in MODEL_CONFIGS.items()
        if f.name in section.training_defaults
    )
    return " ".join([_typed_default(f), *(f"({text})" for text in own)])


def _typed_default(f: dataclasses.Field[Any]) -> str:
    if isinstance(f.default, tuple):
        separator = "," if "," in (f.metadata["metavar"] or "") else "x"
        return separator.join(map(str, f.default))
    if isinstance(f.default, bool):
        return "on" if f.default else "off"
    return str(f.default)


def parse_args(argv: Sequence[str] | None = None) -> tuple[Config, Checkpoint | None]:
    """The run's config and the checkpoint it starts from, if any; ValueError for a mistake of the user's."""
    return configure(_typed(argv))


def check_args(argv: Sequence[str] | None = None) -> None:
    """ValueError for a mistake that the flags alone show; --help is answered. Without torch, which takes seconds."""
    check_flags(_typed(argv))


def _typed(argv: Sequence[str] | None) -> Typed:
    """What was typed for train.py."""
    typed = vars(build_parser().parse_args(argv))
    _apply_resize_shortcuts(typed)
    return typed


def parse_export_args(argv: Sequence[str] | None = None) -> tuple[ExportConfig, Typed]:
    """What to export, and what was typed about the network; ValueError for a mistake of the user's."""
    typed = vars(build_export_parser().parse_args(argv))
    _apply_resize_shortcuts(typed)
    own = {f.name for f in own_flags(ExportConfig)}
    options = ExportConfig(**{name: value for name, value in typed.items() if name in own})
    return options, {name: value for name, value in typed.items() if name not in own}


def parse_demo_args(argv: Sequence[str] | None = None) -> DemoConfig:
    """What to show; ValueError for a mistake of the user's."""
    typed = vars(build_demo_parser().parse_args(argv))
    _apply_resize_shortcuts(typed)
    return DemoConfig(**typed)


def parse_convert_args(argv: Sequence[str] | None = None) -> ConvertConfig:
    """What to convert; ValueError for a mistake of the user's."""
    return ConvertConfig(**vars(build_convert_parser().parse_args(argv)))


def parse_paste_args(argv: Sequence[str] | None = None) -> PasteConfig:
    """What to paste; ValueError for a mistake of the user's."""
    return PasteConfig(**vars(build_paste_parser().parse_args(argv)))


def _apply_resize_shortcuts(typed: Typed) -> None:
    source = f"--resize-mode {typed.get('resize_mode')}"
    for name, mode in typed.pop("resize_shortcut", []):
        if typed.get("resize_mode", mode) != mode:
            raise ValueError(f"--{name} and {source}: choose one way of resizing")
        typed["resize_mode"] = mode
        source = f"--{name}"
