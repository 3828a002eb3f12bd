"""Chapter 01: rooflines by hand, what a user waits for, what a token costs, and a time sheet with three faults."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from math import ceil
from random import Random

from pagedlab.basics.published_configs import PUBLISHED
from pagedlab.course.drivers.ch01 import bill, part, step
from pagedlab.course.questions.ch01_mistakes import (
    CARD_MISTAKES,
    COST_MISTAKES,
    DECODE_MISTAKES,
    SHEET_MISTAKES,
    sheet,
    waits_explained,
)
from pagedlab.course.questions.mistakes import named, named_by_part
from pagedlab.course.questions.model import Case, Kind, Question
from pagedlab.simulate import roofline
from pagedlab.simulate.devices import DEVICES, Device

# ---- q1: a model on a card -------------------------------------------------------------------------------------------

WEIGHTS, PEAK, BANDWIDTH = 8e9, 400e12, 2000e9


def card_parts() -> Iterable[Case]:
    ridge = PEAK / BANDWIDTH
    reading = 2 * WEIGHTS / BANDWIDTH
    yield Case("ridge", ("ridge",), ridge)
    yield Case("decode_ms", ("decode_ms",), 1000 * reading)
    yield Case("tokens_per_second", ("tokens_per_second",), 50 / reading)
    yield Case("prompt_at_ridge", ("prompt_at_ridge",), 2 * WEIGHTS * ridge / (2 * WEIGHTS))
    yield Case("prompt_at_ridge_8bit", ("prompt_at_ridge_8bit",), WEIGHTS * ridge / (2 * WEIGHTS))
    yield Case("training_gb", ("training_gb",), 16 * WEIGHTS / 1e9)


# ---- q2: the floor of a decode step ----------------------------------------------------------------------------------

EARLIER, GROUPED = ("Llama-2-7B", "Llama-2-13B"), ("Llama-3-8B", "Mistral-7B")
"""Models with a key for each head, and with grouped heads."""


def decode_cases() -> Iterable[Case]:
    for service in (
        ("Llama-2-7B", "RTX 4090", 1000, 1),
        ("Llama-2-7B", "A100 80GB", 1000, 64),
        ("Llama-2-7B", "A100 80GB", 8, 512),
        ("Llama-3-8B", "H100", 4096, 256),
        ("Llama-3-8B", "A100 80GB", 128, 1),
        ("Llama-3-8B", "RTX 4090", 128, 400),
    ):
        yield decode_case(*service)


def decode_fresh(draw: Random) -> Iterable[Case]:
    """As above: one sequence or many; short contexts, long ones; the last one's bound is where batch and cards meet."""
    for models, cards, contexts, batches, bound in (
        (EARLIER, ["RTX 4090", "H100"], (500, 2000), (1, 1), "memory"),
        (EARLIER, ["A100 80GB", "H200"], (600, 2000), (32, 120), "memory"),
        (EARLIER, ["A100 80GB", "RTX 4090"], (5, 14), (400, 700), "compute"),
        (GROUPED, ["H100", "H200"], (2500, 8000), (150, 350), "memory"),
        (GROUPED, ["A100 80GB", "A100 40GB"], (100, 250), (1, 1), "memory"),
        (GROUPED, ["RTX 4090", "A100 80GB"], (100, 250), (350, 600), "compute"),
    ):
        case = None
        while case is None or case.expected["bound by"] != bound:
            model, card = draw.choice(models), draw.choice(cards)
            case = decode_case(model, card, draw.randint(*contexts), draw.randint(*batches), ", drawn")
        yield case


def decode_case(name: str, card: str, context: int, batch: int, note: str = "") -> Case:
    """What the package counts for a published model; it also counts norms and embeddings: under 1 part in 1,000."""
    shape, device = roofline.ModelShape.from_config(PUBLISHED[name]), DEVICES[card]
    model = {
        "weights": shape.num_hidden_layers * shape.layer_matrices + shape.head_matrix,
        "kv_bytes": shape.kv_bytes_per_token(),
        "pair_flop": 4 * shape.num_hidden_layers * shape.num_attention_heads * shape.head_dim,
    }
    work = roofline.decode(shape, context - 1, batch)  # pagedlab's context does not hold the new token
    expected = step(tuple, (work.intensity, work.bound_by(device), work.seconds(device)))
    arguments = (model, context, batch, speeds_of(device))
    return Case(f"{name}, {card}, context {context}, batch {batch}{note}", arguments, expected)


def speeds_of(device: Device) -> dict[str, float]:
    return {"flop_per_second": device.flops_per_second, "bytes_per_second": device.bytes_per_second}


# ---- q3: what a user waits for ---------------------------------------------------------------------------------------


