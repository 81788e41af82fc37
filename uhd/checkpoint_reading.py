"""Reading checkpoints of unknown origin: whole, of known values, and of the network that they describe; or an error."""

from __future__ import annotations

import contextlib
import reprlib
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.modules.module import register_module_parameter_registration_hook

from uhd.config import DEMO_PRESET, MODEL_CONFIGS, SECTIONS, Config, ModelConfig, flag_of
from uhd.config.inputs import MAX_CLASSES
from uhd.config.values import MAX_SIDE
from uhd.models import build_model
from uhd.reading import why_not_plain
from uhd.tensor_file import load_tensors

FORMAT = 1
STATE_PARTS = {"model", "criterion", "ema", "optimizer", "scaler", "epoch", "best", "last_map", "rng"}
_MOST_CHARACTERS = 4096
_SIZES = ("img_size", "teacher_img_size", "backbone_channels", "backbone_blocks")
"""Fields whose numbers the command line's parser keeps in range, not their section; and so it does with this one."""
_STRIDES = (None, 4, 8, 16, 32)
_BEFORE: dict[str, dict[str, Any]] = {"data": {"background_share": 0.0}}
"""What runs did before there was a field for it, where its default does something else: they resume as they began."""


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds: the run's config, the training state and the metrics of its epoch."""

    path: Path
    config: Config
    state: dict[str, Any]
    metrics: dict[str, float | None]

    @property
    def weights(self) -> dict[str, Tensor]:
        """The weights that were validated: the average where the run kept one."""
        average = self.state["ema"]
        weights: dict[str, Tensor] = average["model"] if average else self.state["model"]
        return weights


def read_checkpoint(path: Path | str, flag: str = "--ckpt") -> Checkpoint:
    """Loads a file without running any code in it; ValueError names the flag and the file when it cannot be used.

    Its weights are those of the network that its config describes, and its values of the kinds that ours have.
    """
    path = Path(path)
    reason = why_not_plain(path)
    if reason:
        raise ValueError(f"{flag} {path}: {reason}")
    try:
        content = load_tensors(path)
    except ValueError as error:
        raise ValueError(f"{flag} {path}: not a complete checkpoint ({error})") from None
    parts = {"program", "format", "versions", "config", "state", "metrics"}
    if not isinstance(content, dict) or content.get("program") != "uhd" or not parts <= content.keys():
        raise ValueError(f"{flag} {path}: not a checkpoint of this program")
    if not _is_int(content["format"]) or not all(isinstance(content[part], dict) for part in ("state", "versions")):
        raise ValueError(f"{flag} {path}: not a checkpoint of this program")
    if content["format"] > FORMAT:
        version = str(content["versions"].get("uhd"))[:40]
        raise ValueError(f"{flag} {path}: written by a newer version ({version})")
    missing = STATE_PARTS - content["state"].keys()
    if missing:
        raise ValueError(f"{flag} {path}: damaged, its state holds no {', '.join(sorted(missing))}")
    wrong = _malformed(content)
    if wrong:
        raise ValueError(f"{flag} {path}: damaged, {wrong}")
    try:
        config = _read_config(content["config"])
    except ValueError as error:
        raise ValueError(f"{flag} {path}: {error}") from None
    checkpoint = Checkpoint(path, config, content["state"], content["metrics"])
    with names_file(checkpoint, flag):
        _check_weights(checkpoint)
    return checkpoint


