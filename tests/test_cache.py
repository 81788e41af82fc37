import os
import resource
from contextlib import contextmanager

import cv2
import numpy as np
import pytest

from uhd.data import cache as cache_module
from uhd.data import shards
from uhd.data.cache import ImageSpec, cache_path, load_resized, open_images
from uhd.data.entries import Entries, EntriesBuilder, Entry
from uhd.data.labels import BadLine, LabelRows
from uhd.data.limits import Limits

SPEC = ImageSpec((16, 24), "opencv_inter_area")


def write_picture(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(seed).integers(0, 256, (30 + seed, 40, 3), dtype=np.uint8)
    assert cv2.imwrite(str(path), image)
    return str(path)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    """Shards of nine pictures, so that seventy make several."""
    monkeypatch.setattr(shards, "SHARD_BYTES", 9 * 16 * 24 * 3)


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
    """The pictures that can be read, and the entries one by one."""
    store, entries = open_images(paths, spec, kind, folder, "test")
    readable = [i for i in range(len(paths)) if i not in entries.errors]
    return store.gather(np.array(readable, dtype=np.int64)), [entries.entry(i) for i in range(len(paths))]


def files_of(paths, folder):
    return {path.name: path.read_bytes() for path in cache_path(paths, SPEC, folder).iterdir()}


def shards_of(paths, folder):
    return sorted(cache_path(paths, SPEC, folder).glob("*.rgb"))


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
    assert len(entries) == 0
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
    assert len(shards_of(paths, tmp_path / "cache")) == 8


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
        ImageSpec((16, 24), "opencv_inter_area", limits=Limits(max_pixels=99)),
    ]
    files = {cache_path(paths, spec, tmp_path) for spec in specs} | {cache_path(paths[1:], SPEC, tmp_path)}
    assert len(files) == 6


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
        truncate_to(2000),
        overwrite(100),
        overwrite(-1),
        overwrite(-15),
        lambda file: file.write_bytes(b"x" * 1000),
        lambda file: file.write_bytes(file.read_bytes() + b"x"),
    ],
)
def test_damaged_index_is_made_again_with_a_note(tmp_path, paths, reads, caplog, damage):
    cold = contents(paths, "disk", tmp_path / "cache")
    damage(cache_path(paths, SPEC, tmp_path / "cache") / "index")
    reads.clear()
    assert_same(cold, contents(paths, "disk", tmp_path / "cache"))
    assert len(reads) == 140
    assert caplog.text.count("is damaged") == 1
    reads.clear()
    contents(paths, "disk", tmp_path / "cache")
    assert reads == []
    assert len(shards_of(paths, tmp_path / "cache")) == 8


@pytest.mark.parametrize("damage", [truncate_to(0), truncate_to(2000), lambda file: file.unlink()])
def test_shard_that_is_not_whole_is_made_again_from_its_pictures_alone(tmp_path, paths, reads, caplog, damage):
    cold = contents(paths, "disk", tmp_path / "cache")
    damage(shards_of(paths, tmp_path / "cache")[1])
    reads.clear()
    assert_same(cold, contents(paths, "disk", tmp_path / "cache"))
    assert sorted(name for name in reads if name.endswith("png")) == [f"{i:02}.png" for i in range(9, 18)]
    assert "9 pictures are read again" in caplog.text


def test_damaged_picture_is_an_error_at_its_first_read_and_is_made_again_by_the_next_run(tmp_path, paths, reads):
    cold = contents(paths, "disk", tmp_path / "cache")
    shard = shards_of(paths, tmp_path / "cache")[1]
    store, _ = open_images(paths, SPEC, "disk", tmp_path / "cache", "first")
    overwrite(3 * 16 * 24 * 3 + 5)(shard)
    store.gather(np.array([0, 9, 10, 11, 13]))
    with pytest.raises(
        OSError, match=rf"{shard.name}: this part of the picture cache is damaged; .*next start"
    ) as caught:
        store.gather(np.array([11, 12]))
    assert "\n" not in str(caught.value)
    reads.clear()
    assert_same(cold, contents(paths, "disk", tmp_path / "cache"))
    assert len(reads) == 18


def test_damage_beside_a_change_is_found_when_the_shard_is_copied(tmp_path, paths, reads, caplog):
    contents(paths, "disk", tmp_path / "cache")
    overwrite(5)(shards_of(paths, tmp_path / "cache")[0])
    write_picture(tmp_path / "data" / "05.png", 99)
    reads.clear()
    assert_same(contents(paths, "disk", tmp_path / "cache"), contents(paths, "ram", tmp_path))
    assert {"00.png", "05.png"} == {name for name in reads[:4] if name.endswith("png")}
    assert "1 pictures are read again" in caplog.text


