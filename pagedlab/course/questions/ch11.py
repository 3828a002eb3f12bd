"""Chapter 11: who owns what, who waits for whom, a scheduler that loses requests; the capstone is in ch11_capstone."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from pagedlab.course.drivers.ch11 import listed, look_up, make_room
from pagedlab.course.questions import ch11_capstone
from pagedlab.course.questions.mistakes import Mistake, named
from pagedlab.course.questions.model import Case, Kind, Question
from pagedlab.model_authoring.block_manager import BlockManager
from pagedlab.model_authoring.request import Request, RequestStatus
from pagedlab.model_authoring.scheduler import Scheduler
from pagedlab.runtime.batch import StepResult
from pagedlab.sampling_params import SamplingParams

# ---- q1: who does what -----------------------------------------------------------------------------------------------

ORDER = (
    "client",
    "OpenAI server (parses)",
    "API layer (keys, limits)",
    "LLMEngine",
    "Scheduler",
    "ModelExecutor",
    "Worker",
    "back to the client",
)
LOOP = ("Scheduler", "ModelExecutor", "Worker")

OWNERS: dict[str, tuple[str, str]] = {
    "the queue of waiting requests": ("Scheduler", "waiting"),
    "the token budget of a step": ("Scheduler", "max_num_batched_tokens"),
    "the block tables": ("BlockManager", "tables"),
    "the hashes of cached prefixes": ("BlockManager", "pool"),
    "the keys and values": ("CacheEngine", "kv"),
    "packing the ragged batch": ("ModelExecutor", "_pack"),
    "the model's weights": ("Worker", "model"),
    "the text of an answer so far": ("LLMEngine", "_generations"),
}
"""Thing -> its class, and the attribute in which that class has it (a test looks)."""

WRONG_OWNERS: dict[tuple[str, str], str] = {
    ("the block tables", "CacheEngine"): "Often said, and not so: the CacheEngine holds tensors and knows no request. "
    "Which block belongs to whom is decided without touching a tensor.",
    ("the hashes of cached prefixes", "CacheEngine"): "The CacheEngine cannot look anything up: a prefix is found by "
    "its tokens' hash before any tensor is touched, where blocks are given out.",
    ("the keys and values", "BlockManager"): "It decides on blocks, and touches no tensor. The tensors are in the "
    "runtime layer.",
    ("the keys and values", "Worker"): "The worker computes over them, but one class is there only to hold them, and "
    "to copy and swap blocks.",
    ("the model's weights", "ModelExecutor"): "It packs batches and has nothing on the device. The weights were loaded "
    "once, at the start, where the forward pass runs.",
    ("packing the ragged batch", "Worker"): "The worker gets the batch ready made, as arrays.",
    ("packing the ragged batch", "Scheduler"): "The schedule says how many tokens of whom. Turning that into token "
    "ids, positions and slots is a job of its own.",
    ("the text of an answer so far", "Worker"): "The worker knows token ids only. Text is made where requests come in "
    "and outputs go out.",
    ("the text of an answer so far", "Scheduler"): "The scheduler knows token ids only. Text is made where requests "
    "come in and outputs go out.",
    ("the token budget of a step", "BlockManager"): "The budget counts tokens of a step, that is work, not memory.",
    ("the token budget of a step", "ModelExecutor"): "By the time a batch is packed the budget is spent already.",
    ("the queue of waiting requests", "LLMEngine"): "The engine hands a new request on at once: whoever decides who is "
    "next keeps the queue.",
}


def journey_cases() -> Iterable[Case]:
    yield Case("the eight steps in order", ("order",), list(ORDER))
    yield Case("again for every token", ("again for every token",), list(LOOP))
    for thing, (owner, _) in OWNERS.items():
        yield Case(thing, ("owner", thing), owner)


def journey_explained(case: Case, got: Any) -> str:
    key = case.arguments[-1]
    if isinstance(got, str) and "Error: " in got:
        return f"The dictionary journey has no entry {key!r} yet." if "KeyError" in got else "Make it a dictionary."
    if key == "order":
        return order_explained(got)
    if key == "again for every token":
        return loop_explained(got)
    return WRONG_OWNERS.get((key, got), "Ask who would have to change if it worked differently.")


def order_explained(got: Any) -> str:
    if not isinstance(got, list) or sorted(map(str, got)) != sorted(ORDER):
        return "The list needs the eight names of STEPS, each once."
    place = {name: got.index(name) for name in ORDER}
    if place["Scheduler"] < place["LLMEngine"]:
        return "Nobody schedules what is not a request yet: the LLMEngine makes the Request and hands it over."
    if place["ModelExecutor"] < place["Scheduler"]:
        return "The executor packs what the schedule says, so the schedule comes first."
    if place["Worker"] < place["ModelExecutor"]:
        return "The worker gets a packed batch: somebody has to pack it first."
    if place["API layer (keys, limits)"] < place["OpenAI server (parses)"]:
        return "The length of a prompt can be checked only once the body has been parsed."
    return "Follow one request down through the three layers, and up again."


def loop_explained(got: Any) -> str:
    names = set(got) if isinstance(got, list) else set()
    if names == set(LOOP):
        return "The right three: give them in the order in which they run."
    if "LLMEngine" in names or "client" in names or "OpenAI server (parses)" in names:
        return "A request enters once. What comes round again is the engine's step, below the entrance."
    if "back to the client" in names:
        return "This client does not stream: the answer goes back once, when it is whole."
    if "Scheduler" not in names:
        return "Every step is scheduled anew: that is what lets a request join or leave between two tokens."
    return "A step of the engine is decided, packed, and computed."


# ---- q2: waiting times -----------------------------------------------------------------------------------------------

Jobs = tuple[tuple[int, int, int], ...]
POLICIES = ("fcfs", "sjf", "priority")


def engine_waits(jobs: Jobs, policy: str) -> list[int]:
    """The real scheduler with one seat, a step a second: a job of s seconds is a prompt of one token and s tokens."""
    scheduler = Scheduler(BlockManager(1000, 16, enable_prefix_caching=False), 1, 1, policy)
    starts: dict[str, int] = {}
    clock, arriving = 0, list(enumerate(jobs))
    while arriving or scheduler.has_unfinished:
        while arriving and arriving[0][1][0] <= clock:
            number, (_, seconds, priority) = arriving.pop(0)
            params = SamplingParams(max_tokens=seconds)
            scheduler.add(Request(str(number), [0], params, arrival=number, priority=priority))
        if scheduler.has_unfinished:
            schedule = scheduler.schedule()
            starts.update({request.request_id: clock for request in schedule.admitted})
            scheduler.update(schedule, StepResult([0] * len(schedule.items)))
        clock += 1
    return [starts[str(number)] - arrival for number, (arrival, _, _) in enumerate(jobs)]


def waiting_cases() -> Iterable[Case]:
    example = ((0, 5, 0), (1, 9, 0), (2, 1, 0))
    yield from (Case(f"the example, {policy}", (example, policy), engine_waits(example, policy)) for policy in POLICIES)
    gap = ((3, 2, 5), (3, 4, 1), (20, 1, 2), (20, 1, 2), (21, 3, 0))
    yield from (Case(f"with a pause, {policy}", (gap, policy), engine_waits(gap, policy)) for policy in POLICIES)
    rng = random.Random(11)
    for size in (8, 12):
        arrivals = sorted(rng.randrange(3 * size) for _ in range(size))
        jobs = tuple((arrival, rng.randint(1, 8), rng.randrange(3)) for arrival in arrivals)
        yield from (Case(f"{size} random, {policy}", (jobs, policy), engine_waits(jobs, policy)) for policy in POLICIES)
    stream = ((0, 2, 0), (0, 30, 9), *((time, 2, 0) for time in range(1, 40, 2)))
    for policy in ("fcfs", "sjf"):
        yield Case(f"a long job in a stream of short ones, {policy}", (stream, policy), engine_waits(stream, policy))


def served(
    jobs: Jobs, policy: str, order: Callable[[tuple[int, int, int], int], Any] | None = None, knows_future: bool = False
) -> Iterator[tuple[int, int]]:
    """(job, start) in the order of service, by a rule that may be another one: what mistakes are made of."""
    rules: dict[str, Callable[[tuple[int, int, int], int], Any]] = {
        "fcfs": lambda job, i: (job[0], i),
        "sjf": lambda job, i: (job[1], job[0], i),
        "priority": lambda job, i: (job[2], job[0], i),
    }
    rule = order or rules[policy]
    clock, left = 0, list(range(len(jobs)))
    while left:
        here = [i for i in left if knows_future or jobs[i][0] <= clock]
        if not here:
            clock = min(jobs[i][0] for i in left)
            continue
        chosen = min(here, key=lambda i: rule(jobs[i], i))
        clock = max(clock, jobs[chosen][0])
        yield chosen, clock
        clock += jobs[chosen][1]
        left.remove(chosen)


def by_job(values: Iterable[tuple[int, int]]) -> list[int]:
    return [value for _, value in sorted(values)]


def preemptive_waits(jobs: Jobs, policy: str) -> list[int]:
    """Whoever is shortest (or first) now runs for one second."""
    left, first, clock = [job[1] for job in jobs], [-1] * len(jobs), 0
    while any(left):
        here = [i for i, job in enumerate(jobs) if job[0] <= clock and left[i]]
        if here:
            key = {"fcfs": lambda i: i, "sjf": lambda i: (left[i], i), "priority": lambda i: (jobs[i][2], i)}[policy]
            chosen = min(here, key=key)
            left[chosen] -= 1
            first[chosen] = clock if first[chosen] < 0 else first[chosen]
        clock += 1
    return [start - job[0] for start, job in zip(first, jobs, strict=True)]


def no_pause(jobs: Jobs, policy: str) -> list[int]:
    shifted = tuple((0, *job[1:]) for job in jobs)
    return [start - jobs[i][0] for i, start in sorted(served(shifted, policy))]


WAITING_MISTAKES = (
    Mistake(
        "That is until the end: waiting ends when service begins, so the job's own seconds do not count.",
        lambda jobs, policy: by_job((i, start + jobs[i][1] - jobs[i][0]) for i, start in served(jobs, policy)),
    ),
    Mistake(
        "Those are the times on the clock at which they start. A job waits from its own arrival.",
        lambda jobs, policy: by_job(served(jobs, policy)),
    ),
    Mistake(
        "In the order of service. The list must be in the order of jobs.",
        lambda jobs, policy: [start - jobs[i][0] for i, start in served(jobs, policy)],
    ),
    Mistake(
        "This order is fixed in advance, with jobs that have not arrived yet: the scheduler cannot know the future. "
        "Choose among those who are there, each time the seat is free.",
        lambda jobs, policy: by_job((i, s - jobs[i][0]) for i, s in served(jobs, policy, knows_future=True)),
    ),
    Mistake(
        "As if a job could begin before it has arrived: while nobody is there the seat stays empty, and the clock goes "
        "on to the next arrival.",
        no_pause,
    ),
    Mistake(
        "Somebody was interrupted for a later arrival. Here whoever has begun is served to the end.",
        preemptive_waits,
    ),
    Mistake(
        "The policy makes no difference in your answer: it is first come, first served for all three.",
        lambda jobs, policy: by_job((i, s - jobs[i][0]) for i, s in served(jobs, "fcfs")),
    ),
    Mistake(
        "The largest number went first. As in vLLM, a smaller priority number runs sooner.",
        lambda jobs, policy: by_job(
            (i, s - jobs[i][0]) for i, s in served(jobs, policy, lambda job, j: (-job[2], job[0], j))
        ),
    ),
    Mistake(
        "The longest job went first.",
        lambda jobs, policy: by_job(
            (i, s - jobs[i][0]) for i, s in served(jobs, policy, lambda job, j: (-job[1], job[0], j))
        ),
    ),
    Mistake(
        "The latest went first: that is a stack, not a queue, and early ones may starve.",
        lambda jobs, policy: by_job((i, s - jobs[i][0]) for i, s in served(jobs, policy, lambda job, j: -j)),
    ),
    Mistake(
        "Among equals the later one went first: ties go to the earliest in jobs.",
        lambda jobs, policy: by_job(
            (i, s - jobs[i][0])
            for i, s in served(
                jobs, policy, lambda job, j: ({"fcfs": job[0], "sjf": job[1], "priority": job[2]}[policy], -j)
            )
        ),
    ),
)

# ---- q3: make room ---------------------------------------------------------------------------------------------------

Lines = list[dict[str, Any]]


def entry(name: str, arrival: int, blocks: int, computed: int | None = None) -> dict[str, Any]:
    """A decoding request that fills its blocks but for 3 slots; or, with computed 0, one that waits with no block."""
    tokens = 16 * blocks - 3
    done = tokens - 1 if computed is None else computed
    return {"name": name, "arrival": arrival, "tokens": tokens, "computed": done, "blocks": blocks if done else 0}


def engine_makes_room(running: Lines, waiting: Lines, free: int, needed: int) -> dict[str, Any]:
    """What the real scheduler's preemption does to the same requests."""
    held = sum(line["blocks"] for line in running)
    manager = BlockManager(held + free + 1, 16, enable_prefix_caching=False)
    scheduler = Scheduler(manager, 64, 64)
    for line in [*running, *waiting]:
        request = Request(line["name"], [0] * line["tokens"], SamplingParams(), arrival=line["arrival"])
        if line["blocks"]:
            manager.attach_prefix(request)
            manager.allocate(request, line["tokens"])
            request.num_computed_tokens, request.status = line["computed"], RequestStatus.RUNNING
            scheduler.running.append(request)
        else:
            scheduler.add(request)
    preempted = []
    while manager.num_free_blocks < needed and scheduler.running:
        victim = max(scheduler.running, key=scheduler.sort_key)
        scheduler._preempt(victim)
        preempted.append(victim.request_id)

    def lines(requests: list[Request]) -> list[str]:
        tables = manager.tables
        return listed(
            [
                {
                    "name": request.request_id,
                    "computed": request.num_computed_tokens,
                    "tokens": request.num_tokens,
                    "blocks": len(tables[request].blocks) if request in tables else 0,
                }
                for request in requests
            ]
        )

    returned = [manager.num_free_blocks, preempted]
    return {"returned": returned, "running": lines(scheduler.running), "waiting": lines(scheduler.waiting)}


