"""DreamBooth: the whole model is trained, to a checkpoint of its own. Source: Ruiz et al. 2022."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from ..adapters.copies import ParameterCopies
from ..errors import FormatError, KeyMismatchError
from ..formats.inspect import verify_lora
from ..formats.metadata import ArtefactInfo, checkpoint_metadata, lora_metadata
from ..formats.network import changes_tensors
from ..formats.safetensors_io import data_hash
from ..models.bundle import ModelBundle
from ..models.description import yaml_beside
from ..models.ldm import trained_checkpoint
from ..models.load import load_bundle
from ..models.prediction import marker_tensors
from .base import Exported, ExportedFile, ParamGroup, Trainable, TrainMethod, Verified
from .difference import low_rank_difference

UNET = "unet"
DIFFERENCE = "-difference"  # at the end of the name of a LoRA that holds it


@dataclass(kw_only=True)
class WholeModel(Trainable):
    """A model whose networks compute with the trained copies in `module`."""

    module: ParameterCopies
    bundle: ModelBundle

    @contextmanager
    def multiplied(self, multiplier: float) -> Iterator[None]:
        """Within the context the model is the base, bit for bit (0), or the trained one (1). ValueError for others."""
        if multiplier not in (0, 1):
            raise ValueError(f"a whole model is trained or not: the multiplier is 0 or 1, not {multiplier}")
        if multiplier:
            yield
            return
        with self.module.withdrawn():
            yield

    def keep_base_near(self) -> None:
        """Have the base model on the device."""
        self.module.keep_originals_near()


@dataclass(frozen=True)
class DreamBooth(TrainMethod):
    """UNet and, for the first `text_encoder_until` (0 to 1) of the run, the text encoders.

    The UNet is trained in `weight_dtype`, text encoders in float32; `dtype` is that of the written file, whose VAE
    keeps its own. `folder` is where results go: what their yaml names must be found from there. `file_format` is
    'safetensors' or 'ckpt'. `start_from` is a checkpoint to go on from. With `difference_rank` a LoRA of that rank,
    the nearest to what was learnt, is written too.
    """

    train_text_encoder: bool = True
    text_encoder_learning_rate: float = 1e-6
    text_encoder_until: float = 0.3
    weight_dtype: torch.dtype = torch.float32
    start_from: Path | None = None
    dtype: torch.dtype = torch.float16
    file_format: str = "safetensors"
    folder: Path = Path()
    difference_rank: int = 0

    kind = "dreambooth"
    artefact_kind = "checkpoint"

    @property
    def base_dtype(self) -> torch.dtype:
        """The trained copies start from the file's own numbers, not from rounded ones."""
        return self.weight_dtype

    @contextmanager
    def attach(self, bundle: ModelBundle, placeholder: str, generator: torch.Generator) -> Iterator[Trainable]:
        """Put a copy of each trained network's parameters into their places."""
        networks = self._trained(bundle) if self.start_from is None else _diffusion_networks(bundle)
        dtypes = {part: self.weight_dtype if part == UNET else torch.float32 for part in networks}
        copies = ParameterCopies(networks, dtypes)
        if self.start_from is not None:
            _start(copies, networks, load_bundle(self.start_from), self.start_from.name)
        trained = self._trained(bundle)
        for part in networks:
            for copy in copies.of(part).values():
                copy.requires_grad_(part in trained)
        groups = tuple(self._group(part, copies) for part in trained)
        with copies.in_place():
            yield WholeModel(module=copies, groups=groups, trains_text_encoder=self._trains_text_encoder, bundle=bundle)

    def count_parameters(self, bundle: ModelBundle) -> int:
        """All numbers of the trained networks."""
        return sum(parameter.numel() for part in self._trained(bundle).values() for parameter in part.parameters())

    def result_bytes(self, bundle: ModelBundle, num_parameters: int) -> int:
        """The whole model: UNet and text encoders in the file's format, the VAE in float32 at most."""
        sizes = {part: sum(p.numel() for p in module.parameters()) for part, module in bundle.parts.items()}
        return sum(size * (4 if part == "vae" else self.dtype.itemsize) for part, size in sizes.items())

    @property
    def _trains_text_encoder(self) -> bool:
        return self.train_text_encoder and self.text_encoder_until > 0

    def _trained(self, bundle: ModelBundle) -> dict[str, nn.Module]:
        networks = _diffusion_networks(bundle)
        return networks if self._trains_text_encoder else {UNET: networks[UNET]}

    def _group(self, part: str, copies: ParameterCopies) -> ParamGroup:
        parameters = tuple(copies.of(part).values())
        if part == UNET:
            return ParamGroup(part, parameters)
        return ParamGroup(part, parameters, self.text_encoder_learning_rate, self.text_encoder_until)

    def export(self, trainable: Trainable, info: ArtefactInfo) -> Exported:
        """The complete checkpoint, its yaml where the WebUI needs one, and the difference as a LoRA when asked for."""
        bundle = _bundle_of(trainable)
        tensors = trained_checkpoint(bundle, self.dtype) | marker_tensors(bundle)
        metadata = checkpoint_metadata(info, data_hash(tensors)) if self.file_format == "safetensors" else {}
        yaml = yaml_beside(bundle, self.folder)
        beside = [] if yaml is None else [ExportedFile(f"{info.output_name}.yaml", payload=yaml)]
        if self.difference_rank:
            beside.append(self._difference(trainable, info))
        return Exported(tensors, metadata, beside=tuple(beside))

    def _difference(self, trainable: Trainable, info: ArtefactInfo) -> ExportedFile:
        """The LoRA; its metadata says what share of the difference it lacks."""
        assert isinstance(trainable, WholeModel)
        rank = self.difference_rank
        found = low_rank_difference(trainable.bundle, trainable.module, rank)
        tensors = changes_tensors(found.layers, self.dtype)
        stem = f"{info.output_name}{DIFFERENCE}"
        facts = replace(info, output_name=stem, rank=rank, alpha=float(rank), conv_rank=rank, conv_alpha=float(rank))
        metadata = lora_metadata(facts, data_hash(tensors)) | {"train_studio.difference_error": f"{found.error:.4f}"}
        shapes = {layer.name: layer.shape for layer in found.layers}
        check = partial(_check_difference, tensors, shapes)
        return ExportedFile(f"{stem}.safetensors", "lora", tensors, metadata, verify=check)

    def verify(self, path: Path, trainable: Trainable, bundle: ModelBundle) -> Verified:
        """Load the written file as any base model is loaded, and compare every number with the model in memory."""
        found = load_bundle(path, dtype=self.dtype)
        if found.family != bundle.family or not torch.equal(found.alphas_cumprod, bundle.alphas_cumprod.cpu()):
            raise FormatError(
                f"{path.name} is read as {found.family}, not as {bundle.family}, or with another noise schedule.",
                "Keep the .yaml that was written beside it; report this.",
            )
        for part, network in found.parts.items():
            _compare(path.name, part, network, bundle.parts[part], self.dtype)
        return Verified(num_modules=len(trainable.groups))

    @property
    def file_suffix(self) -> str:
        """.safetensors or .ckpt."""
        return f".{self.file_format}"

    def names_beside(self, output_name: str, placeholder: str) -> tuple[tuple[str, str], ...]:
        """The yaml, which the WebUI reads by the checkpoint's name, and the difference as a LoRA."""
        lora = ((f"{output_name}{DIFFERENCE}.safetensors", "lora"),) if self.difference_rank else ()
        return ((f"{output_name}.yaml", ""), *lora)


