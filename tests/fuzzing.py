"""Random hostile input for all that reads files or flags of unknown origin: strategies, and what they are given to.

A case ends well where it is accepted, or refused with a ValueError or OSError of one sentence.
"""

import contextlib
import io
import json
import logging
import random
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import torch
from helpers import make_config, start
from hypothesis import strategies as st
from onnx import helper
from tiny_onnx import metadata_of, write_halves, write_raw

from uhd.augment import load_pipeline
from uhd.checkpoint import read_checkpoint, save_checkpoint
from uhd.cli import build_demo_parser, build_export_parser, build_parser, parse_args, parse_demo_args, parse_export_args
from uhd.data.formats import read_annotations
from uhd.data.images import decode_image
from uhd.data.labels import clip_boxes, parse_labels
from uhd.data.limits import Limits, read_list_lines
from uhd.export.info import describe_file
from uhd.muting import muted_stderr
from uhd.runtime import Detector

ROOT = Path(__file__).parents[1]
LIMITS = Limits(max_pixels=1_000_000, max_boxes=50)
LONGEST = 2500
"""Characters of an error; what it quotes of the input must be cut."""

Strategy = st.SearchStrategy[Any]


@dataclass(frozen=True)
class Target:
    """What is fuzzed: cases(folder) makes the strategy, run(case, folder) reads one case."""

    cases: Callable[[Path], Strategy]
    run: Callable[[Any, Path], object]


def judge(target: Target, case: Any, folder: Path) -> bool:
    """Whether a case is accepted; an exception that is no clean error passes through."""
    logging.getLogger("uhd").setLevel(logging.CRITICAL)
    try:
        with muted_stderr(), contextlib.redirect_stdout(io.StringIO()):
            target.run(case, folder)
        return True
    except (ValueError, OSError) as error:
        said = str(error)
    assert len(said) <= LONGEST, f"an error of {len(said)} characters: {said[:200]}"
    return False


# --- strategies -------------------------------------------------------------------------------------

EXTREMES = [b"\0", b"\xff" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", bytes(8), b"\x80" * 10, b"\0\0\1\0"]


def bent(data: bytes, seed: int) -> bytes:
    """Bytes after one to six changes: some replaced, cut out, doubled, put in, or the end cut off."""
    rng = random.Random(seed)
    for _ in range(rng.randint(1, 6)):
        start = rng.randrange(len(data) + 1)
        end = min(len(data), start + rng.choice([1, 2, 4, 8, 64]))
        middle = rng.choice(
            [rng.randbytes(end - start), rng.choice(EXTREMES), b"", data[start:end] * rng.choice([2, 50]), b" "]
        )
        data = data[:start] if rng.random() < 0.05 else data[:start] + middle + data[end:]
    return data


def spoilt(*valid: bytes) -> Strategy:
    """Valid files after changes, and noise."""
    changed = st.builds(bent, st.sampled_from(valid), st.integers(0, 2**32))
    return st.one_of(changed, changed, changed, st.binary(max_size=200))


ODD_NUMBERS = st.sampled_from(
    [0, 1, -1, 2, 3, 64, 10**4, 10**6, 10**9, 10**12, 2**31, 2**63, 10**30, -(10**9), 0.5, 1e-300, 1e300]
)
ODD_FLOATS = st.sampled_from([float("nan"), float("inf"), -float("inf"), -0.0, 1.5])
ODD_TEXTS = st.one_of(
    st.sampled_from(
        ["", "nan", "1e400", "../../etc/passwd", "/dev/zero", "\0", "x" * 1000, "٣", "\ud800", "a\nb", "64x64"]
    ),
    st.text(max_size=20),
)
PLAIN = st.one_of(st.none(), st.booleans(), ODD_NUMBERS, ODD_FLOATS, ODD_TEXTS)
NESTED = st.recursive(
    PLAIN,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(ODD_TEXTS, inner, max_size=4)),
    max_leaves=8,
)


# --- pictures, labels, lists ----------------------------------------------------------------------------


