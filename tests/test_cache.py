import multiprocessing
import os
import time

import cv2
import numpy as np
import pytest

from uhd.data import cache as cache_module
from uhd.data.cache import ImageSpec, cache_path, load_resized, open_images
from uhd.data.cache_file import Entry, read_cache, write_cache
from uhd.data.labels import BadLine, LabelRows

SPEC = ImageSpec((16, 24), "opencv_inter_area")


def write_picture(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(seed).integers(0, 256, (30 + seed, 40, 3), dtype=np.uint8)
    assert cv2.imwrite(str(path), image)
    return str(path)


@pytest.fixture
def paths(tmp_path):
    """Seventy pictures: labelled, with a bad line, without a label, and one that cannot be read."""
    found = [write_picture(tmp_path / "data" / f"{i:02}.png", i) for i in range(70)]
    for i in range(0, 70, 2):
        (tmp_path / "data" / f"{i:02}.txt").write_text(f"{i} 0.5 0.5 0.25 0.5\n3 0.1 0.1 0.1 0.1\n")
    (tmp_path / "data" / "01.txt").write_text("0 0.5 0.5\n1 0.5 0.5 0.1 0.1\n")
    (tmp_path / "data" / "02.png").write_bytes(b"no picture")
    return found


@pytest.fixture
def reads(monkeypatch):
    """Names of the pictures and labels that were opened."""
    opened = []

    def record(function):
        def recorded(path, *args):
            opened.append(os.path.basename(path))
            return function(path, *args)

        return recorded

    monkeypatch.setattr(cache_module, "load_resized", record(cache_module.load_resized))
    monkeypatch.setattr(cache_module, "read_labels", record(cache_module.read_labels))
    return opened


def gather_all(store, count):
    return store.gather(np.arange(count))


def contents(paths, kind, folder, spec=SPEC):
    store, entries = open_images(paths, spec, kind, folder, "test")
    readable = [i for i, entry in enumerate(entries) if not entry.error]
    return store.gather(np.array(readable, dtype=np.int64)), entries


def assert_same(first, second):
    assert np.array_equal(first[0], second[0])
    for one, other in zip(first[1], second[1], strict=True):
        assert (one.size, one.label_path, one.error) == (other.size, other.label_path, other.error)
        assert one.labels.bad_lines == other.labels.bad_lines
        assert np.array_equal(one.labels.rows, other.labels.rows)


@pytest.mark.parametrize("kind", ["disk", "ram", "none", "auto"])
def test_every_kind_gives_the_decoded_pictures(tmp_path, paths, kind):
    images, entries = contents(paths, kind, tmp_path / "cache")
    expected = [load_resized(path, SPEC) for path in paths if not path.endswith("02.png")]
    assert np.array_equal(images, [image for image, _ in expected])
    assert [entry.size for entry in entries if not entry.error] == [size for _, size in expected]
    assert entries[0].size == (30, 40)
    assert entries[4].labels.rows.tolist() == [[4, 0.5, 0.5, 0.25, 0.5], [3, 0.1, 0.1, 0.1, 0.1]]
    assert entries[1].labels.rows.tolist() == [[1, 0.5, 0.5, 0.1, 0.1]]
    assert [bad.number for bad in entries[1].labels.bad_lines] == [1]
    assert entries[1].label_path == paths[1].replace(".png", ".txt")
    assert entries[3].labels.rows.shape == (0, 5)
    assert "02.png" in entries[2].error
    assert entries[2].size == (0, 0)
    assert len(entries[2].labels.rows) == 2
    assert (tmp_path / "cache").exists() == (kind in ("disk", "auto"))


@pytest.mark.parametrize("kind", ["disk", "ram", "none", "auto"])
def test_gathered_pictures_may_be_written_to(tmp_path, paths, kind):
    store, _ = open_images(paths[3:6], SPEC, kind, tmp_path, "test")
    images = gather_all(store, 3)
    before = images.copy()
    images[:] = 0
    assert np.array_equal(gather_all(store, 3), before)
    assert gather_all(store, 0).shape == (0, 16, 24, 3)


@pytest.mark.parametrize("kind", ["disk", "ram", "none", "auto"])
def test_no_pictures(tmp_path, kind):
    store, entries = open_images([], SPEC, kind, tmp_path / "cache", "test")
    assert entries == []
    assert gather_all(store, 0).shape == (0, 16, 24, 3)


def test_warm_start_opens_neither_pictures_nor_labels(tmp_path, paths, reads):
    cold = contents(paths, "disk", tmp_path / "cache")
    assert len(reads) == 140
    reads.clear()
    warm = contents(paths, "disk", tmp_path / "cache")
    assert reads == []
    assert_same(cold, warm)


def test_changed_files_alone_are_read_again(tmp_path, paths, reads):
    contents(paths, "disk", tmp_path / "cache")
    reads.clear()
    write_picture(tmp_path / "data" / "05.png", 99)
    (tmp_path / "data" / "06.txt").write_text("")
    (tmp_path / "data" / "07.txt").write_text("0 0.5 0.5 1 1\n")
    os.remove(tmp_path / "data" / "08.txt")
    os.remove(tmp_path / "data" / "10.png")
    write_picture(tmp_path / "data" / "02.png", 2)
    status = os.stat(paths[12])
    os.utime(paths[12], ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    warm = contents(paths, "disk", tmp_path / "cache")
    assert sorted({name.split(".")[0] for name in reads}) == ["02", "05", "06", "07", "08", "10", "12"]
    assert_same(warm, contents(paths, "ram", tmp_path))
    assert "10.png" in warm[1][10].error
    assert warm[1][2].error == ""
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_label_that_moves_to_the_labels_twin_is_seen(tmp_path):
    path = write_picture(tmp_path / "images" / "a.png", 0)
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text("1 0.5 0.5 1 1\n")
    _, (entry,) = contents([path], "disk", tmp_path / "cache")
    assert entry.labels.rows[0, 0] == 1
    (tmp_path / "images" / "a.txt").write_text("22 0.5 0.5 1 1\n")
    _, (entry,) = contents([path], "disk", tmp_path / "cache")
    assert entry.labels.rows[0, 0] == 22


def test_each_form_of_the_pictures_has_its_own_file(tmp_path, paths):
    specs = [
        SPEC,
        ImageSpec((16, 16), "opencv_inter_area"),
        ImageSpec((16, 24), "torch_nearest"),
        ImageSpec((16, 24), "opencv_inter_area", reduced=True),
    ]
    files = {cache_path(paths, spec, tmp_path) for spec in specs} | {cache_path(paths[1:], SPEC, tmp_path)}
    assert len(files) == 5


def truncate_to(size):
    def damage(file):
        with open(file, "r+b") as stream:
            stream.truncate(size)

    return damage


def overwrite(position):
    def damage(file):
        data = bytearray(file.read_bytes())
        data[position] ^= 0xFF
        file.write_bytes(data)

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        truncate_to(0),
        truncate_to(7),
        truncate_to(20_000),
        overwrite(100),
        overwrite(-1),
        overwrite(-15),
        overwrite(-200),
        lambda file: file.write_bytes(b"x" * 1000),
        lambda file: file.write_bytes(file.read_bytes() + b"x"),
    ],
)
def test_damaged_file_is_made_again_with_a_note(tmp_path, paths, reads, caplog, damage):
    cold = contents(paths, "disk", tmp_path / "cache")
    damage(cache_path(paths, SPEC, tmp_path / "cache"))
    reads.clear()
    assert_same(cold, contents(paths, "disk", tmp_path / "cache"))
    assert len(reads) == 140
    assert "is damaged" in caplog.text
    reads.clear()
    contents(paths, "disk", tmp_path / "cache")
    assert reads == []


