"""The process settings that must be there before torch is loaded."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT


def spin_count(environment: dict[str, str]) -> str:
    """GOMP_SPINCOUNT in a fresh process after the import."""
    code = "import os, sys, uhd.process; assert 'torch' not in sys.modules; print(os.environ['GOMP_SPINCOUNT'])"
    clean = {key: value for key, value in os.environ.items() if key != "GOMP_SPINCOUNT"}
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, env=clean | environment, cwd=ROOT, check=True, capture_output=True, text=True)
    return found.stdout.strip()


@pytest.mark.parametrize(("environment", "expected"), [({}, "2000"), ({"GOMP_SPINCOUNT": "7"}, "7")])
def test_the_spin_count_is_set_unless_the_user_has(environment: dict[str, str], expected: str) -> None:
    assert spin_count(environment) == expected


def test_train_py_makes_the_settings_before_it_imports_torch() -> None:
    lines = (ROOT / "train.py").read_text(encoding="utf-8").splitlines()
    settings = next(i for i, line in enumerate(lines) if line.startswith("import uhd.process"))
    assert settings < lines.index("import torch")


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["train.py", "--help"], 0),
        (["train.py", "--no-such-flag"], 2),
        (["train.py", "--epochs", "0"], 2),
        (["train.py", "--demo-data", "--image-dir", "x"], 2),
        (["train.py", "--arch", "tinyssd", "--img-size", "65x65"], 2),
        (["export_onnx.py", "--help"], 0),
        (["export_onnx.py", "--opset", "x"], 2),
    ],
)
def test_help_and_mistakes_in_flags_do_not_wait_for_torch(command: list[str], code: int) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    lines = done.stderr.splitlines()
    imported = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
    assert done.returncode == code
    assert "uhd.cli" in imported
    assert "torch" not in imported
    said = [line for line in lines if not line.startswith("import time:")]
    assert [line.startswith(f"{command[0]}: error: ") for line in said] == [True] * (code == 2)
