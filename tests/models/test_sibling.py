from __future__ import annotations

from pathlib import Path

import pytest

from extensions_lib.errors import FormatError, UnsupportedModelError
from extensions_lib.models.family import SD1, SD2, SDXL
from extensions_lib.models.sibling import SiblingFacts, find_clip_folder, read_sibling

from .conftest import YAML


def sibling(folder: Path, text: str) -> SiblingFacts:
    (folder / "model.yaml").write_text(text, encoding="utf-8")
    return read_sibling(folder / "model.safetensors", SD1)


def params(text: str) -> str:
    return "model:\n  params:\n    " + text


def test_without_yaml_it_is_sd15(tmp_path: Path) -> None:
    facts = read_sibling(tmp_path / "model.safetensors", SD1)
    assert facts == SiblingFacts(8, None, 0.18215, None, 0.00085, 0.012, "openai/clip-vit-large-patch14")


def test_without_yaml_the_family_says_the_rest(tmp_path: Path) -> None:
    assert read_sibling(tmp_path / "model.safetensors", SD2) == SiblingFacts(8, 64, 0.18215)
    assert read_sibling(tmp_path / "model.safetensors", SDXL) == SiblingFacts(8, 64, 0.13025)


@pytest.mark.parametrize("text", ["", "model: 3", "model: {params: {unet_config: }}"])
def test_a_yaml_that_says_nothing_is_sd15(tmp_path: Path, text: str) -> None:
    assert sibling(tmp_path, text) == SiblingFacts(8, None, 0.18215, "epsilon")


def test_the_webuis_layout_is_read(tmp_path: Path) -> None:
    expected = SiblingFacts(8, None, 0.18215, "epsilon", clip_version="models/Stable-diffusion/tiny-clip")
    assert sibling(tmp_path, YAML) == expected
    text = params("{parameterization: v, scale_factor: 0.5, linear_start: 1.0e-03, linear_end: 2e-2, timesteps: 1000}")
    facts = sibling(tmp_path, text)
    assert (facts.prediction_type, facts.latent_scale) == ("v_prediction", 0.5)
    assert (facts.linear_start, facts.linear_end) == (0.001, 0.02)


def test_heads_by_number_or_by_channels(tmp_path: Path) -> None:
    assert sibling(tmp_path, params("unet_config: {params: {num_heads: 4}}")).num_heads == 4
    facts = sibling(tmp_path, params("unet_config: {params: {num_heads: -1, num_head_channels: 64}}"))
    assert facts.num_head_channels == 64


def test_sdxls_layout_is_read(tmp_path: Path) -> None:
    text = params("""
      scale_factor: 0.2
      network_config: {params: {num_head_channels: 32}}
      denoiser_config: {params: {scaling_config: {target: sgm.modules.diffusionmodules.denoiser_scaling.VScaling}}}
      conditioner_config: {params: {emb_models: [{params: {layer: hidden, version: tiny-clip}}, {params: {arch: x}}]}}
""")
    (tmp_path / "model.yaml").write_text(text, encoding="utf-8")
    facts = read_sibling(tmp_path / "model.safetensors", SDXL)
    assert facts == SiblingFacts(8, 32, 0.2, "v_prediction", clip_version="tiny-clip")


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("model: [", FormatError, "cannot be read"),
        (params("scale_factor: many"), FormatError, "scale_factor is 'many', not a number"),
        (params("parameterization: x0"), UnsupportedModelError, "parameterization is 'x0'; accepted are 'eps' and 'v'"),
        (
            params("denoiser_config: {params: {scaling_config: {target: sgm.modules.denoiser_scaling.EDMScaling}}}"),
            UnsupportedModelError,
            "scaling_config is 'EDMScaling'; accepted are 'EpsScaling' and 'VScaling'",
        ),
        (params("timesteps: 4000"), UnsupportedModelError, "4000 timesteps; only models with 1000"),
    ],
)
def test_what_cannot_be_used_is_explained(tmp_path: Path, text: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        sibling(tmp_path, text)


def test_yaml_cannot_run_code(tmp_path: Path) -> None:
    with pytest.raises(FormatError):
        sibling(tmp_path, params("timesteps: !!python/object/apply:os.getpid []"))


def test_environment_variables_are_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = params("cond_stage_config: {params: {version: '${oc.env:TINY_CLIP,models/clip}'}}")
    monkeypatch.delenv("TINY_CLIP", raising=False)
    assert sibling(tmp_path, text).clip_version == "models/clip"
    monkeypatch.setenv("TINY_CLIP", "/elsewhere")
    assert sibling(tmp_path, text).clip_version == "/elsewhere"


def test_clip_folder_is_looked_for_where_the_webui_and_the_model_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint = tmp_path / "webui" / "models" / "Stable-diffusion" / "sub" / "model.safetensors"
    version = "models/Stable-diffusion/tiny-clip"
    assert find_clip_folder(checkpoint, version) is None
    # The least preferred place first: each further one then takes over.
    for place in (checkpoint.parent / "tiny-clip", tmp_path / "webui" / version, tmp_path / version):
        place.mkdir(parents=True)
        assert find_clip_folder(checkpoint, version) not in (place, place.relative_to(tmp_path))
        (place / "config.json").write_text("{}")
        assert find_clip_folder(checkpoint, version).absolute() == place
