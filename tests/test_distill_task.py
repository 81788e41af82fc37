"""Learning from a teacher: what is trained and what is not, pairs of networks, and that each term teaches."""

import itertools

import pytest
import torch
from helpers import CPU, make_config, same, start_distilled, targets_of, write_teacher

from uhd.distill.distillation import Lesson
from uhd.distill.teachers import NetworkTeacher
from uhd.distill.views import view_of
from uhd.distill_task import DistillTask, Teachers, build_distill_task, load_teachers
from uhd.models import build_model
from uhd.optim import TrainState
from uhd.task import sum_terms

SMALL_ANCHORS = ((0.1, 0.2), (0.2, 0.5), (0.5, 0.8))

NETS = {
    "anchors": {"model": {"use_batchnorm": True}},
    "anchors, quality": {"model": {"use_improved_head": True}},
    "anchors, stride 4": {"model": {"output_stride": 4, "cnn_width": 6}},
    "other anchors": {"model": {"anchors": SMALL_ANCHORS}},
    "one anchor": {"model": {"num_anchors": 1, "anchors": ((0.3, 0.6),)}},
    "cnn, anchors": {"arch": "cnn", "model": {"use_anchor": True, "output_stride": 8}},
    "centres": {"arch": "cnn", "model": {"output_stride": 8, "use_batchnorm": True}},
    "centres, stride 4": {"arch": "cnn", "model": {"output_stride": 4, "cnn_width": 6}},
    "grids": {"arch": "nanodet"},
    "other grids": {"arch": "nanodet", "model": {"nanodet_strides": (4, 8, 16, 32)}},
    "grids of two": {"arch": "nanodet", "model": {"nanodet_strides": (8, 16)}},
    "queries": {"arch": "transformer"},
    "more queries": {"arch": "transformer", "model": {"num_queries": 8, "d_model": 12}},
    "levels": {"arch": "tinyssd"},
    "levels, mined": {"arch": "tinyssd", "model": {"tinyssd_cls_loss": "mined"}},
}
FAMILIES = ("anchors", "centres", "cnn, anchors", "queries", "grids", "levels")
PAIRS = {
    **{f"{teacher} to {student}": (teacher, student) for teacher, student in itertools.product(FAMILIES, repeat=2)},
    "finer anchors": ("anchors, stride 4", "anchors"),
    "coarser anchors": ("anchors", "anchors, stride 4"),
    "finer centres": ("centres, stride 4", "centres"),
    "other anchors": ("other anchors", "anchors"),
    "fewer anchors": ("one anchor", "anchors"),
    "quality, which the student has not": ("anchors, quality", "anchors"),
    "quality in both": ("anchors, quality", "anchors, quality"),
    "more queries": ("more queries", "queries"),
    "another grid": ("other grids", "grids"),
    "fewer grids": ("grids of two", "grids"),
    "mined levels": ("levels, mined", "levels, mined"),
    "focal to mined": ("levels", "levels, mined"),
}
TRUTHS = targets_of([(0, 0.1, 0.1, 0.6, 0.9)], [], [(0, 0.5, 0.2, 0.9, 0.8), (0, 0.0, 0.0, 0.4, 0.5)])


@pytest.fixture(scope="module")
def teacher_of(tmp_path_factory):
    """The path of a checkpoint of a row of NETS, with these further settings; each is written once."""
    folder, written = tmp_path_factory.mktemp("teachers"), {}

    def path(name, **settings):
        key = name, repr(settings)
        if key not in written:
            cfg = make_config(**NETS[name], **settings)
            written[key] = write_teacher(folder / str(len(written)), cfg, seed=1 + len(written))
        return str(written[key])

    return path


def student_config(name, teacher, labels=None, img_size=(32, 32), optim=None, **distill):
    return make_config(
        **NETS[name],
        labels=labels,
        img_size=img_size,
        optim={"lr": 0.01, **(optim or {})},
        distill={"teacher_ckpt": teacher, **distill},
    )


