import os
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uhd.config import DataConfig
from uhd.data.listing import count_shared_stems, find_images, label_candidates, list_sets, read_list, split


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return [str(folder / name) for name in names]


def test_folder_is_searched_recursively_and_sorted(tmp_path):
    touch(tmp_path, "b.jpg", "a.PNG", "sub/deep/c.JpEg", "z.webp", "m.bmp")
    touch(tmp_path, "a.txt", "notes.md", "d.gif", "._b.jpg", ".cache/e.jpg", "jpg")
    found = find_images(tmp_path)
    assert [os.path.relpath(path, tmp_path) for path in found] == [
        "a.PNG",
        "b.jpg",
        "m.bmp",
        "sub/deep/c.JpEg",
        "z.webp",
    ]
    assert all(os.path.isabs(path) for path in found)


def test_links_are_followed_once(tmp_path):
    touch(tmp_path / "data", "a.jpg")
    touch(tmp_path / "other", "b.jpg")
    os.symlink(tmp_path / "other", tmp_path / "data" / "more")
    os.symlink(tmp_path / "data", tmp_path / "data" / "loop")
    os.symlink(tmp_path / "data" / "a.jpg", tmp_path / "data" / "again.jpg")
    assert [os.path.basename(path) for path in find_images(tmp_path / "data")] == ["a.jpg", "b.jpg"]


def test_errors_say_where_they_looked(tmp_path):
    with pytest.raises(ValueError, match=r"--image-dir .*nowhere: no such folder \(looked in /.*nowhere\)"):
        find_images(tmp_path / "nowhere")
    touch(tmp_path, "readme.txt")
    with pytest.raises(ValueError, match=r"--image-dir .*: no picture \(\.bmp, \.jpeg, \.jpg, \.png, \.webp\) in /"):
        find_images(tmp_path)


def test_list_is_relative_to_itself_then_to_the_working_directory(tmp_path, monkeypatch):
    touch(tmp_path / "lists", "both.jpg", "here.jpg")
    touch(tmp_path / "work", "both.jpg", "there.jpg")
    (absolute,) = touch(tmp_path, "absolute.jpg")
    monkeypatch.chdir(tmp_path / "work")
    file = tmp_path / "lists" / "all.txt"
    file.write_bytes(f"\ufeffthere.jpg\r\n\r\n  both.jpg \r\n./here.jpg\r\n{absolute}\r\n".encode())
    expected = [absolute, *(str(tmp_path / name) for name in ("lists/both.jpg", "lists/here.jpg", "work/there.jpg"))]
    assert read_list(file, "--val-list") == expected
    assert find_images(file) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the list is empty"),
        (b"\n \n", "the list is empty"),
        (b"a.jpg\nmissing.jpg\n", r"list\.txt:2: no such picture \(looked for .*missing\.jpg"),
        (b"a.jpg\na.txt\n", r"list\.txt:2: 'a\.txt' is not a picture"),
        (b"\xff\xfe\x00", "not a text file"),
    ],
)
def test_bad_lists_are_named(tmp_path, content, message):
    touch(tmp_path, "a.jpg")
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_list(tmp_path / "list.txt", "--train-list")
    assert "--train-list" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_list_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"--train-list .*none\.txt: cannot be read"):
        read_list(tmp_path / "none.txt", "--train-list")


def test_picture_listed_twice_counts_once(tmp_path, caplog):
    touch(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "list.txt").write_text("a.jpg\nb.jpg\n./a.jpg\n")
    assert len(read_list(tmp_path / "list.txt", "--val-list")) == 2
    assert "1 pictures are listed twice" in caplog.text


def lists_config(tmp_path, train, val):
    touch(tmp_path, *{*train, *val})
    (tmp_path / "train.txt").write_text("\n".join(train))
    (tmp_path / "val.txt").write_text("\n".join(val))
    return DataConfig(train_list=str(tmp_path / "train.txt"), val_list=str(tmp_path / "val.txt"))


def test_two_lists(tmp_path):
    train, val = list_sets(lists_config(tmp_path, ["b.jpg", "a.jpg"], ["d.jpg", "c.jpg"]))
    assert [os.path.basename(path) for path in train] == ["a.jpg", "b.jpg"]
    assert [os.path.basename(path) for path in val] == ["c.jpg", "d.jpg"]


def test_lists_that_share_a_picture_are_refused(tmp_path):
    cfg = lists_config(tmp_path, ["a.jpg", "b.jpg", "c.jpg"], ["c.jpg", "./b.jpg", "d.jpg"])
    with pytest.raises(ValueError, match=r"share 2 pictures, first .*b\.jpg"):
        list_sets(cfg)


