"""A grid of merges as a job: its folder, the device, and the sheet on the page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from extensions_lib.events import PreviewReady
from extensions_lib.jobs.manager import JobManager
from extensions_lib.jobs.submission import prepare_tool

from .conftest import finished


def test_a_grid_is_drawn_with_the_device_and_shown(
    manager: JobManager, recording_host: Any, practice_model: Path
) -> None:
    table = {
        "tool": "grid", "name": "sheet", "models": [{"path": str(practice_model)}] * 2, "x_values": "0 | 1",
        "prompts": "a red circle", "num_steps": 2, "width_px": 64, "height_px": 64,
    }  # fmt: skip
    config = prepare_tool(table, recording_host)
    sheets = recording_host.folders().work / "grids"
    assert config.folder == str(sheets)
    job_id = manager.submit(config)
    done = finished(manager, job_id)
    assert (done.state, done.preview_steps) == ("completed", (0,)), done
    assert [saved.path for saved in done.results] == [str(sheets / "sheet.png")]
    assert sorted(path.name for path in (sheets / "sheet").iterdir()) == ["0-00-00.png", "0-00-01.png"]
    shown = next(event for event in manager.events(job_id) if isinstance(event, PreviewReady))
    assert Path(shown.path).read_bytes() == (sheets / "sheet.png").read_bytes()
    assert Path(shown.path).parent == manager.folder(job_id).previews
    assert recording_host.notes == ["enter", "leave"]
