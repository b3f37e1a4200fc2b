"""Every family's small checkpoint: found, loaded, and written again to the last bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from extensions_lib.errors import KeyMismatchError
from extensions_lib.formats.checkpoint import read_checkpoint
from extensions_lib.formats.safetensors_io import file_sha256, write_atomic
from extensions_lib.models.bundle import ModelBundle
from extensions_lib.models.ldm import bundle_to_ldm
from extensions_lib.models.load import load_bundle, outline_bundle
from extensions_lib.practice.families import VARIANTS

from ..model_families import FamilyModels

pytestmark = pytest.mark.usefixtures("shared_tokenizer")


@pytest.fixture(params=VARIANTS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def test_each_is_found_loaded_and_written_again_to_the_last_bit(family_models: FamilyModels, name: str) -> None:
    path, variant = family_models[name], VARIANTS[name]
    bundle = load_bundle(path)
    assert bundle.family.name == variant.family.name
    assert bundle.family.prediction_type == variant.prediction_type
    assert bundle.has_zero_terminal_snr == variant.has_zero_terminal_snr
    assert bundle.is_inpainting == variant.is_inpainting
    assert list(bundle.text_encoders) == [kind.part for kind in variant.family.text_encoders]
    assert bundle.vae.config.scaling_factor == bundle.family.latent_scale == variant.family.latent_scale
    assert bundle.source.sha256 == file_sha256(path)
    stored, written = read_checkpoint(path).tensors, bundle_to_ldm(bundle)
    assert list(written) == list(stored)
    for key, tensor in stored.items():
        assert written[key].dtype == tensor.dtype and torch.equal(written[key], tensor), key


def test_the_written_file_is_the_same_file(family_models: FamilyModels, tmp_path: Path) -> None:
    path = family_models["sdxl-v-ztsnr"]
    again = write_atomic(tmp_path / "again.safetensors", bundle_to_ldm(load_bundle(path)), {"format": "pt"})
    assert again.read_bytes() == path.read_bytes()


def test_the_outline_has_the_same_facts_and_shapes(family_models: FamilyModels, name: str) -> None:
    outline, bundle = outline_bundle(family_models[name]), load_bundle(family_models[name])
    assert outline.family == bundle.family
    assert torch.equal(outline.alphas_cumprod, bundle.alphas_cumprod)
    for part, module in outline.parts.items():
        shapes = {key: tensor.shape for key, tensor in bundle.parts[part].state_dict().items()}
        assert {key: tensor.shape for key, tensor in module.state_dict().items()} == shapes
        assert {tensor.device.type for tensor in module.parameters()} == {"meta"}


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
def test_diffusers_reads_what_we_write(family_models: FamilyModels, name: str) -> None:
    """Their own converters, from checkpoint names to theirs, as an independent table."""
    from diffusers.loaders import single_file_utils

    bundle = load_bundle(family_models[name])
    written = {key: tensor.float() for key, tensor in bundle_to_ldm(bundle).items()}
    unet = {key: tensor for key, tensor in written.items() if key.startswith("model.diffusion_model.")}
    converted = single_file_utils.convert_ldm_unet_checkpoint(unet, config=dict(bundle.unet.config))
    expected = bundle.unet.state_dict()
    assert converted.keys() == expected.keys()
    assert all(torch.equal(converted[key], tensor) for key, tensor in expected.items())
    for kind in bundle.family.text_encoders:
        if kind.layout == "open_clip":
            encoder = bundle.text_encoders[kind.part]
            found = single_file_utils.convert_open_clip_checkpoint(encoder, dict(written), kind.prefix)
            for key, tensor in encoder.state_dict().items():
                assert key.endswith("position_ids") or torch.equal(found[key], tensor), key


@pytest.mark.parametrize("name", ["sd2", "sd2-v", "sdxl", "sdxl-inpaint"])
def test_a_folder_is_the_same_model_as_a_file(family_models: FamilyModels, name: str, tmp_path: Path) -> None:
    bundle = load_bundle(family_models[name])
    from_folder = load_bundle(saved_as_folder(bundle, tmp_path))
    assert from_folder.family == bundle.family
    assert torch.equal(from_folder.alphas_cumprod, bundle.alphas_cumprod)
    for part, module in bundle.parts.items():
        found = from_folder.parts[part].state_dict()
        assert all(torch.equal(tensor, found[key]) for key, tensor in module.state_dict().items())
    written, stored = bundle_to_ldm(from_folder), bundle_to_ldm(bundle)
    passengers = {key for key in stored if key.endswith(("position_ids", "v_pred"))}
    assert written.keys() == stored.keys() - passengers  # SD 2's last layer included, which no folder holds
    assert all(
        torch.equal(tensor, stored[key].float()) for key, tensor in written.items() if ".resblocks.3." not in key
    )
    assert {tensor.dtype for tensor in written.values()} == {torch.float32}


def saved_as_folder(bundle: ModelBundle, folder: Path) -> Path:
    """The bundle as its libraries save it."""
    for part, module in bundle.parts.items():
        module.save_pretrained(folder / part, safe_serialization=True)
    is_xl = bundle.family.name == "sdxl"
    pipeline = "StableDiffusion" + ("XL" if is_xl else "") + ("Inpaint" if bundle.is_inpainting else "") + "Pipeline"
    (folder / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
    (folder / "scheduler").mkdir()
    scheduler = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    scheduler |= {"prediction_type": bundle.family.prediction_type}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    return folder


def test_sd2_turbos_older_names_are_kept(family_models: FamilyModels, tmp_path: Path) -> None:
    """SD 2 Turbo names its text encoder as SDXL does; the WebUI knows it by a final layer norm of 1024."""
    from extensions_lib.models.ldm import modern_names

    sgm = "conditioner.embedders.0."
    assert modern_names({sgm + "model.ln_final.weight": (1024,), sgm + "model.x": (1,)}) == {
        "cond_stage_model.model.ln_final.weight": sgm + "model.ln_final.weight",
        "cond_stage_model.model.x": sgm + "model.x",
    }
    assert modern_names({sgm + "model.ln_final.weight": (1280,)}) == {}


def test_sizes_that_cannot_be_shared_out_are_refused(family_models: FamilyModels, tmp_path: Path) -> None:
    tensors = read_checkpoint(family_models["sdxl"]).tensors
    key = "model.diffusion_model.label_emb.0.0.weight"
    tensors[key] = tensors[key][:, :-1].contiguous()
    path = write_atomic(tmp_path / "odd.safetensors", tensors, {})
    path.with_suffix(".yaml").write_text(family_models["sdxl"].with_suffix(".yaml").read_text())
    (tmp_path / "small-clip").mkdir()
    (tmp_path / "small-clip" / "config.json").write_text('{"num_attention_heads": 4}')
    with pytest.raises(KeyMismatchError, match="takes 287 numbers beside the text; of these 96 are the pooled text"):
        outline_bundle(path)


@pytest.mark.parametrize(("name", "takes_size"), [("sd1", True), ("sd2", True), ("sdxl", False)])
def test_the_yaml_names_a_picture_size_only_to_the_unet_that_takes_one(
    family_models: FamilyModels, name: str, takes_size: bool
) -> None:
    """The class of SDXL's UNet refuses settings it does not know, and the WebUI then cannot load the checkpoint."""
    params = yaml.safe_load(family_models[name].with_suffix(".yaml").read_text())["model"]["params"]
    unet = params["unet_config" if takes_size else "network_config"]["params"]
    assert ("image_size" in unet) is takes_size
