"""What a sweep searches: the TOML file that names settings with ranges or choices. Free of heavy packages.

    [sweep]
    objective = "hidden"                                # or "seen"; left out: hidden where it can be
    hidden = ["horse"]                                  # the classes for that; left out: chosen as for a calibration

    [search]
    lr = { low = 1e-4, high = 3e-2, log = true }        # a range: floats, or integers where the setting has them
    dim = [20, 50, 100]                                 # choices
    loss = ["mse", "softmax-embed", "infonce"]

    [fixed]
    epochs = 2

Settings have the names of `TrainConfig` and `EmbedConfig`, which are those of the options of `train` and
`embed-labels`, `-` or `_` alike; what is named in neither table has its default. Every mistake is found here, before
any work.
"""

from __future__ import annotations

import json
import math
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from zsseg.config import EmbedConfig, Objective, TrainConfig
from zsseg.errors import DataError, SettingError, suggestion

Value = Any  # of a setting: text, number, truth value, None, or a tuple of texts

# Settings that a trial may differ in. All trials and the last model share the others, but for those of `NOT_SET`, which
# are of a whole training and mean nothing to a trial.
SEARCHED = (
    "lr", "dim", "loss", "normalize", "weighting", "model", "backbone", "stacks", "dense_features", "negatives",
    "frozen", "epochs", "batch", "backbone_lr", "crop", "gate", "anchors", "presence", "vectors", "center", "fit_words",
    "remove_top", "reduce", "retrofit", "prompts",
)  # fmt: skip
NOT_SET = ("seed", "self_train", "rounds")
OF_VECTORS = tuple(each.name for each in fields(EmbedConfig))
FIXED = tuple(each for each in (*OF_VECTORS, *(each.name for each in fields(TrainConfig))) if each not in NOT_SET)
LEAST = {
    "lr": 0.0, "backbone_lr": 0.0, "epochs": 1, "batch": 1, "dim": 1, "crop": 32, "fit_words": 2, "remove_top": 0,
    "stacks": 1, "workers": 0, "max_seen_loss": 0.0, "max_false_share": 0.0, "checkpoint_every": 0.0,
    "checkpoint_steps": 1,
}  # fmt: skip
RANGE_KEYS = ("low", "high", "log")
_HINTS = {**get_type_hints(EmbedConfig), **get_type_hints(TrainConfig)}


@dataclass(frozen=True)
class Range:
    """All numbers from `low` to `high`, both included; evenly drawn, or with `log` evenly over their logarithms."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    @property
    def samples(self) -> tuple[float, ...]:
        """What stands for the range where all of it cannot be tried: its ends."""
        return (self.low, self.high)


@dataclass(frozen=True)
class Choices:
    """One of several values, by the text or number under which a study keeps it."""

    values: Mapping[str | int | float | bool, Value]

    @property
    def samples(self) -> tuple[Value, ...]:
        """All values."""
        return tuple(self.values.values())


@dataclass(frozen=True)
class Space:
    """What a file says.

    Attributes:
        name: The file's name without its ending.
        objective: As it is written; "auto" where it is not.
        hidden: Names of seen classes to hide from trials; empty: chosen automatically.
        search: Settings that differ between trials, in the file's order.
        fixed: Settings that all trials share.
        text: The whole as canonical JSON, to compare two files by.
    """

    name: str
    objective: Objective
    hidden: tuple[str, ...]
    search: Mapping[str, Range | Choices]
    fixed: Mapping[str, Value]
    text: str

    def losses(self) -> tuple[str, ...]:
        """Return every loss that a trial may have."""
        searched = self.search.get("loss")
        values = searched.samples if searched else (self.fixed.get("loss", TrainConfig.loss),)
        return tuple(map(str, values))

    def values(self, params: Mapping[str, Any]) -> dict[str, Value]:
        """Return the values of searched settings from what a study keeps of them."""
        found = {name: (params[name], each) for name, each in self.search.items() if name in params}
        return {
            name: each.values.get(kept, kept) if isinstance(each, Choices) else kept
            for name, (kept, each) in found.items()
        }

    def first(self) -> dict[str, Value]:
        """Return one value of every searched setting, to try the others with."""
        return {name: each.samples[0] for name, each in self.search.items()}

    def configs(self, values: Mapping[str, Value], *, seed: int) -> tuple[EmbedConfig, TrainConfig]:
        """Return the settings of a trial: its values over the shared ones over the defaults."""
        settings = {**self.fixed, **values}
        of_vectors = {name: value for name, value in settings.items() if name in OF_VECTORS}
        of_training = {name: value for name, value in settings.items() if name not in OF_VECTORS}
        return replace(EmbedConfig(), **of_vectors), replace(TrainConfig(seed=seed), **of_training)


def read_space(path: Path) -> Space:
    """Read and check a file.

    Raises:
        DataError: It is missing or no TOML.
        SettingError: It names what there is not, or a value or range that cannot be.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}; expected a TOML file, see `zsseg sweep --help`") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: is no TOML: {error}; mend that place") from error
    for name, table in content.items():
        if name not in ("sweep", "search", "fixed") or not isinstance(table, dict):
            raise SettingError(f"{path}: {name}: expected the tables [sweep], [search] and [fixed] alone")
    if not content.get("search"):
        raise SettingError(f"{path}: [search] names no setting; give one, such as lr = {{ low = 1e-4, high = 1e-2 }}")
    with_names = {table: _by_setting(path, table, content.get(table, {})) for table in ("search", "fixed")}
    twice = sorted(with_names["search"].keys() & with_names["fixed"].keys())
    if twice:
        raise SettingError(f"{path}: {twice[0]}: is in [search] and in [fixed]; leave it in one of them")
    search = {name: _searched(f"{path}: search.{name}", name, each) for name, each in with_names["search"].items()}
    fixed = {name: _value(f"{path}: fixed.{name}", name, each) for name, each in with_names["fixed"].items()}
    text = json.dumps({**with_names, "sweep": content.get("sweep", {})}, sort_keys=True)
    return Space(path.stem, *_goal(path, content.get("sweep", {})), search, fixed, text)


