"""Workloads: when requests arrive and how long they are, drawn from fitted distributions or read from a file.

The means are those that Kwon et al. 2023 print in figure 11 of arXiv 2309.06180. A mean says nothing of the spread:
that is a parameter here (chapter 04 finds it from one bar of the paper's figure 2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from pagedlab.errors import SimulationError

Floats: TypeAlias = npt.NDArray[np.float64]
Ints: TypeAlias = npt.NDArray[np.int64]


class TraceRequest(NamedTuple):
    """One request, as the past knows it.

    Attributes:
        arrival: seconds from the start of the trace
        prompt_tokens: length of the input, at least 1
        output_tokens: tokens that it will get, at least 1
    """

    arrival: float
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True)
class Lengths:
    """Prompt and output lengths, drawn independently from one family of distributions.

    Attributes:
        mean_prompt, mean_output: tokens; a drawn workload has these means after rounding and clipping
        spread: coefficient of variation, standard deviation / mean, of both before clipping
        family: "gamma" or "lognormal" (which has the longer tail at equal spread)
        window: prompt + output are at most this
        longest_prompt: at most half the window, so that every request has room to answer
    """

    mean_prompt: float
    mean_output: float
    spread: float = 1.0
    family: str = "gamma"
    window: int = 2048

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise SimulationError(f"There is no family {self.family!r}: choose {' or '.join(FAMILIES)}.")
        if not 0 < self.spread < float("inf"):
            raise SimulationError(f"The spread is a standard deviation / mean above 0, got {self.spread}.")
        for what, mean in (("mean_prompt", self.mean_prompt), ("mean_output", self.mean_output)):
            if not 1 <= mean <= self.window / 4:
                raise SimulationError(f"{what} must be 1 to a quarter of the window ({self.window / 4:g}), got {mean}.")

    @property
    def longest_prompt(self) -> int:
        return self.window // 2

    def draw(self, count: int, rng: np.random.Generator) -> tuple[Ints, Ints]:
        """`count` prompt lengths and as many output lengths."""
        unit = FAMILIES[self.family]
        longest = np.full(count, self.longest_prompt)
        prompts = scaled_to_mean(unit(self.spread, count, rng), self.mean_prompt, longest)
        outputs = scaled_to_mean(unit(self.spread, count, rng), self.mean_output, self.window - prompts)
        return prompts, outputs


def unit_gamma(spread: float, count: int, rng: np.random.Generator) -> Floats:
    """Mean 1, standard deviation `spread`: shape 1 / spread**2, scale spread**2."""
    return rng.gamma(1 / spread**2, spread**2, count)


def unit_lognormal(spread: float, count: int, rng: np.random.Generator) -> Floats:
    """Mean 1, standard deviation `spread`: sigma**2 = ln(1 + spread**2), mu = -sigma**2 / 2."""
    variance = np.log1p(spread**2)
    return rng.lognormal(-variance / 2, np.sqrt(variance), count)


FAMILIES: dict[str, Callable[[float, int, np.random.Generator], Floats]] = {
    "gamma": unit_gamma,
    "lognormal": unit_lognormal,
}

SHAREGPT_MEANS = (161.31, 337.99)
"""Mean prompt and output tokens of conversations, arXiv 2309.06180, figure 11a."""
ALPACA_MEANS = (19.31, 58.45)
"""Of short instructions, figure 11b."""


def scaled_to_mean(unit: Floats, mean: float, longest: Ints) -> Ints:
    """Integers 1 .. longest proportional to `unit`, whose mean is `mean` after rounding and clipping.

    Clipping a tail lowers the mean; the scale is bisected until it is right again. What the sample cannot reach (all of
    it clipped) stays as near as it gets.
    """

    def scaled(scale: float) -> Ints:
        return np.clip(np.rint(unit * scale), 1, longest).astype(np.int64)

    low, high = 0.0, 16 * mean
    while scaled(high).mean() < mean and high < 1e30:  # a few draws of a large spread may all be far below their mean
        low, high = high, 16 * high
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if scaled(middle).mean() < mean else (low, middle)
    return scaled(high)


# ---- arrivals ---------------------------------------------------------------------------------------------------


def saturated_arrivals(count: int) -> Floats:
    """Everybody waits from the start: the queue is never empty, so memory alone decides who runs."""
    return np.zeros(count)


def poisson_arrivals(count: int, rate: float, rng: np.random.Generator) -> Floats:
    """Seconds of `count` arrivals, `rate` a second on average, independent of each other."""
    return bursty_arrivals(count, rate, 1.0, rng)


def bursty_arrivals(count: int, rate: float, burstiness: float, rng: np.random.Generator) -> Floats:
    """Gaps from a gamma distribution with coefficient of variation `burstiness`.

    1 is Poisson; above it arrivals come in clumps with long gaps between; towards 0 they come like a clock's ticks.
    """
    if not (0 < rate < float("inf") and 0 < burstiness < float("inf")):
        raise SimulationError(f"Arrivals need a rate and a burstiness above 0, got {rate} and {burstiness}.")
    return np.cumsum(unit_gamma(burstiness, count, rng)) / rate


def make_workload(
    count: int, lengths: Lengths, seed: int = 0, rate: float | None = None, burstiness: float = 1.0
) -> list[TraceRequest]:
    """Requests in order of arrival; the same for the same arguments.

    Args:
        count: requests.
        lengths: how long they are.
        seed: of all that is random.
        rate: arrivals a second; None lets all arrive at once (a saturated queue).
        burstiness: 1 is Poisson; see bursty_arrivals.
    """
    if count < 1:
        raise SimulationError(f"A workload has at least 1 request, got count={count}.")
    rng = np.random.default_rng(seed)
    prompts, outputs = lengths.draw(count, rng)
    arrivals = saturated_arrivals(count) if rate is None else bursty_arrivals(count, rate, burstiness, rng)
    return [TraceRequest(*row) for row in zip(arrivals.tolist(), prompts.tolist(), outputs.tolist(), strict=True)]


def spread_from_residents(mean: float, resident_mean: float) -> float:
    """The spread of lengths whose mean, over the requests met in memory at a random moment, is `resident_mean`.

    A request is in memory for as long as its output, so long ones are met more often: the mean over those met is
    E[L**2] / E[L] = mean * (1 + spread**2) (the inspection paradox).
    """
    if resident_mean <= mean:
        raise SimulationError(f"Requests met in memory are longer than the mean of {mean}, got {resident_mean}.")
    return float(np.sqrt(resident_mean / mean - 1))


def total_tokens(requests: Sequence[TraceRequest]) -> int:
    """Prompt and output tokens of all requests."""
    return sum(request.prompt_tokens + request.output_tokens for request in requests)
