"""Deleting what a run has written, and nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..errors import ConfigError, OutputError, Problem
from .status import SavedResult
from .store import RunFolder


def delete_other_results(
    folder: RunFolder, results: Sequence[SavedResult], keep_step: int, other_runs: Iterable[RunFolder]
) -> list[Path]:
    """Delete all of a run's `results` but the one after `keep_step` steps, with their cards; returns what is gone.

    What `folder` did not note as its own stays, and so does what one of `other_runs` noted. Raises ConfigError when
    there is no result of that step, OutputError when a file cannot be deleted.
    """
    from ..training.results import claimed_results

    kept = [result for result in results if result.step == keep_step]
    if not kept:
        steps = ", ".join(str(result.step) for result in results) or "none: the run has no results"
        raise ConfigError([Problem("step", f"is {keep_step}, accepted are {steps}")])
    foreign = {path for other in other_runs for path in claimed_results(other.path)}
    own = claimed_results(folder.path) - foreign
    staying = {path for result in kept for path in _files(result)}
    unwanted = {path for result in results for path in _files(result) if path in own and path not in staying}
    doomed = [path for result in sorted(unwanted) for path in sorted(own) if _belongs_to(path, result)]
    return [path for path in dict.fromkeys(doomed) if _deleted(path)]


def _files(result: SavedResult) -> list[Path]:
    """The result and the further files that were written with it."""
    return [Path(path) for path in (result.path, *result.beside)]


def _belongs_to(path: Path, result: Path) -> bool:
    """Whether `path` is the result, or its card: 'cat.json' and 'cat.preview.png' of 'cat.safetensors'."""
    return path.parent == result.parent and path.name.startswith(f"{result.stem}.")


def _deleted(path: Path) -> bool:
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise OutputError(f"{path} could not be deleted: {error.strerror or error}.", "Is it in use?") from error
    return True


def delete_run(folder: RunFolder) -> None:
    """Delete a run folder with its state and previews. Raises OutputError."""
    try:
        shutil.rmtree(folder.path)
    except OSError as error:
        raise OutputError(
            f"The run folder {folder.path} could not be deleted: {error.strerror or error}.", "Is a file of it in use?"
        ) from error
