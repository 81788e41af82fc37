"""Annotations written by hand, in each format, for the YOLO folders that tests draw."""

import json
import os
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np

from uhd.config import DataConfig, InputConfig, LabelsConfig
from uhd.data import build_datasets
from uhd.data.listing import find_images, label_candidates

PERSON_ONLY = LabelsConfig().resolved()


def boxes_of(folder):
    """Name, (height, width) and boxes (class, x1, y1, x2, y2) in pixels of each picture of a YOLO folder."""
    for path in find_images(folder):
        height, width = cv2.imread(path).shape[:2]
        boxes = []
        for candidate in label_candidates(path):
            lines = Path(candidate).read_text().split("\n") if os.path.exists(candidate) else []
            for label, cx, cy, w, h in (map(float, line.split()) for line in lines if line):
                corners = ((cx - w / 2) * width, (cy - h / 2) * height, (cx + w / 2) * width, (cy + h / 2) * height)
                boxes.append((int(label), *corners))
        yield path.removeprefix(f"{folder}/"), (height, width), boxes


def write_coco(folder, path, names=("person",), **changes):
    """A COCO json of a YOLO folder; ids are neither in order nor from 0."""
    images, annotations = [], []
    for number, (name, (height, width), boxes) in enumerate(boxes_of(folder)):
        images.append({"id": 900 - number, "file_name": name, "width": width, "height": height})
        for label, x1, y1, x2, y2 in boxes:
            bbox = [x1, y1, x2 - x1, y2 - y1]
            annotations.append(
                {"id": len(annotations) + 7, "image_id": 900 - number, "category_id": 3 + 10 * label, "bbox": bbox}
            )
    categories = [{"id": 3 + 10 * label, "name": name} for label, name in enumerate(names)]
    content = {"images": images[::-1], "annotations": annotations, "categories": categories[::-1], **changes}
    path.write_text(json.dumps(content))
    return path


def write_voc(folder, target, names=("person",)):
    """A folder of XML files of a YOLO folder; pictures without a label file have none."""
    for name, (height, width), boxes in boxes_of(folder):
        if not boxes and not os.path.exists(label_candidates(f"{folder}/{name}")[0]):
            continue
        root = ElementTree.Element("annotation")
        ElementTree.SubElement(root, "filename").text = name.rpartition("/")[2]
        size = ElementTree.SubElement(root, "size")
        for tag, value in (("width", width), ("height", height), ("depth", 3)):
            ElementTree.SubElement(size, tag).text = str(value)
        for label, *corners in boxes:
            found = ElementTree.SubElement(root, "object")
            ElementTree.SubElement(found, "name").text = names[label]
            box = ElementTree.SubElement(found, "bndbox")
            for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True):
                ElementTree.SubElement(box, tag).text = repr(value)
        file = target / f"{name.rpartition('.')[0]}.xml"
        file.parent.mkdir(parents=True, exist_ok=True)
        ElementTree.ElementTree(root).write(file)
    return target


def write_csv(folder, path, names=None):
    """A csv of a YOLO folder, with class ids or names."""
    lines = ["img_name,label,xmin,ymin,xmax,ymax"]
    for name, _, boxes in boxes_of(folder):
        for label, *corners in boxes:
            lines.append(",".join([name, names[label] if names else str(label), *map(repr, corners)]))
    path.write_text("\n".join(lines) + "\n")
    return path


def write_turned(path, size):
    """A grey JPEG that is stored as (height, width), to be turned by a quarter (EXIF orientation 6)."""
    encoded = cv2.imencode(".jpg", np.full((*size, 3), 99, np.uint8))[1].tobytes()
    entry = bytes.fromhex("0112 0003 00000001 0006 0000")
    tiff = b"Exif\0\0MM\0*" + bytes.fromhex("00000008 0001") + entry + bytes(4)
    path.write_bytes(encoded[:2] + b"\xff\xe1" + (len(tiff) + 2).to_bytes(2) + tiff + encoded[2:])


WRITERS = {
    "coco": lambda folder, below: write_coco(folder, below / "labels.json"),
    "voc": lambda folder, below: write_voc(folder, below / "xml"),
    "csv": lambda folder, below: write_csv(folder, below / "labels.csv"),
}


def read(folder, annotations, labels=PERSON_ONLY, **flags):
    """The training set of a folder, which is all of it."""
    flags = {"train_split": 1, "val_split": 0, "cache": "ram", **flags}
    data = DataConfig(image_dir=str(folder), annotations=annotations and str(annotations), **flags)
    return build_datasets(InputConfig(img_size=(16, 16)), labels, data)[0]


def by_name(dataset):
    """Boxes and labels of each picture."""
    pairs = zip(dataset.boxes, dataset.labels, strict=True)
    return {
        os.path.basename(path): (boxes.tolist(), labels.tolist())
        for path, (boxes, labels) in zip(dataset.paths, pairs, strict=True)
    }
