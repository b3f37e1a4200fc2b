from __future__ import annotations

import gc
import http.cookiejar
import json
import re
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from extensions_lib.config.codec import load
from extensions_lib.errors import AccessError, ConfigError
from extensions_lib.host.standalone import (
    PRACTICE_TITLE,
    StandaloneHost,
    StandalonePage,
    practice_job,
    serve,
)
from extensions_lib.jobs.submission import prepare_job
from extensions_lib.practice import BADGE_FOLDER, practice_checkpoint

# gradio leaves a socket to the collector for each port that it finds taken.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """What is left behind is collected here, not in another test."""
    yield
    gc.collect()


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.fixture
def page(tmp_path: Path) -> Iterator[StandalonePage]:
    served = serve(tmp_path / "studio", port=free_port())
    yield served
    served.close()


def get(url: str, **headers: str) -> tuple[int, str]:
    request = urllib.request.Request(url, headers=headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=30) as answer:
            return answer.status, answer.read().decode("utf-8")
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode("utf-8")


def secret_of(html: str) -> str:
    return re.search(r'data-secret=[\\"]+([\w-]+)', html).group(1)


def test_results_go_below_the_folder(tmp_path: Path) -> None:
    folders = StandaloneHost(tmp_path).folders()
    names = {"lora": "loras", "embedding": "embeddings", "checkpoint": "checkpoints", "hypernetwork": "hypernetworks"}
    assert folders.results == {kind: tmp_path / name for kind, name in names.items()}
    assert (folders.checkpoints, folders.runs) == (tmp_path / "checkpoints", tmp_path / "runs")


def test_the_practice_model_comes_first(tmp_path: Path) -> None:
    host = StandaloneHost(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    for name in ("b.safetensors", "a.safetensors", "c.ckpt"):
        (tmp_path / "checkpoints" / name).write_bytes(b"")
    assert [model.title for model in host.base_models()] == [PRACTICE_TITLE, "a.safetensors", "b.safetensors"]
    assert host.selected_base_model() == practice_checkpoint()


def test_one_job_at_a_time(tmp_path: Path) -> None:
    host = StandaloneHost(tmp_path)
    entered = threading.Event()

    def other() -> None:
        with host.exclusive():
            entered.set()

    thread = threading.Thread(target=other)
    with host.exclusive():
        thread.start()
        assert not entered.wait(0.2)
    assert entered.wait(10)
    thread.join()


def test_a_result_is_said_to_be_written(tmp_path: Path) -> None:
    published = StandaloneHost(tmp_path).publish(tmp_path / "x.safetensors", "lora", 3)
    assert (published.text, published.is_usable) == (f"written to {tmp_path / 'x.safetensors'}", True)


def test_statement_32_others_may_name_our_folder_only(tmp_path: Path, pictures: Path) -> None:
    table = practice_job()
    outside = {**table, "dataset": {**table["dataset"], "folder": str(pictures)}}
    assert prepare_job(outside, StandaloneHost(tmp_path / "studio")).dataset.folder == str(pictures)
    opened = StandaloneHost(tmp_path / "studio", is_open=True)
    with pytest.raises(AccessError):
        prepare_job(outside, opened)
    assert prepare_job(table, opened).dataset.folder == str(BADGE_FOLDER / "train")
    assert not opened.access().allow_pickles


def test_the_job_to_begin_with_is_the_practice_models(tmp_path: Path) -> None:
    config = load({**practice_job(), "output": {"folder": str(tmp_path)}})
    assert config.dataset.resolution_px == 64
    assert config.base_model == str(practice_checkpoint())
    assert len(list(Path(config.dataset.folder).glob("*.png"))) == 10


def test_the_page_and_our_routes_are_served(page: StandalonePage) -> None:
    status, html = get(page.url)
    assert status == 200
    for expected in ("tab_train_studio", "train_studio_root", "train_studio_train", "window.trainStudio"):
        assert expected in html
    status, body = get(f"{page.url}train-studio/v1/page/live?selected=&seen=")
    assert status == 200
    assert "No training yet" in json.loads(body)["html"]
    status, body = get(f"{page.url}train-studio/v1/host")
    assert json.loads(body)["base_models"][0]["title"] == PRACTICE_TITLE
    assert {path.name for path in page.host.folders().work.iterdir()} >= {"loras", "embeddings", "checkpoints"}


def test_the_address_is_asked_of_no_other_machine(page: StandalonePage) -> None:
    """Nothing of the theme comes from the network."""
    assert "fonts.googleapis.com/css" not in get(f"{page.url}theme.css")[1] + get(page.url)[1]


def test_a_taken_port_is_one_clear_sentence(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port: is {port}, which is in use"):
            serve(tmp_path, port=port)


def test_statement_31_a_login_guards_the_page_and_our_routes(tmp_path: Path) -> None:
    page = serve(tmp_path / "studio", port=free_port(), users=[("ann", "secret")])
    try:
        for path in ("jobs", "host", "settings", "page/live?selected=&seen="):
            assert get(f"{page.url}train-studio/v1/{path}")[0] == 401, path
        assert get(f"{page.url}train-studio/v1/jobs", Authorization="Basic YW5uOnNlY3JldA==")[0] == 200
        assert "data-secret" not in get(page.url)[1]
        html = logged_in(page.url, "ann", "secret").open(page.url, timeout=30).read().decode("utf-8")
        cookie = f"train_studio_page={secret_of(html)}"
        assert get(f"{page.url}train-studio/v1/jobs", Cookie=cookie)[0] == 200
        assert get(f"{page.url}train-studio/v1/jobs", Cookie=cookie + "x")[0] == 401
    finally:
        page.close()


def logged_in(url: str, user: str, password: str) -> Any:
    jar = http.cookiejar.CookieJar()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPCookieProcessor(jar))
    body = f"username={user}&password={password}".encode()
    opener.open(f"{url}login", data=body, timeout=30).close()
    return opener


def test_closing_stops_and_saves_the_job(tmp_path: Path) -> None:
    page = serve(tmp_path / "studio", port=free_port())
    table = practice_job()
    table["training"]["max_train_steps"] = 100_000
    table["preview"] = {"enabled": False}
    job_id = page.manager.submit(prepare_job(table, page.host))
    while page.manager.status(job_id).step == 0:
        assert page.manager.status(job_id).state in ("queued", "preparing", "training")
        threading.Event().wait(0.1)
    page.close()
    assert page.manager.status(job_id).state == "stopped"
    assert (tmp_path / "studio" / "loras" / "badge.safetensors").is_file()