def wait_cases() -> Iterable[Case]:
    draw = Random(1)
    yield wait_case("no queue", 0.0, 0.0, [0.3, 0.325, 0.35, 0.375])
    yield wait_case("the clock does not start at 0", 100.0, 100.0, [100.5, 100.6, 100.7])
    yield wait_case("a second in the queue", 2.0, 3.0, [3.2, 3.25, 3.3, 3.35])
    yield wait_case("a stall in the middle", 0.0, 0.1, [0.4, 0.44, 0.48, 1.28, 1.32])
    yield wait_case("one token", 5.0, 5.5, [6.0])
    yield wait_case("twelve tokens", 7.0, 7.004, later(7.0, [draw.uniform(0.01, 0.2) for _ in range(12)]))


def wait_fresh(draw: Random) -> Iterable[Case]:
    """The same stories: where the clock starts at 0, and where all gaps are alike, they do so again."""

    def seconds(least: float, most: float) -> float:
        return round(draw.uniform(least, most), 3)

    start, first, gap, count = seconds(20, 300), seconds(0.2, 0.9), seconds(0.02, 0.09), draw.randrange(2, 7)
    yield wait_case("no queue, drawn", 0.0, 0.0, later(0.0, [first, *[gap] * (count + 1)]))
    yield wait_case("another start of the clock", start, start, later(start, [first + 0.1, *[gap + 0.05] * count]))
    start, queued = seconds(1, 9), seconds(0.6, 3)
    yield wait_case("a while in the queue", start, start + queued, later(start + queued, [first, *[gap] * count]))
    queued, stall = seconds(0.05, 0.4), seconds(0.5, 2)
    gaps = [gap] * draw.randrange(2, 5) + [stall] + [gap] * draw.randrange(1, 3)
    yield wait_case("a stall, drawn", 0.0, queued, later(queued, [first, *gaps]))
    start, queued = seconds(2, 60), seconds(0.2, 2)
    yield wait_case("one token, drawn", start, start + queued, [start + queued + first])
    start, count = seconds(2, 60), draw.randrange(10, 16)
    times = later(start, [draw.uniform(0.01, 0.2) for _ in range(count)])
    yield wait_case(f"{count} tokens, drawn", start, start + 0.004, times)


def later(start: float, gaps: Iterable[float]) -> list[float]:
    """The clock after each gap, to the millisecond."""
    times = [start]
    for gap in gaps:
        times.append(round(times[-1] + gap, 3))
    return times[1:]


def wait_case(name: str, arrival: float, scheduled: float, tokens: list[float]) -> Case:
    gaps = [b - a for a, b in pairwise(tokens)]
    expected = {
        "queued": scheduled - arrival,
        "ttft": tokens[0] - arrival,
        "tpot": sum(gaps) / len(gaps) if gaps else 0.0,
        "worst_gap": max(gaps, default=0.0),
    }
    return Case(name, (arrival, scheduled, tokens), expected)


# ---- q4: what a token costs ------------------------------------------------------------------------------------------

DAY = 24 * 3600
"""Seconds."""


def cost_cases() -> Iterable[Case]:
    draw = Random(2)
    services = [
        (1_000_000, 1_000, 10_000, 2.0),
        (864_000, 100, 500, 1.5),  # exactly two GPUs
        (20_000, 250, 4_000, 3.0),  # one GPU, mostly idle
        (10_000_000, 600, 2_500, 4.0),
    ]
    services += [
        (draw.randrange(10**5, 10**7), draw.randrange(50, 2_000), draw.randrange(500, 9_000), draw.randrange(1, 9) / 2)
        for _ in range(2)
    ]
    yield from map(cost_case, services)


def cost_fresh(draw: Random) -> Iterable[Case]:
    """As many GPUs and a part of one, below or above a half as above; once a whole number; once hardly any."""
    for least, most, part_low, part_high in (
        (1, 4, 0.1, 0.4),
        (0, 0, 0.01, 0.1),
        (20, 40, 0.6, 0.9),
        (1, 15, 0.55, 0.9),
    ):
        gpus = draw.randint(least, most) + draw.uniform(part_low, part_high)
        tokens, rate = draw.randrange(50, 2_000), draw.randrange(500, 9_000)
        yield cost_case((int(gpus * DAY * rate / tokens), tokens, rate, draw.randrange(1, 13) / 2))
    gpus, requests, share = draw.randrange(2, 5), draw.randrange(3, 30), draw.randrange(40, 400)
    # Divided in any order, every number stays whole: no rounding up of 3.0000000001.
    yield cost_case((requests * DAY, gpus * share, requests * share, draw.randrange(1, 13) / 2))
    gpus, tokens, rate = draw.randint(5, 15) + 0.7, draw.randrange(50, 2_000), draw.randrange(500, 9_000)
    yield cost_case((int(gpus * DAY * rate / tokens), tokens, rate, draw.randrange(1, 13) / 2))


def cost_case(service: tuple[int, int, int, float]) -> Case:
    a_day, tokens, rate, price = service
    gpus = ceil(a_day * tokens / (DAY * rate))
    expected = bill(tuple, (gpus, gpus * price * 24 / (a_day * tokens / 1e6)))
    return Case(f"{a_day:,} requests of {tokens:,} tokens", service, expected)


# ---- q5: a time sheet with three faults ------------------------------------------------------------------------------


