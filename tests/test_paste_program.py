"""`python -m uhd.data.paste` as a program: what it leaves on disk, what it refuses, and that train.py can use it."""

import json
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
from conftest import ROOT, files_below
from helpers import train_args
from pasting import cutout_of, shape_mask, write_rgba, write_sources

import train
from uhd.data.images import read_image
from uhd.data.labels import read_labels
from uhd.data.listing import count_shared_stems, find_images
from uhd.data.paste.__main__ import main
from uhd.eval.draw import GREEN


@pytest.fixture
def paste(capfd, tmp_path, monkeypatch):
    """Runs the program in tmp_path, where write_sources has been; gives exit code and the lines of both streams."""
    monkeypatch.chdir(tmp_path)
    write_sources(tmp_path)

    def run(*flags, plain=True):
        capfd.readouterr()
        where = ("--targets", "targets", "--backgrounds", "backgrounds", "--out", "out", "--count", "6")
        code = main([str(flag) for flag in (*(where if plain else ()), *flags)])
        streams = capfd.readouterr()
        return code, streams.out.splitlines(), streams.err.splitlines()

    return run


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


# --- what is left on disk -----------------------------------------------------------------------


def test_files(paste, tmp_path):
    code, out, err = paste("--count", 9, "--preview", 4)
    assert (code, err) == (0, [])
    pictures = find_images(tmp_path / "out")
    assert [path.removeprefix(f"{tmp_path}/out/") for path in pictures] == [f"paste_0000{i}.jpg" for i in range(9)]
    assert count_shared_stems(pictures) == 0
    sizes = {(90, 120), (120, 80), (100, 100)}
    count = 0
    for picture in pictures:
        assert read_image(picture).shape[:2] in sizes
        labels = read_labels(picture.replace(".jpg", ".txt"))
        assert not labels.bad_lines
        assert set(labels.rows[:, 0]) <= {0}
        half = labels.rows[:, 3:] / 2
        assert (labels.rows[:, 1:3] - half >= -1e-6).all()
        assert (labels.rows[:, 1:3] + half <= 1 + 1e-6).all()
        count += len(labels.rows)
    assert 0 < count <= 27
    assert out[0].startswith(f"wrote 9 pictures with {count} targets to out")
    marker = json.loads((tmp_path / "out/paste.json").read_text())
    assert (marker["count"], marker["seed"], marker["targets"]) == (9, 0, "targets")


def test_the_sheet_lies_beside_the_folder_and_shows_boxes(paste, tmp_path):
    paste("--preview", 4, "--min-targets", 1)
    sheet = read_image(tmp_path / "out-preview.png")
    assert sheet.shape[0] > 256
    assert (sheet == GREEN).all(axis=2).sum() > 4 * 50
    before = (tmp_path / "out-preview.png").read_bytes()
    paste("--preview", 0, "--seed", 5)
    assert (tmp_path / "out-preview.png").read_bytes() == before
    paste("--preview", 4, "--seed", 5)
    assert (tmp_path / "out-preview.png").read_bytes() != before


def test_a_picture_in_the_place_of_the_sheet_is_not_overwritten(paste, tmp_path):
    mine = tmp_path / "out-preview.png"
    mine.write_text("mine")
    code, _, err = paste()
    assert code == 2
    assert err[0].endswith("which this program has not made; expected another folder, or --preview 0")
    assert (mine.read_text(), (tmp_path / "out").exists()) == ("mine", False)
    assert paste("--preview", 0)[0] == 0
    assert mine.read_text() == "mine"


@pytest.mark.parametrize(
    "flags", [(), ("--format", "png", "--size", "40x60"), ("--seed", 7, "--rotation", 90)], ids=str
)
def test_same_seed_same_bytes_whatever_the_number_of_workers(paste, tmp_path, flags):
    made = []
    for workers in (0, 1, 3):
        assert paste("--count", 20, "--workers", workers, *flags)[0] == 0
        made.append(contents(tmp_path / "out"))
    assert all(each == made[0] for each in made)
    paste("--count", 20, *flags, "--seed", 8)
    other = contents(tmp_path / "out")
    # A picture without targets may be the same background twice.
    assert sum(other[name] != made[0][name] for name in other if name.endswith((".jpg", ".png"))) > 12


