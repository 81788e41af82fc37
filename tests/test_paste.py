"""The pictures of the paste generator: boxes against the pixels that changed, places, colours, backgrounds."""

import cv2
import numpy as np
import pytest
from pasting import GREY, MAGENTA, config, cutout_of, shape_mask, write_rgba
from PIL import Image as PillowImage

from uhd.config import PasteConfig
from uhd.data.images import read_image, read_rgba
from uhd.data.paste.color import match_colors
from uhd.data.paste.cutout import Cutout, Pose, box_of, cut_out
from uhd.data.paste.placing import Placed
from uhd.data.paste.scene import compose, fitted
from uhd.data.paste.targets import Target

FLAT = np.full((150, 200, 3), GREY, np.uint8)


def composed(cfg, seed, rgbas, background=FLAT):
    """A scene of targets that are arrays; the label of each is its place in the list."""
    targets = [Target(str(i), i) for i in range(len(rgbas))]
    return compose(np.random.default_rng(seed), cfg, background, targets, lambda target: rgbas[target.label])


def changed_box(scene, background=FLAT):
    return box_of((scene.image != background).any(axis=2))


def assert_tight(box, pixels, slack=1):
    np.testing.assert_allclose(box, pixels, atol=slack)


# --- boxes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [0.02, 0.05, 0.2, 0.5])
@pytest.mark.parametrize("feather", [0.0, 1.0, 5.0])
@pytest.mark.parametrize("rotation", [0.0, 8.0, 45.0, 180.0])
@pytest.mark.parametrize("shape", ["bar", "ellipse", "triangle", "ell", "two parts"])
def test_box_is_that_of_the_pixels_that_changed(shape, rotation, feather, threshold):
    """By at least the threshold's share of the contrast; below 2 % of it nothing lies more than a pixel outside.

    Whole targets and truncated ones, small and large.
    """
    cfg = config(
        rotation=rotation, feather=feather, flips="both", min_scale=0.1, max_scale=1.2, min_visible=0.3,
        alpha_threshold=threshold,
    )  # fmt: skip
    target = cutout_of(shape_mask(shape), (GREY, 250, GREY))
    num_cut = 0
    for seed in range(15):
        scene = composed(cfg, seed, [target])
        (box,) = scene.boxes
        change = scene.image[..., 1].astype(float) - GREY
        assert_tight(box, box_of(change >= threshold * (250 - GREY)))
        if threshold == 0.02:
            assert_tight(box, box_of(change > 0))
        assert 0 <= box.x1 < box.x2 <= 200
        assert 0 <= box.y1 < box.y2 <= 150
        num_cut += box.x1 == 0 or box.y1 == 0 or box.x2 == 200 or box.y2 == 150
    assert 0 < num_cut < 15


@pytest.mark.parametrize("shape", ["bar", "ellipse", "triangle", "ell", "two parts"])
def test_box_of_a_whole_target_encloses_all_that_changed(shape):
    """With the flags as they are, but for the colours."""
    cfg = config(rotation=PasteConfig.rotation, feather=PasteConfig.feather, flips="horizontal", min_visible=1.0)
    for seed in range(40):
        scene = composed(cfg, seed, [cutout_of(shape_mask(shape))])
        assert_tight(scene.boxes[0], changed_box(scene))


def test_box_of_an_unturned_target_is_exact():
    """A bar of 40x100 pixels on 200x100: half as large it is 20x50, and so is its box."""
    cfg = config(min_scale=0.5, max_scale=0.5, min_visible=1.0)
    bar = cutout_of(np.pad(np.ones((100, 40), np.uint8), 7))
    for seed in range(20):
        scene = composed(cfg, seed, [bar], np.full((100, 200, 3), GREY, np.uint8))
        (box,) = scene.boxes
        assert (box.x2 - box.x1, box.y2 - box.y1) == (20, 50)
        assert box == changed_box(scene, GREY)
        assert (scene.image[box.y1 : box.y2, box.x1 : box.x2] == MAGENTA).all()


