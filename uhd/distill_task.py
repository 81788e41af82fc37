"""Distillation as a task: a student that learns from truths and from what teachers say of the same pictures."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import uhd
from uhd import dist
from uhd.checkpoint import names_file, read_checkpoint
from uhd.config import Config, DistillConfig, InputConfig, LabelsConfig, ModelConfig, Size, flag_of, made_up_name
from uhd.data.cache import picture_states
from uhd.data.dataset import DetectionDataset
from uhd.distill.backbones import BackboneTeacher, load_backbone
from uhd.distill.cache import LessonCache, arrays_of, cache_folder, file_digest, open_lessons, write_lessons
from uhd.distill.distillation import NETWORK_ENTRIES, Distillation, Lesson, TeacherPlan
from uhd.distill.resize import resize_batch
from uhd.distill.teachers import NetworkTeacher
from uhd.engine import Progress, to_input
from uhd.models import Detector, Preds, build_model
from uhd.progress import progress_bar
from uhd.task import Backward, DetectionTask, Terms, build_task
from uhd.types import Targets

log = logging.getLogger("uhd")

_OVERRIDES = {
    "teacher_num_queries": "num_queries",
    "teacher_d_model": "d_model",
    "teacher_heads": "heads",
    "teacher_layers": "layers",
    "teacher_dim_feedforward": "dim_feedforward",
    "teacher_use_skip": "use_skip",
    "teacher_activation": "activation",
    "teacher_use_fpn": "use_fpn",
}
"""Fields of `DistillConfig` that stand for one of the teacher's own section."""


@dataclass(frozen=True)
class Teachers:
    """Those of a run; at least one is there. section, labels and cls_loss (of anchor heads) are the network's."""

    network: NetworkTeacher | None = None
    section: ModelConfig | None = None
    labels: LabelsConfig | None = None
    backbone: BackboneTeacher | None = None
    cls_loss: str = "bce"

    def plan(self, cfg: Config) -> TeacherPlan | None:
        """How the network relates to the student of a config; ValueError where it does not know one of its classes."""
        if self.section is None or self.labels is None:
            return None
        assert cfg.distill.teacher_ckpt is not None
        classes = _classes(self.labels, cfg.labels, cfg.distill.teacher_ckpt)
        is_anchor = self.section.head == cfg.model.head == "anchor"
        everywhere = is_anchor and self.cls_loss == cfg.loss.anchor_cls_loss == "vfl"
        return TeacherPlan(self.section, classes, everywhere)

    def modules(self) -> list[nn.Module]:
        """The networks."""
        return [module for module in (self.network, self.backbone) if module is not None]

    def picture_size(self, student: Size) -> Size:
        """The size of pictures from which every network's own is made: the largest, side by side."""
        if self.network is None:
            return student
        return max(student[0], self.network.size[0]), max(student[1], self.network.size[1])