def pictures(_: Path) -> Strategy:
    """Files of each format, changed."""
    image = np.random.default_rng(0).integers(0, 255, (17, 23, 3), np.uint8)
    files = [cv2.imencode(suffix, image)[1].tobytes() for suffix in (".jpg", ".png", ".bmp", ".webp")]
    files.append(cv2.imencode(".png", image.astype(np.uint16) * 257)[1].tobytes())
    files.append(cv2.imencode(".webp", image, [cv2.IMWRITE_WEBP_QUALITY, 101])[1].tobytes())
    at_least = st.sampled_from([None, (2, 2), (64, 64)])
    return st.tuples(spoilt(*files), at_least)


def read_picture(case: Any, _: Path) -> None:
    image, size = decode_image(case[0], "x.jpg", case[1], LIMITS)
    assert image.shape[0] * image.shape[1] <= LIMITS.max_pixels
    assert min(size) > 0


LABEL_FIELDS = st.one_of(
    st.sampled_from(["0", "1", "0.5", "-1", "1e400", "1e-400", "nan", "10" * 20, "٣", "\0", "+", ".", "e", "1_0"]),
    st.floats().map(str),
    st.text(max_size=5),
)


def label_files(_: Path) -> Strategy:
    """Lines of five fields, good and bad, and valid files, changed."""
    lines = st.lists(st.lists(LABEL_FIELDS, max_size=6).map(" ".join), max_size=8)
    return st.one_of(
        lines.map(lambda found: "\n".join(found).encode("utf-8", "surrogatepass")),
        spoilt(b"0 0.5 0.5 0.2 0.1\n3 0.1 0.2 0.3 0.4\n" * 20),
    )


def read_label_file(case: bytes, _: Path) -> None:
    labels = parse_labels(case, LIMITS)
    assert len(labels.rows) + len(labels.bad_lines) <= LIMITS.max_boxes
    clip_boxes(labels.rows[:, 1:])
    if labels.bad_lines:
        raise ValueError(labels.bad_lines[0].problem)


def list_files(_: Path) -> Strategy:
    """Lines that are paths, and files that are none."""
    return spoilt(b"a.jpg\nfolder/b.png\r\n\xef\xbb\xbfc.webp\n" * 5, b"x" * 5000 + b"\n")


def read_list_file(case: bytes, folder: Path) -> None:
    path = folder / "list.txt"
    path.write_bytes(case)
    for _, text in read_list_lines(path, "--train-list"):
        assert text.strip() == text != ""


# --- annotations ----------------------------------------------------------------------------------------

COCO = {
    "images": [{"id": 1, "file_name": "a.jpg", "width": 64, "height": 48}, {"id": 2, "file_name": "b.jpg"}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 3, "bbox": [1, 2, 3.5, 4], "iscrowd": 0}],
    "categories": [{"id": 3, "name": "person"}],
}
VOC = b"""<?xml version="1.0"?><annotation><filename>a.jpg</filename><size><width>64</width><height>48</height></size>
<object><name>person</name><difficult>0</difficult><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>3.5</xmax><ymax>4</ymax>
</bndbox></object></annotation>"""
CSV = b"img_name,label,xmin,ymin,xmax,ymax\na.jpg,0,1,2,3.5,4\nb.jpg,1,1,2,3,4\n"
XML_PARTS = st.sampled_from(
    [
        *("<annotation>", "</annotation>", "<object>", "</object>", "<name>", "</name>", "<bndbox>", "</bndbox>"),
        *(
            "<xmin>",
            "</xmin>",
            "1",
            "nan",
            "<![CDATA[",
            "]]>",
            "<!DOCTYPE annotation [",
            "<!ENTITY a 'b'>",
            "]>",
            "&a;",
        ),
        *("<?xml version='1.0' encoding='", "utf-16", "utf-7", "idna", "'?>", "&#0;", "&#x41;", "<a/>" * 50),
    ]
)


