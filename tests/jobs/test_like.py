from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from extensions_lib.config.codec import dump, load
from extensions_lib.config.job_file import job_toml
from extensions_lib.errors import ConfigError, FormatError, ModelError
from extensions_lib.formats.embedding import embedding_tensors, pt_embedding_bytes
from extensions_lib.formats.hypernetwork import HypernetworkDesign, hypernetwork_bytes
from extensions_lib.formats.metadata import ArtefactInfo, lora_metadata
from extensions_lib.formats.safetensors_io import write_atomic
from extensions_lib.jobs.like import recipe_of_file

LAYER = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
TEXT_LAYER = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"


def lora(path: Path, metadata: Mapping[str, str], *, rank: int = 6, layers: tuple[str, ...] = (LAYER,)) -> Path:
    tensors = {}
    for layer in layers:
        tensors |= {
            f"{layer}.lora_down.weight": torch.ones(rank, 768),
            f"{layer}.lora_up.weight": torch.ones(320, rank),
            f"{layer}.alpha": torch.tensor(3.0),
        }
    return write_atomic(path, tensors, metadata)


JOB = {
    "name": "cat",
    "base_model": "/models/sd15.safetensors",
    "dataset": {"folder": "/pics", "resolution_px": 448},
    "method": {"kind": "lora", "rank": 6, "alpha": 3.0},
    "training": {"num_samples": 900, "train_batch_size": 3},
    "output": {"folder": "/out", "overwrite": True},
}


def test_our_own_result_gives_its_job_without_what_belongs_to_that_run(tmp_path: Path) -> None:
    content = json.dumps(dump(load(JOB)))
    recipe = recipe_of_file(lora(tmp_path / "cat.safetensors", {"train_studio.job": content, "ss_network_dim": "1"}))
    assert (recipe.source, recipe.base_model) == ("a file trained with Train Studio", "sd15.safetensors")
    assert "name" not in recipe.table
    assert set(recipe.table["output"]).isdisjoint({"folder", "runs_folder", "overwrite"})
    again = load({**recipe.table, "name": "dog"})
    assert (again.method, again.training, again.dataset) == (load(JOB).method, load(JOB).training, load(JOB).dataset)
    assert recipe.unmapped == recipe.approximated == ()


def test_a_kohya_file_without_ranks_in_its_metadata_gives_those_of_its_tensors(tmp_path: Path) -> None:
    metadata = {"ss_learning_rate": "1e-4", "ss_network_dim": "Dynamic", "ss_network_module": "networks.lora"}
    recipe = recipe_of_file(lora(tmp_path / "cat.safetensors", metadata))
    assert (recipe.table["method"]["rank"], recipe.table["method"]["alpha"]) == (6, 3.0)
    assert recipe.table["method"]["train_text_encoder"] is False
    with_text = recipe_of_file(lora(tmp_path / "dog.safetensors", metadata, layers=(LAYER, TEXT_LAYER)))
    assert with_text.table["method"]["train_text_encoder"] is True


def test_a_file_without_metadata_gives_what_its_tensors_show(tmp_path: Path) -> None:
    recipe = recipe_of_file(lora(tmp_path / "cat.safetensors", {}))
    assert recipe.source == "a file that says nothing of its training but what its tensors show"
    assert (recipe.table["method"]["rank"], recipe.table["method"]["algorithm"]) == (6, "lora")


def test_an_algorithm_is_seen_in_the_tensors(tmp_path: Path) -> None:
    tensors = {f"{LAYER}.{name}": torch.ones(size) for name, size in (
        ("hada_w1_a", (320, 4)), ("hada_w1_b", (4, 768)), ("hada_w2_a", (320, 4)), ("hada_w2_b", (4, 768)),
        ("alpha", ()))}  # fmt: skip
    recipe = recipe_of_file(write_atomic(tmp_path / "cat.safetensors", tensors, {}))
    assert recipe.table["method"]["algorithm"] == "loha"


def test_an_embedding_of_the_webui(tmp_path: Path) -> None:
    path = tmp_path / "zkw.pt"
    path.write_bytes(pt_embedding_bytes("zkw", torch.ones(5, 768), 3000, "abcdef1234", "v1-5"))
    recipe = recipe_of_file(path)
    assert (recipe.source, recipe.base_model) == ("an embedding of the WebUI's own Train tab", "v1-5")
    assert recipe.table["method"] == {"kind": "textual_inversion", "vectors_per_token": 5}
    assert recipe.table["training"] == {"num_samples": 3000, "max_train_steps": 0}
    assert [each.text for each in recipe.approximated] == ["3000 steps as so many samples"]


def test_an_embedding_without_a_history(tmp_path: Path) -> None:
    recipe = recipe_of_file(write_atomic(tmp_path / "z.safetensors", embedding_tensors("z", torch.ones(2, 768)), {}))
    assert recipe.table == {
        "preset": "embedding_subject", "method": {"kind": "textual_inversion", "vectors_per_token": 2},
    }  # fmt: skip


