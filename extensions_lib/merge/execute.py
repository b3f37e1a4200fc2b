"""Carrying out a merge: tensors are read, merged in float32 and written one at a time.

In memory are the tensors of one name and of the few next ones, which are made while one is written, however large the
models are.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from ..control import JobControl
from ..errors import MergeError
from ..events import Warned
from ..formats.atomic import write_bytes_atomic
from ..formats.hashes import autov1
from ..formats.safetensors_io import in_file_order
from ..formats.tensor_file import TensorFile, write_tensors_as_made
from ..models.sibling import sibling_path
from .plan import MergePlan
from .progress import Emit, Progress, hash_progress
from .recipe import Parent, Recipe, recipe_metadata, recipe_of
from .work import Work

HashOf = Callable[[Path], str | None]


@dataclass(frozen=True)
class Merged:
    """The written file, the recipe in it, and the description copied beside it, if there is one."""

    path: Path
    recipe: Recipe
    yaml: Path | None = None


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
    return file.sha256(hash_progress(file.path, control, emit))


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