TURNED = {
    # height, width, degrees: height and width of the turned bar, by hand
    "not at all": (100, 20, 0.0, 100.0, 20.0),
    "a quarter": (100, 20, 90.0, 20.0, 100.0),
    "half": (100, 20, 180.0, 100.0, 20.0),
    "30 degrees": (100, 20, 30.0, 96.60, 67.32),
    "minus 30 degrees": (100, 20, -30.0, 96.60, 67.32),
    "a square by 45 degrees": (60, 60, 45.0, 84.85, 84.85),
    "a few pixels high": (4, 80, 45.0, 59.4, 59.4),
    "a single pixel": (1, 1, 0.0, 1.0, 1.0),
    "large": (1400, 300, 10.0, 1430.82, 538.56),
}


@pytest.mark.parametrize(("height", "width", "degrees", "down", "across"), TURNED.values(), ids=TURNED)
def test_turned_bars_worked_by_hand(height, width, degrees, down, across):
    bar = cutout_of(np.pad(np.ones((height, width), np.uint8), 5))
    cutout = cut_out(bar, Pose(max(height, width), degrees), 0.0, 0.2)
    box = box_of(cutout.solid)
    assert box.y2 - box.y1 == pytest.approx(down, abs=2)
    assert box.x2 - box.x1 == pytest.approx(across, abs=2)
    assert cutout.alpha.sum() == pytest.approx(height * width, rel=0.02)


def test_direction_of_turning_and_mirroring():
    """A mark at the upper left of a square: counter-clockwise by a quarter it is at the lower left."""
    mask = np.ones((40, 40), np.uint8)
    rgba = cutout_of(mask)
    rgba[:10, :10, :3] = (0, 255, 0)

    def corner_of_mark(pose):
        cutout = cut_out(rgba, pose, 0.0, 0.2)
        y, x = np.argwhere((cutout.colors[..., 1] > 200) & cutout.solid).mean(axis=0)
        return "upper" if y < 20 else "lower", "left" if x < 20 else "right"

    assert corner_of_mark(Pose(40)) == ("upper", "left")
    assert corner_of_mark(Pose(40, 90.0)) == ("lower", "left")
    assert corner_of_mark(Pose(40, -90.0)) == ("upper", "right")
    assert corner_of_mark(Pose(40, mirror_x=True)) == ("upper", "right")
    assert corner_of_mark(Pose(40, mirror_y=True)) == ("lower", "left")


def test_faint_alpha_counts_neither_for_the_box_nor_for_the_size():
    """A shadow of a tenth around a bar of 40x20; the bar's longer side is the scale's."""
    alpha = np.full((100, 100), 26, np.uint8)
    alpha[30:70, 40:60] = 255
    rgba = np.dstack([np.full((100, 100, 3), 255, np.uint8), alpha])
    for threshold, sides in ((0.2, (80, 40)), (0.05, (80, 80))):
        cutout = cut_out(rgba, Pose(80.0), 0.0, threshold)
        box = box_of(cutout.solid)
        assert (box.y2 - box.y1, box.x2 - box.x1) == pytest.approx(sides, abs=2)
        assert (cutout.alpha > 0).sum() > cutout.solid.sum() or threshold == 0.05


def test_traces_all_over_the_file_cost_no_memory():
    """A bar of 20x10 in a file of 3000x3000 with traces: enlarged whole it would have 3.6 billion pixels."""
    alpha = np.full((3000, 3000), 1, np.uint8)
    alpha[1500:1520, 1500:1510] = 255
    rgba = np.dstack([np.full((3000, 3000, 3), 255, np.uint8), alpha])
    for degrees, sides in ((0.0, (400, 200)), (90.0, (200, 400))):
        cutout = cut_out(rgba, Pose(400.0, degrees), 0.0, 0.2)
        box = box_of(cutout.solid)
        assert (box.y2 - box.y1, box.x2 - box.x1) == pytest.approx(sides, abs=20)
        assert max(cutout.alpha.shape) <= 3 * 400 + 40


def test_colours_of_invisible_pixels_do_not_mix_in():
    """The white around the target would lighten its edge."""
    for pose in (Pose(33.0, 20.0), Pose(200.0, 20.0), Pose(50.0)):
        cutout = cut_out(cutout_of(shape_mask("ellipse")), pose, 1.0, 0.2)
        np.testing.assert_allclose(
            cutout.colors[cutout.solid], np.broadcast_to(MAGENTA, (cutout.solid.sum(), 3)), atol=3
        )


