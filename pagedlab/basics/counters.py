"""How much naive and cached generation compute, exactly: rows through the linear layers, and pairs of query and key.

A token's row meets every weight of the linear layers once, so their work is proportional to the number of rows.
Attention's work is proportional to the number of pairs. A pass over n tokens has n² of them when whole squares of
scores are computed and masked afterwards, as plain code does, and n(n + 1)/2 when only the causal half is computed, as
a good kernel does. Sums, not orders of growth: "n³ against n²" hides a factor of three to six.

Convention: with a prompt of 1, generating n tokens naively takes passes over 1, 2, ..., n tokens. The last token made
is never an input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pagedlab.errors import BackendError


@dataclass(frozen=True, slots=True)
class Pass:
    """One forward pass: `new` rows are computed, behind `past` tokens whose keys and values lie in a cache."""

    new: int
    past: int = 0

    @property
    def square_pairs(self) -> int:
        """Every new query with every key, masked or not."""
        return self.new * (self.past + self.new)

    @property
    def causal_pairs(self) -> int:
        """The pairs that the causal mask lets through."""
        return self.new * self.past + triangular(self.new)


@dataclass(frozen=True, slots=True)
class Count:
    """Work of some passes, in units that hold for any model.

    Attributes:
        rows: token rows through each linear layer; a K projection makes so many keys
        square_pairs: pairs of query and key, whole squares computed
        causal_pairs: pairs of query and key, causal half alone
    """

    rows: int
    square_pairs: int
    causal_pairs: int

    @classmethod
    def of(cls, passes: Iterable[Pass]) -> Count:
        """Brute force: add the passes up one by one."""
        passes = list(passes)
        return cls(
            sum(one.new for one in passes),
            sum(one.square_pairs for one in passes),
            sum(one.causal_pairs for one in passes),
        )

    def __truediv__(self, other: Count) -> Ratios:
        """How many times more work than `other`."""
        return Ratios(
            self.rows / other.rows,
            self.square_pairs / other.square_pairs,
            self.causal_pairs / other.causal_pairs,
        )


@dataclass(frozen=True, slots=True)
class Ratios:
    """`Count` over `Count`, for linear layers and both ways of computing attention."""

    linear: float
    square: float
    causal: float


# ---- passes, one by one ----------------------------------------------------------------------------------------------


def naive_passes(prompt_length: int, new_tokens: int) -> list[Pass]:
    """Every token costs a pass over all before it."""
    return [Pass(prompt_length + made) for made in range(new_tokens)]


def cached_passes(prompt_length: int, new_tokens: int) -> list[Pass]:
    """The prompt once (prefill, which yields the first token), then one row for each further token (decode)."""
    prefill = [Pass(prompt_length)] if new_tokens else []
    return prefill + [Pass(1, past=prompt_length + made) for made in range(new_tokens - 1)]


# ---- the same in closed form -----------------------------------------------------------------------------------------


def naive_count(prompt_length: int, new_tokens: int) -> Count:
    """The sum of `naive_passes`: lengths from the prompt's to that of the last input."""
    before, last = prompt_length - 1, prompt_length + new_tokens - 1
    return Count(
        triangular(last) - triangular(before),
        square_pyramidal(last) - square_pyramidal(before),
        tetrahedral(last) - tetrahedral(before),
    )


def cached_count(prompt_length: int, new_tokens: int) -> Count:
    """The sum of `cached_passes`: each token's row once, each token's scores once."""
    if not new_tokens:
        return Count(0, 0, 0)
    last = prompt_length + new_tokens - 1
    decoded = triangular(last) - triangular(prompt_length)
    return Count(last, prompt_length**2 + decoded, triangular(last))


def triangular(n: int) -> int:
    """1 + 2 + ... + n"""
    return n * (n + 1) // 2


def square_pyramidal(n: int) -> int:
    """1² + 2² + ... + n²"""
    return n * (n + 1) * (2 * n + 1) // 6


def tetrahedral(n: int) -> int:
    """1 + (1 + 2) + ... + (1 + 2 + ... + n)"""
    return n * (n + 1) * (n + 2) // 6


# ---- what one unit costs in a model ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class UnitCosts:
    """FLOPs, two for each multiply-add.

    Attributes:
        per_row: of one token's row through all linear layers
        per_pair: of one pair of query and key, in all heads of all layers: its score, and its share of the output
    """

    per_row: int
    per_pair: int

    def linear_flops(self, count: Count) -> int:
        return self.per_row * count.rows

    def attention_flops(self, count: Count) -> int:
        """Whole squares, which is what PyTorch's FlopCounterMode counts."""
        return self.per_pair * count.square_pairs


def unit_costs(model: nn.Module) -> UnitCosts:
    """Of a model from transformers: every nn.Linear counts, the one that makes logits too."""
    weights = sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear))
    config: Any = model.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return UnitCosts(2 * weights, 4 * config.num_hidden_layers * config.num_attention_heads * head_dim)


# ---- measured --------------------------------------------------------------------------------------------------------


@contextmanager
def rows_through(linear: nn.Module) -> Iterator[list[int]]:
    """A list that grows by one number with each call of `linear`: how many rows it was given."""
    rows: list[int] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        rows.append(inputs[0].numel() // inputs[0].shape[-1])

    hook = linear.register_forward_pre_hook(note)
    try:
        yield rows
    finally:
        hook.remove()


@dataclass(frozen=True, slots=True)
class MeasuredFlops:
    """What PyTorch counted: products with weights, and products of activations with each other."""

    linear: int
    attention: int


def measure_flops(run: Callable[[], object]) -> MeasuredFlops:
    """FLOPs of what `run` really multiplies.

    Raises:
        BackendError: attention ran in a fused kernel, which FlopCounterMode does not see on a CPU.
    """
    with FlopCounterMode(display=False) as counter:
        run()
    by_operator = {str(operator): flops for operator, flops in counter.get_flop_counts().get("Global", {}).items()}
    linear = sum(flops for name, flops in by_operator.items() if name in ("aten.mm", "aten.addmm"))
    attention = sum(by_operator.values()) - linear
    if linear and not attention:
        raise BackendError("No attention was counted: load the model with attn_implementation='eager'.")
    return MeasuredFlops(linear, attention)
