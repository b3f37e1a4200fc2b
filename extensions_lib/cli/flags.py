"""Command-line flags made from the declarations of settings."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from ..config.field import Setting, settings_of


def add_setting_flags(parser: argparse.ArgumentParser, cls: type, skip: tuple[str, ...] = ()) -> None:
    """One flag a setting: 'vae_dtype' becomes --vae-dtype. What is not given is not in the namespace."""
    for setting in _settings(cls, skip):
        flag, name = f"--{setting.name.replace('_', '-')}", setting.name
        if setting.type is bool:
            parser.add_argument(
                flag, dest=name, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=_help(setting)
            )
            continue
        parser.add_argument(
            flag,
            dest=name,
            type=setting.type,
            default=argparse.SUPPRESS,
            choices=setting.option.choices or None,
            help=_help(setting),
        )


def given_settings(options: argparse.Namespace, cls: type, skip: tuple[str, ...] = ()) -> dict[str, Any]:
    """The settings that were given on the command line."""
    return {s.name: getattr(options, s.name) for s in _settings(cls, skip) if hasattr(options, s.name)}


def _settings(cls: type, skip: tuple[str, ...]) -> Iterator[Setting]:
    """Those that a flag can say: no lists, no version."""
    for setting in settings_of(cls):
        if setting.name not in skip and setting.option.item is None and setting.name != "schema_version":
            yield setting


def _help(setting: Setting) -> str:
    option = setting.option
    accepted = f" {option.min:.10g} to {option.max:.10g}." if option.min is not None and option.max is not None else ""
    default = "" if setting.required or setting.default == "" else f" Default: {setting.default}."
    return f"{option.help}{accepted}{default}".replace("%", "%%")