def pictures(count=3, size=(32, 32), seed=0):
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(seed))


# --- what is trained ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["anchors", "centres", "queries"])
def test_a_teacher_only_looks(teacher_of, name):
    """It has batch norm, or dropout would show: what it says of a picture does not change while a student learns."""
    cfg = student_config("anchors", teacher_of(name), distill_kl=1.0, distill_box_l1=1.0, distill_feat=1.0)
    task, state = start_distilled(cfg)
    task = task.to(CPU).train()
    (teacher,) = task._teachers[0].modules()
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    said = task.lesson(pictures())
    for mode in (True, False, True):
        task.train(mode)
        assert not any(module.training for module in teacher.model.modules())
        task.learn(pictures(), TRUTHS, state.backward)
        assert all(parameter.grad is None for parameter in teacher.parameters())
        state.step(torch.tensor(True))
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert same(dict(teacher.state_dict()), before)
    assert same(dict(task.lesson(pictures()).preds), dict(said.preds))


def test_a_teacher_is_no_part_of_what_is_trained_and_saved(teacher_of):
    cfg = student_config("anchors", teacher_of("queries"), distill_kl=1.0, distill_feat=1.0)
    task, state = start_distilled(cfg)
    (teacher,) = task._teachers[0].modules()
    theirs = {id(value) for value in (*teacher.parameters(), *teacher.buffers())}
    adapter = task.distillation.adapter.weight
    assert adapter.shape == (8, 16, 1, 1)
    optimised = [parameter for group in state.optimizer.param_groups for parameter in group["params"]]
    assert not theirs & {id(value) for value in (*task.parameters(), *task.buffers(), *optimised)}
    assert {id(parameter) for parameter in optimised} == {id(parameter) for parameter in task.parameters()}
    assert any(parameter is adapter for parameter in optimised)
    names = {f"student.{name}" for name in task.student.state_dict()}
    names |= {f"criterion.distillation.{name}" for name in ("seen", "adapter.weight")}
    assert task.state_dict().keys() == names
    assert state.state_dict()["criterion"].keys() == {"distillation.seen", "distillation.adapter.weight"}


def test_adapter_learns(teacher_of):
    task, state = start_distilled(student_config("cnn, anchors", teacher_of("anchors"), distill_feat=1.0))
    before = task.distillation.adapter.weight.detach().clone()
    task.learn(pictures(), TRUTHS, state.backward)
    state.step(torch.tensor(True))
    assert not torch.equal(task.distillation.adapter.weight, before)


def test_features_of_one_width_need_no_adapter(teacher_of):
    task, _ = start_distilled(student_config("anchors", teacher_of("other anchors"), distill_feat=1.0))
    assert list(task.distillation.parameters()) == []


def test_teachers_follow_the_task(teacher_of):
    cfg = student_config("centres", teacher_of("anchors"), distill_kl=1.0)
    task, _ = start_distilled(cfg)
    (teacher,) = task._teachers[0].modules()
    task.to("meta")
    assert {value.device.type for value in teacher.model.parameters()} == {"meta"}


def test_no_teacher_is_a_plain_task():
    task, _ = start_distilled(make_config())
    assert not isinstance(task, DistillTask)


# --- a teacher that is the student --------------------------------------------------------------------

HEADS = {
    "anchors": ("anchors", ("distill_kl", "distill_box_l1", "distill_obj")),
    "anchors, quality": ("anchors, quality", ("distill_kl", "distill_box_l1", "distill_obj", "distill_quality")),
    "centres": ("centres", ("distill_kl", "distill_box_l1")),
    "queries": ("queries", ("distill_kl", "distill_box_l1")),
}
SAME_MAPS = ("distill_feat", "distill_weight", "feature_distill_weight")


