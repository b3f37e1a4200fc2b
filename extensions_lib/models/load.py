"""Reading a base model: a single file, with its yaml and perhaps a separate VAE, or a diffusers folder. Offline."""

from __future__ import annotations

from pathlib import Path

import torch

from ..errors import ModelError
from .build import PartDtypes, verify_module
from .bundle import ModelBundle
from .folder import load_folder, outline_folder
from .single_file import load_single_file, load_vae_file, outline_single_file, outline_vae_file


def load_bundle(
    path: Path,
    *,
    vae_path: Path | None = None,
    dtype: torch.dtype = torch.float32,
    unet_dtype: torch.dtype | None = None,
) -> ModelBundle:
    """The base model in `path`, on the CPU, frozen, all floating weights in `dtype`, those of the UNet in `unet_dtype`
    when that is given: SDXL's is 10 GB in float32.

    `path` is a .safetensors or .ckpt file, whose sibling .yaml is honoured, or a diffusers folder. `vae_path` names a
    file whose VAE is used instead. No network is used, no weight is initialised at random. Raises ModelError (missing
    file or part, NaN), UnsupportedModelError, FormatError, KeyMismatchError; HostError when the WebUI's patches
    interfered.
    """
    _check_there(path, vae_path)
    vae = None if vae_path is None else load_vae_file(vae_path, dtype)
    load = load_folder if path.is_dir() else load_single_file
    dtypes = PartDtypes(unet_dtype or dtype, dtype)
    bundle = load(path, vae, dtypes)
    for part, module in bundle.parts.items():
        verify_module(module, dtypes.of(part), f"{bundle.source.name} ({part})")
    return bundle


def outline_bundle(path: Path, *, vae_path: Path | None = None) -> ModelBundle:
    """What `load_bundle` would load, its networks on the meta device: shapes, settings and tokenizer, no weights.

    Only headers are read (a pickle has to be read whole); the source has no hashes. Raises as `load_bundle`, but for
    what only the weights would show.
    """
    _check_there(path, vae_path)
    vae = None if vae_path is None else outline_vae_file(vae_path)
    return outline_folder(path, vae) if path.is_dir() else outline_single_file(path, vae)


def _check_there(*paths: Path | None) -> None:
    for path in paths:
        if path is not None and not path.exists():
            raise ModelError(f"The model {path} does not exist.", "Check the name and the folder.")
