"""Releases of Enhanced NanoDet in the runtime and the demo: how they are told, fed and read."""

import json

import cv2
import numpy as np
import pytest
import torch
import torchvision
from tiny_onnx import write_halves, write_nanodet, write_rows

import demo_uhd
from uhd.export import nanodet_np
from uhd.export.class_filter import labels_of
from uhd.export.coco_names import COCO_NAMES
from uhd.export.nanodet_np import STRIDE_SETS, NanoDetDecoder, find_strides, num_priors
from uhd.runtime import Detector, Overrides

SIZE = (64, 96)
"""Height and width: 96 + 24 + 6 + 2 = 128 priors at strides 8, 16, 32, 64."""
NUM_PRIORS = 128
BLACK = np.zeros((64, 96, 3), np.uint8)
SURE = 40.0
"""A logit beside which zeros have no share."""


def sides(left, top, right, bottom):
    """32 logits whose distributions have these means in strides: a whole number, or halfway between two."""
    logits = np.zeros((4, 8))
    for row, mean in zip(logits, (left, top, right, bottom), strict=True):
        row[[int(np.floor(mean)), int(np.ceil(mean))]] = SURE
    return logits.ravel()


def table_of(rows, num_classes=80, count=NUM_PRIORS):
    """An output [count,C+32] without detections but for rows: {prior: ({class: score}, sides)}."""
    table = np.zeros((count, num_classes + 32))
    for prior, (scores, logits) in rows.items():
        for label, score in scores.items():
            table[prior, label] = score
        table[prior, num_classes:] = logits
    return table


# Prior 12 * 3 + 5 of the first level is at row 3, column 5: (40, 24). Of the second level, which begins at 96 and has 6
# columns, 96 + 6 * 2 + 1 is at row 2, column 1: (16, 32). The third begins at 120 with 3 columns: row 1, column 2 is
# (64, 32). The last begins at 126 with 2 columns: its second is (64, 0).
HAND_WORKED = {
    # prior, sides in strides: box in pixels of the input
    "finest level": (41, (1, 2, 3, 0.5), (32, 8, 64, 28)),
    "second level": (109, (1, 1, 2.5, 1), (0, 16, 56, 48)),
    "third level": (125, (1, 0, 0.5, 0.5), (32, 32, 80, 48)),
    "coarsest level": (127, (0.5, 0, 0.5, 0.5), (32, 0, 96, 32)),
    "first prior, in the corner itself": (0, (0, 0, 2, 3), (0, 0, 16, 24)),
    "beyond all borders": (109, (7, 7, 7, 7), (0, 0, 96, 64)),
    "no extent": (41, (0, 0, 0, 0), (40, 24, 40, 24)),
}


@pytest.mark.parametrize(("prior", "extent", "box"), HAND_WORKED.values(), ids=HAND_WORKED)
def test_boxes_worked_by_hand(tmp_path, prior, extent, box):
    path = write_nanodet(tmp_path / "m.onnx", table_of({prior: ({2: 0.9}, sides(*extent))}), SIZE)
    found = Detector(path, Overrides(class_filter=("car",)))(BLACK)
    assert found.labels.tolist() == [2]
    np.testing.assert_allclose(found.scores, [0.9])
    np.testing.assert_allclose(found.boxes, [box], atol=1e-4)


def test_expectation_is_that_of_a_softmax():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (1, NUM_PRIORS, 32)).astype(np.float32)
    table = np.concatenate([np.full((1, NUM_PRIORS, 1), 0.5, np.float32), logits], axis=2)
    (found,) = NanoDetDecoder(1, SIZE, (8, 16, 32, 64))([table], 0.0, 1000)
    means = torch.from_numpy(logits).reshape(-1, 4, 8).softmax(2) @ torch.arange(8.0)
    places = [(x, y, s) for s in (8, 16, 32, 64) for y in range(0, 64, s) for x in range(0, 96, s)]
    x, y, s = torch.tensor(places).float().T
    left, top, right, bottom = means.T * s
    expected = torch.stack([x - left, y - top, x + right, y + bottom], 1)
    expected = torchvision.ops.clip_boxes_to_image(expected, SIZE).numpy() / (96, 64, 96, 64)
    np.testing.assert_allclose(found.boxes, expected, atol=1e-5)


def test_a_picture_of_another_size_is_stretched(tmp_path):
    path = write_nanodet(tmp_path / "m.onnx", table_of({41: ({0: 0.9}, sides(1, 2, 3, 0.5))}), SIZE)
    found = Detector(path, Overrides(conf_thresh=0.8))(np.zeros((128, 48, 3), np.uint8))
    np.testing.assert_allclose(found.boxes, [(16, 16, 32, 56)], atol=1e-4)


# --- how it is fed ------------------------------------------------------------------------------


