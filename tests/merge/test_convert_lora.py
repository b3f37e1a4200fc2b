"""Files of other programs as the WebUI reads them: names, strengths, lengths of a DoRA, words."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from extensions_lib.config.tools import load_tool
from extensions_lib.control import JobControl
from extensions_lib.errors import ConfigError, MergeError, OutputError
from extensions_lib.events import Event, Warned
from extensions_lib.formats.embedding import bundled_tensors, read_embedding
from extensions_lib.formats.keys import lora_layer_name
from extensions_lib.formats.lineage import lineage
from extensions_lib.formats.network import DORA_SCALE, read_network
from extensions_lib.formats.safetensors_io import read_header, read_tensors, write_atomic
from extensions_lib.merge.convert_lora import convert_lora
from extensions_lib.merge.layers import layer_places
from extensions_lib.merge.lora_files import WrittenLora
from extensions_lib.merge.models import read_model
from extensions_lib.merge.rebuild import rebuild
from extensions_lib.models.load import load_bundle

from ..methods.independent import model_with
from ..model_families import FamilyModels
from .conftest import drawn

PROJ = "down_blocks.1.attentions.0.proj_in"
KEY = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
CONV = "down_blocks.1.resnets.0.conv1"
TEXT = "text_model.encoder.layers.0.self_attn.q_proj"
Converting = Callable[..., WrittenLora]


@pytest.fixture
def converting(tmp_path: Path) -> Converting:
    """converting(file, ...) -> what was written, in float32."""

    def run(network: Path, events: list[Event] | None = None, **settings: Any) -> WrittenLora:
        table = {"name": "own", "network": str(network), "folder": str(tmp_path / "out"), "dtype": "fp32"}
        emit = (events if events is not None else []).append
        return convert_lora(load_tool("convert-lora", {**table, **settings}), JobControl(), emit)

    return run


def named(path: str, family: str, part: str = "unet") -> str:
    return lora_layer_name(path, part, family)


def stored(
    folder: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None, name: str = "given"
) -> Path:
    return write_atomic(folder / f"{name}.safetensors", tensors, metadata or {})


def pair(down: str, up: str, *shape: int, seed: int = 0) -> dict[str, Tensor]:
    """Factors of rank 2 for a weight of that shape, under these names."""
    outputs, inputs, *kernel = shape
    ups = drawn(outputs, 2, *(1 for _ in kernel), seed=seed)
    return {up: ups, down: drawn(2, inputs, *kernel, seed=seed + 50)}


# Program: names of the factors of a UNet's layer, and of the text encoders.
PROGRAMS = {
    "kohya": ("lora_unet_{flat}.lora_{side}.weight", "lora_te1_{flat}.lora_{side}.weight"),
    "diffusers": ("unet.{path}.lora_{letter}.weight", "text_encoder.{path}.lora_{letter}.weight"),
    "old diffusers": ("unet.{path}.lora.{side}.weight", "text_encoder.{path}.lora_linear_layer.{side}.weight"),
    "peft": ("base_model.model.{path}.lora_{letter}.default.weight", "base_model.model.{path}.lora_{letter}.weight"),
    "onetrainer": ("lora_unet.{path}.lora_{side}.weight", "lora_te1.{path}.lora_{side}.weight"),
    "onetrainer omi": ("unet.{path}.lora_{side}.weight", "clip_l.{path}.lora_{side}.weight"),
}


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_names_of_every_program(
    program: str, family: str, converting: Converting, family_models: FamilyModels, tmp_path: Path
) -> None:
    """The written file changes the model's weights as the given factors do, in the reader of the methods' tests."""
    base = load_bundle(family_models[family])
    unet, text = PROGRAMS[program]
    modules = {("unet", path): dict(base.unet.named_modules())[path] for path in (PROJ, KEY, CONV)}
    modules[("text_encoder", TEXT)] = dict(base.text_encoders["text_encoder"].named_modules())[TEXT]
    tensors: dict[str, Tensor] = {}
    for (part, path), module in modules.items():
        pattern = unet if part == "unet" else text
        names = [
            pattern.format(path=path, flat=path.replace(".", "_"), side=side, letter=letter)
            for side, letter in (("down", "A"), ("up", "B"))
        ]
        tensors |= pair(*names, *module.weight.shape, seed=len(path))
    path = converting(stored(tmp_path, tensors), family=family).path
    found, _, num_modules = model_with(family_models[family], path, "lora", "")
    assert num_modules == 4 + 3 * (family == "sd2"), "OpenCLIP's attention is completed"
    for (part, own), module in modules.items():
        changed = dict(found.parts[part].named_modules())[own].weight
        up, down = (drawn(*s, seed=len(own) + o) for s, o in (((len(changed), 2), 0), ((2, changed[0].numel()), 50)))
        wanted = module.weight + (up @ down).reshape(module.weight.shape)
        torch.testing.assert_close(changed, wanted, rtol=1e-5, atol=1e-5)
    metadata = read_header(path)[1]
    assert metadata["ss_v2"] == str(family == "sd2") and metadata["ss_base_model_version"].startswith(
        family[:4] if family == "sdxl" else "sd_v"
    )


@pytest.mark.parametrize(
    ("metadata", "settings", "alpha"),
    [
        ({}, {}, 2.0),
        ({}, {"alpha": 8.0}, 8.0),
        ({}, {"scale": 0.7}, 1.4),
        ({"lora_adapter_metadata": json.dumps({"unet.r": 2, "unet.lora_alpha": 6})}, {}, 6.0),
        ({"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 6, "unet.use_rslora": True})}, {}, 6.0 * 2**0.5),
        ({"lora_adapter_metadata": json.dumps({"text_encoder.lora_alpha": 6})}, {}, 2.0),
    ],
)
def test_strengths(
    metadata: dict[str, str], settings: dict[str, Any], alpha: float, converting: Converting, tmp_path: Path
) -> None:
    name = f"unet.{PROJ}"
    path = stored(tmp_path, pair(f"{name}.lora_A.weight", f"{name}.lora_B.weight", 8, 4), metadata)
    found = converting(path, family="sd1", **settings)
    assert float(read_tensors(found.path)[f"{named(PROJ, 'sd1')}.alpha"]) == pytest.approx(alpha)
    assert "lora_adapter_metadata" not in read_header(found.path)[1]


def test_a_strength_that_stands_beside_the_file(converting: Converting, tmp_path: Path) -> None:
    name = f"base_model.model.{PROJ}"
    path = stored(tmp_path, pair(f"{name}.lora_A.weight", f"{name}.lora_B.weight", 8, 4))
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 16, "r": 2}), encoding="utf-8")
    with pytest.raises(MergeError, match="adapter_config.json beside it says alpha 16 at rank 2") as caught:
        converting(path, family="sd1")
    assert caught.value.hint == "Give alpha 16."
    assert float(read_tensors(converting(path, family="sd1", alpha=16.0).path)[f"{named(PROJ, 'sd1')}.alpha"]) == 16.0


KINDS: dict[str, dict[str, Tensor]] = {
    "loha": {
        **{f"hada_w{n}_a": drawn(6, 2, seed=n) for n in (1, 2)},
        **{f"hada_w{n}_b": drawn(2, 4, seed=n) for n in (1, 2)},
    },
    "lokr": {"lokr_w1": drawn(2, 2), "lokr_w2": drawn(3, 2, seed=1), "alpha": torch.tensor(9.0)},
    "lokr of factors": {
        "lokr_w1": drawn(2, 2), "lokr_w2_a": drawn(3, 1), "lokr_w2_b": drawn(1, 2), "alpha": torch.tensor(0.5)
    },
    "scale": {"lora_up.weight": drawn(6, 2), "lora_down.weight": drawn(2, 4), "scale": torch.tensor(3.0)},
    "full": {"diff": drawn(6, 4), "diff_b": drawn(6, seed=1)},
    "tucker": {
        "lora_up.weight": drawn(6, 2), "lora_down.weight": drawn(2, 4), "lora_mid.weight": drawn(2, 2, 1, 1)
    },
}  # fmt: skip


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_keeps_its_change_at_the_new_strength(
    kind: str, dtype: str, converting: Converting, tmp_path: Path
) -> None:
    name = named(PROJ, "sd1")
    path = stored(tmp_path, {f"{name}.{suffix}": tensor for suffix, tensor in KINDS[kind].items()})
    found = converting(path, family="sd1", scale=0.7, dtype=dtype).path
    base, before, after = drawn(6, 4, seed=9), read_network(path)[name], read_network(found)[name]
    tolerance = {"fp32": 1e-5, "fp16": 4e-3, "bf16": 4e-2}[dtype]
    torch.testing.assert_close(after.delta(base), before.delta(base, 0.7), rtol=tolerance, atol=tolerance)
    if before.bias_delta() is not None:
        torch.testing.assert_close(after.bias_delta(), before.bias_delta(0.7), rtol=tolerance, atol=tolerance)
    assert "scale" not in after.tensors and after.algorithm == before.algorithm
    stored_as = {name.split(".", 1)[1]: tensor.dtype for name, tensor in read_tensors(found).items()}
    assert all(kind == torch.float32 for suffix, kind in stored_as.items() if suffix.startswith(("hada", "lokr")))


def dora(folder: Path, base: Path, kind: str, spelling: str = "dora_scale") -> tuple[Path, dict[str, Tensor]]:
    """A DoRA of every kind of layer with lengths far from the start, and the weights that it makes of the base's."""
    places, tensors = layer_places(read_model(base)), read_tensors(base)
    told: dict[str, Tensor] = {}
    wanted: dict[str, Tensor] = {}
    for part, path in (("unet", PROJ), ("unet", CONV), ("text_encoder", TEXT)):
        place = places[named(path, "sd2", part)]
        weight = place.rows(tensors[place.weight]).float()
        factors = pair("down", "up", *weight.shape, seed=len(path))
        changed = weight + (factors["up"].flatten(1) @ factors["down"].flatten(1)).reshape(weight.shape) * 0.1
        axes = [axis for axis in range(weight.ndim) if axis != (0 if kind == "outputs" else 1)]
        lengths = changed.square().sum(axes, keepdim=True).sqrt()
        scale = 1 + 0.5 * drawn(*lengths.shape, seed=3).abs()
        wanted[place.layer] = changed / lengths * scale
        name = f"{part}.{path}" if spelling != "dora_scale" else place.layer
        told |= {f"{name}.lora_up.weight": factors["up"] * 0.1, f"{name}.lora_down.weight": factors["down"]}
        told[f"{name}.{spelling}"] = scale.transpose(0, 1) if spelling != "dora_scale" else scale
    return stored(folder, told, {"ss_v2": "True", "ss_base_model_version": "sd_v2"}), wanted


