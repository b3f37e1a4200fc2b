"""A base model, or a VAE, in one .safetensors, .ckpt or .pt file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..diffusion.timesteps import scaled_linear_alphas_cumprod
from ..errors import FormatError
from ..formats.checkpoint import checkpoint_header, read_checkpoint
from ..formats.keys import PREFIXES
from ..formats.safetensors_io import TensorInfo, autov1, describe_tensor, file_sha256
from .build import PartDtypes, adopt_tensors, build_module, position_ids
from .bundle import ModelBundle, ModelSource, StoredForm
from .detect import check_parts, detect_family
from .family import SD1, ModelFamily
from .ldm import POSITION_IDS, check_fit, modern_names, part_from_ldm, part_prefix, part_to_ldm
from .prediction import ALPHAS, ZTSNR, known_prediction_type, probed_prediction_type
from .schedule import check_alphas_cumprod, with_zero_terminal_snr
from .sibling import SiblingFacts, find_clip_folder, read_sibling
from .sizes import part_shapes, text_config, unet_config, vae_config
from .tokenizer import PromptTokenizer

_VAE = PREFIXES["vae"]


@dataclass(frozen=True)
class LoadedVae:
    """A VAE from a file of its own, and the dtypes its tensors had there, under their checkpoint names."""

    module: nn.Module
    dtypes: dict[str, torch.dtype]


@dataclass(frozen=True)
class OpenFile:
    """A model file with a known header; `read` gives its tensors. Names are present-day checkpoint names.

    `renamed` maps those of them that the file itself calls otherwise to the file's name.
    """

    header: dict[str, TensorInfo]
    read: Callable[[], dict[str, Tensor]]
    renamed: dict[str, str]


def load_single_file(path: Path, vae: LoadedVae | None, loaded: PartDtypes) -> ModelBundle:
    """A checkpoint as a bundle; `vae` replaces the file's own, if any. Raises as `load_bundle`."""
    opened = _open(path)
    outline = _outline(path, opened, vae)
    tensors = opened.read()
    dtypes = {name: tensor.dtype for name, tensor in tensors.items()}
    given = {part: module for part, module in outline.parts.items() if vae is None or part != "vae"}
    _fill(given, tensors, outline.family, loaded)
    if vae is not None:
        tensors, dtypes = _without_vae(tensors), _without_vae(dtypes) | vae.dtypes
    return replace(
        outline,
        family=_with_prediction_type(outline, known_prediction_type(path, opened.header, outline.family)),
        alphas_cumprod=_alphas_cumprod(path, tensors, outline),
        source=ModelSource(path, path.stem, file_sha256(path), autov1(path)),
        stored=StoredForm(dtypes, opened.renamed, tensors),
    )


def outline_single_file(path: Path, vae: LoadedVae | None) -> ModelBundle:
    """The bundle of a checkpoint with its networks on the meta device: no tensor is read. Raises as `load_bundle`.

    Where only the weights show the prediction type (SD 2 without a yaml), it is the family's usual one.
    """
    return _outline(path, _open(path), vae)


def load_vae_file(path: Path, dtype: torch.dtype) -> LoadedVae:
    """The VAE of a VAE file (with or without `first_stage_model.`) or of a checkpoint. Raises as `load_bundle`."""
    opened = _open(path)
    module, prefix = _vae_outline(path, opened)
    tensors = {
        _VAE + name.removeprefix(prefix): tensor for name, tensor in opened.read().items() if name.startswith(prefix)
    }
    dtypes = {name: tensors[name].dtype for name in part_to_ldm("vae", module, SD1)}
    _fill({"vae": module}, tensors, SD1, PartDtypes(dtype, dtype))
    return LoadedVae(module, dtypes)


def outline_vae_file(path: Path) -> LoadedVae:
    """The VAE on the meta device, without dtypes. Raises as `load_bundle`."""
    return LoadedVae(_vae_outline(path, _open(path))[0], {})


def _outline(path: Path, opened: OpenFile, vae: LoadedVae | None) -> ModelBundle:
    """Everything but the weights and what is computed from them; the noise schedule is the yaml's."""
    family = detect_family(opened.header, path.name)
    check_parts(opened.header, path.name, family, needs_vae=vae is None)
    facts = read_sibling(path, family)
    configs = _configs(path, opened.header, family, facts, with_vae=vae is None)
    modules = {part: build_module(part, config) for part, config in configs.items()}
    _check_fit(path.name, modules, family, opened.header)
    if vae is not None:
        vae.module.register_to_config(scaling_factor=facts.latent_scale)
        modules["vae"] = vae.module
    known = known_prediction_type(path, opened.header, family)
    alphas_cumprod = scaled_linear_alphas_cumprod(facts.linear_start, facts.linear_end).float()
    return ModelBundle(
        family=replace(family, prediction_type=known or family.prediction_type, latent_scale=facts.latent_scale),
        unet=modules.pop("unet"),
        vae=modules.pop("vae"),
        text_encoders={kind.part: modules[kind.part] for kind in family.text_encoders},
        tokenizer=_tokenizer(path, facts),
        alphas_cumprod=with_zero_terminal_snr(alphas_cumprod) if ZTSNR in opened.header else alphas_cumprod,
        source=ModelSource(path, path.stem),
    )


