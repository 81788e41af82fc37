"""Time of each augmentation at one picture size: `python -m benchmarks.augment --size 64 64`."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from uhd.augment import Pipeline, Sample, load_pipeline  # noqa: E402  (the package is used from its tree, not installed)


def make_sample(height: int, width: int, num_boxes: int) -> Sample:
    """A smooth random picture, as compressible as a photograph, with random boxes."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    corners = np.sort(rng.random((num_boxes, 2, 2), dtype=np.float32), axis=1)
    return Sample(image, corners.reshape(-1, 4), np.zeros(num_boxes, np.int64))


def microseconds(pipeline: Pipeline, sample: Sample, runs: int) -> float:
    """Mean time of a call: the best of five rounds, as other programs only ever slow it down."""
    rng = np.random.default_rng(0)
    rounds = []
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(runs):
            pipeline(sample, rng)
        rounds.append((time.perf_counter() - start) / runs)
    return min(rounds) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--aug-config", default=str(ROOT / "uhd" / "aug.yaml"))
    parser.add_argument("--size", type=int, nargs=2, default=(64, 64), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--boxes", type=int, default=4)
    parser.add_argument("--runs", type=int, default=1000)
    args = parser.parse_args()

    cv2.setNumThreads(1)
    pipeline = load_pipeline(args.aug_config, classes=[0])
    sample = make_sample(*args.size, args.boxes)
    print(f"{'op':<28}{'us applied':>12}{'prob':>8}{'us on average':>16}")
    for op in pipeline.ops:
        always = microseconds(Pipeline([replace(op, prob=1.0)]), sample, args.runs)
        print(f"{type(op).__name__:<28}{always:>12.1f}{op.prob:>8.2f}{always * op.prob:>16.1f}")
    print(f"{'whole pipeline':<28}{'':>12}{'':>8}{microseconds(pipeline, sample, args.runs):>16.1f}")


if __name__ == "__main__":
    main()
