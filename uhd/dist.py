"""Devices, and the processes of one run: several of them are started by torchrun, each with a share of every batch.

The functions that exchange something are called by all processes in the same order; in a run of one process they
return at once. Nothing here is needed for a gradient: sums carry none.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch
import torch.distributed as torch_dist
from torch import Tensor, nn

Total = Callable[[Tensor], Tensor]
"""From a sum over this process's pictures to that over all which it is to be compared with."""

T = TypeVar("T")

TIMEOUT = datetime.timedelta(minutes=30)
"""How long a process waits for the others: the first one may have to read all pictures for the cache."""


class PeerLostError(RuntimeError):
    """Another process of the run is gone; what went wrong stands in its own output."""


def rank() -> int:
    """This process's number in the run, from 0."""
    return torch_dist.get_rank() if _is_joined() else 0


def world_size() -> int:
    """The number of processes in the run."""
    return torch_dist.get_world_size() if _is_joined() else 1


def is_main() -> bool:
    """Whether this is the process that writes the files and speaks to the user."""
    return _started() <= 1 or int(os.environ.get("RANK", "0")) == 0


def local_world_size() -> int:
    """The number of this run's processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if _is_joined() else 1


def setup(device: str | None) -> torch.device:
    """Joins the other processes, where torchrun has started some; returns the device to train on.

    device: the one asked for; None is a GPU where there is one, each process of a machine its own. Raises ValueError
    where it is not there.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: no CUDA device is available here; use --device cpu")
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if _started() > 1 and not _is_joined():
        _join(device)
    if device == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device(device)


def _join(device: str) -> None:
    local_rank, here = (int(os.environ.get(name, "0")) for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    if device == "cuda":
        if local_rank >= torch.cuda.device_count():
            raise ValueError(
                f"--device cuda: {here} processes on this machine, but {torch.cuda.device_count()} GPUs; expected "
                "at most one process a GPU (torchrun --nproc-per-node)"
            )
        torch.cuda.set_device(local_rank)
    # Objects travel by gloo in either case.
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    with _names_lost_peers():
        torch_dist.init_process_group(backend, timeout=TIMEOUT)


def leave(exit_code: int) -> None:
    """Takes leave of the other processes; after a failure this ends the process, which may not wait for any of them."""
    if not _is_joined():
        return
    if exit_code:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)
    torch_dist.destroy_process_group()


def own(value: Tensor) -> Tensor:
    """The sum of this process alone, as it is: a `Total` for pictures that no other process looks at."""
    return value


def total(value: Tensor) -> Tensor:
    """The sum over all processes of a tensor of one shape; a `Total` for a batch that they share."""
    if not _is_joined():
        return value
    summed = value.detach().clone()
    with _names_lost_peers():
        torch_dist.all_reduce(summed)
    return summed


def total_count(count: int) -> int:
    """The sum over all processes of a whole number."""
    return int(total(torch.tensor(count))) if _is_joined() else count


def sum_gradients(parameters: Iterable[nn.Parameter], finite: Tensor) -> Tensor:
    """Replaces each gradient by the sum over all processes; returns whether every process's loss was finite.

    One message for all of them: networks of this size fit into a few megabytes, which nothing is gained by cutting up.
    """
    if not _is_joined():
        return finite
    gradients = []
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        gradients.append(parameter.grad)
    message = torch.cat([*(gradient.reshape(-1) for gradient in gradients), (~finite).float().reshape(1)])
    with _names_lost_peers():
        torch_dist.all_reduce(message)
    _unpack(message[:-1], gradients)
    return message[-1] == 0


def average(tensors: list[Tensor]) -> None:
    """Replaces floating tensors, the same list in each process, by their means over all processes, in place."""
    if not _is_joined() or not tensors:
        return
    _unpack(total(torch.cat([tensor.reshape(-1) for tensor in tensors])) / world_size(), tensors)


@torch.no_grad()
def _unpack(message: Tensor, tensors: list[Tensor]) -> None:
    """Fills tensors with the consecutive parts of a flat one."""
    parts = torch.split(message, [tensor.numel() for tensor in tensors])
    torch._foreach_copy_(tensors, [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)])


def gather(value: T) -> list[T]:
    """Each process's value, by rank, in every process."""
    if not _is_joined():
        return [value]
    values: list[T | None] = [None] * world_size()
    with _names_lost_peers():
        torch_dist.all_gather_object(values, value)
    return [each for each in values if each is not None]


def of_main(value: T) -> T:
    """The first process's value, in every process."""
    if not _is_joined():
        return value
    values = [value]
    with _names_lost_peers():
        torch_dist.broadcast_object_list(values, src=0)
    return values[0]


@contextlib.contextmanager
def main_first() -> Iterator[None]:
    """The first process does what is inside, and then the others do: they find the files that it has made."""
    if _is_joined() and rank() > 0:
        with _names_lost_peers():
            torch_dist.barrier()
    yield
    if _is_joined() and rank() == 0:
        with _names_lost_peers():
            torch_dist.barrier()


def share_batch_statistics(model: nn.Module, device: torch.device) -> None:
    """Makes batch norms take their statistics from the pictures of all processes (--sync-bn); ValueError on a CPU."""
    if device.type != "cuda":
        raise ValueError(f"--sync-bn: statistics are shared between GPUs only, and this run is on the {device.type}")
    nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]


def _started() -> int:
    """How many processes torchrun has started for this run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _is_joined() -> bool:
    return torch_dist.is_available() and torch_dist.is_initialized()


@contextlib.contextmanager
def _names_lost_peers() -> Iterator[None]:
    """Turns what the transports say of a broken connection into one line."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).strip().splitlines()
        shown = reason[0][:160] if reason else type(error).__name__
        raise PeerLostError(f"another process of this run is gone or cannot be reached ({shown})") from None
