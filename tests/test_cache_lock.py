"""Several runs at one disk cache."""

import errno
import fcntl
import multiprocessing
import os
import signal
import threading
import time

import cv2
import numpy as np
import pytest

from uhd import locking
from uhd.data import cache as cache_module
from uhd.data.cache import ImageSpec, cache_path, open_images
from uhd.locking import exclusive

SPEC = ImageSpec((16, 24), "opencv_inter_area")
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def paths(tmp_path):
    (tmp_path / "data").mkdir()
    found = [str(tmp_path / "data" / f"{i:02}.png") for i in range(20)]
    for i, path in enumerate(found):
        assert cv2.imwrite(path, np.full((30, 40, 3), i, np.uint8))
    return found


def hold(file, pipe):
    with exclusive(file, "test"):
        pipe.send("held")
        pipe.poll(60)


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock of tmp_path / "lock" until something is sent to it."""
    here, there = FORK.Pipe()
    process = FORK.Process(target=hold, args=(tmp_path / "lock", there))
    process.start()
    assert here.recv() == "held"
    yield process, here
    here.send("leave")
    process.join(60)


def test_waiting_is_said_in_the_log_and_ends_with_the_other_run(tmp_path, holder, caplog, monkeypatch):
    caplog.set_level("INFO", "uhd")
    monkeypatch.setattr(locking, "_PATIENCE", 0.1)
    threading.Timer(0.5, holder[1].send, ["leave"]).start()
    with exclusive(tmp_path / "lock", "the pictures") as held:
        assert held
    assert "waiting for another run, which is making the pictures" in caplog.text


def test_lock_of_a_killed_process_is_free(tmp_path, holder, caplog):
    os.kill(holder[0].pid, signal.SIGKILL)
    holder[0].join(60)
    with exclusive(tmp_path / "lock", "the pictures") as held:
        assert held
    assert caplog.text == ""


def test_lock_is_free_after_an_error(tmp_path):
    with pytest.raises(KeyError), exclusive(tmp_path / "lock", "the pictures"):
        raise KeyError
    with exclusive(tmp_path / "lock", "the pictures") as held:
        assert held


def test_file_system_without_locks(tmp_path, paths, monkeypatch):
    """The cache is made all the same; what another run may be writing is left alone."""

    def refuse(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    folder = cache_path(paths, SPEC, tmp_path / "cache")
    folder.mkdir(parents=True)
    (folder / "00000-0123456789ab.rgb").write_bytes(b"being written")
    store, _ = open_images(paths, SPEC, "disk", tmp_path / "cache", "test")
    assert store.gather(np.arange(20))[:, 0, 0, 0].tolist() == list(range(20))
    assert (folder / "00000-0123456789ab.rgb").exists()


def read_and_count(paths, folder, reads, started):
    real = cache_module.load_resized

    def count(path, spec):
        with reads.get_lock():
            reads.value += 1
        started.set()
        time.sleep(0.005)
        return real(path, spec)

    cache_module.load_resized = count
    store, _ = open_images(paths, SPEC, "disk", folder, "run")
    assert store.gather(np.arange(20))[:, 0, 0, 0].tolist() == list(range(20))


def test_second_run_finds_the_work_of_the_first(tmp_path, paths):
    reads, started = FORK.Value("i", 0), FORK.Event()
    runs = [FORK.Process(target=read_and_count, args=(paths, tmp_path / "cache", reads, started)) for _ in range(3)]
    for run in runs:
        run.start()
    for run in runs:
        run.join(60)
    assert [run.exitcode for run in runs] == [0, 0, 0]
    assert reads.value == 20
    assert {file.suffix for file in cache_path(paths, SPEC, tmp_path / "cache").iterdir()} == {".rgb", ""}


def test_run_that_is_killed_while_it_writes_is_followed_by_one_that_makes_a_whole_cache(tmp_path, paths):
    reads, started = FORK.Value("i", 0), FORK.Event()
    run = FORK.Process(target=read_and_count, args=(paths, tmp_path / "cache", reads, started))
    run.start()
    assert started.wait(60)
    os.kill(run.pid, signal.SIGKILL)
    run.join(60)
    store, entries = open_images(paths, SPEC, "disk", tmp_path / "cache", "test")
    assert store.gather(np.arange(20))[:, 0, 0, 0].tolist() == list(range(20))
    assert entries.sizes.tolist() == [[30, 40]] * 20
    names = sorted(file.name for file in cache_path(paths, SPEC, tmp_path / "cache").iterdir())
    assert len(names) == 3
    assert names[1:] == ["index", "lock"]