def test_a_larger_count_begins_with_the_same_pictures(paste, tmp_path):
    paste("--count", 3)
    few = contents(tmp_path / "out")
    paste("--count", 8)
    many = contents(tmp_path / "out")
    del few["paste.json"]
    assert {name: many[name] for name in few} == few
    paste("--count", 3)
    assert len(find_images(tmp_path / "out")) == 3


@pytest.mark.parametrize(("flags", "suffix", "size"), [((), ".jpg", None), (("--format", "png"), ".png", (32, 48))])
def test_kind_and_size(paste, tmp_path, flags, suffix, size):
    paste(*flags, *(("--size", "32x48") if size else ()))
    for picture in find_images(tmp_path / "out"):
        assert picture.endswith(suffix)
        assert size is None or read_image(picture).shape[:2] == size


def test_quality(paste, tmp_path):
    sizes = []
    for quality in (10, 100):
        paste("--quality", quality)
        sizes.append(sum(path.stat().st_size for path in (tmp_path / "out").glob("*.jpg")))
    assert sizes[0] < sizes[1] / 2


def test_classes_of_folders(paste, tmp_path):
    for i, name in enumerate(("walker", "cyclist", "rider")):
        write_rgba(tmp_path / f"kinds/{name}/deep/x.png", cutout_of(shape_mask("bar"), (0, 0, 100 + i)))
    code, _, _ = paste("--targets", "kinds", "--class-per-folder", "--min-targets", 3, "--count", 12)
    assert code == 0
    assert (tmp_path / "out/names.txt").read_text() == "cyclist\nrider\nwalker\n"
    classes = [read_labels(path).rows[:, 0] for path in (tmp_path / "out").glob("paste_*.txt")]
    assert set(np.concatenate(classes)) == {0, 1, 2}


def test_class_of_all(paste, tmp_path):
    paste("--class-id", 4, "--min-targets", 1)
    for path in (tmp_path / "out").glob("paste_*.txt"):
        assert set(read_labels(path).rows[:, 0]) == {4}


def test_nothing_to_paste_makes_backgrounds(paste, tmp_path):
    assert paste("--max-targets", 0, "--format", "png")[0] == 0
    originals = [read_image(path) for path in find_images(tmp_path / "backgrounds")]
    for picture in find_images(tmp_path / "out"):
        assert any(np.array_equal(read_image(picture), original) for original in originals)
        assert (tmp_path / picture).with_suffix(".txt").read_text() == ""


def test_train_takes_the_folder(paste, tmp_path):
    assert paste("--count", 16, "--size", "48x48", "--min-targets", 1)[0] == 0
    assert train.main(train_args(tmp_path / "out", tmp_path / "run", epochs=1)) == 0
    assert (tmp_path / "run/best.pt").exists()


def test_as_a_command(tmp_path):
    write_sources(tmp_path)
    flags = ("--targets", "targets", "--backgrounds", "backgrounds", "--out", "out", "--count", "3", "--seed", "1")
    done = subprocess.run(
        [sys.executable, "-m", "uhd.data.paste", *flags],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0].startswith("wrote 3 pictures")


# --- files that cannot be used ------------------------------------------------------------------


def test_unusable_files_are_named_and_left_out(paste, tmp_path):
    (tmp_path / "targets/broken.png").write_bytes(b"no picture")
    write_rgba(tmp_path / "targets/unseen.png", np.zeros((9, 9, 4), np.uint8))
    write_rgba(tmp_path / "targets/opaque.png", np.full((9, 9, 3), 9, np.uint8))
    (tmp_path / "backgrounds/broken.jpg").write_bytes(b"")
    code, _, err = paste("--count", 30)
    assert code == 0
    assert len(find_images(tmp_path / "out")) == 30
    fragments = [
        ("--targets", "broken.png", "left out"),
        ("--targets", "opaque.png", "its box is the whole picture"),
        ("--targets", "unseen.png", "nothing to see", "left out"),
        ("--backgrounds", "broken.jpg", "another one is taken"),
    ]
    assert len(err) == len(fragments)
    for line, expected in zip(err, fragments, strict=True):
        assert line.startswith("warning: ")
        assert all(fragment in line for fragment in expected)


