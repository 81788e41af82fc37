"""The README's tables of flags and ops, made from the code: `uv run python -m uhd.flag_tables` writes them in place."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from uhd.augment import OPS
from uhd.augment.pipeline import checks
from uhd.cli import described_choices, flag_fields, own_flags, plain_default, value_type
from uhd.config import DEMO_PRESET, ConvertConfig, DemoConfig, ExportConfig, PasteConfig, Section, flag_of

START = "<!-- flags:start -->"
END = "<!-- flags:end -->"
README = Path(__file__).resolve().parents[1] / "README.md"

Fields = Iterable[tuple[type[Section], dataclasses.Field[Any]]]


def flag_tables() -> str:
    """The flags of the programs as Markdown tables, and what --demo-data sets."""
    parts = [
        "### train.py",
        _tables(flag_fields()),
        _demo_preset(),
        "### export_onnx.py",
        _tables((ExportConfig, f) for f in own_flags(ExportConfig)),
        "Flags that describe a network (sections input, labels, model) are accepted too, where they say what the "
        "checkpoint says.",
        "### demo_uhd.py",
        _tables((DemoConfig, f) for f in own_flags(DemoConfig)),
        "### python -m uhd.data.convert",
        _tables((ConvertConfig, f) for f in own_flags(ConvertConfig)),
        "### python -m uhd.data.paste",
        _tables((PasteConfig, f) for f in own_flags(PasteConfig)),
        "### The augmentation file",
        _ops(),
    ]
    return "\n\n".join(parts) + "\n"


def _tables(fields: Fields) -> str:
    """One table a section."""
    lines: list[str] = []
    current: type[Section] | None = None
    for section, f in fields:
        if section is not current:
            current = section
            lines += ["", f"**{section.title}**", "", "| Flag | What it does | Default |", "| --- | --- | --- |"]
        lines.append(_row(section, f))
    return "\n".join(lines).strip()


def _row(section: type[Section], f: dataclasses.Field[Any]) -> str:
    bare = f.metadata["bare"]
    names = ", ".join(f"`{name}`" for name in (flag_of(f.name), *f.metadata["aliases"]))
    hint = value_type(section, f)
    listed = typing.get_args(hint) if typing.get_origin(hint) is Literal else described_choices(f)
    choices = ", ".join(map(str, listed))
    text = f.metadata["help"] + (f" One of {choices}." if choices else "")
    text += "" if bare is None else f" Without {f.metadata['metavar'] or 'a value'}: {bare}."
    default = "" if f.default in (None, "") else f"`{plain_default(f)}`"
    return f"| {names} | {text.replace('|', chr(92) + '|')} | {default} |"


def _demo_preset() -> str:
    """What --demo-data sets, as it would be typed; the folder is the program's own choice."""
    flags = (
        flag_of(name) if value is True else f"{flag_of(name)} {value}"
        for name, value in DEMO_PRESET.items()
        if name != "image_dir"
    )
    return f"`--demo-data` sets, where it is not typed: {', '.join(f'`{flag}`' for flag in flags)}."


def _ops() -> str:
    """The ops of the augmentation file, with their parameters and defaults."""
    lines = ["| Op | What it does | Parameters beside `prob` |", "| --- | --- | --- |"]
    for name, op_type in OPS.items():
        summary = " ".join((op_type.__doc__ or "").split())
        params = {f.name: f.default for f in dataclasses.fields(op_type) if f.name in checks(op_type)}
        prob = params.pop("prob")
        listed = [f"`{param}` {_in_yaml(value)}" for param, value in params.items()]
        listed += [f"(`prob` {prob:g} where it is not given)"] if prob else []
        lines.append(f"| `{name}` | {summary} | {', '.join(listed)} |")
    return "\n".join(lines)


def _in_yaml(value: object) -> str:
    """A parameter's value as it would stand in the file."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(_in_yaml, value))}]" if value else "{}"
    return str(value).lower() if isinstance(value, bool) else f"{value:g}"


def with_tables(text: str) -> str:
    """The README's text with fresh tables between the markers; ValueError where a marker is missing."""
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise ValueError(f"the README lacks {START} or {END}; expected both, in this order")
    return f"{before}{START}\n\n{flag_tables()}\n{END}{after}"


def main() -> None:
    """Brings the README up to date."""
    README.write_text(with_tables(README.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
