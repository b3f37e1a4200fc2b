"""The tools for checkpoints and LoRAs: one declaration for the command line, the API and the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError, Problem
from .codec import dump, load, load_settings
from .field import Setting, settings_of
from .files import ConvertConfig, MetadataConfig, PruneConfig
from .grid import GridConfig
from .job import TrainJobConfig
from .merge import MergeConfig
from .networks import BakeConfig, CombineConfig, ConvertLoraConfig, ExtractConfig, ResizeConfig
from .rebuild import RebuildConfig
from .tool import ToolConfig

KIND = "tool"  # the key of a table that says which tool it is for


@dataclass(frozen=True)
class Tool:
    """What is known of a tool without running it.

    `title` and `help` are for users. `makes` is the kind of its result, one of `config.artefacts.ARTEFACTS`; '' where
    that depends on what it is given. `values_from`: in its list of files, the first that may have a value of its own
    (a weight, a strength). `draws`: it makes pictures instead, on the device that the host draws with.
    """

    title: str
    help: str
    settings: type[ToolConfig]
    makes: str
    values_from: int = 0
    draws: bool = False

    @property
    def files(self) -> Setting | None:
        """The list of files it takes, if it takes any number of them."""
        return next((setting for setting in settings_of(self.settings) if setting.option.item is not None), None)


TOOLS: dict[str, Tool] = {
    "merge": Tool("Merge checkpoints", "Combine checkpoints into a new one.", MergeConfig, "checkpoint", 1),
    "bake": Tool("Bake LoRAs into a checkpoint", "Bake LoRA files into a checkpoint.", BakeConfig, "checkpoint"),
    "extract": Tool("Extract a LoRA", "Make a LoRA of the difference of two checkpoints.", ExtractConfig, "lora"),
    "combine": Tool("Combine LoRAs", "Make one LoRA of several, each with a weight.", CombineConfig, "lora"),
    "resize": Tool("Resize a LoRA", "Make a LoRA smaller: fewer directions a layer.", ResizeConfig, "lora"),
    "convert-lora": Tool(
        "Convert a LoRA", "Write a LoRA of any program as the WebUI reads it.", ConvertLoraConfig, "lora"
    ),
    "prune": Tool("Prune, cast and repair", "Make a checkpoint smaller, and repair it.", PruneConfig, "checkpoint"),
    "convert": Tool("Convert a checkpoint", "Write a checkpoint as another kind of file.", ConvertConfig, "checkpoint"),
    "metadata": Tool("Edit metadata", "Change what a file says of itself, for others to see.", MetadataConfig, ""),
    "grid": Tool("Compare merges in a grid", "Draw merges that differ in a setting.", GridConfig, "", 1, draws=True),
    "rebuild": Tool("Rebuild from a recipe", "Make a file again from its recipe and its models.", RebuildConfig, ""),
}


def load_tool(kind: str, table: Mapping[str, Any]) -> ToolConfig:
    """The settings of a tool from a table. Raises ConfigError with every mistake."""
    if kind not in TOOLS:
        raise ConfigError([Problem(KIND, f"is {kind!r}, accepted are {', '.join(TOOLS)}")])
    config: ToolConfig = load_settings(TOOLS[kind].settings, table)
    if problems := config.problems():
        raise ConfigError(problems, "Correct these settings and start again; nothing was changed.")
    return config


def kind_of(config: ToolConfig) -> str:
    """The tool that these settings are for."""
    return next(kind for kind, tool in TOOLS.items() if tool.settings is type(config))


def dump_tool(config: ToolConfig) -> dict[str, Any]:
    """As a table, the tool's kind in it; `load_any_tool` reads it."""
    return {KIND: kind_of(config), **dump(config)}


def load_any_tool(table: Mapping[str, Any]) -> ToolConfig:
    """The inverse of `dump_tool`. Raises ConfigError with every mistake."""
    settings = {key: value for key, value in table.items() if key != KIND}
    return load_tool(str(table.get(KIND, "")), settings)


JobConfig = TrainJobConfig | ToolConfig  # what the job manager works on


def load_job(table: Mapping[str, Any]) -> JobConfig:
    """The inverse of `dump_job`. Raises ConfigError with every mistake."""
    return load_any_tool(table) if KIND in table else load(table)


def dump_job(config: JobConfig) -> dict[str, Any]:
    """A training or a tool as a table; that of a tool says which one."""
    return dump_tool(config) if isinstance(config, ToolConfig) else dump(config)


@dataclass(frozen=True)
class NamedFile:
    """A file or folder that settings name: the setting, such as 'models[1].path', and `Option.file` of it."""

    setting: str
    path: str
    kind: str


def named_files(settings: Any, prefix: str = "") -> Iterator[NamedFile]:
    """Every file and folder that the settings of a tool name, those in its lists too, in their order."""
    for setting in settings_of(type(settings)):
        value, name = getattr(settings, setting.name), f"{prefix}{setting.name}"
        if setting.option.item is not None:
            for index, entry in enumerate(value):
                yield from named_files(entry, f"{name}[{index}].")
        elif setting.option.file and value:
            yield NamedFile(name, value, setting.option.file)


def source_files(config: ToolConfig) -> tuple[NamedFile, ...]:
    """The files that a tool reads; folders are none."""
    return tuple(named for named in named_files(config) if named.kind != "folder")
