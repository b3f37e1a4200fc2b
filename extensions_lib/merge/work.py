"""The tensors of a merged model: read, merged in float32, rounded once and looked at for NaN."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from ..control import JobControl
from ..errors import MergeError
from ..formats.safetensors_io import DTYPES
from ..formats.tensor_file import TensorFile
from .catalogue import METHODS, MergeMethod, Ratios
from .fit import POSITION_IDS, label
from .methods import similarity_range
from .models import part_of
from .plan import MergePlan, TensorPlan
from .progress import Emit, Progress

# Elementwise formulas work on pieces of this many numbers: they stay in the processor's cache, and torch does not share
# them among its own threads, which is slow on a busy machine; our threads take whole tensors.
PIECE_NUMBERS = 31_744
_MAX_THREADS = 4
# Per dtype: the whole numbers of its size, the bits without the sign, and these of infinity, above which are the NaNs.
_BITS = {
    torch.float16: (torch.int16, 0x7FFF, 0x7C00),
    torch.bfloat16: (torch.int16, 0x7FFF, 0x7F80),
    torch.float32: (torch.int32, 0x7FFF_FFFF, 0x7F80_0000),
}


class Work:
    """The open files of a plan, and the tensors of its result."""

    def __init__(self, plan: MergePlan, files: list[TensorFile]) -> None:
        self.method: MergeMethod = METHODS[plan.config.formula]
        self._plan, self._files = plan, files
        self._range = (0.0, 1.0)
        self._reading = threading.Lock()

    @contextmanager
    def making_ahead(self, names: list[str]) -> Iterator[Callable[[str], Tensor]]:
        """Within the context, gives the tensor of each of `names`, asked for in this order; the next are made already.

        Formulas that need much memory for a tensor, and those of whole tensors, which torch itself spreads over its
        threads, are one ahead only.
        """
        with making_ahead(self.make, names, num_threads() if self.method.elementwise else 1) as take:
            yield take

    def make(self, name: str) -> Tensor:
        """One tensor of the result, in its dtype. Raises MergeError when it is not finite."""
        plan = self._plan.tensors[name]
        dtype = DTYPES[plan.info.dtype]
        if POSITION_IDS.search(name):
            return torch.arange(plan.info.shape[-1]).expand(plan.info.shape).contiguous()
        sources = self._read(name)
        if plan.ratios is None:
            result = sources[0].reshape(plan.info.shape).to(dtype)
        else:
            result = self._merge(plan, sources, dtype)
        if not is_finite(result):
            raise self._not_finite(name, sources, dtype)
        return result

    def measure_similarities(self, control: JobControl, emit: Emit) -> None:
        """How alike A and B are in each column of UNet and text encoders, for the range of the cosine formulas."""
        names = [n for n, tensor in self._plan.tensors.items() if tensor.ratios is not None and part_of(n) != "vae"]
        progress, found = Progress("compare", len(names), control, emit), []
        for name in names:
            plan = self._plan.tensors[name]
            model_a, model_b = (tensor.float() for tensor in _same_channels(plan, self._read(name)))
            found.append(self.method.similarities(model_a, model_b.reshape(model_a.shape)).flatten())
            progress.advance()
        self._range = similarity_range(torch.cat(found)) if found else self._range

    def _merge(self, plan: TensorPlan, sources: list[Tensor], dtype: torch.dtype) -> Tensor:
        ratios = replace(plan.ratios, similarity_range=self._range)
        inputs = _same_channels(plan, sources)
        if self.method.elementwise:
            merged = self._merge_in_pieces(inputs, ratios, dtype)
        else:
            shape = inputs[0].shape
            merged = self.method.merge([tensor.reshape(shape).float() for tensor in inputs], ratios).to(dtype)
        if plan.channels is None:
            return merged
        whole = sources[0].to(dtype, copy=True)
        whole[:, : plan.channels] = merged
        return whole

    def _merge_in_pieces(self, inputs: list[Tensor], ratios: Ratios, dtype: torch.dtype) -> Tensor:
        merged = torch.empty(inputs[0].shape, dtype=dtype)
        flat, target = [tensor.reshape(-1) for tensor in inputs], merged.view(-1)
        for begin in range(0, target.numel(), PIECE_NUMBERS):
            piece = slice(begin, begin + PIECE_NUMBERS)
            target[piece] = self.method.merge([tensor[piece].float() for tensor in flat], ratios)
        return merged

    def _read(self, name: str) -> list[Tensor]:
        """The tensors that `name` is made from. One thread reads at a time, so that files are read in one go."""
        with self._reading:
            return self._read_sources(name)

    def _read_sources(self, name: str) -> list[Tensor]:
        plan, models = self._plan.tensors[name], self._plan.models
        if plan.ratios is not None:
            return [model.read(self._files[index], name) for index, model in enumerate(models)]
        if plan.source < 0:
            return [self._plan.vae.read(self._files[-1], name)]
        return [models[plan.source].read(self._files[plan.source], name)]

    def _not_finite(self, name: str, sources: list[Tensor], dtype: torch.dtype) -> MergeError:
        plan, models = self._plan.tensors[name], self._plan.models
        labels = [label(i, model) for i, model in enumerate(models)]
        if plan.ratios is None:
            labels = [self._plan.vae.path.name if plan.source < 0 else labels[plan.source]]
        broken = [text for text, tensor in zip(labels, sources, strict=True) if not is_finite(tensor)]
        if broken:
            return MergeError(
                f"Nothing was written: the tensor {name} of {', '.join(broken)} holds NaN or infinite values.",
                "Use another copy of this model, or take this part from another one.",
            )
        return MergeError(
            f"Nothing was written: the tensor {name} became too large for {dtype}.",
            "Choose smaller ratios, or bf16 or fp32.",
        )


def num_threads() -> int:
    """How many tensors are made at a time where each needs little memory."""
    return min(os.cpu_count() or 1, _MAX_THREADS)


@contextmanager
def making_ahead(
    make: Callable[[str], Tensor], names: list[str], num_threads: int
) -> Iterator[Callable[[str], Tensor]]:
    """Within the context, gives `make` of each of `names`, asked for in this order; the next are made already."""
    waiting = iter(names)
    ahead: deque[Future[Tensor]] = deque()
    with ThreadPoolExecutor(num_threads) as pool:

        def take(name: str) -> Tensor:
            while len(ahead) <= num_threads and (following := next(waiting, None)) is not None:
                ahead.append(pool.submit(make, following))
            return ahead.popleft().result()

        try:
            yield take
        finally:
            for future in ahead:
                future.cancel()


def is_finite(tensor: Tensor) -> bool:
    """Whether all numbers of a contiguous tensor are finite; several times faster than torch.isfinite."""
    if tensor.dtype not in _BITS:
        # float8 knows no isfinite.
        return not tensor.is_floating_point() or bool(torch.isfinite(tensor.double()).all())
    whole, size, infinite = _BITS[tensor.dtype]
    bits = tensor.view(-1).view(whole)
    pieces = (bits[begin : begin + PIECE_NUMBERS] for begin in range(0, bits.numel(), PIECE_NUMBERS))
    return all(int((piece & size).max()) < infinite for piece in pieces)


def _same_channels(plan: TensorPlan, sources: list[Tensor]) -> list[Tensor]:
    return sources if plan.channels is None else [tensor[:, : plan.channels] for tensor in sources]
