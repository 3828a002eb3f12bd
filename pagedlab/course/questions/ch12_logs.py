"""Chapter 12, the log: real runs of the server as cases, what is right by the engine's own trace, and mistakes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from random import Random
from typing import Any

from pagedlab.course.questions.ch12_retold import retold
from pagedlab.course.questions.mistakes import Mistake
from pagedlab.course.questions.model import Case
from pagedlab.course.served_log import ServedLog, bodies, events_of, served_log

LAYERS = ("interfaces", "model_authoring", "runtime")
EVENTS = ("admit", "parse", "add_request", "schedule", "pack", "forward", "update", "finish", "output", "preempt")

MIXED = bodies(
    {"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 4, "ignore_eos": True},
    {"prompt": list(range(100, 250)), "max_tokens": 5, "ignore_eos": True},
    {"prompt": [9, 8, 7], "max_tokens": 1, "ignore_eos": True},
    {"prompt": "Hi", "max_tokens": -1},
)
"""A chat, a prompt of three chunks, an answer of one token, and one that is refused."""
TIGHT = bodies(*({"prompt": list(range(k, k + 48)), "max_tokens": 20, "ignore_eos": True} for k in (300, 400, 500)))
"""More than the pool holds: somebody is preempted and computed again."""


def runs() -> list[tuple[str, ServedLog]]:
    return [
        ("mixed", served_log(MIXED)),
        ("a tight pool", served_log(TIGHT, max_num_batched_tokens=96, num_blocks=13)),
    ]


def fresh_runs(draw: Random) -> list[tuple[str, ServedLog]]:
    """No other server: that takes seconds."""
    return [(f"{name}, told anew", retold(log, draw)) for name, log in runs()]


def cases_of(expected: Callable[[ServedLog, str], Any], given: Sequence[tuple[str, ServedLog]]) -> Iterable[Case]:
    """Every request of every run; and one run with its lines in another order, as a collector may deliver them."""
    for name, log in given:
        for number, request_id in enumerate(log.request_ids, start=1):
            yield Case(f"{name}, request {number}", (log.lines, request_id), expected(log, request_id))
    name, log = given[0]
    request_id = log.request_ids[1]
    yield Case(f"{name}, lines backwards", (log.lines[::-1], request_id), expected(log, request_id))


# ---- question 2: by layer --------------------------------------------------------------------------------------------


def layers_expected(log: ServedLog, request_id: str) -> dict[str, list[str]]:
    """From the engine's trace; what follows it are each layer's summary and the line of the HTTP answer."""
    events = sorted(events_of(log, request_id, EVENTS), key=lambda event: event.start)
    found = {layer: [event.name for event in events if event.layer == layer] for layer in LAYERS}
    route = "/v1/chat/completions" if request_id.startswith("chatcmpl") else "/v1/completions"
    found["interfaces"] += ["finished", f"POST {route}"]
    found["model_authoring"].append("scheduled")
    found["runtime"].append("computed")
    return found


def layers_cases() -> Iterable[Case]:
    return cases_of(layers_expected, runs())


def layers_fresh(draw: Random) -> Iterable[Case]:
    return cases_of(layers_expected, fresh_runs(draw))


def sort_out(
    lines: Sequence[str],
    request_id: str,
    own: bool = True,
    batches: bool = True,
    http: bool = True,
    in_time: bool = True,
    everybody: bool = False,
) -> dict[str, list[str]]:
    """The lines by layer; each switch makes one mistake."""
    read = [json.loads(line) for line in lines]
    if in_time:
        read.sort(key=lambda line: line["time"])
    found: dict[str, list[str]] = {layer: [] for layer in LAYERS}
    for line in read:
        mine = (own and line["request_id"] == request_id) or (
            batches and request_id in line.get("details", {}).get("requests", ())
        )
        short = bool(http and line["request_id"] and request_id.endswith(line["request_id"]))
        if mine or (short and line["request_id"] != request_id) or everybody:
            found[line["layer"]].append(line["message"])
    return found


LAYERS_MISTAKES = (
    Mistake(
        "The lines of batches are missing (schedule, pack, forward, update): their request_id is null, and they name "
        "everybody concerned in details.requests.",
        lambda lines, request_id: sort_out(lines, request_id, batches=False),
    ),
    Mistake(
        "The lines of batches are missing, and so is the HTTP line: filtering by an equal request_id finds neither.",
        lambda lines, request_id: sort_out(lines, request_id, batches=False, http=False),
    ),
    Mistake(
        "The HTTP line (POST ...) is missing: its id is the request's without the prefix, so the request's id ends "
        "with it.",
        lambda lines, request_id: sort_out(lines, request_id, http=False),
    ),
    Mistake(
        "That is the order in which the lines were written. An event is written after its step; sort by `time`.",
        lambda lines, request_id: sort_out(lines, request_id, in_time=False),
    ),
    Mistake(
        "These are the lines of all requests: leave out what does not concern this one.",
        lambda lines, request_id: sort_out(lines, request_id, everybody=True),
    ),
    Mistake(
        "Only the batches' lines are there: what has the request's own id is missing.",
        lambda lines, request_id: sort_out(lines, request_id, own=False, http=False),
    ),
    Mistake(
        "Some layers are missing: a layer of which nothing was found is an empty list, and there are three.",
        lambda lines, request_id: {"interfaces": sort_out(lines, request_id, batches=False)["interfaces"]},
    ),
)


def explain_layers(case: Case, got: Any) -> str:
    """For what no known mistake explains: the first difference of a layer."""
    if isinstance(got, str):
        return raised(got)
    if not isinstance(got, dict) or set(got) != set(LAYERS):
        return "Give a dictionary with the three layers as keys: interfaces, model_authoring, runtime."
    for layer in LAYERS:
        right = case.expected[layer]
        if sorted(map(str, got[layer])) == sorted(right) and got[layer] != right:
            return f"The right lines of {layer}, but not in order of time."
        if len(got[layer]) > len(right) and set(map(str, got[layer])) == set(right):
            return (
                f"{layer} has lines too many: of other requests (an id that merely contains another one is not the "
                "same), or some twice."
            )
        if got[layer] != right:
            missing = [name for name in dict.fromkeys(right) if name not in got[layer]]
            return f"{layer} is not right" + (f": {', '.join(missing)} is missing." if missing else ".")
    return ""


def raised(got: str) -> str:
    if got in ("KeyError: 'details'", "KeyError: 'requests'"):
        return "Not every line has `details`, and not every details has `requests`: use .get."
    if got.startswith("TypeError") and "NoneType" in got:
        return "The request_id of a line may be null (None): look before you use it."
    if got.startswith("JSONDecodeError"):
        return "A line is JSON by itself: json.loads of each line, not of all of them."
    return ""


# ---- question 3: times -----------------------------------------------------------------------------------------------


def times_expected(log: ServedLog, request_id: str) -> list[float]:
    """From the engine's trace; which step made the first token, by how far the scheduler had come."""
    events = events_of(log, request_id, EVENTS)
    (arrival,) = (event.start for event in events if event.name == "admit")
    (prompt,) = (event.args["num_prompt_tokens"] for event in events if event.name == "add_request")
    computed, first = 0, -1
    for event in events:
        if event.name == "schedule" and first < 0:
            computed = event.args["requests"][request_id][1]
            first = event.step if computed >= prompt else -1
    ends = {event.step: event.start + event.duration for event in events if event.name == "forward"}
    return [ends[first] - arrival, max(ends.values()) - arrival]


