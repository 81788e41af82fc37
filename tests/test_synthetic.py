import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from uhd.data import synthetic
from uhd.data.synthetic import Scene, draw_scene, write_demo_data
from uhd.data.synthetic_scene import Arrangement, Finish, Item, arrange, label_boxes, render
from uhd.data.synthetic_shapes import SUPERSAMPLING, Sketch, limb_outline

PLAIN_FINISH = Finish(light=np.full((3, 4, 3), 128, np.uint8), blur=0.0, noise=0.0, noise_corner=(0, 0))
MARKER = "demo-data.json"


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [draw_scene(np.random.default_rng([7, index])) for index in range(400)]


@pytest.fixture(scope="module")
def arrangements() -> list[Arrangement]:
    return [arrange(np.random.default_rng([11, index])) for index in range(80)]


def stencil(arrangement: Arrangement, shown: Item, hiding: tuple[Item, ...]) -> np.ndarray:
    """The picture with one figure's body white and all else black, as a bool mask of what is mostly white."""

    def painted(item: Item, level: int) -> Item:
        body = replace(item.body, colours=((level,) * 3,) * len(item.body.colours))
        behind = item.behind and replace(item.behind, colours=((0, 0, 0),) * len(item.behind.colours))
        return replace(item, body=body, behind=behind)

    items = (*(painted(item, 0) for item in hiding), painted(shown, 255))
    black = Arrangement(np.zeros_like(arrangement.canvas), items, PLAIN_FINISH)
    return render(black)[..., 0] >= 128


def people(arrangement: Arrangement) -> Iterator[tuple[int, Item, np.ndarray]]:
    """(position among the items, item, its label in pixels) of each person."""
    height, width = np.array(arrangement.canvas.shape[:2]) // SUPERSAMPLING
    boxes = iter(label_boxes(arrangement) * np.array([width, height, width, height]))
    for position, item in enumerate(arrangement.items):
        if item.is_person:
            yield position, item, next(boxes)


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


# --- scenes -----------------------------------------------------------------------------------------


def test_a_scene_is_a_function_of_the_generator_state() -> None:
    first, second, other = (draw_scene(np.random.default_rng(state)) for state in ([3, 5], [3, 5], [3, 6]))
    np.testing.assert_array_equal(first.image, second.image)
    np.testing.assert_array_equal(first.boxes, second.boxes)
    assert first.image.shape != other.image.shape or (first.image != other.image).any()


def test_pictures_and_boxes_have_the_promised_form(scenes: list[Scene]) -> None:
    for scene in scenes:
        height, width, channels = scene.image.shape
        assert (scene.image.dtype, channels) == (np.uint8, 3)
        assert 200 <= height <= 360
        assert 200 <= width <= 360
        assert scene.boxes.dtype == np.float32
        assert scene.boxes.shape[1:] == (4,)
        assert (scene.boxes >= 0).all()
        assert (scene.boxes <= 1).all()
        assert (scene.boxes[:, 2:] > scene.boxes[:, :2]).all()


def test_pictures_show_something(scenes: list[Scene]) -> None:
    spread = [scene.image.std() for scene in scenes]
    assert min(spread) > 4
    assert np.mean(spread) > 30
    assert {np.sign(scene.image.shape[0] - scene.image.shape[1]) for scene in scenes} == {-1, 0, 1}


def test_numbers_of_people(scenes: list[Scene]) -> None:
    counts = np.bincount([len(scene.boxes) for scene in scenes], minlength=6)
    assert len(counts) == 6
    assert (counts > 0).all()
    assert 0.08 < counts[0] / counts.sum() < 0.17
    assert 1.7 < np.average(range(6), weights=counts) < 2.3


def test_sizes_suit_a_64_pixel_input(scenes: list[Scene]) -> None:
    boxes = np.concatenate([scene.boxes for scene in scenes])
    heights = (boxes[:, 3] - boxes[:, 1]) * 64
    assert ((heights >= 10) & (heights <= 58)).mean() > 0.8
    assert 0.02 < (heights < 14).mean() < 0.2
    assert heights.min() > 5
    at_the_border = (boxes == 0).any(axis=1) | (boxes == 1).any(axis=1)
    assert 0.1 < at_the_border.mean() < 0.5


def test_empty_scenes_hold_other_things(arrangements: list[Arrangement]) -> None:
    empty = [item for item in arrangements if len(label_boxes(item)) == 0]
    assert empty
    assert all(item.items for item in empty)
    assert all(label_boxes(item).shape == (0, 4) for item in empty)


# --- labels -----------------------------------------------------------------------------------------


def test_labels_enclose_the_whole_figure_tightly(arrangements: list[Arrangement]) -> None:
    seen = 0
    for arrangement in arrangements:
        for _, item, label in people(arrangement):
            rows, columns = np.nonzero(stencil(arrangement, item, ()))
            drawn = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            np.testing.assert_allclose(drawn, label, atol=1.6)
            seen += 1
    assert seen > 100


