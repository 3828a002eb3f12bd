"""Chapter 02: masks counted and written, attention that survives an empty row, faults to repair, leaks to find."""

from __future__ import annotations

from collections.abc import Iterable

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


def mask_cases() -> Iterable[Case]:
    for name, requests, window in (
        ("one prompt", [(0, 4)], None),
        ("one decode step", [(5, 1)], None),
        ("two prompts", [(0, 3), (0, 2)], None),
        ("chunk, prompt, decode step", [(4, 2), (0, 3), (6, 1)], None),
        ("a window of 3", [(4, 2), (0, 5)], 3),
        ("a window of 1", [(2, 3), (1, 1)], 1),
        ("six requests", [(2, 1), (0, 3), (5, 2), (1, 1), (1, 2), (0, 1)], 3),
    ):
        blocks = [masks.sliding_window(past, new, window or past + new) for past, new in requests]
        yield Case(name, (requests, window), mask_rows(lambda parts: torch.block_diag(*parts), blocks))


def attention_cases() -> Iterable[Case]:
    generator = torch.Generator().manual_seed(2)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    left_padded = masks.causal(5) & masks.from_rule(lambda q, k: (k >= 2) & (q >= 0), 5, 5)
    for name, mask, heads, width, value_width, size in (
        ("causal, one head", masks.causal(3), 1, 4, 4, 1.0),
        ("causal, two heads", masks.causal(4), 2, 3, 3, 1.0),
        ("a chunk behind 3 cached keys", masks.chunk(3, 2), 2, 4, 2, 1.0),
        ("left padding: two rows see nothing", left_padded, 1, 4, 2, 1.0),
        ("large scores", masks.causal(4), 1, 4, 2, 30.0),
        ("nothing is visible", torch.zeros(2, 3, dtype=torch.bool), 2, 4, 2, 1.0),
        ("a window of 2", masks.sliding_window(0, 5, 2), 2, 4, 2, 1.0),
    ):
        queries, keys = mask.shape
        q, k, v = draw(queries, heads, width) * size, draw(keys, heads, width) * size, draw(keys, heads, value_width)
        expected = attention(q, k, v, mask)
        expected[masks.empty_rows(mask)] = 0.0
        yield Case(name, (q, k, v, mask), expected)


def repair_cases() -> Iterable[Case]:
    generator = torch.Generator().manual_seed(3)
    for n, hidden, num_heads in ((1, 4, 2), (3, 2, 1), (4, 4, 2), (3, 6, 3), (5, 4, 4)):
        x = torch.randn(n, hidden, generator=generator) * 1.5
        heads = x.view(n, num_heads, -1)
        expected = attention(heads, heads, heads, masks.causal(n)).flatten(1)
        plural = "heads" if num_heads > 1 else "head"
        yield Case(f"{n} × {hidden}, {num_heads} {plural}", (x, num_heads), expected)


def leak_cases() -> Iterable[Case]:
    """Without a mask before the softmax every row feels every other; two layers pass on what one has seen."""
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    peeking = masks.from_rule(lambda q, k: k <= q + 1, 6, 6)
    one_hole = masks.causal(6)
    one_hole[1, 4] = True
    everything = torch.ones(6, 6, dtype=torch.bool)
    for name, kind, mask, reach in (
        ("causal", "mask before softmax", masks.causal(6), masks.causal(6)),
        ("the next token in view", "mask before softmax", peeking, peeking),
        ("upper triangular", "mask before softmax", masks.causal(6).T, masks.causal(6).T),
        ("a single hole", "mask before softmax", one_hole, one_hole),
        ("causal, mask after softmax", "mask after softmax", masks.causal(6), everything),
        ("the next token in view, two layers", "two layers", peeking, (peeking.double() @ peeking.double()) > 0),
        ("a faint leak", "faint", one_hole, one_hole),
    ):
        expected = leaks_in_words((i, j) for i, j in reach.nonzero().tolist() if j > i)
        yield Case(name, (kind, mask, x), expected)


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
        hints=(
            "The experiment that opens the chapter: change one input, look which outputs differ.",
            "Compute the usual output once. For each j: copy x, change row j, run again, compare every earlier row i.",
            "A row differs if (after[i] != before[i]).any(). Collect (i, j) for i < j only.",
        ),
        explain=leaks_explained,
        drive=leaks_found,
    ),
)
