"""Carrying out a merge: tensors are read, merged in float32 and written one at a time.

In memory are the tensors of one name and of the few next ones, which are made while one is written, however large the
models are.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path

from torch import Tensor

from ..control import JobControl
from ..events import Warned
from ..formats.safetensors_io import in_file_order
from ..formats.tensor_file import TensorFile
from .plan import MergePlan
from .progress import Emit, Progress
from .recipe import Recipe, recipe_metadata, recipe_of
from .work import Work
from .writing import HashOf, Merged, Writing, opened, write_made


def execute(
    plan: MergePlan,
    control: JobControl,
    emit: Emit,
    *,
    hash_of: HashOf = lambda path: None,
    recipe: Recipe | None = None,
) -> Merged:
    """Write the merged checkpoint; complete under its name, or nothing.

    `hash_of` and `recipe` are those of `write_made`. Raises MergeError for numbers that are not finite; otherwise as
    `write_made`.
    """
    writing = Writing(
        output=plan.output,
        infos={name: tensor.info for name, tensor in plan.tensors.items()},
        sources=_sources(plan),
        recipe_of=lambda parents: recipe_of(plan.config, parents),
        metadata_of=lambda made: recipe_metadata(made, plan),
        yaml=plan.yaml,
        overwrite=plan.config.overwrite,
    )
    return write_made(
        writing, lambda files: _tensors(plan, files, control, emit), control, emit, hash_of=hash_of, recipe=recipe
    )


def merged_tensors(plan: MergePlan, control: JobControl, emit: Emit) -> Generator[tuple[str, Tensor], None, None]:
    """Name and value of every tensor of the result, in the order of a file; nothing is written.

    To be closed when not all are taken. Raises as `execute`.
    """
    paths = _sources(plan)
    with opened(paths, [False] * len(paths)) as files:
        yield from _tensors(plan, files, control, emit)


def _tensors(plan: MergePlan, files: list[TensorFile], control: JobControl, emit: Emit) -> Iterator[tuple[str, Tensor]]:
    for warning in plan.warnings:
        emit(Warned(text=warning))
    work = Work(plan, files)
    if work.method.similarities is not None:
        work.measure_similarities(control, emit)
    names = list(in_file_order({name: tensor.info for name, tensor in plan.tensors.items()}))
    progress = Progress("merge", len(names), control, emit)
    with work.making_ahead(names) as take:
        for name in names:
            tensor = take(name)
            progress.advance()
            yield name, tensor


def _sources(plan: MergePlan) -> list[Path]:
    return [model.path for model in plan.models] + ([plan.vae.path] if plan.vae else [])
