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
from extensions_lib.formats.embedding import (
    bundled_names,
    bundled_tensors,
    embedding_tensors,
    file_tensors,
    pt_embedding_bytes,
    read_embedding,
)
from extensions_lib.formats.network import read_network
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


XL = {"clip_l": VECTORS, "clip_g": G_VECTORS}


def as_the_webui_reads(data: dict[str, torch.Tensor]) -> tuple[int, int]:
    """(vectors, width) by the rules of `create_embedding_from_data`, for what a .safetensors file holds."""
    if "clip_g" in data and "clip_l" in data:
        return data["clip_g"].shape[0], data["clip_g"].shape[-1] + data["clip_l"].shape[-1]
    assert len(data) == 1, "embedding file has multiple terms in it"
    vectors = next(iter(data.values()))
    return vectors.shape[0], vectors.shape[-1]


def test_files_as_the_webui_reads_them() -> None:
    assert as_the_webui_reads(file_tensors("cat", {"": VECTORS})) == (2, 4)
    written = file_tensors("cat", XL)
    assert list(written) == ["clip_l", "clip_g"]  # a third tensor would be taken as a vector
    assert as_the_webui_reads(written) == (2, 10)


@pytest.mark.parametrize(
    "vectors", [{"clip_l": VECTORS}, {**XL, "clip_g": G_VECTORS[:1]}, {"": VECTORS, "clip_l": VECTORS}]
)
def test_vectors_that_fit_no_file(vectors: dict[str, torch.Tensor]) -> None:
    with pytest.raises(ValueError, match="vectors must be clip_l and clip_g with as many rows each"):
        file_tensors("cat", vectors)


def bundle(tmp_path: Path, **embeddings: dict[str, torch.Tensor]) -> Path:
    tensors = {"lora_unet_x.lora_down.weight": torch.ones(1, 2), "lora_unet_x.lora_up.weight": torch.ones(2, 1)}
    for name, vectors in embeddings.items():
        tensors |= bundled_tensors(name, vectors)
    return write_atomic(tmp_path / "lora.safetensors", tensors, {"name": "not this", "step": "9"})


@pytest.mark.parametrize("vectors", [{"": VECTORS}, XL], ids=["sd1", "sdxl"])
def test_an_embedding_inside_a_lora(tmp_path: Path, vectors: dict[str, torch.Tensor]) -> None:
    path = bundle(tmp_path, zcat=vectors)
    assert bundled_names(path) == ("zcat",)
    for name in ("zcat", "", "whatever the job is called"):
        found = read_embedding(path, name)
        assert found.name == "zcat" and found.step is None
        assert found.vectors.keys() == vectors.keys()
        assert all(torch.equal(found.vectors[key], vectors[key]) for key in vectors)
    assert set(read_network(path)) == {"lora_unet_x"}


def test_the_keys_of_a_bundle_are_those_the_webui_splits() -> None:
    """It takes what precedes the first dot, then the embedding's name, then 'string_to_param' and its key."""
    (key,) = bundled_tensors("zcat", {"": VECTORS})
    first, _, rest = key.partition(".")
    name, part = rest.split(".", 1)
    assert (first, name, part.split(".", 1)) == ("bundle_emb", "zcat", ["string_to_param", "*"])
    assert set(bundled_tensors("zcat", XL)) == {"bundle_emb.zcat.clip_l", "bundle_emb.zcat.clip_g"}
    for name in ("z.cat", ""):
        with pytest.raises(ValueError, match="ends at the first dot"):
            bundled_tensors(name, {"": VECTORS})


def test_several_embeddings_inside_a_lora(tmp_path: Path) -> None:
    path = bundle(tmp_path, one={"": VECTORS}, two={"": VECTORS + 1})
    assert bundled_names(path) == ("one", "two")
    assert torch.equal(read_embedding(path, "two").vectors[""], VECTORS + 1)
    with pytest.raises(FormatError, match="holds the embeddings one, two, none called 'three'"):
        read_embedding(path, "three")


def test_other_files_have_no_embedding_inside(tmp_path: Path) -> None:
    assert bundled_names(write_atomic(tmp_path / "cat.safetensors", {"cat": VECTORS}, {})) == ()
    assert bundled_names(tmp_path / "missing.pt") == ()
