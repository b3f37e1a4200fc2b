"""The three networks as one Stable Diffusion 1 checkpoint with what the WebUI needs beside it."""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor
from transformers import CLIPTokenizer

from extensions_lib.formats import keys
from extensions_lib.formats.checkpoint import write_checkpoint
from extensions_lib.models.vocabulary import find_bpe_file, read_bpe
from extensions_lib.practice import drawing

from .networks import NUM_HEADS, SCALE_FACTOR, TEXT_WIDTH, UNET_WIDTHS, VAE_WIDTHS, new_text_config
from .workers import log

YAML = f"""\
# Stable Diffusion 1 with narrow networks. The WebUI reads this file because it has the checkpoint's name; the folder
# named under version must lie beside the checkpoint in models/Stable-diffusion.
model:
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params:
    linear_start: 0.00085
    linear_end: 0.0120
    num_timesteps_cond: 1
    log_every_t: 200
    timesteps: 1000
    first_stage_key: jpg
    cond_stage_key: txt
    image_size: 8
    channels: 4
    cond_stage_trainable: false
    conditioning_key: crossattn
    monitor: val/loss_simple_ema
    scale_factor: {SCALE_FACTOR}
    use_ema: false

    unet_config:
      target: ldm.modules.diffusionmodules.openaimodel.UNetModel
      params:
        image_size: 8
        in_channels: 4
        out_channels: 4
        model_channels: {UNET_WIDTHS[0]}
        attention_resolutions: [4, 2, 1]
        num_res_blocks: 2
        channel_mult: {[width // UNET_WIDTHS[0] for width in UNET_WIDTHS]}
        num_heads: {NUM_HEADS}
        use_spatial_transformer: true
        transformer_depth: 1
        context_dim: {TEXT_WIDTH}
        use_checkpoint: false
        legacy: false

    first_stage_config:
      target: ldm.models.autoencoder.AutoencoderKL
      params:
        embed_dim: 4
        monitor: val/rec_loss
        ddconfig:
          double_z: true
          z_channels: 4
          resolution: {drawing.RESOLUTION_PX}
          in_channels: 3
          out_ch: 3
          ch: {VAE_WIDTHS[0]}
          ch_mult: {[width // VAE_WIDTHS[0] for width in VAE_WIDTHS]}
          num_res_blocks: 2
          attn_resolutions: []
          dropout: 0.0
        lossconfig:
          target: torch.nn.Identity

    cond_stage_config:
      target: ldm.modules.encoders.modules.FrozenCLIPEmbedder
      params:
        version: models/Stable-diffusion/practice-clip
"""


def checkpoint_tensors(out: Path) -> dict[str, Tensor]:
    """The three networks under the names of a Stable Diffusion 1 checkpoint, in half precision."""
    from safetensors.torch import load_file

    unet, text, vae = (load_file(out / f"{name}.safetensors") for name in ("unet", "text_encoder", "vae"))
    parts = {
        "unet": {keys.unet_to_ldm(name, keys.SD1_LAYOUT): tensor for name, tensor in unet.items()},
        "text": {keys.text_to_ldm(name): tensor for name, tensor in text.items() if not name.endswith("position_ids")},
        "vae": keys.vae_tensors_to_ldm(vae),
    }
    return {
        keys.PREFIXES[part] + name: tensor.half().contiguous()
        for part, tensors in parts.items()
        for name, tensor in tensors.items()
    }


def export(out: Path, target: Path) -> None:
    """Write practice.safetensors, practice.yaml and the folder practice-clip into `target`."""
    clip = target / "practice-clip"
    clip.mkdir(parents=True, exist_ok=True)
    write_checkpoint(target / "practice.safetensors", checkpoint_tensors(out), {"format": "pt"}, overwrite=True)
    (target / "practice.yaml").write_text(YAML, encoding="ascii")
    new_text_config().save_pretrained(clip)
    write_tokenizer(clip)
    log(f"{(target / 'practice.safetensors').stat().st_size} bytes in {target / 'practice.safetensors'}")


def write_tokenizer(folder: Path) -> None:
    """Write CLIP's tokenizer files, which the WebUI reads from the folder that the yaml names."""
    vocabulary, merges = read_bpe(find_bpe_file())
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77).save_pretrained(folder)
