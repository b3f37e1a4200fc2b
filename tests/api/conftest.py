"""A host in a temporary folder, a manager that notes what it is asked, gradio's real app with a login or without."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from extensions_lib.api.routes import add_routes
from extensions_lib.config.artefacts import ARTEFACTS
from extensions_lib.config.codec import load
from extensions_lib.errors import UnknownJobError
from extensions_lib.events import Event, EventStream, PhaseProgress, PreviewReady, StepCompleted, TrainingStarted
from extensions_lib.jobs.sinks import JsonlSink
from extensions_lib.jobs.status import JobStatus, StatusFold
from extensions_lib.jobs.store import RunFolder, create_run_folder
from extensions_lib.ports import AccessPolicy, BaseModel, Credentials, HostFolders, Parked, Published

API = "/train-studio/v1"
PNG = b"\x89PNG\r\n\x1a\n" + bytes(20)


class FolderHost:
    """A host made of folders. `lock` stands for the WebUI's queue lock."""

    name = "folders"
    has_prompt = True
    reads_words_in_loras = True

    def __init__(self, root: Path, base: Path) -> None:
        self.root, self.base = root, base
        self.lock = threading.Lock()
        self.policy = AccessPolicy()
        self.unusable: dict[str, str] = {}

    def folders(self) -> HostFolders:
        names = ("Lora", "embeddings", "checkpoints", "hypernetworks")
        results = {kind: self.root / name for kind, name in zip(ARTEFACTS, names, strict=True)}
        return HostFolders(results, results["checkpoint"], self.root / "train-studio")

    def base_models(self) -> tuple[BaseModel, ...]:
        return (BaseModel("practice [d75978bb3c]", self.base),)

    def model_files(self, kind: str) -> tuple[BaseModel, ...]:
        return ()

    def selected_base_model(self) -> Path | None:
        return self.base

    def access(self) -> AccessPolicy:
        return self.policy

    def unusable_methods(self) -> Mapping[str, str]:
        return self.unusable

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        with self.lock:
            yield

    def lend(self, parked: Parked) -> None:
        pass

    def publish(self, path: Path, kind: str, num_modules: int) -> Published | None:
        return None

    def known_sha256(self, path: Path) -> str | None:
        return None

    def mirror(self, event: Event) -> None:
        pass


class NotingManager:
    """Reads real run folders and notes what it is asked; raises `error` instead when there is one."""

    def __init__(self, runs: Path) -> None:
        self.runs = runs
        self.asked: list[tuple[Any, ...]] = []
        self.error: Exception | None = None

    def _note(self, *call: Any) -> None:
        if self.error is not None:
            raise self.error
        self.asked.append(call)

    def submit(self, config: Any) -> str:
        self._note("submit", config)
        return config.name

    def continue_run(self, job_id: str, max_train_steps: int | None = None) -> None:
        self._note("continue", job_id, max_train_steps)

    def ask(self, job_id: str, word: str) -> None:
        self._note("ask", job_id, word)

    def delete_results(self, job_id: str, keep_step: int) -> list[Path]:
        self._note("keep", job_id, keep_step)
        return [self.runs / "old.safetensors"]

    def forget(self, job_id: str) -> None:
        self._note("forget", job_id)

    def folder(self, job_id: str) -> RunFolder:
        if job_id not in [path.name for path in self.runs.iterdir()]:
            raise UnknownJobError(f"There is no job {job_id!r}.")
        return RunFolder(self.runs / job_id)

    def status(self, job_id: str) -> JobStatus:
        folder = self.folder(job_id)
        fold = StatusFold(job_id, folder.config())
        for event in folder.events():
            fold.apply(event)
        return fold.status()

    def statuses(self) -> tuple[JobStatus, ...]:
        return tuple(self.status(path.name) for path in sorted(self.runs.iterdir()))

    def events(self, job_id: str, after: int) -> list[Event]:
        return [event for event in self.folder(job_id).events() if event.sequence > after]


@pytest.fixture
def host(tmp_path: Path, practice_model: Path) -> FolderHost:
    return FolderHost(tmp_path / "host", practice_model)


@pytest.fixture
def job(pictures: Path) -> dict[str, Any]:
    """The least a client sends."""
    return {"name": "zbadge", "method": {"kind": "lora"}, "dataset": {"folder": str(pictures), "resolution_px": 64}}


@pytest.fixture
def run(host: FolderHost, job: dict[str, Any]) -> RunFolder:
    """A run that stands at step 2, with two pictures."""
    folder = create_run_folder(host.folders().runs, load({**job, "base_model": str(host.base)}))
    folder.previews.mkdir()
    (folder.previews / "grid.png").write_bytes(PNG)
    (folder.previews / "000002-0.png").write_bytes(PNG)
    with closing(JsonlSink(folder.event_file)) as sink:
        _tell(EventStream(folder.job_id, (sink,)), folder)
    return folder


def _tell(events: EventStream, folder: RunFolder) -> None:
    events.emit(PhaseProgress(phase="load model", done=1, total=1))
    events.emit(
        TrainingStarted(
            name="zbadge", method="lora", first_step=0, max_train_steps=9, num_examples=5, num_parameters=7,
            run_folder=str(folder.path),
        )
    )  # fmt: skip
    for step in (1, 2):
        events.emit(
            StepCompleted(
                step=step, loss=0.5 / step, learning_rate=1e-4, num_examples_seen=step, seconds=2.0, peak_memory_gib=1.0
            )
        )
    pictures = [str(folder.previews / name) for name in ("000002-0.png", "grid.png")]
    events.emit(PreviewReady(step=2, path=pictures[0], grid_path=pictures[1]))


@pytest.fixture
def manager(run: RunFolder) -> NotingManager:
    return NotingManager(run.path.parent)


@pytest.fixture
def connect(manager: NotingManager, host: FolderHost) -> Iterator[Callable[..., TestClient]]:
    """A client of an app with our routes; keyword arguments are those of `Credentials`, and the app to use."""
    opened = []

    def make(app: FastAPI | None = None, fragment: Any = live_fragment, **credentials: Any) -> TestClient:
        app = app or FastAPI()
        add_routes(app, manager, host, Credentials(**credentials), fragment)
        opened.append(TestClient(app))
        return opened[-1]

    yield make
    for client in opened:
        client.close()


def live_fragment(name: str, selected: str) -> tuple[str, str]:
    """What a page with one job would give."""
    return "v7", f"<p>{name} {selected}</p>"


def gradio_app(*accounts: tuple[str, str]) -> FastAPI:
    """The app a WebUI makes, with its login when accounts are given."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of gradio and its dependencies, of either version
        import gradio as gr
        from gradio.routes import App

        with gr.Blocks() as page:
            gr.HTML("a page")
        page.auth = list(accounts) or None
        page.auth_message = page.favicon_path = None
        page.root_path = ""
        return App.create_app(page)
