"""Embedding files: ours, and every layout found in the wild."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from extensions_lib.errors import FormatError, ModelError
from extensions_lib.formats.embedding import embedding_tensors, pt_embedding_bytes, read_embedding
from extensions_lib.formats.safetensors_io import write_atomic

VECTORS = torch.arange(8.0).reshape(2, 4) / 3
G_VECTORS = torch.arange(12.0).reshape(2, 6)


def saved(path: Path, content: object) -> Path:
    if path.suffix == ".safetensors":
        return write_atomic(path, content, {})
    torch.save(content, path)
    return path


def card(path: Path, content: dict[str, object]) -> Path:
    text = PngInfo()
    text.add_text("sd-ti-embedding", base64.b64encode(json.dumps(content).encode()).decode())
    Image.new("RGB", (8, 8)).save(path, pnginfo=text)
    return path


def test_ours_is_one_float32_tensor_under_its_name(tmp_path: Path) -> None:
    tensors = embedding_tensors("my-cat", VECTORS.half().requires_grad_())
    assert list(tensors) == ["my-cat"]
    assert tensors["my-cat"].dtype == torch.float32 and not tensors["my-cat"].requires_grad
    metadata = {"name": "my-cat", "step": "120", "sd_checkpoint": "cafe", "sd_checkpoint_name": "model.safetensors"}
    found = read_embedding(write_atomic(tmp_path / "my-cat.safetensors", tensors, metadata))
    assert torch.equal(found.vectors[""], VECTORS.half().float())
    assert (found.name, found.step, found.base) == ("my-cat", 120, "model.safetensors")


def test_vectors_must_be_rows() -> None:
    with pytest.raises(ValueError, match=r"\(V, d\), not \(8,\)"):
        embedding_tensors("a", torch.arange(8.0))


def test_the_webuis_own_format(tmp_path: Path) -> None:
    data = pt_embedding_bytes("cat", VECTORS.requires_grad_(), 40, "0123456789", "base")
    assert not data.startswith(b"PK")  # the old serialization: the WebUI refuses zip files of a newer torch
    content = torch.load(io.BytesIO(data), weights_only=True)
    assert content.keys() == {
        "string_to_token",
        "string_to_param",
        "name",
        "step",
        "sd_checkpoint",
        "sd_checkpoint_name",
    }
    assert content["string_to_token"] == {"*": 265}
    assert type(content["string_to_param"]["*"]) is torch.Tensor
    path = tmp_path / "other name.pt"
    path.write_bytes(data)
    found = read_embedding(path)
    assert torch.equal(found.vectors[""], VECTORS)
    assert (found.name, found.step, found.base) == ("other name", 40, "base")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("kohya.safetensors", {"emb_params": VECTORS}),
        ("diffusers learned_embeds.bin", {"<cat>": VECTORS}),
        ("parameter.pt", {"cat": torch.nn.Parameter(VECTORS)}),
        ("a1111.pt", {"string_to_param": {"*": VECTORS}, "name": "x"}),
        ("onetrainer.safetensors", {"emp_params": VECTORS, "emp_params_out": VECTORS + 1}),
        ("half.safetensors", {"emb_params": VECTORS.double()}),
    ],
)
def test_layouts_of_one_encoder(tmp_path: Path, name: str, content: dict[str, torch.Tensor]) -> None:
    found = read_embedding(saved(tmp_path / name, content))
    assert list(found.vectors) == [""]
    assert torch.equal(found.vectors[""], VECTORS)
    assert found.vectors[""].dtype == torch.float32
    assert found.name == Path(name).stem and found.step is None and found.base is None


def test_one_vector_without_rows(tmp_path: Path) -> None:
    found = read_embedding(saved(tmp_path / "a.bin", {"<cat>": VECTORS[0]}))
    assert torch.equal(found.vectors[""], VECTORS[:1])


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_sdxl(tmp_path: Path, suffix: str) -> None:
    content = {"clip_l": VECTORS, "clip_g": G_VECTORS, "clip_l_out": VECTORS}
    found = read_embedding(saved(tmp_path / f"xl{suffix}", content))
    assert list(found.vectors) == ["clip_l", "clip_g"]
    assert torch.equal(found.vectors["clip_g"], G_VECTORS)


def test_a_tensor_called_like_a_field(tmp_path: Path) -> None:
    for name in ("name", "step", "string_to_param"):
        found = read_embedding(write_atomic(tmp_path / f"{name}.safetensors", embedding_tensors(name, VECTORS), {}))
        assert torch.equal(found.vectors[""], VECTORS) and found.name == name


def test_a_card(tmp_path: Path) -> None:
    content = {"string_to_param": {"*": {"TORCHTENSOR": VECTORS.tolist()}}, "name": "cat", "step": 7}
    found = read_embedding(card(tmp_path / "picture.png", content))
    assert torch.equal(found.vectors[""], VECTORS)
    assert (found.name, found.step) == ("cat", 7)


def test_pictures_that_are_no_cards(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    (tmp_path / "text.png").write_text("no picture")
    broken = PngInfo()
    broken.add_text("sd-ti-embedding", "%%%")
    Image.new("RGB", (8, 8)).save(tmp_path / "broken.png", pnginfo=broken)
    for name, text in (
        ("plain", "a picture without an embedding"),
        ("text", "is not a picture"),
        ("broken", "is damaged"),
    ):
        with pytest.raises(FormatError, match=text):
            read_embedding(tmp_path / f"{name}.png")
    with pytest.raises(ModelError, match="cannot be read"):
        read_embedding(tmp_path / "missing.png")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"string_to_param": {"a": VECTORS, "b": VECTORS}}, r"it holds 2 tensors \(a, b\), one is needed"),
        ({"a": VECTORS, "b": VECTORS, "c": VECTORS, "d": VECTORS}, r"4 tensors \(a, b, c\)"),
        ({"epoch": 3}, r"0 tensors \(none\)"),
        ({"w": torch.ones(2, 2, 3)}, r"of shape \(2, 2, 3\), not \(V, d\)"),
        ({"w": torch.ones(2, 2, dtype=torch.int64)}, "torch.int64"),
        ({"w": torch.ones(0, 4)}, r"\(0, 4\)"),
        ([VECTORS], "it holds a list"),
        (VECTORS, "it holds a Tensor"),
    ],
)
def test_what_is_no_embedding(tmp_path: Path, content: object, text: str) -> None:
    with pytest.raises(FormatError, match=text):
        read_embedding(saved(tmp_path / "a.pt", content))
