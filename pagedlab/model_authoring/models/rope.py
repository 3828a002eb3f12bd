"""Rotary position embeddings (Su et al., arXiv 2104.09864), and the three published ways to stretch them.

Head channels form head_dim / 2 pairs; pair i of a token at position p is turned by the angle p * f_i, with the inverse
frequencies f_i = rope_theta ** (-2 i / head_dim). A model that was trained on a short context is stretched to a longer
one by lowering the slow frequencies, whose pairs never saw a full turn in training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pagedlab.errors import ModelError

DEFAULT_THETA = 10000.0


def default_frequencies(head_dim: int, parameters: Mapping[str, Any]) -> tuple[Tensor, float]:
    """f_i = theta ** (-2 i / head_dim): Su et al., section 3.2.2."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    return 1.0 / parameters["rope_theta"] ** exponents, 1.0


def linear_frequencies(head_dim: int, parameters: Mapping[str, Any]) -> tuple[Tensor, float]:
    """All frequencies divided by `factor`, as if positions were: Chen et al., arXiv 2306.15595, section 3.2."""
    frequencies, attention_factor = default_frequencies(head_dim, parameters)
    return frequencies / parameters["factor"], attention_factor


def llama3_frequencies(head_dim: int, parameters: Mapping[str, Any]) -> tuple[Tensor, float]:
    """Slow frequencies divided by `factor`, fast ones kept, a smooth passage between: Llama 3.1, as in Meta's own code.

    Fast is a pair that turns at least high_freq_factor times within the original context, slow is one that turns at
    most low_freq_factor times.
    """
    frequencies, attention_factor = default_frequencies(head_dim, parameters)
    turns = parameters["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return kept * frequencies + (1 - kept) * frequencies / parameters["factor"], attention_factor


def yarn_frequencies(head_dim: int, parameters: Mapping[str, Any]) -> tuple[Tensor, float]:
    """YaRN: Peng et al., arXiv 2309.00071, section 3.2, with the authors' defaults.

    Like llama3, but the passage is linear in the pair's index, between the pairs that turn beta_fast and beta_slow
    times within the original context; and attention is sharpened by a factor on cos and sin (section 3.4).
    """
    frequencies, _ = default_frequencies(head_dim, parameters)
    original = parameters["original_max_position_embeddings"]
    theta, factor = parameters["rope_theta"], parameters["factor"]

    def pair_that_turns(times: float) -> float:
        return head_dim * math.log(original / (times * 2 * math.pi)) / (2 * math.log(theta))

    first = pair_that_turns(parameters.get("beta_fast") or 32)
    last = pair_that_turns(parameters.get("beta_slow") or 1)
    if parameters.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_dim - 1)
    width = (last - first) or 0.001
    kept = 1 - ((torch.arange(head_dim // 2, dtype=torch.float32) - first) / width).clamp(0, 1)
    return kept * frequencies + (1 - kept) * frequencies / factor, _yarn_attention_factor(parameters)


def _yarn_attention_factor(parameters: Mapping[str, Any]) -> float:
    """0.1 ln(factor) + 1 on q and on k, so its square on the scores; a config may give it or its two parts."""
    if parameters.get("attention_factor") is not None:
        return float(parameters["attention_factor"])

    def mscale(weight: float) -> float:
        return 1.0 if parameters["factor"] <= 1 else 0.1 * weight * math.log(parameters["factor"]) + 1.0

    if parameters.get("mscale") and parameters.get("mscale_all_dim"):
        return mscale(parameters["mscale"]) / mscale(parameters["mscale_all_dim"])
    return mscale(1.0)


ROPE_TYPES: dict[str, tuple[Callable[[int, Mapping[str, Any]], tuple[Tensor, float]], tuple[str, ...]]] = {
    "default": (default_frequencies, ()),
    "linear": (linear_frequencies, ("factor",)),
    "llama3": (llama3_frequencies, ("factor", "low_freq_factor", "high_freq_factor")),
    "yarn": (yarn_frequencies, ("factor",)),
}
"""rope_type -> (inverse frequencies [head_dim / 2] and the factor on cos and sin, the numbers that it needs)."""


YARN_OPTIONS = ("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim")
"""Numbers that a YaRN config may leave out; 0 is as good as left out, but for attention_factor."""


def checked_rope_parameters(fields: Mapping[str, Any], head_dim: int, max_positions: int) -> dict[str, Any]:
    """config.json's rotary parameters in one form, whichever of its three spellings they have.

    transformers 5 writes `rope_parameters`; earlier versions `rope_theta` beside `rope_scaling`, whose type is named
    rope_type or, earlier still, type.

    Raises:
        ModelError: an unknown type, a number that it needs and does not have, or an odd head_dim.
    """
    given = fields.get("rope_scaling") or fields.get("rope_parameters") or {}
    if not isinstance(given, Mapping) or any(isinstance(value, Mapping) for value in given.values()):
        raise ModelError(f"config.json must give one set of rotary parameters for all layers, got {given!r}.")
    parameters = dict(given)
    rope_type = parameters["rope_type"] = parameters.get("rope_type", parameters.pop("type", None)) or "default"
    if not isinstance(rope_type, str) or rope_type not in ROPE_TYPES:
        raise ModelError(f"rope_type {rope_type!r} is unknown: choose a model with one of {', '.join(ROPE_TYPES)}.")
    if head_dim % 2:
        raise ModelError(f"config.json: rotary embeddings pair up channels, so head_dim must be even, got {head_dim}.")
    parameters.setdefault("rope_theta", fields.get("rope_theta", DEFAULT_THETA))
    partial = parameters.get("partial_rotary_factor", fields.get("partial_rotary_factor", 1.0))
    if partial != 1.0:
        raise ModelError(f"partial_rotary_factor {partial} is not supported: choose a model that rotates whole heads.")
    # The top-level field, where it exists, outranks the one inside, as in transformers.
    inner = parameters.get("original_max_position_embeddings") or max_positions
    parameters["original_max_position_embeddings"] = fields.get("original_max_position_embeddings", inner)
    needed = ("rope_theta", "original_max_position_embeddings", *ROPE_TYPES[rope_type][1])
    optional = [name for name in YARN_OPTIONS if rope_type == "yarn" and parameters.get(name)]
    for name in (*needed, *optional):
        value = parameters.get(name)
        # Not `value <= 0`: Python's JSON reads NaN and Infinity, too.
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise ModelError(f"config.json must give {name} above 0 for rope_type {rope_type!r}, got {value!r}.")
    if rope_type == "llama3" and parameters["low_freq_factor"] >= parameters["high_freq_factor"]:
        raise ModelError("config.json must give a high_freq_factor above low_freq_factor for rope_type 'llama3'.")
    try:
        frequencies, factor = rope_frequencies(head_dim, parameters)
        is_usable = bool(frequencies.isfinite().all()) and math.isfinite(factor)
    except (ArithmeticError, ValueError, RuntimeError):  # YaRN divides by the logarithm of rope_theta, which is 0 for 1
        is_usable = False
    if not is_usable:
        numbers = {name: value for name, value in parameters.items() if name != "rope_type"}
        raise ModelError(
            f"config.json's rotary parameters give no frequencies for rope_type {rope_type!r}: "
            f"correct {str(numbers)[:300]}."
        )
    return parameters


def rope_frequencies(head_dim: int, parameters: Mapping[str, Any]) -> tuple[Tensor, float]:
    """Inverse frequencies [head_dim / 2] in float32, and the factor on cos and sin."""
    function, _ = ROPE_TYPES[parameters["rope_type"]]
    return function(head_dim, parameters)


class RotaryEmbedding(nn.Module):
    """cos and sin of a step's positions: computed once a step, shared by all layers.

    There is no table of all positions: for one step the angles take microseconds, and a table for a context of a
    million tokens would take a gigabyte.
    """

    inv_freq: Tensor
    sin_factor: Tensor

    def __init__(self, head_dim: int, parameters: Mapping[str, Any]) -> None:
        super().__init__()
        frequencies, self.attention_factor = rope_frequencies(head_dim, parameters)
        # Twice over, for the two halves of a head; the sign of apply_rope's first half is in the second buffer.
        self.register_buffer("inv_freq", torch.cat((frequencies, frequencies)), persistent=False)
        sign = torch.cat((-torch.ones_like(frequencies), torch.ones_like(frequencies)))
        self.register_buffer("sin_factor", sign * self.attention_factor, persistent=False)

    def forward(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """For positions [num_tokens]: cos and signed sin, [num_tokens, 1, head_dim] each.

        Angles are taken in float32 whatever `dtype` is: bfloat16 cannot tell position 256 from 257.
        """
        angles = (positions[:, None].float() * self.inv_freq)[:, None]
        return (angles.cos() * self.attention_factor).to(dtype), (angles.sin() * self.sin_factor).to(dtype)
