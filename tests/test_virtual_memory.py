"""Virtual memory against a dictionary of bytes, page replacement against independent implementations, and the block
manager's side of the comparison against both."""

from __future__ import annotations

import inspect
import itertools

import hypothesis.strategies as st
import pytest
from hypothesis import assume, given, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pagedlab.errors import ConfigError
from pagedlab.simulate.kv_memory import KVMemory, compare_methods
from pagedlab.simulate.page_replacement import POLICIES
from pagedlab.simulate.paging import MMU, MemoryAccessError, PageFault, PageTable
from pagedlab.simulate.reference_string import count_faults, fewest_faults, replay, residency
from pagedlab.simulate.virtual_memory import VirtualMemory

REFERENCE_STRINGS = st.lists(st.integers(0, 6), max_size=60)
FRAMES = st.integers(1, 7)
BELADY = [1, 2, 3, 4, 1, 2, 5, 1, 2, 3, 4, 5]
"""The string of Belady, Nelson and Shedler, 1969."""


# ---- replacement against implementations that share nothing with ours ----------------------------------------------


def fifo_by_list(pages: list[int], num_frames: int) -> list[bool]:
    queue: list[int] = []
    faults = []
    for page in pages:
        faults.append(page not in queue)
        if faults[-1]:
            queue = [*queue, page][-num_frames:]
    return faults


def lru_by_stack_distance(pages: list[int], num_frames: int) -> list[bool]:
    """Mattson et al. 1970: an access hits if fewer than num_frames other pages were used since the page's last use."""
    faults = []
    for now, page in enumerate(pages):
        earlier = [then for then in range(now) if pages[then] == page]
        faults.append(not earlier or len(set(pages[earlier[-1] + 1 : now])) >= num_frames)
    return faults


def clock_by_hand(pages: list[int], num_frames: int) -> list[bool]:
    """A ring of frames in place, each with a bit, and a hand."""
    ring: list[int | None] = [None] * num_frames
    bits = [False] * num_frames
    hand = 0
    faults = []
    for page in pages:
        faults.append(page not in ring)
        if faults[-1]:
            while ring[hand] is not None and bits[hand]:
                bits[hand] = False
                hand = (hand + 1) % num_frames
            ring[hand], bits[hand] = page, True
            hand = (hand + 1) % num_frames
        else:
            bits[ring.index(page)] = True
    return faults


ORACLES = {"fifo": fifo_by_list, "lru": lru_by_stack_distance, "clock": clock_by_hand}


@pytest.mark.parametrize("policy", POLICIES)
@given(pages=REFERENCE_STRINGS, num_frames=FRAMES)
@settings(max_examples=150, deadline=None)
def test_every_access_faults_exactly_when_an_independent_implementation_says(
    policy: str, pages: list[int], num_frames: int
) -> None:
    faults = [step.fault for step in replay(pages, num_frames, policy)]
    assert faults == ORACLES[policy](pages, num_frames)


@given(pages=REFERENCE_STRINGS, num_frames=FRAMES)
@settings(max_examples=150, deadline=None)
def test_lru_is_a_stack_algorithm(pages: list[int], num_frames: int) -> None:
    """With one frame more, memory holds all that it held with fewer: so it cannot fault more often."""
    fewer, more = replay(pages, num_frames, "lru"), replay(pages, num_frames + 1, "lru")
    for few, many in zip(fewer, more, strict=True):
        assert set(few.resident) - {None} <= set(many.resident)
        assert few.fault or not many.fault


@pytest.mark.parametrize("policy", ["fifo", "clock"])
def test_belady_s_anomaly_more_frames_more_faults(policy: str) -> None:
    assert [count_faults(BELADY, n, policy) for n in (3, 4)] == [9, 10]


def test_lru_and_the_optimum_have_no_anomaly_on_belady_s_string() -> None:
    assert [count_faults(BELADY, n, "lru") for n in (3, 4)] == [10, 8]
    assert [fewest_faults(BELADY, n) for n in (3, 4)] == [7, 6]


