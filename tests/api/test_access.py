"""What a client may not name, with the real checks behind the routes."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from extensions_lib.api.routes import add_routes
from extensions_lib.config.presets import merge
from extensions_lib.jobs.manager import JobManager
from extensions_lib.jobs.store import RunFolder
from extensions_lib.ports import AccessPolicy, Credentials

from .conftest import API, FolderHost


@pytest.fixture
def allowed(host: FolderHost, job: dict[str, Any]) -> Path:
    """The only folder a client may name paths in; the job's pictures are there."""
    root = host.root / "allowed"
    shutil.copytree(job["dataset"]["folder"], root / "pictures")
    job["dataset"]["folder"] = str(root / "pictures")
    host.policy = AccessPolicy(roots=(root,), allow_pickles=False)
    return root


@pytest.fixture
def client(host: FolderHost) -> Iterator[TestClient]:
    app = FastAPI()
    add_routes(app, JobManager(host), host, Credentials())
    client = TestClient(app)
    yield client
    client.close()


def outside(setting: str) -> Callable[[Path], dict[str, Any]]:
    section, _, name = setting.partition(".")
    return lambda path: {section: {name: str(path)} if name else str(path)}


PATHS = (
    "base_model", "vae", "dataset.folder", "dataset.validation_folder", "dataset.caption_template",
    "method.start_from", "output.folder",
)  # fmt: skip


def refused(client: TestClient, host: FolderHost, table: dict[str, Any]) -> list[tuple[int, str]]:
    """How both routes that take a job answer it; none may leave anything behind."""
    answers = [client.post(f"{API}/{path}", json=table) for path in ("check", "jobs")]
    assert not host.folders().runs.exists()
    return [(answer.status_code, answer.json()["error"]) for answer in answers]


@pytest.mark.parametrize("setting", PATHS)
def test_statement_32_a_path_outside_the_roots_is_refused(
    client: TestClient, host: FolderHost, job: dict[str, Any], allowed: Path, setting: str
) -> None:
    elsewhere = host.root / "elsewhere" / "file.safetensors"
    for path in (elsewhere, allowed / ".." / "elsewhere" / "file.safetensors", Path("/etc/passwd"), Path("/")):
        assert refused(client, host, merge(job, outside(setting)(path))) == [(403, "AccessError")] * 2


@pytest.mark.parametrize("setting", PATHS)
def test_statement_32_a_link_does_not_lead_outside_the_roots(
    client: TestClient, host: FolderHost, job: dict[str, Any], allowed: Path, setting: str
) -> None:
    elsewhere = host.root / "elsewhere"
    elsewhere.mkdir(parents=True)
    (allowed / "link").symlink_to(elsewhere)
    for path in (allowed / "link", allowed / "link" / "file.safetensors"):
        assert refused(client, host, merge(job, outside(setting)(path))) == [(403, "AccessError")] * 2


@pytest.mark.parametrize("setting", ["base_model", "vae", "method.start_from"])
@pytest.mark.parametrize("ending", ["ckpt", "pt", "bin", "CKPT"])
def test_statement_32_pickles_by_path_are_refused(
    client: TestClient, host: FolderHost, job: dict[str, Any], allowed: Path, setting: str, ending: str
) -> None:
    pickle = allowed / f"model.{ending}"
    pickle.write_bytes(b"\x80\x04.")
    assert refused(client, host, merge(job, outside(setting)(pickle))) == [(403, "AccessError")] * 2


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../x",
        "..\\x",
        "/x",
        "a/b",
        "a\\b",
        "C:x",
        "con",
        "NUL",
        "nul.txt",
        "COM1",
        "x.",
        "x ",
        "a\0b",
        "a\nb",
    ],
)
def test_statement_32_names_that_lead_elsewhere_are_refused(
    client: TestClient, host: FolderHost, job: dict[str, Any], allowed: Path, name: str
) -> None:
    assert refused(client, host, {**job, "name": name}) == [(400, "ConfigError")] * 2


@pytest.mark.parametrize("setting", PATHS)
def test_statement_32_a_path_that_is_none_is_refused(
    client: TestClient, host: FolderHost, job: dict[str, Any], allowed: Path, setting: str
) -> None:
    table = merge(job, outside(setting)(Path("a\0b")))
    assert [status in (400, 403) for status, _ in refused(client, host, table)] == [True, True]


def test_the_settings_of_a_file_inside_the_roots_are_told(client: TestClient, allowed: Path) -> None:
    (allowed / "preset.json").write_text('{"training_method": "LORA", "lora_rank": 6, "epochs": 2}', encoding="utf-8")
    body = {"file": str(allowed / "preset.json"), "num_pictures": 10}
    told = client.post(f"{API}/like", json=body).json()
    assert (told["source"], told["job"]["method"]["rank"]) == ("a OneTrainer config", 6)
    assert told["job"]["training"]["num_samples"] == 20
    assert {"name": "epochs", "value": 2, "text": "epochs as 20 samples"} in told["approximated"]


