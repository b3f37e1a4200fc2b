"""Other values for the networks of a bundle, as of another checkpoint of the same architecture."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from .bundle import ModelBundle
from .ldm import part_from_ldm, part_to_ldm


class Refill:
    """Writes checkpoint tensors into a bundle in place: its parameters keep identity, device and number format."""

    def __init__(self, bundle: ModelBundle) -> None:
        """The bundle must have no adapter attached."""
        self._bundle = bundle
        self._states = {part: module.state_dict() for part, module in bundle.parts.items()}
        self._part_of = {
            name: part
            for part, module in bundle.parts.items()
            for name in part_to_ldm(part, module, bundle.family)
        }  # fmt: skip

    def __call__(self, tensors: Iterable[tuple[str, Tensor]]) -> int:
        """Name and value by present-day checkpoint names; returns how many found their place, others are passed over.

        What is not named stays. One tensor is in memory at a time.
        """
        count = 0
        for name, tensor in tensors:
            part = self._part_of.get(name)
            if part is None:
                continue
            module = self._bundle.parts[part]
            with torch.no_grad():
                for own, value in part_from_ldm(part, {name: tensor}, module, self._bundle.family).items():
                    self._states[part][own].copy_(value)
            count += 1
        return count
