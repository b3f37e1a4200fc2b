"""Whole models: what stands in the file, what its yaml names, and what may not happen to the base."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from extensions_lib.config.codec import load
from extensions_lib.control import JobControl
from extensions_lib.errors import ConfigError, FormatError, KeyMismatchError, OutputError
from extensions_lib.formats.checkpoint import read_checkpoint
from extensions_lib.formats.metadata import ArtefactInfo
from extensions_lib.formats.network import read_network
from extensions_lib.formats.safetensors_io import data_hash, read_header, read_tensors, write_atomic
from extensions_lib.jobs.run import start
from extensions_lib.methods.catalogue import make_method
from extensions_lib.methods.dreambooth import DreamBooth
from extensions_lib.methods.layer_choice import LayerChoice, choose_layers
from extensions_lib.models.family import SD1
from extensions_lib.models.load import load_bundle, outline_bundle
from extensions_lib.models.sibling import find_clip_folder, read_sibling
from extensions_lib.training.results import SPARE_BYTES, bytes_needed

from ..model_families import FamilyModels
from .conftest import MakeJob

VAE = "first_stage_model."


def test_the_checkpoint_of_a_job_is_complete(job: MakeJob, tmp_path: Path, practice_model: Path) -> None:
    outcome = start(load(job("dreambooth", "out", training={"max_train_steps": 1})), JobControl())
    assert outcome.path == tmp_path / "out" / "zbadge.safetensors"
    base, found = read_tensors(practice_model), read_tensors(outcome.path)
    assert set(found) == {name for name in base if not name.startswith("model_ema.")}
    assert all(torch.equal(found[name], base[name]) for name in base if name.startswith(VAE))
    assert {tensor.dtype for name, tensor in found.items() if name.startswith("model.")} == {torch.float16}
    assert not all(torch.equal(found[name], base[name]) for name in base if name.startswith("model."))
    metadata = read_header(outcome.path)[1]
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1"
    assert metadata["modelspec.hash_sha256"] == f"0x{data_hash(found)}"
    assert (metadata["ss_sd_model_name"], metadata["ss_steps"]) == (practice_model.name, "1")
    assert "ss_network_module" not in metadata
    assert load_bundle(outcome.path).tokenizer.num_vocabulary == load_bundle(practice_model).tokenizer.num_vocabulary


def test_a_ckpt_in_full_precision_holds_the_same_model(job: MakeJob, practice_model: Path) -> None:
    output = {"file_format": "ckpt", "dtype": "fp32"}
    table = job("dreambooth", "out", training={"max_train_steps": 1}, output=output)
    outcome = start(load(table), JobControl())
    assert outcome.path.suffix == ".ckpt"
    assert not outcome.path.read_bytes().startswith(b"PK")  # a zip file of a recent torch is refused by the WebUI
    found, base = read_checkpoint(outcome.path).tensors, read_tensors(practice_model)
    assert set(found) == set(base)
    assert all(found[name].dtype == torch.float32 for name in found if name.startswith("model."))
    assert all(torch.equal(found[name], base[name]) for name in base if name.startswith(VAE))
    with pytest.raises(ConfigError, match="which only checkpoints have"):
        load(job("lora", "out", output={"file_format": "ckpt"}))


def test_the_yaml_names_the_text_encoder_so_that_it_is_found(job: MakeJob, practice_model: Path) -> None:
    outcome = start(load(job("dreambooth", "out", training={"max_train_steps": 1})), JobControl())
    written = read_sibling(outcome.path, SD1)
    assert Path(written.clip_version).is_absolute()
    assert dataclasses.replace(written, clip_version="") == dataclasses.replace(
        read_sibling(practice_model, SD1), clip_version=""
    )
    assert find_clip_folder(outcome.path, written.clip_version) == practice_model.parent / "practice-clip"


def test_a_yaml_that_already_finds_it_is_copied(job: MakeJob, practice_model: Path, tmp_path: Path) -> None:
    shutil.copytree(practice_model.parent / "practice-clip", tmp_path / "out" / "practice-clip")
    outcome = start(load(job("dreambooth", "out", training={"max_train_steps": 1})), JobControl())
    assert outcome.path.with_suffix(".yaml").read_bytes() == practice_model.with_suffix(".yaml").read_bytes()


def test_averaged_weights_are_dropped_and_positions_whole(practice_model: Path, tmp_path: Path) -> None:
    tensors, stem = read_tensors(practice_model), tmp_path / "base"
    positions = "cond_stage_model.transformer.text_model.embeddings.position_ids"
    tensors |= {
        "model_ema.diffusion_modelconv": torch.ones(2),
        positions: torch.arange(77)[None].half(),
        "alphas_cumprod": load_bundle(practice_model).alphas_cumprod,
    }
    shutil.copy(practice_model.with_suffix(".yaml"), stem.with_suffix(".yaml"))
    shutil.copytree(practice_model.parent / "practice-clip", tmp_path / "practice-clip")
    bundle = load_bundle(write_atomic(stem.with_suffix(".safetensors"), tensors, {}))
    method = DreamBooth(folder=tmp_path)
    with method.attach(bundle, "x", torch.Generator()) as trainable:
        found = method.export(trainable, ArtefactInfo(output_name="x", steps=1)).tensors
    assert "model_ema.diffusion_modelconv" not in found
    assert torch.equal(found[positions], torch.arange(77)[None])
    assert found["alphas_cumprod"].dtype == torch.float32


def test_a_spoilt_file_is_told(practice_model: Path, tmp_path: Path) -> None:
    bundle, method = load_bundle(practice_model), DreamBooth(folder=practice_model.parent)
    path = tmp_path / "x.safetensors"
    shutil.copy(practice_model.with_suffix(".yaml"), path.with_suffix(".yaml"))
    shutil.copytree(practice_model.parent / "practice-clip", tmp_path / "practice-clip")
    with method.attach(bundle, "x", torch.Generator()) as trainable:
        tensors = dict(method.export(trainable, ArtefactInfo(output_name="x", steps=1)).tensors)
        write_atomic(path, tensors, {})
        assert method.verify(path, trainable, bundle).num_modules == 2
        name = "model.diffusion_model.out.2.bias"
        write_atomic(path, {**tensors, name: tensors[name] + 1}, {}, overwrite=True)
        with pytest.raises(FormatError, match=r"1 tensors of the unet differ, such as conv_out\.bias"):
            method.verify(path, trainable, bundle)
        path.with_suffix(".yaml").write_bytes(
            path.with_suffix(".yaml").read_bytes().replace(b"  params:\n", b"  params:\n    parameterization: v\n", 1)
        )
        with pytest.raises(FormatError, match="is read as"):
            method.verify(path, trainable, bundle)


@pytest.mark.parametrize("name", ["base", "base.ckpt"])
def test_the_base_and_its_yaml_are_never_overwritten(
    job: MakeJob, practice_model: Path, tmp_path: Path, name: str
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    for suffix in (".safetensors", ".yaml"):
        shutil.copy(practice_model.with_suffix(suffix), (folder / "base").with_suffix(suffix))
    before = {path: path.read_bytes() for path in folder.iterdir()}
    output = {"overwrite": True, "file_format": "ckpt" if name.endswith("ckpt") else "safetensors"}
    table = job("dreambooth", "out", name="base", base_model=str(folder / "base.safetensors"), output=output)
    with pytest.raises(OutputError, match="belongs to the base model, which is never overwritten"):
        start(load(table), JobControl())
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_run_goes_on_from_an_earlier_checkpoint(practice_model: Path, tmp_path: Path) -> None:
    """The text encoder that was trained then stays trained, also when this run leaves it alone."""
    bundle = load_bundle(practice_model)
    first = DreamBooth(folder=tmp_path, dtype=torch.float32)
    with first.attach(bundle, "x", torch.Generator()) as trainable:
        with torch.no_grad():
            for parameter in trainable.parameters():
                parameter.add_(0.01)
        exported = first.export(trainable, ArtefactInfo(output_name="x", steps=1))
    path = write_atomic(tmp_path / "x.safetensors", exported.tensors, exported.metadata)
    path.with_suffix(".yaml").write_bytes(exported.beside[0].payload)
    second = dataclasses.replace(first, start_from=path, train_text_encoder=False)
    with second.attach(bundle, "x", torch.Generator()) as trainable:
        assert len(trainable.groups) == 1
        again = second.export(trainable, ArtefactInfo(output_name="x", steps=1))
        assert not any(parameter.requires_grad for parameter in bundle.text_encoder.parameters())
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in exported.tensors.items())


def test_a_start_of_another_kind_is_refused(practice_model: Path, tmp_path: Path) -> None:
    bundle = load_bundle(practice_model)
    other = load_bundle(practice_model)
    other.unet.conv_in.weight = torch.nn.Parameter(torch.zeros(1), requires_grad=False)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("extensions_lib.methods.dreambooth.load_bundle", lambda path: other)
        attached = DreamBooth(start_from=tmp_path / "other.safetensors").attach(bundle, "x", torch.Generator())
        with pytest.raises(KeyMismatchError, match=r"unet\.conv_in\.weight does not fit"), attached:
            pass


def test_the_size_of_a_result_is_known_beforehand(practice_model: Path, tmp_path: Path) -> None:
    method, outline = DreamBooth(folder=tmp_path), outline_bundle(practice_model)
    bundle = load_bundle(practice_model)
    with method.attach(bundle, "x", torch.Generator()) as trainable:
        exported = method.export(trainable, ArtefactInfo(output_name="x", steps=1))
    path = write_atomic(tmp_path / "x.safetensors", exported.tensors, exported.metadata)
    assert path.stat().st_size * 0.95 < method.result_bytes(outline, 0) < path.stat().st_size * 1.5


@pytest.mark.parametrize(
    ("optimizer", "more"),
    [("adamw", {}), ("adafactor", {"ema_decay": 0.9}), ("lion", {"save_every_steps": 1})],
)
def test_the_room_for_states_and_results_is_known_beforehand(
    job: MakeJob, tmp_path: Path, practice_model: Path, optimizer: str, more: dict[str, Any]
) -> None:
    config = load(job("dreambooth", "out", training={"max_train_steps": 3, **more}, optimizer={"optimizer": optimizer}))
    outline, method = outline_bundle(practice_model), make_method(config.method, config.output)
    count = method.count_parameters(outline)
    results, run = bytes_needed(config, method.result_bytes(outline, count), count)
    outcome = start(config, JobControl())
    largest = max(path.stat().st_size for path in (outcome.run_folder / "state").iterdir())
    assert 3 * largest < run < 3 * largest * 1.5 + SPARE_BYTES
    written = sum(path.stat().st_size for path in (tmp_path / "out").iterdir())
    assert written < results < written * 1.5 + SPARE_BYTES


def test_bf16_needs_an_optimizer_that_rounds_at_random(job: MakeJob) -> None:
    with pytest.raises(ConfigError, match="weights in bf16 accept adafactor and lion"):
        load(job("dreambooth in bf16", "out", optimizer={"optimizer": "adamw"}))


@pytest.mark.parametrize("rank", [2, 64])
def test_the_difference_is_the_nearest_lora_of_its_rank(practice_model: Path, tmp_path: Path, rank: int) -> None:
    """The layers are moved in two directions each, which rank 2 holds whole; biases and norms only count as error."""
    bundle = load_bundle(practice_model)
    method = DreamBooth(folder=tmp_path, dtype=torch.float32, difference_rank=rank)
    generator = torch.Generator().manual_seed(0)
    with method.attach(bundle, "x", torch.Generator()) as trainable:
        with torch.no_grad():
            for parameter in trainable.parameters():
                if parameter.ndim > 1:
                    matrix = parameter.flatten(1)
                    up, down = (torch.randn(side, 2, generator=generator) for side in matrix.shape)
                    parameter.add_((up @ down.T).reshape(parameter.shape) * 0.01)
        lora = method.export(trainable, ArtefactInfo(output_name="x", steps=1)).beside[1]
        path = write_atomic(tmp_path / lora.name, lora.tensors, lora.metadata)
        lora.verify(path)
        found, trained = read_network(path), dict(bundle.unet.named_parameters())
        name = "down_blocks.0.resnets.0.conv1"
        change = trained[f"{name}.weight"].detach() - trainable.module.originals("unet")[f"{name}.weight"]
        assert torch.allclose(found[f"lora_unet_{name.replace('.', '_')}"].undecomposed(), change, atol=1e-5)
        error = float(lora.metadata["train_studio.difference_error"])
        assert 0 < error < 1  # the token table and the first and last layers are in no LoRA
    assert (lora.name, lora.kind) == ("x-difference.safetensors", "lora")
    assert len(found) == len(choose_layers(bundle, LayerChoice("full", has_text_encoders=True)))
    spoilt = {key: torch.zeros_like(tensor) for key, tensor in lora.tensors.items()}
    with pytest.raises(FormatError, match="is not the LoRA that was extracted"):
        lora.verify(write_atomic(path, spoilt, {}, overwrite=True))


def test_a_base_that_says_v_by_its_marker_alone_gets_a_yaml(family_models: FamilyModels, tmp_path: Path) -> None:
    bundle, method = load_bundle(family_models["sdxl-v"]), DreamBooth(folder=tmp_path, train_text_encoder=False)
    bundle.source = dataclasses.replace(bundle.source, path=tmp_path / "lonely.safetensors")
    info = ArtefactInfo(output_name="x", steps=1, family="sdxl", prediction_type="v_prediction")
    with method.attach(bundle, "x", torch.Generator()) as trainable:
        exported = method.export(trainable, info)
    assert "v_pred" in exported.tensors
    assert [file.name for file in exported.beside] == ["x.yaml"]
    assert b"VScaling" in exported.beside[0].payload