def test_input_is_bgr_less_the_mean_over_the_deviation(tmp_path):
    detector = Detector(write_nanodet(tmp_path / "m.onnx", table_of({}), SIZE))
    image = np.full((5, 7, 3), (10, 100, 250), np.uint8)
    (inputs,) = detector.preprocess([image])
    assert (inputs.dtype, inputs.shape) == (np.float32, (3, 64, 96))
    expected = [(10 - 103.53) / 57.375, (100 - 116.28) / 57.12, (250 - 123.675) / 58.395]
    np.testing.assert_allclose(inputs.reshape(3, -1), np.repeat(np.c_[expected], 64 * 96, 1), rtol=1e-5)


def test_the_graph_gets_it_so(tmp_path):
    """The first row of the file scores by its input's first channel, blue."""
    path = write_nanodet(tmp_path / "m.onnx", table_of({0: ({}, sides(0, 0, 1, 1))}), SIZE)
    detector = Detector(path, Overrides(conf_thresh=0.0))
    for blue in (103, 120, 160):
        image = np.full((64, 96, 3), (blue, 3, 9), np.uint8)
        assert detector(image).scores[0] == pytest.approx(0.5 + 0.5 * (blue - 103.53) / 57.375, abs=1e-5)


def test_resized_bilinearly(tmp_path):
    detector = Detector(write_nanodet(tmp_path / "m.onnx", table_of({}), SIZE))
    image = np.random.default_rng(0).integers(0, 256, (100, 150, 3), np.uint8)
    small = cv2.resize(image, (96, 64), interpolation=cv2.INTER_LINEAR)
    expected = (small - np.array([103.53, 116.28, 123.675])) / [57.375, 57.12, 58.395]
    np.testing.assert_allclose(detector.preprocess([image])[0], expected.transpose(2, 0, 1), atol=1e-5)


# --- what remains -------------------------------------------------------------------------------


def test_suppression_is_torchvisions(tmp_path):
    rng = np.random.default_rng(1)
    table = rng.uniform(-0.3, 1, (NUM_PRIORS, 5)).clip(0).astype(np.float32)
    table = np.concatenate([table, rng.normal(0, 2, (NUM_PRIORS, 32))], axis=1)
    table[0, 0] = 0.5 - 0.5 * 103.53 / 57.375  # what the file makes of black
    found = Detector(write_nanodet(tmp_path / "m.onnx", table, SIZE), Overrides(topk=1000))(BLACK)
    (every,) = NanoDetDecoder(5, SIZE, (8, 16, 32, 64))([table[None].astype(np.float32)], 0.05, 10_000)
    boxes = torch.from_numpy(every.boxes * np.float32((96, 64, 96, 64)))
    kept = torchvision.ops.batched_nms(boxes, torch.from_numpy(every.scores), torch.from_numpy(every.labels), 0.6)
    assert 100 < len(kept) < len(every.scores)
    np.testing.assert_array_equal(found.labels, every.labels[kept])
    np.testing.assert_allclose(found.scores, every.scores[kept])
    np.testing.assert_allclose(found.boxes, boxes[kept], atol=1e-4)
    assert len(Detector(tmp_path / "m.onnx")(BLACK)) == 100


def test_threshold(tmp_path):
    rows = {10: ({0: 0.06}, sides(0, 0, 1, 1)), 30: ({0: 0.04}, sides(0, 0, 1, 1))}
    path = write_nanodet(tmp_path / "m.onnx", table_of(rows), SIZE)
    counts = {None: 1, 0.0: 2, 0.05: 1, 0.5: 0}
    for threshold, count in counts.items():
        assert len(Detector(path, Overrides(conf_thresh=threshold))(BLACK)) == count


def test_nothing_found(tmp_path):
    found = Detector(write_nanodet(tmp_path / "m.onnx", table_of({}), SIZE))(BLACK)
    assert (len(found), found.boxes.shape) == (0, (0, 4))


# --- classes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_classes", [1, 2, 79, 80, 81])
def test_names(tmp_path, num_classes):
    path = write_nanodet(tmp_path / "m.onnx", table_of({}, num_classes), SIZE)
    expected = COCO_NAMES if num_classes == 80 else tuple(f"class{i}" for i in range(num_classes))
    assert Detector(path).class_names == expected


def test_coco_has_80_names_in_its_order():
    assert (len(COCO_NAMES), len(set(COCO_NAMES))) == (80, 80)
    known = {0: "person", 2: "car", 15: "cat", 39: "bottle", 56: "chair", 62: "tv", 79: "toothbrush"}
    assert {label: COCO_NAMES[label] for label in known} == known


FILTERS = {
    ("person",): [0],
    ("car", "person"): [0, 2],
    ("Traffic Light",): [9],
    ("2", "9"): [2, 9],
    ("person", "0"): [0],
}


