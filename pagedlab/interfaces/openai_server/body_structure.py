"""How much structure a JSON body has, counted before it is parsed: a list costs Python hundreds of times its bytes.

json.loads holds the event loop, and the GIL, to its end: on a thread it would stop the others just the same. A body of
4 MiB is parsed in 10 ms if it is one text, and in 1.5 s if it is a million empty lists.
"""

from __future__ import annotations

import json

import numpy as np

from pagedlab.interfaces.openai_server.errors import ApiError

MAX_STRUCTURE = 1 << 16
"""Lists, objects and named values: a conversation of 1,024 turns, each of twenty parts, has fewer."""

MAX_ENTRIES = 1 << 19
"""Values that stand in a row: token ids, above all. To read a million of them takes 0.4 s, in a few long steps."""

STRUCTURE = b"[{:"


def check_structure(body: bytes) -> None:
    """Refuse a body whose parsing would keep everybody waiting. What is no JSON passes: the parser says so.

    Raises:
        ApiError: 400, with what to change.
    """
    if _count(body, STRUCTURE) <= MAX_STRUCTURE and body.count(b",") <= MAX_ENTRIES:
        return  # even if all of them are structure, and none is of a text
    structure = outside_strings(body)
    for found, limit, what in (
        (_count(structure, STRUCTURE), MAX_STRUCTURE, "lists, objects and named values"),
        (structure.count(b","), MAX_ENTRIES, "values"),
    ):
        if found > limit:
            raise ApiError(400, f"The body has {found} {what}, and {limit} are allowed: send less.")


def outside_strings(body: bytes) -> bytes:
    """The body without its strings, up to its first mistake, behind which anything may be returned."""
    encoding = json.detect_encoding(body)  # UTF-16 has quotes and brackets in the halves of other characters
    if not encoding.startswith("utf-8"):
        body = body.decode(encoding, "replace").encode("utf-8", "replace")
    # In a string backslashes come in pairs, or with what they escape; then each quote that is left begins or ends one.
    plain = np.frombuffer(body.replace(rb"\\", b"").replace(rb"\"", b""), np.uint8)
    num_quotes = (plain == ord('"')).cumsum(dtype=np.uint8)  # wraps at 256, which is even
    return plain[(num_quotes & 1) == 0].tobytes()


def _count(text: bytes, characters: bytes) -> int:
    return sum(text.count(character) for character in characters)