@pytest.mark.parametrize("name", HEADS)
def test_a_teacher_of_the_same_weights_teaches_nothing(teacher_of, name):
    net, found = HEADS[name]
    cfg = student_config(net, teacher_of(net), **dict.fromkeys((*found, *SAME_MAPS), 1.0), distill_temperature=2.0)
    task, state = start_distilled(cfg)
    (teacher,) = task._teachers[0].modules()
    task.student.load_state_dict(teacher.model.state_dict())
    task.eval()  # batch norm as the teacher's
    terms = task.learn(pictures(), TRUTHS, state.backward)
    distilled = {key: value for key, value in terms.items() if "distill" in key}
    assert distilled.keys() == {*found, *SAME_MAPS}
    for key, value in distilled.items():
        assert float(value) == pytest.approx(0, abs=1e-5), key


# --- each term teaches --------------------------------------------------------------------------------


def learned(student, teacher_path, steps, lr, seed=0, **distill):
    """A student before and after steps of one term alone on one batch: its views, its maps, and the teacher's."""
    cfg = student_config(student, teacher_path, optim={"lr": lr, "weight_decay": 0.0, "grad_clip_norm": 0.0}, **distill)
    task, state = start_distilled(cfg, seed)
    task.eval()
    images = pictures(2, seed=4)
    lesson = task.lesson(images)
    losses = []
    for _ in range(steps):
        terms = task.distillation(task.student(images), lesson)
        losses.append(float(sum_terms(terms).detach()))
        state.backward(sum_terms(terms))
        state.step(torch.tensor(True))
    with torch.no_grad():
        preds = task.student(images)
    return losses, preds, lesson, task


STEPS = 50
TAUGHT = {
    "anchors: classes": ("anchors", "distill_kl", lambda view: view.cls.sigmoid()),
    "anchors: objectness": ("anchors", "distill_obj", lambda view: view.obj.sigmoid()),
    "anchors: quality": ("anchors, quality", "distill_quality", lambda view: view.quality.sigmoid()),
    "anchors: boxes": ("anchors", "distill_box_l1", lambda view: view.boxes),
    "centres: classes": ("centres", "distill_kl", lambda view: view.scores),
    "centres: boxes": ("centres", "distill_box_l1", lambda view: view.boxes),
    "queries: classes": ("queries", "distill_kl", lambda view: view.scores),
    "queries: boxes": ("queries", "distill_box_l1", lambda view: view.boxes),
}


@pytest.mark.parametrize("case", TAUGHT)
def test_one_term_alone_drives_the_student_to_its_teacher(teacher_of, case):
    net, term, quantity = TAUGHT[case]
    losses, preds, lesson, task = learned(net, teacher_of(net), STEPS, 0.04, **{term: 1.0})
    first = losses[0]
    assert losses[-1] < 0.25 * first
    cfg = task.student.cfg
    mine, theirs = view_of(preds, cfg), view_of(lesson.preds, cfg)
    weights = theirs.scores.amax(dim=2)
    torch.manual_seed(0)
    fresh = build_model(cfg).eval()
    with torch.no_grad():
        start = view_of(fresh(pictures(2, seed=4)), cfg)

    def distance(view):
        apart = (quantity(view) - quantity(theirs)).abs()
        apart = apart.sum(dim=2) if apart.dim() == 3 else apart
        return float((apart * weights).sum() / weights.sum())

    assert distance(mine) < 0.4 * distance(start)


@pytest.mark.parametrize("name", ["anchors", "centres", "queries"])
@pytest.mark.parametrize("term", ["distill_feat", "distill_weight", "feature_distill_weight"])
def test_maps_alone_drive_the_student_to_its_teacher(teacher_of, name, term):
    losses, *_ = learned(name, teacher_of(name), STEPS, 0.04, **{term: 1.0})
    assert losses[-1] < 0.4 * losses[0]


@pytest.mark.parametrize(("teacher", "student"), [("queries", "anchors"), ("anchors", "queries")])
@pytest.mark.parametrize("term", ["distill_kl", "distill_box_l1"])
def test_another_head_teaches_too(teacher_of, teacher, student, term):
    losses, *_ = learned(student, teacher_of(teacher), STEPS, 0.04, **{term: 1.0})
    # Five queries are nearest to the boxes of thirty priors.
    assert losses[-1] < (0.7 if term == "distill_box_l1" else 0.5) * losses[0]


