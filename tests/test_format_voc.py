"""Pascal VOC XML as annotations: what is read, and what is said of files that are none."""

import time

import numpy as np
import pytest

from uhd.data.formats import read_annotations, voc
from uhd.data.formats.base import MAX_COORDINATE
from uhd.data.limits import Limits

OBJECT = "<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"


def voc_of(inside, head="<filename>a.jpg</filename><size><width>100</width><height>50</height></size>"):
    return f"<annotation>\n{head}\n{inside}\n</annotation>".encode()


VOC_2007 = b"""<annotation>
	<folder>VOC2007</folder>
	<filename>000001.jpg</filename>
	<source><database>The VOC2007 Database</database></source>
	<size><width>353</width><height>500</height><depth>3</depth></size>
	<segmented>0</segmented>
	<object>
		<name>dog</name><pose>Left</pose><truncated>1</truncated><difficult>0</difficult>
		<bndbox><xmin>48</xmin><ymin>240</ymin><xmax>195</xmax><ymax>371</ymax></bndbox>
	</object>
	<object>
		<name>person</name><difficult>1</difficult>
		<bndbox><xmin>8</xmin><ymin>12</ymin><xmax>352</xmax><ymax>498</ymax></bndbox>
		<part><name>head</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>3</xmax><ymax>4</ymax></bndbox></part>
	</object>
</annotation>
"""


def test_voc_file_with_a_part_and_a_difficult_object():
    found = voc.parse_voc(VOC_2007, "x.xml", "Annotations/000001")
    assert found.names == ("Annotations/000001.jpg", "000001.jpg")
    assert found.size == (500, 353)
    (picture,) = voc.join_voc([found]).pictures
    assert picture.rows.tolist() == [[0, 48, 240, 195, 371], [-2, 8, 12, 352, 498]]
    rows = picture.label_rows((500, 353), Limits()).rows
    np.testing.assert_allclose(rows[0], [0, 121.5 / 353, 305.5 / 500, 147 / 353, 131 / 500])


@pytest.mark.parametrize(
    ("data", "names", "size", "boxes"),
    [
        (b"<annotation/>", ("x",), None, []),
        (voc_of(""), ("a.jpg",), (50, 100), []),
        (voc_of("", "<filename>000007</filename>"), ("x",), None, []),
        (voc_of("", "<size><width>0</width><height>0</height></size>"), ("x",), None, []),
        (voc_of("", "<size><width>100.0</width><height>50</height></size>"), ("x",), (50, 100), []),
        (voc_of(OBJECT.format("p", 1.5, -4, "3e0", " -4 ")), ("a.jpg",), (50, 100), [("p", 1.5, -4, 3, -4)]),
        (voc_of(OBJECT.format("a &amp; b", 1, 2, 3, 4)), ("a.jpg",), (50, 100), [("a & b", 1, 2, 3, 4)]),
        (voc_of(OBJECT.format("<![CDATA[p]]>", 1, 2, 3, 4)), ("a.jpg",), (50, 100), [("p", 1, 2, 3, 4)]),
        (
            b"\xff\xfe" + voc_of(OBJECT.format("männ", 1, 2, 3, 4)).decode().encode("utf-16-le"),
            ("a.jpg",),
            (50, 100),
            [("männ", 1, 2, 3, 4)],
        ),
    ],
)
def test_sound_voc(data, names, size, boxes):
    found = voc.parse_voc(data, "x.xml", "x")
    assert found.names in (names, (*names, *names))
    assert found.size == size
    assert [(name, *box[1:5]) for name, box in found.boxes] == boxes
    assert found.bad_lines == ()


