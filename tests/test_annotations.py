"""Training from `--annotations`: what becomes of pictures and boxes."""

import json
import os
import shutil
import tarfile

import numpy as np
import pytest
from annotated import PERSON_ONLY, WRITERS, by_name, read, write_coco, write_csv, write_turned, write_voc
from conftest import PERSON, PERSON_AND_CHAIR, SMALL_RUN
from helpers import draw_people, metric_rows, train_args

import train
from uhd.checkpoint import read_checkpoint
from uhd.config import DataConfig, InputConfig, LabelsConfig
from uhd.data import build_datasets
from uhd.data import cache as cache_module
from uhd.types import IGNORED

TIMES = ("seconds", "images_per_second")


# --- the same run from every format -----------------------------------------------------------------


def test_every_format_gives_the_run_of_the_yolo_text(tmp_path, capsys):
    data = draw_people(tmp_path / "data", 12)
    rows = {}
    for name in ("yolo", *WRITERS):
        found = None if name == "yolo" else WRITERS[name](data, tmp_path)
        flags = {"annotations": found, "epochs": 1, "anchors": "0.2,0.4"}
        assert train.main(train_args(data, tmp_path / name, **flags)) == 0, capsys.readouterr().err
        rows[name] = [{k: v for k, v in row.items() if k not in TIMES} for row in metric_rows(tmp_path / name)]
    assert rows["yolo"] == rows["coco"] == rows["voc"] == rows["csv"]
    assert rows["yolo"][0]["train/loss"] > 0


@pytest.mark.parametrize("kind", WRITERS)
def test_lists_with_annotations(kind, tmp_path):
    data = draw_people(tmp_path / "data", 6)
    found = WRITERS[kind](data, tmp_path)
    names = sorted(path.name for path in data.glob("*.png"))
    (data / "train.txt").write_text("\n".join(names[:4]))
    (data / "val.txt").write_text("\n".join(names[4:]))
    lists = {"train_list": str(data / "train.txt"), "val_list": str(data / "val.txt"), "cache": "ram"}
    sets = [
        build_datasets(InputConfig(img_size=(16, 16)), PERSON_ONLY, DataConfig(**lists, annotations=annotations))
        for annotations in (None, str(found))
    ]
    for text, annotated in zip(*sets, strict=True):
        assert by_name(text) == by_name(annotated)


@pytest.mark.parametrize("kind", WRITERS)
def test_formats_agree_on_pictures_that_are_not_square_and_in_folders(kind, yolo_folder, tmp_path):
    two = "0 0.7 0.4 0.2 0.6\n0 0.25 0.5 0.4 0.5\n"
    data = yolo_folder([PERSON, two, "", None] * 3, size=(37, 101))
    shutil.copytree(data, data / "sub" / "deep")
    for path in (data / "sub" / "deep").glob("*.txt"):
        path.write_text("0 0.2 0.3 0.1 0.2\n")
    text, annotated = read(data, None), read(data, WRITERS[kind](data, tmp_path))
    assert text.paths == annotated.paths
    np.testing.assert_allclose(text.boxes.values, annotated.boxes.values, atol=1e-6)
    assert text.labels.values.tolist() == annotated.labels.values.tolist()
    assert text.num_backgrounds == annotated.num_backgrounds


# --- classes ------------------------------------------------------------------------------------------


def classes_of(tmp_path, kind, names, labels):
    data = tmp_path / "data"
    write = {"coco": write_coco, "voc": write_voc, "csv": write_csv}[kind]
    return read(data, write(data, tmp_path / "labels", names), labels).labels.values.tolist()


