"""MHA, GQA, MQA and MLA against transformers' attention with the same weights, and against each other."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pagedlab.basics.kv_size import kv_layout, mla_layout
from pagedlab.basics.variants import GroupedAttention, LatentAttention, rotate
from pagedlab.errors import ConfigError

few = settings(max_examples=30, deadline=None, derandomize=True)
HIDDEN = 24
KV_HEADS = {"MHA": 4, "GQA": 2, "MQA": 1}


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def make(kind: str, seed: int = 0) -> GroupedAttention | LatentAttention:
    torch.manual_seed(seed)
    if kind == "MLA":
        layer = LatentAttention(
            HIDDEN, num_heads=4, kv_lora_rank=10, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=6
        )
        torch.nn.init.uniform_(layer.kv_norm.weight, 0.5, 2.0)
        return layer.double()
    return GroupedAttention(HIDDEN, num_heads=4, num_kv_heads=KV_HEADS[kind], head_dim=8).double()


def in_pieces(call, hidden, sizes):
    cache, outputs = None, []
    for piece in hidden.split(sizes):
        output, cache = call(piece, cache)
        outputs.append(output)
    return torch.cat(outputs), cache


@few
@given(
    kind=st.sampled_from(["MHA", "GQA", "MQA", "MLA"]),
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=5),
    seed=st.integers(0, 99),
)
def test_in_pieces_with_a_cache_equals_the_whole_at_once(kind, sizes, seed):
    layer = make(kind, seed)
    hidden = torch.randn(sum(sizes), HIDDEN, dtype=torch.float64)
    whole, cache_of_whole = layer(hidden)
    output, cache = in_pieces(layer, hidden, sizes)
    torch.testing.assert_close(output, whole)
    torch.testing.assert_close(cache, cache_of_whole)
    assert cache.shape == (sum(sizes), layer.layout.elements_per_layer)


@few
@given(
    num_heads=st.integers(1, 5),
    rank=st.integers(1, 12),
    nope=st.integers(1, 9),
    half_rope=st.integers(1, 3),
    value=st.integers(1, 9),
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    seed=st.integers(0, 99),
)
def test_absorbed_mla_equals_its_plain_form(num_heads, rank, nope, half_rope, value, sizes, seed):
    torch.manual_seed(seed)
    layer = LatentAttention(HIDDEN, num_heads, rank, nope, 2 * half_rope, value).double()
    hidden = torch.randn(sum(sizes), HIDDEN, dtype=torch.float64)
    whole, _ = layer(hidden)
    output, cache = in_pieces(layer.absorbed, hidden, sizes)
    torch.testing.assert_close(output, whole)
    assert cache.shape[1] == rank + 2 * half_rope


def test_a_later_token_changes_no_earlier_row():
    for kind in ("MHA", "GQA", "MQA", "MLA"):
        layer, hidden = make(kind), torch.randn(9, HIDDEN, dtype=torch.float64)
        output, cache = layer(hidden)
        shorter, shorter_cache = layer(hidden[:6])
        torch.testing.assert_close(output[:6], shorter)
        torch.testing.assert_close(cache[:6], shorter_cache)


def test_kinds_and_what_they_keep():
    assert make("MHA").layout == kv_layout(1, 4, 4, 8)
    assert {kind: make(kind).layout.kind for kind in KV_HEADS} == {kind: kind for kind in KV_HEADS}
    assert make("MLA").layout == mla_layout(1, 10, 4)


def test_gqa_is_mha_whose_groups_have_equal_keys_and_values():
    """The same outputs as MHA with each KV head's weights written out for every query head: half the cache here."""
    gqa, mha = make("GQA"), make("MHA", seed=1)
    for name in ("q_proj", "o_proj"):
        getattr(mha, name).weight.copy_(getattr(gqa, name).weight)
    for name in ("k_proj", "v_proj"):
        heads = getattr(gqa, name).weight.unflatten(0, (2, 8))
        getattr(mha, name).weight.copy_(heads.repeat_interleave(2, dim=0).flatten(0, 1))
    hidden = torch.randn(7, HIDDEN, dtype=torch.float64)
    (few_heads, small), (all_heads, large) = gqa(hidden), mha(hidden)
    torch.testing.assert_close(few_heads, all_heads)
    assert large.shape[1] == 2 * small.shape[1]


