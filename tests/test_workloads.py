"""Workloads, replayed traces, and the memory simulation against the published figures and against a naive loop."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from pagedlab.errors import SimulationError, TraceFileError
from pagedlab.simulate.allocators import KINDS, Allocator, PagedAllocator, State, make_allocator
from pagedlab.simulate.memory import find_external_failure, simulate_memory
from pagedlab.simulate.trace_files import read_trace
from pagedlab.simulate.workloads import (
    ALPACA_MEANS,
    SHAREGPT_MEANS,
    Lengths,
    TraceRequest,
    bursty_arrivals,
    make_workload,
    poisson_arrivals,
    spread_from_residents,
    total_tokens,
)

# ---- lengths and arrivals -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gamma", "lognormal"])
@pytest.mark.parametrize("means", [SHAREGPT_MEANS, ALPACA_MEANS])
@pytest.mark.parametrize("spread", [0.3, 0.9, 1.5])
def test_lengths_have_the_published_means_after_clipping(
    family: str, means: tuple[float, float], spread: float
) -> None:
    prompts, outputs = Lengths(*means, spread=spread, family=family).draw(20_000, np.random.default_rng(1))
    assert prompts.mean() == pytest.approx(means[0], rel=2e-3)
    assert outputs.mean() == pytest.approx(means[1], rel=2e-3)
    assert prompts.min() >= 1 and outputs.min() >= 1 and prompts.max() <= 1024
    assert (prompts + outputs).max() <= 2048


@pytest.mark.parametrize("family", ["gamma", "lognormal"])
def test_lengths_have_the_spread_asked_for_where_nothing_is_clipped(family: str) -> None:
    _, outputs = Lengths(100, 300, spread=0.6, family=family, window=100_000).draw(50_000, np.random.default_rng(2))
    assert outputs.std() / outputs.mean() == pytest.approx(0.6, rel=0.03)


def test_arrivals_have_the_rate_and_the_burstiness_asked_for() -> None:
    for burstiness in (0.2, 1.0, 3.0):
        gaps = np.diff(bursty_arrivals(100_000, 5.0, burstiness, np.random.default_rng(3)))
        assert gaps.mean() == pytest.approx(1 / 5, rel=0.05)
        assert gaps.std() / gaps.mean() == pytest.approx(burstiness, rel=0.05)
        assert gaps.min() >= 0


def test_poisson_arrivals_have_poisson_counts() -> None:
    arrivals = poisson_arrivals(100_000, 5.0, np.random.default_rng(4))
    counts = np.bincount(arrivals.astype(int))[:-1]  # requests in each second
    assert counts.var() == pytest.approx(counts.mean(), rel=0.05)


def test_a_workload_is_fixed_by_its_seed_and_in_order() -> None:
    lengths = Lengths(*SHAREGPT_MEANS)
    first, again, other = (make_workload(50, lengths, seed, rate=2.0, burstiness=2.0) for seed in (0, 0, 1))
    assert first == again != other
    assert all(a.arrival <= b.arrival for a, b in pairwise(first))
    assert all(request.arrival == 0 for request in make_workload(5, lengths))
    assert total_tokens([TraceRequest(0, 2, 3), TraceRequest(1, 4, 5)]) == 14


@pytest.mark.parametrize(("mean", "count", "family"), [(512, 100, "gamma"), (512, 1, "lognormal"), (3, 2, "gamma")])
def test_the_mean_is_met_even_where_all_draws_are_far_below_it(mean: float, count: int, family: str) -> None:
    requests = make_workload(count, Lengths(mean, mean, spread=5, family=family), seed=3)
    assert np.mean([request.output_tokens for request in requests]) == pytest.approx(mean, rel=0.01)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Lengths(0.5, 10),
        lambda: Lengths(10, 2000),
        lambda: Lengths(10, 10, spread=0),
        lambda: Lengths(10, 10, spread=float("nan")),
        lambda: Lengths(10, 10, family="normal"),
        lambda: make_workload(5, Lengths(10, 10), rate=float("nan")),
        lambda: make_workload(0, Lengths(10, 10)),
        lambda: make_workload(5, Lengths(10, 10), rate=0),
        lambda: make_workload(5, Lengths(10, 10), rate=1, burstiness=-1),
        lambda: spread_from_residents(10, 9),
    ],
)
def test_impossible_workloads_are_refused(make) -> None:
    with pytest.raises(SimulationError):
        make()


# ---- replay ---------------------------------------------------------------------------------------------------------


def test_csv_and_jsonl_give_the_same_requests_sorted_from_zero(tmp_path: Path) -> None:
    rows = [(12.5, 7, 3), (10.0, 5, 1), (11.0, 2048, 9)]
    expected = [TraceRequest(0.0, 5, 1), TraceRequest(1.0, 2048, 9), TraceRequest(2.5, 7, 3)]
    table, lines = tmp_path / "t.csv", tmp_path / "t.jsonl"
    table.write_text("arrival,prompt_tokens,output_tokens,ignored\n" + "".join(f"{a},{p},{o},x\n" for a, p, o in rows))
    fields = ("arrival", "prompt_tokens", "output_tokens")
    lines.write_text("\n\n".join(json.dumps(dict(zip(fields, row, strict=True))) for row in rows))
    assert read_trace(table) == read_trace(lines) == expected


def test_other_column_names_dates_and_milliseconds(tmp_path: Path) -> None:
    dates, milliseconds = tmp_path / "a.csv", tmp_path / "b.jsonl"
    dates.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:16:46.6805900,396,109\n"
    )
    columns = {"arrival": "TIMESTAMP", "prompt_tokens": "ContextTokens", "output_tokens": "GeneratedTokens"}
    assert read_trace(dates, columns) == [TraceRequest(0.0, 374, 44), TraceRequest(60.0, 396, 109)]
    milliseconds.write_text('{"timestamp": 500, "in": 6, "out": 2}\n{"timestamp": 3500, "in": 7, "out": 1}\n')
    columns = {"arrival": "timestamp", "prompt_tokens": "in", "output_tokens": "out"}
    assert read_trace(milliseconds, columns, 0.001) == [TraceRequest(0.0, 6, 2), TraceRequest(3.0, 7, 1)]


def test_texts_beside_the_numbers_may_hold_any_character(tmp_path: Path) -> None:
    table, lines = tmp_path / "t.csv", tmp_path / "t.jsonl"
    text = 'a\u2028b\x85c\x0cd\ne "f"'
    quoted = text.replace('"', '""')
    table.write_text(f'arrival,prompt_tokens,output_tokens,text\n0,3,2,"{quoted}"\n1,4,5,x\u2028y\n', encoding="utf-8")
    rows = [{"arrival": 0, "prompt_tokens": 3, "output_tokens": 2, "text": text}]
    rows.append({"arrival": 1, "prompt_tokens": 4, "output_tokens": 5, "text": text})
    lines.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    assert read_trace(table) == read_trace(lines) == [TraceRequest(0.0, 3, 2), TraceRequest(1.0, 4, 5)]


def test_a_field_that_csv_cannot_read_is_said_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("arrival,prompt_tokens,output_tokens,text\n0,1,1,x\n0,1,1," + "y" * 200_000 + "\n")
    with pytest.raises(TraceFileError, match="no CSV after line 2"):
        read_trace(path)


BAD_ROWS = {
    "0,0,5": "prompt_tokens must be a whole number, 1 or more",
    "0,5,-1": "output_tokens must be a whole number, 1 or more",
    "0,5,2.5": "output_tokens must be a whole number",
    "0,,5": "prompt_tokens is missing",
    "0,5": "output_tokens is missing",
    ",5,5": "arrival is missing",
    "soon,5,5": "arrival must be a number or a date",
    "-1,5,5": "arrival must be a time of 0 or more",
    "nan,5,5": "arrival must be a time of 0 or more",
    "0,inf,5": "prompt_tokens must be a whole number",
    "0,many,5": "prompt_tokens is not a number",
    "0,2000,100": "2000 \\+ 100 tokens are more than the window of 2048",
}


@pytest.mark.parametrize(("row", "words"), BAD_ROWS.items())
def test_each_bad_csv_row_is_named_with_its_line(tmp_path: Path, row: str, words: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"arrival,prompt_tokens,output_tokens\n0,1,1\n\n{row}\n2,2,2\n")
    with pytest.raises(TraceFileError, match=f"line 4: {words}"):
        read_trace(path, window=2048)


def test_all_bad_rows_are_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("arrival,prompt_tokens,output_tokens\n" + "\n".join(BAD_ROWS) + "\n")
    with pytest.raises(TraceFileError) as caught:
        read_trace(path, window=2048)
    assert len(caught.value.problems) == len(BAD_ROWS)
    assert f"{len(BAD_ROWS)} bad rows" in str(caught.value)


def test_bad_jsonl_rows(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    good = '{"arrival": 0, "prompt_tokens": 3, "output_tokens": 4}'
    huge = '{"arrival": 0, "prompt_tokens": 1' + "0" * 400 + ', "output_tokens": 4}'
    bad = ['{"arrival": 0', "[1, 2]", '{"arrival": true, "prompt_tokens": 3, "output_tokens": 4}', huge]
    bad.append('{"arrival": 0, "prompt_tokens": true, "output_tokens": 4}')
    path.write_text("\n".join([good, *bad]))
    with pytest.raises(TraceFileError) as caught:
        read_trace(path)
    assert [problem.split(":")[0] for problem in caught.value.problems] == [f"line {n}" for n in range(2, 7)]


def test_files_that_are_no_traces(tmp_path: Path) -> None:
    for name, content, words in [
        ("a.csv", "time,prompt_tokens,output_tokens\n1,1,1\n", "has no column arrival"),
        ("b.csv", "", "has no column"),
        ("c.csv", "arrival,prompt_tokens,output_tokens\n", "holds no request"),
        ("d.txt", "1,1,1", "rename it"),
        ("e.jsonl", "\n", "holds no request"),
    ]:
        (tmp_path / name).write_text(content)
        with pytest.raises(TraceFileError, match=words):
            read_trace(tmp_path / name)
    with pytest.raises(TraceFileError, match="cannot be read"):
        read_trace(tmp_path / "missing.csv")
    with pytest.raises(TraceFileError, match="columns="):
        read_trace(tmp_path / "a.csv", {"time": "arrival"})


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=80), st.sampled_from([".csv", ".jsonl"]))
def test_no_text_makes_the_reader_fail_in_another_way(tmp_path_factory, text: str, suffix: str) -> None:
    path = tmp_path_factory.mktemp("traces") / f"t{suffix}"
    head = "arrival,prompt_tokens,output_tokens\n" if suffix == ".csv" else ""
    path.write_text(head + text, encoding="utf-8", errors="replace")
    try:
        assert read_trace(path)
    except TraceFileError as error:
        assert str(error)


# ---- the memory simulation ------------------------------------------------------------------------------------------


def naive_simulation(allocator: Allocator, requests: list[TraceRequest], seconds_per_step: float) -> tuple[list, float]:
    """Step by step and token by token: mean counts and mean batch from the first step to the last admission.

    Only for memory that never runs out in mid-flight.
    """
    waiting = list(enumerate(requests))
    ends: dict[int, int] = {}
    sums, batches, step = np.zeros(len(State)), 0, 0
    while True:
        for key in [key for key, end in ends.items() if end == step]:
            del ends[key]
            allocator.free(key)
        wanted = 0
        while waiting and waiting[0][1].arrival <= step * seconds_per_step + 1e-9:
            key, request = waiting[0]
            if not allocator.allocate(key, request.prompt_tokens, request.output_tokens):
                wanted = allocator.slots_wanted(request.prompt_tokens, request.output_tokens)
                break
            ends[key] = step + request.output_tokens
            waiting.pop(0)
        if not waiting:
            return list(sums / step / allocator.capacity), batches / step
        before = np.array(allocator.counts(wanted))
        for key in ends:
            assert allocator.extend(key)
        sums += (before + np.array(allocator.counts(wanted))) / 2
        batches += len(ends)
        step += 1


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "paged"])
@pytest.mark.parametrize("rate", [None, 0.5])
def test_events_give_what_step_by_step_gives(kind: str, rate: float | None) -> None:
    requests = make_workload(60, Lengths(12, 20, spread=0.8, window=128), seed=5, rate=rate, burstiness=2.0)
    run = simulate_memory(make_allocator(kind, 300, 128), requests, seconds_per_step=0.25, warmup=0.0)
    shares, batch = naive_simulation(make_allocator(kind, 300, 128), requests, 0.25)
    assert list(run.shares.values()) == pytest.approx(shares, abs=1e-9)
    assert run.mean_batch == pytest.approx(batch)
    assert sum(run.shares.values()) == pytest.approx(1)
    assert run.admitted == 60 and run.preemptions == 0


def test_paged_events_give_what_step_by_step_gives_within_a_block() -> None:
    requests = make_workload(60, Lengths(12, 20, spread=0.8, window=128), seed=5, rate=0.5)
    run = simulate_memory(PagedAllocator(4000, 4), requests, seconds_per_step=0.25, warmup=0.0)
    shares, batch = naive_simulation(PagedAllocator(4000, 4), requests, 0.25)
    assert run.preemptions == 0
    assert run.mean_batch == pytest.approx(batch)
    assert run.shares[State.TOKEN] == pytest.approx(shares[State.TOKEN])
    assert list(run.shares.values()) == pytest.approx(shares, abs=4 * batch / 4000)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 20), st.integers(1, 12)), min_size=1, max_size=30),
    st.sampled_from(KINDS),
    st.integers(32, 70),
)
def test_every_request_gets_in_and_no_slot_is_lost(sizes: list[tuple[int, int]], kind: str, capacity: int) -> None:
    requests = [TraceRequest(0.0, prompt, output) for prompt, output in sizes]
    allocator = make_allocator(kind, capacity, window=32, block_size=4)
    run = simulate_memory(allocator, requests, warmup=0.0, map_steps=range(0, 40, 3))
    assert run.admitted == len(requests)
    assert run.steps == 0 or sum(run.shares.values()) == pytest.approx(1)
    assert all(len(states) == capacity for _, states in run.maps)
    assert sum(allocator.counts()) == capacity


def test_preempted_requests_come_back_and_write_all_their_tokens() -> None:
    """Two of 4 + 12 tokens in 20 slots: the second is sent away when both have filled the memory, and returns alone."""
    requests = [TraceRequest(0.0, 4, 12), TraceRequest(0.0, 4, 12), TraceRequest(0.0, 18, 1)]
    run = simulate_memory(PagedAllocator(20, 4, watermark=0.0), requests, warmup=0.0)
    assert run.preemptions == 1 and run.admitted == 3
    assert run.steps == 12 + 8, "4 of the second's 12 steps were while the first was there"
    assert run.written_tokens == (4 + 12) + (4 + 4) + (8 + 8) + 18, "its 8 tokens were computed once more"


def test_compaction_leaves_no_one_waiting_for_less_than_is_free() -> None:
    requests = make_workload(400, Lengths(*SHAREGPT_MEANS, spread=0.87))
    plain = simulate_memory(make_allocator("first-fit", 15728), requests)
    compacted = simulate_memory(make_allocator("first-fit", 15728), requests, compact=True)
    assert plain.fragmented > 0.5 and plain.moved_tokens == 0
    assert compacted.fragmented == 0 and compacted.moved_tokens > compacted.written_tokens
    assert compacted.mean_batch > plain.mean_batch


@pytest.mark.parametrize("kind", ["oracle", "first-fit", "best-fit", "power-of-two"])
def test_a_failure_found_is_one(kind: str) -> None:
    requests = make_workload(500, Lengths(*SHAREGPT_MEANS, spread=0.87))
    allocator = make_allocator(kind, 15728)
    failure = find_external_failure(allocator, requests)
    assert failure is not None
    assert failure.largest < failure.wanted <= failure.free
    _, prompt, output = requests[failure.request]
    assert not allocator.allocate("again", prompt, output)
    assert (allocator.snapshot() == State.FREE).sum() == failure.free


def test_reserve_max_is_never_fragmented_by_others() -> None:
    """All its runs are equal: what is left over is too little in all, not only in one run."""
    requests = make_workload(300, Lengths(*SHAREGPT_MEANS, spread=0.87))
    assert find_external_failure(make_allocator("reserve-max", 15728), requests) is None


@pytest.mark.parametrize("kind", KINDS)
def test_work_grows_with_requests_and_not_with_their_length(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What makes 100,000 requests a matter of seconds: memory is touched at events, a few for each request."""
    allocator = make_allocator(kind, 15728)
    calls, grow = [0], allocator.extend_all
    monkeypatch.setattr(allocator, "extend_all", lambda n: (calls.__setitem__(0, calls[0] + 1), grow(n))[1])
    run = simulate_memory(allocator, make_workload(300, Lengths(*SHAREGPT_MEANS)))
    assert calls[0] <= 2 * (run.admitted + run.preemptions) + 2
    assert run.written_tokens > 100 * run.admitted


