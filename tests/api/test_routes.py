"""Every route: what it answers, what it asks of the manager, and how it says that something is wrong."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

from extensions_lib import errors
from extensions_lib.api.answers import STATUS_CODES, without_folders
from extensions_lib.api.routes import MAX_EVENTS, add_routes
from extensions_lib.config.codec import load
from extensions_lib.config.presets import PRESETS, preset_values
from extensions_lib.events import StepCompleted
from extensions_lib.jobs.store import REQUESTS, RunFolder
from extensions_lib.jobs.user_presets import UserPresets
from extensions_lib.ports import AccessPolicy, Credentials

from .conftest import API, PNG, FolderHost, NotingManager

Connect = Callable[..., TestClient]


@pytest.fixture
def client(connect: Connect) -> TestClient:
    return connect()


def test_the_list_of_jobs_has_no_curves(client: TestClient) -> None:
    (job,) = client.get(f"{API}/jobs").json()["jobs"]
    assert (job["job_id"], job["state"], job["step"], job["eta_seconds"]) == ("zbadge", "training", 2, 14.0)
    assert not {"curve", "validation"} & set(job)


def test_a_job_is_shown_in_full(client: TestClient) -> None:
    answer = client.get(f"{API}/jobs/zbadge")
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.json()["curve"] == [[1, 0.5], [2, 0.25]]
    assert answer.json()["preview_steps"] == [2]


def test_events_go_on_after_a_sequence_number(client: TestClient, run: RunFolder) -> None:
    events = client.get(f"{API}/jobs/zbadge/events").json()["events"]
    assert [event["sequence"] for event in events] == [1, 2, 3, 4, 5]
    assert client.get(f"{API}/jobs/zbadge/events?after=4").json()["events"] == events[4:]
    assert client.get(f"{API}/jobs/zbadge/events?after=5").json()["events"] == []
    assert events == [event.to_json() for event in run.events()]


def test_a_long_log_comes_in_parts(client: TestClient, manager: NotingManager) -> None:
    step = {"loss": 0.5, "learning_rate": 1.0, "num_examples_seen": 1, "seconds": 1.0, "peak_memory_gib": 0.0}
    log = [StepCompleted(step=number, sequence=number, **step) for number in range(1, MAX_EVENTS + 3)]
    manager.events = lambda job_id, after: log[after:]
    first = client.get(f"{API}/jobs/zbadge/events").json()["events"]
    rest = client.get(f"{API}/jobs/zbadge/events?after={first[-1]['sequence']}").json()["events"]
    assert (len(first), len(rest)) == (MAX_EVENTS, 2)
    assert [event["sequence"] for event in (*first, *rest)] == list(range(1, MAX_EVENTS + 3))


@pytest.mark.parametrize("after", ["-1", "x", "1.5"])
def test_a_wrong_sequence_number_is_refused(client: TestClient, after: str) -> None:
    answer = client.get(f"{API}/jobs/zbadge/events?after={after}")
    assert answer.status_code == 400
    assert [problem["path"] for problem in answer.json()["problems"]] == ["after"]


def test_the_settings_of_a_job_can_be_submitted_again(client: TestClient, run: RunFolder) -> None:
    assert load(client.get(f"{API}/jobs/zbadge/config").json()) == run.config()


def test_the_host_is_described(client: TestClient, host: FolderHost) -> None:
    host.unusable = {"textual_inversion": "not here"}
    host.policy = AccessPolicy(roots=(host.root,), allow_pickles=False)
    answer = client.get(f"{API}/host").json()
    assert answer["base_models"] == [{"title": "practice [d75978bb3c]", "path": str(host.base)}]
    assert answer["selected_base_model"] == str(host.base)
    assert answer["result_folders"]["lora"] == str(host.root / "Lora")
    assert answer["unusable_methods"] == {"textual_inversion": "not here"}
    assert answer["access"] == {"roots": [str(host.root)], "allow_pickles": False, "hide_paths": False}


def test_statement_33_a_host_that_hides_its_folders_shows_none(
    connect: Connect, host: FolderHost, manager: NotingManager
) -> None:
    host.policy = AccessPolicy(hide_paths=True)
    client = connect()
    reads = ("host", "presets", "jobs", "jobs/zbadge", "jobs/zbadge/events", "jobs/zbadge/config")
    texts = {path: client.get(f"{API}/{path}").text for path in reads}
    texts["keep"] = client.post(f"{API}/jobs/zbadge/keep", json={"step": 2}).text
    folders = (str(host.root), str(host.base.parent), str(host.root.parent))
    assert [path for path, text in texts.items() if any(json.dumps(each)[1:-1] in text for each in folders)] == []
    assert json.loads(texts["jobs"])["jobs"][0]["base_model"] == host.base.name


def test_paths_of_both_systems_are_cut_down() -> None:
    value = {"a": ["/x/y.png", "C:\\x\\y.png", "\\\\server\\share\\x\\y.png", "plain/text", 1, None], "b": ("/x/z/",)}
    assert without_folders(value) == {"a": ["y.png", "y.png", "y.png", "plain/text", 1, None], "b": ["z"]}


def test_asking_the_manager(client: TestClient, manager: NotingManager) -> None:
    for word in REQUESTS:
        assert client.post(f"{API}/jobs/zbadge/ask", json={"request": word}).status_code == 202
    for body in ({}, {"max_train_steps": None}, {"max_train_steps": 30}):
        assert client.post(f"{API}/jobs/zbadge/continue", json=body).status_code == 202
    kept = client.post(f"{API}/jobs/zbadge/keep", json={"step": 2})
    assert kept.json() == {"job_id": "zbadge", "deleted": [str(manager.runs / "old.safetensors")]}
    assert client.post(f"{API}/jobs/zbadge/forget", json={}).json() == {"job_id": "zbadge"}
    assert manager.asked == [
        *(("ask", "zbadge", word) for word in REQUESTS),
        ("continue", "zbadge", None),
        ("continue", "zbadge", None),
        ("continue", "zbadge", 30),
        ("keep", "zbadge", 2),
        ("forget", "zbadge"),
    ]


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("ask", {"request": "explode"}, "is 'explode', accepted are save, preview, pause, resume, stop, discard"),
        ("ask", {}, "is missing, accepted are save"),
        ("ask", {"request": ["stop"]}, "is ['stop'], accepted are"),
        ("ask", {"request": "stop", "when": "now"}, "is not known, accepted are request"),
        ("ask", ["stop"], "must be a JSON object, is a list"),
        ("ask", [["request", "stop"]], "must be a JSON object, is a list"),
        ("ask", "stop", "must be a JSON object, is a text"),
        ("ask", None, "must be a JSON object, is not one"),
        ("continue", {"steps": 5}, "is not known, accepted are max_train_steps"),
        ("continue", {"max_train_steps": 0}, "is 0, accepted are whole numbers from 1 to 10000000"),
        ("continue", {"max_train_steps": 5.0}, "is 5.0, accepted are whole numbers"),
        ("continue", {"max_train_steps": True}, "is True, accepted are whole numbers"),
        ("continue", {"max_train_steps": "5"}, "is '5', accepted are whole numbers"),
        ("continue", {"max_train_steps": 10**400}, "is a number, accepted are whole numbers"),
        ("keep", {"step": -1}, "is -1, accepted are whole numbers from 0"),
        ("keep", {}, "is missing, accepted are whole numbers"),
        ("forget", {"sure": True}, "is not known, accepted is an empty object, {}"),
    ],
)
def test_statement_35_both_pydantics_refuse_the_same_requests_and_say_what_is_accepted(
    client: TestClient, manager: NotingManager, path: str, body: Any, said: str
) -> None:
    content, headers = json.dumps(body), {"Content-Type": "application/json"}
    answer = client.post(f"{API}/jobs/zbadge/{path}", content=content, headers=headers)
    assert (answer.status_code, answer.json()["error"]) == (400, "ConfigError")
    assert said in answer.json()["message"]
    assert manager.asked == []


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe{}", b"[" * 100_000, b'{"request": 9' + b"9" * 5000 + b"}"])
def test_a_body_that_is_no_json_is_refused(client: TestClient, content: bytes) -> None:
    answer = client.post(f"{API}/jobs/zbadge/ask", content=content, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["error"]) == (400, "ConfigError")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.ConfigError([errors.Problem("name", "is bad")]), 400),
        (errors.DatasetError("no pictures", "add some"), 400),
        (errors.FormatError("not a model"), 400),
        (errors.AccessError("not below a root"), 403),
        (errors.UnknownJobError("no such job"), 404),
        (errors.JobStateError("has ended"), 409),
        (errors.OutputError("name is taken"), 409),
        (errors.TrainingError("is trained elsewhere"), 409),
        (errors.HostError("the WebUI is silent"), 503),
        (errors.DiskFullError("no room"), 507),
        (errors.ExtensionError("is not a run folder"), 400),
    ],
)
def test_errors_become_status_codes(
    client: TestClient, manager: NotingManager, error: errors.ExtensionError, status: int
) -> None:
    manager.error = error
    answer = client.post(f"{API}/jobs/zbadge/ask", json={"request": "stop"})
    problems = [{"path": "name", "text": "is bad"}] if isinstance(error, errors.ConfigError) else []
    assert answer.status_code == status
    assert answer.json() == {
        "error": type(error).__name__, "message": error.message, "hint": error.hint, "problems": problems
    }  # fmt: skip


def test_every_error_class_has_its_code() -> None:
    """A class before its base would never be reached after it."""
    classes = [kind for kind, _ in STATUS_CODES]
    hidden = [later for index, later in enumerate(classes) if any(issubclass(later, each) for each in classes[:index])]
    assert hidden == []
    assert classes[-1] is errors.ExtensionError


def test_a_bug_is_a_500(connect: Connect, manager: NotingManager) -> None:
    manager.error = KeyError("x")
    client = TestClient(connect().app, raise_server_exceptions=False)
    assert client.post(f"{API}/jobs/zbadge/ask", json={"request": "stop"}).status_code == 500


def test_pictures_are_asked_for_again_and_change(client: TestClient, run: RunFolder) -> None:
    path = f"{API}/jobs/zbadge/previews/grid.png"
    first = client.get(path)
    assert (first.content, first.headers["Content-Type"], first.headers["Cache-Control"]) == (
        PNG, "image/png", "no-cache",
    )  # fmt: skip
    tag = {"If-None-Match": first.headers["ETag"]}
    assert (client.get(path, headers=tag).status_code, client.get(path, headers=tag).content) == (304, b"")
    grid = run.previews / "grid.png"
    grid.write_bytes(PNG[::-1])
    os.utime(grid, ns=(1, 1))
    assert (client.get(path, headers=tag).status_code, client.get(path, headers=tag).content) == (200, PNG[::-1])


def test_the_page_asks_for_what_changed(client: TestClient) -> None:
    live = client.get(f"{API}/page/live?selected=zbadge&seen=v6")
    assert live.json() == {"version": "v7", "html": "<p>live zbadge</p>"}
    unchanged = client.get(f"{API}/page/live?selected=zbadge&seen=v7")
    assert (unchanged.status_code, unchanged.content) == (204, b"")
    assert client.get(f"{API}/page/history").json()["html"] == "<p>history </p>"
    assert client.get(f"{API}/page/other").status_code == 404


def test_without_a_page_there_is_no_page_route(connect: Connect) -> None:
    assert connect(fragment=None).get(f"{API}/page/live").status_code == 404


def test_presets_are_the_built_in_ones_and_the_users(client: TestClient, host: FolderHost) -> None:
    told = client.get(f"{API}/presets").json()
    assert told.pop("reasons")["lora_style"]["method.rank"] == "a style is in more layers than a face"
    assert told == {"presets": PRESETS, "user_presets": {}, "unreadable": {}}
    told = client.get(f"{API}/presets?family=sdxl").json()
    assert told["presets"]["lora_style"] == preset_values("lora_style", "sdxl")
    assert client.get(f"{API}/presets?family=sd9").status_code == 400
    mine = {"method": {"kind": "lora", "rank": 4}}
    UserPresets(host.folders().presets).save("mine", mine)
    (host.folders().presets / "broken.json").write_text("{", encoding="utf-8")
    answer = client.get(f"{API}/presets").json()
    assert answer["user_presets"] == {"mine": mine}
    assert list(answer["unreadable"]) == ["broken"]


def test_adding_the_routes_twice_changes_nothing(connect: Connect, manager: NotingManager, host: FolderHost) -> None:
    client = connect()
    before = len(client.app.routes)
    add_routes(client.app, manager, host, Credentials())
    assert len(client.app.routes) == before


def test_a_reloaded_page_gets_the_routes_with_the_same_jobs(connect: Connect) -> None:
    """'Reload UI' makes a new app; the manager lives on."""
    before, after = connect(), connect()
    assert before.app is not after.app
    assert after.get(f"{API}/jobs").json() == before.get(f"{API}/jobs").json()


def test_half_a_character_in_a_request_does_not_break_the_answer(client: TestClient) -> None:
    headers = {"Content-Type": "application/json"}
    answer = client.post(f"{API}/jobs/zbadge/ask", content=b'{"\\ud800": 1}', headers=headers)
    assert (answer.status_code, answer.json()["problems"][0]["path"]) == (400, "\ud800")
