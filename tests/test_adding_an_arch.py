"""docs/adding-an-arch.md is true: its code makes an architecture that every program takes without another change."""

import __future__

import ast
import contextlib
import importlib
import json
import re
import sys
import types
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import pytest
import test_contract
import torch
import variants
from conftest import ROOT, SMALL_RUN, write_yolo_folder
from exporting import assert_same_rows, pictures, prepared, rows_of_torch, write_checkpoint
from helpers import SMALLEST, metric_rows, same, to_args

import demo_uhd
import train
from uhd.boxes import suppress
from uhd.checkpoint import load_model, read_checkpoint
from uhd.cli import build_parser, own_flags, parse_args
from uhd.config import MODEL_CONFIGS, SECTIONS, Config, OptimConfig, field_scope
from uhd.data.resize import resize
from uhd.export.decode_np import DECODERS
from uhd.flag_tables import flag_tables
from uhd.losses import CRITERIA
from uhd.models import ARCHS, build_model, count_parameters
from uhd.runtime import Detector, Overrides

PAGE = ROOT / "docs" / "adding-an-arch.md"
TEXT = PAGE.read_text(encoding="utf-8")
SESSION = to_args({"num_workers": 0, "device": "cpu", "cache": "ram"})
BLOB = {"arch": "blob", "blob_width": 4, "img_size": "32x32", "batch_size": 4, "epochs": 1, "aug": False}
BLOB_RUN = [*to_args(BLOB), *SESSION]
"""Flags of a run of about a second."""


# --- the page's code ------------------------------------------------------------------------------------


def code_blocks():
    """File, code and line of each Python block of the page."""
    for match in re.finditer(r"^```python\n# (\S+\.py)\n(.*?)^```$", TEXT, flags=re.DOTALL | re.MULTILINE):
        yield match[1], match[2], TEXT.count("\n", 0, match.start(2))


def test_every_python_block_names_its_file():
    files = [file for file, _, _ in code_blocks()]
    assert len(files) == TEXT.count("```python")
    assert len(set(files)) == len(files)
    new = [file for file in files if not (ROOT / file).exists()]
    assert new == ["uhd/models/blob.py"]


def module_of(file, stack):
    """The module of a file of the tree; one that is not there is made, until the stack is closed."""
    name = file.removesuffix(".py").removesuffix("/__init__").removeprefix("tests/").replace("/", ".")
    if (ROOT / file).exists():
        return importlib.import_module(name)
    module = types.ModuleType(name)
    stack.enter_context(mock.patch.dict(sys.modules, {name: module}))
    return module


@contextlib.contextmanager
def page_applied():
    """The page's additions in the modules they belong to, and the tables as they were afterwards."""
    with contextlib.ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        for table in (MODEL_CONFIGS, ARCHS, SMALLEST, variants.VARIANTS):
            stack.enter_context(mock.patch.dict(table))
        for file, code, line in code_blocks():
            module = module_of(file, stack)
            # In a copy, so that what the block defines is known and can be taken away again.
            names = dict(vars(module))
            flags = __future__.annotations.compiler_flag
            exec(compile("\n" * line + code, PAGE, "exec", flags=flags, dont_inherit=True), names)
            for name, value in names.items():
                if vars(module).get(name) is not value:
                    patch.setattr(module, name, value, raising=False)
        yield


@pytest.fixture(scope="module")
def blob():
    """The architecture of the page, for the tests of this file."""
    with page_applied():
        yield


def test_the_page_leaves_no_trace():
    tables = MODEL_CONFIGS, ARCHS, SMALLEST, variants.VARIANTS
    before = [dict(table) for table in tables]
    with page_applied():
        assert all("blob" in table for table in tables[:3])
        assert len(variants.VARIANTS) > len(before[3])
        assert "--blob-width" in build_parser().format_help()
    assert [dict(table) for table in tables] == before
    assert "blob" not in build_parser().format_help()
    assert "uhd.models.blob" not in sys.modules
    assert not hasattr(importlib.import_module("uhd.config"), "BlobConfig")


# --- the tables agree -----------------------------------------------------------------------------------


def test_each_architecture_is_in_both_tables(blob):
    assert MODEL_CONFIGS.keys() == ARCHS.keys() == SMALLEST.keys()
    assert {row.get("arch", "ultratinyod") for row in variants.VARIANTS.values()} == MODEL_CONFIGS.keys()
    for name, section in MODEL_CONFIGS.items():
        assert section.arch == name
        assert section.summary
        assert section.title


