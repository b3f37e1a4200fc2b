"""Training on a few cores: one process per core, gradients averaged, time instead of steps."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


class _ContiguousGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.contiguous()


def _group_norm(self: nn.GroupNorm, x: Tensor) -> Tensor:
    weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
    return _ContiguousGradient.apply(F.group_norm(x.contiguous(), self.num_groups, weight, bias, self.eps))


def use_fast_group_norm() -> None:
    """torch's GroupNorm backward is 80 times slower on channels-last bfloat16 than on contiguous tensors."""
    nn.GroupNorm.forward = _group_norm  # type: ignore[method-assign]


def average_gradients(parameters: list[nn.Parameter]) -> None:
    """Average the gradients over the workers, in one message."""
    if dist.get_world_size() == 1:
        return
    flat = torch.cat([p.grad.flatten() for p in parameters])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    pieces = flat.split([p.numel() for p in parameters])
    for parameter, piece in zip(parameters, pieces, strict=True):
        parameter.grad.copy_(piece.view_as(parameter))


def clock(minutes: float, spent: float) -> Iterator[float]:
    """The share of `minutes` used up, 0..1, agreed between the workers; `spent` minutes came before."""
    started = time.monotonic()
    while True:
        share = torch.tensor(min((spent + (time.monotonic() - started) / 60) / minutes, 1.0))
        dist.broadcast(share, 0)
        yield share.item()
        if share >= 1:
            return


def warm_cosine(share: float, peak: float, warmup: float = 0.03, floor: float = 0.01) -> float:
    """Learning rate at `share` 0..1 of the time: a linear rise, then half a cosine down to floor * peak."""
    if share < warmup:
        return peak * max(share / warmup, 0.01)
    return peak * (floor + (1 - floor) * (1 + math.cos(math.pi * (share - warmup) / (1 - warmup))) / 2)


def spawn(worker: Callable[[int, Any], None], args: Any) -> None:
    """Run `worker(rank, args)` in `args.workers` processes that can talk to each other."""
    torch.multiprocessing.spawn(_enter, (worker, args), nprocs=args.workers)


def _enter(rank: int, worker: Callable[[int, Any], None], args: Any) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(1000 * args.seed + rank)
    store = f"file://{args.out}/rendezvous-{os.getppid()}"
    dist.init_process_group("gloo", store, rank=rank, world_size=args.workers)
    use_fast_group_norm()
    worker(rank, args)
    dist.destroy_process_group()


def save_atomically(value: Any, path: Path) -> None:
    part = path.with_suffix(".part")
    torch.save(value, part)
    os.replace(part, path)


def log(message: str) -> None:
    print(time.strftime("%H:%M:%S"), message, flush=True)
