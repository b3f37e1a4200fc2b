"""Job files to settings and back. Strict: every mistake is reported, all at once, with what is accepted."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from ..errors import ConfigError, Problem
from .field import REQUIRED, Setting, settings_of
from .job import TrainJobConfig
from .json_text import parse_json
from .methods import METHOD_CONFIGS, PivotalConfig
from .optimizer import OPTIMIZERS_OF_BF16
from .presets import AUTO, FAMILY_NAMES, PRESETS, default_preset, merge, method_of, preset_values
from .words import EmbeddingConfig

MAX_NAME_BYTES = 200  # file systems take 255, with what is added while writing
FORBIDDEN_IN_NAMES = '<>:=,|/\\"?*'


def read_job_file(path: Path) -> TrainJobConfig:
    """The job in a .toml or .json file. Raises ConfigError with every mistake."""
    return load(read_table(path))


def read_table(path: Path) -> dict[str, Any]:
    """The raw table of a .toml or .json file. Raises ConfigError when it is missing or is neither."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([Problem(str(path), f"cannot be read: {error}")]) from error
    try:
        table = parse_json(text) if path.suffix.lower() == ".json" else _parse_toml(text)
    except ValueError as error:
        raise ConfigError([Problem(str(path), f"is not valid {path.suffix[1:].upper() or 'TOML'}: {error}")]) from error
    if not isinstance(table, dict):
        raise ConfigError([Problem(str(path), f"must hold a table of settings, holds {type(table).__name__}")])
    return table


def _parse_toml(text: str) -> dict[str, Any]:
    try:
        import tomllib
    except ImportError:
        import tomli as tomllib
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def load(table: Mapping[str, Any]) -> TrainJobConfig:
    """Settings from a table, over the values of its preset. Raises ConfigError with every mistake."""
    problems: list[Problem] = []
    merged = _with_preset(table, problems)
    job = _load_dataclass(TrainJobConfig, merged, "", problems)
    if job is not None:
        problems += _check_together(job)
    if problems:
        raise ConfigError(problems, "Correct these settings and start again; nothing was changed.")
    return job


# What a partial job need not say, so that it can be checked like a whole one.
_STAND_IN = {"name": "preset", "base_model": "model", "dataset": {"folder": "pictures"}}


def check_partial(table: Mapping[str, Any]) -> None:
    """Refuse a partial job that no job could start from. Raises ConfigError with every mistake."""
    load(merge(_STAND_IN, table))


def load_settings(cls: type, table: Mapping[str, Any]) -> Any:
    """An instance of a dataclass of settings from a table. Raises ConfigError with every mistake."""
    problems: list[Problem] = []
    loaded = _load_dataclass(cls, table, "", problems)
    if problems:
        raise ConfigError(problems, "Correct these settings and start again; nothing was changed.")
    return loaded


def dump(config: Any) -> dict[str, Any]:
    """Settings as a table that `load` accepts, defaults filled in."""
    return _plain(dataclasses.asdict(config))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _with_preset(table: Mapping[str, Any], problems: list[Problem]) -> dict[str, Any]:
    method = table.get("method")
    if isinstance(method, str):
        table = {**table, "method": {"kind": method}}
    kind = table["method"].get("kind") if isinstance(table.get("method"), Mapping) else None
    preset, family = table.get("preset"), table.get("family")
    family = family if isinstance(family, str) and family in FAMILY_NAMES else AUTO
    if not preset:
        is_known = isinstance(kind, str) and kind in METHOD_CONFIGS
        return merge(preset_values(default_preset(kind), family), table) if is_known else dict(table)
    if not isinstance(preset, str) or preset not in PRESETS:
        problems.append(Problem("preset", _not_one_of(preset, tuple(PRESETS))))
        return dict(table)
    preset_kind = method_of(preset)
    if kind is not None and kind != preset_kind:
        problems.append(Problem("preset", f"'{preset}' is for method '{preset_kind}', the job's method is '{kind}'"))
        return dict(table)
    return merge(preset_values(preset, family), table)


