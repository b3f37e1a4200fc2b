"""The parts of our page that change while a job runs; the page asks for them every second."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import APIRouter
from starlette.responses import Response

from .answers import Answer, NotFoundError, error_responses

Fragment = Callable[[str, str], tuple[str, str]]
FRAGMENTS = ("live", "history", "trial", "votes")


def add_page_routes(router: APIRouter, fragment: Fragment) -> None:
    """Add the route of the page's parts. `fragment(name, selected job id)` gives a version and HTML."""

    def page_fragment(name: str, selected: str = "", seen: str = "") -> Response:
        """The HTML of a part, such as `live` for the job `selected`, and its version; 204 when that is `seen`.

        For our own page; the HTML may change at any time.
        """
        if name not in FRAGMENTS:
            raise NotFoundError(f"The page has no part {name!r}, it has {', '.join(FRAGMENTS)}.")
        version, html = fragment(name, selected)
        if version == seen:
            return Response(status_code=204, headers={"Cache-Control": "no-store"})
        return Answer({"version": version, "html": html})

    router.add_api_route(
        "/page/{name}",
        page_fragment,
        methods=["GET"],
        summary="A part of our own page",
        responses={204: {"description": "Nothing has changed."}, **error_responses(401, 404)},
        response_model=None,
    )