def times_cases() -> Iterable[Case]:
    return cases_of(times_expected, runs())


def times_fresh(draw: Random) -> Iterable[Case]:
    return cases_of(times_expected, fresh_runs(draw))


def times(
    lines: Sequence[str],
    request_id: str,
    since: str = "admit",
    step: str = "first to reach",
    part: str = "end",
    until: str = "last forward",
    unit: float = 1e-3,
    anybody: bool = False,
) -> list[float]:
    """Time to first token, and to the last; each switch makes one mistake."""
    read = sorted(map(json.loads, lines), key=lambda line: line["time"])
    mine = [
        line
        for line in read
        if line["request_id"] == request_id or request_id in line.get("details", {}).get("requests", ())
    ]
    begin = next(line["time"] for line in mine if line["message"] == since)
    prompt = next(line["details"]["num_prompt_tokens"] for line in mine if line["message"] == "add_request")
    schedules = [line["details"] for line in mine if line["message"] == "schedule"]
    reaching = [one["step"] for one in schedules if one["requests"][request_id][1] >= prompt]
    ends = {
        line["details"]["step"]: line["time"] + (line["details"]["milliseconds"] * unit if part == "end" else 0.0)
        for line in (read if anybody else mine)
        if line["message"] == "forward"
    }
    chosen = {
        "first to reach": reaching[0],
        "first": schedules[0]["step"],
        "after": reaching[min(1, len(reaching) - 1)],
    }
    last = max(ends.values())
    if until == "http":
        last = next(line["time"] for line in reversed(read) if request_id.endswith(str(line["request_id"])))
    elif until == "finished":
        last = next(line["time"] for line in mine if line["message"] == "finished")
    return [ends[chosen[step]] - begin, last - begin]


