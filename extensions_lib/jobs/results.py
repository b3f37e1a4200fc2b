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

    kept = {Path(result.path) for result in results if result.step == keep_step}
    if not kept:
        steps = ", ".join(str(result.step) for result in results) or "none: the run has no results"
        raise ConfigError([Problem("step", f"is {keep_step}, accepted are {steps}")])
    foreign = {path for other in other_runs for path in claimed_results(other.path)}
    own = claimed_results(folder.path) - foreign
    unwanted = [path for result in results if (path := Path(result.path)) in own and path not in kept]
    doomed = [path for result in unwanted for path in sorted(own) if _belongs_to(path, result)]
    return [path for path in doomed if _deleted(path)]


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
