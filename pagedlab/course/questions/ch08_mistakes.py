"""Chapter 08: floors with a factor too many, parts weighed wrongly, splits that are too many or too short."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pagedlab.course.drivers.ch08 import UNWRITTEN
from pagedlab.course.questions.ch08_kernel_mistakes import NOT_STORED, OFF, numbers
from pagedlab.course.questions.mistakes import Mistake, named
from pagedlab.course.questions.model import Case

# ---- q1: the floor ---------------------------------------------------------------------------------------------------

FLOOR_MISTAKES = (
    Mistake(
        "Keys and values: two numbers for each dimension.", lambda b, n, q, k, d, s, r: b * n * k * d * s / r / 1e3
    ),
    Mistake(
        "Query heads share KV heads: only keys and values of the KV heads are stored.",
        lambda b, n, q, k, d, s, r: 2 * b * n * q * d * s / r / 1e3,
    ),
    Mistake("Those are milliseconds.", lambda b, n, q, k, d, s, r: 2 * b * n * k * d * s / r / 1e6),
    Mistake("Those are seconds.", lambda b, n, q, k, d, s, r: 2 * b * n * k * d * s / r / 1e9),
    Mistake("Those are nanoseconds.", lambda b, n, q, k, d, s, r: 2 * b * n * k * d * s / r),
    Mistake(
        "That is the version with a gathered copy. Each byte is read once here.",
        lambda b, n, q, k, d, s, r: 6 * b * n * k * d * s / r / 1e3,
    ),
    Mistake("Numbers are not bytes: × bytes_per_number.", lambda b, n, q, k, d, s, r: 2 * b * n * k * d / r / 1e3),
    Mistake("All sequences are read: × batch.", lambda b, n, q, k, d, s, r: 2 * n * k * d * s / r / 1e3),
    Mistake("All cached tokens are read, not one.", lambda b, n, q, k, d, s, r: 2 * b * k * d * s / r / 1e3),
    Mistake("Each KV head has its keys: × kv_heads.", lambda b, n, q, k, d, s, r: 2 * b * n * d * s / r / 1e3),
    Mistake("1 GB is 10⁹ bytes here, not 2³⁰.", lambda b, n, q, k, d, s, r: 2 * b * n * k * d * s / (r * 2**30) * 1e6),
    Mistake("These are bytes. Divide by the bandwidth.", lambda b, n, q, k, d, s, r: 2 * b * n * k * d * s),
    Mistake(
        "A GB/s counts bytes, not bits: no factor of 8.", lambda b, n, q, k, d, s, r: 16 * b * n * k * d * s / r / 1e3
    ),
)

# ---- q3: merge -------------------------------------------------------------------------------------------------------


def weighed(parts: Tensor, weights: Tensor) -> Tensor:
    """parts [splits, heads, dim], weights [splits, heads]."""
    return (weights[..., None] * parts.double()).sum(0)


def padded_away(parts: Tensor, lse: Tensor) -> Tensor:
    """Parts behind the last one count with an lse of 0 and an output of 0."""
    extra = (1 << (len(parts) - 1).bit_length()) - len(parts)
    lse = torch.cat([lse.double(), torch.zeros(extra, lse.shape[1], dtype=torch.float64)])
    return weighed(torch.cat([parts.double(), torch.zeros(extra, *parts.shape[1:])]), lse.softmax(0))


def other_order(parts: Tensor, lse: Tensor) -> Tensor:
    splits, heads, dim = parts.shape
    return weighed(parts.reshape(heads, splits, dim).transpose(0, 1), lse.double().reshape(heads, splits).T.softmax(0))


MERGE_MISTAKES = (
    Mistake(
        "The parts are averaged as if each had seen as much. Weigh them by exp(lse).",
        lambda parts, lse: parts.double().mean(0),
    ),
    Mistake("The parts are added up. Weigh them by exp(lse).", lambda parts, lse: parts.double().sum(0)),
    Mistake(
        "Divide by the sum of the weights at the end.",
        lambda parts, lse: weighed(parts, (lse.double() - lse.double().amax(0)).exp()),
    ),
    Mistake(
        "The lse itself is no weight: it is a logarithm. The weight is exp(lse).",
        lambda parts, lse: weighed(parts, lse.double() / lse.double().sum(0)),
    ),
    Mistake(
        "The lse is a natural logarithm: exp, not exp2.",
        lambda parts, lse: weighed(parts, (lse.double() * math.log(2)).softmax(0)),
    ),
    Mistake(
        "Only the part with the largest lse counts here. All do.",
        lambda parts, lse: parts[lse.argmax(0), torch.arange(parts.shape[1])],
    ),
    Mistake(
        "The tile is wider than `splits`. What lies behind the last part counts here with an lse of 0: other=-inf.",
        padded_away,
    ),
    Mistake("The heads of one part lie side by side: row = part × HEADS + head.", other_order),
    Mistake(
        "The weights grow with the lse, not shrink.", lambda parts, lse: weighed(parts, (-lse.double()).softmax(0))
    ),
)
known_merge = named(*MERGE_MISTAKES, tolerance=1e-4, absolute=True)


def merge_explained(case: Case, got: Any) -> str:
    if isinstance(got, str):
        return ""
    if any(not math.isfinite(x) for x in numbers(got)):
        parts, lse = case.arguments
        if lse.max() > 88:
            return "exp of a large lse is infinite in float32: subtract the largest lse first."
        if len(parts).bit_count() != 1:
            return "NaN lies behind the last part, where you have nothing to read: mask both loads with part < splits."
        if lse.isinf().any():
            return "NaN: −∞ − −∞, or 0 / 0. Subtract the largest lse of all parts, which is finite."
        return OFF
    return NOT_STORED if UNWRITTEN in numbers(got) else known_merge(case, got)


# ---- q5: how many splits ---------------------------------------------------------------------------------------------


def ceil(a: float, b: float) -> int:
    return math.ceil(a / b)


SPLIT_MISTAKES = (
    Mistake(
        "Rounded down: that is a little less than two programs a processor.",
        lambda b, k, n, p, s: max(1, min(2 * p // (b * k), n // s)),
    ),
    Mistake("Two programs a processor are asked, not one.", lambda b, k, n, p, s: max(1, min(ceil(p, b * k), n // s))),
    Mistake(
        "Each KV head is a program already: divide by batch × kv_heads.",
        lambda b, k, n, p, s: max(1, min(ceil(2 * p, b), n // s)),
    ),
    Mistake(
        "Each sequence brings its own programs: divide by batch × kv_heads.",
        lambda b, k, n, p, s: max(1, min(ceil(2 * p, k), n // s)),
    ),
    Mistake(
        "A split gets too short here: at most context // shortest splits.",
        lambda b, k, n, p, s: max(1, ceil(2 * p, b * k)),
    ),
    Mistake(
        "There is always one split, in a context shorter than `shortest` too.",
        lambda b, k, n, p, s: min(ceil(2 * p, b * k), n // s),
    ),
    Mistake(
        "Rounded up, the last split would be shorter than `shortest`.",
        lambda b, k, n, p, s: max(1, min(ceil(2 * p, b * k), ceil(n, s))),
    ),
    Mistake(
        "As many splits as the context allows. More are not faster: parts must be merged. Take the fewest.",
        lambda b, k, n, p, s: max(1, n // s),
    ),
    Mistake(
        "These are programs. How many splits of each context?", lambda b, k, n, p, s: min(2 * p, max(1, n // s) * b * k)
    ),
    Mistake(
        "A power of two is not asked: the fewest splits that suffice.",
        lambda b, k, n, p, s: max(1, min(1 << (ceil(2 * p, b * k) - 1).bit_length(), n // s)),
    ),
    Mistake("Splits are whole: round up.", lambda b, k, n, p, s: max(1, min(2 * p / (b * k), n / s))),
    Mistake("Splits are whole: round up.", lambda b, k, n, p, s: max(1, min(2 * p / (b * k), n // s))),
)