def annotation_files(_: Path) -> Strategy:
    """Files of each format, changed; a json also with odd values in odd places."""
    places = [
        *[(name,) for name in COCO],
        *[(name, 0, key) for name, items in COCO.items() for key in items[0]],
        ("annotations", 0, "bbox", 2),
    ]
    odd = st.builds(_with_value, st.sampled_from(places), NESTED).map(
        lambda content: (".json", json.dumps(content).encode("utf-8", "surrogatepass"))
    )
    parts = st.lists(XML_PARTS, max_size=25).map(lambda found: (".xml", "".join(found).encode()))
    files = {".json": json.dumps(COCO).encode(), ".xml": VOC, ".csv": CSV}
    bent_files = [st.tuples(st.just(suffix), spoilt(data)) for suffix, data in files.items()]
    return st.one_of(odd, parts, *bent_files, st.tuples(st.just(""), spoilt(*files.values())))


def _with_value(place: tuple[Any, ...], value: Any) -> Any:
    """The COCO content with another value at a place."""
    content = json.loads(json.dumps(COCO))
    target = content
    for key in place[:-1]:
        target = target[key]
    target[place[-1]] = value
    return content


def read_annotation_file(case: Any, folder: Path) -> None:
    suffix, data = case
    path = folder / f"x{suffix}"
    path.write_bytes(data)
    found = read_annotations(str(path), "--annotations")
    for picture in found.pictures:
        clip_boxes(picture.label_rows((48, 64), LIMITS).rows[:, 1:])
        assert len(picture.boxes()) == len(picture.rows)
    for bad in (*found.refused, *(bad for picture in found.pictures for bad in picture.bad_lines)):
        raise ValueError(bad.problem)


# --- YAML -------------------------------------------------------------------------------------------------

YAML_PARTS = st.sampled_from(
    [
        *(
            "data_augment:",
            "\n",
            "  ",
            "Mosaic:",
            " {",
            "}",
            "[",
            "]",
            ", ",
            "&a ",
            "*a",
            "<<: ",
            "!!python/object:os.system ",
        ),
        *(
            "!!timestamp ",
            "2001-99-99",
            "prob: ",
            "0.5",
            "1:59:59",
            "0x" + "f" * 150,
            "- ",
            "? ",
            ": ",
            "|\n",
            '"\\UFFFFFFFF"',
        ),
        *(
            "RandomHSV: ",
            "CLAHE: ",
            "tile_grid_size: ",
            "class_swap_map: ",
            "null",
            "1e999",
            "---\n",
            "%YAML 9.9\n",
            "\t",
        ),
    ]
)


def yaml_files(_: Path) -> Strategy:
    """The program's files, changed, and what YAML is made of, put together."""
    files = [path.read_bytes() for path in sorted((ROOT / "uhd").glob("aug*.yaml"))]
    parts = st.lists(YAML_PARTS, max_size=25).map(lambda found: "".join(["data_augment: ", *found]).encode())
    return st.one_of(spoilt(*files), parts)


def read_yaml_file(case: bytes, folder: Path) -> None:
    path = folder / "aug.yaml"
    path.write_bytes(case)
    load_pipeline(path, [0, 1])


# --- checkpoints --------------------------------------------------------------------------------------------


