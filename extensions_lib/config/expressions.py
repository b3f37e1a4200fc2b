"""Regular expressions that users write for names of tensors and layers.

Python's `re` tries every way to match, cannot be interrupted, and holds up the whole program meanwhile: `(a+)+$` takes
longer than anybody lives. So repeats of groups and more than a few repeats are refused: three of them take seconds for
the names of a checkpoint, four take minutes.
"""

from __future__ import annotations

import re

MAX_LENGTH = 200
MAX_REPEATS = 3
MAX_GROUPS = 3
# What takes no part in the count: escaped characters, and sets of characters.
_PLAIN = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)
_GROUP = re.compile(r"\((?:\?[^)*+|]*?[:=!>])?")
_REPEAT = re.compile(r"(?:[*+?]|\{\d*,?\d*\})[?+]?")


def checked_expression(text: str) -> re.Pattern[str]:
    """The compiled expression. Raises ValueError saying why it is none, or may take too long."""
    if len(text) > MAX_LENGTH:
        raise ValueError(f"it has {len(text)} characters, accepted are up to {MAX_LENGTH}")
    try:
        compiled = re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"it is no regular expression: {error}") from error
    plain = _PLAIN.sub("x", text)
    num_groups = plain.count("(")
    plain = _GROUP.sub("(", plain)
    if re.search(r"\)\s*[*+?{]", plain):
        raise ValueError("it repeats a group, '(...)' with * + ? or {} behind it, which can take forever")
    for found, most, what in (
        (len(_REPEAT.findall(plain)), MAX_REPEATS, "repeats (* + ? {})"),
        (num_groups, MAX_GROUPS, "groups"),
    ):
        if found > most:
            raise ValueError(f"it has {found} {what}, which can take very long; accepted are up to {most}")
    return compiled
