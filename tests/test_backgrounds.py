"""Training pictures without a box that an epoch shows more than once (--background-share)."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from conftest import PERSON, SMALL_RUN
from test_loader import Jitter, assert_same_batches, epoch_of, train_set, write_set

from uhd.data import build_loader
from uhd.data.backgrounds import Repeats, repeated_backgrounds
from uhd.data.loader import EpochBatchSampler


def shown_in(loader, epoch):
    """How often an epoch shows each picture."""
    return Counter(torch.cat([batch.targets.image_ids for batch in epoch_of(loader, epoch)]).tolist())


@pytest.mark.parametrize(
    ("people", "backgrounds", "share", "shows"),
    [
        # 5 shows of 20 are a quarter: 2 more than the three backgrounds themselves.
        (15, 3, 0.25, 2),
        (15, 5, 0.25, 0),
        (15, 9, 0.25, 0),
        (9, 1, 0.25, 2),
        (9, 1, 0.2, 2),  # 3 of 12 at least a fifth, 2 of 11 are less
        (10, 10, 0.6, 5),
        # Four shows of each at most.
        (97, 3, 0.5, 9),
        (900, 1, 0.9, 3),
        (5, 0, 0.5, 0),
        (0, 5, 0.9, 0),
    ],
)
def test_further_shows_make_the_share(tmp_path, people, backgrounds, share, shows):
    dataset = train_set(write_set(tmp_path, [PERSON] * people + [""] * backgrounds, size=(2, 2)))
    found = repeated_backgrounds(dataset, share)
    assert (found.shows if found else 0) == shows
    if found:
        assert found.indices.tolist() == list(range(people, people + backgrounds))


def test_each_show_is_a_place_of_its_own():
    repeats = Repeats(np.array([3, 8]), 5)
    places = repeats.places(10, np.random.default_rng(0))
    assert len(set(places.tolist())) == 5
    assert sorted(places.tolist())[:4] == [13, 18, 23, 28]
    assert places.max() in (33, 38)


def test_the_shows_left_over_change_from_epoch_to_epoch(tmp_path):
    dataset = train_set(write_set(tmp_path, [PERSON] * 6 + [""] * 4))
    loader = build_loader(dataset, 4, 0, shuffle=True, device_is_cuda=False, background_share=0.5)
    counts = [shown_in(loader, epoch) for epoch in range(8)]
    assert all(sum(count.values()) == 12 and set(count) == set(range(10)) for count in counts)
    assert all(count[index] == 1 for count in counts for index in range(6))
    again = {index for count in counts for index in range(6, 10) if count[index] == 2}
    assert again == {6, 7, 8, 9}


def test_without_a_share_the_order_is_what_it_was():
    """The order of older runs, which resume."""
    expected = np.random.default_rng([7, 2]).permutation(9).tolist()
    sampler = EpochBatchSampler(9, 3, shuffle=True, seed=7)
    sampler.set_epoch(2)
    assert [key for batch in sampler for key in batch] == [(2, index) for index in expected]


def test_shows_are_augmented_each_in_its_own_way_whatever_the_workers(tmp_path):
    dataset = train_set(write_set(tmp_path, [PERSON] * 9 + [""]), transform=Jitter())
    loaders = [
        build_loader(dataset, 5, workers, shuffle=True, device_is_cuda=False, background_share=0.9)
        for workers in (0, 1, 3)
    ]
    batches = [epoch_of(loader, 1) for loader in loaders]
    assert_same_batches(batches[0], batches[1])
    assert_same_batches(batches[0], batches[2])
    shows = [image for batch in batches[0] for image in batch.images[batch.targets.image_ids == 9].numpy()]
    assert len(shows) == 4
    assert len({image.tobytes() for image in shows}) == 4


def test_validation_shows_each_picture_once(tmp_path):
    dataset = train_set(write_set(tmp_path, [PERSON] * 9 + [""]))
    loader = build_loader(dataset, 4, 0, shuffle=False, device_is_cuda=False, background_share=0.9)
    assert shown_in(loader, 0) == Counter(range(10))


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_the_shows(processes):
    repeats = Repeats(np.array([0, 5]), 5)
    samplers = [
        EpochBatchSampler(11, 8, shuffle=True, seed=3, share=(rank, processes), repeats=repeats)
        for rank in range(processes)
    ]
    alone = EpochBatchSampler(11, 8, shuffle=True, seed=3, repeats=repeats)
    assert alone.pictures_in_epoch == 16
    for whole, *parts in zip(alone, *samplers, strict=True):
        assert sorted(key for part in parts for key in part) == sorted(whole)


def test_run_says_how_often_it_shows_them_and_resumes_exactly(run_train, tmp_path):
    write_set(tmp_path / "data", [PERSON] * 9 + ["", "", PERSON], size=(32, 32))
    flags = (*SMALL_RUN, "--image-dir", "data", "--train-split", 1, "--val-split", 0, "--background-share", 0.4)
    outcome = run_train(*flags, "--epochs", 2, "--ckpt-out", "whole")
    assert (outcome.code, outcome.errors) == (0, [])
    assert any("2 training pictures without a box are shown 7 times in an epoch of 17" in line for line in outcome.out)
    assert run_train(*flags, "--epochs", 2, "--stop-epoch", 1, "--ckpt-out", "parts").code == 0
    resume = ("--resume", "parts", "--num-workers", 0, "--cache", "ram", "--device", "cpu")
    assert run_train(*resume).code == 0
    rows = [
        [json.loads(line)["train/loss"] for line in (tmp_path / folder / "metrics.jsonl").read_text().splitlines()]
        for folder in ("whole", "parts")
    ]
    assert rows[0] == rows[1]


@pytest.mark.parametrize(
    ("labels", "share", "warning"),
    [
        ([PERSON] * 4, "0.4", "--background-share 0.4 has no effect: 0 of 4"),
        ([PERSON, "", "", ""], "0.4", "--background-share 0.4 has no effect: 3 of 4"),
        ([PERSON] * 4, "0.3", None),  # the default
        ([PERSON, PERSON, PERSON, ""], "0", None),
    ],
)
def test_a_share_without_effect_is_warned_of(run_train, tmp_path, labels, share, warning):
    write_set(tmp_path / "data", labels, size=(32, 32))
    outcome = run_train(
        *(*SMALL_RUN, "--image-dir", "data", "--train-split", 1, "--val-split", 0, "--background-share", share)
    )
    assert outcome.code == 0
    said = [line for line in outcome.warnings if "--background-share" in line]
    assert [warning in line for line in said] == [True] * (warning is not None)


@pytest.mark.parametrize("value", ["-0.1", "0.95", "1", "nan", "x"])
def test_share_that_cannot_be_is_one_line(refused, yolo_folder, value):
    yolo_folder()
    refused("--image-dir", "data", f"--background-share={value}", mentions=("--background-share", value))
