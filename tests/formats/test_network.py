"""The reader of LoRA-family files: the arithmetic of each algorithm, and what does not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from extensions_lib.errors import FormatError, KeyMismatchError
from extensions_lib.formats.network import LayerChange, changes_tensors, lora_change, network_tensors, read_network
from extensions_lib.formats.safetensors_io import write_atomic
from extensions_lib.formats.suffixes import lora_algorithms

NAME = "lora_unet_mid_block_attentions_0_proj_in"


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def read(folder: Path, tensors: dict[str, Tensor]) -> LayerChange:
    folder.mkdir(exist_ok=True)
    named = {f"{NAME}.{suffix}": tensor for suffix, tensor in tensors.items()}
    return read_network(write_atomic(folder / "a.safetensors", named, {}))[NAME]


def test_lora_by_hand(tmp_path: Path) -> None:
    """1.5 / 1 * [[2], [3]] @ [[1, 10]], at half strength."""
    tensors = {"lora_up.weight": torch.tensor([[2.0], [3.0]]), "lora_down.weight": torch.tensor([[1.0, 10.0]])}
    change = read(tmp_path, {**tensors, "alpha": torch.tensor(1.5)})
    assert change.algorithm == "LoRA" and change.flat_shape == (2, 2)
    assert torch.equal(change.delta(torch.zeros(2, 2), 0.5), torch.tensor([[1.5, 15.0], [2.25, 22.5]]))
    assert read(tmp_path / "b", {**tensors, "scale": torch.tensor(7.0)}).scale == 7.0
    assert read(tmp_path / "c", tensors).scale == 1.0


def test_loha_by_hand(tmp_path: Path) -> None:
    """([[1], [2]] @ [[1, 3]]) * ([[5], [7]] @ [[1, 2]]) * 3 / 1."""
    parts = {"w1_a": [[1.0], [2.0]], "w1_b": [[1.0, 3.0]], "w2_a": [[5.0], [7.0]], "w2_b": [[1.0, 2.0]]}
    tensors = {f"hada_{name}": torch.tensor(values) for name, values in parts.items()}
    change = read(tmp_path, {**tensors, "alpha": torch.tensor(3.0)})
    assert torch.equal(change.delta(torch.zeros(2, 2)), torch.tensor([[15.0, 90.0], [42.0, 252.0]]))


def test_lokr_by_hand(tmp_path: Path) -> None:
    """kron([[1, 2]], [[1], [10]]); alpha counts for nothing when both matrices are whole."""
    tensors = {"lokr_w1": torch.tensor([[1.0, 2.0]]), "lokr_w2": torch.tensor([[1.0], [10.0]])}
    change = read(tmp_path, {**tensors, "alpha": torch.tensor(5.0)})
    assert change.flat_shape == (2, 2)
    assert torch.equal(change.delta(torch.zeros(2, 2)), torch.tensor([[1.0, 2.0], [10.0, 20.0]]))
    factored = {"lokr_w1": tensors["lokr_w1"], "lokr_w2_a": tensors["lokr_w2"], "lokr_w2_b": torch.tensor([[3.0]])}
    change = read(tmp_path / "b", {**factored, "alpha": torch.tensor(2.0)})
    assert torch.equal(change.delta(torch.zeros(2, 2)), torch.tensor([[6.0, 12.0], [60.0, 120.0]]))


def test_lokrs_convolution_has_its_kernel_in_the_large_matrix(tmp_path: Path) -> None:
    first, second = drawn(2, 3), drawn(4, 5, 3, 3, seed=1)
    change = read(tmp_path, {"lokr_w1": first, "lokr_w2": second})
    delta = change.delta(torch.zeros(8, 15, 3, 3))
    for out, inp in ((0, 0), (7, 14), (5, 8)):
        torch.testing.assert_close(delta[out, inp], first[out // 4, inp // 5] * second[out % 4, inp % 5])


def test_tucker_forms(tmp_path: Path) -> None:
    """delta[o, i] = sum over r, s of core[r, s] * a[r, o] * b[s, i], for each place of the kernel."""
    core, outer, inner = drawn(2, 2, 3, 3), drawn(2, 5, seed=1), drawn(2, 4, seed=2)
    product = sum(
        core[r, s] * outer[r][:, None, None, None] * inner[s][None, :, None, None] for r in range(2) for s in range(2)
    )
    base = torch.zeros(5, 4, 3, 3)
    lora = {"lora_up.weight": outer.T.reshape(5, 2, 1, 1), "lora_down.weight": inner.reshape(2, 4, 1, 1)}
    change = read(tmp_path, {**lora, "lora_mid.weight": core, "alpha": torch.tensor(1.0)})
    torch.testing.assert_close(change.delta(base), product / 2)
    halves = {f"hada_w{n}_{part}": tensor for n in (1, 2) for part, tensor in (("a", outer), ("b", inner))}
    change = read(tmp_path / "b", {**halves, "hada_t1": core, "hada_t2": core, "alpha": torch.tensor(2.0)})
    torch.testing.assert_close(change.delta(base), product**2)
    lokr = {"lokr_w1": torch.ones(1, 1), "lokr_w2_a": outer, "lokr_w2_b": inner, "lokr_t2": core}
    torch.testing.assert_close(read(tmp_path / "c", lokr).delta(base), product)


def test_differences_and_their_biases(tmp_path: Path) -> None:
    full = read(tmp_path, {"diff": drawn(3, 2), "diff_b": drawn(3, seed=1)})
    assert torch.equal(full.delta(torch.zeros(3, 2), 2.0), drawn(3, 2) * 2)
    assert torch.equal(full.bias_delta(2.0), drawn(3, seed=1) * 2)
    norm = read(tmp_path / "b", {"w_norm": drawn(3), "b_norm": drawn(3, seed=1)})
    assert norm.fits((3,)) and not norm.fits((4,))
    assert torch.equal(norm.delta(torch.ones(3)), drawn(3))
    assert torch.equal(norm.bias_delta(), drawn(3, seed=1))


def test_only_differences_change_a_bias(tmp_path: Path) -> None:
    tensors = {"lora_up.weight": drawn(3, 1), "lora_down.weight": drawn(1, 2), "diff_b": drawn(3)}
    assert read(tmp_path, tensors).bias_delta() is None


def test_a_1x1_convolution_may_be_stored_as_a_matrix(tmp_path: Path) -> None:
    change = read(tmp_path, {"lora_up.weight": drawn(3, 1), "lora_down.weight": drawn(1, 2)})
    assert change.fits((3, 2, 1, 1)) and change.fits((3, 2)) and not change.fits((2, 3))
    assert change.delta(torch.zeros(3, 2, 1, 1)).shape == (3, 2, 1, 1)


@pytest.mark.parametrize("shape", [(3, 1), (1, 3), (2,)])
def test_a_dora_of_the_other_axis_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    tensors = {"lora_up.weight": drawn(3, 1), "lora_down.weight": drawn(1, 2), "dora_scale": torch.ones(shape)}
    change = read(tmp_path, tensors)
    assert not change.fits((3, 2))
    with pytest.raises(KeyMismatchError) as caught:
        change.delta(torch.ones(3, 2))
    assert f"(LoRA) is for (3, 2) with dora_scale {shape}" in caught.value.message


@pytest.mark.parametrize(
    ("tensors", "is_zero"),
    [
        ({"lora_up.weight": torch.zeros(3, 1), "lora_down.weight": torch.ones(1, 2)}, True),
        ({"lora_up.weight": torch.ones(3, 1), "lora_down.weight": torch.ones(1, 2)}, False),
        ({"lokr_w1": torch.ones(1, 1), "lokr_w2": torch.zeros(3, 2)}, True),
        ({"lokr_w1": torch.ones(1, 1), "lokr_w2_a": torch.ones(3, 1), "lokr_w2_b": torch.zeros(1, 2)}, True),
        ({"lokr_w1": torch.ones(1, 1), "lokr_w2": torch.ones(3, 2)}, False),
        ({"diff": torch.zeros(3, 2), "diff_b": torch.ones(3)}, False),
        ({"diff": torch.zeros(3, 2)}, True),
        ({"w_norm": torch.zeros(3), "b_norm": torch.zeros(3)}, True),
        ({"w_norm": torch.zeros(3), "b_norm": torch.ones(3)}, False),
    ],
)
def test_what_changes_nothing(tmp_path: Path, tensors: dict[str, Tensor], is_zero: bool) -> None:
    assert read(tmp_path, tensors).is_zero is is_zero


@pytest.mark.parametrize(
    ("tensors", "text"),
    [
        ({"diff_b": torch.ones(3)}, "has diff_b, which is no whole change"),
        ({"w_norm": torch.ones(3)}, "has w_norm, which is no whole change"),
        ({"lokr_w1": torch.ones(1, 1), "lokr_w2_a": torch.ones(3, 1)}, "has lokr_w1, lokr_w2_a, which is no whole"),
        ({"lora_up.weight": torch.ones(3, 2), "lora_down.weight": torch.ones(1, 2)}, "do not fit together: lora_down"),
        ({"lokr_w1": torch.ones(2), "lokr_w2": torch.ones(3, 2)}, "do not fit together: lokr_w1 (2,)"),
        ({"oft_blocks": torch.ones(1, 2, 2), "alpha": torch.ones(())}, "oft_blocks', which no LoRA has"),
    ],
)
def test_broken_layers(tmp_path: Path, tensors: dict[str, Tensor], text: str) -> None:
    with pytest.raises(FormatError) as caught:
        read(tmp_path, tensors)
    assert text in caught.value.message


def test_number_formats_in_a_file() -> None:
    """What readers compute in the file's own format is exact; plain factors and whole differences may be half."""
    suffixes = ("lora_up.weight", "alpha", "dora_scale", "hada_w1_a", "lokr_w2", "w_norm", "diff", "diff_b")
    half, brain, whole = torch.float16, torch.bfloat16, torch.float32
    for asked, found in (
        (half, (half, whole, whole, whole, whole, whole, half, half)),
        (brain, (brain, whole, whole, whole, whole, whole, half, half)),
        (whole, (whole,) * 8),
    ):
        tensors = network_tensors({"x": dict.fromkeys(suffixes, torch.ones(1))}, asked)
        assert [tensors[f"x.{suffix}"].dtype for suffix in suffixes] == list(found)


