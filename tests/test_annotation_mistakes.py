"""What is said about mistakes in `--annotations`."""

import json

import pytest
from annotated import read, write_coco, write_csv, write_voc
from conftest import PERSON


@pytest.mark.parametrize(
    ("name", "text", "mentions"),
    [
        ("none.json", None, ("none.json", "no such file")),
        ("x.json", "{", ("x.json:1", "not JSON")),
        ("x.csv", "a,b\n", ("x.csv:1", "img_name,label")),
        ("x.xml", "<a/>", ("x.xml:1", "<annotation>")),
        ("empty", "", ("empty", "no .xml file")),
    ],
)
def test_mistakes_name_flag_file_and_place(name, text, mentions, refused, yolo_folder, tmp_path):
    yolo_folder([PERSON] * 3)
    if name == "empty":
        (tmp_path / name).mkdir()
    elif text is not None:
        (tmp_path / name).write_text(text)
    refused("--image-dir", "data", "--annotations", name, mentions=("--annotations", *mentions))


def test_malformed_boxes_stop_the_program_or_are_left_out(refused, accepted, yolo_folder, tmp_path):
    data = yolo_folder([PERSON] * 3)
    content = json.loads(write_coco(data, tmp_path / "x.json").read_text())
    content["annotations"][1]["bbox"] = [1, 2, "x", 4]
    (tmp_path / "x.json").write_text(json.dumps(content))
    file = write_voc(data, tmp_path / "xml") / "001.xml"
    file.write_text(file.read_text().replace("<object>", "<object>\n<pose/>").replace("<xmin>", "<xmin>x"))
    table = write_csv(data, tmp_path / "x.csv")
    table.write_text(table.read_text() + "001.png,0,1,2,nan,4\n")
    for name, place in (("x.json", "annotations[1].bbox"), ("xml", "001.xml:1"), ("x.csv", "x.csv:5")):
        flags = ("--image-dir", "data", "--annotations", name, "--train-split", "1", "--val-split", "0")
        refused(*flags, mentions=("--annotations", place, "--skip-bad-labels"))
        outcome = accepted(*flags, "--skip-bad-labels")
        assert any("1 bad lines dropped" in line for line in outcome.warnings)
        assert any(f"training: 3 pictures, {3 if name == 'x.csv' else 2} boxes" in line for line in outcome.out)


def test_annotations_of_other_pictures_than_those_given_are_told_of(yolo_folder, tmp_path, caplog):
    data = yolo_folder([PERSON] * 3)
    table = write_csv(data, tmp_path / "x.csv")
    table.write_text(table.read_text().replace("001.png", "other.png"))
    with caplog.at_level("WARNING", logger="uhd"):
        dataset = read(data, table)
    assert dataset.num_backgrounds == 1
    (record,) = [record for record in caplog.records if "--annotations" in record.message]
    said = ("1 of its pictures are none of those given, first other.png", "1 of those given are not in it", "001.png")
    assert all(part in record.message for part in said)


def test_picture_of_an_xml_file_that_is_left_out_is_no_background(refused, accepted, yolo_folder, tmp_path):
    data = yolo_folder([PERSON] * 4)
    (data / "003.png").rename(data / "deep.png")
    found = write_voc(data, tmp_path / "xml")
    (found / "001.xml").write_text("<annotation><object>")
    flags = ("--image-dir", "data", "--annotations", "xml", "--train-split", "1", "--val-split", "0")
    refused(*flags, mentions=("001.xml:1", "--skip-bad-labels"))
    outcome = accepted(*flags, "--skip-bad-labels")
    assert any("1 files of annotations are left out with their pictures" in line for line in outcome.warnings)
    assert any("1 pictures are not listed" in line and "001.png" in line for line in outcome.warnings)
    assert any("training: 3 pictures, 2 boxes, 1 pictures without a box" in line for line in outcome.out)


def test_demo_data_and_annotations_exclude_each_other(refused):
    refused("--demo-data", "20", "--annotations", "x.json", mentions=("--demo-data and --annotations",))
