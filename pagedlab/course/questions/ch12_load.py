"""Chapter 12, load: percentiles and goodput of what was measured, and a measurement that forgets who waits."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from pagedlab.course.questions.mistakes import Mistake, named
from pagedlab.course.questions.model import Case

# ---- question 4: goodput ---------------------------------------------------------------------------------------------


def load_report(
    requests: Sequence[dict[str, Any]],
    seconds: float,
    max_ttft: float,
    max_tpot: float,
    failed: bool = False,
    one: str = "both",
    per_second: bool = True,
    singles: bool = True,
    rank: str = "nearest",
    mean: bool = False,
    strict: bool = False,
) -> dict[str, float | None]:
    """p50 and p90 of TTFT (None if nobody was answered), and goodput; each switch makes one mistake."""
    answered = [request for request in requests if failed or request["error"] is None]

    def fits(value: float | None, limit: float) -> bool:
        if value is None:
            return singles
        return value < limit if strict else value <= limit

    good = [
        request
        for request in answered
        if request["ttft"] is not None
        and (one == "tpot" or fits(request["ttft"], max_ttft))
        and (one == "ttft" or fits(request["tpot"], max_tpot))
    ]
    times = sorted(request["ttft"] for request in answered if request["ttft"] is not None)
    if not times:
        return {"p50": None, "p90": None, "goodput": 0.0}
    if mean:
        return {"p50": sum(times) / len(times), "p90": max(times), "goodput": len(good) / seconds}

    def at(percent: int) -> float:
        if rank == "floor":
            return times[min(len(times) - 1, percent * len(times) // 100)]
        if rank == "linear":
            place = percent / 100 * (len(times) - 1)
            low = math.floor(place)
            return times[low] + (place - low) * (times[min(low + 1, len(times) - 1)] - times[low])
        return times[max(0, math.ceil(percent * len(times) / 100) - 1)]

    return {"p50": at(50), "p90": at(90), "goodput": len(good) / (seconds if per_second else len(requests))}


def report_cases() -> Iterable[Case]:
    small = [
        {"ttft": 0.3, "tpot": 0.05, "error": None},
        {"ttft": 0.1, "tpot": None, "error": None},
        {"ttft": 0.5, "tpot": 0.02, "error": None},
        {"ttft": 0.2, "tpot": 0.04, "error": None},
        {"ttft": None, "tpot": None, "error": "503"},
    ]
    yield Case("five requests", (small, 2.0, 0.5, 0.04), {"p50": 0.2, "p90": 0.5, "goodput": 1.5})
    draw = random.Random(12)
    for count, late in ((20, 0.3), (37, 0.6), (200, 0.8)):
        requests = []
        for _ in range(count):
            failed = draw.random() < 0.15
            begun = not failed or draw.random() < 0.5  # some fail after their first token
            requests.append(
                {
                    "ttft": round(draw.expovariate(1 / late), 3) if begun else None,
                    "tpot": None if draw.random() < 0.2 or not begun else round(draw.expovariate(1 / 0.05), 4),
                    "error": "the stream broke" if failed else None,
                }
            )
        arguments = (requests, 7.5, 0.5, 0.06)
        yield Case(f"{count} requests", arguments, load_report(*arguments))
    down = [{"ttft": None, "tpot": None, "error": "503"}, {"ttft": 0.2, "tpot": 0.03, "error": "the stream broke"}]
    yield Case("nobody was answered", (down, 2.0, 0.5, 0.04), {"p50": None, "p90": None, "goodput": 0.0})


REPORT_MISTAKES = (
    Mistake("Failed requests were counted: a stream that broke is no answer.", partial(load_report, failed=True)),
    Mistake("A good request keeps both limits; TPOT was not looked at.", partial(load_report, one="ttft")),
    Mistake("A good request keeps both limits; TTFT was not looked at.", partial(load_report, one="tpot")),
    Mistake("Goodput is good requests a second, not their share of all.", partial(load_report, per_second=False)),
    Mistake(
        "An answer of one token has no time between tokens (None): there is nothing that it could exceed.",
        partial(load_report, singles=False),
    ),
    Mistake(
        "That percentile lies one place too high: nearest rank takes ceil(p/100 · n), counted from 1.",
        partial(load_report, rank="floor"),
    ),
    Mistake(
        "That percentile lies between two measurements: nearest rank takes one that was measured.",
        partial(load_report, rank="linear"),
    ),
    Mistake("p50 is the median and p90 not the maximum.", partial(load_report, mean=True)),
    Mistake("A request exactly at a limit has kept it.", partial(load_report, strict=True)),
)


def explain_report(case: Case, got: Any) -> str:
    if isinstance(got, str):
        if "Error" in got and all(request["error"] is not None for request in case.arguments[0]):
            return "Nobody was answered: there is no percentile to take (None), and the goodput is 0."
        if "NoneType" in got:
            return "ttft is None where no token came, tpot where only one came: look before you compare."
        return 'Return a dictionary with "p50", "p90" and "goodput".' if "Error" in got else ""
    return named(*REPORT_MISTAKES)(case, got)


# ---- question 6: late requests ---------------------------------------------------------------------------------------


def p99_of(latencies: list[float]) -> float:
    return sorted(latencies)[math.ceil(0.99 * len(latencies)) - 1]


def load_test(
    arrivals: Sequence[float],
    service: Sequence[float],
    closed: bool = False,
    place: str = "nearest",
    wait_only: bool = False,
    no_idle: bool = False,
) -> float:
    """p99 of the latencies of one server; each switch makes one mistake."""
    free, latencies = 0.0, []
    for due, seconds in zip(arrivals, service, strict=True):
        begin = free if no_idle else max(free, due)
        free = begin + seconds
        latencies.append(begin - due if wait_only else free - (begin if closed else due))
    latencies.sort()
    if place == "maximum":
        return latencies[int(0.99 * len(latencies))] if len(latencies) >= 100 else latencies[-1]
    if place == "mean":
        return sum(latencies) / len(latencies)
    return p99_of(latencies)


def late_cases() -> Iterable[Case]:
    yield Case("nobody waits", ([0.0, 10.0, 20.0], [1.0, 2.0, 1.5]), 2.0)
    yield Case("three at once", ([0.0, 0.0, 0.0], [1.0, 1.0, 1.0]), 3.0)
    stall = [10.0] + [0.1] * 99
    yield Case("one stall of 10 s", ([0.2 * k for k in range(100)], stall), p99_with_stall(stall, 0.2))
    draw = random.Random(3)
    for name, rate in (("half of what it can serve", 0.5), ("nine tenths", 0.9), ("more than it can serve", 1.3)):
        now, arrivals, service = 0.0, [], []
        for _ in range(300):
            now += draw.expovariate(rate)
            arrivals.append(round(now, 3))
            service.append(round(0.5 + draw.random(), 3))
        yield Case(name, (arrivals, service), load_test(arrivals, service))


def p99_with_stall(service: Sequence[float], gap: float) -> float:
    """By adding up: request k ends when all before it are served, or at its own pace."""
    ends = [max(sum(service[j : k + 1]) + gap * j for j in range(k + 1)) for k in range(len(service))]
    return p99_of([end - gap * k for k, end in enumerate(ends)])


def median_latency(arrivals: Sequence[float], service: Sequence[float]) -> float:
    free, latencies = 0.0, []
    for due, seconds in zip(arrivals, service, strict=True):
        free = max(free, due) + seconds
        latencies.append(free - due)
    return sorted(latencies)[len(latencies) // 2]


LATE_MISTAKES = (
    Mistake(
        "The clock starts when the request is sent. A user's starts when it was due: the wait in the queue is missing.",
        partial(load_test, closed=True),
    ),
    Mistake("The wait in the queue alone: a latency ends with the answer.", partial(load_test, wait_only=True)),
    Mistake(
        "With 100 requests that is the slowest: nearest rank is place ceil(0.99 · n), counted from 1.",
        partial(load_test, place="maximum"),
    ),
    Mistake("That is the mean; it hides the few that wait long.", partial(load_test, place="mean")),
    Mistake(
        "The server begins before the request is there: it is idle until the next arrival.",
        partial(load_test, no_idle=True),
    ),
    Mistake(
        "The clock starts when the request is sent (not when it was due), and the rank is one too high.",
        partial(load_test, closed=True, place="maximum"),
    ),
    Mistake("That is the median: asked for is p99.", median_latency),
    Mistake("That is the longest service, not the latency: the wait in the queue is missing.", lambda a, s: max(s)),
)
