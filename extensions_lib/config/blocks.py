"""Values for some layers: 'mid_block=32; attn2=8', read from left to right."""

from __future__ import annotations

import re

from .expressions import checked_expression


def parse_block_values(text: str, *, minimum: float, whole: bool) -> tuple[tuple[str, float], ...]:
    """(expression, value) pairs of 'expression=value; expression=value'; empty text gives none.

    An expression is a regular expression to be found in a layer's name. `whole` accepts whole numbers only. Raises
    ValueError with the text of what is wrong and what is accepted.
    """
    return tuple(_pair(entry.strip(), minimum, whole) for entry in text.split(";") if entry.strip())


def value_for(path: str, pairs: tuple[tuple[str, float], ...], default: float) -> float:
    """The value of the first expression that is found in `path`, else `default`."""
    return next((value for expression, value in pairs if re.search(expression, path)), default)


def _pair(entry: str, minimum: float, whole: bool) -> tuple[str, float]:
    accepted = f"accepted is 'expression=number', such as 'mid_block={32 if whole else 0.5}', with ; between several"
    expression, sign, number = (part.strip() for part in entry.rpartition("="))
    if not sign or not expression:
        raise ValueError(f"holds {entry!r}; {accepted}")
    try:
        checked_expression(expression)
        value = float(int(number) if whole else float(number))
    except ValueError as error:
        raise ValueError(f"holds {entry!r} ({error}); {accepted}") from error
    if not minimum <= value < float("inf"):
        raise ValueError(f"holds {entry!r}; the number must be at least {minimum:g}")
    return expression, value
