import os
import signal
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from uhd.augment import Pipeline, RemoveOutliers, Sample
from uhd.augment.geometric import HorizontalFlip
from uhd.config import DataConfig, InputConfig, LabelsConfig
from uhd.data import build_datasets, build_loader
from uhd.data.dataset import Ragged
from uhd.data.images import read_image
from uhd.data.resize import resize
from uhd.types import IGNORED, PADDING

PERSON = LabelsConfig().resolved()
SMALL = InputConfig(img_size=(16, 16))


def write_set(folder, labels, size=(20, 30)):
    """Pictures named by their number, with label texts (None: no file)."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, text in enumerate(labels):
        pixels = np.random.default_rng(i).integers(0, 256, (*size, 3), dtype=np.uint8)
        assert cv2.imwrite(str(folder / f"{i:03}.png"), pixels)
        if text is not None:
            (folder / f"{i:03}.txt").write_text(text)
    return folder


def everything_is_train(folder, **flags):
    return DataConfig(image_dir=str(folder), train_split=1, val_split=0, cache="ram", **flags)


def train_set(folder, labels_cfg=PERSON, transform=None, **flags):
    return build_datasets(SMALL, labels_cfg, everything_is_train(folder, **flags), transform)[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twenty-three pictures; picture i has i % 4 boxes."""
    line = "0 0.5 0.5 0.5 0.25\n"
    return write_set(tmp_path_factory.mktemp("data"), [line * (i % 4) for i in range(23)])


# --- data sets ----------------------------------------------------------------------------------


def test_pictures_boxes_and_sizes(folder):
    dataset = train_set(folder)
    assert [os.path.basename(path) for path in dataset.paths] == [f"{i:03}.png" for i in range(23)]
    assert [len(boxes) for boxes in dataset.boxes] == [i % 4 for i in range(23)]
    assert dataset.boxes[1].tolist() == [[0.25, 0.375, 0.75, 0.625]]
    assert {boxes.dtype for boxes in dataset.boxes} == {np.dtype(np.float32)}
    assert {labels.dtype for labels in dataset.labels} == {np.dtype(np.int64)}
    assert dataset.sizes.tolist() == [[20, 30]] * 23
    assert dataset.num_boxes == 33
    assert dataset.num_backgrounds == 6
    sample = dataset[5]
    assert np.array_equal(sample.image, resize(read_image(dataset.paths[5]), (16, 16), "opencv_inter_area"))
    assert sample.labels.tolist() == [0]


@pytest.mark.parametrize("mode", ["opencv_inter_area", "opencv_inter_linear", "torch_bilinear", "torch_nearest"])
def test_only_area_averaged_training_pictures_are_decoded_at_a_fraction(tmp_path, mode):
    for i in range(4):
        pixels = cv2.resize(np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8), (320, 320))
        cv2.imwrite(str(tmp_path / f"{i}.jpg"), pixels)
    cfg = DataConfig(image_dir=str(tmp_path), train_split=0.5, val_split=0.5, cache="none")
    train, val = build_datasets(InputConfig((16, 16), mode), PERSON, cfg, None)
    assert np.array_equal(val[0].image, resize(read_image(val.paths[0]), (16, 16), mode))
    at_least = (16, 16) if mode == "opencv_inter_area" else None
    assert np.array_equal(train[0].image, resize(read_image(train.paths[0], at_least), (16, 16), mode))
    assert train.sizes.tolist() == val.sizes.tolist() == [[320, 320]] * 2


def test_classes_are_mapped_in_the_order_typed(tmp_path):
    lines = ["0 .5 .5 .1 .1\n5 .5 .5 .2 .2\n2 .5 .5 .3 .3\n", "7 .5 .5 .1 .1\n", None]
    dataset = train_set(write_set(tmp_path, lines), LabelsConfig(classes=(5, 0, 9)).resolved())
    assert [labels.tolist() for labels in dataset.labels] == [[1, 0], [], []]
    np.testing.assert_allclose(dataset.boxes[0][:, 2] - dataset.boxes[0][:, 0], [0.1, 0.2], atol=1e-6)
    assert dataset.problems.other_classes == 2
    assert dataset.problems.missing_classes == ("class9",)
    assert dataset.num_backgrounds == 2


