"""Chapter 04: what people get who mix up the ways to be empty, and what a history shows that does not fragment."""

from __future__ import annotations

from typing import Any

from pagedlab.course.drivers.ch04 import MAX_ACTIONS
from pagedlab.course.questions.mistakes import Mistake
from pagedlab.course.questions.model import Case

# ---- q1: a server by hand --------------------------------------------------------------------------------------------

WHOLE = "Requests come whole: what is left over after the last one serves nobody. Round down."
SERVER_MISTAKES: dict[str, list[tuple[float, str]]] = {
    "bytes_per_token": [
        (98_304, "Half of it: a token leaves a key and a value, and each of their numbers takes 2 bytes."),
        (983_040, "Only the KV heads are cached: 8 of them serve the 40 query heads."),
        (4096, "That is one layer. Every layer keeps keys and values of its own."),
        (393_216, "A number of 16 bits is 2 bytes."),
        (192, "Bytes are asked, not KiB."),
    ],
    "slots": [
        (35_603, "GiB is 2³⁰ bytes, not 10⁹."),
        (7 * 2**30, "Those are bytes; a slot holds the keys and values of one token."),
        (7645, "Too few by a factor of 5: only KV heads are cached."),
        (76_458, "Too many by a factor of 2: a key and a value, 2 bytes each number."),
    ],
    "reserve_max": [
        (38_229 / 4096, WHOLE),
        (10, WHOLE),
        (42, "This server does not know the length: it reserves the window of 4,096 for each."),
    ],
    "first_fit": [
        (38_229 / 900, WHOLE),
        (43, WHOLE),
        (9, "This one knows the length, and reserves 900 slots for each."),
        (37, "First fit gives what is asked, 900 slots. Powers of two are the buddy allocator's."),
        (37_800, "That is slots; asked is how many requests."),
    ],
    "buddy": [
        (42, "A buddy allocator gives out powers of two: 900 slots need a block of 1,024."),
        (38_229 / 1024, WHOLE),
        (38, WHOLE),
        (74, "A block of 512 is too short for 900 slots: round up, not down."),
        (32, "38,229 is no power of two: behind the tree of 32,768 come smaller ones, and some hold a block of 1,024."),
    ],
    "last_block": [
        (0, "Paging wastes less, but not nothing: 900 is no multiple of 16."),
        (4, "That is how many tokens the last block holds. How many of its slots are empty?"),
        (7.5, "That is the average over all lengths. This request has 900 tokens."),
        (8, "That is about the average over all lengths. This request has 900 tokens."),
        (3196, "Nothing is reserved with paging: only the last block has empty slots."),
        (124, "Blocks of 16 are not rounded to a power of two in all: only the last block has empty slots."),
    ],
    "compaction_ms": [
        (3.932160, "A copy reads each byte and writes it again: twice the bytes."),
        (0, "Compaction is not free: keys and values have to be copied."),
        (0.00786432, "That is in seconds; milliseconds are asked."),
        (0.00393216, "That is in seconds, and a copy reads each byte and writes it again."),
        (0.00004, "A token is not one byte: copy its keys and values."),
    ],
}

# ---- q2: four ways to be empty ---------------------------------------------------------------------------------------


def up(number: int) -> int:
    return 1 << (number - 1).bit_length()


def census_by(
    kind: str,
    prompt: int,
    output: int,
    written: int,
    pow2_of: str = "output",
    capped: bool = True,
    rounds: bool | str = True,
    paged_for: str = "now",
    extra_block: bool = False,
    window: int = 2048,
) -> dict[str, int]:
    """The four states; every option is one way to go wrong."""
    now, end = prompt + written, prompt + output
    if kind == "paged":
        tokens = {"now": now, "end": end, "prompt": prompt}[paged_for]
        blocks = tokens // 16 + 1 if extra_block else -(-tokens // 16)
        asked = given = blocks * 16
        if paged_for == "prompt":
            asked = given = max(given, now)
    else:
        powers = {"output": up(output), "all": up(prompt + output) - prompt, "neither": output, "next": up(output + 1)}
        power = prompt + powers[pow2_of]
        asked = {"reserve-max": window, "power-of-two": min(window, power) if capped else power, "oracle": end}[kind]
        given = up(asked + (rounds == "next")) if rounds else asked
    return {
        "tokens": now,
        "reserved": min(end, asked) - now,
        "internal": max(0, asked - end),
        "rounding": given - asked,
    }


