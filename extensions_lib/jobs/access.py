"""What a user of the page or the API may name in a job. The command line's own user may name anything."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..config.job import FOLDERS_BESIDE, TrainJobConfig
from ..config.tool import ToolConfig
from ..config.tools import JobConfig, named_files
from ..errors import AccessError, ConfigError, Problem
from ..ports import AccessPolicy, BaseModel, Host

PICKLES = frozenset({".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"})
LISTED_KINDS = ("lora", "embedding", "hypernetwork", "vae")  # those of `Host.model_files`
HASH_IN_TITLE = re.compile(r" \[[0-9a-f]{8,10}\]$")
MAX_NAME_LENGTH = 100
# What Windows takes for a device, whatever the ending.
DEVICES = frozenset(
    {"aux", "con", "nul", "prn", *(f"{kind}{number}" for kind in ("com", "lpt") for number in range(10))}
)


@dataclass(frozen=True)
class NamedPath:
    """A path that a job names: the setting and the path; `holds_weights` when it is read as a model file."""

    setting: str
    path: Path
    holds_weights: bool = False


def check_access(config: JobConfig, policy: AccessPolicy, host: Host) -> None:
    """Refuse what `policy` does not allow, links followed, and names that are no plain file names.

    A path is accepted below one of the policy's roots, below one of the host's own folders, or when the host lists it;
    with `hide_paths` the roots do not count. Raises AccessError, or ConfigError for a name.
    """
    words = () if isinstance(config, ToolConfig) else config.new_words
    for name in dict.fromkeys((config.name, *words)):
        check_name(name)
    check_paths(named_paths(config), policy, host)


def check_paths(paths: Iterable[NamedPath], policy: AccessPolicy, host: Host) -> None:
    """The same for single paths. Raises AccessError."""
    listed = {model.path.resolve() for model in listed_files(host, "model")}
    for named in paths:
        path = _resolved(named)
        if path in listed:
            continue
        if not _is_within(path, policy, host):
            raise _refused(named, policy)
        if named.holds_weights and not policy.allow_pickles and has_pickles(path):
            raise AccessError(
                f"{named.setting} names a pickle, {_shown(named, policy)}, which could run code.",
                "Use a .safetensors file, or a model that the WebUI lists.",
            )


def check_file(file: str, policy: AccessPolicy, host: Host) -> Path:
    """The path of a file that a user wants read, when `policy` allows it. Raises AccessError."""
    named = NamedPath("file", Path(file), holds_weights=True)
    check_paths([named], policy, host)
    return _resolved(named)


def listed_files(host: Host, kind: str) -> tuple[BaseModel, ...]:
    """What the host offers for a setting whose `Option.file` is `kind`; for 'model', all that it lists."""
    if kind == "checkpoint":
        return host.base_models()
    if kind == "model":
        return sum((listed_files(host, each) for each in ("checkpoint", *LISTED_KINDS)), ())
    return host.model_files(kind) if kind in LISTED_KINDS else ()


def path_of(given: str, kind: str, host: Host) -> str:
    """The path of what the host lists under the title `given` for a setting of this kind, else `given` itself.

    A title gets the file's hash at its end once the host knows it: one with and one without it are the same.
    """
    files = listed_files(host, kind)
    exact = (file for file in files if file.title == given)
    alike = (file for file in files if _without_hash(file.title) == _without_hash(given))
    return next((str(file.path) for file in (*exact, *alike)), given)


def _without_hash(title: str) -> str:
    return HASH_IN_TITLE.sub("", title)


def path_of_listed(given: str, host: Host) -> Path:
    """The path of a model file that is named by its path, or as the host lists it. Raises AccessError."""
    return check_file(path_of(given, "model", host), host.access(), host)


def check_name(name: str) -> None:
    """Refuse names that make no plain file on every system. Raises ConfigError."""
    stem = name.partition(".")[0].strip().lower()
    if name.startswith(".") or name.endswith((".", " ")) or not name.isprintable() or stem in DEVICES:
        problem = f"is {name!r}, accepted are plain file names without an ending"
    elif len(name) > MAX_NAME_LENGTH:
        problem = f"has {len(name)} signs, accepted are up to {MAX_NAME_LENGTH}"
    else:
        return
    raise ConfigError([Problem("name", problem)])


def named_paths(config: JobConfig) -> Iterator[NamedPath]:
    """Every path in a job's settings."""
    if isinstance(config, ToolConfig):
        for named in named_files(config):
            yield NamedPath(named.setting, Path(named.path), holds_weights=named.kind != "folder")
    else:
        yield from _paths_of_training(config)