def test_an_idle_memory_is_free() -> None:
    requests = [TraceRequest(0.0, 1, 1), TraceRequest(30.0, 1, 1)]
    run = simulate_memory(make_allocator("paged", 160), requests, seconds_per_step=0.03, warmup=0.0)
    assert run.steps == 1000 and run.shares[State.FREE] > 0.99


def test_simulations_that_make_no_sense_are_refused() -> None:
    requests = make_workload(3, Lengths(10, 10))
    used = make_allocator("oracle", 4096)
    used.allocate("x", 1, 1)
    for call, words in [
        (lambda: simulate_memory(used, requests), "empty memory"),
        (lambda: simulate_memory(make_allocator("oracle", 4096), []), "at least one request"),
        (lambda: simulate_memory(make_allocator("oracle", 4096), requests, warmup=1.0), "warmup"),
        (lambda: simulate_memory(make_allocator("paged", 4096), requests, compact=True), "no compaction"),
        (lambda: simulate_memory(make_allocator("paged", 16), [TraceRequest(0, 10, 10)]), "even alone"),
        (lambda: simulate_memory(make_allocator("paged", 64), [TraceRequest(2, 1, 1), TraceRequest(1, 1, 1)]), "order"),
    ]:
        with pytest.raises(SimulationError, match=words):
            call()


