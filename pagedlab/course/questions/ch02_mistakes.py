"""What people get wrong about masks in the questions of chapter 02, and what to say to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pagedlab.course.drivers.ch02 import attend_of, mask_rows
from pagedlab.course.questions.mistakes import Mistake
from pagedlab.course.questions.model import Case

# ---- q1: pairs, counted by hand --------------------------------------------------------------------------------------

PAIR_MISTAKES: dict[str, list[tuple[float, str]]] = {
    "causal": [
        (144, "That is the whole square. A token does not see what comes after it."),
        (66, "The diagonal is missing: a token sees itself too."),
        (72, "Half of the square cuts the diagonal in two: a token sees all of itself."),
    ],
    "packed": [
        (66, "That is one causal mask over all 11 tokens: requests must not see each other."),
        (53, "Blocks without the causal mask: inside its request a token sees no later one."),
        (121, "That is the whole square of 11 × 11."),
        (21, "The diagonals are missing: a token sees itself too."),
    ],
    "chunk": [
        (10, "The 8 cached keys are missing: the chunk's tokens see them all."),
        (48, "All 4 × 12: inside the chunk the mask is still causal."),
        (16, "A chunk's mask is not square: it has a column for each cached key too."),
        (78, "That is the mask of all 12 tokens; a chunk has only its own 4 rows."),
        (38, "The diagonal is missing: a token sees itself too."),
    ],
    "window": [
        (42, "A window of 3 holds the token itself and 2 before it, not 3 before it."),
        (36, "The first two tokens have fewer than 3 to see."),
        (78, "That is the causal mask without a window."),
        (54, "A window looks back only: later tokens stay hidden."),
        (21, "A window of 3 holds 3 tokens: itself and the two before it."),
    ],
    "nan_after_1": [
        (0, "Token 0 may see nothing at all, and the softmax over nothing is 0/0."),
        (6, "Not yet all: after one layer only a row that sees nothing is NaN."),
        (5, "The other way round: five rows have somebody to see."),
    ],
    "nan_after_2": [
        (1, "A weight of 0 does not protect, and here the weight is not even 0: who reads row 0 now?"),
        (2, "Everybody after token 0 sees row 0, not only its neighbour."),
        (5, "Row 0 still sees nothing, so it is NaN again."),
    ],
}

# ---- q2: the mask of a batch -----------------------------------------------------------------------------------------


def wrong_mask(
    requests: Sequence[tuple[int, int]],
    window: int | None,
    owners: bool = True,
    past: bool = True,
    see_past: bool = True,
    causal: bool = True,
    itself: bool = True,
    more: int = 0,
    windowed: bool = True,
    both_sides: bool = False,
    in_batch: bool = False,
    transposed: bool = False,
) -> list[str]:
    """The mask of a batch, row by row; every option is one way to go wrong."""
    queries = [(r, before * past + i, before) for r, (before, new) in enumerate(requests) for i in range(new)]
    keys = [(r, i, before) for r, (before, new) in enumerate(requests) for i in range(before + new)]

    def sees(row: int, column: int) -> bool:
        (query_owner, query, before), (key_owner, key, _) = queries[row], keys[column]
        if in_batch:
            query, key = row, column
        distance = query - key
        seen = not (owners and query_owner != key_owner)
        seen = seen and (distance >= (0 if itself else 1) or not causal)
        seen = seen and (see_past or key >= before)
        if window is not None and windowed:
            seen = seen and (abs(distance) if both_sides else distance) < window + more
        return seen

    table = torch.tensor([[sees(row, column) for column in range(len(keys))] for row in range(len(queries))])
    return mask_rows(lambda mask: mask.T if transposed else mask, table)


def mask_mistake(says: str, **options: Any) -> Mistake:
    return Mistake(says, lambda *arguments: wrong_mask(*arguments, **options))


MASK_MISTAKES = (
    mask_mistake("Requests see each other: a query may see the keys of its own request alone.", owners=False),
    mask_mistake("The first new token stands at position `past`, not at 0.", past=False),
    mask_mistake(
        "The cached tokens are hidden: a query sees the keys before its own request's new ones.", see_past=False
    ),
    mask_mistake("Not causal: a query may not see keys at later positions.", causal=False),
    mask_mistake("Not causal, and the window reaches both ways: it only looks back.", causal=False, both_sides=True),
    mask_mistake("The diagonal is missing: a token sees itself too.", itself=False),
    mask_mistake("The window is one too wide: the token itself is one of the `window` keys.", more=1),
    mask_mistake("The window is one too narrow: `window` keys, the token itself included.", more=-1),
    mask_mistake("The window is not applied.", windowed=False),
    mask_mistake("Row and column numbers of the batch are no positions in a request.", in_batch=True),
    mask_mistake("Row and column numbers of the batch are no positions in a request.", in_batch=True, owners=False),
    mask_mistake("Rows and columns are swapped: a row is a query, a column is a key.", transposed=True),
)


def mask_explained(case: Case, got: Any) -> str:
    """Mistakes by their result, then what can be said of the shape alone."""
    for mistake in MASK_MISTAKES:
        if got == mistake.do(*case.arguments):
            return mistake.says
    if isinstance(got, str):
        return "Return a matrix with a row for each query." if "not iterable" in got else ""
    if any("?" in row for row in got):
        return "A mask is a matrix of True and False; numbers to be added to scores are another thing."
    shape, right = [(len(m), len(m[0]) if m else 0) for m in (got, case.expected)]
    if shape != right:
        needed = f"{right[0]} row{'s' * (right[0] > 1)} (new tokens) and {right[1]} columns (keys)"
        return f"The mask must have {needed}, not {shape[0]} × {shape[1]}."
    return ""


# ---- q5: a detector of leaks -----------------------------------------------------------------------------------------


def felt(kind: str, mask: Tensor, x: Tensor, restore: bool = True, threshold: float = 0.0) -> Tensor:
    """[n, n]: does output i feel another input j?"""
    function, table = attend_of(kind, mask), torch.zeros(len(x), len(x), dtype=torch.bool)
    usual, changed = function(x), x.clone()
    for j in range(len(x)):
        changed = x.clone() if restore else changed
        changed[j] += 1.0
        table[:, j] = (function(changed) - usual).abs().amax(-1) > threshold
    return table


def pairs_of(words: str) -> set[tuple[int, int]]:
    """Of "0←2 1←2"."""
    return {(int(i), int(j)) for i, _, j in (pair.partition("←") for pair in words.split() if "←" in pair)}


def leaks_explained(case: Case, got: Any) -> str:
    """By the pairs that are too many or too few."""
    if "Error" in got:
        no_pairs = "not iterable" in got or "unpack" in got
        return "Return a list of pairs (i, j)." if no_pairs else ""
    right, found = pairs_of(case.expected), pairs_of(got)
    if found and len(found) < got.count("←"):
        return "Some pairs are there twice."
    kind, mask, x = case.arguments
    table = felt(kind, mask, x)
    all_pairs = {(i, j) for i, j in table.nonzero().tolist()}
    if right and found == {(j, i) for i, j in right}:
        return "The pairs are turned round: (i, j) says that output i feels input j."
    if found == all_pairs - {(i, i) for i in range(len(table))}:
        return "Reaching back to the past is no leak: only j > i is the future."
    if found == {(i, j) for i, j in all_pairs if j >= i}:
        return "That an output feels its own input is no leak: j > i is asked."
    if found == {(i, j) for i, j in all_pairs if j <= i}:
        return "Those pairs reach the past, j <= i. A leak is the future, j > i."
    if found and found == {(i, j) for i, j in right if j == len(table) - 1}:
        return "Only leaks from the last input were found: change each one in turn."
    if found and found == {(i, j) for i, j in right if j == i + 1}:
        return "A leak can come from further away than the next position."
    once = {(i, j) for i, j in felt(kind, mask, x, restore=False).nonzero().tolist() if j > i}
    if found == once:
        return "So it looks if changes pile up: start from the unchanged input again before each change."
    if found < right:
        return "Some leaks were missed. A faint change counts too, and an input must really be changed."
    return ""