def test_heads_have_a_criterion_and_a_decoder(blob):
    for name in (*variants.NETWORKS, "blob, plain"):
        cfg = variants.variant_config(name)
        model = build_model(cfg.model)
        assert cfg.model.head in CRITERIA
        assert model.decoder in DECODERS
        assert re.fullmatch("[a-z]+", model.tag), "checkpoint._numbered finds files of such tags only"


def test_every_head_has_its_row_on_the_page():
    rows = re.findall(r"^\| `(\w+)` \| .* \| `(\w+)` \| `(\w+)` \| `(\w+)` \| `(\w+)` \|$", TEXT, flags=re.MULTILINE)
    assert [row[0] for row in rows] == list(CRITERIA) == list(DECODERS)
    places = ("uhd.models.heads", "uhd.models.base", "uhd.config", "uhd.losses", "uhd.export.decode_np")
    known = {name for place in places for name in vars(importlib.import_module(place))}
    assert {name for row in rows for name in row[1:]} <= known
    assert [row[4] for row in rows] == [decoder.__name__ for decoder in DECODERS.values()]


def test_files_of_the_page_exist():
    named = set(re.findall(r"`((?:uhd|tests|benchmarks)/[\w/.]*)`", TEXT)) - {"uhd/models/NAME.py"}
    bare = set(re.findall(r"`((?:config|models|losses|export|assigners|data|augment|eval|demo)/[\w/.]*)`", TEXT))
    assert len(named) > 8
    assert [name for name in named if not (ROOT / name).exists()] == []
    assert [name for name in bare if not (ROOT / "uhd" / name).exists()] == []


# --- the contract ---------------------------------------------------------------------------------------

CONTRACT = [
    name
    for name, test in vars(test_contract).items()
    if name.startswith("test_") and "cfg" in test.__code__.co_varnames[:1]
]
ROWS = ["plain", "batchnorm", "three classes", "not square", "ema"]


def test_the_rows_of_the_page(blob):
    assert [name for name in variants.VARIANTS if name.startswith("blob, ")] == [f"blob, {row}" for row in ROWS]
    assert len(CONTRACT) >= 7


@pytest.mark.filterwarnings("ignore")  # the tracer warns of every shape that it takes as constant
@pytest.mark.parametrize("row", ["batchnorm", "not square"])
@pytest.mark.parametrize("check", CONTRACT)
def test_the_contract_holds(blob, check, row, tmp_path):
    test = getattr(test_contract, check)
    arguments = {"cfg": variants.variant_config(f"blob, {row}"), "tmp_path": tmp_path}
    test(**{name: arguments[name] for name in test.__code__.co_varnames[: test.__code__.co_argcount]})


def test_number_of_parameters(blob):
    """Convolutions 3 to 8 and 8 to 16, 3x3 without bias, then 1 + 2 + 2 outputs with bias."""
    assert count_parameters(build_model(MODEL_CONFIGS["blob"]())) == 9 * (3 * 8 + 8 * 16) + 5 * (16 + 1)


# --- flags ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("program", ["run_train", "run_export"])
def test_help(blob, program, request, capsys):
    with pytest.raises(SystemExit) as left:
        request.getfixturevalue(program)("--help")
    assert left.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    remark = "(; the checkpoint's: another value than its own is an error)?"
    assert re.search(
        rf" Blob{remark}: --blob-width BLOB_WIDTH Channels of the second convolution; [^.]+\. Default: 16\.", text
    )
    assert "--arch {cnn,nanodet,tinyssd,transformer,ultratinyod,blob}" in text
    assert "blob: an example: two strided convolutions and a heat map of centres." in text


def test_flag_tables(blob):
    tables = flag_tables()
    assert "**Blob**" in tables
    assert "| `--blob-width` | Channels of the second convolution; the first has half as many. | `16` |" in tables


def test_training_defaults(blob):
    assert (parse_args(["--arch", "blob"])[0].optim.lr, parse_args([])[0].optim.lr) == (0.004, OptimConfig().lr)
    assert parse_args(["--arch", "blob", "--lr", "0.1"])[0].optim.lr == 0.1
    assert parse_args(["--arch", "blob", "--demo-data"])[0].optim.lr == 0.004


