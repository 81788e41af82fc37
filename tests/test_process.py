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
