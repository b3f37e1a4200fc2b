"""JSON that others wrote: all that is wrong with it is one kind of error."""

from __future__ import annotations

import json
from typing import Any


def parse_json(text: str) -> Any:
    """The value that `text` holds. Raises ValueError for anything but JSON, and for what is nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