@pytest.mark.parametrize(
    ("kind", "flags", "expected"),
    [
        ("coco", {"num_classes": 2}, [0, 0, 1]),  # in the order of the ids
        ("voc", {"num_classes": 2}, [1, 1, 0]),  # chair, person: in the order of the names
        ("csv", {"num_classes": 2}, [1, 1, 0]),
        ("voc", {"classes": (1,)}, [0, 0]),
        ("coco", {"names": ["chair", "person"]}, [1, 1, 0]),
        ("voc", {"names": ["person", "chair"]}, [0, 0, 1]),
        ("csv", {"names": ["person"]}, [0, 0]),
        ("coco", {"names": ["table", "chair"]}, [1]),
    ],
)
def test_classes_by_order_and_by_name(kind, flags, expected, yolo_folder, tmp_path):
    yolo_folder([PERSON, PERSON_AND_CHAIR])
    if "names" in flags:
        (tmp_path / "names.txt").write_text("\n".join(flags["names"]))
        flags = {"names": str(tmp_path / "names.txt")}
    assert classes_of(tmp_path, kind, ("person", "chair"), LabelsConfig(**flags).resolved()) == expected


def test_names_that_are_none_of_the_annotations(refused, yolo_folder, tmp_path):
    write_voc(yolo_folder([PERSON] * 4), tmp_path / "xml", ("human",))
    (tmp_path / "names.txt").write_text("person\n")
    flags = ("--image-dir", "data", "--annotations", "xml", "--names", "names.txt")
    refused(*flags, mentions=("--names names.txt", "--annotations xml", "human"))


def test_classes_that_are_none_of_the_annotations(refused, yolo_folder, tmp_path):
    write_voc(yolo_folder([PERSON] * 4), tmp_path / "xml", ("human",))
    flags = ("--image-dir", "data", "--annotations", "xml", "--classes", "5,7")
    refused(*flags, mentions=("--classes 5,7", "--annotations xml", "0 human"))


def test_class_of_another_name_is_said(accepted, yolo_folder, tmp_path):
    write_voc(yolo_folder([PERSON] * 4), tmp_path / "xml", ("human",))
    outcome = accepted("--image-dir", "data", "--annotations", "xml")
    assert any("'human'" in line and "'person'" in line and "--names" in line for line in outcome.warnings)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--classes", "1"), ("person",)),
        (("--classes", "1,0"), ("person", "chair")),
        (("--num-classes", "3"), ("chair", "person", "class2")),
        (("--names", "names.txt"), ("person", "table")),
    ],
)
def test_checkpoint_has_the_names_of_the_annotations(flags, expected, run_train, yolo_folder, tmp_path):
    write_voc(yolo_folder([PERSON_AND_CHAIR] * 6), tmp_path / "xml", ("person", "chair"))
    (tmp_path / "names.txt").write_text("person\ntable\n")
    run = (*SMALL_RUN, "--image-dir", "data", "--annotations", "xml", "--num-anchors", "1", *flags)
    outcome = run_train(*run, "--ckpt-out", "run", "--coco-per-class")
    assert (outcome.code, outcome.errors) == (0, [])
    assert read_checkpoint(tmp_path / "run/best.pt").config.labels.class_names == expected
    assert f"val/coco/AP/{expected[0]}" in (tmp_path / "run/metrics.jsonl").read_text()
    assert run_train("--resume", "run", "--epochs", "2", "--num-workers", "0", "--cache", "ram").code == 0
    assert read_checkpoint(tmp_path / "run/last.pt").config.labels.class_names == expected


def test_checkpoint_keeps_its_names_beside_annotations_of_others(run_train, yolo_folder, tmp_path):
    write_voc(yolo_folder([PERSON] * 6), tmp_path / "xml", ("human",))
    flags = (*SMALL_RUN, "--image-dir", "data", "--num-anchors", "1")
    assert run_train(*flags, "--ckpt-out", "first").code == 0
    outcome = run_train(*flags, "--annotations", "xml", "--ckpt", "first/best.pt", "--ckpt-out", "second")
    assert (outcome.code, outcome.errors) == (0, [])
    assert any("'human'" in line for line in outcome.warnings)
    assert read_checkpoint(tmp_path / "second/best.pt").config.labels.class_names == ("person",)


