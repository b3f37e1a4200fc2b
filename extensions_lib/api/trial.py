"""The routes of a trial: what a merge or a bake would draw, in the host's loaded model, before it is saved."""

from __future__ import annotations

import dataclasses
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from ..jobs.trials import start_trial
from ..ports import Host
from . import schema
from .adding import JSON_BODY, add_get, add_post
from .answers import Answer
from .requests import read_object

TOOL_SCHEMA = {
    "type": "object",
    "description": "The settings of a tool, 'merge' or 'bake'; name and folder are not needed.",
    "properties": {"tool": {"type": "string", "enum": ["merge", "bake"]}},
    "required": ["tool"],
}


def add_trial_routes(router: APIRouter, host: Host) -> None:
    """Add GET and POST /trial and POST /trial/undo."""
    routes = TrialRoutes(host)
    add_get(router, "/trial", routes.current, "What is tried in the host's model")
    add_post(
        router, "/trial", routes.try_on, "Try a merge or a bake in the host's model", TOOL_SCHEMA, 202, 409, 503
    )  # fmt: skip
    add_post(router, "/trial/undo", routes.undo, "Give the host its own model back", schema.EMPTY_SCHEMA, 202, 409, 503)


class TrialRoutes:
    """One method a route; its docstring is the route's description."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def current(self) -> Response:
        """`state` is 'none', 'applying' (`done` of `total` tensors), 'on' or 'undoing'; `refusal`: why not here."""
        return self._answer(200)

    def try_on(self, body: Any = JSON_BODY) -> Response:
        """Done when `state` is 'on'; the next pictures are drawn with it. One that is on is undone first."""
        start_trial(read_object(body), self._host)
        return self._answer(202)

    def undo(self, body: Any = JSON_BODY) -> Response:
        """Done when `state` is 'none'. The model is then bit by bit what it was."""
        read_object(body, ())
        self._host.trials.undo()
        return self._answer(202)

    def _answer(self, status: int) -> Answer:
        trials = self._host.trials
        return Answer({**dataclasses.asdict(trials.current()), "refusal": trials.refusal}, status)
