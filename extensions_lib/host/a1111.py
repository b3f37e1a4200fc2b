"""AUTOMATIC1111's WebUI and its forks, behind the ports of Train Studio."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from ..config.methods import METHOD_CONFIGS, artefact_kind
from ..events import Event
from ..ports import AccessPolicy, BaseModel, HostFolders, NoTrials, Parked, Published, Trials
from . import folders, results, settings
from .a1111_memory import A1111Memory
from .checkpoints import known_sha256
from .detect import A1111, FORGE, host_name
from .forge import ForgeMemory
from .lease import HostMemory, Lease
from .mirror import ProgressMirror
from .model_files import files_below
from .requirements import missing_error
from .trial import WebuiTrials


class WebuiHost:
    """The WebUI this process runs. Never loads, changes or reads its model but through its own functions."""

    has_prompt = True

    def __init__(self) -> None:
        """Needs the host's `modules`, in the process that runs it."""
        from modules import call_queue

        self.name = host_name()
        self.reads_words_in_loras = self.name != FORGE
        memory: HostMemory = A1111Memory() if self.name == A1111 else ForgeMemory(self.name)
        self._mirror = ProgressMirror()
        self.lease = Lease(call_queue.queue_lock, memory, on_lend=self._mirror.clear)
        reason = (
            f"{self.name} keeps its own copy of every weight and would go back to it; AUTOMATIC1111's WebUI does not."
        )
        self.trials: Trials = WebuiTrials(self.lease) if self.name == A1111 else NoTrials(reason)

    def exclusive(self) -> AbstractContextManager[None]:
        """See `Lease.exclusive`. Raises HostError when packages are missing, too."""
        missing = missing_error()
        if missing is not None:
            raise missing
        return self.lease.exclusive()

    def lend(self, parked: Parked) -> None:
        """See `Lease.lend`."""
        self.lease.lend(parked)

    def publish(self, path: Path, kind: str, num_modules: int) -> Published | None:
        """See `results.publish`."""
        with self.lease.borrowed():
            return results.publish(path, kind, num_modules, self.name)

    def known_sha256(self, path: Path) -> str | None:
        """See `checkpoints.known_sha256`."""
        return known_sha256(path)

    def mirror(self, event: Event) -> None:
        """Show the job in the host's progress display while it computes; what others show there is left alone."""
        if self.lease.is_held:
            self._mirror.show(event)

    def folders(self) -> HostFolders:
        """See `folders.folders`."""
        return folders.folders()

    def base_models(self) -> tuple[BaseModel, ...]:
        """See `folders.base_models`."""
        return folders.base_models()

    def model_files(self, kind: str) -> tuple[BaseModel, ...]:
        """See `folders.model_folders`."""
        return files_below(folders.model_folders(kind), kind)

    def selected_base_model(self) -> Path | None:
        """See `folders.selected_base_model`."""
        return folders.selected_base_model()

    def access(self) -> AccessPolicy:
        """See `folders.access`."""
        return folders.access(settings.dataset_roots())

    def unusable_methods(self) -> Mapping[str, str]:
        """Hypernetworks in the forks: their attention does not ask for them."""
        if self.name == A1111:
            return {}
        reason = f"{self.name} never applies hypernetworks; AUTOMATIC1111's WebUI does."
        return {kind: reason for kind in METHOD_CONFIGS if artefact_kind(kind) == "hypernetwork"}
