"""serve: from options to a listening server, and its orderly end: drain, abort, exit status."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import logging
import os
import resource
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from types import FrameType

import uvicorn
from fastapi import FastAPI

from pagedlab.config import EngineConfig
from pagedlab.errors import ConfigError
from pagedlab.interfaces.engine import LLMEngine
from pagedlab.interfaces.engine_parts import build_parts, load_tokenizer
from pagedlab.interfaces.openai_server.app import build_app
from pagedlab.interfaces.openai_server.errors import ApiError
from pagedlab.interfaces.openai_server.http_protocol import HttpProtocol
from pagedlab.interfaces.openai_server.settings import ServerSettings
from pagedlab.interfaces.openai_server.telemetry import configure_logging, interface_log
from pagedlab.model_authoring.models.provision import DEFAULT_MODEL, resolve_model

MAX_HEADER_BYTES = 64 << 10
MAX_OPEN_FILES = 65_536
SWITCH_INTERVAL = 0.0005
"""Seconds that a thread may keep the GIL while another wants it."""
ENGINE_DIED = 70
"""Exit status when the engine died (sysexits' EX_SOFTWARE)."""


class Server(uvicorn.Server):
    """uvicorn's server, which on SIGTERM lets requests finish for `drain_timeout` and then aborts the rest."""

    def __init__(self, app: FastAPI, settings: ServerSettings) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                host=settings.host,
                port=settings.port,
                http=partial(HttpProtocol, head_timeout=settings.body_timeout, send_timeout=settings.send_timeout),  # type: ignore[arg-type]
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                # Whoever connects is who they are: from this machine uvicorn would believe X-Forwarded-For, and with
                # another address in each request there would be no rate limit.
                proxy_headers=False,
                server_header=False,
                h11_max_incomplete_event_size=MAX_HEADER_BYTES,
                timeout_graceful_shutdown=int(settings.drain_timeout) + 5,
            )
        )
        self.settings = settings
        self.serving = app.state.serving
        self.serving.engine.on_death = self._engine_died
        self.exit_status = 0

    @property
    def port(self) -> int:
        """The port that it listens on, once started."""
        return self.servers[0].sockets[0].getsockname()[1]

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains, the second does not wait. uvicorn's own would end the process by the signal."""
        self.force_exit = self.should_exit
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            interface_log.info("serving %s on http://%s:%d", self.serving.names[0], self.settings.host, self.port)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.serving.is_draining = True
        engine = self.serving.engine
        interface_log.info("shutting down", extra={"unfinished_requests": len(engine.pending)})
        aborting = asyncio.create_task(self._abort_later())
        try:
            await super().shutdown(sockets)
        finally:
            aborting.cancel()

    async def _abort_later(self) -> None:
        await asyncio.sleep(self.settings.drain_timeout)
        num_aborted = self.serving.engine.abort_all(
            ApiError(503, "The server shut down before the request had ended.", code="draining", retry_after=10)
        )
        interface_log.warning("drain timeout", extra={"aborted_requests": num_aborted})

    def _engine_died(self, error: BaseException) -> None:
        self.exit_status = ENGINE_DIED
        interface_log.critical("the engine died; the server ends in %g s", self.settings.dead_engine_grace)
        asyncio.get_running_loop().call_later(self.settings.dead_engine_grace, self._stop)

    def _stop(self) -> None:
        self.should_exit = True


def make_server(engine_config: EngineConfig, settings: ServerSettings) -> Server:
    """Load the model and build the server around it; it does not listen yet.

    Raises:
        ConfigError, ModelError, BackendError: with one sentence that says what to change.
    """
    if engine_config.skip_tokenizer_init:
        raise ConfigError("The server needs a tokenizer: leave skip_tokenizer_init out.")
    engine = load_engine(engine_config)
    name = str(engine_config.model) if engine_config.model is not None else DEFAULT_MODEL
    return Server(build_app(engine, copy.deepcopy(engine.tokenizer), settings, name), settings)


def load_engine(config: EngineConfig) -> LLMEngine:
    """An engine, whose weights were read beside its tokenizer: Python waits for neither disk nor arithmetic.

    The weights are read, and the model tried, on a thread that ends. The engine will be stepped by another one, and
    OpenMP keeps a team of threads for each thread that ever computed: with two teams for the same cores GNU's lets
    nobody spin at a barrier any more, and each of a step's hundreds of small operations waits for a wake-up instead
    (32 requests at once on two cores: 72 tokens/s with the team of the loading thread still there, against 115).
    """
    path = resolve_model(config.model)
    interface_log.info("starting", extra={"pid": os.getpid()})
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(lambda: build_parts(replace(config, skip_tokenizer_init=True)))
        tokenizer = load_tokenizer(config, path)
        parts = loading.result()
    parts.tokenizer = tokenizer
    return LLMEngine(config, parts)


def allow_many_connections() -> None:
    """Raise this process's limit of open files, which is often 1024: each connection is one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_OPEN_FILES)
    with contextlib.suppress(ValueError, OSError):  # a system may forbid what it has announced
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def serve(engine_config: EngineConfig, settings: ServerSettings) -> int:
    """Serve until SIGTERM, Ctrl-C or the engine's death. Returns the exit status."""
    configure_logging(settings.log_format, settings.log_level)
    # Whenever the engine's thread comes back from torch it asks for the GIL, and the event loop's thread may keep it
    # for one interval more. Python's default of 5 ms would be felt in each step of a fast GPU.
    sys.setswitchinterval(SWITCH_INTERVAL)
    server = make_server(engine_config, settings)
    # What is loaded now stays. A collection need not look at it again: it took a tenth of a second, in which no token
    # came, and more than that while a client's large body was parsed.
    gc.collect()
    gc.freeze()
    gc.enable()  # `pagedlab serve` starts without
    allow_many_connections()
    try:
        server.run()
    except SystemExit:
        # uvicorn's way of saying that it could not listen; it has logged why.
        print(f"pagedlab: cannot listen on {settings.host}:{settings.port}: see above.", file=sys.stderr)
        return 1
    logging.shutdown()
    if server.serving.engine.is_alive:
        # A second signal: nobody waited for the engine, and Python's orderly end would abort under its thread.
        os._exit(server.exit_status)
    return server.exit_status
