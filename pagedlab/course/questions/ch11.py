"""Chapter 11: who owns what, who waits for whom, a scheduler that loses requests, and the capstone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pagedlab.course.drivers.ch11 import attend_or_run, look_up, make_room, run_parts, run_scheduler
from pagedlab.course.questions.ch11_attention import attention_cases, attention_explained, attention_fresh
from pagedlab.course.questions.ch11_capstone import (
    capstone_cases,
    capstone_fresh,
    run_explained,
    scheduler_cases,
    scheduler_fresh,
)
from pagedlab.course.questions.ch11_room import room_cases, room_explained, room_fresh
from pagedlab.course.questions.ch11_waiting import WAITING_MISTAKES, waiting_cases, waiting_fresh
from pagedlab.course.questions.mistakes import named
from pagedlab.course.questions.model import Case, Kind, Question

ORDER = (
    "client",
    "API layer (keys, limits)",
    "OpenAI server (parses)",
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
    if place["OpenAI server (parses)"] < place["API layer (keys, limits)"]:
        return "The cheap checks stand at the door: who is refused there, nobody parses. The chapter's trace begins so."
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
            "HTTP first: keys and limits are checked at the door, then the body is parsed. Tables and hashes belong to "
            "whoever decides on blocks, the queue and the budget to whoever decides on steps, the text to whoever has "
            "the tokenizer.",
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
        fresh=waiting_fresh,
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
        fresh=room_fresh,
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
    Question(
        id="ch11.q4",
        title="Paged attention for the engine",
        kind=Kind.IMPLEMENT,
        difficulty=2,
        points=3,
        answer="paged_attention",
        cases=attention_cases,
        fresh=attention_fresh,
        hints=(
            "One sequence at a time: its rows of query, its blocks by the table, its keys in order. Chapter 07 does it "
            "for one row.",
            "key_cache[table] gathers blocks as [blocks, block_size, heads, dim]: flatten the first two, cut at "
            "seq_lens[i], and repeat each KV head for its group of query heads. Positions of the rows: the last ones.",
            "scores = einsum('qhd,khd->hqk', query[rows], keys) * scale; where mask(arange(length - rows, length), "
            "arange(length)) is False they are -inf; softmax over k; einsum with the values.",
        ),
        explain=attention_explained,
        tolerance=1e-3,
        absolute=True,
        drive=attend_or_run,
    ),
    Question(
        id="ch11.q5",
        title="A scheduler for the engine",
        kind=Kind.IMPLEMENT,
        difficulty=3,
        points=4,
        answer="MyScheduler",
        cases=scheduler_cases,
        fresh=scheduler_fresh,
        hints=(
            "Running requests first, oldest first; each wants num_tokens - num_computed tokens, cut to what is left of "
            "the budget. Then those who wait.",
            "While allocate says no, free the blocks of the latest arrival among those who still run, and take it off "
            "your list; if that is the request itself, stop. Since you go from old to new, the victim is not planned "
            "yet. A step that freed blocks lets nobody in.",
            "Two loops: `while turn < len(stay) and left` over a copy of running sorted by arrival, with `while not "
            "allocate: free(stay.pop())` inside; then `for request in waiting` until seats, budget or blocks are out.",
        ),
        explain=run_explained,
        drive=run_scheduler,
    ),
    Question(
        id="ch11.q6",
        title="The capstone",
        kind=Kind.IMPLEMENT,
        difficulty=3,
        points=6,
        answer="parts",
        cases=capstone_cases,
        fresh=capstone_fresh,
        hints=(
            "Part by part: the first four cases each plug in one of yours. Get them right in turn; the last two then "
            "usually follow.",
            "The mask compares positions, not row numbers: one comparison with [None, :] and [:, None]. The pool needs "
            "a list of free blocks and a count of holders for each.",
            "Pool: release counts down and puts the block back at 0, share counts up, allocate takes from the list and "
            "sets the count to 1, and num_free is the length of the list. The rest is questions 4 and 5.",
        ),
        explain=run_explained,
        drive=run_parts,
        seconds=120.0,
    ),
)
