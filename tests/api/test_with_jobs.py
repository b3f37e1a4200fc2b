"""A real job over HTTP, from the check to its results, while the host's lock is held and while it trains."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from extensions_lib.api.routes import add_routes
from extensions_lib.jobs.manager import JobManager
from extensions_lib.ports import Credentials

from .conftest import API, FolderHost, live_fragment

WAIT_SECONDS = 120


@pytest.fixture
def manager(host: FolderHost) -> Iterator[JobManager]:
    manager = JobManager(host)
    yield manager
    for status in manager.statuses():
        if status.is_active or status.state == "queued":
            manager.ask(status.job_id, "discard")
    assert manager.wait_idle(WAIT_SECONDS)


@pytest.fixture
def client(manager: JobManager, host: FolderHost) -> Iterator[TestClient]:
    app = FastAPI()
    add_routes(app, manager, host, Credentials(), live_fragment)
    client = TestClient(app)
    yield client
    client.close()


@pytest.fixture
def small(job: dict[str, Any]) -> dict[str, Any]:
    """A job that takes seconds when it has few steps."""
    return {
        **job,
        "method": {"kind": "lora", "rank": 2, "layer_filter": "attn2", "train_text_encoder": False},
        "training": {"max_train_steps": 2, "num_threads": 1, "mixed_precision": "fp32", "save_every_steps": 1},
        "preview": {"prompts": [{"prompt": "a red circle", "num_steps": 1}]},
    }


def wait_for(read: Callable[[], Any], expected: Any) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while read() != expected:
        assert time.monotonic() < deadline, f"{read()!r} did not become {expected!r}"
        time.sleep(0.05)


def slowest(client: TestClient, job: dict[str, Any]) -> tuple[float, str]:
    """Seconds of the slowest route, and which one; a second job is submitted, changed and forgotten on the way."""
    calls: list[tuple[str, str, Any, int]] = [
        ("GET", path, None, 200)
        for path in (
            "presets", "settings", "tools", "host", "jobs", "jobs/zbadge", "jobs/zbadge/events?after=0",
            "jobs/zbadge/config", "page/live", "page/history",
        )
    ]  # fmt: skip
    calls += [
        ("GET", "jobs/zbadge/previews/grid.png", None, -1),
        ("POST", "jobs/zbadge/continue", {}, 409),
        ("POST", "jobs/zbadge/keep", {"step": 1}, 409),
        ("POST", "jobs/zbadge/forget", {}, 409),
        ("POST", "jobs", {**job, "name": "second"}, 202),
        ("POST", "jobs/second/ask", {"request": "discard"}, 202),
        ("POST", "jobs/second/forget", {}, 200),
    ]
    taken = []
    for method, path, body, status in calls:
        started = time.monotonic()
        answer = client.request(method, f"{API}/{path}", json=body)
        taken.append((time.monotonic() - started, path))
        assert answer.status_code == status or status == -1, (path, answer.text)
    return max(taken)


def test_statement_34_all_routes_answer_at_once_while_the_lock_is_held_and_while_a_job_trains(
    client: TestClient, manager: JobManager, host: FolderHost, small: dict[str, Any]
) -> None:
    small["training"] |= {"max_train_steps": 100_000, "save_every_steps": 0}
    small["preview"] = {"enabled": False}
    with host.lock:
        assert client.post(f"{API}/jobs", json=small).status_code == 202
        wait_for(manager.active, "zbadge")
        waiting = slowest(client, small)
        assert client.get(f"{API}/jobs/zbadge").json()["state"] == "preparing"
    wait_for(lambda: client.get(f"{API}/jobs/zbadge").json()["step"] > 1, True)
    training = slowest(client, small)
    assert client.get(f"{API}/jobs/zbadge").json()["state"] == "training"
    assert client.post(f"{API}/jobs/zbadge/ask", json={"request": "discard"}).status_code == 202
    assert manager.wait_idle(WAIT_SECONDS)
    assert max(waiting, training) < (1.0, "")


def test_a_job_from_the_check_to_its_results(client: TestClient, manager: JobManager, small: dict[str, Any]) -> None:
    report = client.post(f"{API}/check", json=small).json()
    assert (report["problems"], report["num_pictures"]) == ([], 5)
    answer = client.post(f"{API}/jobs", json=small)
    assert (answer.status_code, answer.json()) == (202, {"job_id": "zbadge"})
    assert manager.wait_idle(WAIT_SECONDS)
    job = client.get(f"{API}/jobs/zbadge").json()
    assert (job["state"], job["step"], job["error"]) == ("completed", 2, "")
    assert client.get(f"{API}/jobs/zbadge/previews/grid.png").content.startswith(b"\x89PNG")
    events = client.get(f"{API}/jobs/zbadge/events").json()["events"]
    assert events[-1]["event"] == "JobFinished"
    results = {result["step"]: Path(result["path"]) for result in job["results"]}
    assert sorted(results) == [1, 2]
    deleted = client.post(f"{API}/jobs/zbadge/keep", json={"step": 2}).json()["deleted"]
    assert str(results[1]) in deleted and not results[1].exists() and results[2].exists()
    assert client.post(f"{API}/jobs/zbadge/continue", json={}).status_code == 409
    assert client.post(f"{API}/jobs/zbadge/ask", json={"request": "stop"}).status_code == 409
    assert client.post(f"{API}/jobs/zbadge/continue", json={"max_train_steps": 3}).status_code == 202
    assert manager.wait_idle(WAIT_SECONDS)
    assert client.get(f"{API}/jobs/zbadge").json()["step"] == 3
    assert client.post(f"{API}/jobs/zbadge/forget", json={}).status_code == 200
    assert client.get(f"{API}/jobs").json() == {"jobs": []}
    assert results[2].exists()


def test_a_name_that_is_taken_is_a_conflict(client: TestClient, host: FolderHost, small: dict[str, Any]) -> None:
    folder = host.folders().results["lora"]
    folder.mkdir(parents=True)
    (folder / "zbadge.safetensors").write_bytes(b"mine")
    answer = client.post(f"{API}/jobs", json=small)
    assert (answer.status_code, answer.json()["error"]) == (409, "OutputError")


def test_the_settings_of_a_run_start_the_same_run_again(
    client: TestClient, manager: JobManager, host: FolderHost, small: dict[str, Any]
) -> None:
    with host.lock:
        client.post(f"{API}/jobs", json=small)
        table = client.get(f"{API}/jobs/zbadge/config").json()
        again = client.post(f"{API}/jobs", json={**table, "name": "again"})
        assert again.json() == {"job_id": "again"}
        for job_id in ("again", "zbadge"):
            client.post(f"{API}/jobs/{job_id}/ask", json={"request": "discard"})
    assert manager.wait_idle(WAIT_SECONDS)
    assert client.get(f"{API}/jobs/again/config").json() == {**table, "name": "again"}
