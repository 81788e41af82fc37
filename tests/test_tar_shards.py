"""Pictures and labels in tar files."""

import io
import os
import tarfile
from dataclasses import replace

import cv2
import numpy as np
import pytest

from uhd.config import DataConfig, InputConfig, LabelsConfig
from uhd.data import tar_shards
from uhd.data.build import build_datasets
from uhd.data.listing import find_images, list_sets

PERSON = LabelsConfig().resolved()
LINE = "0 0.5 0.5 0.5 0.25\n"


def picture(number, suffix=".png"):
    return cv2.imencode(suffix, np.full((20, 30, 3), number, np.uint8))[1].tobytes()


def write_tar(path, members):
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            data = data.encode() if isinstance(data, str) else data
            header = tarfile.TarInfo(name)
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))
    return path


@pytest.fixture
def shards(tmp_path):
    """Three tars of four pictures for training, in another order than that of their names, and one for validation."""
    for shard in range(3):
        members = []
        for i in (3, 1, 0, 2):
            number = 10 * shard + i
            members.append((f"k{number:02}.png", picture(number)))
            members += [(f"k{number:02}.txt", LINE * i)] * (i != 1)
        write_tar(tmp_path / f"shards-{shard:03}.tar", members)
    write_tar(tmp_path / "val.tar", [("a.png", picture(90)), ("a.txt", LINE)])
    return tmp_path


def config(folder, **flags):
    lists = {"train_list": str(folder / "shards-{000..002}.tar"), "val_list": str(folder / "val.tar")}
    return DataConfig(**{**lists, "cache": "disk", "cache_dir": str(folder / "cache"), **flags})


def sets_of(cfg):
    return build_datasets(InputConfig(img_size=(16, 16)), PERSON, cfg)


@pytest.fixture
def opened(monkeypatch):
    """Names of the tars that were opened, for their headers or to be streamed."""
    names = []
    for function in ("_scan", "stream_tar"):
        real = getattr(tar_shards, function)
        monkeypatch.setattr(
            tar_shards, function, lambda tar, *args, real=real: names.append(os.path.basename(tar)) or real(tar, *args)
        )
    monkeypatch.setattr("uhd.data.cache.stream_tar", lambda *args: tar_shards.stream_tar(*args))
    return names


@pytest.mark.parametrize("cache", ["disk", "auto", "ram"])
def test_pictures_and_boxes_in_the_order_of_their_names(shards, cache):
    train, val = sets_of(config(shards, cache=cache))
    numbers = [10 * shard + i for shard in range(3) for i in range(4)]
    assert train.paths == [str(shards / f"shards-{n // 10:03}.tar/k{n:02}.png") for n in numbers]
    assert train.__getitems__([(0, i) for i in range(12)]).images[:, 0, 0, 0].tolist() == numbers
    assert [len(boxes) for boxes in train.boxes] == [0, 0, 2, 3] * 3
    assert train.sizes.tolist() == [[20, 30]] * 12
    assert (len(val), val.num_boxes) == (1, 1)
    assert sorted(path.name for path in shards.iterdir()) == sorted(
        {"val.tar", *(f"shards-00{i}.tar" for i in range(3))} | ({"cache"} if cache != "ram" else set())
    )


def test_warm_start_does_not_read_the_tars(shards, opened):
    sets_of(config(shards))
    tars = ["val.tar", "shards-000.tar", "shards-001.tar", "shards-002.tar"]
    assert sorted(opened) == sorted(2 * tars)
    opened.clear()
    train, _ = sets_of(config(shards))
    assert opened == []
    assert train[11].image[0, 0, 0] == 23


def test_changed_tar_alone_is_read_again(shards, opened):
    sets_of(config(shards))
    opened.clear()
    write_tar(shards / "shards-001.tar", [(f"k1{i}.png", picture(200 + i)) for i in range(4)])
    train, _ = sets_of(config(shards))
    assert opened == ["shards-001.tar"] * 2
    assert [int(train[i].image[0, 0, 0]) for i in (3, 4, 7, 8)] == [3, 200, 203, 20]


