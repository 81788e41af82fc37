"""What the settings of uhd/process.py bring, alone on the machine and beside a busy process.

    python -m benchmarks.process_settings

Each figure is the rate of the bare network (forward, backward, fused AdamW) in a fresh process; the
ways take turns.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys

WORKER = """
import sys
if sys.argv[1] == "on":
    import uhd.process
from benchmarks.common import FLAGS, bare_step, images_per_second
from uhd.cli import parse_args
anchors = " ".join(["0.1,0.2"] * 8)
cfg, _ = parse_args([*FLAGS, "--cnn-width", sys.argv[2], "--anchors", anchors])
print(images_per_second(bare_step(cfg, channels_last=True), cfg.optim.batch_size, int(sys.argv[3])))
"""
BUSY = "while True: pass"


def rate(settings: str, width: int, steps: int) -> float:
    """Images a second in a fresh process."""
    environment = {key: value for key, value in os.environ.items() if key != "GOMP_SPINCOUNT"}
    command = [sys.executable, "-c", WORKER, settings, str(width), str(steps)]
    found = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return float(found.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 32, 16])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    print(f"{'width':>6} {'machine':>16}{'off':>10}{'on':>10}{'on/off':>9}  (images/s, medians)")
    for width in args.widths:
        for machine in ("alone", "one busy process"):
            busy = subprocess.Popen([sys.executable, "-c", BUSY]) if machine != "alone" else None
            try:
                pairs = [(rate("off", width, args.steps), rate("on", width, args.steps)) for _ in range(args.repeats)]
            finally:
                if busy:
                    busy.kill()
            off, on = (statistics.median(values) for values in zip(*pairs, strict=True))
            print(f"{width:>6} {machine:>16}{off:>10.0f}{on:>10.0f}{on / off:>9.2f}", flush=True)


if __name__ == "__main__":
    main()
