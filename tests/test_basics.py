"""First principles against PyTorch's SDPA, transformers, sums by hand and published figures."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from pagedlab.basics import masks
from pagedlab.basics.attention import OnlineSoftmax, attention, attention_scores, blockwise_attention, repeat_kv
from pagedlab.basics.generation import generate_cached, generate_naive
from pagedlab.basics.kv_size import kv_layout, layout_of, mla_layout
from pagedlab.errors import CourseError

few = settings(max_examples=40, deadline=None, derandomize=True)


# --- masks ---


def table(rows: int, columns: int, may_attend) -> list[list[bool]]:
    return [[may_attend(q, k) for k in range(columns)] for q in range(rows)]


@few
@given(n=st.integers(1, 12))
def test_causal_lets_a_token_see_itself_and_the_past(n):
    assert masks.causal(n).tolist() == table(n, n, lambda q, k: k <= q)


@few
@given(start=st.integers(0, 12), n=st.integers(1, 8))
def test_a_chunk_is_rows_of_the_whole_causal_mask(start, n):
    assert torch.equal(masks.chunk(start, n), masks.causal(start + n)[start:])


@few
@given(start=st.integers(0, 12), n=st.integers(1, 8), window=st.integers(1, 15))
def test_a_sliding_window_keeps_the_last_keys_of_the_causal_mask(start, n, window):
    mask = masks.sliding_window(start, n, window)
    assert mask.tolist() == table(n, start + n, lambda q, k: start + q - window < k <= start + q)
    assert mask.sum(1).tolist() == [min(window, start + q + 1) for q in range(n)]


@few
@given(lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4), extra=st.integers(0, 3))
def test_padding_hides_what_lies_beyond_each_length(lengths, extra):
    width = max(lengths) + extra
    mask = masks.padding(lengths, width)
    assert mask.shape == (len(lengths), 1, 1, width)
    assert mask[:, 0, 0].tolist() == table(len(lengths), width, lambda row, k: k < lengths[row])
    assert masks.padding(lengths).shape[-1] == max(lengths)


def test_a_block_diagonal_mask_keeps_sequences_apart():
    owner_of_query, owner_of_key = [0, 0, 1, 2, 2], [0, 0, 0, 1, 2, 2]
    mask = masks.block_diagonal([2, 1, 2], [3, 1, 2])
    assert mask.tolist() == table(5, 6, lambda q, k: owner_of_query[q] == owner_of_key[k])


@few
@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_packed_sequences_attend_as_if_each_were_alone(lengths, seed):
    torch.manual_seed(seed)
    n = sum(lengths)
    query, key, value = torch.randn(n, 4, 8), torch.randn(n, 2, 8), torch.randn(n, 2, 8)
    packed = attention(query, key, value, masks.block_diagonal(lengths) & masks.causal(n))
    alone = [
        attention(q, k, v, masks.causal(len(q)))
        for q, k, v in zip(query.split(lengths), key.split(lengths), value.split(lengths), strict=True)
    ]
    torch.testing.assert_close(packed, torch.cat(alone))


@few
@given(n=st.integers(1, 8), start=st.integers(0, 9), window=st.integers(1, 12))
def test_every_named_mask_is_a_rule_on_two_positions(n, start, window):
    rule = masks.from_rule
    assert torch.equal(masks.causal(n), rule(lambda q, k: k <= q, n, n))
    assert torch.equal(masks.chunk(start, n), rule(lambda q, k: k <= q, n, start + n, start))
    assert torch.equal(
        masks.sliding_window(start, n, window), rule(lambda q, k: (k <= q) & (q - k < window), n, start + n, start)
    )
    owner = torch.tensor([0] * n + [1] * start)
    assert torch.equal(masks.block_diagonal([n, start]), rule(lambda q, k: owner[q] == owner[k], n + start, n + start))
    assert torch.equal(masks.padding([n], n + start)[0, 0], rule(lambda q, k: k < n, 1, n + start))


@few
@given(n=st.integers(1, 8), m=st.integers(1, 8), seed=st.integers(0, 99))
def test_a_rule_asks_flexattentions_mask_for_each_pair(n, m, seed):
    """Oracle: create_mask of torch.nn.attention.flex_attention, which calls its rule for one pair at a time."""
    from torch.nn.attention.flex_attention import create_mask

    table = torch.rand(n, m, generator=torch.Generator().manual_seed(seed)) < 0.5
    expected = create_mask(lambda batch, head, q, k: table[q, k], None, None, n, m, device="cpu")[0, 0]
    assert torch.equal(masks.from_rule(lambda q, k: table[q, k], n, m), expected)


@pytest.mark.parametrize(
    ("rule", "complaint"),
    [(lambda q, k: q - k, "True or False"), (lambda q, k: torch.ones(2, 2, dtype=torch.bool), "one answer a pair")],
)
def test_a_rule_that_is_no_mask_is_refused_with_what_to_change(rule, complaint):
    with pytest.raises(CourseError, match=complaint):
        masks.from_rule(rule, 3, 4)


@few
@given(n=st.integers(1, 8), m=st.integers(1, 8), seed=st.integers(0, 99))
def test_empty_rows_are_those_whose_attention_is_nan(n, m, seed):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(n, m, generator=generator) < 0.2
    query, key = torch.randn(n, 1, 4, generator=generator), torch.randn(m, 1, 4, generator=generator)
    is_nan = attention(query, key, key, mask).isnan().all(-1).all(-1)
    assert masks.empty_rows(mask) == [row for row in range(n) if is_nan[row]]


# --- dense attention ---


@few
@given(
    num_queries=st.integers(1, 9),
    context=st.integers(0, 20),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 4),
    batch=st.sampled_from([(), (2,), (2, 3)]),
    scale=st.sampled_from([None, 0.3]),
    seed=st.integers(0, 99),
)
def test_dense_and_blockwise_attention_equal_pytorchs_sdpa(num_queries, context, kv_heads, group, batch, scale, seed):
    torch.manual_seed(seed)
    num_keys = context + num_queries
    query = torch.randn(*batch, num_queries, kv_heads * group, 8, dtype=torch.float64)
    key, value = torch.randn(2, *batch, num_keys, kv_heads, 8, dtype=torch.float64)
    mask = (torch.rand(num_queries, num_keys) < 0.7) & masks.chunk(context, num_queries)
    mask[:, 0] = True
    expected = scaled_dot_product_attention(
        query.transpose(-3, -2),
        repeat_kv(key, kv_heads * group).transpose(-3, -2),
        repeat_kv(value, kv_heads * group).transpose(-3, -2),
        mask,
        scale=scale,
    ).transpose(-3, -2)
    torch.testing.assert_close(attention(query, key, value, mask, scale), expected)
    for block_size in (1, 4, 100):
        torch.testing.assert_close(blockwise_attention(query, key, value, mask, scale, block_size), expected)


def test_query_heads_of_a_group_share_a_kv_head():
    x = torch.arange(3.0).view(3, 1)
    assert repeat_kv(x, 9).flatten().tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_a_row_that_may_attend_to_nothing_is_nan_and_harms_no_other_row():
    query, key, value = torch.randn(3, 3, 1, 8)
    mask = masks.causal(3)
    mask[1] = False
    output = attention(query, key, value, mask)
    assert output[1].isnan().all()
    assert not output[[0, 2]].isnan().any()
    assert blockwise_attention(query, key, value, mask)[1].isnan().all()


def test_sixteen_bit_inputs_are_computed_in_float32_and_rounded_once():
    query, key, value = torch.randn(3, 50, 4, 16).to(torch.bfloat16)
    exact = attention(query.double(), key.double(), value.double())
    output = attention(query, key, value)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.double(), exact, rtol=2**-8, atol=1e-6)


# --- online softmax ---


def test_online_softmax_rescales_the_accumulated_output():
    """Scores 0 then ln 3 with values 1 then 0: weights 1/4 and 3/4, so 0.25. Without the rescale it would be 0.75."""
    state = OnlineSoftmax.empty((), 1, like=torch.zeros(()))
    for score, value in ((0.0, 1.0), (math.log(3), 0.0)):
        state = state.update(torch.tensor([score]), torch.tensor([[value]]))
    assert state.result.item() == pytest.approx(0.25)


@few
@given(
    sizes=st.lists(st.integers(1, 7), min_size=1, max_size=6),
    spread=st.sampled_from([1.0, 1e4]),
    seed=st.integers(0, 99),
)
def test_parts_computed_apart_and_merged_equal_one_softmax(sizes, spread, seed):
    torch.manual_seed(seed)
    scores = torch.randn(3, sum(sizes), dtype=torch.float64) * spread
    values = torch.randn(sum(sizes), 5, dtype=torch.float64)
    empty = OnlineSoftmax.empty((3,), 5, like=values)
    merged = empty
    for score, value in zip(scores.split(sizes, 1), values.split(sizes), strict=True):
        merged = empty.update(score, value).merge(merged)
    torch.testing.assert_close(merged.result, scores.softmax(-1) @ values)


def test_a_first_block_that_is_wholly_masked_leaves_no_trace():
    query, key, value = torch.randn(3, 40, 2, 8)
    mask = masks.sliding_window(0, 40, 5)
    assert not mask[-1, :16].any()
    torch.testing.assert_close(
        blockwise_attention(query, key, value, mask, block_size=16), attention(query, key, value, mask)
    )


def test_scores_have_one_row_a_query_and_one_column_a_key():
    query, key = torch.randn(2, 6, 8), torch.randn(7, 3, 8)
    scores = attention_scores(query, key)
    assert scores.shape == (6, 2, 7)
    assert scores[5, 1, 4].item() == pytest.approx((query[1, 5] @ key[4, 2]).item() / math.sqrt(8), rel=1e-5, abs=1e-6)


# --- generation ---


@pytest.fixture(scope="module")
def llama():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.6,
        eos_token_id=None,
        bos_token_id=None,
        pad_token_id=None,
    )
    return transformers.LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("prompt", [[5], [3, 1, 4, 1, 5, 9, 2, 6]])
def test_cached_and_naive_generation_give_transformers_tokens(llama, prompt):
    ids = torch.tensor([prompt])
    expected = llama.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=24)
    expected = expected[0, len(prompt) :].tolist()
    assert len(set(expected)) > 4, "a constant output would prove little"
    assert generate_naive(llama, prompt, 24) == expected
    assert generate_cached(llama, prompt, 24) == expected


@pytest.mark.parametrize("generate", [generate_naive, generate_cached])
def test_generation_ends_with_the_first_stop_token(llama, generate):
    tokens = generate(llama, [7, 8], 12)
    stop = tokens[4]
    assert generate(llama, [7, 8], 12, {stop}) == tokens[: tokens.index(stop) + 1]
    assert generate(llama, [7, 8], 0) == []


def test_the_cache_turns_a_growing_pass_into_one_row_a_token():
    rows = []

    def model(input_ids, past_key_values=None, use_cache=False):
        rows.append(input_ids.shape[1])
        return SimpleNamespace(logits=torch.zeros(1, input_ids.shape[1], 3), past_key_values="cache")

    generate_naive(model, [1, 2, 3], 4)
    assert rows == [3, 4, 5, 6]
    rows.clear()
    generate_cached(model, [1, 2, 3], 4)
    assert rows == [3, 1, 1, 1]


# --- KV size ---


@pytest.mark.parametrize(
    ("layout", "kind", "expected"),
    [
        (kv_layout(num_layers=126, num_heads=128, num_kv_heads=8, head_dim=128), "GQA", 516_096),
        (kv_layout(num_layers=80, num_heads=64, num_kv_heads=8, head_dim=128), "GQA", 327_680),
        (mla_layout(num_layers=61, kv_lora_rank=512, qk_rope_head_dim=64), "MLA", 70_272),
        (kv_layout(num_layers=40, num_heads=40, num_kv_heads=40, head_dim=128), "MHA", 819_200),
    ],
    ids=["Llama-3.1-405B", "Qwen2.5-72B", "DeepSeek-V3", "OPT-13B"],
)
def test_bytes_per_token_are_the_published_ones(layout, kind, expected):
    """The first three: Insights into DeepSeek-V3 (arXiv 2505.09343), table 1. OPT-13B: PagedAttention
    (arXiv 2309.06180), section 3, "800 KB"."""
    assert layout.kind == kind
    assert layout.bytes_per_token() == expected


def test_mla_is_larger_than_mqa_at_head_dim_128():
    mqa = kv_layout(1, num_heads=32, num_kv_heads=1, head_dim=128)
    assert mqa.kind == "MQA"
    assert mqa.elements_per_layer == 256
    assert mla_layout(1, 512, 64).elements_per_layer == 576


def test_a_config_is_read_with_its_defaults():
    smollm2 = {"num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 576}
    assert layout_of(smollm2) == kv_layout(30, 9, 3, 64)
    assert layout_of({**smollm2, "head_dim": 80}) == kv_layout(30, 9, 3, 80)
    assert layout_of({**smollm2, "num_key_value_heads": None}) == kv_layout(30, 9, 9, 64)
    latent = {**smollm2, "kv_lora_rank": 512, "qk_rope_head_dim": 64}
    assert layout_of(latent) == mla_layout(30, 512, 64)


def test_the_cache_that_transformers_builds_has_the_size_that_its_config_says(llama):
    cache = llama(torch.tensor([[1, 2, 3, 4, 5]]), use_cache=True).past_key_values
    stored = sum(x.numel() * x.element_size() for layer in cache.layers for x in (layer.keys, layer.values))
    layout = layout_of(llama.config.to_dict())
    assert stored == 5 * layout.bytes_per_token(bytes_per_element=4)
    assert layout.tokens_in(stored + 1, bytes_per_element=4) == 5
