"""Distillation by train.py: runs, what they log and save, going on, the pictures' sizes, and mistakes."""

import json
import math

import pytest
import torch
from conftest import write_yolo_folder
from helpers import ANCHORS, make_config, metric_rows, same, train_args, write_teacher
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train
from uhd.checkpoint import read_checkpoint
from uhd.cli import parse_args
from uhd.distill_task import DistillTask
from uhd.eval.report import save_loss_curves

TIMES = {"seconds", "images_per_second"}
LABELS = ("0 0.5 0.5 0.4 0.8\n", "0 0.3 0.5 0.3 0.6\n", "", "0 0.7 0.4 0.2 0.6\n", "0 0.5 0.5 0.4 0.8\n", "") * 2
STUDENT = {"aug": False, "anchors": " ".join(f"{w},{h}" for w, h in ANCHORS), "train_split": 0.7, "val_split": 0.3}

pytestmark = pytest.mark.usefixtures("fast")


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A data set of pictures of 64x64 and teachers of fresh weights; not to be written into."""
    folder = tmp_path_factory.mktemp("shared")
    write_yolo_folder(folder / "data", LABELS, (64, 64))
    teachers = {
        "utod": make_config(model={"use_improved_head": True, "cnn_width": 6}),
        "plain": make_config(),
        "centres": make_config(arch="cnn", model={"output_stride": 8}),
        "queries": make_config(arch="transformer"),
        "chairs": make_config(labels={"classes": (1,)}, model={"num_classes": 1}),
        "three": make_config(labels={"num_classes": 3}),
        "varifocal": make_config(loss={"anchor_cls_loss": "vfl"}),
    }
    for name, cfg in teachers.items():
        write_teacher(folder / name, cfg).rename(folder / f"{name}.pt")
    content = torch.load(folder / "plain.pt", weights_only=True)
    next(iter(content["state"]["model"].values())).view(-1)[0] = math.nan
    torch.save(content, folder / "nan.pt")
    content = torch.load(folder / "plain.pt", weights_only=True)
    content["state"]["model"].popitem()
    torch.save(content, folder / "lacking.pt")
    torch.save({"state_dict": {}}, folder / "foreign.pt")
    (folder / "cut.pt").write_bytes((folder / "plain.pt").read_bytes()[: (folder / "plain.pt").stat().st_size // 2])
    (folder / "empty.pt").write_bytes(b"")
    return folder


@pytest.fixture
def run(run_train, shared, tmp_path):
    """Trains a student into a folder of tmp_path; True flags are switches."""

    def start(out="run", code=0, **flags):
        outcome = run_train(*train_args(shared / "data", tmp_path / out, **{**STUDENT, **flags}))
        assert outcome.code == code, outcome.err
        return outcome

    return start


def timeless(rows):
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def saved(run_dir):
    return read_checkpoint(run_dir / "last.pt")


# --- what is logged -----------------------------------------------------------------------------------


def test_each_term_is_logged_by_its_name(run, shared, tmp_path):
    weights = {"distill_kl": 1, "distill_box_l1": 2, "distill_obj": 0.5, "distill_quality": 1, "distill_feat": 1}
    outcome = run(teacher_ckpt=shared / "utod.pt", use_improved_head=True, epochs=1, **weights)
    assert outcome.err == []
    (row,) = metric_rows(tmp_path / "run")
    names = {"box", "obj", "cls", "quality", *weights}
    assert {key for key in row if key.startswith("train/")} == {f"train/{name}" for name in ("loss", *names)}
    assert all(0 < row[f"train/{name}"] < math.inf for name in names)
    assert row["train/loss"] == pytest.approx(sum(row[f"train/{name}"] for name in names), rel=1e-5)
    # Validation judges the student by the truths alone.
    assert row["val/loss"] == pytest.approx(sum(row[f"val/{name}"] for name in ("box", "obj", "cls", "quality")))
    assert not [key for key in row if key.startswith("val/distill")]
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    assert {f"train/{name}" for name in weights} <= set(events.Tags()["scalars"])
    (line,) = [line for line in outcome.out if line.startswith("epoch 1 ")]
    assert all(f"{name} {row[f'train/{name}']:.4f}" in line for name in weights)


def test_loss_curves_show_terms_that_training_alone_has(tmp_path):
    rows = [{"epoch": n, "train/loss": 3 / n, "train/box": 2 / n, "val/loss": 3 / n, "val/box": 2 / n} for n in (1, 2)]
    further = [{"train/distill_kl": 1.0}, {"train/distill_kl": 0.5}]
    histories = {"without": [{}, {}], "with": further, "from the second epoch": [{}, further[1]]}
    pictures = {}
    for name, terms in histories.items():
        save_loss_curves(tmp_path / f"{name}.png", [row | term for row, term in zip(rows, terms, strict=True)])
        pictures[name] = (tmp_path / f"{name}.png").read_bytes()
    assert len(set(pictures.values())) == 3


# --- students and teachers ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("teacher", "flags"),
    [
        ("queries", {"arch": "cnn", "output_stride": 8, "anchors": None, "distill_kl": 1, "distill_box_l1": 1}),
        ("three", {"classes": "0,1", "num_classes": 3, "distill_kl": 1}),
        ("chairs", {"distill_kl": 1, "distill_temperature": 3}),
        ("plain", {"distill_weight": 1, "feature_distill_weight": 0.5, "teacher_arch": "ultratinyod"}),
    ],
)
def test_a_run_with_a_teacher(run, shared, tmp_path, teacher, flags):
    before = (shared / f"{teacher}.pt").read_bytes()
    outcome = run(teacher_ckpt=shared / f"{teacher}.pt", epochs=1, **flags)
    assert outcome.errors == []
    (row,) = metric_rows(tmp_path / "run")
    for name in ("distill_kl", "distill_box_l1", "distill_weight", "feature_distill_weight"):
        assert (f"train/{name}" in row) == (name in flags)
    assert (shared / f"{teacher}.pt").read_bytes() == before
    student = saved(tmp_path / "run").weights
    run(
        "alone", epochs=1, **{key: value for key, value in flags.items() if "distill" not in key and "teach" not in key}
    )
    alone = saved(tmp_path / "alone").weights
    assert student.keys() == alone.keys()
    assert not same(student, alone)


def test_what_flags_say_of_a_teacher_changes_it(run, shared, tmp_path):
    terms = []
    for name, flags in (("own", {}), ("relu", {"teacher_activation": "relu"})):
        run(name, teacher_ckpt=shared / "utod.pt", epochs=1, lr=1e-9, distill_feat=1, **flags)
        terms.append(metric_rows(tmp_path / name)[0]["train/distill_feat"])
    assert abs(terms[0] - terms[1]) > 1e-3


@pytest.mark.parametrize("flags", [{}, {"auto_anchors": True}])
def test_a_student_has_its_teachers_anchors(run, shared, tmp_path, flags):
    """With its own, of the same pictures and another seed, it would not be compared place by place."""
    outcome = run(teacher_ckpt=shared / "plain.pt", distill_obj=1, epochs=1, anchors=None, num_anchors=3, **flags)
    assert any("anchors: the teacher's" in line for line in outcome.out)
    assert any("compared place by place" in line for line in outcome.out)
    assert saved(tmp_path / "run").config.model.anchors == read_checkpoint(shared / "plain.pt").config.model.anchors


@pytest.mark.parametrize(
    "flags",
    [{"distill_obj": 1, "num_anchors": 2}, {"distill_feat": 1, "num_anchors": 3}, {"distill_kl": 1, "arch": "tinyssd"}],
)
def test_a_student_has_anchors_of_its_own_where_the_teachers_say_nothing(run, shared, tmp_path, flags):
    outcome = run(teacher_ckpt=shared / "plain.pt", epochs=1, anchors=None, **flags)
    assert not any("anchors: the teacher's" in line for line in outcome.out)
    assert any("--distill-obj: learned at the teacher's best boxes only" in line for line in outcome.warnings) == (
        "distill_obj" in flags
    )


@pytest.mark.parametrize("loss", ["bce", "vfl"])
def test_classes_are_learned_everywhere_where_both_losses_teach_them_so(run, shared, tmp_path, monkeypatch, loss):
    tasks, build = [], train.build_distill_task
    monkeypatch.setattr(train, "build_distill_task", lambda *args: tasks.append(build(*args)) or tasks[-1])
    run(teacher_ckpt=shared / "varifocal.pt", distill_kl=1, epochs=1, anchor_cls_loss=loss)
    assert tasks[0].distillation.plan.classes_everywhere == (loss == "vfl")


@pytest.mark.parametrize(("names", "warned"), [("person", False), ("dog", True)])
def test_a_class_of_another_name_is_warned_of(run, run_train, shared, tmp_path, names, warned):
    (tmp_path / "names.txt").write_text(names)
    outcome = run(teacher_ckpt=shared / "plain.pt", distill_kl=1, epochs=1, names=tmp_path / "names.txt")
    assert any("finds 'person'; the student is to find 'dog'" in line for line in outcome.warnings) is warned


# --- going on -----------------------------------------------------------------------------------------


DISTILLED = {"distill_kl": 1, "distill_box_l1": 1, "distill_feat": 1, "distill_cosine": True}


def test_one_epoch_and_one_more_are_two(run, run_train, shared, tmp_path):
    flags = {"teacher_ckpt": shared / "queries.pt", "teacher_img_size": "64x48", "use_ema": True, **DISTILLED}
    run("straight", **flags)
    run("parts", stop_epoch=1, **flags)
    outcome = run_train("--resume", tmp_path / "parts", "--num-workers", 0, "--cache", "ram")
    assert (outcome.code, outcome.err) == (0, [])
    straight, parts = (saved(tmp_path / name) for name in ("straight", "parts"))
    for part in straight.state:
        assert same(parts.state[part], straight.state[part]), part
    assert parts.config.distill == straight.config.distill
    rows = metric_rows(tmp_path / "parts")
    assert timeless(rows) == timeless(metric_rows(tmp_path / "straight"))
    criterion = straight.state["criterion"]
    assert criterion["distillation.adapter.weight"].shape == (8, 16, 1, 1)
    assert rows[0]["train/distill_kl"] < rows[1]["train/distill_kl"]


@pytest.mark.parametrize(("pictures", "batch"), [(8, 4), (6, 3), (5, 4)])
def test_the_ramp_ends_with_the_run(run, shared, tmp_path, monkeypatch, pictures, batch):
    """A rest of one picture, which no step takes, included."""
    lists = {}
    paths = sorted((shared / "data").glob("*.png"))
    for name, chosen in (("train_list", paths[:pictures]), ("val_list", paths[pictures:])):
        lists[name] = tmp_path / f"{name}.txt"
        lists[name].write_text("".join(f"{path}\n" for path in chosen))
    tasks, build = [], train.build_distill_task
    monkeypatch.setattr(train, "build_distill_task", lambda *args: tasks.append(build(*args)) or tasks[-1])
    flags = {**lists, "image_dir": None, "train_split": None, "val_split": None, "batch_size": batch}
    run(teacher_ckpt=shared / "plain.pt", distill_kl=1, distill_cosine=True, **flags)
    assert float(tasks[0].distillation.ramp()) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("start", ["--ckpt", "--resume"])
def test_validation_needs_no_teacher(run, run_train, shared, tmp_path, start):
    teacher = tmp_path / "teacher.pt"
    teacher.write_bytes((shared / "queries.pt").read_bytes())
    run(teacher_ckpt=teacher, epochs=1, **DISTILLED)
    teacher.unlink()
    outcome = run_train(start, tmp_path / "run/last.pt", "--val-only", "--num-workers", 0, "--cache", "ram")
    assert (outcome.code, outcome.errors) == (0, [])
    (row,) = metric_rows(tmp_path / "run")
    found = json.loads((tmp_path / "run/val.json").read_text())
    assert found == pytest.approx({key: row[key] for key in found}, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize(("weights", "typed"), [({"distill_kl": 1}, 1), ({"distill_kl": 1, "distill_feat": 1}, 0)])
def test_features_are_learned_all_along_or_not_at_all(run, run_train, shared, tmp_path, weights, typed):
    """The adapter's weights belong to the state."""
    run(teacher_ckpt=shared / "utod.pt", stop_epoch=1, **weights)
    outcome = run_train("--resume", tmp_path / "run", "--distill-feat", typed, "--num-workers", 0)
    assert outcome.code == 2
    (line,) = outcome.errors
    assert all(part in line for part in (f"--distill-feat {typed}:", "was trained with", "--resume"))


