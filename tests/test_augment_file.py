"""The augmentation's YAML file: what becomes of its entries, and which mistakes are named."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import write_yaml

from uhd.augment import OPS, RemoveOutliers, load_pipeline
from uhd.augment.geometric import HorizontalFlip, RandomCrop, RandomScale, Translation
from uhd.augment.multi_image import CopyPaste, Mosaic
from uhd.augment.photometric import CLAHE, RandomHSV, RandomPhotometricDistort
from uhd.augment.pipeline import Op

ROOT = Path(__file__).resolve().parents[1]

FILL = [114, 114, 114]
DOCUMENTED: dict[str, dict[str, object]] = {
    "Mosaic": {"min_visibility": 0.2},
    "MixUp": {},
    "CopyPaste": {
        **{"prob": 0.3, "sample_num": 1, "max_paste_objects": 5, "scale_jitter": [0.8, 1.2], "min_visibility": 0.2},
    },
    "HorizontalFlip": {"class_swap_map": {}},
    "VerticalFlip": {},
    "RandomScale": {"scale_range": [1, 1], "keep_aspect_ratio": True, "fill": FILL, "min_visibility": 0.2},
    "Translation": {"translate": 0, "fill": FILL, "min_visibility": 0.2},
    "Rotate": {"degrees": 0, "fill": FILL, "min_visibility": 0.2},
    "RandomCrop": {"ratio": 0.9, "min_visibility": 0.25},
    "RandomResizedCrop": {"scale": [0.6, 1], "ratio": [0.75, 1.33], "min_visibility": 0.25},
    "RandomBrightness": {"factor_range": [0.8, 1.2]},
    "RandomContrast": {"factor_range": [0.8, 1.2]},
    "RandomSaturation": {"factor_range": [0.8, 1.2]},
    "RandomHSV": {"hue_gain": 0, "saturation_gain": 0, "value_gain": 0},
    "RandomPhotometricDistort": {"prob": 0.5},
    "Blur": {"blur_limit": [3, 7]},
    "MedianBlur": {"blur_limit": [3, 7]},
    "MotionBlur": {"blur_limit": [5, 15]},
    "GaussianBlur": {"blur_limit": [3, 7], "sigma_limit": [0.1, 2]},
    "GaussNoise": {"mean": 0, "var_limit": [10, 50]},
    "ImageCompression": {"quality_range": [40, 90]},
    "ISONoise": {"intensity": [0.05, 0.15], "color_shift": [0.01, 0.05]},
    "RandomRain": {
        **{"density": [0.002, 0.006], "drop_length": [15, 30], "drop_width_range": [1, 2], "slant_range": [-10, 10]},
    },
    "RandomFog": {"fog_coef": [0.3, 0.6]},
    "RandomSunFlare": {"src_radius_range": [50, 150], "src_intensity": [0.6, 1]},
    "CLAHE": {"clip_limit": 2, "tile_grid_size": [8, 8]},
    "ToGray": {},
    "RemoveOutliers": {"prob": 1, "min_area": 0},
}
"""Every op and every parameter of the documentation, with the default; prob is 0 where it is not named."""


def test_original_file_says_what_is_documented() -> None:
    pipeline = load_pipeline(ROOT / "uhd" / "aug_uhd.yaml", [0])
    assert pipeline.ops == (
        RandomPhotometricDistort(prob=0.5),
        RandomHSV(prob=0.75, hue_gain=0.015, saturation_gain=0.7, value_gain=0.4),
        HorizontalFlip(prob=0.5),
        CLAHE(prob=0.01, clip_limit=4.0, tile_grid_size=(8, 8)),
        RemoveOutliers(prob=1.0, min_area=(3 / 64) ** 2),
    )


def test_default_file_is_the_original_behind_mosaic_zoom_and_shift() -> None:
    original = load_pipeline(ROOT / "uhd" / "aug_uhd.yaml", [0])
    default = load_pipeline(ROOT / "uhd" / "aug.yaml", [0])
    assert [type(op).__name__ for op in default.ops[:3]] == ["Mosaic", "RandomScale", "Translation"]
    assert default.ops[3:] == original.ops


def test_ops_are_those_documented() -> None:
    assert set(OPS) == set(DOCUMENTED)


@pytest.mark.parametrize("name", DOCUMENTED)
def test_parameters_have_their_documented_defaults(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    written_out = {"prob": 0, **DOCUMENTED[name]}
    (op,) = load_pipeline(write_yaml(tmp_path, f"data_augment: {{{name}: {{prob: 1}}}}"), [0]).ops
    for key, value in written_out.items():
        expected = tuple(value.items() if isinstance(value, dict) else value) if hasattr(value, "__len__") else value
        found = getattr(OPS[name]() if key == "prob" else op, key)
        assert found == expected, key
        assert isinstance(found, bool) == isinstance(expected, bool)
    text = json.dumps({"data_augment": {name: {**DOCUMENTED[name], "prob": 1}}})
    assert load_pipeline(write_yaml(tmp_path, text), [0]).ops == (op,)
    assert not caplog.records


@pytest.mark.parametrize(("name", "key"), [(name, key) for name, known in DOCUMENTED.items() for key in known])
@pytest.mark.parametrize("value", ["often", "[1, 2, 3, 4]", "-1000000", "1000000", ".nan", "[5, .nan]", "[7, -7]", ""])
def test_value_that_cannot_be_is_named(name: str, key: str, value: str, tmp_path: Path) -> None:
    path = write_yaml(tmp_path, f"data_augment: {{{name}: {{{key}: {value}}}}}")
    with pytest.raises(ValueError, match=rf"^--aug-config .*aug\.yaml: {name}\.{key} .*expected") as caught:
        load_pipeline(path, [0])
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("data_augment: {}", (), id="empty"),
        pytest.param("data_augment: {HorizontalFlip: {}}", (), id="off by default"),
        pytest.param("data_augment: {RandomHSV: {prob: 0, hue_gain: 0.1}}", (), id="off"),
        pytest.param("data_augment: {HorizontalFlip: 0.25}", (HorizontalFlip(prob=0.25),), id="bare number"),
        pytest.param("data_augment: {HorizontalFlip: 1}", (HorizontalFlip(prob=1.0),), id="whole number"),
        pytest.param("data_augment: {RemoveOutliers: 0.01}", (RemoveOutliers(min_area=0.01),), id="bare area"),
        pytest.param("data_augment: {CLAHE: {prob: 1}}", (CLAHE(1.0, 2.0, (8, 8)),), id="documented defaults"),
        pytest.param("data_augment: {RandomPhotometricDistort: {}}", (RandomPhotometricDistort(0.5),), id="on"),
        pytest.param("data_augment: {Mosaic: 0.5}", (Mosaic(prob=0.5),), id="several pictures"),
        pytest.param("data_augment: {CopyPaste: {}}", (CopyPaste(prob=0.3),), id="on by itself"),
        pytest.param(
            "data_augment: {RandomScale: {prob: 1, scale_range: 2, fill: 7}}",
            (RandomScale(prob=1.0, scale_range=(2.0, 2.0), fill=(7, 7, 7)),),
            id="one for two and one for three",
        ),
        pytest.param(
            "data_augment: {RandomScale: {prob: 1, keep_aspect_ratio: no, fill: [0, 128, 255]}}",
            (RandomScale(prob=1.0, keep_aspect_ratio=False, fill=(0, 128, 255)),),
            id="switch and colour",
        ),
        pytest.param(
            "data_augment: {Translation: {prob: 1, translate: 0.1}, RandomCrop: {prob: 1, min_visibility: 0.5}}",
            (Translation(prob=1.0, translate=0.1), RandomCrop(prob=1.0, min_visibility=0.5)),
            id="geometry",
        ),
        pytest.param(
            "other: 3\ndata_augment: {RemoveOutliers: 0.01, CLAHE: 1, HorizontalFlip: 1}",
            (RemoveOutliers(min_area=0.01), CLAHE(prob=1.0), HorizontalFlip(prob=1.0)),
            id="file order",
        ),
    ],
)
def test_file_becomes_ops(text: str, expected: tuple[Op, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING, logger="uhd"):
        assert load_pipeline(write_yaml(tmp_path, text), [0]).ops == expected
    assert not caplog.records


@pytest.mark.parametrize(
    ("text", "ops", "named"),
    [
        ("{HorizontalFlop: 0.5, CLAHE: 1}", (CLAHE(prob=1.0),), ["HorizontalFlop", "HorizontalFlip"]),
        ("{clahe: 1}", (), ["clahe", "CLAHE"]),
        ("{Mosaik: 1}", (), ["Mosaik", "(nearest: Mosaic)"]),
        ("{Mixup: 1}", (), ["Mixup", "(nearest: MixUp)"]),
        ("{RandomResizeCrop: 1}", (), ["RandomResizeCrop", "(nearest: RandomResizedCrop)"]),
        ("{Rotation: {degrees: 5}}", (), ["Rotation", "nearest"]),
        ("{RandomScale: {prob: 1, scale: 2}}", (RandomScale(prob=1.0),), ["RandomScale.scale ", "scale_range"]),
        ("{Mosaic: {prob: 1, min_visiblity: 1}}", (Mosaic(prob=1.0),), ["Mosaic.min_visiblity", "min_visibility"]),
        ("{7: 1}", (), ["7", "nearest"]),
        ('{"Mos\\e[31maic\\nsecond line": 1}', (), [r"'Mos\x1b[31maic\nsecond line'"]),
        ("{}\nMosaic: {prob: 1}\nother: 3", (), ["Mosaic", "beside data_augment"]),
        ("{RandomHSV: {prob: 1, hue_gian: 0.1}}", (RandomHSV(prob=1.0),), ["RandomHSV.hue_gian", "hue_gain"]),
        ("{RemoveOutliers: {area: 0.1}}", (RemoveOutliers(),), ["RemoveOutliers.area", "min_area"]),
        ("{HorizontalFlip: {prob: 1, mirrored_class: 0}}", (HorizontalFlip(prob=1.0),), ["mirrored_class"]),
    ],
)
def test_unknown_names_are_skipped_with_one_warning(
    text: str, ops: tuple[Op, ...], named: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_yaml(tmp_path, f"data_augment: {text}")
    with caplog.at_level(logging.WARNING, logger="uhd"):
        assert load_pipeline(path, [0]).ops == ops
    (record,) = caplog.records
    assert all(part in record.message for part in ["--aug-config", str(path), *named])


@pytest.mark.parametrize(
    ("text", "named"),
    [
        pytest.param("", ["data_augment"], id="empty file"),
        pytest.param("[1, 2]", ["data_augment"], id="a list"),
        pytest.param("augment: {}", ["data_augment"], id="no data_augment"),
        pytest.param("data_augment:", ["data_augment", "mapping"], id="nothing under it"),
        pytest.param("data_augment: [HorizontalFlip]", ["data_augment", "mapping"], id="a list under it"),
        pytest.param("data_augment: {a: [", ["YAML", "line 1"], id="bad YAML"),
        pytest.param("data_augment:\n  CLAHE: 1\n  CLAHE: 0.5", ["CLAHE", "twice", "line 3"], id="op twice"),
        pytest.param("data_augment: {CLAHE: {prob: 1, prob: 0}}", ["prob", "twice"], id="parameter twice"),
        pytest.param("data_augment: {CLAHE: 2024-13-45}", ["line 1", "'2024-13-45'", "month"], id="no date"),
        pytest.param("data_augment:\n  CLAHE: 0b_", ["line 2", "'0b_'"], id="no number"),
        pytest.param(
            "data_augment: {HorizontalFlip: {class_swap_map: {1: 2, 01: 3}}}", ["01 stands twice"], id="id twice"
        ),
        pytest.param("data_augment: !!python/object:os.system {}", ["YAML"], id="code in YAML"),
        pytest.param("data_augment: {HorizontalFlip: 1.5}", ["HorizontalFlip.prob 1.5", "0 to 1"], id="prob > 1"),
        pytest.param("data_augment: {HorizontalFlip: {prob: -0.1}}", ["HorizontalFlip.prob -0.1"], id="prob < 0"),
        pytest.param("data_augment: {HorizontalFlip: .nan}", ["HorizontalFlip.prob nan"], id="nan"),
        pytest.param("data_augment: {HorizontalFlip: .inf}", ["HorizontalFlip.prob inf"], id="inf"),
        pytest.param("data_augment: {HorizontalFlip: yes}", ["HorizontalFlip.prob True", "number"], id="bool"),
        pytest.param("data_augment: {HorizontalFlip: }", ["HorizontalFlip.prob None", "number"], id="nothing"),
        pytest.param("data_augment: {HorizontalFlip: often}", ["HorizontalFlip.prob 'often'"], id="text"),
        pytest.param("data_augment: {HorizontalFlip: [0.5]}", ["HorizontalFlip.prob [0.5]"], id="list for number"),
        pytest.param("data_augment: {RandomHSV: {hue_gain: 2}}", ["RandomHSV.hue_gain 2"], id="gain > 1"),
        pytest.param("data_augment: {RemoveOutliers: 9}", ["RemoveOutliers.min_area 9", "0 to 1"], id="pixels"),
        pytest.param("data_augment: {CLAHE: {clip_limit: -1}}", ["CLAHE.clip_limit -1"], id="clip limit"),
        pytest.param("data_augment: {CLAHE: {tile_grid_size: 8}}", ["CLAHE.tile_grid_size 8", "two"], id="grid"),
        pytest.param("data_augment: {CLAHE: {tile_grid_size: [8]}}", ["CLAHE.tile_grid_size [8]"], id="half a grid"),
        pytest.param("data_augment: {CLAHE: {tile_grid_size: [0, 8]}}", ["tile_grid_size [0, 8]"], id="no tiles"),
        pytest.param("data_augment: {CLAHE: {tile_grid_size: [2.5, 8]}}", ["tile_grid_size"], id="part of a tile"),
        pytest.param("data_augment: {CLAHE: {tile_grid_size: [true, 8]}}", ["tile_grid_size"], id="bool tile"),
        pytest.param("data_augment: {RandomScale: {scale_range: [2, 1]}}", ["scale_range [2, 1]"], id="reversed"),
        pytest.param("data_augment: {RandomScale: {scale_range: [0, 1]}}", ["scale_range [0, 1]"], id="to nothing"),
        pytest.param("data_augment: {RandomScale: {scale_range: [1]}}", ["scale_range [1]", "two"], id="half a range"),
        pytest.param("data_augment: {RandomScale: {keep_aspect_ratio: 1}}", ["true or false"], id="number as switch"),
        pytest.param("data_augment: {Rotate: {fill: [0, 0]}}", ["Rotate.fill [0, 0]", "three"], id="two levels"),
        pytest.param("data_augment: {Rotate: {fill: [0, 0, 256]}}", ["Rotate.fill", "255"], id="too bright"),
        pytest.param("data_augment: {Rotate: {fill: red}}", ["Rotate.fill 'red'"], id="colour by name"),
        pytest.param("data_augment: {Rotate: {degrees: -5}}", ["Rotate.degrees -5", "180"], id="negative angle"),
        pytest.param("data_augment: {Translation: {translate: 10}}", ["translate 10", "0 to 1"], id="shift in pixels"),
        pytest.param("data_augment: {RandomCrop: {ratio: 0}}", ["RandomCrop.ratio 0"], id="empty crop"),
        pytest.param("data_augment: {CopyPaste: {sample_num: 1.5}}", ["sample_num 1.5", "whole"], id="half a picture"),
        pytest.param("data_augment: {Mosaic: {min_visibility: 2}}", ["Mosaic.min_visibility 2"], id="visibility"),
        *(
            pytest.param(
                f"data_augment: {{HorizontalFlip: {{class_swap_map: {value}}}}}",
                ["HorizontalFlip.class_swap_map", "class ids"],
                id=f"swap map {value}",
            )
            for value in ("3", "[1, 2]", "{a: 1}", "{1: b}", "{1: -1}", "{1: 2.0}", "{1: true}", "")
        ),
    ],
)
def test_mistakes_in_the_file_are_named_in_one_line(text: str, named: list[str], tmp_path: Path) -> None:
    path = write_yaml(tmp_path, text)
    with pytest.raises(ValueError, match=r"^--aug-config") as caught:
        load_pipeline(path, [0])
    message = str(caught.value)
    assert "\n" not in message
    assert all(part in message for part in [str(path), *named])


def test_name_that_no_file_can_have_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^--aug-config aaa.*: cannot be read"):
        load_pipeline("a" * 300, [0])


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--aug-config .*nowhere\.yaml: cannot be read"):
        load_pipeline(tmp_path / "nowhere.yaml", [0])


def test_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--aug-config .*cannot be read"):
        load_pipeline(tmp_path, [0])


def test_binary_file_is_no_yaml(tmp_path: Path) -> None:
    path = tmp_path / "picture.jpg"
    path.write_bytes(b"\xff\xd8\xff\xe0\x00\x10JFIF")
    with pytest.raises(ValueError, match=r"--aug-config .*picture\.jpg: expected YAML"):
        load_pipeline(path, [0])


def test_albumentations_is_imported_only_for_ops_that_need_it(tmp_path: Path) -> None:
    path = write_yaml(tmp_path, "data_augment: {HorizontalFlip: 1, RandomHSV: 1, RemoveOutliers: 0.1, CLAHE: 0}")
    code = (
        "import sys; from uhd.augment import load_pipeline; "
        f"load_pipeline({str(path)!r}, [0]); "
        "print([name for name in ('albumentations', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        pytest.param("&a\n  Mosaic: *a", "alias", id="alias of itself"),
        pytest.param("[" * 3000, "nested", id="deep list"),
        pytest.param("{a: " * 2000, "nested", id="deep mapping"),
    ],
)
def test_endless_files_are_named(text: str, named: str, tmp_path: Path) -> None:
    path = write_yaml(tmp_path, f"data_augment: {text}")
    with pytest.raises(ValueError, match=f"--aug-config {path}: .*{named}"):
        load_pipeline(path, [0])


@pytest.mark.parametrize(
    ("swaps", "warned"), [({1: 2}, True), ({1: 2, 3: 2}, True), ({1: 2, 2: 1}, False), ({1: 2, 2: 3, 3: 1}, False)]
)
def test_swap_map_that_is_no_swap_is_warned_of(
    swaps: dict[int, int], warned: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_yaml(tmp_path, f"data_augment: {{HorizontalFlip: {{prob: 1, class_swap_map: {swaps}}}}}")
    with caplog.at_level(logging.WARNING, logger="uhd"):
        load_pipeline(path, [1, 2, 3])
    assert [("no swap" in record.message) for record in caplog.records] == [True] * warned
