"""Run by the WebUI's own Python: small checkpoints of each family, random weights, built by the WebUI's own classes.

    python make_family_models.py WEBUI_ROOT FOLDER CLIP_FOLDER

Each is written as FOLDER/<name>.safetensors with the yaml the WebUI builds it from again. The text encoders are
CLIP_FOLDER's (Hugging Face layout) and open_clip's smallest, since the WebUI knows open_clip's models by name only.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import torch

OPEN_CLIP_ARCH, OPEN_CLIP_WIDTH = "ViT-S-32-alt", 256
SIZE_EMBEDDING = 256
V_SCALING = "sgm.modules.diffusionmodules.denoiser_scaling.VScaling"


def unet_params(context_dim: int, **more: Any) -> dict[str, Any]:
    """What every UNet here has in common: 64 and 128 channels, heads of 32."""
    return {
        "image_size": 32,
        "use_checkpoint": False,
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": 64,
        "attention_resolutions": [4, 2, 1],
        "num_res_blocks": 2,
        "channel_mult": [1, 2, 2, 2],
        "num_head_channels": 32,
        "use_spatial_transformer": True,
        "use_linear_in_transformer": True,
        "transformer_depth": 1,
        "context_dim": context_dim,
        "legacy": False,
        **more,
    }


def narrowed_vae(config: Any) -> None:
    config.params.ddconfig.ch = 32
    config.params.ddconfig.attn_type = "vanilla"


def narrowed_sd(config: Any, unet: dict[str, Any], parameterization: str, conditioner: dict[str, Any]) -> Any:
    """A copy of an SD 1 or 2 config at this size."""
    config = copy.deepcopy(config)
    params = config.model.params
    params.parameterization = parameterization
    params.unet_config.params = unet
    params.cond_stage_config.params = conditioner
    narrowed_vae(params.first_stage_config)
    if "scheduler_config" in params:
        del params["scheduler_config"]
    return config


def narrowed_sdxl(config: Any, clip_folder: str, clip_width: int, clip_layers: int, is_v: bool) -> Any:
    """A copy of the SDXL config at this size."""
    config = copy.deepcopy(config)
    params = config.model.params
    if is_v:
        params.denoiser_config.params.scaling_config.target = V_SCALING
    params.network_config.params = unet_params(
        clip_width + OPEN_CLIP_WIDTH,
        attention_resolutions=[4, 2],
        channel_mult=[1, 2, 2],
        transformer_depth=[1, 1, 2],
        adm_in_channels=OPEN_CLIP_WIDTH + 6 * SIZE_EMBEDDING,
        num_classes="sequential",
        spatial_transformer_attn_type="softmax",
    )
    del params.network_config.params["image_size"]  # the SDXL UNet of generative-models has no such parameter
    clip, open_clip = params.conditioner_config.params.emb_models[:2]
    clip.params = {"layer": "hidden", "layer_idx": clip_layers - 1, "version": clip_folder}
    open_clip.params.arch, open_clip.params.version = OPEN_CLIP_ARCH, None
    narrowed_vae(params.first_stage_config)
    return config


def randomised(model: torch.nn.Module, seed: int) -> None:
    """Weights of about the size that keeps signals alive; gains near one."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        fan_in = max(parameter[0].numel(), 1) if parameter.ndim > 1 else 100
        parameter.data = noise / fan_in**0.5 + (1.0 if parameter.ndim == 1 and parameter.mean() > 0.5 else 0.0)


def install_builders() -> None:
    """Text encoders are built from their configs: there are no weights to download, and none are wanted."""
    import open_clip
    from transformers import CLIPTextConfig, CLIPTextModel

    create = open_clip.create_model_and_transforms
    open_clip.create_model_and_transforms = lambda arch, device=None, pretrained=None: create(arch, device=device)
    CLIPTextModel.from_pretrained = classmethod(lambda cls, version: cls(CLIPTextConfig.from_pretrained(version)))


def main(root: Path, folder: Path, clip_folder: str) -> None:
    repositories = root / "repositories"
    sys.path[:0] = [str(repositories / "stable-diffusion-stability-ai"), str(repositories / "generative-models")]
    install_builders()
    from ldm.util import instantiate_from_config
    from omegaconf import OmegaConf
    from safetensors.torch import save_file
    from transformers import CLIPTextConfig

    clip = CLIPTextConfig.from_pretrained(clip_folder)
    sd2 = OmegaConf.load(repositories / "stable-diffusion-stability-ai/configs/stable-diffusion/v2-inference-v.yaml")
    sd1 = OmegaConf.load(root / "configs" / "v1-inference.yaml")
    sdxl = OmegaConf.load(repositories / "generative-models/configs/inference/sd_xl_base.yaml")
    sd1_unet = unet_params(clip.hidden_size, num_heads=4, use_linear_in_transformer=False, legacy=False)
    del sd1_unet["num_head_channels"]
    hugging_face, open_clip = {"version": clip_folder}, {"arch": OPEN_CLIP_ARCH, "freeze": True, "layer": "penultimate"}
    configs = {
        "sd1-v": narrowed_sd(sd1, sd1_unet, "v", hugging_face),
        "sd2": narrowed_sd(sd2, unet_params(OPEN_CLIP_WIDTH), "eps", open_clip),
        "sd2-v": narrowed_sd(sd2, unet_params(OPEN_CLIP_WIDTH), "v", open_clip),
        "sdxl": narrowed_sdxl(sdxl, clip_folder, clip.hidden_size, clip.num_hidden_layers, False),
        "sdxl-v": narrowed_sdxl(sdxl, clip_folder, clip.hidden_size, clip.num_hidden_layers, True),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for number, (name, config) in enumerate(configs.items()):
        model = instantiate_from_config(config.model)
        randomised(model, number)
        tensors = {key: value.contiguous().clone() for key, value in model.state_dict().items()}
        wanted = ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.", "conditioner.")
        tensors = {key: value for key, value in tensors.items() if key.startswith(wanted) and ".visual." not in key}
        save_file(tensors, folder / f"{name}.safetensors")
        OmegaConf.save(config, folder / f"{name}.yaml")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