def census_mistake(says: str, change: Any = None, **options: Any) -> Mistake:
    """`change` is what is done to the right states, with the case's arguments."""

    def do(*arguments: Any) -> dict[str, int]:
        states = census_by(*arguments, **options)
        return {**states, **change(states, *arguments)} if change else states

    return Mistake(says, do)


CENSUS_MISTAKES = (
    census_mistake(
        "Reserved and internal are two losses: a reserved slot will be written before the request ends.",
        lambda s, *_: {"reserved": 0, "internal": s["reserved"] + s["internal"]},
    ),
    census_mistake(
        "Reserved and internal are two losses: an internal slot is never written.",
        lambda s, *_: {"reserved": s["reserved"] + s["internal"], "internal": 0},
    ),
    census_mistake(
        "Reserved and internal are swapped: reserved slots will be written, internal ones never.",
        lambda s, *_: {"reserved": s["internal"], "internal": s["reserved"]},
    ),
    census_mistake(
        "What the buddy adds is not internal: nobody asked for it. It is rounding.",
        lambda s, *_: {"internal": s["internal"] + s["rounding"], "rounding": 0},
    ),
    census_mistake("A buddy allocator gives out powers of two: the rounding is missing.", rounds=False),
    census_mistake(
        "power-of-two rounds the output alone; the prompt's length is known, and added as it is.", pow2_of="all"
    ),
    census_mistake("power-of-two rounds the output up to a power of two.", pow2_of="neither"),
    *(
        census_mistake(
            "A number that is a power of two already stays as it is: 256 is not rounded up to 512.", **options
        )
        for options in ({"pow2_of": "next"}, {"rounds": "next"}, {"pow2_of": "next", "rounds": "next"})
    ),
    census_mistake("No request is longer than the window: it never asks for more than 2,048.", capped=False),
    census_mistake(
        "Paging reserves nothing for later: blocks are given for the tokens that are there.", paged_for="end"
    ),
    census_mistake(
        "The tokens of the output need slots too: a paged request gets blocks as it grows.", paged_for="prompt"
    ),
    census_mistake("One block too many where the tokens fill the last block exactly.", extra_block=True),
    census_mistake(
        "Paging wastes less, but not nothing: the last block has empty slots.",
        lambda s, kind, *_: {"reserved": 0, "internal": 0} if kind == "paged" else {},
    ),
    census_mistake(
        "A paged request does not reserve up to its end: only what its last block still holds is reserved.",
        lambda s, kind, p, o, w: {"reserved": o - w} if kind == "paged" else {},
    ),
    census_mistake(
        "Blocks of 16 need no power of two: any number of them will do.",
        lambda s, kind, p, *_: {"rounding": up(sum(s.values())) - sum(s.values())} if kind == "paged" else {},
    ),
    census_mistake("The prompt's tokens lie in memory as well.", lambda s, kind, p, o, w: {"tokens": w}),
    census_mistake(
        "Only `written` of the output is there; the rest of it is still to come.",
        lambda s, kind, p, o, w: {"tokens": p + o, "reserved": 0},
    ),
)

# ---- q4: histories ---------------------------------------------------------------------------------------------------


def history_explained(case: Case, got: Any) -> str:
    key = case.arguments[0]
    if isinstance(got, str):
        if got == f"KeyError: {key!r}":
            return f'The dictionary has no entry "{key}" yet.'
        return 'Make it a dictionary of lists of pairs: {"both refuse": [("take", 2), ("give", 0), ...], ...}.'
    if not isinstance(got, dict) or not got.keys() & {"no history", "enough is free"}:
        return ""
    reason = str(got.get("no history", ""))
    if reason.startswith("no action"):
        return 'An action is ("take", size) or ("give", number).'
    if reason.endswith("actions"):
        return f"At most {MAX_ACTIONS} actions are allowed: there is a shorter way."
    if reason.startswith("size"):
        return "Sizes are 1, 2, 4 or 8: powers of two, so that nothing is lost to rounding."
    if reason.startswith("give"):
        return 'In ("give", i) the number counts the takes from 0, and each can be given back once.'
    if reason.endswith("already"):
        return "Only the last take may be refused: before it, both must place everything."
    if reason:
        return "The last action is the take that is refused."
    if not got["enough is free"]:
        return "Too little is free: that memory is full, not fragmented. Refused must be somebody who would fit in all."
    if got["first fit"] == got["buddy"] == "places":
        return "Both place it: the free slots still lie together."
    if got["first fit"] == got["buddy"]:
        return "Both refuse it: in one of the two memories the free slots must lie together."
    if key == "both refuse":
        return "One of the two still has a place for it."
    return "The other way round: look which of the two refuses."
