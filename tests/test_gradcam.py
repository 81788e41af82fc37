"""Heat maps of the strongest detection: by their definitions, for every head, from the command line."""

import cv2
import numpy as np
import pytest
import torch
from exporting import write_checkpoint
from helpers import make_config
from variants import VARIANTS, variant_config

from uhd.gradcam import eigen_cam, explain, grad_cam, hires_cam
from uhd.models import build_model


def test_heat_by_hand():
    """Two channels of 1x2 places."""
    features = torch.tensor([[[[1.0, 2.0]], [[3.0, -4.0]]]])
    gradient = torch.tensor([[[[1.0, 3.0]], [[-1.0, 0.0]]]])
    # Means of the gradient 2 and -0.5: 2 * 1 - 0.5 * 3 = 0.5 and 2 * 2 + 0.5 * 4 = 6.
    torch.testing.assert_close(grad_cam(features, gradient), torch.tensor([[[0.5 / 6, 1.0]]]))
    # 1 * 1 - 1 * 3 = -2, which speaks against the score, and 3 * 2 = 6.
    torch.testing.assert_close(hires_cam(features, gradient), torch.tensor([[[0.0, 1.0]]]))


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 4)])
def test_eigen_cam_is_the_first_singular_vector(size):
    features = np.random.default_rng(0).normal(0.5, 1, (2, 6, *size)).astype(np.float32)
    found = eigen_cam(torch.from_numpy(features))
    for heat, each in zip(found, features, strict=True):
        rows = each.reshape(6, -1).T.astype(np.float64)
        values, vectors = np.linalg.eigh(rows.T @ rows)
        expected = rows @ vectors[:, values.argmax()]
        expected = np.maximum(expected * np.sign(expected.sum()), 0).reshape(size)
        np.testing.assert_allclose(heat, expected / expected.max(), atol=1e-4)


@pytest.mark.parametrize("heat", [grad_cam, hires_cam])
def test_nothing_speaks_for_it(heat):
    assert not heat(torch.ones(1, 2, 3, 3), -torch.ones(1, 2, 3, 3)).any()
    assert not heat(torch.ones(1, 2, 3, 3), torch.zeros(1, 2, 3, 3)).any()


def test_no_features():
    assert torch.equal(eigen_cam(torch.zeros(1, 2, 3, 3)), torch.zeros(1, 3, 3))


@pytest.mark.parametrize("name", [name for name in VARIANTS if name.endswith(("plain", "three classes"))])
def test_every_head_is_explained(name):
    cfg = variant_config(name)
    torch.manual_seed(0)
    model = build_model(cfg.model).eval().requires_grad_(False)
    image = np.random.default_rng(0).integers(0, 256, (*cfg.input.img_size, 3), dtype=np.uint8)
    found = explain(model, image)
    with torch.no_grad():
        inputs = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
        preds = model(inputs)
        boxes, scores = model.candidates(preds)
    assert found.score == pytest.approx(float(scores.max()))
    place, label = divmod(int(scores[0].argmax()), scores.shape[2])
    assert found.label == label
    np.testing.assert_allclose(found.box, boxes[0, place], atol=1e-5)
    for heat in found.heat.values():
        assert heat.shape == preds["features"].shape[2:]
        assert np.isfinite(heat).all()
        assert heat.min() >= 0
        assert heat.max() == pytest.approx(1, abs=1e-5) or not heat.any()
    assert found.heat["HiResCAM"].any()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("run"), make_config(img_size=(64, 64)))


@pytest.mark.parametrize("folder", ["in", "./deep/../in/", "ABSOLUTE"])
def test_pictures_of_a_folder(run_train, checkpoint, tmp_path, folder):
    sizes = {"a.png": (30, 80), "deep/b.jpg": (600, 20), "c.bmp": (1, 1), "c.png": (2, 2), "deep_b.png": (9, 9)}
    (tmp_path / "deep").mkdir()
    for name, size in sizes.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / "in" / name), np.full((*size, 3), 90, np.uint8))
    outcome = run_train(
        "--ckpt", checkpoint, "--gradcam", folder.replace("ABSOLUTE", f"{tmp_path}/in"), "--ckpt-out", "out"
    )
    assert (outcome.code, outcome.errors) == (0, [])
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == [f"gradcam_{name}.png" for name in ("a", "c-2", "c", "deep_b-2", "deep_b")]
    for name in written:
        height, width = cv2.imread(str(tmp_path / "out" / name)).shape[:2]
        assert height > 100
        assert width > 4 * 17


def test_one_picture_goes_beside_the_checkpoint(run_train, checkpoint, tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.full((40, 40, 3), 90, np.uint8))
    before = {path: path.stat().st_mtime_ns for path in checkpoint.parent.iterdir()}
    assert run_train("--ckpt", checkpoint, "--gradcam", tmp_path / "a.png").code == 0
    after = {path: path.stat().st_mtime_ns for path in checkpoint.parent.iterdir()}
    assert {path.name for path in after.keys() - before.keys()} == {"gradcam_a.png"}
    assert after.items() >= before.items()


@pytest.mark.parametrize(
    ("flags", "mentions"),
    [
        (("--gradcam", "a.png"), ("--gradcam", "--ckpt or --resume")),
        (("--ckpt", "CHECKPOINT", "--gradcam", "none.png"), ("--gradcam none.png", "No such file")),
        (("--ckpt", "CHECKPOINT", "--gradcam", "text.png"), ("--gradcam text.png", "JPEG, PNG, BMP or WebP")),
        (("--ckpt", "CHECKPOINT", "--gradcam", "empty"), ("--gradcam empty", "no picture")),
        (("--ckpt", "CHECKPOINT", "--gradcam", "a.png", "--val-only"), ("--gradcam and --val-only",)),
    ],
)
def test_mistakes(flags, mentions, checkpoint, run_train, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty").mkdir()
    outcome = run_train(*(checkpoint if flag == "CHECKPOINT" else flag for flag in flags))
    assert outcome.code == 2
    (line,) = outcome.errors
    assert all(fragment in line for fragment in mentions), line