def _diffusion_networks(bundle: ModelBundle) -> dict[str, nn.Module]:
    """All networks but the VAE, the UNet first."""
    return {part: network for part, network in bundle.parts.items() if part != "vae"}


def _bundle_of(trainable: Trainable) -> ModelBundle:
    assert isinstance(trainable, WholeModel)
    return trainable.bundle


@torch.no_grad()
def _start(copies: ParameterCopies, networks: dict[str, nn.Module], start: ModelBundle, name: str) -> None:
    """Give `copies` the values of the model `start`. Raises KeyMismatchError when it is of another kind."""
    for part in networks:
        given = dict(start.parts[part].named_parameters()) if part in start.parts else {}
        for key, copy in copies.of(part).items():
            if key not in given or given[key].shape != copy.shape:
                raise KeyMismatchError(
                    f"{name} is of another kind than the base model: {part}.{key} does not fit.",
                    "Choose a checkpoint that was trained from this base.",
                )
            copy.copy_(given[key])


def _check_difference(expected: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], path: Path) -> None:
    found = verify_lora(path, expected, shapes)
    if found.num_unmatched or found.num_modules != len(shapes) or found.max_difference or not found.is_finite:
        raise FormatError(f"{path.name} read again is not the LoRA that was extracted.", "Save again; check the disk.")


def _compare(file_name: str, part: str, found: nn.Module, trained: nn.Module, dtype: torch.dtype) -> None:
    expected: dict[str, Tensor] = dict(trained.named_parameters())
    wrong = [
        name
        for name, tensor in found.named_parameters()
        if not torch.equal(tensor, expected[name].detach().to("cpu", dtype))
    ]
    if wrong:
        raise FormatError(
            f"{file_name} read again is not the trained model: {len(wrong)} tensors of the {part} differ, "
            f"such as {wrong[0]}.",
            "Save again; check the disk.",
        )
