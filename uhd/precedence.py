"""From what was typed to a Config: which value comes from a flag, the preset, a checkpoint or a default."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from uhd.config import (
    DEMO_PRESET,
    MODEL_CONFIGS,
    SECTIONS,
    AnchorSizesConfig,
    Config,
    ExportConfig,
    LabelsConfig,
    ModelConfig,
    RunConfig,
    Scope,
    Section,
    Size,
    field_scope,
    flag_of,
    section_from_dict,
)

if TYPE_CHECKING:
    from uhd.checkpoint import Checkpoint

Typed = dict[str, Any]
"""Field name to value, for what was typed."""

log = logging.getLogger("uhd")

DATA_SOURCES = ("image_dir", "train_list", "val_list", "demo_data")


def check_flags(typed: Typed) -> None:
    """ValueError for a mistake that the flags alone show, without the checkpoint that they may name."""
    _check_contradictions(typed)
    if not _names_checkpoint(typed):
        _check_anchor_count(typed, _from_flags(typed).model)


def configure(typed: Typed) -> tuple[Config, Checkpoint | None]:
    """The run's config and the checkpoint it starts from, if any; ValueError for a mistake of the user's."""
    _check_contradictions(typed)
    checkpoint = _read_checkpoint(typed)
    cfg = _from_checkpoint(typed, checkpoint) if checkpoint else _from_flags(typed)
    _check_anchor_count(typed, cfg.model)
    cfg = dataclasses.replace(cfg, run=_with_run_dir(cfg.run, typed, checkpoint))
    _warn_unused(typed, cfg)
    return cfg, checkpoint


def _check_contradictions(typed: Typed) -> None:
    if typed.get("resume") and typed.get("ckpt"):
        raise ValueError("--resume and --ckpt: go on with a run or start from weights, not both")
    if typed.get("val_only") and not _names_checkpoint(typed):
        raise ValueError("--val-only: needs the checkpoint to validate, by --ckpt or --resume")
    if typed.get("val_only") and typed.get("inspect"):
        raise ValueError("--val-only and --inspect: validate or inspect, not both")
    if typed.get("gradcam"):
        if not _names_checkpoint(typed):
            raise ValueError("--gradcam: needs the checkpoint to look into, by --ckpt or --resume")
        for name in ("val_only", "inspect", "preview_aug"):
            if typed.get(name):
                raise ValueError(f"--gradcam and {flag_of(name)}: one or the other")
    if typed.get("preview_aug") is not None:
        for name in ("val_only", "inspect"):
            if typed.get(name):
                raise ValueError(f"--preview-aug and {flag_of(name)}: one or the other")
        if typed.get("aug") is False:
            raise ValueError("--preview-aug and --no-aug: without augmentation there is nothing to show")
    if typed.get("ckpt_non_strict") and not typed.get("ckpt"):
        raise ValueError("--ckpt-non-strict: needs --ckpt")
    if "demo_data" in typed:
        for name in ("image_dir", "train_list", "val_list", "annotations"):
            if typed.get(name):
                raise ValueError(f"--demo-data and {flag_of(name)}: the pictures come from one or the other")
    if typed.get("aug") is False and "aug_config" in typed:
        raise ValueError("--no-aug and --aug-config: augment or do not")


def _check_anchor_count(typed: Typed, model: ModelConfig) -> None:
    """ValueError where both are typed and --num-anchors is not what --anchors holds."""
    anchors, count = typed.get("anchors"), typed.get("num_anchors")
    if not (anchors and count and isinstance(model, AnchorSizesConfig)) or count == model.num_anchors:
        return
    levels = f" at each of {model.num_grids} levels" if model.num_grids > 1 else ""
    raise ValueError(f"--anchors has {len(anchors)} pairs, but --num-anchors is {count}{levels}")


def _names_checkpoint(typed: Typed) -> bool:
    return bool(typed.get("resume") or typed.get("ckpt"))


def _read_checkpoint(typed: Typed) -> Checkpoint | None:
    if not _names_checkpoint(typed):
        return None
    # torch takes seconds to import; --help and most mistakes do without it.
    from uhd.checkpoint import find_resumable, read_checkpoint

    if typed.get("resume"):
        return read_checkpoint(find_resumable(typed["resume"]), "--resume")
    return read_checkpoint(typed["ckpt"], "--ckpt")


def _from_flags(typed: Typed) -> Config:
    preset = _preset_for(typed) if "demo_data" in typed else {}
    values = {**preset, **typed}
    values = {**MODEL_CONFIGS[values.get("arch", ModelConfig.arch)].training_defaults, **values}
    cfg = Config(**{name: _section(name, values) for name in SECTIONS})
    return finish(cfg)


def _preset_for(typed: Typed) -> Typed:
    """What --demo-data sets for a new run; of another architecture than the preset's, all but the network."""
    if typed.get("arch", DEMO_PRESET["arch"]) == DEMO_PRESET["arch"]:
        return DEMO_PRESET
    shared = {f.name for f in dataclasses.fields(ModelConfig)} - {"arch"}
    own = _model_fields()
    return {key: value for key, value in DEMO_PRESET.items() if key in shared or key not in own}


