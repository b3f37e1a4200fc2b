"""Latents of all pictures, encoded once and kept on disk and in memory.

A file holds the mean and deviation of the VAE's posterior for one picture, so that every step can draw a new sample.
Its name is a hash of everything the latents depend on; changed pictures, buckets or VAEs simply miss it.
C is 4 for Stable Diffusion 1; H and W are latent sizes, pixels / 8.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..errors import ModelError, OutputError
from ..formats.safetensors_io import data_hash, read_header, read_tensors, write_atomic
from .buckets import LATENT_PX
from .dataset import Dataset, Progress, do_nothing
from .encode import Encoder, LatentStats, encode_example, name_of_dtype, vae_fingerprint
from .example import Example
from .images import Colour
from .masks import UNMASKED_WEIGHT, loss_weights
from .stream import ExampleRef

logger = logging.getLogger(__name__)

LAYOUT = "train-studio-latents-1"  # to be changed when pictures are fitted or encoded differently


class CachedLatents:
    """The latents of a dataset, on the CPU; `num_encoded` of them were not found in the folder."""

    def __init__(self, entries: Mapping[tuple[int, bool], LatentStats], num_encoded: int) -> None:
        self._entries = dict(entries)
        self.num_encoded = num_encoded

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, example_index: int, flip: bool = False) -> LatentStats:
        """The latents of one example. Raises KeyError when mirrored ones were not asked for."""
        return self._entries[example_index, flip]

    def stack(self, refs: Sequence[ExampleRef]) -> tuple[Tensor, Tensor]:
        """Mean and deviation of one micro-batch, each (B, C, H, W) float32."""
        stats = [self.get(ref.example_index, ref.flip) for ref in refs]
        return torch.stack([each.mean for each in stats]), torch.stack([each.std for each in stats])

    def stack_weights(self, refs: Sequence[ExampleRef], unmasked_weight: float = UNMASKED_WEIGHT) -> Tensor:
        """Loss weights (B, 1, H, W) float32 with mean 1 for each picture; ones for pictures without transparency."""
        stats = [self.get(ref.example_index, ref.flip) for ref in refs]
        return torch.stack(
            [
                torch.ones_like(each.mean[:1]) if each.alpha is None else loss_weights(each.alpha, unmasked_weight)
                for each in stats
            ]
        )


def cache_latents(
    dataset: Dataset,
    vae: Encoder,
    folder: Path,
    *,
    flip: bool = False,
    vae_hash: str | None = None,
    progress: Progress = do_nothing,
    boundary: Callable[[], None] = do_nothing,
) -> CachedLatents:
    """The latents of every picture of `dataset`, and of its mirror image with `flip`; only missing ones are encoded.

    Files go to `folder`, which is created; one that is damaged or made for something else is replaced. `vae_hash`
    stands for the VAE's weights, by default `vae_fingerprint(vae)`. `progress(done, total)` counts encodings,
    `boundary()` is called before each and may raise to end the phase.
    Raises DatasetError for a picture that changed, vanished or has latents that are not finite; OutOfMemoryError;
    OutputError or DiskFullError when the cache cannot be written.
    """
    _make_folder(folder)
    vae_hash = vae_hash or vae_fingerprint(vae)
    flips = (False, True) if flip else (False,)
    entries: dict[tuple[int, bool], LatentStats] = {}
    num_encoded = 0
    total = len(dataset.examples) * len(flips)
    for example in dataset.examples:
        for mirrored in flips:
            boundary()
            facts = _facts(example, mirrored, vae_hash, vae.dtype, dataset.background)
            path = folder / f"{_key(facts)}.safetensors"
            stats = _read(path, facts, example)
            if stats is None:
                stats = encode_example(example, vae, flip=mirrored, background=dataset.background)
                _write(path, facts, stats)
                num_encoded += 1
            entries[example.index, mirrored] = stats
            progress(len(entries), total)
    return CachedLatents(entries, num_encoded)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"The cache folder {folder} cannot be made: {error.strerror or error}.", "Choose another folder."
        ) from error


def _facts(example: Example, flip: bool, vae_hash: str, dtype: torch.dtype, background: Colour) -> dict[str, str]:
    """All the latents depend on. The background matters only under transparency."""
    return {
        "layout": LAYOUT,
        "picture_sha256": example.sha256,
        "bucket": f"{example.bucket[0]}x{example.bucket[1]}",
        "flip": str(flip),
        "vae": vae_hash,
        "dtype": name_of_dtype(dtype),
        "background": str(tuple(background)) if example.has_alpha else "",
    }


def _key(facts: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _read(path: Path, facts: Mapping[str, str], example: Example) -> LatentStats | None:
    """The latents in `path`, or None when it is missing, damaged or not about `facts`."""
    if not path.exists():
        return None
    try:
        metadata = read_header(path)[1]
        tensors = read_tensors(path)
    except ModelError as error:
        logger.info("Latents of %s are encoded again: %s", example.name, error)
        return None
    if metadata != {**facts, "data_sha256": data_hash(tensors)} or not _fits(tensors, example):
        logger.info("Latents of %s are encoded again: %s is not about this picture.", example.name, path.name)
        return None
    return LatentStats(tensors["mean"], tensors["std"], tensors.get("alpha"))


def _fits(tensors: Mapping[str, Tensor], example: Example) -> bool:
    names = {"mean", "std", "alpha"} if example.has_alpha else {"mean", "std"}
    size = (example.bucket[1] // LATENT_PX, example.bucket[0] // LATENT_PX)
    return set(tensors) == names and all(
        tensor.dtype == torch.float32 and tensor.shape[-2:] == size and bool(torch.isfinite(tensor).all())
        for tensor in tensors.values()
    )


def _write(path: Path, facts: Mapping[str, str], stats: LatentStats) -> None:
    tensors = {"mean": stats.mean, "std": stats.std}
    if stats.alpha is not None:
        tensors["alpha"] = stats.alpha
    write_atomic(path, tensors, {**facts, "data_sha256": data_hash(tensors)}, overwrite=True)
