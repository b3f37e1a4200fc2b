"""`option(...)`: the single declaration of a setting, from which forms, flags, schemas and tables are made."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, get_type_hints

REQUIRED = dataclasses.MISSING


@dataclass(frozen=True, kw_only=True)
class Option:
    """What is known of a setting besides its type and default.

    `min` and `max` are inclusive. `choices` lists the accepted values; empty means any. `unit` is 'px', 'steps', ...
    `item` is the dataclass of the entries when the setting is a list of tables; `of_line` makes an entry's table of a
    line of text, `to_line` the line of a table, as far as a line can say it. `file` says that the setting
    names a file of the machine: 'checkpoint', 'vae', 'lora', 'embedding', 'model' (any of these); or a 'folder'.
    """

    help: str
    unit: str = ""
    min: float | None = None
    max: float | None = None
    choices: tuple[str, ...] = ()
    advanced: bool = False
    item: type | None = None
    of_line: Callable[[str], dict[str, Any]] | None = None
    to_line: Callable[[Mapping[str, Any]], str] | None = None
    file: str = ""


def option(
    default: Any = REQUIRED,
    *,
    help: str,
    unit: str = "",
    min: float | None = None,
    max: float | None = None,
    choices: tuple[str, ...] = (),
    advanced: bool = False,
    item: type | None = None,
    of_line: Callable[[str], dict[str, Any]] | None = None,
    to_line: Callable[[Mapping[str, Any]], str] | None = None,
    file: str = "",
    factory: Any = REQUIRED,
) -> Any:
    """Declare a setting as a dataclass field. Without `default` or `factory` it must be given by the user."""
    described = Option(
        help=help, unit=unit, min=min, max=max, choices=choices, advanced=advanced, item=item, of_line=of_line,
        to_line=to_line, file=file,
    )  # fmt: skip
    metadata = {"option": described}
    if factory is not REQUIRED:
        return dataclasses.field(default_factory=factory, metadata=metadata, kw_only=True)
    if default is REQUIRED:
        return dataclasses.field(metadata=metadata, kw_only=True)
    return dataclasses.field(default=default, metadata=metadata, kw_only=True)


@dataclass(frozen=True)
class Setting:
    """A declared setting: its name, Python type, default (`REQUIRED` if none) and description."""

    name: str
    type: Any
    default: Any
    option: Option

    @property
    def required(self) -> bool:
        """True when a user has to give a value."""
        return self.default is REQUIRED


@cache
def settings_of(cls: type) -> tuple[Setting, ...]:
    """The declared settings of a config dataclass, in order."""
    hints = get_type_hints(cls)
    found = []
    for field in dataclasses.fields(cls):
        described = field.metadata.get("option")
        if described is None:
            continue
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        found.append(Setting(name=field.name, type=hints[field.name], default=default, option=described))
    return tuple(found)