@pytest.mark.parametrize(("wanted", "labels"), FILTERS.items(), ids=str)
def test_class_filter(tmp_path, wanted, labels):
    rows = {30 + i: ({label: 0.9 - i / 10}, sides(0, 0, 1, 1)) for i, label in enumerate((0, 2, 9, 5))}
    path = write_nanodet(tmp_path / "m.onnx", table_of(rows), SIZE)
    detector = Detector(path, Overrides(class_filter=wanted))
    assert detector(BLACK).labels.tolist() == labels
    assert detector.shown_names == tuple(COCO_NAMES[label] for label in labels)


def test_class_filter_comes_before_the_limits(tmp_path):
    """A hundred cars that score higher do not keep the person out."""
    rows = {i: ({2: 0.9}, sides(0, 0, 0.5, 0.5)) for i in range(1, 120)} | {125: ({0: 0.3}, sides(0, 0, 1, 1))}
    path = write_nanodet(tmp_path / "m.onnx", table_of(rows), SIZE)
    assert 0 not in Detector(path)(BLACK).labels
    assert Detector(path, Overrides(class_filter=("person",)))(BLACK).labels.tolist() == [0]


def test_class_filter_of_a_file_of_ours(tmp_path):
    path = write_halves(tmp_path / "m.onnx", (0, 1), class_names=("left", "right"))
    white = np.full((16, 16, 3), 255, np.uint8)
    assert Detector(path)(white).labels.tolist() == [0, 1]
    assert Detector(path, Overrides(class_filter=("right",)))(white).labels.tolist() == [1]


def test_a_name_that_is_a_number_counts_as_a_name():
    assert labels_of(["1"], ["0", "2", "1"]).tolist() == [2]


@pytest.mark.parametrize(("wanted", "nearest"), [("persn", "person"), ("trafic light", "traffic light"), ("80", "")])
def test_unknown_class_lists_the_nearest(tmp_path, wanted, nearest):
    path = write_nanodet(tmp_path / "m.onnx", table_of({}), SIZE)
    with pytest.raises(ValueError, match=rf"m\.onnx: class_filter {wanted}: no such class .* nearest: {nearest}"):
        Detector(path, Overrides(class_filter=("car", wanted)))


# --- how it is told -----------------------------------------------------------------------------

COUNTS = {
    (320, (8, 16, 32, 64)): 2125,
    (416, (8, 16, 32, 64)): 3598,
    (320, (8, 16, 32)): 2100,
    (64, (8, 16, 32)): 84,
    (192, (8, 16, 32)): 756,
    (320, (4, 8, 16, 32)): 8500,
    (320, (8, 16, 32, 64, 128)): 2134,
}


@pytest.mark.parametrize(("size", "strides"), COUNTS)
def test_strides_are_told_by_the_number_of_rows(size, strides):
    assert num_priors((size, size), strides) == COUNTS[size, strides]
    assert find_strides((size, size), COUNTS[size, strides]) == strides


@pytest.mark.parametrize("height", [*range(32, 128), 320, 416, 640, 1000])
def test_only_one_set_of_strides_gives_a_number_of_rows(height):
    for width in (32, 33, 63, 96, 127, 320, 640, 4096):
        counts = [num_priors((height, width), strides) for strides in STRIDE_SETS]
        assert len(set(counts)) == len(counts)


def wrong_size(folder):
    return write_nanodet(folder / "m.onnx", table_of({}, count=127), SIZE)


def open_size(folder):
    return write_nanodet(folder / "m.onnx", table_of({}), ("h", "w"))


