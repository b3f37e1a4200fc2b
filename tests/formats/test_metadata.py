"""The header of result files, by the rules the WebUI reads it with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from extensions_lib import __version__
from extensions_lib.formats.metadata import ArtefactInfo, embedding_metadata, lora_metadata
from extensions_lib.formats.safetensors_io import read_header, write_atomic

HASH = "ab" * 32


def full_info(**changes: object) -> ArtefactInfo:
    facts = {
        "output_name": "my cat",
        "title": "My cat",
        "description": "A cat",
        "trigger_word": "mycat",
        "base_model_name": "base.safetensors",
        "base_model_sha256": "cd" * 32,
        "base_model_autov1": "12345678",
        "resolution_px": (512, 768),
        "rank": 16,
        "alpha": 8.0,
        "conv_rank": 4,
        "conv_alpha": 1.0,
        "num_vectors": 2,
        "steps": 1200,
        "learning_rate": 1e-4,
        "optimizer": "adamw",
        "seed": 0,
        "train_batch_size": 2,
        "gradient_accumulation_steps": 3,
        "gradient_checkpointing": False,
        "clip_skip": 2,
        "num_images": 20,
        "tag_frequency": {"10_cat": {"black cat": 3}},
        "bucket_info": {"buckets": {"0": {"resolution": [512, 768], "count": 20}}},
        "dataset_dirs": {"10_cat": {"n_repeats": 10, "img_count": 20}},
        "noise_offset": 0.0,
        "started_at": 1700000000.5,
        "finished_at": 1700000060.0,
        "job_json": '{"name": "my cat"}',
    }
    return ArtefactInfo(**{**facts, **changes})


def test_a_lora_header() -> None:
    metadata = lora_metadata(full_info(), HASH)
    assert metadata == {
        "ss_output_name": "my cat",
        "ss_base_model_version": "sd_v1",
        "ss_v2": "False",
        "ss_training_started_at": "1700000000.5",
        "ss_training_finished_at": "1700000060.0",
        "ss_training_comment": "A cat",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "16",
        "ss_network_alpha": "8.0",
        "ss_network_args": '{"conv_dim": "4", "conv_alpha": "1.0"}',
        "ss_learning_rate": "0.0001",
        "ss_optimizer": "adamw",
        "ss_steps": "1200",
        "ss_gradient_accumulation_steps": "3",
        "ss_gradient_checkpointing": "False",
        "ss_seed": "0",
        "ss_num_train_images": "20",
        "ss_resolution": "(512, 768)",
        "ss_batch_size_per_device": "2",
        "ss_total_batch_size": "6",
        "ss_bucket_info": '{"buckets": {"0": {"resolution": [512, 768], "count": 20}}}',
        "ss_tag_frequency": '{"10_cat": {"black cat": 3}}',
        "ss_dataset_dirs": '{"10_cat": {"n_repeats": 10, "img_count": 20}}',
        "ss_noise_offset": "0.0",
        "ss_clip_skip": "2",
        "ss_sd_model_name": "base.safetensors",
        "ss_sd_model_hash": "12345678",
        "ss_new_sd_model_hash": "cd" * 32,
        "sshs_model_hash": HASH,
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": "My cat",
        "modelspec.resolution": "512x768",
        "modelspec.description": "A cat",
        "modelspec.date": "2023-11-14T22:14:20+00:00",
        "modelspec.hash_sha256": "0x" + HASH,
        "modelspec.trigger_phrase": "mycat",
        "modelspec.prediction_type": "epsilon",
        "modelspec.encoder_layer": "2",
        "train_studio.version": __version__,
        "train_studio.job": '{"name": "my cat"}',
    }


def test_an_embedding_header() -> None:
    metadata = embedding_metadata(full_info(), HASH)
    assert {key: value for key, value in metadata.items() if not key.startswith("modelspec.")} == {
        "name": "my cat",
        "step": "1200",
        "num_vectors": "2",
        "sd_checkpoint": "cdcdcdcdcd",
        "sd_checkpoint_name": "base.safetensors",
        "train_studio.version": __version__,
        "train_studio.job": '{"name": "my cat"}',
    }
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1/textual-inversion"
    assert metadata["modelspec.hash_sha256"] == "0x" + HASH


def test_a_negative_embedding_says_so() -> None:
    """ModelSpec has the key from 1.0.1 on."""
    metadata = embedding_metadata(full_info(is_negative_embedding=True), HASH)
    assert metadata["modelspec.sai_model_spec"] == "1.0.1"
    assert metadata["modelspec.is_negative_embedding"] == "true"
    assert "modelspec.is_negative_embedding" not in embedding_metadata(full_info(), HASH)


def test_what_is_unknown_is_left_out() -> None:
    metadata = lora_metadata(ArtefactInfo(output_name="a"), HASH)
    assert "ss_seed" not in metadata and "ss_network_args" not in metadata and "modelspec.date" not in metadata
    assert metadata["modelspec.title"] == "a"
    assert set(embedding_metadata(ArtefactInfo(output_name="a"), HASH)) >= {"name", "modelspec.title"}


@pytest.mark.parametrize(
    ("family", "prediction_type", "base_version", "is_v2", "architecture"),
    [
        ("sd1", "epsilon", "sd_v1", "False", "stable-diffusion-v1/lora"),
        ("sd2", "epsilon", "sd_v2", "True", "stable-diffusion-v2-512/lora"),
        ("sd2", "v_prediction", "sd_v2_v", "True", "stable-diffusion-v2-768-v/lora"),
        ("sdxl", "epsilon", "sdxl_base_v1-0", "False", "stable-diffusion-xl-v1-base/lora"),
    ],
)
def test_families(family: str, prediction_type: str, base_version: str, is_v2: str, architecture: str) -> None:
    """The card is shown only with its own kind of model, decided by these keys."""
    metadata = lora_metadata(full_info(family=family, prediction_type=prediction_type), HASH)
    assert metadata["ss_base_model_version"] == base_version
    assert metadata["ss_v2"] == is_v2
    assert metadata["modelspec.architecture"] == architecture
    assert metadata["modelspec.prediction_type"] == ("v" if prediction_type == "v_prediction" else "epsilon")


def test_an_unknown_family() -> None:
    with pytest.raises(ValueError, match="family is 'sd9'; accepted: sd1, sd2, sdxl"):
        lora_metadata(full_info(family="sd9"), HASH)


def test_captions_and_folders_can_be_kept_private() -> None:
    metadata = lora_metadata(full_info(job_json=None), HASH, include_dataset=False)
    assert "ss_tag_frequency" not in metadata and "ss_dataset_dirs" not in metadata
    assert not any("10_cat" in value or "black cat" in value for value in metadata.values())


def test_an_alias_that_would_break_the_prompt() -> None:
    assert lora_metadata(full_info(output_name="a:b<c>,d"), HASH)["ss_output_name"] == "a_b_c__d"


def test_it_can_be_written(tmp_path: Path) -> None:
    metadata = lora_metadata(full_info(), HASH)
    path = write_atomic(tmp_path / "a.safetensors", {"w": torch.zeros(1)}, metadata)
    assert read_header(path)[1] == metadata
    for key in ("ss_tag_frequency", "ss_bucket_info", "ss_dataset_dirs", "ss_network_args"):
        assert isinstance(json.loads(metadata[key]), dict)
