"""CostModel: the seconds of a step from what it computes: a roofline, published or fitted to measured steps.

A step is counted as five numbers (StepSize). Its time is a sum of parts that run one after another:

    max(linear FLOPs / F, weight bytes / W) + attention FLOPs / A + cache bytes / C + sequences * s + overhead

The first part is the roofline of the matrix products: few rows wait for the weights, many rows for arithmetic
(Williams, Waterman & Patterson 2009). `from_device` takes F, W, A and C from a data sheet and leaves s and the overhead
at 0, so its times are near the floor. `fit` finds all six from steps that were measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pagedlab.errors import SimulationError
from pagedlab.simulate.devices import Device
from pagedlab.simulate.roofline import Chunk, ModelShape, causal_pairs

Floats: TypeAlias = npt.NDArray[np.float64]
Numbers: TypeAlias = Any
"""A number, or an array with one for each step."""

NUM_RIDGES = 60
"""Places that `fit` tries for the corner of the roofline."""
LARGEST_RIDGE = 512
"""Rows: no processor here needs more in a step to be busy with arithmetic."""


@dataclass(frozen=True, slots=True)
class StepSize:
    """What a step computes.

    Attributes:
        rows: tokens that go through the layers, padding included
        sequences: rows of the batch, or sequences of the ragged batch
        sampled: rows that go on to the vocabulary
        pairs: (query, key) pairs that attention looks at, one layer and head
        context: tokens whose keys and values are read, this step's included
    """

    rows: float
    sequences: float
    sampled: float
    pairs: float
    context: float

    @classmethod
    def of(cls, chunks: Iterable[Chunk], sampled: int | None = None) -> StepSize:
        """The size of a ragged batch; one token is sampled for each chunk unless given."""
        chunks = list(chunks)
        return cls(
            rows=sum(chunk.new for chunk in chunks),
            sequences=len(chunks),
            sampled=len(chunks) if sampled is None else sampled,
            pairs=sum(map(causal_pairs, chunks)),
            context=sum(chunk.past + chunk.new for chunk in chunks),
        )


@dataclass(frozen=True, slots=True)
class CostModel:
    """Times of one model's steps on one machine.

    Attributes:
        shape: of the model
        bytes_per_element: of weights and cache
        linear_flops, attention_flops: operations a second
        weight_bandwidth, cache_bandwidth: bytes a second
        seconds_per_sequence, overhead: seconds, for each sequence of a step and for each step
    """

    shape: ModelShape
    bytes_per_element: int
    linear_flops: float
    weight_bandwidth: float
    attention_flops: float
    cache_bandwidth: float
    seconds_per_sequence: float = 0.0
    overhead: float = 0.0

    @classmethod
    def from_device(cls, shape: ModelShape, device: Device, bytes_per_element: int = 2) -> CostModel:
        """What the data sheet allows at best."""
        flops, bandwidth = device.flops_per_second, device.bytes_per_second
        return cls(shape, bytes_per_element, flops, bandwidth, flops, bandwidth)

    def seconds(self, size: StepSize) -> float:
        """Time of one step."""
        return float(self.seconds_of(size.rows, size.sequences, size.sampled, size.pairs, size.context))

    def seconds_of(
        self,
        rows: Numbers,
        sequences: Numbers,
        sampled: Numbers,
        pairs: Numbers,
        context: Numbers,
    ) -> Numbers:
        """Times of many steps at once: arrays of one shape, or numbers."""
        flops = linear_flops(self.shape, rows, sampled)
        weights = weight_bytes(self.shape, self.bytes_per_element)
        cache = self.shape.kv_bytes_per_token(self.bytes_per_element) * context
        return (
            np.maximum(flops / self.linear_flops, weights / self.weight_bandwidth)
            + flops_per_pair(self.shape) * pairs / self.attention_flops
            + cache / self.cache_bandwidth
            + sequences * self.seconds_per_sequence
            + self.overhead
        )

    def useful_seconds(self, rows: float, sampled: float) -> float:
        """Least time for so many rows and logits if the processor did nothing but their matrix products."""
        return float(linear_flops(self.shape, rows, sampled) / self.linear_flops)


def linear_flops(shape: ModelShape, rows: Numbers, sampled: Numbers) -> Numbers:
    return 2 * (shape.num_hidden_layers * shape.layer_matrices * rows + shape.head_matrix * sampled)


def weight_bytes(shape: ModelShape, bytes_per_element: int) -> int:
    """Weights that every step reads, whoever is in it."""
    matrices = shape.num_hidden_layers * shape.layer_matrices + shape.head_matrix
    return bytes_per_element * (matrices + shape.bias_and_norm_size)


def flops_per_pair(shape: ModelShape) -> int:
    """A query with a key, and a weight with a value, in all heads of all layers."""
    return 4 * shape.num_hidden_layers * shape.num_attention_heads * shape.head_dim


# ---- fitting -----------------------------------------------------------------------------------------------------


def fit(
    shape: ModelShape, sizes: Sequence[StepSize], seconds: Sequence[float], bytes_per_element: int = 4
) -> CostModel:
    """The cost model that is nearest to measured steps, no part of it negative.

    For each place that the roofline's corner may have, the other parts are a linear least-squares problem. Steps are
    weighted by 1 / seconds, so that small and large steps count alike, and then all is scaled so that the sum of the
    predicted times is the sum of the measured ones: a throughput depends on the sum.

    Args:
        sizes, seconds: of each measured step. They must differ: decodes of several batch sizes, and prompts.

    Raises:
        SimulationError: fewer than 8 steps, all of one size, or a time that is not positive and finite.
    """
    if len(sizes) != len(seconds) or len(sizes) < 8:
        raise SimulationError(
            f"A fit needs one time for each step and 8 steps or more, got {len(sizes)} and {len(seconds)}."
        )
    measured = np.asarray(seconds, float)
    if not (np.isfinite(measured) & (measured > 0)).all():
        raise SimulationError("A measured step takes more than 0 seconds, and not for ever: measure it again.")
    if len(set(sizes)) == 1:
        raise SimulationError("All steps are of one size, which tells no cost from another: measure different ones.")
    table = np.array([[s.rows, s.sequences, s.sampled, s.pairs, s.context] for s in sizes], float).T
    rows, sequences, sampled, pairs, context = table
    flops = np.asarray(linear_flops(shape, rows, sampled))
    flops_per_row = 2 * shape.num_hidden_layers * shape.layer_matrices
    columns = [
        flops_per_pair(shape) * pairs,
        shape.kv_bytes_per_token(bytes_per_element) * context,
        sequences,
        1 + 0 * rows,
    ]
    best: tuple[float, float, Floats] | None = None
    for ridge in np.geomspace(1, LARGEST_RIDGE, NUM_RIDGES):
        corner = ridge * flops_per_row  # with fewer operations than this a step waits for the weights
        matrix = np.stack([np.maximum(flops, corner), *columns], axis=1)
        parts, error = least_squares(matrix / measured[:, None], np.ones(len(measured)))
        if parts[0] > 0 and (best is None or error < best[0]):
            scale = measured.sum() / (matrix @ parts).sum()
            best = error, corner, parts * scale
    if best is None:
        raise SimulationError("These steps do not get longer with their rows: measure steps of different sizes.")
    _, corner, parts = best
    rates = [1 / part if part else float("inf") for part in parts[:3]]
    return CostModel(
        shape=shape,
        bytes_per_element=bytes_per_element,
        linear_flops=rates[0],
        weight_bandwidth=weight_bytes(shape, bytes_per_element) / (corner * parts[0]),
        attention_flops=rates[1],
        cache_bandwidth=rates[2],
        seconds_per_sequence=float(parts[3]),
        overhead=float(parts[4]),
    )


def least_squares(matrix: Floats, target: Floats) -> tuple[Floats, float]:
    """Parts >= 0 that minimise |matrix @ parts - target|², and that minimum.

    With a handful of columns every set of those that are not 0 can be tried.
    """
    width = matrix.shape[1]
    best, least = np.zeros(width), float(target @ target)
    for count in range(1, width + 1):
        for chosen in combinations(range(width), count):
            columns = matrix[:, chosen]
            size = np.linalg.norm(columns, axis=0)
            if not size.all():
                continue
            parts = np.linalg.lstsq(columns / size, target, rcond=None)[0] / size
            error = float(np.sum((columns @ parts - target) ** 2))
            if (parts >= 0).all() and error < least:
                best, least = np.zeros(width), error
                best[list(chosen)] = parts
    return best, least