CONV = "lora_unet_down_blocks_0_resnets_0_conv1"


def test_names_shapes_and_dtypes_of_plain_factors() -> None:
    layers = [
        lora_change(NAME, drawn(4, 2).requires_grad_(), drawn(2, 3), (4, 3)),
        lora_change(CONV, drawn(5, 3), drawn(3, 18), (5, 2, 3, 3), torch.float16),
    ]
    tensors = changes_tensors(layers, torch.float16)
    assert {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()} == {
        f"{NAME}.lora_down.weight": ((2, 3), torch.float16),
        f"{NAME}.lora_up.weight": ((4, 2), torch.float16),
        f"{NAME}.alpha": ((), torch.float32),
        f"{CONV}.lora_down.weight": ((3, 2, 3, 3), torch.float16),
        f"{CONV}.lora_up.weight": ((5, 3, 1, 1), torch.float16),
        f"{CONV}.alpha": ((), torch.float32),
    }
    assert not any(tensor.requires_grad for tensor in tensors.values())
    assert torch.equal(layers[1].tensors["lora_up.weight"].flatten(1), drawn(5, 3).half().float())


def test_the_change_of_a_convolution_is_two_convolutions(tmp_path: Path) -> None:
    tensors = {"lora_down.weight": drawn(3, 2, 3, 3), "lora_up.weight": drawn(5, 3, 1, 1, seed=1)}
    change = read(tmp_path, {**tensors, "alpha": torch.tensor(6.0)})
    picture = drawn(1, 2, 6, 6, seed=2)
    one = torch.nn.functional.conv2d(picture, change.undecomposed())
    small = torch.nn.functional.conv2d(picture, tensors["lora_down.weight"])
    two = torch.nn.functional.conv2d(small, tensors["lora_up.weight"]) * 2
    assert change.shape == (5, 2, 3, 3)
    torch.testing.assert_close(one, two)