@pytest.mark.parametrize(
    ("kind", "spelling"), [("outputs", "dora_scale"), ("outputs", "lora_magnitude_vector"), ("inputs", "dora_scale")]
)
@pytest.mark.parametrize("rank", [0, 600, 2])
def test_a_dora_with_its_base(
    rank: int, kind: str, spelling: str, converting: Converting, family_models: FamilyModels, tmp_path: Path
) -> None:
    """As a whole difference, as factors of full rank, and nearly; the same weights as the DoRA's own formula."""
    base = family_models["sd2"]
    path, wanted = dora(tmp_path, base, kind, spelling)
    found = converting(path, base=str(base), rank=rank)
    changes = read_network(found.path)
    assert {name for name, change in changes.items() if not change.is_zero} == set(wanted)
    places, tensors = layer_places(read_model(base)), read_tensors(base)
    left_out = whole = 0.0
    for name, weight in wanted.items():
        own = places[name].rows(tensors[places[name].weight]).float()
        assert changes[name].algorithm == ("LoRA" if rank else "full difference")
        apart = own + changes[name].delta(own) - weight
        left_out += float(apart.square().sum())
        whole += float((weight - own).square().sum())
        assert rank == 2 or apart.abs().max() < 2e-3 * weight.abs().max()
    if rank != 2:
        assert found.error is None if rank == 0 else found.error < 1e-3
    else:
        assert found.error == pytest.approx((left_out / whole) ** 0.5, rel=1e-3) and 0.1 < found.error < 1