TIMES_MISTAKES = (
    Mistake(
        "That is the first step of the request. A prompt in chunks takes several: its first token comes after the one "
        "that reaches the prompt's end.",
        lambda lines, request_id: times(lines, request_id, step="first"),
    ),
    Mistake(
        "That step is one too late: the step that reaches the end of the prompt already yields the first token.",
        lambda lines, request_id: times(lines, request_id, step="after"),
    ),
    Mistake(
        "The `time` of a forward line is when it began; the tokens are there when it has ended, `milliseconds` later.",
        lambda lines, request_id: times(lines, request_id, part="start"),
    ),
    Mistake(
        "`milliseconds` was added as if it were seconds: divide by 1000.",
        lambda lines, request_id: times(lines, request_id, unit=1.0),
    ),
    Mistake(
        "The clock must start when the request arrives (`admit`), not when the engine hears of it: parsing counts too.",
        lambda lines, request_id: times(lines, request_id, since="add_request"),
    ),
    Mistake(
        "The clock must start at `admit`, when the request arrives, not at its first `schedule`: waiting counts too.",
        lambda lines, request_id: times(lines, request_id, since="schedule"),
    ),
    Mistake(
        "The second time ends with the HTTP answer. Asked for is the moment when the last token is known.",
        lambda lines, request_id: times(lines, request_id, until="http"),
    ),
    Mistake(
        "The `finished` line is written a little after the last token is known: take the end of the last forward.",
        lambda lines, request_id: times(lines, request_id, until="finished"),
    ),
    Mistake(
        "The last forward of all is not this request's: somebody else may still have been running.",
        lambda lines, request_id: times(lines, request_id, anybody=True),
    ),
)


def explain_times(case: Case, got: Any) -> str:
    if isinstance(got, str):
        return raised(got)
    first, last = case.expected
    if isinstance(got, list) and len(got) == 2:
        near = [abs(have - 1e3 * want) <= 20 * want for have, want in zip(got, case.expected, strict=True)]
        if all(near):
            return "That is in milliseconds; asked for are seconds."
        if abs(got[0] - last) < 1e-3 and abs(got[1] - first) < 1e-3:
            return "The two are swapped: the time to first token comes first."
        if min(got) > 1e9 and max(got) < 3e9:
            return "These are moments (seconds since 1970), not times since the arrival: subtract."
        if abs(got[0] - first) < 1e-3 and abs(got[1] - (last - first)) < 1e-3:
            return "The second time runs from the arrival too, not from the first token."
    return ""
