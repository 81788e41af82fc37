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

from uhd import dist
from uhd.augment import Sample
from uhd.data.backgrounds import Repeats, repeated_backgrounds
from uhd.data.cache import available_cores
from uhd.data.dataset import DetectionDataset, Key

_MAX_DEFAULT_WORKERS = 8
_WORKER_NICENESS = 10


class EpochBatchSampler(Sampler[list[Key]]):
    """Lists of keys, one a batch: this process's part of batches that are the same however many share them.

    For training (shuffle) the order is new in each epoch, and every process gets its part of every batch. The last
    batch may be smaller; one that has less than two pictures for each process is left out, because batch statistics of
    one picture are worth nothing. A set that makes no whole batch still gives its only one. For validation the pictures
    come in order, and the processes take whole batches in turn, so that each is judged as one process would judge it.

    Raises ValueError where a process would have no picture to train with.
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        *,
        shuffle: bool,
        seed: int,
        share: tuple[int, int] = (0, 1),
        repeats: Repeats | None = None,
    ) -> None:
        """share: the number of this process, from 0, and how many there are. repeats: for training.

        shown is how many pictures an epoch has, those that are shown again counted each time.
        """
        assert shuffle or repeats is None
        self._num_images = num_images
        self._repeats = repeats
        self.shown = num_images + (repeats.shows if repeats else 0)
        self._batch_size = batch_size
        self._shuffle = shuffle
        self._seed = seed
        self._rank, self._world_size = share
        self._epoch = 0
        if shuffle and min(num_images, batch_size) < self._world_size:
            raise ValueError(
                f"--batch-size {batch_size}: {min(num_images, batch_size)} pictures at once for {self._world_size} "
                "processes; expected at least one for each"
            )

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of the next pass."""
        self._epoch = epoch

    def __len__(self) -> int:
        if self._shuffle:
            return self._num_batches
        return len(range(self._rank, self._num_batches, self._world_size))

    @property
    def _num_batches(self) -> int:
        """Batches of all processes."""
        full, rest = divmod(self.shown, self._batch_size)
        too_small = self._shuffle and rest < 2 * self._world_size and full > 0
        return full + (rest > 0 and not too_small)

    def pictures_in(self, batch: int) -> int:
        """Pictures that all processes together see in a batch of theirs."""
        return min(self._batch_size, self.shown - batch * self._batch_size)

    @property
    def pictures_in_epoch(self) -> int:
        """Pictures that all processes together see in an epoch."""
        return min(self._num_batches * self._batch_size, self.shown)

    def __iter__(self) -> Iterator[list[Key]]:
        if self._shuffle:
            rng = np.random.default_rng([self._seed, self._epoch])
            places = np.arange(self._num_images)
            if self._repeats:
                places = np.concatenate([places, self._repeats.places(self._num_images, rng)])
            order = rng.permutation(places)
            step, part = 1, slice(self._rank, None, self._world_size)
        else:
            order = np.arange(self._num_images)
            step, part = self._world_size, slice(None)
        for batch in range(0 if self._shuffle else self._rank, self._num_batches, step):
            chosen = order[batch * self._batch_size : (batch + 1) * self._batch_size][part]
            yield [(self._epoch, place) for place in chosen.tolist()]


class BatchLoader(DataLoader[Sample]):
    """Gives `Batch`es; `set_epoch` before each pass chooses the order and the augmentation."""

    batch_sampler: EpochBatchSampler

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order and the augmentation of the next pass."""
        self.batch_sampler.set_epoch(epoch)

    def pictures_in(self, batch: int) -> int:
        """Pictures that all processes together see in a training batch."""
        return self.batch_sampler.pictures_in(batch)


def build_loader(
    dataset: DetectionDataset,
    batch_size: int,
    num_workers: int | None,
    *,
    shuffle: bool,
    device_is_cuda: bool,
    background_share: float = 0.0,
) -> BatchLoader:
    """A loader of whole batches; iterating gives `Batch` (images [B,H,W,3] uint8, targets).

    batch_size: of all processes together. num_workers: of this process; None for its share of the cores, at most 8;
    never more than there are batches; 0 loads in this process. shuffle is for training, and so is background_share: see
    `repeated_backgrounds`. The workers live as long as the loader, and yield the cores to this process. A worker that
    dies raises RuntimeError here. Torch's global random numbers are not used.
    """
    share = dist.rank(), dist.world_size()
    repeats = repeated_backgrounds(dataset, background_share) if shuffle and background_share else None
    sampler = EpochBatchSampler(
        len(dataset), batch_size, shuffle=shuffle, seed=dataset.seed, share=share, repeats=repeats
    )
    if num_workers is None:
        num_workers = min(max(available_cores() // dist.local_world_size(), 1), _MAX_DEFAULT_WORKERS)
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