# --- pairs of networks --------------------------------------------------------------------------------


def check_two_steps(cfg, size=(32, 32)):
    """Trains for two steps; all finite, and everything that can learn from the teacher gets a gradient."""
    task, state = start_distilled(cfg, pictures=6)
    task.train()
    for step in range(2):
        terms = task.learn(pictures(3, size, seed=step), TRUTHS, state.backward)
        assert all(value.isfinite() for value in terms.values()), terms
        gradients = [parameter.grad for parameter in task.parameters() if parameter.grad is not None]
        assert all(gradient.isfinite().all() for gradient in gradients)
        state.step(torch.tensor(True))
    assert float(task.distillation.seen) == 6
    return terms


@pytest.mark.parametrize("pair", PAIRS)
def test_any_network_teaches_any_other(teacher_of, pair):
    teacher, student = PAIRS[pair]
    weights = dict.fromkeys(("distill_kl", "distill_box_l1", "distill_feat"), 1.0)
    with_anchors = {"anchors", "cnn, anchors", "anchors, stride 4", "other anchors", "one anchor", "anchors, quality"}
    if {teacher, student} <= with_anchors and pair not in ("other anchors", "fewer anchors"):
        weights["distill_obj"] = 1.0
    if teacher == student == "anchors, quality":
        weights["distill_quality"] = 1.0
    terms = check_two_steps(student_config(student, teacher_of(teacher), **weights))
    assert weights.keys() == {name for name in terms if name.startswith("distill_")}
    assert all(float(terms[name]) > 0 for name in weights)


@pytest.mark.parametrize("student", FAMILIES)
@pytest.mark.parametrize(
    ("size", "labels"),
    [
        ((64, 48), None),
        ((48, 40), None),
        ((16, 16), None),
        (None, {"classes": (0, 2), "num_classes": 3}),
    ],
    ids=["larger", "of no whole multiple", "smaller", "more classes"],
)
def test_a_teacher_sees_more_or_knows_more(teacher_of, student, size, labels):
    weights = dict.fromkeys(("distill_kl", "distill_box_l1", "distill_feat"), 1.0)
    for teacher in ("anchors", "centres", "queries"):
        known = {"num_classes": 3} if labels else None
        cfg = student_config(
            student, teacher_of(teacher, labels=known), labels=labels, teacher_img_size=size, **weights
        )
        whole = load_teachers(cfg).picture_size((32, 32))
        assert whole == (32, 32) if size is None else whole == (max(32, size[0]), max(32, size[1]))
        check_two_steps(cfg, whole)


def test_classes_are_matched_by_their_names(teacher_of):
    teacher = teacher_of("anchors", labels={"classes": (5, 2, 7)})
    cfg = student_config("anchors", teacher, labels={"classes": (7, 5)}, distill_kl=1.0)
    task, _ = start_distilled(cfg)
    assert task.distillation.plan.classes == [2, 0]
    raw = torch.randn(3, 3, 8, 4, 4)  # of each anchor: box, objectness and the classes 5, 2, 7
    fixed = {name: getattr(task.student, name) for name in ("anchors", "wh_scale")}

    def divergence(classes):
        maps = [raw[:, :, channels].flatten(1, 2) for channels in ([0, 1, 2, 3, 4, *classes], range(8))]
        mine, theirs = ({"txtywh_obj_cls": values, **fixed} for values in maps)
        return task.distillation(mine, Lesson(theirs, None))["distill_kl"].item()

    assert divergence([7, 5]) == pytest.approx(0, abs=1e-6)
    assert divergence([5, 7]) > 0.1


