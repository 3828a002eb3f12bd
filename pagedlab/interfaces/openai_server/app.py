"""build_app: the routes, the API layer around them, and the engine that starts and stops with them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version as installed_version
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from pagedlab.interfaces.async_engine import AsyncLLMEngine
from pagedlab.interfaces.engine import LLMEngine
from pagedlab.interfaces.openai_server import chat, completions, dashboard, embeddings, status, tokenization
from pagedlab.interfaces.openai_server.api_layer import ApiLayer
from pagedlab.interfaces.openai_server.browsers import BrowserPages
from pagedlab.interfaces.openai_server.errors import ErrorResponse, install_error_handlers
from pagedlab.interfaces.openai_server.metrics import ServerMetrics
from pagedlab.interfaces.openai_server.observer import Observer
from pagedlab.interfaces.openai_server.serving import Serving
from pagedlab.interfaces.openai_server.settings import ServerSettings
from pagedlab.interfaces.openai_server.spans import RequestSpans, otlp_exporter

ROUTERS = (status.router, completions.router, chat.router, embeddings.router, tokenization.router, dashboard.router)
ERROR_STATUSES = (400, 401, 404, 405, 408, 413, 415, 429, 500, 503, 504)


def build_app(engine: LLMEngine, tokenizer: Any, settings: ServerSettings, default_name: str) -> FastAPI:
    """The server as an ASGI application. The engine belongs to it from now on.

    Args:
        engine: built, and used by nobody else.
        tokenizer: a copy of the engine's, for the event loop.
        settings: names and limits.
        default_name: what the model is called if settings name nothing.
    """
    async_engine = AsyncLLMEngine(
        engine,
        max_pending_requests=settings.max_pending_requests,
        max_pending_tokens=settings.max_pending_tokens,
    )
    serving = Serving(settings, async_engine, tokenizer, default_name, engine.config.scheduling_policy == "priority")
    metrics = ServerMetrics(serving.names[0])
    metrics.watch(async_engine)
    endpoint = settings.otlp_traces_endpoint
    observer = Observer(metrics, RequestSpans(otlp_exporter(endpoint), serving.names[0]) if endpoint else None)
    async_engine.on_step = observer.step
    async_engine.on_abort = observer.abort

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async_engine.start()
        yield
        await async_engine.stop()
        serving.close()
        observer.close()
        if settings.trace_file:
            observer.save_chrome_trace(settings.trace_file)

    version = installed_version("pagedlab")
    app = FastAPI(
        title="pagedlab", version=version, lifespan=lifespan, docs_url=None, redoc_url=None, redirect_slashes=False
    )
    app.state.serving = serving
    app.state.metrics = metrics
    app.state.observer = observer
    errors: dict[int | str, dict[str, Any]] = {one: {"model": ErrorResponse} for one in ERROR_STATUSES}
    for router in ROUTERS:
        app.include_router(router, responses=errors)
    install_error_handlers(app)
    app.add_middleware(ApiLayer, settings=settings)
    if settings.allowed_origins:
        app.add_middleware(BrowserPages, allowed_origins=settings.allowed_origins)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _openapi(app: FastAPI) -> dict[str, Any]:
    """FastAPI's document, less the 422 that this server never sends."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, routes=app.routes)
        for path in document["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        app.openapi_schema = document
    return app.openapi_schema