def sheet_cases() -> Iterable[Case]:
    small = {"flop_per_second": 100e12, "bytes_per_second": 1000e9}
    for prompt, new_tokens, weights, name in (
        (1, 1, 7e9, ""),
        (1, 2, 7e9, ""),
        (100, 1, 7e9, "RTX 4090"),
        (100, 100, 7e9, "RTX 4090"),
        (1000, 1, 7e9, "A100 80GB"),
        (2000, 50, 13e9, "H100"),
    ):
        yield sheet_case(prompt, new_tokens, weights, speeds_of(DEVICES[name]) if name else small)


def sheet_fresh(draw: Random) -> Iterable[Case]:
    """One token or a few; prompts that fit below the ridge of their card, and long ones."""
    for prompts, tokens, card in (
        ((1, 1), (1, 1), ""),
        ((1, 1), (2, 2), ""),
        ((40, 120), (1, 1), "RTX 4090"),
        ((40, 120), (50, 200), "RTX 4090"),
        ((600, 3000), (1, 1), "A100 80GB"),
        ((1000, 4000), (20, 90), "H100"),
    ):
        small = {"flop_per_second": draw.randint(60, 200) * 1e12, "bytes_per_second": draw.randint(600, 2000) * 1e9}
        speeds = speeds_of(DEVICES[card]) if card else small
        yield sheet_case(draw.randint(*prompts), draw.randint(*tokens), draw.randint(10, 140) * 1e8, speeds, ", drawn")


def sheet_case(prompt: int, new_tokens: int, weights: float, speeds: dict[str, float], note: str = "") -> Case:
    arguments = (prompt, new_tokens, weights, speeds)
    return Case(f"prompt of {prompt}, {new_tokens} new{note}", arguments, sheet(*arguments))


QUESTIONS: tuple[Question, ...] = (
    Question(
        id="ch01.q1",
        title="A model on a card",
        kind=Kind.COMPUTE,
        difficulty=1,
        points=3,
        answer="card",
        cases=card_parts,
        hints=(
            "Two times for each step: bytes over bandwidth, FLOP over the arithmetic rate. Which one is longer?",
            "A step reads 2 bytes a weight, whatever the number of rows. Every row adds 2 FLOP a weight.",
            "With 16-bit weights, n rows do n FLOP a byte; with 8-bit weights 2n. Compare with the ridge. "
            "In training: 2 bytes for the weight, 2 for its gradient, 12 for the optimizer.",
        ),
        explain=named_by_part(CARD_MISTAKES),
        tolerance=1e-3,
        drive=part,
    ),
    Question(
        id="ch01.q2",
        title="The floor of a decode step",
        kind=Kind.IMPLEMENT,
        difficulty=2,
        points=4,
        answer="decode_step",
        cases=decode_cases,
        fresh=decode_fresh,
        hints=(
            "Count FLOP first, then bytes. Ask of each term: does it grow with the batch?",
            "FLOP: weights and pairs, both for every sequence. Bytes: the weights once, keys and values for every "
            "sequence.",
            "The time is max(flop / rate, moved / bandwidth). It is bound by memory if the second one is the larger.",
        ),
        explain=named(*DECODE_MISTAKES, tolerance=1e-3),
        tolerance=1e-3,
        drive=step,
    ),
    Question(
        id="ch01.q3",
        title="What a user waits for",
        kind=Kind.IMPLEMENT,
        difficulty=1,
        points=3,
        answer="waits",
        cases=wait_cases,
        fresh=wait_fresh,
        hints=(
            "Draw the four moments on a line: arrival, scheduled, first token, last token.",
            "TTFT counts from the arrival. TPOT and the worst gap look only at what comes after the first token.",
            "gaps = [b - a for a, b in zip(times, times[1:])]; there may be none.",
        ),
        explain=waits_explained,
        tolerance=1e-6,
        absolute=True,
    ),
    Question(
        id="ch01.q4",
        title="What a million tokens cost",
        kind=Kind.COMPUTE,
        difficulty=2,
        points=3,
        answer="serving_cost",
        cases=cost_cases,
        fresh=cost_fresh,
        hints=(
            "How many tokens arrive in a second, on average? How many GPUs is that?",
            "GPUs come whole. The bill of a day is what they cost in 24 hours, busy or not.",
            "Divide the bill of a day by the millions of tokens of a day.",
        ),
        explain=named(*COST_MISTAKES),
        tolerance=1e-6,
        drive=bill,
    ),
    Question(
        id="ch01.q5",
        title="A time sheet with three faults",
        kind=Kind.DIAGNOSE,
        difficulty=2,
        points=3,
        answer="answer_ms",
        cases=sheet_cases,
        fresh=sheet_fresh,
        hints=(
            "Try prompt 1 and 1 new token by hand: how many passes are that, and how long is the one?",
            "Look at each line: what is shared by the rows of a step? What happens at the same time? How many passes?",
            "In step_ms one factor `rows` is wrong and one `+` should be a `max`; the range of the loop is one too "
            "long.",
        ),
        explain=named(*SHEET_MISTAKES),
        tolerance=1e-6,
    ),
)
