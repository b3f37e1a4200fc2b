"""What our routes answer: JSON, and errors by status code, in one form."""

from __future__ import annotations

import json
import ntpath
import posixpath
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..errors import (
    AccessError,
    ConfigError,
    DiskFullError,
    ExtensionError,
    HostError,
    JobStateError,
    OutputError,
    Problem,
    TrainingError,
    UnknownJobError,
)
from ..ports import Host
from .auth import Guard, NotAuthenticatedError, NotJsonError
from .schema import ERROR_SCHEMA


class NotFoundError(ExtensionError):
    """A picture or a part of the page that does not exist."""


STATUS_CODES: tuple[tuple[type[ExtensionError], int], ...] = (
    (NotAuthenticatedError, 401),
    (AccessError, 403),
    (UnknownJobError, 404),
    (NotFoundError, 404),
    (JobStateError, 409),
    (NotJsonError, 415),
    (DiskFullError, 507),
    (TrainingError, 409),
    (OutputError, 409),
    (HostError, 503),
    (ExtensionError, 400),
)


class Answer(JSONResponse):
    """JSON that no cache keeps; ASCII only, so that half a surrogate pair in a message cannot break it."""

    def __init__(self, content: Any, status_code: int = 200, headers: dict[str, str] | None = None) -> None:
        super().__init__(content, status_code, {"Cache-Control": "no-store", **(headers or {})})

    def render(self, content: Any) -> bytes:
        """The body."""
        return json.dumps(content, separators=(",", ":")).encode("ascii")


def error_answer(error: ExtensionError) -> Answer:
    """`{"error", "message", "hint", "problems"}` with the status code of the error's class."""
    problems = error.problems if isinstance(error, ConfigError) else ()
    content = {
        "error": type(error).__name__,
        "message": error.message,
        "hint": error.hint,
        "problems": [{"path": problem.path, "text": problem.text} for problem in problems],
    }
    status = next(code for kind, code in STATUS_CODES if isinstance(error, kind))
    asks = isinstance(error, NotAuthenticatedError) and error.ask_password
    return Answer(content, status, {"WWW-Authenticate": 'Basic realm="Train Studio", charset="UTF-8"'} if asks else {})


STATUS_TEXTS = {
    400: "The request or a setting is wrong.",
    401: "A login is needed.",
    403: "A path that may not be named, or a request from another site.",
    404: "There is no such job or file.",
    409: "It does not fit the job's state, or a name is taken.",
    415: "The body is not JSON.",
    503: "The host did not do what was asked.",
    507: "The disk is full.",
}


def error_responses(*codes: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route for its error codes, in the one form of our errors.

    'default' keeps fastapi from announcing its own 422, which we never answer.
    """
    content = {"application/json": {"schema": ERROR_SCHEMA}}
    texts = {**{code: STATUS_TEXTS[code] for code in codes}, "default": "Any other error."}
    return {code: {"description": text, "content": content} for code, text in texts.items()}


def guarded_route(guard: Guard) -> type[APIRoute]:
    """A route class that asks `guard` before anything else, the body included, and answers our errors."""

    class GuardedRoute(APIRoute):
        def get_route_handler(self) -> Any:
            handle = super().get_route_handler()

            async def guarded(request: Request) -> Response:
                try:
                    await guard.check(request)
                    return await handle(request)
                except ExtensionError as error:
                    return error_answer(error)
                except RequestValidationError as error:
                    return error_answer(ConfigError([_problem(found) for found in error.errors()]))
                except HTTPException as error:
                    return error_answer(ConfigError([Problem("body", f"cannot be read: {error.detail}")]))

            return guarded

    return GuardedRoute


def _problem(found: dict[str, Any]) -> Problem:
    """A mistake found by fastapi, in the words of pydantic 1 or 2: a query value, or a body that is not JSON."""
    place, name = found["loc"][0], found["loc"][-1]
    if place == "body":
        return Problem("body", f"must be a JSON object, is not one: {found['msg']}")
    return Problem(str(name), found["msg"])


def shown_by(host: Host, content: Any) -> Any:
    """`content` as it may be shown: without folders where the host hides them."""
    return without_folders(content) if host.access().hide_paths else content


def without_folders(value: Any) -> Any:
    """A JSON value whose absolute paths are cut down to their last part, for hosts that hide their folders."""
    if isinstance(value, str):
        return _last_part(value)
    if isinstance(value, dict):
        return {key: without_folders(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_folders(item) for item in value]
    return value


def _last_part(text: str) -> str:
    if posixpath.isabs(text) or (ntpath.isabs(text) and ntpath.splitdrive(text)[0]):
        return ntpath.basename(text.rstrip("/\\"))
    return text
