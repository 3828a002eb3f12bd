"""Rotary embeddings: all four kinds of frequencies against transformers, the rotation against complex numbers."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from tiny_models import ROPE_PARAMETERS
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from pagedlab.errors import ModelError
from pagedlab.model_authoring.models.ops import apply_rope
from pagedlab.model_authoring.models.rope import (
    ROPE_TYPES,
    RotaryEmbedding,
    checked_rope_parameters,
    default_frequencies,
    rope_frequencies,
)

SETTINGS = settings(derandomize=True, deadline=None, max_examples=60)


def oracle(parameters: dict, head_dim: int, max_positions: int = 4096) -> LlamaRotaryEmbedding:
    config = LlamaConfig(
        head_dim=head_dim,
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        max_position_embeddings=max_positions,
        rope_parameters=dict(parameters),
    )
    return LlamaRotaryEmbedding(config)


@st.composite
def stretched(draw: st.DrawFn) -> dict:
    rope_type = draw(st.sampled_from(sorted(ROPE_TYPES)))
    parameters: dict = {"rope_type": rope_type, "rope_theta": draw(st.sampled_from([100.0, 10000.0, 500000.0, 1e6]))}
    if rope_type != "default":
        parameters["factor"] = draw(st.sampled_from([1.0, 1.5, 4.0, 32.0]))
    if rope_type in ("llama3", "yarn"):
        parameters["original_max_position_embeddings"] = draw(st.sampled_from([32, 2048, 32768]))
    if rope_type == "llama3":
        parameters["low_freq_factor"] = draw(st.sampled_from([0.5, 1.0, 2.0]))
        parameters["high_freq_factor"] = parameters["low_freq_factor"] + draw(st.sampled_from([0.5, 3.0]))
    if rope_type == "yarn":
        optional = {
            "beta_fast": st.sampled_from([8, 32]),
            "beta_slow": st.sampled_from([1, 2]),
            "truncate": st.booleans(),
            "attention_factor": st.sampled_from([0.7, 1.3]),
            "mscale": st.just(0.7),
            "mscale_all_dim": st.just(1.2),
        }
        for name, values in optional.items():
            if draw(st.booleans()):
                parameters[name] = draw(values)
    return parameters


@SETTINGS
@given(parameters=stretched(), head_dim=st.sampled_from([2, 6, 16, 64, 80, 128]))
def test_frequencies_of_every_kind_are_those_of_transformers(parameters: dict, head_dim: int) -> None:
    expected = oracle(parameters, head_dim)
    checked = checked_rope_parameters({"rope_parameters": parameters}, head_dim, 4096)
    frequencies, attention_factor = rope_frequencies(head_dim, checked)
    torch.testing.assert_close(frequencies, expected.inv_freq, rtol=3e-6, atol=0)
    assert attention_factor == pytest.approx(expected.attention_scaling, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rope_type", ROPE_PARAMETERS)
def test_cos_and_sin_are_those_of_transformers_bit_for_bit(rope_type: str, dtype: torch.dtype) -> None:
    parameters = checked_rope_parameters({"rope_parameters": ROPE_PARAMETERS[rope_type]}, 16, 512)
    positions = torch.tensor([0, 1, 7, 255, 256, 257, 511, 4000])
    cos, sin = RotaryEmbedding(16, parameters)(positions, dtype)
    rotary = oracle(ROPE_PARAMETERS[rope_type], 16, 512)
    # Frequencies may differ in the last bit (another order of the same operations): only angles are under test here.
    rotary.inv_freq.copy_(rope_frequencies(16, parameters)[0])
    expected_cos, expected_sin = rotary(torch.zeros(1, dtype=dtype), positions[None])
    assert torch.equal(cos[:, 0], expected_cos[0])
    assert torch.equal(sin[:, 0, 8:], expected_sin[0, :, 8:])
    assert torch.equal(sin[:, 0, :8], -expected_sin[0, :, :8])


@SETTINGS
@given(
    num_tokens=st.integers(1, 9),
    heads=st.integers(1, 5),
    head_dim=st.sampled_from([2, 6, 16, 80]),
    start=st.integers(0, 3000),
    seed=st.integers(0, 99),
)
def test_rotation_is_multiplication_by_a_complex_number_of_size_one(
    num_tokens: int, heads: int, head_dim: int, start: int, seed: int
) -> None:
    x = torch.randn(num_tokens, heads, head_dim, generator=torch.Generator().manual_seed(seed))
    parameters = {"rope_type": "default", "rope_theta": 10000.0}
    positions = torch.arange(start, start + num_tokens)
    ours = apply_rope(x, *RotaryEmbedding(head_dim, parameters)(positions, torch.float32))

    real, imaginary = x.double().chunk(2, dim=-1)
    angles = positions[:, None].double() * default_frequencies(head_dim, parameters)[0].double()
    turned = torch.complex(real, imaginary) * torch.polar(torch.ones_like(angles), angles)[:, None]
    # float32 angles near 3000 are good to about 2e-4 / 2.
    torch.testing.assert_close(ours.double(), torch.cat((turned.real, turned.imag), dim=-1), rtol=0, atol=1e-3)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 4e-2)])
def test_rotated_heads_are_those_of_transformers(dtype: torch.dtype, tolerance: float) -> None:
    x = torch.randn(20, 5, 16, generator=torch.Generator().manual_seed(1)).to(dtype)
    rotary = oracle(ROPE_PARAMETERS["yarn"], 16, 512)
    cos, sin = rotary(x, torch.arange(20)[None])
    expected = apply_rotary_pos_emb(x.transpose(0, 1)[None], x.transpose(0, 1)[None], cos, sin)[0][0].transpose(0, 1)
    parameters = checked_rope_parameters({"rope_parameters": ROPE_PARAMETERS["yarn"]}, 16, 512)
    ours = apply_rope(x, *RotaryEmbedding(16, parameters)(torch.arange(20), dtype))
    assert ours.dtype == dtype
    torch.testing.assert_close(ours, expected, rtol=tolerance, atol=tolerance)


def test_a_score_depends_on_the_distance_of_two_tokens_alone() -> None:
    generator = torch.Generator().manual_seed(2)
    query, key = torch.randn(2, 1, 1, 64, generator=generator)
    rotary = RotaryEmbedding(64, {"rope_type": "default", "rope_theta": 10000.0})

    def score(query_position: int, key_position: int) -> float:
        q = apply_rope(query, *rotary(torch.tensor([query_position]), torch.float32))
        k = apply_rope(key, *rotary(torch.tensor([key_position]), torch.float32))
        return float((q * k).sum())

    assert score(12, 5) == pytest.approx(score(107, 100), abs=1e-3)
    assert score(12, 5) != pytest.approx(score(13, 5), abs=1e-2)


def test_neighbouring_positions_stay_apart_in_bfloat16() -> None:
    cos, _ = RotaryEmbedding(16, {"rope_type": "default", "rope_theta": 10000.0})(
        torch.tensor([256, 257]), torch.bfloat16
    )
    assert not torch.equal(cos[0], cos[1])


def test_yarn_sharpens_attention_by_the_published_factor() -> None:
    # Peng et al., arXiv 2309.00071, section 3.4: sqrt(1/t) = 0.1 ln(s) + 1.
    parameters = checked_rope_parameters({"rope_parameters": {"rope_type": "yarn", "factor": 16.0}}, 64, 4096)
    assert rope_frequencies(64, parameters)[1] == pytest.approx(1.2772588722)


OLD_SPELLINGS = [
    {"rope_theta": 500000.0},
    {"rope_theta": 5000.0, "rope_scaling": None},
    {"rope_theta": 5000.0, "rope_scaling": {"type": "linear", "factor": 2.0}},
    {"rope_theta": 5000.0, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    {"rope_theta": 1e6, "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}},
    {"rope_theta": 1e6, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}, "original_max_position_embeddings": 64},
    {},
]


@pytest.mark.parametrize("fields", OLD_SPELLINGS)
def test_older_spellings_mean_what_transformers_reads_from_them(fields: dict) -> None:
    read = {key: value for key, value in fields.items() if value is not None}
    ours = rope_frequencies(16, checked_rope_parameters(read, 16, 512))
    config = LlamaConfig(hidden_size=64, num_attention_heads=4, head_dim=16, max_position_embeddings=512, **fields)
    expected = LlamaRotaryEmbedding(config)
    torch.testing.assert_close(ours[0], expected.inv_freq, rtol=3e-6, atol=0)
    assert ours[1] == pytest.approx(expected.attention_scaling)


REFUSALS = [
    ({"rope_scaling": {"type": "longrope", "factor": 2.0}}, 16, "'longrope'.*default, linear, llama3, yarn"),
    ({"rope_scaling": {"rope_type": "linear"}}, 16, "factor above 0 .* got None"),
    ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}}, 16, "high_freq_factor"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": -1}}, 16, "factor above 0 .* got -1"),
    ({"rope_theta": "large"}, 16, "rope_theta above 0 .* got 'large'"),
    ({"rope_theta": math.nan}, 16, "rope_theta above 0 .* got nan"),
    ({"rope_scaling": {"type": "linear", "factor": math.inf}}, 16, "factor above 0 .* got inf"),
    ({"rope_scaling": "linear"}, 16, "one set of rotary parameters for all layers, got 'linear'"),
    ({"rope_scaling": {"rope_type": ["linear"]}}, 16, "rope_type .'linear'. is unknown"),
    ({"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0}}}, 16, "one set .* for all layers"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "beta_fast": "32"}}, 16, "beta_fast above 0 .* got '32'"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "mscale": -1.0}}, 16, "mscale above 0 .* got -1"),
    (
        {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0}},
        16,
        "high_freq_factor above low_freq_factor",
    ),
    ({}, 15, "head_dim must be even, got 15"),
    ({"partial_rotary_factor": 0.5}, 16, "partial_rotary_factor 0.5"),
]


@pytest.mark.parametrize(("fields", "head_dim", "message"), REFUSALS)
def test_a_rope_that_cannot_be_computed_is_refused_with_a_reason(fields: dict, head_dim: int, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        checked_rope_parameters(fields, head_dim, 512)
