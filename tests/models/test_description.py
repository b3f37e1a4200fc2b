from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from extensions_lib.models.description import describe, yaml_beside, yaml_where_needed
from extensions_lib.models.load import outline_bundle
from extensions_lib.models.sibling import read_sibling

from ..model_families import FamilyModels

pytestmark = pytest.mark.usefixtures("shared_tokenizer")


def params(text: str) -> dict[str, Any]:
    return yaml.safe_load(text)["model"]["params"]


@pytest.mark.parametrize("name", ["sd1", "sd1-v", "sd1-inpaint", "sd2-v", "sdxl", "sdxl-v-ztsnr", "sdxl-inpaint"])
def test_what_is_described_is_read_again(family_models: FamilyModels, tmp_path: Path, name: str) -> None:
    bundle = outline_bundle(family_models[name])
    (tmp_path / "model.yaml").write_text(describe(bundle, "some-clip"))
    facts = read_sibling(tmp_path / "model.safetensors", bundle.family)
    assert facts.prediction_type == bundle.family.prediction_type
    assert facts.latent_scale == bundle.family.latent_scale
    heads = bundle.unet.config.attention_head_dim
    if isinstance(heads, int):
        assert (facts.num_heads, facts.num_head_channels) == (heads, None)
    else:
        assert facts.num_head_channels == bundle.unet.config.block_out_channels[0] // heads[0]
    if bundle.family.text_encoders[0].layout == "clip":
        assert facts.clip_version == "some-clip"


def test_the_webuis_classes_are_named(family_models: FamilyModels) -> None:
    sd1 = yaml.safe_load(describe(outline_bundle(family_models["sd1-inpaint"])))["model"]
    assert sd1["target"] == "ldm.models.diffusion.ddpm.LatentInpaintDiffusion"
    assert sd1["params"]["conditioning_key"] == "hybrid"
    unet = sd1["params"]["unet_config"]["params"]
    assert (unet["in_channels"], unet["attention_resolutions"], unet["channel_mult"]) == (9, [4, 2, 1], [1, 1, 2, 2])
    sdxl = params(describe(outline_bundle(family_models["sdxl-v-ztsnr"])))
    assert sdxl["denoiser_config"]["params"]["scaling_config"]["target"].endswith(".VScaling")
    embedders = sdxl["conditioner_config"]["params"]["emb_models"]
    assert [each["input_key"] for each in embedders] == [
        "txt", "txt", "original_size_as_tuple", "crop_coords_top_left", "target_size_as_tuple",
    ]  # fmt: skip
    assert embedders[0]["params"] == {"layer": "hidden", "layer_idx": 2}
    assert sdxl["network_config"]["params"]["adm_in_channels"] == 96 + 6 * 32
    assert "&id" not in describe(outline_bundle(family_models["sdxl"]))  # no YAML references


@pytest.mark.parametrize(
    ("name", "is_needed"), [("sd1", False), ("sd1-v", True), ("sd2", True), ("sdxl", False), ("sdxl-v", True)]
)
def test_a_yaml_is_made_where_the_webui_would_guess_wrong(
    family_models: FamilyModels, name: str, is_needed: bool
) -> None:
    bundle = outline_bundle(family_models[name])
    assert (yaml_where_needed(bundle) is not None) is is_needed
    as_v = replace(bundle, family=replace(bundle.family, prediction_type="v_prediction"))
    assert yaml_where_needed(as_v) == describe(as_v)


def test_the_bases_own_yaml_comes_first(family_models: FamilyModels, tmp_path: Path) -> None:
    bundle = outline_bundle(family_models["sd2-v"])
    assert yaml_beside(bundle, tmp_path) is not None
    assert (
        yaml_beside(bundle, family_models["sd2-v"].parent) == family_models["sd2-v"].with_suffix(".yaml").read_bytes()
    )
    without = replace(bundle, source=replace(bundle.source, path=tmp_path / "lonely.safetensors"))
    assert yaml_beside(without, tmp_path) == describe(bundle).encode()
    noise = replace(without, family=replace(outline_bundle(family_models["sd1"]).family))
    assert yaml_beside(noise, tmp_path) is None
