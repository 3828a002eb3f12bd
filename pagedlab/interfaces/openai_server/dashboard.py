"""/dashboard: one page that shows the engine live, and the numbers that it asks for; /trace: what the engine did."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import time
from importlib.resources import files

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse
from pydantic import BaseModel

from pagedlab.interfaces.engine import LLMEngine
from pagedlab.interfaces.openai_server.errors import ApiError
from pagedlab.interfaces.openai_server.metrics import percentiles
from pagedlab.interfaces.openai_server.observer import Observer
from pagedlab.interfaces.openai_server.serving import Serving
from pagedlab.trace import Tracer

router = APIRouter()

MAX_CELLS = 2048
"""Blocks that are looked at for one picture, so that its cost does not grow with the pool."""

FREE, CACHED, OWNED, SHARED = "fcos"


class DashboardData(BaseModel):
    """The state of the engine. Times in seconds; percentiles of the last 1024 requests."""

    time: float
    model: str
    running: int
    waiting: int
    pending: int
    tokens_per_second: float
    generated_tokens: int
    steps: int
    preemptions: int
    kv_cache_usage: float
    prefix_cache_hit_rate: float
    num_blocks: int
    blocks_per_cell: int
    blocks: str
    """One letter a cell: f free, c free but its content can be hit, o owned by one sequence, s shared."""
    ttft: dict[str, float | None]
    tpot: dict[str, float | None]


def _load_page() -> tuple[str, str]:
    """The page, and a policy that lets its own script run and no other, and lets it talk to this server alone."""
    page = files(__package__).joinpath("dashboard.html").read_text()
    script = page.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; connect-src 'self'; "
        "img-src data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    )
    return page, policy


PAGE, POLICY = _load_page()


@router.get("/dashboard", response_class=HTMLResponse)
async def dashboard() -> HTMLResponse:
    """The page: no build step, and nothing from elsewhere."""
    return HTMLResponse(PAGE, headers={"Content-Security-Policy": POLICY, "Cache-Control": "no-cache"})


@router.get("/dashboard/data")
async def dashboard_data(request: Request) -> DashboardData:
    """What the page shows, asked for once a second."""
    serving: Serving = request.app.state.serving
    observer: Observer = request.app.state.observer
    engine = serving.engine
    num_blocks, blocks_per_cell, blocks = await engine.call(block_map)
    stats = engine.stats
    return DashboardData(
        time=time.time(),
        model=serving.names[0],
        running=stats.num_running,
        waiting=stats.num_waiting,
        pending=len(engine.pending),
        tokens_per_second=observer.metrics.tokens_per_second(time.perf_counter()),
        generated_tokens=stats.num_generated_tokens,
        steps=stats.num_steps,
        preemptions=stats.num_preemptions,
        kv_cache_usage=stats.kv_cache_usage,
        prefix_cache_hit_rate=stats.prefix_cache_hit_rate,
        num_blocks=num_blocks,
        blocks_per_cell=blocks_per_cell,
        blocks=blocks,
        ttft=percentiles(observer.metrics.recent_ttft),
        tpot=percentiles(observer.metrics.recent_tpot),
    )


def block_map(engine: LLMEngine) -> tuple[int, int, str]:
    """Usable blocks, how many one letter stands for, and the letters (of a large pool, every kth block's)."""
    blocks = engine.block_manager.pool.blocks[1:]  # block 0 is the null block
    step = -(-len(blocks) // MAX_CELLS)
    return len(blocks), step, "".join(_letter(block.ref_count, block.block_hash) for block in blocks[::step])


def _letter(ref_count: int, block_hash: bytes | None) -> str:
    if ref_count == 0:
        return FREE if block_hash is None else CACHED
    return OWNED if ref_count == 1 else SHARED


@router.get("/trace")
async def chrome_trace(request: Request) -> Response:
    """The engine's latest events in Chrome's trace-event format: open it in Perfetto. Needs --enable-trace."""
    observer: Observer = request.app.state.observer
    if not observer.events:
        raise ApiError(404, "Nothing was recorded: start the server with --enable-trace, and send a request.")
    recorded = observer.recorded()
    return Response(await asyncio.to_thread(_as_json, recorded), media_type="application/json")


def _as_json(recorded: Tracer) -> str:
    """Written event by event: json lets no other thread run within a call, and there may be 200,000 of them."""
    document = recorded.chrome_trace()
    rows = ",".join(map(json.dumps, document.pop("traceEvents")))
    return f'{json.dumps(document)[:-1]}, "traceEvents": [{rows}]}}'
