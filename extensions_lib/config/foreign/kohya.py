"""kohya's sd-scripts: the `ss_*` metadata of its files and its config files (TOML), as one set of facts.

Names are those of its command line (`library/train_util.py`, `train_network.py`, `library/config_util.py`); what a
config file leaves out has the command line's default. Facts restated, nothing copied.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..methods import METHOD_CONFIGS
from .kohya_rules import RULES
from .plain import arguments, plain
from .recipe import Facts, Recipe, Remark, translate

METADATA = "a file trained with kohya's sd-scripts"
CONFIG = "a config file of kohya's sd-scripts"

# Names of the metadata and of dataset tables, and the command line's own.
_RENAMED = {
    "batch_size_per_device": "train_batch_size",
    "batch_size": "train_batch_size",
    "debiased_estimation": "debiased_estimation_loss",
    "num_epochs": "max_train_epochs",
    "dataset_repeats": "num_repeats",
}
_METADATA_ONLY = re.compile(
    r"^(session_id|training_(started|finished)_at|output_name|epoch|num_(validation|reg)_images|num_batches_per_epoch"
    r"|base_model_version|sd_scripts_commit_hash|(reg_)?dataset_dirs|tag_frequency|bucket_info|new_(sd_model|vae)_hash"
    r"|(sd_model|vae)_(hash|name)|cache_latents|lowram|full_fp16|validation_.*|max_validation_steps|validate_every_.*"
    r"|v2|network_weights_.*)$"
)
# What the command line does when a config file is silent, where it differs from a value that says nothing.
_DEFAULTS = {
    "learning_rate": 2e-6, "lr_scheduler": "constant", "lr_warmup_steps": 0, "max_train_steps": 1600,
    "train_batch_size": 1, "gradient_accumulation_steps": 1, "optimizer_type": "AdamW", "max_grad_norm": 1.0,
    "gradient_checkpointing": False, "min_snr_gamma": None, "debiased_estimation_loss": False,
    "loss_type": "l2", "noise_offset": None, "multires_noise_iterations": None, "clip_skip": None,
}  # fmt: skip
_DATA_DEFAULTS = {
    "enable_bucket": False, "bucket_no_upscale": False, "shuffle_caption": False, "keep_tokens": 0, "flip_aug": False,
    "caption_dropout_rate": 0.0, "caption_tag_dropout_rate": 0.0,
}  # fmt: skip
_NETWORK_DEFAULTS = {"network_dim": 4, "network_alpha": 1.0, "network_train_unet_only": False}
_CONFIG_SIGNS = (
    "datasets", "network_module", "train_data_dir", "pretrained_model_name_or_path", "optimizer_type",
    "max_train_steps", "max_train_epochs", "train_batch_size",
)  # fmt: skip
_SUBSET_KEYS_THAT_MAY_DIFFER = ("image_dir", "img_count", "is_reg", "metadata_file")


def is_kohya_metadata(metadata: Mapping[str, str]) -> bool:
    """Whether the metadata of a file say how sd-scripts trained it."""
    return any(name in metadata for name in ("ss_network_module", "ss_learning_rate", "ss_network_dim"))


def is_kohya_config(table: Mapping[str, Any]) -> bool:
    """Whether a table is a config file or a dataset config of sd-scripts."""
    return any(name in {**table, **_flat(table)} for name in _CONFIG_SIGNS)


def from_kohya_metadata(metadata: Mapping[str, str], seen: Facts, num_pictures: int | None = None) -> Recipe:
    """The recipe in a file's `ss_*` metadata; `seen` are facts that its tensors show, for what the metadata leave open.

    `num_pictures` of the user's own, for what the file counts in epochs.
    """
    told = {name[3:]: value for name, value in metadata.items() if name.startswith("ss_")}
    facts = {_RENAMED.get(n, n): plain(v) for n, v in told.items() if not _METADATA_ONLY.match(n)}
    facts |= dict(_optimizer(facts.pop("optimizer", None)))
    if facts.get("max_train_steps"):
        facts.pop("max_train_epochs", None)
    for name in ("network_dim", "network_alpha"):
        if isinstance(facts.get(name), str):  # 'Dynamic', after a file was made smaller
            facts[name] = None
    facts["network_args"] = arguments(facts.get("network_args"))
    facts |= {name: value for name, value in seen.items() if not facts.get(name)}
    facts, remarks = _with_datasets(facts, facts.pop("datasets", None) or ())
    recipe = _recipe(METADATA, facts, num_pictures)
    base, base_hash = (str(plain(told.get(name)) or "") for name in ("sd_model_name", "new_sd_model_hash"))
    return replace(recipe, unmapped=(*recipe.unmapped, *remarks), base_model=base, base_hash=base_hash)


def from_kohya_config(table: Mapping[str, Any], num_pictures: int | None = None) -> Recipe:
    """The recipe in a config file, a dataset config, or both in one. Raises ConfigError when it trains nothing."""
    facts = {_RENAMED.get(name, name): value for name, value in _flat(table).items()}
    if not table.get("datasets") and facts.get("dataset_config"):
        facts["missing_dataset_config"] = facts["dataset_config"]
    datasets = [{**dict(table.get("general", {})), **dataset} for dataset in table.get("datasets", ())]
    for name in ("network_args", "optimizer_args", "lr_scheduler_args"):
        if name in facts:
            facts[name] = arguments(facts[name])
    if set(facts) - set(_DATA_DEFAULTS) - {"resolution"}:
        network = _NETWORK_DEFAULTS if facts.get("network_module") else {}
        facts = {**_DEFAULTS, **network, **facts}
    if facts.get("max_train_epochs"):
        facts.pop("max_train_steps", None)
    facts, remarks = _with_datasets({**_DATA_DEFAULTS, **facts}, datasets)
    recipe = _recipe(CONFIG, facts, num_pictures)
    base = str(facts.get("pretrained_model_name_or_path") or "")
    return replace(recipe, unmapped=(*recipe.unmapped, *remarks), base_model=base)


def _recipe(source: str, facts: Facts, num_pictures: int | None) -> Recipe:
    if num_pictures:
        facts = {**facts, "num_pictures": num_pictures}
    return translate(source, facts, RULES, _kind(facts))


def _kind(facts: Facts) -> str:
    """A network is a LoRA; without one, new vectors are an embedding and anything else changes the checkpoint."""
    if facts.get("network_module") or facts.get("network_dim"):
        return "lora"
    if facts.get("token_string") or facts.get("num_vectors_per_token"):
        return "textual_inversion"
    trains = facts.get("pretrained_model_name_or_path") and "dreambooth" in METHOD_CONFIGS
    return "dreambooth" if trains else "lora"


def _flat(table: Mapping[str, Any]) -> dict[str, Any]:
    """A config file's settings: its sections are only for reading; dataset tables stand apart."""
    flat: dict[str, Any] = {}
    for name, value in table.items():
        if name in ("datasets", "general"):
            continue
        flat |= value if isinstance(value, Mapping) else {name: value}
    return flat


