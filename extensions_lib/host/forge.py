"""Where reForge and Forge differ from AUTOMATIC1111: their models live on the main thread and load themselves again."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from ..errors import HostError
from .detect import FORGE

Result = TypeVar("Result")


def on_main_thread(work: Callable[[], Result]) -> Result:
    """Run a short piece of work where the host generates, and return its result.

    The host's own transport turns an exception into None; here it is raised again.
    """
    from modules_forge import main_thread

    outcome: Future[Result] = Future()

    def task() -> None:
        try:
            outcome.set_result(work())
        except Exception as error:
            outcome.set_exception(error)
            raise

    main_thread.run_and_wait_result(task)
    return outcome.result(timeout=0)


class ForgeMemory:
    """The forks measure free memory and load their model again when it is asked for: it is enough to unload it."""

    def __init__(self, name: str) -> None:
        self._name = name

    def is_loading(self) -> bool:
        """reForge loads its first checkpoint at the start; Forge with the first picture, under the queue lock."""
        from modules import sd_models

        lock = getattr(sd_models.model_data, "lock", None)
        return lock is not None and lock.locked()

    def free(self) -> None:
        """Unload all models of the host. Raises HostError."""
        if self._name == FORGE:
            from backend import memory_management as manager
        else:
            from ldm_patched.modules import model_management as manager

        def unload() -> None:
            manager.unload_all_models()
            manager.soft_empty_cache()

        try:
            on_main_thread(unload)
        except Exception as error:
            raise HostError(f"{self._name} could not unload its model: {error}") from error

    def restore(self) -> None:
        """Nothing to do: the model is loaded again on demand; only our own cached memory is given back."""
        if self._name == FORGE:
            from backend import memory_management as manager
        else:
            from ldm_patched.modules import model_management as manager

        manager.soft_empty_cache()