BILLION_LAUGHS = b"""<?xml version="1.0"?>
<!DOCTYPE annotation [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>
<annotation><filename>&b;</filename></annotation>"""
BAD_XML = {
    "empty": (b"", 1, "no element found"),
    "no XML": (b"0 0.5 0.5 0.1 0.1", 1, "not well-formed"),
    "cut off": (VOC_2007[:300], 1 + VOC_2007[:300].count(b"\n"), "not well-formed XML"),
    "another root": (b"<html></html>", 1, "begins with <html>"),
    "billion laughs": (BILLION_LAUGHS, 2, "a DOCTYPE"),
    "an external entity": (
        b'<!DOCTYPE annotation [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>&x;</annotation>',
        1,
        "a DOCTYPE",
    ),
    "an external DTD": (b'<!DOCTYPE annotation SYSTEM "http://localhost/x.dtd"><annotation/>', 1, "a DOCTYPE"),
    "an entity that nobody declares": (b"<annotation>\n&x;</annotation>", 2, "undefined entity"),
    "deep": (b"<annotation>" + b"<a>" * 100_000, 1, "elements within each other"),
    "two roots": (b"<annotation/><annotation/>", 1, "junk after document element"),
    "an encoding that is none": (b'<?xml version="1.0" encoding="klingon"?><annotation/>', 1, "encoding"),
    "an encoding of several bytes": (b'<?xml version="1.0" encoding="shift_jis"?><annotation/>', 1, "encoding"),
    "a width that is a word": (voc_of("", "\n<size><width>x</width></size>"), 3, "width 'x'"),
    "a height below 0": (voc_of("", "<size><height>-4</height></size>"), 2, "height '-4'"),
}


@pytest.mark.parametrize("kind", BAD_XML)
def test_xml_that_is_malformed_as_a_whole_names_its_line(kind, tmp_path):
    data, line, problem = BAD_XML[kind]
    (tmp_path / "x.xml").write_bytes(data)
    started = time.monotonic()
    (refused,) = read_annotations(str(tmp_path), "--from").refused
    assert time.monotonic() - started < 2
    assert refused.place("") == f"{tmp_path}/x.xml:{line}"
    assert problem in refused.problem
    assert len(refused.problem) < 150


@pytest.mark.parametrize(
    ("inside", "problem"),
    [
        ("<object/>", "without a name"),
        ("<object><name>p</name></object>", "object 'p' without xmin"),
        ("<object><name>p</name><polygon><x1>3</x1></polygon></object>", "without xmin"),
        (OBJECT.format("p", "x", 2, 3, 4), "xmin: 'x' is not a number"),
        (OBJECT.format("p", 1, 2, "nan", 4), "xmax: 'nan' is not a number"),
        (OBJECT.format("p", 1, 2, "1_0", 4), "xmax: '1_0' is not a number"),
        (OBJECT.format("p", 1, "", 3, 4), "ymin: '' is not a number"),
        (OBJECT.format("p", 50, 2, 10, 4), "object 'p': xmax 10 is below xmin 50"),
        (OBJECT.format("p", 1, 4, 3, 2), "object 'p': ymax 2 is below ymin 4"),
        (OBJECT.format("p", 1, 2, 3, 2 * MAX_COORDINATE), "ymax: 2e+09 is no coordinate"),
        (OBJECT.format("p", 1, 2, 3, "9" * 5000), "ymax: '99999999999999999999...' is not a number"),
        (OBJECT.format("p", 1, 2, 3, 4).replace("<bndbox>", "<difficult>maybe</difficult><bndbox>"), "difficult"),
        (OBJECT.format("p", 1, 2, 3, 4).replace("</bndbox>", "<xmin>2</xmin></bndbox>"), "xmin: '1 2'"),
    ],
)
def test_malformed_object_is_a_bad_line(inside, problem):
    found = voc.parse_voc(voc_of(inside + OBJECT.format("q", 1, 2, 3, 4)), "x.xml", "x")
    assert [name for name, _ in found.boxes] == ["q"]
    (bad,) = found.bad_lines
    assert bad.place("") == "x.xml:3"
    assert problem in bad.problem


def test_folder_is_searched_recursively_and_sorted(tmp_path):
    for name in ("b.xml", "sub/a.XML", ".hidden.xml", ".git/c.xml", "d.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(voc_of("").replace(b"a.jpg", name.rpartition("/")[2].encode()))
    assert [picture.names[0] for picture in read_annotations(str(tmp_path), "--from").pictures] == [
        "b.xml",
        "sub/a.XML",
    ]