def test_shard_that_shrinks_under_a_run_is_an_error(tmp_path, paths):
    contents(paths, "disk", tmp_path / "cache")
    store, _ = open_images(paths, SPEC, "disk", tmp_path / "cache", "first")
    truncate_to(100)(shards_of(paths, tmp_path / "cache")[2])
    store.gather(np.arange(18))
    with pytest.raises(OSError, match="the picture cache is damaged"):
        store.gather(np.array([18]))


def test_unchanged_shards_are_left_as_they_are(tmp_path, paths):
    contents(paths, "disk", tmp_path / "cache")
    before = shards_of(paths, tmp_path / "cache")
    write_picture(tmp_path / "data" / "20.png", 99)
    contents(paths, "disk", tmp_path / "cache")
    after = shards_of(paths, tmp_path / "cache")
    assert [one == other for one, other in zip(before, after, strict=True)] == [i != 2 for i in range(8)]


@pytest.mark.parametrize(
    ("shape", "per_shard", "num_shards"),
    [
        ((1, 4, 4, 3), 64 << 20 >> 4, 1),
        ((10, 64, 64, 3), 5461, 1),
        ((200_000, 64, 64, 3), 5461, 37),
        ((200_000, 128, 128, 3), 1563, 128),
        ((100_000_000, 64, 64, 3), 781_250, 128),
        ((3, 8000, 8000, 3), 1, 3),
    ],
)
def test_shards_are_few(monkeypatch, shape, per_shard, num_shards):
    monkeypatch.undo()
    layout = shards.Layout.of(shape)
    assert layout.num_shards == num_shards
    assert layout.per_shard == per_shard or shape[0] == 1
    assert sum(len(layout.pictures(shard)) for shard in range(num_shards)) == shape[0]


def test_folder_that_cannot_be_written(tmp_path, paths, caplog):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ValueError, match=r"--cache-dir .*file.*: cannot be written"):
        contents(paths, "disk", tmp_path / "file" / "cache")
    caplog.set_level("INFO", "uhd")
    assert_same(contents(paths, "auto", tmp_path / "file" / "cache"), contents(paths, "none", tmp_path))
    assert "the cache is kept in memory" in caplog.text


