"""Who may use our routes: HTTP Basic, the host's own login, or our page; and only JSON from the same host."""

from __future__ import annotations

import base64
import binascii
import secrets
from urllib.parse import urlsplit

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import Request

from ..errors import AccessError, ExtensionError
from ..ports import Credentials

PAGE_COOKIE = "train_studio_page"
PAGE_HEADER = "X-Train-Studio-Page"
LOGIN_ROUTE = "/login_check"


class NotAuthenticatedError(ExtensionError):
    """Nobody we know. `ask_password`: a browser may open its dialog for HTTP Basic."""

    def __init__(self, message: str, hint: str, ask_password: bool) -> None:
        super().__init__(message, hint)
        self.ask_password = ask_password


class NotJsonError(ExtensionError):
    """A request that changes something and is not JSON."""


class Guard:
    """Checks each request to our routes. Nothing is checked when neither users nor the host's login are configured."""

    def __init__(self, app: FastAPI, credentials: Credentials) -> None:
        self._app = app
        self._credentials = credentials

    async def check(self, request: Request) -> None:
        """Raises NotAuthenticatedError, and for requests that change something AccessError or NotJsonError."""
        if (self._credentials.users or self._has_login()) and not await self._knows(request):
            raise self._refusal(request)
        if request.method not in ("GET", "HEAD"):
            _check_origin(request)
            _check_json(request)

    async def _knows(self, request: Request) -> bool:
        return self._is_our_page(request) or self._is_user(request) or await self._is_logged_in(request)

    def _is_our_page(self, request: Request) -> bool:
        secret = self._credentials.page_secret
        return bool(secret) and _equal(request.cookies.get(PAGE_COOKIE, ""), secret)

    def _is_user(self, request: Request) -> bool:
        given = basic_credentials(request.headers.get("authorization", ""))
        if given is None:
            return False
        matches = [_equal(given[0], user) & _equal(given[1], word) for user, word in self._credentials.users]
        return any(matches)

    def _has_login(self) -> bool:
        """Whether the host's page asks for a login: gradio's `auth`, or in gradio 4 its `auth_dependency`."""
        return any(getattr(self._app, name, None) is not None for name in ("auth", "auth_dependency"))

    async def _is_logged_in(self, request: Request) -> bool:
        """Ask gradio's own route, which knows its cookies; without a page (--nowebui) there is none."""
        if not self._has_login():
            return False
        for route in self._app.routes:
            if isinstance(route, APIRoute) and route.path == LOGIN_ROUTE:
                try:
                    await route.get_route_handler()(request)
                except HTTPException:
                    return False
                return True
        return False

    def _refusal(self, request: Request) -> NotAuthenticatedError:
        if PAGE_HEADER in request.headers:
            return NotAuthenticatedError("This page is not known any more.", "Reload the page.", ask_password=False)
        return NotAuthenticatedError(
            "A login is needed.",
            "Send a user and password (HTTP Basic), or the cookie of a login to the WebUI.",
            ask_password=bool(self._credentials.users),
        )


def basic_credentials(header: str) -> tuple[str, str] | None:
    """User and password of an Authorization header; None when it is not well-formed HTTP Basic."""
    scheme, _, encoded = header.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        user, colon, password = base64.b64decode(encoded.strip(), validate=True).decode("utf-8").partition(":")
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return None
    return (user, password) if colon else None


def _equal(given: str, expected: str) -> bool:
    """Compared in constant time."""
    return secrets.compare_digest(given.encode("utf-8"), expected.encode("utf-8"))


def _check_origin(request: Request) -> None:
    """A browser names the site a request comes from; a proxy may have put the outer name into X-Forwarded-Host."""
    origin = request.headers.get("origin")
    if origin is None:
        return
    hosts = {_host_name(f"//{request.headers.get(name, '')}") for name in ("host", "x-forwarded-host")}
    name = _host_name(origin)
    if name is None or name not in hosts:
        raise AccessError(
            f"This request comes from another site, {origin!r}; accepted is {request.headers.get('host', '')!r}.",
            "Behind a proxy, let it pass the Host header on.",
        )


def _host_name(url: str) -> str | None:
    """Lower case, without the port: proxies leave it out."""
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _check_json(request: Request) -> None:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise NotJsonError(
            f"The content type is {kind!r}, accepted is application/json.", "Send the header Content-Type too."
        )
