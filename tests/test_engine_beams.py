"""Beams, forks and plain requests that compete for a pool and for seats too few for all of them."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from memory_worker import VOCAB, expected_output, memory_engine
from test_engine import brute_force_beams

from pagedlab.interfaces.engine import LLMEngine
from pagedlab.model_authoring.recorder import StepRecorder
from pagedlab.model_authoring.scheduler import Schedule
from pagedlab.sampling_params import BeamSearchParams, RequestOutputKind, SamplingParams

Workload = list[dict[str, Any]]
SEED = 7


def one(prompt: list[int], max_tokens: int, *, width: int = 0, n: int = 1, **options: Any) -> dict[str, Any]:
    """A beam search if it has a width."""
    return {"prompt": prompt, "max_tokens": max_tokens, "width": width, "n": n, "arrives": 0, "priority": 0} | options


def run_checked(engine: LLMEngine, workload: Workload) -> dict[str, list[Any]]:
    """Completions by request. After every step the books balance, and no limit is passed."""
    schedule = engine.scheduler.schedule

    def checked_schedule() -> Schedule:
        decision = schedule()
        assert not decision.is_empty or not (decision.preempted or decision.ops.swap_out), "nobody would carry it out"
        assert decision.num_tokens <= engine.scheduler.max_num_batched_tokens
        return decision

    engine.scheduler.schedule = checked_schedule  # type: ignore[method-assign]
    done: dict[str, list[Any]] = {}
    for step in range(2000):
        for index, request in enumerate(workload):
            if request["arrives"] == step:
                params: Any = BeamSearchParams(request["width"] or 1, request["max_tokens"], ignore_eos=True)
                if not request["width"]:
                    params = SamplingParams(
                        n=request["n"],
                        max_tokens=request["max_tokens"],
                        seed=SEED,
                        ignore_eos=True,
                        output_kind=RequestOutputKind.FINAL_ONLY,
                    )
                engine.add_request(str(index), request["prompt"], params, priority=request["priority"])
        for output in engine.step():
            done[output.request_id] = output.outputs  # type: ignore[assignment]
        engine.block_manager.check_integrity()
        assert len(engine.scheduler.running) <= engine.scheduler.max_num_seqs
        if step > 6 and not engine.has_unfinished_requests():
            break
    assert not engine.has_unfinished_requests(), "the engine did not come to an end"
    manager = engine.block_manager
    assert manager.num_free_blocks == manager.num_usable_blocks
    assert manager.host_pool.num_free_blocks == manager.host_pool.num_usable_blocks
    return done


def check_outputs(done: dict[str, list[Any]], workload: Workload) -> None:
    """The oracles know neither memory nor batch nor queue."""
    assert set(done) == {str(index) for index in range(len(workload))}
    for index, request in enumerate(workload):
        found = [completion.token_ids for completion in done[str(index)]]
        prompt, max_tokens = request["prompt"], request["max_tokens"]
        if request["width"]:
            assert found == [tokens for tokens, _ in brute_force_beams(prompt, request["width"], max_tokens, True)]
        else:
            assert found == [expected_output(prompt, SEED + i, max_tokens) for i in range(request["n"])]


@pytest.mark.parametrize("ahead", [False, True], ids=["waiting", "ahead"])
@pytest.mark.parametrize("mode", ["recompute", "swap"])
@pytest.mark.parametrize(
    ("workload", "options"),
    [
        # The only request that could run gives up its own blocks, while a beam that has its candidates holds the rest.
        ([one([1], 6, width=3), one([2], 5)], {"num_blocks": 4, "block_size": 4, "max_num_seqs": 4}),
        # A beam waits, its seat is taken, and its siblings have more heirs than there are seats.
        (
            [one([1, 5, 4, 46, 16, 45, 36, 13, 22, 29, 35, 10, 49], 3, width=4), one([2], 2, n=3)],
            {"num_blocks": 6, "block_size": 4, "max_num_seqs": 4},
        ),
        # Nothing can be decided until the token in flight is known: the beams must be left alone.
        (
            [
                one([1], 2, width=3, priority=2),
                one([2] * 8, 4),
                one([3, 3, 3], 1, arrives=4),
            ],
            {
                "num_blocks": 8,
                "block_size": 2,
                "max_num_seqs": 5,
                "max_num_batched_tokens": 5,
                "scheduling_policy": "priority",
            },
        ),
    ],
    ids=["blocks", "seats", "in-flight"],
)
def test_beams_that_wait_for_their_siblings_stop_nobody(
    workload: Workload, options: dict[str, Any], mode: str, ahead: bool
) -> None:
    engine = memory_engine(
        preemption_mode=mode,
        async_scheduling=ahead,
        num_host_blocks=60,
        enable_prefix_caching=False,
        **options,
    )
    check_outputs(run_checked(engine, workload), workload)


def test_a_recorder_sees_a_beam_go_to_host_memory_and_back_in_one_step() -> None:
    engine = memory_engine(
        num_blocks=6,
        block_size=8,
        num_host_blocks=3,
        max_num_seqs=4,
        max_num_batched_tokens=64,
        long_prefill_token_threshold=5,
        enable_prefix_caching=False,
        preemption_mode="swap",
    )
    workload = [one([1] * 16, 3, width=4)]
    recorder, moves = StepRecorder(), []
    with recorder.attached_to(engine.scheduler):
        schedule = engine.scheduler.schedule

        def noted_schedule() -> Schedule:
            decision = schedule()
            if not decision.is_empty:
                both = set(decision.preempted) & set(decision.admitted)
                moves.append((len(decision.ops.swap_out), len(decision.ops.swap_in), bool(both)))
            return decision

        engine.scheduler.schedule = noted_schedule  # type: ignore[method-assign]
        check_outputs(run_checked(engine, workload), workload)
    steps = recorder.recording().steps
    assert any(both for _, _, both in moves), "the pool was not small enough to test anything"
    out = [sum(-(-one.num_computed // 8) for one in step.preempted if one.mode == "swap") for step in steps]
    back = [sum(-(-one.num_swapped_tokens // 8) for one in step.admitted) for step in steps]
    assert list(zip(out, back, strict=True)) == [(swapped, returned) for swapped, returned, _ in moves]


@st.composite
def workloads(draw: st.DrawFn) -> Workload:
    return [
        one(
            draw(st.lists(st.integers(1, VOCAB - 1), min_size=1, max_size=12)),
            draw(st.integers(1, 8)),
            width=draw(st.sampled_from([0, 0, 2, 3, 4])),
            n=draw(st.sampled_from([1, 2, 3])),
            arrives=draw(st.integers(0, 5)),
            priority=draw(st.integers(0, 2)),
        )
        for _ in range(draw(st.integers(2, 5)))
    ]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    workload=workloads(),
    block_size=st.sampled_from([1, 2, 4]),
    spare_blocks=st.integers(0, 3),
    budget=st.sampled_from([4, 7, 64]),
    caching=st.booleans(),
    policy=st.sampled_from(["fcfs", "priority", "sjf"]),
    mode=st.sampled_from(["recompute", "swap"]),
    num_host_blocks=st.sampled_from([0, 3, 60]),
    ahead=st.booleans(),
)
def test_beams_forks_and_plain_requests_share_a_pool_that_holds_one_of_them(
    workload: Workload,
    block_size: int,
    spare_blocks: int,
    budget: int,
    caching: bool,
    policy: str,
    mode: str,
    num_host_blocks: int,
    ahead: bool,
) -> None:
    largest = max(-(-(len(r["prompt"]) + r["max_tokens"] - 1) // block_size) for r in workload)
    engine = memory_engine(
        num_blocks=largest + spare_blocks + 1,
        block_size=block_size,
        num_host_blocks=num_host_blocks,
        max_num_seqs=4,
        max_num_batched_tokens=budget,
        enable_prefix_caching=caching,
        scheduling_policy=policy,
        preemption_mode=mode,
        async_scheduling=ahead,
    )
    check_outputs(run_checked(engine, workload), workload)
