from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from extensions_lib.errors import FormatError, KeyMismatchError, ModelError, UnsupportedModelError
from extensions_lib.formats.checkpoint import read_checkpoint
from extensions_lib.formats.safetensors_io import file_sha256
from extensions_lib.models.bundle import ModelBundle
from extensions_lib.models.ldm import bundle_to_ldm
from extensions_lib.models.load import load_bundle, outline_bundle

from .conftest import YAML, TinyModel

pytestmark = pytest.mark.usefixtures("shared_tokenizer")
Write = Callable[..., Path]
TEXT = "cond_stage_model.transformer."
POSITION_IDS = TEXT + "text_model.embeddings.position_ids"
LATENTS = torch.linspace(-1, 1, 2 * 4 * 8 * 8).reshape(2, 4, 8, 8)


@pytest.fixture(scope="module")
def bundle(tiny_path: Path) -> ModelBundle:
    return load_bundle(tiny_path)


def assert_same_tensors(written: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(written) == list(expected)
    for name, tensor in expected.items():
        assert written[name].dtype == tensor.dtype and torch.equal(written[name], tensor), name


def assert_same_weights(bundle: ModelBundle, tiny: TinyModel, dtype: torch.dtype = torch.float32) -> None:
    for part, module in bundle.parts.items():
        expected = tiny.parts[part].state_dict()
        assert module.state_dict().keys() == expected.keys()
        for name, tensor in module.state_dict().items():
            assert torch.equal(tensor.float(), expected[name].to(tensor.dtype).float()), name
            assert tensor.dtype == (dtype if expected[name].is_floating_point() else torch.int64)


def test_every_weight_arrives(bundle: ModelBundle, tiny: TinyModel) -> None:
    assert_same_weights(bundle, tiny)
    assert not any(p.requires_grad for part in bundle.parts.values() for p in part.parameters())
    assert not any(part.training for part in bundle.parts.values())


@torch.no_grad()
def test_the_networks_compute_the_same(bundle: ModelBundle, tiny: TinyModel) -> None:
    """Names and shapes can fit and the settings be wrong: heads, activations, groups."""
    ids = torch.tensor([bundle.tokenizer.empty_chunk()] * 2)
    text = tiny.parts["text_encoder"](ids).last_hidden_state
    assert torch.equal(bundle.text_encoder(ids).last_hidden_state, text)
    expected = tiny.parts["unet"](LATENTS, 500, text).sample
    assert torch.equal(bundle.unet(LATENTS, 500, text).sample, expected)
    picture = tiny.parts["vae"].decode(LATENTS).sample
    assert torch.equal(bundle.vae.decode(LATENTS).sample, picture)
    assert torch.equal(bundle.vae.encode(picture).latent_dist.mean, tiny.parts["vae"].encode(picture).latent_dist.mean)


def test_facts_of_the_bundle(bundle: ModelBundle, tiny_path: Path) -> None:
    family, source = bundle.family, bundle.source
    assert (family.name, family.text_width, family.prediction_type) == ("sd1", 64, "epsilon")
    assert (source.path, source.name, source.is_folder) == (tiny_path, "tiny", False)
    assert source.sha256 == file_sha256(tiny_path) and len(source.autov1) == 8
    assert bundle.tokenizer.tokenize("cat") == [2368]
    assert bundle.vae.config.scaling_factor == family.latent_scale == 0.18215


def test_schedule_is_sd15s(bundle: ModelBundle) -> None:
    alphas = bundle.alphas_cumprod
    assert alphas.shape == (1000,) and alphas.dtype == torch.float32
    assert alphas[0].item() == pytest.approx(1 - 0.00085, abs=1e-7)
    assert alphas[999].item() == pytest.approx(0.0046600, abs=1e-7)


def test_diffusers_reads_what_we_write(bundle: ModelBundle) -> None:
    """Their own converters, from checkpoint names to theirs, as an independent table."""
    from diffusers.loaders import single_file_utils

    written = bundle_to_ldm(bundle)
    for part, prefix, convert in (
        ("unet", "model.diffusion_model.", single_file_utils.convert_ldm_unet_checkpoint),
        ("vae", "first_stage_model.", single_file_utils.convert_ldm_vae_checkpoint),
    ):
        own = {name: tensor for name, tensor in written.items() if name.startswith(prefix)}
        module = bundle.parts[part]
        converted = convert(dict(own), config=dict(module.config))
        expected = module.state_dict()
        assert converted.keys() == expected.keys()
        assert all(torch.equal(converted[name].reshape(tensor.shape), tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("name", ["tiny.safetensors", "tiny.ckpt"])
def test_half_precision_files_round_trip(tiny: TinyModel, write: Write, name: str) -> None:
    """fp16 networks beside an fp32 VAE, positions, EMA and schedule buffers: the very same file comes back."""
    stored = {key: t if key.startswith("first_stage") else t.half() for key, t in tiny.tensors.items()}
    stored |= {
        POSITION_IDS: torch.arange(77)[None],
        "model_ema.diffusion_modelout2bias": torch.ones(4),
        "model_ema.num_updates": torch.tensor(7, dtype=torch.int32),
        "betas": torch.linspace(0.1, 0.2, 1000),
        "first_stage_model.loss.logvar": torch.zeros(()),
        TEXT + "text_projection.weight": torch.eye(3).half(),
    }
    stored = dict(sorted(stored.items()))
    path = write(stored, name=name)
    half = TinyModel(tiny.parts, read_checkpoint(path).tensors)
    bundle = load_bundle(path)
    assert all(p.dtype == torch.float32 for part in bundle.parts.values() for p in part.parameters())
    assert_same_tensors(bundle_to_ldm(bundle), half.tensors)


def test_old_text_encoder_names_are_kept(tiny: TinyModel, write: Write) -> None:
    stored = {name.replace(TEXT + "text_model.", TEXT): tensor for name, tensor in tiny.tensors.items()}
    stored[TEXT + "embeddings.position_ids"] = torch.arange(77)[None].half()
    path = write(stored)
    bundle = load_bundle(path)
    assert_same_weights(bundle, tiny)
    assert_same_tensors(bundle_to_ldm(bundle), read_checkpoint(path).tensors)


def test_trained_weights_are_written_in_the_files_dtype(tiny: TinyModel, write: Write) -> None:
    bundle = load_bundle(write({name: tensor.half() for name, tensor in tiny.tensors.items()}))
    bundle.unet.conv_out.bias.data.fill_(1.00001)
    written = bundle_to_ldm(bundle)["model.diffusion_model.out.2.bias"]
    assert written.dtype == torch.float16 and written.tolist() == [1.0] * 4


def test_loading_in_another_dtype(tiny: TinyModel, tiny_path: Path) -> None:
    bundle = load_bundle(tiny_path, dtype=torch.bfloat16)
    assert_same_weights(bundle, tiny, torch.bfloat16)
    assert {tensor.dtype for tensor in bundle_to_ldm(bundle).values()} == {torch.float32}
    assert bundle.alphas_cumprod.dtype == torch.float32


def test_the_unet_alone_in_another_dtype(tiny: TinyModel, tiny_path: Path) -> None:
    bundle = load_bundle(tiny_path, unet_dtype=torch.bfloat16)
    dtypes = {part: {p.dtype for p in module.parameters()} for part, module in bundle.parts.items()}
    assert dtypes == {"unet": {torch.bfloat16}, "vae": {torch.float32}, "text_encoder": {torch.float32}}
    weight = tiny.parts["unet"].conv_in.weight
    assert torch.equal(bundle.unet.conv_in.weight, weight.bfloat16())


def test_parts_move_to_their_own_dtypes(tiny_path: Path) -> None:
    bundle = load_bundle(tiny_path)
    bundle.to("cpu", unet=torch.bfloat16, text_encoder=torch.float16)
    dtypes = {name: next(part.parameters()).dtype for name, part in bundle.parts.items()}
    assert dtypes == {"unet": torch.bfloat16, "vae": torch.float32, "text_encoder": torch.float16}
    assert bundle.text_encoder.text_model.embeddings.position_ids.dtype == torch.int64
    bundle.unet.requires_grad_(True).train()
    bundle.freeze()
    assert not bundle.unet.training and not next(bundle.unet.parameters()).requires_grad


def test_yaml_decides_what_shapes_cannot(tiny: TinyModel, write: Write) -> None:
    yaml = YAML.replace("num_heads: 8", "num_heads: 4").replace("scale_factor: 0.18215", "scale_factor: 0.25")
    yaml = yaml.replace("linear_end: 0.0120", "linear_end: 0.02\n    parameterization: v")
    bundle = load_bundle(write(tiny.tensors, yaml=yaml))
    assert bundle.unet.mid_block.attentions[0].transformer_blocks[0].attn1.heads == 4
    assert bundle.text_encoder.config.num_attention_heads == 4
    assert (bundle.family.prediction_type, bundle.family.latent_scale) == ("v_prediction", 0.25)
    assert bundle.vae.config.scaling_factor == 0.25
    assert bundle.alphas_cumprod[999] < 0.001


def test_the_files_own_schedule_wins(tiny: TinyModel, write: Write) -> None:
    own = torch.linspace(0.99, 4.9e-8, 1000)
    bundle = load_bundle(write(tiny.tensors | {"alphas_cumprod": own.double()}))
    assert torch.equal(bundle.alphas_cumprod, own.double().float())
    assert bundle_to_ldm(bundle)["alphas_cumprod"].dtype == torch.float64


@pytest.mark.parametrize(
    ("own", "message"),
    [(torch.ones(10), r"shape \(10,\), not \(1000,\)"), (torch.linspace(0.1, 0.9, 1000), "not a falling series")],
)
def test_a_broken_schedule_is_refused(tiny: TinyModel, write: Write, own: Tensor, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        load_bundle(write(tiny.tensors | {"alphas_cumprod": own}))


@pytest.mark.parametrize(
    ("name", "prefix"), [("v.safetensors", "first_stage_model."), ("v.pt", ""), ("v.pt", "first_stage_model.")]
)
def test_a_separate_vae_replaces_the_files(tiny: TinyModel, write: Write, name: str, prefix: str) -> None:
    own = {key: tensor.half() for key, tensor in tiny.tensors.items() if key.startswith("first_stage_model.")}
    vae = {key.replace("first_stage_model.", prefix): tensor * 2 for key, tensor in own.items()}
    vae_path = write(vae | {prefix + "loss.logvar": torch.zeros(())}, name=name)
    path = write(tiny.tensors | {"first_stage_model.loss.logvar": torch.zeros(())}, name="model.safetensors")
    bundle = load_bundle(path, vae_path=vae_path)
    assert torch.equal(bundle.vae.decoder.conv_in.weight, own["first_stage_model.decoder.conv_in.weight"].float() * 2)
    written = bundle_to_ldm(bundle)
    assert written.keys() == tiny.tensors.keys()
    for key, tensor in written.items():
        assert torch.equal(tensor, own[key] * 2 if key in own else tiny.tensors[key]) and (
            key not in own or tensor.dtype == torch.float16
        )


def test_a_checkpoint_without_vae_needs_one(tiny: TinyModel, tiny_path: Path, write: Write) -> None:
    path = write({name: tensor for name, tensor in tiny.tensors.items() if not name.startswith("first_stage")})
    with pytest.raises(ModelError, match=r"tiny.safetensors holds no VAE"):
        load_bundle(path)
    bundle = load_bundle(path, vae_path=tiny_path)  # a checkpoint lends its VAE
    assert_same_weights(bundle, tiny)
    assert bundle_to_ldm(bundle).keys() == tiny.tensors.keys()


def test_a_file_that_is_no_vae(tiny: TinyModel, tiny_path: Path, write: Write) -> None:
    path = write({"emb_params": torch.ones(2, 64)}, name="x.safetensors")
    with pytest.raises(FormatError, match="x.safetensors is no VAE file"):
        load_bundle(tiny_path, vae_path=path)


def test_misfits_are_listed_with_counts(tiny: TinyModel, write: Write) -> None:
    unet = "model.diffusion_model."
    bad = dict(tiny.tensors)
    for name in [name for name in bad if name.startswith(unet + "time_embed.")]:
        del bad[name]
    bad[unet + "out.0.bias"] = torch.ones(3)
    bad[unet + "new.weight"] = torch.ones(1)
    with pytest.raises(KeyMismatchError) as caught:
        load_bundle(write(bad))
    message = caught.value.message
    assert message.startswith("tiny.safetensors does not fit the model")
    assert f"4 missing ({unet}time_embed.0.weight (128, 32), " in message and ", ...)" in message
    assert f"1 unexpected ({unet}new.weight (1,))" in message
    assert f"1 of another shape ({unet}out.0.bias (3,) instead of (32,))" in message


def test_nan_is_named(tiny: TinyModel, write: Write) -> None:
    name = "first_stage_model.post_quant_conv.bias"
    with pytest.raises(ModelError, match=r"tiny \(vae\): 4 of 4 numbers of post_quant_conv.bias are NaN"):
        load_bundle(write(tiny.tensors | {name: torch.full((4,), float("nan"))}))


def test_missing_and_foreign_files(tmp_path: Path, tiny_path: Path, write: Write) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        load_bundle(tmp_path / "none.safetensors")
    with pytest.raises(ModelError, match="does not exist"):
        load_bundle(tiny_path, vae_path=tmp_path / "none.pt")
    with pytest.raises(UnsupportedModelError, match="x.safetensors is a LoRA"):
        load_bundle(write({"lora_unet_x.lora_up.weight": torch.ones(1)}, name="x.safetensors"))


def test_works_while_the_webui_has_replaced_torchs_functions(
    tiny: TinyModel, tiny_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What A1111 does, process-wide, while it loads a model of its own."""
    linear_init = torch.nn.Linear.__init__
    monkeypatch.setattr(
        torch.nn.Linear, "__init__", lambda *args, **kwargs: linear_init(*args, **kwargs | {"device": "meta"})
    )
    monkeypatch.setattr(torch.nn.Module, "to", lambda *args, **kwargs: None)
    monkeypatch.setattr(torch.nn.Module, "load_state_dict", lambda *args: None)
    monkeypatch.setattr(torch.nn.init, "kaiming_uniform_", lambda *args, **kwargs: None)
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: None)
    assert_same_weights(load_bundle(tiny_path), tiny)


def test_global_random_state_is_left_alone(tiny_path: Path) -> None:
    state = torch.get_rng_state()
    load_bundle(tiny_path)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_outline_is_the_model_without_its_weights(tiny_path: Path, bundle: ModelBundle) -> None:
    outline = outline_bundle(tiny_path)
    for part, module in outline.parts.items():
        loaded = bundle.parts[part].state_dict()
        shapes = {name: tensor.shape for name, tensor in module.state_dict().items()}
        assert shapes == {name: tensor.shape for name, tensor in loaded.items()}
        assert {tensor.device.type for tensor in module.parameters()} == {"meta"}
    assert outline.family == bundle.family
    assert outline.source == replace(bundle.source, sha256="", autov1="")
    assert outline.tokenizer.tokenize("a cat") == bundle.tokenizer.tokenize("a cat")


def test_the_outline_is_refused_as_the_model_is(tiny: TinyModel, tiny_path: Path, write: Write) -> None:
    path = write({name: tensor for name, tensor in tiny.tensors.items() if not name.startswith("first_stage")})
    with pytest.raises(ModelError, match="holds no VAE"):
        outline_bundle(path)
    assert outline_bundle(path, vae_path=tiny_path).vae.config.scaling_factor == 0.18215
    with pytest.raises(ModelError, match="does not exist"):
        outline_bundle(path.with_name("gone.safetensors"))
