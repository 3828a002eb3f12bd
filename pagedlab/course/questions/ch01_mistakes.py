"""What people get wrong in the questions of chapter 01, and what to say to them."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from math import ceil, nan
from typing import Any

from pagedlab.course.drivers.ch01 import bill, step
from pagedlab.course.questions.mistakes import Mistake
from pagedlab.course.questions.model import Case

Numbers = dict[str, float]

# ---- q1: a model on a card -------------------------------------------------------------------------------------------

CARD_MISTAKES: dict[str, list[tuple[float, str]]] = {
    "ridge": [
        (0.005, "Upside down: that is bytes for each FLOP. The ridge is FLOP for each byte."),
        (0.2, "Tera is 10¹², giga is 10⁹: the two prefixes do not cancel."),
    ],
    "decode_ms": [
        (0.04, "That is the time of the arithmetic alone. Decode at batch 1 waits for the weights: they take longer."),
        (0.008, "That is in seconds; milliseconds are asked."),
        (4, "A weight of 16 bits is 2 bytes."),
        (8.04, "Reading and arithmetic overlap: the floor is the longer of the two, not their sum."),
    ],
    "tokens_per_second": [
        (125, "That is one sequence. A step reads the weights once for all 50 rows, and yields 50 tokens."),
        (25_000, "That is what the arithmetic allows. Below the ridge the reading of the weights sets the time."),
        (2.5, "As if each of the 50 rows read the weights again: a step reads them once."),
    ],
    "prompt_at_ridge": [
        (400, "A weight and a row make 2 FLOP, a multiplication and an addition; you counted one."),
        (100, "A weight of 16 bits is 2 bytes, so a row brings 1 FLOP a byte, not 2."),
        (8e9, "The number of weights cancels: each is read once, and used once by every row."),
    ],
    "prompt_at_ridge_8bit": [
        (200, "The weights are half as many bytes, the FLOP are as many: a row now brings 2 FLOP a byte."),
        (400, "The other way round: fewer bytes mean that fewer rows are enough."),
    ],
    "training_gb": [
        (16, "Those are the weights alone, which is what inference needs. Training keeps gradients and averages too."),
        (32, "Weights and gradients. The optimizer's float32 copy and its two running averages are missing."),
        (48, "Weights and two averages in 16 bits: gradients are missing, and the optimizer keeps float32."),
        (64, "The optimizer keeps float32: 12 bytes a weight on top of 2 for the weight and 2 for its gradient."),
        (96, "That is the optimizer's part. Weights and gradients, 2 bytes each, come on top."),
    ],
}

# ---- q2: the floor of a decode step ----------------------------------------------------------------------------------


def wrong_step(
    model: Numbers,
    context: int,
    batch: int,
    speeds: Numbers,
    weight_reads: bool = False,
    one_cache: bool = False,
    flop_a_weight: int = 2,
    bytes_a_weight: int = 2,
    attention: bool = True,
    times: Any = max,
    unit: float = 1,
    upside_down: bool = False,
    swapped: bool = False,
) -> tuple[float, str, float]:
    """A decode step as people count it: every option is one way to go wrong."""
    flop = flop_a_weight * model["weights"] * batch + attention * batch * context * model["pair_flop"]
    weight_bytes = bytes_a_weight * model["weights"] * (batch if weight_reads else 1)
    moved = weight_bytes + (1 if one_cache else batch) * context * model["kv_bytes"]
    arithmetic, traffic = flop / speeds["flop_per_second"], moved / speeds["bytes_per_second"]
    bound = "memory" if (traffic > arithmetic) != swapped else "compute"
    return moved / flop if upside_down else flop / moved, bound, unit * times((arithmetic, traffic))


def decode_mistake(says: str, **options: Any) -> Mistake:
    return Mistake(says, lambda *arguments: step(partial(wrong_step, **options), *arguments))


DECODE_MISTAKES = (
    decode_mistake("The weights are read once in a step and shared by all its sequences.", weight_reads=True),
    decode_mistake("Keys and values are not shared: every sequence of the batch reads its own.", one_cache=True),
    decode_mistake("A weight and a row are a multiplication and an addition: 2 FLOP.", flop_a_weight=1),
    decode_mistake("A weight of 16 bits is 2 bytes.", bytes_a_weight=1),
    decode_mistake("Attention's FLOP are missing: each sequence has `context` pairs.", attention=False),
    decode_mistake("Traffic and arithmetic overlap: the longer one is the floor, not their sum.", times=sum),
    decode_mistake("The step ends when the slower of the two is done: the longer time, not the shorter.", times=min),
    decode_mistake("The time is asked in seconds.", unit=1000),
    decode_mistake("Intensity is upside down: FLOP for each byte is asked.", upside_down=True),
    decode_mistake('The two words are swapped: traffic that takes longer than arithmetic is "memory".', swapped=True),
)

# ---- q3: what a user waits for ---------------------------------------------------------------------------------------


FAIL_WITHOUT_GAPS = ("ZeroDivisionError", "IndexError", "ValueError", "StatisticsError", "RuntimeError")
"""What means, medians and maxima of an empty list raise: Python's own, NumPy's and torch's."""


