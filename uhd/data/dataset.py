"""A data set of pictures and boxes, and the batches made from it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Generic, NamedTuple, TypeVar, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from uhd.augment import Pipeline, RemoveOutliers, Sample
from uhd.data.cache import ImageStore
from uhd.types import IGNORED, PADDING, Targets

Key = tuple[int, int]
"""(epoch, place): which picture, and for which epoch it is augmented.

A place is the picture's index; where an epoch shows it again, the index and once, twice, ... the number of pictures, so
that each show is augmented in its own way.
"""


class Batch(NamedTuple):
    """images [B,H,W,3] uint8 RGB and their truths."""

    images: Tensor
    targets: Targets


@dataclass(frozen=True)
class Problems:
    """What was found wrong with a set's files.

    unreadable: one line for each picture left out. bad_lines: malformed label lines that were dropped. clipped: boxes
    that reached out of their picture. dropped: boxes of which nothing lay inside, and first_dropped the label file of
    the first. shared_labels: pictures whose label file is another picture's too. other_classes: boxes of classes that
    are not asked for. missing_classes: names of classes without a box. ignored: regions of annotations that are neither
    taught nor counted as background. unlisted: pictures left out because annotations that list pictures do not list
    them, and first_unlisted the path of the first.
    """

    unreadable: tuple[str, ...] = ()
    bad_lines: int = 0
    clipped: int = 0
    dropped: int = 0
    first_dropped: str = ""
    shared_labels: int = 0
    other_classes: int = 0
    missing_classes: tuple[str, ...] = ()
    ignored: int = 0
    unlisted: int = 0
    first_unlisted: str = ""


Scalar = TypeVar("Scalar", bound=np.generic)


class Ragged(Sequence[NDArray[Scalar]], Generic[Scalar]):
    """Arrays of different lengths that lie behind one another in one: a set may have millions, each of a few rows."""

    def __init__(self, values: NDArray[Scalar], counts: NDArray[np.int64]) -> None:
        """counts [n]: how many rows of values belong to each array."""
        self.values = values
        self._starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])

    def __len__(self) -> int:
        return len(self._starts) - 1

    @property
    def counts(self) -> NDArray[np.int64]:
        """[n]: how many rows each array has."""
        return np.diff(self._starts)

    @overload
    def __getitem__(self, key: int) -> NDArray[Scalar]: ...

    @overload
    def __getitem__(self, key: slice) -> Ragged[Scalar]: ...

    def __getitem__(self, key: int | slice) -> NDArray[Scalar] | Ragged[Scalar]:
        if isinstance(key, slice):
            chosen = range(len(self))[key]
            assert chosen.step == 1
            return Ragged(self.values[self._starts[chosen.start] : self._starts[chosen.stop]], self.counts[key])
        index = range(len(self))[key]
        return self.values[self._starts[index] : self._starts[index + 1]]

    def __iter__(self) -> Iterator[NDArray[Scalar]]:
        ends = self._starts.tolist()
        return (self.values[start:end] for start, end in pairwise(ends))


@dataclass(frozen=True)
class Annotations:
    """What is known of each picture: its path, boxes [g,4] float32 xyxy 0..1, labels [g] int64 in 0..C-1 or IGNORED,
    and sizes [n,2] int64, the (height, width) of the pictures in their own pixels. class_names: what the source of the
    labels calls the classes 0..C-1; empty where it only numbers them.
    """

    paths: list[str]
    boxes: Ragged[np.float32]
    labels: Ragged[np.int64]
    sizes: NDArray[np.int64]
    class_names: tuple[str, ...] = ()


class DetectionDataset(Dataset[Sample]):
    """Resized pictures with their boxes; makes whole batches.

    A batch's sample depends on the seed, the epoch and its place alone, so the number of workers changes nothing.
    transform augments; it brings the pictures from their stored size to the network's where the two differ.
    """

    def __init__(
        self,
        annotations: Annotations,
        images: ImageStore,
        *,
        transform: Pipeline | None = None,
        seed: int = 0,
        problems: Problems | None = None,
    ) -> None:
        self.paths = annotations.paths
        self.boxes = annotations.boxes
        self.labels = annotations.labels
        self.sizes = annotations.sizes
        self.class_names = annotations.class_names
        self.transform = transform
        self.seed = seed
        self.problems = problems or Problems()
        self._images = images
        self._closing: tuple[int, Pipeline] | None = None

    def close_mixing(self, epoch: int) -> None:
        """From this epoch (the first is 0) on, the transform, if there is one, shows one picture at a time."""
        self._closing = None if self.transform is None else (epoch, self.transform.without_mixing())

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def num_boxes(self) -> int:
        """Number of truths in all pictures."""
        return int((self.labels.values != IGNORED).sum())

    @property
    def num_backgrounds(self) -> int:
        """Number of `backgrounds`."""
        return len(self.backgrounds())

    def backgrounds(self) -> NDArray[np.int64]:
        """Indices of the pictures without a box, in order; one with a crowd in it is no empty scene."""
        return np.flatnonzero(self.labels.counts == 0)

    def truths(self) -> Ragged[np.float32]:
        """The boxes [g,4] of each picture without the regions that its annotations ignore."""
        return self._only(self.labels.values != IGNORED)

    def taught_boxes(self) -> Ragged[np.float32]:
        """The truths [g,4] of each picture that training teaches: without those that RemoveOutliers always ignores."""
        ops = self.transform.ops if self.transform is not None else ()
        removals = [op for op in ops if isinstance(op, RemoveOutliers) and op.prob == 1]
        if not removals or not self.boxes:
            return self.truths()
        sample = Sample(np.empty((0, 0, 3), np.uint8), self.boxes.values, self.labels.values)
        for removal in removals:
            sample = removal.apply(sample, np.random.default_rng(self.seed))
        return self._only(sample.labels != IGNORED)

    def _only(self, chosen: NDArray[np.bool_]) -> Ragged[np.float32]:
        """Those of all boxes, picture by picture."""
        return Ragged(self.boxes.values[chosen], np.bincount(self._owners()[chosen], minlength=len(self)))

    def _owners(self) -> NDArray[np.int64]:
        """The picture of each box."""
        return np.repeat(np.arange(len(self)), self.labels.counts)

    def __getitem__(self, index: int) -> Sample:
        """The sample as it is stored, without augmentation."""
        sample = self._stored(index)
        return Sample(sample.image, sample.boxes.copy(), sample.labels.copy())

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        """One batch, augmented where there is a transform; its rows follow the keys."""
        indices = np.array([place for _, place in keys], dtype=np.int64) % len(self)
        images = self._images.gather(indices)
        boxes, labels = [self.boxes[i] for i in indices], [self.labels[i] for i in indices]
        if self.transform is not None:
            images = self._augment_all(images, boxes, labels, keys, self.transform)
        return Batch(torch.from_numpy(images), self._targets(indices, boxes, labels))

    def _augment_all(
        self,
        images: NDArray[np.uint8],
        boxes: list[NDArray[np.float32]],
        labels: list[NDArray[np.int64]],
        keys: Sequence[Key],
        transform: Pipeline,
    ) -> NDArray[np.uint8]:
        """Augments samples in their lists; returns their pictures, in the array of the stored ones where they fit.

        Each picture goes there at once: a batch of loose ones is memory that the process asks for, and gives back, for
        each batch, which takes as long as some ops.
        """
        augmented = images
        for row, key in enumerate(keys):
            sample = self._augment(Sample(images[row], boxes[row], labels[row]), key, transform)
            if row == 0 and sample.image.shape != images.shape[1:]:
                augmented = np.empty((len(keys), *sample.image.shape), np.uint8)
            augmented[row], boxes[row], labels[row] = sample.image, sample.boxes, sample.labels
        return augmented

    def _augment(self, sample: Sample, key: Key, transform: Pipeline) -> Sample:
        """The sample as the key's epoch sees it."""
        epoch, place = key
        rng = np.random.default_rng([self.seed, epoch, place])
        if self._closing is not None and epoch >= self._closing[0]:
            transform = self._closing[1]
        return transform(sample, rng, lambda: self.draw(rng))

    def as_trained(self, epoch: int, index: int) -> Sample:
        """The sample as an epoch (the first is 0) sees it."""
        sample = self[index]
        return sample if self.transform is None else self._augment(sample, (epoch, index), self.transform)

    def draw(self, rng: np.random.Generator) -> Sample:
        """A random sample as it is stored; its boxes and labels are the set's own, not to be written into."""
        return self._stored(int(rng.integers(len(self))))

    def _stored(self, index: int) -> Sample:
        return Sample(self._images.gather(np.array([index]))[0], self.boxes[index], self.labels[index])

    def _targets(
        self,
        indices: NDArray[np.int64],
        boxes: Sequence[NDArray[np.float32]],
        labels: Sequence[NDArray[np.int64]],
    ) -> Targets:
        counts = np.array([len(each) for each in labels])
        most = max(1, int(counts.max(initial=0)))
        filled = np.arange(most) < counts[:, None]
        padded_boxes = np.zeros((len(indices), most, 4), np.float32)
        padded_labels = np.full((len(indices), most), PADDING, np.int64)
        if filled.any():
            padded_boxes[filled] = np.concatenate(boxes)
            padded_labels[filled] = np.concatenate(labels)
        return Targets(
            boxes=torch.from_numpy(padded_boxes),
            labels=torch.from_numpy(padded_labels),
            image_ids=torch.from_numpy(indices),
            sizes=torch.from_numpy(self.sizes[indices]),
        )