def room_cases() -> Iterable[Case]:
    trio = [entry("a", 0, 2), entry("b", 1, 2), entry("c", 2, 2)]
    scripts: list[tuple[str, Lines, Lines, int, int]] = [
        ("the example", trio, [entry("d", 3, 1, 0)], 1, 2),
        ("two have to go", trio, [entry("d", 3, 1, 0)], 0, 3),
        ("enough is free already", trio, [], 2, 2),
        ("an earlier one waits", [trio[0], entry("e", 4, 3), entry("f", 6, 2)], [entry("d", 3, 1, 0)], 0, 4),
        ("more than there is", trio, [], 0, 9),
        ("nobody runs", [], [entry("d", 3, 1, 0)], 1, 2),
    ]
    for name, running, waiting, free, needed in scripts:
        yield Case(name, (running, waiting, free, needed), engine_makes_room(running, waiting, free, needed))


def room(
    script: tuple[Any, ...],
    pick: Callable[[Lines], int] = lambda lines: -1,
    put: Callable[[Lines, dict[str, Any]], Any] = lambda lines, one: lines.append(one),
    reset: tuple[str, ...] = ("blocks", "computed"),
    ordered: bool = True,
    enough: Callable[[int, int], bool] = lambda free, needed: free >= needed,
) -> dict[str, Any]:
    """Preemption with one thing done another way."""

    def answer(running: Lines, waiting: Lines, free: int, needed: int) -> tuple[int, list[str]]:
        preempted = []
        while not enough(free, needed) and running:
            one = running.pop(pick(running))
            free += one["blocks"]
            one.update(dict.fromkeys(reset, 0))
            put(waiting, one)
            preempted.append(one["name"])
        if ordered:
            waiting.sort(key=lambda line: line["arrival"])
        return free, preempted

    return make_room(answer, *script)