def _optimizer(text: Any) -> Iterator[tuple[str, Any]]:
    """'torch.optim.adamw.AdamW(weight_decay=0.1,betas=(0.9, 0.99))' as type and arguments."""
    if text:
        name, _, inner = str(text).partition("(")
        yield "optimizer_type", name
        yield "optimizer_args", arguments(inner.removesuffix(")"))


def _with_datasets(
    facts: dict[str, Any], datasets: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, Any], tuple[Remark, ...]]:
    """The facts with those of the first dataset and its first folder, and a remark for every other that differs."""
    remarks = []
    whole: list[dict[str, Any]] = []
    for dataset in datasets:
        upper = {_RENAMED.get(n, n): v for n, v in dataset.items() if n != "subsets" and not _METADATA_ONLY.match(n)}
        for subset in dataset.get("subsets") or ({},):
            whole.append({**upper, **subset})
    trained = [each for each in whole if not each.get("is_reg")]
    regular = [each for each in whole if each.get("is_reg")]
    if regular:
        facts = {**facts, "reg_data_dir": regular[0].get("image_dir") or "the pictures of its class"}
    if not trained:
        return facts, ()
    for number, other in enumerate(trained[1:], start=2):
        differing = {n: v for n, v in other.items() if v != trained[0].get(n) and n not in _SUBSET_KEYS_THAT_MAY_DIFFER}
        value = differing or other.get("image_dir", "")
        remarks.append(Remark(f"folder {number}", value, "one folder is trained, all of it with the same settings"))
    first = {n: v for n, v in trained[0].items() if n not in ("img_count", "is_dreambooth", "is_reg")}
    count = {} if "num_train_images" not in first else {"num_train_images": facts.get("num_train_images")}
    return {**facts, **first, **count}, tuple(remarks)
