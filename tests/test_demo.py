"""demo_uhd.py on pictures and videos: what it finds, and what it leaves on disk."""

import json
import os
import resource
import signal

import cv2
import numpy as np
import pytest
from conftest import files_below
from tiny_onnx import SIDE, write_halves, write_raw, write_rows

import demo_uhd
from uhd.data.images import read_image
from uhd.demo.sources import open_source
from uhd.runtime import Detector, Overrides

DARK, BRIGHT = 20, (60, 120, 230)
"""BGR: the detector of the tests looks at red alone, so that a picture whose channels are swapped is dark."""


def half_bright(height=40, width=60, side="left"):
    """A dark picture, BGR, whose left or right half is bright."""
    image = np.full((height, width, 3), DARK, np.uint8)
    part = slice(0, width // 2) if side == "left" else slice(width // 2, None)
    image[:, part] = BRIGHT
    return image


def write_pictures(folder, names=("b.png", "a.jpg", "sub/c.BMP", "sub/d.webp", "sub/deep/e.JPEG")):
    """Pictures of different sizes, bright on one side; their names relative to the folder in the demo's order."""
    for i, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), half_bright(20 + 30 * i, 90 - 15 * i, "right" if i % 2 else "left"))
    return sorted(names)


def write_video(path, count=6, size=(48, 64), fps=12.5):
    """A video whose bright half changes from picture to picture."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), fps, size[::-1])
    for i in range(count):
        writer.write(half_bright(*size, "right" if i % 2 else "left"))
    writer.release()
    return path


def read_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def count_pictures(path):
    """How many pictures a video gives, its rate, and the (height, width) of the last one."""
    capture = cv2.VideoCapture(str(path))
    count, size = 0, None
    while (read := capture.read())[0]:
        count, size = count + 1, read[1].shape[:2]
    return count, capture.get(cv2.CAP_PROP_FPS), size


@pytest.fixture
def demo(capfd, tmp_path, monkeypatch):
    """Runs the demo without a window, working directory tmp_path; gives exit code and the lines of both streams."""
    monkeypatch.chdir(tmp_path)

    def run(*flags, window="--no-window"):
        capfd.readouterr()
        code = demo_uhd.main([str(flag) for flag in flags] + ([window] if window else []))
        streams = capfd.readouterr()
        return code, streams.out.splitlines(), streams.err.splitlines()

    return run


@pytest.fixture
def model(tmp_path):
    """A file that finds one of two classes in each half."""
    return write_halves(tmp_path / "halves.onnx", (0, 1), class_names=("left", "right"), best_f1_threshold=0.5)


# What is found


def test_lines_hold_what_the_detector_finds(demo, model, tmp_path):
    names = write_pictures(tmp_path / "in")
    assert demo("--onnx", model, "--images", "in", "--save", "out.jsonl")[0] == 0
    lines = read_lines(tmp_path / "out.jsonl")
    detector = Detector(model)
    assert [line["source"] for line in lines] == names
    assert [line["frame"] for line in lines] == [1, 2, 3, 4, 5]
    for line in lines:
        image = read_image(tmp_path / "in" / line["source"])
        found = detector(np.ascontiguousarray(image[..., ::-1]))
        assert (line["height"], line["width"]) == image.shape[:2]
        assert line["ms"] > 0
        assert len(line["detections"]) == len(found) == 1
        entry = line["detections"][0]
        assert entry["label"] == found.labels[0]
        assert entry["name"] == ("left", "right")[entry["label"]]
        assert entry["score"] == pytest.approx(found.scores[0], abs=1e-5)
        assert entry["box"] == pytest.approx(found.boxes[0].tolist(), abs=0.0051)


def test_a_picture_lies_as_its_exif_orientation_says(demo, model, tmp_path):
    """Stored with the bright half at the bottom, to be turned by 90 degrees clockwise: the bright half is left."""
    encoded = cv2.imencode(".jpg", cv2.rotate(half_bright(), cv2.ROTATE_90_COUNTERCLOCKWISE))[1].tobytes()
    entry = bytes.fromhex("0112 0003 00000001 0006 0000")  # orientation 6, as a big-endian TIFF entry
    tiff = b"Exif\0\0MM\0*" + bytes.fromhex("00000008 0001") + entry + bytes(4)
    (tmp_path / "turned.jpg").write_bytes(encoded[:2] + b"\xff\xe1" + (len(tiff) + 2).to_bytes(2) + tiff + encoded[2:])
    assert demo("--onnx", model, "--images", "turned.jpg", "--save", "out.jsonl")[0] == 0
    (line,) = read_lines(tmp_path / "out.jsonl")
    assert (line["height"], line["width"]) == (40, 60)
    assert [(entry["name"], entry["box"]) for entry in line["detections"]] == [("left", [0, 0, 30, 40])]
    assert demo("--onnx", model, "--images", "turned.jpg", "--save", "drawn.png")[0] == 0
    assert cv2.imread(str(tmp_path / "drawn.png")).shape[:2] == (200, 300)  # five times: 60 pixels are few for text


THRESHOLDS = {
    # what the file says, what is typed, scores that are shown of 0.9 and 0.08 and 0.4
    "the file's best F1": ({"best_f1_threshold": 0.05}, (), 3),
    "a higher best F1": ({"best_f1_threshold": 0.5}, (), 1),
    "a file without one": ({"best_f1_threshold": None}, (), 2),
    "a file that says nothing": ({}, (), 2),
    "typed": ({"best_f1_threshold": 0.05}, ("--conf-thresh", 0.95), 0),
    "typed, the lowest": ({"best_f1_threshold": 0.5}, ("--conf-thresh", 0), 3),
}


@pytest.mark.parametrize(("says", "flags", "count"), THRESHOLDS.values(), ids=THRESHOLDS)
def test_threshold(demo, tmp_path, says, flags, count):
    shown = []
    for level in (0.9, 0.08, 0.4):
        image = np.zeros((SIDE, SIDE, 3), np.uint8)
        image[:, : SIDE // 2, 2] = round(level * 255)
        assert cv2.imwrite(str(tmp_path / "a.png"), image)
        write_halves(tmp_path / "m.onnx", **says)
        assert demo("--onnx", "m.onnx", "--images", "a.png", "--save", "out.jsonl", *flags)[0] == 0
        entries = read_lines(tmp_path / "out.jsonl")[0]["detections"]
        shown += [entry for entry in entries if entry["score"] > 0]
    assert len(shown) == count


def test_a_release_without_suppression_is_suppressed(demo, tmp_path):
    """Rows of one class that overlap by 9/11, and one of another class."""
    rows = [
        (0.6, 0, 0.5, 0.5, 0.2, 1),
        (0.9, 0, 0.52, 0.5, 0.2, 1),
        (0.5, 2, 0.5, 0.5, 0.2, 1),
        (0.1, 0, 0.1, 0.1, 0.1, 1),
    ]
    write_rows(tmp_path / "m.onnx", rows)
    write_pictures(tmp_path, ["a.png"])
    (tmp_path / "names.txt").write_text("person\nhead\n")
    cases = {
        (): [("person", 0.9), ("class2", 0.5)],
        ("--nms-iou", 0.9): [("person", 0.9), ("person", 0.6), ("class2", 0.5)],
        ("--topk", 1): [("person", 0.9)],
        ("--names", "names.txt", "--conf-thresh", 0.6): [("person", 0.9)],
    }
    for flags, expected in cases.items():
        assert demo("--onnx", "m.onnx", "--images", "a.png", "--save", "out.jsonl", *flags)[0] == 0
        entries = read_lines(tmp_path / "out.jsonl")[0]["detections"]
        assert [(entry["name"], entry["score"]) for entry in entries] == expected, flags


@pytest.mark.parametrize("mode", [None, "cls", "obj*cls"])
def test_raw_maps_of_a_release(demo, tmp_path, mode):
    """Box, objectness, quality and class of one anchor in four cells, of which one is sure of itself."""
    logits = np.full((1, 7, 2, 2), -6.0)
    logits[0, :, 1, 0] = (0, 0, 0, 0, 3, 0, 1)
    write_raw(tmp_path / "m.onnx", logits, np.array([[0.5, 0.5]]), np.ones((1, 2)))
    write_pictures(tmp_path, ["a.png"])
    flags = ("--score-mode", mode) if mode else ()
    assert demo("--onnx", "m.onnx", "--images", "a.png", "--save", "out.jsonl", *flags)[0] == 0
    entries = read_lines(tmp_path / "out.jsonl")[0]["detections"]
    found = Detector(tmp_path / "m.onnx", Overrides(score_mode=mode))(cv2.imread(str(tmp_path / "a.png")))
    assert [entry["score"] for entry in entries] == pytest.approx(found.scores.tolist(), abs=1e-5)
    assert len(entries) == 1


# What is left on disk


def test_pictures_to_a_folder(demo, model, tmp_path):
    names = write_pictures(tmp_path / "in")
    before = files_below(tmp_path / "in")
    code, _, err = demo("--onnx", model, "--image-dir", "in", "--save", "new/out/")
    assert (code, err) == (0, [])
    out = tmp_path / "new/out"
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()) == names
    assert files_below(tmp_path / "in") == before
    for name in names:
        plain, drawn = (cv2.imread(str(folder / name)) for folder in (tmp_path / "in", out))
        factor = -(-256 // max(plain.shape))
        assert drawn.shape == (plain.shape[0] * factor, plain.shape[1] * factor, 3)


def test_pictures_are_the_same_in_every_run(demo, model, tmp_path):
    """No time is drawn on them; and what stands there already is replaced."""
    write_pictures(tmp_path / "in")
    contents = []
    for _ in range(2):
        assert demo("--onnx", model, "--images", "in", "--save", "out")[0] == 0
        contents.append([path.read_bytes() for path in sorted((tmp_path / "out").rglob("*.*"))])
    assert contents[0] == contents[1]


@pytest.mark.parametrize("name", ["out.png", "out.JPG", "out.webp", "out.bmp"])
def test_one_picture_to_one_file(demo, model, tmp_path, name):
    write_pictures(tmp_path, ["a.png"])
    code, out, err = demo("--onnx", model, "--image", "a.png", "--save", name)
    assert (code, err) == (0, [])
    assert f"wrote {name}" in out
    drawn = cv2.imread(str(tmp_path / name))
    assert drawn[30, 90] == pytest.approx(BRIGHT, abs=12)
    assert drawn[30, 250] == pytest.approx((DARK,) * 3, abs=12)


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".mkv", ".mov", ".webm", ".AVI"])
def test_video_to_video(demo, model, tmp_path, suffix):
    write_video(tmp_path / "in.avi")
    code, _, err = demo("--onnx", model, "--video", "in.avi", "--save", f"out{suffix}")
    assert (code, err) == (0, [])
    count, fps, size = count_pictures(tmp_path / f"out{suffix}")
    assert (count, size) == (6, (192, 256))
    assert fps == pytest.approx(12.5, abs=0.1)


def test_video_to_lines_and_to_pictures(demo, model, tmp_path):
    write_video(tmp_path / "in.avi")
    assert demo("--onnx", model, "--video", "in.avi", "--save", "out.jsonl", "--max-frames", 4)[0] == 0
    lines = read_lines(tmp_path / "out.jsonl")
    assert [(line["source"], line["frame"]) for line in lines] == [("in.avi", i) for i in (1, 2, 3, 4)]
    assert [line["detections"][0]["name"] for line in lines] == ["left", "right"] * 2
    assert demo("--onnx", model, "--video", "in.avi", "--save", "out")[0] == 0
    assert sorted(os.listdir(tmp_path / "out")) == [f"frame_{i:06}.jpg" for i in range(1, 7)]


def test_without_a_file_there_are_lines(demo, model, tmp_path):
    names = write_pictures(tmp_path / "in")
    code, out, err = demo("--onnx", model, "--images", "in")
    assert (code, err) == (0, [])
    assert [line.split(":")[0] for line in out[1:-1]] == names
    assert all("1 found, best 0." in line for line in out[1:-1])
    assert "16x16" in out[0]
    assert "left, right" in out[0]
    assert out[-1].startswith("5 pictures, 5 detections; detector ")
    write_video(tmp_path / "in.avi")
    code, out, _ = demo("--onnx", model, "--video", "in.avi")
    assert code == 0
    assert out[1].startswith("picture 1: 1 found")
    assert out[-1].startswith("6 pictures, 6 detections")


def test_progress_is_for_a_terminal_only(demo, model, tmp_path, monkeypatch):
    write_video(tmp_path / "in.avi")
    flags = ("--onnx", model, "--video", "in.avi", "--save", "out.jsonl")
    assert demo(*flags)[2] == []
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    code, _, err = demo(*flags)
    assert code == 0
    assert any("1/6" in line for line in err)


def test_pictures_that_cannot_be_read_are_left_out(demo, model, tmp_path):
    names = write_pictures(tmp_path / "in")
    whole = (tmp_path / "in/a.jpg").read_bytes()
    (tmp_path / "in/aa.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "in/sub/cc.png").write_bytes(b"no picture")
    (tmp_path / "in/z.jpg").write_bytes(b"")
    code, _, err = demo("--onnx", model, "--images", "in", "--save", "out.jsonl")
    assert code == 0
    assert [line["source"] for line in read_lines(tmp_path / "out.jsonl")] == names
    assert len(err) == 3
    for line, name in zip(err, ("aa.jpg", "sub/cc.png", "z.jpg"), strict=True):
        assert line.startswith(f"warning: {tmp_path / 'in' / name}: ")


def test_a_video_that_ends_early_is_named(demo, model, tmp_path):
    whole = write_video(tmp_path / "in.avi", count=30).read_bytes()
    (tmp_path / "cut.avi").write_bytes(whole[: len(whole) * 2 // 3])
    code, _, err = demo("--onnx", model, "--video", "cut.avi", "--save", "out.jsonl")
    assert code == 0
    assert len(err) == 1
    assert err[0].startswith("warning: --video cut.avi: ends after ")
    assert 0 < len(read_lines(tmp_path / "out.jsonl")) < 27


# Signals and a full disk


def interrupting(source, number):
    """The source, during whose third picture a signal comes."""

    class Interrupted(type(source)):
        def __iter__(self):
            for frame in super().__iter__():
                if frame.number == 3:
                    os.kill(os.getpid(), number)
                yield frame

    source.__class__ = Interrupted
    return source


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("save", ["out.jsonl", "out.mp4", "out.mkv", "out", None])
def test_a_signal_keeps_what_is_finished(demo, model, tmp_path, monkeypatch, number, code, save):
    write_video(tmp_path / "in.avi")
    monkeypatch.setattr(demo_uhd, "open_source", lambda cfg: interrupting(open_source(cfg), number))
    got, out, err = demo("--onnx", model, "--video", "in.avi", *(("--save", save) if save else ()))
    assert (got, err) == (code, [f"demo_uhd.py: stopped by {number.name}"])
    assert out[-1].startswith("3 pictures, ")
    left = {path.name for path in tmp_path.iterdir()} - {"in.avi", model.name}
    assert left == ({save} if save else set())
    if save == "out.jsonl":
        assert [line["frame"] for line in read_lines(tmp_path / save)] == [1, 2, 3]
    elif save == "out":
        assert len(os.listdir(tmp_path / save)) == 3
    elif save:
        assert count_pictures(tmp_path / save)[0] == 3


@pytest.fixture
def file_limit():
    """Sets the largest size of a file that this process can write, as a stand-in for a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


