"""Chapter 12: a recorded log told anew, as of a run with other ids, later, slower, and with shorter answers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from random import Random
from typing import Any

from pagedlab.course.served_log import ServedLog
from pagedlab.trace import TraceEvent

OF_A_STEP = ("schedule", "pack", "forward", "update")
"""Events of a step in which nobody comes or goes."""


def retold(log: ServedLog, draw: Random) -> ServedLog:
    """Lines and trace of a run, changed in the same way, so that one still tells what is right of the other.

    Every id is another one. Everything takes a factor longer, from another moment on. Of the steps in which all
    requests only decode, some are taken out, as if the answers had been shorter by those tokens.
    """
    text = "\n".join(log.lines)
    ids = {old: f"{draw.getrandbits(64):016x}" for old in dict.fromkeys(re.findall(r"\b[0-9a-f]{16}\b", text))}
    slower = draw.uniform(1.2, 2.0)
    moment = 1_800_000_000 + draw.randrange(10**8)
    quiet = decode_steps(log.events)
    gone = {*draw.sample(quiet, min(len(quiet), draw.randrange(1, max(2, len(quiet) - 1))))}

    def renamed(name: str) -> str:
        return re.sub("[0-9a-f]{16}$", lambda found: ids[found[0]], name)

    read = [json.loads(line) for line in re.sub(r"\b[0-9a-f]{16}\b", lambda found: ids[found[0]], text).split("\n")]
    first = min(line["time"] for line in read)
    lines = []
    for line in read:
        if line["message"] not in OF_A_STEP or line["details"]["step"] not in gone:
            time = moment + slower * (line["time"] - first)
            lines.append(json.dumps(slowed(line, slower) | {"time": round(time, 6)}))
    events = []
    for event in log.events:
        if event.step not in gone or event.name not in OF_A_STEP:
            args = {**event.args}
            if "requests" in args:
                args["requests"] = {renamed(name): span for name, span in args["requests"].items()}
            name = event.request_id and renamed(event.request_id)
            start, duration = slower * event.start, slower * event.duration
            events.append(replace(event, request_id=name, args=args, start=start, duration=duration))
    return ServedLog(lines, [renamed(name) for name in log.request_ids], events)


def decode_steps(events: list[TraceEvent]) -> list[int]:
    """Steps that compute one token of each request, behind its prompt, and have no other events."""
    prompts = {event.request_id: event.args["num_prompt_tokens"] for event in events if event.name == "add_request"}
    busy = {event.step for event in events if event.name not in OF_A_STEP}
    return [
        event.step
        for event in events
        if event.name == "schedule"
        and event.step not in busy
        and all(start >= prompts[name] and end == start + 1 for name, (start, end) in event.args["requests"].items())
    ]


def slowed(line: Mapping[str, Any], factor: float) -> dict[str, Any]:
    """All durations of a line, in details too, as of a slower machine."""
    return {
        key: slowed(value, factor)
        if key == "details"
        else round(factor * value, 6)
        if key.endswith("seconds")
        else value
        for key, value in line.items()
    }