def test_nothing_solid_remains():
    dot = np.zeros((400, 400), np.uint8)
    dot[0, 0] = dot[399, 399] = 1
    assert cut_out(cutout_of(dot), Pose(4.0), 0.0, 0.9) is None
    assert cut_out(np.zeros((5, 5, 4), np.uint8), Pose(4.0), 0.0, 0.2) is None


# --- edges --------------------------------------------------------------------------------------


def test_feathering_softens_inwards_and_no_more_than_a_hundredth():
    bar = cutout_of(np.pad(np.ones((200, 100), np.uint8), 5))
    hard, soft, softest = (cut_out(bar, Pose(200.0), feather, 0.2) for feather in (0.0, 1.0, 100.0))
    assert set(np.unique(hard.alpha)) == {1.0}
    row = soft.alpha[100]
    assert (np.diff(row[:4]) > 0).all()
    assert 0.2 < row[0] < 0.6
    assert row[50] == 1
    assert softest.alpha[100, 50] == pytest.approx(1)
    assert np.count_nonzero(softest.alpha[100] < 0.95) <= 2 * 4
    assert soft.alpha.shape == hard.alpha.shape


# --- places -------------------------------------------------------------------------------------

COLORS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255)]
BARS = [cutout_of(np.ones((60, 30), np.uint8), color) for color in COLORS]


@pytest.mark.parametrize(("min_visible", "max_overlap"), [(0.5, 0.3), (0.9, 1.0), (0.1, 0.0), (1.0, 0.0), (0.0, 1.0)])
def test_every_target_is_seen_and_has_its_box(min_visible, max_overlap):
    """Bars of 50x25 pixels, unturned: what is seen of each colour can be counted."""
    cfg = config(
        min_targets=5, max_targets=5, min_scale=0.5, max_scale=0.5, min_visible=min_visible, max_overlap=max_overlap
    )
    ground = np.full((100, 100, 3), GREY, np.uint8)
    num_left_out = num_covered = 0
    for seed in range(30):
        scene = composed(cfg, seed, BARS, ground)
        assert len(scene.boxes) == len(scene.labels) == 5 - scene.num_left_out
        num_left_out += scene.num_left_out
        seen = np.zeros(ground.shape[:2], bool)
        for label in set(scene.labels):
            own = (scene.image == COLORS[label]).all(axis=2)
            seen |= own
            boxes = [box for box, other in zip(scene.boxes, scene.labels, strict=True) if other == label]
            if len(boxes) > 1:
                continue
            assert np.count_nonzero(own) >= max(1, min_visible * 1250)
            (box,) = boxes
            assert own[box.y1 : box.y2, box.x1 : box.x2].sum() == own.sum()
            area = (box.x2 - box.x1) * (box.y2 - box.y1)
            assert area >= min_visible * 1250
            num_covered += own.sum() < area
        assert (seen == (scene.image != GREY).any(axis=2)).all()
    assert (num_covered > 0) == (max_overlap > 0)
    if (min_visible, max_overlap) == (1.0, 0.0):
        assert num_left_out > 0


def test_a_small_target_does_not_lie_on_a_large_one():
    """It would cover little of it, but most of itself."""
    cfg = config(min_targets=6, max_targets=6, min_scale=0.1, max_scale=0.9, max_overlap=0.0, min_visible=0.3)
    for seed in range(20):
        scene = composed(cfg, seed, BARS)
        cover = np.zeros(FLAT.shape[:2], int)
        for x1, y1, x2, y2 in scene.boxes:
            cover[y1:y2, x1:x2] += 1
        assert cover.max() == 1


def test_larger_targets_lie_over_smaller_ones():
    cfg = config(min_targets=4, max_targets=4, min_scale=0.2, max_scale=0.9)
    for seed in range(10):
        scene = composed(cfg, seed, BARS[:1], np.full((400, 400, 3), GREY, np.uint8))
        heights = [y2 - y1 for x1, y1, x2, y2 in scene.boxes if y1 > 0 and y2 < 400]
        assert heights == sorted(heights)


