"""The augmentation's YAML file: plain values only, and so few that reading them takes neither time nor memory.

YAML can say much more than the file needs. Aliases multiply a text of a few lines to gigabytes, tags name types, and
nesting is limited only by the stack of whoever walks it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from uhd.reading import read_plain

MOST_BYTES = 2**16
MOST_LEVELS = 20
MOST_CHARACTERS = 200
"""Of one value. No number of so few digits is too large for a float."""
MOST_ENTRIES = 100
"""Ops, and parameters of an op. There are not as many, and each unknown one is compared with all."""


class _PlainLoader(yaml.SafeLoader):
    """Mappings, lists and scalars as they stand; ValueError for what YAML has beside them."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._level = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """The next node, checked before it is made."""
        peek: Callable[[], Any] = self.peek_event
        event = peek()
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            raise ValueError(f"line {line}: no anchors (&) and aliases (*); expected the values themselves")
        if event.tag is not None:
            raise ValueError(f"line {line}: no tags ({event.tag[:40]}); expected YAML with plain values")
        if isinstance(event, yaml.ScalarEvent) and len(event.value) > MOST_CHARACTERS:
            raise ValueError(f"line {line}: a value of {len(event.value):,} characters")
        if self._level == MOST_LEVELS:
            raise ValueError(f"line {line}: nested deeper than {MOST_LEVELS} levels")
        self._level += 1
        node = super().compose_node(parent, index)
        self._level -= 1
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """What a node stands for; ValueError names the line of one that looks like a number or a date and is none."""
        try:
            return super().construct_object(node, deep=deep)
        except ValueError as error:
            if not isinstance(node, yaml.ScalarNode):
                raise
            raise ValueError(f"line {node.start_mark.line + 1}: {node.value!r} is no value ({error})") from error


def read_entries(path: Path) -> tuple[dict[Any, Any], set[Any]]:
    """The `data_augment:` mapping of a file, of ops to what is said of them, and the keys that stand beside it.

    ValueError for any other content.
    """
    try:
        content = _parse(read_plain(path, MOST_BYTES).decode("utf-8"))
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError, OverflowError) as error:
        raise ValueError(f"expected YAML ({' '.join(str(error).split())[:200]})") from error
    if not isinstance(content, dict) or "data_augment" not in content:
        raise ValueError("expected a mapping with the key data_augment")
    entries = content["data_augment"]
    if not isinstance(entries, dict):
        raise ValueError("data_augment: expected a mapping of ops to parameters ({} for none)")
    for name, value in {"data_augment": entries, **entries}.items():
        if isinstance(value, dict) and len(value) > MOST_ENTRIES:
            raise ValueError(f"{name}: {len(value):,} entries; expected at most {MOST_ENTRIES}")
    return entries, content.keys() - {"data_augment"}


def _parse(text: str) -> Any:
    loader = _PlainLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check_repeated(node, loader)
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _check_repeated(node: yaml.Node, loader: _PlainLoader) -> None:
    """ValueError for a key that stands twice in a mapping, of whatever spelling: YAML's reader would keep the last."""
    if not isinstance(node, yaml.MappingNode):
        return
    seen = set()
    for key, value in node.value:
        name = loader.construct_object(key) if isinstance(key, yaml.ScalarNode) else None
        if name in seen:
            raise ValueError(f"{key.value} stands twice (line {key.start_mark.line + 1})")
        if isinstance(key, yaml.ScalarNode):
            seen.add(name)
        _check_repeated(value, loader)