def test_shared_picture_is_found_behind_a_link(tmp_path):
    cfg = lists_config(tmp_path, ["a.jpg"], ["b.jpg"])
    os.remove(tmp_path / "b.jpg")
    os.symlink(tmp_path / "a.jpg", tmp_path / "b.jpg")
    with pytest.raises(ValueError, match="share 1 pictures"):
        list_sets(cfg)


def test_lists_come_both_or_neither(tmp_path):
    cfg = lists_config(tmp_path, ["a.jpg"], ["b.jpg"])
    for alone in (replace(cfg, train_list=None), replace(cfg, val_list=None)):
        with pytest.raises(ValueError, match="expected both or neither"):
            list_sets(alone)
    train, val = list_sets(replace(cfg, train_list=None), need_train=False)
    assert train == []
    assert [os.path.basename(path) for path in val] == ["b.jpg"]


def test_val_count_takes_the_first_sorted(tmp_path):
    touch(tmp_path, *(f"{i:03}.jpg" for i in range(40)))
    cfg = DataConfig(image_dir=str(tmp_path), val_split=0.5, train_split=0.5)
    train, val = list_sets(cfg)
    few_train, few_val = list_sets(replace(cfg, val_count=3))
    assert few_val == val[:3]
    assert few_train == train
    assert list_sets(replace(cfg, val_count=999))[1] == val


def test_split_depends_on_names_and_seed_alone(tmp_path):
    names = [f"{i}.jpg" for i in range(50)]
    touch(tmp_path / "one", *names)
    touch(tmp_path / "two", *reversed(names))
    sets = [
        [os.path.basename(path) for path in list_sets(DataConfig(image_dir=str(tmp_path / folder), seed=seed))[1]]
        for folder, seed in (("one", 1), ("two", 1), ("one", 2))
    ]
    assert sets[0] == sets[1] != sets[2]


@given(
    count=st.integers(0, 60),
    shares=st.floats(0, 1).flatmap(lambda train: st.tuples(st.just(train), st.floats(0, 1 - train))),
    seed=st.integers(0, 9),
)
def test_split_deals_out_shares_without_overlap(count, shares, seed):
    paths = [f"{i:02}" for i in range(count)]
    train, val = split(paths, *shares, seed)
    assert train == sorted(train)
    assert val == sorted(val)
    assert not set(train) & set(val)
    assert set(train) | set(val) <= set(paths)
    for chosen, share in ((train, shares[0]), (val, shares[1])):
        assert abs(len(chosen) - count * share) <= 1
        assert len(chosen) > 0 or share == 0 or count < 2


@pytest.mark.parametrize(("count", "sizes"), [(0, (0, 0)), (1, (1, 0)), (2, (1, 1)), (3, (2, 1)), (10, (8, 2))])
def test_small_sets_are_split(count, sizes):
    train, val = split([str(i) for i in range(count)], 0.8, 0.2, 0)
    assert (len(train), len(val)) == sizes


def test_validation_set_does_not_depend_on_the_training_share():
    paths = [f"{i:03}" for i in range(100)]
    assert split(paths, 0.8, 0.2, 5)[1] == split(paths, 0.1, 0.2, 5)[1]
    assert set(split(paths, 0.1, 0.2, 5)[0]) <= set(split(paths, 0.8, 0.2, 5)[0])


@pytest.mark.parametrize(
    ("image", "labels"),
    [
        ("/data/a.jpg", ["/data/a.txt"]),
        ("/data/a.b.jpg", ["/data/a.b.txt"]),
        ("/data/images/a.jpg", ["/data/images/a.txt", "/data/labels/a.txt"]),
        ("/images/x/images/t/a.png", ["/images/x/images/t/a.txt", "/images/x/labels/t/a.txt"]),
        ("/data/images.jpg", ["/data/images.txt"]),
        ("/data/my_images/a.jpg", ["/data/my_images/a.txt"]),
    ],
)
def test_label_stands_beside_or_in_the_labels_twin(image, labels):
    assert list(label_candidates(image)) == labels


@pytest.mark.parametrize(
    ("paths", "count"),
    [([], 0), (["/a.jpg", "/b.jpg"], 0), (["/a.jpg", "/a.png", "/b/a.jpg"], 1), (["/a.jpg", "/a.JPG", "/a.png"], 2)],
)
def test_shared_stems_are_counted(paths, count):
    assert count_shared_stems(paths) == count
