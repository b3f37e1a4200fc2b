from __future__ import annotations

import pytest

from extensions_lib.errors import ModelError, UnsupportedModelError
from extensions_lib.formats.safetensors_io import TensorInfo
from extensions_lib.models.detect import check_parts, detect_family
from extensions_lib.models.family import SD1, SD2, SDXL, ModelFamily

from .conftest import TinyModel

INPUT = "model.diffusion_model.input_blocks.0.0.weight"
ATTENTION = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"


def header(*names: str, **shapes: tuple[int, ...]) -> dict[str, TensorInfo]:
    return {name: TensorInfo("F16", (8, 8, 1, 1)) for name in names} | {
        name: TensorInfo("F16", shape) for name, shape in shapes.items()
    }


def sd1_header(channels: int = 4, width: int = 768, *others: str) -> dict[str, TensorInfo]:
    shapes = {INPUT: (320, channels, 3, 3), ATTENTION: (320, width)}
    return header(*others, **shapes)


def test_sd1_at_any_width(tiny: TinyModel) -> None:
    assert detect_family(sd1_header()) == SD1
    family = detect_family(tiny.header)
    assert (family.name, family.text_width, family.latent_scale) == ("sd1", 64, 0.18215)


LINEAR = {"model.diffusion_model.input_blocks.1.1.proj_in.weight": (320, 320)}
LABELS = "model.diffusion_model.label_emb.0.0.weight"


@pytest.mark.parametrize(
    ("found", "family"),
    [
        (sd1_header(4, 1024, "cond_stage_model.model.token_embedding.weight"), SD2),
        (sd1_header(9, 1024, "cond_stage_model.model.token_embedding.weight"), SD2),
        (sd1_header(4, 1024) | header(**LINEAR), SD2),
        (sd1_header(4, 2048, "conditioner.embedders.1.model.token_embedding.weight"), SDXL),
        (sd1_header(4, 2048, LABELS) | header(**LINEAR), SDXL),
        (sd1_header(9, 2048, LABELS), SDXL),
        (sd1_header(9), SD1),
        (sd1_header(4, 768, "v_pred", "ztsnr"), SD1),
    ],
)
def test_the_families_are_told_apart(found: dict[str, TensorInfo], family: ModelFamily) -> None:
    assert detect_family(found) == family


def test_width_comes_from_the_file() -> None:
    narrow = detect_family(sd1_header(4, 192, "conditioner.embedders.1.model.token_embedding.weight"))
    assert (narrow.name, narrow.text_width) == ("sdxl", 192)


@pytest.mark.parametrize(
    ("found", "what"),
    [
        (sd1_header(8), "an instruct-pix2pix checkpoint"),
        (sd1_header(5), "a depth checkpoint"),
        (sd1_header(7), "7 input channels"),
        (sd1_header(8, 2048, "conditioner.embedders.1.model.ln_final.weight"), "an instruct-pix2pix checkpoint"),
        (sd1_header(4, 2048, "edm_mean", "conditioner.embedders.1.model.ln_final.weight"), "the EDM formulation"),
        (sd1_header(4, 2048, "edm_vpred.sigma_max"), "the EDM formulation"),
        (sd1_header(4, 1280, "conditioner.embedders.0.model.ln_final.weight"), "XL refiner"),
        (sd1_header(4, 768, "cond_stage_model.roberta.embeddings.position_ids"), "AltDiffusion"),
        (sd1_header(4, 768, "embedder.model.ln_final.weight"), "unCLIP"),
        (header("model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"), "Stable Diffusion 3"),
        (header("double_blocks.0.img_attn.qkv.weight"), "Flux"),
        (header("control_model.input_blocks.0.0.weight"), "ControlNet"),
        (header("down_blocks.0.resnets.0.conv1.weight"), "a single network in diffusers layout"),
        (header("lora_unet_mid_block_attentions_0_proj_in.lora_down.weight"), "a LoRA"),
        (header("unet.mid_block.attentions.0.to_q.lora_A.weight"), "a LoRA"),
        (header("decoder.conv_in.weight", "encoder.conv_in.weight"), "a VAE"),
        (header("first_stage_model.decoder.conv_in.weight"), "a VAE"),
        (header("text_model.embeddings.token_embedding.weight"), "a text encoder"),
        (header("768.0.linear.0.weight"), "a hypernetwork"),
        (header(emb_params=(4, 768)), "an embedding"),
        (header(clip_l=(2, 768), clip_g=(2, 1280)), "an embedding"),
    ],
)
def test_others_are_named_and_refused(found: dict[str, TensorInfo], what: str) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        detect_family(found, "x.safetensors")
    assert caught.value.message.startswith("x.safetensors is ") and what in caught.value.message
    assert (
        "Stable Diffusion 1, 2 and XL checkpoints can be trained" in caught.value.message
        and caught.value.hint.startswith(("Choose", "Name it"))
    )


@pytest.mark.parametrize("found", [{}, header("some.conv.weight", "b", "c", "d")])
def test_unknown_files_show_what_is_in_them(found: dict[str, TensorInfo]) -> None:
    with pytest.raises(ModelError, match="no model we know; its first tensors are: (none|some.conv.weight, b, c)\\."):
        detect_family(found)


def test_missing_parts_say_what_to_do(tiny: TinyModel) -> None:
    check_parts(tiny.header, "x", SD1, needs_vae=True)
    no_vae = {name: info for name, info in tiny.header.items() if not name.startswith("first_stage")}
    with pytest.raises(ModelError, match="x holds no VAE.*Name a VAE file"):
        check_parts(no_vae, "x", SD1, needs_vae=True)
    check_parts(no_vae, "x", SD1, needs_vae=False)
    no_text = {name: info for name, info in tiny.header.items() if not name.startswith("cond_stage")}
    with pytest.raises(ModelError, match="x holds no text encoder"):
        check_parts(no_text, "x", SD1, needs_vae=True)
    one = header("conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight")
    with pytest.raises(ModelError, match="x holds only one of its two text encoders"):
        check_parts(one, "x", SDXL, needs_vae=False)
