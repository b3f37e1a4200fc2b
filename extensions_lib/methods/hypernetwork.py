"""Hypernetworks: small networks that change what attentions look at, as AUTOMATIC1111's WebUI applies them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from ..adapters.attach import select_layers
from ..adapters.hypernetwork import ContextNetwork, hooked_before
from ..errors import FormatError, KeyMismatchError
from ..formats.hypernetwork import (
    HypernetworkDesign,
    HypernetworkFile,
    Tensors,
    hypernetwork_bytes,
    read_hypernetwork,
)
from ..formats.metadata import ArtefactInfo
from ..models.bundle import ModelBundle
from .base import Exported, ParamGroup, Trainable, TrainMethod, Verified

# Before the keys and before the values.
PARTS = ("to_k", "to_v")
# How far the written networks may be from the trained ones in what they do, relative to what they do.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


@dataclass(frozen=True)
class Hypernetwork(TrainMethod):
    """A pair of networks for each of `widths`, or for each width of the model's attentions when there are none given.

    A file to go on from decides design and widths.
    """

    design: HypernetworkDesign = field(default_factory=HypernetworkDesign)
    widths: tuple[int, ...] = ()
    start_from: Path | None = None
    dtype: torch.dtype = torch.float16

    kind = "hypernetwork"
    artefact_kind = "hypernetwork"

    @contextmanager
    def attach(self, bundle: ModelBundle, placeholder: str, generator: torch.Generator) -> Iterator[Trainable]:
        """Hook the networks of its width before every layer that makes keys or values; dropout is off at first."""
        given = self._given()
        design = given.design if given else self.design
        layers = _layers(bundle)
        module = nn.ModuleDict(
            {
                str(width): nn.ModuleDict({part: _network(width, design, generator) for part in PARTS})
                for width in self._widths(bundle, given)
            }
        )
        if given is not None:
            for width, networks in given.networks.items():
                for part, tensors in zip(PARTS, networks, strict=True):
                    module[str(width)][part].load_state_dict(dict(tensors))
        module.to(bundle.unet.device)
        module.eval()
        reached = {
            layer: module[str(layer.in_features)][part]
            for layer, part in layers.items()
            if str(layer.in_features) in module
        }
        with hooked_before(reached):
            groups = (ParamGroup("unet", tuple(module.parameters())),)
            yield Trainable(module=module, groups=groups, trains_text_encoder=False)

    def count_parameters(self, bundle: ModelBundle) -> int:
        """The numbers of all networks; a file to go on from decides its layers."""
        given = self._given()
        design = given.design if given else self.design
        shapes = [shape for width in self._widths(bundle, given) for shape in design.tensor_shapes(width).values()]
        return len(PARTS) * sum(map(math.prod, shapes))

    def _given(self) -> HypernetworkFile | None:
        return None if self.start_from is None else read_hypernetwork(self.start_from)

    def _widths(self, bundle: ModelBundle, given: HypernetworkFile | None) -> tuple[int, ...]:
        """The widths to train, in ascending order. Raises KeyMismatchError for one that the model does not have."""
        known = sorted({layer.in_features for layer in _layers(bundle)})
        wanted = sorted(given.networks) if given else sorted(self.widths or known)
        unknown = [str(width) for width in wanted if width not in known]
        if unknown:
            source = f"{self.start_from.name} has" if self.start_from else "The settings name"
            raise KeyMismatchError(
                f"{source} the widths {', '.join(unknown)}, which no attention of this model has; it has "
                f"{', '.join(map(str, known))}.",
                "Choose a hypernetwork made for this kind of model." if given else "Leave the widths empty for all.",
            )
        return tuple(wanted)

    def export(self, trainable: Trainable, info: ArtefactInfo) -> Exported:
        """The networks of each width in `dtype`, and the job's settings as the file's free text."""
        given = self._given()
        payload = hypernetwork_bytes(
            self._stored(trainable),
            given.design if given else self.design,
            name=info.output_name,
            step=info.steps or 0,
            checkpoint_hash=(info.base_model_sha256 or "")[:10] or None,
            checkpoint_name=info.base_model_name,
            optional_info=info.job_json,
        )
        return Exported({}, {}, payload)

    def _stored(self, trainable: Trainable) -> dict[int, tuple[Tensors, Tensors]]:
        """The trained tensors by width, before the keys and before the values, in the number format of the file."""
        return {
            int(width): tuple(
                {name: tensor.detach().to("cpu", self.dtype) for name, tensor in pair[part].state_dict().items()}
                for part in PARTS
            )
            for width, pair in trainable.module.items()
        }

    def verify(self, path: Path, trainable: Trainable, bundle: ModelBundle) -> Verified:
        """The file, computed by other code, changes what attentions see as the trained networks do."""
        found = read_hypernetwork(path)
        if not _are_equal(found.networks, self._stored(trainable)):
            raise FormatError(f"{path.name} read again is not what was trained.", "Save again.")
        tensors = [tensor for pair in found.networks.values() for part in pair for tensor in part.values()]
        if not all(bool(tensor.isfinite().all()) for tensor in tensors):
            raise FormatError(f"{path.name} holds values that are not finite.", "Lower the learning rate.")
        if not any(bool(tensor.any()) for tensor in tensors):
            raise FormatError(f"{path.name} holds only zeros.", "Train longer, or with a higher learning rate.")
        difference = max(_differences(found, trainable), default=0.0)
        if not difference <= TOLERANCE[self.dtype]:
            raise FormatError(
                f"{path.name} read again acts otherwise than what was trained, by {difference:.2g}.", "Save again."
            )
        layers = _layers(bundle)
        matched = [layer for layer, part in layers.items() if part == PARTS[0] and layer.in_features in found.networks]
        return Verified(num_modules=len(matched))

    @property
    def file_suffix(self) -> str:
        """The only one the WebUI lists."""
        return ".pt"


def _are_equal(found: Mapping[int, tuple[Tensors, Tensors]], stored: Mapping[int, tuple[Tensors, Tensors]]) -> bool:
    """Whether the same widths hold the same tensors. NaN counts as equal to itself: it is looked for apart."""
    if found.keys() != stored.keys():
        return False
    pairs = [pair for width in found for pair in zip(found[width], stored[width], strict=True)]
    return all(
        one.keys() == two.keys()
        and all(torch.allclose(one[name], two[name].float(), 0, 0, equal_nan=True) for name in one)
        for one, two in pairs
    )


def _layers(bundle: ModelBundle) -> dict[nn.Module, str]:
    """Every layer of the UNet that makes keys or values, with the part it makes."""
    found = select_layers(bundle.unet, ("Attention",), (nn.Linear,), r"\.to_[kv]$")
    return {layer: path.rpartition(".")[2] for path, layer in found.items()}


def _network(width: int, design: HypernetworkDesign, generator: torch.Generator) -> ContextNetwork:
    return ContextNetwork(width, generator=generator, **dataclasses.asdict(design))


@torch.no_grad()
def _differences(found: HypernetworkFile, trainable: Trainable) -> Iterator[float]:
    """For each network the largest deviation over fixed states, relative to the largest change, without dropout."""
    was_training = trainable.module.training
    trainable.module.eval()
    try:
        for width, pair in trainable.module.items():
            states = torch.randn(1, 16, int(width), generator=torch.Generator().manual_seed(int(width)))
            for part, name in enumerate(PARTS):
                expected = _change(pair[name], states)
                change = found.apply(states, part) - states
                scale = max(float(expected.abs().max()), 1e-6)
                yield float((change - expected).abs().max().nan_to_num(nan=math.inf)) / scale
    finally:
        trainable.module.train(was_training)


def _change(network: ContextNetwork, states: Tensor) -> Tensor:
    device = next(network.parameters()).device
    return network.linear(states.to(device)).cpu()
