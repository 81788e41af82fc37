"""Bad label files and pictures: what is named and refused, and what is counted and left out."""

import re

import pytest
from conftest import PERSON, SMALL_RUN

import train

TWO_NAMES = "person\nchair\n"


def counted(lines, pattern):
    """The sum of the numbers that the pattern finds at the starts of lines."""
    return sum(int(match[1]) for match in map(re.compile(pattern).match, lines) if match)


BAD_LINES = {
    "too few fields": ("0 0.5 0.5 0.1", "4 fields", "class cx cy w h"),
    "only a class": ("0", "1 fields", "class cx cy w h"),
    "a score too many": ("0 0.5 0.5 0.1 0.1 0.9", "6 fields", "class cx cy w h"),
    "a polygon": ("0 0.1 0.1 0.2 0.2 0.3 0.3", "7 fields", "polygon"),
    "words": ("0 left top wide high", "'left'", "not a number"),
    "commas": ("0,0.5,0.5,0.1,0.1", "1 fields"),
    "nan": ("0 nan 0.5 0.1 0.1", "'nan'", "not a number"),
    "inf": ("0 0.5 0.5 inf 0.1", "'inf'", "not a number"),
    "overflow": ("0 0.5 0.5 1e999 0.1", "'1e999'", "not a number"),
    "negative class": ("-1 0.5 0.5 0.1 0.1", "'-1'", "integer >= 0"),
    "fraction as class": ("0.0 0.5 0.5 0.1 0.1", "'0.0'", "integer >= 0"),
    "name as class": ("person 0.5 0.5 0.1 0.1", "'person'", "integer >= 0"),
    "underscore in a number": ("0 0.5 0.5 1_0 0.1", "'1_0'", "not a number"),
    "digits of another script": ("0 ０.5 0.5 0.1 0.1", "'０.5'", "not a number"),
    "huge word": ("0 0.5 0.5 0.1 " + "9x" * 5000, "not a number"),
}


@pytest.mark.parametrize("picture", ["000", "011"])
@pytest.mark.parametrize("kind", BAD_LINES)
def test_bad_label_line_names_file_and_line(kind, picture, refused, yolo_folder):
    line, *mentions = BAD_LINES[kind]
    label = yolo_folder() / f"{picture}.txt"
    label.write_text(f"{PERSON}\n{line}\n{PERSON}")
    error = refused("--image-dir", "data", mentions=(f"{label}:3", "--skip-bad-labels", *mentions))
    assert len(error) < 400


def test_label_file_that_is_no_text(refused, yolo_folder):
    label = yolo_folder() / "003.txt"
    label.write_bytes(b"\xff\xfe\x00\x01")
    refused("--image-dir", "data", mentions=(str(label), "class cx cy w h"))


def test_bad_label_lines_are_dropped_and_counted_on_request(accepted, yolo_folder):
    data = yolo_folder([PERSON + "".join(f"{line}\n" for line, *_ in BAD_LINES.values()), PERSON] * 5)
    outcome = accepted("--image-dir", "data", "--skip-bad-labels")
    assert counted(outcome.warnings, r"warning: \w+ labels: (\d+) bad lines dropped") == 5 * len(BAD_LINES)
    assert counted(outcome.out, r"(?:training|validation): \d+ pictures, (\d+) boxes, \d+ pictures") == 10
    assert str(data) in outcome.warnings[0]


def test_boxes_that_leave_the_picture_are_clipped_or_dropped_and_counted(accepted, yolo_folder):
    clipped = "0 1.0 0.5 0.5 0.5\n"
    dropped = "0 1.5 0.5 0.5 0.5\n0 0.5 0.5 0 0.3\n0 0.5 0.5 -0.2 0.3\n"
    touching = "0 0.5 0.5 1 1\n"
    yolo_folder([clipped + dropped + touching] * 10)
    outcome = accepted("--image-dir", "data", "--train-split", "0.5", "--val-split", "0.5")
    for title in ("training", "validation"):
        assert any(line.startswith(f"{title}: 5 pictures, 10 boxes") for line in outcome.out)
        assert any(f"{title}: 5 boxes reach out" in line for line in outcome.warnings)
        assert any(f"{title}: 15 boxes have no area" in line for line in outcome.warnings)