ROOM_MISTAKES = (
    Mistake(
        "A preempted request is in neither list: nobody will ever run it again, and its user waits for ever.",
        lambda *script: room(script, put=lambda lines, one: None),
    ),
    Mistake(
        "computed was left as it was, but the keys and values were in the blocks that it lost: the request would go "
        "on over other requests' numbers. Nothing of it is computed any more.",
        lambda *script: room(script, reset=("blocks",)),
    ),
    Mistake(
        "A waiting request still counts the blocks that it gave back: they would be given back a second time.",
        lambda *script: room(script, reset=("computed",)),
    ),
    Mistake(
        "The earliest arrival was preempted. It is the closest to its end, and if the oldest loses its blocks each "
        "time, requests can take turns for ever. The latest arrival goes.",
        lambda *script: room(script, pick=lambda lines: 0),
    ),
    Mistake(
        "The preempted one went to the end of the queue, behind requests that arrived after it: it loses its place, "
        "again at each preemption. The queue is in order of arrival.",
        lambda *script: room(script, ordered=False),
    ),
    Mistake(
        "The preempted one went to the front of the queue, before a request that arrived earlier.",
        lambda *script: room(script, put=lambda lines, one: lines.insert(0, one), ordered=False),
    ),
    Mistake(
        "One too many was preempted: stop as soon as `needed` blocks are free.",
        lambda *script: room(script, enough=lambda free, needed: free > needed),
    ),
    Mistake(
        "Its output is gone: a preempted request keeps the tokens that it has, and only computes them again.",
        lambda *script: room(script, reset=("blocks", "computed", "tokens")),
    ),
)