def test_an_opaque_target_has_the_box_of_its_picture(paste, tmp_path):
    write_rgba(tmp_path / "mixed/card.png", np.full((40, 20, 3), 9, np.uint8))
    shutil.copy(tmp_path / "targets/a.png", tmp_path / "mixed/a.png")
    flags = ("--min-scale", 0.4, "--max-scale", 0.4, "--rotation", 0, "--min-visible", 1, "--size", "100x100")
    assert paste("--targets", "mixed", *flags, "--min-targets", 1, "--count", 10)[0] == 0
    sizes = [read_labels(path).rows[:, 3:] * 100 for path in (tmp_path / "out").glob("paste_*.txt")]
    assert any(np.allclose(size, (20, 40), atol=0.01) for size in np.concatenate(sizes))


# --- mistakes -----------------------------------------------------------------------------------

MISTAKES = {
    # flags after the plain ones, fragments of the line
    "no such targets": (("--targets", "nope"), "--targets nope", "no such folder"),
    "no picture among the targets": (("--targets", "empty"), "--targets empty", "no picture"),
    "no target with alpha": (("--targets", "backgrounds"), "--targets backgrounds", "no target with alpha"),
    "only broken targets": (("--targets", "broken"), "--targets broken", "none of 1", "x.png", "decoded"),
    "only unseen targets": (("--targets", "unseen"), "--targets unseen", "x.png", "alpha"),
    "no such backgrounds": (("--backgrounds", "nope"), "--backgrounds nope", "no such folder"),
    "no picture among the backgrounds": (("--backgrounds", "empty"), "--backgrounds empty", "no picture"),
    "only broken backgrounds": (("--backgrounds", "broken"), "--backgrounds broken", "x.png", "in a row"),
    "foreign files": (("--out", "targets"), "--out targets", "inside --targets"),
    "files of the user's": (("--out", "mine"), "--out mine", "holds letter.txt", "new or empty"),
    "folder below a file": (("--out", "plain/out"), "--out plain/out", "cannot be written"),
    "a file": (("--out", "plain"), "--out plain", "cannot be written"),
    "inside the backgrounds": (("--out", "backgrounds/out"), "--out backgrounds/out", "inside --backgrounds"),
    "no folder of a class": (("--class-per-folder",), "--targets", "a.png", "--class-per-folder"),
    "two kinds of classes": (("--class-per-folder", "--class-id", 2), "--class-id 2", "--class-per-folder"),
    "no picture": (("--count", 0), "--count 0", "expected 1"),
    "seed": (("--seed", -1), "--seed -1", "expected 0"),
    "targets in the wrong order": (("--min-targets", 5), "--min-targets 5", "--max-targets 3"),
    "fewer than no targets": (("--min-targets", -1), "--min-targets -1"),
    "scales in the wrong order": (("--max-scale", 0.1), "--min-scale 0.15", "--max-scale 0.1"),
    "scale 0": (("--min-scale", 0), "--min-scale 0"),
    "scale nan": (("--min-scale", "nan"), "--min-scale nan"),
    "scale 3": (("--max-scale", 3), "--max-scale 3", "to 2"),
    "rotation": (("--rotation", 181), "--rotation 181", "180"),
    "visible share": (("--min-visible", 1.5), "--min-visible 1.5", "0 to 1"),
    "overlap": (("--max-overlap", -0.1), "--max-overlap -0.1", "0 to 1"),
    "strength": (("--color-match", 2), "--color-match 2", "0 to 1"),
    "feather": (("--feather", -1), "--feather -1"),
    "alpha": (("--alpha-threshold", 0), "--alpha-threshold 0", "above 0"),
    "quality": (("--quality", 0), "--quality 0", "1 to 100"),
    "size": (("--size", "big"), "--size", "'big'", "HxW"),
    "kind": (("--format", "gif"), "--format", "'gif'", "jpg, png"),
    "flips": (("--flips", "sideways"), "--flips", "'sideways'", "horizontal"),
    "workers": (("--workers", -1), "--workers -1"),
    "pixels": (("--max-pixels", 0), "--max-pixels 0"),
    "too many pixels": (("--max-pixels", 100), "--targets targets", "--max-pixels 100"),
    "unknown flag": (("--fast",), "--fast"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes(paste, tmp_path, case):
    (tmp_path / "empty").mkdir()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("Dear all\n")
    (tmp_path / "plain").write_text("text\n")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/x.png").write_text("text\n")
    write_rgba(tmp_path / "unseen/x.png", np.zeros((9, 9, 4), np.uint8))
    before = files_below(tmp_path)
    flags, *fragments = MISTAKES[case]
    code, _, err = paste(*flags)
    assert code == 2
    assert all(line.startswith("warning: ") for line in err[:-1])
    assert err[-1].startswith("uhd.data.paste: error: ")
    for fragment in fragments:
        assert fragment in err[-1]
    made = {path for path in files_below(tmp_path).keys() - before.keys() if path != tmp_path / "out"}
    assert made <= {tmp_path / "out/paste.json"}
    assert {path: files_below(tmp_path)[path] for path in before} == before


@pytest.mark.parametrize("flag", ["--targets", "--backgrounds", "--out"])
def test_folders_are_needed(paste, flag):
    given = {"--targets": "targets", "--backgrounds": "backgrounds", "--out": "out"}
    del given[flag]
    code, _, err = paste(*(word for pair in given.items() for word in pair), plain=False)
    assert (code, len(err)) == (2, 1)
    assert flag in err[0]


def test_a_folder_that_the_program_filled_is_replaced_but_no_other(paste, tmp_path):
    assert paste("--count", 9)[0] == 0
    assert paste("--count", 4, "--format", "png")[0] == 0
    assert len(find_images(tmp_path / "out")) == 4
    (tmp_path / "out/mine.jpg").write_bytes(b"mine")
    before = contents(tmp_path / "out")
    code, _, err = paste("--count", 2)
    assert code == 2
    assert "--out out: holds mine.jpg" in err[0]
    assert contents(tmp_path / "out") == before
    (tmp_path / "out/mine.jpg").unlink()
    (tmp_path / "out/paste.json").unlink()
    assert paste("--count", 2)[0] == 2


def test_a_mistake_leaves_the_earlier_data_set(paste, tmp_path):
    paste("--count", 3)
    before = contents(tmp_path / "out")
    assert paste("--targets", "backgrounds")[0] == 2
    assert contents(tmp_path / "out") == before


def test_a_mistake_in_a_worker_ends_the_program(paste, tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/x.png").write_text("text\n")
    code, _, err = paste("--backgrounds", "broken", "--workers", 2)
    assert (code, len(err)) == (2, 1)
    assert "in a row cannot be read" in err[0]


def test_large_pictures_and_targets(paste, tmp_path):
    """A target of many pixels on a picture of many pixels, and one of one pixel on one of one."""
    shutil.rmtree(tmp_path / "backgrounds")
    shutil.rmtree(tmp_path / "targets")
    write_rgba(tmp_path / "targets/a.png", cutout_of(cv2.resize(shape_mask("ellipse"), (2000, 3000))))
    write_rgba(tmp_path / "backgrounds/a.png", np.full((2000, 3000, 3), 9, np.uint8))
    assert paste("--count", 2, "--min-targets", 1)[0] == 0
    write_rgba(tmp_path / "targets/a.png", np.array([[[9, 9, 9, 255], [9, 9, 9, 0]]], np.uint8))
    write_rgba(tmp_path / "backgrounds/a.png", np.full((1, 1, 3), 9, np.uint8))
    assert paste("--count", 8, "--min-targets", 1)[0] == 0
