"""Key tables: what a tensor is called in diffusers, in a single-file (LDM) checkpoint and in a LoRA file.

Names only, no tensors except for the VAE attention, whose matrices change rank, and OpenCLIP's joined ones. Sources:
the original `ldm/modules/diffusionmodules/{openaimodel,model}.py` of CompVis and diffusers' model classes.
"""

from .layers import canonical_layer, layer_module
from .lora import kernel_size, lora_layer_name
from .open_clip import open_clip_from_ldm, open_clip_name, open_clip_to_ldm
from .text import PREFIXES, TEXT_PREFIXES, text_from_ldm, text_to_ldm
from .unet import SD1_LAYOUT, SDXL_LAYOUT, UNetLayout, unet_from_ldm, unet_to_ldm
from .vae import vae_from_ldm, vae_tensors_from_ldm, vae_tensors_to_ldm, vae_to_ldm

__all__ = [
    "PREFIXES",
    "SD1_LAYOUT",
    "SDXL_LAYOUT",
    "TEXT_PREFIXES",
    "UNetLayout",
    "canonical_layer",
    "kernel_size",
    "layer_module",
    "lora_layer_name",
    "open_clip_from_ldm",
    "open_clip_name",
    "open_clip_to_ldm",
    "text_from_ldm",
    "text_to_ldm",
    "unet_from_ldm",
    "unet_to_ldm",
    "vae_from_ldm",
    "vae_tensors_from_ldm",
    "vae_tensors_to_ldm",
    "vae_to_ldm",
]
