"""Chapter 11, question 3: room made by preemption, as the real scheduler makes it and as a faulty one does."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from random import Random
from typing import Any

from pagedlab.course.drivers.ch11 import listed, make_room
from pagedlab.course.questions.mistakes import Mistake, named
from pagedlab.course.questions.model import Case
from pagedlab.model_authoring.block_manager import BlockManager
from pagedlab.model_authoring.request import Request, RequestStatus
from pagedlab.model_authoring.scheduler import Scheduler
from pagedlab.sampling_params import SamplingParams

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
    return scripts(int)


def room_fresh(draw: Random) -> Iterable[Case]:
    return scripts(lambda number: draw.randrange(number, 4 * number + 2), ", drawn")


def scripts(n: Callable[[int], int], ending: str = "") -> Iterable[Case]:
    """Six ways to lack blocks; `n` gives a number, or another one that is not smaller."""
    trio = [entry(name, arrival, n(2)) for arrival, name in enumerate("abc")]
    a, b, c = (line["blocks"] for line in trio)
    later, last, free = n(3), n(2), n(1)
    waiting = [entry("d", 3, n(1), 0)]
    pair = [entry("e", 4, later), entry("f", 6, last)]
    for name, runs, waits, blocks, needed in (
        ("the example", trio, waiting, free, free + 1),
        ("two have to go", trio, waiting, 0, c + 1),
        ("enough is free already", trio, [], free + 1, free + 1),
        ("an earlier one waits", [trio[0], *pair], waiting, 0, last + 2),
        ("more than there is", trio, [], 0, a + b + c + n(3)),
        ("nobody runs", [], waiting, free, free + n(1)),
    ):
        yield Case(name + ending, (runs, waits, blocks, needed), engine_makes_room(runs, waits, blocks, needed))


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
    returned, right = got["returned"], case.expected["returned"][1]
    if not isinstance(returned, list) or len(returned) != 2 or not isinstance(returned[1], list):
        return "Return two things: the number of free blocks, and the list of names."
    if sorted(map(str, returned[1])) != sorted(right):
        return (
            "Not the ones who arrived last. Removing from a list while a loop walks over it makes the loop skip the "
            "next one."
        )
    return "The names stand in the order in which they were preempted." if returned[1] != right else ""
