"""Votes on pairs of pictures: sessions on disk, their pairs as jobs, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from extensions_lib.errors import AccessError, ConfigError, JobStateError, OutputError, UnknownJobError
from extensions_lib.jobs.manager import JobManager
from extensions_lib.jobs.votes import Votes
from extensions_lib.merge.search import BlockSearch
from extensions_lib.ports import AccessPolicy

from .conftest import finished


@pytest.fixture
def votes(manager: JobManager, recording_host: Any) -> Votes:
    return Votes(manager, recording_host)


@pytest.fixture
def table(practice_model: Path, tmp_path: Path) -> dict[str, Any]:
    folder = shutil.copytree(practice_model.parent, tmp_path / "models")
    other = folder / "other.safetensors"
    shutil.copyfile(practice_model, other)
    other.with_suffix(".yaml").write_bytes(practice_model.with_suffix(".yaml").read_bytes())
    return {
        "name": "best", "models": [{"path": str(folder / practice_model.name)}, {"path": str(other)}],
        "prompts": "a red circle | a blue square", "num_steps": 1, "width_px": 64, "height_px": 64,
    }  # fmt: skip


def drawn(votes: Votes, manager: JobManager) -> dict[str, Any]:
    job_id = votes.status("best")["pair"]["job_id"]
    assert finished(manager, job_id).state == "completed"
    return votes.status("best")


def test_a_session_from_start_to_the_next_pair(
    votes: Votes, manager: JobManager, recording_host: Any, table: dict[str, Any]
) -> None:
    assert votes.start(table) == "best" and votes.names() == ["best"]
    with pytest.raises(OutputError, match="already"):
        votes.start(table)
    status = drawn(votes, manager)
    expected = BlockSearch("sd1", 0.5, 1)
    assert (status["pair"]["left"], status["pair"]["right"]) == expected.pair()
    assert (status["number"], status["alpha"], status["is_finished"]) == (0, expected.best(), False)
    assert status["pair"]["prompts"] == ["a red circle", "a blue square"]
    pictures = [votes.picture("best", side, prompt) for side in ("left", "right") for prompt in (0, 1)]
    assert len(set(pictures)) == 4 and all(path.read_bytes()[:4] == b"\x89PNG" for path in pictures)
    votes.vote("best", "right", 0)
    with pytest.raises(JobStateError, match="number 0, the vote is at 1"):
        votes.vote("best", "right", 0)
    status = drawn(votes, manager)
    assert status["alpha"] == expected.voted("right").best() and status["votes"] == ["right"]
    again = Votes(manager, recording_host)
    assert again.status("best") == status
    assert [each.job_id for each in manager.statuses()] == ["best-001"], "the history keeps no old pairs"
    votes.forget("best")
    assert votes.names() == [] and manager.statuses() == ()


def test_a_pair_that_is_not_drawn_cannot_be_voted_on_and_can_be_drawn_again(
    votes: Votes, manager: JobManager, table: dict[str, Any]
) -> None:
    votes.start(table)
    drawn(votes, manager)
    manager.forget("best-000")
    assert votes.status("best")["pair"]["state"] == "interrupted"
    with pytest.raises(JobStateError, match="not drawn yet"):
        votes.vote("best", "left", 0)
    votes.draw_again("best")
    drawn(votes, manager)
    votes.vote("best", "alike", 0)


def test_a_finished_search_has_no_pair(votes: Votes, recording_host: Any, table: dict[str, Any]) -> None:
    folder = recording_host.folders().work / "votes" / "best"
    folder.mkdir(parents=True)
    search = BlockSearch("sd1", 0.5, 1)
    session = {"name": "best", "table": table, "family": "sd1", "start": 0.5, "votes": ["left"] * search.num_votes}
    (folder / "session.json").write_text(json.dumps(session), encoding="utf-8")
    status = votes.status("best")
    assert status["is_finished"] and status["pair"] is None and status["alpha"].startswith("0.5, ")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "../out"}, "name"),
        ({"name": 3}, "name: is missing"),
        ({"start": 2}, "start: is 2, accepted are 0 to 1"),
        ({"models": []}, "models"),
        ({"prompts": ""}, "prompts: are none"),
    ],
)
def test_mistakes_are_named_and_leave_nothing(
    votes: Votes, recording_host: Any, table: dict[str, Any], changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        votes.start(table | changes)
    assert said in caught.value.message
    assert votes.names() == [] and not (recording_host.folders().work / "votes").exists()


def test_what_may_not_be_named_may_not_be_voted_on(
    votes: Votes, recording_host: Any, table: dict[str, Any], tmp_path: Path
) -> None:
    recording_host.policy = AccessPolicy(roots=(tmp_path / "nothing",))
    with pytest.raises(AccessError):
        votes.start(table)


def test_unknown_sessions(votes: Votes) -> None:
    for ask in (votes.status, votes.forget, votes.draw_again):
        with pytest.raises(UnknownJobError):
            ask("../best")
