"""demo_uhd.py in a window and at a camera, both played by the test; and what is drawn."""

import cv2
import numpy as np
import pytest
from test_demo import count_pictures, half_bright, read_lines, write_pictures, write_video
from tiny_onnx import write_halves

import demo_uhd
from uhd.demo.frames import Frame, Result
from uhd.demo.overlay import annotate, zoom_of
from uhd.runtime import Detections

ESCAPE, SPACE, NO_KEY = 27, ord(" "), -1


class Screen:
    """Stands in for OpenCV's windows: keeps what is shown and plays keys, one for each time it is asked.

    keys: "close" closes the window instead.
    """

    def __init__(self, keys):
        self.keys = list(keys)
        self.shown, self.titles, self.waits, self.size = [], [], [], None
        self.is_open = False

    def open(self, title, flags):
        self.is_open = True

    def show(self, title, picture):
        self.shown.append(picture)

    def wait(self, ms):
        assert ms > 0, "for ever: no signal would be answered"
        self.waits.append(ms)
        key = self.keys.pop(0) if self.keys else NO_KEY
        if key == "close":
            self.is_open = False
            return NO_KEY
        return key

    def visible(self, title, what):
        assert what == cv2.WND_PROP_VISIBLE
        if not self.is_open:
            raise cv2.error("NULL guiReceiver (please create a window)")  # as Qt does after its last window
        return 1.0

    def resize(self, title, width, height):
        self.size = (height, width)

    def close(self):
        self.is_open = False


@pytest.fixture
def screen(monkeypatch):
    """Makes a Screen in place of OpenCV's windows."""

    def make(*keys):
        made = Screen(keys)
        monkeypatch.setattr("uhd.demo.window.check_display", lambda: None)
        parts = {"namedWindow": made.open, "imshow": made.show, "waitKey": made.wait, "resizeWindow": made.resize}
        parts |= {"getWindowProperty": made.visible, "destroyAllWindows": made.close}
        parts |= {"setWindowTitle": lambda _, text: made.titles.append(text)}
        for name, part in parts.items():
            monkeypatch.setattr(cv2, name, part)
        return made

    return make


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write_halves(tmp_path / "halves.onnx", (0, 1), class_names=("left", "right"), best_f1_threshold=0.5)


PICTURE_KEYS = {
    # keys, how many of five pictures are shown
    "any key": ([ord("n"), ord("x"), SPACE, 13, 81], 5),
    "no key for a while": ([NO_KEY, NO_KEY, ord("n"), NO_KEY, ESCAPE], 2),
    "q": ([ord("q")], 1),
    "escape": ([ord("n"), ESCAPE], 2),
    "escape with a modifier": ([ord("n"), 0x100000 | ESCAPE], 2),
    "the window is closed": ([ord("n"), NO_KEY, "close"], 2),
}


@pytest.mark.parametrize(("keys", "count"), PICTURE_KEYS.values(), ids=PICTURE_KEYS)
def test_pictures_wait_for_keys(screen, model, tmp_path, keys, count):
    names = write_pictures(tmp_path / "in")
    seen = screen(*keys)
    assert demo_uhd.main(["--onnx", str(model), "--images", "in", "--save", "out.jsonl"]) == 0
    assert len(seen.shown) == count
    assert [title.split(":")[0] for title in seen.titles] == names[:count]
    assert len(read_lines(tmp_path / "out.jsonl")) == count
    assert not seen.is_open


VIDEO_KEYS = {
    # keys, how many of six pictures are shown
    "no key": ([], 6),
    "a key without a meaning": ([ord("n")], 6),
    "pause": ([NO_KEY, SPACE, NO_KEY, NO_KEY, SPACE], 6),
    "leave in a pause": ([NO_KEY, SPACE, NO_KEY, ESCAPE], 2),
    "closed in a pause": ([NO_KEY, SPACE, NO_KEY, "close"], 2),
    "q": ([NO_KEY, NO_KEY, ord("q")], 3),
    "the window is closed": ([NO_KEY, "close"], 2),
}