def _paths_of_training(config: TrainJobConfig) -> Iterator[NamedPath]:
    dataset, output = config.dataset, config.output
    yield NamedPath("base_model", Path(config.base_model), holds_weights=True)
    yield NamedPath("dataset.folder", Path(dataset.folder))
    yield NamedPath("output.folder", Path(output.folder))
    yield NamedPath("output.runs_folder", Path(output.runs_folder))
    for name in FOLDERS_BESIDE:
        if getattr(output, name):
            yield NamedPath(f"output.{name}", Path(getattr(output, name)))
    if config.vae:
        yield NamedPath("vae", Path(config.vae), holds_weights=True)
    if dataset.validation_folder:
        yield NamedPath("dataset.validation_folder", Path(dataset.validation_folder))
    if config.prior.folder:
        yield NamedPath("prior.folder", Path(config.prior.folder))
    start_from = getattr(config.method, "start_from", "")
    if start_from:
        yield NamedPath("method.start_from", Path(start_from), holds_weights=True)
    yield from _embedding_files(config)
    if is_template_path(dataset.caption_template):
        yield NamedPath("dataset.caption_template", Path(dataset.caption_template).expanduser())


def _embedding_files(config: TrainJobConfig) -> Iterator[NamedPath]:
    method = config.method
    files = {"method.embedding_start_from": getattr(method, "embedding_start_from", "")}
    for index, known in enumerate(config.dataset.embeddings):
        files[f"dataset.embeddings[{index}].path"] = known.path
    for index, word in enumerate(getattr(method, "further_words", ())):
        files[f"method.further_words[{index}].start_from"] = word.start_from
    for setting, path in files.items():
        if path:
            yield NamedPath(setting, Path(path), holds_weights=True)


def is_template_path(template: str) -> bool:
    """Whether a caption template is the path of a file rather than a text or the name of a built-in one."""
    from ..data.caption_maker import BUILTIN_TEMPLATES, FILEWORDS, NAME

    return bool(template) and template not in BUILTIN_TEMPLATES and NAME not in template and FILEWORDS not in template


def has_pickles(path: Path) -> bool:
    """Whether a model file is a pickle, or a model folder holds one."""
    files = path.rglob("*") if path.is_dir() else (path,)
    return any(file.suffix.lower() in PICKLES for file in files)


def _resolved(named: NamedPath) -> Path:
    try:
        path = named.path.resolve()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:  # a NUL in it, links in a circle, too long a name
        why = getattr(error, "strerror", None) or error
        raise AccessError(f"{named.setting} is no usable path: {why}.", "Give another path.") from error
    return path


def _is_within(path: Path, policy: AccessPolicy, host: Host) -> bool:
    if policy.roots is None and not policy.hide_paths:
        return True
    folders = host.folders()
    own = (*folders.results.values(), folders.checkpoints, folders.work)
    roots = own if policy.hide_paths else (*own, *(policy.roots or ()))
    return any(path.is_relative_to(root.resolve()) for root in roots)


def _refused(named: NamedPath, policy: AccessPolicy) -> AccessError:
    if policy.hide_paths or policy.roots is None:
        return AccessError(
            f"{named.setting} names a path of your own, which this WebUI does not accept.",
            "Choose from what the page offers, or put the pictures into Train Studio's own folder.",
        )
    roots = ", ".join(map(str, policy.roots)) or "none"
    return AccessError(
        f"{named.setting} is {_shown(named, policy)}, which lies outside the folders that may be used: {roots}.",
        "Put the files below one of them, or let the WebUI's owner add a folder in the settings.",
    )


def _shown(named: NamedPath, policy: AccessPolicy) -> str:
    return named.path.name if policy.hide_paths else str(named.path)
