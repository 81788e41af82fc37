"""Reading csv, and what all formats of annotations have in common: files too large, and telling them apart."""

import pytest
from test_format_coco import coco_of
from test_format_voc import VOC_2007

from uhd.data.formats import read_annotations
from uhd.data.formats.table import parse_csv

HEADER = "img_name,label,xmin,ymin,xmax,ymax\n"


# --- csv --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "names", "pictures"),
    [
        (HEADER, (), {}),
        (HEADER + "\n  \n,,,,,\n", (), {}),
        (
            HEADER + "a.jpg,1,1,2,3,4\r\nb.jpg,0,1.5,2,3,4e0\r\na.jpg,0,0,0,5,5\r\n",
            (),
            {"a.jpg": [[1, 1, 2, 3, 4], [0, 0, 0, 5, 5]], "b.jpg": [[0, 1.5, 2, 3, 4]]},
        ),
        ("\ufeff" + HEADER + '"x, y.jpg",person,1,2,3,4', ("person",), {"x, y.jpg": [[0, 1, 2, 3, 4]]}),
        (HEADER + "a,zebra,1,2,3,4\na,7,1,2,3,4\n", ("7", "zebra"), {"a": [[1, 1, 2, 3, 4], [0, 1, 2, 3, 4]]}),
        (HEADER + "./b\\a.jpg , 3 , 1 , 2 , 3 , 4 \n", (), {"b/a.jpg": [[3, 1, 2, 3, 4]]}),
    ],
)
def test_sound_csv(text, names, pictures):
    found = parse_csv(text.encode(), "x.csv")
    assert found.class_names == names
    assert {picture.names[0]: picture.rows.tolist() for picture in found.pictures} == pictures
    assert not any(picture.bad_lines for picture in found.pictures)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "x.csv:1: ''; expected the header img_name,label"),
        (b"a.jpg,0,1,2,3,4\n", "x.csv:1: 'a.jpg,0,1,2,3,4'; expected the header"),
        (b"\xff\xfe\0", "not a text file"),
        (HEADER.encode() + b"a.jpg,0,1,2,3,4\n,0,1,2,3,4\n", "x.csv:3: no name of a picture"),
        (HEADER.encode() + b'a.jpg,0,"1,2,3,4\n', "x.csv:2: unexpected end of data"),
        (HEADER.encode() + b"a" * 200_000 + b",0,1,2,3,4\n", "x.csv:2: field larger than"),
    ],
)
def test_csv_that_is_malformed_as_a_whole(data, problem):
    with pytest.raises(ValueError, match=r"x\.csv") as caught:
        parse_csv(data, "--from x.csv")
    assert problem in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("a.jpg,0,1,2,3", "5 fields; expected 6"),
        ("a.jpg,0,1,2,3,4,5", "7 fields"),
        ("a.jpg,,1,2,3,4", "no label"),
        ("a.jpg,person,1,2,3,4", "label 'person' is not an integer >= 0, as the first label is"),
        ("a.jpg,-1,1,2,3,4", "label '-1' is not an integer"),
        ("a.jpg,99999999999,1,2,3,4", "too large"),
        ("a.jpg,0,1,2,nan,4", "xmax: 'nan' is not a number"),
        ("a.jpg,0,1,,3,4", "ymin: '' is not a number"),
        ("a.jpg,0,3,2,1,4", "xmax 1 is below xmin 3"),
        ("a.jpg,0,1,4,3,2", "ymax 2 is below ymin 4"),
        ("a.jpg,0,1,2,3,1e400", "ymax: '1e400' is not a number"),
        ("a.jpg,0,1,2,3,1e10", "ymax: 1e+10 is no coordinate"),
    ],
)
def test_malformed_line_is_a_bad_line_of_its_picture(line, problem):
    found = parse_csv(f"{HEADER}b.jpg,0,1,2,3,4\n\n{line}\na.jpg,0,1,2,3,4\n".encode(), "x.csv")
    picture = next(picture for picture in found.pictures if picture.names == ("a.jpg",))
    assert len(picture.rows) == 1
    (bad,) = picture.bad_lines
    assert bad.place("x.csv") == "x.csv:4"
    assert problem in bad.problem


# --- all ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.json", "a.csv", "a.xml"])
def test_file_that_is_too_large_is_not_read(name, tmp_path):
    with (tmp_path / name).open("wb") as stream:
        stream.truncate(2**40)
    if name == "a.xml":
        (bad,) = read_annotations(str(tmp_path / name), "--from").refused
        assert "expected at most" in bad.problem
    else:
        with pytest.raises(ValueError, match=r"--from .*a\..*: cannot be read .*expected at most"):
            read_annotations(str(tmp_path / name), "--from")


@pytest.mark.parametrize(("content", "kind"), [(coco_of(), "coco"), (VOC_2007, "voc"), (HEADER.encode(), "csv")])
def test_format_is_told_by_the_content_where_the_suffix_does_not(content, kind, tmp_path):
    from uhd.data.formats import format_of

    (tmp_path / "labels").write_bytes(b"\xef\xbb\xbf\n " * (kind != "csv") + content)
    assert format_of(str(tmp_path / "labels")) == kind
    assert format_of(str(tmp_path)) == "voc"