def test_weights_of_a_student_start_a_run_without_its_teacher(run, run_train, shared, tmp_path):
    run(teacher_ckpt=shared / "queries.pt", epochs=1, **DISTILLED)
    flags = train_args(shared / "data", tmp_path / "next", epochs=1, ckpt=tmp_path / "run/last.pt", aug=False)
    outcome = run_train(*flags)
    assert (outcome.code, outcome.errors) == (0, [])
    assert not [key for key in metric_rows(tmp_path / "next")[0] if "distill" in key]


# --- sizes of pictures --------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["opencv_inter_area", "opencv_inter_nearest", "torch_nearest"])
def test_the_student_sees_what_it_would_see_alone(run, shared, tmp_path, monkeypatch, mode):
    """Its pictures in training, and those of validation, do not depend on the size that the teacher sees."""
    data = write_yolo_folder(tmp_path / "data", LABELS, (128, 128))
    seen = {}
    learn, evaluate = DistillTask.learn, train.evaluate

    def watched(task, images, *rest):
        seen.setdefault("shapes", set()).add(tuple(images.shape[2:]))
        hook = task.student.register_forward_pre_hook(lambda _, args: seen.setdefault("inputs", []).append(args[0]))
        terms = learn(task, images, *rest)
        hook.remove()
        return terms

    def validated(model, task, loader, *rest):
        seen["validation"] = torch.cat([images for images, _ in loader])
        return evaluate(model, task, loader, *rest)

    monkeypatch.setattr(DistillTask, "learn", watched)
    monkeypatch.setattr(train, "evaluate", validated)
    inputs, validation = [], []
    for size in ("32x32", "64x64"):
        seen.clear()
        flags = {"image_dir": data, "teacher_img_size": size, "resize_mode": mode, "epochs": 1}
        run(f"run{size}", teacher_ckpt=shared / "plain.pt", distill_kl=1, **flags)
        assert seen["shapes"] == {tuple(map(int, size.split("x")))}
        inputs.append(torch.cat(seen["inputs"]))
        validation.append(seen["validation"])
    assert inputs[0].shape[2:] == (32, 32)
    assert torch.equal(*validation)
    assert float((inputs[0] - inputs[1]).abs().max()) * 255 < 1.01