def test_a_dora_without_its_base(converting: Converting, family_models: FamilyModels, tmp_path: Path) -> None:
    path, _ = dora(tmp_path, family_models["sd2"], "inputs")
    kept = read_network(converting(path).path)
    given = read_network(path)
    base = drawn(*given[named(PROJ, "sd2")].shape)
    assert torch.equal(kept[named(PROJ, "sd2")].delta(base), given[named(PROJ, "sd2")].delta(base))
    assert DORA_SCALE in kept[named(PROJ, "sd2")].tensors
    with pytest.raises(MergeError, match="3 layers are a DoRA .* whose strength no number holds"):
        converting(path, scale=0.5, name="half")
    (tmp_path / "o").mkdir()
    other, _ = dora(tmp_path / "o", family_models["sd2"], "outputs")
    with pytest.raises(MergeError, match="3 layers have a length for each output") as caught:
        converting(other, name="other")
    assert "Give base" in caught.value.hint
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["own.safetensors"]


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_words(family: str, converting: Converting, tmp_path: Path) -> None:
    vectors = {"": drawn(2, 768)} if family == "sd1" else {"clip_l": drawn(2, 768), "clip_g": drawn(2, 1280)}
    name = named(PROJ, family)
    lora = pair(f"{name}.lora_down.weight", f"{name}.lora_up.weight", 8, 4)
    path = stored(tmp_path, {**lora, **bundled_tensors("zcat", vectors)})
    kept = read_tensors(converting(path, family=family).path)
    assert {key for key in kept if key.startswith("bundle_emb")} == set(bundled_tensors("zcat", vectors))
    dropped = converting(path, family=family, embeddings="drop", name="dropped")
    assert not any(key.startswith("bundle_emb") for key in read_tensors(dropped.path)) and dropped.beside == ()
    words = tmp_path / "words"
    settings = {"family": family, "embeddings": "beside", "embeddings_folder": str(words)}
    beside = converting(path, name="beside", **settings)
    assert beside.beside == (words / "zcat.safetensors",)
    assert not any(key.startswith("bundle_emb") for key in read_tensors(beside.path))
    found = read_embedding(beside.beside[0])
    assert found.vectors.keys() == vectors.keys() and all(torch.equal(found.vectors[k], vectors[k]) for k in vectors)
    with pytest.raises(OutputError, match=r"zcat.safetensors already exists"):
        converting(path, name="again", **settings)
    assert not (tmp_path / "out" / "again.safetensors").exists()
    again = rebuild(beside.path, [tmp_path], tmp_path / "rebuilt.safetensors", JobControl(), lambda event: event)
    assert again.is_same is True