FULL_DISKS = {
    # where to, size that is left in bytes, whether something complete remains
    "lines": ("out.jsonl", 800, True),
    "pictures, not even one": ("out", 1000, False),
    "video that can be cut": ("out.avi", 60_000, True),
    "video that cannot be cut": ("out.mp4", 20_000, False),
}


@pytest.mark.parametrize(("save", "size", "remains"), FULL_DISKS.values(), ids=FULL_DISKS)
def test_a_full_disk(demo, model, tmp_path, file_limit, save, size, remains):
    rng = np.random.default_rng(0)
    writer = cv2.VideoWriter(str(tmp_path / "in.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (256, 256))
    for _ in range(12):
        writer.write(rng.integers(0, 256, (256, 256, 3), dtype=np.uint8))
    writer.release()
    before = files_below(tmp_path)
    file_limit(size)
    code, _, err = demo("--onnx", model, "--video", "in.avi", "--save", save)
    file_limit(resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    assert code == 1
    assert len(err) == 1
    assert err[0].startswith(f"demo_uhd.py: error: --save {save}: ")
    assert files_below(tmp_path).keys() - before.keys() == ({tmp_path / save} if remains else set())
    if save == "out.jsonl" and remains:
        assert 0 < len(read_lines(tmp_path / save)) < 12