def test_people_are_seen_well_enough(arrangements: list[Arrangement]) -> None:
    for arrangement in arrangements:
        for position, item, _ in people(arrangement):
            whole = np.count_nonzero(stencil(arrangement, item, ()))
            seen = np.count_nonzero(stencil(arrangement, item, arrangement.items[:position]))
            assert seen > 0.3 * whole


def test_nobody_is_seen_outside_of_the_labels(arrangements: list[Arrangement]) -> None:
    for arrangement in arrangements:
        crisp = replace(arrangement, finish=replace(arrangement.finish, blur=0.0))
        # A seat is no part of its person: it stays when the person goes.
        nobody = tuple(
            replace(item, body=item.behind, behind=None) if item.is_person and item.behind else item
            for item in arrangement.items
            if item.behind or not item.is_person
        )
        changed = (render(crisp) != render(replace(crisp, items=nobody))).any(axis=2)
        for _, _, (left, top, right, bottom) in people(arrangement):
            changed[max(int(top) - 2, 0) : int(bottom) + 3, max(int(left) - 2, 0) : int(right) + 3] = False
        assert not changed.any()


# --- shapes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "end", "radii", "box"),
    [
        pytest.param((0, 0), (10, 0), (2, 2), (-2, -2, 12, 2), id="capsule"),
        pytest.param((0, 0), (0, -10), (3, 1), (-3, -11, 3, 3), id="tapered"),
        pytest.param((5, 5), (5, 5), (2, 2), (3, 3, 7, 7), id="one point"),
        pytest.param((0, 0), (1, 0), (5, 1), (-5, -5, 5, 5), id="second inside of the first"),
        pytest.param((0, 0), (1, 0), (1, 5), (-4, -5, 6, 5), id="first inside of the second"),
        pytest.param((0, 0), (4, 0), (5, 1), (-5, -5, 5, 5), id="touching from within"),
    ],
)
def test_limb_outline_spans_both_circles(
    start: tuple[float, float],
    end: tuple[float, float],
    radii: tuple[float, float],
    box: tuple[float, float, float, float],
) -> None:
    outline = limb_outline(start, end, radii)
    spanned = (*outline.min(axis=0), *outline.max(axis=0))
    np.testing.assert_allclose(spanned, box, atol=0.1 * max(radii))
    assert cv2.isContourConvex(outline.astype(np.float32))


def test_sprites_lie_where_they_are_put() -> None:
    sketch = Sketch()
    sketch.rectangle(0.0, 0.0, 1.0, 2.0, (255, 255, 255))
    plain, mirrored = sketch.placed((20, 40), 10.0), sketch.placed((20, 40), 10.0, mirrored=True)
    np.testing.assert_allclose(plain.box(), (20, 20, 30, 40))
    np.testing.assert_allclose(mirrored.box(), (10, 20, 20, 40))
    rows, columns = np.nonzero(plain.silhouette((15, 10), (30, 40)))
    assert (columns.min() + 15, rows.min() + 10) == (20, 20)
    assert abs(columns.max() + 16 - 30) <= 1
    assert abs(rows.max() + 11 - 40) <= 1


# --- files ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What twelve scenes of seed 1 in a new folder look like."""
    directory = tmp_path_factory.mktemp("fresh") / "data" / "demo"
    write_demo_data(directory, 12, seed=1)
    return contents(directory)


def test_files_of_a_data_set(fresh: dict[str, bytes]) -> None:
    scenes = {f"scene_{index:05d}.{suffix}" for index in range(12) for suffix in ("jpg", "txt")}
    assert set(fresh) == scenes | {"README.txt", MARKER}
    assert "class cx cy w h" in fresh["README.txt"].decode()


def test_files_hold_the_scenes(fresh: dict[str, bytes]) -> None:
    for index in range(12):
        scene = draw_scene(np.random.default_rng([1, index]))
        decoded = cv2.imdecode(np.frombuffer(fresh[f"scene_{index:05d}.jpg"], np.uint8), cv2.IMREAD_COLOR)
        error = np.abs(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB).astype(int) - scene.image)
        assert error.mean() < 6
        lines = fresh[f"scene_{index:05d}.txt"].decode().splitlines()
        assert all(re.fullmatch(r"0( [01]\.\d{6}){4}", line) for line in lines)
        rows = np.array([line.split()[1:] for line in lines], float).reshape(-1, 4)
        corners = np.concatenate([rows[:, :2] - rows[:, 2:] / 2, rows[:, :2] + rows[:, 2:] / 2], axis=1)
        np.testing.assert_allclose(corners, scene.boxes, atol=2e-6)


def test_an_empty_scene_has_an_empty_label_file(tmp_path: Path) -> None:
    write_demo_data(tmp_path, 40, seed=7)
    for index in range(40):
        is_empty = len(draw_scene(np.random.default_rng([7, index])).boxes) == 0
        assert (((tmp_path / f"scene_{index:05d}.txt").stat().st_size) == 0) == is_empty


@pytest.mark.parametrize("workers", [1, 2, 3, 100])
def test_workers_do_not_change_a_byte(tmp_path: Path, fresh: dict[str, bytes], workers: int) -> None:
    write_demo_data(tmp_path, 12, seed=1, workers=workers)
    assert contents(tmp_path) == fresh


