"""BatchingRun: what happened to every request and in every step of a simulated or measured run, and its summary."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from pagedlab.errors import SimulationError
from pagedlab.simulate.cost_model import CostModel, Floats
from pagedlab.simulate.workloads import TraceRequest


@dataclass(slots=True)
class StepLog:
    """Every step: when it began, how long it took, and what was in it. Lists of equal length.

    Attributes:
        starts, seconds: on the clock of the arrivals
        rows: tokens computed, padding included
        sequences: rows of the batch, those included whose answer is complete
        live: sequences that still want tokens
        used_blocks: KV blocks held during the step; 0 where no block manager is there
    """

    starts: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    sequences: list[int] = field(default_factory=list)
    live: list[int] = field(default_factory=list)
    used_blocks: list[int] = field(default_factory=list)

    def add(self, start: float, seconds: float, rows: int, sequences: int, live: int, used_blocks: int = 0) -> None:
        self.starts.append(start)
        self.seconds.append(seconds)
        self.rows.append(rows)
        self.sequences.append(sequences)
        self.live.append(live)
        self.used_blocks.append(used_blocks)

    def extend(
        self, start: float, seconds: Floats, rows: int, sequences: int, live: Iterable[int], used: Iterable[int]
    ) -> float:
        """Several steps in a row with the same rows; returns when the last one ends."""
        clock = np.cumsum(np.concatenate([[start], seconds]))  # the sums of a clock that goes on step by step
        self.starts += clock[:-1].tolist()
        self.seconds += seconds.tolist()
        self.rows += [rows] * len(seconds)
        self.sequences += [sequences] * len(seconds)
        self.live += live
        self.used_blocks += used
        return float(clock[-1])


@dataclass(slots=True)
class BatchingRun:
    """One workload under one method. Arrays have one entry a request, in the order of the workload.

    Attributes:
        method: static, dynamic or continuous
        requests: the workload
        started: when its first step began
        first_token: when its first token was there
        finished: when its last token was there
        released: when its seat became free: with padding that is the end of the batch
        steps: all steps
        num_preemptions: how often a request lost its blocks
    """

    method: str
    requests: Sequence[TraceRequest]
    started: Floats
    first_token: Floats
    finished: Floats
    released: Floats
    steps: StepLog
    num_preemptions: int = 0

    @classmethod
    def empty(cls, method: str, requests: Sequence[TraceRequest]) -> BatchingRun:
        """To be filled in.

        Raises:
            SimulationError: there are no requests, or they are not in order of arrival.
        """
        arrivals = [request.arrival for request in requests]
        if not requests or any(later < earlier for earlier, later in pairwise(arrivals)):
            raise SimulationError("A workload has 1 request or more, in order of arrival: sort it by `arrival`.")
        started, first, finished, released = np.full((4, len(requests)), np.nan)
        return cls(method, requests, started, first, finished, released, StepLog())

    @property
    def computed_rows(self) -> int:
        return sum(self.steps.rows)

    @property
    def needed_rows(self) -> int:
        """Every prompt token once, and every output token but the last, which nobody reads on."""
        return sum(request.prompt_tokens + request.output_tokens - 1 for request in self.requests)

    @property
    def makespan(self) -> float:
        """Seconds from the first arrival to the last token."""
        return float(self.finished.max()) - self.requests[0].arrival


@dataclass(frozen=True, slots=True)
class Summary:
    """A run in numbers.

    Attributes:
        method: of the run
        output_tokens_per_second: tokens that users asked for
        ttft_median, ttft_p99: seconds from arrival to the first token
        tpot_median: seconds a token after the first, of requests with two tokens or more (0 if there is none)
        latency_median, latency_p99: seconds from arrival to the last token
        waste: share of the computed rows that nobody needed: padding, rows past an answer's end, recomputation
        utilisation: share of the time that the needed matrix products take at the cost model's peak (MFU)
        busy: share of the time in which a step ran
        mean_live: sequences that still want tokens, mean over the time of steps
    """

    method: str
    output_tokens_per_second: float
    ttft_median: float
    ttft_p99: float
    tpot_median: float
    latency_median: float
    latency_p99: float
    waste: float
    utilisation: float
    busy: float
    mean_live: float


def summarise(run: BatchingRun, cost: CostModel) -> Summary:
    """The numbers that methods are compared by. Model FLOPs utilisation: Chowdhery et al. 2022 (PaLM), appendix B."""
    arrivals = np.array([request.arrival for request in run.requests])
    outputs = np.array([request.output_tokens for request in run.requests])
    several = outputs > 1
    pace = (run.finished - run.first_token)[several] / (outputs[several] - 1)
    first, last = run.first_token - arrivals, run.finished - arrivals
    seconds = np.array(run.steps.seconds)
    return Summary(
        method=run.method,
        output_tokens_per_second=float(outputs.sum()) / run.makespan,
        ttft_median=float(np.median(first)),
        ttft_p99=float(np.percentile(first, 99)),
        tpot_median=float(np.median(pace)) if len(pace) else 0.0,
        latency_median=float(np.median(last)),
        latency_p99=float(np.percentile(last, 99)),
        waste=1 - run.needed_rows / run.computed_rows,
        utilisation=cost.useful_seconds(run.needed_rows, float(outputs.sum())) / run.makespan,
        busy=float(seconds.sum()) / run.makespan,
        mean_live=float((seconds * np.array(run.steps.live)).sum() / seconds.sum()),
    )