# --- in parts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("teacher", ["more queries", "anchors", "queries"])
def test_learning_in_parts_is_learning_at_once(teacher_of, teacher):
    weights = dict.fromkeys(("distill_kl", "distill_box_l1", "distill_feat"), 0.7)
    cfg = student_config("queries", teacher_of(teacher), **weights, distill_temperature=2.0, teacher_img_size=(64, 64))
    truths = targets_of([(0, 0.1, 0.1, 0.6, 0.9)], *[[(0, 0.2 + i / 20, 0.2, 0.6, 0.8)] * (i % 3) for i in range(6)])
    images = pictures(7, (64, 64))
    found = []
    for part in (7, 3, 2):
        task, state = start_distilled(cfg)
        task.student.part = part
        terms = task.learn(images, truths, state.backward)
        found.append((terms, {name: value.grad for name, value in task.named_parameters()}))
        assert float(task.distillation.seen) == 7
    (terms, gradients), *others = found
    assert weights.keys() < terms.keys()
    for other_terms, other_gradients in others:
        assert other_terms.keys() == terms.keys()
        for name, value in terms.items():
            torch.testing.assert_close(other_terms[name], value, rtol=1e-4, atol=1e-6)
        for name, value in gradients.items():
            torch.testing.assert_close(other_gradients[name], value, rtol=1e-3, atol=1e-5, msg=name)


# --- a backbone ---------------------------------------------------------------------------------------


class Backbone(torch.nn.Module):
    """Features that are the picture's own means, in six channels."""

    width = 6

    def forward(self, images, grid):
        means = torch.nn.functional.adaptive_avg_pool2d(images, grid)
        return torch.cat([means, 1 - means], dim=1)


@pytest.mark.parametrize("with_network", [False, True])
@pytest.mark.parametrize("student", FAMILIES)
def test_a_backbone_teaches_features(teacher_of, student, with_network):
    distill = {"teacher_backbone": "vit.pth", "distill_feat": 1.0, "distill_kl": float(with_network)}
    cfg = student_config(student, teacher_of("centres") if with_network else None, **distill)
    network = section = labels = None
    if with_network:
        other = make_config(**NETS["centres"])
        network = NetworkTeacher(build_model(other.model), (32, 32), "torch_bilinear")
        section, labels = other.model, other.labels
    model = build_model(cfg.model)
    task = build_distill_task(cfg, model, Teachers(network, section, labels, Backbone()), 6)
    state = TrainState(cfg.optim, task, CPU)
    width = task.student(pictures())["features"].shape[1]
    assert task.distillation.adapter.weight.shape == (6, width, 1, 1)
    terms = task.learn(pictures(), TRUTHS, state.backward)
    assert 0 < float(terms["distill_feat"]) < 4
    assert ("distill_kl" in terms) == with_network
    assert task.distillation.adapter.weight.grad.abs().max() > 0


# --- terms that a pair does not have ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("teacher", "student", "term", "defined"),
    [
        ("queries", "anchors", "distill_obj", True),
        ("anchors", "centres", "distill_obj", True),
        ("centres", "centres", "distill_quality", True),
        ("anchors, quality", "anchors", "distill_quality", True),
        ("anchors", "anchors, quality", "distill_quality", True),
        ("anchors", "queries", "distill_weight", False),
        ("anchors, quality", "anchors", "distill_weight", False),
        ("more queries", "queries", "distill_weight", False),
        ("queries", "anchors", "feature_distill_weight", False),
        ("anchors, stride 4", "anchors", "feature_distill_weight", False),
    ],
)
def test_a_term_that_a_pair_does_not_have(teacher_of, teacher, student, term, defined):
    cfg = student_config(student, teacher_of(teacher), **{term: 1.0})
    with pytest.raises(ValueError, match=f"^--{term.replace('_', '-')}: ") as error:
        start_distilled(cfg)
    line = str(error.value)
    assert "\n" not in line
    assert "--distill-kl" in line
    assert "--distill-feat" in line
    if defined:
        assert "--distill-box-l1" in line
        has_objectness = term == "distill_obj" or ("anchors" in teacher and "anchors" in student)
        assert ("--distill-obj" in line) == has_objectness
