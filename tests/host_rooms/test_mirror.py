"""Our progress in the host's display, and nothing of it afterwards."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from extensions_lib.events import (
    CheckpointSaved,
    JobFinished,
    PhaseProgress,
    PreviewReady,
    StepCompleted,
    TrainingStarted,
)
from extensions_lib.host.a1111 import WebuiHost
from extensions_lib.host.mirror import ProgressMirror

from .webui import Webui

STARTED = TrainingStarted(
    name="<cat> & dog", method="lora", first_step=100, max_train_steps=300, num_examples=4, num_parameters=9,
    run_folder="",
)  # fmt: skip


def step(number: int) -> StepCompleted:
    return StepCompleted(
        step=number, loss=0.125, learning_rate=1e-4, num_examples_seen=number, seconds=0.1, peak_memory_gib=0.0
    )


def test_steps_are_counted_from_where_a_run_was_resumed(webui: Webui, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("extensions_lib.host.mirror.time", SimpleNamespace(time=lambda: 1000.0))
    mirror, state = ProgressMirror(), webui.shared.state
    mirror.show(PhaseProgress(phase="load model", done=0, total=1))
    assert (state.job, state.job_count, state.textinfo) == ("train-studio", -1, "load model: 0 of 1")
    mirror.show(STARTED)
    mirror.show(step(150))
    assert (state.job_no, state.job_count, state.time_start) == (50, 200, 1000.0)
    assert (state.sampling_step, state.sampling_steps, state.current_latent) == (0, 0, None)


def test_names_are_escaped(webui: Webui) -> None:
    mirror = ProgressMirror()
    mirror.show(STARTED)
    mirror.show(step(150))
    assert webui.shared.state.textinfo == "&lt;cat&gt; &amp; dog: step 150 of 300, loss 0.1250"


def test_statement_20_the_state_is_idle_after_the_job(webui: Webui) -> None:
    mirror, state = ProgressMirror(), webui.shared.state
    mirror.show(STARTED)
    mirror.show(step(101))
    mirror.show(JobFinished(reason="completed", step=101, path=""))
    shown = (state.job, state.job_count, state.job_no, state.textinfo, state.current_image)
    assert shown == ("", 0, 0, None, None)


def test_what_others_wrote_is_left_alone_when_we_wrote_nothing(webui: Webui) -> None:
    state = webui.shared.state
    state.job, state.textinfo = "txt2img", "theirs"
    mirror = ProgressMirror()
    mirror.show(JobFinished(reason="completed", step=1, path=""))
    mirror.show(CheckpointSaved(step=1, path="x", num_modules=1))
    mirror.clear()
    assert (state.job, state.textinfo, state.sampling_steps) == ("txt2img", "theirs", 20)


def test_previews_are_shown_as_pictures(webui: Webui, tmp_path: Path) -> None:
    path = tmp_path / "000100-0.png"
    Image.new("RGBA", (8, 8), "red").save(path)
    mirror = ProgressMirror()
    mirror.show(PreviewReady(step=100, path=str(path), grid_path=str(path)))
    state = webui.shared.state
    assert (state.current_image.mode, state.current_image.size, state.id_live_preview) == ("RGB", (8, 8), 1)


def test_after_a_loan_everything_is_written_again(webui: Webui) -> None:
    mirror, state = ProgressMirror(), webui.shared.state
    mirror.show(STARTED)
    began = state.time_start
    mirror.clear()
    state.sampling_steps, state.current_latent, state.time_start = 30, "theirs", 0.0
    mirror.show(step(102))
    assert (state.job_no, state.sampling_steps, state.current_latent, state.time_start) == (2, 0, None, began)


def test_statement_19_nothing_is_written_while_somebody_else_has_the_lock(webui: Webui) -> None:
    host, state = WebuiHost(), webui.shared.state
    host.mirror(STARTED)
    assert state.job == ""
    with host.exclusive():
        host.mirror(STARTED)
        assert state.job == "train-studio"
    assert state.job == ""
