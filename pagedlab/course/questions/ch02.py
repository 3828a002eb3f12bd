"""Chapter 02: masks counted and written, attention that survives an empty row, faults to repair, leaks to find."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from random import Random

import torch
from torch import Tensor

from pagedlab.basics import masks
from pagedlab.basics.attention import attention
from pagedlab.course.drivers.ch01 import part
from pagedlab.course.drivers.ch02 import leaks_found, leaks_in_words, mask_rows
from pagedlab.course.questions.ch02_attention_mistakes import CLOSE, attention_explained, repair_explained
from pagedlab.course.questions.ch02_mistakes import PAIR_MISTAKES, leaks_explained, mask_explained
from pagedlab.course.questions.mistakes import named_by_part
from pagedlab.course.questions.model import Case, Kind, Question

# ---- q1: pairs, counted by hand --------------------------------------------------------------------------------------


def pair_parts() -> Iterable[Case]:
    packed = masks.block_diagonal([4, 1, 6]) & masks.causal(11)
    earlier = masks.causal(6) & ~torch.eye(6, dtype=torch.bool)
    x = torch.ones(6, 1, 4)
    once = attention(x, x, x, earlier)
    twice = attention(once, once, once, earlier)
    for name, count in {
        "causal": masks.causal(12).sum(),
        "packed": packed.sum(),
        "chunk": masks.chunk(8, 4).sum(),
        "window": masks.sliding_window(0, 12, 3).sum(),
        "nan_after_1": once.isnan().flatten(1).any(1).sum(),
        "nan_after_2": twice.isnan().flatten(1).any(1).sum(),
    }.items():
        yield Case(name, (name,), int(count))


# ---- q2: the mask of a batch -----------------------------------------------------------------------------------------

Requests = list[tuple[int, int]]


def mask_cases() -> Iterable[Case]:
    yield mask_case("one prompt", [(0, 4)])
    yield mask_case("one decode step", [(5, 1)])
    yield mask_case("two prompts", [(0, 3), (0, 2)])
    yield mask_case("chunk, prompt, decode step", [(4, 2), (0, 3), (6, 1)])
    yield mask_case("a window of 3", [(4, 2), (0, 5)], 3)
    yield mask_case("a window of 1", [(2, 3), (1, 1)], 1)
    yield mask_case("six requests", [(2, 1), (0, 3), (5, 2), (1, 1), (1, 2), (0, 1)], 3)


def mask_fresh(draw: Random) -> Iterable[Case]:
    """The same requests with other lengths; a window cuts off what it cuts above."""

    def some(least: int = 2, more: int = 5) -> int:
        return least + draw.randrange(more)

    yield mask_case("one prompt, drawn", [(0, some(5, 20))])
    yield mask_case("one decode step, drawn", [(some(6, 60), 1)])
    yield mask_case("two prompts, drawn", [(0, some(3)), (0, some(2))])
    yield mask_case("chunk, prompt, decode step, drawn", [(some(), some()), (0, some()), (some(), 1)])
    window = some(2, 3)
    yield mask_case("a window, drawn", [(some(window + 1), some()), (0, some(window + 2))], window)
    yield mask_case("a window of 1, drawn", [(some(), some(2, 3)), (some(1, 3), 1)], 1)
    window = some(2, 4)
    requests = [(window - 1, 1), (0, window), (some(window + 1), some(2, 2)), (1, 1), (1, some(1, 2)), (0, 1)]
    yield mask_case("six requests, drawn", draw.sample(requests, len(requests)), window)


def mask_case(name: str, requests: Requests, window: int | None = None) -> Case:
    blocks = [masks.sliding_window(past, new, window or past + new) for past, new in requests]
    return Case(name, (requests, window), mask_rows(lambda parts: torch.block_diag(*parts), blocks))


# ---- q3: attention that survives an empty row ------------------------------------------------------------------------


def attention_cases() -> Iterable[Case]:
    generator = torch.Generator().manual_seed(2)
    yield attention_case("causal, one head", masks.causal(3), (1, 4, 4), generator)
    yield attention_case("causal, two heads", masks.causal(4), (2, 3, 3), generator)
    yield attention_case("a chunk behind 3 cached keys", masks.chunk(3, 2), (2, 4, 2), generator)
    yield attention_case("left padding: two rows see nothing", left_padded(5, 2), (1, 4, 2), generator)
    yield attention_case("large scores", masks.causal(4), (1, 4, 2), generator, 30.0)
    yield attention_case("nothing is visible", torch.zeros(2, 3, dtype=torch.bool), (2, 4, 2), generator)
    yield attention_case("a window of 2", masks.sliding_window(0, 5, 2), (2, 4, 2), generator)


def attention_fresh(draw: Random) -> Iterable[Case]:
    """The same masks in other sizes: one head where there was one, values as wide as keys where they were."""
    generator = torch.Generator().manual_seed(draw.randrange(2**31))

    def some(least: int = 2, more: int = 4) -> int:
        return least + draw.randrange(more)

    def narrow(heads: int) -> tuple[int, int, int]:
        return heads, some(4), some(2, 2)

    width, heads_width = some(3), some(3)
    yield attention_case("causal, one head, drawn", masks.causal(some(3)), (1, width, width), generator)
    yield attention_case("causal, heads, drawn", masks.causal(some(4)), (some(), heads_width, heads_width), generator)
    yield attention_case("a chunk, drawn", masks.chunk(some(2), some(2, 3)), narrow(2), generator)
    empty = some(2, 3)
    mask = left_padded(empty + some(), empty)
    yield attention_case(f"left padding: {empty} rows see nothing, drawn", mask, narrow(1), generator)
    yield far_apart(masks.causal(some(3)), narrow(1), generator)
    nothing = torch.zeros(some(2), some(3), dtype=torch.bool)
    yield attention_case("nothing is visible, drawn", nothing, narrow(some()), generator)
    window = some(2, 2)
    mask = masks.sliding_window(0, window + some(), window)
    yield attention_case(f"a window of {window}, drawn", mask, narrow(2), generator)


def left_padded(tokens: int, empty: int) -> Tensor:
    """Causal, and nobody sees the first `empty` keys: the first rows see nothing."""
    return masks.causal(tokens) & masks.from_rule(lambda q, k: (k >= empty) & (q >= 0), tokens, tokens)


def far_apart(mask: Tensor, sizes: tuple[int, int, int], generator: torch.Generator) -> Case:
    """Scores too large for exp alone, and no two so close that float32's rounding of them could be seen."""
    while True:
        case = attention_case("large scores, drawn", mask, sizes, generator, 30.0)
        q, k, _, _ = case.arguments
        scores = torch.einsum("qhd,khd->hqk", q, k) * q.shape[-1] ** -0.5
        best = scores.masked_fill(~mask, -math.inf).topk(2).values[:, 1:]  # of row 0 there is one
        if scores.masked_fill(~mask, 0.0).max() > 200 and (best[..., 0] - best[..., 1]).min() > 20:
            return case


