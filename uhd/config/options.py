"""What a field of a section is: a flag with its help and default, and a plain value in a checkpoint."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

Scope = Literal["weights", "criterion", "training", "session"]
"""Where a value comes from when a checkpoint is loaded.

weights: fixes the network; always the checkpoint's. criterion: fixes what only training has weights for; always the
checkpoint's on --resume, else as training. training: the checkpoint's on --resume and --val-only unless typed. session:
never the checkpoint's.
"""


Head = Literal["anchor", "center", "query", "gfl", "ssd"]
"""What a network's raw maps are: anchors on a grid, a heat map of centres, queries, distances of the sides on several
grids (generalized focal loss), anchors on several grids."""


@dataclass(frozen=True)
class Section:
    """What every section has: its title in the help text, and where its values come from beside a checkpoint."""

    scope: ClassVar[Scope]
    title: ClassVar[str]


def option(
    default: Any,
    help: str,
    *,
    parse: Callable[[str], Any] | None = None,
    metavar: str | None = None,
    aliases: tuple[str, ...] = (),
    scope: Scope | None = None,
    bare: Any = None,
    choices: Callable[[], Mapping[str, str]] | None = None,
    heads: tuple[Head, ...] | None = None,
) -> Any:
    """A dataclass field that is also a command-line flag.

    parse turns the typed text into the value (default: the field's type); aliases are further
    option strings; scope overrides the section's; bare is the value of the flag typed without one; choices gives the
    values that are known when the flags are made, with what each is; heads are those that the flag has an effect on
    (default: all).
    """
    metadata = {
        "help": help,
        "parse": parse,
        "metavar": metavar,
        "aliases": aliases,
        "scope": scope,
        "bare": bare,
        "choices": choices,
        "heads": heads,
    }
    return field(default=default, metadata=metadata)


def derived(default: Any) -> Any:
    """A field without a flag: filled in while the run is set up, stored in the checkpoint."""
    return field(default=default, metadata={"derived": True})


def flag_of(name: str) -> str:
    """A field's flag; an underscore at the end only keeps the field apart from a word of Python's."""
    return "--" + name.rstrip("_").replace("_", "-")


def field_scope(section: type[Section], f: dataclasses.Field[Any]) -> Scope:
    """The scope of one field: its own, or its section's."""
    own: Scope | None = f.metadata.get("scope")
    return own or section.scope


def section_from_dict(section: type, values: dict[str, Any]) -> Any:
    """Builds one section from plain values; an unknown field is a ValueError that names it."""
    hints = typing.get_type_hints(section)
    known = {f.name for f in dataclasses.fields(section)}
    unknown = values.keys() - known
    if unknown:
        raise ValueError(f"unknown settings {sorted(unknown)} in {section.__name__}")
    return section(**{name: _typed(hints[name], value) for name, value in values.items()})


def plain(value: Any) -> Any:
    """A value as numbers, texts, None, lists and dicts of them."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def _typed(hint: Any, value: Any) -> Any:
    """Lists back to tuples where the field's type is one."""
    if value is None:
        return None
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        hint = next(arg for arg in typing.get_args(hint) if arg is not type(None))
    if typing.get_origin(hint) is tuple:
        inner = typing.get_args(hint)[0]
        return tuple(_typed(inner, item) for item in value)
    return value
