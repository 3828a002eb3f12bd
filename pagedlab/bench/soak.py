"""`pagedlab bench soak`: mixed load on a server for minutes; its memory must stay flat, and not one block may leak.

The load: streams, whole answers, clients that vanish mid-stream, long prompts, and requests that no server should
serve. Each has one right outcome, and anything else is an error of the run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from pagedlab.bench.http_load import HttpError, events, get, request, stream_completion
from pagedlab.bench.report import check_writable, environment, write_json
from pagedlab.bench.servers import pagedlab_server, scrape
from pagedlab.errors import ConfigError, PagedlabError
from pagedlab.interfaces.openai_server.arguments import KERNEL_CACHES

SLACK_MIB = 32.0
SLOPE_MIB_PER_MINUTE = 1.0
"""What counts as flat: the line through the samples after the warm-up rises by at most SLACK_MIB in all (an allocator
takes memory in large pieces, and caches fill) plus SLOPE_MIB_PER_MINUTE for each minute: 54 MiB of a 30-minute run."""

WARM_UP = 0.25
"""Share of the run whose samples do not count: the pool and the caches are touched for the first time."""

LEAST_SAMPLES = 8
"""Of memory, for a verdict; a short run on a busy machine goes on until it has them."""

MIB = 1 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--model", help="directory or Hugging Face id; left out: SmolLM2-135M-Instruct")
    parser.add_argument("--clients", type=int, default=8, help="that send at once")
    parser.add_argument("--num-blocks", type=int, default=24, help="a small pool: requests wait, and are preempted")
    parser.add_argument(
        "--kernel-cache",
        type=int,
        default=16,
        metavar="N",
        help="kernels that oneDNN may keep, so that memory is flat sooner; 0: as many as pagedlab serve lets it",
    )
    parser.add_argument("--request-timeout", type=float, default=300, metavar="S")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the result there")


def main(arguments: argparse.Namespace) -> int:
    """Soak a server; 1 if a request ended otherwise than it must, memory grew, or a block leaked."""
    if not arguments.minutes > 0 or arguments.clients < 1:
        raise ConfigError("--minutes must be more than 0, and --clients at least 1.")
    check_writable(arguments.json)
    from pagedlab.model_authoring.models.provision import resolve_model

    model = resolve_model(arguments.model)
    variables = dict.fromkeys(KERNEL_CACHES, str(arguments.kernel_cache)) if arguments.kernel_cache else {}
    options = ("--num-blocks", str(arguments.num_blocks), "--max-num-seqs", "32")
    with pagedlab_server(model, *options, variables=variables) as server:
        soak = Soak(server.address, server.pid, arguments)
        result = {"environment": environment(), "kernel_cache": arguments.kernel_cache, **asyncio.run(soak.run())}
    print_result(result)
    if arguments.json:
        print(f"Written to {write_json(arguments.json, result)}")
    for problem in result["problems"][:20]:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if result["problems"] else 0


@dataclass
class Tally:
    """What was sent, by kind, and what of it went wrong. `served` counts those that the engine must have on its books.

    Attributes:
        finished, aborted_at_most: answers that came whole, and streams that their client dropped
    """

    sent: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    num_problems: int = 0
    finished: int = 0
    aborted_at_most: int = 0
    num_tokens: int = 0

    def problem(self, text: str) -> None:
        self.num_problems += 1
        if len(self.problems) < 100:
            self.problems.append(text)


class Soak:
    """Clients on one server.

    Args:
        address: host and port.
        pid: of the server's process, whose memory is sampled.
        arguments: as add_arguments made them.
    """

    def __init__(self, address: tuple[str, int], pid: int, arguments: argparse.Namespace) -> None:
        self.address = address
        self.process = psutil.Process(pid)
        self.timeout = arguments.request_timeout
        self.seconds = 60 * arguments.minutes
        self.num_clients = arguments.clients
        self.draw = random.Random(arguments.seed)
        self.tally = Tally()
        self.samples: list[tuple[float, int]] = []
        self.max_model_len = 0
        self.longest = 0
        self.kinds: dict[str, tuple[float, Callable[[], Awaitable[None]]]] = {
            "stream": (0.40, self.stream),
            "whole": (0.20, self.whole),
            "abort": (0.20, self.abort),
            "bad": (0.15, self.bad),
            "long": (0.05, self.long),
        }

    async def run(self) -> dict[str, Any]:
        """Load, then wait until the server is idle, then count."""
        await self._limits()
        before = await scrape(self.address) or {}
        start = time.monotonic()
        sampler = asyncio.create_task(self._sample(start))
        await asyncio.gather(*(self._client(start + self.seconds) for _ in range(self.num_clients)))
        sampler.cancel()
        after = await self._idle(before)
        memory = judge_memory(self.samples)
        leaked = await self._leaked_blocks(after)
        problems = [*self.tally.problems, *judge_books(before, after, self.tally)]
        if not memory["flat"]:
            problems.append(f"memory grew by {memory['growth_mib']:.1f} MiB; {memory['allowed_mib']:.1f} are allowed")
        if leaked:
            problems.append(f"{leaked} KV blocks are in use though no request is left")
        return {
            "seconds": time.monotonic() - start,
            "requests": dict(self.tally.sent),
            "output_tokens": self.tally.num_tokens,
            "preemptions": after.get("num_preemptions", 0) - before.get("num_preemptions", 0),
            "memory": memory,
            "samples_s_mib": [[round(at, 1), round(rss / MIB, 1)] for at, rss in self.samples],
            "leaked_blocks": leaked,
            "failed": self.tally.num_problems,
            "problems": problems,
        }

    async def _limits(self) -> None:
        _, body = await get(self.address, "/v1/models")
        self.max_model_len = json.loads(body)["data"][0]["max_model_len"]
        _, body = await get(self.address, "/dashboard/data")
        num_blocks = json.loads(body)["num_blocks"]
        self.longest = min(512, self.max_model_len // 2, 8 * num_blocks)  # half of the pool

    async def _client(self, deadline: float) -> None:
        names = list(self.kinds)
        weights = [self.kinds[name][0] for name in names]
        while time.monotonic() < deadline or len(self.samples) < LEAST_SAMPLES:
            kind = self.draw.choices(names, weights)[0]
            self.tally.sent[kind] += 1
            try:
                await self.kinds[kind][1]()
            except TimeoutError:
                self.tally.problem(f"{kind}: no answer within {self.timeout:g} s")
            except (OSError, ValueError, EOFError, KeyError, PagedlabError) as error:
                self.tally.problem(f"{kind}: {type(error).__name__}: {error}")
                if not self.process.is_running():
                    return

    async def _sample(self, start: float) -> None:
        every = min(5.0, max(0.1, self.seconds / 100))
        while True:
            self.samples.append((time.monotonic() - start, self.process.memory_info().rss))
            await asyncio.sleep(every)

    # ---- kinds of requests --------------------------------------------------------------------------------------

    def _body(self, num_tokens: int, max_tokens: int, **options: Any) -> dict[str, Any]:
        """A prompt of token ids that every vocabulary has, half of it shared with others so that the cache is hit."""
        ids = [3 + i % 50 for i in range(num_tokens // 2)]
        ids += [self.draw.randrange(3, 100) for _ in range(num_tokens - len(ids))]
        return {"prompt": ids, "max_tokens": max_tokens, "ignore_eos": True, "seed": 1, **options}

    async def stream(self) -> None:
        await self._stream(self.draw.randint(4, 64), self.draw.randint(1, 32))

    async def long(self) -> None:
        await self._stream(self.longest, 4)

    async def _stream(self, num_prompt_tokens: int, max_tokens: int) -> None:
        body = self._body(num_prompt_tokens, max_tokens, stream=True, stream_options={"include_usage": True})
        answer = await stream_completion(self.address, "/v1/completions", body, self.timeout)
        if answer.error:
            raise HttpError(answer.error)
        self._count(answer.num_tokens, max_tokens)

    async def whole(self) -> None:
        max_tokens = self.draw.randint(1, 32)
        body = self._body(self.draw.randint(4, 64), max_tokens)
        status, answer = await self._post("/v1/completions", json.dumps(body).encode())
        if status != 200:
            raise HttpError(f"status {status}: {answer}")
        self._count(answer["usage"]["completion_tokens"], max_tokens)

    def _count(self, got: int, expected: int) -> None:
        if got != expected:
            raise HttpError(f"{got} tokens where {expected} were asked for")
        self.tally.finished += 1
        self.tally.num_tokens += got

    async def abort(self) -> None:
        """Read a few chunks of a stream that would go on for long, or none at all, and be gone."""
        body = self._body(self.draw.randint(4, 64), min(self.longest, self.max_model_len - 100), stream=True)
        chunks = self.draw.randint(0, 4)
        self.tally.aborted_at_most += 1
        async with (
            asyncio.timeout(self.timeout),
            request(self.address, "POST", "/v1/completions", json.dumps(body).encode()) as response,
        ):
            if response.status != 200:
                raise HttpError(f"status {response.status}")
            if chunks:
                async for _ in events(response):
                    chunks -= 1
                    if not chunks:
                        return

    async def bad(self) -> None:
        """One that must be refused with a 4xx and OpenAI's error body."""
        too_long = self._body(self.max_model_len + 1, 1)
        body, content_type, path = self.draw.choice(
            [
                (b'{"prompt": "a', "application/json", "/v1/completions"),
                (b'{"prompt": "a", "max_tokens": -1}', "application/json", "/v1/completions"),
                (b'{"prompt": "a", "temperature": "hot"}', "application/json", "/v1/completions"),
                (b'{"messages": []}', "application/json", "/v1/chat/completions"),
                (b"prompt=a", "application/x-www-form-urlencoded", "/v1/completions"),
                (b"{}", "application/json", "/v1/nothing"),
                (json.dumps(too_long).encode(), "application/json", "/v1/completions"),
            ]
        )
        status, answer = await self._post(path, body, content_type)
        if not 400 <= status < 500 or not answer["error"]["message"]:
            raise HttpError(f"status {status} for {body[:60]!r}")

    async def _post(self, path: str, body: bytes, content_type: str = "application/json") -> tuple[int, Any]:
        async with (
            asyncio.timeout(self.timeout),
            request(self.address, "POST", path, body, content_type) as response,
        ):
            return response.status, json.loads(await response.body())

    # ---- at the end ---------------------------------------------------------------------------------------------

    async def _idle(self, before: dict[str, float], timeout: float = 60) -> dict[str, float]:
        """The metrics once nothing runs or waits, or after `timeout` seconds whatever they are.

        A request whose client has just left may be in no queue yet: each must also have ended.
        """
        deadline = time.monotonic() + timeout
        while True:
            metrics = await scrape(self.address)
            if metrics is None:
                raise HttpError("The server has no /metrics.")
            busy = metrics["num_requests_running"] or metrics["num_requests_waiting"] or metrics["kv_cache_usage_perc"]
            accepted = 0 if self.tally.num_problems else self.tally.finished + self.tally.aborted_at_most
            if (not busy and sum(num_ended(before, metrics).values()) >= accepted) or time.monotonic() > deadline:
                return metrics
            await asyncio.sleep(0.2)

    async def _leaked_blocks(self, metrics: dict[str, float]) -> int:
        """Blocks in use, by /metrics and by the dashboard's map of the pool, whichever is more."""
        _, body = await get(self.address, "/dashboard/data")
        data = json.loads(body)
        in_map = sum(letter in "os" for letter in data["blocks"]) * data["blocks_per_cell"]
        return max(round(metrics["kv_cache_usage_perc"] * data["num_blocks"]), in_map)


