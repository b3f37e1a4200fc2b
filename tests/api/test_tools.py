"""The tools for files over HTTP: their schemas, a check, a job, and what a file is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from extensions_lib.api.routes import add_routes
from extensions_lib.config.field import settings_of
from extensions_lib.config.tools import TOOLS, load_any_tool
from extensions_lib.jobs.manager import JobManager
from extensions_lib.ports import AccessPolicy, BaseModel, Credentials

from ..merge.conftest import small_lora, small_model, stored
from .conftest import API, FolderHost, live_fragment

WAIT_SECONDS = 60


@pytest.fixture
def models(host: FolderHost) -> list[Path]:
    folder = host.folders().checkpoints
    folder.mkdir(parents=True)
    return [stored(folder / f"{name}.safetensors", small_model(seed)) for seed, name in enumerate("ab")]


@pytest.fixture
def merge_table(models: list[Path]) -> dict[str, Any]:
    return {"tool": "merge", "name": "mixed", "models": [str(model) for model in models]}


@pytest.fixture
def manager(host: FolderHost) -> Iterator[JobManager]:
    manager = JobManager(host)
    yield manager
    assert manager.wait_idle(WAIT_SECONDS)


@pytest.fixture
def client(manager: JobManager, host: FolderHost) -> Iterator[TestClient]:
    app = FastAPI()
    add_routes(app, manager, host, Credentials(), live_fragment)
    client = TestClient(app)
    yield client
    client.close()


def test_every_tool_is_described_with_its_settings(client: TestClient) -> None:
    told = client.get(f"{API}/tools").json()["tools"]
    assert list(told) == list(TOOLS)
    for kind, tool in TOOLS.items():
        schema = told[kind]
        assert (schema["title"], schema["description"], schema["x-makes"]) == (tool.title, tool.help, tool.makes)
        assert schema["properties"].pop("tool")["enum"] == [kind]
        assert list(schema["properties"]) == [setting.name for setting in settings_of(tool.settings)]
        assert {"tool", "name"} <= set(schema["required"])
        assert "folder" not in schema["required"]
        assert schema["properties"]["folder"]["description"].endswith("the WebUI's own folder for this kind of file.")
        files = {name: shown["x-file"] for name, shown in schema["properties"].items() if "x-file" in shown}
        declared = {each.name: each.option.file for each in settings_of(tool.settings) if each.option.file}
        assert files == declared
    assert "models" in told["merge"]["required"] and "models" not in told["rebuild"]["required"]
    assert told["merge"]["properties"]["models"]["items"]["properties"]["path"]["x-file"] == "checkpoint"


def test_the_body_of_a_tool_is_one_of_the_schemas(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    schemas = list(client.get(f"{API}/tools").json()["tools"].values())
    for path in ("tools", "tools/check"):
        body = paths[f"{API}/{path}"]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert body["oneOf"] == schemas


def test_a_merge_from_the_check_to_its_result(
    client: TestClient, manager: JobManager, host: FolderHost, merge_table: dict[str, Any]
) -> None:
    path = host.folders().checkpoints / "mixed.safetensors"
    report = client.post(f"{API}/tools/check", json=merge_table).json()
    assert (report["can_start"], report["problems"], report["path"]) == (True, [], str(path))
    assert not path.exists() and not host.folders().runs.exists()
    answer = client.post(f"{API}/tools", json=merge_table)
    assert (answer.status_code, answer.json()) == (202, {"job_id": "mixed"})
    assert manager.wait_idle(WAIT_SECONDS)
    job = client.get(f"{API}/jobs/mixed").json()
    assert (job["state"], job["method"], job["error"]) == ("completed", "merge", "")
    assert job["results"][0]["path"] == str(path)
    assert 0 <= path.stat().st_size - report["num_bytes"] < 20_000
    assert [each["job_id"] for each in client.get(f"{API}/jobs").json()["jobs"]] == ["mixed"]
    assert client.get(f"{API}/jobs/mixed/events").json()["events"][-1]["event"] == "JobFinished"
    table = client.get(f"{API}/jobs/mixed/config").json()
    assert load_any_tool(table) == manager.folder("mixed").config()
    assert client.post(f"{API}/tools", json={**table, "name": "again"}).status_code == 202
    assert client.post(f"{API}/jobs/mixed/ask", json={"request": "save"}).status_code == 400
    assert client.post(f"{API}/jobs/mixed/continue", json={}).status_code == 409
    assert manager.wait_idle(WAIT_SECONDS)
    assert client.post(f"{API}/jobs/mixed/keep", json={"step": 0}).json()["deleted"] == []
    assert client.post(f"{API}/jobs/mixed/forget", json={}).status_code == 200
    assert path.exists()


def test_the_check_tells_what_would_stop_it_and_what_to_know(
    client: TestClient, host: FolderHost, merge_table: dict[str, Any], models: list[Path]
) -> None:
    missing = {**merge_table, "models": [str(models[0]), "none.safetensors"]}
    report = client.post(f"{API}/tools/check", json=missing).json()
    assert report["can_start"] is False
    (problem,) = report["problems"]
    assert (problem["setting"], problem["hint"]) == ("models[1].path", "Choose a file that exists.")
    taken = client.post(f"{API}/tools/check", json={**merge_table, "name": "a"}).json()
    assert "already exists and was not touched" in taken["problems"][0]["message"]
    other = host.folders().checkpoints / "people" / "mixed.safetensors"
    other.parent.mkdir()
    stored(other, small_model(3))
    report = client.post(f"{API}/tools/check", json=merge_table).json()
    assert report["can_start"] and "'mixed' is also the name of another checkpoint" in report["warnings"][-1]


def test_a_tool_without_a_plan_is_checked_as_far_as_its_settings_go(client: TestClient, host: FolderHost) -> None:
    lora = host.root / "cat.safetensors"
    lora.parent.mkdir(parents=True, exist_ok=True)
    small_lora(lora.parent, lora.name, ("lora_unet_mid_block_attentions_0_proj_in", 6, 5))
    table = {"tool": "resize", "name": "small", "network": str(lora)}
    report = client.post(f"{API}/tools/check", json=table).json()
    assert (report["can_start"], report["num_bytes"]) == (True, None)
    assert report["path"] == str(host.root / "Lora" / "small.safetensors")


@pytest.mark.parametrize(
    ("table", "status", "path"),
    [
        ({}, 400, "tool"),
        ({"tool": "melt"}, 400, "tool"),
        ({"tool": "merge", "name": "x", "models": ["a"]}, 400, "models"),
        ({"tool": "merge", "name": "x", "models": ["a", "b"], "alhpa": "1"}, 400, "alhpa"),
    ],
)
def test_wrong_settings_are_told_with_their_place(
    client: TestClient, table: dict[str, Any], status: int, path: str
) -> None:
    for route in ("tools", "tools/check"):
        answer = client.post(f"{API}/{route}", json=table)
        assert (answer.status_code, answer.json()["problems"][0]["path"]) == (status, path)


def test_statement_32_no_route_reads_outside_of_what_may_be_named(
    client: TestClient, host: FolderHost, merge_table: dict[str, Any], tmp_path: Path
) -> None:
    host.policy = AccessPolicy(roots=(host.root,), allow_pickles=False)
    outside = stored(tmp_path / "secret.safetensors", small_model(5))
    table = {**merge_table, "models": [merge_table["models"][0], str(outside)]}
    for route, body in (("tools", table), ("tools/check", table), ("inspect", {"file": str(outside)})):
        answer = client.post(f"{API}/{route}", json=body)
        assert (answer.status_code, answer.json()["error"]) == (403, "AccessError"), route
    pickle = stored(host.root / "old.ckpt", small_model(6))
    assert client.post(f"{API}/inspect", json={"file": str(pickle)}).status_code == 403
    assert client.post(f"{API}/tools/check", json=merge_table).status_code == 200
    assert not host.folders().runs.exists()


def test_a_file_is_described_by_its_path_or_its_title(
    client: TestClient, host: FolderHost, models: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = client.post(f"{API}/inspect", json={"file": str(models[0])}).json()
    assert (told["kind"], told["file"], told["hashes"]) == ("checkpoint", str(models[0]), {})
    monkeypatch.setattr(host, "base_models", lambda: (BaseModel("b [1234]", models[1]),))
    monkeypatch.setattr(host, "known_sha256", lambda path: "ab" * 32)
    told = client.post(f"{API}/inspect", json={"file": "b [1234]"}).json()
    assert (told["file"], told["hashes"]) == (str(models[1]), {"sha256": "ab" * 32})
    host.policy = AccessPolicy(hide_paths=True)
    assert client.post(f"{API}/inspect", json={"file": "b [1234]"}).json()["file"] == "b.safetensors"


@pytest.mark.parametrize("name", ["none.safetensors", "", "folder", "text.txt"])
def test_what_is_no_model_file_is_refused(client: TestClient, host: FolderHost, name: str) -> None:
    (host.root / "folder").mkdir(parents=True)
    (host.root / "text.txt").write_text("hello")
    answer = client.post(f"{API}/inspect", json={"file": name and str(host.root / name)})
    assert (answer.status_code, "message" in answer.json()) == (400, True)
