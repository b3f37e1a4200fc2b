"""The routes of votes on block weights: pairs of pictures, the better of which is picked."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from fastapi import APIRouter, Body
from starlette.responses import Response

from ..jobs.votes import SIDES, Votes
from . import schema
from .answers import Answer, NotFoundError, error_responses
from .requests import read_count, read_object, read_word

JSON_BODY = Body(...)
VOTES = (*SIDES, "alike")
START_SCHEMA = {
    "type": "object",
    "description": "The settings of the tool 'grid' without x, y and alpha; `start`: every block's first weight, 0.5.",
    "required": ["name", "models", "prompts"],
}
VOTE_SCHEMA = {
    "type": "object",
    "properties": {
        "vote": {"type": "string", "enum": list(VOTES)},
        "number": {"type": "integer", "minimum": 0, "description": "How many votes there were before."},
    },
    "required": ["vote", "number"],
    "additionalProperties": False,
}
_PICTURE = re.compile(r"(left|right)-(\d{1,4})\.png")


def add_vote_routes(router: APIRouter, votes: Votes) -> None:
    """Add everything below /votes."""
    routes = VoteRoutes(votes)
    _get(router, "/votes", routes.all, "All votes on block weights, that with the newest vote first")
    _get(router, "/votes/{name}", routes.one, "A vote: its weights so far and the pair to compare", 404)
    router.add_api_route(
        "/votes/{name}/pictures/{file}", routes.picture, methods=["GET"], summary="A picture of the pair",
        response_class=Response, response_model=None,
        responses={200: {"description": "The picture.", "content": {"image/png": {}}}, **error_responses(401, 404)},
    )  # fmt: skip
    _post(router, "/votes", routes.start, "Begin a vote on block weights", START_SCHEMA, 507)
    _post(router, "/votes/{name}/vote", routes.vote, "Pick the better picture", VOTE_SCHEMA, 404)
    _post(router, "/votes/{name}/draw", routes.draw, "Draw the pair again", schema.EMPTY_SCHEMA, 404)
    _post(router, "/votes/{name}/forget", routes.forget, "Delete a vote", schema.EMPTY_SCHEMA, 404)


class VoteRoutes:
    """One method a route; its docstring is the route's description."""

    def __init__(self, votes: Votes) -> None:
        self._votes = votes

    def all(self) -> Response:
        """Each as by itself."""
        return Answer({"votes": [self._votes.status(name) for name in self._votes.names()]})

    def one(self, name: str) -> Response:
        """`alpha` is the result so far, as a merge takes it; `pair` holds what is compared and its job's state."""
        return Answer(self._votes.status(name))

    def picture(self, name: str, file: str) -> Response:
        """`left-<prompt>.png` or `right-<prompt>.png` of the present pair, prompts counted from 0."""
        found = _PICTURE.fullmatch(file)
        if found is None:
            raise NotFoundError(f"A vote has no picture {file!r}.", "Its pictures are left-0.png and right-0.png.")
        content = self._votes.picture(name, found[1], int(found[2])).read_bytes()
        headers = {"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}
        return Response(content, media_type="image/png", headers=headers)

    def start(self, body: Any = JSON_BODY) -> Response:
        """Queues the drawing of the first pair."""
        return Answer({"name": self._votes.start(read_object(body))}, 202)

    def vote(self, name: str, body: Any = JSON_BODY) -> Response:
        """`left`, `right` or `alike`; queues the drawing of the next pair. `number` guards against a double click."""
        table = read_object(body, ("vote", "number"))
        self._votes.vote(name, read_word(table, "vote", VOTES), read_count(table, "number", 0))
        return Answer({"name": name}, 202)

    def draw(self, name: str, body: Any = JSON_BODY) -> Response:
        """For a pair whose job was stopped or failed."""
        read_object(body, ())
        self._votes.draw_again(name)
        return Answer({"name": name}, 202)

    def forget(self, name: str, body: Any = JSON_BODY) -> Response:
        """The votes and the pictures."""
        read_object(body, ())
        self._votes.forget(name)
        return Answer({"name": name}, 202)


def _get(router: APIRouter, path: str, endpoint: Callable[..., Response], summary: str, *errors: int) -> None:
    router.add_api_route(
        path, endpoint, methods=["GET"], summary=summary, responses=error_responses(401, *errors), response_model=None
    )


def _post(
    router: APIRouter,
    path: str,
    endpoint: Callable[..., Response],
    summary: str,
    body: Mapping[str, Any],
    *errors: int,
) -> None:
    content = {"application/json": {"schema": dict(body)}}
    router.add_api_route(
        path, endpoint, methods=["POST"], summary=summary, status_code=202, response_model=None,
        responses=error_responses(400, 401, 403, 409, 415, *errors),
        openapi_extra={"requestBody": {"required": True, "content": content}},
    )  # fmt: skip
