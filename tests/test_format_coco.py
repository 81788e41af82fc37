"""COCO json as annotations: what is read, and what is said of files that are none."""

import json

import numpy as np
import pytest
from pycocotools.coco import COCO

from uhd.data.formats import read_annotations
from uhd.data.formats.coco import parse_coco


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
