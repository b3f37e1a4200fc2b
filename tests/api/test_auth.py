"""Who gets in. Our own accounts, gradio's login, our page; and nobody else's site."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator

import pytest
from fastapi.routing import APIRoute
from starlette.testclient import TestClient

from extensions_lib.api.auth import basic_credentials

from .conftest import API, NotingManager, gradio_app

Connect = Callable[..., TestClient]
USERS = (("ada", "s3cret"), ("bücher", "pässwört"))
HOW = ("users", "login", "both")


@pytest.fixture(params=HOW)
def closed(request: pytest.FixtureRequest, connect: Connect) -> TestClient:
    """A client without credentials: of --api-auth, --gradio-auth, and both."""
    users = USERS if request.param in ("users", "both") else ()
    app = gradio_app(("gina", "word")) if request.param in ("login", "both") else None
    return connect(app, users=users, page_secret="page-secret")


def every_call(client: TestClient) -> Iterator[tuple[str, str]]:
    """Method and path of each of our routes, with the names of a job and files that exist."""
    names = {"job_id": "zbadge", "file": "grid.png", "name": "live"}
    for route in client.app.routes:
        if isinstance(route, APIRoute) and route.path.startswith(API):
            for method in sorted(route.methods):
                yield method, route.path.format(**{key: names[key] for key in route.param_convertors})


def test_statement_31_every_route_answers_401_without_credentials(closed: TestClient, manager: NotingManager) -> None:
    calls = list(every_call(closed))
    assert len(calls) == 30
    answers = {
        (method, path, closed.request(method, path, json={"request": "stop"}).status_code) for method, path in calls
    }
    assert answers == {(method, path, 401) for method, path in calls}
    assert manager.asked == []


def test_statement_31_the_login_comes_before_everything_else_that_could_be_wrong(closed: TestClient) -> None:
    """No answer tells a stranger which jobs there are, or reads his body."""
    assert closed.get(f"{API}/jobs/unknown").status_code == 401
    assert closed.get(f"{API}/jobs/zbadge/events?after=x").status_code == 401
    assert closed.post(f"{API}/jobs", content=b"{", headers={"Content-Type": "application/json"}).status_code == 401
    assert closed.post(f"{API}/jobs", content=b"x").status_code == 401


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Basic " + base64.b64encode(b"ada:wrong").decode()},
        {"Authorization": "Basic " + base64.b64encode(b"bob:s3cret").decode()},
        {"Authorization": "Basic " + base64.b64encode("ada:pässwört".encode()).decode()},
        {"Authorization": "Basic " + base64.b64encode(b"ada").decode()},
        {"Authorization": "Basic \xff\xfe"},
        {"Authorization": "Bearer s3cret"},
        {"Authorization": ""},
        {"Cookie": "train_studio_page=wrong"},
        {"Cookie": "train_studio_page="},
        {"Cookie": "access-token=wrong"},
        {"X-Train-Studio-Page": "page-secret"},
    ],
)
def test_statement_31_wrong_credentials_are_none(closed: TestClient, headers: dict[str, str]) -> None:
    raw = {name: value.encode("latin-1") for name, value in headers.items()}
    assert closed.get(f"{API}/jobs", headers=raw).status_code == 401


@pytest.mark.parametrize("account", USERS)
def test_users_get_in_with_http_basic(connect: Connect, account: tuple[str, str]) -> None:
    header = "Basic " + base64.b64encode(":".join(account).encode()).decode()
    assert connect(users=USERS).get(f"{API}/jobs", headers={"Authorization": header}).status_code == 200


def test_a_login_to_the_webui_gets_in(connect: Connect) -> None:
    client = connect(gradio_app(("gina", "word")), users=USERS)
    assert client.get(f"{API}/jobs").status_code == 401
    client.post("/login", data={"username": "gina", "password": "word"})
    # The test client speaks http, so the cookie that is for https only stays behind, as in a browser.
    assert client.get(f"{API}/jobs").status_code == 200


def test_our_page_gets_in_with_its_cookie(closed: TestClient) -> None:
    closed.cookies.set("train_studio_page", "page-secret")
    assert closed.get(f"{API}/jobs").status_code == 200
    assert closed.post(f"{API}/jobs/zbadge/ask", json={"request": "save"}).status_code == 202


def test_an_empty_page_secret_is_no_key(connect: Connect) -> None:
    client = connect(users=USERS, page_secret="")
    assert client.get(f"{API}/jobs", headers={"Cookie": "train_studio_page="}).status_code == 401


@pytest.mark.parametrize("with_gradio", [True, False])
def test_without_accounts_all_is_open_as_in_the_host(connect: Connect, with_gradio: bool) -> None:
    """Without gradio: --nowebui."""
    client = connect(gradio_app() if with_gradio else None, page_secret="page-secret")
    assert client.get(f"{API}/jobs").status_code == 200


def test_a_login_whose_route_is_missing_keeps_the_door_shut(connect: Connect) -> None:
    app = gradio_app(("gina", "word"))
    app.router.routes = [route for route in app.routes if getattr(route, "path", "") != "/login_check"]
    client = connect(app)
    client.post("/login", data={"username": "gina", "password": "word"})
    assert client.get(f"{API}/jobs").status_code == 401


def test_a_browser_asks_for_a_password_only_where_one_helps(connect: Connect) -> None:
    with_users, with_login = connect(users=USERS), connect(gradio_app(("gina", "word")))
    assert with_users.get(f"{API}/jobs").headers["WWW-Authenticate"].startswith("Basic ")
    from_page = with_users.get(f"{API}/jobs", headers={"X-Train-Studio-Page": "1"})
    assert "WWW-Authenticate" not in from_page.headers
    assert from_page.json()["hint"] == "Reload the page."
    assert "WWW-Authenticate" not in with_login.get(f"{API}/jobs").headers


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", None])
def test_changes_are_json_only(connect: Connect, manager: NotingManager, kind: str | None) -> None:
    """A form of another site can send these without asking."""
    headers = {"Content-Type": kind} if kind else {}
    answer = connect().post(f"{API}/jobs/zbadge/ask", content=b'{"request": "discard"}', headers=headers)
    assert (answer.status_code, answer.json()["error"]) == (415, "NotJsonError")
    assert manager.asked == []


def test_the_content_type_may_name_its_encoding(connect: Connect) -> None:
    headers = {"Content-Type": "Application/JSON; charset=utf-8"}
    answer = connect().post(f"{API}/jobs/zbadge/ask", content=b'{"request": "save"}', headers=headers)
    assert answer.status_code == 202


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://testserver.evil.example", "http://[", ""])
def test_another_site_is_refused(connect: Connect, manager: NotingManager, origin: str) -> None:
    answer = connect().post(f"{API}/jobs/zbadge/ask", json={"request": "stop"}, headers={"Origin": origin})
    assert (answer.status_code, answer.json()["error"]) == (403, "AccessError")
    assert manager.asked == []


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://testserver"},
        {"Origin": "https://TestServer:8443"},
        {"Origin": "https://studio.example", "X-Forwarded-Host": "studio.example"},
        {"Origin": "http://[::1]:7860", "Host": "[::1]:7860"},
    ],
)
def test_the_own_site_may_change_things(connect: Connect, headers: dict[str, str]) -> None:
    assert connect().post(f"{API}/jobs/zbadge/ask", json={"request": "stop"}, headers=headers).status_code == 202


def test_a_colon_in_a_password_belongs_to_it() -> None:
    assert basic_credentials("basic " + base64.b64encode(b"ada:a:b").decode()) == ("ada", "a:b")