def test_header_lineage_and_rebuilding(converting: Converting, family_models: FamilyModels, tmp_path: Path) -> None:
    base = family_models["sd2"]
    path, _ = dora(tmp_path, base, "outputs")
    metadata = {**read_header(path)[1], "ss_tag_frequency": "{}", "ss_v2": "true", "train_studio.merge": "older"}
    write_atomic(path, read_tensors(path), metadata, overwrite=True)
    found = converting(path, base=str(base), rank=2, scale=0.5, family="sd2", dtype="fp16").path
    told = read_header(found)[1]
    assert told["ss_tag_frequency"] == "{}" and told["ss_v2"] == "True" and told["ss_output_name"] == "own"
    assert told["ss_network_module"] == "networks.lora" and "train_studio.merge" not in told
    tree = lineage(told)
    assert (tree["formula"], tree["multiplier"]) == ("Convert a LoRA", "strength 0.5")
    assert [model["name"] for model in tree["models"]] == ["given", "sd2"]
    result = rebuild(found, [tmp_path, base.parent], tmp_path / "x.safetensors", JobControl(), lambda event: event)
    assert result.is_same is True


def test_unknown_layers_and_families(converting: Converting, family_models: FamilyModels, tmp_path: Path) -> None:
    known = pair(f"unet.{PROJ}.lora_A.weight", f"unet.{PROJ}.lora_B.weight", 8, 4)
    odd = pair(
        "text_encoder.text_model.embeddings.token_embedding.lora_A.weight",
        "text_encoder.text_model.embeddings.token_embedding.lora_B.weight",
        4,
        4,
    )
    path = stored(tmp_path, known | odd)
    with pytest.raises(MergeError, match="given.safetensors does not tell for which models it is"):
        converting(path)
    with pytest.raises(MergeError, match="1 of 2 layers that models of sd1 do not have: lora_te_text_model_embeddings"):
        converting(path, family="sd1")
    events: list[Event] = []
    found = converting(path, family="sd1", ignore_unknown=True, events=events)
    assert read_network(found.path).keys() == {named(PROJ, "sd1")}
    assert any("token_embedding" in event.text for event in events if isinstance(event, Warned))
    flux = stored(
        tmp_path,
        pair(
            "transformer.single_transformer_blocks.0.a.lora_A.weight",
            "transformer.single_transformer_blocks.0.a.lora_B.weight",
            4,
            4,
        ),
        name="flux",
    )
    with pytest.raises(MergeError, match="is for flux; accepted are sd1, sd2, sdxl"):
        converting(flux)


def test_mistakes(converting: Converting, family_models: FamilyModels, tmp_path: Path) -> None:
    name = named(PROJ, "sd1")
    path = stored(tmp_path, pair(f"{name}.lora_down.weight", f"{name}.lora_up.weight", 8, 4), {"ss_v2": "False"})
    with pytest.raises(ConfigError, match="scale: is 0"):
        converting(path, scale=0.0)
    with pytest.raises(ConfigError, match="rank: is for a DoRA with its base"):
        converting(path, rank=4)
    with pytest.raises(MergeError, match="needs no base"):
        converting(path, base=str(family_models["sd1"]), family="sd1")
    with pytest.raises(MergeError, match="is for sd2, sd1.safetensors is sd1"):
        converting(path, base=str(family_models["sd1"]), family="sd2")
    broken = {**read_tensors(path), f"{name}.dora_scale": torch.ones(3, 1)}
    with pytest.raises(MergeError, match="sd1.safetensors has no layer .* of the shape"):
        converting(stored(tmp_path, broken, name="b"), base=str(family_models["sd1"]))
    with pytest.raises(OutputError, match="already exists"):
        converting(path, family="sd1", name="given", folder=str(tmp_path))
    assert not (tmp_path / "out").exists()