def attention_case(
    name: str, mask: Tensor, sizes: tuple[int, int, int], generator: torch.Generator, scale: float = 1.0
) -> Case:
    """`sizes`: heads, width of queries and keys, width of values."""
    heads, width, value_width = sizes
    queries, keys = mask.shape
    q, k = (torch.randn(rows, heads, width, generator=generator) * scale for rows in (queries, keys))
    v = torch.randn(keys, heads, value_width, generator=generator)
    expected = attention(q, k, v, mask)
    expected[masks.empty_rows(mask)] = 0.0
    return Case(name, (q, k, v, mask), expected)


# ---- q4: an attention with four faults -------------------------------------------------------------------------------


def repair_cases() -> Iterable[Case]:
    generator = torch.Generator().manual_seed(3)
    for n, hidden, num_heads in ((1, 4, 2), (3, 2, 1), (4, 4, 2), (3, 6, 3), (5, 4, 4)):
        yield repair_case(n, hidden, num_heads, generator)


def repair_fresh(draw: Random) -> Iterable[Case]:
    """One token; one head; several of both; heads of one channel."""
    generator = torch.Generator().manual_seed(draw.randrange(2**31))
    for tokens, heads, widths in (
        ((1, 1), (2, 4), (2, 3)),
        ((2, 5), (1, 1), (2, 4)),
        ((3, 4), (2, 3), (2, 3)),
        ((5, 6), (3, 4), (2, 3)),
        ((3, 6), (3, 5), (1, 1)),
    ):
        num_heads = draw.randint(*heads)
        yield repair_case(draw.randint(*tokens), num_heads * draw.randint(*widths), num_heads, generator, ", drawn")


def repair_case(n: int, hidden: int, num_heads: int, generator: torch.Generator, note: str = "") -> Case:
    x = torch.randn(n, hidden, generator=generator) * 1.5
    heads = x.view(n, num_heads, -1)
    expected = attention(heads, heads, heads, masks.causal(n)).flatten(1)
    plural = "heads" if num_heads > 1 else "head"
    return Case(f"{n} × {hidden}, {num_heads} {plural}{note}", (x, num_heads), expected)


# ---- q5: a detector of leaks -----------------------------------------------------------------------------------------


def leak_cases() -> Iterable[Case]:
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    return leaking([(x, (1, 4))] * 7)


def leak_fresh(draw: Random) -> Iterable[Case]:
    """Other inputs, other numbers of them, another hole: neither beside the diagonal nor in the last column."""
    generator = torch.Generator().manual_seed(draw.randrange(2**31))
    inputs = []
    for _ in range(7):
        n = draw.randrange(5, 9)
        row = draw.randrange(n - 3)
        x = torch.randn(n, draw.randrange(3, 6), generator=generator, dtype=torch.float64)
        # No row so long that it sees hardly anything but itself: the faintest leak is above 1e-10.
        inputs.append((x.clamp(-1.5, 1.5), (row, draw.randrange(row + 2, n - 1))))
    return leaking(inputs, ", drawn")


