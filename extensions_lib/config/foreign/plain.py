"""Values as other programs write them: texts of Python and TOML values, texts with several numbers."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

_WORDS = {"none": None, "null": None, "": None, "true": True, "false": False}
_READERS: Mapping[str, tuple[Callable[[str], Any], ...]] = {
    "(": (ast.literal_eval,), "[": (json.loads, ast.literal_eval), "{": (json.loads, ast.literal_eval),
}  # fmt: skip


def plain(value: Any) -> Any:
    """The value that a metadata text stands for: 'None', 'True', '1e-4', '(512, 512)', '{...}'; else the text."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    for read in _READERS.get(text[0], (int, float)):
        try:
            return read(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    return text


def number(value: Any) -> float:
    """A number or its text. Raises ValueError."""
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return float(value)


def whole(value: Any) -> int:
    """A whole number, its text, or a number without a fraction. Raises ValueError."""
    found = number(value)
    if not found.is_integer():
        raise ValueError("must be a whole number")
    return int(found)


def switch(value: Any) -> bool:
    """True or false, 1 or 0, or their texts. Raises ValueError."""
    found = plain(value)
    if found in (True, False):
        return bool(found)
    raise ValueError("must be true or false")


def text(value: Any) -> str:
    """A text as it is."""
    return str(value)


def numbers(value: Any) -> tuple[float, ...]:
    """All numbers of '512,768', '(0.9, 0.99)', 512 or [512, 768]. Raises ValueError when there is none."""
    items = value if isinstance(value, (list, tuple)) else re.split(r"[,x ]+", str(value).strip("()[] "))
    found = tuple(number(item) for item in items if str(item).strip())
    if not found:
        raise ValueError("must be a number, or several")
    return found


def arguments(value: Any) -> dict[str, Any]:
    """Extra arguments: {'a': '1'}, ['a=1', 'b=(0.9, 0.99)'] or 'a=1 b=2,c=3' as values by name."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, str):
        value = re.findall(r"\w+\s*=\s*(?:\([^)]*\)|\[[^]]*\]|[^\s,]+)", value)
    pairs = (str(item).partition("=") for item in value or ())
    return {name.strip(): plain(content) for name, sign, content in pairs if sign}
