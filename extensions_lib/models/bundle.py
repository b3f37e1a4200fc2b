"""A base model in memory: its networks, tokenizer, noise schedule, and what is needed to write its file again."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .family import ModelFamily
from .schedule import ends_in_pure_noise

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

    from .tokenizer import PromptTokenizer

INPAINTING_CHANNELS = 9  # 4 of noisy latents, 1 of the mask, 4 of the masked picture's latents


@dataclass(frozen=True)
class ModelSource:
    """Where a model came from. `name` is the file's stem; the hashes are of the file, empty for a folder."""

    path: Path
    name: str
    sha256: str = ""
    autov1: str = ""
    is_folder: bool = False


@dataclass(frozen=True)
class StoredForm:
    """How the file names and stores the tensors, so that the same file can be written again.

    `dtypes` has one entry per tensor of the file, in its order, under the checkpoint's present-day names; `renamed`
    maps such a name to the file's older one. `extra` holds the tensors that belong to no network (EMA, schedule
    buffers, ...).
    """

    dtypes: dict[str, torch.dtype] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)
    extra: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class ModelBundle:
    """A base model ready for training: everything frozen, in evaluation mode, on the CPU until `to` is called.

    `text_encoders` by part name, in the order their states are joined; the first is 'text_encoder'.
    `alphas_cumprod` (1000,) float32: the share of signal left at each timestep, falling; with zero terminal SNR the
    last is 0. `masked_out` keeps the further inputs of an inpainting UNet, (1, 5, H, W) by (H, W), see `predict`.
    """

    family: ModelFamily
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoders: dict[str, CLIPTextModel]
    tokenizer: PromptTokenizer
    alphas_cumprod: Tensor
    source: ModelSource
    stored: StoredForm = field(default_factory=StoredForm)
    masked_out: dict[tuple[int, int], Tensor] = field(default_factory=dict, repr=False)

    @property
    def text_encoder(self) -> CLIPTextModel:
        """The first text encoder."""
        return self.text_encoders["text_encoder"]

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The networks by name: 'unet', 'vae', and the text encoders."""
        return {"unet": self.unet, "vae": self.vae, **self.text_encoders}

    @property
    def is_inpainting(self) -> bool:
        """Whether the UNet also takes a mask and the latents of a masked picture."""
        return self.unet.config.in_channels == INPAINTING_CHANNELS

    @property
    def has_zero_terminal_snr(self) -> bool:
        """Whether the noise schedule ends in pure noise."""
        return ends_in_pure_noise(self.alphas_cumprod)

    def freeze(self) -> None:
        """No parameter of the networks takes gradients; all are in evaluation mode."""
        for part in self.parts.values():
            part.requires_grad_(False)
            part.eval()

    def to(
        self,
        device: torch.device | str | None = None,
        *,
        unet: torch.dtype | None = None,
        vae: torch.dtype | None = None,
        text_encoder: torch.dtype | None = None,
    ) -> None:
        """Move all networks to `device` and those with a given dtype to it; None leaves it as it is.

        The noise schedule moves along and stays float32. In place: parameters keep their identity.
        """
        dtypes = {"unet": unet, "vae": vae, **dict.fromkeys(self.text_encoders, text_encoder)}
        for name, part in self.parts.items():
            # The result of Module.to is not used: WebUIs patch it to answer None while they load a model.
            part.to(device=device, dtype=dtypes[name])
        self.alphas_cumprod = self.alphas_cumprod.to(device=device)