def test_teacher_and_student_know_each_others_classes_by_the_names_of_annotations(run_train, yolo_folder, tmp_path):
    """The student has them in another order; without the names the teacher's classes would be unknown to it."""
    write_voc(yolo_folder([PERSON_AND_CHAIR] * 6), tmp_path / "xml", ("person", "chair"))
    flags = (*SMALL_RUN, "--image-dir", "data", "--annotations", "xml", "--num-anchors", "1")
    assert run_train(*flags, "--classes", "0,1", "--ckpt-out", "teacher").code == 0
    lessons = ("--teacher-ckpt", "teacher/best.pt", "--distill-kl", "1")
    outcome = run_train(*flags, "--classes", "1,0", *lessons, "--ckpt-out", "student")
    assert (outcome.code, outcome.errors) == (0, [])
    assert read_checkpoint(tmp_path / "student/best.pt").config.labels.class_names == ("person", "chair")
    assert read_checkpoint(tmp_path / "teacher/best.pt").config.labels.class_names == ("chair", "person")


def test_checkpoint_keeps_its_annotations_unless_pictures_are_typed(run_train, yolo_folder, tmp_path):
    write_csv(yolo_folder([PERSON] * 6), tmp_path / "x.csv")
    flags = ("--image-dir", "data", "--annotations", "x.csv", "--num-anchors", "1")
    assert run_train(*SMALL_RUN, *flags, "--ckpt-out", "run").code == 0
    for path in (tmp_path / "data").glob("*.txt"):
        path.write_text("0 1 2\n")
    validate = ("--ckpt", "run/best.pt", "--val-only", "--cache", "ram", "--num-workers", "0", "--device", "cpu")
    assert run_train(*validate).code == 0
    outcome = run_train(*validate, "--image-dir", "data")
    assert outcome.code == 2
    assert ".txt:1" in outcome.errors[0]
    assert run_train(*validate, "--image-dir", "data", "--annotations", "x.csv").code == 0


# --- what is neither truth nor background -----------------------------------------------------------


def test_crowds_and_difficult_objects_are_ignored_regions_and_no_background(yolo_folder, tmp_path, caplog):
    data = yolo_folder([PERSON, PERSON_AND_CHAIR, ""])
    content = json.loads(write_coco(data, tmp_path / "x.json", ("person", "chair")).read_text())
    content["annotations"][0]["iscrowd"] = 1
    content["annotations"][2]["iscrowd"] = 1  # of another class than the one that is asked for
    (tmp_path / "x.json").write_text(json.dumps(content))
    text = write_voc(data, tmp_path / "xml", ("person", "chair"))
    first = text / "000.xml"
    first.write_text(first.read_text().replace("<name>person</name>", "<name>person</name><difficult>1</difficult>"))
    (tmp_path / "names.txt").write_text("person")
    labels = LabelsConfig(names=str(tmp_path / "names.txt")).resolved()
    for found in (tmp_path / "x.json", text):
        dataset = read(data, found, labels)
        assert dataset.labels.values.tolist() == [IGNORED, 0]
        assert (dataset.num_boxes, dataset.num_backgrounds, dataset.problems.ignored) == (1, 1, 1)
        assert len(dataset.truths().values) == len(dataset.taught_boxes().values) == 1


def test_run_with_crowds_learns_and_is_inspected(run_train, yolo_folder, tmp_path):
    data = yolo_folder([PERSON, PERSON] * 6)
    content = json.loads(write_coco(data, tmp_path / "x.json").read_text())
    for annotation in content["annotations"][::2]:
        annotation["iscrowd"] = 1
    (tmp_path / "x.json").write_text(json.dumps(content))
    flags = ("--image-dir", "data", "--annotations", "x.json", "--num-anchors", "1")
    assert run_train(*SMALL_RUN, *flags, "--ckpt-out", "run").code == 0
    outcome = run_train(*SMALL_RUN, *flags, "--inspect")
    assert outcome.code == 0
    assert "regions (crowds, difficult objects) are neither taught nor background" in "\n".join(outcome.out)


# --- pictures and names -------------------------------------------------------------------------------


def test_pictures_that_a_json_does_not_list_are_left_out(accepted, yolo_folder, tmp_path):
    data = yolo_folder([PERSON] * 6)
    content = json.loads(write_coco(data, tmp_path / "x.json").read_text())
    content["images"] = [image for image in content["images"] if image["file_name"] != "003.png"]
    (tmp_path / "x.json").write_text(json.dumps(content))
    outcome = accepted("--image-dir", "data", "--annotations", "x.json", "--train-split", "1", "--val-split", "0")
    assert any("training: 5 pictures, 5 boxes, 0 pictures without a box" in line for line in outcome.out)
    assert any("1 pictures are not listed" in line and "003.png" in line for line in outcome.warnings)
    assert any("1 annotations are of pictures that it does not list" in line for line in outcome.warnings)


