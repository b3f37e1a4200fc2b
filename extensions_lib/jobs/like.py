"""Train like this file: the settings that a result, a job file or another trainer's config speaks of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

from ..config.codec import read_table
from ..config.foreign.read import recipe_of_metadata, recipe_of_table
from ..config.foreign.recipe import Recipe
from ..errors import ConfigError, Problem

CONFIG_SUFFIXES = (".toml", ".json")
MODEL_SUFFIXES = (".safetensors", ".pt", ".bin", ".ckpt", ".png")
ALGORITHMS = {"LoHa": "loha", "LoKr": "lokr", "full difference": "full"}


def recipe_of_file(path: Path, *, num_pictures: int | None = None) -> Recipe:
    """What `path` says of a training: a partial job, and what of it does not map.

    A LoRA or embedding (.safetensors, .pt, .bin, .png), a job file, a config of sd-scripts (.toml) or of OneTrainer
    (.json). `num_pictures` turns epochs into samples. Raises ConfigError when it says nothing we know, ModelError for a
    file that is missing or damaged.
    """
    if path.suffix.lower() in CONFIG_SUFFIXES:
        return recipe_of_table(_with_dataset_config(read_table(path), path.parent), num_pictures)
    if path.suffix.lower() not in MODEL_SUFFIXES:
        accepted = ", ".join((*CONFIG_SUFFIXES, *MODEL_SUFFIXES))
        raise ConfigError([Problem("file", f"is called {path.name!r}, accepted endings are {accepted}")])
    from ..formats.inspect import describe_file

    told = describe_file(path, with_hashes=False)
    metadata: Any = told["metadata"]
    return recipe_of_metadata(metadata, _seen(told), str(told["kind"]), num_pictures)


def _with_dataset_config(table: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
    """A config of sd-scripts with the dataset config it names, when that lies in the same folder."""
    named = [part["dataset_config"] for part in (table, *table.values())
             if isinstance(part, Mapping) and isinstance(part.get("dataset_config"), str)]  # fmt: skip
    beside = folder / PureWindowsPath(named[0]).name if named else None
    if beside is None or beside.suffix.lower() not in CONFIG_SUFFIXES or not beside.is_file():
        return table
    dataset = read_table(beside)
    return {**table, **{name: dataset[name] for name in ("general", "datasets") if name in dataset}}


def count_pictures(files: Iterable[Path]) -> int | None:
    """How many of `files` are pictures; None when none is."""
    from ..data.images import EXTENSIONS

    return sum(path.suffix.lower() in EXTENSIONS for path in files) or None


def _seen(told: Mapping[str, Any]) -> dict[str, Any]:
    """What the tensors of a file show, by the names that `config.foreign` knows."""
    details = told["details"]
    if told["kind"] == "embedding":
        count = str(told["variant"]).partition(" ")[0]
        return {"vectors": count if count.isdigit() else None, "step": details.get("step"), "base": details.get("base")}
    if told["kind"] != "lora":
        return dict(details) if told["kind"] == "hypernetwork" else {}
    found = [word for name, word in ALGORITHMS.items() if name in told["variant"]]
    arguments = {"algo": found[0]} if found else {}
    arguments |= {"dora_wd": True, "wd_on_out": False} if "DoRA" in told["variant"] else {}
    seen = {
        "network_module": "lycoris.kohya" if arguments else "networks.lora",
        "network_args": arguments,
        "has_text_encoder": details["num_text_encoder_modules"] > 0,
    }
    for name, values in (("network_dim", details["ranks"]), ("network_alpha", details.get("alphas"))):
        if values:
            seen[name] = max(values)
    return seen
