"""Files made to break things: none runs code, hangs, or takes memory that its size does not explain; each is named."""

import os
import struct
import zlib

import cv2
import numpy as np
import pytest
from conftest import PERSON
from helpers import write_yaml

from uhd.augment import load_pipeline
from uhd.checkpoint import read_checkpoint
from uhd.cli import parse_args, parse_demo_args
from uhd.config import DataConfig, DemoConfig
from uhd.data.formats import read_annotations
from uhd.data.headers import picture_size
from uhd.data.images import decode_image, read_image, read_image_and_size
from uhd.data.labels import parse_labels, read_labels
from uhd.data.limits import LIST_BYTES, PATH_BYTES, Limits, read_list_lines
from uhd.distill.vit_files import read_vit
from uhd.export.info import describe_file
from uhd.reading import read_plain
from uhd.runtime import Detector

# --- what is no plain file ----------------------------------------------------------------------


def make_odd(path, kind):
    """Something that is no file to read, or a huge one that takes no room on the disk."""
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "link to itself":
        path.symlink_to(path)
    elif kind == "10 GB":
        with path.open("wb") as file:
            file.truncate(10**10)
    return path


READERS = {
    "picture": ("x.jpg", read_image),
    "label": ("x.txt", lambda path: _raised(read_labels(path))),
    "list": ("x.txt", lambda path: list(read_list_lines(path, "--train-list"))),
    "COCO": ("x.json", lambda path: read_annotations(str(path), "--annotations")),
    "csv": ("x.csv", lambda path: read_annotations(str(path), "--annotations")),
    "VOC": ("x.xml", lambda path: _raise_refused(read_annotations(str(path), "--annotations"))),
    "YAML": ("x.yaml", lambda path: load_pipeline(path, [0])),
    "checkpoint": ("x.pt", read_checkpoint),
    "backbone": ("x.pth", lambda path: read_vit(path, "vit_tiny")),
    "ONNX": ("x.onnx", Detector),
    "information": ("x.onnx", describe_file),
}


def _raised(labels):
    if labels.bad_lines:
        raise ValueError(f"x.txt: {labels.bad_lines[0].problem}")