@pytest.mark.parametrize("kind", ["voc", "csv"])
def test_pictures_without_an_entry_are_background(kind, yolo_folder, tmp_path):
    data = yolo_folder([PERSON, None, PERSON])
    dataset = read(data, WRITERS[kind](data, tmp_path))
    assert (len(dataset), dataset.num_boxes, dataset.num_backgrounds) == (3, 2, 1)


@pytest.mark.parametrize("kind", WRITERS)
def test_annotations_of_other_pictures_are_an_error(kind, refused, yolo_folder, tmp_path):
    WRITERS[kind](yolo_folder([PERSON] * 3), tmp_path)
    other = yolo_folder([PERSON] * 3, name="other")
    for path in sorted(other.glob("*.png")):
        path.rename(other / f"x{path.name}")
    name = {"coco": "labels.json", "voc": "xml", "csv": "labels.csv"}[kind]
    refused("--image-dir", "other", "--annotations", name, mentions=("none of its 3 pictures", ".png"))


def test_size_that_is_not_the_pictures_is_named(refused, accepted, yolo_folder, tmp_path):
    data = yolo_folder([PERSON] * 4)
    file = write_voc(data, tmp_path / "xml") / "002.xml"
    file.write_text(file.read_text().replace("<width>48", "<width>96"))
    flags = ("--image-dir", "data", "--annotations", "xml")
    refused(*flags, mentions=("--annotations", "002.xml: the size", "96x40", "48x40", "--skip-bad-labels"))
    assert any("1 bad lines dropped" in line for line in accepted(*flags, "--skip-bad-labels").warnings)
    content = json.loads(write_coco(data, tmp_path / "x.json").read_text())
    content["images"][1]["height"] = 41
    (tmp_path / "x.json").write_text(json.dumps(content))
    refused("--image-dir", "data", "--annotations", "x.json", mentions=("x.json: images[1]: the size", "48x41"))


def test_boxes_out_of_the_picture_are_clipped_and_dropped_as_those_of_text_are(accepted, yolo_folder, tmp_path):
    yolo_folder(["0 1.0 0.5 0.5 0.5\n0 1.5 0.5 0.5 0.5\n0 0.5 0.5 0 0.3\n"] * 4)
    write_csv(tmp_path / "data", tmp_path / "x.csv")
    outcome = accepted("--image-dir", "data", "--annotations", "x.csv", "--train-split", "1", "--val-split", "0")
    assert any("training: 4 pictures, 4 boxes" in line for line in outcome.out)
    assert any("training: 4 boxes reach out" in line for line in outcome.warnings)
    assert any("training: 8 boxes have no area" in line and "x.csv" in line for line in outcome.warnings)


def test_too_many_boxes_of_a_picture(refused, yolo_folder, tmp_path):
    write_csv(yolo_folder([PERSON, PERSON * 5, PERSON]), tmp_path / "x.csv")
    flags = ("--image-dir", "data", "--annotations", "x.csv", "--max-boxes", "4")
    refused(*flags, mentions=("x.csv", "001.png", "--max-boxes 4"))


def test_boxes_are_those_of_the_picture_as_its_exif_orientation_shows_it(tmp_path):
    (tmp_path / "data").mkdir()
    write_turned(tmp_path / "data" / "turned.jpg", (60, 40))
    (tmp_path / "x.csv").write_text("img_name,label,xmin,ymin,xmax,ymax\nturned.jpg,0,10,0,20,30\n")
    dataset = read(tmp_path / "data", tmp_path / "x.csv")
    assert dataset.sizes.tolist() == [[40, 60]]
    np.testing.assert_allclose(dataset.boxes[0][0], [10 / 60, 0, 20 / 60, 30 / 40], atol=1e-6)


