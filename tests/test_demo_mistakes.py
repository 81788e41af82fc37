"""Mistakes on demo_uhd.py's command line and in its files: one line, exit code 2, nothing left behind."""

import cv2
import numpy as np
import pytest
from conftest import files_below
from test_demo import write_pictures, write_video
from tiny_onnx import write_broken, write_halves, write_raw

import demo_uhd

MISTAKES = {
    # Which detector
    "no detector": ("--images in", "--onnx", "which ONNX file"),
    "no such detector": ("--onnx nope.onnx --images in", "--onnx nope.onnx", "no such file"),
    "folder as detector": ("--onnx in --images in", "--onnx in", "a folder"),
    "picture as detector": ("--onnx in/a.jpg --images in", "--onnx in/a.jpg", "not an ONNX file"),
    "no detections": ("--onnx sums.onnx --images in", "--onnx sums.onnx", "not a detector", "[1,K,6]"),
    # What to look at
    "no source": ("--onnx m.onnx", "--camera, --video or --images"),
    "two sources": ("--onnx m.onnx --images in --video in.avi", "--video and --images", "choose one"),
    "three sources": ("--onnx m.onnx --images in --video in.avi --camera", "--camera and --video and --images"),
    "no such folder": ("--onnx m.onnx --images nope", "--images nope", "no such"),
    "folder without pictures": ("--onnx m.onnx --images empty", "--images empty", "no picture", ".webp"),
    "no picture by its name": ("--onnx m.onnx --images m.onnx", "--images m.onnx", "not a picture by its name"),
    "no such picture": ("--onnx m.onnx --image nope.png", "--images nope.png", "no such"),
    "one damaged picture": ("--onnx m.onnx --images bad/a.png", "--images bad/a.png", "decoded"),
    "no such video": ("--onnx m.onnx --video nope.mp4", "--video nope.mp4", "no such file"),
    "folder as video": ("--onnx m.onnx --video in", "--video in", "a folder", "--images"),
    "picture as video": ("--onnx m.onnx --video in/a.jpg", "--video in/a.jpg", "a picture", "--images"),
    "no video": ("--onnx m.onnx --video bad.mp4", "--video bad.mp4", "not a video"),
    "no such camera": ("--onnx m.onnx --camera 77", "--camera 77", "no such camera"),
    "camera -1": ("--onnx m.onnx --camera -1", "--camera -1", "at least 0"),
    "word as camera": ("--onnx m.onnx --camera front", "--camera", "'front'", "whole number"),
    # Where to
    "inside the pictures": ("--onnx m.onnx --images in --save in/out", "--save in/out", "outside"),
    "the pictures themselves": ("--onnx m.onnx --images in --save in", "--save in", "outside"),
    "the picture itself": ("--onnx m.onnx --images in/a.jpg --save in/a.jpg", "--save in/a.jpg", "write over"),
    "its folder": ("--onnx m.onnx --images in/a.jpg --save in/", "--save in", "write over in/a.jpg"),
    "through a link": ("--onnx m.onnx --images in --save link/sub", "--save link/sub", "outside"),
    "linked picture": ("--onnx m.onnx --images in --save links", "--save links", "write over links/a.jpg"),
    "the video itself": ("--onnx m.onnx --video in.avi --save in.avi", "--save in.avi", "another file"),
    "pictures to a video": ("--onnx m.onnx --images in --save out.mp4", "--save out.mp4", ".jsonl"),
    "pictures to a picture": ("--onnx m.onnx --images in --save out.png", "--save out.png", "a folder"),
    "video to a picture": ("--onnx m.onnx --video in.avi --save out.png", "--save out.png", "a folder"),
    "unknown kind": (
        "--onnx m.onnx --images in --save out.gif",
        "--save out.gif",
        ".jsonl",
        ".mp4",
        ".png",
        "a folder",
    ),
    "no such place": ("--onnx m.onnx --images in --save nope/out.jsonl", "--save nope/out.jsonl", "nope"),
    "no such place for a video": ("--onnx m.onnx --video in.avi --save nope/out.mp4", "--save nope/out.mp4", "nope"),
    "folder below a file": ("--onnx m.onnx --images in --save m.onnx/out", "--save m.onnx/out", "cannot be written"),
    "file as folder": ("--onnx m.onnx --images in --save plain", "--save plain", "cannot be written"),
    # What is said about the detector
    "threshold 2": ("--onnx m.onnx --images in --conf-thresh 2", "--conf-thresh 2", "0 to 1"),
    "threshold nan": ("--onnx m.onnx --images in --conf-thresh nan", "--conf-thresh nan", "0 to 1"),
    "another suppression": ("--onnx m.onnx --images in --nms no", "--nms", "'no'", "hard, soft"),
    "sigma 0": ("--onnx m.onnx --images in --nms-sigma 0", "--nms-sigma 0", "above 0"),
    "overlap 2": ("--onnx m.onnx --images in --nms-iou 2", "--nms-iou 2", "0 to 1"),
    "no detection": ("--onnx m.onnx --images in --topk 0", "--topk 0", "at least 1"),
    "fewer than no threads": ("--onnx m.onnx --images in --threads -1", "--threads -1", "at least 0"),
    "fewer than no pictures": ("--onnx m.onnx --images in --max-frames -1", "--max-frames -1", "at least 0"),
    "unknown score mode": ("--onnx raw.onnx --images in --score-mode best", "--score-mode", "'best'", "obj*cls"),
    "unknown resize mode": ("--onnx m.onnx --images in --resize-mode cubic", "--resize-mode", "'cubic'"),
    "score mode of finished rows": ("--onnx m.onnx --images in --score-mode cls", "m.onnx", "--score-mode"),
    "suppression of finished rows": ("--onnx m.onnx --images in --nms soft", "m.onnx", "--nms", "part of this graph"),
    "overlap of finished rows": ("--onnx m.onnx --images in --nms-iou 0.3", "m.onnx", "--nms-iou"),
    "lower than the file's": ("--onnx cut.onnx --images in --conf-thresh 0.1", "cut.onnx", "--conf-thresh 0.1", "0.2"),
    "more than the file's": ("--onnx m.onnx --images in --topk 1000", "m.onnx", "--topk 1000", "100"),
    "another size": ("--onnx m.onnx --images in --img-size 32x32", "m.onnx", "16x16", "32x32"),
    "no size": ("--onnx m.onnx --images in --img-size small", "--img-size", "'small'", "HxW"),
    "no such names": ("--onnx m.onnx --images in --names nope.txt", "--names nope.txt", "cannot be read"),
    "too few names": ("--onnx m.onnx --images in --names one.txt", "1 class names", "2 classes"),
    # What goes with what
    "mirrored pictures": ("--onnx m.onnx --images in --mirror", "--mirror", "--camera"),
    "size of a video": ("--onnx m.onnx --video in.avi --camera-size 480x640", "--camera-size", "--camera"),
    "tracking": ("--onnx m.onnx --images in --track", "--track", "not built yet"),
    "unknown flag": ("--onnx m.onnx --images in --fast", "--fast"),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """What the table's flags name."""
    folder = tmp_path_factory.mktemp("mistakes")
    write_halves(folder / "m.onnx", (0, 1), class_names=("left", "right"))
    write_halves(folder / "cut.onnx", class_names=("person",), conf_thresh=0.2)
    write_raw(folder / "raw.onnx", np.zeros((1, 7, 2, 2)), np.ones((1, 2)), np.ones((1, 2)))
    write_raw(folder / "sums.onnx", np.zeros((1, 7, 2, 2)), np.ones((1, 3)), np.ones((1, 2)))
    write_pictures(folder / "in")
    write_video(folder / "in.avi")
    for name in ("empty", "bad", "links"):
        (folder / name).mkdir()
    (folder / "links/a.jpg").symlink_to(folder / "in/a.jpg")
    (folder / "link").symlink_to(folder / "in")
    for name in ("bad/a.png", "bad/b.jpg", "bad.mp4", "plain", "one.txt"):
        (folder / name).write_text("text\n")
    return folder


@pytest.fixture
def refused(files, capfd, monkeypatch):
    """Runs the demo; it must refuse with one line that holds all fragments, and change no file. Gives the line."""
    monkeypatch.chdir(files)

    def check(*flags, mentions=(), warnings=0):
        before = files_below(files)
        capfd.readouterr()
        assert demo_uhd.main(flags) == 2
        lines = capfd.readouterr().err.splitlines()
        assert [line for line in lines[:-1] if line.startswith("warning: ")] == lines[:-1]
        assert len(lines) == warnings + 1
        assert lines[-1].startswith("demo_uhd.py: error: ")
        for fragment in mentions:
            assert fragment in lines[-1]
        assert files_below(files) == before
        return lines[-1]

    return check


@pytest.mark.parametrize("case", MISTAKES)
def test_mistake(refused, case):
    flags, *mentions = MISTAKES[case]
    refused(*flags.split(), "--no-window", mentions=mentions)


@pytest.mark.parametrize("save", [(), ("--save", "out"), ("--save", "out.jsonl")])
def test_no_picture_can_be_read(refused, save):
    refused("--onnx", "m.onnx", "--images", "bad", "--no-window", *save, mentions=("--images bad", "2"), warnings=2)


@pytest.mark.parametrize("save", [(), ("--save", "out"), ("--save", "out.jsonl")])
def test_no_display(refused, monkeypatch, save):
    monkeypatch.setattr("sys.platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    refused("--onnx", "m.onnx", "--images", "in", *save, mentions=("no display", "--no-window"))


def test_display_that_cannot_be_reached(refused, monkeypatch):
    """The attempt would end the process, so it is made in another one."""
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("DISPLAY", ":9999")
    refused("--onnx", "m.onnx", "--images", "in", mentions=(":9999", "--no-window"))


def test_opencv_without_windows(refused, monkeypatch):
    def missing(*_):
        raise cv2.error("The function is not implemented")

    monkeypatch.setattr("uhd.demo.window.check_display", lambda: None)
    monkeypatch.setattr(cv2, "namedWindow", missing)
    refused("--onnx", "m.onnx", "--images", "in", mentions=("without windows", "--no-window"))


def test_a_detector_that_fails_when_it_runs(refused, files):
    """It is run once before any picture."""
    write_broken(files / "late.onnx")
    refused("--onnx", "late.onnx", "--images", "in", "--no-window", mentions=("--onnx late.onnx", "cannot be run"))
