"""Networks without random initialisation: built on the meta device, then given a file's tensors.

Nothing here calls `Module.load_state_dict` or uses the result of `Module.to`: a WebUI replaces both, process-wide,
while it loads a model of its own. Class references are taken inside the functions for the same reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import HostError, KeyMismatchError, ModelError

PROJECTED_TEXT = "CLIPTextModelWithProjection"
_OUR_CLASSES = ("torch.", "diffusers.", "transformers.")
_FULL_DEVICE = torch.device("cpu")


@dataclass(frozen=True)
class PartDtypes:
    """The number formats that weights are loaded in."""

    unet: torch.dtype
    others: torch.dtype

    def of(self, part: str) -> torch.dtype:
        """That of the 'unet', the 'vae' or a text encoder."""
        return self.unet if part == "unet" else self.others


def build_module(part: str, config: dict[str, Any]) -> nn.Module:
    """The 'unet', the 'vae' or a text encoder with these settings, on the meta device, in evaluation mode.

    A text encoder has its projection where `architectures` in its settings says so, as transformers writes them.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    with torch.device("meta"):
        network = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}.get(part)
        if network is not None:
            return network.from_config(config).eval()
        is_projected = PROJECTED_TEXT in config.get("architectures", ())
        encoder = CLIPTextModelWithProjection if is_projected else CLIPTextModel
        return encoder(CLIPTextConfig.from_dict(config)).eval()


def adopt_tensors(module: nn.Module, tensors: dict[str, Tensor], dtype: torch.dtype) -> None:
    """Make `tensors` (by full name) the parameters and buffers of `module`, floating ones in `dtype`, all frozen.

    `tensors` is emptied on the way, so that with a cast old and new exist together for one tensor only. Raises
    KeyMismatchError when a parameter or buffer gets none, or one of another shape, or when some are left over.
    """
    for prefix, owner in module.named_modules():
        for table in (owner._parameters, owner._buffers):
            for leaf, empty in table.items():
                if empty is None:
                    continue
                name = f"{prefix}.{leaf}" if prefix else leaf
                tensor = _taken(tensors, name, empty, dtype)
                is_parameter = table is owner._parameters
                table[leaf] = nn.Parameter(tensor, requires_grad=False) if is_parameter else tensor
    if tensors:
        raise KeyMismatchError(
            f"{len(tensors)} tensors fit nowhere: {', '.join(list(tensors)[:3])}.", "Choose another model."
        )


def position_ids(stored: Tensor | None, num_positions: int) -> Tensor:
    """The text encoder's positions (1, T) int64: the file's own, cut to whole numbers as the WebUI does, or 0..T-1.

    Raises ModelError when the file's are no positions.
    """
    if stored is None:
        return torch.arange(num_positions)[None]
    ids = stored.to(torch.int64)
    if tuple(ids.shape) != (1, num_positions) or int(ids.min()) < 0 or int(ids.max()) >= num_positions:
        raise ModelError(
            f"The text encoder's position_ids, shape {tuple(ids.shape)}, are not {num_positions} positions.",
            "The file was damaged, probably by a merge; use another version of this model.",
        )
    return ids


def verify_module(module: nn.Module, dtype: torch.dtype, where: str) -> None:
    """What training starts from: real, finite tensors on the CPU, floating ones in `dtype`, the libraries' own classes.

    Raises ModelError for NaN or infinite weights, HostError for what a WebUI's patches did to the module.
    """
    for owner in module.modules():
        if not type(owner).__module__.startswith(_OUR_CLASSES):
            raise _disturbed(
                where, f"{type(owner).__module__}.{type(owner).__qualname__} took the place of a torch class"
            )
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.device != _FULL_DEVICE or (tensor.is_floating_point() and tensor.dtype != dtype):
            raise _disturbed(where, f"{name} is {tensor.dtype} on {tensor.device}, not {dtype} on cpu")
        _check_finite(tensor, name, where)


def _taken(tensors: dict[str, Tensor], name: str, empty: Tensor, dtype: torch.dtype) -> Tensor:
    if name not in tensors or tensors[name].shape != empty.shape:
        found = tuple(tensors[name].shape) if name in tensors else "nothing"
        raise KeyMismatchError(
            f"{name} needs a tensor of shape {tuple(empty.shape)}, found {found}.", "Choose another model."
        )
    tensor = tensors.pop(name)
    return (tensor.to(dtype) if tensor.is_floating_point() else tensor).contiguous()


def _check_finite(tensor: Tensor, name: str, where: str) -> None:
    """A sum is finite if all its terms are (and do not overflow): much cheaper than looking at each."""
    if not tensor.is_floating_point() or torch.isfinite(tensor.sum(dtype=torch.float32)):
        return
    num_bad = int((~torch.isfinite(tensor)).sum())
    if num_bad:
        raise ModelError(
            f"{where}: {num_bad} of {tensor.numel()} numbers of {name} are NaN or infinite.",
            "The file is damaged, often by a merge; use another version of this model. A damaged VAE can be replaced "
            "by naming a VAE file.",
        )


def _disturbed(where: str, what: str) -> HostError:
    return HostError(
        f"{where} could not be built: {what}.",
        "Another part of the WebUI was loading a model at the same moment; start the job again when it has finished.",
    )
