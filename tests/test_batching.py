"""The three batching methods in simulation: against brute force, against the engine, and against queueing theory."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_worker import memory_engine

from pagedlab.basics.published_configs import PUBLISHED
from pagedlab.errors import SimulationError
from pagedlab.model_authoring.request import Request
from pagedlab.model_authoring.scheduler import Scheduler
from pagedlab.sampling_params import SamplingParams
from pagedlab.simulate.batching import simulate_continuous, simulate_dynamic, simulate_static
from pagedlab.simulate.batching_run import BatchingRun, summarise
from pagedlab.simulate.cost_model import CostModel, StepSize, fit, flops_per_pair, least_squares, linear_flops
from pagedlab.simulate.devices import device
from pagedlab.simulate.roofline import Chunk, ModelShape, forward
from pagedlab.simulate.workloads import Lengths, TraceRequest, make_workload

SHAPE = ModelShape.from_config(PUBLISHED["SmolLM2-135M"])
A100 = CostModel.from_device(SHAPE, device("A100 80GB"))


@dataclass(frozen=True)
class Exact:
    """A cost whose times are sums of quarters, so that floating point has nothing to round."""

    per_row: float = 1.0
    per_context: float = 0.25

    def seconds_of(self, rows: Any, sequences: Any, sampled: Any, pairs: Any, context: Any) -> Any:
        return self.per_row * rows + self.per_context * context + 2.0 + 0.5 * sequences


EXACT: Any = Exact()

sizes = st.tuples(st.integers(0, 40), st.integers(1, 30), st.integers(1, 25))
workloads = st.lists(sizes, min_size=1, max_size=14).map(
    lambda rows: [
        TraceRequest(float(arrival), prompt, output)
        for arrival, (_, prompt, output) in zip(np.cumsum([row[0] for row in rows]).tolist(), rows, strict=True)
    ]
)


# ---- padded batches ----------------------------------------------------------------------------------------------


def naive_padded(requests: list[TraceRequest], cost: Any, batch_size: int, timeout: float) -> tuple[list, list, int]:
    """First and last token of each request, and all cells computed: one cell and one token at a time."""
    firsts, lasts, cells, now, waiting = [], [], 0, 0.0, list(requests)
    while waiting:
        now = max(now, waiting[0].arrival)
        while True:  # wait until the batch may start
            here = [request for request in waiting if request.arrival <= now]
            nobody_else = len(here) == len(waiting) and timeout == math.inf
            if len(here) >= batch_size or now >= waiting[0].arrival + timeout or nobody_else:
                break
            later = [request.arrival for request in waiting if request.arrival > now]
            now = min([*later, waiting[0].arrival + timeout])
        batch, waiting = here[:batch_size], waiting[min(batch_size, len(here)) :]
        width = max(request.prompt_tokens for request in batch)
        grid = [["pad"] * (width - request.prompt_tokens) + ["prompt"] * request.prompt_tokens for request in batch]
        cells += sum(map(len, grid))
        pairs = len(batch) * sum(range(1, width + 1))
        now += cost.seconds_of(cells and len(batch) * width, len(batch), len(batch), pairs, len(batch) * width)
        times = [now]
        while len(times) < max(request.output_tokens for request in batch):
            for row in grid:
                row.append("answer")
                cells += 1
            context = sum(map(len, grid))
            now += cost.seconds_of(len(batch), len(batch), len(batch), context, context)
            times.append(now)
        firsts += [times[0]] * len(batch)
        lasts += [times[request.output_tokens - 1] for request in batch]
    return firsts, lasts, cells


@given(requests=workloads, batch_size=st.integers(1, 5), timeout=st.sampled_from([0.0, 7.0, 60.0, math.inf]))
def test_padded_batches_are_as_counted_cell_by_cell(
    requests: list[TraceRequest], batch_size: int, timeout: float
) -> None:
    firsts, lasts, cells = naive_padded(requests, EXACT, batch_size, timeout)
    run = simulate_dynamic(requests, EXACT, batch_size, timeout)
    assert run.first_token.tolist() == firsts
    assert run.finished.tolist() == lasts
    assert run.computed_rows == cells
    assert (run.released >= run.finished).all()
    if timeout == math.inf:
        static = simulate_static(requests, EXACT, batch_size)
        assert static.finished.tolist() == lasts


@given(requests=workloads)
def test_batches_of_one_are_a_queue_with_one_server(requests: list[TraceRequest]) -> None:
    """Lindley's recursion: who comes begins when the one before has left, or at once."""
    run = simulate_static(requests, EXACT, 1)
    free = 0.0
    for index, request in enumerate(requests):
        begin = max(free, request.arrival)
        assert run.started[index] == begin
        contexts = [request.prompt_tokens + i for i in range(1, request.output_tokens)]
        prefill = EXACT.seconds_of(request.prompt_tokens, 1, 1, 0, request.prompt_tokens)
        free = begin + prefill + sum(EXACT.seconds_of(1, 1, 1, context, context) for context in contexts)
        assert run.finished[index] == free
    assert run.computed_rows == run.needed_rows


