"""Choosing layers by name, and hooking adapters onto them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn

from ..errors import KeyMismatchError


class Adapter(nn.Module):
    """Changes the output of one layer. `multiplier` 0 leaves the layer's own output untouched, bit for bit."""

    multiplier: float = 1.0

    def change(self, layer: nn.Module, inputs: Tensor, output: Tensor) -> Tensor:
        """The layer's new output, of the shape of `output`, from its `inputs` and its own `output`."""
        raise NotImplementedError


@contextmanager
def hooked(adapters: Mapping[nn.Module, Adapter]) -> Iterator[None]:
    """Within the context every layer's output passes through its adapter; afterwards the layers are as before.

    Hooks rather than replaced modules: names, parameters and flags of the model never change.
    """
    with ExitStack() as stack:
        for layer, adapter in adapters.items():
            handle = layer.register_forward_hook(_hook(adapter))
            stack.callback(handle.remove)
        yield


def _hook(adapter: Adapter):  # noqa: ANN202 - the type of a torch forward hook
    def change_output(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        return adapter.change(layer, inputs[0], output) if adapter.multiplier else None

    return change_output


def select_layers(
    root: nn.Module, inside: tuple[str, ...], kinds: tuple[type, ...], pattern: str = ""
) -> dict[str, nn.Module]:
    """Layers of one of the types `kinds` within modules whose class name is in `inside`, by dotted path.

    `pattern` is a regular expression to be found in the path; empty accepts all.
    Raises KeyMismatchError for a pattern that is not a regular expression.
    """
    try:
        wanted = re.compile(pattern)
    except re.error as error:
        raise KeyMismatchError(
            f"The layer filter {pattern!r} is not a regular expression: {error}.",
            "Accepted is for instance 'attn2' or 'up_blocks\\.[123]'.",
        ) from error
    found: dict[str, nn.Module] = {}
    for prefix, block in root.named_modules():
        if type(block).__name__ not in inside:
            continue
        for name, layer in block.named_modules():
            path = f"{prefix}.{name}" if prefix else name
            if isinstance(layer, kinds) and wanted.search(path):
                found[path] = layer
    return found
