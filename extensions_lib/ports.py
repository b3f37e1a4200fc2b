"""What Train Studio needs of the program it runs in: the WebUI, the standalone page, or nothing (`ALONE`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from .events import Event

Parked = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True)
class Published:
    """What the host says of a result: a sentence such as 'visible as <lora:cat:1>, 192 of 192 modules matched'."""

    text: str
    is_usable: bool


class Surroundings(Protocol):
    """What a running job needs. All methods are called by the thread that runs the job."""

    def exclusive(self) -> AbstractContextManager[None]:
        """Within the context this thread alone computes; entering waits for the others and for the host to be ready."""

    def lend(self, parked: Parked) -> None:
        """Called at every boundary inside `exclusive`: when others wait, let them compute and come back.

        The host enters `parked()` first when they need the device's memory: the job's tensors are off it meanwhile.
        """

    def publish(self, path: Path, kind: str, num_modules: int) -> Published | None:
        """Make a new or rewritten result usable at once, and say whether the host sees it; None: there is no host.

        `kind` is one of `config.artefacts.ARTEFACTS`; `num_modules` is how many modules of the model the file should
        match. Raises HostError.
        """

    def mirror(self, event: Event) -> None:
        """A listener that shows the job in the host's own progress display."""


class _Alone:
    """No host: nobody to share the machine with."""

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        yield

    def lend(self, parked: Parked) -> None:
        pass

    def publish(self, path: Path, kind: str, num_modules: int) -> Published | None:
        return None

    def mirror(self, event: Event) -> None:
        pass


ALONE: Surroundings = _Alone()


@dataclass(frozen=True)
class HostFolders:
    """Where the host looks for results, by artefact kind, and the folder that is ours: runs, presets, caches."""

    results: Mapping[str, Path]
    checkpoints: Path
    work: Path

    @property
    def runs(self) -> Path:
        """The run folders."""
        return self.work / "runs"

    @property
    def presets(self) -> Path:
        """The user's own presets."""
        return self.work / "presets"


@dataclass(frozen=True)
class BaseModel:
    """A checkpoint the user can choose; `title` is the host's name for it."""

    title: str
    path: Path


@dataclass(frozen=True)
class AccessPolicy:
    """What a user of the page or the API may name.

    `roots`: paths must lie below one of them; None: any path. `allow_pickles`: .ckpt, .pt and .bin may be named.
    `hide_paths`: paths are neither shown nor accepted, other than those the host lists itself.
    """

    roots: tuple[Path, ...] | None = None
    allow_pickles: bool = True
    hide_paths: bool = False


class Host(Surroundings, Protocol):
    """What the page and the API need besides. `reads_words_in_loras`: an embedding inside a LoRA file takes effect."""

    name: str
    has_prompt: bool
    reads_words_in_loras: bool

    def folders(self) -> HostFolders:
        """The host's folders, from its own options."""

    def base_models(self) -> tuple[BaseModel, ...]:
        """The checkpoints the host lists, in its order."""

    def selected_base_model(self) -> Path | None:
        """The checkpoint the host has loaded or would load; None when there is none. Loads nothing."""

    def access(self) -> AccessPolicy:
        """What may be named, from the host's flags."""

    def unusable_methods(self) -> Mapping[str, str]:
        """Method kinds whose results would have no effect in this host, each with the reason."""


@dataclass(frozen=True)
class Credentials:
    """Who may use the API: pairs of user and password for HTTP Basic, and the secret that our own page sends."""

    users: tuple[tuple[str, str], ...] = ()
    page_secret: str = field(default="", repr=False)