def test_a_kohya_config_and_the_dataset_config_beside_it(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    content = '[x]\nnetwork_module = "networks.lora"\ndataset_config = "/far/away/data.toml"\n'
    config.write_text(content, encoding="utf-8")
    alone = recipe_of_file(config)
    assert [each.text for each in alone.unmapped if each.name == "missing_dataset_config"] == [
        "its pictures are described in that file, which is not beside this one"
    ]
    (tmp_path / "data.toml").write_text("[[datasets]]\nresolution = 640\nbatch_size = 3\n", encoding="utf-8")
    both = recipe_of_file(config)
    assert (both.table["dataset"]["resolution_px"], both.table["training"]["train_batch_size"]) == (640, 3)
    assert both.table["training"]["num_samples"] == 4800
    assert both.unmapped == ()


def test_our_own_metadata_without_the_job_say_nearly_as_much(tmp_path: Path) -> None:
    info = ArtefactInfo(
        output_name="cat", rank=6, alpha=3.0, learning_rate=2e-4, unet_learning_rate=2e-4, max_train_steps=300,
        optimizer="adamw", lr_scheduler="cosine", lr_warmup_steps=15, train_batch_size=2, clip_skip=2, seed=4,
        resolution_px=(448, 448), min_snr_gamma=5.0, mixed_precision="bf16", gradient_accumulation_steps=1,
    )  # fmt: skip
    recipe = recipe_of_file(lora(tmp_path / "cat.safetensors", lora_metadata(info, "ab" * 32)))
    assert recipe.source == "a file trained with Train Studio"
    assert (recipe.table["method"]["rank"], recipe.table["optimizer"]["learning_rate"]) == (6, 2e-4)
    assert (recipe.table["training"]["num_samples"], recipe.table["training"]["clip_skip"]) == (600, 2)
    assert (recipe.table["dataset"]["resolution_px"], recipe.table["optimizer"]["lr_warmup_ratio"]) == (448, 0.05)
    assert recipe.unmapped == recipe.approximated == ()


def test_a_modelspec_says_what_nothing_else_does(tmp_path: Path) -> None:
    spec = {"modelspec.resolution": "512x768", "modelspec.encoder_layer": "2", "modelspec.title": "a cat"}
    recipe = recipe_of_file(lora(tmp_path / "cat.safetensors", spec))
    assert (recipe.table["dataset"]["resolution_px"], recipe.table["training"]["clip_skip"]) == (624, 2)
    known = recipe_of_file(lora(tmp_path / "dog.safetensors", {**spec, "ss_clip_skip": "1", "ss_network_dim": "6"}))
    assert known.table["training"]["clip_skip"] == 1


def test_a_hypernetwork_of_the_webui(tmp_path: Path) -> None:
    design = HypernetworkDesign((1, 1.5, 1), "relu")
    parts = tuple({name: torch.ones(shape) for name, shape in design.tensor_shapes(64).items()} for _ in range(2))
    path = tmp_path / "zkw.pt"
    path.write_bytes(hypernetwork_bytes({64: parts}, design, name="zkw", step=40))
    recipe = recipe_of_file(path)
    assert recipe.table["method"] == {
        "kind": "hypernetwork", "layer_structure": "1, 1.5, 1", "activation": "relu",
    }  # fmt: skip
    assert recipe.table["training"] == {"num_samples": 40, "max_train_steps": 0}
    assert recipe.unmapped == ()


def test_a_job_file_of_ours_and_what_is_wrong_with_it(tmp_path: Path) -> None:
    path = tmp_path / "job.json"
    path.write_text(json.dumps(JOB), encoding="utf-8")
    assert recipe_of_file(path).table == JOB
    path.write_text(json.dumps({**JOB, "method": {"kind": "lora", "rank": 0}}), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"method\.rank: is 0"):
        recipe_of_file(path)


@pytest.mark.parametrize(
    ("name", "content", "error", "text"),
    [
        ("x.json", b"[1]", ConfigError, "must hold a table"),
        ("x.json", b'{"a": 1}', ConfigError, "holds the settings of no program that we know"),
        ("x.toml", b"= 1", ConfigError, "is not valid TOML"),
        ("x.txt", b"", ConfigError, "is called 'x.txt', accepted endings are .toml, .json, .safetensors"),
        ("x.safetensors", b"12345678", FormatError, "x.safetensors"),
        ("x.pt", b"\x80\x04cos\nsystem\n(S'true'\ntR.", FormatError, "was not written by PyTorch"),
    ],
)
def test_files_that_say_nothing_are_refused(
    tmp_path: Path, name: str, content: bytes, error: type[Exception], text: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=text):
        recipe_of_file(tmp_path / name)


def test_a_checkpoint_says_nothing_of_a_training(practice_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a checkpoint that says nothing of its training"):
        recipe_of_file(practice_model)
    with pytest.raises(ModelError):
        recipe_of_file(tmp_path / "none.safetensors")


def test_a_recipe_is_plain_json(tmp_path: Path) -> None:
    told: dict[str, Any] = recipe_of_file(lora(tmp_path / "x.safetensors", {"ss_network_dim": "9999"})).to_json()
    assert json.loads(json.dumps(told)) == told
    assert told["unmapped"] == [
        {"name": "network_dim", "value": 9999, "text": "method.rank is 9999, accepted are 1 to 1024"}
    ]


def test_prompts_with_settings_of_their_own_survive_a_job_file(tmp_path: Path) -> None:
    prompts = [{"prompt": 'a "cat"\nand', "seed": 3}]
    path = tmp_path / "job.toml"
    path.write_text(job_toml({**JOB, "preview": {"prompts": prompts}}), encoding="utf-8")
    recipe = recipe_of_file(path)
    assert recipe.table["preview"]["prompts"] == prompts
