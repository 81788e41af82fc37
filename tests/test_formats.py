"""Reading COCO json, VOC XML and csv: against other readers and worked by hand, and malformed in every way."""

import json
import time

import numpy as np
import pytest
from pycocotools.coco import COCO

from uhd.data.formats import read_annotations, voc
from uhd.data.formats.base import MAX_COORDINATE
from uhd.data.formats.coco import parse_coco
from uhd.data.formats.table import parse_csv
from uhd.data.limits import Limits

HEADER = "img_name,label,xmin,ymin,xmax,ymax\n"


# --- COCO -----------------------------------------------------------------------------------------------


def coco_of(**changes):
    """A json of one picture and one box, some of it changed."""
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 100, "height": 50}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]}],
        "categories": [{"id": 1, "name": "person"}],
    }
    return json.dumps({**content, **changes}).encode()


def image(**changes):
    return [{"id": 1, "file_name": "a.jpg", "width": 100, "height": 50, **changes}]


def annotation(**changes):
    return [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], **changes}]


@pytest.mark.parametrize("seed", range(4))
def test_coco_is_read_as_pycocotools_reads_it(seed, tmp_path, capsys):
    rng = np.random.default_rng(seed)
    ids = rng.permutation(1000)[:20].tolist()
    categories = rng.permutation(90)[:5].tolist()
    content = {
        "info": {"year": 2017},
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 640, "height": 480, "license": 3} for i in ids],
        "categories": [{"id": i, "name": f"name {i}", "supercategory": "x"} for i in categories],
        "annotations": [
            {
                "id": 5 + row,
                "image_id": int(rng.choice(ids[:15])),
                "category_id": int(rng.choice(categories)),
                "bbox": rng.uniform(0, 300, 4).round(2).tolist(),
                "segmentation": [[1, 2, 3, 4, 5, 6]],
                "iscrowd": int(rng.random() < 0.2),
                "area": 3.5,
            }
            for row in range(60)
        ],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    found, coco = read_annotations(str(tmp_path / "a.json"), "--from"), COCO(str(tmp_path / "a.json"))
    names = [coco.cats[i]["name"] for i in sorted(coco.getCatIds())]
    assert list(found.class_names) == names
    assert found.lists_pictures
    assert [picture.names for picture in found.pictures] == [(f"{i}.jpg",) for i in ids]
    for number, picture in zip(ids, found.pictures, strict=True):
        rows = coco.loadAnns(coco.getAnnIds(number))
        boxes = picture.boxes()
        assert [(names[box.label], box.ignored) for box in boxes] == [
            (coco.cats[row["category_id"]]["name"], bool(row["iscrowd"])) for row in rows
        ]
        for box, row in zip(boxes, rows, strict=True):
            x, y, w, h = row["bbox"]
            assert box[1:5] == pytest.approx((x, y, x + w, y + h))


@pytest.mark.parametrize(
    "content",
    [
        coco_of(annotations=[]),
        coco_of(annotations=[], images=[], categories=[]),
        b"\xef\xbb\xbf" + coco_of(),
        coco_of(images=image(width=None)),
        coco_of(images=image(file_name="./b\\a.jpg")),
        coco_of(annotations=annotation(bbox=[0.5, 0, 1e8, 0])),
        coco_of(annotations=[{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]}] * 2),
        coco_of(annotations=annotation(image_id=99)),
        coco_of(categories=[{"id": 1, "name": "person"}, {"id": 2, "name": "person"}]),
    ],
)
def test_odd_but_sound_coco(content):
    found = parse_coco(content, "x.json")
    assert not any(picture.bad_lines for picture in found.pictures)
    assert found.class_names in ((), ("person",))


@pytest.mark.parametrize("changes", [{"width": 0, "height": 0}, {"height": 0}, {"width": None}])
def test_a_size_of_0_is_no_statement(changes):
    (picture,) = parse_coco(coco_of(images=image(**changes)), "x.json").pictures
    assert picture.size is None