REFUSED = {
    # file, format, fragments of the message
    "rows that fit no strides": (wrong_size, "auto", "127 rows", "64x96", "128 (8, 16, 32, 64)", "126 (8, 16, 32)"),
    "open size": (open_size, "auto", "size of this NanoDet file is open"),
    "open width": (lambda folder: write_nanodet(folder / "m.onnx", table_of({}), (64, "w")), "auto", "is open"),
    "as a file of ours": (lambda folder: write_nanodet(folder / "m.onnx", table_of({}), SIZE), "uhd", "not a detector"),
    "other names": (
        lambda folder: write_nanodet(folder / "m.onnx", table_of({}), SIZE, ("images", "output")),
        "auto",
        "not a detector",
        "[1,N,C+32]",
    ),
    "finished rows": (
        lambda folder: write_rows(folder / "m.onnx", [(0.9, 0, 0.5, 0.5, 0.1, 0.1)]),
        "nanodet",
        "not a NanoDet file: its output is [1, 1, 6]",
    ),
    "no class": (
        lambda folder: write_nanodet(folder / "m.onnx", np.zeros((128, 32)), SIZE),
        "nanodet",
        "not a NanoDet file: its output is [1, 128, 32]",
    ),
    "a file of ours": (
        lambda folder: write_halves(folder / "m.onnx", class_names=("person",)),
        "nanodet",
        "onnx_format nanodet: its metadata",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(tmp_path, case):
    write, onnx_format, *fragments = REFUSED[case]
    with pytest.raises(ValueError, match=r"m\.onnx: ") as caught:
        Detector(write(tmp_path), onnx_format=onnx_format)
    for fragment in fragments:
        assert fragment in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_size_than_a_fixed_one(tmp_path):
    path = write_nanodet(tmp_path / "m.onnx", table_of({}), SIZE)
    with pytest.raises(ValueError, match="img_size 32x32: its input is 64x96"):
        Detector(path, img_size=(32, 32))


def test_by_flag_names_do_not_matter(tmp_path):
    rows = {41: ({0: 0.9}, sides(1, 2, 3, 0.5))}
    path = write_nanodet(tmp_path / "m.onnx", table_of(rows), SIZE, ("images", "rows"))
    assert len(Detector(path, Overrides(conf_thresh=0.8), onnx_format="nanodet")(BLACK)) == 1


def test_metadata_come_before_names_and_shapes(tmp_path):
    """A file that says of itself what it is: here that its output is finished rows of another name."""
    path = write_nanodet(tmp_path / "m.onnx", table_of({}), SIZE, class_names=("person",))
    with pytest.raises(ValueError, match="its metadata announce score_classid_cxcywh"):
        Detector(path)


# --- in the demo --------------------------------------------------------------------------------


def run_demo(capfd, *flags):
    code = demo_uhd.main([*map(str, flags), "--no-window"])
    streams = capfd.readouterr()
    return code, streams.out.splitlines(), streams.err.splitlines()


@pytest.fixture
def street(tmp_path, monkeypatch):
    """A release that sees a person and a car, and a picture and a video to look at; the working directory."""
    monkeypatch.chdir(tmp_path)
    rows = {41: ({0: 0.8}, sides(1, 2, 3, 0.5)), 109: ({2: 0.6}, sides(1, 1, 2.5, 1))}
    write_nanodet(tmp_path / "nano.onnx", table_of(rows), SIZE)
    cv2.imwrite("a.png", BLACK)
    writer = cv2.VideoWriter("a.avi", cv2.VideoWriter.fourcc(*"MJPG"), 10, (96, 64))
    for _ in range(3):
        writer.write(BLACK)
    writer.release()
    return tmp_path


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        ((), ["person", "car"]),
        (("--class-filter", "person"), ["person"]),
        (("--class-filter", "person, car", "--onnx-format", "nanodet"), ["person", "car"]),
        (("--class-filter", "dog"), []),
        (("--conf-thresh", 0.7), ["person"]),
    ],
    ids=str,
)
@pytest.mark.parametrize("source", [("--images", "a.png"), ("--video", "a.avi")])
def test_demo(street, capfd, source, flags, names):
    code, out, err = run_demo(capfd, "--onnx", "nano.onnx", *source, "--save", "out.jsonl", *flags)
    assert (code, err) == (0, [])
    assert "64x96 pixels (opencv_inter_linear)" in out[0]
    for line in (street / "out.jsonl").read_text().splitlines():
        assert [entry["name"] for entry in json.loads(line)["detections"]] == names


@pytest.mark.parametrize(
    ("flags", "fragments"),
    [
        (("--class-filter", "persn"), ("--onnx nano.onnx: --class-filter persn", "person")),
        (("--class-filter", "person,,car"), ("--class-filter", "person,car")),
        (("--class-filter", ""), ("--class-filter", "person,car")),
        (("--onnx-format", "yolo"), ("--onnx-format", "auto, uhd, nanodet")),
        (("--onnx-format", "uhd"), ("--onnx nano.onnx", "not a detector")),
        (("--score-mode", "cls"), ("--onnx nano.onnx", "--score-mode")),
        (("--names", "one.txt"), ("1 class names", "80 classes")),
    ],
)
def test_demo_mistakes(street, capfd, flags, fragments):
    (street / "one.txt").write_text("person\n")
    code, _, err = run_demo(capfd, "--onnx", "nano.onnx", "--images", "a.png", *flags)
    assert code == 2
    assert len(err) == 1
    for fragment in fragments:
        assert fragment in err[0]


def test_a_score_above_1_is_that_of_another_layout(tmp_path):
    """As 16 bins a side look, of which half are taken for classes."""
    path = write_nanodet(tmp_path / "m.onnx", table_of({41: ({70: 20.0}, sides(1, 2, 3, 0.5))}, 112), SIZE)
    with pytest.raises(ValueError, match=r"m\.onnx: a class score of 20 in the first 112 columns; .* 8 bins"):
        Detector(path)(BLACK)


def test_default_threshold_is_the_releases(street):
    assert Detector(street / "nano.onnx").conf_thresh == nanodet_np.CONF_THRESH == 0.05
