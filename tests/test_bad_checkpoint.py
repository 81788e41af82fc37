"""Files that are no checkpoint of ours, and checkpoints that do not fit the flags."""

import pickle
from pathlib import Path

import pytest
import torch


class Bomb:
    """Runs code where it is unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def with_config(content, **model):
    config = {**content["config"], "model": {**content["config"]["model"], **model}}
    return {**content, "config": config}


def without(content, part):
    return {**content, "state": {key: value for key, value in content["state"].items() if key != part}}


CHECKPOINTS = {
    "truncated": lambda content, raw: raw[: len(raw) // 2],
    "without its end": lambda content, raw: raw[:-100],
    "empty": lambda content, raw: b"",
    "text": lambda content, raw: b"not a checkpoint\n",
    "weights alone": lambda content, raw: content["state"]["model"],
    "a tensor": lambda content, raw: torch.zeros(3),
    "another program's": lambda content, raw: {"model": {}, "optimizer": {}, "epoch": 3},
    "without its parts": lambda content, raw: {"program": "uhd"},
    "unknown setting": lambda content, raw: with_config(content, wings=2),
    "of a later architecture": lambda content, raw: with_config(content, arch="hexformer"),
    "of a later version": lambda content, raw: {**content, "format": 99},
    "version in words": lambda content, raw: {**content, "format": "new"},
    "state that is no mapping": lambda content, raw: {**content, "state": []},
    "state without its optimizer": lambda content, raw: without(content, "optimizer"),
    "state without its random numbers": lambda content, raw: without(content, "rng"),
    "setting of the wrong kind": lambda content, raw: with_config(content, cnn_width="wide"),
}


@pytest.mark.parametrize("flag", ["--ckpt", "--resume"])
@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_file_that_is_no_checkpoint_of_ours(kind, flag, refused, trained, tmp_path):
    raw = (trained / "last.pt").read_bytes()
    made = CHECKPOINTS[kind](torch.load(trained / "last.pt", weights_only=True), raw)
    if isinstance(made, bytes):
        (tmp_path / "x.pt").write_bytes(made)
    else:
        torch.save(made, tmp_path / "x.pt")
    error = refused(flag, "x.pt", mentions=(f"{flag} x.pt",))
    assert len(error) < 300


@pytest.mark.parametrize("flag", ["--ckpt", "--resume"])
def test_checkpoint_that_lacks_a_weight(flag, refused, trained, tmp_path, yolo_folder):
    content = torch.load(trained / "last.pt", weights_only=True)
    name = next(iter(content["state"]["model"]))
    del content["state"]["model"][name]
    torch.save(content, tmp_path / "x.pt")
    yolo_folder()
    refused(flag, "x.pt", "--image-dir", "data", "--epochs", "2", mentions=(f"{flag} x.pt", name))


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
@pytest.mark.parametrize("wrap", [lambda bomb: bomb, lambda bomb: {"program": "uhd", "format": 1, "state": bomb}])
def test_code_inside_a_checkpoint_is_not_run(save, wrap, refused, tmp_path, recwarn):
    target = tmp_path / "was_run"
    save(wrap(Bomb(target)), tmp_path / "x.pt")
    refused("--ckpt", "x.pt", "--val-only", mentions=("--ckpt x.pt",))
    assert not target.exists()
    assert not recwarn.list


@pytest.mark.parametrize(
    ("flags", "typed", "saved"),
    [
        ("--cnn-width 8", "--cnn-width 8", "4"),
        ("--img-size 64x64", "--img-size 64x64", "32x32"),
        ("--resize-mode torch_nearest", "--resize-mode torch_nearest", "opencv_inter_area"),
        ("--torch_nearest", "--resize-mode torch_nearest", "opencv_inter_area"),
        ("--use-improved-head", "--use-improved-head on", "off"),
        ("--activation relu", "--activation relu", "swish"),
        ("--num-anchors 5", "--num-anchors 5", "2"),
        ("--output-stride 16", "--output-stride 16", "8"),
        ("--classes 0,1", "--classes 0,1", "0"),
        ("--classes 1", "--classes 1", "0"),
    ],
)
@pytest.mark.parametrize("flag", ["--ckpt", "--resume"])
def test_checkpoint_of_another_shape_names_both_values(flags, typed, saved, flag, run_train, trained, tmp_path):
    source = ("--image-dir", trained.parent / "data", "--ckpt-out", "run", "--device", "cpu")
    outcome = run_train(flag, trained / "last.pt", *source, *flags.split())
    assert outcome.code == 2
    assert len(outcome.errors) == 1
    assert typed in outcome.errors[0]
    assert "last.pt" in outcome.errors[0]
    assert outcome.errors[0].split("last.pt")[1].split("with ")[1].removeprefix("classes ") == saved
    assert not (tmp_path / "run").exists()


def test_checkpoint_can_be_validated_at_another_size_on_the_stride(run_train, trained):
    flags = ("--val-only", "--ckpt", trained / "last.pt", "--ckpt-out", "val", "--num-workers", "0", "--cache", "ram")
    assert run_train(*flags, "--img-size", "48x64").code == 0
    outcome = run_train(*flags, "--img-size", "50x64")
    assert outcome.code == 2
    assert "56x64" in outcome.errors[0]
