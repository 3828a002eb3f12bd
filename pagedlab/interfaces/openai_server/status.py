"""Routes that say how the server is: models, health, version, metrics."""

from __future__ import annotations

from importlib.metadata import version as installed_version

from fastapi import APIRouter, Request, Response

from pagedlab.interfaces.openai_server.errors import ApiError
from pagedlab.interfaces.openai_server.responses import HealthResponse, ModelCard, ModelList, VersionResponse
from pagedlab.interfaces.openai_server.serving import Serving

router = APIRouter()


@router.get("/v1/models")
async def list_models(request: Request) -> ModelList:
    """The one model, under each of its names."""
    serving: Serving = request.app.state.serving
    return ModelList(data=[_card(serving, name) for name in serving.names])


@router.get("/v1/models/{name:path}")
async def get_model(name: str, request: Request) -> ModelCard:
    """One name's card."""
    serving: Serving = request.app.state.serving
    return _card(serving, serving.model(name))


def _card(serving: Serving, name: str) -> ModelCard:
    return ModelCard(
        id=name, created=serving.created, root=serving.names[0], max_model_len=serving.engine.limits.max_model_len
    )


@router.get("/health")
async def health(request: Request) -> HealthResponse:
    """200 while requests can be served; 503 once the engine is dead, or while the server shuts down."""
    serving: Serving = request.app.state.serving
    if not serving.engine.is_alive:
        raise ApiError(503, "The engine is dead: restart the server.", code="engine_dead")
    if serving.is_draining:
        raise ApiError(503, "The server is shutting down.", code="draining", retry_after=10)
    return HealthResponse(status="ok")


@router.get("/version")
async def version() -> VersionResponse:
    return VersionResponse(version=installed_version("pagedlab"))


@router.get("/metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """Prometheus' text format."""
    text, content_type = request.app.state.metrics.exposition()
    return Response(text, headers={"Content-Type": content_type})