@given(lengths=st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50)), min_size=2, max_size=8))
def test_padding_never_computes_less_than_is_needed(lengths: list[tuple[int, int]]) -> None:
    requests = [TraceRequest(0.0, *pair) for pair in lengths]
    run = simulate_static(requests, EXACT, len(requests))
    same = len(set(lengths)) == 1
    assert (run.computed_rows == run.needed_rows) == same
    assert run.computed_rows >= run.needed_rows


# ---- continuous batching -----------------------------------------------------------------------------------------

limits = st.fixed_dictionaries(
    {
        "max_num_seqs": st.integers(1, 6),
        "max_num_batched_tokens": st.integers(6, 40),
        "num_blocks": st.integers(15, 60),
        "block_size": st.sampled_from([4, 5]),
        "policy": st.sampled_from(["fcfs", "sjf"]),
    }
)


@settings(max_examples=300, deadline=None)
@given(requests=workloads, limits=limits)
def test_jumping_changes_nothing(requests: list[TraceRequest], limits: dict[str, Any]) -> None:
    fast = simulate_continuous(requests, EXACT, **limits)
    slow = simulate_continuous(requests, EXACT, jump=False, **limits)
    assert fast.steps == slow.steps
    for name in ("started", "first_token", "finished", "released"):
        assert getattr(fast, name).tolist() == getattr(slow, name).tolist(), name
    assert fast.num_preemptions == slow.num_preemptions


