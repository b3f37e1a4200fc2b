"""LoRA and its relatives, of the UNet and, on request, of the text encoders.

Sources: Hu et al. 2021 (LoRA), Kalajdzievski 2023 (rs-LoRA), Hayou et al. 2024 (LoRA+); others stand with the adapters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from ..adapters.attach import hooked
from ..adapters.full import NormAdapter
from ..adapters.weight import Dropouts, WeightAdapter, cap_norms
from ..config.blocks import value_for
from ..errors import FormatError, KeyMismatchError
from ..formats.inspect import verify_lora
from ..formats.metadata import ArtefactInfo, lora_metadata
from ..formats.network import LayerChange, network_tensors, read_network
from ..formats.safetensors_io import data_hash
from ..models.bundle import ModelBundle
from .base import Exported, ParamGroup, Trainable, TrainMethod, Verified
from .layer_choice import ChosenLayer, LayerChoice, check_whole_attention, choose_layers
from .lora_adapters import AdapterRecipe, BlockValues

# Preset -> the nearest of LyCORIS.
LYCORIS_PRESETS = {
    "cross-attention": "attn-only",
    "attention": "attn-only",
    "attention+mlp": "attn-mlp",
    "transformer": "attn-mlp",
    "full": "full",
}


@dataclass(frozen=True)
class Lora(TrainMethod):
    """Adapters on the layers of a preset, see `layer_choice.PRESETS`, made as `lora_adapters.AdapterRecipe` says.

    A `conv_rank` above 0 adds the blocks with larger convolutions to any preset. `block_ranks` and `block_rates` are
    (expression, value) pairs of `config.blocks`; a rank of 0 leaves layers out, a rate multiplies the learning rate.
    `lora_plus_ratio` multiplies that of the factors that start at zero; `max_norm` bounds the Frobenius norm of each
    layer's change, 0 is no bound.
    """

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
    algorithm: str = "lora"
    dora: bool = False
    layers: str = "transformer"
    train_norms: bool = False
    lokr_factor: int = 8
    lokr_whole: bool = False
    rank_dropout: float = 0.0
    module_dropout: float = 0.0
    max_norm: float = 0.0
    rs_lora: bool = False
    lora_plus_ratio: float = 1.0
    block_ranks: BlockValues = ()
    block_rates: BlockValues = ()

    kind = "lora"
    artefact_kind = "lora"

    @contextmanager
    def attach(self, bundle: ModelBundle, placeholder: str, generator: torch.Generator) -> Iterator[Trainable]:
        """Hook one adapter onto every chosen layer."""
        layers = self.chosen_layers(bundle)
        adapters = {name: self.recipe.make(layer, generator) for name, layer in layers.items()}
        for name, change in self._given(layers).items():
            adapters[name].load_tensors(change.tensors)
        for name, layer in layers.items():
            adapters[name].to(layer.module.weight.device)
        with hooked({layer.module: adapters[name] for name, layer in layers.items()}):
            yield Trainable(
                module=nn.ModuleDict(adapters),
                groups=self._groups(adapters, layers),
                trains_text_encoder=self.train_text_encoder,
                constraints=self._constraints(adapters),
            )

    @property
    def recipe(self) -> AdapterRecipe:
        """How the adapter of each layer is made."""
        return AdapterRecipe(
            algorithm=self.algorithm,
            rank=self.rank,
            alpha=self.alpha,
            conv_rank=self.conv_rank,
            conv_alpha=self.conv_alpha,
            dora=self.dora,
            lokr_factor=self.lokr_factor,
            lokr_whole=self.lokr_whole,
            is_rank_stabilized=self.rs_lora,
            block_ranks=self.block_ranks,
            dropouts=Dropouts(self.dropout, self.rank_dropout, self.module_dropout),
        )

    def count_parameters(self, bundle: ModelBundle) -> int:
        """The numbers of all factors; a file to go on from decides the ranks of its layers."""
        layers = self.chosen_layers(bundle)
        given = self._given(layers)
        fresh = [shape for name in layers if name not in given for shape in self.recipe.shapes(layers[name]).values()]
        taken = [t.shape for change in given.values() for suffix, t in change.tensors.items() if suffix != "alpha"]
        return sum(map(math.prod, (*fresh, *taken)))

    def chosen_layers(self, bundle: ModelBundle) -> dict[str, ChosenLayer]:
        """Layers to adapt, by the name they have in a LoRA file. Raises KeyMismatchError when there are none."""
        choice = LayerChoice(
            preset=self.layers,
            has_convolutions=self.conv_rank > 0,
            has_norms=self.train_norms,
            has_text_encoders=self.train_text_encoder,
            pattern=self.layer_filter,
        )
        found = {name: layer for name, layer in choose_layers(bundle, choice).items() if self.recipe.rank_of(layer)}
        if not found:
            raise KeyMismatchError(
                f"The layer filter {self.layer_filter!r} leaves no layer to train.", "Use a shorter one, or none."
            )
        check_whole_attention(found)
        return found

    def _given(self, layers: Mapping[str, ChosenLayer]) -> dict[str, LayerChange]:
        """What the file to go on from holds. Raises KeyMismatchError when it is not what this job trains."""
        if self.start_from is None:
            return {}
        given = read_network(self.start_from)
        check_known(layers, given, self.start_from.name)
        for name, change in given.items():
            self.recipe.check_fits(change, layers[name], self.start_from.name)
        return given

    def _groups(
        self, adapters: Mapping[str, WeightAdapter], layers: Mapping[str, ChosenLayer]
    ) -> tuple[ParamGroup, ...]:
        """One for each network and rate: LoRA+ gives what starts at zero a higher one, expressions as they say."""
        members: dict[tuple[str, float], list[nn.Parameter]] = {}
        for name, adapter in adapters.items():
            layer = layers[name]
            block = value_for(layer.path, self.block_rates, 1.0)
            for own, parameter in adapter.named_parameters():
                factor = block * (self.lora_plus_ratio if own in adapter.starting_at_zero else 1.0)
                members.setdefault((layer.part, factor), []).append(parameter)
        return tuple(
            ParamGroup(
                part if factor == 1 else f"{part} x {factor:g}",
                tuple(parameters),
                None if part == "unet" else self.text_encoder_learning_rate,
                rate_factor=factor,
            )
            for (part, factor), parameters in members.items()
        )

    def _constraints(self, adapters: Mapping[str, WeightAdapter]) -> tuple[Callable[[], None], ...]:
        bounded = [adapter for adapter in adapters.values() if not isinstance(adapter, NormAdapter)]
        return (partial(cap_norms, bounded, self.max_norm),) if self.max_norm else ()

    @property
    def network_module(self) -> str:
        """The module of kohya's trainer that makes such files; what is beyond plain LoRA is LyCORIS."""
        is_plain = self.algorithm == "lora" and not (self.dora or self.rs_lora or self.train_norms)
        return "networks.lora" if is_plain else "lycoris.kohya"

    @property
    def network_args(self) -> dict[str, object]:
        """What that module would be told; settings that are off are left out."""
        has_own_convolutions = self.layers == "full" and not self.conv_rank
        told: dict[str, object] = {
            "conv_dim": self.rank if has_own_convolutions else None,
            "conv_alpha": self.alpha if has_own_convolutions else None,
            "rank_dropout": self.rank_dropout,
            "module_dropout": self.module_dropout,
            "loraplus_lr_ratio": self.lora_plus_ratio if self.lora_plus_ratio != 1.0 else None,
        }
        if self.network_module == "lycoris.kohya":
            is_lokr = self.algorithm == "lokr"
            told |= {
                "algo": self.algorithm,
                "preset": LYCORIS_PRESETS[self.layers],
                "dora_wd": self.dora,
                "rs_lora": self.rs_lora,
                "train_norm": self.train_norms,
                "factor": self.lokr_factor if is_lokr else None,
                "full_matrix": is_lokr and self.lokr_whole,
            }
        # LyCORIS's own default is the other axis.
        axis = {"wd_on_out": False} if self.dora else {}
        return {name: value for name, value in told.items() if value} | axis

    def export(self, trainable: Trainable, info: ArtefactInfo) -> Exported:
        """Factors and alphas under the names the WebUI reads."""
        tensors = file_tensors(trainable, self.dtype)
        return Exported(tensors, lora_metadata(self._told(info), data_hash(tensors)))

    def _told(self, info: ArtefactInfo) -> ArtefactInfo:
        """`info` with what the method knows of itself."""
        return replace(
            info,
            rank=self.rank,
            alpha=self.alpha or self.rank,
            conv_rank=self.conv_rank or None,
            conv_alpha=self.conv_alpha if self.conv_rank else None,
            network_dropout=self.dropout,
            network_module=self.network_module,
            network_args=self.network_args,
            max_norm=self.max_norm or None,
            text_encoder_learning_rate=self.text_encoder_learning_rate,
        )

    def verify(self, path: Path, trainable: Trainable, bundle: ModelBundle) -> Verified:
        """Every module of the file names a layer of the model, fits its shape, and holds what was trained."""
        shapes = {name: tuple(layer.module.weight.shape) for name, layer in self.chosen_layers(bundle).items()}
        found = verify_lora(path, file_tensors(trainable, self.dtype), shapes)
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
        if found.max_difference:
            raise FormatError(
                f"{path.name} read again is not what was trained: a number differs by {found.max_difference:g}.",
                "Save again.",
            )
        return Verified(num_modules=found.num_modules)


def file_tensors(trainable: Trainable, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of the file, each in the number format that its readers need."""
    return network_tensors({name: adapter.tensors() for name, adapter in trainable.module.items()}, dtype)


def check_known(trained: Collection[str], given: Collection[str], file_name: str) -> None:
    """Raises KeyMismatchError when `given`, the modules of a file, are not all among those that are trained."""
    unknown = [name for name in given if name not in trained]
    if unknown:
        raise KeyMismatchError(
            f"{file_name}: this job does not train {len(unknown)} of its {len(given)} modules, such as {unknown[0]}.",
            "Set train_text_encoder, conv_rank, layers and layer_filter as they were for that file.",
        )
