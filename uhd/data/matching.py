"""Which pictures the names in annotations stand for."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from uhd.data.formats.base import Picture, plain_name
from uhd.data.labels import shortened


def match_pictures(paths: Sequence[str], pictures: Sequence[Picture], roots: Sequence[str]) -> dict[str, int]:
    """For each absolute path that has one the index of its picture in the annotations.

    A name stands for the picture whose path ends in it: `b/c.jpg` for `/a/b/c.jpg`, also without the suffix, and the
    longest name counts. Of several paths that end in a name it is the one that has that name below one of the folders
    roots. Raises ValueError where that leaves several. Among what is left over on both sides the other names count.
    """
    found = _matched(paths, _by_name(pictures), pictures, roots)
    claimed = set(found.values())
    others = _unique((index, picture.other_names) for index, picture in enumerate(pictures) if index not in claimed)
    return found | _matched([path for path in paths if path not in found], others, pictures, roots)


def _matched(
    paths: Sequence[str], owners: Mapping[str, int], pictures: Sequence[Picture], roots: Sequence[str]
) -> dict[str, int]:
    """Each path whose endings are names, with the picture of the longest of them; owners: the picture of each name."""
    if not owners:
        return {}
    claims: dict[int, list[tuple[int, bool, str]]] = {}
    for path in paths:
        exact = {plain_name(os.path.relpath(path, root)) for root in roots}
        for ending in _endings(path):
            if ending in owners:
                is_exact = ending in exact or any(os.path.splitext(name)[0] == ending for name in exact)
                claims.setdefault(owners[ending], []).append((ending.count("/"), is_exact, path))
                break
    return {_winner(found, pictures[index]): index for index, found in claims.items()}


def _by_name(pictures: Sequence[Picture]) -> dict[str, int]:
    """The picture of each name: of the best names first, and of the others where they name one picture only."""
    owners: dict[str, int] = {}
    for index, picture in enumerate(pictures):
        first = owners.setdefault(picture.names[0], index)
        if first != index:
            files = " and ".join(shortened_path(pictures[i].file) for i in (first, index))
            raise ValueError(f"{files} are both of {shortened(picture.names[0])}; expected one file a picture")
    return _unique((index, picture.names[1:]) for index, picture in enumerate(pictures)) | owners


def _unique(names: Iterable[tuple[int, Sequence[str]]]) -> dict[str, int]:
    """The picture of each name that only one of them has."""
    pairs = [(name, index) for index, of_picture in names for name in of_picture]
    counts = Counter(name for name, _ in pairs)
    return {name: index for name, index in pairs if counts[name] == 1}


def _endings(path: str) -> Iterator[str]:
    """What a path ends in, from the whole to the file's name, each with its suffix and without."""
    parts = plain_name(path).split("/")
    for start in range(len(parts)):
        ending = "/".join(parts[start:])
        yield ending
        yield os.path.splitext(ending)[0]


def _winner(claims: list[tuple[int, bool, str]], picture: Picture) -> str:
    best = max(claim[:2] for claim in claims)
    found = [path for *rank, path in claims if tuple(rank) == best]
    if len(found) > 1:
        raise ValueError(
            f"{shortened(picture.names[0])} stands for {len(found)} pictures, first {found[0]} and {found[1]}; "
            "expected names with their folders"
        )
    return found[0]


def shortened_path(path: str) -> str:
    """The end of a long path."""
    return path if len(path) <= 100 else "..." + path[-97:]
