"""The engine's scheduling and memory, exact, on a toy model that reads its context back out of paged memory."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from memory_worker import EOS, VOCAB, MemoryWorker, expected_output, memory_engine, toy_logprobs

from pagedlab.errors import ConfigError, InvalidRequestError, PagedlabError
from pagedlab.interfaces.engine import LLMEngine
from pagedlab.interfaces.outputs import RequestOutput
from pagedlab.model_authoring.request import Request
from pagedlab.model_authoring.scheduler import Scheduler
from pagedlab.sampling_params import BeamSearchParams, RequestOutputKind, SamplingParams

FINAL = RequestOutputKind.FINAL_ONLY


def params(max_tokens: int = 5, **options: object) -> SamplingParams:
    options = {"ignore_eos": True, "seed": 7, "output_kind": FINAL} | options
    return SamplingParams(max_tokens=max_tokens, **options)  # type: ignore[arg-type]


def run(engine: LLMEngine, limit: int = 5000) -> dict[str, RequestOutput]:
    """Step until idle; the books are checked after every step."""
    done: dict[str, RequestOutput] = {}
    for _ in range(limit):
        if not engine.has_unfinished_requests():
            break
        for output in engine.step():
            if output.finished:
                done[output.request_id] = output  # type: ignore[assignment]
        engine.block_manager.check_integrity()
    assert not engine.has_unfinished_requests(), "the engine did not come to an end"
    assert engine.block_manager.num_free_blocks == engine.block_manager.num_usable_blocks, "blocks leaked"
    assert not engine.scheduler.has_unfinished
    return done


@st.composite
def workloads(draw: st.DrawFn) -> list[dict]:
    """Requests that arrive at various steps, with prompts that share prefixes."""
    stem = draw(st.lists(st.integers(1, 5), min_size=0, max_size=12))
    requests = []
    for index in range(draw(st.integers(1, 7))):
        tail = draw(st.lists(st.integers(1, VOCAB - 1), min_size=0 if stem else 1, max_size=14))
        requests.append(
            {
                "prompt": stem[: draw(st.integers(0 if tail else 1, len(stem)))] + tail if stem else tail,
                "n": draw(st.sampled_from([1, 1, 1, 2, 3])),
                "seed": draw(st.integers(0, 1000)),
                "max_tokens": draw(st.integers(1, 12)),
                "ignore_eos": draw(st.booleans()),
                "priority": draw(st.integers(0, 2)),
                "arrives": draw(st.integers(0, 6)),
                "abort_after": draw(st.sampled_from([None, None, None, 1, 4])),
                "id": f"q{index}",
            }
        )
    return requests


@settings(max_examples=400, deadline=None, derandomize=True)
@given(
    workload=workloads(),
    block_size=st.sampled_from([1, 2, 4, 16]),
    spare_blocks=st.integers(0, 12),
    budget=st.sampled_from([4, 7, 64]),
    threshold=st.sampled_from([0, 0, 1, 5]),
    prefix_caching=st.booleans(),
    policy=st.sampled_from(["fcfs", "priority", "sjf"]),
    preemption=st.sampled_from(["recompute", "swap"]),
    num_host_blocks=st.sampled_from([0, 3, 50]),
    ahead=st.booleans(),
)
def test_every_request_gets_its_own_tokens_whatever_shares_the_engine(
    workload: list[dict],
    block_size: int,
    spare_blocks: int,
    budget: int,
    threshold: int,
    prefix_caching: bool,
    policy: str,
    preemption: str,
    num_host_blocks: int,
    ahead: bool,
) -> None:
    """Chunks, prefix hits, forks, preemption of both kinds, aborts: the oracle has no memory and no batch."""
    longest = max(-(-(len(r["prompt"]) + r["max_tokens"]) // block_size) for r in workload)
    engine = memory_engine(
        async_scheduling=ahead,
        num_blocks=longest + spare_blocks + 1,
        block_size=block_size,
        num_host_blocks=num_host_blocks,
        max_num_seqs=4,
        max_num_batched_tokens=budget,
        long_prefill_token_threshold=threshold,
        enable_prefix_caching=prefix_caching,
        scheduling_policy=policy,
        preemption_mode=preemption,
    )
    done: dict[str, RequestOutput] = {}
    aborted: set[str] = set()
    for step in range(3000):
        for request in workload:
            if request["arrives"] == step:
                options = params(
                    request["max_tokens"],
                    n=request["n"],
                    seed=request["seed"],
                    ignore_eos=request["ignore_eos"],
                )
                engine.add_request(request["id"], request["prompt"], options, priority=request["priority"])
            if request["abort_after"] is not None and request["arrives"] + request["abort_after"] == step:
                aborted.update(output.request_id for output in engine.abort_request(request["id"]))
        for output in engine.step():
            done[output.request_id] = output  # type: ignore[assignment]
        engine.block_manager.check_integrity()
        if step > 12 and not engine.has_unfinished_requests():
            break
    assert set(done) | aborted == {r["id"] for r in workload} and not set(done) & aborted
    assert engine.block_manager.num_free_blocks == engine.block_manager.num_usable_blocks
    for request in workload:
        if request["id"] in done:
            for index, completion in enumerate(done[request["id"]].outputs):
                expected = expected_output(
                    request["prompt"], request["seed"] + index, request["max_tokens"], request["ignore_eos"]
                )
                assert completion.token_ids == expected
                stopped = not request["ignore_eos"] and expected[-1] == EOS
                assert completion.finish_reason == ("stop" if stopped else "length")


@pytest.mark.parametrize("mode", ["recompute", "swap"])
def test_preempted_request_yields_the_same_tokens(mode: str) -> None:
    engine = memory_engine(num_blocks=12, block_size=2, num_host_blocks=50, preemption_mode=mode)
    prompts = [[i + 1] * 4 for i in range(5)]
    for i, prompt in enumerate(prompts):
        engine.add_request(str(i), prompt, params(12))
    done = run(engine)
    assert engine.stats().num_preemptions > 0, "the pool was not small enough to test anything"
    for i, prompt in enumerate(prompts):
        assert done[str(i)].outputs[0].token_ids == expected_output(prompt, 7, 12)


def test_swapped_requests_compute_no_token_twice() -> None:
    engine = memory_engine(
        num_blocks=12, block_size=2, num_host_blocks=50, preemption_mode="swap", enable_prefix_caching=False
    )
    for i in range(5):
        engine.add_request(str(i), [i + 1] * 4, params(12))
    run(engine)
    assert engine.stats().num_preemptions > 0
    assert engine.stats().num_computed_tokens == 5 * (4 + 12 - 1)


def test_a_step_mixes_decodes_with_a_chunk_of_the_next_prompt_within_the_budget() -> None:
    engine = memory_engine(num_blocks=64, max_num_seqs=4, max_num_batched_tokens=10)
    engine.add_request("a", [1, 2, 3], params(9))
    engine.step()
    engine.add_request("b", list(range(1, 26)), params(2))
    sizes = []
    worker = engine.executor.worker
    assert isinstance(worker, MemoryWorker)
    done = run(engine)
    for batch in worker.batches[1:5]:
        sizes.append(np.diff(batch.query_starts).tolist())
    assert sizes == [[1, 9], [1, 9], [1, 7], [1, 1]]
    assert done["b"].outputs[0].token_ids == expected_output(range(1, 26), 7, 2)


def test_n_completions_compute_the_prompt_once_and_share_its_blocks() -> None:
    engine = memory_engine(num_blocks=64, block_size=4, enable_prefix_caching=False)
    engine.add_request("a", list(range(1, 11)), params(2, n=4))
    engine.step()
    used = engine.block_manager.num_usable_blocks - engine.block_manager.num_free_blocks
    assert used == 3, "four sequences of ten tokens hold the prompt's three blocks between them"
    engine.step()
    used = engine.block_manager.num_usable_blocks - engine.block_manager.num_free_blocks
    assert used == 0 or used == 6
    assert engine.stats().num_computed_tokens == 10 + 4


def test_the_first_write_into_a_shared_block_copies_it_and_the_last_holder_writes_in_place() -> None:
    engine = memory_engine(num_blocks=64, block_size=4, enable_prefix_caching=False, enable_trace=True)
    engine.add_request("a", list(range(1, 11)), params(3, n=3))
    engine.step()
    engine.step()
    copies = [event.args["copies"] for event in engine.tracer.events if event.name == "schedule"]
    assert [len(step) for step in copies] == [0, 2]
    done = run(engine)
    for index in range(3):
        assert done["a"].outputs[index].token_ids == expected_output(range(1, 11), 7 + index, 3)


def test_a_second_request_with_the_same_prompt_computes_only_what_is_not_in_whole_cached_blocks() -> None:
    engine = memory_engine(num_blocks=64, block_size=4)
    for name in ("first", "second"):
        engine.add_request(name, list(range(1, 15)), params(3))
        done = run(engine)
    assert done["second"].num_cached_tokens == 12
    assert engine.stats().num_computed_tokens == (14 + 2) + (14 - 12 + 2)
    assert done["second"].outputs[0].token_ids == expected_output(range(1, 15), 7, 3)


def test_requests_of_one_step_do_not_hit_blocks_that_are_being_computed() -> None:
    engine = memory_engine(num_blocks=64, block_size=4, max_num_batched_tokens=64)
    for name in ("a", "b"):
        engine.add_request(name, list(range(1, 15)), params(3))
    done = run(engine)
    assert [done[name].num_cached_tokens for name in ("a", "b")] == [0, 0]
    assert done["a"].outputs[0].token_ids == done["b"].outputs[0].token_ids == expected_output(range(1, 15), 7, 3)


def test_fcfs_finishes_in_order_of_arrival_and_sjf_the_short_one_first() -> None:
    order = {}
    for policy in ("fcfs", "sjf"):
        engine = memory_engine(max_num_seqs=1, num_blocks=64, scheduling_policy=policy)
        for name, length in (("long", 20), ("middle", 10), ("short", 2)):
            engine.add_request(name, [1, 2], params(length))
        order[policy] = list(run(engine))
    assert order == {"fcfs": ["long", "middle", "short"], "sjf": ["short", "middle", "long"]}


def test_priority_goes_first_and_is_preempted_last() -> None:
    engine = memory_engine(num_blocks=9, block_size=2, scheduling_policy="priority", enable_prefix_caching=False)
    engine.add_request("late", [1, 2, 3, 4], params(10), priority=5)
    engine.add_request("urgent", [5, 6, 7, 8], params(10), priority=1)
    done = run(engine)
    assert engine.stats().num_preemptions > 0
    assert list(done) == ["urgent", "late"]


def test_a_scheduler_of_ones_own_is_five_lines() -> None:
    class LastInFirstOut(Scheduler):
        def sort_key(self, request: Request) -> int:
            return -request.arrival

    engine = memory_engine(max_num_seqs=1, num_blocks=64, scheduler_cls=LastInFirstOut)
    for name in "abc":
        engine.add_request(name, [1, 2], params(3))
    assert list(run(engine)) == ["c", "b", "a"]


# ---- running ahead of the device ---------------------------------------------------------------------------------


def test_an_engine_that_runs_ahead_gives_the_same_tokens_and_drops_what_it_computed_too_much() -> None:
    workload = {f"q{i}": ([i + 1] * (3 + 5 * i), 4 + 3 * i) for i in range(6)}
    done = {}
    for ahead in (False, True):
        engine = memory_engine(num_blocks=200, max_num_seqs=4, max_num_batched_tokens=16, async_scheduling=ahead)
        for name, (prompt, max_tokens) in workload.items():
            engine.add_request(name, prompt, params(max_tokens, ignore_eos=False))
        done[ahead] = run(engine)
        worker = engine.executor.worker
        assert isinstance(worker, MemoryWorker)
        assert (worker.num_ahead > 10) == ahead
    for name, (prompt, max_tokens) in workload.items():
        for ahead in done:
            assert done[ahead][name].outputs[0].token_ids == expected_output(prompt, 7, max_tokens, False)


def test_running_ahead_a_sequence_that_ends_by_length_is_computed_no_step_too_long() -> None:
    engine = memory_engine(num_blocks=200, async_scheduling=True)
    engine.add_request("a", [1, 2, 3], params(9))
    run(engine)
    assert engine.stats().num_computed_tokens == 3 + 8


def test_running_ahead_waits_where_the_next_step_depends_on_the_tokens() -> None:
    """Forks, beams and penalties look at the newest token."""
    for options in (params(6, n=2), params(6, repetition_penalty=1.2), BeamSearchParams(2, 6)):
        engine = memory_engine(num_blocks=200, async_scheduling=True)
        engine.add_request("a", [1, 2, 3], options)  # type: ignore[arg-type]
        engine.step()
        worker = engine.executor.worker
        assert isinstance(worker, MemoryWorker) and not worker.num_ahead
        run(engine)


def test_an_engine_that_runs_ahead_preempts_only_what_has_no_token_in_flight() -> None:
    """In a pool that is too small it runs ahead as long as blocks last, waits, preempts, and goes on."""
    engine = memory_engine(num_blocks=14, block_size=2, async_scheduling=True)
    prompts = [[i + 1] * 4 for i in range(5)]
    for i, prompt in enumerate(prompts):
        engine.add_request(str(i), prompt, params(12))
    done = run(engine)
    worker = engine.executor.worker
    assert isinstance(worker, MemoryWorker)
    assert engine.stats().num_preemptions > 0 and worker.num_ahead > 5
    for i, prompt in enumerate(prompts):
        assert done[str(i)].outputs[0].token_ids == expected_output(prompt, 7, 12)


def test_blocks_of_a_step_ahead_are_offered_to_others_only_with_known_tokens() -> None:
    engine = memory_engine(num_blocks=200, block_size=2, async_scheduling=True)
    engine.add_request("a", [1, 2, 3], params(20))
    for _ in range(7):
        engine.step()
    engine.add_request("b", [*engine.scheduler.running[0].token_ids[:9], 49], params(3))
    done = run(engine)
    assert done["b"].num_cached_tokens == 8
    assert done["b"].outputs[0].token_ids == expected_output(done["b"].prompt_token_ids, 7, 3)


# ---- refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "options", "words"),
    [
        ([], {}, "empty"),
        ([1, VOCAB], {}, "out of vocabulary"),
        ([-1], {}, "out of vocabulary"),
        ([1.5], {}, "integers"),
        ([True], {}, "integers"),
        (7, {}, "list of token ids"),
        ({"text": "x"}, {}, "prompt_token_ids"),
        ("text", {}, "tokenizer"),
        ([1] * 60, {"max_tokens": 5}, "maximum context length is 64"),
        ([1] * 70, {"max_tokens": 1}, "maximum context length is 64"),
        ([1] * 40, {"max_tokens": 20}, "needs up to 15 KV blocks"),
        ([1], {"n": 9, "temperature": 1.0}, "max_num_seqs"),
        ([1], {"logit_bias": {VOCAB: 1.0}}, "out of vocabulary"),
        ([1], {"stop_token_ids": [VOCAB]}, "out of vocabulary"),
        ([1], {"stop": "x"}, "tokenizer"),
    ],
)
def test_a_request_that_cannot_be_served_is_refused_and_the_engine_goes_on(
    prompt: object, options: dict, words: str
) -> None:
    engine = memory_engine(num_blocks=13, block_size=4, max_model_len=64)
    engine.add_request("good", [1, 2, 3], params(4))
    with pytest.raises(InvalidRequestError, match=words):
        engine.add_request("bad", prompt, params(**({"max_tokens": 2} | options)))  # type: ignore[arg-type]
    assert list(run(engine)) == ["good"]


def test_the_largest_request_that_fits_the_pool_is_served() -> None:
    engine = memory_engine(num_blocks=13, block_size=4, max_model_len=64)
    engine.add_request("exact", [1] * 40, params(9))  # 48 slots: the last token needs none
    assert run(engine)["exact"].outputs[0].token_ids == expected_output([1] * 40, 7, 9)


def test_a_duplicate_request_id_is_refused_until_the_first_has_ended() -> None:
    engine = memory_engine()
    engine.add_request("a", [1], params(3))
    with pytest.raises(InvalidRequestError, match="in use"):
        engine.add_request("a", [2], params(3))
    assert run(engine)["a"].prompt_token_ids == [1]
    engine.add_request("a", [2], params(3))
    assert run(engine)["a"].outputs[0].token_ids == expected_output([2], 7, 3)


def test_a_budget_below_the_number_of_sequences_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_num_batched_tokens"):
        memory_engine(max_num_seqs=8, max_num_batched_tokens=7)


# ---- failures ---------------------------------------------------------------------------------------------------


def test_invalid_logits_end_one_request_and_none_of_its_blocks_can_be_hit() -> None:
    engine = memory_engine(num_blocks=64)
    worker = engine.executor.worker
    assert isinstance(worker, MemoryWorker)
    worker.invalid_seeds = {666}
    engine.add_request("good", [1] * 10, params(4))
    engine.add_request("bad", [2] * 90, params(4, seed=666))  # its first chunks were cached before it failed
    engine.add_request("group", [3] * 10, params(4, seed=665, n=3))
    done = run(engine)
    assert done["good"].outputs[0].token_ids == expected_output([1] * 10, 7, 4)
    assert done["bad"].outputs[0].finish_reason == "error"
    assert [o.finish_reason for o in done["group"].outputs] == ["error"] * 3
    worker.invalid_seeds = set()
    engine.add_request("again", [2] * 90, params(4))
    assert run(engine)["again"].num_cached_tokens == 0


@pytest.mark.parametrize("broken", ["fail_next", "fail_launch"])
def test_a_step_that_raises_while_the_next_is_in_flight_ends_its_requests_and_the_others_go_on(broken: str) -> None:
    for fail_at in range(1, 12):
        engine = memory_engine(num_blocks=200, block_size=2, max_num_seqs=3, async_scheduling=True)
        worker = engine.executor.worker
        assert isinstance(worker, MemoryWorker)
        for i in range(6):
            engine.add_request(str(i), [i + 1] * 4, params(5 + i))
        done: dict[str, RequestOutput] = {}
        raised = 0
        for step in range(200):
            setattr(worker, broken, getattr(worker, broken) or step == fail_at)
            try:
                outputs = engine.step()
            except RuntimeError:
                raised += 1
                continue
            finally:
                engine.block_manager.check_integrity()
            for output in outputs:
                assert output.request_id not in done
                done[output.request_id] = output  # type: ignore[assignment]
            if not engine.has_unfinished_requests():
                break
        assert raised == 1 and set(done) == {str(i) for i in range(6)}, "every request ends exactly once"
        assert engine.block_manager.num_free_blocks == engine.block_manager.num_usable_blocks
        failed = [i for i, o in done.items() if o.outputs[0].finish_reason == "error"]
        assert 1 <= len(failed) <= 3
        for i, output in done.items():
            expected = expected_output([int(i) + 1] * 4, 7, 5 + int(i))
            if i in failed:
                assert output.outputs[0].token_ids == expected[: len(output.outputs[0].token_ids)]
            else:
                assert output.outputs[0].token_ids == expected


@pytest.mark.parametrize("mode", ["recompute", "swap"])
def test_a_step_that_raises_ends_its_requests_and_the_others_go_on(mode: str) -> None:
    for fail_at in range(1, 12):
        engine = memory_engine(num_blocks=12, block_size=2, num_host_blocks=50, max_num_seqs=3, preemption_mode=mode)
        worker = engine.executor.worker
        assert isinstance(worker, MemoryWorker)
        for i in range(6):
            engine.add_request(str(i), [i + 1] * 4, params(8))
        done: dict[str, RequestOutput] = {}
        for step in range(200):
            worker.fail_next = step == fail_at
            try:
                outputs = engine.step()
            except RuntimeError as error:
                assert "broke" in str(error)
                continue
            finally:
                engine.block_manager.check_integrity()
            done.update({o.request_id: o for o in outputs})  # type: ignore[misc]
            if not engine.has_unfinished_requests():
                break
        assert set(done) == {str(i) for i in range(6)}, "every request ends exactly once"
        failed = [i for i, o in done.items() if o.outputs[0].finish_reason == "error"]
        assert 1 <= len(failed) <= 3
        for i, output in done.items():
            expected = expected_output([int(i) + 1] * 4, 7, 8)
            if i in failed:
                assert output.outputs[0].token_ids == expected[: len(output.outputs[0].token_ids)]
            else:
                assert output.outputs[0].token_ids == expected


def test_a_scheduler_that_schedules_nothing_is_reported_and_does_not_hang() -> None:
    class Idle(Scheduler):
        def _admit_waiting(self, items: dict, budget: int) -> list[Request]:
            return []

    engine = memory_engine(scheduler_cls=Idle)
    engine.add_request("a", [1], params(2))
    with pytest.raises(PagedlabError, match="chose nothing"):
        engine.step()


# ---- beam search ------------------------------------------------------------------------------------------------


def brute_force_beams(
    prompt: list[int], width: int, max_tokens: int, ignore_eos: bool
) -> list[tuple[list[int], float]]:
    """Beam search with no engine: every hypothesis is a plain list."""
    beams, ended = [([], 0.0)], []
    for _ in range(max_tokens):
        options = []
        for tokens, score in beams:
            logprobs = toy_logprobs(prompt + tokens)
            for token in np.argsort(-logprobs, kind="stable")[: 2 * width]:
                option = ([*tokens, int(token)], score + float(logprobs[token]))
                (ended if token == EOS and not ignore_eos else options).append(option)
        beams = sorted(options, key=lambda o: -o[1])[:width]
    return sorted(ended + beams, key=lambda o: -o[1] / len(o[0]))[:width]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    prompt=st.lists(st.integers(1, 9), min_size=1, max_size=9),
    width=st.integers(1, 4),
    max_tokens=st.integers(1, 7),
    ignore_eos=st.booleans(),
    block_size=st.sampled_from([1, 2, 4]),
    spare_blocks=st.integers(0, 20),
    preemption=st.sampled_from(["recompute", "swap"]),
)
def test_beam_search_finds_what_brute_force_finds(
    prompt: list[int],
    width: int,
    max_tokens: int,
    ignore_eos: bool,
    block_size: int,
    spare_blocks: int,
    preemption: str,
) -> None:
    blocks = -(-max(len(prompt) + max_tokens, 9) // block_size) + spare_blocks + 1
    engine = memory_engine(
        num_blocks=blocks,
        block_size=block_size,
        num_host_blocks=40,
        preemption_mode=preemption,
        max_num_batched_tokens=8,
    )
    engine.add_request("beams", prompt, BeamSearchParams(width, max_tokens, ignore_eos=ignore_eos))
    engine.add_request("other", [9, 9, 9], params(6))
    done = run(engine)
    expected = brute_force_beams(prompt, width, max_tokens, ignore_eos)
    found = [(o.token_ids, o.cumulative_logprob) for o in done["beams"].outputs]
    assert [tokens for tokens, _ in found] == [tokens for tokens, _ in expected]
    assert [score for _, score in found] == pytest.approx([score for _, score in expected])


def test_beams_share_the_blocks_of_their_common_prefix() -> None:
    engine = memory_engine(num_blocks=64, block_size=4, enable_prefix_caching=False)
    engine.add_request("beams", [1] * 40, BeamSearchParams(4, 8))
    for _ in range(5):
        engine.step()
    used = engine.block_manager.num_usable_blocks - engine.block_manager.num_free_blocks
    assert used <= 10 + 4 * 2, "four beams of 44 tokens would need 44 blocks of their own"
    run(engine)
