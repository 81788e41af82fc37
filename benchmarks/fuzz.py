"""Random hostile files and flags, many of them: `python benchmarks/fuzz.py`, with --cases for their number.

Prints how each kind ended, and the most memory that its process had; exit code 1 at the first that ended otherwise than
accepted or refused cleanly, with the input. The strategies are those of the tests (tests/fuzzing.py).
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

SHARES = {"pictures": 0.2, "labels": 0.1, "annotations": 0.2, "lists": 0.1, "YAML": 0.1}
SHARES |= {"checkpoints": 0.1, "ONNX": 0.1, "flags": 0.1}
"""Of all cases; those that take longest are fewest."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=20_000, help="cases of all targets together (default 20000)")
    parser.add_argument("--seed", type=int, default=0, help="another seed tries other cases (default 0)")
    parser.add_argument("--target", choices=SHARES, help="only this target, in this process")
    args = parser.parse_args()
    if args.target:
        return fuzz(args.target, args.cases, args.seed)
    print("| target | cases | refused cleanly | accepted | peak memory |")
    print("| --- | --- | --- | --- | --- |", flush=True)
    for name, share in SHARES.items():
        # A process for each, whose peak is the target's own, and whose end by a signal is told from an exception.
        flags = ["--target", name, "--cases", str(round(args.cases * share)), "--seed", str(args.seed)]
        done = subprocess.run([sys.executable, __file__, *flags], check=False)
        if done.returncode:
            print(f"{name}: exit code {done.returncode}", file=sys.stderr)
            return 1
    return 0


def fuzz(name: str, cases: int, seed: int) -> int:
    """Tries that many cases of a target; 1 and the case where one is not clean."""
    import uhd.process  # noqa: F401  # isort: skip - settings that torch and OpenCV read when they are loaded
    import hypothesis
    import torch
    from fuzzing import TARGETS, judge

    torch.set_num_threads(1)
    target, counts = TARGETS[name], {True: 0, False: 0}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)

        @hypothesis.seed(seed)
        @hypothesis.settings(
            max_examples=cases,
            database=None,
            deadline=None,
            suppress_health_check=list(hypothesis.HealthCheck),
            phases=[hypothesis.Phase.generate],
            print_blob=False,
        )
        @hypothesis.given(target.cases(Path(folder)))
        def check(case: object) -> None:
            try:
                counts[judge(target, case, Path(folder))] += 1
            except BaseException:
                print(f"{name}: not clean: {case!r}"[:20_000], file=sys.stderr)
                raise

        try:
            check()
        except Exception as error:  # whatever a reader lets through is what is looked for
            print(f"{type(error).__name__}: {error}"[:2000], file=sys.stderr)
            return 1
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"| {name} | {sum(counts.values()):,} | {counts[False]:,} | {counts[True]:,} | {peak:,} MB |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
