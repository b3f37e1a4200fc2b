"""LoRA files: kohya's names and suffixes, the arithmetic, and clear words for what is not supported."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from extensions_lib.errors import FormatError
from extensions_lib.formats.lora import LoraLayer, lora_algorithms, lora_tensors, read_lora
from extensions_lib.formats.safetensors_io import write_atomic

LINEAR = "lora_unet_mid_block_attentions_0_proj_in"
CONV = "lora_unet_down_blocks_0_resnets_0_conv1"


def layers() -> dict[str, LoraLayer]:
    generator = torch.Generator().manual_seed(0)
    return {
        LINEAR: LoraLayer(
            torch.randn(2, 3, generator=generator), torch.randn(4, 2, generator=generator).requires_grad_(), 1.0
        ),
        CONV: LoraLayer(
            torch.randn(3, 2, 3, 3, generator=generator), torch.randn(5, 3, 1, 1, generator=generator), 6.0
        ),
    }


def test_names_shapes_and_dtypes() -> None:
    tensors = lora_tensors(layers(), torch.float16)
    assert {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()} == {
        f"{LINEAR}.lora_down.weight": ((2, 3), torch.float16),
        f"{LINEAR}.lora_up.weight": ((4, 2), torch.float16),
        f"{LINEAR}.alpha": ((), torch.float32),
        f"{CONV}.lora_down.weight": ((3, 2, 3, 3), torch.float16),
        f"{CONV}.lora_up.weight": ((5, 3, 1, 1), torch.float16),
        f"{CONV}.alpha": ((), torch.float32),
    }
    assert not any(tensor.requires_grad for tensor in tensors.values())


def test_read_back(tmp_path: Path) -> None:
    path = write_atomic(tmp_path / "a.safetensors", lora_tensors(layers(), torch.float32), {})
    found = read_lora(path)
    assert found.keys() == layers().keys()
    for name, layer in layers().items():
        assert torch.equal(found[name].down, layer.down) and torch.equal(found[name].up, layer.up)
        assert found[name].alpha == layer.alpha


def test_half_precision_is_read_as_float32(tmp_path: Path) -> None:
    path = write_atomic(tmp_path / "a.safetensors", lora_tensors(layers(), torch.bfloat16), {})
    layer = read_lora(path)[LINEAR]
    assert layer.down.dtype == layer.up.dtype == torch.float32
    assert torch.equal(layer.down, layers()[LINEAR].down.bfloat16().float())


def test_delta_by_hand() -> None:
    """alpha / rank * up @ down = 3 / 2 * [[1, 2]] @ [[1, 0], [0, 10]]."""
    layer = LoraLayer(torch.tensor([[1.0, 0.0], [0.0, 10.0]]), torch.tensor([[1.0, 2.0]]), 3.0)
    assert layer.rank == 2 and layer.weight_shape == (1, 2)
    assert torch.equal(layer.delta(), torch.tensor([[1.5, 30.0]]))


def test_delta_of_a_convolution_is_two_convolutions() -> None:
    layer = layers()[CONV]
    picture = torch.randn(1, 2, 6, 6, generator=torch.Generator().manual_seed(1))
    one = torch.nn.functional.conv2d(picture, layer.delta())
    two = torch.nn.functional.conv2d(torch.nn.functional.conv2d(picture, layer.down), layer.up) * (6.0 / 3)
    assert layer.weight_shape == (5, 2, 3, 3)
    torch.testing.assert_close(one, two)


def test_without_alpha_it_is_the_rank(tmp_path: Path) -> None:
    tensors = lora_tensors(layers(), torch.float32)
    del tensors[f"{CONV}.alpha"]
    found = read_lora(write_atomic(tmp_path / "a.safetensors", tensors, {}))
    assert (found[CONV].alpha, found[LINEAR].alpha) == (3.0, 1.0)


@pytest.mark.parametrize(
    ("prefix", "down", "up", "name"),
    [
        (LINEAR, "lora_A.weight", "lora_B.weight", LINEAR),
        ("unet.mid_block.attentions.0.proj_in", "lora_A.weight", "lora_B.weight", LINEAR),
        (
            "base_model.model.unet.mid_block.attentions.0.proj_in",
            "lora_A.default.weight",
            "lora_B.default.weight",
            LINEAR,
        ),
        ("unet.mid_block.attentions.0.proj_in", "lora.down.weight", "lora.up.weight", LINEAR),
        (
            "text_encoder.text_model.encoder.layers.0.mlp.fc1",
            "lora_A.weight",
            "lora_B.weight",
            "lora_te_text_model_encoder_layers_0_mlp_fc1",
        ),
    ],
)
def test_pefts_names(tmp_path: Path, prefix: str, down: str, up: str, name: str) -> None:
    tensors = {f"{prefix}.{down}": torch.ones(2, 3), f"{prefix}.{up}": torch.ones(4, 2)}
    found = read_lora(write_atomic(tmp_path / "a.safetensors", tensors, {}))
    assert list(found) == [name]
    assert found[name].weight_shape == (4, 3) and found[name].alpha == 2.0


def test_old_pickled_files(tmp_path: Path) -> None:
    torch.save(lora_tensors(layers(), torch.float32), tmp_path / "a.pt")
    assert read_lora(tmp_path / "a.pt").keys() == layers().keys()


def test_a_bundled_embedding_is_left_out(tmp_path: Path) -> None:
    tensors = {**lora_tensors(layers(), torch.float32), "bundle_emb.cat.string_to_param.*": torch.ones(1, 768)}
    assert read_lora(write_atomic(tmp_path / "a.safetensors", tensors, {})).keys() == layers().keys()


@pytest.mark.parametrize(
    ("suffix", "algorithm"),
    [
        ("hada_w1_a", "LoHa"),
        ("lokr_w1", "LoKr"),
        ("lokr_w1_b", "LoKr"),
        ("dora_scale", "DoRA"),
        ("lora_mid.weight", "LoCon (CP)"),
        ("oft_blocks", "OFT"),
        ("diff", "full difference"),
        ("w_norm", "norm difference"),
        ("a1.weight", "GLoRA"),
        ("on_input", "IA3"),
    ],
)
def test_other_algorithms_are_named(tmp_path: Path, suffix: str, algorithm: str) -> None:
    tensors = {**lora_tensors(layers(), torch.float32), f"{LINEAR}.{suffix}": torch.ones(1)}
    path = write_atomic(tmp_path / "a.safetensors", tensors, {})
    assert lora_algorithms(tensors) == sorted([algorithm, "LoRA"])
    with pytest.raises(FormatError) as caught:
        read_lora(path)
    assert caught.value.message == f"{path} is made with {algorithm}; accepted here are plain factors."


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({f"{LINEAR}.lora_up.weight": None}, f"the layer {LINEAR} lacks lora_up"),
        ({f"{LINEAR}.lora_up.weight": torch.ones(4, 5)}, "do not fit together: (4, 5) and (2, 3)"),
        (
            {f"{LINEAR}.lora_up.weight": torch.ones(4, 0), f"{LINEAR}.lora_down.weight": torch.ones(0, 3)},
            "do not fit together: (4, 0) and (0, 3)",
        ),
        ({f"{LINEAR}.bias": torch.ones(4)}, f"holds the tensor '{LINEAR}.bias'"),
    ],
)
def test_broken_layers(tmp_path: Path, changed: dict[str, torch.Tensor | None], text: str) -> None:
    tensors = {**lora_tensors(layers(), torch.float32), **changed}
    path = write_atomic(tmp_path / "a.safetensors", {k: v for k, v in tensors.items() if v is not None}, {})
    with pytest.raises(FormatError) as caught:
        read_lora(path)
    assert text in caught.value.message


def test_a_file_that_is_no_lora(tmp_path: Path) -> None:
    path = write_atomic(tmp_path / "a.safetensors", {"emb_params": torch.ones(1, 768)}, {})
    with pytest.raises(FormatError, match="is not a LoRA"):
        read_lora(path)
