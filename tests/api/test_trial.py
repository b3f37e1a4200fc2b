"""The routes of a trial: what they ask of the host, and what they answer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from extensions_lib.errors import JobStateError
from extensions_lib.ports import AccessPolicy, Candidate, NoTrials, TrialStatus

from .conftest import API, FolderHost

REFUSAL = "There is no model to try it in."


class NotingTrials:
    """Takes every candidate, or raises `error`."""

    refusal = ""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.status = TrialStatus()
        self.error: Exception | None = None

    def try_on(self, candidate: Candidate) -> None:
        if self.error is not None:
            raise self.error
        self.asked.append(candidate)
        self.status = TrialStatus("applying", candidate.title, "practice", 0, len(candidate.shapes))

    def undo(self) -> None:
        self.asked.append("undo")

    def current(self) -> TrialStatus:
        return self.status


@pytest.fixture
def trials(host: FolderHost) -> NotingTrials:
    host.trials = NotingTrials()
    return host.trials


@pytest.fixture
def client(connect: Callable[..., TestClient], trials: NotingTrials) -> TestClient:
    return connect()


@pytest.fixture
def table(practice_model: Path) -> dict[str, Any]:
    return {"tool": "merge", "models": [{"path": "practice [d75978bb3c]"}, {"path": str(practice_model)}]}


def test_a_merge_without_a_name_is_tried(client: TestClient, trials: NotingTrials, table: dict[str, Any]) -> None:
    answer = client.post(f"{API}/trial", json=table)
    (candidate,) = trials.asked
    title = "weighted_sum of practice + practice"
    assert (candidate.title, candidate.family) == (title, "sd1")
    assert answer.status_code == 202
    expected = {
        "state": "applying", "title": title, "model": "practice", "done": 0, "total": len(candidate.shapes),
        "text": "", "refusal": "",
    }  # fmt: skip
    assert answer.json() == client.get(f"{API}/trial").json() == expected


def test_undo_is_asked_for(client: TestClient, trials: NotingTrials) -> None:
    assert client.post(f"{API}/trial/undo", json={}).status_code == 202
    assert trials.asked == ["undo"]
    assert client.post(f"{API}/trial/undo", json={"x": 1}).status_code == 400


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"tool": "nothing"}, "accepted are"),
        ({"tool": "merge", "models": [{"path": "practice [d75978bb3c]"}]}, "models"),
        ({"tool": "extract", "base": "practice [d75978bb3c]", "tuned": "practice [d75978bb3c]"}, "merge, bake"),
    ],
)
def test_mistakes_are_named(client: TestClient, trials: NotingTrials, table: dict[str, Any], said: str) -> None:
    answer = client.post(f"{API}/trial", json=table)
    assert answer.status_code == 400 and said in answer.json()["message"]
    assert trials.asked == []


def test_what_may_not_be_named_may_not_be_tried(
    client: TestClient, trials: NotingTrials, host: FolderHost, table: dict[str, Any], tmp_path: Path
) -> None:
    host.policy = AccessPolicy(roots=(tmp_path / "roots",))
    table["models"][1]["path"] = str(tmp_path / "secret.safetensors")
    assert client.post(f"{API}/trial", json=table).status_code == 403
    assert trials.asked == []


def test_a_busy_host_says_so(client: TestClient, trials: NotingTrials, table: dict[str, Any]) -> None:
    trials.error = JobStateError("A trial is being put in or taken out.", "Wait.")
    assert client.post(f"{API}/trial", json=table).status_code == 409


def test_a_host_without_trials_says_why(connect: Callable[..., TestClient], host: FolderHost, table: Any) -> None:
    host.trials = NoTrials(REFUSAL)
    client = connect()
    assert client.get(f"{API}/trial").json()["refusal"] == REFUSAL
    answer = client.post(f"{API}/trial", json=table)
    assert (answer.status_code, answer.json()["message"]) == (503, REFUSAL)
    assert client.post(f"{API}/trial/undo", json={}).status_code == 202