def test_names_that_were_kept_and_are_damaged_are_read_again(shards, opened):
    sets_of(config(shards))
    for kept in (shards / "cache").glob("*.tars"):
        kept.write_bytes(kept.read_bytes().replace(b"k0", b"k9"))
    opened.clear()
    assert len(sets_of(config(shards))[0]) == 12
    assert len(opened) == 3


def test_without_a_cache_is_refused(shards):
    with pytest.raises(ValueError, match=r"--cache none: .*shards-000\.tar is read from end to end only"):
        sets_of(config(shards, cache="none"))


def test_bad_label_line_is_named(shards):
    write_tar(shards / "val.tar", [("key.png", picture(1)), ("key.txt", f"{LINE}{LINE}0 x 0 0 0\n")])
    with pytest.raises(ValueError, match=r"val\.tar/key\.txt:3: 'x' is not a number"):
        sets_of(config(shards))


def test_picture_that_cannot_be_decoded_is_left_out_and_named(shards, caplog):
    write_tar(shards / "val.tar", [("a.png", picture(1)), ("b.png", b"no picture"), ("c.png", b"")])
    _, val = sets_of(config(shards))
    assert len(val) == 1
    assert "val.tar/b.png: not a picture" in caplog.text


NAMES = {
    "suffixes in capitals": (["a.PNG", "a.TXT"], {"a.PNG": 1}),
    "further dots": (["a.b.png", "a.b.txt", "a.c.png"], {"a.b.png": 1, "a.c.png": 0}),
    "folders": (["x/a.png", "x/a.txt", "y/a.png"], {"x/a.png": 1, "y/a.png": 0}),
    "names that lead elsewhere": (["../a.png", "../a.txt", "/etc/b.png"], {"../a.png": 1, "/etc/b.png": 0}),
    "other files": (["a.json", "a.png", "a.txt", "b.txt", "README", "__meta__.txt"], {"a.png": 1}),
    "hidden files": (["._a.png", "x/.b.png", "a.png"], {"a.png": 0}),
    "label first": (["a.txt", "a.png"], {"a.png": 1}),
    "two pictures of one key": (["a.jpg", "a.png", "a.txt"], {"a.jpg": 1, "a.png": 1}),
    "name with .tar/ in it": (["b.tar/a.png", "b.tar/a.txt"], {"b.tar/a.png": 1}),
}


@pytest.mark.parametrize("kind", NAMES)
def test_names_in_a_tar(shards, kind):
    names, expected = NAMES[kind]
    contents = {".txt": LINE, ".png": picture(1), ".jpg": picture(1, ".jpg")}
    write_tar(shards / "val.tar", [(name, contents.get(os.path.splitext(name)[1].lower(), "{}")) for name in names])
    _, val = sets_of(config(shards))
    found = {
        path.removeprefix(f"{shards}/val.tar/"): len(boxes) for path, boxes in zip(val.paths, val.boxes, strict=True)
    }
    assert found == expected


BAD_TARS = {
    "no pictures": ([("a.txt", LINE), ("b.gif", b"x")], "no picture"),
    "empty": ([], "no picture"),
    "name twice": ([("a.png", b"x"), ("a.png", b"x")], r"val\.tar/a\.png: stands in the tar file twice"),
    "name twice but for capitals": ([("a.png", b"x"), ("a.PNG", b"x")], "stands in the tar file twice"),
    "key twice": ([("a.png", b"x"), ("b.png", b"x"), ("a.txt", LINE)], r"a\.txt: the files of a key stand apart"),
}


@pytest.mark.parametrize("kind", BAD_TARS)
def test_tar_that_cannot_be_used(shards, kind):
    members, message = BAD_TARS[kind]
    write_tar(shards / "val.tar", members)
    with pytest.raises(ValueError, match=message) as caught:
        sets_of(config(shards))
    assert "val.tar" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["nothing", "text", "cut in a picture", "cut behind a picture", "two in one"])
