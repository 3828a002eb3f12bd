"""Every refusal in one shape, on every route and status: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from pagedlab.errors import InvalidRequestError
from pagedlab.interfaces.async_engine import EngineDeadError, EngineOverloadedError
from pagedlab.interfaces.openai_server.telemetry import interface_log


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    error: ErrorDetail


TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
"""Status -> type, where it is none of the two general ones."""


class ApiError(Exception):
    """A refusal or failure that a client is told of.

    Args:
        status: HTTP status.
        message: one sentence that says what to change.
        param: the field at fault.
        code: for programs, such as "context_length_exceeded".
        retry_after: seconds after which another try makes sense.
        headers: more of the response's headers.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = dict(headers or {})
        if retry_after is not None:
            self.headers["Retry-After"] = str(max(1, math.ceil(retry_after)))

    def body(self) -> ErrorResponse:
        kind = TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return ErrorResponse(error=ErrorDetail(message=self.message, type=kind, param=self.param, code=self.code))

    def response(self) -> JSONResponse:
        return JSONResponse(self.body().model_dump(), self.status, self.headers)


def as_api_error(error: BaseException) -> ApiError:
    """What a client is told of any error. Of one that nobody foresaw it learns no details: they are in the log."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, InvalidRequestError):
        too_long = "maximum context length" in str(error)
        return ApiError(400, str(error), code="context_length_exceeded" if too_long else None)
    if isinstance(error, EngineOverloadedError):
        return ApiError(503, str(error), code="overloaded", retry_after=1)
    if isinstance(error, EngineDeadError):
        return ApiError(503, "The engine has died: the server cannot answer any more.", code="engine_dead")
    if isinstance(error, TimeoutError | asyncio.TimeoutError):
        return ApiError(504, "The request took longer than the server allows: lower max_tokens.", code="timeout")
    if isinstance(error, HTTPException):
        return ApiError(error.status_code, _http_message(error), headers=error.headers)
    interface_log.error("unforeseen error", exc_info=error)
    return ApiError(500, "The server failed to answer; its log says why.", code="internal_error")


def _http_message(error: HTTPException) -> str:
    if error.status_code == 404:
        return "There is no such route: GET /openapi.json lists those that there are."
    if error.status_code == 405:
        return "This route does not take that method: GET /openapi.json lists those that it takes."
    return str(error.detail)


UNSUPPORTED = {
    "best_of": "best_of other than 1 is not supported: use n, and choose among the answers.",
    "suffix": "suffix is not supported: the model continues a text, it fills no gap.",
    "tools": "Tools are not supported: leave tools out.",
    "tool_choice": "Tools are not supported: leave tool_choice out.",
    "response_format": 'response_format other than {"type": "text"} is not supported: ask for JSON in the prompt.',
}
"""Options that OpenAI's clients know and this server takes in their harmless form alone."""


def validation_error(errors: list[Mapping[str, Any]]) -> ApiError:
    """A 400 from pydantic's findings: the first of them, and the field that it is about."""
    first = errors[0]
    location = [str(part) for part in first["loc"] if part != "body"]
    if first["type"] == "json_invalid":
        return ApiError(400, f"The body is no valid JSON: {first.get('ctx', {}).get('error', 'it does not parse')}.")
    if location and location[0] in UNSUPPORTED:
        return ApiError(400, UNSUPPORTED[location[0]], param=location[0])
    if first["type"] == "no_such_option":
        name = first["ctx"]["name"]
        return ApiError(400, f"There is no option {name!r}: leave it out.", param=name)
    if first["type"] == "value_error" and not location:  # of the body as a whole: options that contradict each other
        return ApiError(400, str(first["msg"]).removeprefix("Value error, "))
    if not location:
        return ApiError(400, "The body must be a JSON object.")
    # Of a union, pydantic reports what is wrong under each of its forms.
    here = [one for one in errors if one["loc"][:2] == first["loc"][:2]]
    messages = dict.fromkeys(str(one["msg"]).removeprefix("Value error, ") for one in here)
    path = ".".join(part for part in location if part.isdigit() or part.isidentifier())
    return ApiError(400, f"{path}: {' / '.join(messages)}"[:400], param=location[0][:100])


def install_error_handlers(app: FastAPI) -> None:
    """Let the app answer every error in the stated shape."""

    async def refuse(request: Request, error: Exception) -> JSONResponse:
        return as_api_error(error).response()

    async def refuse_body(request: Request, error: RequestValidationError) -> JSONResponse:
        return validation_error(list(error.errors())).response()

    for kind in (ApiError, InvalidRequestError, EngineOverloadedError, EngineDeadError, TimeoutError, HTTPException):
        app.add_exception_handler(kind, refuse)
    app.add_exception_handler(RequestValidationError, refuse_body)  # type: ignore[arg-type]
    app.add_exception_handler(Exception, refuse)