BAD_COCO = {
    "empty": (b"", ":1: not JSON"),
    "no text": (b"\xff\xfe\0", "not a text file"),
    "cut off": (coco_of()[:-20], ":1: not JSON"),
    "a second line": (b'{\n"images": x}', ":2: not JSON"),
    "a list": (b"[1, 2]", "a list of 2; expected an object with images"),
    "a number": (b"3", "3; expected an object with images"),
    "nested": (b"[" * 100_000, "nested too deep"),
    "nested objects": (b'{"a":' * 100_000, "nested too deep"),
    "an id that is nan": (coco_of(images=image(id=float("nan"))), "images[0].id: NaN; expected a whole number"),
    "an infinite width": (coco_of(images=image(width=float("inf"))), "images[0].width: 'inf'"),
    "a huge integer": (coco_of().replace(b'"bbox": [1', b'"bbox": [' + b"9" * 100_000), "integer string conversion"),
    "no images": (b'{"annotations": [], "categories": []}', "no images; expected a list"),
    "images are an object": (coco_of(images={}), "images is an object; expected a list"),
    "an image is a number": (coco_of(images=[3]), "images[0]: 3; expected an object"),
    "an image without id": (coco_of(images=[{"file_name": "a.jpg"}]), "images[0].id: missing"),
    "an id that is a text": (coco_of(images=image(id="1")), "images[0].id: '1'; expected a whole number"),
    "an id that is true": (coco_of(images=image(id=True)), "images[0].id: true; expected a whole number"),
    "an image without name": (coco_of(images=[{"id": 1}]), "images[0].file_name: missing"),
    "a name that is none": (coco_of(images=image(file_name="/")), "images[0].file_name: '/' is not the name"),
    "two of one id": (coco_of(images=image() + image(file_name="b.jpg")), "images[1].id: 1 stands twice"),
    "two of one name": (coco_of(images=image() + image(id=2)), "images[1].file_name: 'a.jpg' stands in images[0]"),
    "a width below 0": (coco_of(images=image(width=-1)), "images[0].width: '-1'"),
    "a width that is a fraction": (coco_of(images=image(width=1.5)), "images[0].width: '1.5'"),
    "a huge height": (coco_of(images=image(height=10**12)), "images[0].height"),
    "categories of one id": (coco_of(categories=[{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]), "categories[1].id"),
    "a category without name": (coco_of(categories=[{"id": 1}]), "categories[0].name: missing"),
    "annotations of one id": (coco_of(annotations=annotation() * 2), "annotations[1].id: 1 stands twice"),
    "an annotation of no picture": (coco_of(annotations=[{"id": 1}]), "annotations[0].image_id: missing"),
}


@pytest.mark.parametrize("kind", BAD_COCO)
def test_coco_that_is_malformed_as_a_whole(kind):
    content, problem = BAD_COCO[kind]
    with pytest.raises(ValueError, match=r"^--annotations x\.json:") as caught:
        parse_coco(content, "--annotations x.json")
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"bbox": None}, "annotations[0].bbox: missing; expected four numbers"),
        ({"bbox": [1, 2, 3]}, "annotations[0].bbox: a list of 3 is no box"),
        ({"bbox": {"x": 1}}, "annotations[0].bbox: an object"),
        ({"bbox": [1, 2, "3", 4]}, "annotations[0].bbox: a list of 4 is no box"),
        ({"bbox": [1, 2, True, 4]}, "annotations[0].bbox"),
        ({"bbox": [1, 2, [3], 4]}, "annotations[0].bbox"),
        ({"bbox": [float("nan"), 2, 3, 4]}, "annotations[0].bbox[0]: nan is no coordinate"),
        ({"bbox": [1, 2, 3, float("inf")]}, "annotations[0].bbox[3]: inf is no coordinate"),
        ({"bbox": [1, 2, -3, 4]}, "annotations[0].bbox[2]: a width of -3"),
        ({"bbox": [1, 2, 3, -0.5]}, "annotations[0].bbox[3]: a height of -0.5"),
        ({"iscrowd": float("nan")}, "annotations[0].iscrowd: 'nan'; expected 0 or 1"),
        ({"bbox": [1, 2, 1e300, 4]}, "annotations[0].bbox[2]: 1e+300 is no coordinate"),
        ({"bbox": [10**1000, 2, 3, 4]}, "annotations[0].bbox[0]: a number of 1001 digits"),
        ({"category_id": None}, "annotations[0].category_id: missing"),
        ({"category_id": 7}, "annotations[0].category_id: 7 is none of categories"),
        ({"category_id": "1"}, "annotations[0].category_id: '1'; expected a whole number"),
        ({"iscrowd": 2}, "annotations[0].iscrowd: '2'; expected 0 or 1"),
        ({"iscrowd": "yes"}, "annotations[0].iscrowd: 'yes'"),
    ],
)
def test_malformed_annotation_is_a_bad_line_of_its_picture(changes, problem):
    rows = [*annotation(**changes), {"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]}]
    (picture,) = parse_coco(coco_of(annotations=rows), "x.json").pictures
    assert len(picture.rows) == 1
    (bad,) = picture.bad_lines
    assert problem in bad.problem
    assert (bad.number, bad.place("x.json")) == (0, "x.json")


# --- VOC --------------------------------------------------------------------------------------------------

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
