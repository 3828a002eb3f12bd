"""Chapter 12, HTTP from the client's side: an event stream in pieces, and a server that refuses."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from pagedlab.course.questions.mistakes import Mistake, named
from pagedlab.course.questions.model import Case

# ---- question 1: an event stream -------------------------------------------------------------------------------------

Pieces = list[tuple[float, str]]


def stream_of(words: Sequence[str], reason: str, usage: bool) -> list[str]:
    """The events of a chat stream, written by the server's own models."""
    from pagedlab.interfaces.openai_server.responses import ChatChunk, ChatChunkChoice, ChatDelta
    from pagedlab.interfaces.openai_server.serving import usage as counted
    from pagedlab.interfaces.openai_server.sse import DONE, event

    common: dict[str, Any] = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    deltas: list[tuple[ChatDelta, str | None]] = [(ChatDelta(role="assistant", content=""), None)]
    deltas += [(ChatDelta(content=word), None) for word in words]
    deltas.append((ChatDelta(content=""), reason))
    chunks = [
        ChatChunk(**common, choices=[ChatChunkChoice(index=0, delta=delta, finish_reason=ended)])
        for delta, ended in deltas
    ]
    if usage:
        chunks.append(ChatChunk(**common, choices=[], usage=counted(9, len(words))))
    return [event(chunk).decode("latin-1") for chunk in chunks] + [DONE.decode()]


def cut(events: Sequence[str], draw: random.Random, whole: bool) -> tuple[Pieces, float]:
    """The events as pieces with times, cut at their ends or anywhere; and when the first text was complete."""
    if whole:
        pieces = [(round(0.1 * number, 3), one) for number, one in enumerate(events, start=1)]
        return pieces, pieces[1][0]
    body = "".join(events)
    inside = {place + 1 for place, byte in enumerate(body) if byte >= "\x80"}  # of characters of several bytes
    places = sorted({*draw.sample(range(1, len(body)), len(events) * 2), *sorted(inside)[:1]})
    parts = [body[a:b] for a, b in zip([0, *places], [*places, len(body)], strict=True)]
    pieces = [(round(0.05 * number, 3), part) for number, part in enumerate(parts, start=1)]
    needed, seen = len(events[0]) + len(events[1]), 0
    for seconds, part in pieces:
        seen += len(part)
        if seen >= needed:
            return pieces, seconds
    raise AssertionError("the pieces hold the whole body")


def stream_cases() -> Iterable[Case]:
    given = (
        ("one event a piece", ["Hello", "!"], "stop", False, True),
        ("with usage", ["Hello", " there"], "length", True, True),
        ("cut anywhere", ["A block", " is", " sixteen", " tokens"], "stop", True, False),
        ("characters of several bytes, cut anywhere", ["Grüße", " ☕", "日本", "語"], "length", True, False),
        ("a text with data: in it", ["data: ", "x", "\n\n", "[DONE]", "y"], "stop", False, False),
    )
    return streams(given, map(random.Random, range(len(given))))


WORDS = [" block", " table", " is", " not", " a", " page", ",", " but", " sixteen", " tokens", " wait", "."]
MARKS = [" Größe", " é", " ☕", "日", "本", "語", " naïve", " 😀", "ß"]


def stream_fresh(draw: random.Random) -> Iterable[Case]:
    def some(words: Sequence[str], *always: str) -> list[str]:
        chosen = [*always, *draw.choices(words, k=draw.randrange(2, 6))]
        return draw.sample(chosen, len(chosen))

    reason, other = draw.sample(("stop", "length"), 2)
    given = (
        ("one event a piece, drawn", some(WORDS), reason, False, True),
        ("with usage, drawn", some(WORDS), other, True, True),
        ("cut anywhere, drawn", some(WORDS), reason, True, False),
        ("characters of several bytes, cut anywhere, drawn", some(MARKS), other, True, False),
        ("a text with data: in it, drawn", some(WORDS, "data: ", "\n\n", "[DONE]"), reason, False, False),
    )
    return streams(given, [draw] * len(given))


def streams(given: Sequence[tuple[str, list[str], str, bool, bool]], draws: Iterable[random.Random]) -> Iterable[Case]:
    """Of each: its name, words, finish reason, whether it has usage, and whether events come whole."""
    for (name, words, reason, usage, whole), draw in zip(given, draws, strict=True):
        pieces, first = cut(stream_of(words, reason, usage), draw, whole)
        yield Case(name, (pieces,), ["".join(words), reason, first])


def read_stream(
    pieces: Pieces,
    first_event: bool = False,
    piecewise: bool = False,
    last_reason: bool = False,
    latin: bool = False,
    ended: bool = False,
) -> list[Any]:
    """Text, finish reason, time to first token; each switch makes one mistake."""
    text, reason, ttft, rest = "", None, None, ""
    for seconds, part in pieces:
        if piecewise:
            rest = ""
        *whole, rest = (rest + part).split("\n\n")
        for one in whole:
            data = one.removeprefix("data: ")
            if data == "[DONE]":
                continue
            event = json.loads(data if latin else data.encode("latin-1").decode())
            for choice in event["choices"]:
                if ttft is None and (first_event or choice["delta"].get("content")):
                    ttft = seconds
                text += choice["delta"].get("content", "")
                if last_reason or choice["finish_reason"]:
                    reason = choice["finish_reason"]
    return [text, reason, pieces[-1][0] if ended else ttft]