def _load_dataclass(cls: type, table: Any, path: str, problems: list[Problem]) -> Any:
    if not isinstance(table, Mapping):
        problems.append(Problem(path, f"must be a table of settings, is {table!r}"))
        return None
    declared = {setting.name: setting for setting in settings_of(cls)}
    before = len(problems)
    for key in table:
        if key not in declared:
            problems.append(Problem(_join(path, key), f"is not a setting{_nearest(key, declared)}"))
    values = {
        name: _load_setting(setting, table.get(name, REQUIRED), _join(path, name), problems)
        for name, setting in declared.items()
    }
    return cls(**values) if len(problems) == before else None


def _load_setting(setting: Setting, value: Any, path: str, problems: list[Problem]) -> Any:
    if value is REQUIRED:
        if setting.required:
            problems.append(Problem(path, f"is missing: {setting.option.help}"))
        return setting.default
    if dataclasses.is_dataclass(setting.type):
        return _load_dataclass(setting.type, value, path, problems)
    if setting.name == "method":
        return _load_method(value, path, problems)
    if setting.option.item is not None:
        return _load_items(setting, value, path, problems)
    return _load_scalar(setting, value, path, problems)


def _load_method(value: Any, path: str, problems: list[Problem]) -> Any:
    kind = value.get("kind") if isinstance(value, Mapping) else value
    if not isinstance(kind, str) or kind not in METHOD_CONFIGS:
        problems.append(Problem(_join(path, "kind"), _not_one_of(kind, tuple(METHOD_CONFIGS))))
        return None
    return _load_dataclass(METHOD_CONFIGS[kind], value, path, problems)


def _load_items(setting: Setting, value: Any, path: str, problems: list[Problem]) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        problems.append(Problem(path, f"must be a list, is {value!r}"))
        return ()
    of_line = setting.option.of_line
    items = [of_line(entry) if isinstance(entry, str) and of_line else entry for entry in value]
    return tuple(
        _load_dataclass(setting.option.item, entry, f"{path}[{index}]", problems) for index, entry in enumerate(items)
    )


def _load_scalar(setting: Setting, value: Any, path: str, problems: list[Problem]) -> Any:
    accepted = _accepted_types(setting.type)
    if float in accepted and isinstance(value, int) and not isinstance(value, bool):
        value = _as_float(value)
    if type(value) not in accepted:
        names = " or ".join(_TYPE_NAMES[kind] for kind in accepted)
        problems.append(Problem(path, f"must be {names}, is {value!r}"))
        return value
    option = setting.option
    if option.file and setting.required and not value:
        problems.append(Problem(path, f"names no file or folder: {option.help}"))
    elif option.choices and value not in option.choices:
        problems.append(Problem(path, _not_one_of(value, option.choices)))
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and not _within(value, option.min, option.max):
        problems.append(
            Problem(path, f"is {value}, accepted are {_range(option.min, option.max)} {option.unit}".strip())
        )
    return value


