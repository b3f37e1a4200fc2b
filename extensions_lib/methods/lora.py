"""LoRA of the UNet and, on request, of the text encoder. Source: Hu et al. 2021."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ..adapters.attach import hooked, select_layers
from ..adapters.linear import LoraAdapter, factor_shapes
from ..errors import FormatError, KeyMismatchError
from ..formats.inspect import verify_lora
from ..formats.keys.lora import lora_layer_name
from ..formats.lora import LoraLayer, lora_tensors, read_lora
from ..formats.metadata import ArtefactInfo, lora_metadata
from ..formats.safetensors_io import data_hash
from ..models.bundle import ModelBundle
from .base import Exported, ParamGroup, Trainable, TrainMethod, Verified

UNET_BLOCKS = ("Transformer2DModel",)
UNET_CONV_BLOCKS = ("ResnetBlock2D", "Downsample2D", "Upsample2D")
TEXT_ENCODER_BLOCKS = ("CLIPAttention", "CLIPSdpaAttention", "CLIPMLP")


@dataclass(frozen=True)
class Lora(TrainMethod):
    """Adapters of `rank` on linear and 1x1 layers, of `conv_rank` on larger convolutions (0: none of the latter)."""

    rank: int = 16
    alpha: float = 8.0
    conv_rank: int = 0
    conv_alpha: float = 1.0
    dropout: float = 0.0
    train_text_encoder: bool = False
    text_encoder_learning_rate: float = 5e-5
    layer_filter: str = ""
    start_from: Path | None = None
    dtype: torch.dtype = torch.float16

    kind = "lora"
    artefact_kind = "lora"

    @contextmanager
    def attach(self, bundle: ModelBundle, placeholder: str, generator: torch.Generator) -> Iterator[Trainable]:
        """Hook one adapter onto every chosen layer."""
        layers = self._layers(bundle)
        adapters = {name: self._adapter(layer, generator) for name, layer in layers.items()}
        if self.start_from is not None:
            load_factors(adapters, read_lora(self.start_from), self.start_from.name)
        module = nn.ModuleDict(adapters)
        for name, layer in layers.items():
            adapters[name].to(layer.weight.device)
        with ExitStack() as stack:
            stack.enter_context(hooked({layer: adapters[name] for name, layer in layers.items()}))
            yield Trainable(module=module, groups=self._groups(adapters), trains_text_encoder=self.train_text_encoder)

    def count_parameters(self, bundle: ModelBundle) -> int:
        """The numbers of all factors; a file to go on from decides the ranks of its layers."""
        layers = self._layers(bundle)
        given = {} if self.start_from is None else read_lora(self.start_from)
        check_known(layers, given, self.start_from.name if self.start_from else "")
        ranks = {name: given[name].down.shape[0] if name in given else self._size(layers[name])[0] for name in layers}
        shapes = [shape for name, layer in layers.items() for shape in factor_shapes(layer, ranks[name])]
        return sum(map(math.prod, shapes))

    def _layers(self, bundle: ModelBundle) -> dict[str, nn.Module]:
        """Layers to adapt, by the name they have in a LoRA file."""
        kinds = (nn.Linear, nn.Conv2d)
        family = bundle.family.name
        unet = select_layers(bundle.unet, UNET_BLOCKS, kinds, self.layer_filter)
        if self.conv_rank:
            unet |= select_layers(bundle.unet, UNET_CONV_BLOCKS, kinds, self.layer_filter)
        layers = {lora_layer_name(path, "unet", family): layer for path, layer in unet.items()}
        if self.train_text_encoder:
            text = select_layers(bundle.text_encoder, TEXT_ENCODER_BLOCKS, kinds, self.layer_filter)
            layers |= {lora_layer_name(path, "text_encoder", family): layer for path, layer in text.items()}
        if not layers:
            raise KeyMismatchError(
                f"The layer filter {self.layer_filter!r} leaves no layer to train.", "Use a shorter one, or none."
            )
        return layers

    def _adapter(self, layer: nn.Module, generator: torch.Generator) -> LoraAdapter:
        rank, alpha = self._size(layer)
        return LoraAdapter(layer, rank, alpha or float(rank), self.dropout, generator)

    def _size(self, layer: nn.Module) -> tuple[int, float]:
        """Rank and alpha."""
        is_large = any(side > 1 for side in layer.weight.shape[2:])
        return (self.conv_rank, self.conv_alpha) if is_large else (self.rank, self.alpha)

    def _groups(self, adapters: Mapping[str, LoraAdapter]) -> tuple[ParamGroup, ...]:
        unet, text = [], []
        for name, adapter in adapters.items():
            (unet if name.startswith("lora_unet_") else text).extend(adapter.parameters())
        groups = [ParamGroup("unet", tuple(unet))] if unet else []
        if text:
            groups.append(ParamGroup("text_encoder", tuple(text), self.text_encoder_learning_rate))
        return tuple(groups)

    def export(self, trainable: Trainable, info: ArtefactInfo) -> Exported:
        """Factors and alphas under the names the WebUI reads."""
        tensors = lora_tensors(factors(trainable), self.dtype)
        return Exported(tensors, lora_metadata(info, data_hash(tensors)))

    def verify(self, path: Path, trainable: Trainable, bundle: ModelBundle) -> Verified:
        """Every module of the file names a layer of the model, fits its shape, and holds what was trained."""
        shapes = {name: tuple(layer.weight.shape) for name, layer in self._layers(bundle).items()}
        found = verify_lora(path, factors(trainable), shapes)
        if found.num_unmatched or found.num_modules != len(shapes):
            raise KeyMismatchError(
                f"{path.name} matches {found.num_modules} of {len(shapes)} modules, {found.num_unmatched} do not fit.",
                "The file would do nothing in places; report this.",
            )
        if not found.is_finite or found.is_zero:
            raise FormatError(
                f"{path.name} holds only zeros or values that are not finite.",
                "Lower the learning rate, or save in fp32.",
            )
        return Verified(num_modules=found.num_modules)


def factors(trainable: Trainable) -> dict[str, LoraLayer]:
    """The trained factors by layer name, on the CPU in float32."""
    return {
        name: LoraLayer(adapter.down.detach().cpu(), adapter.up.detach().cpu(), adapter.alpha)
        for name, adapter in trainable.module.items()
    }


def load_factors(adapters: Mapping[str, LoraAdapter], layers: Mapping[str, LoraLayer], file_name: str) -> None:
    """Start `adapters` from a file's factors. Raises KeyMismatchError when a module of the file has no adapter."""
    check_known(adapters, layers, file_name)
    for name, layer in layers.items():
        adapters[name].load_factors(layer.down, layer.up, layer.alpha)


def check_known(trained: Collection[str], given: Collection[str], file_name: str) -> None:
    """Raises KeyMismatchError when `given`, the modules of a file, are not all among those that are trained."""
    unknown = [name for name in given if name not in trained]
    if unknown:
        raise KeyMismatchError(
            f"{file_name}: this job does not train {len(unknown)} of its {len(given)} modules, such as {unknown[0]}.",
            "Set train_text_encoder, conv_rank and layer_filter as they were for that file.",
        )
