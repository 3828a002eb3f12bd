"""What people get wrong about attention in the questions of chapter 02, and what to say to them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from pagedlab.course.comparison import matches
from pagedlab.course.display import plain_value
from pagedlab.course.questions.mistakes import Mistake
from pagedlab.course.questions.model import Case

CLOSE = 1e-4
"""Largest difference of a number in outputs of attention, absolute."""

# ---- q3: attention that survives an empty row ------------------------------------------------------------------------


def scores_of(q: Tensor, k: Tensor, scale: float) -> Tensor:
    return torch.einsum("qhd,khd->hqk", q, k) * scale


def mix(weights: Tensor, v: Tensor) -> Tensor:
    return torch.einsum("hqk,khd->qhd", weights, v)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor,
    scale: Callable[[], float] | None = None,
    fill: float = -math.inf,
    dim: int = -1,
    late: bool = False,
    raw: bool = False,
    empty: bool = True,
) -> Tensor:
    """Attention as people write it; every option is one way to go wrong."""
    factor = q.shape[-1] ** -0.5 if scale is None else scale()
    scores = scores_of(q, k, factor)
    hidden = scores if late else scores.masked_fill(~mask, fill)
    weights = hidden.exp() / hidden.exp().sum(dim, keepdim=True) if raw else hidden.softmax(dim)
    weights = weights * mask if late else weights
    output = mix(weights, v)
    return output.where(mask.any(-1)[:, None, None], torch.zeros(())) if empty else output


def cut_sequence(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """`view` where a `transpose` is needed."""
    by_head = [x.reshape(x.shape[1], x.shape[0], x.shape[2]) for x in (q, k, v)]
    weights = (by_head[0] @ by_head[1].mT * q.shape[-1] ** -0.5).masked_fill(~mask, -math.inf).softmax(-1)
    return (weights.nan_to_num() @ by_head[2]).transpose(0, 1)


ATTENTION_MISTAKES = (
    Mistake(
        "Masked after the softmax: each row was divided by a sum that the hidden keys took part in.",
        lambda q, k, v, mask: attend(q, k, v, mask, late=True),
    ),
    Mistake(
        "Rows and columns of the mask are swapped: a row is a query, a column is a key.",
        lambda q, k, v, mask: attend(q, k, v, mask.T).nan_to_num(),
    ),
    Mistake("The scores are not scaled by 1/√d.", lambda q, k, v, mask: attend(q, k, v, mask, lambda: 1.0)),
    Mistake(
        "Scores are divided by √d, not by d.", lambda q, k, v, mask: attend(q, k, v, mask, lambda: 1 / q.shape[-1])
    ),
    Mistake(
        "√d is that of queries and keys, not of the values.",
        lambda q, k, v, mask: attend(q, k, v, mask, lambda: v.shape[-1] ** -0.5),
    ),
    Mistake(
        "The softmax runs over the keys: the weights of one query sum to 1.",
        lambda q, k, v, mask: attend(q, k, v, mask, dim=-2).nan_to_num(),
    ),
    Mistake(
        "Hidden scores were set to 0, and exp(0) is 1: they still get weight. Use -inf.",
        lambda q, k, v, mask: attend(q, k, v, mask, fill=0.0),
    ),
    Mistake(
        "Heads split the sequence: `view` or `reshape` cannot swap two dimensions, `transpose` does.",
        cut_sequence,
    ),
    Mistake(
        "With a large negative number for -inf, the row that sees nothing becomes the mean of all values.",
        lambda q, k, v, mask: attend(q, k, v, mask, fill=-1e9, empty=False),
    ),
)


def attention_explained(case: Case, got: Any) -> str:
    """NaN by where it stands, then the mistakes; a mistake may do what it likes in rows that see nothing."""
    q, k, v, mask = case.arguments
    if matches(got, plain_value(torch.zeros_like(case.expected)), 0.0, True):
        return "Zeros also for queries that see something."
    for mistake in ATTENTION_MISTAKES:
        try:
            made = plain_value(mistake.do(q, k, v, mask))
        except RuntimeError:
            continue
        if matches(got, made, CLOSE, True):
            return mistake.says
    if isinstance(got, str):
        swapped = mask.shape[0] != mask.shape[1] and got.startswith("RuntimeError") and "size" in got
        return "The mask is [queries, keys]: do not transpose it, and mind which dimension is which." if swapped else ""
    if torch.tensor(got).shape != torch.tensor(case.expected.tolist()).shape:
        return f"The output has the shape {list(case.expected.shape)}: [queries, heads, width of a value]."
    is_nan = torch.tensor(got).isnan().flatten(1).any(1)
    if is_nan.any() and torch.equal(is_nan, ~mask.any(-1)):
        return "A row that sees nothing is 0/0, which is NaN: give it zeros."
    if is_nan.any() and scores_of(q, k, q.shape[-1] ** -0.5).abs().max() > 80:
        return "exp of a large score overflows: subtract each row's maximum first, as softmax does."
    return ""


# ---- q4: an attention with four faults -------------------------------------------------------------------------------

FAULTS = {
    "cut": "heads split the sequence (view(num_heads, n, ...) cuts the tokens into groups; view, then transpose)",
    "joined": "heads are not brought back (transpose before the last reshape)",
    "swapped": "rows and columns of the mask are swapped",
    "late": "the mask comes after the softmax",
}


def faulty_attention(x: Tensor, num_heads: int, faults: Sequence[str] = ()) -> Tensor:
    """Causal self-attention with q = k = v = x, with some of the faults."""
    n, hidden = x.shape
    width = hidden // num_heads
    heads = x.reshape(num_heads, n, width) if "cut" in faults else x.view(n, num_heads, width).transpose(0, 1)
    allowed = torch.ones(n, n).triu() if "swapped" in faults else torch.ones(n, n).tril()
    scores = heads @ heads.mT * width**-0.5
    if "late" in faults:
        weights = scores.softmax(-1) * allowed
    else:
        weights = scores.masked_fill(allowed == 0, -math.inf).softmax(-1)
    mixed = weights @ heads
    return (mixed if "joined" in faults else mixed.transpose(0, 1)).reshape(n, hidden)


REPAIR_MISTAKES = (
    ("The square root of a head's width is meant: each head is scaled by its own channels.", "scale"),
    ("Hidden scores are set to 0, and exp(0) is 1: they still get weight.", "zero"),
)


def other_attention(x: Tensor, num_heads: int, what: str) -> Tensor:
    n, hidden = x.shape
    heads = x.view(n, num_heads, -1).transpose(0, 1)
    allowed = torch.ones(n, n).tril()
    scores = heads @ heads.mT * (hidden if what == "scale" else hidden // num_heads) ** -0.5
    hidden_scores = scores.masked_fill(allowed == 0, 0.0 if what == "zero" else -math.inf)
    return (hidden_scores.softmax(-1) @ heads).transpose(0, 1).reshape(n, hidden)


def repair_explained(case: Case, got: Any) -> str:
    """The fewest of the faults that give this result."""
    if isinstance(got, str):
        return ""
    x, num_heads = case.arguments
    for count in range(1, len(FAULTS) + 1):
        for faults in combinations(FAULTS, count):
            if matches(got, faulty_attention(x, num_heads, faults).tolist(), CLOSE, True):
                return f"Still in it: {'; '.join(FAULTS[fault] for fault in faults)}."
    for says, what in REPAIR_MISTAKES:
        if matches(got, other_attention(x, num_heads, what).tolist(), CLOSE, True):
            return says
    first, *others = (any(value != value for value in row) for row in got)
    if first and not any(others):
        return "NaN: the first token must see itself, the diagonal of the mask is True."
    return ""
