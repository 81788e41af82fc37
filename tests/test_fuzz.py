"""Random hostile input ends in a clean error or is read; benchmarks/fuzz.py tries far more of it."""

import resource
import sys

import pytest
from fuzzing import TARGETS, judge
from hypothesis import HealthCheck, given, settings

CASES = {
    "pictures": 100,
    "labels": 100,
    "annotations": 200,
    "lists": 60,
    "YAML": 70,
    "checkpoints": 60,
    "ONNX": 60,
    "flags": 60,
}
MOST_GROWTH = 600 * 2**20
"""Bytes by which the process may grow while it reads files of some kilobytes."""


def peak_memory() -> int:
    """Bytes that the process has had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@pytest.mark.parametrize("name", TARGETS)
def test_hostile_input_is_read_or_refused(name, tmp_path):
    target = TARGETS[name]

    @settings(
        max_examples=CASES[name],
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(target.cases(tmp_path))
    def check(case):
        judge(target, case, tmp_path)

    before = peak_memory()
    check()
    assert peak_memory() - before < MOST_GROWTH
