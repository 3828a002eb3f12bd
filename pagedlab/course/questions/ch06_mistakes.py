"""Chapter 06: what people get who expect chunks to bound the cache, or whose masks forget it."""

from __future__ import annotations

from typing import Any

from pagedlab.course.drivers.ch02 import mask_rows
from pagedlab.course.questions.mistakes import Mistake, any_of
from pagedlab.course.questions.model import Case

# ---- q1: a long prompt by hand ---------------------------------------------------------------------------------------

KV = 163_840
"""Bytes a token."""

PROMPT_MISTAKES: dict[str, list[tuple[float, str]]] = {
    "scores_gb": [
        (7.2, "That is one head. Each of the 40 has scores of its own."),
        (11_520, "One layer is asked: the next one uses the same memory again."),
        (57.6, "Query heads have scores, not KV heads: 40 of them."),
        (144, "A number of 16 bits is 2 bytes; or was half of the square left out? It is stored whole."),
        (576, "A number of 16 bits is 2 bytes."),
        (19.66, "Scores are for whole passes here: 60,000 rows, not one chunk's."),
    ],
    "mlp_gb": [
        (1.65888, "The MLP holds two vectors for each row: gate and up."),
        (132.7104, "One layer is asked: the next one uses the same memory again."),
        (0.226492, "That is one chunk's; here the prompt is computed whole."),
    ],
    "mlp_chunk_gb": [
        (3.31776, "That is the whole prompt's. A step with 4,096 rows holds 4,096 rows of activations."),
        (0.113246, "The MLP holds two vectors for each row: gate and up."),
        (3.397386, "Activations of earlier chunks are gone: only one step's rows are alive."),
    ],
    "kv_gb": [
        (4.9152, "A key and a value for each token: twice that."),
        (49.152, "Only the KV heads are cached, 8 of them."),
        (0.24576, "That is one layer. Every layer keeps its keys and values."),
    ],
    "kv_chunk_gb": [
        (0.671089, "Chunks bound activations, not the cache: at the end every token's keys and values are in it."),
        (0.435159, "Chunks bound activations, not the cache: at the end every token's keys and values are in it."),
        (0, "Chunks bound activations, not the cache: at the end every token's keys and values are in it."),
        (4.9152, "A key and a value for each token: twice that."),
        (49.152, "Only the KV heads are cached, 8 of them."),
    ],
    "logits_kb": [
        (24e6, "Logits of all rows are avoidable: the next token needs the last row only."),
        (24_000, "Logits of all rows are avoidable: the next token needs the last row only."),
        (200, "Logits are float32: 4 bytes each."),
        (1_638_400, "Logits of all rows are avoidable: the next token needs the last row only."),
        (400_000, "That is in bytes; kB are asked."),
        (6000, "One row is enough for the prompt, not one for each chunk."),
    ],
    "chunks": [
        (14, "Rounded down: the rest of the prompt has to be computed, too."),
        (60_000 / 4096, "Chunks come whole: round up."),
        (16, "One too many: 15 × 4,096 is more than 60,000."),
        (3750, "That is how many blocks of 16 there are. A chunk is not a block."),
    ],
    "last_chunk": [
        (4096, "The last chunk is what is left, and not filled up."),
        (1440, "That is what is missing to a full chunk."),
        (0, "60,000 is no multiple of 4,096: something is left."),
    ],
    "tokens_sampled": [
        (15, "A chunk that is not the last yields no token: what follows it is the prompt's own next token."),
        (14, "A chunk that is not the last yields no token: what follows it is the prompt's own next token."),
        (0, "The last chunk yields the first token of the answer."),
        (60_000, "The prompt's tokens are known; none of them is sampled."),
    ],
    "kv_read_gb": [
        (60_000 * KV / 1e9, "That is one pass. Each chunk reads again what lies before it."),
        (60_000 * KV * 8 / 1e9, "(k + 1) / 2 holds for equal chunks; here the last one is shorter. Add them up."),
        (60_000 * KV * 15 / 1e9, "Each chunk reads what lies before it, not what comes after it."),
        (
            430_080 * KV / 1e9,
            "Too few: a chunk reads its own keys and values beside the cached ones, so the last one reads all of them.",
        ),
        (491_520 * KV / 1e9, "The last chunk ends at 60,000, not at 15 × 4,096."),
    ],
}

# ---- q2: the mask of a chunk, in blocks ------------------------------------------------------------------------------


def mask_by(
    past: int,
    new: int,
    block_size: int,
    padded: bool = True,
    empty_seen: bool = False,
    cache: bool = True,
    causal: bool = True,
    itself: bool = True,
    flipped: bool = False,
    inverted: bool = False,
    all_rows: bool = False,
    extra: bool = False,
    from_zero: bool = False,
) -> list[str]:
    """The mask, in rows of signs; every option is one way to go wrong."""
    end = past + new
    columns = (end // block_size + 1 if extra else -(-end // block_size)) * block_size if padded else end
    rows = []
    for query in range(0 if all_rows else past, end):
        row = []
        for key in range(columns):
            reach = query - past if from_zero else query
            seen = key <= reach if causal else key < end
            seen = seen and (itself or key != query) and (cache or key >= past)
            if flipped:
                seen = query <= key < end
            seen = seen or (empty_seen and key >= end)
            row.append(seen != inverted)
        rows.append(row)
    return mask_rows(lambda mask: mask, rows)


def mask_mistake(says: str, **options: Any) -> Mistake:
    return Mistake(says, lambda *arguments: mask_by(*arguments, **options))


MASK_MISTAKES = any_of(
    mask_mistake(
        "Keys are read in whole blocks: there is a column for every slot of the last block, too.", padded=False
    ),
    mask_mistake("Slots behind the last token hold no key yet: nobody may see them.", empty_seen=True),
    mask_mistake(
        "Every slot is visible: rows must not see later tokens, nor empty slots.", causal=False, empty_seen=True
    ),
    mask_mistake("A token of the chunk must not see the chunk's later tokens.", causal=False),
    mask_mistake("The chunk forgets the cache: its tokens see all tokens that came before.", cache=False),
    mask_mistake("Row i is token past + i: it sees past + i + 1 keys, not i + 1.", from_zero=True),
    mask_mistake("A token sees itself, too.", itself=False),
    mask_mistake("Upper triangular: that lets every token see the future, and hides the past.", flipped=True),
    mask_mistake("Turned round: True means that the key may be seen.", inverted=True),
    mask_mistake("Only the chunk's own tokens have rows: those before it are computed already.", all_rows=True),
    mask_mistake("One block too many where the tokens fill the last block exactly.", extra=True),
)


def mask_explained(case: Case, got: Any) -> str:
    if not isinstance(got, list) or not all(isinstance(row, str) for row in got):
        return ""
    if "?" in "".join(got):
        return (
            "The mask is boolean: True where the key may be seen. Numbers to add to the scores are made from it later."
        )
    if says := MASK_MISTAKES(case, got):
        return says
    if len({len(row) for row in got}) == 1 and ["".join(column) for column in zip(*got, strict=True)] == case.expected:
        return "Rows and columns are swapped: a row for each query of the chunk, a column for each slot."
    return ""
