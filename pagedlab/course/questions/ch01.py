"""Chapter 01: rooflines by hand, what a user waits for, what a token costs, and a time sheet with three faults."""

from __future__ import annotations

import random
from collections.abc import Iterable
from itertools import pairwise
from math import ceil

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


def decode_cases() -> Iterable[Case]:
    """What the package counts for published models; it also counts norms and embeddings: under 1 part in 1,000."""
    for name, card, context, batch in (
        ("Llama-2-7B", "RTX 4090", 1000, 1),
        ("Llama-2-7B", "A100 80GB", 1000, 64),
        ("Llama-2-7B", "A100 80GB", 8, 512),
        ("Llama-3-8B", "H100", 4096, 256),
        ("Llama-3-8B", "A100 80GB", 128, 1),
        ("Llama-3-8B", "RTX 4090", 128, 400),
    ):
        shape, device = roofline.ModelShape.from_config(PUBLISHED[name]), DEVICES[card]
        model = {
            "weights": shape.num_hidden_layers * shape.layer_matrices + shape.head_matrix,
            "kv_bytes": shape.kv_bytes_per_token(),
            "pair_flop": 4 * shape.num_hidden_layers * shape.num_attention_heads * shape.head_dim,
        }
        speeds = speeds_of(device)
        work = roofline.decode(shape, context - 1, batch)  # pagedlab's context does not hold the new token
        found = (work.intensity, work.bound_by(device), work.seconds(device))
        yield Case(
            f"{name}, {card}, context {context}, batch {batch}", (model, context, batch, speeds), step(tuple, found)
        )


def speeds_of(device: Device) -> dict[str, float]:
    return {"flop_per_second": device.flops_per_second, "bytes_per_second": device.bytes_per_second}


# ---- q3: what a user waits for ---------------------------------------------------------------------------------------


def wait_cases() -> Iterable[Case]:
    draw = random.Random(1)
    logs = {
        "no queue": (0.0, 0.0, [0.3, 0.325, 0.35, 0.375]),
        "the clock does not start at 0": (100.0, 100.0, [100.5, 100.6, 100.7]),
        "a second in the queue": (2.0, 3.0, [3.2, 3.25, 3.3, 3.35]),
        "a stall in the middle": (0.0, 0.1, [0.4, 0.44, 0.48, 1.28, 1.32]),
        "one token": (5.0, 5.5, [6.0]),
    }
    times = [7.0]
    for _ in range(12):
        times.append(round(times[-1] + draw.uniform(0.01, 0.2), 3))
    logs["twelve tokens"] = (times[0], 7.004, times[1:])
    for name, (arrival, scheduled, tokens) in logs.items():
        gaps = [b - a for a, b in pairwise(tokens)]
        expected = {
            "queued": scheduled - arrival,
            "ttft": tokens[0] - arrival,
            "tpot": sum(gaps) / len(gaps) if gaps else 0.0,
            "worst_gap": max(gaps, default=0.0),
        }
        yield Case(name, (arrival, scheduled, tokens), expected)


# ---- q4: what a token costs ------------------------------------------------------------------------------------------


def cost_cases() -> Iterable[Case]:
    draw = random.Random(2)
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
    for a_day, tokens, rate, price in services:
        gpus = ceil(a_day * tokens / (24 * 3600 * rate))
        found = (gpus, gpus * price * 24 / (a_day * tokens / 1e6))
        yield Case(f"{a_day:,} requests of {tokens:,} tokens", (a_day, tokens, rate, price), bill(tuple, found))


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
        speeds = speeds_of(DEVICES[name]) if name else small
        arguments = (prompt, new_tokens, weights, speeds)
        yield Case(f"prompt of {prompt}, {new_tokens} new", arguments, sheet(*arguments))


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