def test_xml_of_pictures_that_were_renamed_is_found_by_its_own_name(yolo_folder, tmp_path, caplog):
    data = yolo_folder([PERSON] * 4)
    found = write_voc(data, tmp_path / "xml")
    for index, stale in enumerate(("000.jpg", "001.PNG", "IMG_7.jpg", "003.png")):
        file = found / f"{index:03}.xml"
        file.write_text(file.read_text().replace(f"{index:03}.png", stale))
    with caplog.at_level("WARNING", logger="uhd"):
        dataset = read(data, found)
    assert [len(boxes) for boxes in dataset.boxes] == [1, 1, 1, 1]
    assert not [record for record in caplog.records if "--annotations" in record.message]


def test_pictures_in_tar_shards(yolo_folder, tmp_path):
    data = yolo_folder([PERSON, PERSON, PERSON])
    for name, members in (("train.tar", ("000", "001")), ("val.tar", ("002",))):
        with tarfile.open(tmp_path / name, "w") as archive:
            for member in members:
                archive.add(data / f"{member}.png", f"{member}.png")
    lists = {"train_list": str(tmp_path / "train.tar"), "val_list": str(tmp_path / "val.tar")}
    for kind, write in WRITERS.items():
        (tmp_path / kind).mkdir()
        found = DataConfig(**lists, cache="ram", annotations=str(write(data, tmp_path / kind)))
        sets = build_datasets(InputConfig(img_size=(16, 16)), PERSON_ONLY, found)
        assert [dataset.num_boxes for dataset in sets] == [2, 1]


# --- the cache ------------------------------------------------------------------------------------------


@pytest.fixture
def opened(monkeypatch):
    """Names of the pictures that are decoded, and of the annotations that are read."""
    names = []

    def record(module, name):
        function = getattr(module, name)

        def recorded(path, *args):
            names.append(os.path.basename(path))
            return function(path, *args)

        monkeypatch.setattr(module, name, recorded)

    from uhd.data import annotations

    record(cache_module, "load_resized")
    record(annotations, "read_annotations")
    return names


@pytest.mark.parametrize("kind", WRITERS)
def test_warm_start_reads_neither_pictures_nor_annotations_and_a_change_the_annotations_alone(
    kind, opened, yolo_folder, tmp_path
):
    data = yolo_folder([PERSON, "", PERSON])
    found = WRITERS[kind](data, tmp_path)
    flags = {"cache": "disk", "cache_dir": str(tmp_path / "cache"), "train_split": 0.5, "val_split": 0.5}
    cold = by_name(read(data, found, **flags))
    assert len(opened) == 4  # three pictures, and once for both sets the annotations
    opened.clear()
    assert by_name(read(data, found, **flags)) == cold
    assert opened == []
    for path in data.glob("*.txt"):
        path.write_text("0 0.5 0.5 0.25 0.5\n")
    WRITERS[kind](data, tmp_path)
    changed = by_name(read(data, found, **flags))
    assert opened == [found.name]
    assert changed != cold
    assert changed == by_name(read(data, found, **{**flags, "cache": "ram"}))


def test_text_and_annotations_have_caches_of_their_own(opened, yolo_folder, tmp_path):
    data = yolo_folder([PERSON, PERSON])
    found = write_csv(data, tmp_path / "x.csv")
    flags = {"cache": "disk", "cache_dir": str(tmp_path / "cache")}
    for annotations in (None, found):
        read(data, annotations, **flags)
    opened.clear()
    for annotations in (None, found):
        read(data, annotations, **flags)
    assert opened == []


def test_picture_that_is_listed_later_is_read_then(opened, yolo_folder, tmp_path):
    data = yolo_folder([PERSON, PERSON, PERSON])
    whole = write_coco(data, tmp_path / "x.json").read_text()
    content = json.loads(whole)
    content["images"] = [image for image in content["images"] if image["file_name"] != "001.png"]
    flags = {"cache": "disk", "cache_dir": str(tmp_path / "cache")}
    for text, count, expected in ((json.dumps(content), 2, 3), (whole, 3, 2), (json.dumps(content), 2, 1)):
        (tmp_path / "x.json").write_text(text)
        opened.clear()
        assert len(read(data, tmp_path / "x.json", **flags)) == count
        assert len(opened) == expected  # the json, and the pictures that were not known