def fewest_by_search(pages: list[int], num_frames: int) -> int:
    """All choices of a victim, breadth first."""
    reachable = {frozenset[int](): 0}
    for page in pages:
        following: dict[frozenset[int], int] = {}
        for held, faults in reachable.items():
            if page in held:
                choices = [(held, faults)]
            elif len(held) < num_frames:
                choices = [(held | {page}, faults + 1)]
            else:
                choices = [(held - {victim} | {page}, faults + 1) for victim in held]
            for state, cost in choices:
                following[state] = min(cost, following.get(state, cost))
        reachable = following
    return min(reachable.values())


@given(pages=st.lists(st.integers(0, 5), max_size=25), num_frames=st.integers(1, 4))
@settings(max_examples=80, deadline=None)
def test_fewest_faults_is_the_minimum_over_all_choices(pages: list[int], num_frames: int) -> None:
    best = fewest_faults(pages, num_frames)
    assert best == fewest_by_search(pages, num_frames)
    assert all(best <= count_faults(pages, num_frames, policy) for policy in POLICIES)


@given(pages=st.lists(st.integers(0, 6), min_size=1, max_size=40), num_frames=FRAMES)
@settings(max_examples=50, deadline=None)
def test_residency_from_events_is_what_the_frames_held(pages: list[int], num_frames: int) -> None:
    machine = VirtualMemory(num_frames, page_size=4, policy="lru")
    machine.create("p", bytes(28))
    for page in pages:
        machine.read("p", 4 * page + 1)
    grid = residency(machine.events, "p", 7, len(pages))
    for access, step in enumerate(replay(pages, num_frames, "lru")):
        assert {page for page in range(7) if grid[page, access]} == set(step.resident) - {None}


# ---- the machine against a dictionary of bytes ---------------------------------------------------------------------


