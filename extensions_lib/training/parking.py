"""Taking a job's tensors off its device while others compute there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..methods.base import Trainable
from ..models.bundle import ModelBundle
from .memory import out_of_memory_explained, release_memory

ENOUGH_FREE_BYTES = 10 * 2**30  # a picture of 1024 px with SDXL in half precision; smaller models need less


@contextmanager
def parked(
    bundle: ModelBundle | None,
    trainable: Trainable | None,
    optimizer: torch.optim.Optimizer | None,
    device: torch.device | str,
) -> Iterator[None]:
    """Within the context the networks, the trained parameters and the optimizer's state wait in the machine's memory.

    Nothing is moved on a CPU, or while a CUDA device has `ENOUGH_FREE_BYTES` for others. All of it comes back, values
    bit for bit and every tensor the same object, so the context may be entered at any boundary, between the steps of a
    preview too: what a computation holds besides stays on the device. Raises OutOfMemoryError when there is no room
    to come back to.
    """
    device = torch.device(device)
    if device.type != "cuda" or free_bytes(device) >= ENOUGH_FREE_BYTES:
        yield
        return
    away = [tensor for tensor in job_tensors(bundle, trainable, optimizer) if tensor.device.type == device.type]
    homes = [tensor.device for tensor in away]
    for tensor in away:
        tensor.data = tensor.data.cpu()
    release_memory()
    try:
        yield
    finally:
        release_memory()
        with out_of_memory_explained("returning to the device after others used it"):
            for tensor, home in zip(away, homes, strict=True):
                tensor.data = tensor.data.to(home)


def free_bytes(device: torch.device | str) -> int:
    """What another part of this process could allocate on a CUDA device: free memory, and what torch keeps unused."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def job_tensors(
    bundle: ModelBundle | None, trainable: Trainable | None, optimizer: torch.optim.Optimizer | None
) -> list[Tensor]:
    """Every parameter, gradient, buffer and optimizer state of a job, each once."""
    modules = [*(bundle.parts.values() if bundle else ()), *([trainable.module] if trainable else [])]
    found = [tensor for module in modules for tensor in _module_tensors(module)]
    if optimizer is not None:
        found += _tensors_in(optimizer.state)
    return list({id(tensor): tensor for tensor in found}.values())


def _module_tensors(module: nn.Module) -> Iterator[Tensor]:
    for parameter in module.parameters():
        yield parameter
        if parameter.grad is not None:
            yield parameter.grad
    yield from module.buffers()


def _tensors_in(value: Any) -> list[Tensor]:
    """The tensors in nested mappings and lists; those that are keys, an optimizer's parameters, are left out."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [tensor for entry in value.values() for tensor in _tensors_in(entry)]
    if isinstance(value, (list, tuple)):
        return [tensor for entry in value for tensor in _tensors_in(entry)]
    return []