def test_log_says_what_is_there_and_what_is_missing(tmp_path, caplog):
    caplog.set_level("INFO", "uhd")
    write_set(tmp_path, ["0 .5 .5 .1 .1\n", "", None, "1 .5 .5 .1 .1"])
    (tmp_path / "000.webp").write_bytes((tmp_path / "000.png").read_bytes())
    train_set(tmp_path, LabelsConfig(classes=(0, 3)).resolved())
    assert "training: 5 pictures, 2 boxes, 3 pictures without a box" in caplog.text
    assert "class class3 has no box" in caplog.text
    assert "1 boxes of other classes than those chosen" in caplog.text
    assert caplog.text.count("1 pictures share their label file") == 1


def test_boxes_are_clipped_dropped_and_counted(tmp_path, caplog):
    lines = ["0 0.95 0.5 0.2 0.2\n0 3 3 0.1 0.1\n0 0.5 0.5 0 0\n0 0.5 0.5 0.1 0.1\n"]
    dataset = train_set(write_set(tmp_path, lines))
    np.testing.assert_allclose(dataset.boxes[0], [[0.85, 0.4, 1, 0.6], [0.45, 0.45, 0.55, 0.55]], atol=1e-6)
    assert (dataset.problems.clipped, dataset.problems.dropped) == (1, 2)
    assert "1 boxes reach out of their pictures" in caplog.text
    assert "2 boxes have no area" in caplog.text


def test_bad_label_line_stops_and_is_named(tmp_path):
    write_set(tmp_path, ["0 .5 .5 .1 .1\n", "0 .5 .5 .1 .1\n0 .5 x .1 .1\n", "1 1\n"])
    with pytest.raises(ValueError, match=r"001\.txt:2: 'x' is not a number.*2 bad lines.*--skip-bad-labels") as caught:
        train_set(tmp_path)
    assert "\n" not in str(caught.value)


def test_bad_label_lines_are_skipped_when_asked(tmp_path, caplog):
    write_set(tmp_path, ["0 .5 .5 .1 .1\n", "0 .5 .5 .1 .1\n0 .5 x .1 .1\n", "1 1\n"])
    (tmp_path / "000.txt").write_bytes(b"\xff\xfe")
    dataset = train_set(tmp_path, skip_bad_labels=True)
    assert [len(labels) for labels in dataset.labels] == [0, 1, 0]
    assert dataset.problems.bad_lines == 3
    assert "3 bad lines dropped, first" in caplog.text


def test_label_file_that_is_no_text_is_named(tmp_path):
    write_set(tmp_path, [None])
    (tmp_path / "000.txt").write_bytes(b"\x89\xff\x00")
    with pytest.raises(ValueError, match=r"000\.txt: not a text file"):
        train_set(tmp_path)


@pytest.mark.parametrize("cache", ["ram", "none", "disk"])
def test_unreadable_pictures_are_named_and_left_out(tmp_path, caplog, cache):
    write_set(tmp_path / "data", ["0 .5 .5 .1 .1\n"] * 15)
    for i in range(12):
        (tmp_path / "data" / f"{i:03}.png").write_bytes(b"\x89PNG\r\n\x1a\nrest")
    cfg = replace(everything_is_train(tmp_path / "data"), cache=cache, cache_dir=str(tmp_path / "cache"))
    dataset, _ = build_datasets(SMALL, PERSON, cfg, None)
    assert [os.path.basename(path) for path in dataset.paths] == ["012.png", "013.png", "014.png"]
    assert len(dataset.problems.unreadable) == 12
    assert "12 pictures cannot be read" in caplog.text
    assert "009.png" in caplog.text
    assert "010.png" not in caplog.text
    batch = dataset.__getitems__([(0, 2), (0, 0)])
    for row, index in enumerate((2, 0)):
        expected = resize(read_image(dataset.paths[index]), (16, 16), "opencv_inter_area")
        assert np.array_equal(batch.images[row], expected)


def test_set_of_unreadable_pictures_is_an_error(tmp_path):
    write_set(tmp_path, [None] * 2)
    for path in tmp_path.glob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"none of the 2 training pictures can be read; first: .*000\.png"):
        train_set(tmp_path)