def _raise_refused(found):
    raise ValueError(f"{found.refused[0].file}: {found.refused[0].problem}")


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "link to itself", "10 GB"])
@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_plain_file_is_named_at_once(reader, kind, tmp_path):
    name, read = READERS[reader]
    if kind == "10 GB" and reader in ("ONNX", "information"):
        return  # memory is what the file's size explains; onnxruntime maps it, and refuses it by its first bytes
    path = make_odd(tmp_path / name, kind)
    with pytest.raises(ValueError, match=name.replace(".", r"\.")) as caught:
        read(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a\0b", "\ud800\udfff\ud800", "x" * 5000])
def test_name_that_no_file_has(name):
    for read in (lambda: read_image(name), lambda: list(read_list_lines(name, "--train-list"))):
        with pytest.raises(ValueError, match="cannot be read"):
            read()
    with pytest.raises(ValueError, match="no such file"):
        read_checkpoint(name)


@pytest.mark.parametrize(("size", "limit", "is_read"), [(0, 0, True), (5, 5, True), (5, 4, False), (1, 0, False)])
def test_limit_of_a_file(size, limit, is_read, tmp_path):
    path = tmp_path / "x"
    path.write_bytes(bytes(size))
    if is_read:
        assert read_plain(path, limit) == bytes(size)
    else:
        with pytest.raises(OSError, match=f"{size} bytes; expected at most {limit}"):
            read_plain(path, limit)


def test_file_whose_size_is_not_told():
    """Those of /proc say that they are empty."""
    assert b"MemTotal" in read_plain("/proc/meminfo", 2**20)
    with pytest.raises(OSError, match="expected at most 10"):
        read_plain("/proc/meminfo", 10)


# --- pictures -----------------------------------------------------------------------------------


def png(width, height):
    """A PNG of some bytes that claims to be that large."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def bmp(width, height):
    return b"BM" + struct.pack("<IIIIiiHHIIIIII", 100, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0) + bytes(46)


def os2_bmp(width, height):
    return b"BM" + struct.pack("<IIIIHHHH", 100, 0, 26, 12, width, height, 1, 24) + bytes(74)


def jpeg(width, height, before=b""):
    frame = struct.pack(">HBHHB", 11, 8, height, width, 1) + b"\1\x11\0"
    return b"\xff\xd8" + before + b"\xff\xc0" + frame + b"\xff\xda\0\x08\1\1\0\0\x3f\0" + bytes(20) + b"\xff\xd9"


def webp(kind, fields):
    return b"RIFF" + struct.pack("<I", 100) + b"WEBP" + kind + struct.pack("<I", 80) + fields + bytes(60)


def canvas(width, height):
    sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return webp(b"VP8X", bytes(4) + sides)


BOMBS = {
    "PNG": (png(100_000, 100_000), (100_000, 100_000)),
    "PNG, largest": (png(2**31 - 1, 2**31 - 1), (2**31 - 1, 2**31 - 1)),
    "BMP": (bmp(100_000, 90_000), (90_000, 100_000)),
    "BMP from top to bottom": (bmp(100_000, -90_000), (90_000, 100_000)),
    "BMP of OS/2": (os2_bmp(60_000, 50_000), (50_000, 60_000)),
    "JPEG": (jpeg(65_535, 60_000), (60_000, 65_535)),
    "JPEG after junk": (jpeg(65_535, 60_000, b"\0\1\2\xff\0\xff\xff\xff"), (60_000, 65_535)),
    "JPEG after a thumbnail": (jpeg(65_535, 60_000, b"\xff\xe1\0\x20" + jpeg(8, 8)[:30]), (60_000, 65_535)),
    "JPEG after an empty segment": (jpeg(65_535, 60_000, b"\xff\xfe\0\0"), (60_000, 65_535)),
    "WebP": (webp(b"VP8 ", b"\0\0\0\x9d\1\x2a" + struct.pack("<HH", 16_383, 16_000)), (16_000, 16_383)),
    "lossless WebP": (webp(b"VP8L", b"\x2f" + struct.pack("<I", 16_382 | 15_999 << 14)), (16_000, 16_383)),
    "WebP with a canvas": (canvas(2**24, 100_000), (100_000, 2**24)),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_picture_that_claims_too_many_pixels_is_not_decoded(kind, tmp_path, monkeypatch):
    data, (height, width) = BOMBS[kind]
    path = tmp_path / "x.png"
    path.write_bytes(data)
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    for at_least in (None, (64, 64)):
        with pytest.raises(ValueError, match=rf"x\.png: {height}x{width} pixels.*--max-pixels 100000000"):
            read_image(path, at_least)


@pytest.mark.parametrize(("pixels", "is_read"), [(1, False), (99, False), (100, True), (101, True)])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".webp"])
def test_limit_of_the_pixels(pixels, is_read, suffix):
    data = cv2.imencode(suffix, np.zeros((5, 20, 3), np.uint8))[1].tobytes()
    assert picture_size(data) == (5, 20)
    if is_read:
        assert decode_image(data, "x", None, Limits(max_pixels=pixels))[1] == (5, 20)
    else:
        with pytest.raises(ValueError, match=f"x: 5x20 pixels; expected at most --max-pixels {pixels}"):
            decode_image(data, "x", None, Limits(max_pixels=pixels))


def test_opencv_has_a_limit_of_its_own():
    with pytest.raises(cv2.error, match="IMAGE_PIXELS"):
        cv2.imdecode(np.frombuffer(png(2**15, 2**14), np.uint8), cv2.IMREAD_COLOR)


NO_PICTURES = {
    "nothing": b"",
    "GIF": b"GIF89a" + struct.pack("<HH", 8, 8) + bytes(50),
    "TIFF": b"II*\0\x08\0\0\0" + bytes(50),
    "portable pixmap": b"P6 2 2 255 " + bytes(12),
    "Sun raster": b"\x59\xa6\x6a\x95" + bytes(50),
    "PNG without pixels": png(0, 10),
    "JPEG without a height": jpeg(8, 0),
    "JPEG of nothing but fill": b"\xff\xd8" + b"\xff" * 1_000_000 + b"\xff\xd9",
    "JPEG of a million segments": b"\xff\xd8" + b"\xff\xfe\0\2" * 1_000_000 + b"\xff\xd9",
    "BMP of an unknown header": b"BM" + bytes(100),
    "WebP of unknown parts": webp(b"JUNK", bytes(20)),
    "RIFF of another kind": b"RIFF\x10\0\0\0WAVE" + bytes(50),
}


@pytest.mark.parametrize("kind", NO_PICTURES)
def test_what_has_no_size_in_its_header_is_no_picture(kind, monkeypatch):
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    with pytest.raises(ValueError, match=r"x\.jpg: .*decoded; expected JPEG, PNG, BMP or WebP"):
        decode_image(NO_PICTURES[kind], "x.jpg", (64, 64))


def encoded(suffix, shape, dtype=np.uint8):
    return cv2.imencode(suffix, np.full(shape, np.iinfo(dtype).max, dtype))[1].tobytes()


PLAIN_JPEG = encoded(".jpg", (16, 24, 3))
EXIF = b"\xff\xe1\xff\xff" + b"Exif\0\0" + bytes(65_527)
ODD_PICTURES = {
    **{f"one pixel, {suffix}": (encoded(suffix, (1, 1, 3)), (1, 1)) for suffix in (".jpg", ".png", ".bmp", ".webp")},
    "grey, 16 bits": (encoded(".png", (3, 4), np.uint16), (3, 4)),
    "alpha, 16 bits": (encoded(".png", (3, 4, 4), np.uint16), (3, 4)),
    "one row": (encoded(".png", (1, 200_000, 3)), (1, 200_000)),
    "one column": (encoded(".png", (200_000, 1, 3)), (200_000, 1)),
    "several pages": (PLAIN_JPEG * 3, (16, 24)),
    "2 MB of EXIF": (
        PLAIN_JPEG[:2] + (b"\xff\xe1\xff\xff" + b"Exif\0\0" + bytes(65_527)) * 30 + PLAIN_JPEG[2:],
        (16, 24),
    ),
    "junk between segments": (PLAIN_JPEG[:20] + b"\0\1\2" + PLAIN_JPEG[20:], (16, 24)),
}


@pytest.mark.parametrize("kind", ODD_PICTURES)
def test_odd_pictures_are_read(kind, tmp_path):
    data, size = ODD_PICTURES[kind]
    (tmp_path / "x.jpg").write_bytes(data)
    image, found = read_image_and_size(tmp_path / "x.jpg", (8, 8))
    assert image.shape == (*size, 3)
    assert found == size
    assert image.min() > 250


def test_bombs_among_the_pictures_are_named_and_skipped(accepted, yolo_folder):
    data = yolo_folder([PERSON] * 10)
    (data / "003.png").write_bytes(png(100_000, 100_000))
    (data / "004.png").unlink()
    os.mkfifo(data / "004.png")
    outcome = accepted("--image-dir", "data")
    named = [line for line in outcome.warnings if "003.png" in line or "004.png" in line]
    assert len(named) == 2
    assert any("100000x100000 pixels; expected at most --max-pixels" in line for line in named)


# --- labels -------------------------------------------------------------------------------------

LINE = "0 0.5 0.5 0.2 0.1\n"
LABELS = {
    "10 million boxes": (LINE * 100_000, "--max-boxes 1000"),
    "one box too many": (LINE * 1001, "more boxes than --max-boxes 1000"),
    "one bad line too many": ("x\n" * 1001, "more boxes than --max-boxes 1000"),
    "a line without an end": ("0 " * 1_000_000, "--max-boxes 1000"),
    "NUL": ("0\0 0.5 0.5 0.2 0.1", "not an integer"),
    "too large for a float": ("0 1e400 0.5 0.2 0.1", "'1e400' is not a number"),
    "class too large": (f"{10**30} 0.5 0.5 0.2 0.1", "too large"),
    "class of 400 digits": (f"{'9' * 400} 0.5 0.5 0.2 0.1", "too large"),
    "class just too large": (f"{2**31} 0.5 0.5 0.2 0.1", "too large"),
    "digits of another script": ("٣ 0.5 0.5 0.2 0.1", "not an integer"),
}


@pytest.mark.parametrize("kind", LABELS)
def test_hostile_labels(kind, tmp_path):
    text, problem = LABELS[kind]
    (tmp_path / "x.txt").write_text(text, encoding="utf-8")
    labels = read_labels(tmp_path / "x.txt")
    assert len(labels.rows) == 0
    assert len(labels.bad_lines) == 1
    assert problem in labels.bad_lines[0].problem
    assert len(labels.bad_lines[0].problem) < 200


@pytest.mark.parametrize(("boxes", "limit", "is_read"), [(0, 1, True), (1, 1, True), (2, 1, False), (1000, 1000, True)])
def test_limit_of_the_boxes(boxes, limit, is_read):
    labels = parse_labels((LINE * boxes + "\n\n").encode(), Limits(max_boxes=limit))
    assert len(labels.rows) == (boxes if is_read else 0)
    assert [bad.number for bad in labels.bad_lines] == ([] if is_read else [limit + 1])


@pytest.mark.parametrize("line", ["0 0.5 0.5 1e-400 0.1", f"{2**31 - 1} 0.5 0.5 0.2 0.1", "0 0.5 0.5 0.2 " + "0" * 300])
def test_odd_numbers_that_are_numbers(line):
    assert len(parse_labels(line.encode()).rows) == 1


def test_too_many_boxes_are_an_error_that_names_file_and_flag(refused, yolo_folder):
    label = yolo_folder([PERSON] * 10) / "003.txt"
    label.write_text(LINE * 1001)
    refused("--image-dir", "data", mentions=(f"{label}:1001", "--max-boxes 1000"))


# --- lists --------------------------------------------------------------------------------------

LISTS = {
    "binary": (b"\xff\xfe\0\1", "not a text file"),
    "NUL in a path": (b"a\0b.jpg\n", "not a text file"),
    "a line without an end": (b"a" * 1_000_000, ":1: a line of 1,000,000 bytes"),
    "a path longer than any": (b"\n" + b"a" * (PATH_BYTES + 1), ":2: a line of 4,097 bytes"),
}


@pytest.mark.parametrize("kind", LISTS)
def test_hostile_lists(kind, tmp_path):
    data, problem = LISTS[kind]
    path = tmp_path / "list.txt"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"^--train-list ") as caught:
        list(read_list_lines(path, "--train-list"))
    assert problem in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"", []),
        (b"\n \r\n\t", []),
        (b"\xef\xbb\xbfa.jpg\r\nb.jpg\rc.jpg", [(1, "a.jpg"), (2, "b.jpg"), (3, "c.jpg")]),
        ("\n Mädchen.jpg \n".encode(), [(2, "Mädchen.jpg")]),
        (b"a" * PATH_BYTES, [(1, "a" * PATH_BYTES)]),
    ],
)
def test_lines_of_a_list(data, lines, tmp_path):
    (tmp_path / "list.txt").write_bytes(data)
    assert list(read_list_lines(tmp_path / "list.txt", "--val-list")) == lines


def test_list_just_too_large(tmp_path):
    with (tmp_path / "list.txt").open("wb") as file:
        file.truncate(LIST_BYTES + 1)
    with pytest.raises(ValueError, match=r"--val-list .*expected at most"):
        list(read_list_lines(tmp_path / "list.txt", "--val-list"))


# --- YAML ---------------------------------------------------------------------------------------

DOUBLINGS = [f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefghij", "bcdefghijk", strict=True)]
LAUGHS = "a: &a [x, x]\n" + "".join(DOUBLINGS)
ENTRIES = ", ".join(f"a{i}: 1" for i in range(101))
YAML = {
    "billion laughs": (LAUGHS + "data_augment: {Mosaic: *k}", "anchors"),
    "alias of itself": ("data_augment: &a\n  Mosaic: *a", "anchors"),
    "merged alias": ("x: &x {prob: 1}\ndata_augment: {Mosaic: {<<: *x}}", "anchors"),
    "an object of Python": ("data_augment: !!python/object/apply:os.system [ls]", "tags"),
    "a date that is none": ("data_augment: {Mosaic: !!timestamp x}", "tags"),
    "a day that is none": ("data_augment: {Mosaic: 2001-99-99}", "month"),
    "deep lists": ("data_augment: " + "[" * 30_000, "nested"),
    "deep mappings": ("data_augment: " + "{a: " * 5000, "nested"),
    "deep by indentation": ("data_augment:\n" + "".join(" " * i + "a:\n" for i in range(1, 200)), "nested"),
    "a value without an end": ("data_augment: {Mosaic: " + "1" * 1000 + "}", "1,000 characters"),
    "too large for a float": ("data_augment: {Mosaic: {prob: 0x" + "f" * 5000 + "}}", "5,002 characters"),
    "too many ops": (f"data_augment: {{{ENTRIES}}}", "101 entries"),
    "too many parameters": (f"data_augment: {{Mosaic: {{{ENTRIES}}}}}", "101 entries"),
    "no character": ('data_augment: {"\\UFFFFFFFF": 1}', "YAML"),
    "a key of several values": ("data_augment: {[a]: 1}", "YAML"),
    "65 kB": ("#" * 2**16 + "\n", "65,537 bytes"),
}


@pytest.mark.parametrize("kind", YAML)
def test_hostile_yaml(kind, tmp_path):
    text, problem = YAML[kind]
    with pytest.raises(ValueError, match=r"^--aug-config .*aug\.yaml: ") as caught:
        load_pipeline(write_yaml(tmp_path, text), [0])
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


# --- flags --------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["0", "-1", "268435457", "many", "1e9", ""])
def test_max_pixels_out_of_range(value):
    for parse, flags in ((parse_args, []), (parse_demo_args, ["--onnx", "m.onnx", "--images", "in"])):
        with pytest.raises(ValueError, match="--max-pixels"):
            parse([*flags, "--max-pixels", value])


@pytest.mark.parametrize("value", ["0", "-1", "1000001", "many", "1.5"])
def test_max_boxes_out_of_range(value):
    with pytest.raises(ValueError, match="--max-boxes"):
        parse_args(["--max-boxes", value])


def test_limits_of_the_flags():
    data = parse_args(["--max-pixels", "1", "--max-boxes", "1000000"])[0].data
    assert Limits.of(data) == Limits(1, 1_000_000)
    assert Limits() == Limits(DataConfig().max_pixels, DataConfig().max_boxes)
    assert DemoConfig.max_pixels == DataConfig.max_pixels
