"""The fused elementwise Triton kernels against the same formulas in float64, on a GPU or interpreted."""

from __future__ import annotations

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")
from pagedlab.runtime.kernels import INTERPRETED
from pagedlab.runtime.kernels.activation import silu_mul
from pagedlab.runtime.kernels.rms_norm import add_rms_norm, rms_norm
from pagedlab.runtime.kernels.rope import apply_rope, rope_cache_write

if INTERPRETED:
    DEVICE, DTYPES = "cpu", [torch.float32, torch.float16]
elif torch.cuda.is_available():
    DEVICE, DTYPES = "cuda", [torch.float32, torch.float16, torch.bfloat16]
else:
    pytest.skip("needs a GPU, or TRITON_INTERPRET=1 (see test_triton_interpreter.py)", allow_module_level=True)

TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 6e-3}
NO_SHRINKING = (Phase.explicit, Phase.generate)  # interpreted, it takes minutes, and the examples are small
quick = settings(derandomize=True, deadline=None, max_examples=12, database=None, phases=NO_SHRINKING)


def assert_close(out: torch.Tensor, expected: torch.Tensor) -> None:
    error = (out.double().cpu() - expected).norm() / expected.norm()
    assert error < TOLERANCE[out.dtype], f"relative error {error:.2e}"


@quick
@given(tokens=st.integers(1, 4), hidden=st.sampled_from([16, 576, 1000]), dtype=st.sampled_from(DTYPES),
       seed=st.integers(0, 999))  # fmt: skip
def test_rms_norm_and_its_fusion_with_the_residual_follow_the_formula(tokens, hidden, dtype, seed):
    rng = torch.Generator().manual_seed(seed)
    x, residual = (torch.randn(2, tokens, hidden, generator=rng) * 3).to(dtype)
    weight = torch.randn(hidden, generator=rng).to(dtype)

    def formula(h: torch.Tensor) -> torch.Tensor:
        return h / (h.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()

    assert_close(rms_norm(x.to(DEVICE), weight.to(DEVICE), 1e-5), formula(x.double()))
    summed = x + residual
    kept = residual.to(DEVICE)
    assert_close(add_rms_norm(x.to(DEVICE), kept, weight.to(DEVICE), 1e-5), formula(summed.double()))
    assert torch.equal(kept.cpu(), summed)


@quick
@given(tokens=st.integers(1, 4), width=st.sampled_from([16, 100, 1536]), dtype=st.sampled_from(DTYPES),
       seed=st.integers(0, 999))  # fmt: skip
def test_silu_mul_follows_the_formula(tokens, width, dtype, seed):
    gate_up = (torch.randn(tokens, 2 * width, generator=torch.Generator().manual_seed(seed)) * 4).to(dtype)
    gate, up = gate_up.double().chunk(2, -1)
    assert_close(silu_mul(gate_up.to(DEVICE)), gate * torch.sigmoid(gate) * up)


def rotated(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Each pair (x[i], x[i + half]) as one complex number, turned by e**(i angle)."""
    half = angles.shape[-1]
    turned = torch.complex(x[..., :half], x[..., half : 2 * half]) * torch.exp(1j * angles)[:, None]
    return torch.cat([turned.real, turned.imag, x[..., 2 * half :]], -1)


@quick
@given(tokens=st.integers(1, 5), heads=st.sampled_from([(1, 1), (6, 2), (9, 3)]),
       dims=st.sampled_from([(64, 64), (80, 80), (80, 32), (128, 64)]), dtype=st.sampled_from(DTYPES),
       seed=st.integers(0, 999))  # fmt: skip
def test_rope_turns_queries_in_place_and_keys_into_their_slots(tokens, heads, dims, dtype, seed):
    (num_heads, num_kv_heads), (head_dim, rotary_dim) = heads, dims
    rng = torch.Generator().manual_seed(seed)
    fused = torch.randn(tokens, (num_heads + 2 * num_kv_heads) * head_dim, generator=rng).to(dtype)
    on_device = fused.to(DEVICE)

    def split(rows: torch.Tensor) -> list[torch.Tensor]:
        sizes = [num_heads * head_dim, num_kv_heads * head_dim, num_kv_heads * head_dim]
        return [part.unflatten(1, (-1, head_dim)) for part in rows.split(sizes, dim=1)]

    inv_freq = 10000.0 ** (-torch.arange(0, rotary_dim, 2, dtype=torch.float64) / rotary_dim)
    table = torch.arange(50, dtype=torch.float64)[:, None] * inv_freq
    positions = torch.randint(0, 50, (tokens,), generator=rng)
    slots = torch.randperm(3 * 16, generator=rng)[:tokens]
    cache = torch.randn(2, 3, 16, num_kv_heads, head_dim, generator=rng).to(dtype)
    query, key, value = split(fused)
    expected = cache.double()
    expected.view(2, 48, num_kv_heads, head_dim)[0, slots] = rotated(key.double(), table[positions])
    expected.view(2, 48, num_kv_heads, head_dim)[1, slots] = value.double()
    expected_query = rotated(query.double(), table[positions])

    written = cache.to(DEVICE)
    query_out, key_in, value_in = split(on_device)
    cos, sin = table.cos().float().to(DEVICE), table.sin().float().to(DEVICE)
    rope_cache_write(query_out, key_in, value_in, cos, sin, positions.to(DEVICE), written, slots.to(DEVICE))
    assert_close(written, expected)
    assert_close(query_out, expected_query)
    untouched = torch.ones(48, dtype=torch.bool).index_fill(0, slots, False)
    before = cache.view(2, 48, num_kv_heads, head_dim)[:, untouched]
    assert torch.equal(written.cpu().view(2, 48, num_kv_heads, head_dim)[:, untouched], before)
    assert torch.equal(key_in.cpu(), key)


@quick
@given(tokens=st.integers(1, 4), heads=st.sampled_from([1, 3, 12]), head_dim=st.sampled_from([16, 80, 128]),
       dtype=st.sampled_from(DTYPES), seed=st.integers(0, 999))  # fmt: skip
def test_rope_alone_turns_strided_heads_by_their_angle(tokens, heads, head_dim, dtype, seed):
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, heads + 2, head_dim, generator=rng).to(dtype)
    angles = torch.rand(tokens, 1, head_dim // 2, generator=rng, dtype=torch.float64) * 6
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    tables = torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)  # as rope.RotaryEmbedding makes them
    out = apply_rope(x.to(DEVICE)[:, :heads], *(table.to(DEVICE) for table in tables))
    pairs = torch.complex(*x[:, :heads].double().chunk(2, -1)) * torch.complex(cos.double(), sin.double())
    assert_close(out, torch.cat((pairs.real, pairs.imag), -1))
