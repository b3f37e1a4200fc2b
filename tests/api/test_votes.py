"""The routes of votes: what they ask of the sessions, and the pictures they serve."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from starlette.testclient import TestClient

from extensions_lib.api.answers import guarded_route
from extensions_lib.api.auth import Guard
from extensions_lib.api.votes import VOTES, add_vote_routes
from extensions_lib.errors import JobStateError
from extensions_lib.merge.search import VOTES as KNOWN_VOTES
from extensions_lib.ports import Credentials

from .conftest import API, PNG


class Sessions:
    """One session called 'best'."""

    def __init__(self, folder: Path) -> None:
        self.asked: list[Any] = []
        self.file = folder / "picture.png"
        self.file.write_bytes(PNG)

    def names(self) -> list[str]:
        return ["best"]

    def status(self, name: str) -> dict[str, Any]:
        return {"name": name, "alpha": "0.5"}

    def picture(self, name: str, side: str, prompt: int) -> Path:
        self.asked.append((name, side, prompt))
        return self.file

    def start(self, table: Any) -> str:
        self.asked.append(dict(table))
        return "best"

    def vote(self, name: str, vote: str, number: int) -> None:
        if number:
            raise JobStateError("The pictures are not drawn yet.")
        self.asked.append((name, vote, number))

    def draw_again(self, name: str) -> None:
        self.asked.append(("draw", name))

    def forget(self, name: str) -> None:
        self.asked.append(("forget", name))


@pytest.fixture
def sessions(tmp_path: Path) -> Sessions:
    return Sessions(tmp_path)


@pytest.fixture
def client(sessions: Sessions) -> TestClient:
    app = FastAPI()
    router = APIRouter(prefix=API, route_class=guarded_route(Guard(app, Credentials())))
    add_vote_routes(router, sessions)
    app.include_router(router)
    return TestClient(app)


def test_votes_are_listed_and_shown(client: TestClient) -> None:
    assert client.get(f"{API}/votes").json() == {"votes": [{"name": "best", "alpha": "0.5"}]}
    assert client.get(f"{API}/votes/best").json()["alpha"] == "0.5"


def test_what_is_asked_reaches_the_session(client: TestClient, sessions: Sessions) -> None:
    calls = [
        ("/votes", {"name": "best"}, {"name": "best"}),
        ("/votes/best/vote", {"vote": "alike", "number": 0}, ("best", "alike", 0)),
        ("/votes/best/draw", {}, ("draw", "best")),
        ("/votes/best/forget", {}, ("forget", "best")),
    ]
    for path, body, _ in calls:
        answer = client.post(f"{API}{path}", json=body)
        assert (answer.status_code, answer.json()) == (202, {"name": "best"})
    assert sessions.asked == [asked for _, _, asked in calls]
    assert set(VOTES) == set(KNOWN_VOTES)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"vote": "up", "number": 0}, 400),
        ({"vote": "left"}, 400),
        ({"vote": "left", "number": 0, "more": 1}, 400),
        ({"vote": "left", "number": 3}, 409),
    ],
)
def test_other_votes_are_refused(client: TestClient, sessions: Sessions, body: dict[str, Any], status: int) -> None:
    assert client.post(f"{API}/votes/best/vote", json=body).status_code == status
    assert sessions.asked == []


def test_pictures_by_side_and_prompt(client: TestClient, sessions: Sessions) -> None:
    answer = client.get(f"{API}/votes/best/pictures/right-1.png")
    assert (answer.content, answer.headers["content-type"]) == (PNG, "image/png")
    assert sessions.asked == [("best", "right", 1)]
    for name in ("up-0.png", "session.json", "left-..png"):
        assert client.get(f"{API}/votes/best/pictures/{name}").status_code == 404


def test_the_routes_are_there(connect: Callable[..., TestClient]) -> None:
    assert connect().get(f"{API}/votes").json() == {"votes": []}
    assert connect().get(f"{API}/votes/none").status_code == 404