@pytest.mark.parametrize(("keys", "count"), VIDEO_KEYS.values(), ids=VIDEO_KEYS)
def test_video_goes_on_by_itself(screen, model, tmp_path, keys, count):
    write_video(tmp_path / "in.avi", size=(24, 32))
    seen = screen(*keys)
    assert demo_uhd.main(["--onnx", str(model), "--video", "in.avi"]) == 0
    assert len(seen.shown) == count
    assert seen.shown[0].shape == (24 * 8, 32 * 8, 3)
    assert seen.size == (480, 640)
    assert max(seen.waits) <= 80, "longer than a picture of 12.5 a second lasts"


class Camera:
    """Stands in for a camera: gives pictures until `left` are used up, the left half bright."""

    instances: list
    left = 4
    fps = 15.0

    def __init__(self, index):
        self.index, self.remaining, self.asked, self.is_released = index, self.left, {}, False
        self.instances.append(self)

    def isOpened(self):  # noqa: N802 - OpenCV's name
        return True

    def read(self):
        self.remaining -= 1
        return (True, half_bright(48, 64)) if self.remaining >= 0 else (False, None)

    def get(self, what):
        return self.fps if what == cv2.CAP_PROP_FPS else 0.0

    def set(self, what, value):
        self.asked[what] = value

    def release(self):
        self.is_released = True


@pytest.fixture
def camera(monkeypatch):
    """Cameras of the class Camera; gives the list of those that were opened."""
    made = []
    real = cv2.VideoCapture
    monkeypatch.setattr(Camera, "instances", made, raising=False)
    monkeypatch.setattr(cv2, "VideoCapture", lambda source: Camera(source) if isinstance(source, int) else real(source))
    return made


CAMERA_FLAGS = {
    "the first": (("--camera",), 0, "left", {}),
    "another": (("--camera", "2"), 2, "left", {}),
    "mirrored": (("--camera", "0", "--mirror"), 0, "right", {}),
    "sized": (
        ("--camera", "--camera-size", "48x64"),
        0,
        "left",
        {cv2.CAP_PROP_FRAME_WIDTH: 64, cv2.CAP_PROP_FRAME_HEIGHT: 48},
    ),
}


@pytest.mark.parametrize(("flags", "index", "side", "asked"), CAMERA_FLAGS.values(), ids=CAMERA_FLAGS)
def test_camera(camera, model, tmp_path, capfd, flags, index, side, asked):
    options = ["--no-window", "--max-frames", "3", "--save", "out.jsonl"]
    assert demo_uhd.main(["--onnx", str(model), *flags, *options]) == 0
    lines = read_lines(tmp_path / "out.jsonl")
    assert [(line["source"], line["frame"]) for line in lines] == [(f"camera {index}", i) for i in (1, 2, 3)]
    assert {line["detections"][0]["name"] for line in lines} == {side}
    assert [(each.index, each.asked, each.is_released) for each in camera] == [(index, asked, True)]
    assert capfd.readouterr().err == ""


def test_camera_that_gives_another_size(camera, model, capfd):
    flags = ["--camera", "--camera-size", "720x1280", "--no-window", "--max-frames", "1"]
    assert demo_uhd.main(["--onnx", str(model), *flags]) == 0
    assert capfd.readouterr().err == "warning: --camera-size 720x1280: this camera gives 48x64\n"


@pytest.mark.parametrize("save", ["out.jsonl", "out.mp4", "out"])
def test_camera_that_is_pulled_out(camera, model, tmp_path, capfd, save):
    """A failure of the machine; what was seen until then is kept."""
    assert demo_uhd.main(["--onnx", str(model), "--camera", "--no-window", "--save", save]) == 1
    assert capfd.readouterr().err == "demo_uhd.py: error: --camera 0: it delivers no more pictures\n"
    counts = {
        "out.jsonl": lambda path: len(read_lines(path)),
        "out.mp4": lambda path: count_pictures(path)[0],
        "out": lambda path: len(list(path.iterdir())),
    }
    assert counts[save](tmp_path / save) == 4
    assert save != "out.mp4" or count_pictures(tmp_path / save)[1] == 15
    assert camera[0].is_released


def test_camera_without_a_picture(camera, model, monkeypatch, capfd):
    monkeypatch.setattr(Camera, "left", 0)
    assert demo_uhd.main(["--onnx", str(model), "--camera", "--no-window"]) == 2
    assert capfd.readouterr().err == "demo_uhd.py: error: --camera 0: it delivers no picture\n"
    assert camera[0].is_released


