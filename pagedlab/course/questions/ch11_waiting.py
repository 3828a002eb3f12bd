"""Chapter 11, question 2: waiting times that the real scheduler gives, and those that misunderstandings give."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from pagedlab.course.questions.mistakes import Mistake
from pagedlab.course.questions.model import Case
from pagedlab.model_authoring.block_manager import BlockManager
from pagedlab.model_authoring.request import Request
from pagedlab.model_authoring.scheduler import Scheduler
from pagedlab.runtime.batch import StepResult
from pagedlab.sampling_params import SamplingParams

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
    gap = ((3, 2, 5), (3, 4, 1), (20, 1, 2), (20, 1, 2), (21, 3, 0))
    return lines({"the example": example, "with a pause": gap}, random.Random(11), stream_of(2, 30))


def waiting_fresh(draw: random.Random) -> Iterable[Case]:
    """Lines like those: who has to wait for whom in the first ones, and who is equal, stays."""
    begin, brief, short = draw.randrange(1, 50), draw.randrange(1, 4), draw.randrange(2, 4)
    longer = brief + draw.randrange(2, 6)
    resumed = begin + short + longer + draw.randrange(5, 20)
    example = ((0, longer, 0), (1, longer + draw.randrange(1, 9), 0), (2, brief, 0))
    gap = (
        (begin, short, 5),
        (begin, longer + 1, 1),
        (resumed, brief, 2),
        (resumed, brief, 2),
        (resumed + brief, longer, 0),
    )
    tables = {"like the example, drawn": example, "with a pause, drawn": gap}
    return lines(tables, draw, stream_of(short, draw.randrange(20, 40)), ", drawn")


def stream_of(short: int, long: int) -> Jobs:
    """Short jobs that keep the seat busy without end, and one long one among the first."""
    return ((0, short, 0), (0, long, 9), *((1 + short * k, short, 0) for k in range(20)))


def lines(tables: Mapping[str, Jobs], rng: random.Random, stream: Jobs, ending: str = "") -> Iterable[Case]:
    asked = {**tables}
    for size in (8, 12):
        arrivals = sorted(rng.randrange(3 * size) for _ in range(size))
        asked[f"{size} random{ending}"] = tuple((time, rng.randint(1, 8), rng.randrange(3)) for time in arrivals)
    for name, jobs in asked.items():
        yield from (Case(f"{name}, {policy}", (jobs, policy), engine_waits(jobs, policy)) for policy in POLICIES)
    for policy in ("fcfs", "sjf"):
        name = f"a long job in a stream of short ones{ending}, {policy}"
        yield Case(name, (stream, policy), engine_waits(stream, policy))


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
