"""Batches in worker processes, in an order that depends on the seed and the epoch alone."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from uhd.augment import Sample
from uhd.data.cache import available_cores
from uhd.data.dataset import DetectionDataset, Key

_MAX_DEFAULT_WORKERS = 8
_WORKER_NICENESS = 10


class EpochBatchSampler(Sampler[list[Key]]):
    """Lists of (epoch, index), one a batch; shuffled anew each epoch, or in order.

    The last batch may be smaller. When shuffling, one of a single picture is left out, because batch statistics of
    one picture are worth nothing; a set of one picture still gives its batch.
    """

    def __init__(self, num_images: int, batch_size: int, *, shuffle: bool, seed: int) -> None:
        self._num_images = num_images
        self._batch_size = batch_size
        self._shuffle = shuffle
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of the next pass."""
        self._epoch = epoch

    def __len__(self) -> int:
        full, rest = divmod(self._num_images, self._batch_size)
        lone = self._shuffle and rest == 1 and full > 0
        return full + (rest > 0 and not lone)

    def __iter__(self) -> Iterator[list[Key]]:
        order = np.arange(self._num_images)
        if self._shuffle:
            order = np.random.default_rng([self._seed, self._epoch]).permutation(self._num_images)
        for batch in range(len(self)):
            indices = order[batch * self._batch_size : (batch + 1) * self._batch_size]
            yield [(self._epoch, index) for index in indices.tolist()]


class BatchLoader(DataLoader[Sample]):
    """Gives `Batch`es; `set_epoch` before each pass chooses the order and the augmentation."""

    batch_sampler: EpochBatchSampler

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order and the augmentation of the next pass."""
        self.batch_sampler.set_epoch(epoch)


def build_loader(
    dataset: DetectionDataset, batch_size: int, num_workers: int | None, *, shuffle: bool, device_is_cuda: bool
) -> BatchLoader:
    """A loader of whole batches; iterating gives `Batch` (images [B,H,W,3] uint8, targets).

    num_workers: None for one a core, at most 8; never more than there are batches; 0 loads in this process. shuffle is
    for training. The workers live as long as the loader, and yield the cores to this process. A worker that dies
    raises RuntimeError here. Torch's global random numbers are not used.
    """
    sampler = EpochBatchSampler(len(dataset), batch_size, shuffle=shuffle, seed=dataset.seed)
    if num_workers is None:
        num_workers = min(available_cores(), _MAX_DEFAULT_WORKERS)
    num_workers = min(num_workers, len(sampler))
    can_fork = "fork" in multiprocessing.get_all_start_methods()
    return BatchLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=_as_it_is,
        num_workers=num_workers,
        # Forked workers share the pictures in memory with this process; spawned ones would copy them.
        multiprocessing_context="fork" if num_workers and can_fork else None,
        persistent_workers=num_workers > 0,
        worker_init_fn=_start_worker,
        pin_memory=device_is_cuda,
        generator=torch.Generator().manual_seed(dataset.seed),
    )


def _as_it_is(batch: Any) -> Any:
    """Collates nothing: the data set already gives whole batches."""
    return batch


def _start_worker(worker: int) -> None:
    # Ctrl-C reaches every process of the terminal: the parent alone answers it and ends the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(_WORKER_NICENESS)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
