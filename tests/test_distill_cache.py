"""--teacher-cache: the teacher's outputs on disk, used where nothing has changed and never else."""

import os
import shutil

import numpy as np
import pytest
import torch
from conftest import write_yolo_folder
from helpers import ANCHORS, make_config, metric_rows, same, train_args, write_teacher

from uhd.checkpoint import read_checkpoint
from uhd.distill.cache import LessonCache, arrays_of, cache_folder, open_lessons, write_lessons
from uhd.distill.distillation import Lesson
from uhd.distill.teachers import NetworkTeacher
from uhd.distill_task import DistillTask

LABELS = ("0 0.5 0.5 0.4 0.8\n", "0 0.3 0.5 0.3 0.6\n", "", "0 0.7 0.4 0.2 0.6\n") * 2
TERMS = {"distill_kl": 1, "distill_box_l1": 1, "distill_feat": 1}
CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("fast")


@pytest.fixture
def shared(tmp_path):
    write_yolo_folder(tmp_path / "data", LABELS, (32, 32))
    teachers = {
        "utod": make_config(model={"use_batchnorm": True}),
        "queries": make_config(arch="transformer"),
    }
    for name, cfg in teachers.items():
        write_teacher(tmp_path / name, cfg).rename(tmp_path / f"{name}.pt")
    return tmp_path


@pytest.fixture
def looks(monkeypatch):
    """The numbers of pictures that a teacher has looked at, call by call, beside the black ones that it is tried on."""
    seen = []
    forward = NetworkTeacher.forward

    def watched(teacher, images):
        if images.any():
            seen.append(len(images))
        return forward(teacher, images)

    monkeypatch.setattr(NetworkTeacher, "forward", watched)
    return seen


@pytest.fixture
def run(run_train, shared):
    """Trains a student of shared's data; gives the outcome."""

    def start(out, teacher="queries.pt", code=0, cache="cache", **flags):
        flags = {
            **{"aug": False, "anchors": " ".join(f"{w},{h}" for w, h in ANCHORS), "val_split": 0.25},
            **{"train_split": 0.75, "teacher_ckpt": shared / teacher, "epochs": 1, **TERMS},
            **({"teacher_cache": shared / cache} if cache else {}),
            **flags,
        }
        outcome = run_train(*train_args(shared / "data", shared / out, **flags))
        assert outcome.code == code, outcome.err
        return outcome

    return start


def entries(shared):
    return sorted(path for path in (shared / "cache").iterdir())


def terms_of(run_dir):
    return [{key: value for key, value in row.items() if key.startswith("train/")} for row in metric_rows(run_dir)]


# --- runs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("teacher", "flags"),
    [
        ("queries.pt", {"teacher_img_size": "48x64", "distill_cosine": True}),
        ("utod.pt", {"distill_weight": 1, "feature_distill_weight": 1, "distill_obj": 1, "use_batchnorm": True}),
        ("utod.pt", {"distill_feat": 0}),
    ],
    ids=["queries", "same network", "without features"],
)
def test_what_is_remembered_is_what_the_teacher_says(run, shared, looks, teacher, flags):
    run("live", teacher, cache=None, epochs=2, **flags)
    assert sum(looks) == 12
    looks.clear()
    run("first", teacher, epochs=2, **flags)
    assert sum(looks) == 6
    looks.clear()
    run("second", teacher, epochs=2, **flags)
    assert looks == []
    assert len(entries(shared)) == 1
    live, first, second = (terms_of(shared / name) for name in ("live", "first", "second"))
    assert len(live) == 2
    for found, wanted in zip(first, live, strict=True):
        assert found == pytest.approx(wanted, rel=1e-4)
    assert second == first
    weights = [read_checkpoint(shared / name / "last.pt").weights for name in ("first", "second")]
    assert same(*weights)


def changed_teacher(shared):
    content = torch.load(shared / "queries.pt", weights_only=True)
    next(iter(content["state"]["model"].values())).add_(1)
    torch.save(content, shared / "queries.pt")


def changed_picture(shared):
    path = shared / "data/000.png"
    shutil.copy(shared / "data/001.png", path)
    os.utime(path, ns=(1, 1))


