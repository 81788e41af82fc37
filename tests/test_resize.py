import struct
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from uhd.data.images import REDUCED_MARGIN, jpeg_size, read_image, read_image_and_size
from uhd.data.resize import resize

SIZES = [
    ((1, 1), (64, 64)),
    ((64, 64), (64, 64)),
    ((480, 640), (64, 64)),
    ((128, 128), (64, 64)),
    ((37, 211), (64, 96)),
    ((300, 200), (1, 1)),
    ((5, 7), (160, 128)),
    ((1, 500), (64, 64)),
    ((333, 251), (48, 200)),
]


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def photograph(height, width):
    """Smooth shapes, edges and a little noise: what a camera gives, unlike pure noise."""
    coarse = cv2.resize(noise(height // 40, width // 40), (width, height), interpolation=cv2.INTER_CUBIC)
    for i in range(12):
        cv2.circle(coarse, (53 * i % width, 97 * i % height), 10 + 5 * i, (20 * i, 255 - 20 * i, 90), -1, cv2.LINE_AA)
    grain = np.random.default_rng(1).normal(0, 4, coarse.shape)
    return np.clip(coarse + grain, 0, 255).astype(np.uint8)


def by_torch(image, size, **how):
    batch = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    return F.interpolate(batch, size=size, **how).round().byte()[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize(("source", "size"), SIZES)
def test_torch_bilinear_is_torchs(source, size):
    image = noise(*source)
    difference = np.abs(
        resize(image, size, "torch_bilinear").astype(int)
        - by_torch(image, size, mode="bilinear", align_corners=False, antialias=False)
    )
    # Values that fall on a half are rounded up or down by the last bit of a float32 sum.
    assert difference.max() <= 1
    assert (difference > 0).mean() < 2e-4


@pytest.mark.parametrize(("source", "size"), SIZES)
def test_torch_nearest_is_torchs(source, size):
    image = noise(*source)
    assert np.array_equal(resize(image, size, "torch_nearest"), by_torch(image, size, mode="nearest"))


def test_torch_nearest_takes_the_floor():
    image = np.arange(5, dtype=np.uint8).reshape(1, 5, 1).repeat(3, axis=2)
    assert resize(image, (1, 3), "torch_nearest")[0, :, 0].tolist() == [0, 1, 3]
    assert resize(image, (1, 10), "torch_nearest")[0, :, 0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("opencv_inter_area", [[25, 45]]), ("torch_bilinear", [[25, 45]]), ("opencv_inter_nearest", [[10, 30]])],
)
def test_halving_by_hand(mode, expected):
    grey = np.array([[10, 20, 30, 40], [30, 40, 50, 60]], dtype=np.uint8)
    assert resize(np.dstack([grey] * 3), (1, 2), mode)[:, :, 1].tolist() == expected


@pytest.mark.parametrize(("source", "size"), SIZES)
@pytest.mark.parametrize(
    ("mode", "flag"),
    [
        ("opencv_inter_area", cv2.INTER_AREA),
        ("opencv_inter_linear", cv2.INTER_LINEAR),
        ("opencv_inter_nearest", cv2.INTER_NEAREST),
    ],
)
def test_opencv_modes_are_opencvs(source, size, mode, flag):
    image = noise(*source)
    resized = resize(image, size, mode)
    assert resized.dtype == np.uint8
    assert np.array_equal(resized, cv2.resize(image, size[::-1], interpolation=flag))


def test_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="unknown resize mode 'cubic'"):
        resize(noise(4, 4), (2, 2), "cubic")


def test_images_and_resize_do_not_import_torch():
    code = "import sys, uhd.data.images, uhd.data.resize; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- decoding -----------------------------------------------------------------------------------


def write(path, image, *flags):
    assert cv2.imwrite(str(path), image, list(flags))
    return path


RED = (30, 60, 200)  # in OpenCV's order: blue, green, red


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".jpg", ".webp", ".JPG"])
def test_formats_become_rgb(tmp_path, suffix):
    path = write(tmp_path / f"picture{suffix}", np.full((24, 40, 3), RED, np.uint8))
    image, size = read_image_and_size(path)
    assert image.dtype == np.uint8
    assert image.shape == (24, 40, 3)
    assert size == (24, 40)
    np.testing.assert_allclose(image.reshape(-1, 3).mean(axis=0), RED[::-1], atol=4)


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (np.full((4, 6), 77, np.uint8), (77, 77, 77)),
        (np.full((4, 6), 77 * 257, np.uint16), (77, 77, 77)),
        (np.full((4, 6, 3), np.array(RED) * 257, np.uint16), (200, 60, 30)),
        (np.full((4, 6, 4), (*RED, 0), np.uint8), (200, 60, 30)),
        (np.full((4, 6, 4), (*RED, 128), np.uint8), (200, 60, 30)),
    ],
)
def test_grey_alpha_and_16_bits_become_8_bit_rgb(tmp_path, stored, expected):
    image = read_image(write(tmp_path / "picture.png", stored))
    assert image.dtype == np.uint8
    assert image.shape == (4, 6, 3)
    assert (image == expected).all()


