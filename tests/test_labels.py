import numpy as np
import pytest

from uhd.data.labels import clip_boxes, parse_labels, read_labels


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        (b"", []),
        (b"\n  \n\t\n", []),
        (b"0 0.5 0.5 0.2 0.1", [[0, 0.5, 0.5, 0.2, 0.1]]),
        (b"0 0.5 0.5 0.2 0.1\r\n\r\n7 .1 .2 .3 .4\r\n", [[0, 0.5, 0.5, 0.2, 0.1], [7, 0.1, 0.2, 0.3, 0.4]]),
        (b"\xef\xbb\xbf2 0.5 0.5 1 1\n", [[2, 0.5, 0.5, 1, 1]]),
        (b"  3\t0.5  0.5 1e-1 1E0  ", [[3, 0.5, 0.5, 0.1, 1]]),
        (b"12345678 0.5 0.5 -0.2 9", [[12345678, 0.5, 0.5, -0.2, 9]]),
    ],
)
def test_good_lines_are_parsed(text, rows):
    labels = parse_labels(text)
    assert labels.rows.tolist() == rows
    assert labels.rows.shape == (len(rows), 5)
    assert labels.bad_lines == ()


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("0 0.5 0.5 0.2", "4 fields"),
        ("0", "1 fields"),
        ("0 0.5 0.5 0.2 0.1 0.9", "6 fields"),
        ("0 0.1 0.1 0.2 0.1 0.2 0.2 0.1 0.2", "polygon"),
        ("person 0.5 0.5 0.2 0.1", "class 'person'"),
        ("-1 0.5 0.5 0.2 0.1", "class '-1'"),
        ("1.5 0.5 0.5 0.2 0.1", "class '1.5'"),
        ("² 0.5 0.5 0.2 0.1", "class '²'"),
        ("nan 0.5 0.5 0.2 0.1", "class 'nan'"),
        ("0 nan 0.5 0.2 0.1", "'nan' is not a number"),
        ("0 0.5 inf 0.2 0.1", "'inf' is not a number"),
        ("0 0.5 0.5 0,2 0.1", "'0,2' is not a number"),
        ("0 0.5 0.5 0.2 " + "x" * 500, "xxx...' is not a number"),
    ],
)
def test_bad_line_is_named_and_the_others_stay(line, problem):
    labels = parse_labels(f"\n0 0.5 0.5 0.2 0.1\n{line}\n1 0.5 0.5 0.2 0.1\n".encode())
    assert labels.rows[:, 0].tolist() == [0, 1]
    (bad,) = labels.bad_lines
    assert bad.number == 3
    assert problem in bad.problem
    assert "\n" not in bad.problem
    assert len(bad.problem) < 120


@pytest.mark.parametrize("data", [b"\xff\xfe0\x00 \x00", bytes(range(256)), b"\x89PNG\r\n\x1a\n\xc3"])
def test_file_that_is_no_text_is_one_bad_line(data):
    labels = parse_labels(data)
    assert labels.rows.shape == (0, 5)
    assert [bad.number for bad in labels.bad_lines] == [0]
    assert "not a text file" in labels.bad_lines[0].problem


def test_missing_file_has_no_boxes_and_a_folder_is_bad(tmp_path):
    assert read_labels(tmp_path / "none.txt").rows.shape == (0, 5)
    assert read_labels(tmp_path / "none.txt").bad_lines == ()
    (bad,) = read_labels(tmp_path).bad_lines
    assert "cannot be read" in bad.problem


@pytest.mark.parametrize(
    ("box", "expected", "clipped"),
    [
        ((0.5, 0.5, 0.2, 0.4), (0.4, 0.3, 0.6, 0.7), False),
        ((0.5, 0.5, 1, 1), (0, 0, 1, 1), False),
        ((0.5, 0.5, 1.00001, 1), (0, 0, 1, 1), False),
        ((0.5, 0.5, 5, 7), (0, 0, 1, 1), True),
        ((0.95, 0.5, 0.2, 0.2), (0.85, 0.4, 1, 0.6), True),
        ((-0.05, 0.5, 0.2, 0.2), (0, 0.4, 0.05, 0.6), True),
        ((0.5, 0.5, 1e-4, 1e-4), (0.49995, 0.49995, 0.50005, 0.50005), False),
    ],
)
def test_boxes_are_clipped_as_corners(box, expected, clipped):
    boxes, kept, was_clipped = clip_boxes(np.array([box], dtype=np.float64))
    assert boxes.dtype == np.float32
    np.testing.assert_allclose(boxes[0], expected, atol=1e-6)
    assert kept.tolist() == [True]
    assert was_clipped.tolist() == [clipped]


@pytest.mark.parametrize(
    "box",
    [
        (0.5, 0.5, 0, 0.2),
        (0.5, 0.5, 0.2, 0),
        (0.5, 0.5, -0.2, 0.2),
        (1.1, 0.5, 0.2, 0.2),  # touches the picture from outside
        (2, 2, 0.1, 0.1),
        (320, 240, 64, 128),
        (0.5, 0.5, 1e-12, 1e-12),
    ],
)
def test_box_without_area_in_the_picture_goes(box):
    _, kept, clipped = clip_boxes(np.array([box, (0.5, 0.5, 0.1, 0.1)], dtype=np.float64))
    assert kept.tolist() == [False, True]
    assert not clipped.any()


def test_no_boxes_to_clip():
    boxes, kept, clipped = clip_boxes(np.empty((0, 4)))
    assert boxes.shape == (0, 4)
    assert len(kept) == len(clipped) == 0