def test_tar_that_is_not_whole(shards, content):
    whole = (shards / "val.tar").read_bytes()
    damaged = {
        "nothing": b"",
        "text": b"no tar" * 500,
        "cut in a picture": whole[:520],
        "cut behind a picture": whole[:1024],
        "two in one": whole + whole,
    }
    (shards / "val.tar").write_bytes(damaged[content])
    with pytest.raises(ValueError, match=r"val\.tar: not a whole tar file \(") as caught:
        sets_of(config(shards))
    assert "\n" not in str(caught.value)


def test_tar_that_changes_between_listing_and_reading(shards):
    cfg = config(shards)
    _, paths = list_sets(cfg)
    write_tar(shards / "val.tar", [("b.png", picture(1))])
    with pytest.raises(ValueError, match=r"val\.tar: changed while it was read; a\.png is no longer in it"):
        list(tar_shards.stream_tar(*next(iter(tar_shards.members_by_tar(paths).items()))))


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("shards-{000..003}.tar", r"no such tar file \(looked for .*shards-003\.tar"),
        ("none.tar", "no such tar file"),
        ("shards-{0..999999999}.tar", r"too many tar files; expected braces as in shards-\{000\.\.099\}\.tar"),
        ("shards-{0..-9999999..3}.tar", "too many tar files"),
        ("{0..999999}" * 40 + ".tar", "too many tar files"),
        ("{1.." + "9" * 3000 + "}.tar", "too many tar files"),
        ("{x{0..99999}{0..99999},y}.tar", "braces within braces"),
        ("{a,b}" * 40 + ".tar", "no such tar file"),
        ("shards-{000..001.tar", r"expected braces as in shards-\{000\.\.099\}\.tar"),
    ],
)
def test_tars_that_are_not_there(shards, pattern, message):
    with pytest.raises(ValueError, match=message) as caught:
        list_sets(config(shards, train_list=str(shards / pattern)))
    assert str(caught.value).startswith("--train-list ")


def test_list_may_name_tars_and_pictures(shards):
    (shards / "b.png").write_bytes(picture(77))
    (shards / "b.txt").write_text(LINE)
    (shards / "list.txt").write_text("shards-{001..002}.tar\nb.png\n./shards-001.tar\n")
    train, _ = sets_of(config(shards, train_list=str(shards / "list.txt")))
    assert [os.path.basename(path) for path in train.paths] == [
        "b.png", *(f"k{n}.png" for n in (10, 11, 12, 13, 20, 21, 22, 23))
    ]  # fmt: skip
    assert [int(train[i].image[0, 0, 0]) for i in (0, 1, 8)] == [77, 10, 23]
    assert len(train.boxes[0]) == 1


def test_picture_in_both_lists_is_found_behind_a_link(shards):
    os.symlink(shards / "shards-001.tar", shards / "other.tar")
    with pytest.raises(ValueError, match=r"share 4 pictures, first .*shards-001\.tar/k10\.png"):
        list_sets(config(shards, val_list=str(shards / "other.tar")))


def test_tars_are_for_the_lists_only(shards):
    with pytest.raises(ValueError, match=r"--image-dir .*val\.tar: tar files can be named in --train-list"):
        find_images(shards / "val.tar")


def test_folder_named_like_a_tar_holds_files(tmp_path):
    (tmp_path / "set.tar").mkdir()
    (tmp_path / "set.tar" / "a.png").write_bytes(picture(5))
    cfg = DataConfig(image_dir=str(tmp_path), train_split=1, val_split=0, cache="ram")
    assert sets_of(cfg)[0][0].image[0, 0, 0] == 5


def test_cache_folder_that_cannot_be_written(shards):
    (shards / "file").write_text("not a folder")
    cfg = config(shards, cache="auto", cache_dir=str(shards / "file"))
    assert len(sets_of(cfg)[0]) == 12
    with pytest.raises(ValueError, match=r"--cache-dir .*file: cannot be written"):
        sets_of(replace(cfg, cache="disk"))