def _model_fields() -> set[str]:
    """The fields of all architectures."""
    return {f.name for section in MODEL_CONFIGS.values() for f in dataclasses.fields(section)}


def _section(name: str, values: Typed, base: Any = None) -> Any:
    """One section from typed values over a base section (default: the field defaults)."""
    kind = type(base) if base is not None else SECTIONS[name]
    if name == "model" and base is None:
        kind = MODEL_CONFIGS[values.get("arch", ModelConfig.arch)]
    own = {f.name for f in dataclasses.fields(kind)}
    chosen = {key: value for key, value in values.items() if key in own}
    section = dataclasses.replace(base, **chosen) if base is not None else section_from_dict(kind, chosen)
    # What is given by --anchors says how many there are.
    return section.counted() if chosen.get("anchors") else section


def finish(cfg: Config) -> Config:
    """Fills in what follows from the flags alone: classes, names, output stride; checks sizes that depend on them."""
    labels = cfg.labels if cfg.labels.class_names else cfg.labels.resolved()
    model = dataclasses.replace(cfg.model, num_classes=len(labels.class_names)).completed(cfg.input.img_size)
    _check_img_size(cfg.input.img_size, model)
    evaluation = cfg.eval
    if evaluation.coco_per_class and not evaluation.coco_eval:
        evaluation = dataclasses.replace(evaluation, coco_eval=True)
    if cfg.optim.stop_epoch > cfg.optim.epochs:
        raise ValueError(f"--stop-epoch {cfg.optim.stop_epoch} is beyond --epochs {cfg.optim.epochs}")
    return dataclasses.replace(cfg, labels=labels, model=model, eval=evaluation)


def _check_img_size(size: Size, model: ModelConfig) -> None:
    valid = model.next_size(size)
    if valid != size:
        raise ValueError(
            f"--img-size {size[0]}x{size[1]}: each side must be a multiple of the output stride {model.stride}; "
            f"the next valid size is {valid[0]}x{valid[1]}"
        )


def _from_checkpoint(typed: Typed, checkpoint: Checkpoint) -> Config:
    """What fixes the weights from the checkpoint, the session's values from the flags, training's by how it is used."""
    saved = checkpoint.config
    run = _section("run", typed)
    continues = bool(typed.get("resume")) or run.val_only
    free = {"img_size"} if run.val_only else set()
    typed = _without_sources_of_checkpoint(typed) if continues else typed
    if typed.get("demo_data"):
        typed = {**_preset_beside(continues=continues), **typed}
    if typed.get("auto_anchors") and not run.ckpt_non_strict:
        log.info("--auto-anchors: the anchors of %s stay", checkpoint.path)
    sections: dict[str, Any] = {}
    for name in SECTIONS:
        base = getattr(saved, name)
        if name in ("input", "labels", "model"):
            sections[name] = _fixed_section(name, typed, checkpoint, free, run)
            continue
        kept = {
            f.name: getattr(base, f.name)
            for f in dataclasses.fields(base)
            if continues and field_scope(type(base), f) == "training"
        }
        sections[name] = _section(name, {**sections["model"].training_defaults, **kept, **typed})
    if typed.get("resume") and sections["distill"].is_on != saved.distill.is_on:
        kind = "a" if saved.distill.is_on else "no"
        raise ValueError(
            f"--resume: the run learns from {kind} teacher, which cannot change; start a new one by --ckpt"
        )
    if typed.get("resume") and bool(sections["distill"].distill_feat) != bool(saved.distill.distill_feat):
        was, asked = (show(value) for value in (saved.distill.distill_feat, sections["distill"].distill_feat))
        raise ValueError(
            f"--distill-feat {asked}: {checkpoint.path} was trained with {was}; its weight may change on --resume, but "
            "not whether it is 0"
        )
    return finish(Config(**sections))


def _preset_beside(*, continues: bool) -> Typed:
    """What --demo-data sets beside a checkpoint: its folder, and for a new run all that the weights leave open."""
    fixed = _model_fields() | {"auto_anchors"}
    return {key: value for key, value in DEMO_PRESET.items() if key == "image_dir" or not (continues or key in fixed)}


