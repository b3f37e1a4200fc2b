"""What a model file is, in words: the facts of `formats.inspect.describe_file` as HTML."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from .wording import FAMILY_WORDS, KIND_WORDS, words_of

HASH_WORDS = {
    "in_webui": "Hash in the WebUI",
    "autov2": "AutoV2",
    "autov3": "AutoV3, of the tensors alone",
    "autov1": "AutoV1",
    "sha256": "sha256 of the file",
    "data_sha256": "sha256 of the tensors",
}
PART_WORDS = {"unet": "UNet", "vae": "VAE", "text_encoder": "text encoder"}
MAX_METADATA_SIGNS = 20_000


def file_html(name: str, facts: Mapping[str, Any]) -> str:
    """`facts` of the file called `name`; everything escaped."""
    rows = "".join(f"<dt>{escape(label)}</dt><dd>{escape(value)}</dd>" for label, value in _rows(facts))
    parts = (
        _problems(facts.get("problems") or ()),
        _lineage(facts.get("lineage") or ()),
        _metadata(facts.get("metadata") or {}),
    )
    head = f'<p class="ts-check-summary">{escape(name)}</p><dl class="ts-facts">{rows}</dl>'
    return f'<div class="ts-check">{head}{"".join(parts)}</div>'


def _rows(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Labels and values, most important first; what is not known is left out."""
    yield "Kind", ", ".join(filter(None, (KIND_WORDS.get(facts["kind"], facts["kind"]), facts.get("variant"))))
    family = facts.get("family")
    yield "Model family", FAMILY_WORDS.get(family, family) if family else "not to be told from the file"
    yield "Size", f"{size_words(facts['size_bytes'])}, {facts['num_tensors']} tensors, {_counts(facts['dtypes'])}"
    if facts.get("made_by"):
        yield "Made by", _text(facts["made_by"])
    for name, value in (facts.get("details") or {}).items():
        if value not in (None, "", [], {}):
            yield words_of(name, ""), _text(value)
    for name, value in (facts.get("trained_on") or {}).items():
        yield _metadata_words(name), str(value)
    hashes = facts.get("hashes") or {}
    for name, words in HASH_WORDS.items():
        if name in hashes:
            yield words, str(hashes[name])


def _counts(dtypes: Mapping[str, int]) -> str:
    """'fp16', or 'fp16 (700), fp32 (290)'."""
    words = {"F16": "fp16", "BF16": "bf16", "F32": "fp32"}
    counts = {words.get(name, name): number for name, number in dtypes.items()}
    return ", ".join(counts) if len(counts) == 1 else ", ".join(f"{name} ({n})" for name, n in counts.items())


def size_words(num_bytes: int) -> str:
    """'6.94 GB', '16 MB', '3 kB'."""
    if num_bytes >= 1e9:
        return f"{num_bytes / 1e9:.2f} GB"
    return f"{num_bytes / 1e6:.3g} MB" if num_bytes >= 1e6 else f"{num_bytes / 1e3:.3g} kB"


def _metadata_words(name: str) -> str:
    """'Network dim' for 'ss_network_dim'."""
    return words_of(name.removeprefix("ss_").removeprefix("modelspec."), "")


def _text(value: object) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{name}: {_text(inner)}" for name, inner in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text, value))
    return f"{value:g}" if isinstance(value, float) else PART_WORDS.get(str(value), str(value))


def _problems(texts: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(text)}</li>" for text in texts)
    return f'<div class="ts-warning"><ul>{items}</ul></div>' if items else ""


def _lineage(lines: Sequence[str]) -> str:
    return f"<h3>Made from</h3><pre>{escape(chr(10).join(lines))}</pre>" if lines else ""


def _metadata(metadata: Mapping[str, str]) -> str:
    if not metadata:
        return ""
    text = "\n".join(f"{name}: {value}" for name, value in metadata.items())
    cut = "" if len(text) <= MAX_METADATA_SIGNS else f"\n... {len(text) - MAX_METADATA_SIGNS} signs more"
    number = f"{len(metadata)} entr{'y' if len(metadata) == 1 else 'ies'}"
    return (
        f"<details><summary>Metadata: {number}</summary><pre>{escape(text[:MAX_METADATA_SIGNS] + cut)}</pre></details>"
    )