class DistillTask(DetectionTask):
    """A student that learns from teachers too.

    Its `learn` takes pictures of `Teachers.picture_size`. The adapter and the ramp belong to the criterion's state, so
    that they are optimised, saved and resumed with it; the teachers belong to nothing that is.
    """

    def __init__(
        self, base: DetectionTask, teachers: Teachers, distillation: Distillation, input_cfg: InputConfig, grid: Size
    ) -> None:
        super().__init__(base.student, base.criterion, use_amp=base.use_amp)
        self.criterion.add_module("distillation", distillation)
        self.input = input_cfg
        self.grid = grid
        self.cache: LessonCache | None = None
        # In a list, where torch does not find them: they are no part of what is trained.
        self._teachers = [teachers]

    @property
    def distillation(self) -> Distillation:
        """The terms, with their adapter and ramp."""
        distillation = self.criterion.get_submodule("distillation")
        assert isinstance(distillation, Distillation)
        return distillation

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> DistillTask:
        """Moves the teachers along (torch calls this for every change of device or type)."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for teacher in self._teachers[0].modules():
            teacher._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def learn(self, images: Tensor, targets: Targets, backward: Backward) -> Terms:
        """As a task without teachers learns, and from them."""
        inputs = resize_batch(images, self.input.img_size, self.input.resize_mode)
        if inputs is not images:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        lesson = self.cache.lesson(targets.image_ids, images.device) if self.cache else self.lesson(images)

        pictures = dist.total_count(len(images))

        def distilled(preds: Preds, rows: slice) -> Terms:
            share = len(targets.image_ids[rows]) / pictures
            return {name: value * share for name, value in self.distillation(preds, lesson.rows(rows)).items()}

        terms = self._learn(inputs, targets, backward, distilled)
        self.distillation.advance(pictures)
        return terms

    @torch.no_grad()
    def lesson(self, images: Tensor) -> Lesson:
        """What the teachers say of pictures, as far as a term reads it."""
        teachers, terms = self._teachers[0], self.distillation
        preds, features = None, None
        with self.autocast(images):
            if teachers.network is not None:
                said = teachers.network(images)
                features = said["features"] if terms.cfg.distill_feat else None
                preds = {name: value for name, value in said.items() if terms.reads(name)}
            if teachers.backbone is not None:
                features = teachers.backbone(images, self.grid)
        return Lesson(preds, features)

    def remember(self, dataset: DetectionDataset, cfg: Config, progress: Progress) -> None:
        """Lets the teachers say once, for all epochs, what they see in each picture; kept in --teacher-cache.

        The pictures must be the same in every epoch. Raises ValueError where the folder cannot be used.
        """
        assert cfg.distill.teacher_cache is not None
        device = next(self.student.parameters()).device
        sample = self.lesson(torch.zeros(1, 3, *self._teachers[0].picture_size(self.input.img_size), device=device))
        fixed = sample.preds and {name: value for name, value in sample.preds.items() if name in NETWORK_ENTRIES}
        arrays = set(arrays_of(sample))
        folder = cache_folder(Path(cfg.distill.teacher_cache), self._facts(dataset, cfg, arrays))
        try:
            with dist.main_first():
                if not folder.exists():
                    write_lessons(folder, len(dataset), self._lessons(dataset, cfg.optim.batch_size, progress))
        except OSError as error:
            raise ValueError(f"--teacher-cache {folder.parent}: cannot be written ({error.strerror})") from None
        self.cache = open_lessons(folder, len(dataset), arrays, fixed)

    def _facts(self, dataset: DetectionDataset, cfg: Config, arrays: set[str]) -> dict[str, Any]:
        """All that the teachers' outputs depend on."""
        distill = dataclasses.asdict(cfg.distill)
        teachers = {name: value for name, value in distill.items() if name.startswith("teacher_")}
        files = [path for path in (cfg.distill.teacher_ckpt, cfg.distill.teacher_backbone) if path]
        states = picture_states(dataset.paths).tolist()
        return {
            "teachers": {**teachers, "teacher_cache": None},
            "files": [file_digest(path) for path in files],
            "arrays": sorted(arrays),
            "precision": [self.use_amp, next(self.student.parameters()).device.type],
            "program": uhd.__version__,
            "grid": self.grid,
            "sizes": [self._teachers[0].picture_size(self.input.img_size), self.input.resize_mode],
            "pictures": [[path, *state] for path, state in zip(dataset.paths, states, strict=True)],
        }

    def _lessons(self, dataset: DetectionDataset, batch_size: int, progress: Progress) -> Iterator[Lesson]:
        device = next(self.student.parameters()).device
        starts = range(0, len(dataset), batch_size)
        for start in progress_bar(starts, progress.title):
            progress.check()
            indices = range(start, min(start + batch_size, len(dataset)))
            images = dataset.__getitems__([(0, index) for index in indices]).images
            yield self.lesson(to_input(images, device))


def load_teachers(cfg: Config) -> Teachers | None:
    """The teachers that the flags name; None where nothing is learned from one.

    Raises ValueError for files that cannot be used, and a size that the teacher cannot see.
    """
    if not cfg.distill.is_on:
        return None
    if cfg.distill.teacher_cache and cfg.data.aug:
        raise ValueError("--teacher-cache: needs --no-aug; augmented pictures are new to the teacher in every epoch")
    found = _load_network(cfg.distill.teacher_ckpt, cfg) if cfg.distill.teacher_ckpt else Teachers()
    if cfg.distill.teacher_backbone:
        names = cfg.distill.teacher_backbone_arch, cfg.distill.teacher_backbone_norm
        found = dataclasses.replace(found, backbone=load_backbone(cfg.distill.teacher_backbone, *names))
    return found


def _load_network(path: str, cfg: Config) -> Teachers:
    checkpoint = read_checkpoint(path, "--teacher-ckpt")
    section = _overridden(checkpoint.config.model, cfg.distill)
    model = build_model(section)
    try:
        with names_file(checkpoint, "--teacher-ckpt"):
            model.load_state_dict(checkpoint.weights)
    except ValueError as error:
        changed = _first_change(checkpoint.config.model, section, cfg.distill)
        raise ValueError(changed or str(error)) from None
    if not all(value.isfinite().all() for value in model.state_dict().values()):
        raise ValueError(f"--teacher-ckpt {path}: its weights are not all finite numbers; expected one of a sound run")
    size = cfg.distill.teacher_img_size or checkpoint.config.input.img_size
    valid = section.next_size(size)
    if valid != size:
        raise ValueError(
            f"--teacher-img-size {size[0]}x{size[1]}: expected multiples of {section.stride}, the teacher's stride; "
            f"the next valid size is {valid[0]}x{valid[1]}"
        )
    saved = checkpoint.config
    network = NetworkTeacher(model, size, saved.input.resize_mode)
    return Teachers(network, section, saved.labels, cls_loss=saved.loss.anchor_cls_loss)


