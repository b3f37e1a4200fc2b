"""The files beside a result that the WebUI's Extra Networks tab reads: `<stem>.json` and one preview picture.

What a user wrote or chose there is never changed.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from ..config.json_text import parse_json
from .atomic import write_bytes_atomic

_PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".avif", ".jxl")


@dataclass(frozen=True)
class _Card:
    """Where the WebUI itself puts the picture of a kind, and whether its card has fields for the prompt."""

    preview_suffix: str
    has_prompt_fields: bool = False


# An embedding's picture must be called .preview.png: the WebUI opens a plain .png there as a card with vectors in it.
_CARDS = {
    "lora": _Card(".png", has_prompt_fields=True),
    "embedding": _Card(".preview.png"),
    "checkpoint": _Card(".png"),
    "hypernetwork": _Card(".preview.png"),
}


def write_sidecars(
    artefact: Path,
    kind: str,
    *,
    activation_text: str = "",
    description: str = "",
    notes: str = "",
    sd_version: str = "",
    preferred_weight: float = 0.0,
    negative_text: str = "",
    preview_png: bytes | None = None,
    own: Collection[Path] = (),
) -> list[Path]:
    """Write or complete the sidecars of `artefact` and return those written.

    `kind` is one of `config.artefacts.ARTEFACTS`; only a LoRA's card takes more than `description` and `notes`.
    `sd_version` is 'SD1', 'SD2', 'SDXL' or 'Unknown'; `preferred_weight` 0 leaves it to the WebUI. Empty fields are
    left out, fields already in the `.json` stay as they are, and so does any preview picture but one of `own`, those
    the caller wrote before. Raises ValueError for another kind; OutputError, DiskFullError as `write_bytes_atomic`.
    """
    card = _CARDS.get(kind)
    if card is None:
        raise ValueError(f"kind is {kind!r}; accepted: {', '.join(_CARDS)}")
    fields: dict[str, object] = {"description": description, "notes": notes}
    if card.has_prompt_fields:
        fields |= {
            "sd version": sd_version,
            "activation text": activation_text,
            "preferred weight": preferred_weight,
            "negative text": negative_text,
        }
    written = _complete_json(artefact.with_suffix(".json"), {key: value for key, value in fields.items() if value})
    picture = artefact.with_suffix(card.preview_suffix)
    if preview_png is not None and (picture in own or not has_preview(artefact)):
        written.append(write_bytes_atomic(picture, preview_png, overwrite=picture in own))
    return written


def has_preview(artefact: Path) -> bool:
    """Whether the WebUI finds a picture for `artefact`: '<stem>.<ending>' or '<stem>.preview.<ending>'."""
    names = (artefact.with_suffix(middle + suffix) for middle in ("", ".preview") for suffix in _PICTURE_SUFFIXES)
    return any(name.exists() for name in names)


def _complete_json(path: Path, fields: dict[str, object]) -> list[Path]:
    """Add the fields that are missing; a file that is not a JSON object is the user's, and stays."""
    existing = _read_object(path)
    if existing is None:
        return []
    missing = {key: value for key, value in fields.items() if key not in existing}
    if not missing:
        return []
    text = json.dumps(existing | missing, ensure_ascii=False, indent=4)
    return [write_bytes_atomic(path, text.encode("utf-8", "replace"), overwrite=path.exists())]


def _read_object(path: Path) -> dict[str, object] | None:
    if not path.exists():
        return {}
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
