"""Allocators: placements against brute force, every slot accounted for, paging against the engine's block manager."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pagedlab.errors import SimulationError
from pagedlab.model_authoring.block_manager import BlockManager
from pagedlab.model_authoring.request import Request
from pagedlab.sampling_params import SamplingParams
from pagedlab.simulate.allocators import (
    KINDS,
    Allocator,
    BestFit,
    Buddy,
    ContiguousAllocator,
    FirstFit,
    PagedAllocator,
    State,
    make_allocator,
    reserve_max,
    reserve_oracle,
    reserve_power_of_two,
)

# ---- placements against models that look at every address -----------------------------------------------------------


class BruteForce:
    """One letter an address; finds its place by trying every start."""

    def __init__(self, capacity: int) -> None:
        self.owner = [0] * capacity
        self.count = 0

    def is_free(self, start: int, size: int) -> bool:
        return start + size <= len(self.owner) and not any(self.owner[start : start + size])

    def write(self, start: int, size: int) -> int:
        self.count += 1
        self.owner[start : start + size] = [self.count] * size
        return start

    def give(self, start: int) -> None:
        name = self.owner[start]
        self.owner = [0 if owner == name else owner for owner in self.owner]

    def free_runs(self) -> list[tuple[int, int]]:
        runs, start = [], None
        for address, owner in enumerate([*self.owner, -1]):
            if owner == 0 and start is None:
                start = address
            if owner != 0 and start is not None:
                runs.append((start, address - start))
                start = None
        return runs


class BruteFirstFit(BruteForce):
    def take(self, size: int) -> int | None:
        starts = [start for start in range(len(self.owner)) if self.is_free(start, size)]
        return self.write(starts[0], size) if starts else None


class BruteBestFit(BruteForce):
    def take(self, size: int) -> int | None:
        fitting = [(length, start) for start, length in self.free_runs() if length >= size]
        return self.write(min(fitting)[1], size) if fitting else None


class BruteBuddy(BruteForce):
    """No lists, no splitting, no merging: which blocks are free follows from which addresses are.

    A block of the tree is whole and free exactly if all its addresses are free; the allocator's free blocks are the
    largest of these. A request goes to the lowest start inside the smallest of them that is large enough.
    """

    def maximal_blocks(self) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        size = 1 << (len(self.owner).bit_length() - 1)
        while size:
            for start in range(0, len(self.owner), size):
                inside = any(s <= start < s + larger for s, larger in found)
                if self.is_free(start, size) and not inside:
                    found.append((start, size))
            size //= 2
        return sorted(found)

    def take(self, size: int) -> int | None:
        rounded = 1
        while rounded < size:
            rounded *= 2
        fitting = [(length, start) for start, length in self.maximal_blocks() if length >= rounded]
        return self.write(min(fitting)[1], rounded) if fitting else None


PLACEMENTS = [(FirstFit, BruteFirstFit), (BestFit, BruteBestFit), (Buddy, BruteBuddy)]


@pytest.mark.parametrize(("placement_class", "model_class"), PLACEMENTS)
@settings(max_examples=150, deadline=None)
@given(data=st.data(), capacity=st.integers(1, 70))
def test_placements_do_what_brute_force_does(
    placement_class: Callable[[int], Any], model_class: Callable[[int], Any], data: st.DataObject, capacity: int
) -> None:
    placement, model = placement_class(capacity), model_class(capacity)
    taken: list[int] = []
    for _ in range(data.draw(st.integers(1, 40))):
        if taken and data.draw(st.booleans()):
            start = taken.pop(data.draw(st.integers(0, len(taken) - 1)))
            placement.give(start)
            model.give(start)
        else:
            size = data.draw(st.integers(1, capacity))
            run, expected = placement.take(size), model.take(size)
            assert (run and run.start) == expected
            if run is not None:
                assert run.size == placement.granted(size)
                taken.append(run.start)
        runs = model.maximal_blocks() if model_class is BruteBuddy else model.free_runs()
        assert placement.free_runs() == runs
        assert placement.num_free == sum(size for _, size in runs)
        assert placement.largest_free == max((size for _, size in runs), default=0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 64), max_size=20), st.integers(1, 200))
def test_a_buddy_that_gets_all_back_is_whole_again(sizes: list[int], capacity: int) -> None:
    buddy = Buddy(capacity)
    blank = buddy.free_runs()
    runs = [run for run in map(buddy.take, sizes) if run is not None]
    assert sum(leaf.size for leaf in buddy.leaves()) == capacity
    assert all(leaf.start % leaf.size == 0 for leaf in buddy.leaves())
    for run in runs:
        buddy.give(run.start)
    assert buddy.free_runs() == blank


def test_the_worked_example_of_32_16_and_8_in_128() -> None:
    for placement in (FirstFit(128), Buddy(128)):
        starts = [placement.take(size).start for size in (32, 16, 8)]  # type: ignore[union-attr]
        assert starts == [0, 32, 48]
        placement.give(0)
        assert placement.num_free == 104
        assert placement.take(80) is None
        assert placement.take(64) is not None


def test_pool_of_the_paper_is_cut_into_aligned_powers_of_two() -> None:
    assert [run.size for run in Buddy(15728).free_runs()] == [8192, 4096, 2048, 1024, 256, 64, 32, 16]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_compaction_keeps_order_and_makes_one_free_run(data: st.DataObject) -> None:
    fit = FirstFit(50)
    runs = [run for run in (fit.take(data.draw(st.integers(1, 9))) for _ in range(12)) if run is not None]
    for run in runs:
        if data.draw(st.booleans()):
            fit.give(run.start)
    before, free = sorted(fit.used.items()), fit.num_free
    moves = fit.compact()
    after = sorted(fit.used.items())
    assert [size for _, size in before] == [size for _, size in after]
    assert [moves.get(start, start) for start, _ in before] == [start for start, _ in after]
    assert fit.largest_free == fit.num_free == free
    assert len(fit.free_runs()) <= 1


# ---- how much is reserved -------------------------------------------------------------------------------------------


@given(st.integers(1, 1024), st.integers(1, 1024))
def test_reservations_hold_the_request_and_stay_in_the_window(prompt: int, output: int) -> None:
    for reservation in (reserve_max, reserve_power_of_two, reserve_oracle):
        assert prompt + output <= reservation(prompt, output, 2048) <= 2048
    assert reserve_power_of_two(prompt, output, 4096) - prompt < 2 * output or output == 1
    assert reserve_oracle(prompt, output, 2048) == prompt + output


def test_power_of_two_as_in_the_paper() -> None:
    assert reserve_power_of_two(100, 25, 2048) == 100 + 32


# ---- every allocator: conservation of slots -------------------------------------------------------------------------


def small(kind: str) -> Allocator:
    return make_allocator(kind, capacity=83, window=20, block_size=4)


class AllocatorMachine(RuleBasedStateMachine):
    """Any order of allocate, extend, extend_all and free; a shadow knows how many tokens everybody has."""

    kind = "paged"

    def __init__(self) -> None:
        super().__init__()
        self.allocator = small(self.kind)
        self.tokens: dict[int, int] = {}
        self.final: dict[int, int] = {}
        self.count = 0

    @rule(prompt=st.integers(1, 12), output=st.integers(1, 8))
    def allocate(self, prompt: int, output: int) -> None:
        self.count += 1
        free = self.allocator.num_free
        if self.allocator.allocate(self.count, prompt, output):
            self.tokens[self.count] = prompt
            self.final[self.count] = prompt + output
            assert self.allocator.num_free == free - self.allocator.slots_wanted(prompt, output)
        else:
            assert self.allocator.num_free == free

    @precondition(lambda self: self.tokens)
    @rule(data=st.data())
    def extend(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.tokens)))
        num_tokens = data.draw(st.integers(0, self.final[key] - self.tokens[key]))
        before = self.allocator.snapshot().tolist()
        if self.allocator.extend(key, num_tokens):
            self.tokens[key] += num_tokens
        else:
            assert self.kind == "paged", "a run that was reserved is always there"
            assert self.allocator.snapshot().tolist() == before

    @precondition(lambda self: self.tokens)
    @rule(num_tokens=st.integers(0, 8))
    def extend_all(self, num_tokens: int) -> None:
        room = min(self.final[key] - self.tokens[key] for key in self.tokens)
        if num_tokens > room:
            with pytest.raises(SimulationError):
                self.allocator.extend_all(num_tokens)
            return
        done = self.allocator.extend_all(num_tokens)
        assert done == num_tokens or (self.kind == "paged" and 0 <= done < num_tokens)
        for key in self.tokens:
            self.tokens[key] += done

    @precondition(lambda self: self.tokens)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.tokens)))
        self.allocator.free(key)
        del self.tokens[key], self.final[key]

    @invariant()
    def counts_are_what_the_snapshot_shows(self) -> None:
        for wanted in (0, 5, 40):
            snapshot = self.allocator.snapshot(wanted)
            assert len(snapshot) == self.allocator.capacity
            seen = Counter(snapshot.tolist())
            assert tuple(self.allocator.counts(wanted)) == tuple(seen[state] for state in State)

    @invariant()
    def tokens_are_those_of_the_shadow(self) -> None:
        counts = self.allocator.counts()
        assert counts.token == sum(self.tokens.values())
        assert len(self.allocator) == len(self.tokens)
        assert all(self.allocator.num_tokens(key) == tokens for key, tokens in self.tokens.items())

    @invariant()
    def waste_is_bounded_by_what_the_allocator_promises(self) -> None:
        counts = self.allocator.counts()
        to_come = sum(self.final[key] - self.tokens[key] for key in self.tokens)
        if self.kind == "paged":
            assert counts.reserved + counts.internal <= 3 * len(self.tokens), "more than block_size - 1 each"
            assert counts.external == 83 % 4
        else:
            assert counts.reserved == to_come
        if self.kind in ("oracle", "first-fit", "best-fit"):
            assert counts.internal == 0
        if self.kind in ("first-fit", "best-fit"):
            assert counts.external == 0
        if self.kind == "reserve-max":
            assert counts.internal == 20 * len(self.tokens) - sum(self.final.values())

    @invariant()
    def holdings_do_not_overlap(self) -> None:
        allocator = self.allocator
        if isinstance(allocator, PagedAllocator):
            ids = [block for table in allocator.tables.values() for block in table] + list(allocator.free_queue)
            assert sorted(ids) == list(range(allocator.num_blocks))
            for key, tokens in self.tokens.items():
                assert len(allocator.tables[key]) == allocator.blocks_for(tokens)
        elif isinstance(allocator, ContiguousAllocator):
            ends = 0
            for start, reserved, granted in sorted(allocator.holdings.values()):
                assert ends <= start and reserved <= granted
                ends = start + granted
            assert ends <= allocator.capacity

    def teardown(self) -> None:
        for key in list(self.tokens):
            self.allocator.free(key)
        counts = self.allocator.counts()
        assert (counts.token, counts.reserved, counts.internal) == (0, 0, 0)
        assert self.allocator.num_free == self.allocator.capacity - counts.external


@pytest.mark.parametrize("kind", KINDS)
def test_no_slot_is_lost_or_counted_twice(kind: str) -> None:
    machine = type("Machine", (AllocatorMachine,), {"kind": kind})
    case = machine.TestCase
    case.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
    case("runTest").runTest()


# ---- paging is the engine's own paging ------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_paged_gives_out_the_same_blocks_as_the_engines_block_manager(data: st.DataObject) -> None:
    """The engine keeps block 0 as the null block, so its ids are ours plus one."""
    size, num_blocks = 4, 12
    paged = PagedAllocator(size * num_blocks, size, watermark=0.0)
    manager = BlockManager(num_blocks + 1, size, enable_prefix_caching=False)
    requests: dict[int, Request] = {}
    for key in range(data.draw(st.integers(1, 30))):
        action = data.draw(st.sampled_from(["allocate", "extend", "free"]))
        if action == "allocate":
            prompt = data.draw(st.integers(1, 14))
            request = Request(str(key), [7] * prompt, SamplingParams(max_tokens=100))
            manager.attach_prefix(request)
            taken = manager.can_hold(request, prompt) and manager.allocate(request, prompt)
            assert paged.allocate(key, prompt, 20) == taken
            if taken:
                request.num_computed_tokens = prompt
                requests[key] = request
            else:
                manager.free(request)
        elif requests:
            key = data.draw(st.sampled_from(sorted(requests)))
            request = requests[key]
            if action == "free" or request.num_computed_tokens == len(request.prompt_token_ids) + 20:
                manager.free(requests.pop(key))
                paged.free(key)
            else:
                grown = manager.allocate(request, request.num_computed_tokens + 1)
                assert paged.extend(key) == grown
                request.num_computed_tokens += grown
        assert [block.block_id - 1 for block in manager.pool.free_queue] == list(paged.free_queue)
        for key, request in requests.items():
            assert [block_id - 1 for block_id in manager.block_ids(request)] == paged.tables[key]


def test_growing_all_in_step_is_growing_each_by_one() -> None:
    """extend_all visits a sequence once a block; token by token gives the same number of blocks and the same waste."""
    rng = np.random.default_rng(0)
    together, alone = (PagedAllocator(4096, 16) for _ in range(2))
    for key in range(20):
        prompt = int(rng.integers(1, 60))
        together.allocate(key, prompt, 100)
        alone.allocate(key, prompt, 100)
    assert together.extend_all(77) == 77
    for _ in range(77):
        for key in range(20):
            assert alone.extend(key)
    assert together.counts() == alone.counts()
    assert {key: len(table) for key, table in together.tables.items()} == {k: len(t) for k, t in alone.tables.items()}


def test_growing_stops_at_the_step_for_which_blocks_are_missing() -> None:
    paged = PagedAllocator(3 * 4, 4, watermark=0.0)
    assert paged.allocate("a", 3, 8) and paged.allocate("b", 3, 8)
    assert paged.extend_all(8) == 1, "both fill their first block; then two need one of the single block that is left"
    assert paged.counts() == (8, 0, 0, 0, 4)


# ---- wrong use ------------------------------------------------------------------------------------------------------


def test_wrong_use_is_refused_with_a_sentence() -> None:
    allocator = make_allocator("oracle", 64, window=40)
    assert allocator.allocate("a", 10, 10)
    for action, words in [
        (lambda: allocator.allocate("a", 1, 1), "in memory already"),
        (lambda: allocator.allocate("b", 0, 1), "at least 1 prompt token"),
        (lambda: allocator.allocate("b", 30, 30), "longer than the window"),
        (lambda: allocator.extend("a", 11), "cannot grow past"),
        (lambda: allocator.extend("a", -1), "cannot grow past"),
        (lambda: allocator.extend_all(11), "free it first"),
        (lambda: allocator.free("b"), "allocate it first"),
        (lambda: make_allocator("oracle", 32, window=40).allocate("a", 30, 10), "does not fit oracle even alone"),
        (lambda: PagedAllocator(16, 4).allocate("a", 10, 7), "does not fit paged even alone"),
        (lambda: make_allocator("slab", 64), "choose one of"),
        (lambda: make_allocator("first-fit", 0), "at least 1 slot"),
        (lambda: PagedAllocator(8, 16), "block_size must be"),
        (lambda: PagedAllocator(8, 4, watermark=1.0), "watermark"),
        (lambda: FirstFit(8).give(0), "No run in use"),
        (lambda: Buddy(8).take(0), "at least 1 address"),
        (lambda: allocator.compact(), "fixed places"),  # type: ignore[attr-defined]
    ]:
        with pytest.raises(SimulationError, match=words):
            action()
    assert allocator.counts() == (10, 10, 0, 12, 32)
