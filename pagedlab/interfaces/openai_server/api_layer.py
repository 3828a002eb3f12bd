"""ApiLayer: what every request passes before a route sees it: id, key, rate limit, content type, body size."""

from __future__ import annotations

import asyncio
import re
import secrets
import time

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pagedlab.interfaces.openai_server.body_structure import check_structure
from pagedlab.interfaces.openai_server.errors import ApiError, as_api_error
from pagedlab.interfaces.openai_server.keys import KeyRing
from pagedlab.interfaces.openai_server.rate_limits import RateLimits
from pagedlab.interfaces.openai_server.settings import ServerSettings
from pagedlab.interfaces.openai_server.telemetry import interface_log

OPEN_ROUTES = frozenset({"/health", "/metrics"})
"""What answers without a key: probes and scrapers have none."""

BROWSER_ROUTES = "/dashboard"
"""Below it a browser may send the key as a password. They only read, so no other site can do harm with it."""

REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")


class ApiLayer:
    """ASGI middleware around all routes.

    Args:
        app: the routes.
        settings: the limits.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self.app = app
        self.settings = settings
        self.keys = KeyRing(settings.api_key)
        self.rate_limits = RateLimits(settings.rate_limit)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope = _as_routed(scope)
        headers = Headers(scope=scope)
        request_id = _request_id(headers.get("x-request-id"))
        scope.setdefault("state", {})["request_id"] = request_id
        status = 0
        begin = time.perf_counter()
        asked = scope["method"]
        if asked == "HEAD":  # the answer to GET, of which the protocol below sends the head alone
            scope = {**scope, "method": "GET"}

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        try:
            self._open(scope, headers)
            receive = await self._body(scope, headers, receive)
            scope["state"].update(arrived=begin, admitted=time.perf_counter())
            await self.app(scope, receive, send_with_id)
        except Exception as error:
            if status == 0:
                await self._refuse(error, scope, receive, send_with_id)
        finally:
            interface_log.info(
                "%s %s",
                asked,
                scope["path"][:100],
                extra={"request_id": request_id, "status": status, "seconds": round(time.perf_counter() - begin, 4)},
            )

    def _open(self, scope: Scope, headers: Headers) -> None:
        """Who is it, and may they go on?"""
        path: str = scope["path"]
        if path in OPEN_ROUTES:
            return
        for_browsers = path.startswith(BROWSER_ROUTES)
        tenant = self.keys.tenant(headers.get("authorization"), allow_basic=for_browsers)
        if tenant is None:
            challenge = 'Basic realm="pagedlab: any name, and the key as password"' if for_browsers else "Bearer"
            raise ApiError(
                401,
                "The key is missing or wrong: send the header Authorization: Bearer KEY.",
                code="invalid_api_key",
                headers={"WWW-Authenticate": challenge},
            )
        scope["state"]["tenant"] = tenant
        if scope["method"] == "POST":
            client = scope["client"][0] if scope.get("client") else "unknown"
            self.rate_limits.check(client if self.keys.is_open else tenant.name)

    async def _body(self, scope: Scope, headers: Headers, receive: Receive) -> Receive:
        """Read the body here, where its size and its time are bounded; routes then read it from memory."""
        if scope["method"] not in ("POST", "PUT", "PATCH"):
            return receive
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise ApiError(415, "The body must be JSON: send the header Content-Type: application/json.")
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > self.settings.max_body_bytes:
            raise self._too_large()
        try:
            async with asyncio.timeout(self.settings.body_timeout):
                body = await self._read(receive)
        except TimeoutError:
            raise ApiError(408, f"The body took longer than {self.settings.body_timeout:g} seconds.") from None
        check_structure(body)
        unread = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return unread.pop() if unread else await receive()

        return replay

    async def _read(self, receive: Receive) -> bytes:
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ApiError(400, "The client went away while it sent the body.")
            part = message.get("body", b"")
            size += len(part)
            if size > self.settings.max_body_bytes:
                raise self._too_large()
            parts.append(part)
            if not message.get("more_body", False):
                return b"".join(parts)

    def _too_large(self) -> ApiError:
        # The rest of the body is not read: the connection cannot be used again.
        return ApiError(
            413,
            f"The body is larger than {self.settings.max_body_bytes} bytes: send less.",
            code="body_too_large",
            headers={"Connection": "close"},
        )

    @staticmethod
    async def _refuse(error: Exception, scope: Scope, receive: Receive, send: Send) -> None:
        response: JSONResponse = as_api_error(error).response()
        await response(scope, receive, send)


def _as_routed(scope: Scope) -> Scope:
    """With or without a slash at its end, a path means the same."""
    path = scope["path"].rstrip("/") or "/"
    return scope if path == scope["path"] else {**scope, "path": path, "raw_path": path.encode()}


def _request_id(given: str | None) -> str:
    """The client's own id, where it is a plain one, and something that makes it unique."""
    unique = secrets.token_hex(8)
    return f"{given}-{unique}" if given and REQUEST_ID.fullmatch(given) else unique
