"""The routes of the tools for files: what there is, a check, a job, and what a file holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from starlette.responses import Response

from ..ports import Host
from . import schema
from .adding import JSON_BODY, add_get, add_post
from .answers import Answer, shown_by
from .requests import read_object, read_text

if TYPE_CHECKING:
    from ..jobs.manager import JobManager


class ToolRoutes:
    """One method a route; its docstring is the route's description."""

    def __init__(self, manager: JobManager, host: Host) -> None:
        self._manager = manager
        self._host = host

    def tools(self) -> Response:
        """The JSON schema of every tool: its settings with type, default, range, choices and meaning.

        `x-file` marks settings that name a file of that kind, by its path or as `host` lists it.
        """
        return Answer({"tools": schema.tool_schemas()})

    def check(self, body: Any = JSON_BODY) -> Response:
        """What a tool would write, how large that is, and what would stop it. Only headers are read, if possible."""
        from ..jobs.check_tool import check_tool
        from ..jobs.submission import prepare_tool

        config = prepare_tool(read_object(body), self._host)
        return Answer(shown_by(self._host, check_tool(config, self._host).to_json()))

    def submit(self, body: Any = JSON_BODY) -> Response:
        """Queue a tool; what it is asked and how it ended is found below `jobs`. One job is worked on at a time.

        Without a folder, the result goes to the host's own for its kind.
        """
        from ..jobs.submission import prepare_tool

        return Answer({"job_id": self._manager.submit(prepare_tool(read_object(body), self._host))}, 202)

    def inspect(self, body: Any = JSON_BODY) -> Response:
        """What a model file is: kind, family, number formats, metadata, what it was trained on or merged from.

        `hashes` holds its sha256 if the host knows it already.
        """
        from ..formats.inspect import describe_file
        from ..jobs.access import path_of_listed

        named = read_text(read_object(body, ("file",)), "file")
        path = path_of_listed(named, self._host)
        found = describe_file(path, with_hashes=False)
        known = self._host.known_sha256(path)
        return Answer(shown_by(self._host, {**found, "hashes": {"sha256": known} if known else {}}))


def add_tool_routes(router: APIRouter, manager: JobManager, host: Host) -> None:
    """Add them."""
    routes = ToolRoutes(manager, host)
    table: schema.Schema = {"oneOf": list(schema.tool_schemas().values())}
    add_get(router, "/tools", routes.tools, "All tools for files")
    add_post(router, "/tools/check", routes.check, "Check a tool before it starts", table, 200, 503)
    add_post(router, "/tools", routes.submit, "Queue a tool", table, 202, 409, 507)
    add_post(router, "/inspect", routes.inspect, "What a file is", schema.INSPECT_SCHEMA, 200)
