"""`python -m uhd.data.convert`: round trips through all formats, sizes, names, and what is refused."""

import json
import os
import random
from pathlib import Path

import cv2
import numpy as np
import pytest
from annotated import write_coco, write_csv, write_turned, write_voc
from conftest import PERSON, PERSON_AND_CHAIR, files_below
from pycocotools.coco import COCO

from uhd.data.convert import main
from uhd.data.formats import read_annotations
from uhd.data.images import read_image_and_size
from uhd.data.labels import read_labels
from uhd.data.shown_size import shown_size

SUFFIX = {"coco": ".json", "csv": ".csv", "voc": "", "yolo": ""}


@pytest.fixture
def convert(tmp_path, monkeypatch, capsys):
    """Runs the converter in tmp_path; gives exit code, lines of stdout and lines of stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*flags):
        capsys.readouterr()
        code = main([str(flag) for flag in flags])
        streams = capsys.readouterr()
        return code, streams.out.splitlines(), streams.err.splitlines()

    return run


def random_boxes(rng, size, count):
    """Corners in pixels, to 1/100: also tiny, huge and partly outside."""
    height, width = size
    for _ in range(count):
        x, y = (sorted(round(rng.uniform(-20, side + 20), 2) for _ in range(2)) for side in (width, height))
        yield x[0], y[0], x[1] + 0.01, y[1] + 0.01


def write_pictures(folder, sizes):
    for name, size in sizes.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(folder / name), np.zeros((*size, 3), np.uint8))


def boxes_in(path, images, kind):
    """Boxes (class name, corners) of each picture, by readers of other makers where there are such."""
    found = {}
    if kind == "coco":
        coco = COCO(str(path))
        for image in coco.loadImgs(coco.getImgIds()):
            rows = coco.loadAnns(coco.getAnnIds(image["id"]))
            found[image["file_name"]] = [
                (coco.cats[row["category_id"]]["name"], x, y, x + w, y + h)
                for row in rows
                for x, y, w, h in [row["bbox"]]
            ]
    elif kind == "yolo":
        names = (path / "classes.txt").read_text().split("\n")
        for file in sorted(path.rglob("*.txt")):
            name = f"{file.relative_to(path).with_suffix('')}.png"
            if name == "classes.png":
                continue
            height, width = cv2.imread(str(images / name)).shape[:2]
            found[name] = [
                (names[int(c)], (x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height)
                for c, x, y, w, h in (map(float, line.split()) for line in file.read_text().splitlines())
            ]
    else:
        content = read_annotations(str(path), "--from")
        for picture in content.pictures:
            found[picture.names[0]] = [(content.class_names[box.label], *box[1:5]) for box in picture.boxes()]
    return {name: boxes for name, boxes in found.items() if boxes}


@pytest.mark.parametrize("seed", range(6))
def test_round_trip_through_any_chain_is_exact_to_a_hundredth_of_a_pixel(seed, convert, tmp_path, capsys):
    rng = random.Random(seed)
    sizes = {f"{'sub/' * (i % 2)}{i}.png": (rng.randint(1, 300), rng.randint(1, 3000)) for i in range(5)}
    write_pictures(tmp_path / "images", sizes)
    names = ["person", "a dog", "chair & table <x>"]
    truth = {name: [(rng.choice(names), *box) for box in random_boxes(rng, size, 8)] for name, size in sizes.items()}
    truth["4.png"] = []
    content = {
        "images": [{"id": i, "file_name": n, "height": h, "width": w} for i, (n, (h, w)) in enumerate(sizes.items())],
        "categories": [{"id": i, "name": name} for i, name in enumerate(names)],
        "annotations": [
            {"id": 100 * i + j, "image_id": i, "category_id": names.index(c), "bbox": [x1, y1, x2 - x1, y2 - y1]}
            for i, name in enumerate(sizes)
            for j, (c, x1, y1, x2, y2) in enumerate(truth[name])
        ],
    }
    (tmp_path / "0.json").write_text(json.dumps(content))
    path, chain = tmp_path / "0.json", [rng.choice(list(SUFFIX)) for _ in range(4)] + ["coco"]
    for step, kind in enumerate(chain, start=1):
        target = tmp_path / f"{step}{SUFFIX[kind]}"
        code, _, errors = convert("--from", path, "--to", kind, "--out", target, "--image-dir", tmp_path / "images")
        assert (code, [line for line in errors if "no area inside their pictures" not in line]) == (0, []), chain
        found = boxes_in(target, tmp_path / "images", kind)
        assert found.keys() == {name for name in truth if truth[name]}, chain
        for name, boxes in found.items():
            assert [box[0] for box in boxes] == [box[0] for box in truth[name]]
            np.testing.assert_allclose([box[1:] for box in boxes], [box[1:] for box in truth[name]], atol=0.005)
        path = target
    final = json.loads(path.read_text())
    assert {image["file_name"]: (image["height"], image["width"]) for image in final["images"]} == sizes


@pytest.mark.parametrize("kind", SUFFIX)
def test_whole_pixels_stay_whole(kind, convert, tmp_path):
    write_pictures(tmp_path / "images", {"a.png": (333, 777)})
    text = "img_name,label,xmin,ymin,xmax,ymax\na.png,0,1,2,776,331\na.png,0,100,50,103,331\n"
    (tmp_path / "0.csv").write_text(text)
    flags = ("--image-dir", "images")
    assert convert("--from", "0.csv", "--to", kind, "--out", f"1{SUFFIX[kind]}", *flags)[0] == 0
    assert convert("--from", f"1{SUFFIX[kind]}", "--to", "csv", "--out", "2.csv", *flags)[0] == 0
    assert (tmp_path / "2.csv").read_text().replace("person", "0") == text


def test_yolo_beside_the_pictures_and_in_a_labels_twin(convert, yolo_folder, tmp_path):
    data = yolo_folder([PERSON, "", None, PERSON_AND_CHAIR], size=(30, 50))
    assert convert("--from", data, "--to", "coco", "--out", "a.json")[0] == 0
    (data / "images").mkdir()
    (data / "labels").mkdir()
    for path in sorted(data.glob("0*")):
        path.rename(data / ("labels" if path.suffix == ".txt" else "images") / path.name)
    assert convert("--from", data, "--to", "coco", "--out", "b.json")[0] == 0
    assert convert("--from", data / "labels", "--image-dir", data / "images", "--to", "coco", "--out", "c.json")[0] == 0
    first, second, third = (json.loads((tmp_path / f"{name}.json").read_text()) for name in "abc")
    assert first == third
    assert first["annotations"] == second["annotations"]
    assert [image["file_name"] for image in second["images"]] == [f"images/{i:03}.png" for i in range(4)]
    assert [category["name"] for category in first["categories"]] == ["class0", "class1"]
    assert convert("--from", "c.json", "--to", "yolo", "--out", "text")[0] == 0
    for name in ("000", "001", "003"):
        before, after = (read_labels(folder / f"{name}.txt").rows for folder in (data / "labels", tmp_path / "text"))
        np.testing.assert_allclose(before, after, atol=1e-6)


def test_crowds_and_difficult_objects_are_kept_where_there_is_a_mark_for_them(convert, yolo_folder, tmp_path):
    content = json.loads(write_coco(yolo_folder([PERSON, PERSON]), tmp_path / "a.json").read_text())
    content["annotations"][0]["iscrowd"] = 1
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert convert("--from", "a.json", "--to", "voc", "--out", "xml")[0] == 0
    assert "<difficult>1" in (tmp_path / "xml" / "000.xml").read_text()
    assert convert("--from", "xml", "--to", "coco", "--out", "b.json")[0] == 0
    found = json.loads((tmp_path / "b.json").read_text())
    assert sorted(row["iscrowd"] for row in found["annotations"]) == [0, 1]
    for kind in ("yolo", "csv"):
        _, _, errors = convert("--from", "xml", "--to", kind, "--out", kind)
        assert errors == [f"warning: 1 crowds and difficult objects are left out: {kind} has nothing for them"]
    assert (tmp_path / "yolo" / "000.txt").read_text() == ""


# --- names and sizes -----------------------------------------------------------------------------------


def test_names_order_the_classes_and_leave_out_others(convert, yolo_folder, tmp_path):
    write_voc(yolo_folder([PERSON, PERSON_AND_CHAIR]), tmp_path / "xml", ("person", "chair"))
    assert convert("--from", "xml", "--to", "yolo", "--out", "all")[0] == 0
    assert (tmp_path / "all" / "classes.txt").read_text() == "chair\nperson\n"
    assert (tmp_path / "all" / "000.txt").read_text()[0] == "1"
    (tmp_path / "names.txt").write_text("person\n")
    assert convert("--from", "xml", "--to", "yolo", "--out", "one", "--names", "names.txt")[0] == 0
    assert [line[0] for line in (tmp_path / "one" / "001.txt").read_text().splitlines()] == ["0"]


@pytest.mark.parametrize("name", ["classes.txt", "obj.names"])
def test_names_of_yolo_files_are_found(name, convert, yolo_folder, tmp_path):
    data = yolo_folder([PERSON_AND_CHAIR])
    (data / name).write_text("human\nstool\n")
    assert convert("--from", data, "--to", "csv", "--out", "a.csv")[0] == 0
    assert [row.split(",")[1] for row in (tmp_path / "a.csv").read_text().split()] == ["label", "human", "stool"]


def exif_jpeg(order, orientation, before=b""):
    byte_order = "big" if order == b"MM" else "little"
    numbers = [(42, 2), (8, 4), (2, 2), (0x0100, 2), (3, 2), (1, 4), (7, 2), (0, 2)]
    numbers += [(0x0112, 2), (3, 2), (1, 4), (orientation, 2), (0, 2), (0, 4)]
    tiff = b"Exif\0\0" + order + b"".join(value.to_bytes(count, byte_order) for value, count in numbers)
    data = cv2.imencode(".jpg", np.zeros((40, 60, 3), np.uint8))[1].tobytes()
    return data[:2] + before + b"\xff\xe1" + (len(tiff) + 2).to_bytes(2, "big") + tiff + data[2:]


@pytest.mark.parametrize("order", [b"MM", b"II"])
@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("before", [b"", b"\xff\xe1\0\x0aXMP ....", b"\xff\xe2\xff\xff" + bytes(65_533)])
def test_size_from_the_header_is_that_of_the_decoded_picture(order, orientation, before, tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(exif_jpeg(order, orientation, before))
    assert shown_size(str(path)) == read_image_and_size(path)[1]


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp"])
def test_size_of_every_format(suffix, tmp_path):
    path = tmp_path / f"a{suffix}"
    cv2.imwrite(str(path), np.zeros((7, 13, 3), np.uint8))
    assert shown_size(str(path)) == (7, 13)
    path.write_bytes(path.read_bytes()[:10])
    with pytest.raises(ValueError, match=f"a{suffix}"):
        shown_size(str(path))


def test_turned_picture_has_the_size_that_it_is_shown_at(convert, tmp_path):
    (tmp_path / "data").mkdir()
    write_turned(tmp_path / "data" / "a.jpg", (60, 40))
    (tmp_path / "data" / "a.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    assert convert("--from", "data", "--to", "coco", "--out", "a.json")[0] == 0
    content = json.loads((tmp_path / "a.json").read_text())
    assert (content["images"][0]["height"], content["images"][0]["width"]) == (40, 60)
    assert content["annotations"][0]["bbox"] == [15, 10, 30, 20]


# --- mistakes --------------------------------------------------------------------------------------------


@pytest.fixture
def refused(convert, tmp_path):
    def check(*flags, mentions=()):
        before = files_below(tmp_path)
        code, _, errors = convert(*flags)
        assert (code, len(errors)) == (2, 1), errors
        for fragment in mentions:
            assert fragment in errors[0]
        assert files_below(tmp_path) == before

    return check


def test_flags_that_are_missing_or_wrong(refused):
    refused(mentions=("--from: what to convert",))
    refused("--from", "a", mentions=("--to", "yolo, voc, coco or csv"))
    refused("--from", "a", "--to", "csv", mentions=("--out",))
    refused("--from", "a", "--to", "png", "--out", "b", mentions=("--to", "'png'"))
    refused("--from", "a", "--to", "csv", "--out", "b", mentions=("--from a: no such file or folder",))


@pytest.mark.parametrize("kind", SUFFIX)
def test_what_is_there_is_not_overwritten(kind, convert, refused, yolo_folder, tmp_path):
    data = yolo_folder([PERSON, PERSON])
    out = f"out{SUFFIX[kind]}"
    assert convert("--from", data, "--to", kind, "--out", out)[0] == 0
    refused("--from", data, "--to", kind, "--out", out, mentions=("--out", "is there already"))
    if kind == "voc":  # other files may be there
        assert convert("--from", data, "--to", kind, "--out", data)[0] == 0


@pytest.mark.parametrize(
    ("name", "text", "mentions"),
    [
        ("a.csv", "img_name,label,xmin,ymin,xmax,ymax\n000.png,0,1,2,3\n", ("--from a.csv:2", "5 fields")),
        ("a.csv", "img_name,label,xmin,ymin,xmax,ymax\nb.png,0,1,2,3,4\n", ("'b.png'", "--image-dir data")),
        ("a.csv", "img_name,label,xmin,ymin,xmax,ymax\n../../b.png,0,1,2,3,4\n", ("'../../b.png'",)),
        ("a.xml", "<annotation><size/></annotation>x", ("--from a.xml:1", "not well-formed")),
        ("a.json", '{"images": [], "annotations": 3, "categories": []}', ("--from a.json: annotations is 3",)),
    ],
)
def test_malformed_annotations(name, text, mentions, refused, yolo_folder, tmp_path):
    yolo_folder([PERSON])
    (tmp_path / name).write_text(text)
    refused("--from", name, "--to", "yolo", "--out", "out", "--image-dir", "data", mentions=mentions)


def test_malformed_label_file(refused, yolo_folder):
    data = yolo_folder([PERSON, PERSON + "0 1 2\n"])
    refused("--from", data, "--to", "csv", "--out", "a.csv", mentions=("001.txt:2", "3 fields"))


def test_sizes_that_nobody_tells(refused, yolo_folder, tmp_path):
    write_csv(yolo_folder([PERSON]), tmp_path / "a.csv")
    refused("--from", "a.csv", "--to", "coco", "--out", "a.json", mentions=("--image-dir", "'000.png'"))
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "000.txt").write_text(PERSON)
    refused("--from", "text", "--to", "coco", "--out", "a.json", mentions=("--from text", "--image-dir"))


def test_size_that_contradicts_the_picture(refused, yolo_folder, tmp_path):
    data = yolo_folder([PERSON])
    file = write_voc(data, tmp_path / "xml") / "000.xml"
    file.write_text(file.read_text().replace("<width>48", "<width>84"))
    flags = ("--from", "xml", "--to", "csv", "--out", "a.csv", "--image-dir", "data")
    refused(*flags, mentions=("000.xml", "84x40", "48x40"))
    image = {"id": 1, "file_name": "000.png", "width": 84, "height": 40}
    (tmp_path / "a.json").write_text(json.dumps({"images": [image], "annotations": [], "categories": []}))
    refused("--from", "a.json", *flags[2:], mentions=("--from a.json: images[0]: ", "84x40", "48x40"))


def test_pictures_that_would_share_a_file(refused, yolo_folder):
    data = yolo_folder([PERSON])
    yolo_folder([PERSON], suffix=".jpg")
    refused("--from", data, "--to", "voc", "--out", "xml", mentions=("000.jpg", "000.png", "000.xml"))


def test_name_that_leads_out_of_the_folder(refused, tmp_path):
    image = {"id": 1, "file_name": "../../a.png", "width": 4, "height": 4}
    (tmp_path / "a.json").write_text(json.dumps({"images": [image], "annotations": [], "categories": []}))
    mentions = ("--from a.json: images[0]: '../../a.png' leads out",)
    refused("--from", "a.json", "--to", "yolo", "--out", "out", mentions=mentions)


@pytest.mark.parametrize(
    ("name", "kind", "mentions"),
    [
        ("5", "csv", ("--to csv", "'5'", "class id")),
        ("traffic\nlight", "yolo", ("--from x.json", "'traffic\\nlight'")),
        ("a\u2028b", "voc", ("--from x.json", "'a\\u2028b'")),
        ("\ud800", "coco", ("--from x.json", "'\\ud800'")),
        ("\uffff", "voc", ("--from x.json", "'\\uffff'")),
    ],
)
def test_names_that_a_format_cannot_hold(name, kind, mentions, refused, yolo_folder, tmp_path):
    write_coco(yolo_folder([PERSON]), tmp_path / "x.json", (name,))
    refused("--from", "x.json", "--to", kind, "--out", f"out{SUFFIX[kind]}", mentions=mentions)


def test_boxes_without_an_area_in_their_picture_are_told_of(convert, yolo_folder, tmp_path):
    data = yolo_folder([PERSON] * 3)
    content = json.loads(write_coco(data, tmp_path / "x.json").read_text())
    content["annotations"][0]["bbox"] = [10, 10, 0, 5]
    content["annotations"][1]["bbox"] = [48, 10, 9, 5]
    (tmp_path / "x.json").write_text(json.dumps(content))
    code, _, errors = convert("--from", "x.json", "--to", "voc", "--out", "xml")
    assert code == 0
    assert any("2 boxes have no area inside their pictures" in line for line in errors)


def test_nothing_is_left_of_a_conversion_that_fails(convert, yolo_folder, tmp_path, monkeypatch):
    data = yolo_folder([PERSON] * 4)
    opened = Path.open

    def fail_at_the_third(path, *args, **kwargs):
        if path.name == "002.xml":
            raise OSError(28, os.strerror(28), str(path))
        return opened(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", fail_at_the_third)
    code, _, errors = convert("--from", data, "--to", "voc", "--out", "xml")
    assert (code, len(errors)) == (1, 1)
    assert not list((tmp_path / "xml").glob("*.xml"))
