"""Which layers a LoRA changes, with what, at which rates, and what its file says of it."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch

from extensions_lib.config.blocks import parse_block_values
from extensions_lib.config.job import OutputConfig
from extensions_lib.config.methods import LoraConfig
from extensions_lib.errors import FormatError, KeyMismatchError
from extensions_lib.formats.metadata import ArtefactInfo
from extensions_lib.formats.network import read_network
from extensions_lib.formats.safetensors_io import read_header, write_atomic
from extensions_lib.methods.base import Trainable
from extensions_lib.methods.catalogue import make_method
from extensions_lib.methods.lora import Lora
from extensions_lib.models.build import build_module
from extensions_lib.models.bundle import ModelBundle
from extensions_lib.models.configs import base_config
from extensions_lib.models.load import load_bundle, outline_bundle

from ..model_families import FamilyModels

FAMILIES = ("sd1", "sd2", "sdxl")


@pytest.fixture(scope="module")
def bundles(family_models: FamilyModels) -> dict[str, ModelBundle]:
    """Outlines: no weights."""
    return {name: outline_bundle(family_models[name]) for name in FAMILIES}


@pytest.fixture(scope="module")
def practice(practice_model: Path) -> ModelBundle:
    bundle = load_bundle(practice_model)
    bundle.freeze()
    return bundle


def names(method: Lora, bundle: ModelBundle) -> list[str]:
    return list(method.chosen_layers(bundle))


def counts(method: Lora, bundle: ModelBundle) -> dict[str, int]:
    parts = [layer.part for layer in method.chosen_layers(bundle).values()]
    return {part: parts.count(part) for part in dict.fromkeys(parts)}


def moved(trainable: Trainable) -> Trainable:
    with torch.no_grad():
        for index, parameter in enumerate(trainable.parameters()):
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index)) * 0.1)
    return trainable


def written(method: Lora, bundle: ModelBundle, path: Path) -> Path:
    with method.attach(bundle, "x", torch.Generator().manual_seed(0)) as trainable:
        exported = method.export(moved(trainable), ArtefactInfo(output_name="x", family=bundle.family.name))
    return write_atomic(path, exported.tensors, exported.metadata)


@pytest.mark.parametrize(
    ("layers", "sd1", "sd2"),
    [("cross-attention", 64, 64), ("attention", 128, 128), ("attention+mlp", 160, 160), ("transformer", 192, 192)],
)
def test_presets_take_more_from_left_to_right(bundles: dict, layers: str, sd1: int, sd2: int) -> None:
    """16 transformers of 4 or 8 attention layers, 2 of the network between, and the way in and out."""
    assert counts(Lora(layers=layers), bundles["sd1"]) == {"unet": sd1}
    assert counts(Lora(layers=layers), bundles["sd2"]) == {"unet": sd2}


def test_full_adds_the_layers_of_the_convolutions_blocks(bundles: dict) -> None:
    """85 of them: the real model has 86, because its first two widths differ and need one more shortcut."""
    assert counts(Lora(layers="full"), bundles["sd1"]) == {"unet": 192 + 85}
    assert names(Lora(layers="full"), bundles["sd1"]) == names(Lora(conv_rank=4), bundles["sd1"])


@pytest.mark.parametrize(("layers", "each"), [("attention", 4), ("transformer", 6)])
def test_text_encoders_of_every_family(bundles: dict, layers: str, each: int) -> None:
    method = Lora(layers=layers, train_text_encoder=True)
    for family in FAMILIES:
        found = counts(method, bundles[family])
        assert found.pop("unet") == counts(Lora(layers=layers), bundles[family])["unet"]
        assert found == dict.fromkeys(bundles[family].text_encoders, 3 * each)
    assert "lora_te2_text_model_encoder_layers_2_self_attn_out_proj" in names(method, bundles["sdxl"])
    assert "lora_te1_text_model_encoder_layers_2_self_attn_out_proj" in names(method, bundles["sdxl"])
    assert "lora_te_text_model_encoder_layers_2_self_attn_out_proj" in names(method, bundles["sd2"])


def test_norm_layers_are_those_a_file_can_name(bundles: dict) -> None:
    """OpenCLIP's cannot be named; the UNet's last norm, outside the blocks, is left alone."""
    method = Lora(algorithm="full", layers="full", train_norms=True, train_text_encoder=True)
    found = {family: [n for n in names(method, bundles[family]) if "norm" in n] for family in FAMILIES}
    assert sum(name.startswith("lora_unet_") for name in found["sd1"]) == 16 * 4 + 22 * 2
    assert [name for name in found["sd1"] if name.startswith("lora_te")] == [
        f"lora_te_text_model_encoder_layers_{layer}_layer_norm{index}" for layer in range(3) for index in (1, 2)
    ]
    assert not any(name.startswith("lora_te") for name in found["sd2"])
    sdxl = names(method, bundles["sdxl"])
    assert "lora_te1_text_model_encoder_layers_0_layer_norm1" in sdxl
    assert not any(name.startswith("lora_te2_") and "norm" in name for name in sdxl)
    assert "lora_unet_input_blocks_1_0_in_layers_0" in sdxl


def test_open_clips_attention_biases_are_not_trained_where_the_host_ignores_them(bundles: dict) -> None:
    method = Lora(algorithm="full", train_text_encoder=True)
    layers = method.chosen_layers(bundles["sdxl"])
    has_bias = {name: "diff_b" in method.recipe.shapes(layer) for name, layer in layers.items() if "_te" in name}
    for number, part in ((1, True), (2, False)):
        prefix = f"lora_te{number}_text_model_encoder_layers_0_self_attn_"
        assert [has_bias[f"{prefix}{p}_proj"] for p in ("q", "k", "v", "out")] == [part, part, part, True]


@pytest.mark.parametrize(("family", "is_refused"), [("sd1", False), ("sd2", True), ("sdxl", True)])
@pytest.mark.parametrize(
    "changes", [{"layer_filter": "self_attn.[qk]_proj"}, {"block_ranks": (("out_proj", 0.0),)}], ids=["filter", "rank"]
)
def test_a_part_of_open_clips_attention_is_refused(bundles: dict, family: str, is_refused: bool, changes: dict) -> None:
    method = Lora(train_text_encoder=True, **changes)
    if not is_refused:
        assert names(method, bundles[family])
        return
    with pytest.raises(KeyMismatchError, match="only when q_proj, k_proj, v_proj, out_proj are all there"):
        method.count_parameters(bundles[family])
    whole = Lora(train_text_encoder=True, layer_filter="self_attn|mlp.fc1")
    assert names(whole, bundles[family])


def test_ranks_and_alphas_of_blocks(bundles: dict) -> None:
    ranks = parse_block_values("up_blocks=0; mid_block=32; attn2=4", minimum=0, whole=True)
    method = Lora(rank=8, alpha=2.0, conv_rank=3, conv_alpha=5.0, block_ranks=ranks)
    layers = method.chosen_layers(bundles["sd1"])
    found = {layer.path: method.recipe.rank_of(layer) for layer in layers.values()}
    assert {rank for path, rank in found.items() if path.startswith("mid_block")} == {32}
    assert {rank for path, rank in found.items() if ".attn2." in path and path.startswith("down")} == {4}
    assert found["down_blocks.0.resnets.0.conv1"] == 3 and found["down_blocks.0.attentions.0.proj_in"] == 8
    assert not any(path.startswith("up_blocks") for path in found)
    alphas = {layer.path: method.recipe.alpha_of(layer) for layer in layers.values()}
    assert alphas["down_blocks.0.resnets.0.conv1"] == 5.0 and alphas["mid_block.attentions.0.proj_in"] == 2.0


def test_rs_lora_is_stored_so_that_division_by_the_rank_gives_the_root(practice: ModelBundle, tmp_path: Path) -> None:
    method = Lora(rank=16, alpha=8.0, rs_lora=True, layer_filter="attn2")
    changes = read_network(written(method, practice, tmp_path / "a.safetensors")).values()
    assert {change.scale for change in changes} == {8.0 / math.sqrt(16)}
    unset = Lora(rank=16, alpha=0.0, rs_lora=True)
    assert {unset.recipe.alpha_of(layer) for layer in unset.chosen_layers(practice).values()} == {16.0 * 4}


def test_rates_of_lora_plus_and_of_blocks(practice: ModelBundle) -> None:
    rates = parse_block_values("up_blocks=0.5;mid=0", minimum=0, whole=False)
    method = Lora(lora_plus_ratio=16.0, block_rates=rates, train_text_encoder=True, text_encoder_learning_rate=1e-5)
    with method.attach(practice, "x", torch.Generator().manual_seed(0)) as trainable:
        found = {group.name: (group.learning_rate, group.rate_factor) for group in trainable.groups}
        owned = sum(parameter.numel() for group in trainable.groups for parameter in group.parameters)
        assert owned == sum(parameter.numel() for parameter in trainable.module.parameters())
        ups = {id(adapter.up) for adapter in trainable.module.values()}
        quick = [group for group in trainable.groups if group.rate_factor in (16.0, 8.0)]
        assert {id(p) for group in quick for p in group.parameters} <= ups
    assert found == {
        "unet": (None, 1.0),
        "unet x 16": (None, 16.0),
        "unet x 0.5": (None, 0.5),
        "unet x 8": (None, 8.0),
        "unet x 0": (None, 0.0),
        "text_encoder": (1e-5, 1.0),
        "text_encoder x 16": (1e-5, 16.0),
    }


def test_norms_are_bounded_after_an_update(practice: ModelBundle) -> None:
    method = Lora(algorithm="full", max_norm=0.5, train_norms=True, layers="attention")
    with method.attach(practice, "x", torch.Generator().manual_seed(0)) as trainable:
        moved(trainable).after_update()
        norms = [adapter.norm() for adapter in trainable.module.values() if "diff" in adapter.suffixes]
        torch.testing.assert_close(torch.stack(norms).detach(), torch.full((128,), 0.5))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "method",
    [
        Lora(rank=2),
        Lora(algorithm="loha", rank=2, dora=True),
        Lora(algorithm="lokr", rank=2),
        Lora(algorithm="full", train_norms=True),
    ],
    ids=lambda method: method.algorithm,
)
def test_files_of_every_family_are_verified(
    family_models: FamilyModels, family: str, method: Lora, tmp_path: Path
) -> None:
    bundle = load_bundle(family_models[family])
    bundle.freeze()
    method = dataclasses.replace(method, layers="full", train_text_encoder=True)
    with method.attach(bundle, "x", torch.Generator().manual_seed(0)) as trainable:
        exported = method.export(moved(trainable), ArtefactInfo(output_name="x", family=family))
        path = write_atomic(tmp_path / "x.safetensors", exported.tensors, exported.metadata)
        assert method.verify(path, trainable, bundle).num_modules == len(trainable.module)
        moved(trainable)
        with pytest.raises(FormatError, match="not what was trained"):
            method.verify(path, trainable, bundle)


@pytest.mark.parametrize(
    ("given", "wanted", "text"),
    [
        (Lora(rank=2), Lora(algorithm="loha"), "is a LoRA of lora_down.weight, lora_up.weight; this job trains a LoHa"),
        (Lora(rank=2, dora=True), Lora(rank=2), "a LoRA of dora_scale, lora_down.weight, lora_up.weight; this job"),
        (Lora(rank=2), Lora(rank=2, dora=True), "this job trains a LoRA with DoRA."),
        (Lora(algorithm="lokr"), Lora(algorithm="full"), "is a LoKr of lokr_w1, lokr_w2; this job trains a full"),
    ],
    ids=["algorithm", "dora too much", "dora missing", "lokr"],
)
def test_a_file_of_another_algorithm_is_not_gone_on_from(
    practice: ModelBundle, tmp_path: Path, given: Lora, wanted: Lora, text: str
) -> None:
    path = written(given, practice, tmp_path / "a.safetensors")
    with pytest.raises(KeyMismatchError) as caught:
        dataclasses.replace(wanted, start_from=path).count_parameters(practice)
    assert text in caught.value.message


def test_a_file_of_another_width_is_not_gone_on_from(bundles: dict, practice: ModelBundle, tmp_path: Path) -> None:
    path = written(Lora(rank=2), practice, tmp_path / "a.safetensors")
    with pytest.raises(KeyMismatchError, match="is for a weight of"):
        Lora(rank=2, start_from=path).count_parameters(bundles["sd1"])


@pytest.mark.parametrize("algorithm", ["loha", "lokr", "full"])
def test_another_rank_and_form_are_gone_on_from(practice: ModelBundle, tmp_path: Path, algorithm: str) -> None:
    first = Lora(algorithm=algorithm, rank=2, lokr_factor=4, dtype=torch.float32)
    path = written(first, practice, tmp_path / "a.safetensors")
    going_on = Lora(algorithm=algorithm, rank=5, lokr_whole=True, start_from=path, dtype=torch.float32)
    again = written_as_it_is(going_on, practice, tmp_path / "b.safetensors")
    one, two = read_network(path), read_network(again)
    assert all(torch.equal(one[n].tensors[suffix], tensor) for n in one for suffix, tensor in two[n].tensors.items())
    assert going_on.count_parameters(practice) == first.count_parameters(practice)


def written_as_it_is(method: Lora, bundle: ModelBundle, path: Path) -> Path:
    with method.attach(bundle, "x", torch.Generator().manual_seed(0)) as trainable:
        exported = method.export(trainable, ArtefactInfo(output_name="x"))
    return write_atomic(path, exported.tensors, exported.metadata)


@pytest.mark.parametrize(
    ("method", "module", "arguments"),
    [
        (
            Lora(rank=2, rank_dropout=0.1, lora_plus_ratio=4.0),
            "networks.lora",
            {"rank_dropout": "0.1", "loraplus_lr_ratio": "4.0"},
        ),
        (Lora(rank=2, alpha=1.0, layers="full"), "networks.lora", {"conv_dim": "2", "conv_alpha": "1.0"}),
        (Lora(rank=2, algorithm="loha"), "lycoris.kohya", {"algo": "loha", "preset": "attn-mlp"}),
        (
            Lora(algorithm="lokr", lokr_whole=True, layers="attention"),
            "lycoris.kohya",
            {"algo": "lokr", "preset": "attn-only", "factor": "8", "full_matrix": "True"},
        ),
        (
            Lora(rank=2, dora=True, rs_lora=True),
            "lycoris.kohya",
            {"algo": "lora", "preset": "attn-mlp", "dora_wd": "True", "rs_lora": "True", "wd_on_out": "False"},
        ),
        (
            Lora(algorithm="full", train_norms=True),
            "lycoris.kohya",
            {"algo": "full", "preset": "attn-mlp", "train_norm": "True"},
        ),
    ],
)
def test_the_header_says_the_algorithm_in_kohyas_words(
    practice: ModelBundle, tmp_path: Path, method: Lora, module: str, arguments: dict[str, str]
) -> None:
    _, metadata = read_header(written(method, practice, tmp_path / "a.safetensors"))
    assert metadata["ss_network_module"] == module
    assert json.loads(metadata["ss_network_args"]) == arguments
    assert "ss_scale_weight_norms" not in metadata


def test_every_setting_reaches_the_method() -> None:
    """Each but `kind`, given a value other than its default."""
    values = {
        "algorithm": "lokr", "rank": 3, "alpha": 5.0, "conv_rank": 6, "conv_alpha": 7.0, "dora": True, "dropout": 0.1,
        "rank_dropout": 0.2, "module_dropout": 0.3, "max_norm": 4.0, "rs_lora": True, "lora_plus_ratio": 2.0,
        "lokr_factor": 9, "lokr_whole": True, "layers": "full", "layer_filter": "x", "train_norms": True,
        "block_ranks": "a=1", "block_rates": "b=0.5; c=2", "train_text_encoder": True,
        "text_encoder_learning_rate": 0.5, "start_from": "y",
    }  # fmt: skip
    declared = {field.name for field in dataclasses.fields(LoraConfig)} - {"kind"}
    assert values.keys() == declared
    method = make_method(LoraConfig(**values), OutputConfig(dtype="bf16"))
    parsed = {"block_ranks": (("a", 1.0),), "block_rates": (("b", 0.5), ("c", 2.0)), "start_from": Path("y")}
    assert dataclasses.asdict(method) == {**values, **parsed, "dtype": torch.bfloat16}


WIDTHS = [320, 640, 1280, 1280]
OPEN_CLIP_H = {"hidden_size": 1024, "num_hidden_layers": 23, "num_attention_heads": 16, "intermediate_size": 4096}
BIG_G = {"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 20, "intermediate_size": 5120}
# The settings of the real models, where they differ from Stable Diffusion 1's.
REAL_UNETS = {
    "sd1": {},
    "sd2": {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True},
    "sdxl": {
        "block_out_channels": WIDTHS[:3],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": [1, 2, 10],
        "cross_attention_dim": 2048,
        "attention_head_dim": [5, 10, 20],
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}
REAL_TEXTS = {
    "sd1": {"text_encoder": {}},
    "sd2": {"text_encoder": OPEN_CLIP_H},
    "sdxl": {"text_encoder": {}, "text_encoder_2": BIG_G},
}


def real_outline(bundles: dict[str, ModelBundle], family: str) -> ModelBundle:
    """A bundle of the real shapes without weights."""
    texts = {
        part: build_module("text_encoder", base_config("text_encoder") | config)
        for part, config in REAL_TEXTS[family].items()
    }
    unet = build_module("unet", base_config("unet") | REAL_UNETS[family])
    return dataclasses.replace(bundles[family], unet=unet, text_encoders=texts)


@pytest.mark.parametrize(
    ("family", "plain", "more", "text"),
    [
        ("sd1", 192, 86, {"text_encoder": 72}),
        ("sd2", 192, 86, {"text_encoder": 138}),
        ("sdxl", 722, 66, {"text_encoder": 72, "text_encoder_2": 192}),
    ],
)
def test_the_layers_of_the_real_models(bundles: dict, family: str, plain: int, more: int, text: dict[str, int]) -> None:
    """As many as kohya's trainer adapts; a LoRA has R numbers for each input and output of a layer."""
    bundle = real_outline(bundles, family)
    assert counts(Lora(), bundle) == {"unet": plain}
    assert counts(Lora(layers="full", train_text_encoder=True), bundle) == {"unet": plain + more, **text}
    sides = sum(sum(layer.module.weight.shape[:2]) for layer in Lora().chosen_layers(bundle).values())
    assert Lora(rank=4).count_parameters(bundle) == 4 * sides
    lokr = Lora(algorithm="lokr", lokr_whole=True, layers="full")
    assert lokr.count_parameters(bundle) < sum(p.numel() for p in bundle.unet.parameters()) / 40
