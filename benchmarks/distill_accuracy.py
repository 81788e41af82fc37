"""What a student gains from a teacher: the teacher, each student alone, and each with sets of terms; a Markdown table.

    python -m benchmarks.distill_accuracy --out runs/distill --epochs 40 --seeds 42 43 44 -- \
        --train-list people/train.txt --val-list people/val.txt

All have the teacher's anchors, so that a student alone differs from a distilled one by the teacher only. What stands
behind -- goes to every training. A training that is finished is not done again, one that was stopped goes
on, so that a long table can be made in several sittings.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.common import FLAGS
from benchmarks.trainings import HEAD, best_epoch, split_flags, summary
from uhd.checkpoint import read_checkpoint

TERMS: dict[str, list[str]] = {
    "boxes and features": ["--distill-box-l1", "5", "--distill-feat", "5"],
    "quality": ["--distill-quality", "1"],
    "quality and boxes": ["--distill-quality", "1", "--distill-box-l1", "5"],
    "quality, boxes and features": ["--distill-quality", "1", "--distill-box-l1", "5", "--distill-feat", "5"],
    "classes, quality and boxes": ["--distill-kl", "1", "--distill-quality", "1", "--distill-box-l1", "5"],
}
"""The weights of each set; that of the boxes is the truths' own. With one class --distill-kl says something only where
all learn it by --anchor-cls-loss vfl, and --distill-obj does not reach the score of a head with quality."""


def main() -> None:
    own, train_flags = split_flags(sys.argv[1:])
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--epochs", type=int, default=40, help="epochs of the students")
    parser.add_argument("--teacher-epochs", type=int, default=40)
    parser.add_argument("--teacher-width", type=int, default=128)
    parser.add_argument(
        "--students", type=int, nargs="*", default=[16, 32], metavar="WIDTH", help="none: only the teacher"
    )
    parser.add_argument(
        "--terms", nargs="*", choices=TERMS, default=["boxes and features"], metavar="SET", help=", ".join(TERMS)
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
    args = parser.parse_args(own)

    def trained(title: str, flags: list[str], epochs: int, seeds: list[int]) -> None:
        name = title.replace(" ", "_").replace(",", "")
        best = [
            best_epoch(
                args.out / f"{name}_{epochs}_{seed}", [*FLAGS, *flags, "--seed", str(seed), *train_flags], epochs
            )
            for seed in seeds
        ]
        print(f"| {title} | {summary(best)} |", flush=True)

    print(f"| network | {HEAD} |")
    print("| --- " * (HEAD.count("|") + 2) + "|")
    teacher = f"teacher w{args.teacher_width}"
    teacher_seed = args.seeds[0]
    trained(teacher, ["--cnn-width", str(args.teacher_width)], args.teacher_epochs, [teacher_seed])
    teacher_run = args.out / f"{teacher.replace(' ', '_')}_{args.teacher_epochs}_{teacher_seed}"
    anchors = read_checkpoint(teacher_run / "best.pt").config.model.anchors
    places = ["--anchors", " ".join(f"{w},{h}" for w, h in anchors)]
    for width in args.students:
        student = ["--cnn-width", str(width), *places]
        trained(f"w{width} alone", student, args.epochs, args.seeds)
        for terms in args.terms:
            lessons = ["--teacher-ckpt", str(teacher_run / "best.pt"), *TERMS[terms]]
            trained(f"w{width} from {terms}", [*student, *lessons], args.epochs, args.seeds)


if __name__ == "__main__":
    main()
