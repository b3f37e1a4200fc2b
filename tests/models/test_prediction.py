from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from extensions_lib.formats.checkpoint import read_checkpoint
from extensions_lib.formats.safetensors_io import write_atomic
from extensions_lib.models.load import load_bundle, outline_bundle
from extensions_lib.models.prediction import marker_tensors
from extensions_lib.models.schedule import ends_in_pure_noise, with_zero_terminal_snr

from ..model_families import FamilyModels

pytestmark = pytest.mark.usefixtures("shared_tokenizer")
OUT_BIAS = "model.diffusion_model.out.2.bias"


@pytest.fixture
def sd2(family_models: FamilyModels, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """The small SD 2's tensors; without a yaml its heads would be 64 wide, so the family is told of its own."""
    from dataclasses import replace

    from extensions_lib.models import detect

    monkeypatch.setattr(detect, "SD2", replace(detect.SD2, head_channels=16))
    return read_checkpoint(family_models["sd2"]).tensors


def test_sd2_without_a_yaml_is_asked(sd2: dict[str, Tensor], tmp_path: Path) -> None:
    """The WebUI's question: is the answer to latents of 0.5 at the noisiest timestep below -0.5 on average?"""
    for shift, expected in ((0.0, "epsilon"), (-9.0, "v_prediction")):
        sd2[OUT_BIAS] = torch.full((4,), shift).half()
        path = write_atomic(tmp_path / "model.safetensors", sd2, {}, overwrite=True)
        assert load_bundle(path).family.prediction_type == expected
        assert outline_bundle(path).family.prediction_type == "epsilon"  # nothing was read that could tell


def test_a_marker_says_it_before_the_unet_is_asked(sd2: dict[str, Tensor], tmp_path: Path) -> None:
    path = write_atomic(tmp_path / "model.safetensors", sd2 | {"v_pred": torch.tensor([])}, {})
    assert load_bundle(path).family.prediction_type == "v_prediction"
    assert outline_bundle(path).family.prediction_type == "v_prediction"


def test_sd2_inpainting_is_epsilon_as_the_webui_has_it(
    sd2: dict[str, Tensor], family_models: FamilyModels, tmp_path: Path
) -> None:
    tensors = read_checkpoint(family_models["sd2-inpaint"]).tensors | {OUT_BIAS: torch.full((4,), -9.0).half()}
    path = write_atomic(tmp_path / "model.safetensors", tensors, {})
    assert load_bundle(path).family.prediction_type == "epsilon"


def test_the_yaml_has_the_last_word(family_models: FamilyModels, tmp_path: Path) -> None:
    source = family_models["sd1-v"]
    path = tmp_path / "model.safetensors"
    path.write_bytes(source.read_bytes())
    (tmp_path / "small-clip").symlink_to(source.parent / "small-clip")
    yaml = source.with_suffix(".yaml").read_text()
    path.with_suffix(".yaml").write_text(yaml.replace("parameterization: v", "parameterization: eps"))
    assert "v_pred" in read_checkpoint(path).tensors
    assert load_bundle(path).family.prediction_type == "epsilon"


@pytest.mark.parametrize(
    ("name", "markers"), [("sdxl", []), ("sd1-v", ["v_pred"]), ("sdxl-v-ztsnr", ["v_pred", "ztsnr"])]
)
def test_markers_are_empty_tensors(family_models: FamilyModels, name: str, markers: list[str]) -> None:
    found = marker_tensors(load_bundle(family_models[name]))
    assert list(found) == markers
    assert all(tensor.shape == (0,) for tensor in found.values())


def test_zero_terminal_snr_stretches_the_schedule_once(family_models: FamilyModels) -> None:
    plain, stretched = (load_bundle(family_models[name]).alphas_cumprod for name in ("sdxl-v", "sdxl-v-ztsnr"))
    assert stretched[999] == 0 and plain[999] == pytest.approx(0.00466, abs=1e-5)
    assert stretched[[0, 500, 900]].tolist() == pytest.approx([0.999150, 0.241019, 0.002960], abs=2e-6)
    assert with_zero_terminal_snr(stretched) is stretched
    assert ends_in_pure_noise(torch.tensor([0.9, 4.8973451890853435e-08]))  # what the WebUI puts for 0
    assert not ends_in_pure_noise(torch.empty(1000, device="meta"))


def test_a_schedule_in_the_file_counts_for_sd1_and_not_for_sdxl(family_models: FamilyModels, tmp_path: Path) -> None:
    own = torch.linspace(0.99, 0.1, 1000)
    for name, is_used in (("sd1", True), ("sdxl", False)):
        source = family_models[name]
        path = write_atomic(
            tmp_path / f"{name}.safetensors", read_checkpoint(source).tensors | {"alphas_cumprod": own}, {}
        )
        path.with_suffix(".yaml").write_text(source.with_suffix(".yaml").read_text())
        if not (tmp_path / "small-clip").exists():
            (tmp_path / "small-clip").symlink_to(source.parent / "small-clip")
        assert torch.equal(load_bundle(path).alphas_cumprod, own) is is_used


def test_a_marked_file_with_a_schedule_of_its_own_is_stretched_too(family_models: FamilyModels, tmp_path: Path) -> None:
    source = family_models["sd1-v-ztsnr"]
    tensors = read_checkpoint(source).tensors | {"alphas_cumprod": torch.linspace(0.99, 0.1, 1000)}
    path = write_atomic(tmp_path / "own.safetensors", tensors, {})
    path.with_suffix(".yaml").write_text(source.with_suffix(".yaml").read_text())
    (tmp_path / "small-clip").symlink_to(source.parent / "small-clip")
    bundle = load_bundle(path)
    assert bundle.has_zero_terminal_snr and bundle.alphas_cumprod[0] == pytest.approx(0.99)
