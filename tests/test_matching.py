"""Which pictures the names in annotations stand for."""

import pytest

from uhd.data.formats.base import Picture, rows_of
from uhd.data.matching import match_pictures


def match(paths, names, roots=("/d",)):
    """The index of the name of each path that has one; a name with alternatives is a tuple."""
    pictures = [Picture(name if isinstance(name, tuple) else (name,), None, rows_of([])) for name in names]
    return match_pictures(paths, pictures, roots)


@pytest.mark.parametrize(
    ("paths", "names", "expected"),
    [
        ([], [], {}),
        (["/d/a.jpg"], [], {}),
        ([], ["a.jpg"], {}),
        (["/d/a.jpg", "/d/b.jpg"], ["b.jpg"], {"/d/b.jpg": 0}),
        (["/d/s/a.jpg"], ["a.jpg"], {"/d/s/a.jpg": 0}),
        (["/d/s/a.jpg"], ["d/s/a.jpg"], {"/d/s/a.jpg": 0}),
        (["/d/s/a.jpg"], ["t/a.jpg"], {}),
        (["/d/s/a.jpg"], ["/home/x/s/a.jpg"], {}),
        (["/d/s/a.jpg", "/d/t/a.jpg"], ["t/a.jpg", "s/a.jpg"], {"/d/s/a.jpg": 1, "/d/t/a.jpg": 0}),
        (["/d/s/a.jpg", "/d/t/a.jpg"], ["a.jpg", "s/a.jpg"], {"/d/s/a.jpg": 1, "/d/t/a.jpg": 0}),
        (["/d/a.jpg", "/d/s/a.jpg"], ["a.jpg"], {"/d/a.jpg": 0}),  # the one that has this name below the folder
        (["/d/a.jpg"], ["a"], {"/d/a.jpg": 0}),
        (["/d/a.b.jpg"], ["a", "a.b"], {"/d/a.b.jpg": 1}),
        (["/d/a.jpg", "/d/a.png"], ["a.png"], {"/d/a.png": 0}),
        (["/d/A.jpg"], ["a.jpg"], {}),
        (["/d/JPEGImages/1.jpg"], [("Annotations/1.jpg", "1.jpg")], {"/d/JPEGImages/1.jpg": 0}),
        (["/d/s/1.jpg", "/d/t/1.jpg"], [("s/1.jpg", "1.jpg")], {"/d/s/1.jpg": 0}),
        (
            ["/d/s/1.jpg", "/d/t/1.jpg"],
            [("t/1.jpg", "1.jpg"), ("s/1.jpg", "1.jpg")],
            {"/d/s/1.jpg": 1, "/d/t/1.jpg": 0},
        ),
        (["/d/tars/0.tar/sub/1.jpg"], ["1.jpg"], {"/d/tars/0.tar/sub/1.jpg": 0}),
    ],
)
def test_matching(paths, names, expected):
    assert match(paths, names) == expected


@pytest.mark.parametrize(
    ("paths", "names", "expected"),
    [
        (["/d/a.jpg"], [("x.png", "a")], {"/d/a.jpg": 0}),
        (["/d/s/a.jpg", "/d/t/a.jpg"], [("x.png", "s/a", "a")], {"/d/s/a.jpg": 0}),
        # Two files that name each other's picture: what they say of it counts more than what they are called.
        (["/d/a.jpg", "/d/b.jpg"], [("b.jpg", "a"), ("a.jpg", "b")], {"/d/a.jpg": 1, "/d/b.jpg": 0}),
        # One that has its picture takes no second one.
        (["/d/a.jpg", "/d/b.jpg"], [("b.jpg", "a")], {"/d/b.jpg": 0}),
        # Two claim one picture: neither gets it.
        (["/d/a.jpg"], [("x.png", "s/a", "a"), ("y.png", "t/a", "a")], {}),
    ],
)
def test_other_names_serve_among_what_is_left_over(paths, names, expected):
    pictures = [Picture((name,), None, rows_of([]), other_names=tuple(others)) for name, *others in names]
    assert match_pictures(paths, pictures, ("/d",)) == expected


@pytest.mark.parametrize(
    ("paths", "names", "problem"),
    [
        (["/d/s/a.jpg", "/d/t/a.jpg"], ["a.jpg"], "'a.jpg' stands for 2 pictures, first /d/s/a.jpg and /d/t/a.jpg"),
        (["/d/a.jpg", "/d/a.png"], ["a"], "'a' stands for 2 pictures"),
        (["/d/a.jpg"], ["a.jpg", "a.jpg"], "both of 'a.jpg'; expected one file a picture"),
    ],
)
def test_name_that_is_not_clear(paths, names, problem):
    with pytest.raises(ValueError, match="expected") as caught:
        match(paths, names)
    assert problem in str(caught.value)