def leaking(inputs: Sequence[tuple[Tensor, tuple[int, int]]], note: str = "") -> Iterable[Case]:
    """Seven functions. Without a mask before the softmax every row feels every other; two layers pass on what one saw.

    Args:
        inputs: for each, x and where the causal mask has a hole.
        note: behind the names.
    """
    kinds = (
        ("causal", "mask before softmax"),
        ("the next token in view", "mask before softmax"),
        ("upper triangular", "mask before softmax"),
        ("a single hole", "mask before softmax"),
        ("causal, mask after softmax", "mask after softmax"),
        ("the next token in view, two layers", "two layers"),
        ("a faint leak", "faint"),
    )
    for (name, kind), (x, hole) in zip(kinds, inputs, strict=True):
        n = len(x)
        peeking = masks.from_rule(lambda q, k: k <= q + 1, n, n)
        one_hole = masks.causal(n)
        one_hole[hole] = True
        mask, reach = {
            "causal": (masks.causal(n), masks.causal(n)),
            "the next token in view": (peeking, peeking),
            "upper triangular": (masks.causal(n).T, masks.causal(n).T),
            "a single hole": (one_hole, one_hole),
            "causal, mask after softmax": (masks.causal(n), torch.ones(n, n, dtype=torch.bool)),
            "the next token in view, two layers": (peeking, (peeking.double() @ peeking.double()) > 0),
            "a faint leak": (one_hole, one_hole),
        }[name]
        expected = leaks_in_words((i, j) for i, j in reach.nonzero().tolist() if j > i)
        yield Case(name + note, (kind, mask, x), expected)


QUESTIONS: tuple[Question, ...] = (
    Question(
        id="ch02.q1",
        title="Count what is visible",
        kind=Kind.COMPUTE,
        difficulty=1,
        points=3,
        answer="visible",
        cases=pair_parts,
        hints=(
            "Draw the masks on squared paper, and count row by row: how many keys does each query see?",
            "Causal: 1 + 2 + ... + n. Packed: one such sum a request. Chunk: every row also sees all cached keys.",
            "For NaN: which row sees nothing? In the next layer, which rows read that row?",
        ),
        explain=named_by_part(PAIR_MISTAKES),
        drive=part,
    ),
    Question(
        id="ch02.q2",
        title="The mask of a whole batch",
        kind=Kind.IMPLEMENT,
        difficulty=2,
        points=4,
        answer="batch_mask",
        cases=mask_cases,
        fresh=mask_fresh,
        hints=(
            "Write down for every row whose it is and at which position it stands; the same for every column.",
            "A pair is allowed if three things hold: the same request, key not later than query, not too far back.",
            "Queries of a request stand at past, past + 1, ...; its keys at 0, 1, ..., past + new - 1. "
            "Compare vectors: owner[:, None] == owner[None, :], and 0 <= query - key < window.",
        ),
        explain=mask_explained,
        drive=mask_rows,
    ),
    Question(
        id="ch02.q3",
        title="Attention that survives an empty row",
        kind=Kind.IMPLEMENT,
        difficulty=2,
        points=4,
        answer="masked_attention",
        cases=attention_cases,
        fresh=attention_fresh,
        hints=(
            "Four steps: scores, scale, mask and softmax, mix. What is special about a row of nothing but -inf?",
            "Bring the heads to the front first. Fill hidden scores with -inf before the softmax.",
            "Rows without any True are mask.any(-1) == False: put zeros into the output (or the weights) there.",
        ),
        explain=attention_explained,
        tolerance=CLOSE,
        absolute=True,
    ),
    Question(
        id="ch02.q4",
        title="An attention with four faults",
        kind=Kind.DIAGNOSE,
        difficulty=3,
        points=4,
        answer="self_attention",
        cases=repair_cases,
        fresh=repair_fresh,
        hints=(
            "Change one input row of the broken function at a time, and see which output rows move.",
            "Two faults are about heads, on the way in and on the way out; two are about the mask.",
            "In: view(n, num_heads, width).transpose(0, 1), and its reverse on the way out. The mask is lower "
            "triangular, and hides scores (-inf) before the softmax.",
        ),
        explain=repair_explained,
        tolerance=CLOSE,
        absolute=True,
    ),
    Question(
        id="ch02.q5",
        title="A detector of leaks",
        kind=Kind.DIAGNOSE,
        difficulty=2,
        points=3,
        answer="leaks",
        cases=leak_cases,
        fresh=leak_fresh,
        hints=(
            "The experiment that opens the chapter: change one input, look which outputs differ.",
            "Compute the usual output once. For each j: copy x, change row j, run again, compare every earlier row i.",
            "A row differs if (after[i] != before[i]).any(). Collect (i, j) for i < j only.",
        ),
        explain=leaks_explained,
        drive=leaks_found,
    ),
)