def _without_sources_of_checkpoint(typed: Typed) -> Typed:
    """A typed source of pictures replaces all of the checkpoint's sources, labels included, not one of them."""
    if not any(typed.get(name) for name in DATA_SOURCES):
        return typed
    blank = {"train_list": None, "val_list": None, "demo_data": None, "annotations": None}
    return {**blank, **typed}


def _fixed_section(name: str, typed: Typed, checkpoint: Checkpoint, free: set[str], run: RunConfig) -> Any:
    """A section that fixes the weights: a typed value that disagrees is an error or, non-strict, wins."""
    base = getattr(checkpoint.config, name)
    if name == "labels":
        return _fixed_labels(base, typed, checkpoint, run)
    if name == "model" and typed.get("arch", base.arch) != base.arch:
        if not run.ckpt_non_strict:
            raise ValueError(f"--arch {typed['arch']}: {checkpoint.path} holds a {base.arch}")
        return _section(name, typed)
    if not run.ckpt_non_strict:
        fixed: set[Scope] = {"weights", "criterion"} if run.resume and not run.val_only else {"weights"}
        _check_agreement(base, typed, checkpoint, free, fixed)
    own = _flag_fields_of(base)
    if name == "model" and run.ckpt_non_strict:
        changed = {key: typed[key] for key in own.keys() & typed.keys() if typed[key] != getattr(base, key)}
        base = base.beside(changed)
    kept = run.resume or run.val_only
    defaults = {key: f.default for key, f in own.items() if field_scope(type(base), f) != "weights" and not kept}
    section = _section(name, {**defaults, **typed}, base)
    if name == "model" and run.ckpt_non_strict and not typed.get("anchors"):
        section = _without_stale_anchors(section, base, recompute=bool(typed.get("auto_anchors")))
    return section


def _flag_fields_of(base: Section) -> dict[str, dataclasses.Field[Any]]:
    return {f.name: f for f in dataclasses.fields(base) if "help" in f.metadata or f.name == "arch"}


def _check_agreement(
    base: Section,
    typed: Typed,
    checkpoint: Checkpoint,
    free: set[str],
    fixed: Collection[Scope] = frozenset({"weights"}),
) -> None:
    """ValueError for a typed value of a scope that is fixed, which is not free, and is not the checkpoint's."""
    own = _flag_fields_of(base)
    for key in sorted(own.keys() & typed.keys() - free):
        if field_scope(type(base), own[key]) in fixed and typed[key] != getattr(base, key):
            asked, saved = (
                show(value, "x" if key == "img_size" else ",") for value in (typed[key], getattr(base, key))
            )
            raise ValueError(f"{flag_of(key)} {asked}: {checkpoint.path} was trained with {saved}")


def agree(typed: Typed, checkpoint: Checkpoint) -> Config:
    """The checkpoint's config, at the typed --img-size; any other typed value must be the checkpoint's own.

    Raises ValueError that names both values where one is not, and for a size that the network cannot have.
    """
    saved = checkpoint.config
    if typed.get("arch", saved.model.arch) != saved.model.arch:
        raise ValueError(f"--arch {typed['arch']}: {checkpoint.path} holds a {saved.model.arch}")
    for section in (saved.input, saved.model):
        _check_agreement(section, typed, checkpoint, {"img_size"})
    _fixed_labels(saved.labels, typed, checkpoint, RunConfig())
    _warn_foreign(typed, saved)
    size = typed.get("img_size", saved.input.img_size)
    return finish(dataclasses.replace(saved, input=dataclasses.replace(saved.input, img_size=size)))


def _without_stale_anchors(section: Any, base: Any, *, recompute: bool) -> Any:
    """Anchors of the checkpoint go where new ones are asked for or their number has changed."""
    if recompute or getattr(section, "num_anchors", 0) != getattr(base, "num_anchors", 0):
        return dataclasses.replace(section, anchors=None)
    return section


def _fixed_labels(base: LabelsConfig, typed: Typed, checkpoint: Checkpoint, run: RunConfig) -> LabelsConfig:
    own = {key: typed[key] for key in ("classes", "names", "num_classes") if typed.get(key) is not None}
    if not own:
        return base
    asked = LabelsConfig(**own).resolved()
    if run.ckpt_non_strict:
        return asked
    named = ", ".join(f"{flag_of(key)} {show(value)}" for key, value in own.items())
    if asked.classes != base.classes:
        raise ValueError(f"{named}: {checkpoint.path} was trained with classes {show(base.classes)}")
    if "names" in own and asked.class_names != base.class_names:
        raise ValueError(f"{named}: {checkpoint.path} calls its classes {show(base.class_names)}")
    return base


