"""The fused elementwise Triton kernels against the same formulas in float64, on a GPU or interpreted."""

from __future__ import annotations

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")
from pagedlab.errors import BackendError
from pagedlab.runtime.kernels import INTERPRETED
from pagedlab.runtime.kernels.activation import silu_mul
from pagedlab.runtime.kernels.rms_norm import add_rms_norm, rms_norm
from pagedlab.runtime.kernels.rope import rope_cache_write

if INTERPRETED:
    DEVICE, DTYPES = "cpu", [torch.float32, torch.float16]
elif torch.cuda.is_available():
    DEVICE, DTYPES = "cuda", [torch.float32, torch.float16, torch.bfloat16]
else:
    pytest.skip("needs a GPU, or TRITON_INTERPRET=1 (see test_triton_interpreter.py)", allow_module_level=True)

TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 6e-3}
NO_SHRINKING = (Phase.explicit, Phase.generate)  # interpreted, it takes minutes, and the examples are small
quick = settings(derandomize=True, deadline=None, max_examples=12, database=None, phases=NO_SHRINKING)


def test_views_of_a_wider_projection_give_what_their_copies_give():
    wide, weight = torch.randn(4, 96, device=DEVICE), torch.randn(32, device=DEVICE)
    view, residual = wide[:, 32:64], torch.randn(4, 32, device=DEVICE)
    gate, up = view.double().cpu().chunk(2, 1)
    assert_close(silu_mul(view), gate * gate.sigmoid() * up)
    assert_close(rms_norm(view, weight, 1e-6), norm(view, weight))
    expected = norm(residual.double() + view.double(), weight)
    assert_close(add_rms_norm(view, residual, weight, 1e-6), expected)
    with pytest.raises(BackendError, match="must be contiguous"):
        add_rms_norm(residual, view, weight, 1e-6)


def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    x = x.double().cpu()
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * weight.double().cpu()


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
    """Each pair (x[i], x[i + half]) as one complex number, turned by e**(i angle); angles [tokens, half]."""
    turned = torch.complex(*x.chunk(2, -1)) * torch.exp(1j * angles)[:, None]
    return torch.cat([turned.real, turned.imag], -1)


def normed(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight


@quick
@given(tokens=st.integers(1, 5), heads=st.sampled_from([(1, 1), (6, 2), (9, 3)]),
       head_dim=st.sampled_from([16, 64, 80, 96, 128]), norm=st.booleans(), dtype=st.sampled_from(DTYPES),
       seed=st.integers(0, 999))  # fmt: skip
def test_a_projection_is_normed_rotated_and_written_to_its_slots(tokens, heads, head_dim, norm, dtype, seed):
    num_heads, num_kv_heads = heads
    rng = torch.Generator().manual_seed(seed)
    fused = torch.randn(tokens, num_heads + 2 * num_kv_heads, head_dim, generator=rng).to(dtype)
    weights = torch.randn(2, head_dim, generator=rng).to(dtype)
    angles = torch.rand(tokens, head_dim // 2, generator=rng, dtype=torch.float64) * 6
    tables = torch.cat((angles.cos(), angles.cos()), -1), torch.cat((-angles.sin(), angles.sin()), -1)
    cos, sin = (table[:, None].to(dtype) for table in tables)  # as rope.RotaryEmbedding makes them
    angles = torch.atan2(sin[:, 0, head_dim // 2 :].double(), cos[:, 0, head_dim // 2 :].double())
    length = torch.hypot(sin.double(), cos.double())  # rounded, they lie off the unit circle
    slots = torch.randperm(3 * 16, generator=rng)[:tokens]
    cache = torch.randn(2, 3, 16, num_kv_heads, head_dim, generator=rng).to(dtype)

    query, key, value = fused.double().split((num_heads, num_kv_heads, num_kv_heads), dim=1)
    if norm:
        query, key = normed(query, weights[0].double()), normed(key, weights[1].double())
    expected = cache.double()
    expected.view(2, 48, num_kv_heads, head_dim)[0, slots] = rotated(key, angles) * length
    expected.view(2, 48, num_kv_heads, head_dim)[1, slots] = value

    written, rows = cache.to(DEVICE), fused.to(DEVICE)
    norms = (weights[0].to(DEVICE), weights[1].to(DEVICE)) if norm else None
    out = rope_cache_write(rows, cos.to(DEVICE), sin.to(DEVICE), written, slots.to(DEVICE), norms=norms, eps=1e-5)
    assert_close(written, expected)
    assert_close(out, rotated(query, angles) * length)
    untouched = torch.ones(48, dtype=torch.bool).index_fill(0, slots, False)
    before = cache.view(2, 48, num_kv_heads, head_dim)[:, untouched]
    assert torch.equal(written.cpu().view(2, 48, num_kv_heads, head_dim)[:, untouched], before)
    assert torch.equal(rows.cpu(), fused)
