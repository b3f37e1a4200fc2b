"""Other values in the place of a loaded model's own, and these back again. Knows torch modules, not the host.

Only parameters and buffers that differ are touched; their own values wait in main memory. Places are kept as module and
attribute, because moving a module to another device replaces its tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

VAE = "first_stage_model."
_WRAPPER = "wrapped"  # what the host puts around text encoders and their tables of words
_HALF_COPIES = {"weight": "fp16_weight", "bias": "fp16_bias"}  # what its LoRAs compute with, beside weights in 8 bits


def places_of(model: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """Module and attribute of every parameter and buffer, by the name it has in a checkpoint."""
    found: dict[str, tuple[nn.Module, str]] = {}
    for path, module in model.named_modules():
        parts = [part for part in path.split(".") if part not in (_WRAPPER, "")]
        for name in (*module._parameters, *module._buffers):
            if getattr(module, name) is not None:
                found.setdefault(".".join([*parts, name]), (module, name))
    return found


@dataclass
class TrialValues:
    """`put` and `undo` on one model. `stored_vae` gives the checkpoint's own VAE by name without its beginning, where
    the host has put another one into the model; None where the model holds it.
    """

    model: Any
    stored_vae: Callable[[], Mapping[str, Tensor] | None]
    _places: dict[str, tuple[Any, str]] = field(init=False, repr=False)
    _before: dict[str, Tensor] = field(init=False, repr=False, default_factory=dict)
    _attributes: list[tuple[Any, str, Any]] = field(init=False, repr=False, default_factory=list)

    def __post_init__(self) -> None:
        self._places = places_of(self.model)

    def names(self) -> Iterator[str]:
        """Of all places."""
        return iter(self._places)

    def place(self, name: str) -> Tensor | None:
        """The tensor that now stands for that name; None for one that the model has not."""
        stored = self.stored_vae() if name.startswith(VAE) else None
        if stored is not None:
            return stored.get(name.removeprefix(VAE))
        module, attribute = self._places.get(name, (None, ""))
        return getattr(module, attribute, None)

    def put(self, name: str, value: Tensor) -> bool:
        """Give the place of that name the value, in the place's own number format; whether it changed.

        A name that the model has not is passed over, as the host passes over it in a file. Raises ValueError for a
        model without values.
        """
        import torch

        place = self.place(name)
        if place is None:
            return False
        if place.is_meta:
            raise ValueError(f"{name} has no values")
        # As the host: to 8 bits by way of half precision.
        half = value.half() if place.element_size() == 1 and place.is_floating_point() else value
        new = half.to(place.device, place.dtype)
        if torch.equal(_bits(place), _bits(new)):
            return False
        self._before[name] = place.detach().to("cpu", copy=True)
        self._put_half_copy(name, half)
        with torch.no_grad():
            place.copy_(new)
        return True

    def set(self, owner: Any, attribute: str, value: Any) -> None:
        """Another object as an attribute, until `undo`."""
        self._attributes.append((owner, attribute, getattr(owner, attribute)))
        setattr(owner, attribute, value)

    @property
    def changed(self) -> list[str]:
        """The names of the places with other values."""
        return list(self._before)

    def undo(self) -> None:
        """Everything as it was, bit by bit, where the model still has values."""
        import torch

        with torch.no_grad():
            for name, value in self._before.items():
                place = self.place(name)
                if place is not None and not place.is_meta:
                    place.copy_(value)
        for owner, attribute, value in reversed(self._attributes):
            setattr(owner, attribute, value)
        self._before.clear()
        self._attributes.clear()

    def _put_half_copy(self, name: str, value: Tensor) -> None:
        module, attribute = self._places.get(name, (None, ""))
        copy = _HALF_COPIES.get(attribute, "")
        if copy and getattr(module, copy, None) is not None:
            self.set(module, copy, value.to("cpu", copy=True))


def _bits(tensor: Tensor) -> Tensor:
    """Comparable bit by bit; 8-bit floats cannot be compared as numbers."""
    import torch

    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.detach().contiguous().view(whole[tensor.element_size()])