_TYPE_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def _accepted_types(kind: Any) -> tuple[type, ...]:
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _as_float(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _within(value: float, low: float | None, high: float | None) -> bool:
    is_number = isinstance(value, int) or math.isfinite(value)  # a long whole number is no float at all
    return is_number and (low is None or value >= low) and (high is None or value <= high)


def _range(low: float | None, high: float | None) -> str:
    if low is not None and high is not None:
        return f"{low:.10g} to {high:.10g}"
    return (
        f"{low:.10g} or more" if low is not None else f"{high:.10g} or less" if high is not None else "finite numbers"
    )


def _not_one_of(value: Any, choices: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(str(value), choices, n=1)
    meant = f"; did you mean '{close[0]}'?" if close else ""
    return f"is {value!r}, accepted are {', '.join(choices)}{meant}"


def _nearest(key: str, declared: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(str(key), declared, n=1)
    return f"; did you mean '{close[0]}'?" if close else f"; known are {', '.join(declared)}"


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else str(key)


def name_problems(path: str, name: str) -> list[Problem]:
    """What is wrong with the name of a file to be; `path` is the setting that gives it."""
    num_bytes = len(name.encode("utf-8", "replace"))
    if num_bytes > MAX_NAME_BYTES:
        return [Problem(path, f"has {num_bytes} bytes (in UTF-8), accepted are names of up to {MAX_NAME_BYTES}")]
    is_name = name.strip(" .") and name == name.strip() and not any(sign in FORBIDDEN_IN_NAMES for sign in name)
    # Line breaks, control signs, halves of characters: none of them can be read in a list.
    if is_name and _without_joiners(name).isprintable():
        return []
    return [
        Problem(
            path, f"is {name!r}, accepted are file names without any of {FORBIDDEN_IN_NAMES} and control characters"
        )
    ]


def _without_joiners(name: str) -> str:
    """What joins several signs to one emoji or letter, and spaces of other widths, may stand in names."""
    return "".join(sign for sign in name if unicodedata.category(sign) not in ("Cf", "Co", "Cn", "Zs"))


def _check_words(job: TrainJobConfig) -> list[Problem]:
    """Words with vectors of their own become the names of files, or of parts of a LoRA file; each is told apart."""
    method = job.method
    known = {f"dataset.embeddings[{index}].path": each.word for index, each in enumerate(job.dataset.embeddings)}
    if not isinstance(method, EmbeddingConfig):
        return _check_different("", known)
    further = {f"method.further_words[{index}].word": each.word for index, each in enumerate(method.further_words)}
    problems = [problem for path, word in further.items() for problem in name_problems(path, word)]
    problems += _check_different(job.trigger_word, {**further, **known})
    if isinstance(method, PivotalConfig):
        problems += _check_bundle(method.embedding_files, {"dataset.trigger_word": job.trigger_word, **further})
    if method.relative_learning_rate and job.optimizer.optimizer == "prodigy":
        problems.append(Problem("method.relative_learning_rate", "cannot be used with prodigy, which finds its own"))
    return problems


def _check_different(first: str, further: Mapping[str, str]) -> list[Problem]:
    problems, taken = [], {first.casefold()}
    for path, word in further.items():
        if word.casefold() in taken:
            problems.append(Problem(path, f"is {word!r}, which is another word of this job; case does not count"))
        taken.add(word.casefold())
    return problems


def _check_bundle(embedding_files: str, words: Mapping[str, str]) -> list[Problem]:
    """A word inside a LoRA file ends at its first dot; one beside it is the name of a file."""
    problems = []
    for path, word in words.items():
        if embedding_files != "bundled" and path == "dataset.trigger_word":
            problems += name_problems(path, word)
        if embedding_files != "beside" and "." in word:
            problems.append(
                Problem(path, f"is {word!r}; a word inside a LoRA has no dot. Use another, or embedding_files = beside")
            )
    return problems


def _check_together(job: TrainJobConfig) -> list[Problem]:
    """Mistakes that only two settings together make."""
    problems = [*name_problems("name", job.name), *_check_words(job)]
    training, dataset = job.training, job.dataset
    if training.min_timestep >= training.max_timestep:
        problems.append(
            Problem(
                "training.min_timestep",
                f"is {training.min_timestep}, must be below max_timestep {training.max_timestep}",
            )
        )
    for name in ("resolution_px", "bucket_step_px"):
        if getattr(dataset, name) % 8:
            problems.append(Problem(f"dataset.{name}", f"is {getattr(dataset, name)}, accepted are multiples of 8"))
    if training.noise_offset and training.pyramid_noise_discount:
        problems.append(
            Problem("training.noise_offset", "cannot be used together with pyramid_noise_discount; set one to 0")
        )
    word = dataset.trigger_word
    if job.method.kind == "textual_inversion" and word not in ("", job.name):
        problems.append(
            Problem(
                "dataset.trigger_word", f"is {word!r}; an embedding is called by its name, {job.name!r}; leave it empty"
            )
        )
    if getattr(job.method, "weight_dtype", "") == "bf16" and job.optimizer.optimizer not in OPTIMIZERS_OF_BF16:
        accepted = " and ".join(OPTIMIZERS_OF_BF16)
        problems.append(
            Problem("optimizer.optimizer", f"is {job.optimizer.optimizer!r}; weights in bf16 accept {accepted}")
        )
    problems += [Problem(f"prior.{name}", text) for name, text in job.prior.problems()]
    if hasattr(job.method, "problems"):
        problems += [Problem(f"method.{name}", text) for name, text in job.method.problems()]
    owners = {"pt": ("textual_inversion", "embeddings"), "ckpt": ("dreambooth", "checkpoints")}
    owner, files = owners.get(job.output.file_format, (job.method.kind, ""))
    if job.method.kind != owner:
        text = f"is {job.output.file_format!r}, which only {files} have; accepted is safetensors"
        problems.append(Problem("output.file_format", text))
    return problems