@pytest.mark.parametrize(
    ("name", "convert", "options"),
    [
        ("cmyk.jpg", "CMYK", {"quality": 95}),
        ("progressive.jpg", "RGB", {"progressive": True, "quality": 95}),
        ("palette.png", "P", {}),
        ("film.png", "RGB", {"save_all": True, "append_images": [Image.new("RGB", (24, 16), "blue")]}),
        (
            "film.webp",
            "RGB",
            {"lossless": True, "save_all": True, "append_images": [Image.new("RGB", (24, 16), "blue")]},
        ),
    ],
)
def test_other_colours_and_the_first_of_several_frames(tmp_path, name, convert, options):
    Image.new("RGB", (24, 16), tuple(RED[::-1])).convert(convert, palette=Image.Palette.ADAPTIVE).save(
        tmp_path / name, **options
    )
    image = read_image(tmp_path / name)
    assert image.shape == (16, 24, 3)
    np.testing.assert_allclose(image, np.broadcast_to(RED[::-1], image.shape), atol=6)


def with_orientation(jpeg, orientation):
    """A JPEG with an EXIF block that says how the camera was held."""
    entry = struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0)
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 1) + entry + b"\0\0\0\0"
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]


UPRIGHT = {
    1: lambda image: image,
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.transpose(1, 0, 2),
    6: lambda image: np.rot90(image, -1),
    7: lambda image: image.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda image: np.rot90(image),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("at_least", [None, (16, 16)])
def test_exif_orientation_is_applied(tmp_path, orientation, at_least):
    jpeg = cv2.imencode(".jpg", photograph(120, 160))[1].tobytes()
    (tmp_path / "plain.jpg").write_bytes(jpeg)
    (tmp_path / "turned.jpg").write_bytes(with_orientation(jpeg, orientation))
    image, size = read_image_and_size(tmp_path / "turned.jpg", at_least)
    assert np.array_equal(image, UPRIGHT[orientation](read_image(tmp_path / "plain.jpg", at_least)))
    assert size == ((120, 160) if orientation < 5 else (160, 120))
    assert jpeg_size(with_orientation(jpeg, orientation)) == (120, 160)


@pytest.mark.parametrize(
    ("source", "target", "factor"),
    [
        ((480, 640), (64, 64), 2),
        ((960, 1280), (64, 64), 4),
        ((1080, 1920), (64, 64), 8),
        ((960, 1280), (64, 128), 2),
        ((240, 240), (64, 64), 1),
        ((64, 64), (64, 64), 1),
        ((481, 641), (64, 64), 2),
    ],
)
def test_reduced_decoding_stays_within_two_grey_levels(tmp_path, source, target, factor):
    path = write(tmp_path / "photo.jpg", photograph(*source), cv2.IMWRITE_JPEG_QUALITY, 90)
    full = read_image(path)
    reduced, size = read_image_and_size(path, target)
    assert full.shape[:2] == size == source
    assert reduced.shape[:2] == tuple(-(-side // factor) for side in source)
    assert factor == 1 or min(reduced.shape[:2]) >= REDUCED_MARGIN * max(target)
    difference = np.abs(
        resize(full, target, "opencv_inter_area").astype(int) - resize(reduced, target, "opencv_inter_area")
    )
    assert difference.mean() < 2


def test_only_jpegs_are_reduced(tmp_path):
    path = write(tmp_path / "photo.png", photograph(480, 640))
    assert read_image(path, (64, 64)).shape == (480, 640, 3)


def test_size_is_exact_where_the_reduced_one_is_ambiguous(tmp_path):
    jpeg = cv2.imencode(".jpg", photograph(255, 256))[1].tobytes()
    (tmp_path / "photo.jpg").write_bytes(with_orientation(jpeg, 6))
    assert read_image_and_size(tmp_path / "photo.jpg", (32, 32))[1] == (256, 255)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp"])
@pytest.mark.parametrize("share", [0, 0.05, 0.5, 0.97])
@pytest.mark.parametrize("at_least", [None, (8, 8)])
def test_cut_files_are_errors(tmp_path, suffix, share, at_least):
    path = write(tmp_path / f"photo{suffix}", photograph(120, 160))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ValueError, match=rf"photo\{suffix}: ") as caught:
        read_image(path, at_least)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"hello", b"\xff\xd8", b"\xff\xd8\xff\xe0", b"\xff\xd8" + bytes(50), bytes(1000)])
def test_garbage_is_an_error(tmp_path, data):
    (tmp_path / "photo.jpg").write_bytes(data)
    with pytest.raises(ValueError, match=r"photo\.jpg: "):
        read_image(tmp_path / "photo.jpg", (8, 8))
    assert jpeg_size(data) is None


def test_missing_file_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"none\.jpg: cannot be read"):
        read_image(tmp_path / "none.jpg")
