"""Operation counts against brute force over real masks, against hooks, and against PyTorch's own FLOP counter."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pagedlab.basics import counters, masks
from pagedlab.basics.counters import Count, Pass, cached_count, cached_passes, naive_count, naive_passes
from pagedlab.basics.generation import generate_cached, generate_naive
from pagedlab.errors import BackendError

few = settings(max_examples=40, deadline=None, derandomize=True)
lengths = {"prompt": st.integers(1, 30), "new": st.integers(0, 30)}


@few
@given(new=st.integers(1, 20), past=st.integers(0, 20))
def test_pairs_of_a_pass_are_the_cells_of_its_mask(new, past):
    mask = masks.chunk(past, new)
    assert Pass(new, past).square_pairs == mask.numel()
    assert Pass(new, past).causal_pairs == mask.sum()


@few
@given(**lengths)
def test_closed_forms_are_the_sums_over_passes(prompt, new):
    assert naive_count(prompt, new) == Count.of(naive_passes(prompt, new))
    assert cached_count(prompt, new) == Count.of(cached_passes(prompt, new))


@few
@given(**lengths)
def test_passes_are_what_generation_runs(prompt, new):
    seen = []

    class Result:
        past_key_values = "cache"

        def __init__(self, rows):
            self.logits = torch.zeros(1, rows, 3)

    def model(input_ids, past_key_values=None, use_cache=False):
        seen.append(input_ids.shape[1])
        return Result(input_ids.shape[1])

    generate_naive(model, [1] * prompt, new)
    assert seen == [one.new for one in naive_passes(prompt, new)]
    seen.clear()
    generate_cached(model, [1] * prompt, new)
    assert seen == [one.new for one in cached_passes(prompt, new)]


@few
@given(n=st.integers(1, 400))
def test_from_a_prompt_of_one_the_ratios_are_simple_fractions(n):
    ratios = naive_count(1, n) / cached_count(1, n)
    assert ratios.linear == pytest.approx((n + 1) / 2)
    assert ratios.square == pytest.approx((2 * n + 1) / 3)
    assert ratios.causal == pytest.approx((n + 2) / 3)


def test_a_thousand_tokens():
    naive, cached = naive_count(1, 1000), cached_count(1, 1000)
    assert naive == Count(500_500, sum(k * k for k in range(1, 1001)), sum(sum(range(k + 1)) for k in range(1, 1001)))
    assert (naive / cached).linear == 500.5
    assert (naive / cached).square == 667.0
    assert (naive / cached).causal == 334.0


@few
@given(prompt=st.integers(1, 30), new=st.integers(1, 30))
def test_the_cache_saves_nothing_on_the_first_token(prompt, new):
    assert naive_count(prompt, 1) == cached_count(prompt, 1)
    wasted = naive_count(prompt, new).rows - cached_count(prompt, new).rows
    assert wasted == sum(range(prompt, prompt + new - 1))


# --- measured on models ---


@pytest.fixture(scope="module")
def llama():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=12,
        max_position_embeddings=128,
        attn_implementation="eager",
    )
    return transformers.LlamaForCausalLM(config).eval()


@pytest.mark.parametrize(("prompt", "new"), [(1, 1), (1, 9), (7, 5), (12, 1)])
@pytest.mark.parametrize("kind", ["naive", "cached"])
def test_flops_are_those_that_pytorch_counts(llama, kind, prompt, new):
    generate, count = {"naive": (generate_naive, naive_count), "cached": (generate_cached, cached_count)}[kind]
    measured = counters.measure_flops(lambda: generate(llama, range(prompt), new))
    costs = counters.unit_costs(llama)
    assert measured.linear == costs.linear_flops(count(prompt, new))
    assert measured.attention == costs.attention_flops(count(prompt, new))


def test_rows_are_counted_by_a_hook_that_goes_away_again(llama):
    projection = llama.model.layers[1].self_attn.k_proj
    with counters.rows_through(projection) as rows:
        generate_naive(llama, [3, 4], 3)
        assert rows == [2, 3, 4]
        generate_cached(llama, [3, 4], 3)
    assert rows == [2, 3, 4, 2, 1, 1]
    generate_naive(llama, [3, 4], 3)
    assert len(rows) == 6
    with pytest.raises(RuntimeError), counters.rows_through(projection):
        raise RuntimeError
    assert not projection._forward_pre_hooks


def test_attention_in_a_fused_kernel_is_refused_rather_than_counted_as_nothing(llama):
    llama.set_attn_implementation("sdpa")
    try:
        with torch.inference_mode(), pytest.raises(BackendError, match="eager"):
            counters.measure_flops(lambda: llama(torch.zeros(1, 5, dtype=torch.long)))
    finally:
        llama.set_attn_implementation("eager")
    assert counters.measure_flops(lambda: None) == counters.MeasuredFlops(0, 0)
