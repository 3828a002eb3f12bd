"""BrowserPages: which pages of other origins a browser lets use the server (CORS); off unless asked for."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from pagedlab.interfaces.openai_server.errors import ApiError


class BrowserPages(CORSMiddleware):
    """Starlette's middleware, around everything else: refusals too must be readable, and a preflight carries no key.

    Cookies are never used, so none are let in: a page sends the key itself, in the header that any client sends.

    Args:
        app: what is served.
        allowed_origins: of the pages; "*" is every page.
    """

    def __init__(self, app: ASGIApp, allowed_origins: Sequence[str]) -> None:
        super().__init__(
            app,
            allow_origins=allowed_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["X-Request-Id", "Retry-After"],
        )

    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        if response.status_code < 400:
            return response
        origin = request_headers["origin"][:100]
        error = ApiError(400, f"Pages of {origin!r} may not use this server in that way: see --allowed-origins.")
        # Without Access-Control-Allow-Origin, where the origin is at fault: the browser then keeps the page out.
        kept = {name: value for name, value in response.headers.items() if name.startswith(("access-", "vary"))}
        error.headers |= kept
        return error.response()