def test_a_teacher_sees_its_own_size(run, shared, tmp_path, monkeypatch):
    sizes = set()
    forward = train.DistillTask.lesson

    def watched(task, images):
        (teacher,) = task._teachers[0].modules()
        hook = teacher.model.register_forward_pre_hook(lambda _, args: sizes.add(tuple(args[0].shape[1:])))
        lesson = forward(task, images)
        hook.remove()
        return lesson

    monkeypatch.setattr(train.DistillTask, "lesson", watched)
    run(teacher_ckpt=shared / "queries.pt", teacher_img_size="48x24", epochs=1, distill_kl=1)
    assert sizes == {(3, 48, 24)}
    run("other", teacher_ckpt=shared / "queries.pt", img_size="64x64", epochs=1, distill_kl=1)
    assert sizes == {(3, 48, 24), (3, 32, 32)}


# --- mistakes -----------------------------------------------------------------------------------------

MISTAKES = {
    "weight without a teacher": ("--distill-kl 1", "--distill-kl", "--teacher-ckpt", "--teacher-backbone"),
    "feature weight without a teacher": ("--distill-feat 1", "--distill-feat", "--teacher-ckpt"),
    "teacher without a weight": ("--teacher-ckpt plain.pt", "--teacher-ckpt", "--distill-kl", "--distill-feat"),
    "backbone without its weight": ("--teacher-backbone plain.pt", "--teacher-backbone", "--distill-feat"),
    "backbone for another weight": (
        *("--teacher-backbone plain.pt --distill-feat 1 --distill-kl 1", "--distill-kl", "--teacher-ckpt"),
    ),
    "negative weight": ("--teacher-ckpt plain.pt --distill-kl -1", "--distill-kl -1", ">= 0"),
    "weight of nan": ("--teacher-ckpt plain.pt --distill-box-l1 nan", "--distill-box-l1 nan", ">= 0"),
    "endless weight": ("--teacher-ckpt plain.pt --distill-feat inf", "--distill-feat inf", ">= 0"),
    "weight in words": ("--teacher-ckpt plain.pt --distill-kl much", "--distill-kl", "'much'", "number"),
    "temperature 0": ("--teacher-ckpt plain.pt --distill-kl 1 --distill-temperature 0", "--distill-temperature", "> 0"),
    "temperature nan": (
        *("--teacher-ckpt plain.pt --distill-kl 1 --distill-temperature nan", "--distill-temperature nan"),
    ),
    "no file": ("--teacher-ckpt gone.pt --distill-kl 1", "--teacher-ckpt gone.pt", "no such file"),
    "a folder": ("--teacher-ckpt data --distill-kl 1", "--teacher-ckpt data", "folder"),
    "half a file": ("--teacher-ckpt cut.pt --distill-kl 1", "--teacher-ckpt cut.pt", "not a complete checkpoint"),
    "nothing in the file": ("--teacher-ckpt empty.pt --distill-kl 1", "--teacher-ckpt empty.pt", "not a complete"),
    "file of another program": (
        *("--teacher-ckpt foreign.pt --distill-kl 1", "--teacher-ckpt foreign.pt", "not a checkpoint of this program"),
    ),
    "file that lacks a weight": ("--teacher-ckpt lacking.pt --distill-kl 1", "--teacher-ckpt lacking.pt", "not fit"),
    "weights of nan": ("--teacher-ckpt nan.pt --distill-kl 1", "--teacher-ckpt nan.pt", "finite"),
    "another architecture": (
        *("--teacher-ckpt plain.pt --teacher-arch cnn --distill-kl 1", "--teacher-arch cnn", "plain.pt", "ultratinyod"),
    ),
    "unknown architecture": ("--teacher-ckpt plain.pt --teacher-arch yolo --distill-kl 1", "--teacher-arch", "yolo"),
    "more layers": (
        *("--teacher-ckpt queries.pt --teacher-layers 3 --distill-kl 1", "--teacher-layers 3", "queries.pt has 1"),
    ),
    "layers of a net without": (
        *("--teacher-ckpt plain.pt --teacher-layers 3 --distill-kl 1", "--teacher-layers", "ultratinyod"),
    ),
    "no layer": ("--teacher-ckpt queries.pt --teacher-layers 0 --distill-kl 1", "--teacher-layers 0"),
    "fewer layers than none": ("--teacher-ckpt queries.pt --teacher-layers -1 --distill-kl 1", "--teacher-layers -1"),
    "odd width": ("--teacher-ckpt queries.pt --teacher-d-model 9 --distill-kl 1", "--teacher-d-model 9"),
    "layers in words": ("--teacher-layers two", "--teacher-layers", "'two'", "whole number"),
    "unknown activation": ("--teacher-activation gelu", "--teacher-activation", "'gelu'", "relu"),
    "size off the stride": (
        *("--teacher-ckpt plain.pt --teacher-img-size 36x64 --distill-kl 1", "--teacher-img-size 36x64", "8"),
    ),
    "size in words": ("--teacher-img-size large", "--teacher-img-size", "'large'", "HxW"),
    "other classes": (
        "--teacher-ckpt chairs.pt --classes 0,2 --distill-kl 1",
        "chairs.pt",
        "class1",
        "class0",
        "class2",
    ),
    "a class more": ("--teacher-ckpt three.pt --distill-kl 1", "three.pt", "class0, class1, class2", "person"),
    "objectness of queries": (
        *("--teacher-ckpt queries.pt --distill-obj 1", "--distill-obj", "transformer", "ultratinyod", "--distill-kl"),
    ),
    "quality of one only": ("--teacher-ckpt utod.pt --distill-quality 1", "--distill-quality", "--distill-obj"),
    "maps of other shapes": ("--teacher-ckpt queries.pt --distill-weight 1", "--distill-weight", "--distill-kl"),
    "features of other shapes": (
        *("--teacher-ckpt utod.pt --feature-distill-weight 1", "--feature-distill-weight", "--distill-feat"),
    ),
    "remembered and augmented": (
        *("--aug --teacher-ckpt plain.pt --distill-kl 1 --teacher-cache c", "--teacher-cache", "--no-aug"),
    ),
    "nothing to remember": ("--teacher-cache c", "--teacher-cache", "no teacher"),
    "unknown backbone": ("--teacher-backbone-arch resnet", "--teacher-backbone-arch", "'resnet'", "vit_tiny"),
    "backbone that is not there": (
        *("--teacher-backbone gone.pth --distill-feat 1", "--teacher-backbone gone.pth", "no such file"),
    ),
    "backbone that is a checkpoint": ("--teacher-backbone plain.pt --distill-feat 1", "--teacher-backbone plain.pt"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_in_the_flags(mistake, refused, shared, tmp_path):
    flags, *mentions = MISTAKES[mistake]
    for path in shared.iterdir():
        (tmp_path / path.name).symlink_to(path)
    anchors = () if "--classes" in flags else ("--anchors", STUDENT["anchors"])
    line = refused("--image-dir", "data", *anchors, *flags.split(), mentions=mentions)
    assert "Traceback" not in line
    assert "Errno" not in line


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("--distill-cosine", ("--distill-cosine",)),
        ("--distill-temperature 2", ("--distill-temperature",)),
        ("--teacher-arch cnn", ("--teacher-arch", "--teacher-ckpt")),
        ("--teacher-layers 3", ("--teacher-layers", "--teacher-ckpt")),
        ("--teacher-img-size 64x64", ("--teacher-img-size", "--teacher-ckpt")),
        ("--teacher-backbone-norm none", ("--teacher-backbone-norm", "--teacher-backbone")),
        ("--teacher-ckpt plain.pt --distill-obj 1 --distill-temperature 2", ("--distill-temperature", "--distill-kl")),
    ],
)
def test_flag_without_effect_is_one_warning(flags, named, caplog):
    parse_args(["--arch", "ultratinyod", *flags.split()])
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert all(name in caplog.messages[0] for name in named)


def test_a_teacher_that_is_gone_is_one_line(run, run_train, shared, tmp_path):
    teacher = tmp_path / "teacher.pt"
    teacher.write_bytes((shared / "plain.pt").read_bytes())
    run(teacher_ckpt=teacher, stop_epoch=1, distill_kl=1)
    teacher.unlink()
    outcome = run_train("--resume", tmp_path / "run", "--num-workers", 0)
    assert outcome.code == 2
    assert len(outcome.errors) == 1
    assert f"--teacher-ckpt {teacher}" in outcome.errors[0]