def test_training_defaults_name_fields_of_training(blob):
    """Another name would be left out without a word."""
    sections = [section for name, section in SECTIONS.items() if name not in ("input", "labels", "model")]
    fields = {f.name for section in sections for f in own_flags(section) if field_scope(section, f) == "training"}
    for name, section in MODEL_CONFIGS.items():
        assert section.training_defaults.keys() <= fields, name


@pytest.mark.parametrize("value", ["0", "3", "-2", "1026", "1e3", "wide", ""])
def test_a_bad_width_is_one_line(blob, run_train, value):
    outcome = run_train(*BLOB_RUN, f"--blob-width={value}")
    assert (outcome.code, outcome.warnings, len(outcome.errors)) == (2, [], 1)
    assert outcome.errors[0].startswith("train.py: error: --blob-width")


def test_a_side_must_be_a_multiple_of_the_stride(blob, run_train):
    outcome = run_train(*BLOB_RUN, "--img-size", "32x30")
    assert outcome.code == 2
    assert "32x32" in outcome.errors[0]


def test_flags_of_others_are_warned_of(blob, run_train, yolo_folder):
    foreign = ("--cnn-width", "8", "--num-queries", "3", "--nms-iou", "0.4", "--iou-loss", "ciou", "--use-anchor")
    outcome = run_train(*BLOB_RUN, *foreign, "--loss-weight-wh", "0.2", "--image-dir", yolo_folder(), "--inspect")
    assert outcome.code == 0
    assert outcome.errors == []
    (line,) = outcome.warnings
    assert "no effect with --arch blob" in line
    assert {f"--{name}" for name in re.findall(r"--([\w-]+)(?=[,:])", line)} == set(foreign[:8:2]) | {"--use-anchor"}


def test_its_flag_is_foreign_to_others(blob, run_train, yolo_folder):
    outcome = run_train(*SMALL_RUN, "--blob-width", "8", "--image-dir", yolo_folder(), "--inspect")
    assert (outcome.code, len(outcome.warnings)) == (0, 1)
    assert "--blob-width: no effect with --arch ultratinyod" in outcome.warnings[0]


# --- training -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_yolo_folder(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def runs(blob, data, tmp_path_factory):
    """Two epochs at once, and the same stopped after one, with a batch norm and an average."""
    folder = tmp_path_factory.mktemp("runs")
    flags = (*BLOB_RUN, "--image-dir", str(data), "--epochs", "2", "--use-batchnorm", "--use-ema")
    assert train.main([*flags, "--ckpt-out", str(folder / "whole")]) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("uhd.recorder.write_reports", lambda *args, **kwargs: None)
        assert train.main([*flags, "--ckpt-out", str(folder / "half"), "--stop-epoch", "1"]) == 0
    return folder


def test_a_run_is_complete(runs):
    whole = runs / "whole"
    rows = metric_rows(whole)
    assert [row["epoch"] for row in rows] == [1, 2]
    for row in rows:
        assert {"train/hm", "train/off", "train/wh", "val/hm", "val/mAP@0.5"} <= row.keys()
        assert all(np.isfinite(value) for key, value in row.items() if key.startswith("train/"))
    assert {path.name[:14] for path in whole.glob("last_*.pt")} >= {"last_blob_0001", "last_blob_0002"}
    for name in ("best.pt", "last.pt", "config.yaml", "samples.png", "pr_curve.png", "f1_curve.png", "loss_curves.png"):
        assert (whole / name).exists(), name


def test_resuming_is_exact(runs, run_train, monkeypatch):
    monkeypatch.setattr("uhd.recorder.write_reports", lambda *args, **kwargs: None)
    outcome = run_train("--resume", runs / "half", *SESSION)
    assert (outcome.code, outcome.errors) == (0, [])
    resumed, whole = (read_checkpoint(runs / name / "last.pt") for name in ("half", "whole"))
    assert resumed.state["epoch"] == 2
    assert same(resumed.state["model"], whole.state["model"])
    assert same(resumed.state["ema"], whole.state["ema"])
    assert [row["val/mAP@0.5"] for row in metric_rows(runs / "half")] == [
        row["val/mAP@0.5"] for row in metric_rows(runs / "whole")
    ]


