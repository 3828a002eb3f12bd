"""What a caller may hand over, and in which order: refusals leave the engine as it was, and no call takes another's."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from memory_worker import expected_output, memory_engine
from tiny_models import make_tiny_model

from pagedlab import LLM, BeamSearchParams, EngineConfig, InvalidRequestError, LLMEngine, PoolingParams, SamplingParams
from pagedlab.errors import GenerationError
from pagedlab.interfaces.async_engine import AsyncLLMEngine
from pagedlab.interfaces.outputs import RequestOutput
from pagedlab.sampling_params import RequestOutputKind


def params(max_tokens: int = 6, **options: Any) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, **({"temperature": 0, "ignore_eos": True} | options))


def tiny_llm(path: Path, **options: Any) -> LLM:
    return LLM(make_tiny_model(path), skip_tokenizer_init=True, num_blocks=60, **options)


# ---- refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"request_id": ""}, "request id"),
        ({"request_id": None}, "request id"),
        ({"request_id": 7}, "request id"),
        ({"params": {"max_tokens": 3}}, "got dict"),
        ({"params": PoolingParams}, "got type"),
        ({"priority": "high"}, "priority"),
        ({"priority": None}, "priority"),
        ({"priority": float("nan")}, "priority"),
        ({"cache_salt": 5}, "cache_salt"),
    ],
)
def test_an_argument_of_the_wrong_type_is_refused_and_stops_nobody(changes: dict[str, Any], words: str) -> None:
    """Compared or hashed in a later step, it would end every request in the engine."""
    engine = memory_engine(scheduling_policy="priority")
    sampled = params(4, seed=7, temperature=1.0, output_kind=RequestOutputKind.FINAL_ONLY)
    engine.add_request("first", [1, 2], sampled)
    with pytest.raises(InvalidRequestError, match=words):
        engine.add_request(**({"request_id": "bad", "prompt": list(range(1, 20)), "params": sampled} | changes))
    engine.add_request("last", [1, 2], sampled)
    found = {}
    while engine.has_unfinished_requests():
        found |= {output.request_id: output for output in engine.step()}
    assert set(found) == {"first", "last"}
    assert all(output.outputs[0].token_ids == expected_output([1, 2], 7, 4) for output in found.values())


def test_a_salt_may_be_any_text() -> None:
    engine = memory_engine()
    engine.add_request("a", [1] * 9, params(2), cache_salt="\ud800")
    while engine.has_unfinished_requests():
        engine.step()


@pytest.mark.parametrize("options", [{"pooling": "max"}, {"pooling": None}, {"normalize": 1}])
def test_pooling_that_there_is_not_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match=next(iter(options))):
        PoolingParams(**options)


def test_calls_take_the_options_of_their_own_kind(tmp_path: Path) -> None:
    llm = tiny_llm(tmp_path)
    with pytest.raises(InvalidRequestError, match="PoolingParams"):
        llm.encode([[1]], params(), use_tqdm=False)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequestError, match="BeamSearchParams"):
        llm.beam_search([[1]], params())  # type: ignore[arg-type]
    with pytest.raises(InvalidRequestError, match="1 prompts and 0 parameters"):
        llm.generate([[1]], [], use_tqdm=False)
    assert llm.beam_search([[1]], BeamSearchParams(2, 3))


def test_text_that_is_no_unicode_is_refused(default_model_path: Path) -> None:
    llm = LLM(num_blocks=20)
    with pytest.raises(InvalidRequestError, match="surrogate"):
        llm.generate(["\ud800"], params(), use_tqdm=False)


# ---- streams ----------------------------------------------------------------------------------------------------


def test_streams_and_other_calls_take_turns_and_lose_nothing(default_model_path: Path) -> None:
    llm = LLM(num_blocks=100)
    texts = ["Once upon a time", "Water boils at", "The capital of France is"]
    alone = [output.outputs[0].text for output in llm.generate(texts, params(), use_tqdm=False)]
    one, other = llm.stream(texts[0], params()), llm.stream(texts[1], params())
    found = [next(one), next(other)]
    between = llm.generate(texts[2:], params(), use_tqdm=False)
    for _ in range(8):
        found[0] += next(one, "")
        found[1] += next(other, "")
    assert [*found, between[0].outputs[0].text] == alone
    assert not llm.llm_engine.has_unfinished_requests()


# ---- failures ---------------------------------------------------------------------------------------------------


def poison(llm: LLM, token: int) -> None:
    """Hidden states of `token` are no numbers from now on."""
    model = llm.llm_engine.parts.worker.model  # type: ignore[attr-defined]
    forward = model.forward

    def poisoned(token_ids: torch.Tensor, *rest: Any) -> torch.Tensor:
        hidden = forward(token_ids, *rest)
        hidden[token_ids == token] = float("nan")
        return hidden

    model.forward = poisoned


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_a_vector_that_is_no_vector_is_an_error_and_is_not_cached(tmp_path: Path, pooling: str) -> None:
    llm = tiny_llm(tmp_path)
    poison(llm, 99)
    prompts = [[5] * 20, [6] * 20 + [99]]
    with pytest.raises(GenerationError, match=r"1 of 2 .* hidden states"):
        llm.encode(prompts, PoolingParams(pooling=pooling), use_tqdm=False)
    assert llm.generate([[6] * 20], params(1), use_tqdm=False)[0].num_cached_tokens == 0
    llm.llm_engine.block_manager.check_integrity()
    assert llm.stats().num_free_blocks == llm.stats().num_total_blocks


def test_a_failure_shows_though_a_sibling_had_ended_well_before() -> None:
    """Of three completions the first ends by a stop token; the second then fails."""
    llm = LLM.__new__(LLM)
    engine = memory_engine(num_blocks=64)
    llm.llm_engine, llm._num_requests, llm._streams = engine, 0, {}
    prompt = [1] * 10
    seed = next(s for s in range(1000) if len(expected_output(prompt, s, 6, False)) == 1)
    step = engine.step

    def failing_step() -> list[Any]:
        outputs = step()
        engine.executor.worker.invalid_seeds = {seed + 1}  # type: ignore[attr-defined]
        return outputs

    engine.step = failing_step  # type: ignore[method-assign]
    with pytest.raises(GenerationError, match="not numbers") as caught:
        llm.generate([prompt], params(6, n=3, seed=seed, temperature=1.0, ignore_eos=False), use_tqdm=False)
    reasons = [completion.finish_reason for completion in caught.value.outputs[0].outputs]
    assert reasons[:2] == ["stop", "error"]


# ---- the engine behind an event loop ----------------------------------------------------------------------------


def test_an_id_that_is_used_again_after_an_abort_gets_nothing_of_the_first_request(tmp_path: Path) -> None:
    """The first one's last report may be on its way while its id already belongs to the second."""
    path = make_tiny_model(tmp_path)
    options = {"model": path, "skip_tokenizer_init": True, "num_blocks": 60}
    wanted = LLM(**options).generate([[9, 8, 7]], params(5), use_tqdm=False)[0].outputs[0].token_ids  # type: ignore[arg-type]

    async def go() -> None:
        engine = AsyncLLMEngine(LLMEngine(EngineConfig(**options)))  # type: ignore[arg-type]
        engine.start()
        kind = {"output_kind": RequestOutputKind.DELTA}
        for _ in range(20):
            first = engine.submit("same", [[5, 6, 7]], params(40, **kind))
            await anext(first)
            # A report waits in the loop's queue while this coroutine goes on: await nothing between here and submit.
            await asyncio.to_thread(lambda: None)
            first.close()
            second = engine.submit("same", [[9, 8, 7]], params(5, **kind))
            tokens: list[int] = []
            async for _, output in second:
                assert isinstance(output, RequestOutput) and output.prompt_token_ids == [9, 8, 7]
                tokens += output.outputs[0].token_ids
            assert tokens == wanted
        await engine.stop()

    asyncio.run(asyncio.wait_for(go(), 60))


