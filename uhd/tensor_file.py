"""Files of `torch.save`, of unknown origin: no code in them is run, and they take no more memory than they have bytes.

`torch.load(weights_only=True)` keeps code from running, but calls what a file says with the arguments that it says. So
the file's list of contents and its pickle are looked at first, and what came of it afterwards.
"""

from __future__ import annotations

import pickle
import pickletools
import struct
import warnings
import zipfile
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

PICKLE_BYTES = 2**22
"""Enough for some ten thousand tensors; each byte can become an object of 64."""
MOST_VALUES = 300_000
MOST_LEVELS = 20
_DIRECTORY_BYTES = 2**24
_MOST_CHARACTERS = 10_000
_SHARING = 4
"""How many tensors, on average, may be views of the same numbers."""

_TYPES = ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
_GLOBALS = {
    "collections OrderedDict",
    "torch Size",
    "torch._utils _rebuild_tensor",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    *(f"torch {name}Storage" for name in _TYPES),
}
"""What a pickle may name: nothing that makes something large of a small argument."""
_OTHER_NAMING = {"STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"}
_OLD_PICKLES = 5


def load_tensors(path: Path, *, old: bool = False, allowance: int = 0) -> Any:
    """What a file holds: dicts, lists, tuples, texts, numbers and CPU tensors that own their memory.

    old: whether a file of torch before 1.6, which is no zip, is read too. allowance: bytes that its tensors may have
    however small it is; tensors may be views that repeat their numbers. ValueError says on one line what is wrong.
    """
    is_zip = zipfile.is_zipfile(path)
    if not is_zip and not old:
        raise ValueError("not a file of torch.save, or it ends early")
    try:
        _check_zip(path) if is_zip else _check_old(path)
        with warnings.catch_warnings(action="ignore"):  # torch's remarks on files that the next lines refuse
            # Mapped, a tensor that claims more bytes than its part of the file has cannot reach beyond the file.
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError:  # torch's message is a page on how to load it regardless
        raise ValueError("expected tensors and plain values only") from None
    except Exception as error:  # torch.load raises whatever its zip reader and unpickler raise
        text = error.strerror if isinstance(error, OSError) else str(error)
        raise ValueError(" ".join((text or type(error).__name__).split("\n")[0].split())[:120]) from None
    _own_tensors(content, max(allowance, _SHARING * path.stat().st_size))
    return content


def _check_zip(path: Path) -> None:
    """ValueError for an archive that is more than its bytes, or whose pickle is to do more than ours are."""
    with path.open("rb") as file:
        if _directory_size(file) > _DIRECTORY_BYTES:
            raise ValueError("its list of contents is too long")
        with zipfile.ZipFile(file) as archive:
            parts = archive.infolist()
            if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
                raise ValueError("it is compressed; torch.save does not")
            if sum(part.file_size for part in parts) > path.stat().st_size:
                raise ValueError("its parts are larger than the file")
            pickles = [part for part in parts if part.filename.rpartition("/")[2] == "data.pkl"]
            if len(pickles) != 1 or pickles[0].file_size > PICKLE_BYTES:
                raise ValueError(f"expected one data.pkl of at most {PICKLE_BYTES:,} bytes in it")
            with archive.open(pickles[0]) as part:
                _check_pickle(part)


def _directory_size(file: IO[bytes]) -> int:
    """Bytes of a zip's list of contents, from the record at the file's end; zipfile reads all of it at once."""
    file.seek(0, 2)
    file.seek(max(0, file.tell() - 2**16 - 200))
    tail = file.read()
    end = tail.rfind(b"PK\5\6")
    size: int = struct.unpack_from("<L", tail, end + 12)[0] if 0 <= end <= len(tail) - 16 else 0
    large = tail.rfind(b"PK\6\6", 0, max(end, 0))
    if size == 2**32 - 1 and 0 <= large <= len(tail) - 48:
        size = struct.unpack_from("<Q", tail, large + 40)[0]
    return size


def _check_old(path: Path) -> None:
    with path.open("rb") as file:
        for _ in range(_OLD_PICKLES):
            _check_pickle(file)
            if file.tell() > PICKLE_BYTES:
                raise ValueError(f"its pickles have more than {PICKLE_BYTES:,} bytes")


def _check_pickle(file: IO[bytes]) -> None:
    """UnpicklingError where a pickle names anything but tensors and what holds them."""
    for number, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if number > PICKLE_BYTES:
            raise ValueError(f"its pickle has more than {PICKLE_BYTES:,} operations")
        if opcode.name in _OTHER_NAMING or (opcode.name == "GLOBAL" and argument not in _GLOBALS):
            raise pickle.UnpicklingError(f"{opcode.name} {argument}")


def _own_tensors(content: Any, budget: int) -> None:
    """Gives each tensor in dicts and lists its own memory, in place; ValueError for what no honest file holds.

    budget: most bytes of all tensors together. Values that are in several places count each time: whoever walks them
    later would meet them as often.
    """
    left, values = budget, 0
    waiting: list[tuple[Any, int]] = [(content, 0)]
    while waiting:
        value, level = waiting.pop()
        if isinstance(value, dict | list | tuple):
            values += len(value)
            if values > MOST_VALUES or level == MOST_LEVELS:
                raise ValueError("its values are nested too deep, or too many")
            if isinstance(value, dict) and not all(isinstance(key, str | int) for key in value):
                raise ValueError("a key in it is neither a text nor a number")
            places = value.items() if isinstance(value, dict) else enumerate(value)
            for key, item in list(places):
                waiting.append((item, level + 1))
                if isinstance(item, Tensor):
                    left -= _checked_bytes(item)
                    if left < 0:
                        raise ValueError("its tensors are larger than the file")
                    if not isinstance(value, tuple):
                        value[key] = item.detach().clone()
        elif isinstance(value, str):
            if len(value) > _MOST_CHARACTERS:
                raise ValueError(f"a text of {len(value):,} characters in it")
        elif not isinstance(value, int | float | Tensor | None):
            raise ValueError(f"a {type(value).__name__} in it; expected tensors and plain values only")


def _checked_bytes(tensor: Tensor) -> int:
    """Bytes of a tensor with memory of its own; ValueError where it is no plain one."""
    if tensor.layout is not torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        raise ValueError("a tensor in it is not a plain one")
    return tensor.numel() * tensor.element_size()
