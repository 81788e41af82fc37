"""The runtime and the demo need numpy, OpenCV and onnxruntime only: everything else is taken away from them here."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT
from test_demo import write_pictures, write_video
from tiny_onnx import write_halves

TAKEN_AWAY = (
    *("torch", "torchvision", "tqdm", "yaml", "scipy", "matplotlib", "albumentations", "onnx", "onnxsim", "PIL"),
    *("pycocotools", "tensorboard"),
)

PROLOGUE = f"""
import sys
for name in {TAKEN_AWAY!r}:
    sys.modules[name] = None  # importing it is an ImportError
"""

DETECT = """
import cv2
from uhd.runtime import Detector
found = Detector(sys.argv[1])(cv2.imread(sys.argv[2]))
print(len(found), found.boxes.tolist())
"""

SHOW = """
import demo_uhd
sys.exit(demo_uhd.main(sys.argv[1:]))
"""


def run_without(program, *args, folder):
    """Runs a program in a process of its own, without the libraries of training."""
    return subprocess.run(
        [sys.executable, "-c", PROLOGUE + program, *map(str, args)],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
    )


@pytest.fixture
def model(tmp_path):
    return write_halves(tmp_path / "halves.onnx", (0, 1), class_names=("left", "right"), best_f1_threshold=0.5)


def test_runtime(model, tmp_path):
    write_pictures(tmp_path, ["a.png"])
    done = run_without(DETECT, model, "a.png", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "1 [[0.0, 0.0, 45.0, 20.0]]\n"


@pytest.mark.parametrize("source", [("--images", "in"), ("--video", "in.avi")])
def test_demo(model, tmp_path, source):
    write_pictures(tmp_path / "in", ["a.png", "b.jpg"])
    write_video(tmp_path / "in.avi", count=2)
    done = run_without(SHOW, "--onnx", model, *source, "--no-window", "--save", "out.jsonl", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [entry["name"] for line in lines for entry in line["detections"]] == ["left", "right"]
