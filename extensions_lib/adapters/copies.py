"""Whole networks in training: copies of their parameters in the places of the originals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class _Place:
    """A parameter's place in a network, and the two that may stand there."""

    owner: nn.Module
    leaf: str
    original: nn.Parameter
    copy: nn.Parameter

    def put(self, parameter: nn.Parameter) -> None:
        self.owner._parameters[self.leaf] = parameter


class ParameterCopies(nn.Module):
    """Trained copies of every parameter of some networks, each in its `dtypes`, named like 'unet/conv_in/weight'.

    The originals are buffers that no state holds, so that whoever moves a module's tensors finds them too. On a CUDA
    device they wait in the machine's memory until they are needed; `keep_originals_near` leaves them on the device.
    """

    def __init__(self, networks: Mapping[str, nn.Module], dtypes: Mapping[str, torch.dtype]) -> None:
        super().__init__()
        self._places: dict[str, _Place] = {}
        self._are_near = False
        self.parts = tuple(networks)
        for part, network in networks.items():
            for path, owner in network.named_modules():
                for leaf, original in owner._parameters.items():
                    if original is not None:
                        name = ".".join(filter(None, (part, path, leaf)))
                        copy = nn.Parameter(original.detach().to(dtypes[part], copy=True))
                        self._places[name] = _Place(owner, leaf, original, copy)
                        self.register_parameter(name.replace(".", "/"), copy)
                        self.register_buffer(f"{name.replace('.', '/')}@", original, persistent=False)

    def of(self, part: str) -> dict[str, nn.Parameter]:
        """The copies of one network, by the names they have in it."""
        return {name: place.copy for name, place in self._of(part).items()}

    def originals(self, part: str) -> dict[str, Tensor]:
        """What the copies of one network started from, by the names they have in it."""
        return {name: place.original.detach() for name, place in self._of(part).items()}

    def _of(self, part: str) -> dict[str, _Place]:
        start = f"{part}."
        return {name.removeprefix(start): place for name, place in self._places.items() if name.startswith(start)}

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within the context the networks compute with the copies; afterwards they are bit for bit as before."""
        homes = [place.original.device for place in self._places.values()]
        try:
            for place in self._places.values():
                place.put(place.copy)
                if place.original.device.type == "cuda":
                    place.original.data = place.original.data.cpu()
            yield
        finally:
            for place, home in zip(self._places.values(), homes, strict=True):
                place.put(place.original)
                place.original.data = place.original.data.to(home)

    def keep_originals_near(self) -> None:
        """Have the originals on the device of the copies from now on: for those who need them at every step."""
        self._are_near = True
        for place in self._places.values():
            place.original.data = place.original.data.to(place.copy.device)

    @contextmanager
    def withdrawn(self) -> Iterator[None]:
        """Within the context the networks are the originals, bit for bit.

        Unless the originals are near, both change places tensor by tensor, so that a device never holds two networks.
        """
        for place in self._places.values():
            self._exchange(place, place.original, place.copy)
        try:
            yield
        finally:
            for place in self._places.values():
                self._exchange(place, place.copy, place.original)

    def _exchange(self, place: _Place, coming: nn.Parameter, leaving: nn.Parameter) -> None:
        here, there = leaving.device, coming.device
        if here != there and not self._are_near:
            leaving.data = leaving.data.to(there)
            coming.data = coming.data.to(here)
        place.put(coming)