PLACES = {
    # corner of a 4x6 cut-out on a picture of 10x12 (height, width): window, box
    "inside": ((3, 2), (3, 2, 9, 6), (3, 2, 9, 6)),
    "touching the upper left": ((0, 0), (0, 0, 6, 4), (0, 0, 6, 4)),
    "touching the lower right": ((6, 6), (6, 6, 12, 10), (6, 6, 12, 10)),
    "beyond the left": ((-2, 2), (0, 2, 4, 6), (0, 2, 4, 6)),
    "beyond the lower right": ((9, 8), (9, 8, 12, 10), (9, 8, 12, 10)),
}


@pytest.mark.parametrize(("corner", "window", "box"), PLACES.values(), ids=PLACES)
def test_placed(corner, window, box):
    solid = np.ones((4, 6), bool)
    placed = Placed(Cutout(np.zeros((4, 6, 3), np.float32), solid.astype(np.float32), solid), corner, (10, 12))
    assert tuple(placed.window) == window
    assert tuple(placed.box()) == box
    area = (box[2] - box[0]) * (box[3] - box[1])
    assert placed.visible_share == pytest.approx(area / 24)


@pytest.mark.parametrize("corner", [(-6, 0), (12, 0), (0, -9), (30, 30)])
def test_placed_beside_the_picture(corner):
    solid = np.ones((4, 6), bool)
    placed = Placed(Cutout(np.zeros((4, 6, 3), np.float32), solid.astype(np.float32), solid), corner, (10, 12))
    assert placed.visible_share == 0


def test_the_box_of_a_truncated_target_is_that_of_what_is_left():
    """Of an L cut off on the left, whose foot alone remains, the box has the foot's height."""
    mask = np.zeros((60, 60), np.uint8)
    mask[:, :20] = mask[50:] = 1
    cutout = cut_out(cutout_of(mask), Pose(60.0), 0.0, 0.2)
    assert tuple(Placed(cutout, (-25, 5), (100, 100)).box()) == (0, 55, 35, 65)


@pytest.mark.parametrize(("low", "high"), [(0, 0), (2, 2), (0, 3), (1, 4)])
def test_number_of_targets(low, high):
    cfg = config(min_targets=low, max_targets=high, min_scale=0.05, max_scale=0.1)
    scenes = [composed(cfg, seed, BARS) for seed in range(40)]
    assert {len(scene.boxes) + scene.num_left_out for scene in scenes} == set(range(low, high + 1))
    if high == 0:
        assert all((scene.image == GREY).all() for scene in scenes)


def test_a_target_that_is_larger_than_the_picture():
    whole = config(min_scale=2.0, max_scale=2.0, min_visible=1.0)
    assert composed(whole, 0, BARS[:1]).num_left_out == 1
    part = composed(config(min_scale=2.0, max_scale=2.0, min_visible=0.2), 0, BARS[:1])
    assert_tight(part.boxes[0], changed_box(part), slack=0)


def test_scales_are_shares_of_the_shorter_side():
    cfg = config(min_scale=0.2, max_scale=0.6, min_visible=1.0)
    heights = [y2 - y1 for seed in range(200) for _, y1, _, y2 in composed(cfg, seed, BARS[:1]).boxes]
    assert (min(heights), max(heights)) == (pytest.approx(30, abs=2), pytest.approx(90, abs=2))
    assert np.median(heights) == pytest.approx(np.sqrt(30 * 90), abs=8)


# --- colours ------------------------------------------------------------------------------------


def lab_of(rgb):
    return cv2.cvtColor(np.float32(rgb).reshape(-1, 1, 3) / 255, cv2.COLOR_RGB2Lab).reshape(-1, 3)


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_colours_move_towards_the_surroundings(strength):
    rng = np.random.default_rng(0)
    colors = rng.uniform(90, 150, (20, 30, 3)).astype(np.float32)
    around = rng.integers(60, 130, (40, 50, 3)).astype(np.uint8)
    solid = np.ones((20, 30), bool)
    moved = match_colors(Cutout(colors, solid.astype(np.float32), solid), around, strength)
    own, other, result = lab_of(colors), lab_of(around), lab_of(moved)
    expected = own.mean(0) + strength * (other.mean(0) - own.mean(0))
    np.testing.assert_allclose(result.mean(0), expected, atol=0.3)
    ratio = np.clip(other.std(0) / own.std(0), 0.5, 2)
    np.testing.assert_allclose(result.std(0), own.std(0) * (1 + strength * (ratio - 1)), rtol=0.03)