def test_query_heads_must_divide_among_kv_heads():
    with pytest.raises(ConfigError, match="9 query heads do not divide evenly among 2"):
        GroupedAttention(HIDDEN, 9, 2, 8)


# --- against transformers ---


def causal_bias(n: int) -> torch.Tensor:
    return torch.full((n, n), float("-inf")).triu(1)[None, None]


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_grouped_attention_is_llamas(kv_heads):
    transformers = pytest.importorskip("transformers")
    from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding

    config = transformers.LlamaConfig(
        hidden_size=HIDDEN,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        head_dim=8,
        attn_implementation="eager",
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
    )
    torch.manual_seed(0)
    theirs = LlamaAttention(config, layer_idx=0)
    ours = GroupedAttention(HIDDEN, 4, kv_heads, 8, rope_theta=500.0)
    ours.load_state_dict(theirs.state_dict())
    hidden = torch.randn(11, HIDDEN)
    positions = LlamaRotaryEmbedding(config)(hidden[None], torch.arange(11)[None])
    expected, _ = theirs(hidden[None], position_embeddings=positions, attention_mask=causal_bias(11))
    torch.testing.assert_close(ours(hidden)[0], expected[0], rtol=1e-4, atol=1e-5)


def test_latent_attention_is_deepseeks():
    transformers = pytest.importorskip("transformers")
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention, DeepseekV3RotaryEmbedding

    config = transformers.DeepseekV3Config(
        hidden_size=HIDDEN,
        num_attention_heads=4,
        num_key_value_heads=4,
        q_lora_rank=None,
        kv_lora_rank=10,
        qk_nope_head_dim=8,
        qk_rope_head_dim=4,
        v_head_dim=6,
        rope_interleave=False,
        attn_implementation="eager",
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
    )
    torch.manual_seed(0)
    theirs = DeepseekV3Attention(config, layer_idx=0)
    torch.nn.init.uniform_(theirs.kv_a_layernorm.weight, 0.5, 2.0)
    ours = LatentAttention(HIDDEN, 4, 10, 8, 4, 6, rope_theta=500.0)
    ours.q_proj.weight.copy_(theirs.q_proj.weight)
    ours.kv_down.weight.copy_(theirs.kv_a_proj_with_mqa.weight)
    ours.kv_norm.weight.copy_(theirs.kv_a_layernorm.weight)
    up = theirs.kv_b_proj.weight.unflatten(0, (4, 14))
    ours.k_up.weight.copy_(up[:, :8].flatten(0, 1))
    ours.v_up.weight.copy_(up[:, 8:].flatten(0, 1))
    ours.o_proj.weight.copy_(theirs.o_proj.weight)
    hidden = torch.randn(11, HIDDEN)
    positions = DeepseekV3RotaryEmbedding(config)(hidden[None], torch.arange(11)[None])
    expected, _ = theirs(hidden[None], position_embeddings=positions, attention_mask=causal_bias(11))
    torch.testing.assert_close(ours(hidden)[0], expected[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.absorbed(hidden)[0], expected[0], rtol=1e-4, atol=1e-5)


@few
@given(shift=st.integers(0, 50), distance=st.integers(0, 50))
def test_after_rotation_only_the_distance_counts(shift, distance):
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, 1, 8, dtype=torch.float64)

    def product(q, k):
        return (rotate(query, torch.tensor([q])) * rotate(key, torch.tensor([k]))).sum()

    torch.testing.assert_close(product(distance, 0), product(distance + shift, shift), rtol=1e-3, atol=1e-3)