@contextlib.contextmanager
def names_file(checkpoint: Checkpoint, flag: str) -> Iterator[None]:
    """While its state is loaded: one that does not fit is a ValueError that names the flag and the file."""
    try:
        yield
    except (KeyError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{flag} {checkpoint.path}: does not fit the network it describes ({reason})") from None


# --- the state ----------------------------------------------------------------------------------


def _malformed(content: dict[str, Any]) -> str:
    """What of a checkpoint's content is not of its kind; nothing where all is."""
    state, metrics, best = content["state"], content["metrics"], content["state"]["best"]
    average, rng = state["ema"], state["rng"]
    if not isinstance(metrics, dict) or not all(isinstance(key, str) for key in metrics):
        return "its metrics are none"
    if not all(value is None or _is_number(value) for value in metrics.values()):
        return "a metric in it is not a number"
    if not _is_int(state["epoch"]) or not 0 <= state["epoch"] < 2**31:
        return f"its epoch is {reprlib.repr(state['epoch'])}"
    if not _is_number(state["last_map"]) or not 0 <= state["last_map"] <= 1:
        return f"its last_map is {reprlib.repr(state['last_map'])}"
    is_best = isinstance(best, dict) and best.keys() == {"map50", "epoch"}
    if not is_best or not _is_number(best["map50"]) or not _is_int(best["epoch"]):
        return f"its best is {reprlib.repr(best)}"
    if not isinstance(rng, dict) or not isinstance(rng.get("cpu"), Tensor) or not isinstance(rng.get("cuda"), list):
        return "its random numbers are none"
    if average is not None and (not isinstance(average, dict) or not average.keys() >= {"model", "updates"}):
        return "its averaged weights are none"
    for weights in (state["model"], state["criterion"], *([average["model"]] if average else [])):
        if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
            return "its weights are none"
    return _malformed_optimizer(state["optimizer"])


def _malformed_optimizer(optimizer: Any) -> str:
    """The same for the optimiser's state: it takes over options without a look at them."""
    if not isinstance(optimizer, dict) or not isinstance(optimizer.get("param_groups"), list):
        return "its optimizer is none"
    for group in optimizer["param_groups"]:
        if not isinstance(group, dict) or not all(isinstance(name, str) for name in group):
            return "its optimizer is none"
        for name, value in group.items():
            numbers = value if isinstance(value, list | tuple) else [value]
            if not all(each is None or isinstance(each, bool) or _is_number(each) for each in numbers):
                return f"its optimizer's {name} is {reprlib.repr(value)}"
    return ""


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return _is_int(value) or isinstance(value, float)


# --- the config ---------------------------------------------------------------------------------


def _read_config(values: Any) -> Config:
    """The config of plain values; ValueError where one of them is unknown, of another kind or out of range."""
    if not isinstance(values, dict) or not all(isinstance(section, dict) for section in values.values()):
        raise ValueError("damaged, its settings are none")
    arch = values.get("model", {}).get("arch")
    network = MODEL_CONFIGS.get(arch) if isinstance(arch, str) else None
    known: dict[str, type] = {name: section for name, section in SECTIONS.items() if name != "model"}
    known |= {"model": network} if network else {}
    for name in values.keys() & known.keys():
        _check_section(known[name], values[name])
    try:
        cfg = Config.from_dict({name: _BEFORE.get(name, {}) | section for name, section in values.items()})
    except (TypeError, AttributeError) as error:
        raise ValueError(f"a setting in it has a value of the wrong kind ({str(error)[:200]})") from None
    except ValueError as error:
        raise ValueError(str(error)[:300]) from None
    classes = cfg.labels.classes or ()
    if not len(classes) == len(cfg.labels.class_names) == cfg.model.num_classes <= MAX_CLASSES:
        raise ValueError("damaged, it has not one name for each class")
    if cfg.data.demo_data is not None and cfg.data.image_dir != DEMO_PRESET["image_dir"]:
        # A resumed run draws what is not there: into no other folder than its own flag would.
        raise ValueError(f"damaged, its --demo-data are in {cfg.data.image_dir}, not in {DEMO_PRESET['image_dir']}")
    return cfg


def _check_section(section: type, values: dict[str, Any]) -> None:
    """ValueError for a value of another type than its field's, or that no flag could have."""
    hints = typing.get_type_hints(section)
    for name, value in values.items():
        if name in hints and not _is_of(hints[name], value):
            raise ValueError(f"a setting in it has a value of the wrong kind ({name} {reprlib.repr(value)})")
        if name in _SIZES and value is not None and not all(1 <= side <= MAX_SIDE for side in value):
            raise ValueError(f"{flag_of(name)} {reprlib.repr(value)}: expected 1 to {MAX_SIDE}")
        if name == "output_stride" and value not in _STRIDES:
            raise ValueError(f"--output-stride {value}: expected 4, 8, 16 or 32")


def _is_of(hint: Any, value: Any) -> bool:
    """Whether a plain value is one of a field's type; lists stand for tuples."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_is_of(each, value) for each in inner)
    if origin is Literal:
        return any(type(value) is type(each) and value == each for each in inner)
    if origin is tuple:
        if not isinstance(value, list | tuple) or (inner[-1] is not ... and len(value) != len(inner)):
            return False
        return all(_is_of(inner[0], item) for item in value)
    if hint is float:
        return _is_number(value) and (isinstance(value, float) or abs(value) < 2**63)
    if hint is int:
        return _is_int(value) and abs(value) < 2**63
    if hint is str:
        return isinstance(value, str) and len(value) <= _MOST_CHARACTERS and "\0" not in value
    return isinstance(value, hint)


# --- the weights --------------------------------------------------------------------------------


def _check_weights(checkpoint: Checkpoint) -> None:
    """ValueError where a set of weights is not that of the network described, which is not built for it."""
    state = checkpoint.state
    sets = [state["model"], *([state["ema"]["model"]] if state["ema"] else [])]
    expected = _expected(checkpoint.config.model, max(map(len, sets)))
    for weights in sets:
        for name, value in expected.items():
            if name not in weights:
                raise ValueError(f"{name} is missing")
            found = weights[name]
            if found.shape != value.shape or found.dtype != value.dtype:
                was, is_now = (f"{list(each.shape)} {each.dtype}".replace("torch.", "") for each in (value, found))
                raise ValueError(f"{name} is {is_now}; expected {was}")
        unexpected = weights.keys() - expected.keys()
        if unexpected:
            raise ValueError(f"{reprlib.repr(min(unexpected, key=str))} is unknown")


def _expected(section: ModelConfig, most: int) -> dict[str, Tensor]:
    """The network's entries, without memory behind them; ValueError as soon as it has more than most parameters."""
    count = 0

    def count_parameter(*_: object) -> None:
        nonlocal count
        count += 1
        if count > most:
            raise ValueError(f"it has more layers than the {most} weights are for")

    counting = register_module_parameter_registration_hook(count_parameter)
    try:
        with torch.device("meta"):
            return build_model(section).state_dict()
    except (OverflowError, MemoryError, ZeroDivisionError, IndexError) as error:
        raise ValueError(str(error) or type(error).__name__) from None
    finally:
        counting.remove()
