"""A file in the hands of its user is the detector that was validated: mAP through the runtime, from picture files."""

import cv2
import numpy as np
import pytest
import torch
from exporting import prepared, write_onnx
from helpers import QUIET, draw_people, loader_of, start

from uhd.checkpoint import load_model, read_checkpoint
from uhd.engine import evaluate
from uhd.export.decode_np import Candidates
from uhd.export.pictures import judge, read_pictures
from uhd.runtime import Detector, Overrides

TOLERANCE = 0.0005
FORMS = {
    "merged": {},
    "separate": {"separate_outputs": True, "simplify": False},
    "raw": {"merge_postprocess": False, "opset": 13},
    "open": {"dynamic": "all", "opset": 20},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Labelled pictures of several sizes, larger and smaller than the network's and not square."""
    folder = tmp_path_factory.mktemp("pictures")
    for i, side in enumerate((32, 50, 24, 75)):
        draw_people(folder, 50, side=side, seed=10 + i, names=f"{i}_{{:03}}")
    for path in sorted(folder.glob("3_*.png")):
        cv2.imwrite(str(path), cv2.resize(cv2.imread(str(path)), (60, 110)))
    return folder


def with_resize_mode(source, path, mode):
    """A copy of a checkpoint that was trained, as it says, with another way of resizing."""
    content = torch.load(source, weights_only=True)
    content["config"]["input"]["resize_mode"] = mode
    torch.save(content, path)
    return path


def figures_of_training(checkpoint, folder):
    """What train.py's validation measures."""
    model, cfg = load_model(checkpoint)
    task, _ = start(cfg)
    return evaluate(model, task, loader_of(folder, cfg, shuffle=False), cfg, QUIET).evaluation


def figures_of_file(path, checkpoint, folder):
    """The same of a file, through the runtime, on pictures as OpenCV reads them."""
    cfg = read_checkpoint(checkpoint).config
    detector = Detector(path, Overrides(conf_thresh=cfg.eval.map_conf_thresh))

    def detect(_, paths):
        found = []
        for path in paths:
            image = cv2.imread(str(path))
            height, width = image.shape[:2]
            each = detector(image)
            found.append(Candidates(each.boxes / np.float32([width, height, width, height]), each.scores, each.labels))
        return found

    return judge(read_pictures(str(folder), "pictures", 0, cfg), detect, cfg)


def distance(ours, theirs):
    """How far F1 is apart over all score thresholds: another than mAP, it changes where any score does."""
    return np.abs(ours.by_confidence.f1 - theirs.by_confidence.f1).mean()


@pytest.mark.parametrize("form", FORMS)
def test_map_is_that_of_training(finder, data, tmp_path, form):
    checkpoint = finder / "best.pt"
    expected = figures_of_training(checkpoint, data)
    found = figures_of_file(write_onnx(tmp_path / "m.onnx", checkpoint, **FORMS[form]), checkpoint, data)
    assert expected.map50 > 0.5
    assert found.map50 == pytest.approx(expected.map50, abs=TOLERANCE)
    assert distance(found, expected) < TOLERANCE


@pytest.mark.parametrize("mode", ["opencv_inter_linear", "opencv_inter_nearest", "torch_bilinear", "torch_nearest"])
def test_figures_with_other_ways_of_resizing(finder, data, tmp_path, mode):
    checkpoint = with_resize_mode(finder / "best.pt", tmp_path / "best.pt", mode)
    path = write_onnx(tmp_path / "m.onnx", checkpoint)
    found, expected = figures_of_file(path, checkpoint, data), figures_of_training(checkpoint, data)
    assert found.map50 == pytest.approx(expected.map50, abs=TOLERANCE)
    assert distance(found, expected) < TOLERANCE
    # Another way of resizing would be seen.
    assert distance(figures_of_training(finder / "best.pt", data), expected) > 2 * TOLERANCE


def test_map_that_the_file_carries(finder):
    """On the pictures that the run was validated with, in the file's own figures."""
    metrics = read_checkpoint(finder / "best.pt").metrics
    assert prepared(finder / "best.pt").metadata.map50 == metrics["val/mAP@0.5"]