def _places(content: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [above] if above else []
    if isinstance(content, dict):
        for key, value in content.items():
            found += _places(value, (*above, key))
    return found


def _replaced(content: Any, place: tuple[Any, ...], value: Any) -> Any:
    if not place:
        return value
    return {**content, place[0]: _replaced(content[place[0]], place[1:], value)}


ODD_TENSORS = st.sampled_from(
    [torch.zeros(1).expand(10**12), torch.zeros(0), torch.zeros(3, dtype=torch.complex64), torch.zeros(2, 2)]
)


def checkpoints(folder: Path) -> Strategy:
    """Checkpoints with odd values in odd places, their files changed, and their pickles changed inside whole files."""
    contents, files = [], []
    for arch in ("cnn", "transformer", "ultratinyod"):
        cfg = make_config(arch=arch)
        path = save_checkpoint(folder, cfg, start(cfg)[1], {"val/mAP@0.5": 0.5}, is_best=False)
        contents.append(torch.load(path, weights_only=True))
        files.append(path.read_bytes())
    changes = [st.tuples(st.just(i), st.sampled_from(_places(content))) for i, content in enumerate(contents)]
    odd = st.tuples(st.one_of(*changes), st.one_of(NESTED, ODD_TENSORS)).map(
        lambda case: _replaced(contents[case[0][0]], case[0][1], case[1])
    )
    inner = st.builds(_with_bent_pickle, st.sampled_from(files), st.integers(0, 2**32))
    return st.one_of(odd, odd, inner, spoilt(*files), st.sampled_from(files))


def _with_bent_pickle(data: bytes, seed: int) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(written, "w") as target:
        for part in source.infolist():
            content = source.read(part)
            target.writestr(part.filename, bent(content, seed) if part.filename.endswith("data.pkl") else content)
    return written.getvalue()


def read_checkpoint_file(case: Any, folder: Path) -> None:
    path = folder / "x.pt"
    path.write_bytes(case) if isinstance(case, bytes) else torch.save(case, path)
    read_checkpoint(path)


# --- ONNX -----------------------------------------------------------------------------------------------------

PROPS = st.one_of(
    ODD_TEXTS,
    NESTED.map(repr),
    st.sampled_from(["[" * 100_000, "9" * 5000, "[1000000000, 1000000000]", "1e999", "NaN", "[[1], 2]", "true"]),
)


def onnx_files(folder: Path) -> Strategy:
    """Small detectors with odd metadata, and their files, changed."""
    halves = write_halves(folder / "halves.onnx", class_names=("person",))
    raw = write_raw(folder / "raw.onnx", np.zeros((1, 7, 2, 2)), np.ones((1, 2)), np.ones((1, 2)))
    whole, props = onnx.load(halves), metadata_of().to_props() | {"stride": "8", "anchors": "[[1, 2]]"}
    changed = st.dictionaries(st.sampled_from(sorted(props)), PROPS, min_size=1, max_size=3)

    def with_props(changes: dict[str, str]) -> bytes:
        model = onnx.ModelProto()
        model.CopyFrom(whole)
        texts = {key: text.encode("utf-8", "replace").decode() for key, text in {**props, **changes}.items()}
        helper.set_model_props(model, texts)
        return model.SerializeToString()

    return st.one_of(changed.map(with_props), spoilt(halves.read_bytes(), raw.read_bytes()))


def read_onnx_file(case: bytes, folder: Path) -> None:
    path = folder / "x.onnx"
    path.write_bytes(case)
    with contextlib.suppress(ValueError):
        describe_file(path)
    Detector(path)(np.zeros((20, 20, 3), np.uint8))


# --- flags ------------------------------------------------------------------------------------------------------

PARSERS = {"train": build_parser, "export": build_export_parser, "demo": build_demo_parser}
PARSE = {"train": parse_args, "export": parse_export_args, "demo": parse_demo_args}
VALUES = st.one_of(
    ODD_TEXTS.map(lambda text: text[:200]),  # what was typed is quoted in full
    ODD_NUMBERS.map(str),
    ODD_FLOATS.map(str),
    st.sampled_from(
        ["0,1", "0.1,0.2;0.3,0.4", "64x64", "1", "4", "8", "cnn", "transformer", "none", "ram", "16,24,32,48"]
    ),
)


def command_lines(_: Path) -> Strategy:
    """Any flags of the three programs, with any values."""
    programs = []
    for name, build in PARSERS.items():
        flags = sorted({option for action in build()._actions for option in action.option_strings})
        words = st.one_of(st.sampled_from(flags), st.sampled_from(flags), VALUES)
        programs.append(st.tuples(st.just(name), st.lists(words, max_size=8)))
    return st.one_of(*programs)


def read_command_line(case: Any, _: Path) -> None:
    program, words = case
    code = 0
    try:
        PARSE[program](words)
    except SystemExit as leaving:
        code = leaving.code
    assert code == 0, "left without a reason"


TARGETS = {
    "pictures": Target(pictures, read_picture),
    "labels": Target(label_files, read_label_file),
    "annotations": Target(annotation_files, read_annotation_file),
    "lists": Target(list_files, read_list_file),
    "YAML": Target(yaml_files, read_yaml_file),
    "checkpoints": Target(checkpoints, read_checkpoint_file),
    "ONNX": Target(onnx_files, read_onnx_file),
    "flags": Target(command_lines, read_command_line),
}
