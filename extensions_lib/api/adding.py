"""Adding a route with the description of what it takes and answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fastapi import APIRouter, Body
from starlette.responses import Response

from .answers import error_responses

JSON_BODY = Body(...)


def add_get(router: APIRouter, path: str, endpoint: Callable[..., Response], summary: str, *errors: int) -> None:
    """Add a route that reads; `errors` are its status codes besides 401."""
    router.add_api_route(
        path, endpoint, methods=["GET"], summary=summary, responses=error_responses(401, *errors), response_model=None
    )


def add_post(
    router: APIRouter,
    path: str,
    endpoint: Callable[..., Response],
    summary: str,
    body: Mapping[str, Any],
    status: int,
    *errors: int,
) -> None:
    """Add a route that takes JSON of the schema `body`; `errors` are its status codes besides 400, 401, 403 and 415."""
    router.add_api_route(
        path,
        endpoint,
        methods=["POST"],
        summary=summary,
        status_code=status,
        responses=error_responses(400, 401, 403, 415, *errors),
        response_model=None,
        openapi_extra={"requestBody": {"required": True, "content": {"application/json": {"schema": dict(body)}}}},
    )
