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


Requests = list[dict[str, Any]]


def report_cases() -> Iterable[Case]:
    arguments = five(0.1, 0.2, 0.3, 0.5, 0.02, 0.04, 0.05), 2.0, 0.5, 0.04
    yield Case("five requests", arguments, {"p50": 0.2, "p90": 0.5, "goodput": 1.5})
    draw = random.Random(12)
    for count, late in ((20, 0.3), (37, 0.6), (200, 0.8)):
        yield report_of(f"{count} requests", many(count, late, draw), 7.5, 0.5, 0.06)
    yield Case("nobody was answered", (down(0.2, 0.03), 2.0, 0.5, 0.04), {"p50": None, "p90": None, "goodput": 0.0})


def report_fresh(draw: random.Random) -> Iterable[Case]:
    """As many answered ones are odd as above: a median of an odd number forgives some mistakes."""
    for name in ("five requests, drawn", "five others, drawn"):
        early, ttft, late, limit = (number / 100 for number in sorted(draw.sample(range(5, 300), 4)))
        short, max_tpot, long = (number / 1000 for number in sorted(draw.sample(range(10, 99), 3)))
        yield report_of(
            name, five(early, ttft, late, limit, short, max_tpot, long), draw.uniform(1, 9), limit, max_tpot
        )
    for name in ("nobody was answered, drawn", "nobody was answered, either, drawn"):
        broken = down(draw.uniform(0.1, 0.9), draw.uniform(0.01, 0.1)) * draw.randrange(1, 4)
        yield report_of(name, broken, draw.uniform(1, 9), draw.uniform(0.3, 0.9), 0.04)
    for number in range(6):
        count, late, odd = ((20, 0.3, True), (37, 0.6, False), (200, 0.8, True))[number % 3]
        while True:
            requests = many(count + 2 * draw.randrange(count // 8), late, draw)
            if sum(request["error"] is None for request in requests) % 2 == odd:
                break
        seconds, max_ttft = draw.uniform(3, 30), late * draw.uniform(0.6, 1.6)
        yield report_of(f"{len(requests)} requests, draw {number + 1}", requests, seconds, max_ttft, 0.06)


def report_of(name: str, *arguments: Any) -> Case:
    return Case(name, arguments, load_report(*arguments))


def five(early: float, ttft: float, late: float, limit: float, short: float, max_tpot: float, long: float) -> Requests:
    """One is too slow between tokens, one has a single token, two are exactly at a limit, one is refused."""
    return [
        {"ttft": late, "tpot": long, "error": None},
        {"ttft": early, "tpot": None, "error": None},
        {"ttft": limit, "tpot": short, "error": None},
        {"ttft": ttft, "tpot": max_tpot, "error": None},
        {"ttft": None, "tpot": None, "error": "503"},
    ]


def down(ttft: float, tpot: float) -> Requests:
    return [{"ttft": None, "tpot": None, "error": "503"}, {"ttft": ttft, "tpot": tpot, "error": "the stream broke"}]


def many(count: int, late: float, draw: random.Random) -> Requests:
    requests: Requests = []
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
    return requests


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


ASKED_REPORT = 'Return a dictionary with "p50", "p90" and "goodput".'


def explain_report(case: Case, got: Any) -> str:
    if isinstance(got, str):
        if "Error" in got and all(request["error"] is not None for request in case.arguments[0]):
            return "Nobody was answered: there is no percentile to take (None), and the goodput is 0."
        if "NoneType" in got:
            return "ttft is None where no token came, tpot where only one came: look before you compare."
        return ASKED_REPORT if "dictionary update" in got or "is not iterable" in got else ""
    if not isinstance(got, dict) or set(got) != set(case.expected):
        return ASKED_REPORT
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
    spaced = ([0.0, 10.0, 20.0], [1.0, 2.0, 1.5])
    return clicks(spaced, service=1.0, stall=10.0, gap=0.2, rates=(0.5, 0.9, 1.3), draw=random.Random(3))


def late_fresh(draw: random.Random) -> Iterable[Case]:
    """Servers as busy as those above."""
    gap, begin = draw.uniform(5, 20), draw.uniform(1, 9)
    spaced = ([begin + gap * k for k in range(3)], [draw.uniform(0.5, 4.5) for _ in range(3)])
    rates = (draw.uniform(0.4, 0.6), draw.uniform(0.85, 0.95), draw.uniform(1.2, 1.4))
    service, stall, pace = draw.uniform(0.5, 9), draw.uniform(5, 15), draw.uniform(0.15, 0.3)
    return clicks(spaced, service, stall, pace, rates, draw, ", drawn")


def clicks(
    spaced: tuple[list[float], list[float]],
    service: float,
    stall: float,
    gap: float,
    rates: Sequence[float],
    draw: random.Random,
    ending: str = "",
) -> Iterable[Case]:
    """Users that meet nobody, three at once, users every `gap` seconds behind one stall, and three random loads."""
    yield Case(f"nobody waits{ending}", spaced, max(spaced[1]))
    yield Case(f"three at once{ending}", ([0.0] * 3, [service] * 3), 3 * service)
    stalled = [stall] + [gap / 2] * 99
    name = f"one stall of {stall:.3g} s{ending}"
    yield Case(name, ([gap * k for k in range(100)], stalled), p99_with_stall(stalled, gap))
    for load, rate in zip(("half of what it can serve", "nine tenths", "more than it can serve"), rates, strict=True):
        now, arrivals, seconds = 0.0, [], []
        for _ in range(300):
            now += draw.expovariate(rate)
            arrivals.append(round(now, 3))
            seconds.append(round(0.5 + draw.random(), 3))
        yield Case(load + ending, (arrivals, seconds), load_test(arrivals, seconds))


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