def test_folder_that_cannot_be_written_and_memory_that_is_too_small(tmp_path, paths, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setattr(cache_module, "available_memory", lambda: 70 * 16 * 24 * 3)
    with pytest.raises(
        ValueError, match=r"--cache-dir .*: cannot be written .*GiB of pictures are too much for memory"
    ):
        contents(paths, "auto", tmp_path / "file" / "cache")


def test_cache_that_is_up_to_date_is_opened_without_writing(tmp_path, paths, reads, monkeypatch):
    """As in a folder that is read-only, which root cannot be kept from writing to."""
    cold = contents(paths, "disk", tmp_path / "cache")
    before, real = files_of(paths, tmp_path / "cache"), os.open

    def open_for_reading(path, flags, *args, **kwargs):
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(30, "Read-only file system")
        return real(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", open_for_reading)
    reads.clear()
    assert_same(cold, contents(paths, "disk", tmp_path / "cache"))
    assert reads == []
    write_picture(tmp_path / "data" / "05.png", 99)
    with pytest.raises(ValueError, match=r"--cache-dir .*: cannot be written \(Read-only file system\)"):
        contents(paths, "disk", tmp_path / "cache")
    contents(paths, "auto", tmp_path / "cache")
    assert files_of(paths, tmp_path / "cache") == before


# --- a full disk --------------------------------------------------------------------------------


@contextmanager
def files_up_to(size):
    """No file may grow beyond this size, as with a quota. Python takes the signal for an error, not for its end."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [0, 100, 8100])
def test_file_that_may_not_grow(tmp_path, paths, caplog, size):
    """8100 bytes are room for the last shard, and not for the others."""
    caplog.set_level("INFO", "uhd")
    expected = contents(paths, "ram", tmp_path)
    with (
        files_up_to(size),
        pytest.raises(ValueError, match=r"--cache-dir .*cache: cannot be written \(File too large\)"),
    ):
        contents(paths, "disk", tmp_path / "cache")
    with files_up_to(size):
        found = contents(paths, "auto", tmp_path / "cache")
    assert_same(expected, found)
    assert caplog.text.count("the cache is kept in memory") == 1
    assert set(files_of(paths, tmp_path / "cache")) <= {"lock"}


def test_disk_without_room_is_told_before_anything_is_read(tmp_path, paths, reads, monkeypatch):
    usage = type("Usage", (), {"free": 70 * 16 * 24 * 3 - 1})
    monkeypatch.setattr(shards.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(ValueError, match=r"--cache-dir .*No space left on device: 0\.0 GiB are needed"):
        contents(paths, "disk", tmp_path / "cache")
    assert reads == []


@pytest.mark.parametrize("calls", [0, 1, 40])
def test_disk_that_fills_up_leaves_the_older_cache(tmp_path, paths, monkeypatch, calls):
    older = contents(paths, "disk", tmp_path / "cache")
    before = files_of(paths, tmp_path / "cache")
    for path in paths:
        os.utime(path, ns=(1, 1))
    left, real = [calls], os.pwrite

    def write(*args):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        return real(*args)

    monkeypatch.setattr(os, "pwrite", write)
    with pytest.raises(ValueError, match=r"cannot be written \(No space left"):
        contents(paths, "disk", tmp_path / "cache")
    assert files_of(paths, tmp_path / "cache") == before
    monkeypatch.undo()
    assert_same(older, contents(paths, "disk", tmp_path / "cache"))


def test_writes_in_parts_are_put_together(tmp_path, paths, monkeypatch):
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, position: real(file, data[:100], position))
    assert_same(contents(paths, "disk", tmp_path / "cache"), contents(paths, "ram", tmp_path))


def test_index_that_cannot_be_written_leaves_no_new_shards(tmp_path, paths, monkeypatch):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("uhd.data.cache_file.write_whole", refuse)
    with pytest.raises(ValueError, match="No space left"):
        contents(paths, "disk", tmp_path / "cache")
    assert set(files_of(paths, tmp_path / "cache")) == {"lock"}


def test_what_a_killed_run_left_is_removed(tmp_path, paths):
    contents(paths, "disk", tmp_path / "cache")
    folder = cache_path(paths, SPEC, tmp_path / "cache")
    (folder / "00000-0123456789ab.rgb").write_bytes(b"half of it")
    (folder / ".index.123.tmp").write_bytes(b"half of it")
    write_picture(tmp_path / "data" / "05.png", 99)
    contents(paths, "disk", tmp_path / "cache")
    names = set(files_of(paths, tmp_path / "cache"))
    assert names == {"index", "lock", *(path.name for path in shards_of(paths, tmp_path / "cache"))}
    assert len(names) == 10


def test_run_keeps_its_pictures_while_another_one_renews_the_file(tmp_path, paths):
    store, _ = open_images(paths[3:], SPEC, "disk", tmp_path / "cache", "first")
    before = gather_all(store, 67)
    for path in paths[3:]:
        write_picture(tmp_path / "data" / os.path.basename(path), 120)
    renewed, _ = open_images(paths[3:], SPEC, "disk", tmp_path / "cache", "second")
    assert np.array_equal(gather_all(store, 67), before)
    assert not np.array_equal(gather_all(renewed, 67), before)


# --- entries ------------------------------------------------------------------------------------


def entry_of(number, *, count=1, error="", bad=()):
    return Entry((number, number + 1), LabelRows(np.full((count, 5), float(number)), bad), "/a.txt", error)


def test_entries_come_in_any_order_over_older_ones():
    bad = (BadLine(3, "ünïcode \udcff"),)
    first = EntriesBuilder(Entries.blank(["/a.jpg"] * 4))
    for index, entry in ((2, entry_of(2, count=3)), (0, entry_of(7, error="gone", bad=bad)), (3, entry_of(3, count=0))):
        first.add(index, entry)
    first.add(0, entry_of(1, count=2, error="broken", bad=bad))
    older = first.build()
    assert older.counts.tolist() == [2, 0, 3, 0]
    assert older.rows[:, 0].tolist() == [1, 1, 2, 2, 2]
    second = EntriesBuilder(older)
    second.add(3, entry_of(9))
    second.add(0, entry_of(5, count=0))
    newer = second.build()
    assert newer.rows[:, 0].tolist() == [2, 2, 2, 9]
    assert (newer.errors, newer.bad_lines) == ({}, {})
    assert (older.errors, older.bad_lines) == ({0: "broken"}, {0: bad})
    assert older.entry(0).labels.bad_lines == bad
    assert newer.entry(2).size == (2, 3)
