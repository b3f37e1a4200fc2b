"""The schema says of every setting what its declaration says, and the routes describe themselves."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.routing import APIRoute
from starlette.testclient import TestClient

from extensions_lib.api.answers import STATUS_CODES
from extensions_lib.api.schema import FILLED_BY_HOST, job_schema
from extensions_lib.config.field import Setting, settings_of
from extensions_lib.config.job import TrainJobConfig
from extensions_lib.config.methods import METHOD_CONFIGS
from extensions_lib.config.presets import PRESETS

from .conftest import API, gradio_app

Connect = Callable[..., TestClient]


def declared(cls: type, schema: dict[str, Any]) -> Iterator[tuple[type, Setting, dict[str, Any]]]:
    """Each setting of a config class with what a schema says of it, down to the methods and the list entries."""
    assert list(schema["properties"]) == [setting.name for setting in settings_of(cls)]
    for setting in settings_of(cls):
        found = schema["properties"][setting.name]
        yield cls, setting, found
        if dataclasses.is_dataclass(setting.type):
            yield from declared(setting.type, found)
        elif setting.name == "method":
            for kind, inner in zip(METHOD_CONFIGS.values(), found["oneOf"], strict=True):
                yield from declared(kind, inner)
        elif setting.option.item is not None:
            yield from declared(setting.option.item, found["items"])


@pytest.fixture(params=["alone", "gradio"])
def openapi(request: pytest.FixtureRequest, connect: Connect) -> dict[str, Any]:
    """As served; in a WebUI beside gradio's own routes."""
    return connect(gradio_app() if request.param == "gradio" else None).get("/openapi.json").json()


def test_every_setting_has_its_meaning_range_and_unit(openapi: dict[str, Any]) -> None:
    post = openapi["paths"][f"{API}/jobs"]["post"]
    schema = post["requestBody"]["content"]["application/json"]["schema"]
    settings = list(declared(TrainJobConfig, schema))
    assert len(settings) > 80
    for _, setting, found in settings:
        option = setting.option
        assert found["description"].startswith(option.help)
        assert found.get("x-unit", "") == option.unit
        assert found.get("x-advanced", False) is option.advanced
        if setting.type in (int, float):
            assert (found.get("minimum"), found.get("maximum")) == (option.min, option.max), setting.name
        if option.choices:
            assert found["enum"] == list(option.choices)


def test_defaults_and_what_must_be_given() -> None:
    for cls, setting, found in declared(TrainJobConfig, job_schema()):
        is_section = dataclasses.is_dataclass(setting.type) or setting.name == "method"
        if (cls, setting.name) in FILLED_BY_HOST or is_section or setting.required:
            assert "default" not in found, setting.name
        else:
            expected = list(setting.default) if isinstance(setting.default, tuple) else setting.default
            assert found["default"] == expected, setting.name
    schema = job_schema()
    assert schema["required"] == ["name", "dataset", "method"]
    assert schema["properties"]["dataset"]["required"] == ["folder"]
    assert schema["properties"]["preset"]["enum"] == ["", *PRESETS]


def test_types_and_methods() -> None:
    properties = job_schema()["properties"]
    rate = properties["optimizer"]["properties"]["learning_rate"]
    assert [shape["type"] for shape in rate["anyOf"]] == ["number", "string"]
    assert properties["dataset"]["properties"]["resolution_px"]["type"] == "integer"
    assert properties["preview"]["properties"]["prompts"]["items"]["required"] == ["prompt"]
    kinds = [method["properties"]["kind"]["enum"] for method in properties["method"]["oneOf"]]
    assert kinds == [[kind] for kind in METHOD_CONFIGS]
    assert all(method["required"] == ["kind"] for method in properties["method"]["oneOf"])


def test_every_route_describes_itself(openapi: dict[str, Any], connect: Connect) -> None:
    ours = {route.path for route in connect().app.routes if isinstance(route, APIRoute) and route.path.startswith(API)}
    assert ours == {path for path in openapi["paths"] if path.startswith(API)}
    for path in ours:
        for method, operation in openapi["paths"][path].items():
            assert operation["summary"] and operation["description"] and operation["tags"] == ["Train Studio"]
            assert "401" in operation["responses"]
            assert ("requestBody" in operation) is (method == "post")
            assert "422" not in operation["responses"]


def test_the_settings_route_gives_the_same_schema(connect: Connect) -> None:
    assert connect().get(f"{API}/settings").json() == job_schema()


def test_errors_are_described(openapi: dict[str, Any]) -> None:
    responses = openapi["paths"][f"{API}/jobs"]["post"]["responses"]
    assert {"202", "400", "401", "403", "409", "415", "507"} <= set(responses)
    schema = responses["409"]["content"]["application/json"]["schema"]
    assert schema["required"] == ["error", "message", "hint", "problems"]


def test_the_document_lists_every_route_and_code(connect: Connect) -> None:
    document = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| (GET|POST) \| `(\S+)` \|", document, re.MULTILINE))
    routes = [route for route in connect().app.routes if isinstance(route, APIRoute) and route.path.startswith(API)]
    assert listed == {(method, route.path[len(API) :]) for route in routes for method in route.methods}
    codes = set(re.findall(r"^\| (\d+) \|", document, re.MULTILINE))
    assert codes == {"500", *(str(code) for _, code in STATUS_CODES)}
