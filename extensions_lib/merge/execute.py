"""Carrying out a merge: tensors are read, merged in float32 and written one at a time.

In memory are the tensors of one name and of the few next ones, which are made while one is written, however large the
models are.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..control import JobControl
from ..errors import JobStopped, MergeError, ModelError
from ..events import Event, PhaseProgress, Warned
from ..formats.atomic import write_bytes_atomic
from ..formats.hashes import autov1, file_sha256
from ..formats.safetensors_io import DTYPES, in_file_order
from ..formats.tensor_file import TensorFile, write_tensors_as_made
from ..models.sibling import sibling_path
from .catalogue import METHODS, MergeMethod, Ratios
from .fit import POSITION_IDS, label
from .methods import similarity_range
from .models import part_of
from .plan import MergePlan, TensorPlan
from .recipe import Parent, Recipe, recipe_metadata, recipe_of

Emit = Callable[[Event], object]
HashOf = Callable[[Path], str | None]

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
_MEGABYTE = 1 << 20


@dataclass(frozen=True)
class Merged:
    """The written file, the recipe in it, and the description copied beside it, if there is one."""

    path: Path
    recipe: Recipe
    yaml: Path | None = None


class Progress:
    """Counts one phase for the listeners, about a hundred times in all, and ends it when the job is asked to stop."""

    def __init__(self, phase: str, total: int, control: JobControl, emit: Emit) -> None:
        self._phase, self._total, self._control, self._emit = phase, total, control, emit
        self._done, self._told = 0, -1

    def advance(self, amount: int = 1) -> None:
        """Add to what is done. Waits while paused; raises JobStopped when asked to stop."""
        self._done += amount
        percent = 100 * self._done // max(self._total, 1)
        if percent > self._told:
            self._told = percent
            self._emit(PhaseProgress(phase=self._phase, done=self._done, total=self._total))
        self._control.wait_while_paused()
        if self._control.stop_requested:
            raise JobStopped("The merge was stopped.", "Nothing was written.")


def execute(
    plan: MergePlan,
    control: JobControl,
    emit: Emit,
    *,
    hash_of: HashOf = lambda path: None,
    recipe: Recipe | None = None,
) -> Merged:
    """Write the merged checkpoint; complete under its name, or nothing.

    `hash_of` may know the sha256 of a file (64 digits) without reading it, None if not. `recipe` is written instead of
    the plan's own when a file is made again. Raises MergeError for numbers that are not finite and for models that
    changed meanwhile, JobStopped when asked to stop; otherwise as `write_atomic`.
    """
    paths = _sources(plan)
    signs = {path: _sign(path) for path in paths}
    known = [parent.sha256 for parent in recipe.parents] if recipe else [hash_of(path) for path in paths]
    plan.output.parent.mkdir(parents=True, exist_ok=True)
    with (
        _opened(plan, [sha256 is None for sha256 in known]) as files,
        closing(_tensors(plan, files, control, emit)) as tensors,
    ):

        def final_recipe() -> Recipe:
            if recipe is not None:
                return recipe
            hashes = [sha256 or _sha256(file, control, emit) for sha256, file in zip(known, files, strict=True)]
            return recipe_of(plan, [_parent(path, sha256) for path, sha256 in zip(paths, hashes, strict=True)])

        def final_metadata() -> dict[str, str]:
            written.append(final_recipe())
            _check_unchanged(signs)
            return recipe_metadata(written[0], plan)

        written: list[Recipe] = []
        write_tensors_as_made(
            plan.output,
            {name: tensor.info for name, tensor in plan.tensors.items()},
            lambda name: next(tensors)[1],
            _longest_metadata(plan, recipe),
            final_metadata=final_metadata,
            overwrite=plan.config.overwrite,
        )
    return Merged(plan.output, written[0], _copy_yaml(plan))


def merged_tensors(plan: MergePlan, control: JobControl, emit: Emit) -> Iterator[tuple[str, Tensor]]:
    """Name and value of every tensor of the result, in the order of a file; nothing is written.

    To be closed when not all are taken. Raises as `execute`.
    """
    with _opened(plan, [False] * len(_sources(plan))) as files:
        yield from _tensors(plan, files, control, emit)


@contextmanager
def _opened(plan: MergePlan, hashed: Sequence[bool]) -> Iterator[list[TensorFile]]:
    with ExitStack() as stack:
        yield [
            stack.enter_context(TensorFile(path, hashed=is_hashed))
            for path, is_hashed in zip(_sources(plan), hashed, strict=True)
        ]


def _tensors(plan: MergePlan, files: list[TensorFile], control: JobControl, emit: Emit) -> Iterator[tuple[str, Tensor]]:
    for warning in plan.warnings:
        emit(Warned(text=warning))
    work = _Work(plan, files)
    if work.method.similarities is not None:
        work.measure_similarities(control, emit)
    names = list(in_file_order({name: tensor.info for name, tensor in plan.tensors.items()}))
    progress = Progress("merge", len(names), control, emit)
    with work.making_ahead(names) as take:
        for name in names:
            tensor = take(name)
            progress.advance()
            yield name, tensor


class _Work:
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
        num_threads = min(os.cpu_count() or 1, _MAX_THREADS) if self.method.elementwise else 1
        waiting = iter(names)
        ahead: deque[Future[Tensor]] = deque()
        with ThreadPoolExecutor(num_threads) as pool:

            def take(name: str) -> Tensor:
                while len(ahead) <= num_threads and (following := next(waiting, None)) is not None:
                    ahead.append(pool.submit(self.make, following))
                return ahead.popleft().result()

            try:
                yield take
            finally:
                for future in ahead:
                    future.cancel()

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


def is_finite(tensor: Tensor) -> bool:
    """Whether all numbers of a contiguous tensor are finite; several times faster than torch.isfinite."""
    if tensor.dtype not in _BITS:
        return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())
    whole, size, infinite = _BITS[tensor.dtype]
    bits = tensor.view(-1).view(whole)
    pieces = (bits[begin : begin + PIECE_NUMBERS] for begin in range(0, bits.numel(), PIECE_NUMBERS))
    return all(int((piece & size).max()) < infinite for piece in pieces)


def _same_channels(plan: TensorPlan, sources: list[Tensor]) -> list[Tensor]:
    return sources if plan.channels is None else [tensor[:, : plan.channels] for tensor in sources]


def _sources(plan: MergePlan) -> list[Path]:
    return [model.path for model in plan.models] + ([plan.vae.path] if plan.vae else [])


def _parent(path: Path, sha256: str) -> Parent:
    return Parent(path.name, sha256, autov1(path), path.stat().st_size)


def _longest_metadata(plan: MergePlan, recipe: Recipe | None) -> dict[str, str]:
    """As long as the metadata will be or longer: every model counts, with a hash unlike all others."""
    if recipe is None:
        recipe = recipe_of(plan, [_parent(path, "") for path in _sources(plan)])
    first, *others = [replace(parent, sha256=f"{index:064}") for index, parent in enumerate(recipe.parents)]
    models, vae = ([first, *others[:-1]], others[-1]) if recipe.vae else ([first, *others], None)
    return recipe_metadata(replace(recipe, models=tuple(models), vae=vae), plan)


def _sha256(file: TensorFile, control: JobControl, emit: Emit) -> str:
    """The hash of an open model, as a phase of its own where it was not read in order."""
    return file.sha256(_hash_progress(file.path, control, emit))


def hash_with_progress(path: Path, control: JobControl, emit: Emit) -> str:
    """The sha256 of a file, as a phase of its own. Raises JobStopped, ModelError."""
    try:
        return file_sha256(path, _hash_progress(path, control, emit))
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}.", "Check the disk.") from error


def _hash_progress(path: Path, control: JobControl, emit: Emit) -> Callable[[int], None]:
    """Told of bytes, counts in MiB."""
    progress = Progress(f"hash {path.name} (MiB)", path.stat().st_size // _MEGABYTE, control, emit)
    pending = 0

    def on_read(count: int) -> None:
        nonlocal pending
        pending += count
        if pending >= _MEGABYTE:
            progress.advance(pending // _MEGABYTE)
            pending %= _MEGABYTE

    return on_read


def _sign(path: Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


def _check_unchanged(signs: Mapping[Path, tuple[int, int]]) -> None:
    changed = [path.name for path, sign in signs.items() if _sign(path) != sign]
    if changed:
        raise MergeError(f"{', '.join(changed)} changed while it was merged; nothing was written.", "Start again.")


def _copy_yaml(plan: MergePlan) -> Path | None:
    """The description beside the result; a result without the one it needs is taken back."""
    if plan.yaml is None:
        return None
    try:
        return write_bytes_atomic(sibling_path(plan.output), plan.yaml.read_bytes(), overwrite=plan.config.overwrite)
    except BaseException:
        plan.output.unlink(missing_ok=True)
        raise