def test_a_failed_encode_raises_what_happened(tmp_path: Path) -> None:
    llm = tiny_llm(tmp_path)
    poison(llm, 99)

    async def go() -> None:
        engine = AsyncLLMEngine(llm.llm_engine)
        engine.start()
        with pytest.raises(GenerationError, match="hidden states"):
            await engine.encode([5, 99])
        assert (await engine.encode([5, 6])).outputs.data.isfinite().all()
        await engine.stop()

    asyncio.run(asyncio.wait_for(go(), 60))


def test_a_list_of_numpy_integers_is_one_prompt(tmp_path: Path) -> None:
    llm = tiny_llm(tmp_path)
    (plain,) = llm.generate([3, 4, 5], params())
    (numpy,) = llm.generate(list(np.array([3, 4, 5])), params())
    assert numpy.outputs[0].token_ids == plain.outputs[0].token_ids and numpy.prompt_token_ids == [3, 4, 5]


def test_a_call_whose_requests_were_aborted_from_elsewhere_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = tiny_llm(tmp_path)
    step = llm.llm_engine.step

    def step_and_abort() -> Any:
        outputs = step()
        llm.llm_engine.abort_request([name for name in list(llm.llm_engine._generations)][-1:])
        return outputs

    monkeypatch.setattr(llm.llm_engine, "step", step_and_abort)
    with pytest.raises(GenerationError, match="2 of 3 requests were aborted from elsewhere") as caught:
        llm.generate([[1, 2], [3, 4], [5, 6]], [params(1), params(9), params(9)])
    assert len(caught.value.outputs) == 1
