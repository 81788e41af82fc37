"""Tar files of pictures and labels, as the library webdataset reads them: the files of one key stand together.

The pictures have names like paths, `shards-000.tar/key.jpg`, behind which there is no file: nothing is ever unpacked to
the disk. A tar is read from end to end, once, to fill the picture cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from uhd.files import write_whole

SUFFIX = ".tar"

_LABELS = "txt"
_META = re.compile(r"__[^/]*__($|/)")  # as webdataset leaves out
_BLOCK = 512

_Names = dict[str, tuple[int, int, list[str]]]
"""By tar: its size, its mtime in ns, and the pictures in it."""

_log = logging.getLogger("uhd")


def list_tars(tars: Sequence[str], suffixes: frozenset[str], folder: Path | None) -> list[str]:
    """The pictures in these tar files: names `TAR/MEMBER`, sorted.

    suffixes: of pictures, with a dot. folder: where the names are kept, so that a later run need not read the tars;
    None keeps them nowhere. Raises ValueError that names a tar which cannot be read, ends early, has the files of a key
    twice or apart, or no picture.
    """
    kept = _kept_names(tars, folder)
    known = _read_names(kept) if kept else {}
    names: _Names = {}
    for tar in tars:
        status = os.stat(tar)
        state = status.st_size, status.st_mtime_ns
        names[tar] = known[tar] if tar in known and known[tar][:2] == state else (*state, _scan(tar, suffixes))
    if kept and names != known:
        _write_names(kept, names)
    for tar, (_, _, members) in names.items():
        if not members:
            raise ValueError(f"{tar}: no picture ({', '.join(sorted(suffixes))}) in this tar file")
    return sorted(f"{tar}/{member}" for tar, (_, _, members) in names.items() for member in members)


def members_by_tar(paths: Sequence[str]) -> dict[str, dict[str, int]]:
    """Those of the paths that are pictures in tar files: for each tar the member names, and which path each is."""
    is_tar: dict[str, bool] = {}
    found: dict[str, dict[str, int]] = {}
    for index, path in enumerate(paths):
        end = path.find(f"{SUFFIX}/")
        while end >= 0:
            tar = path[: end + len(SUFFIX)]
            if tar not in is_tar:
                is_tar[tar] = os.path.isfile(tar)
            if is_tar[tar]:
                found.setdefault(tar, {})[path[len(tar) + 1 :]] = index
                break
            end = path.find(f"{SUFFIX}/", end + 1)
    return found


def stream_tar(tar: str, members: dict[str, int]) -> Iterator[tuple[int, bytes, bytes]]:
    """Reads a tar once; gives the members' numbers, their bytes, and those of their labels (none: empty).

    Raises ValueError where the tar cannot be read to its end, or lacks one of the members.
    """
    # Loads torch.
    from webdataset.tariterators import group_by_keys, tar_file_expander

    left = {_folded(name): index for name, index in members.items()}
    wanted = {name.rsplit(".", 1)[0] for name in left}
    try:
        with open(tar, "rb") as stream:
            source = [{"url": tar, "stream": stream}]
            files = tar_file_expander(source, select_files=lambda name: _folded(name).rsplit(".", 1)[0] in wanted)
            for sample in group_by_keys(files):
                for suffix, data in sample.items():
                    index = left.pop(f"{sample['__key__']}.{suffix}", None)
                    if index is not None:
                        yield index, data, sample.get(_label_suffix(suffix), b"")
    except (OSError, tarfile.TarError) as error:
        reason = error.strerror if isinstance(error, OSError) else error.args[0]
        raise ValueError(f"{tar}: cannot be read to its end ({reason})") from None
    if left:
        raise ValueError(f"{tar}: changed while it was read; {next(iter(left))} is no longer in it")


def _label_suffix(suffix: str) -> str:
    *inner, _ = suffix.split(".")
    return ".".join([*inner, _LABELS])


def _folded(name: str) -> str:
    """The key as it stands and the suffix, behind the first dot of the file's name, in small letters."""
    folder, slash, file = name.rpartition("/")
    key, dot, suffix = file.partition(".")
    return f"{folder}{slash}{key}{dot}{suffix.lower()}"


def _scan(tar: str, suffixes: frozenset[str]) -> list[str]:
    """The names of the pictures in a tar, by its headers alone."""
    try:
        with open(tar, "rb") as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            members = list(_members(archive, tar))
            _check_end(stream, archive.offset)
    except (OSError, tarfile.TarError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"{tar}: not a whole tar file ({reason})") from None
    keys: set[str] = set()
    group: set[str] = set()
    current = None
    for name in members:
        key = name[: len(name) - len(_suffix(name))]
        if key != current and key in keys:
            raise ValueError(f"{tar}/{name}: the files of a key stand apart; expected them together (tar --sort=name)")
        if key != current:
            current, group = key, set()
            keys.add(key)
        if _suffix(name).lower() in group:
            raise ValueError(f"{tar}/{name}: stands in the tar file twice")
        group.add(_suffix(name).lower())
    return [name for name in members if os.path.splitext(name)[1].lower() in suffixes]


def _suffix(name: str) -> str:
    """From the first dot of the file's name on; a key ends there."""
    return "".join(name.rpartition("/")[2].partition(".")[1:])


def _members(archive: tarfile.TarFile, tar: str) -> Iterator[str]:
    """The names of the files that webdataset sees."""
    links = 0
    while (member := archive.next()) is not None:
        links += member.islnk() or member.issym()
        file = member.name.rpartition("/")[2]
        if member.isreg() and not _META.match(member.name) and file.find(".") > 0:
            yield member.name
    if links:
        _log.warning("%s: %d links are left out; expected files (tar --hard-dereference)", tar, links)


def _check_end(stream: BinaryIO, position: int) -> None:
    """Raises ReadError where the members are not followed by the zeros that end a tar: Python's reader stops there."""
    stream.seek(position)
    end = stream.read(1 << 16)
    if len(end) < _BLOCK:
        raise tarfile.ReadError("it ends early")
    if any(end):
        raise tarfile.ReadError(f"it is damaged, or another one is appended, at byte {position}")


# --- names that are kept ------------------------------------------------------------------------


def _kept_names(tars: Sequence[str], folder: Path | None) -> Path | None:
    if folder is None:
        return None
    digest = hashlib.sha256(b"\0".join(os.fsencode(tar) for tar in tars)).hexdigest()
    return folder / f"{digest[:20]}.tars"


def _read_names(file: Path) -> _Names:
    """Empty where there is no such file, or it is damaged: the tars can be read again."""
    with contextlib.suppress(OSError, ValueError):
        checksum, data = file.read_bytes().split(b"\n", 1)
        if int(checksum, 16) == zlib.crc32(data):
            return {tar: (size, time, members) for tar, (size, time, members) in json.loads(data).items()}
    return {}


def _write_names(file: Path, names: _Names) -> None:
    """Without the names the next run reads the tars' headers again: a folder that cannot be written is no error."""
    data = json.dumps(names).encode()
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, f"{zlib.crc32(data):08x}\n".encode() + data)