CHANGES = {
    "the teacher": (changed_teacher, {}),
    "a picture": (changed_picture, {}),
    "which pictures": (None, {"train_split": 0.5}),
    "their order": (None, {"seed": 5}),
    "the teacher's size": (None, {"teacher_img_size": "64x64"}),
    "how pictures are resized": (None, {"resize_mode": "torch_nearest"}),
    "what is said of the teacher": (None, {"teacher_activation": "relu"}),
    "features": (None, {"distill_feat": 0}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_has_changed_is_looked_at_again(run, shared, looks, change):
    make, flags = CHANGES[change]
    run("before")
    if make:
        make(shared)
    looks.clear()
    run("after", **flags)
    assert sum(looks) == (4 if change == "which pictures" else 6)
    assert len(entries(shared)) == 2


def test_weights_and_schedules_change_nothing_of_what_is_remembered(run, shared, looks):
    run("before")
    looks.clear()
    run("after", distill_kl=3, distill_temperature=2, lr=0.1, batch_size=3, epochs=2, cnn_width=6)
    assert looks == []
    assert len(entries(shared)) == 1


def test_a_run_goes_on_without_its_memory_and_with_it(run, run_train, shared, looks):
    run("straight", epochs=2)
    run("parts", epochs=2, stop_epoch=1)
    looks.clear()
    resumed = ("--resume", shared / "parts", "--num-workers", 0, "--cache", "ram", "--teacher-cache", shared / "cache")
    outcome = run_train(*resumed)
    assert (outcome.code, outcome.err, looks) == (0, [], [])
    assert terms_of(shared / "parts") == terms_of(shared / "straight")
    assert same(*(read_checkpoint(shared / name / "last.pt").state["model"] for name in ("parts", "straight")))


# --- damage -------------------------------------------------------------------------------------------


def cut(entry):
    path = max(entry.glob("*.npy"), key=lambda path: path.stat().st_size)
    path.write_bytes(path.read_bytes()[:-100])


def emptied(entry):
    next(entry.glob("*.npy")).write_bytes(b"")


def scribbled(entry):
    next(entry.glob("*.npy")).write_bytes(b"something else")


def shortened(entry):
    path = next(entry.glob("*.npy"))
    np.save(path, np.load(path)[:-1])


def hollow(entry):
    for path in entry.glob("*.npy"):
        path.unlink()


def lacking_maps(entry):
    (entry / "class_logits.npy").unlink()


def lacking_features(entry):
    (entry / "lesson_features.npy").unlink()


def a_file(entry):
    shutil.rmtree(entry)
    entry.write_text("")


DAMAGES = [cut, emptied, scribbled, shortened, hollow, lacking_maps, lacking_features, a_file]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_one_line_that_names_the_folder(run, shared, damage):
    run("before")
    (entry,) = entries(shared)
    damage(entry)
    outcome = run("after", code=2)
    assert len(outcome.errors) == 1, outcome.errors
    assert "--teacher-cache" in outcome.errors[0]
    assert str(entry) in outcome.errors[0]
    assert "Traceback" not in outcome.errors[0]
    assert not (shared / "after").exists()


def test_a_folder_that_cannot_be_made_is_one_line(run, shared):
    (shared / "cache").write_text("")
    outcome = run("run", code=2)
    assert len(outcome.errors) == 1
    assert "--teacher-cache" in outcome.errors[0]
    assert str(shared / "cache") in outcome.errors[0]


def test_looking_that_breaks_off_leaves_nothing(run, shared, looks, monkeypatch):
    whole, calls = DistillTask.lesson, []

    def breaking(task, images):
        calls.append(len(images))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole(task, images)

    monkeypatch.setattr(DistillTask, "lesson", breaking)
    with pytest.raises(KeyboardInterrupt):
        run("run")
    assert entries(shared) == []
    monkeypatch.setattr(DistillTask, "lesson", whole)
    looks.clear()
    run("run")
    assert sum(looks) == 6


# --- the files ----------------------------------------------------------------------------------------


def lesson_of(count, features=None, seed=0):
    torch.manual_seed(seed)
    preds = {"map": torch.randn(count, 2, 3), "features": torch.randn(count, 4, 2, 2), "anchors": torch.rand(3, 2)}
    return Lesson(preds, preds["features"] if features is None else features)


def written(folder, lesson, count, step=2):
    parts = [slice(start, min(start + step, count)) for start in range(0, count, step)]
    write_lessons(folder, count, (lesson.rows(rows) for rows in parts))


@pytest.mark.parametrize("own_features", [False, True])
def test_lessons_come_back_by_the_index_of_their_pictures(tmp_path, own_features):
    lesson = lesson_of(5, torch.randn(5, 7, 2, 2) if own_features else None)
    written(tmp_path / "a/b", lesson, 5)
    cache = open_lessons(tmp_path / "a/b", 5, set(arrays_of(lesson)), {"anchors": lesson.preds["anchors"]})
    found = cache.lesson(torch.tensor([3, 0, 3]), CPU)
    assert found.preds.keys() == lesson.preds.keys()
    assert torch.equal(found.preds["map"], lesson.preds["map"][[3, 0, 3]])
    assert torch.equal(found.preds["features"], lesson.preds["features"][[3, 0, 3]])
    assert torch.equal(found.features, lesson.features[[3, 0, 3]])
    assert torch.equal(found.preds["anchors"], lesson.preds["anchors"])


def test_features_alone(tmp_path):
    features = torch.randn(3, 4, 2, 2)
    written(tmp_path / "a", Lesson(None, features), 3)
    found = open_lessons(tmp_path / "a", 3, {"lesson_features"}, None).lesson(torch.tensor([2]), CPU)
    assert found.preds is None
    assert torch.equal(found.features, features[2:])


def test_low_precision_is_kept_in_full(tmp_path):
    features = torch.randn(2, 4, 2, 2).bfloat16()
    written(tmp_path / "a", Lesson(None, features), 2)
    found = open_lessons(tmp_path / "a", 2, {"lesson_features"}, None).lesson(torch.tensor([0, 1]), CPU)
    assert torch.equal(found.features, features.float())


def test_who_comes_second_leaves_the_first_ones_files(tmp_path):
    first, second = lesson_of(2, seed=0), lesson_of(2, seed=1)
    written(tmp_path / "a", first, 2)
    written(tmp_path / "a", second, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    found = open_lessons(tmp_path / "a", 2, set(arrays_of(first)), {"anchors": first.preds["anchors"]})
    assert isinstance(found, LessonCache)
    assert torch.equal(found.lesson(torch.tensor([0, 1]), CPU).preds["map"], first.preds["map"])


def test_no_folder_is_no_memory(tmp_path):
    assert open_lessons(tmp_path / "a", 2, set(), None) is None


def test_folders_differ_where_facts_do(tmp_path):
    facts = {"files": ["a"], "sizes": [[32, 32], "x"], "pictures": [["p", 1, 2]]}
    other = {**facts, "sizes": [[32, 48], "x"]}
    assert cache_folder(tmp_path, facts) == cache_folder(tmp_path, dict(reversed(facts.items())))
    assert cache_folder(tmp_path, facts) != cache_folder(tmp_path, other)
    assert cache_folder(tmp_path, facts).parent == tmp_path