def room_explained(case: Case, got: Any) -> str:
    known = named(*ROOM_MISTAKES)(case, got)
    if known or not isinstance(got, dict):
        return known
    running, waiting = case.arguments[0], case.arguments[1]
    names = [str(line).split(" ")[0] for line in [*got["running"], *got["waiting"]]]
    lost = [line["name"] for line in [*running, *waiting] if line["name"] not in names]
    if lost:
        return f"{' and '.join(lost)} got lost: in neither list, so nobody will ever run it again."
    if len(set(names)) < len(names):
        return "A request is in the lists twice: it would be computed twice, into the same answer."
    returned = got["returned"] if isinstance(got["returned"], list) else []
    if len(returned) == 2 and returned[1] != case.expected["returned"][1]:
        return (
            "Not the ones who arrived last. Removing from a list while a loop walks over it makes the loop skip the "
            "next one."
        )
    return ""


QUESTIONS: tuple[Question, ...] = (
    Question(
        id="ch11.q1",
        title="Who does what",
        kind=Kind.COMPUTE,
        difficulty=1,
        points=2,
        answer="journey",
        cases=journey_cases,
        hints=(
            "Follow one request down through the layers: interfaces, model authoring, runtime. Then up again.",
            "The loop is one step of the engine: decide, pack, compute. Of two classes that deal with blocks, one "
            "decides and touches no tensor, the other holds tensors and decides nothing.",
            "HTTP first: it parses, then checks keys and limits. Tables and hashes belong to whoever decides on "
            "blocks, the queue and the budget to whoever decides on steps, the text to whoever has the tokenizer.",
        ),
        explain=journey_explained,
        drive=look_up,
    ),
    Question(
        id="ch11.q2",
        title="How long does everybody wait?",
        kind=Kind.IMPLEMENT,
        difficulty=2,
        points=3,
        answer="waiting_times",
        cases=waiting_cases,
        hints=(
            "Play it on paper: a clock, a seat, and a set of those who are here and have not been served.",
            "A policy is a sort key. Each time the seat is free, take the minimum by that key among those with "
            "arrival <= clock, and put the clock forward by its seconds.",
            "Keys: (arrival, i), (seconds, arrival, i), (priority, arrival, i) for job i. If nobody is here, set the "
            "clock to the next arrival. A wait is clock - arrival at the moment of choosing.",
        ),
        explain=named(*WAITING_MISTAKES, tolerance=0),
    ),
    Question(
        id="ch11.q3",
        title="The scheduler that loses requests",
        kind=Kind.DIAGNOSE,
        difficulty=2,
        points=2,
        answer="make_room",
        cases=room_cases,
        hints=(
            "Where is a preempted request after the call? And which one is preempted first?",
            "Four faults: who is chosen, what a loop does whose list shrinks under it, what `computed` still says, and "
            "where the request goes.",
            "while free < needed and running: take running.pop(), set its blocks and computed to 0, append it to "
            "waiting; at the end sort waiting by arrival.",
        ),
        explain=room_explained,
        drive=make_room,
    ),
    *ch11_capstone.QUESTIONS,
)