def test_empty_sets(folder, caplog):
    cfg = everything_is_train(folder)
    train, val = build_datasets(SMALL, PERSON, cfg, None)
    assert (len(train), len(val)) == (23, 0)
    assert "--val-split is 0" in caplog.text
    assert list(build_loader(val, 4, 2, shuffle=False, device_is_cuda=False)) == []
    with pytest.raises(ValueError, match="--train-split 0: no picture is left"):
        build_datasets(SMALL, PERSON, replace(cfg, train_split=0, val_split=1), None)
    train, val = build_datasets(SMALL, PERSON, replace(cfg, train_split=0, val_split=1), None, need_train=False)
    assert (len(train), len(val)) == (0, 23)


def test_training_and_validation_never_share_a_picture(folder):
    cfg = DataConfig(image_dir=str(folder), cache="ram", train_split=0.6, val_split=0.4)
    train, val = build_datasets(SMALL, PERSON, cfg, None)
    assert len(train) + len(val) == 23
    assert not set(train.paths) & set(val.paths)


@pytest.mark.parametrize("counts", [[], [0], [3], [2, 0, 3, 0], [0, 0, 1]])
def test_arrays_that_lie_behind_one_another(counts):
    values = np.arange(sum(counts) * 4).reshape(-1, 4)
    arrays = Ragged(values, np.array(counts, dtype=np.int64))
    expected = [each.tolist() for each in np.split(values, np.cumsum(counts)[:-1])] if counts else []
    assert [each.tolist() for each in arrays] == expected
    assert [arrays[i].tolist() for i in range(-len(counts), 0)] == expected
    assert [each.tolist() for each in arrays[1:3]] == expected[1:3]
    assert (len(arrays), arrays.counts.tolist()) == (len(counts), counts)
    with pytest.raises(IndexError):
        arrays[len(counts)]


# --- batches ------------------------------------------------------------------------------------


class Transform:
    """Stands for a pipeline that gains nothing by larger pictures."""

    needs_detail = False


