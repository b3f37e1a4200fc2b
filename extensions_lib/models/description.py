"""The `<stem>.yaml` that a checkpoint needs beside it where the WebUI would take it for another kind of model.

Written from the networks in memory, in the layout the WebUI instantiates: `ldm` for SD 1 and 2, `sgm` for SDXL.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from .bundle import ModelBundle
from .sibling import sibling_for_copy

Table = dict[str, Any]

_PENULTIMATE = "penultimate"
_CLIP_L_WIDTH = 768


def yaml_beside(bundle: ModelBundle, folder: Path) -> bytes | None:
    """The yaml for a checkpoint made from `bundle` and written to `folder`: that of its base, or a made one.

    None where the base has none and the WebUI finds out by itself.
    """
    copied = sibling_for_copy(bundle.source.path, bundle.family, folder)
    if copied is not None:
        return copied
    made = yaml_where_needed(bundle)
    return None if made is None else made.encode()


def yaml_where_needed(bundle: ModelBundle) -> str | None:
    """The yaml for a checkpoint of `bundle`, whose base has none; None where the WebUI finds out by itself.

    SD 1 and SDXL need one to be known as v-prediction. SD 2 always gets one: the WebUI would else find out by running
    the UNet, whose answer a training can change.
    """
    is_needed = bundle.family.is_probed or bundle.family.prediction_type == "v_prediction"
    return describe(bundle) if is_needed else None


def yaml_beside_folder(bundle: ModelBundle) -> bytes | None:
    """The yaml for a checkpoint made from a diffusers folder; None where the WebUI finds out by itself.

    A first text encoder of unusual size is described by the folder's own files.
    """
    first = bundle.family.text_encoders[0]
    if first.layout == "clip" and bundle.text_encoder.config.hidden_size != _CLIP_L_WIDTH:
        return describe(bundle, clip_version=str((bundle.source.path / first.part).absolute())).encode()
    made = yaml_where_needed(bundle)
    return None if made is None else made.encode()


def describe(bundle: ModelBundle, clip_version: str = "") -> str:
    """All that the WebUI has to know of a checkpoint of `bundle`, as YAML.

    `clip_version` names the folder of a first text encoder of unusual size, see `SiblingFacts`; OpenCLIP's have their
    usual sizes.
    """
    import yaml

    clip = {"version": clip_version} if clip_version else {}
    model = _sgm(bundle, clip) if bundle.family.has_size_conditioning else _ldm(bundle, clip)
    return yaml.safe_dump({"model": model}, sort_keys=False)


def _ldm(bundle: ModelBundle, clip: Table) -> Table:
    """SD 1 and 2."""
    kind = "LatentInpaintDiffusion" if bundle.is_inpainting else "LatentDiffusion"
    params: Table = {
        "parameterization": "v" if bundle.family.prediction_type == "v_prediction" else "eps",
        "linear_start": 0.00085,
        "linear_end": 0.012,
        "num_timesteps_cond": 1,
        "log_every_t": 200,
        "timesteps": 1000,
        "first_stage_key": "jpg",
        "cond_stage_key": "txt",
        "image_size": 64,
        "channels": 4,
        "cond_stage_trainable": False,
        "conditioning_key": "hybrid" if bundle.is_inpainting else "crossattn",
        "monitor": "val/loss_simple_ema",
        "scale_factor": bundle.family.latent_scale,
        "use_ema": False,
    }
    if bundle.is_inpainting:
        params["finetune_keys"] = None
    if bundle.family.text_encoders[0].layout == "clip":
        text = _object("ldm.modules.encoders.modules.FrozenCLIPEmbedder", clip)
    else:
        text = _object("ldm.modules.encoders.modules.FrozenOpenCLIPEmbedder", {"freeze": True, "layer": _PENULTIMATE})
    return _object(
        f"ldm.models.diffusion.ddpm.{kind}",
        params
        | {
            "unet_config": _object(
                "ldm.modules.diffusionmodules.openaimodel.UNetModel", {"image_size": 32} | _unet(bundle.unet)
            ),
            "first_stage_config": _object("ldm.models.autoencoder.AutoencoderKL", _vae(bundle.vae)),
            "cond_stage_config": text,
        },
    )


def _sgm(bundle: ModelBundle, clip: Table) -> Table:
    """SDXL."""
    modules = "sgm.modules.diffusionmodules"
    scaling = "VScaling" if bundle.family.prediction_type == "v_prediction" else "EpsScaling"
    denoiser = {
        "num_idx": 1000,
        "weighting_config": _object(f"{modules}.denoiser_weighting.EpsWeighting"),
        "scaling_config": _object(f"{modules}.denoiser_scaling.{scaling}"),
        "discretization_config": _object(f"{modules}.discretizer.LegacyDDPMDiscretization"),
    }
    config = bundle.unet.config
    unet = _unet(bundle.unet) | {
        "adm_in_channels": config.projection_class_embeddings_input_dim,
        "num_classes": "sequential",
        "spatial_transformer_attn_type": "softmax-xformers",
    }
    return _object(
        "sgm.models.diffusion.DiffusionEngine",
        {
            "scale_factor": bundle.family.latent_scale,
            "disable_first_stage_autocast": True,
            "denoiser_config": _object(f"{modules}.denoiser.DiscreteDenoiser", denoiser),
            "network_config": _object(f"{modules}.openaimodel.UNetModel", unet),
            "conditioner_config": _object("sgm.modules.GeneralConditioner", {"emb_models": _embedders(bundle, clip)}),
            "first_stage_config": _object("sgm.models.autoencoder.AutoencoderKLInferenceWrapper", _vae(bundle.vae)),
        },
    )


def _embedders(bundle: ModelBundle, clip: Table) -> list[Table]:
    """SDXL's two text encoders and three pairs of sizes, in the order they enter the UNet."""
    encoders = "sgm.modules.encoders.modules"
    first = {"layer": "hidden", "layer_idx": bundle.text_encoder.config.num_hidden_layers - 1} | clip
    second = {
        "arch": "ViT-bigG-14",
        "version": "laion2b_s39b_b160k",
        "freeze": True,
        "layer": _PENULTIMATE,
        "always_return_pooled": True,
        "legacy": False,
    }
    texts = [
        _object(f"{encoders}.FrozenCLIPEmbedder", first),
        _object(f"{encoders}.FrozenOpenCLIPEmbedder2", second),
    ]
    outdim = bundle.unet.config.addition_time_embed_dim
    sizes = {
        key: _object(f"{encoders}.ConcatTimestepEmbedderND", {"outdim": outdim})
        for key in ("original_size_as_tuple", "crop_coords_top_left", "target_size_as_tuple")
    }
    named = [*(("txt", text) for text in texts), *sizes.items()]
    return [{"is_trainable": False, "input_key": key} | embedder for key, embedder in named]


