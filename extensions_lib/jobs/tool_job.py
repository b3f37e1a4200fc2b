"""A tool as a job: one that makes files works on the processor, so the host computes on meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..config.artefacts import ARTEFACTS
from ..config.preview import PreviewPrompt
from ..config.tool import ToolConfig
from ..config.tools import TOOLS, kind_of
from ..control import JobControl
from ..events import CheckpointSaved, EventStream, JobFinished, PauseChanged, PhaseProgress, PreviewReady, Warned
from ..ports import Surroundings, publish_and_tell
from .store import RunFolder


def do_tool(
    config: ToolConfig, run_folder: Path, control: JobControl, events: EventStream, surroundings: Surroundings
) -> Path:
    """Do what the settings say and have the result published; returns its path.

    Raises JobStopped when asked to stop, and other ExtensionErrors; nothing is written then. Once the file is written
    the job is done: a stop comes too late.
    """
    from ..training.results import claim_result
    from ..training.tools import run_tool

    events.emit(PhaseProgress(phase="read the files", done=0, total=1))
    with _pauses_told(control, events):
        control.boundary()
        result = run_tool(config, control, events, surroundings)
    for path in (result.path, *result.beside):
        claim_result(run_folder, path, overwrite=True)
    events.emit(
        CheckpointSaved(
            step=0,
            path=str(result.path),
            num_modules=result.num_modules,
            beside=tuple(map(str, result.beside)),
            text=result.text if result.is_as_asked else "",
            kind=result.kind,
        )
    )
    if not result.is_as_asked:
        events.emit(Warned(text=result.text))
    if TOOLS[kind_of(config)].draws:
        _show(result.path, run_folder, events)
    if result.kind in ARTEFACTS:
        events.emit(PhaseProgress(phase="publish", done=0, total=1))  # waits while the host draws
        for path in result.beside:
            if path.suffix == ".safetensors":  # a word taken out of a LoRA; a yaml is no result
                publish_and_tell(surroundings, events.emit, 0, path, "embedding", 0)
        publish_and_tell(surroundings, events.emit, 0, result.path, result.kind, result.num_modules)
    events.emit(JobFinished(reason="completed", step=0, path=str(result.path)))
    return result.path


def _show(sheet: Path, run_folder: Path, events: EventStream) -> None:
    """A sheet of pictures as the run's preview: the page and the API show it there."""
    from ..formats.atomic import write_bytes_atomic
    from ..preview.grid import picture_name
    from ..preview.record import write_prompts

    previews = RunFolder(run_folder).previews
    previews.mkdir(parents=True, exist_ok=True)
    write_prompts(previews, (PreviewPrompt(prompt=sheet.stem),))
    path = write_bytes_atomic(previews / picture_name(0, 0), sheet.read_bytes(), overwrite=True)
    events.emit(PreviewReady(step=0, path=str(path), grid_path=str(path)))


@contextmanager
def _pauses_told(control: JobControl, events: EventStream) -> Iterator[None]:
    """Within the context listeners hear when the job begins to wait, and when it goes on."""
    told = False

    def tell(asked: JobControl) -> None:
        nonlocal told
        if asked.pause_requested != told:
            told = asked.pause_requested
            events.emit(PauseChanged(paused=told, step=0))

    control.add_source(tell)
    try:
        yield
    finally:
        control.remove_source(tell)