class Jitter(Transform):
    """Adds noise, shifts boxes, doubles some truths and takes some away."""

    def __call__(self, sample, rng, draw):
        noise = rng.integers(0, 5, sample.image.shape, dtype=np.uint8)
        copies = int(rng.integers(1, 3))
        labels = np.repeat(np.where(rng.random(len(sample.labels)) < 0.3, IGNORED, sample.labels), copies)
        boxes = np.repeat(sample.boxes, copies, axis=0) * np.float32(rng.random())
        return Sample(image=sample.image // 2 + noise, boxes=boxes, labels=labels)


def epoch_of(loader, epoch):
    loader.set_epoch(epoch)
    return list(loader)


def assert_same_batches(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.images, other.images)
        for name in ("boxes", "labels", "image_ids", "sizes"):
            assert torch.equal(getattr(one.targets, name), getattr(other.targets, name))


def test_batch_is_padded_to_its_largest_truth_count(folder):
    dataset = train_set(folder)
    images, targets = dataset.__getitems__([(0, 2), (0, 4), (0, 3)])
    assert images.shape == (3, 16, 16, 3)
    assert images.dtype == torch.uint8
    assert np.array_equal(images[1], dataset[4].image)
    assert targets.boxes.shape == (3, 3, 4)
    assert targets.labels.tolist() == [[0, 0, PADDING], [PADDING] * 3, [0, 0, 0]]
    assert targets.boxes[0, :2].tolist() == dataset.boxes[2].tolist()
    assert targets.boxes[1].count_nonzero() == 0
    assert targets.image_ids.tolist() == [2, 4, 3]
    assert targets.sizes.tolist() == [[20, 30]] * 3
    dtypes = (targets.boxes.dtype, targets.labels.dtype, targets.image_ids.dtype, targets.sizes.dtype)
    assert dtypes == (torch.float32, torch.int64, torch.int64, torch.int64)


def test_batch_without_any_truth_has_one_padded_column(folder):
    targets = train_set(folder).__getitems__([(0, 0), (0, 4)]).targets
    assert targets.boxes.shape == (2, 1, 4)
    assert targets.labels.tolist() == [[PADDING], [PADDING]]


def test_picture_with_very_many_truths(tmp_path):
    dataset = train_set(write_set(tmp_path, ["0 .5 .5 .1 .1\n" * 3000, None]), max_boxes=3000)
    targets = dataset.__getitems__([(0, 0), (0, 1)]).targets
    assert targets.boxes.shape == (2, 3000, 4)
    assert (targets.labels != PADDING).sum(dim=1).tolist() == [3000, 0]


def test_augmented_truths_reach_the_batch_and_the_set_stays_as_it_is(folder):
    dataset = train_set(folder, transform=Jitter())
    before = [boxes.copy() for boxes in dataset.boxes], dataset[3].image
    keys = [(7, 3), (7, 0), (7, 2)]
    images, targets = dataset.__getitems__(keys)
    for row, (epoch, index) in enumerate(keys):
        expected = Jitter()(dataset[index], np.random.default_rng([dataset.seed, epoch, index]), None)
        assert np.array_equal(images[row], expected.image)
        real = targets.labels[row] != PADDING
        assert targets.labels[row][real].tolist() == expected.labels.tolist()
        assert np.array_equal(targets.boxes[row][real], expected.boxes)
    for boxes, earlier in zip(dataset.boxes, before[0], strict=True):
        assert np.array_equal(boxes, earlier)
    assert np.array_equal(dataset[3].image, before[1])


@pytest.mark.parametrize(("prob", "widths"), [(1, [[0.5], []]), (0.9, [[0.5, 0.1], [0.1]])])
def test_boxes_that_are_always_removed_are_not_taught(tmp_path, prob, widths):
    line = "0 .5 .5 {0} {0}\n"
    pipeline = Pipeline([HorizontalFlip(prob=1), RemoveOutliers(prob=prob, min_area=0.02)])
    dataset = train_set(
        write_set(tmp_path, [line.format(0.5) + line.format(0.1), line.format(0.1)]), transform=pipeline
    )
    taught = [boxes[:, 2] - boxes[:, 0] for boxes in dataset.taught_boxes()]
    np.testing.assert_allclose(np.concatenate(taught), np.concatenate(widths), atol=1e-4)
    assert [len(each) for each in taught] == [len(each) for each in widths]
    dataset.transform = None
    assert [len(boxes) for boxes in dataset.taught_boxes()] == [2, 1]


# --- loader -------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", ["ram", "disk", "none"])
def test_batches_do_not_depend_on_the_number_of_workers(folder, tmp_path, cache):
    cfg = replace(everything_is_train(folder), cache=cache, cache_dir=str(tmp_path))
    dataset, _ = build_datasets(SMALL, PERSON, cfg, Jitter())
    loaders = [build_loader(dataset, 4, workers, shuffle=True, device_is_cuda=False) for workers in (0, 1, 3)]
    for epoch in (1, 2):
        batches = [epoch_of(loader, epoch) for loader in loaders]
        assert_same_batches(batches[0], batches[1])
        assert_same_batches(batches[0], batches[2])


def test_order_and_augmentation_depend_on_seed_and_epoch(folder):
    def ids_and_pixels(seed, epoch):
        dataset = train_set(folder, transform=Jitter(), seed=seed)
        batches = epoch_of(build_loader(dataset, 23, 0, shuffle=True, device_is_cuda=False), epoch)
        ids = batches[0].targets.image_ids
        return ids.tolist(), batches[0].images[ids.argsort()]

    base = ids_and_pixels(1, 1)
    assert sorted(base[0]) == list(range(23))
    again = ids_and_pixels(1, 1)
    assert again[0] == base[0]
    assert torch.equal(again[1], base[1])
    for other in (ids_and_pixels(1, 2), ids_and_pixels(2, 1)):
        assert other[0] != base[0]
        assert not torch.equal(other[1], base[1])


@pytest.mark.parametrize(
    ("batch_size", "shuffle", "sizes"),
    [
        (23, True, [23]),
        (100, True, [23]),
        (11, True, [11, 11]),
        (11, False, [11, 11, 1]),
        (22, True, [22]),
        (7, True, [7, 7, 7, 2]),
        (8, False, [8, 8, 7]),
        (1, True, [1] * 23),
    ],
)
def test_last_batch_is_kept_unless_training_on_one_picture(folder, batch_size, shuffle, sizes):
    loader = build_loader(train_set(folder), batch_size, 0, shuffle=shuffle, device_is_cuda=False)
    batches = epoch_of(loader, 1)
    assert [len(batch.images) for batch in batches] == sizes
    assert len(loader) == len(sizes)
    if not shuffle:
        assert torch.cat([batch.targets.image_ids for batch in batches]).tolist() == list(range(23))


def test_set_of_one_picture_still_trains(tmp_path):
    dataset = train_set(write_set(tmp_path, [None]))
    assert [len(batch.images) for batch in build_loader(dataset, 8, 4, shuffle=True, device_is_cuda=False)] == [1]


@pytest.mark.parametrize(("asked", "batch_size", "workers"), [(0, 4, 0), (2, 4, 2), (9, 4, 6), (9, 100, 1)])
def test_never_more_workers_than_batches(folder, asked, batch_size, workers):
    loader = build_loader(train_set(folder), batch_size, asked, shuffle=True, device_is_cuda=False)
    assert loader.num_workers == workers


def test_default_workers_are_the_cores_and_at_most_eight(folder):
    loader = build_loader(train_set(folder), 1, None, shuffle=True, device_is_cuda=False)
    assert loader.num_workers == min(len(os.sched_getaffinity(0)), 8)


@pytest.mark.parametrize("workers", [0, 2])
def test_global_random_numbers_are_not_used(folder, workers):
    loader = build_loader(train_set(folder, transform=Jitter()), 4, workers, shuffle=True, device_is_cuda=False)
    torch.manual_seed(5)
    np.random.seed(5)
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    epoch_of(loader, 1)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])