def judge_memory(samples: Sequence[tuple[float, int]]) -> dict[str, Any]:
    """Whether the server's memory is flat after the warm-up.

    Args:
        samples: (seconds from the start, resident bytes).
    """
    if len(samples) < LEAST_SAMPLES:
        raise PagedlabError(f"{len(samples)} samples of memory say nothing: let it run for longer.")
    end = samples[-1][0]
    kept = [(at / 60, rss / MIB) for at, rss in samples if at >= WARM_UP * end]
    minutes, mib = (np.asarray(column) for column in zip(*kept, strict=True))
    slope = float(np.polyfit(minutes, mib, 1)[0])
    span = float(minutes[-1] - minutes[0])
    allowed = SLACK_MIB + SLOPE_MIB_PER_MINUTE * span
    return {
        "samples": len(kept),
        "minutes": span,
        "first_mib": float(mib[0]),
        "last_mib": float(mib[-1]),
        "most_mib": float(mib.max()),
        "slope_mib_per_minute": slope,
        "growth_mib": slope * span,
        "allowed_mib": allowed,
        "flat": slope * span <= allowed,
    }


def num_ended(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """Requests that have ended since, by reason."""
    return {
        reason: after.get(f"request_success{{{reason}}}", 0) - before.get(f"request_success{{{reason}}}", 0)
        for reason in ("stop", "length", "abort", "error")
    }


def judge_books(before: dict[str, float], after: dict[str, float], tally: Tally) -> list[str]:
    """Where the server's counts of ended requests disagree with the clients'."""
    ended = num_ended(before, after)
    wrong = []
    if tally.num_problems == 0 and ended["length"] + ended["stop"] < tally.finished:
        wrong.append(f"the server has finished {ended['length'] + ended['stop']:g} requests, clients {tally.finished}")
    if tally.num_problems == 0 and sum(ended.values()) != tally.finished + tally.aborted_at_most:
        # A client that hangs up may find its request finished, but each ends once, one way or the other.
        wrong.append(
            f"{tally.finished + tally.aborted_at_most} requests were accepted, {sum(ended.values()):g} have ended"
        )
    if ended["error"]:
        wrong.append(f"{ended['error']:g} requests ended with an error of the engine")
    for name in ("num_requests_running", "num_requests_waiting"):
        if after[name]:
            wrong.append(f"{name} is {after[name]:g} though all clients are gone")
    return wrong


def print_result(result: dict[str, Any]) -> None:
    memory = result["memory"]
    sent = ", ".join(f"{count} {kind}" for kind, count in sorted(result["requests"].items()))
    print(
        f"{result['seconds'] / 60:.1f} minutes: {sent}; {result['output_tokens']} tokens out, {result['failed']} failed"
    )
    print(
        f"memory over the last {memory['minutes']:.1f} minutes: {memory['first_mib']:.0f} to {memory['last_mib']:.0f} "
        f"MiB, slope {memory['slope_mib_per_minute']:+.2f} MiB/minute, {memory['growth_mib']:+.1f} MiB in all "
        f"({memory['allowed_mib']:.1f} allowed: {'flat' if memory['flat'] else 'NOT FLAT'})"
    )
    print(f"KV blocks leaked: {result['leaked_blocks']}; preemptions: {result['preemptions']:g}")