def _overridden(section: ModelConfig, cfg: DistillConfig) -> ModelConfig:
    """The teacher's section with what the flags say of it."""
    if cfg.teacher_arch not in (None, section.arch):
        raise ValueError(
            f"--teacher-arch {cfg.teacher_arch}, but --teacher-ckpt {cfg.teacher_ckpt} is a {section.arch}"
        )
    known = {f.name for f in dataclasses.fields(section)}
    for flag, name in _OVERRIDES.items():
        value = getattr(cfg, flag)
        if value is None or value is False:
            continue
        if name not in known:
            raise ValueError(f"{flag_of(flag)}: the teacher is a {section.arch}, which has no {flag_of(name)}")
        try:
            section = dataclasses.replace(section, **{name: value})
        except ValueError as error:
            raise ValueError(str(error).replace(flag_of(name), flag_of(flag), 1)) from None
    return section


def _first_change(saved: ModelConfig, section: ModelConfig, cfg: DistillConfig) -> str:
    """What the first flag says by which a section differs from the checkpoint's, and that; empty where none does."""
    for flag, name in _OVERRIDES.items():
        own, value = getattr(saved, name, None), getattr(section, name, None)
        if own != value:
            shown = "" if value is True else f" {value}"
            return (
                f"{flag_of(flag)}{shown}, but --teacher-ckpt {cfg.teacher_ckpt} has {'none' if own is False else own}"
            )
    return ""


def _classes(teacher: LabelsConfig, student: LabelsConfig, path: str) -> list[int]:
    """The teacher's index of each class of the student, by name; one class alone is the same whatever it is called."""
    if len(teacher.class_names) == len(student.class_names) == 1:
        names = *teacher.class_names, *student.class_names
        made_up = [made_up_name(*(labels.classes or (0,))) for labels in (teacher, student)]
        if names[0] != names[1] and not set(names) & set(made_up):
            log.warning("--teacher-ckpt %s finds %r; the student is to find %r and takes it for the same", path, *names)
        return [0]
    unknown = [name for name in student.class_names if name not in teacher.class_names]
    if unknown:
        raise ValueError(
            f"--teacher-ckpt {path} knows the classes {', '.join(teacher.class_names)}; "
            f"the student's {', '.join(unknown)} is none of them"
        )
    return [teacher.class_names.index(name) for name in student.class_names]


def build_distill_task(cfg: Config, student: Detector, teachers: Teachers | None, num_pictures: int) -> DetectionTask:
    """The task of a resolved config; num_pictures are seen in an epoch.

    Raises ValueError where a term is not defined for student and teacher, or a class unknown to the teacher.
    """
    task = build_task(cfg, student)
    if teachers is None:
        return task
    plan = teachers.plan(cfg)
    mine = _probe(student, cfg.input.img_size)
    theirs = None
    if teachers.network is not None:
        theirs = _probe(teachers.network, teachers.network.size)
        _check_shapes(cfg.distill, mine, theirs)
        in_order = plan is not None and plan.classes == list(range(len(cfg.labels.class_names)))
        if cfg.distill.distill_weight and not in_order:
            raise ValueError(
                "--distill-weight: the teacher has the classes in another order; --distill-kl finds them by name"
            )
    grid = mine["features"].shape[2], mine["features"].shape[3]
    widths = None
    if cfg.distill.distill_feat:
        source = teachers.backbone.width if teachers.backbone is not None else 0
        widths = mine["features"].shape[1], source or (theirs or {})["features"].shape[1]
    total = cfg.optim.epochs * num_pictures
    distillation = Distillation(cfg.distill, student.cfg, plan, widths, total)
    if teachers.network is not None and plan is not None:
        by_place = distillation.compares_places(mine, theirs or {})
        how = "place by place" if by_place else "by their boxes"
        log.info("teacher: %s at %dx%d, compared %s", plan.cfg.arch, *teachers.network.size, how)
        dense = [flag_of(name) for name in ("distill_obj", "distill_quality") if getattr(cfg.distill, name)]
        if dense and not by_place:
            log.warning(
                "%s: learned at the teacher's best boxes only, where its anchors or its grid are others than the "
                "student's; --anchors and --img-size of the teacher compare every place",
                ", ".join(dense),
            )
    return DistillTask(task, teachers, distillation, cfg.input, grid)


@torch.no_grad()
def _probe(model: nn.Module, size: Size) -> Preds:
    """What a network gives for a black picture; its mode stays as it is."""
    was_training = model.training
    preds: Preds = model.eval()(torch.zeros(1, 3, *size, device=next(model.parameters()).device))
    model.train(was_training)
    return preds


def _check_shapes(cfg: DistillConfig, mine: Preds, theirs: Preds) -> None:
    """ValueError for a plain mean square difference of maps of different shapes."""
    pairs = {"feature_distill_weight": ["features"], "distill_weight": sorted({*mine, *theirs} - {"features"})}
    for flag, names in pairs.items():
        for name in names if getattr(cfg, flag) else ():
            shapes = [list(preds[name].shape[1:]) if name in preds else "none" for preds in (mine, theirs)]
            if shapes[0] != shapes[1]:
                raise ValueError(
                    f"{flag_of(flag)}: the student's {name} is {shapes[0]}, the teacher's {shapes[1]}; expected the "
                    "same (--distill-kl and --distill-feat compare other networks)"
                )
