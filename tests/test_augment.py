"""Augmentation: what holds for every op, and how the pipeline runs them."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from coloured import assert_same

from uhd.augment import OPS, Op, Pipeline, RemoveOutliers, Sample
from uhd.augment.geometric import HorizontalFlip
from uhd.augment.pipeline import Draw, MultiImageOp
from uhd.data.resize import resize
from uhd.types import IGNORED

STRENGTHS: dict[str, dict[str, Any]] = {
    "RandomHSV": {"hue_gain": 0.1, "saturation_gain": 0.7, "value_gain": 0.4},
    "RandomScale": {"scale_range": (0.5, 2.0), "keep_aspect_ratio": False},
    "Translation": {"translate": 0.4},
    "Rotate": {"degrees": 180.0},
    "RandomCrop": {"ratio": 0.5},
    "RemoveOutliers": {"min_area": 9 / 4096},
}
"""Parameters of the ops that do nothing by default."""

SIZES = [(64, 64), (48, 96), (1, 1), (7, 130), (33, 2)]
every_op = pytest.mark.parametrize("name", OPS)


def make(name: str, prob: float = 1.0) -> Op:
    return OPS[name](prob=prob, **STRENGTHS.get(name, {}))


def all_ops(prob: float = 1.0) -> Pipeline:
    return Pipeline([make(name, prob) for name in OPS])


def random_sample(count: int, size: tuple[int, int] = (64, 64), seed: int = 0) -> Sample:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    corners = np.sort(rng.random((count, 2, 2), dtype=np.float32), axis=1)
    return Sample(image, corners.reshape(-1, 4), rng.integers(0, 3, count))


def draw_of(rng: np.random.Generator, size: tuple[int, int] = (64, 64)) -> Draw:
    """Draws one of five pictures with as many boxes, each time the same five."""
    return lambda: random_sample(int(rng.integers(5)), size, seed=int(rng.integers(5)))


# --- what holds for every op ----------------------------------------------------------------------


def test_all_ops_are_there() -> None:
    assert len(OPS) == 28


@every_op
def test_probability_0_changes_nothing_and_draws_nothing(name: str) -> None:
    def draw() -> Sample:
        raise AssertionError("another picture is drawn")

    sample, rng = random_sample(4), np.random.default_rng(1)
    assert_same(Pipeline([make(name, 0.0)])(sample, rng, draw), random_sample(4))
    assert rng.random() == np.random.default_rng(1).random()


@every_op
@pytest.mark.parametrize("count", [0, 1, 300])
def test_types_shapes_and_ranges_hold(name: str, count: int) -> None:
    for seed, size in enumerate(SIZES * 3):
        sample, rng = random_sample(count, size), np.random.default_rng(seed)
        out = Pipeline([make(name)])(sample, rng, draw_of(rng, size))
        assert out.image.dtype == np.uint8
        assert out.image.shape == (*size, 3)
        assert out.boxes.dtype == np.float32
        assert out.boxes.shape == (len(out.labels), 4)
        assert out.labels.dtype == np.int64
        assert out.labels.ndim == 1
        assert isinstance(OPS[name](), MultiImageOp) or len(out.labels) <= count
        assert np.all((out.boxes >= 0) & (out.boxes <= 1))
        assert np.all(out.boxes[:, :2] <= out.boxes[:, 2:])
        assert set(out.labels.tolist()) <= {0, 1, 2, IGNORED}


@every_op
def test_read_only_input_stays_as_it_is(name: str, tmp_path: Path) -> None:
    before = random_sample(20)
    np.save(tmp_path / "images.npy", before.image[None])
    given = Sample(np.load(tmp_path / "images.npy", mmap_mode="r")[0], before.boxes.copy(), before.labels.copy())
    given.boxes.setflags(write=False)
    given.labels.setflags(write=False)
    for seed in range(10):
        Pipeline([make(name)])(given, np.random.default_rng(seed), lambda: given)
    assert_same(given, before)


@every_op
def test_same_seed_gives_the_same_samples(name: str) -> None:
    pipeline, sample = Pipeline([make(name, 0.5)]), random_sample(5)
    runs = []
    for _ in range(2):
        rng = np.random.default_rng(7)
        runs.append([pipeline(sample, rng, draw_of(rng)) for _ in range(10)])
    for a, b in zip(*runs, strict=True):
        assert_same(a, b)


def test_other_seeds_give_other_samples() -> None:
    outputs = {all_ops()(random_sample(1), np.random.default_rng(seed)).image.tobytes() for seed in range(20)}
    assert len(outputs) == 20


@every_op
def test_global_random_state_has_no_part(name: str) -> None:
    outputs = []
    for seed in (1, 2):
        np.random.seed(seed)
        torch.manual_seed(seed)
        rng = np.random.default_rng(0)
        outputs.append(Pipeline([make(name)])(random_sample(2), rng, draw_of(rng)))
    assert_same(*outputs)


def test_pipeline_survives_pickling_to_a_worker() -> None:
    flip = HorizontalFlip(prob=1.0, class_swap_map=((5, 6), (6, 5))).bind([5, 6, 7])
    to_output = partial(resize, size=(24, 32), mode="opencv_inter_area")
    pipeline = Pipeline([*all_ops().ops, flip], to_output)
    copy = pickle.loads(pickle.dumps(pipeline))
    outputs = []
    for each in (pipeline, copy):
        rng = np.random.default_rng(0)
        outputs.append(each(random_sample(5), rng, draw_of(rng)))
    assert outputs[0].image.shape == (24, 32, 3)
    assert_same(*outputs)


# --- the pipeline ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spy(Op):
    """Notes its name and the height of the picture that it is given."""

    name: str = ""
    log: list[tuple[Any, ...]] = field(default_factory=list)

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        self.log.append((self.name, sample.image.shape[0]))
        return sample


@dataclass(frozen=True)
class DetailSpy(Spy):
    needs_detail: ClassVar[bool] = True


@dataclass(frozen=True)
class MixSpy(MultiImageOp):
    """Notes the heights of the picture that it is given and of one that it draws."""

    name: str = ""
    log: list[tuple[Any, ...]] = field(default_factory=list)

    def combine(self, sample: Sample, rng: np.random.Generator, draw: Draw) -> Sample:
        self.log.append((self.name, sample.image.shape[0], draw().image.shape[0]))
        return sample


@dataclass(frozen=True)
class DetailMixSpy(MixSpy):
    needs_detail: ClassVar[bool] = True


SPIES: dict[str, Callable[..., Op]] = {"s": Spy, "d": DetailSpy, "m": MixSpy, "D": DetailMixSpy}


def spies(names: str, log: list[tuple[Any, ...]]) -> list[Op]:
    return [SPIES[name](prob=1.0, name=name, log=log) for name in names]


@pytest.mark.parametrize(
    ("names", "without_mixing", "expected"),
    [
        ("sdsm", False, [("s", 64), ("d", 64), ("s", 16), ("m", 16, 16)]),
        ("sm", False, [("s", 16), ("m", 16, 16)]),
        ("msDs", False, [("m", 64, 64), ("s", 64), ("D", 64, 64), ("s", 16)]),
        ("sd", False, [("s", 64), ("d", 64)]),
        ("dsds", False, [("d", 64), ("s", 64), ("d", 64), ("s", 16)]),
        ("dsDsm", True, [("d", 64), ("s", 16), ("s", 16)]),
        ("sD", True, [("s", 16)]),
        ("mD", True, []),
        ("", False, []),
    ],
)
def test_picture_is_large_up_to_the_last_op_that_gains_by_it(
    names: str, without_mixing: bool, expected: list[tuple[Any, ...]]
) -> None:
    log: list[tuple[Any, ...]] = []
    pipeline = Pipeline(spies(names, log), partial(resize, size=(16, 24), mode="opencv_inter_area"))
    assert pipeline.needs_detail == any(name in names for name in "dD")
    assert pipeline.mixes == any(name in names for name in "mD")
    if without_mixing:
        pipeline = pipeline.without_mixing()
        assert not pipeline.mixes
    sample = random_sample(2)
    out = pipeline(sample, np.random.default_rng(0), lambda: random_sample(1, seed=1))
    assert log == expected
    np.testing.assert_array_equal(out.image, resize(sample.image, (16, 24), "opencv_inter_area"))
    np.testing.assert_array_equal(out.boxes, sample.boxes)


def test_picture_keeps_its_size_without_a_last_resize() -> None:
    log: list[tuple[Any, ...]] = []
    Pipeline(spies("dsm", log))(random_sample(1), np.random.default_rng(0), lambda: random_sample(1))
    assert log == [("d", 64), ("s", 64), ("m", 64, 64)]


def test_pipeline_without_a_set_mixes_the_picture_with_itself() -> None:
    sample = random_sample(3)
    out = Pipeline([OPS["MixUp"](prob=1.0)])(sample, np.random.default_rng(0))
    np.testing.assert_allclose(out.image.astype(int), sample.image, atol=1)
    assert out.labels.tolist() == [*sample.labels, *sample.labels]


def test_op_that_is_off_leaves_the_random_numbers_of_the_others() -> None:
    sample = random_sample(3)
    outputs = [
        Pipeline([*more, make("RandomScale"), make("RandomHSV")])(sample, np.random.default_rng(5))
        for more in ([], [make(name, 0.0) for name in OPS])
    ]
    assert_same(*outputs)


@pytest.mark.parametrize("prob", [0.0, 0.25, 1.0])
def test_op_is_applied_to_its_share_of_the_samples(prob: float) -> None:
    log: list[tuple[Any, ...]] = []
    pipeline, rng = Pipeline([Spy(prob=prob, log=log)]), np.random.default_rng(0)
    for _ in range(2000):
        pipeline(random_sample(0, (1, 1)), rng)
    deviation = (prob * (1 - prob) / 2000) ** 0.5
    assert abs(len(log) / 2000 - prob) <= 3.5 * deviation


# --- removal of small truths ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("box", "label", "expected"),
    [
        pytest.param((0.0, 0.0, 3 / 64, 3 / 64), 0, 0, id="exactly the minimum"),
        pytest.param((0.3, 0.7, 0.3 + 3 / 64, 0.7 + 3 / 64), 1, 1, id="the minimum, rounded corners"),
        pytest.param((0.0, 0.0, 3 / 64, 2.9 / 64), 0, IGNORED, id="just below"),
        pytest.param((0.5, 0.5, 0.5 + 1 / 64, 0.5 + 9 / 64), 2, 2, id="thin, same area"),
        pytest.param((0.5, 0.5, 0.5 + 1 / 64, 0.5 + 1 / 64), 0, IGNORED, id="one pixel"),
        pytest.param((0.5, 0.5, 0.5, 1.0), 0, IGNORED, id="no area"),
        pytest.param((0.0, 0.0, 1.0, 1.0), 0, 0, id="whole picture"),
        pytest.param((0.0, 0.0, 1.0, 1.0), IGNORED, IGNORED, id="taken away before"),
    ],
)
def test_small_truths_become_ignored_in_place(box: tuple[float, ...], label: int, expected: int) -> None:
    sample = Sample(np.zeros((8, 8, 3), np.uint8), np.array([box], np.float32), np.array([label]))
    out = RemoveOutliers(min_area=9 / 4096).apply(sample, np.random.default_rng(0))
    assert out.labels.tolist() == [expected]
    np.testing.assert_array_equal(out.boxes, sample.boxes)
    np.testing.assert_array_equal(out.image, sample.image)