def _vae_outline(path: Path, opened: OpenFile) -> tuple[nn.Module, str]:
    """The VAE on the meta device, and the beginning of its tensors' names in the file."""
    prefix = "" if "decoder.conv_in.weight" in opened.header else _VAE
    header = {_VAE + name.removeprefix(prefix): info for name, info in opened.header.items() if name.startswith(prefix)}
    if _VAE + "decoder.conv_in.weight" not in header:
        raise FormatError(f"{path.name} is no VAE file: it has no tensor decoder.conv_in.weight.", "Choose a VAE file.")
    module = build_module("vae", vae_config(part_shapes(header, "vae", SD1), SD1.latent_scale))
    _check_fit(path.name, {"vae": module}, SD1, header)
    return module, prefix


def _open(path: Path) -> OpenFile:
    """The header of a .safetensors is read alone, so that a file we refuse costs nothing; a pickle is read at once."""
    if path.suffix.lower() == ".safetensors":
        header = checkpoint_header(path)
        renamed = modern_names({name: info.shape for name, info in header.items()})
        return OpenFile(
            _modernised(header, renamed), lambda: _modernised(read_checkpoint(path).tensors, renamed), renamed
        )
    tensors = read_checkpoint(path).tensors
    renamed = modern_names({name: tuple(tensor.shape) for name, tensor in tensors.items()})
    tensors = _modernised(tensors, renamed)
    return OpenFile({name: describe_tensor(tensor) for name, tensor in tensors.items()}, lambda: tensors, renamed)


def _modernised(by_name: Mapping[str, Any], renamed: Mapping[str, str]) -> dict[str, Any]:
    """The same entries in the same order, old names replaced."""
    modern = {old: new for new, old in renamed.items()}
    return {modern.get(name, name): value for name, value in by_name.items()}


def _configs(
    path: Path, header: Mapping[str, TensorInfo], family: ModelFamily, facts: SiblingFacts, *, with_vae: bool
) -> dict[str, dict[str, Any]]:
    """The settings of each network to build."""
    texts = {
        kind.part: text_config(kind, part_shapes(header, kind.part, family), facts, path)
        for kind in family.text_encoders
    }
    pooled_width = sum(texts[kind.part]["projection_dim"] for kind in family.text_encoders if kind.has_pooled)
    configs = {"unet": unet_config(part_shapes(header, "unet", family), facts, pooled_width), **texts}
    if with_vae:
        configs["vae"] = vae_config(part_shapes(header, "vae", family), facts.latent_scale)
    return configs


def _check_fit(
    where: str, modules: Mapping[str, nn.Module], family: ModelFamily, header: Mapping[str, TensorInfo]
) -> None:
    """Every network must find its tensors in the file: checked before any is read."""
    expected = {
        name: tuple(tensor.shape)
        for part, module in modules.items()
        for name, tensor in part_to_ldm(part, module, family).items()
    }
    prefixes = tuple(part_prefix(part, family) for part in modules)
    given = {name: info.shape for name, info in header.items() if name.startswith(prefixes)}
    check_fit(expected, given, where)


def _fill(
    modules: Mapping[str, nn.Module], tensors: dict[str, Tensor], family: ModelFamily, loaded: PartDtypes
) -> None:
    """Give each network its tensors and take them out of `tensors`."""
    for part, module in modules.items():
        own = {name: tensors.pop(name) for name in part_to_ldm(part, module, family)}
        given = part_from_ldm(part, own, module, family)
        own.clear()
        if family.text_encoder(part) is not None:
            stored = tensors.get(part_prefix(part, family) + POSITION_IDS)
            given[POSITION_IDS] = position_ids(stored, module.config.max_position_embeddings)
        adopt_tensors(module, given, loaded.of(part))


def _without_vae(by_name: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in by_name.items() if not name.startswith(_VAE)}


def _tokenizer(path: Path, facts: SiblingFacts) -> PromptTokenizer:
    """The one of the folder the yaml names, if it has one: the WebUI uses that; otherwise OpenAI's."""
    folder = find_clip_folder(path, facts.clip_version)
    if folder is not None and (folder / "vocab.json").is_file():
        return PromptTokenizer.from_folder(folder)
    return PromptTokenizer.from_open_clip()


def _alphas_cumprod(path: Path, extra: Mapping[str, Tensor], outline: ModelBundle) -> Tensor:
    """The schedule the WebUI samples with: the one stored in the file, or else that of the yaml.

    SDXL's network has no such buffer, and ignores one in its file. A marker of zero terminal SNR holds for both.
    """
    if ALPHAS not in extra or outline.family.has_size_conditioning:
        return outline.alphas_cumprod
    stored = check_alphas_cumprod(extra[ALPHAS], path.name)
    return with_zero_terminal_snr(stored) if ZTSNR in extra else stored


def _with_prediction_type(outline: ModelBundle, known: str | None) -> ModelFamily:
    """The family with the file's prediction type; where nothing says it, that of the weights now in the UNet."""
    return replace(outline.family, prediction_type=known or probed_prediction_type(outline))