def test_a_checkpoint_rebuilds_the_network(runs):
    model, cfg = load_model(runs / "whole" / "best.pt")
    assert (cfg.model.arch, cfg.model.blob_width, cfg.model.use_batchnorm) == ("blob", 4, True)
    assert type(model).__name__ == "Blob"
    assert same(model.state_dict(), read_checkpoint(runs / "whole" / "best.pt").weights)
    assert Config.from_dict(cfg.to_dict()) == cfg


def test_validation_gives_the_figures_of_training(runs, run_train, tmp_path):
    outcome = run_train("--ckpt", runs / "whole" / "last.pt", "--val-only", "--ckpt-out", tmp_path / "val", *SESSION)
    assert (outcome.code, outcome.errors) == (0, [])
    figures = json.loads((tmp_path / "val" / "val.json").read_text())
    last = metric_rows(runs / "whole")[-1]
    assert len(figures) > 10
    for key, value in figures.items():
        assert value == (last[key] if last[key] is None else pytest.approx(last[key], rel=1e-5)), key


def test_a_width_that_is_not_the_checkpoints(runs, run_train):
    outcome = run_train("--ckpt", runs / "whole" / "last.pt", "--blob-width", "8")
    assert outcome.code == 2
    assert "--blob-width 8" in outcome.errors[0]
    assert "trained with 4" in outcome.errors[0]


# --- export ---------------------------------------------------------------------------------------------

FORMS = {
    "raw": ("--no-merge-postprocess",),
    "merged": (),
    "separate": ("--separate-outputs",),
    "open": ("--dynamic", "all"),
    "raw, open": ("--no-merge-postprocess", "--dynamic", "all"),
}


@pytest.fixture(scope="module")
def spread(blob, tmp_path_factory):
    """A checkpoint whose scores lie far apart, so that rounding changes no order."""
    return write_checkpoint(tmp_path_factory.mktemp("spread"), variants.variant_config("blob, three classes"))


@torch.no_grad()
def found_by_torch(checkpoint, photo, size=None):
    """Boxes in 0 to 1, scores and labels in a picture, BGR."""
    export = prepared(checkpoint, img_size=size)
    small = resize(photo, export.config.input.img_size, export.config.input.resize_mode)
    inputs = torch.from_numpy(np.ascontiguousarray(small[..., ::-1])).permute(2, 0, 1).float().div(255)[None]
    found = suppress(export.model.decode(export.model(inputs), export.decode), 0.1, None, 100)
    return (field[0, found.labels[0] >= 0].numpy() for field in (found.boxes, found.scores, found.labels))


@pytest.mark.parametrize("form", FORMS)
def test_an_exported_file_finds_what_torch_finds(spread, run_export, tmp_path, form):
    outcome = run_export("--checkpoint", spread, "--output", tmp_path / "blob.onnx", *FORMS[form])
    assert (outcome.code, outcome.errors) == (0, [])
    photo = np.random.default_rng(0).integers(0, 256, (70, 50, 3), dtype=np.uint8)
    for size in (None, (96, 32)) if "open" in form else (None,):
        found = Detector(tmp_path / "blob.onnx", Overrides(conf_thresh=0.1), img_size=size)(photo)
        boxes, scores, labels = found_by_torch(spread, photo, size)
        assert len(found) == len(scores) > 20
        np.testing.assert_allclose(found.scores, scores, rtol=0, atol=1e-5)
        np.testing.assert_array_equal(found.labels, labels)
        np.testing.assert_allclose(found.boxes, boxes * [50, 70, 50, 70], rtol=0, atol=1e-2)


def test_rows_of_a_merged_file(spread, run_export, tmp_path):
    run_export("--checkpoint", spread, "--output", tmp_path / "blob.onnx")
    export = prepared(spread)
    images = pictures(3, (64, 64))
    session = Detector(tmp_path / "blob.onnx").session
    for image, expected in zip(images, rows_of_torch(export, images), strict=True):
        (rows,) = session.run(None, {"images": image[None].numpy()})
        assert_same_rows(rows[0], expected)


