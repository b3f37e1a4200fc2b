"""Writing a file of tensors that are made one at a time from model files, with a recipe that names these by content."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from ..control import JobControl
from ..errors import MergeError
from ..formats.hashes import autov1
from ..formats.safetensors_io import TensorInfo
from ..formats.tensor_file import TensorFile, write_tensors_as_made
from .description import check_description, write_description
from .progress import Emit, hash_progress
from .recipe import Parent, Recipe

HashOf = Callable[[Path], str | None]


@dataclass(frozen=True)
class Writing:
    """What is written: the tensors that `infos` announces, made from the files `sources`, and the description `yaml`
    copied beside them. `recipe_of` takes the sources in their order.
    """

    output: Path
    infos: Mapping[str, TensorInfo]
    sources: Sequence[Path]
    recipe_of: Callable[[Sequence[Parent]], Recipe]
    metadata_of: Callable[[Recipe], dict[str, str]]
    yaml: Path | None
    overwrite: bool


@dataclass(frozen=True)
class Merged:
    """The written file, the recipe in it, and beside it the description, if there is one, and embeddings."""

    path: Path
    recipe: Recipe
    yaml: Path | None = None
    words: tuple[Path, ...] = ()

    @property
    def beside(self) -> tuple[Path, ...]:
        """All further files."""
        return (*((self.yaml,) if self.yaml else ()), *self.words)


def write_made(
    writing: Writing,
    tensors_of: Callable[[list[TensorFile]], Iterator[tuple[str, Tensor]]],
    control: JobControl,
    emit: Emit,
    *,
    hash_of: HashOf = lambda path: None,
    recipe: Recipe | None = None,
) -> Merged:
    """Write the file; complete under its name, or nothing.

    `tensors_of` makes name and value of every tensor, in the order of a file, from the open sources. `hash_of` may know
    the sha256 of a file (64 digits) without reading it, None if not. `recipe` is written instead of the plan's own when
    a file is made again. Raises MergeError for sources that changed meanwhile, JobStopped when asked to stop, what
    `tensors_of` raises; otherwise as `write_atomic`.
    """
    paths = writing.sources
    signs = {path: _sign(path) for path in paths}
    known = [parent.sha256 for parent in recipe.parents] if recipe else [hash_of(path) for path in paths]
    description = writing.yaml.read_bytes() if writing.yaml else None
    check_description(writing.output, description, overwrite=writing.overwrite)
    writing.output.parent.mkdir(parents=True, exist_ok=True)
    with (
        opened(paths, [sha256 is None for sha256 in known]) as files,
        closing(tensors_of(files)) as tensors,
    ):

        def final_recipe() -> Recipe:
            if recipe is not None:
                return recipe
            hashes = [sha256 or _sha256(file, control, emit) for sha256, file in zip(known, files, strict=True)]
            return writing.recipe_of([parent_of(path, sha256) for path, sha256 in zip(paths, hashes, strict=True)])

        def final_metadata() -> dict[str, str]:
            written.append(final_recipe())
            _check_unchanged(signs)
            return writing.metadata_of(written[0])

        written: list[Recipe] = []
        write_tensors_as_made(
            writing.output,
            writing.infos,
            lambda name: next(tensors)[1],
            _longest_metadata(writing, recipe),
            final_metadata=final_metadata,
            overwrite=writing.overwrite,
        )
    return Merged(
        writing.output, written[0], write_description(writing.output, description, overwrite=writing.overwrite)
    )


@contextmanager
def opened(paths: Sequence[Path], hashed: Sequence[bool]) -> Iterator[list[TensorFile]]:
    """All the files, open within the context."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(TensorFile(path, hashed=is_hashed))
            for path, is_hashed in zip(paths, hashed, strict=True)
        ]


def parent_of(path: Path, sha256: str) -> Parent:
    """A file as a recipe names it."""
    return Parent(path.name, sha256, autov1(path), path.stat().st_size)


def _longest_metadata(writing: Writing, recipe: Recipe | None) -> dict[str, str]:
    """As long as the metadata will be or longer: every model counts, with a hash unlike all others."""
    if recipe is None:
        recipe = writing.recipe_of([parent_of(path, "") for path in writing.sources])
    first, *others = [replace(parent, sha256=f"{index:064}") for index, parent in enumerate(recipe.parents)]
    models, vae = ([first, *others[:-1]], others[-1]) if recipe.vae else ([first, *others], None)
    return writing.metadata_of(replace(recipe, models=tuple(models), vae=vae))


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
