"""AsyncLLMEngine by itself, without HTTP: coroutines share an engine, and each gets its own outputs, all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from server_tools import make_tiny_chat_model, wait_until

from pagedlab import LLM, EngineConfig, InvalidRequestError, LLMEngine, RequestOutputKind, SamplingParams
from pagedlab.interfaces.async_engine import AsyncLLMEngine, EngineDeadError, EngineOverloadedError
from pagedlab.interfaces.outputs import CompletionOutput, Logprob, RequestOutput
from pagedlab.interfaces.request_stream import RequestStream


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_chat_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def expected(model: Path) -> list[list[int]]:
    """What the offline LLM generates after three times token 10, 11 ... 15."""
    outputs = LLM(model, num_blocks=64).generate([[token] * 3 for token in range(10, 16)], params(), use_tqdm=False)
    return [output.outputs[0].token_ids for output in outputs]


def run(model: Path, scenario: Callable[[AsyncLLMEngine, LLMEngine], Awaitable[None]], **limits: int) -> None:
    """Run a coroutine on a fresh engine; at its end no block may be held."""

    async def go() -> None:
        engine = LLMEngine(EngineConfig(model=model, num_blocks=256))
        async_engine = AsyncLLMEngine(engine, **limits)
        async_engine.start()
        try:
            await scenario(async_engine, engine)
        finally:
            await async_engine.stop()
        engine.block_manager.check_integrity()
        assert engine.stats().num_free_blocks == engine.stats().num_total_blocks
        assert not async_engine.pending and async_engine.num_pending_tokens == 0

    asyncio.run(asyncio.wait_for(go(), 300))


def params(**options: object) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 12, "temperature": 0, "ignore_eos": True, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", list(RequestOutputKind))
@pytest.mark.parametrize("pause", [0.0, 0.02])
def test_each_output_kind_gives_the_whole_text_to_quick_and_slow_readers(
    model: Path, expected: list[list[int]], kind: RequestOutputKind, pause: float
) -> None:
    async def scenario(engine: AsyncLLMEngine, below: LLMEngine) -> None:
        async def ask(token: int) -> list[int]:
            tokens: list[int] = []
            async for output in engine.generate([token] * 3, params(output_kind=kind)):
                await asyncio.sleep(pause)
                new = output.outputs[0].token_ids
                tokens = tokens + new if kind is RequestOutputKind.DELTA else new
            return tokens

        assert await asyncio.gather(*(ask(token) for token in range(10, 16))) == expected

    run(model, scenario)


def test_leaving_the_iterator_aborts(model: Path) -> None:
    async def scenario(engine: AsyncLLMEngine, below: LLMEngine) -> None:
        iterator = engine.generate([5], params(max_tokens=3000))
        await anext(iterator)
        assert engine.pending
        await iterator.aclose()  # type: ignore[attr-defined]
        assert not engine.pending
        assert await engine.call(lambda engine: engine.has_unfinished_requests()) is False

    run(model, scenario)


def test_a_call_of_several_prompts_is_queued_whole_or_not_at_all(model: Path) -> None:
    async def scenario(engine: AsyncLLMEngine, below: LLMEngine) -> None:
        with pytest.raises(InvalidRequestError):
            engine.submit("a", [[5], [10_000]], params())
        with pytest.raises(EngineOverloadedError):
            engine.submit("b", [[5]] * 4, params())
        assert not engine.pending
        stream = engine.submit("c", [[5]] * 3, params())
        with pytest.raises(EngineOverloadedError):
            engine.submit("d", [[5]], params())
        with pytest.raises(EngineOverloadedError):
            engine.submit("e", [[5] * 30], params())
        ended = [index async for index, output in stream if output.finished]
        assert sorted(ended) == [0, 1, 2]
        stream = engine.submit("f", [[5] * 30], params())
        stream.close()

    run(model, scenario, max_pending_requests=3, max_pending_tokens=20)


def test_ids_in_use_are_refused(model: Path) -> None:
    async def scenario(engine: AsyncLLMEngine, below: LLMEngine) -> None:
        stream = engine.submit("same", [[5]], params(max_tokens=1000))
        with pytest.raises(InvalidRequestError, match="in use"):
            engine.submit("same", [[5]], params())
        stream.close()
        engine.submit("same", [[5]], params()).close()

    run(model, scenario)


def test_functions_run_between_steps_and_their_errors_come_back(model: Path) -> None:
    async def scenario(engine: AsyncLLMEngine, below: LLMEngine) -> None:
        stream = engine.submit("a", [[5]], params(max_tokens=500))
        steps = [await engine.call(lambda engine: engine.stats().num_steps) for _ in range(5)]
        assert steps == sorted(steps)
        with pytest.raises(ZeroDivisionError):
            await engine.call(lambda engine: 1 // 0)
        stream.close()

    run(model, scenario)


def test_a_stopped_engine_tells_everybody(model: Path) -> None:
    async def scenario(engine: AsyncLLMEngine, below: LLMEngine) -> None:
        stream = engine.submit("a", [[5]], params(max_tokens=3000))
        await engine.stop()
        with pytest.raises(EngineDeadError):
            async for _ in stream:
                pass
        with pytest.raises(EngineDeadError):
            engine.submit("b", [[5]], params())
        with pytest.raises(EngineDeadError):
            await engine.call(lambda engine: None)

    run(model, scenario)


def test_the_event_loop_does_not_delay_a_step(model: Path) -> None:
    """While the event loop is stuck, the engine goes on."""

    async def scenario(engine: AsyncLLMEngine, below: LLMEngine) -> None:
        stream = engine.submit("a", [[5]], params(max_tokens=3000))
        await anext(stream)
        before = below.stats().num_steps
        wait_until(lambda: below.stats().num_steps - before > 5, "steps are made")  # what no coroutine should do
        _, output = await anext(stream)
        assert isinstance(output, RequestOutput) and len(output.outputs[0].token_ids) > 5, "merged into one"
        stream.close()

    run(model, scenario)


# ---- RequestStream --------------------------------------------------------------------------------------------------

DELTA = st.tuples(st.text(max_size=3), st.lists(st.integers(0, 9), max_size=3))
PIECES = st.lists(st.lists(DELTA, min_size=2, max_size=2), min_size=1, max_size=12)


@given(PIECES, st.lists(st.booleans(), min_size=12, max_size=12))
def test_whenever_it_reads_a_reader_gets_everything_once_and_in_order(pieces: list, reads: list[bool]) -> None:
    """Deltas of two completions; the reader reads after some of them only."""

    async def go() -> None:
        stream = RequestStream(["r"], lambda ids: None)
        texts, tokens, reasons = ["", ""], [[], []], []  # type: ignore[var-annotated]

        async def read() -> None:
            _, output = await anext(stream)
            assert isinstance(output, RequestOutput)
            for completion in output.outputs:
                texts[completion.index] += completion.text
                tokens[completion.index] += completion.token_ids
                assert [next(iter(entry)) for entry in completion.logprobs or ()] == completion.token_ids
            reasons.append(output.finished)

        for number, step in enumerate(pieces):
            last = number == len(pieces) - 1
            outputs = [
                CompletionOutput(index, text, ids, None, [{one: Logprob(0.0)} for one in ids], "stop" if last else None)
                for index, (text, ids) in enumerate(step)
            ]
            stream.put(0, RequestOutput("r", None, [1], outputs, last))
            if reads[number] and not last:
                await read()
        await read()
        assert texts == ["".join(step[index][0] for step in pieces) for index in (0, 1)]
        assert tokens == [[one for step in pieces for one in step[index][1]] for index in (0, 1)]
        assert reasons[-1] and not any(reasons[:-1])
        with pytest.raises(StopAsyncIteration):
            await anext(stream)

    asyncio.run(go())


def test_a_failure_comes_after_what_was_there_before() -> None:
    async def go() -> None:
        stream = RequestStream(["r"], lambda ids: None)
        stream.put(0, RequestOutput("r", None, [1], [CompletionOutput(0, "a", [1])], False))
        stream.fail(ValueError("first"))
        stream.fail(ValueError("second"))
        await anext(stream)
        with pytest.raises(ValueError, match="first"):
            await anext(stream)

    asyncio.run(go())