def test_info_and_verification(runs, run_export, tmp_path):
    output = tmp_path / "blob.onnx"
    outcome = run_export(
        "--checkpoint", runs / "whole" / "best.pt", "--output", output, "--verify", "--image-count", "5"
    )
    assert (outcome.code, outcome.errors) == (0, [])
    for path in (output, runs / "whole" / "best.pt"):
        outcome = run_export("--info", path)
        assert outcome.code == 0
        text = "\n".join(outcome.out)
        assert re.search(r"^arch\w* +blob$", text, flags=re.MULTILINE)
    assert re.search(r"^decoder +center$", "\n".join(run_export("--info", output).out), flags=re.MULTILINE)


def test_the_demo_runs(spread, run_export, tmp_path):
    run_export("--checkpoint", spread, "--output", tmp_path / "blob.onnx")
    cv2.imwrite(str(tmp_path / "a.png"), np.random.default_rng(0).integers(0, 256, (70, 50, 3), dtype=np.uint8))
    assert demo_uhd.main(["--onnx", "blob.onnx", "--images", "a.png", "--save", "found.jsonl", "--no-window"]) == 0
    assert len(json.loads((tmp_path / "found.jsonl").read_text())) > 1


# --- what knows no architecture -------------------------------------------------------------------------

UNTOUCHED = [
    *("train.py", "export_onnx.py", "demo_uhd.py"),
    *(f"uhd/{name}.py" for name in ("engine", "task", "optim", "ema", "checkpoint", "logger", "reports", "runtime")),
    *(f"uhd/{name}.py" for name in ("inspection", "resolve", "signals", "program", "boxes", "anchors")),
    *(f"uhd/{folder}" for folder in ("data", "augment", "eval", "demo", "export")),
]
"""What the page says to stay as it is, and more."""
TAGS = {"cnn", "tf", "utod", "nano"}
READS_RELEASES = {"runtime.py", "inputs_np.py", "outputs_np.py", "nanodet_np.py"}
"""Files that know the ONNX releases of the program NanoDet, whatever architectures there are here."""
SOURCES = [
    path for name in UNTOUCHED for path in ([ROOT / name] if name.endswith(".py") else (ROOT / name).glob("*.py"))
]


def texts_in_code(source):
    """All names and texts of a source, with their lines; docstrings and comments are left out."""
    tree = ast.parse(source)
    docstrings = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        values = [] if id(node) in docstrings else [value for _, value in ast.iter_fields(node)]
        yield from ((value, getattr(node, "lineno", 0)) for value in values if isinstance(value, str))


def named_in(source):
    """Architectures that code names, with their lines: a word of a name or text, part of a class, or a tag."""
    classes = [section.__name__.removesuffix("Config") for section in MODEL_CONFIGS.values()]
    for text, line in texts_in_code(source):
        words = {word.lower() for word in re.findall("[A-Za-z0-9]+", text)}
        named = {"utod", *MODEL_CONFIGS} & words | TAGS & {text} | {each for each in classes if each in text}
        yield from ((name, line) for name in named)


@pytest.mark.parametrize(
    ("line", "is_found"),
    [
        ("import uhd.models.transformer", True),
        ("from uhd.config import UltraTinyODConfig as C", True),
        ("from uhd.models import CenterCNN", True),
        ("x.utod_residual", True),
        ("f(tag='tf')", True),
        ("f'an {ultratinyod}'", True),
        ("def f(cnn): pass", True),
        ("f(transformer=1)", True),
        ("x = 'a CNN'", True),
        ("'A cnn.'", False),
        ("def f():\n    'A cnn.'", False),
        ("x = 1  # cnn", False),
        ("onnx2tf = 'TF_CPP'", False),
        ("cudnn = use_anchor", False),
    ],
)
def test_names_in_code_are_found(line, is_found):
    assert bool(list(named_in(line))) == is_found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_that_stays_as_it_is_names_no_architecture(path):
    known = {"nanodet", "NanoDet"} if path.name in READS_RELEASES else set()
    assert [found for found in named_in(path.read_text(encoding="utf-8")) if found[0] not in known] == []


def test_the_page_names_what_stays_as_it_is():
    paragraph = " ".join(TEXT[TEXT.index("What stays as it is:") :].split("\n\n")[0].split())
    for name in re.findall(r"`([\w./]+)`", paragraph):
        assert name in UNTOUCHED or f"uhd/{name}".rstrip("/") in UNTOUCHED, name


def test_the_page_is_linked():
    assert f"]({PAGE.name})" in Path(PAGE.parent / "architecture.md").read_text(encoding="utf-8")