def test_factors_have_the_whole_strength(tmp_path: Path) -> None:
    lora = {"lora_up.weight": drawn(5, 2), "lora_down.weight": drawn(2, 4, seed=1), "alpha": torch.tensor(3.0)}
    tucker = {"lora_up.weight": drawn(5, 2, 1, 1), "lora_down.weight": drawn(3, 4, 1, 1), "scale": torch.tensor(0.5)}
    for folder, tensors in (("a", lora), ("b", {**tucker, "lora_mid.weight": drawn(2, 3, 3, 3)})):
        change = read(tmp_path / folder, tensors)
        up, down = change.factors()
        torch.testing.assert_close((up @ down).reshape(change.shape) * change.scale, change.undecomposed())
    assert read(tmp_path / "c", {"diff": drawn(3, 2)}).factors() is None


def test_a_kernel_that_the_tensors_do_not_tell_is_known_by_name() -> None:
    halves = {f"hada_w{n}_{part}": drawn(*shape) for n in (1, 2) for part, shape in (("a", (6, 2)), ("b", (2, 36)))}
    assert LayerChange(CONV, "LoHa", halves).shape == (6, 4, 3, 3)
    assert LayerChange(NAME, "LoHa", halves).shape == (6, 36)
    assert LayerChange(CONV, "LoHa", halves).flat_shape == (6, 36)


@pytest.mark.parametrize(
    ("prefix", "down", "up", "name"),
    [
        (NAME, "lora_A.weight", "lora_B.weight", NAME),
        ("unet.mid_block.attentions.0.proj_in", "lora_A.weight", "lora_B.weight", NAME),
        (
            "base_model.model.unet.mid_block.attentions.0.proj_in",
            "lora_A.default.weight",
            "lora_B.default.weight",
            NAME,
        ),
        ("unet.mid_block.attentions.0.proj_in", "lora.down.weight", "lora.up.weight", NAME),
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
    found = read_network(write_atomic(tmp_path / "a.safetensors", tensors, {}))
    assert list(found) == [name] and found[name].flat_shape == (4, 3) and found[name].scale == 1.0


def test_old_pickles_and_bundled_embeddings(tmp_path: Path) -> None:
    tensors = {f"{NAME}.lora_down.weight": torch.ones(1, 2), f"{NAME}.lora_up.weight": torch.ones(2, 1)}
    torch.save({**tensors, "bundle_emb.cat.string_to_param.*": torch.ones(1, 768)}, tmp_path / "a.pt")
    assert read_network(tmp_path / "a.pt").keys() == {NAME}


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
        ("lora_down.weight", "LoRA"),
    ],
)
def test_algorithms_by_suffix(suffix: str, algorithm: str) -> None:
    assert lora_algorithms([f"{NAME}.{suffix}", f"{NAME}.alpha"]) == [algorithm]
