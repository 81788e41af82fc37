"""What a run says before it begins."""

import pytest
import torch
from annotated import write_coco
from conftest import PERSON_AND_CHAIR, SMALL_RUN
from helpers import write_yaml

WITH_AUGMENTATION = [flag for flag in SMALL_RUN if flag != "--no-aug"]


@pytest.mark.parametrize("flags", ["--cache-px 96", "--close-mosaic 1"])
def test_settings_of_augmentation_without_it_are_warned_of(accepted, yolo_folder, flags):
    yolo_folder()
    outcome = accepted("--image-dir", "data", *flags.split())
    assert [line for line in outcome.warnings if "has no effect beside --no-aug" in line and flags[:5] in line]


@pytest.mark.parametrize(
    ("px", "size", "augmentation", "said"),
    [
        (32, 32, "{RandomCrop: 1}", True),
        (128, 160, "{RandomCrop: 1}", True),
        (33, 32, "{RandomCrop: 1}", False),
        (32, 32, "{HorizontalFlip: 1}", False),
    ],
)
def test_zooms_without_detail_are_told_of(run_train, yolo_folder, tmp_path, px, size, augmentation, said):
    yolo_folder()
    config = write_yaml(tmp_path, f"data_augment: {augmentation}")
    flags = ("--image-dir", "data", "--aug-config", config, "--cache-px", px, "--img-size", f"{size}x{size}")
    outcome = run_train(*WITH_AUGMENTATION, "--inspect", *flags)
    assert outcome.code == 0
    told = f"--cache-px {px} is not above the input's {size}"
    assert any(told in line for line in outcome.out) is said


def test_swapped_classes_are_named(run_train, yolo_folder, tmp_path):
    """The numbers of the file are places among the annotations' categories, not the ids that these have there."""
    data = yolo_folder([PERSON_AND_CHAIR] * 6)
    labels = write_coco(data, tmp_path / "labels.json", ("left hand", "right hand"))
    config = write_yaml(tmp_path, "data_augment: {HorizontalFlip: {prob: 1, class_swap_map: {0: 1, 1: 0}}}")
    flags = ("--image-dir", data, "--annotations", labels, "--num-classes", 2, "--aug-config", config)
    outcome = run_train(*WITH_AUGMENTATION, "--inspect", *flags)
    assert outcome.code == 0
    said = "HorizontalFlip.class_swap_map: left hand to right hand, right hand to left hand"
    assert said in outcome.out


def test_a_run_keeps_its_augmentation_and_tells_of_another(fast, run_train, yolo_folder, tmp_path):
    yolo_folder()
    config = write_yaml(tmp_path, "data_augment: {HorizontalFlip: 0.5}")
    began = config.read_text()
    run_dir = tmp_path / "run"
    flags = ("--image-dir", "data", "--aug-config", config, "--ckpt-out", run_dir, "--epochs", 3)
    assert run_train(*WITH_AUGMENTATION, *flags, "--stop-epoch", 1).code == 0
    assert (run_dir / "aug.yaml").read_text() == began

    same = run_train("--resume", run_dir, "--stop-epoch", 2)
    assert not [line for line in same.warnings if "differs" in line]

    config.write_text("data_augment: {HorizontalFlip: 0.25}")
    other = run_train("--resume", run_dir, "--stop-epoch", 3)
    assert other.code == 0
    assert [line for line in other.warnings if str(config) in line and "differs" in line]
    assert (run_dir / "aug.yaml").read_text() == config.read_text()


def test_a_run_without_augmentation_keeps_none(trained):
    assert not (trained / "aug.yaml").exists()


@pytest.mark.parametrize(
    ("processor", "flags", "said"),
    [("AVX2", ["--use-amp"], True), ("AVX512", ["--use-amp"], False), ("AVX2", [], False)],
)
def test_mixed_precision_that_a_processor_only_imitates_is_warned_of(
    fast, run_train, yolo_folder, monkeypatch, processor, flags, said
):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: processor)
    yolo_folder()
    outcome = run_train(*SMALL_RUN, "--image-dir", "data", *flags)
    assert outcome.code == 0
    assert any("--use-amp" in line for line in outcome.warnings) is said