@pytest.mark.parametrize("name", ["elsewhere/x.json", "allowed/../x.json", "allowed/link/x.json", "allowed/x.pt"])
def test_statement_32_a_file_outside_the_roots_or_a_pickle_is_not_read(
    client: TestClient, host: FolderHost, allowed: Path, name: str
) -> None:
    (host.root / "elsewhere").mkdir()
    (allowed / "link").symlink_to(host.root / "elsewhere")
    (allowed / "x.pt").write_bytes(b"\x80\x04.")
    for place in ("elsewhere", "."):
        (host.root / place / "x.json").write_text('{"training_method": "LORA"}', encoding="utf-8")
    answer = client.post(f"{API}/like", json={"file": str(host.root / name)})
    assert (answer.status_code, answer.json()["error"]) == (403, "AccessError")


@pytest.mark.parametrize("body", [{}, {"file": ""}, {"file": 3}, {"file": "x", "num_pictures": 0}, {"path": "x"}])
def test_a_wrong_question_for_settings_is_a_mistake_of_the_client(client: TestClient, body: dict[str, Any]) -> None:
    assert client.post(f"{API}/like", json=body).status_code == 400


@pytest.mark.parametrize(
    "table",
    [
        [], "job", {}, {"nmae": "x"}, {"name": ["x"]}, {"method": ["lora"]}, {"method": {"kind": []}},
        {"preset": ["x"]}, {"preset": {}}, {"base_model": 5}, {"base_model": ["x"]}, {"output": []},
        {"output": {"folder": []}}, {"dataset": {"folder": None}}, {"training": {"seed": 10**400}},
        {"method": {"kind": "lora", "alpha": 10**400}},
    ],
)  # fmt: skip
def test_a_job_that_makes_no_sense_is_a_mistake_of_the_client(
    client: TestClient, host: FolderHost, job: dict[str, Any], table: Any
) -> None:
    sent = {**job, **table} if table and isinstance(table, dict) else table
    assert refused(client, host, sent) == [(400, "ConfigError")] * 2


def test_a_method_of_no_use_in_this_host_is_refused(client: TestClient, host: FolderHost, job: dict[str, Any]) -> None:
    host.unusable = {"lora": "this host has no LoRAs"}
    answer = client.post(f"{API}/jobs", json=job)
    assert (answer.status_code, answer.json()["problems"][0]["path"]) == (400, "method.kind")


IDS = (
    "..", "%2e%2e", "..%2f", "..%2fruns%2fzbadge", "%2e%2e%2fruns", "..%5cx", "../x", "%2fetc", "%00", "zbadge%00",
    "zbadge%2fpreviews", "C:%5cx", "CON", "nul", "zbadge%2f..", "unknown", "zbadge%20%20", "*", "cache",
)  # fmt: skip


@pytest.mark.parametrize("job_id", IDS)
def test_statement_32_ids_that_lead_elsewhere_are_unknown(client: TestClient, run: RunFolder, job_id: str) -> None:
    (run.path.parent / "cache").mkdir()
    for path in ("", "/config", "/events", "/previews/grid.png"):
        assert client.get(f"{API}/jobs/{job_id}{path}").status_code in (404, 405)
    bodies = {"ask": {"request": "save"}, "continue": {}, "keep": {"step": 1}, "forget": {}}
    for path, body in bodies.items():
        assert client.post(f"{API}/jobs/{job_id}/{path}", json=body).status_code in (404, 405)
    assert (run.path / "job.json").is_file()


@pytest.mark.parametrize(
    "name",
    [
        "..%2fjob.json", "..%2f..%2fsecret.png", "%2e%2e%5csecret.png", "job.json", "grid.png%00", "grid.png%0a",
        ".png", "%00.png", "grid.png.", "GRID.PNG", "CON.png", "nul.png", "grid.png:x", "/etc/passwd", "~.png", "*.png",
        "missing.png", "folder.png", "link.png", "hard%20name.png",
    ],
)  # fmt: skip
def test_statement_32_only_the_pictures_of_a_run_are_served(client: TestClient, run: RunFolder, name: str) -> None:
    (run.path.parent / "secret.png").write_bytes(b"secret")
    (run.previews / "hard name.png").write_bytes(b"secret")
    (run.previews / "link.png").symlink_to(run.path.parent / "secret.png")
    (run.previews / "folder.png").mkdir()
    assert client.get(f"{API}/jobs/zbadge/previews/{name}").status_code == 404


def test_statement_32_a_linked_folder_of_previews_is_not_served(client: TestClient, run: RunFolder) -> None:
    elsewhere = run.path.parent / "elsewhere"
    run.previews.rename(elsewhere)
    assert client.get(f"{API}/jobs/zbadge/previews/grid.png").status_code == 404
    run.previews.symlink_to(elsewhere)
    assert client.get(f"{API}/jobs/zbadge/previews/grid.png").status_code == 404