def test_folder_that_cannot_be_written(tmp_path, paths, caplog):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ValueError, match=r"--cache-dir .*file.*: cannot be written"):
        contents(paths, "disk", tmp_path / "file" / "cache")
    caplog.set_level("INFO", "uhd")
    assert_same(contents(paths, "auto", tmp_path / "file" / "cache"), contents(paths, "none", tmp_path))
    assert "the cache is kept in memory" in caplog.text


def entry_of(number):
    rows = np.full((number, 5), float(number))
    return Entry((number, number + 1), LabelRows(rows, (BadLine(3, "ünïcode \udcff"),)), "/a\udcff.txt")


def test_failure_while_writing_leaves_the_older_file(tmp_path):
    file, shape, states = tmp_path / "x.uhdcache", (2, 4, 4, 3), np.arange(8).reshape(2, 4)
    pictures = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)

    def found(fail):
        yield 0, entry_of(0), pictures[0]
        if fail:
            raise OSError(28, "No space left on device")
        yield 1, entry_of(2), pictures[1]

    with pytest.raises(OSError, match="No space"):
        write_cache(file, shape, states, None, found(fail=True))
    assert list(tmp_path.iterdir()) == []
    write_cache(file, shape, states, None, found(fail=False))
    older = read_cache(file, shape)
    with pytest.raises(OSError, match="No space"):
        write_cache(file, shape, states + 1, older, found(fail=True))
    assert list(tmp_path.iterdir()) == [file]
    again = read_cache(file, shape)
    assert np.array_equal(again.images, pictures)
    assert np.array_equal(again.states, states)
    assert again.entries[0].labels.bad_lines == (BadLine(3, "ünïcode \udcff"),)
    assert again.entries[1].labels.rows.tolist() == [[2.0] * 5] * 2


def test_what_a_killed_writer_left_goes_and_what_is_being_written_stays(tmp_path):
    file, other = tmp_path / "x.uhdcache", tmp_path / "y.uhdcache"
    left = [tmp_path / f"{name.name}.{kind}.tmp" for name in (file, other) for kind in ("killed", "growing")]
    for path in left:
        path.write_bytes(b"half of it")
        if "killed" in path.name:
            os.utime(path, (time.time() - 7200,) * 2)
    pictures = np.zeros((1, 4, 4, 3), np.uint8)
    write_cache(file, pictures.shape, np.zeros((1, 4), np.int64), None, [(0, entry_of(0), pictures[0])])
    assert {path.name for path in tmp_path.iterdir()} == {file.name, *(path.name for path in left[1:])}


def test_run_keeps_its_pictures_while_another_one_renews_the_file(tmp_path, paths):
    store, _ = open_images(paths[3:], SPEC, "disk", tmp_path / "cache", "first")
    before = gather_all(store, 67)
    for path in paths[3:]:
        write_picture(tmp_path / "data" / os.path.basename(path), 120)
    renewed, _ = open_images(paths[3:], SPEC, "disk", tmp_path / "cache", "second")
    assert np.array_equal(gather_all(store, 67), before)
    assert not np.array_equal(gather_all(renewed, 67), before)


def test_two_runs_at_once_make_one_sound_file(tmp_path, paths):
    context = multiprocessing.get_context("fork")
    runs = [
        context.Process(target=open_images, args=(paths, SPEC, "disk", tmp_path / "cache", "run")) for _ in range(3)
    ]
    for run in runs:
        run.start()
    for run in runs:
        run.join(60)
    assert [run.exitcode for run in runs] == [0, 0, 0]
    assert len(list((tmp_path / "cache").iterdir())) == 1
    assert_same(contents(paths, "disk", tmp_path / "cache"), contents(paths, "ram", tmp_path))