def test_class_without_a_box_is_warned_of_by_its_name(accepted, yolo_folder, tmp_path):
    yolo_folder([PERSON] * 10)
    (tmp_path / "names.txt").write_text(TWO_NAMES)
    outcome = accepted("--image-dir", "data", "--names", "names.txt")
    assert [("chair" in line, "person" in line) for line in outcome.warnings] == [(True, False)] * 2


def test_many_classes_without_a_box_stay_readable(run_train, yolo_folder):
    yolo_folder([PERSON] * 10)
    outcome = run_train(*SMALL_RUN, "--image-dir", "data", "--num-classes", "5000", "--inspect")
    assert outcome.code == 0
    assert len(outcome.warnings) < 50


@pytest.mark.parametrize("kind", ["empty", "text", "truncated", "folder of that name", "broken link"])
def test_unreadable_pictures_are_named_and_skipped(kind, accepted, yolo_folder):
    data = yolo_folder([PERSON] * 10)
    spoiled = [data / "002.png", data / "007.png"]
    for path in spoiled:
        content = path.read_bytes()
        path.unlink()
        if kind == "broken link":
            path.symlink_to(data / "nowhere.png")
        elif kind == "folder of that name":
            path.mkdir()
        else:
            path.write_bytes({"empty": b"", "text": b"hello", "truncated": content[:200]}[kind])
    outcome = accepted("--image-dir", "data")
    assert counted(outcome.out, r"(?:training|validation): (\d+) pictures, \d+ boxes, \d+ pictures") == 8
    if kind != "folder of that name":
        assert counted(outcome.warnings, r"warning: \w+: (\d+) pictures cannot be read and are skipped") == 2
        assert all(any(str(path) in line for line in outcome.warnings) for path in spoiled)


def test_no_readable_picture_is_an_error(refused, yolo_folder):
    data = yolo_folder([PERSON] * 4)
    for path in data.glob("*.png"):
        path.write_bytes(b"no picture")
    refused("--image-dir", "data", mentions=("none of the", "can be read", str(data)))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_very_few_pictures(count, run_train, yolo_folder):
    """One picture is trained on, and the lack of another to validate with is said."""
    yolo_folder([PERSON] * count)
    outcome = run_train(*SMALL_RUN, "--image-dir", "data", "--ckpt-out", "run")
    assert outcome.code == 0, outcome.err
    assert ["no picture to validate with" in line for line in outcome.err] == ([True] if count == 1 else [])


def test_weights_that_went_astray_are_warned_of(run_train, yolo_folder):
    yolo_folder()
    outcome = run_train(*SMALL_RUN, "--image-dir", "data", "--lr", "1e30", "--warmup-epochs", "0")
    assert outcome.code == 0
    assert "warning: epoch 1: the validation loss is not finite" in outcome.warnings


def test_pictures_without_any_box_need_anchors_but_can_be_inspected(refused, accepted, yolo_folder):
    yolo_folder(["", None] * 5)
    refused("--image-dir", "data", mentions=("--auto-anchors", "no box"))
    outcome = accepted("--image-dir", "data")
    assert counted(outcome.out, r"(?:training|validation): \d+ pictures, 0 boxes, (\d+) pictures") == 10


@pytest.mark.parametrize("workers", [0, 1])
def test_picture_that_vanishes_during_the_run_is_named_without_a_traceback(
    workers, run_train, yolo_folder, tmp_path, monkeypatch
):
    picture = yolo_folder([PERSON] * 4) / "001.png"
    open_run_dir = train.open_run_dir

    def without_picture(*args, **flags):
        picture.unlink()
        return open_run_dir(*args, **flags)

    monkeypatch.setattr(train, "open_run_dir", without_picture)
    flags = ("--cache", "none", "--num-workers", workers, "--val-split", 0, "--train-split", 1)
    outcome = run_train(*SMALL_RUN, "--image-dir", "data", "--ckpt-out", "run", *flags)
    assert outcome.code == 2
    assert len(outcome.errors) == 1, outcome.errors
    assert f"{picture}: cannot be read" in outcome.errors[0]