class Fatal(Transform):
    """Ends the worker process as the system does when memory runs out."""

    def __call__(self, sample, rng, draw):
        os.kill(os.getpid(), signal.SIGKILL)
        return sample


class Broken(Transform):
    def __call__(self, sample, rng, draw):
        raise ZeroDivisionError("broken augmentation")


@pytest.mark.parametrize(
    ("transform", "error", "message"),
    [(Fatal(), RuntimeError, "exited unexpectedly"), (Broken(), ZeroDivisionError, "broken augmentation")],
)
def test_trouble_in_a_worker_is_an_error_here(folder, transform, error, message):
    loader = build_loader(train_set(folder, transform=transform), 4, 1, shuffle=True, device_is_cuda=False)
    with pytest.raises(error, match=message):
        epoch_of(loader, 1)


@pytest.mark.parametrize("workers", [0, 1])
def test_damaged_cache_is_named(folder, tmp_path, workers):
    cfg = replace(everything_is_train(folder), cache="disk", cache_dir=str(tmp_path))
    build_datasets(SMALL, PERSON, cfg)
    (shard,) = tmp_path.glob("*/*.rgb")
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    loader = build_loader(build_datasets(SMALL, PERSON, cfg)[0], 4, workers, shuffle=True, device_is_cuda=False)
    with pytest.raises(OSError, match=rf"{shard.name}: this part of the picture cache is damaged"):
        epoch_of(loader, 1)
    loader = build_loader(build_datasets(SMALL, PERSON, cfg)[0], 4, workers, shuffle=True, device_is_cuda=False)
    assert len(epoch_of(loader, 1)) == 6


class Report(Transform):
    """Writes what the worker process is like into the picture."""

    def __call__(self, sample, rng, draw):
        image = np.zeros_like(sample.image)
        ignores = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        image[0, 0] = (ignores, os.nice(0), torch.get_num_threads())
        return Sample(image=image, boxes=sample.boxes, labels=sample.labels)


def test_workers_ignore_interrupts_yield_the_cores_and_use_one_thread(folder):
    loader = build_loader(train_set(folder, transform=Report()), 4, 1, shuffle=True, device_is_cuda=False)
    for batch in epoch_of(loader, 1):
        assert batch.images[:, 0, 0].unique(dim=0).tolist() == [[1, min(os.nice(0) + 10, 19), 1]]