def show(value: Any, separator: str = ",") -> str:
    """A value as it would be typed; separator stands between the numbers of a tuple."""
    if value is None or isinstance(value, bool):
        return {True: "on", False: "off", None: "none"}[value]
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple):
        return (" " if value and isinstance(value[0], tuple) else separator).join(map(show, value))
    return str(value)


def warn_unused_export(options: ExportConfig) -> None:
    """One warning for each flag of an export that is set and has no effect beside the others."""
    compares, calibrates = options.verify or options.report, bool(options.int8 or options.tflite)
    needs = {
        "image_dir": (compares, "--verify or --report"),
        "image_count": (compares, "--verify or --report"),
        "calib_dir": (calibrates or compares, "--int8 or --tflite"),
        "calib_count": (calibrates, "--int8 or --tflite"),
        "calib_method": (options.int8, "--int8"),
        "weight_bits": (options.int8, "--int8"),
        "conf_thresh": (options.merge_postprocess, "--merge-postprocess"),
    }
    defaults = {f.name: f.default for f in dataclasses.fields(options)}
    for name, (is_used, needed) in needs.items():
        if getattr(options, name) != defaults[name] and not is_used:
            log.warning("%s has no effect without %s", flag_of(name), needed)


def _warn_foreign(typed: Typed, cfg: Config) -> list[str]:
    """One warning for the typed fields of other architectures, and of other kinds of heads; returns them."""
    own = {f.name for f in dataclasses.fields(cfg.model)}
    elsewhere = {name for name in _model_fields() - own if name in typed}
    of_heads: set[str] = set()
    for section in (getattr(cfg, name) for name in SECTIONS):
        for f in dataclasses.fields(section):
            heads = f.metadata.get("heads")
            if f.name in typed and heads and cfg.model.head not in heads:
                (of_heads if "anchor" in heads else elsewhere).add(f.name)
    foreign = [name for name in typed if name in elsewhere | of_heads]
    if foreign:
        could = not elsewhere and getattr(cfg.model, "use_anchor", None) is False
        ending = " without --use-anchor" if could else ""
        log.warning("%s: no effect with --arch %s%s", ", ".join(map(flag_of, foreign)), cfg.model.arch, ending)
    return foreign


def _with_run_dir(run: RunConfig, typed: Typed, checkpoint: Checkpoint | None) -> RunConfig:
    """The folder: a typed one, or the checkpoint's own for a run that goes on or is validated."""
    if run.ckpt_out:
        folder = run.ckpt_out
    elif checkpoint is not None and "exp_name" not in typed and (typed.get("resume") or run.val_only or run.gradcam):
        folder = str(checkpoint.path.resolve().parent)
    else:
        folder = f"runs/{run.exp_name}"
    return dataclasses.replace(run, run_dir=folder)


def _warn_unused(typed: Typed, cfg: Config) -> None:
    """One warning for each typed flag that has no effect beside the others, one for all that another network has."""
    model: ModelConfig = cfg.model
    foreign = _warn_foreign(typed, cfg)
    idle = {name: f"has no effect {why}" for name, why in model.idle().items()}
    if cfg.assign.anchor_assigner != "simota":
        idle["simota_topk"] = "has no effect without --anchor-assigner simota"
    if not getattr(model, "has_quality", True):
        idle["loss_weight_quality"] = "has no effect without --use-improved-head"
    if cfg.decode.nms == "soft":
        idle["nms_iou"] = "has no effect with --nms soft"
    else:
        idle["nms_sigma"] = "has no effect without --nms soft"
    if not cfg.optim.use_ema:
        idle["ema_decay"] = "has no effect without --use-ema"
    idle |= cfg.distill.idle()
    for name, remark in idle.items():
        if name in typed and name not in foreign:
            log.warning("%s %s", flag_of(name), remark)
    useless: dict[str, tuple[str, ...]] = {}
    if cfg.data.train_list:
        useless["train_list"] = ("image_dir", "train_split", "val_split")
    if cfg.run.val_only:
        training = {f.name for f in dataclasses.fields(cfg.optim)} - {"batch_size", "use_ema"}
        useless["val_only"] = tuple(sorted(training))
    for winner, names in useless.items():
        for name in names:
            if typed.get(name) is not None:
                log.warning("%s has no effect beside %s", flag_of(name), flag_of(winner))