def test_on_a_plain_wall_a_target_keeps_half_of_its_contrast():
    colors = np.random.default_rng(0).uniform(90, 150, (20, 30, 3)).astype(np.float32)
    solid = np.ones((20, 30), bool)
    moved = match_colors(Cutout(colors, solid.astype(np.float32), solid), FLAT, 1.0)
    np.testing.assert_allclose(lab_of(moved).std(0), lab_of(colors).std(0) / 2, rtol=0.03)
    assert moved.min() >= 0
    assert moved.max() <= 255


def test_colours_change_nothing_else():
    plain, matched = (composed(config(color_match=strength), 3, BARS) for strength in (0.0, 1.0))
    assert plain.boxes == matched.boxes
    assert (plain.image != matched.image).any()


# --- backgrounds --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(50, 50), (100, 40), (30, 200), (300, 300)])
def test_background_is_cropped_not_squashed(size):
    """Levels say where a pixel of the 100x200 background was: both axes shrink by the same factor."""
    y, x = np.mgrid[:100, :200]
    background = np.stack([x, y * 2, np.zeros_like(x)], axis=2).astype(np.uint8)
    factor = min(100 / size[0], 200 / size[1])
    for seed in range(5):
        shown = fitted(np.random.default_rng(seed), background, size).astype(float)
        assert shown.shape == (*size, 3)
        inner = shown[size[0] // 10 : -size[0] // 10, size[1] // 10 : -size[1] // 10]
        assert np.diff(inner[..., 0], axis=1).mean() == pytest.approx(factor, rel=0.05)
        assert np.diff(inner[..., 1], axis=0).mean() == pytest.approx(2 * factor, rel=0.05)


def test_background_of_its_own_size_is_left_as_it_is():
    assert fitted(np.random.default_rng(0), FLAT, None) is FLAT
    assert (fitted(np.random.default_rng(0), FLAT, FLAT.shape[:2]) == FLAT).all()


# --- files --------------------------------------------------------------------------------------


def pillow_modes(folder):
    """The same picture, a red square on transparent, in the modes that a PNG may have, and what each keeps of it."""
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[2:6, 2:6] = (200, 0, 0, 255)
    image = PillowImage.fromarray(rgba)
    modes = {
        "rgba": image,
        "palette": image.quantize(4),
        "grey and alpha": image.convert("LA"),
        "rgb": image.convert("RGB"),
        "grey": image.convert("L"),
        "one bit": image.convert("1"),
    }
    for name, each in modes.items():
        each.save(folder / f"{name}.png")
    wide = np.zeros((8, 8, 4), np.uint16)
    wide[2:6, 2:6] = (0, 0, 200 * 257, 65535)
    assert cv2.imwrite(str(folder / "16 bits.png"), wide)
    image.save(folder / "lossless.webp", lossless=True)
    return [*(f"{name}.png" for name in (*modes, "16 bits")), "lossless.webp"]


def test_targets_of_every_kind_of_file(tmp_path):
    for name in pillow_modes(tmp_path):
        rgba = read_rgba(tmp_path / name)
        assert (rgba.shape, rgba.dtype) == ((8, 8, 4), np.uint8), name
        has_alpha = name not in {"rgb.png", "grey.png", "one bit.png"}
        assert rgba[0, 0, 3] == (0 if has_alpha else 255), name
        assert rgba[3, 3, 3] == 255, name
        if "grey" not in name and "one bit" not in name:
            assert rgba[3, 3, :3].tolist() == pytest.approx([200, 0, 0], abs=2), name


def test_backgrounds_of_every_kind_of_file(tmp_path):
    cfg = config(min_scale=0.5, max_scale=0.5)
    for name in pillow_modes(tmp_path):
        background = read_image(tmp_path / name)
        scene = composed(cfg, 0, BARS[:1], background)
        assert scene.image.shape == (8, 8, 3), name
        assert len(scene.boxes) == 1


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "missing"])
def test_target_that_cannot_be_read(tmp_path, damage):
    path = write_rgba(tmp_path / "x.png", cutout_of(shape_mask("bar")))
    whole = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"empty": b"", "text": b"text", "cut": whole[: len(whole) // 2]}[damage])
    with pytest.raises(ValueError, match=r"x\.png: "):
        read_rgba(path)
