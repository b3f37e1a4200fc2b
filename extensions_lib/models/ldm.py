"""The three networks as the tensors of a single-file checkpoint, and back."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor, nn

from ..errors import KeyMismatchError
from ..formats.keys import (
    PREFIXES,
    UNetLayout,
    text_from_ldm,
    text_to_ldm,
    unet_from_ldm,
    unet_to_ldm,
    vae_tensors_from_ldm,
    vae_tensors_to_ldm,
)
from .bundle import ModelBundle, StoredForm

POSITION_IDS = "text_model.embeddings.position_ids"
PART_PREFIXES = {"unet": PREFIXES["unet"], "vae": PREFIXES["vae"], "text_encoder": PREFIXES["text"]}
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
        tensors |= part_to_ldm(part, module)
    tensors |= stored.extra
    ordered = [name for name in stored.dtypes if name in tensors]
    ordered += [name for name in tensors if name not in stored.dtypes]
    return {stored.renamed.get(name, name): _as_stored(tensors[name], name, stored) for name in ordered}


def part_to_ldm(part: str, module: nn.Module) -> dict[str, Tensor]:
    """The weights of the 'unet', 'vae' or 'text_encoder' under their checkpoint names, detached; also on meta.

    VAE attention becomes 1x1 convolutions. `position_ids` is left out: it is no weight, and files have it or not.
    Raises KeyMismatchError for modules that the network does not have by itself, such as an adapter still attached.
    """
    state = {name: value.detach() for name, value in module.state_dict().items() if name != POSITION_IDS}
    if part == "vae":
        renamed = vae_tensors_to_ldm(state, num_vae_levels(module))
    elif part == "unet":
        renamed = {unet_to_ldm(name, unet_layout(module)): value for name, value in state.items()}
    else:
        renamed = {text_to_ldm(name): value for name, value in state.items()}
    return {PART_PREFIXES[part] + name: value for name, value in renamed.items()}


def part_from_ldm(part: str, tensors: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """The inverse of `part_to_ldm`: checkpoint tensors, with their prefix, under the names they have in `module`."""
    bare = {name.removeprefix(PART_PREFIXES[part]): tensor for name, tensor in tensors.items()}
    if part == "vae":
        return vae_tensors_from_ldm(bare, num_vae_levels(module))
    if part == "unet":
        return {unet_from_ldm(name, unet_layout(module)): tensor for name, tensor in bare.items()}
    return {text_from_ldm(name): tensor for name, tensor in bare.items()}


def unet_layout(unet: nn.Module) -> UNetLayout:
    """How the blocks of a UNet2DConditionModel are numbered in a checkpoint."""
    has_attention = tuple("CrossAttn" in kind for kind in unet.config.up_block_types)
    return UNetLayout(unet.config.layers_per_block, has_attention)


def num_vae_levels(vae: nn.Module) -> int:
    """The number of resolutions of an AutoencoderKL."""
    return len(vae.config.block_out_channels)


def modern_names(names: Collection[str]) -> dict[str, str]:
    """{present-day name: the file's} for files from before the text encoder's tensors began with `text_model.`."""
    prefix = PREFIXES["text"]
    renamed = {prefix + text_from_ldm(name.removeprefix(prefix)): name for name in names if name.startswith(_OLD_TEXT)}
    return {modern: old for modern, old in renamed.items() if modern not in names}


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