def _unet(unet: nn.Module) -> Table:
    """What both layouts say of a UNet."""
    config = unet.config
    widths = config.block_out_channels
    has_attention = ["CrossAttn" in kind for kind in config.down_block_types]
    depths, heads = config.transformer_layers_per_block, config.attention_head_dim
    is_listed = not isinstance(heads, int)
    return {
        "use_checkpoint": False,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "model_channels": widths[0],
        "attention_resolutions": [2**level for level, flag in enumerate(has_attention) if flag][::-1],
        "num_res_blocks": config.layers_per_block,
        "channel_mult": [width // widths[0] for width in widths],
        **({"num_head_channels": widths[0] // heads[0]} if is_listed else {"num_heads": heads}),
        "use_spatial_transformer": True,
        "use_linear_in_transformer": config.use_linear_projection,
        "transformer_depth": depths if isinstance(depths, int) else list(depths),
        "context_dim": config.cross_attention_dim,
        "legacy": False,
    }


def _vae(vae: nn.Module) -> Table:
    config = vae.config
    widths = config.block_out_channels
    sizes = {
        "double_z": True,
        "z_channels": config.latent_channels,
        "resolution": 256,
        "in_channels": config.in_channels,
        "out_ch": config.out_channels,
        "ch": widths[0],
        "ch_mult": [width // widths[0] for width in widths],
        "num_res_blocks": config.layers_per_block,
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    return {
        "embed_dim": config.latent_channels,
        "monitor": "val/rec_loss",
        "ddconfig": sizes,
        "lossconfig": _object("torch.nn.Identity"),
    }


def _object(target: str, params: Table | None = None) -> Table:
    """Something that the WebUI makes by calling `target`."""
    return {"target": target} if params is None else {"target": target, "params": params}
