"""Tools as jobs of the running WebUI: pictures are made meanwhile, and a process that is killed loses nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .server import HostServer, Place, wait_for_state
from .test_merge_in_webui import changed_model

TOOLS = "/train-studio/v1/tools"
JOBS = "/train-studio/v1/jobs"
# So many models that one merge of them takes seconds.
NUM_MODELS = 8


@pytest.fixture(scope="module")
def server(webui_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostServer]:
    place = Place.make(tmp_path_factory.mktemp("tools"))
    for index in range(1, NUM_MODELS):
        changed_model(
            place.checkpoints / "practice.safetensors", place.checkpoints / f"other{index}.safetensors", index
        )
    host = HostServer(webui_root, place)
    host.start("--api", "--skip-install")
    yield host
    host.stop()


def submit(server: HostServer, name: str) -> str:
    models = ["practice.safetensors", *(f"other{index}.safetensors" for index in range(1, NUM_MODELS))]
    status, answer, _ = server.status_of(TOOLS, {"tool": "merge", "name": name, "formula": "dare", "models": models})
    assert status == 202, answer
    return answer["job_id"]


def job(server: HostServer, job_id: str) -> dict[str, Any]:
    return server.webui.get(f"{JOBS}/{job_id}")


def until_merging(server: HostServer, job_id: str) -> None:
    deadline = time.monotonic() + 60
    while (status := job(server, job_id))["phase"] != "merge":
        assert time.monotonic() < deadline and status["state"] in ("queued", "working"), status
        time.sleep(0.01)


def files_called(server: HostServer, name: str) -> list[str]:
    return sorted(path.name for path in server.place.checkpoints.glob(f"{name}*"))


def test_pictures_are_made_while_merges_wait_and_work(server: HostServer) -> None:
    names = ["first", "second", "third"]
    for name in names:
        submit(server, name)
    until_merging(server, "first")
    picture = server.webui.draw("a red circle", steps=2)
    states = {name: job(server, name)["state"] for name in names}
    assert picture.image.size == (64, 64)
    assert states["third"] == "queued", states
    assert server.status_of(f"{JOBS}/third/ask", {"request": "stop"})[0] == 202
    assert job(server, "third")["state"] == "stopped"
    for name in ("first", "second"):
        done = wait_for_state(server, name, "completed", "failed")
        assert done["state"] == "completed" and name in done["results"][0]["published"], done
    assert files_called(server, "third") == []


def test_stopped_at_work_it_leaves_nothing(server: HostServer) -> None:
    submit(server, "stopped")
    until_merging(server, "stopped")
    server.status_of(f"{JOBS}/stopped/ask", {"request": "stop"})
    assert wait_for_state(server, "stopped", "completed", "stopped", "failed")["state"] == "stopped"
    assert files_called(server, "stopped") == []


def test_after_a_kill_it_is_interrupted_and_can_be_started_again(server: HostServer) -> None:
    submit(server, "killed")
    submit(server, "waiting")
    until_merging(server, "killed")
    server.kill()
    assert all(".tmp-" in name for name in files_called(server, "killed"))
    server.start("--api", "--skip-install")
    assert [job(server, name)["state"] for name in ("killed", "waiting")] == ["interrupted", "interrupted"]
    for name in ("killed", "waiting"):
        assert server.status_of(f"{JOBS}/{name}/continue", {})[0] == 202
        done = wait_for_state(server, name, "completed", "failed")
        assert done["state"] == "completed" and done["results"][0]["is_usable"], done
        assert files_called(server, name) == [f"{name}.safetensors", f"{name}.yaml"]
