"""Real logs of the server, for the exercises: of the default model as a process, or of a tiny one within this one."""

from __future__ import annotations

import io
import json
import logging
import shutil
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pagedlab.errors import CourseError
from pagedlab.interfaces.local_server import LocalServer
from pagedlab.model_authoring.models.provision import default_model_path
from pagedlab.trace import TraceEvent

TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
"""Of the default model's config, so small that a step takes about a millisecond; its weights are random."""
ENDED = "POST"
"""The line that is written last: HTTP method and route."""


@dataclass(frozen=True)
class ServedLog:
    """What a server wrote, and what its engine recorded of the same run.

    Attributes:
        lines: of JSON, in the order in which they were written
        request_ids: of the calls that were answered, as the answers name them
        events: the engine's trace, on time.perf_counter's clock
    """

    lines: list[str]
    request_ids: list[str]
    events: list[TraceEvent]


def trace_one_request(content: str = "Hello!", max_tokens: int = 8) -> tuple[list[str], str]:
    """Serve the default model, ask it once, and end: the lines of the log, and the request's id."""
    with LocalServer(log_level="debug", num_blocks=256, variables={"OMP_NUM_THREADS": "1"}) as server:
        answer = ask(server.url, {"messages": [{"role": "user", "content": content}], "max_tokens": max_tokens})
    return [json.dumps(line) for line in server.log()], answer["id"]


def ask(url: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """A chat if the body has messages, else a completion; of a refusal, its JSON."""
    route = "/v1/chat/completions" if "messages" in body else "/v1/completions"
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url + route, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return json.load(error)


def write_tiny_model(directory: Path) -> None:
    """A config and the default model's tokenizer; the weights are drawn when it is loaded."""
    source = default_model_path()
    config = json.loads((source / "config.json").read_text()) | TINY
    config |= {"num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512}
    (directory / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, directory)


@cache
def served_log(
    bodies: tuple[str, ...], max_num_seqs: int = 8, max_num_batched_tokens: int = 64, num_blocks: int = 128
) -> ServedLog:
    """Send all bodies (JSON) at once to a server in this process, with a random model of two layers.

    Raises:
        CourseError: the server did not start.
    """
    with tempfile.TemporaryDirectory() as directory, captured() as stream:
        write_tiny_model(Path(directory))
        server = make(Path(directory), max_num_seqs, max_num_batched_tokens, num_blocks)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        try:
            deadline = time.monotonic() + 60
            while not server.started:
                if not thread.is_alive() or time.monotonic() > deadline:
                    raise CourseError("The small server of the exercises did not start: see what it printed.")
                time.sleep(0.005)
            url = f"http://127.0.0.1:{server.port}"
            with ThreadPoolExecutor(len(bodies)) as clients:
                answers = list(clients.map(lambda body: ask(url, json.loads(body)), bodies))
            while stream.getvalue().count(f'"message": "{ENDED} ') < len(bodies):
                time.sleep(0.005)
            events = list(server.config.app.state.observer.events)
        finally:
            server.should_exit = True
            thread.join(60)
        lines = stream.getvalue().splitlines()
    return ServedLog(lines, [answer["id"] for answer in answers if "id" in answer], events)


def make(model: Path, max_num_seqs: int, max_num_batched_tokens: int, num_blocks: int) -> Any:
    """The server, as `pagedlab serve` makes it."""
    from pagedlab.config import EngineConfig
    from pagedlab.interfaces.openai_server.server import make_server
    from pagedlab.interfaces.openai_server.settings import ServerSettings

    config = EngineConfig(
        model=model,
        load_format="dummy",
        dtype="float32",
        device="cpu",
        num_blocks=num_blocks,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        enable_trace=True,
    )
    return make_server(config, ServerSettings(port=0, served_model_name=["tiny"]))


@contextmanager
def captured() -> Iterator[io.StringIO]:
    """The layers' lines at debug level, as the server writes them, in place of where they would go."""
    from pagedlab.interfaces.openai_server.telemetry import JsonFormatter

    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    logger = logging.getLogger("pagedlab")
    before = logger.level, logger.handlers, logger.propagate
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.DEBUG)
    try:
        yield stream
    finally:
        logger.setLevel(before[0])
        logger.handlers, logger.propagate = before[1:]


def bodies(*given: Mapping[str, Any]) -> tuple[str, ...]:
    """Bodies as JSON, which can be remembered by."""
    return tuple(json.dumps(body) for body in given)


def events_of(log: ServedLog, request_id: str, names: Sequence[str]) -> list[TraceEvent]:
    """The trace's events of a request, or of batches that it was in."""
    steps = {event.step for event in log.events if event.name == "schedule" and request_id in event.args["requests"]}
    return [
        event
        for event in log.events
        if event.name in names
        and (event.request_id == request_id or (event.request_id is None and event.step in steps))
    ]
