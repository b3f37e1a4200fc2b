"""Changing what a header says while the tensors stay: set, remove, strip what is private, put hashes right."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PureWindowsPath

from .hashes import data_section_sha256
from .metadata import HASH_KEYS
from .safetensors_io import encode_header, in_file_order, read_header

# Names of ModelSpec's fields that a user writes, without its prefix.
WRITTEN_FIELDS = ("title", "author", "description", "tags", "license", "trigger_phrase")
MODELSPEC = "modelspec."
_SPEC_VERSION = {f"{MODELSPEC}sai_model_spec": "1.0.0"}

# Of sd-scripts' keys: what the WebUI and model sites act on. Numbers and flags stay as well, but for those below.
_NEEDED = (
    "ss_output_name", "ss_base_model_version", "ss_network_module", "ss_network_args", "ss_optimizer",
    "ss_lr_scheduler", "ss_mixed_precision", "ss_loss_type", "ss_resolution", "ss_sd_model_hash",
    "ss_new_sd_model_hash", "ss_vae_hash", "ss_new_vae_hash",
)  # fmt: skip
_PRIVATE_NUMBERS = (
    "ss_session_id", "ss_training_started_at", "ss_training_finished_at", "ss_num_train_images", "ss_num_reg_images",
)  # fmt: skip
_FILE_NAMES = ("ss_sd_model_name", "ss_vae_name", "sd_checkpoint_name")  # without the folders before them
# Of the others. Recipes of merges name models, not folders.
_KEPT = re.compile(
    rf"^({re.escape(MODELSPEC)}(?!date$).+|ssmd_.+|sshs_.+|sd_merge_(recipe|models)|train_studio\.(?!job$).+|"
    r"format|name|step|num_vectors|sd_checkpoint|ot_branch|ot_revision)$"
)
_NUMBER = re.compile(r"[-+]?\d+(\.\d*)?(e[-+]?\d+)?|True|False|None", re.IGNORECASE)
_FOLDER = re.compile(r"""(?<![A-Za-z])[A-Za-z]:[\\/]|\\\\\w|(^|[\s"'=:(\[])(~|\.\.?)?/[\w.~-]+/""")

_LEGACY_BEGIN, _LEGACY_BYTES = 0x100000, 0x10000


def without_private(metadata: Mapping[str, str]) -> dict[str, str]:
    """What may be published: no folders, times, sessions, comments, tags, counts of pictures, and nothing unknown.

    What the WebUI and model sites act on stays: family, network, hashes, ModelSpec but for the date, merge recipes.
    """
    kept = {}
    for key, text in metadata.items():
        if key in _FILE_NAMES:
            kept[key] = PureWindowsPath(text).name
        elif _is_public(key, text):
            kept[key] = text
    return kept


def _is_public(key: str, text: str) -> bool:
    if key.startswith("ss_") and key not in _NEEDED:
        return key not in _PRIVATE_NUMBERS and _NUMBER.fullmatch(text) is not None
    return (key in _NEEDED or _KEPT.match(key) is not None) and not _names_folder(text)


def _names_folder(text: str) -> bool:
    return not text.startswith("data:image/") and _FOLDER.search(text) is not None


def without_keys(metadata: Mapping[str, str], patterns: Sequence[str]) -> dict[str, str]:
    """Without the keys that match one of `patterns`, in which `*` stands for any characters."""
    return {key: text for key, text in metadata.items() if not any(fnmatchcase(key, each) for each in patterns)}


def with_fields(metadata: Mapping[str, str], fields: Mapping[str, str]) -> dict[str, str]:
    """With ModelSpec's `fields` (names of `WRITTEN_FIELDS`) that are not empty."""
    given = {f"{MODELSPEC}{name}": text for name, text in fields.items() if text}
    return {**(_SPEC_VERSION if given else {}), **metadata, **given}


def with_right_hashes(metadata: Mapping[str, str], path: Path) -> dict[str, str]:
    """The hashes that a header repeats, where it has them, as they are for the tensors of `path`.

    Raises as `read_header`; OSError when the file cannot be read.
    """
    found = [key for key in HASH_KEYS if key in metadata]
    if not found:
        return dict(metadata)
    whole = data_section_sha256(path)
    right = {"sshs_model_hash": whole, "modelspec.hash_sha256": f"0x{whole}"}
    if "sshs_legacy_hash" in found:
        right["sshs_legacy_hash"] = legacy_hash(path, metadata)
    return {**metadata, **{key: right[key] for key in found}}


def legacy_hash(path: Path, metadata: Mapping[str, str]) -> str:
    """sd-scripts' `sshs_legacy_hash`: AutoV1 (8 digits) of the file as it would be with the `ss_` metadata alone."""
    training = {key: text for key, text in metadata.items() if key.startswith("ss_")}
    header = encode_header(in_file_order(read_header(path)[0]), training)
    wanted = header[_LEGACY_BEGIN : _LEGACY_BEGIN + _LEGACY_BYTES]
    with path.open("rb") as file:
        begin = 8 + int.from_bytes(file.read(8), "little")
        file.seek(begin + max(0, _LEGACY_BEGIN - len(header)))
        wanted += file.read(_LEGACY_BYTES - len(wanted))
    return hashlib.sha256(wanted).hexdigest()[:8]


def copy_data(source: Path, write: Callable[[bytes], object]) -> str:
    """Give the data section of a .safetensors file to `write`, a block at a time; returns its sha256."""
    digest = hashlib.sha256()
    with source.open("rb") as file:
        file.seek(8 + int.from_bytes(file.read(8), "little"))
        while block := file.read(1 << 20):
            digest.update(block)
            write(block)
    return digest.hexdigest()