def test_jumps_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the property above compares is not the same code twice."""
    asked = []
    schedule = Scheduler.schedule
    monkeypatch.setattr(Scheduler, "schedule", lambda self: asked.append(1) or schedule(self))
    run = simulate_continuous([TraceRequest(0.0, 10, 200)] * 3, EXACT)
    assert len(run.steps.rows) == 200 and len(asked) < 10


@settings(max_examples=100, deadline=None)
@given(requests=workloads, limits=limits)
def test_every_step_keeps_the_limits_and_every_request_ends(
    requests: list[TraceRequest], limits: dict[str, Any]
) -> None:
    run = simulate_continuous(requests, EXACT, **limits)
    assert max(run.steps.rows) <= limits["max_num_batched_tokens"]
    assert max(run.steps.sequences) <= limits["max_num_seqs"]
    assert max(run.steps.used_blocks) <= limits["num_blocks"] - 1
    arrivals = np.array([request.arrival for request in requests])
    assert (arrivals <= run.started).all() and (run.started < run.first_token).all()
    assert (run.first_token <= run.finished).all()
    if not run.num_preemptions:
        assert run.computed_rows == run.needed_rows, "no padding, and nothing computed twice"
    ends = np.array(run.steps.starts) + np.array(run.steps.seconds)
    assert (ends[:-1] <= np.array(run.steps.starts[1:])).all(), "one step at a time"


@settings(max_examples=60, deadline=None)
@given(requests=workloads, limits=limits)
def test_steps_are_those_of_the_engine(requests: list[TraceRequest], limits: dict[str, Any]) -> None:
    """LLMEngine with a worker that keeps real memory takes the same steps when all requests wait from the start."""
    requests = [request._replace(arrival=0.0) for request in requests]
    policy = limits.pop("policy")
    engine = memory_engine(
        scheduling_policy=policy, enable_prefix_caching=False, enable_trace=True, async_scheduling=False, **limits
    )
    for index, request in enumerate(requests):
        params = SamplingParams(temperature=0, max_tokens=request.output_tokens, ignore_eos=True)
        engine.add_request(str(index), [1] * request.prompt_tokens, params)
    while engine.has_unfinished_requests():
        engine.step()
    taken = [event.args for event in engine.tracer.events if event.name == "schedule"]
    run = simulate_continuous(requests, EXACT, policy=policy, **limits)
    assert run.steps.rows == [step["num_tokens"] for step in taken]
    assert run.steps.used_blocks == [engine.block_manager.num_usable_blocks - step["num_free_blocks"] for step in taken]
    assert run.num_preemptions == engine.stats().num_preemptions


def test_a_scheduler_of_your_own_is_asked_at_every_step() -> None:
    class LastComeFirstServed(Scheduler):
        def sort_key(self, request: Request) -> Any:
            return -request.arrival

    requests = [TraceRequest(0.0, 4, 50)] * 3
    run = simulate_continuous(requests, EXACT, max_num_seqs=1, scheduler_cls=LastComeFirstServed)
    assert run.finished[2] < run.finished[1] < run.finished[0]


def test_a_request_that_can_never_fit_is_refused() -> None:
    with pytest.raises(SimulationError, match="raise num_blocks"):
        simulate_continuous([TraceRequest(0.0, 100, 100)], EXACT, num_blocks=5)


@pytest.mark.parametrize("requests", [[], [TraceRequest(1.0, 1, 1), TraceRequest(0.0, 1, 1)]])
def test_a_workload_that_is_none_is_refused(requests: list[TraceRequest]) -> None:
    for simulate in (lambda: simulate_static(requests, EXACT, 2), lambda: simulate_continuous(requests, EXACT)):
        with pytest.raises(SimulationError, match="in order of arrival"):
            simulate()


def test_batch_size_and_timeout_are_checked() -> None:
    for size, timeout in ((0, 1.0), (1, -1.0)):
        with pytest.raises(SimulationError, match="batch_size"):
            simulate_dynamic([TraceRequest(0.0, 1, 1)], EXACT, size, timeout)


def test_continuous_batching_beats_padding_on_unequal_lengths_and_ties_on_equal_ones() -> None:
    unequal = make_workload(400, Lengths(40, 60, spread=1.0), seed=3)
    rate = {
        run.method: summarise(run, A100).output_tokens_per_second
        for run in (simulate_static(unequal, A100, 16), simulate_continuous(unequal, A100, max_num_seqs=16))
    }
    assert rate["continuous"] > 2 * rate["static"]
    equal = [TraceRequest(0.0, 16, 40)] * 64
    static, continuous = simulate_static(equal, A100, 16), simulate_continuous(equal, A100, max_num_seqs=16)
    assert static.computed_rows == continuous.computed_rows
    assert static.makespan == pytest.approx(continuous.makespan)


def test_summary_of_a_run_that_can_be_done_by_hand() -> None:
    """Two prompts of 2 and 4 tokens, answers of 3 and 1, in one padded batch; a step takes 10 s."""
    ten: Any = Exact(per_row=0, per_context=0)
    run: BatchingRun = simulate_static([TraceRequest(0.0, 2, 3), TraceRequest(1.0, 4, 1)], ten, 2)
    step = 2 + 0.5 * 2
    summary = summarise(run, A100)
    assert run.started.tolist() == [1.0, 1.0]
    assert run.first_token.tolist() == [1 + step] * 2
    assert run.finished.tolist() == [1 + 3 * step, 1 + step]
    assert run.released.tolist() == [1 + 3 * step] * 2
    assert (run.computed_rows, run.needed_rows) == (2 * 4 + 2 * 2, (2 + 2) + (4 + 0))
    assert summary.waste == pytest.approx(1 - 8 / 12)
    assert summary.output_tokens_per_second == pytest.approx(4 / (1 + 3 * step))
    assert summary.tpot_median == pytest.approx(step)
    assert summary.mean_live == pytest.approx((2 + 1 + 1) / 3)
    assert summary.busy == pytest.approx(3 * step / (1 + 3 * step))


# ---- the cost model ----------------------------------------------------------------------------------------------

chunks = st.lists(st.builds(Chunk, st.integers(1, 500), st.integers(0, 2000)), min_size=1, max_size=20)


@given(chunks=chunks)
def test_step_sizes_count_what_the_roofline_counts(chunks: list[Chunk]) -> None:
    size, work = StepSize.of(chunks), forward(SHAPE, chunks)
    assert linear_flops(SHAPE, size.rows, size.sampled) == work.linear_flops
    assert flops_per_pair(SHAPE) * size.pairs == work.attention_flops
    assert SHAPE.kv_bytes_per_token() * size.context == work.cache_bytes
    h100 = device("H100")
    seconds = CostModel.from_device(SHAPE, h100).seconds(size)
    # Nothing overlaps between the parts: above the floor, and by no more than the four terms of it together.
    assert work.seconds(h100) * (1 - 1e-3) <= seconds
    assert seconds <= work.flops / h100.flops_per_second + work.bytes / h100.bytes_per_second


def steps_of_a_server(seed: int) -> list[StepSize]:
    rng = np.random.default_rng(seed)
    steps = []
    for _ in range(300):
        decodes = [Chunk(1, int(past)) for past in rng.integers(1, 400, rng.integers(0, 33))]
        prompts = [Chunk(int(new)) for new in rng.integers(1, 200, rng.integers(0, 3))]
        if decodes or prompts:
            steps.append(StepSize.of(decodes + prompts))
    return steps


models = st.builds(
    CostModel,
    st.just(SHAPE),
    st.just(4),
    st.floats(3e10, 3e11),
    st.floats(5e9, 3e10),
    st.floats(1e10, 1e12),
    st.floats(5e8, 2e10),
    st.floats(0, 1e-3),
    st.floats(0, 1e-2),
)


@settings(max_examples=15, deadline=None)
@given(model=models, seed=st.integers(0, 1000))
def test_fit_predicts_steps_that_it_has_not_seen(model: CostModel, seed: int) -> None:
    steps = steps_of_a_server(seed)
    noise = np.random.default_rng(seed).normal(1, 0.05, len(steps))
    fitted = fit(SHAPE, steps, [model.seconds(step) * factor for step, factor in zip(steps, noise, strict=True)])
    unseen = steps_of_a_server(seed + 1)
    true = np.array([model.seconds(step) for step in unseen])
    predicted = np.array([fitted.seconds(step) for step in unseen])
    assert predicted.sum() == pytest.approx(true.sum(), rel=0.05)
    assert np.median(np.abs(predicted / true - 1)) < 0.05


def test_fit_refuses_what_it_cannot_fit() -> None:
    steps = steps_of_a_server(0)
    with pytest.raises(SimulationError, match="8 steps or more"):
        fit(SHAPE, steps[:3], [1.0] * 3)
    with pytest.raises(SimulationError, match="more than 0"):
        fit(SHAPE, steps, [0.0] * len(steps))
    for seconds in (float("nan"), float("inf")):
        with pytest.raises(SimulationError, match="more than 0"):
            fit(SHAPE, steps, [seconds, *[1.0] * (len(steps) - 1)])
    with pytest.raises(SimulationError, match="of one size"):
        fit(SHAPE, steps[:1] * 9, [1.0] * 9)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), width=st.integers(1, 5))
def test_least_squares_is_the_minimum_among_parts_that_are_not_negative(seed: int, width: int) -> None:
    """Karush-Kuhn-Tucker: no gradient where a part is above 0, and none that points down where it is 0."""
    rng = np.random.default_rng(seed)
    matrix, target = rng.normal(size=(12, width)), rng.normal(size=12)
    parts, error = least_squares(matrix, target)
    gradient = 2 * matrix.T @ (matrix @ parts - target)
    assert (parts >= 0).all()
    assert error == pytest.approx(float(np.sum((matrix @ parts - target) ** 2)))
    assert (gradient >= -1e-8).all()
    assert np.abs(gradient[parts > 0]).max(initial=0) < 1e-8