# ---- against the published figures (Kwon et al. 2023, arXiv 2309.06180) ---------------------------------------------

POOL = 15_728
"""Slots of 800 KiB in 12 GiB."""
CALIBRATED_ON = 20.4
"""Orca (Max)'s token states in figure 2, %: the only number of the figure that the simulation is told."""
FIG2_TOKEN_STATES = {"power-of-two": 26.8, "oracle": 38.2, "paged": 96.3}
FIG2_MAX_OTHERS = {State.RESERVED: 13.3, State.INTERNAL: 57.3, State.EXTERNAL: 8.9}
FIG13A_BATCHED = {"reserve-max": 7.00, "power-of-two": 9.81, "oracle": 13.62, "paged": 30.42}


@pytest.fixture(scope="module", params=["gamma", "lognormal"])
def published_runs(request):
    mean_prompt, mean_output = SHAREGPT_MEANS
    # A request met in memory is half way through its output, on average.
    resident_output = 2 * (CALIBRATED_ON / 100 * POOL / 7 - mean_prompt)
    spread = spread_from_residents(mean_output, resident_output)
    requests = make_workload(10_000, Lengths(mean_prompt, mean_output, spread, request.param))
    return {kind: simulate_memory(make_allocator(kind, POOL), requests) for kind in FIG13A_BATCHED}


def test_calibration_meets_the_bar_it_was_made_on(published_runs) -> None:
    assert 100 * published_runs["reserve-max"].shares[State.TOKEN] == pytest.approx(CALIBRATED_ON, abs=1)


@pytest.mark.parametrize(("kind", "published"), FIG2_TOKEN_STATES.items())
def test_token_states_of_figure_2_are_predicted(published_runs, kind: str, published: float) -> None:
    assert 100 * published_runs[kind].shares[State.TOKEN] == pytest.approx(published, abs=3)


@pytest.mark.parametrize(("state", "published"), FIG2_MAX_OTHERS.items())
def test_the_other_parts_of_the_calibrated_bar_are_predicted(published_runs, state: State, published: float) -> None:
    assert 100 * published_runs["reserve-max"].shares[state] == pytest.approx(published, abs=3)


@pytest.mark.parametrize(("kind", "published"), FIG13A_BATCHED.items())
def test_batched_requests_of_figure_13a_are_predicted(published_runs, kind: str, published: float) -> None:
    assert published_runs[kind].mean_batch == pytest.approx(published, rel=0.2)
