"""The detector of the runtime: how files of every form are fed and read, and what it refuses."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
import torch
from exporting import prepared, write_checkpoint, write_onnx
from helpers import make_config
from tiny_onnx import LEFT, RIGHT, SIDE, write_halves, write_rows
from variants import variant_config

from uhd.data.resize import resize
from uhd.runtime import DEFAULT_CONF_THRESH, Detector, Overrides

SIZE = (64, 64)
FORMS = {
    "merged": {},
    "separate": {"separate_outputs": True},
    "raw": {"merge_postprocess": False},
    "open batch": {"dynamic": "batch"},
    "open": {"dynamic": "all"},
    "raw, open": {"merge_postprocess": False, "dynamic": "all"},
}
LOW = Overrides(conf_thresh=0.05)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("run"), variant_config("three classes, vfl"))


@pytest.fixture(scope="module")
def files(checkpoint, tmp_path_factory):
    """A file of each form."""
    folder = tmp_path_factory.mktemp("files")
    return {
        form: write_onnx(folder / f"{form}.onnx", checkpoint, topk=30, **options) for form, options in FORMS.items()
    }


def photos(count=6, seed=0):
    """Pictures, BGR, of different sizes."""
    rng = np.random.default_rng(seed)
    sizes = [(64, 64), (37, 90), (200, 120), (1, 1), (64, 65), (300, 20)]
    return [rng.integers(0, 256, (*sizes[i % len(sizes)], 3), dtype=np.uint8) for i in range(count)]


@torch.no_grad()
def expected_in(image, export, conf_thresh, topk):
    """What PyTorch finds in a picture: boxes in pixels, scores, labels."""
    small = resize(image, export.config.input.img_size, export.config.input.resize_mode)
    inputs = torch.from_numpy(np.ascontiguousarray(small[..., ::-1])).permute(2, 0, 1).float().div(255)[None]
    decode = export.decode
    found = export.model.finish(export.model.decode(export.model(inputs), decode), decode, conf_thresh, topk)
    used = found.labels[0] >= 0
    height, width = image.shape[:2]
    boxes = found.boxes[0, used].numpy() * np.array([width, height, width, height], np.float32)
    return boxes, found.scores[0, used].numpy(), found.labels[0, used].numpy()


def assert_found(found, boxes, scores, labels, side=1.0):
    assert len(found) == len(scores)
    np.testing.assert_allclose(found.scores, scores, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(found.labels, labels)
    np.testing.assert_allclose(found.boxes, boxes, rtol=0, atol=1e-4 * side)


def assert_same(found, expected):
    assert_found(found, expected.boxes, expected.scores, expected.labels, side=300)


# --- what is found ------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_finds_what_torch_finds(files, checkpoint, form):
    detector = Detector(files[form], LOW)
    export = prepared(checkpoint, topk=30)
    for image in photos():
        found = detector(image)
        assert_found(found, *expected_in(image, export, 0.05, 30), side=max(image.shape))
        assert len(found) > 3
        assert (found.boxes.dtype, found.scores.dtype, found.labels.dtype) == (np.float32, np.float32, np.int64)


@pytest.mark.parametrize("form", ["merged", "raw"])
@pytest.mark.parametrize("name", ["cnn, three classes", "cnn, anchors, quality", "transformer, three classes"])
def test_finds_what_torch_finds_with_other_networks(tmp_path, name, form):
    checkpoint = write_checkpoint(tmp_path, variant_config(name))
    detector = Detector(write_onnx(tmp_path / "m.onnx", checkpoint, topk=30, **FORMS[form]), LOW)
    export = prepared(checkpoint, topk=30)
    count = 0
    for image in photos():
        found = detector(image)
        assert_found(found, *expected_in(image, export, 0.05, 30), side=max(image.shape))
        count += len(found)
    assert count > 6


@pytest.mark.parametrize("mode", ["opencv_inter_linear", "opencv_inter_nearest", "torch_bilinear", "torch_nearest"])
def test_resizes_as_the_file_says(tmp_path, mode):
    checkpoint = write_checkpoint(tmp_path, make_config(img_size=SIZE))
    content = torch.load(checkpoint, weights_only=True)
    content["config"]["input"]["resize_mode"] = mode
    torch.save(content, checkpoint)
    detector = Detector(write_onnx(tmp_path / "m.onnx", checkpoint), LOW)
    area = Detector(detector.path, Overrides(conf_thresh=0.05, resize_mode="opencv_inter_area"))
    export = prepared(checkpoint)
    for image in photos(3):
        assert_found(detector(image), *expected_in(image, export, 0.05, 100), side=max(image.shape))
    image = photos(3)[2]
    assert not np.array_equal(detector.preprocess([image]), area.preprocess([image]))


def test_input_is_rgb_in_0_to_1(tmp_path):
    detector = Detector(write_halves(tmp_path / "m.onnx", class_names=("person",)))
    image = np.zeros((5, 7, 3), np.uint8)
    image[..., 2] = 255
    (inputs,) = detector.preprocess([image])
    assert (inputs.dtype, inputs.shape) == (np.float32, (3, SIDE, SIDE))
    assert inputs.reshape(3, -1).mean(axis=1).tolist() == [1, 0, 0]
    assert detector(image).scores.tolist() == [1, 1]


def test_boxes_are_pixels_and_reach_out_of_the_picture_as_they_do_in_validation(tmp_path):
    rows = [(0.9, 0, 0.1, 0.5, 0.6, 0.4), (0.8, 0, 0.9, 0.9, 0.1, 4.0), (0.7, 0, 0.5, 0.5, 0.5, 0.5)]
    found = Detector(write_rows(tmp_path / "m.onnx", rows))(np.zeros((100, 200, 3), np.uint8))
    expected = [[-40, 30, 80, 70], [170, -110, 190, 290], [50, 25, 150, 75]]
    np.testing.assert_allclose(found.boxes, expected, atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_batches_give_what_single_pictures_give(files, form):
    detector = Detector(files[form], LOW)
    images = photos(7)
    found = detector.detect_batch(images)
    assert len(found) == 7
    for one, image in zip(found, images, strict=True):
        assert_same(one, detector(image))


@pytest.mark.parametrize("form", ["merged", "open"])
def test_no_picture(files, form):
    assert Detector(files[form]).detect_batch([]) == []


def test_fixed_batch_of_several(tmp_path, checkpoint):
    """A file whose batch is fixed at 4 is run as often as needed, and padded."""
    model = onnx.load(write_onnx(tmp_path / "open.onnx", checkpoint, dynamic="batch"))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 4
    del model.graph.value_info[:]
    onnx.save(model, tmp_path / "four.onnx")
    single, four = (Detector(tmp_path / name, LOW) for name in ("open.onnx", "four.onnx"))
    assert (single.batch_size, four.batch_size) == (None, 4)
    for count in (1, 4, 6):
        images = photos(count)
        for found, expected in zip(four.detect_batch(images), single.detect_batch(images), strict=True):
            assert_same(found, expected)


@pytest.mark.parametrize("form", ["merged", "raw", "open"])
def test_several_threads(files, form):
    detector = Detector(files[form], LOW)
    images = photos(6)
    expected = [detector(image) for image in images]

    def look(start):
        return [(i % 6, detector(images[i % 6])) for i in range(start, start + 20)]

    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(look, range(4)):
            for i, one in found:
                assert_same(one, expected[i])


def test_size_of_an_open_file(files, checkpoint):
    other = Detector(files["open"], LOW, img_size=(96, 32))
    assert (Detector(files["open"]).img_size, other.img_size) == (SIZE, (96, 32))
    export = prepared(checkpoint, img_size=(96, 32), topk=30)
    for image in photos(3):
        assert_found(other(image), *expected_in(image, export, 0.05, 30), side=max(image.shape))


@pytest.mark.parametrize("threads", [0, 1, 2])
def test_number_of_threads(files, threads):
    image = photos(1)[0]
    assert_same(Detector(files["merged"], LOW, threads=threads)(image), Detector(files["merged"], LOW)(image))


# --- thresholds ---------------------------------------------------------------------------------

ROWS = [(0.9, 0, 0.2, 0.5, 0.1, 0.1), (0.5, 0, 0.5, 0.5, 0.1, 0.1), (0.2, 0, 0.8, 0.5, 0.1, 0.1)]
BLACK = np.zeros((20, 20, 3), np.uint8)


@pytest.mark.parametrize(
    ("says", "typed", "threshold"),
    [
        ({"best_f1_threshold": 0.375}, None, 0.375),
        ({"best_f1_threshold": 0.375}, 0.1, 0.1),
        ({"best_f1_threshold": None}, None, DEFAULT_CONF_THRESH),
        ({"best_f1_threshold": 0.0}, None, 0.0),
        ({"best_f1_threshold": 0.375}, 0.0, 0.0),
        ({"best_f1_threshold": 0.1, "conf_thresh": 0.25}, None, 0.1),
        (None, None, DEFAULT_CONF_THRESH),
        (None, 1.0, 1.0),
    ],
    ids=str,
)
def test_threshold(tmp_path, says, typed, threshold):
    path = write_halves(tmp_path / "m.onnx", **(says or {}))
    assert Detector(path, Overrides(conf_thresh=typed)).conf_thresh == threshold


@pytest.mark.parametrize(("threshold", "count"), [(0.0, 3), (0.2, 3), (0.21, 2), (0.9, 1), (0.91, 0)])
def test_scores_that_reach_the_threshold(tmp_path, threshold, count):
    found = Detector(write_rows(tmp_path / "m.onnx", ROWS), Overrides(conf_thresh=threshold))(BLACK)
    assert len(found) == count
    assert found.boxes.shape == (count, 4)


def test_fewer_boxes(files, tmp_path):
    image = photos(1)[0]
    every = Detector(files["merged"], LOW)(image)
    for form in ("merged", "raw", "separate"):
        found = Detector(files[form], Overrides(conf_thresh=0.05, topk=2))(image)
        assert_found(found, every.boxes[:2], every.scores[:2], every.labels[:2], side=64)


def test_suppression_and_scores_of_raw_maps(files, checkpoint):
    image = photos(2)[1]
    overlap, score = Overrides(conf_thresh=0.05, nms_iou=0.1), Overrides(conf_thresh=0.05, quality_power=0.25)
    export = prepared(checkpoint, topk=30, nms_iou=0.1)
    assert_found(Detector(files["raw"], overlap)(image), *expected_in(image, export, 0.05, 30), side=90)
    plain, lifted = (Detector(files["raw"], each)(image) for each in (LOW, score))
    assert lifted.scores[0] > plain.scores[0]
    finished = Overrides(conf_thresh=0.05, nms_iou=0.5)  # what the graph has done already
    assert_same(Detector(files["merged"], finished)(image), Detector(files["merged"], LOW)(image))


def softly(sigma=0.5):
    """The same network, validated with soft suppression."""
    cfg = variant_config("three classes, vfl")
    return dataclasses.replace(cfg, decode=dataclasses.replace(cfg.decode, nms="soft", nms_sigma=sigma))


def test_soft_suppression_of_raw_maps(checkpoint, tmp_path):
    """By the file, where the run was validated so; by the caller in any case, with the same detections."""
    image = photos(2)[1]
    soft = write_checkpoint(tmp_path, softly(sigma=0.3))
    path = write_onnx(tmp_path / "soft.onnx", soft, merge_postprocess=False, topk=30)
    export = prepared(soft, merge_postprocess=False, topk=30)
    assert (export.metadata.nms, export.metadata.nms_sigma) == ("soft", 0.3)
    found = Detector(path, LOW)(image)
    assert_found(found, *expected_in(image, export, 0.05, 30), side=90)
    hard = write_onnx(tmp_path / "hard.onnx", checkpoint, merge_postprocess=False, topk=30)
    assert Detector(hard).metadata.nms == "hard"
    by_caller = Detector(hard, Overrides(conf_thresh=0.05, nms="soft", nms_sigma=0.3))(image)
    assert_same(by_caller, found)


def test_merged_files_suppress_hard(tmp_path, caplog):
    detector = Detector(write_onnx(tmp_path / "m.onnx", write_checkpoint(tmp_path, softly())))
    assert detector.metadata.nms == "hard"
    assert ["raw maps keep --nms soft" in record.getMessage() for record in caplog.records] == [True]


def test_files_of_earlier_versions_suppress_hard(files, tmp_path):
    model = onnx.load(files["raw"])
    props = {prop.key: prop.value for prop in model.metadata_props if not prop.key.startswith("nms_s")}
    del props["nms"]
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, props)
    onnx.save(model, tmp_path / "m.onnx")
    assert Detector(tmp_path / "m.onnx").metadata == Detector(files["raw"]).metadata


# --- files that say nothing of themselves -------------------------------------------------------


def anonymous(source, path, names=()):
    """A copy of a file as another program writes it: without metadata, its outputs called otherwise."""
    model = onnx.load(source)
    del model.metadata_props[:]
    old = [value.name for value in model.graph.output]
    renamed = dict(zip(old, names, strict=False))
    for value in (*model.graph.output, *model.graph.initializer):
        value.name = renamed.get(value.name, value.name)
    for node in model.graph.node:
        for fields in (node.input, node.output):
            for i, name in enumerate(fields):
                fields[i] = renamed.get(name, name)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("names", [("pred",), ("txtywh_obj_quality_cls_x8",), ("output_0", "a", "b")])
@pytest.mark.parametrize("row", ["improved", "improved, larger"])
def test_raw_maps_of_another_program(tmp_path, row, names):
    size = (64, 64) if row == "improved" else (96, 64)
    checkpoint = write_checkpoint(tmp_path, make_config(img_size=size, model={"use_improved_head": True}))
    source = write_onnx(tmp_path / "m.onnx", checkpoint, merge_postprocess=False)
    path = anonymous(source, tmp_path / "other.onnx", names)
    detector = Detector(path, LOW)
    assert detector.class_names == ("person",)
    assert detector.metadata.decoding["score_mode"] == "obj*quality*cls"
    for image in photos(3):
        assert_same(detector(image), Detector(source, LOW)(image))


def test_raw_maps_without_quality(tmp_path):
    checkpoint = write_checkpoint(tmp_path, make_config(img_size=SIZE))
    source = write_onnx(tmp_path / "m.onnx", checkpoint, merge_postprocess=False)
    for names in ((), ("pred",)):
        path = anonymous(source, tmp_path / "other.onnx", names)
        assert_same(Detector(path, LOW)(photos(1)[0]), Detector(source, LOW)(photos(1)[0]))


@pytest.mark.parametrize("output", ["detections", "score_classid_cxcywh"])
def test_rows_without_suppression(tmp_path, output):
    """Finished rows of another program are not suppressed, nor sorted: the runtime does both."""
    close = (0.31, 0.5, 0.2, 0.4)
    rows = [
        (0.5, 0, 0.3, 0.5, 0.2, 0.4),
        (0.9, 0, *close),
        (0.7, 1, *close),
        (0.0, 0, 0, 0, 0, 0),
        (0.8, 0, 0.8, 0.5, 0.2, 0.4),
    ]
    found = Detector(write_rows(tmp_path / "m.onnx", rows, output))(np.zeros((100, 100, 3), np.uint8))
    np.testing.assert_allclose(found.scores, [0.9, 0.8, 0.7])
    assert found.labels.tolist() == [0, 0, 1]
    kept = Detector(tmp_path / "m.onnx", Overrides(nms_iou=1.0, topk=3))(BLACK)
    np.testing.assert_allclose(kept.scores, [0.9, 0.8, 0.7])
    everything = Detector(tmp_path / "m.onnx", Overrides(nms_iou=1.0))(BLACK)
    np.testing.assert_allclose(everything.scores, [0.9, 0.8, 0.7, 0.5])


def test_merged_file_without_its_metadata(files, tmp_path):
    """Suppressed again, with the same overlap: nothing changes."""
    path = anonymous(files["merged"], tmp_path / "other.onnx", ("detections",))
    image = photos(1)[0]
    assert_same(Detector(path, LOW)(image), Detector(files["merged"], LOW)(image))


def test_names_that_the_caller_gives(tmp_path):
    path = write_rows(tmp_path / "m.onnx", [(0.9, 1, *LEFT), (0.8, 0, *RIGHT)])
    assert Detector(path, Overrides(class_names=("head", "body"))).class_names == ("head", "body")
