"""Which program made a file, by what it left in the header: a table of signs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ..config.json_text import parse_json
from .lineage import HOST_RECIPE

_OWN = "train_studio."
_JOB, _VERSION = "job", "version"
_MERGERS = {
    "webui": "the WebUI's checkpoint merger",
    "sd-webui-supermerger": "SuperMerger",
    "merge-model-chattiori": "Chattiori's merger",
}

Header = Mapping[str, str]

# Beside our own marks, in the order in which they are looked for. Metadata, then names of tensors -> whether it was.
_SIGNS: tuple[tuple[str, Callable[[Header, set[str]], bool]], ...] = (
    ("OneTrainer", lambda said, names: bool({"ot_branch", "ot_revision", "ot_config"} & said.keys())),
    ("OneTrainer", lambda said, names: bool({"emp_params", "clip_l_out"} & names)),
    ("LyCORIS in sd-scripts (kohya)", lambda said, names: _is_kohya(said) and "lycoris" in _module(said)),
    ("sd-scripts (kohya)", lambda said, names: _is_kohya(said)),
    ("sd-scripts (kohya)", lambda said, names: names == {"emb_params"}),
    ("ai-toolkit", lambda said, names: _table(said.get("software")).get("name") == "ai-toolkit"),
    ("sd-mecha", lambda said, names: "mecha_recipe" in said),
    ("ComfyUI", lambda said, names: bool({"prompt", "workflow"} & said.keys())),
    ("peft", lambda said, names: any(name.endswith((".lora_A.weight", ".lora_A.default.weight")) for name in names)),
    ("diffusers", lambda said, names: any(name.endswith(".lora.down.weight") for name in names)),
)


def made_by(names: Iterable[str], metadata: Mapping[str, str]) -> list[str]:
    """The programs that a file bears marks of, the last one first; empty when it says nothing.

    `names` are those of its tensors. Ours are 'Train Studio 0.9 (merge)' and the like.
    """
    found = _made_here(metadata)
    merger = _table(metadata.get(HOST_RECIPE)).get("type")
    if merger and merger != "train_studio":
        found.append(_MERGERS.get(merger, f"a merger that calls itself {merger!r}"))
    known = set(names)
    found += [program for program, is_sign in _SIGNS if is_sign(metadata, known)]
    return list(dict.fromkeys(found[:1] + [text for text in found[1:] if not _is_less_precise(text, found)]))


def _made_here(metadata: Header) -> list[str]:
    """Our tools by their recipes, then a training: by its job, or by the version where no tool wrote that."""
    own = {key.removeprefix(_OWN): text for key, text in metadata.items() if key.startswith(_OWN)}
    recipes = {kind: _table(text).get("version") for kind, text in own.items() if kind not in (_JOB, _VERSION)}
    found = [f"Train Studio {version} ({kind})" for kind, version in recipes.items() if version]
    if _JOB in own or (_VERSION in own and not found):
        found.append(f"Train Studio {own.get(_VERSION, '')} (training)".replace("  ", " "))
    return found


def _is_less_precise(text: str, found: list[str]) -> bool:
    """sd-scripts beside 'LyCORIS in sd-scripts'; names in peft's way say little where a program names itself."""
    longer = [each for each in found if each != text and each.endswith(text)]
    return bool(longer) or text in ("peft", "diffusers")


def _is_kohya(said: Header) -> bool:
    """Our own trainings and OneTrainer's write some of kohya's keys, too."""
    if f"{_OWN}{_VERSION}" in said or "ot_revision" in said:
        return False
    return "ss_sd_scripts_commit_hash" in said or _module(said).startswith(("networks.", "lycoris."))


def _module(said: Header) -> str:
    return said.get("ss_network_module", "")


def _table(text: str | None) -> dict[str, Any]:
    try:
        content = parse_json(text) if text else {}
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