class VirtualMemoryMachine(RuleBasedStateMachine):
    """Programs start, grow, fork, read, write and end on a machine that is far too small for them."""

    page_size = 4

    @initialize(num_frames=st.integers(1, 4), policy=st.sampled_from(sorted(POLICIES)))
    def build(self, num_frames: int, policy: str) -> None:
        self.machine = VirtualMemory(num_frames, self.page_size, policy)
        self.model: dict[str, bytearray] = {}
        self.family: dict[str, int] = {}
        self.count = 0

    def some_owner(self, data: st.DataObject) -> str:
        return data.draw(st.sampled_from(sorted(self.model)))

    @rule(content=st.binary(max_size=18))
    def create(self, content: bytes) -> None:
        self.count += 1
        self.machine.create(str(self.count), content)
        self.model[str(self.count)] = bytearray(content)
        self.family[str(self.count)] = self.count

    @precondition(lambda self: self.model)
    @rule(data=st.data(), size=st.integers(0, 22))
    def allocate(self, data: st.DataObject, size: int) -> None:
        owner = self.some_owner(data)
        free = self.machine.num_free
        assert self.machine.allocate(owner, size)
        assert self.machine.num_free == free, "a promise took a frame"
        self.model[owner].extend(bytes(max(0, size - len(self.model[owner]))))

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        parent = self.some_owner(data)
        self.count += 1
        free = self.machine.num_free
        self.machine.fork(parent, str(self.count))
        assert self.machine.num_free == free, "a fork copied"
        self.model[str(self.count)] = bytearray(self.model[parent])
        self.family[str(self.count)] = self.family[parent]

    @precondition(lambda self: any(self.model.values()))
    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        owner, start, size = self.some_range(data)
        before, absent = self.machine.num_faults, self.num_absent(owner, start, size)
        assert self.machine.read(owner, start, size) == self.model[owner][start : start + size]
        assert self.machine.num_faults - before >= absent
        if start // self.page_size == (start + size - 1) // self.page_size:
            # A longer read may push out a page that it has yet to reach.
            assert self.machine.num_faults - before == absent

    @precondition(lambda self: any(self.model.values()))
    @rule(data=st.data(), payload=st.binary(min_size=9, max_size=9))
    def write(self, data: st.DataObject, payload: bytes) -> None:
        owner, start, size = self.some_range(data)
        self.machine.write(owner, start, payload[:size])
        self.model[owner][start : start + size] = payload[:size]
        frame = self.machine.tables[owner].frames[(start + size - 1) // self.page_size]
        assert frame is not None and frame.ref_count == 1, "a shared frame was written"

    def some_range(self, data: st.DataObject) -> tuple[str, int, int]:
        owner = data.draw(st.sampled_from(sorted(name for name, content in self.model.items() if content)))
        start = data.draw(st.integers(0, len(self.model[owner]) - 1))
        return owner, start, data.draw(st.integers(1, min(9, len(self.model[owner]) - start)))

    def num_absent(self, owner: str, start: int, size: int) -> int:
        table = self.machine.table(owner)
        return sum(table[page] is None for page in {a // self.page_size for a in range(start, start + size)})

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        owner = self.some_owner(data)
        self.machine.free(owner)
        del self.model[owner]
        assert not any(page.owner == owner for page in self.machine.disk), "a dead program keeps disk space"

    @precondition(lambda self: self.machine.policy.queue)
    @rule()
    def evict(self) -> None:
        free = self.machine.num_free
        self.machine.evict()
        assert self.machine.num_free == free + 1

    @invariant()
    def the_books_balance(self) -> None:
        self.machine.check_integrity()

    @invariant()
    def no_two_pages_share_a_frame_unless_forked(self) -> None:
        for frame in self.machine.frames:
            assert len({(self.family[page.owner], page.number) for page in frame.pages}) <= 1

    @invariant()
    def every_byte_is_where_the_tables_say(self) -> None:
        """Looked up from outside, so that looking moves nothing."""
        for owner, content in self.model.items():
            for address, byte in enumerate(content):
                page, offset = divmod(address, self.page_size)
                frame = self.machine.table(owner)[page]
                if frame is None:
                    stored = self.machine.disk.get((owner, page), bytes(self.page_size))[offset]
                else:
                    stored = self.machine.memory[frame * self.page_size + offset]
                assert stored == byte

    @invariant()
    def waste_is_less_than_a_page(self) -> None:
        for owner, content in self.model.items():
            assert self.machine.waste(owner) == -len(content) % self.page_size


TestVirtualMemoryMachine = VirtualMemoryMachine.TestCase
TestVirtualMemoryMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_program_computes_the_same_on_half_its_memory(policy: str) -> None:
    """Bubble sort in place, through the machine."""
    data = bytes((37 * i) % 251 for i in range(64))
    machine = VirtualMemory(num_frames=4, page_size=8, policy=policy)
    machine.create("sort", data)
    for end in range(len(data) - 1, 0, -1):
        for i in range(end):
            left, right = machine.read("sort", i)[0], machine.read("sort", i + 1)[0]
            if left > right:
                machine.write("sort", i, bytes([right, left]))
    assert machine.read("sort", 0, 64) == bytes(sorted(data))
    assert machine.num_faults > 8 and machine.counts["write back"] > 0


# ---- single steps --------------------------------------------------------------------------------------------------


def machine_of_the_example() -> VirtualMemory:
    machine = VirtualMemory(num_frames=8)
    machine.create("other", bytes(4 * 4096))
    for page, frame in enumerate((1, 4, 6, 7)):
        machine.load("other", page, frame)
    machine.create("program", bytes(range(256)) * 256)
    for page, frame in ((0, 2), (1, 5), (3, 0)):
        machine.load("program", page, frame)
    return machine


def test_address_10000_becomes_14096_by_way_of_a_fault() -> None:
    machine = machine_of_the_example()
    assert machine.split(10000) == (2, 1808)
    assert machine.table("program")[:4] == [2, 5, None, 0]
    with pytest.raises(PageFault, match="page 2 is absent"):
        machine.mmu.translate(machine.tables["program"], 10000)
    before = len(machine.events)
    assert machine.translate("program", 10000) == 14096
    assert [event.kind for event in machine.events][before:] == ["fault", "load", "map", "restart", "translate"]
    assert machine.read("program", 10000) == bytes([10000 % 256])
    assert machine.num_faults == 1, "the second access must hit"


def test_a_fault_is_handled_but_a_wrong_address_is_an_error() -> None:
    machine = machine_of_the_example()
    for address in (-1, 65536):
        with pytest.raises(MemoryAccessError, match="outside"):
            machine.read("program", address)
    with pytest.raises(MemoryAccessError, match="create it first"):
        machine.read("nobody", 0)


def test_the_mmu_knows_only_its_table() -> None:
    with pytest.raises(PageFault):
        MMU(4).translate(PageTable(size=4, frames=[None]), 0)


def test_a_clean_page_is_not_written_back_and_a_dirty_one_is() -> None:
    machine = VirtualMemory(num_frames=1, page_size=4)
    machine.create("p", bytes(8))
    machine.read("p", 0)
    machine.read("p", 4)
    assert machine.counts["evict"] == 1 and machine.counts["write back"] == 0
    machine.write("p", 4, b"x")
    machine.read("p", 0)
    assert machine.counts["write back"] == 1
    assert machine.read("p", 4) == b"x"


def test_copy_on_write_copies_one_page_at_the_first_write_only() -> None:
    machine = VirtualMemory(num_frames=8, page_size=4)
    machine.create("parent", b"aaaabbbbcccc")
    machine.read("parent", 0, 12)
    machine.fork("parent", "child")
    assert machine.num_free == 5 and machine.table("child") == machine.table("parent")
    machine.write("child", 5, b"X")
    machine.write("child", 6, b"Y")
    assert machine.counts["copy"] == 1 and machine.num_free == 4
    assert machine.read("parent", 0, 12) == b"aaaabbbbcccc"
    assert machine.read("child", 0, 12) == b"aaaabXYbcccc"


def test_copy_on_write_with_a_single_frame() -> None:
    """The frame to copy from is the one to empty: the content must come back from disk, unshared."""
    machine = VirtualMemory(num_frames=1, page_size=4)
    machine.create("parent", b"abcd")
    machine.write("parent", 0, b"A")
    machine.fork("parent", "child")
    machine.write("child", 1, b"B")
    assert machine.read("child", 0, 4) == b"ABcd"
    assert machine.read("parent", 0, 4) == b"Abcd"


def test_bad_input_is_refused_with_a_sentence() -> None:
    with pytest.raises(ConfigError, match="policy must be one of fifo, lru, clock"):
        VirtualMemory(2, policy="random")
    with pytest.raises(ConfigError, match="at least 1"):
        VirtualMemory(0)
    with pytest.raises(ConfigError, match="at least 1"):
        fewest_faults([1], 0)
    machine = VirtualMemory(2, page_size=4)
    machine.create("p", b"abcd")
    with pytest.raises(ConfigError, match="already"):
        machine.create("p")
    machine.load("p", 0, 1)
    with pytest.raises(MemoryAccessError, match="choose one of its pages on disk"):
        machine.load("p", 0)
    machine.allocate("p", 8)
    with pytest.raises(MemoryAccessError, match="Frame 1 is taken"):
        machine.load("p", 1, 1)
    machine.load("p", 1, 0)
    machine.allocate("p", 12)
    for frame in (0, -1, 2):
        with pytest.raises(MemoryAccessError, match="choose one that is free"):
            machine.load("p", 2, frame)
    assert machine.table("p") == [1, 0, None] and not machine.counts["evict"], "what is refused changes nothing"
    for policy in ("fifo", "lru", "clock"):
        with pytest.raises(MemoryAccessError, match="nothing to evict"):
            VirtualMemory(2, policy=policy).evict()


# ---- the other side: the engine's block manager --------------------------------------------------------------------


class KVMemoryMachine(RuleBasedStateMachine):
    """Requests come, grow, fork, are evicted, come back and leave; the model is a list of tokens for each."""

    @initialize(block_size=st.integers(1, 4), caching=st.booleans())
    def build(self, block_size: int, caching: bool) -> None:
        self.memory = KVMemory(9, block_size, num_host_blocks=5, enable_prefix_caching=caching)
        self.model: dict[str, list[int]] = {}
        self.count = 0

    def some_owner(self, data: st.DataObject, evicted: bool = False) -> str:
        held = self.memory.manager.tables
        names = sorted(name for name in self.model if (self.memory.requests[name] not in held) == evicted)
        assume(names)
        return data.draw(st.sampled_from(names))

    @rule(tokens=st.lists(st.integers(0, 1), min_size=1, max_size=8))
    def create(self, tokens: list[int]) -> None:
        self.count += 1
        owner = str(self.count)
        hits = self.memory.create(owner, tokens)
        assert hits < len(tokens)
        self.model[owner] = tokens[:hits]
        assert self.memory.gather(owner) == tokens[:hits]
        if self.memory.allocate(owner, len(tokens)):
            self.memory.write(owner, hits, tokens[hits:])
            self.model[owner] = list(tokens)
        else:
            self.memory.free(owner)
            del self.model[owner]

    @precondition(lambda self: self.model)
    @rule(data=st.data(), tokens=st.lists(st.integers(0, 1), min_size=1, max_size=3))
    def step(self, data: st.DataObject, tokens: list[int]) -> None:
        owner = self.some_owner(data)
        position = len(self.model[owner])
        if self.memory.allocate(owner, position + len(tokens)):
            self.memory.write(owner, position, tokens)
            self.model[owner] += tokens

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        parent = self.some_owner(data)
        self.count += 1
        free = self.memory.num_free
        self.memory.fork(parent, str(self.count))
        assert self.memory.num_free == free
        self.model[str(self.count)] = list(self.model[parent])

    @precondition(lambda self: self.model)
    @rule(data=st.data(), evicted=st.booleans())
    def free(self, data: st.DataObject, evicted: bool) -> None:
        owner = self.some_owner(data, evicted)
        self.memory.free(owner)
        del self.model[owner]

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def evict(self, data: st.DataObject) -> None:
        owner = self.some_owner(data)
        if self.memory.evict(owner):
            with pytest.raises(MemoryAccessError, match="load it first"):
                self.memory.table(owner)

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def load(self, data: st.DataObject) -> None:
        self.memory.load(self.some_owner(data, evicted=True))

    @invariant()
    def every_token_is_where_the_tables_say(self) -> None:
        self.memory.check_integrity()
        for owner, tokens in self.model.items():
            if self.memory.requests[owner] in self.memory.manager.tables:
                assert self.memory.gather(owner) == tokens
                assert self.memory.read(owner, 0, len(tokens)) == tokens


TestKVMemoryMachine = KVMemoryMachine.TestCase
TestKVMemoryMachine.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


@given(
    prompt=st.binary(min_size=1, max_size=20),
    appended=st.lists(st.tuples(st.booleans(), st.integers(0, 255)), max_size=12),
    size=st.integers(1, 6),
)
@settings(max_examples=80, deadline=None)
def test_the_same_script_gives_the_same_contents_and_copies_on_both(
    prompt: bytes, appended: list[tuple[bool, int]], size: int
) -> None:
    """Fork, then each side appends in turn: with enough memory the two machines copy at the same moments."""
    systems = VirtualMemory(64, page_size=size), KVMemory(64, block_size=size)
    outcomes = []
    for memory in systems:
        memory.create("parent", prompt)
        memory.allocate("parent", len(prompt))
        memory.write("parent", 0, prompt)
        memory.fork("parent", "child")
        lengths = dict.fromkeys(("parent", "child"), len(prompt))
        free = [memory.num_free]
        for is_child, byte in appended:
            owner = "child" if is_child else "parent"
            memory.allocate(owner, lengths[owner] + 1)
            memory.write(owner, lengths[owner], bytes([byte]))
            lengths[owner] += 1
            free.append(memory.num_free)
        contents = [list(memory.read(owner, 0, length)) for owner, length in lengths.items()]
        wasted = [memory.waste(owner) for owner in lengths]
        outcomes.append((contents, wasted, [a - b for a, b in itertools.pairwise(free)]))
    assert outcomes[0] == outcomes[1]
    assert systems[0].counts["copy"] == systems[1].num_copies


def test_token_37_is_slot_5_of_its_third_block() -> None:
    memory = KVMemory(8)
    memory.create("r", range(40))
    memory.allocate("r", 40)
    memory.write("r", 0, range(40))
    assert memory.split(37) == (2, 5)
    assert memory.translate("r", 37) == memory.table("r")[2] * 16 + 5
    assert memory.slots[memory.translate("r", 37)] == 37


def test_nothing_faults_in_a_kv_memory() -> None:
    memory = KVMemory(8, block_size=4)
    memory.create("r", [1, 2, 3, 4, 5])
    with pytest.raises(MemoryAccessError, match="allocate it before the step"):
        memory.write("r", 0, [1, 2, 3, 4, 5])
    memory.allocate("r", 5)
    memory.write("r", 0, [1, 2, 3, 4, 5])
    memory.fork("r", "s")
    with pytest.raises(MemoryAccessError, match="shared block"):
        memory.write("s", 5, [6])
    with pytest.raises(MemoryAccessError, match="must be written at token 5"):
        memory.write("s", 2, [6])
    with pytest.raises(MemoryAccessError, match="computed tokens"):
        memory.read("s", 5)


def test_gather_reads_each_table_entry_once() -> None:
    memory = KVMemory(10)
    memory.create("r", range(100))
    memory.allocate("r", 100)
    memory.write("r", 0, range(100))
    before = memory.num_lookups
    assert memory.gather("r") == list(range(100))
    assert memory.num_lookups - before == 7


def test_equal_prompts_share_blocks_by_content_without_a_fork() -> None:
    memory = KVMemory(10, block_size=4)
    for owner in ("a", "b"):
        hits = memory.create(owner, range(10))
        memory.allocate(owner, 10)
        memory.write(owner, hits, range(hits, 10))
    assert hits == 8
    assert memory.table("a")[:2] == memory.table("b")[:2] and memory.table("a")[2] != memory.table("b")[2]


# ---- the comparison ------------------------------------------------------------------------------------------------


def test_the_two_classes_have_the_same_methods_but_for_what_breaks_the_analogy() -> None:
    rows = dict(compare_methods(VirtualMemory, KVMemory))
    only_one = {name for name, (left, right) in rows.items() if not (left and right)}
    assert only_one == {"num_faults", "handle_fault", "gather"}
    assert {"create", "allocate", "split", "translate", "read", "write", "fork", "evict", "load", "free"} <= set(rows)


def test_methods_of_the_same_name_can_be_called_alike() -> None:
    for name, texts in compare_methods(VirtualMemory, KVMemory):
        left, right = (getattr(cls, name, None) for cls in (VirtualMemory, KVMemory))
        if all(texts) and inspect.isfunction(left) and inspect.isfunction(right) and name not in ("load", "evict"):
            assert list(inspect.signature(left).parameters) == list(inspect.signature(right).parameters), name


def test_every_public_method_says_what_it_does_in_one_sentence() -> None:
    for name, texts in compare_methods(VirtualMemory, KVMemory):
        for cls, text in zip((VirtualMemory, KVMemory), texts, strict=True):
            assert text.endswith(".") or name not in vars(cls), (cls, name)
