"""`pagedlab bench scheduler`: what scheduling, block management and book-keeping cost in a step, without a model."""

from __future__ import annotations

import argparse
import time
from typing import Any

from pagedlab.bench.report import show, spread
from pagedlab.config import EngineConfig
from pagedlab.errors import ConfigError
from pagedlab.interfaces.engine import LLMEngine
from pagedlab.interfaces.engine_parts import EngineParts
from pagedlab.model_authoring.block_manager import BlockManager
from pagedlab.model_authoring.scheduler import Schedule
from pagedlab.runtime.batch import BlockOps, RaggedBatch, StepResult
from pagedlab.sampling_params import RequestOutputKind, SamplingParams

BLOCK_SIZE = 16
PROMPT_TOKENS = 100


class NoWorker:
    """Never called: the executor is replaced as well."""

    def execute(self, batch: RaggedBatch, ops: BlockOps) -> StepResult:
        raise AssertionError("the fake executor does not pack batches")


class FakeExecutor:
    """Answers every schedule at once, with the same token for everybody."""

    def execute(self, schedule: Schedule) -> StepResult:
        return StepResult([1] * sum(len(item.sampled) for item in schedule.items))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--num-seqs", type=int, nargs="+", default=[32, 1000], help="running requests")
    parser.add_argument("--steps", type=int, default=200, help="decode steps to time")


def main(arguments: argparse.Namespace) -> int:
    if min(*arguments.num_seqs, arguments.steps) < 1:
        raise ConfigError("--num-seqs and --steps must be at least 1.")
    for num_seqs in arguments.num_seqs:
        print(f"{num_seqs:5d} running requests: {show(step_milliseconds(num_seqs, arguments.steps), 3)} ms a step")
    return 0


def step_milliseconds(num_seqs: int, num_steps: int) -> dict[str, float]:
    """Spread of the time of one decode step of `num_seqs` requests on a fake executor."""
    engine = fake_engine(num_seqs, num_steps)
    params = SamplingParams(
        temperature=0, max_tokens=num_steps + 10, ignore_eos=True, output_kind=RequestOutputKind.FINAL_ONLY
    )
    for index in range(num_seqs):
        engine.add_request(str(index), [index % 100] * PROMPT_TOKENS, params)
    while engine.scheduler.waiting or any(r.num_uncomputed_tokens > 1 for r in engine.scheduler.running):
        engine.step()
    times = []
    for _ in range(num_steps):
        start = time.perf_counter()
        engine.step()
        times.append(1e3 * (time.perf_counter() - start))
    return spread(times)


def fake_engine(num_seqs: int, num_steps: int) -> LLMEngine:
    num_blocks = num_seqs * (-(-(PROMPT_TOKENS + num_steps + 10) // BLOCK_SIZE) + 1) + 1
    parts = EngineParts(
        tokenizer=None,
        worker=NoWorker(),
        block_manager=BlockManager(num_blocks, BLOCK_SIZE),
        vocab_size=100,
        eos_token_ids=frozenset(),
        max_model_len=PROMPT_TOKENS + num_steps + 10,
        max_num_seqs=num_seqs,
        max_num_batched_tokens=max(8192, num_seqs),
    )
    engine = LLMEngine(EngineConfig(), parts)
    executor: Any = FakeExecutor()
    engine.executor = executor
    return engine
