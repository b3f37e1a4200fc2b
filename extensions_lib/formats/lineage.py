"""What a merged checkpoint was made from, as its metadata tells: a tree, from the WebUI's form of a merge recipe.

The WebUI's own merger and ours write it, SuperMerger with other names inside: `sd_merge_recipe` names the models by
hash, `sd_merge_models` says of every model, and of those it was itself merged from, its name and its recipe.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..config.json_text import parse_json

HOST_RECIPE = "sd_merge_recipe"
HOST_MODELS = "sd_merge_models"
# The WebUI's merger, then SuperMerger.
_HASHES = (
    "primary_model_hash", "secondary_model_hash", "tertiary_model_hash", "model_a", "model_b", "model_c"
)  # fmt: skip
_MAX_DEPTH = 8


def lineage(metadata: Mapping[str, str]) -> dict[str, Any] | None:
    """{'formula', 'multiplier', 'models': [{'name', 'sha256', 'made_from': the same again or None}]}, None when the
    file was not merged, or does not say. A model that stands in several places tells its own only in the first.
    """
    recipe, models = _table(metadata.get(HOST_RECIPE)), _table(metadata.get(HOST_MODELS))
    return _node(recipe, models, 0, set()) if recipe else None


def lineage_lines(name: str, tree: Mapping[str, Any] | None) -> list[str]:
    """The tree as lines of text, in ASCII: the file, below it its models, indented, each with what it was made from."""
    lines = [name + _formula(tree)]
    models = tree["models"] if tree else []
    for index, model in enumerate(models):
        is_last = index == len(models) - 1
        first, *rest = lineage_lines(f"{model['name']} [{model['sha256'][:10]}]", model["made_from"])
        lines.append(("`-- " if is_last else "|-- ") + first)
        lines += [("    " if is_last else "|   ") + line for line in rest]
    return lines


def _node(recipe: Mapping[str, Any], models: Mapping[str, Any], depth: int, told: set[str]) -> dict[str, Any]:
    hashes = recipe.get("model_hashes")
    if not isinstance(hashes, list):
        hashes = [recipe[key] for key in _HASHES if recipe.get(key)]
    return {
        "formula": str(recipe.get("interp_method") or recipe.get("mode") or "unknown"),
        "multiplier": recipe.get("multiplier", recipe.get("base_alpha")),
        "models": [_model(str(sha256), models, depth, told) for sha256 in hashes],
    }


def _model(sha256: str, models: Mapping[str, Any], depth: int, told: set[str]) -> dict[str, Any]:
    entry = models.get(sha256)
    entry = entry if isinstance(entry, Mapping) else {}
    recipe = {} if sha256 in told or depth == _MAX_DEPTH else _table(entry.get(HOST_RECIPE))
    told.add(sha256)
    made_from = _node(recipe, models, depth + 1, told) if recipe else None
    return {"name": str(entry.get("name", "unknown")), "sha256": sha256, "made_from": made_from}


def _formula(tree: Mapping[str, Any] | None) -> str:
    if tree is None:
        return ""
    multiplier = tree["multiplier"]
    return f": {tree['formula']}" + ("" if multiplier in (None, "") else f", {multiplier}")


def _table(value: object) -> dict[str, Any]:
    """A table, or the table that a text holds as JSON; empty for anything else."""
    if isinstance(value, str):
        try:
            value = parse_json(value)
        except ValueError:
            return {}
    return dict(value) if isinstance(value, Mapping) else {}