def test_camera_that_does_not_say_its_rate(camera, model, tmp_path, monkeypatch):
    monkeypatch.setattr(Camera, "fps", float("nan"))
    flags = ["--camera", "--no-window", "--max-frames", "2", "--save", "out.mp4"]
    assert demo_uhd.main(["--onnx", str(model), *flags]) == 0
    assert count_pictures(tmp_path / "out.mp4")[:2] == (2, 30)


# What is drawn


def result_of(image, boxes, labels=None):
    count = len(boxes)
    found = Detections(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.linspace(0.9, 0.5, count, dtype=np.float32),
        np.array([0] * count if labels is None else labels, np.int64),
    )
    return Result(Frame(image, "a.png", 1), found, 0.5)


def changed_area(picture, ground):
    """The (x1, y1, x2, y2) of what differs; None where nothing does."""
    ys, xs = np.nonzero((picture != ground).any(axis=2))
    return (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) if len(xs) else None


SIZES = {(1, 1): 256, (64, 64): 4, (64, 128): 2, (200, 100): 2, (255, 10): 2, (256, 256): 1, (1080, 1920): 1}


@pytest.mark.parametrize("size", SIZES)
def test_small_pictures_are_enlarged(size):
    image = np.full((*size, 3), 100, np.uint8)
    drawn = annotate(result_of(image, [(0, 0, size[1] / 2, size[0])]), ("person",), "0.41 ms  230 FPS")
    assert zoom_of(size) == SIZES[size]
    assert drawn.shape == (size[0] * SIZES[size], size[1] * SIZES[size], 3)
    assert (image == 100).all()


@pytest.mark.parametrize("shade", [0, 128, 255])
@pytest.mark.parametrize("size", [(256, 256), (480, 640), (1080, 1920)])
def test_a_box_can_be_seen_on_any_ground(size, shade):
    """Its line lies on the box's border and differs clearly from the ground, in brightness or from a dark rim."""
    height, width = size
    image = np.full((*size, 3), shade, np.uint8)
    left, top, right, bottom = width // 4, height // 2, width // 2, height - 40
    drawn = annotate(result_of(image, [(left, top, right, bottom)]), ("person",))
    rim = max(8, height // 80)
    area = changed_area(drawn[top:], image[top:])
    assert np.abs(np.subtract(area, (left, 0, right, bottom - top))).max() <= rim
    across = drawn[(top + bottom) // 2, left - rim : left + rim].astype(int)
    assert across.max() - across.min() > 100
    inside = drawn[top + 2 * rim : bottom - 2 * rim, left + 2 * rim : right - 2 * rim]
    assert (inside == shade).all()


@pytest.mark.parametrize(
    "box", [(0, 0, 300, 300), (290, 290, 300, 300), (0, 0, 0, 0), (299, 0, 300, 5), (-5, -5, 400, 400)]
)
def test_boxes_at_the_border(box):
    image = np.full((300, 300, 3), 128, np.uint8)
    assert annotate(result_of(image, [box]), ("person", "a name as long as the picture is wide, and longer")).shape


def test_names_are_written_where_there_are_several():
    """A label of one class is its score alone, so it is narrower."""
    image = np.full((300, 600, 3), 128, np.uint8)
    boxes = [(100, 100, 110, 250)]
    widths = []
    for names, labels in ((("person",), [0]), (("person", "head"), [0]), (("person",), [1])):
        x1, _, x2, _ = changed_area(annotate(result_of(image, boxes, labels), names), image)
        widths.append(x2 - x1)
    assert widths[0] < 60 < widths[1]
    assert widths[0] < 60 < widths[2]  # of a file that names no class 1


def test_the_speed_stands_in_the_lower_left_corner():
    image = np.full((300, 400, 3), 128, np.uint8)
    drawn = annotate(result_of(image, []), ("person",), "0.41 ms  230 FPS")
    x1, y1, x2, y2 = changed_area(drawn, image)
    assert (x1, y2) == (0, 300)
    assert x2 < 200
    assert y1 > 260
    assert changed_area(annotate(result_of(image, []), ("person",)), image) is None
