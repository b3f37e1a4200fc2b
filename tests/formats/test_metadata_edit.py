"""What of a header is private, what is needed, and hashes as sd-scripts makes them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import safetensors.torch
import torch

from extensions_lib.formats.metadata_edit import (
    legacy_hash,
    with_fields,
    with_right_hashes,
    without_keys,
    without_private,
)
from extensions_lib.formats.safetensors_io import data_hash, write_atomic

NEEDED = {
    "ss_base_model_version": "sdxl_base_v1-0",
    "ss_v2": "False",
    "ss_network_module": "networks.lora",
    "ss_network_dim": "32",
    "ss_network_alpha": "16.0",
    "ss_network_args": '{"conv_dim": "8", "conv_alpha": "1"}',
    "ss_output_name": "mycat",
    "ss_learning_rate": "1e-4",
    "ss_optimizer": "bitsandbytes.optim.adamw.AdamW8bit(weight_decay=0.1)",
    "ss_new_sd_model_hash": "ab" * 32,
    "sshs_model_hash": "cd" * 32,
    "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
    "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
    "modelspec.title": "My cat / 2nd try",
    "modelspec.thumbnail": "data:image/jpeg;base64,/9j/4AAQ/x/",
    "ssmd_tags": "cat",
    "train_studio.merge": '{"models": [{"name": "a.safetensors"}]}',
    "format": "pt",
}
PRIVATE = {
    "ss_tag_frequency": '{"10_anna": {"anna": 20}}',
    "ss_dataset_dirs": '{"10_anna": {"n_repeats": 10, "img_count": 20}}',
    "ss_reg_dataset_dirs": "{}",
    "ss_datasets": '[{"image_dir": "D:\\\\photos"}]',
    "ss_bucket_info": '{"buckets": {}}',
    "ss_training_comment": "for anna",
    "ss_session_id": "123456",
    "ss_num_train_images": "20",
    "ss_training_started_at": "1700000000.5",
    "ss_training_finished_at": "1700000001",
    "ss_sd_scripts_commit_hash": "abc",
    "ss_config_file": "/home/anna/job.toml",
    "modelspec.date": "2024-01-01T10:00:00",
    "modelspec.description": "trained in /home/anna/pictures/",
    "train_studio.job": '{"dataset": {"folder": "/home/anna/pictures"}}',
    "train_studio.extract": '{"note": "C:\\\\Users\\\\anna"}',
    "ot_config": '{"workspace_dir": "/home/anna"}',
    "something new": "anna",
}


def test_what_is_private_goes_and_what_is_needed_stays() -> None:
    assert without_private({**PRIVATE, **NEEDED}) == NEEDED


@pytest.mark.parametrize("path", ["/home/anna/models/base.safetensors", r"C:\Users\anna\base.safetensors"])
def test_names_of_files_lose_their_folders(path: str) -> None:
    assert without_private({"ss_sd_model_name": path}) == {"ss_sd_model_name": "base.safetensors"}


def test_keys_by_pattern_and_fields() -> None:
    about = {"ss_a": "1", "ss_b": "2", "note": "x"}
    assert without_keys(about, ["ss_*"]) == {"note": "x"} and without_keys(about, ["ss_a", "note"]) == {"ss_b": "2"}
    assert with_fields(about, {"title": "", "author": ""}) == about
    assert with_fields({"modelspec.title": "old"}, {"title": "new", "tags": ""}) == {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": "new",
    }


@pytest.mark.parametrize("num_tags", [3, 60_000, 140_000])
def test_the_legacy_hash_is_that_of_a_file_with_the_training_metadata_alone(tmp_path: Path, num_tags: int) -> None:
    """The long headers reach beyond the bytes that are hashed, or end among them."""
    tensors = {"b": torch.randn(600, 700), "a": torch.randn(5).half()}
    training = {"ss_tag_frequency": "täg," * num_tags * 2}  # the library writes several in no certain order
    path = write_atomic(tmp_path / "a.safetensors", tensors, {**training, "modelspec.title": "x"})
    alone = safetensors.torch.save(tensors, training)
    expected = hashlib.sha256(alone[0x100000 : 0x100000 + 0x10000]).hexdigest()[:8]
    assert legacy_hash(path, {**training, "modelspec.title": "x"}) == expected


def test_hashes_are_put_right_where_they_are(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(400, 700)}
    path = write_atomic(tmp_path / "a.safetensors", tensors, {})
    wrong = {"sshs_model_hash": "0x12", "modelspec.hash_sha256": "", "note": "x"}
    whole = data_hash(tensors)
    assert with_right_hashes(wrong, path) == {
        "sshs_model_hash": whole,
        "modelspec.hash_sha256": f"0x{whole}",
        "note": "x",
    }
    assert with_right_hashes({"note": "x"}, path) == {"note": "x"}