def waits_explained(case: Case, got: Any) -> str:
    """Part by part: the first that is wrong is named."""
    if isinstance(got, str):
        without_gaps = len(case.arguments[2]) == 1 and got.startswith(FAIL_WITHOUT_GAPS)
        return "A request with one token has no gaps: its TPOT and worst gap are 0." if without_gaps else ""
    if not isinstance(got, dict) or set(got) != set(case.expected):
        return "Return a dictionary with the keys queued, ttft, tpot and worst_gap."
    arrival, scheduled, tokens = case.arguments
    count, total = len(tokens), tokens[-1] - tokens[0]
    gaps = [b - a for a, b in pairwise([arrival, *tokens])]
    known = {
        "queued": [(tokens[0] - scheduled, "That is the time after the queue: it was in the queue until `scheduled`.")],
        "ttft": [
            (tokens[0] - scheduled, "TTFT is not the prefill alone: the user also waits in the queue."),
            (tokens[0], "The clock does not start at 0: TTFT counts from the arrival."),
        ],
        "tpot": [
            (total / count, "n tokens have n - 1 gaps between them."),
            ((tokens[-1] - arrival) / count, "The wait for the first token is TTFT; TPOT holds the gaps after it."),
            (sorted(gaps[1:] or [0.0])[(count - 1) // 2], "TPOT is the mean of the gaps, not their median."),
            ((count - 1) / total if total else 0.0, "That is tokens per second; TPOT is seconds per token."),
        ],
        "worst_gap": [
            (max(gaps), "The wait for the first token is no gap between tokens."),
            (gaps[1] if gaps[1:] else 0.0, "That is the first gap: look at all of them."),
            (gaps[-1], "That is the last gap: look at all of them."),
        ],
    }
    for key, right in case.expected.items():
        if not near(got[key], right):
            if right and near(got[key], 1000 * right):
                return "Times are asked in seconds."
            notes = [says for value, says in known[key] if abs(value - right) > 1e-6 and near(got[key], value)]
            return f"{key}: {notes[0] if notes else 'look at this one again.'}"
    return ""


def near(got: Any, value: float) -> bool:
    return isinstance(got, (int, float)) and not isinstance(got, bool) and abs(got - value) <= 1e-6


# ---- q4: what a token costs ------------------------------------------------------------------------------------------


def wrong_bill(
    a_day: int,
    tokens: int,
    rate: float,
    price: float,
    whole: Any = ceil,
    load: float = 1,
    factor: float = 1,
    busy: bool = False,
    load_in_requests: bool = False,
    shared_by_requests: bool = False,
) -> tuple[float, float]:
    """GPUs and dollars a million; every option is one way to go wrong. `load` and `factor` are off by so much."""
    gpus = whole(load * a_day * (1 if load_in_requests else tokens) / (24 * 3600 * rate))
    if busy:
        return gpus, price / (rate * 3600) * 1e6
    return gpus, factor * gpus * price * 24 / (a_day * (1 if shared_by_requests else tokens) / 1e6)


def cost_mistake(says: str, **options: Any) -> Mistake:
    return Mistake(says, lambda *arguments: bill(partial(wrong_bill, **options), *arguments))


COST_MISTAKES = (
    cost_mistake("Only whole GPUs can be rented: round up.", whole=lambda x: x),
    cost_mistake("Rounded down, or to the nearest: the GPUs that you rent cannot carry the load. Round up.", whole=int),
    cost_mistake(
        "Rounded down, or to the nearest: the GPUs that you rent cannot carry the load. Round up.",
        whole=lambda x: max(1, int(x)),
    ),
    cost_mistake("One GPU too many where the load fills the last one exactly.", whole=lambda x: int(x) + 1),
    cost_mistake("That is the price of GPUs that are busy all day. Idle hours are on the bill too.", busy=True),
    cost_mistake("That is one hour's bill for a day's tokens: a day has 24.", factor=1 / 24),
    cost_mistake("That is a month's bill for a day's tokens.", factor=30),
    cost_mistake("That is dollars for 1,000 tokens; a million is asked.", factor=1e-3),
    cost_mistake("That is dollars for one token; a million is asked.", factor=1e-6),
    cost_mistake(
        "The rate of a GPU is in tokens a second, not in requests a second: each request has many tokens.",
        load_in_requests=True,
    ),
    cost_mistake("That is dollars for a million requests; each has many tokens.", shared_by_requests=True),
    cost_mistake("A day has 86,400 seconds; you counted the hours or the minutes.", load=60),
    cost_mistake("A day has 86,400 seconds; you counted the hours or the minutes.", load=3600),
)

# ---- q5: a time sheet with three faults ------------------------------------------------------------------------------


def sheet(
    prompt: int,
    new_tokens: int,
    weights: float,
    speeds: Numbers,
    rows_read: bool = False,
    times: Any = max,
    decodes: int = -1,
    unit: float = 1000,
    first: bool = True,
    naive: bool = False,
) -> float:
    """Milliseconds; every option is a fault. `decodes` is added to the new tokens."""

    def one_pass(rows: int) -> float:
        reading = 2 * weights * (rows if rows_read else 1) / speeds["bytes_per_second"]
        return times((reading, 2 * weights * rows / speeds["flop_per_second"]))

    later = [one_pass(prompt + made + 1 if naive else 1) for made in range(new_tokens + decodes)]
    return unit * (first * one_pass(prompt) + sum(later))


def one_pass_missing(prompt: int, new_tokens: int, weights: float, speeds: Numbers) -> float:
    """Where a prefill takes as long as a decode step, nobody can tell which of them is missing."""
    no_prefill = sheet(prompt, new_tokens, weights, speeds, first=False)
    no_decode = sheet(prompt, new_tokens, weights, speeds, decodes=-2)
    return no_decode if no_decode == no_prefill else nan


def sheet_mistake(says: str, **options: Any) -> Mistake:
    return Mistake(says, lambda *arguments: sheet(*arguments, **options))


READ = "A step reads the weights once, however many rows share them."
SUM = "Reading and arithmetic overlap: the longer one counts, not their sum."
FIRST = "The prefill yields the first token, so n tokens are one prefill and n - 1 decodes."
SHEET_MISTAKES = (
    sheet_mistake(f"One fault shows here: {READ}", rows_read=True),
    sheet_mistake(f"One fault shows here: {SUM}", times=sum),
    sheet_mistake(f"One fault shows here: {FIRST}", decodes=0),
    sheet_mistake(f"Two faults show here: {READ} {SUM}", rows_read=True, times=sum),
    sheet_mistake(f"Two faults show here: {SUM} {FIRST}", times=sum, decodes=0),
    sheet_mistake(f"Two faults show here: {READ} {FIRST}", rows_read=True, decodes=0),
    sheet_mistake(f"All three faults show here: {READ} {SUM} {FIRST}", rows_read=True, times=sum, decodes=0),
    sheet_mistake("The slower of reading and arithmetic counts: the longer time, not the shorter.", times=min),
    Mistake("A pass is missing: n tokens are one prefill and n - 1 decodes.", one_pass_missing),
    sheet_mistake("Too few decodes: the prefill yields one token, not two.", decodes=-2),
    sheet_mistake("Milliseconds are asked.", unit=1),
    sheet_mistake("The prefill is missing.", first=False),
    sheet_mistake("That is without a cache: a decode step computes one row.", naive=True),
    sheet_mistake("Decode is not limited by its arithmetic: one row waits for all the weights.", times=lambda t: t[1]),
    sheet_mistake("A long prompt is limited by its arithmetic, not by reading the weights.", times=lambda t: t[0]),
)