def test_a_larger_data_set_starts_with_the_smaller_one(tmp_path: Path, fresh: dict[str, bytes]) -> None:
    write_demo_data(tmp_path, 50, seed=1, workers=2)
    larger = contents(tmp_path)
    assert len(larger) == 102
    assert {name: larger[name] for name in fresh if name != MARKER} == {
        name: content for name, content in fresh.items() if name != MARKER
    }


def test_a_complete_data_set_is_left_alone(tmp_path: Path) -> None:
    write_demo_data(tmp_path, 3, seed=1)
    (tmp_path / "scene_00001.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    write_demo_data(tmp_path, 3, seed=1, workers=2)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(("count", "seed"), [(5, 1), (30, 1), (12, 2), (1, 0)])
def test_another_data_set_is_replaced(tmp_path: Path, fresh: dict[str, bytes], count: int, seed: int) -> None:
    write_demo_data(tmp_path, count, seed)
    assert contents(tmp_path) != fresh
    write_demo_data(tmp_path, 12, seed=1)
    assert contents(tmp_path) == fresh


def test_a_data_set_of_another_version_is_replaced(
    tmp_path: Path, fresh: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(synthetic, "GENERATOR_VERSION", 0)
        write_demo_data(tmp_path, 12, seed=1)
    (tmp_path / "scene_00001.txt").write_text("as an older version wrote it\n")
    write_demo_data(tmp_path, 12, seed=1)
    assert contents(tmp_path) == fresh


@pytest.mark.parametrize(
    "lost",
    [
        pytest.param([MARKER], id="marker"),
        pytest.param([MARKER, "scene_00011.txt", "scene_00011.jpg"], id="marker and last scene"),
        pytest.param(["README.txt"], id="readme"),
        pytest.param(["scene_00004.txt"], id="one label file"),
    ],
)
def test_an_incomplete_data_set_is_drawn_anew(tmp_path: Path, fresh: dict[str, bytes], lost: list[str]) -> None:
    write_demo_data(tmp_path, 12, seed=1)
    for name in lost:
        (tmp_path / name).unlink()
    (tmp_path / "scene_00000.jpg").write_bytes(b"half a picture")
    write_demo_data(tmp_path, 12, seed=1)
    assert contents(tmp_path) == fresh


@pytest.mark.parametrize("earlier", [0, 20])
def test_an_interrupted_call_is_made_good_by_the_next(
    tmp_path: Path, fresh: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, earlier: int
) -> None:
    if earlier:
        write_demo_data(tmp_path, earlier, seed=1)
    drawn = []

    def interrupted(rng: np.random.Generator) -> Scene:
        if len(drawn) == 5:
            raise KeyboardInterrupt
        drawn.append(rng)
        return draw_scene(rng)

    with monkeypatch.context() as patch:
        patch.setattr(synthetic, "draw_scene", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_demo_data(tmp_path, 12, seed=1)
    assert MARKER not in contents(tmp_path)
    write_demo_data(tmp_path, 12, seed=1)
    assert contents(tmp_path) == fresh


@pytest.mark.parametrize("ours_too", [False, True])
@pytest.mark.parametrize("name", ["holiday.jpg", "notes.txt", "scene_1.jpg", "scene_00001.png", "a folder/x.jpg"])
def test_a_folder_with_anything_foreign_is_refused(tmp_path: Path, name: str, ours_too: bool) -> None:
    if ours_too:
        write_demo_data(tmp_path, 2, seed=1)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"mine")
    before = sorted(tmp_path.rglob("*"))
    for seed in (1, 2):
        with pytest.raises(ValueError, match=f"--demo-data.*{re.escape(str(tmp_path))}.*{name.split('/')[0]}"):
            write_demo_data(tmp_path, 2, seed)
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / name).read_bytes() == b"mine"


@pytest.mark.parametrize("other", [None, "README.txt", MARKER])
def test_scenes_of_someone_else_are_refused(tmp_path: Path, other: str | None) -> None:
    (tmp_path / "scene_00000.jpg").write_bytes(b"mine")
    if other:
        (tmp_path / other).write_text("[]")
    with pytest.raises(ValueError, match="--demo-data"):
        write_demo_data(tmp_path, 2, seed=1)
    assert (tmp_path / "scene_00000.jpg").read_bytes() == b"mine"


def test_hidden_files_do_not_matter(tmp_path: Path, fresh: dict[str, bytes]) -> None:
    (tmp_path / ".DS_Store").write_bytes(b"finder")
    write_demo_data(tmp_path, 3, seed=1)
    write_demo_data(tmp_path, 12, seed=1)
    assert contents(tmp_path) == {**fresh, ".DS_Store": b"finder"}


@pytest.mark.parametrize(
    ("count", "seed", "message"),
    [(0, 1, "--demo-data 0: expected at least 1"), (-5, 1, "--demo-data -5"), (3, -1, "--seed -1")],
)
def test_impossible_numbers_are_refused(tmp_path: Path, count: int, seed: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_demo_data(tmp_path / "new", count, seed)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("below", [".", "demo"])
def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="--demo-data: cannot make the folder"):
        write_demo_data(tmp_path / "file" / below, 3, seed=1)
