"""What a checkpoint's UNet predicts, noise or v, and the marks by which files say so."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..formats.safetensors_io import TensorInfo
from .family import ModelFamily
from .sibling import read_sibling

if TYPE_CHECKING:
    from .bundle import ModelBundle

ALPHAS = "alphas_cumprod"
V_PRED = "v_pred"
ZTSNR = "ztsnr"


def known_prediction_type(path: Path, header: Mapping[str, TensorInfo], family: ModelFamily) -> str | None:
    """'epsilon' or 'v_prediction' as the yaml beside the file says, or else a marker in it; None when neither does."""
    said = read_sibling(path, family).prediction_type
    if said is None and V_PRED in header:
        return "v_prediction"
    return said


@torch.no_grad()
def probed_prediction_type(bundle: ModelBundle) -> str:
    """What a UNet without yaml or marker predicts: the family's usual, but SD 2's is asked, as the WebUI does.

    At the noisiest timestep latents of 0.5 are nearly all noise: a UNet that predicts noise answers with something
    like them, one that predicts v with the negative of a picture. The WebUI draws the line where the answer is 1 below
    the latents on average, and takes inpainting models for epsilon without asking.
    Source: AUTOMATIC1111 1.10.1, modules/sd_models_config.py.
    """
    family, unet = bundle.family, bundle.unet
    if not family.is_probed or bundle.is_inpainting:
        return family.prediction_type
    if unet.dtype == torch.float16:
        unet = copy.deepcopy(unet).float()  # older torch cannot compute in fp16 on a CPU
    latents = torch.full((1, unet.config.in_channels, 8, 8), 0.5, dtype=unet.dtype)
    states = torch.full((1, 2, family.text_width), 0.5, dtype=unet.dtype)
    answer = unet(latents, torch.tensor([999]), states, return_dict=False)[0]
    return "v_prediction" if float((answer - latents).float().mean()) < -1 else "epsilon"


def marker_tensors(bundle: ModelBundle) -> dict[str, Tensor]:
    """The empty tensors by which other WebUIs know v-prediction ('v_pred') and zero terminal SNR ('ztsnr').

    To be written at the top level of a checkpoint, beside the networks.
    """
    is_marked = {V_PRED: bundle.family.prediction_type == "v_prediction", ZTSNR: bundle.has_zero_terminal_snr}
    return {name: torch.tensor([]) for name, applies in is_marked.items() if applies}