def _goal(path: Path, table: Mapping[str, Any]) -> tuple[Objective, tuple[str, ...]]:
    """Return objective and hidden classes."""
    strange = next((name for name in table if name not in ("objective", "hidden")), None)
    if strange is not None:
        raise SettingError(f"{path}: sweep.{strange}: no such setting; objective and hidden stand in [sweep]")
    objective, hidden = table.get("objective", "auto"), table.get("hidden", [])
    if objective not in get_args(Objective):
        raise SettingError(f"{path}: sweep.objective: {objective!r}, expected one of {', '.join(get_args(Objective))}")
    if not isinstance(hidden, list) or not all(isinstance(name, str) for name in hidden):
        raise SettingError(f"{path}: sweep.hidden: {hidden!r}, expected a list of class names")
    if hidden and objective == "seen":
        raise SettingError(f'{path}: sweep.hidden: no class is hidden for objective = "seen"; leave one of the two out')
    return typing.cast(Objective, objective), tuple(hidden)


def _by_setting(path: Path, table: str, entries: Mapping[str, Any]) -> dict[str, Any]:
    """Return a table's entries by the names of the settings, all of which exist and may stand there."""
    allowed = SEARCHED if table == "search" else FIXED
    found = {}
    for written, entry in entries.items():
        name = written.replace("-", "_")
        if name not in allowed:
            raise SettingError(f"{path}: {table}.{written}: {_why_not(name, allowed)}")
        found[name] = entry
    return found


def _why_not(name: str, allowed: Sequence[str]) -> str:
    if name == "seed":
        return "all trials share the seed of --seed; leave it out"
    if name in FIXED:
        return "all trials share this setting; give its one value in [fixed]"
    if name in _HINTS:
        return "a sweep does not set this; leave it out, and train with it afterwards"
    return f"no such setting{suggestion(name, allowed) or '; see docs/sweeps.md'}"


def _searched(where: str, name: str, entry: Any) -> Range | Choices:
    if isinstance(entry, dict):
        return _range(where, name, entry)
    if not isinstance(entry, list):
        raise SettingError(
            f"{where}: {entry!r} is one value; expected choices [...] or a range {{ low = ..., high = ... }}, or move "
            "it to [fixed]"
        )
    if not entry:
        raise SettingError(f"{where}: [] holds no choice; expected one or more")
    values = [_value(where, name, each) for each in entry]
    keys = [" + ".join(each) if isinstance(each, tuple) else each for each in values]
    twice = next((key for place, key in enumerate(keys) if key in keys[:place]), None)
    if twice is not None:
        raise SettingError(f"{where}: {twice!r} stands there twice; leave one out")
    return Choices(dict(zip(keys, values, strict=True)))


def _range(where: str, name: str, entry: Mapping[str, Any]) -> Range:
    strange = next((key for key in entry if key not in RANGE_KEYS), None)
    missing = next((key for key in ("low", "high") if key not in entry), None)
    if strange is not None or missing is not None:
        what = f"{strange!r} is no part of a range" if strange is not None else f"{missing!r} is missing"
        raise SettingError(f"{where}: {what}, expected {{ low = ..., high = ..., log = true or false }}")
    kinds = _kinds(name)
    if not kinds & {int, float} or bool in kinds:
        raise SettingError(f"{where}: is no number, so it has no range; expected choices [...]")
    low, high = (_value(f"{where}.{key}", name, entry[key]) for key in ("low", "high"))
    log = entry.get("log", False)
    if not isinstance(log, bool):
        raise SettingError(f"{where}.log: {log!r}, expected true or false")
    if not low < high:
        raise SettingError(f"{where}: low {low:g} is not below high {high:g}, so the range is empty; exchange them")
    if log and low <= 0:
        raise SettingError(f"{where}: low {low:g} has no logarithm; expected above 0, or log = false")
    return Range(low, high, log, float not in kinds)


def _kinds(name: str) -> set[Any]:
    """Return the types that a setting may have."""
    hint = _HINTS[name]
    return set(get_args(hint)) if get_origin(hint) in (typing.Union, types.UnionType) else {hint}


def _value(where: str, name: str, value: Any) -> Value:
    """Return a TOML value as the setting has it, lists as tuples."""
    kinds = _kinds(name)
    choices = [choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
    if tuple[str, ...] in kinds and isinstance(value, list) and all(isinstance(each, str) for each in value) and value:
        return tuple(value)
    if bool in kinds and isinstance(value, bool):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        if float in kinds and math.isfinite(value):
            return _at_least(where, name, float(value))
        if int in kinds and isinstance(value, int):
            return _at_least(where, name, value)
    if isinstance(value, str) and (str in kinds or value in choices):
        return value
    raise SettingError(f"{where}: {value!r}, expected {_expected(kinds, choices)}")


def _at_least(where: str, name: str, value: float) -> float:
    least = LEAST.get(name)
    if least is None or value > least or (value == least and name != "lr"):
        return value
    raise SettingError(f"{where}: {value:g}, expected {'above' if name == 'lr' else 'at least'} {least:g}")


def _expected(kinds: set[Any], choices: Sequence[str]) -> str:
    if choices:
        return f"one of {', '.join(choices)}"
    if tuple[str, ...] in kinds:
        return "a list of texts"
    if bool in kinds:
        return "true or false"
    if float in kinds:
        return "a number"
    return "a whole number" if int in kinds else "a text"
