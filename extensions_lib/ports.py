"""What Train Studio needs of the program it runs in: the WebUI, the standalone page, or nothing (`ALONE`)."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from .control import JobControl
from .errors import HostError
from .events import Event, ResultPublished, Warned

if TYPE_CHECKING:
    from torch import Tensor

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
        match, 0 when that is not known. Raises HostError.
        """

    def known_sha256(self, path: Path) -> str | None:
        """The sha256 of the whole file (64 digits) if the host knows it already; it is not read for that."""

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

    def known_sha256(self, path: Path) -> str | None:
        return None

    def mirror(self, event: Event) -> None:
        pass


ALONE: Surroundings = _Alone()


def publish_and_tell(
    surroundings: Surroundings, emit: Callable[[Event], object], step: int, path: Path, kind: str, num_modules: int
) -> None:
    """Ask the host to use a result and say what it answers; when it fails, the file is there all the same."""
    try:
        published = surroundings.publish(path, kind, num_modules)
    except HostError as error:
        emit(Warned(text=f"{path.name} is saved, but the WebUI was not told: {error}"))
        return
    if published is not None:
        emit(ResultPublished(step=step, path=str(path), text=published.text, is_usable=published.is_usable))


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
    def grids(self) -> Path:
        """The sheets of pictures."""
        return self.work / "grids"

    @property
    def presets(self) -> Path:
        """The user's own presets."""
        return self.work / "presets"


@dataclass(frozen=True)
class BaseModel:
    """A checkpoint, or another model file, the user can choose; `title` is the host's name for it."""

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


@dataclass(frozen=True)
class Candidate:
    """A checkpoint that is in no file: its header, and what makes its tensors, one at a time.

    `title` says what it is made of, in short. `shapes` by present-day checkpoint name. `prediction_type` is 'epsilon',
    'v_prediction', or None where nothing says it. `tensors` gives name and value on the CPU; to be closed when not all
    are taken; raises ExtensionError, and JobStopped when the control was asked to stop.
    """

    title: str
    family: str
    prediction_type: str | None
    shapes: Mapping[str, tuple[int, ...]]
    tensors: Callable[[JobControl, Callable[[Event], object]], Generator[tuple[str, Tensor], None, None]]


@dataclass(frozen=True)
class TrialStatus:
    """What is tried in the host's model.

    `state`: 'none', 'applying' (`done` of `total` tensors), 'on' or 'undoing'. `title` is the candidate's, `model` the
    host's name of the model it is in, `text` why there is none: what went wrong, or how it ended.
    """

    state: str = "none"
    title: str = ""
    model: str = ""
    done: int = 0
    total: int = 0
    text: str = ""


class Trials(Protocol):
    """A candidate in the place of the host's loaded model, for its next pictures. `refusal`: why not here, or ''."""

    refusal: str

    def try_on(self, candidate: Candidate) -> None:
        """Begin to put it into the loaded model, after the host's other work; `current` says how it goes.

        Raises HostError where that is not possible, JobStateError while another one is being put in or taken out.
        """

    def undo(self) -> None:
        """Begin to give the host its own model back, bit by bit as it was. Raises as `try_on`."""

    def current(self) -> TrialStatus:
        """Waits for nobody."""


class NoTrials:
    """A host whose model cannot be changed, and the reason."""

    def __init__(self, refusal: str) -> None:
        """`refusal` is a sentence for the user."""
        self.refusal = refusal

    def try_on(self, candidate: Candidate) -> None:
        """Raises HostError."""
        raise HostError(self.refusal, "Save it as a checkpoint and choose that.")

    def undo(self) -> None:
        """Nothing to do."""

    def current(self) -> TrialStatus:
        """There is none."""
        return TrialStatus(text=self.refusal)


class Host(Surroundings, Protocol):
    """What the page and the API need besides. `reads_words_in_loras`: an embedding inside a LoRA file takes effect."""

    name: str
    has_prompt: bool
    reads_words_in_loras: bool
    trials: Trials

    def folders(self) -> HostFolders:
        """The host's folders, from its own options."""

    def base_models(self) -> tuple[BaseModel, ...]:
        """The checkpoints the host lists, in its order."""

    def model_files(self, kind: str) -> tuple[BaseModel, ...]:
        """The files of a kind that a user can choose: 'lora', 'embedding', 'hypernetwork' or 'vae', by name."""

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
