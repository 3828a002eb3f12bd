"""Block copies and swaps of the KV pool against the same moves done one by one in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pagedlab.errors import ConfigError
from pagedlab.runtime.cache_engine import CacheEngine

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
NUM_BLOCKS, NUM_HOST_BLOCKS = 9, 4


def engine(device: str = "cpu", **changes) -> CacheEngine:
    options = {
        "num_layers": 3,
        "num_blocks": NUM_BLOCKS,
        "block_size": 4,
        "num_kv_heads": 2,
        "head_dim": 8,
        "dtype": torch.float32,
        "device": torch.device(device),
        "num_host_blocks": NUM_HOST_BLOCKS,
    }
    return CacheEngine(**{**options, **changes})


def numbered(cache: CacheEngine) -> np.ndarray:
    """Fill the pool so that every element differs; the pool's contents as [layers, 2, blocks, ...]."""
    cache.kv.copy_(torch.arange(cache.kv.numel(), dtype=torch.float32).view_as(cache.kv))
    return cache.kv.cpu().numpy().copy()


def pairs(sources: int, targets: int) -> st.SearchStrategy[list[tuple[int, int]]]:
    """Pairs with distinct targets; a source may serve several, and may be a target itself."""
    one = st.tuples(st.integers(0, sources - 1), st.integers(0, targets - 1))
    return st.lists(one, max_size=targets, unique_by=lambda pair: pair[1])


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(moves=pairs(NUM_BLOCKS, NUM_BLOCKS))
def test_copies_read_every_source_before_they_write_a_target(device, moves):
    cache = engine(device)
    before = numbered(cache)
    cache.copy_blocks(moves)
    expected = before.copy()
    for source, target in moves:
        expected[:, :, target] = before[:, :, source]
    np.testing.assert_array_equal(cache.kv.cpu().numpy(), expected)


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(out=pairs(NUM_BLOCKS, NUM_HOST_BLOCKS), back=pairs(NUM_HOST_BLOCKS, NUM_BLOCKS))
def test_blocks_swapped_out_and_in_keep_their_contents(device, out, back):
    cache = engine(device)
    before = numbered(cache)
    cache.swap_out(out)
    cache.kv.fill_(-1)
    cache.swap_in(back)
    host = np.zeros((NUM_HOST_BLOCKS, *before[:, :, 0].shape), np.float32)
    for source, target in out:
        host[target] = before[:, :, source]
    expected = np.full_like(before, -1)
    for source, target in back:
        expected[:, :, target] = host[source]
    np.testing.assert_array_equal(cache.kv.cpu().numpy(), expected)


def test_every_layer_sees_its_own_part_of_the_one_pool():
    cache = engine()
    assert len(cache.kv_caches) == 3
    for number, layer in enumerate(cache.kv_caches):
        assert layer.shape == (2, NUM_BLOCKS, 4, 2, 8)
        layer.fill_(number + 1)
    assert [cache.kv[layer].unique().tolist() for layer in range(3)] == [[1], [2], [3]]


def test_a_new_pool_holds_zeros():
    assert not engine().kv.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_per_block_is_what_a_block_takes(dtype):
    cache = engine(dtype=dtype)
    block = CacheEngine.bytes_per_block(3, 4, 2, 8, dtype)
    assert cache.kv.numel() * cache.kv.element_size() == NUM_BLOCKS * block
    assert cache.host.numel() * cache.host.element_size() == NUM_HOST_BLOCKS * block


def test_a_llama_2_7b_block_of_16_tokens_is_8_mib():
    """0.5 MiB a token in float16: 2 x 32 layers x 32 heads x 128 x 2 bytes (PagedAttention, section 3, has 800 KB for
    OPT-13B by the same sum)."""
    assert CacheEngine.bytes_per_block(32, 16, 32, 128, torch.float16) == 8 * 2**20


@pytest.mark.parametrize(
    ("too_many", "advice"),
    [({"num_blocks": 10**13}, "num_blocks"), ({"num_host_blocks": 10**13}, "swap_space")],
)
def test_a_pool_beyond_memory_is_refused_with_its_size_and_what_to_lower(too_many, advice):
    size = CacheEngine.bytes_per_block(3, 4, 2, 8, torch.float32) * 10**13
    with pytest.raises(ConfigError, match=rf"needs {size:,} bytes.*lower {advice}"):
        engine(**too_many)
