"""JSON schemas: a job's, made from the declarations of its settings, and those of the small requests and of errors."""

from __future__ import annotations

import dataclasses
import inspect
import types
from collections.abc import Sequence
from typing import Any, Union, get_args, get_origin

from ..config.field import Setting, settings_of
from ..config.job import OutputConfig, TrainJobConfig
from ..config.methods import METHOD_CONFIGS
from ..config.networks import ConvertLoraConfig
from ..config.presets import PRESETS
from ..config.rebuild import RebuildConfig
from ..config.tool import ToolConfig
from ..config.tools import KIND, TOOLS, Tool
from ..jobs.store import REQUESTS

Schema = dict[str, Any]

TYPES = {bool: "boolean", int: "integer", float: "number", str: "string"}

# The host knows these: the checkpoint it has loaded, its folder for this kind of result, our own folder for runs.
FILLED_BY_HOST = {
    (TrainJobConfig, "base_model"): "Without it: the checkpoint that is selected in the WebUI.",
    (OutputConfig, "folder"): "Without it: the WebUI's own folder for this kind of file.",
    (OutputConfig, "lora_folder"): "Without it: the WebUI's own folder for LoRAs.",
    (OutputConfig, "embedding_folder"): "Without it: the WebUI's own folder for embeddings.",
    (OutputConfig, "runs_folder"): "Here always Train Studio's own folder.",
    (ToolConfig, "folder"): "Without it: the WebUI's own folder for this kind of file.",
    (ConvertLoraConfig, "embeddings_folder"): "Without it: the WebUI's own folder for embeddings.",
    (RebuildConfig, "models"): "Without it: the WebUI's own folders for checkpoints and LoRAs.",
}


def job_schema() -> Schema:
    """The schema of a job table as the API takes it.

    Type, default, range, choices, meaning and unit of every setting. Defaults are those without a preset; a preset's
    values replace them. `x-unit` is 'px', 'steps', ...; `x-advanced` marks what few need.
    """
    schema = _object(TrainJobConfig)
    schema["properties"]["preset"]["enum"] = ["", *PRESETS]
    return schema


def tool_schemas() -> dict[str, Schema]:
    """The schema of every tool's table as the API takes it, by kind; `x-makes` is its kind of result, '' for any."""
    return {kind: _tool(kind, tool) for kind, tool in TOOLS.items()}


def _tool(kind: str, tool: Tool) -> Schema:
    schema = _object(tool.settings)
    named = {KIND: {"type": "string", "enum": [kind], "description": "Which tool."}}
    return {
        **schema,
        "title": tool.title,
        "description": tool.help,
        "properties": {**named, **schema["properties"]},
        "required": [KIND, *schema["required"]],
        "x-makes": tool.makes,
    }


def _object(cls: type) -> Schema:
    settings = list(settings_of(cls))
    schema: Schema = {
        "type": "object",
        "title": cls.__name__,
        "description": inspect.cleandoc(cls.__doc__ or ""),
        "properties": {setting.name: _described(cls, setting) for setting in settings},
        "additionalProperties": False,
    }
    required = [each.name for each in settings if each.required and not filled_by_host(cls, each.name)]
    if cls in METHOD_CONFIGS.values():
        required.insert(0, "kind")
    return {**schema, "required": required} if required else schema


def _described(cls: type, setting: Setting) -> Schema:
    option = setting.option
    schema = _shape(setting)
    schema["description"] = option.help
    if filled := filled_by_host(cls, setting.name):
        schema["description"] += f" {filled}"
    elif not setting.required and not dataclasses.is_dataclass(setting.default):
        schema["default"] = list(setting.default) if isinstance(setting.default, tuple) else setting.default
    if option.file:
        schema["x-file"] = option.file
    if option.unit:
        schema["x-unit"] = option.unit
    if option.advanced:
        schema["x-advanced"] = True
    return schema


def filled_by_host(cls: type, name: str) -> str:
    """What stands for a setting of `cls` that is left out, when the host knows it; else ''."""
    return next((FILLED_BY_HOST[base, name] for base in cls.__mro__ if (base, name) in FILLED_BY_HOST), "")


def _shape(setting: Setting) -> Schema:
    if dataclasses.is_dataclass(setting.type):
        return _object(setting.type)
    if setting.name == "method":
        return {"oneOf": [_object(cls) for cls in METHOD_CONFIGS.values()]}
    if setting.option.item is not None:
        return {"type": "array", "items": _object(setting.option.item)}
    kinds = get_args(setting.type) if get_origin(setting.type) in (Union, types.UnionType) else (setting.type,)
    shapes = [_scalar(kind, setting) for kind in kinds]
    return shapes[0] if len(shapes) == 1 else {"anyOf": shapes}


def _scalar(kind: type, setting: Setting) -> Schema:
    option = setting.option
    schema: Schema = {"type": TYPES[kind]}
    if option.choices:
        schema["enum"] = list(option.choices)
    if kind in (int, float):
        bounds = {"minimum": option.min, "maximum": option.max}
        schema |= {name: kind(bound) for name, bound in bounds.items() if bound is not None}
    return schema


def _request(properties: dict[str, Schema], required: Sequence[str] = ()) -> Schema:
    schema: Schema = {"type": "object", "properties": properties, "additionalProperties": False}
    return {**schema, "required": list(required)} if required else schema


ASK_SCHEMA = _request(
    {"request": {"type": "string", "enum": list(REQUESTS), "description": "What the job is asked for."}}, ["request"]
)
CONTINUE_SCHEMA = _request(
    {
        "max_train_steps": {
            "type": "integer",
            "minimum": 1,
            "nullable": True,
            "description": "Train up to this step; without it: as many as the job was made with.",
        }
    }
)
LIKE_SCHEMA = _request(
    {
        "file": {"type": "string", "description": "The path of a file on the machine of the WebUI."},
        "num_pictures": {
            "type": "integer",
            "minimum": 1,
            "nullable": True,
            "description": "How many pictures there are, for settings that are counted in epochs.",
        },
    },
    ["file"],
)
INSPECT_SCHEMA = _request(
    {"file": {"type": "string", "description": "The path of a model file, or its name as the host lists it."}}, ["file"]
)
KEEP_SCHEMA = _request(
    {"step": {"type": "integer", "minimum": 0, "description": "The step whose result stays."}}, ["step"]
)
EMPTY_SCHEMA = _request({})
ERROR_SCHEMA: Schema = {
    "type": "object",
    "properties": {
        "error": {"type": "string", "description": "The class of the error, such as ConfigError."},
        "message": {"type": "string", "description": "What is wrong, the value, and what is accepted."},
        "hint": {"type": "string", "description": "What to do; may be empty."},
        "problems": {
            "type": "array",
            "description": "Every wrong setting, when the error is a ConfigError.",
            "items": {
                "type": "object",
                "properties": {"path": {"type": "string"}, "text": {"type": "string"}},
                "required": ["path", "text"],
            },
        },
    },
    "required": ["error", "message", "hint", "problems"],
}
