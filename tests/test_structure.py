"""Imports point down: which module may know which, read from the source of the tree."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

LAYERS: dict[str, int] = {
    "uhd": 0,
    "uhd.config": 0,
    "uhd.files": 0,
    "uhd.locking": 0,
    "uhd.muting": 0,
    "uhd.process": 0,
    "uhd.reading": 0,
    "uhd.types": 0,
    "uhd.anchors": 1,
    "uhd.augment": 1,
    "uhd.boxes": 1,
    "uhd.codec": 1,
    "uhd.dist": 1,
    "uhd.export.class_filter": 1,
    "uhd.export.coco_names": 1,
    "uhd.export.decode_np": 1,
    "uhd.export.inputs_np": 1,
    "uhd.export.metadata": 1,
    "uhd.export.nanodet_np": 1,
    "uhd.export.outputs_np": 1,
    "uhd.assigners": 2,
    "uhd.data": 2,
    "uhd.data.paste.__main__": 6,
    "uhd.eval": 2,
    "uhd.models": 2,
    "uhd.distill": 3,
    "uhd.losses": 3,
    "uhd.console": 4,
    "uhd.checkpoint": 4,
    "uhd.checkpoint_reading": 4,
    "uhd.distill_task": 4,
    "uhd.ema": 4,
    "uhd.engine": 4,
    "uhd.gradcam": 4,
    "uhd.inspection": 4,
    "uhd.preview": 4,
    "uhd.notices": 4,
    "uhd.logger": 4,
    "uhd.optim": 4,
    "uhd.program": 4,
    "uhd.progress": 4,
    "uhd.recorder": 4,
    "uhd.reports": 4,
    "uhd.resolve": 4,
    "uhd.runtime": 4,
    "uhd.signals": 4,
    "uhd.task": 4,
    "uhd.tensor_file": 1,
    "uhd.cli": 5,
    "uhd.demo": 5,
    "uhd.export": 5,
    "uhd.flag_tables": 5,
    "uhd.precedence": 5,
    "uhd.data.convert": 6,
    "demo_uhd": 6,
    "export_onnx": 6,
    "train": 6,
}
"""Each module or package and its layer; a module may import from its own layer's package and from those below."""

BLIND = {"uhd.models", "uhd.assigners", "uhd.data", "uhd.eval"}
"""Packages of one layer that know nothing of each other."""

LEAVES = {"uhd.anchors", "uhd.augment", "uhd.boxes", "uhd.codec", "uhd.dist"}
"""Layer 1, whose modules know layer 0 only."""

ONLY_IN = {
    "albumentations": {"uhd.augment.photometric.base"},
    "argparse": {"uhd.cli"},
    "braceexpand": {"uhd.data.listing"},
    "pycocotools": {"uhd.eval.coco"},
    "onnx": {f"uhd.export.{name}" for name in ("build", "graph", "info", "onnx_file", "quantize", "suppression")}
    | {f"uhd.export.{name}" for name in ("report", "tflite", "verify")},
    "onnxruntime": {"uhd.runtime", "uhd.export.quantize"},
    "safetensors": {"uhd.distill.vit_files"},
    "scipy": {"uhd.assigners.hungarian"},
    "timm": {"uhd.distill.backbones"},
    "webdataset": {"uhd.data.tar_shards"},
    "ai_edge_litert": set[str](),  # by name only, where it is installed
}
"""Third-party modules and the only modules of the package that may import them."""

WITHOUT_TORCH = [
    "uhd",
    "uhd.anchors",
    "uhd.augment",
    "uhd.cli",
    "uhd.config",
    "uhd.demo",
    "uhd.export.class_filter",
    "uhd.export.decode_np",
    "uhd.export.inputs_np",
    "uhd.export.metadata",
    "uhd.export.nanodet_np",
    "uhd.export.outputs_np",
    "uhd.files",
    "uhd.precedence",
    "uhd.program",
    "uhd.reading",
    "uhd.runtime",
    "uhd.data.annotations",
    "uhd.data.cache",
    "uhd.data.convert",
    "uhd.data.disk_cache",
    "uhd.data.entries",
    "uhd.data.formats",
    "uhd.data.images",
    "uhd.data.labels",
    "uhd.data.listing",
    "uhd.data.paste.__main__",
    "uhd.data.resize",
    "uhd.data.shards",
    "uhd.data.synthetic",
    "uhd.data.tar_shards",
    "uhd.types",
]


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


PROGRAMS = ["demo_uhd", "export_onnx", "train"]
SOURCES = [*sorted((ROOT / "uhd").rglob("*.py")), *(ROOT / f"{name}.py" for name in PROGRAMS)]
MODULES = {name_of(path): path for path in SOURCES}


@functools.cache
def imports_of(module: str) -> set[str]:
    """Every module that a module imports, anywhere in its source; `from a import b` is a.b where that is a module."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            assert node.module is not None
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in inner}
    return found


def unit_of(module: str) -> str:
    """The entry of LAYERS that a module belongs to."""
    if module in LAYERS:
        return module
    return ".".join(module.split(".")[:2])


def own_imports(module: str) -> set[str]:
    return {name for name in imports_of(module) if name.split(".")[0] in {"uhd", *PROGRAMS}}


def test_every_module_has_a_layer():
    assert {unit_of(module) for module in MODULES} == set(LAYERS)


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module):
    unit = unit_of(module)
    for imported in own_imports(module):
        other = unit_of(imported)
        if other == unit:
            continue
        assert LAYERS[other] <= LAYERS[unit], f"{module} imports {imported} from a higher layer"
        assert not ({unit, other} <= BLIND), f"{module} imports {imported}: they are to be blind to each other"
        assert unit not in LEAVES or LAYERS[other] == 0, f"{module} imports {imported}: only layer 0 is below it"


def test_modules_form_no_circle():
    """Among whole units: a package counts as one. A late import of a heavy module counts as well."""
    below = {unit: {unit_of(name) for m in MODULES if unit_of(m) == unit for name in own_imports(m)} for unit in LAYERS}
    below = {unit: others - {unit} for unit, others in below.items()}
    while free := {unit for unit, others in below.items() if not others}:
        below = {unit: others - free for unit, others in below.items() if unit not in free}
    assert below == {}


def test_config_needs_the_standard_library_only():
    for module in MODULES:
        if unit_of(module) == "uhd.config":
            known = {name for name in imports_of(module) if not name.startswith("uhd.config")}
            assert {name.split(".")[0] for name in known} <= sys.stdlib_module_names, module


def test_losses_and_assigners_do_not_know_the_models():
    for module in MODULES:
        if unit_of(module) in {"uhd.losses", "uhd.assigners"}:
            assert "uhd.models" not in {unit_of(name) for name in own_imports(module)}, module


@pytest.mark.parametrize("library", ONLY_IN)
def test_library_is_imported_in_one_place(library):
    users = {module for module in MODULES if library in {name.split(".")[0] for name in imports_of(module)}}
    assert users <= ONLY_IN[library]


def test_augment_has_no_torch_in_its_source():
    for module in MODULES:
        if unit_of(module) == "uhd.augment":
            assert not {name.split(".")[0] for name in imports_of(module)} & {"torch", "torchvision"}, module


def test_modules_for_users_without_torch_do_not_load_it():
    """In a fresh process, because this one has long imported it."""
    program = "; ".join(
        ["import sys", *(f"import {module}" for module in WITHOUT_TORCH), "print('torch' in sys.modules)"]
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
