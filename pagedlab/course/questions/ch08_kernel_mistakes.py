"""Chapter 08: what kernels give that misread the table, forget to rescale, mask too little or look too far."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pagedlab.course.comparison import matches
from pagedlab.course.display import plain_value
from pagedlab.course.drivers.ch08 import UNWRITTEN, summary
from pagedlab.course.questions.mistakes import Mistake, named
from pagedlab.course.questions.model import Case

TOLERANCE = 2e-4
"""Between the float32 of a kernel and the float64 of a mistake made on purpose."""

# ---- one loop over the blocks, right or with faults ------------------------------------------------------------------


def group_of(head: int, heads: int, kv_heads: int) -> int:
    return head // (heads // kv_heads)


def attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    table: Sequence[int],
    context: int,
    *,
    kv_head: Callable[[int, int, int], int] = group_of,
    physical: bool = True,
    sees: Callable[[Tensor, Tensor], Tensor] = lambda position, row: position <= row,
    hidden: float = -math.inf,
    rescale: tuple[bool, bool] = (True, True),
    scaled: bool = True,
    divide: bool = True,
    blocks: Callable[[int, int], int] = lambda length, size: -(-length // size),
) -> Tensor:
    """query [rows, heads, dim] of the tokens after `context`, over the paged cache, as a kernel walks it, in float64.

    Args:
        kv_head: (query head, heads, KV heads) -> where the kernel looks.
        hidden: the score of a slot that nobody owns.
        rescale: of the sum, of the output.
        blocks: (length, block size) -> how many are visited.
    """
    num_rows, heads, dim = query.shape
    _, size, kv_heads, _ = keys.shape
    length, at = context + num_rows, torch.arange(num_rows)[:, None] + context
    beside = torch.full((64, dim), math.nan, dtype=torch.float64)
    lines = [torch.cat([cache.reshape(-1, dim).double(), beside]) for cache in (keys, values)]
    output = torch.empty(num_rows, heads, dim, dtype=torch.float64)
    for head in range(heads):
        peak = torch.full((num_rows, 1), -math.inf, dtype=torch.float64)
        total, acc = torch.zeros_like(peak), torch.zeros(num_rows, dim, dtype=torch.float64)
        for logical in range(blocks(length, size)):
            positions = logical * size + torch.arange(size)
            block = table[logical] if physical else logical
            addresses = (block * size + torch.arange(size)) * kv_heads + kv_head(head, heads, kv_heads)
            seen = positions < length
            key, value = (torch.where(seen[:, None], line[addresses], 0.0) for line in lines)
            scores = query[:, head].double() @ key.T * (dim**-0.5 if scaled else 1.0)
            scores = torch.where(sees(positions, at), scores, -math.inf)
            scores = torch.where(seen, scores, hidden)
            new = torch.maximum(peak, scores.amax(1, keepdim=True))
            factor, weights = (peak - new).exp(), (scores - new).exp()
            total = total * (factor if rescale[0] else 1.0) + weights.sum(1, keepdim=True)
            acc = acc * (factor if rescale[1] else 1.0) + weights @ value
            peak = new
        output[:, head] = acc / total if divide else acc
    return output


def numbers(got: Any) -> list[float]:
    """All numbers of nested lists."""
    return [x for part in got for x in numbers(part)] if isinstance(got, list) else [got]


def decode_mistake(says: str, **options: Any) -> Mistake:
    def do(query: Tensor, keys: Tensor, values: Tensor, table: list[int], length: int) -> Tensor:
        chosen = dict(options)
        if chosen.pop("keys_as_values", False):
            values = keys
        return attend(query[None], keys, values, table, length - 1, **chosen)[0]

    return Mistake(says, do)


NO_RESCALE = "When the maximum rises, the output so far stands relative to the old one: acc × exp(old − new), too."
WRONG_HEAD = "Query heads 0 and 1 share KV head 0 if a group has two: KV head = head // GROUP."
NOT_STORED = "Some numbers of the output were never stored."
NANS = (
    "NaN: a slot that is nobody's was read. Weight 0 × NaN is NaN, so mask the load of the values as well as that of "
    "the keys, and the scores."
)
OFF = "NaN: 0 / 0 or −∞ − −∞, or an address is off: NaN lies beside the tensors."
LARGE = "exp of a large score is infinite in float32: subtract the maximum so far first."

DECODE_MISTAKES = (
    decode_mistake(NO_RESCALE, rescale=(True, False)),
    decode_mistake("The sum must be rescaled as well when the maximum rises.", rescale=(False, True)),
    decode_mistake(
        "Nothing is rescaled: sum and output both stand relative to an old maximum.", rescale=(False, False)
    ),
    decode_mistake("The scores are not scaled: query · key × scale.", scaled=False),
    decode_mistake("That is block 0, 1, 2 of the pool. The table says where they are: load its entry.", physical=False),
    decode_mistake(WRONG_HEAD, kv_head=lambda head, heads, kv_heads: head % kv_heads),
    decode_mistake("All query heads read KV head 0.", kv_head=lambda head, heads, kv_heads: 0),
    decode_mistake(
        "There are fewer KV heads than query heads: query head h reads KV head h // GROUP.",
        kv_head=lambda head, heads, kv_heads: head,
    ),
    decode_mistake(
        "KV head = head // GROUP: you divide by the number of KV heads.",
        kv_head=lambda head, heads, kv_heads: head // kv_heads,
    ),
    decode_mistake(
        "A slot that is not seen has a score of 0 here, and exp(0) counts: give it −∞ with tl.where.", hidden=0.0
    ),
    decode_mistake(
        "The last, partly filled block is missing: the loop must round up.", blocks=lambda length, size: length // size
    ),
    decode_mistake("Only the first block is read.", blocks=lambda length, size: 1),
    decode_mistake("At the end the output must be divided by the sum.", divide=False),
    decode_mistake("The keys are weighed, not the values.", keys_as_values=True),
    decode_mistake(
        "Two faults are left: the output is not rescaled, and the KV head is head // GROUP.",
        rescale=(True, False),
        kv_head=lambda head, heads, kv_heads: head % kv_heads,
    ),
)
known_decode = named(*DECODE_MISTAKES, tolerance=TOLERANCE, absolute=True)


def decode_explained(case: Case, got: Any) -> str:
    if isinstance(got, str):
        return ""
    if any(math.isnan(x) for x in numbers(got)):
        _, keys, _, _, length = case.arguments
        if length % keys.shape[1]:
            return NANS
        return LARGE if keys[keys.isfinite()].max() > 88 else OFF
    return NOT_STORED if UNWRITTEN in numbers(got) else known_decode(case, got)


# ---- q6: rows of a prompt --------------------------------------------------------------------------------------------


def prefill_mistake(says: str, **options: Any) -> Mistake:
    def do(query: Tensor, keys: Tensor, values: Tensor, table: list[int], context: int, tiles: int) -> dict[str, Any]:
        rows = attend(query, keys, values, table, context, **options)[: 16 * tiles]
        return summary(rows)

    return Mistake(says, do)


EVERYTHING = "Every row sees all positions: there is no causal mask. Row r may see positions up to context + r."
PREFILL_MISTAKES = (
    prefill_mistake(EVERYTHING, sees=lambda position, row: position >= 0),
    prefill_mistake(
        "A row sees itself, too: position <= context + row.", sees=lambda position, row: position < row.clamp(min=1)
    ),
    prefill_mistake(
        "One position too many: row r may not see the one after itself.", sees=lambda position, row: position <= row + 1
    ),
    prefill_mistake(NO_RESCALE, rescale=(True, False)),
    prefill_mistake("The sum must be rescaled as well when the maximum rises.", rescale=(False, True)),
    prefill_mistake("The scores are not scaled: query · key × scale.", scaled=False),
    prefill_mistake(WRONG_HEAD, kv_head=lambda head, heads, kv_heads: head % kv_heads),
    prefill_mistake(
        "That is block 0, 1, 2 of the pool. The table says where they are: load its entry.", physical=False
    ),
    prefill_mistake("At the end the output must be divided by the sum.", divide=False),
)
known_prefill = named(*PREFILL_MISTAKES, tolerance=TOLERANCE, absolute=True)


def without_context(case: Case) -> Tensor:
    """What the rows give if their positions are counted from 0."""
    query, keys, values, table, context, tiles = case.arguments
    return attend(query, keys, values, table, context, sees=lambda position, row: position <= row - context)[
        : 16 * tiles
    ]


def prefill_explained(case: Case, got: Any) -> str:
    if not isinstance(got, dict):
        return ""
    if any(math.isnan(x) for x in numbers(got["rows"])):
        if "not written yet" in case.name:
            return (
                "Positions after the tile's last row were loaded. End the loop, and the mask of its last block, there."
            )
        _, keys, _, _, context, _ = case.arguments
        last_slot = (context + len(case.expected["rows"])) % keys.shape[1]
        return NANS if last_slot else f"{OFF} A row that sees nothing is divided by 0, too: it sees at least itself."
    if got["numbers never stored"]:
        return NOT_STORED
    if got["numbers stored past the last row"]:
        return "Rows at or after num_rows were stored, over whatever lies behind: mask the store."
    if matches(got["rows"], plain_value(summary(without_context(case))["rows"]), TOLERANCE, absolute=True):
        return "Row r stands at position context + r, not at r: the context comes before it."
    return known_prefill(case, got)
