"""The networks as the tensors of a single-file checkpoint, and back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..errors import KeyMismatchError
from ..formats.keys import (
    PREFIXES,
    UNetLayout,
    open_clip_from_ldm,
    open_clip_to_ldm,
    text_from_ldm,
    text_to_ldm,
    unet_from_ldm,
    unet_to_ldm,
    vae_tensors_from_ldm,
    vae_tensors_to_ldm,
)
from ..formats.passengers import AVERAGED
from ..formats.passengers import POSITION_IDS as POSITION_IDS
from .bundle import ModelBundle, StoredForm
from .family import ModelFamily, TextEncoderKind

_LOGIT_SCALE = 4.6055  # of OpenCLIP's training; nothing reads it
_TURBO, _TURBO_WIDTH = "conditioner.embedders.0.", 1024
_OLD_TEXT = tuple(PREFIXES["text"] + child for child in ("embeddings.", "encoder.", "final_layer_norm."))


def bundle_to_ldm(bundle: ModelBundle) -> dict[str, Tensor]:
    """The checkpoint file of a bundle: with the names, the order and the dtypes of the file it was read from.

    A model that was not trained, and was loaded in float32 or in the file's own dtype, gives the very same tensors.
    Those of a model read from a diffusers folder get today's names. Weights stay on their device; unchanged ones are
    not copied.
    """
    stored = bundle.stored
    tensors: dict[str, Tensor] = {}
    for part, module in bundle.parts.items():
        tensors |= part_to_ldm(part, module, bundle.family)
    tensors |= stored.extra
    ordered = [name for name in stored.dtypes if name in tensors]
    ordered += [name for name in tensors if name not in stored.dtypes]
    return {stored.renamed.get(name, name): _as_stored(tensors[name], name, stored) for name in ordered}


def trained_checkpoint(bundle: ModelBundle, dtype: torch.dtype) -> dict[str, Tensor]:
    """The checkpoint of a trained model, on the CPU, under present-day names: UNet and text encoders in `dtype`.

    The VAE and what belongs to no network (the noise schedule, unused layers) keep the dtypes of the file the model was
    read from; averaged weights of the base's own training are left out, and positions are whole numbers.
    """
    stored, tensors = bundle.stored, {}
    for part, module in bundle.parts.items():
        for name, tensor in part_to_ldm(part, module, bundle.family).items():
            tensors[name] = tensor.to("cpu", stored.dtypes.get(name, tensor.dtype) if part == "vae" else dtype)
    for name, tensor in stored.extra.items():
        if not name.startswith(AVERAGED):
            tensors[name] = tensor.to(torch.int64) if name.endswith(POSITION_IDS) else tensor
    return tensors


def part_prefix(part: str, family: ModelFamily) -> str:
    """What the names of 'unet', 'vae' or a text encoder begin with in a checkpoint of this family."""
    kind = family.text_encoder(part)
    return PREFIXES[part] if kind is None else kind.prefix


def part_to_ldm(part: str, module: nn.Module, family: ModelFamily) -> dict[str, Tensor]:
    """The weights of the 'unet', the 'vae' or a text encoder under their checkpoint names, detached; also on meta.

    VAE attention becomes 1x1 convolutions, OpenCLIP's queries, keys and values one matrix. `position_ids` is left out:
    it is no weight, and files have it or not. Raises KeyMismatchError for modules that the network does not have by
    itself, such as an adapter still attached.
    """
    state = {name: value.detach() for name, value in module.state_dict().items() if name != POSITION_IDS}
    return state_to_ldm(part, state, module, family)


def state_to_ldm(part: str, state: Mapping[str, Tensor], module: nn.Module, family: ModelFamily) -> dict[str, Tensor]:
    """The same for any tensors that have the names and shapes of the weights of `module`."""
    kind = family.text_encoder(part)
    if kind is not None:
        renamed = _text_to_ldm(kind, state, module)
    elif part == "vae":
        renamed = vae_tensors_to_ldm(state, num_vae_levels(module))
    else:
        renamed = {unet_to_ldm(name, unet_layout(module)): value for name, value in state.items()}
    return {part_prefix(part, family) + name: value for name, value in renamed.items()}


def part_from_ldm(
    part: str, tensors: Mapping[str, Tensor], module: nn.Module, family: ModelFamily
) -> dict[str, Tensor]:
    """The inverse of `part_to_ldm`: checkpoint tensors, with their prefix, under the names they have in `module`."""
    prefix = part_prefix(part, family)
    bare = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    kind = family.text_encoder(part)
    if kind is not None:
        return _text_from_ldm(kind, bare, module)
    if part == "vae":
        return vae_tensors_from_ldm(bare, num_vae_levels(module))
    return {unet_from_ldm(name, unet_layout(module)): tensor for name, tensor in bare.items()}


def names_in_folder(part: str, module: nn.Module, family: ModelFamily) -> dict[str, tuple[str, ...]]:
    """{checkpoint name: the names in `module` that one tensor is made of}: three where OpenCLIP joins matrices."""
    outline = {name: tensor.to("meta") for name, tensor in part_to_ldm(part, module, family).items()}
    return {
        name: tuple(part_from_ldm(part, {name: tensor}, module, family)) for name, tensor in outline.items()
    }  # fmt: skip


def _text_to_ldm(kind: TextEncoderKind, state: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    if kind.layout == "open_clip":
        return open_clip_to_ldm(state, module.config.num_hidden_layers)
    return {text_to_ldm(name): value for name, value in state.items()}


def _text_from_ldm(kind: TextEncoderKind, bare: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    if kind.layout == "open_clip":
        return open_clip_from_ldm(bare, module.config.num_hidden_layers)
    return {text_from_ldm(name): tensor for name, tensor in bare.items()}


def unloaded_layers(bundle: ModelBundle) -> dict[str, Tensor]:
    """What a single file has of SD 2's text encoder and a folder has not: the last layer, projection, logit scale.

    Nothing reads their values, but diffusers takes the width from the projection. The layer before stands in.
    """
    extra: dict[str, Tensor] = {}
    for kind in bundle.family.text_encoders:
        if kind.num_unused_layers:
            config = bundle.text_encoders[kind.part].config
            layers = f"{kind.prefix}transformer.resblocks."
            last, missing = (f"{layers}{config.num_hidden_layers - 1 + further}." for further in (0, 1))
            tensors = part_to_ldm(kind.part, bundle.text_encoders[kind.part], bundle.family)
            copied = {name: tensor for name, tensor in tensors.items() if name.startswith(last)}
            extra |= {name.replace(last, missing): tensor.clone() for name, tensor in copied.items()}
            extra[kind.prefix + "text_projection"] = torch.eye(config.hidden_size)
            extra[kind.prefix + "logit_scale"] = torch.tensor(_LOGIT_SCALE)
    return extra


def unet_layout(unet: nn.Module) -> UNetLayout:
    """How the blocks of a UNet2DConditionModel are numbered in a checkpoint."""
    has_attention = tuple("CrossAttn" in kind for kind in unet.config.up_block_types)
    return UNetLayout(unet.config.layers_per_block, has_attention)


def num_vae_levels(vae: nn.Module) -> int:
    """The number of resolutions of an AutoencoderKL."""
    return len(vae.config.block_out_channels)


def modern_names(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """{present-day name: the file's} for the two older ways to name text encoders that the WebUI knows.

    Before transformers 4.0 the tensors of SD 1.x's did not begin with `text_model.`; SD 2 Turbo names its own as SDXL
    does. `shapes` of all tensors of the file, by name.
    """
    if shapes.get(_TURBO + "model.ln_final.weight") == (_TURBO_WIDTH,):
        renamed = {"cond_stage_model." + name.removeprefix(_TURBO): name for name in shapes if name.startswith(_TURBO)}
    else:
        prefix = PREFIXES["text"]
        renamed = {
            prefix + text_from_ldm(name.removeprefix(prefix)): name for name in shapes if name.startswith(_OLD_TEXT)
        }
    return {modern: old for modern, old in renamed.items() if modern not in shapes}


def check_fit(expected: Mapping[str, tuple[int, ...]], given: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Compare names and shapes of a model's tensors with a file's.

    Raises KeyMismatchError, listing the first few, when tensors are missing, have another shape, or the UNet has some
    that the model lacks (they would mean another architecture). Strangers elsewhere are passengers.
    """
    missing = [f"{name} {shape}" for name, shape in expected.items() if name not in given]
    unknown = [f"{name} {shape}" for name, shape in given.items() if name not in expected]
    unknown = [text for text in unknown if text.startswith(PREFIXES["unet"])]
    reshaped = [
        f"{name} {given[name]} instead of {shape}"
        for name, shape in expected.items()
        if name in given and given[name] != shape
    ]
    lists = (("missing", missing), ("unexpected", unknown), ("of another shape", reshaped))
    problems = [f"{len(found)} {what} ({_first_few(found)})" for what, found in lists if found]
    if problems:
        raise KeyMismatchError(
            f"{where} does not fit the model: of its tensors, {'; '.join(problems)}.",
            "The file is incomplete, damaged, or of another architecture. "
            "A model of unusual size needs the .yaml it came with beside it.",
        )


def _first_few(texts: list[str], limit: int = 3) -> str:
    return ", ".join(texts[:limit]) + (", ..." if len(texts) > limit else "")


def _as_stored(tensor: Tensor, name: str, stored: StoredForm) -> Tensor:
    return tensor.to(stored.dtypes.get(name, tensor.dtype))