def explain_stream(case: Case, got: Any) -> str:
    known = named(
        Mistake(
            "The first event holds the role and no text: the first token is there when some text is.",
            lambda pieces: read_stream(pieces, first_event=True),
        ),
        Mistake(
            "That time is the end of the stream: stop the clock at the first text.",
            lambda pieces: read_stream(pieces, ended=True),
        ),
        Mistake(
            "The text was decoded with the wrong encoding: JSON is UTF-8.",
            lambda pieces: read_stream(pieces, latin=True),
        ),
    )(case, got)
    if known:
        return known
    (pieces,) = case.arguments
    sent = "".join(part for _, part in pieces)
    if isinstance(got, str):
        if "JSONDecodeError" in got:
            return "A piece may end in the middle of an event, and [DONE] is no JSON: keep what is incomplete."
        if "UnicodeDecodeError" in got:
            return "A piece may end in the middle of a character: cut the bytes into events first, then decode."
        if "IndexError" in got and '"choices":[]' in sent.replace(" ", ""):
            return "The usage chunk has no choices: look whether there is one before you take it."
        if got in ("KeyError: 'content'", "KeyError: 'choices'"):
            return "Not every delta has `content`, and not every event has choices: use .get."
        return ""
    if isinstance(got, list) and len(got) == 3:
        text, reason, ttft = case.expected
        if isinstance(got[0], str) and len(got[0]) < len(text) and not all(p.endswith("\n\n") for _, p in pieces):
            return "Events that arrive in several pieces are lost: keep the incomplete rest for the next piece."
        if got[0] != text:
            return "The text is the `content` of all events in order, with nothing between them."
        if got[1] != reason:
            return "The finish reason comes once, in one event; the others have null there."
        if isinstance(got[2], (int, float)) and got[2] != ttft:
            return "An event counts from the piece that completes it, and the first with text is asked for."
        return "The third is a number of seconds."
    return "Return three things: text, finish reason, seconds."


# ---- question 5: a client that insists -------------------------------------------------------------------------------

AGAIN = (429, 503)
Numbers = Callable[[], tuple[int, int, int]]
"""Seconds that a full server names, those that one names to somebody too fast, and more tries than are needed."""


def insist_cases() -> Iterable[Case]:
    return refusals(lambda: (2, 7, 5))


def insist_fresh(draw: random.Random) -> Iterable[Case]:
    return refusals(lambda: (draw.randrange(2, 30), draw.randrange(30, 60), draw.randrange(6, 60)), ", drawn")


def refusals(numbers: Numbers, ending: str = "") -> Iterable[Case]:
    """Servers as scripts; every wait is one that a polite client makes, and after it the script goes on."""
    for name, script, status, waits, tries in (
        ("answered at once", "200", 200, "", None),
        ("full twice, then answered", "full full 200", 200, "full full", None),
        ("too fast, then full, then answered", "fast full 200", 200, "fast full", None),
        ("a 503 that names no time", "silent 200", 200, "silent", None),
        ("wrong key", "401", 401, "", None),
        ("a bad body", "400 200", 400, "", None),
        ("no such model, after a wait", "full 404 200", 404, "full", None),
        ("full for ever", "full", 503, "full full", 3),
        ("one try is allowed", "fast 200", 429, "", 1),
    ):
        full, fast, most = numbers()
        seconds = {"full": full, "fast": fast, "silent": 1}
        replies: dict[str, tuple[int, dict[str, str]]] = {
            "full": (503, {"Retry-After": str(full)}),
            "fast": (429, {"Retry-After": str(fast)}),
            "silent": (503, {}),
        }
        served = [replies.get(word) or (int(word), {}) for word in script.split()]
        slept = [seconds[word] for word in waits.split()]
        expected = {"status": status, "tries": len(slept) + 1, "slept": slept}
        yield Case(name + ending, (served, tries or most), expected)


def explain_insist(case: Case, got: Any) -> str:
    script, _most = case.arguments
    if isinstance(got, str):
        if got.lower() == "keyerror: 'retry-after'":
            return "Retry-After may be missing: take 1 second then."
        if "1000 times" in got:
            return "It never gives up: after `most` tries the last status is the result."
        return ""
    if not isinstance(got, dict):
        return ""
    want = case.expected
    if got["tries"] > want["tries"] and script[want["tries"] - 1][0] not in (*AGAIN, 200):
        return "A 400, 401 or 404 is the same the next time: only 429 and 503 are worth another try."
    if got["tries"] > want["tries"]:
        return "Too many tries: an answer ends it, and so does the try number `most`."
    if got["tries"] < want["tries"]:
        return "It gives up too soon: both 429 and 503 mean later, up to `most` tries in all."
    if len(got["slept"]) > got["tries"]:
        return "It sleeps more often than it tries: once before each further try is asked for."
    if len(got["slept"]) > len(want["slept"]):
        return "It sleeps where no try follows: after the last one there is nothing to wait for."
    if got["slept"] != want["slept"]:
        if len(got["slept"]) < len(want["slept"]):
            return "It tries again without waiting: that makes an overload worse."
        if any(have < due for have, due in zip(got["slept"], want["slept"], strict=True)):
            return "It waits less than Retry-After says: that many seconds, or 1 where there is no such header."
        return "It waits longer than Retry-After says, or uses another time where there is no such header (1 second)."
    if got["status"] != want["status"]:
        return "Return the status of the last answer."
    return ""
