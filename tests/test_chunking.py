"""Chunks of a prompt: counted by formula, by brute force, and on a real pass."""

from __future__ import annotations

import json
import math
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import load, make_tiny_model

from pagedlab.basics import masks
from pagedlab.basics.published_configs import PUBLISHED
from pagedlab.errors import ConfigError
from pagedlab.runtime.attention.base import AttentionContext, AttentionMetadata
from pagedlab.runtime.attention.reference import ReferenceBackend
from pagedlab.runtime.attention.sdpa import SdpaBackend
from pagedlab.runtime.memory_profile import profile_memory
from pagedlab.simulate import chunking
from pagedlab.simulate.chunking import TradeOff, split
from pagedlab.simulate.devices import DEVICES
from pagedlab.simulate.roofline import Chunk, ModelShape, forward, square_pairs

LLAMA = ModelShape.from_config(PUBLISHED["Llama-2-7B"])
sizes = st.integers(1, 400)


@given(num_tokens=sizes, chunk_size=sizes)
def test_chunks_cover_every_position_once_in_order(num_tokens: int, chunk_size: int) -> None:
    chunks = split(num_tokens, chunk_size)
    positions = [position for chunk in chunks for position in range(chunk.past, chunk.past + chunk.new)]
    assert positions == list(range(num_tokens))
    assert len(chunks) == math.ceil(num_tokens / chunk_size)
    assert all(chunk.new == chunk_size for chunk in chunks[:-1])


@given(num_tokens=st.integers(1, 60), chunk_size=st.integers(1, 60))
def test_masks_of_the_chunks_are_the_rows_of_the_causal_mask(num_tokens: int, chunk_size: int) -> None:
    whole = torch.ones(num_tokens, num_tokens).tril().bool()
    for chunk in split(num_tokens, chunk_size):
        end = chunk.past + chunk.new
        assert torch.equal(masks.chunk(chunk.past, chunk.new), whole[chunk.past : end, :end])
        assert not whole[chunk.past : end, end:].any()


@pytest.mark.parametrize(("num_tokens", "chunk_size"), [(0, 1), (1, 0), (-3, 2)])
def test_no_tokens_or_no_size_is_refused(num_tokens: int, chunk_size: int) -> None:
    with pytest.raises(ConfigError, match="1 token or more"):
        split(num_tokens, chunk_size)


@given(num_tokens=sizes, chunk_size=sizes)
def test_chunking_changes_no_flops_but_reads_keys_and_values_again(num_tokens: int, chunk_size: int) -> None:
    chunks = split(num_tokens, chunk_size)
    whole, parts = forward(LLAMA, [Chunk(num_tokens)]), [forward(LLAMA, [chunk]) for chunk in chunks]
    head = 2 * LLAMA.head_matrix * (len(chunks) - 1)  # forward() gives every chunk a row of logits; only the last has
    assert sum(part.linear_flops for part in parts) - head == whole.linear_flops
    assert sum(part.attention_flops for part in parts) == whole.attention_flops
    read = chunking.kv_bytes_read(LLAMA, chunks)
    assert read == sum(part.cache_bytes for part in parts)
    assert read == whole.cache_bytes + chunking.kv_bytes_read_again(LLAMA, chunks)


@given(chunk_size=st.integers(1, 50), count=st.integers(1, 50))
def test_keys_and_values_are_read_half_of_chunks_plus_one_times(chunk_size: int, count: int) -> None:
    num_tokens = chunk_size * count
    read = chunking.kv_bytes_read(LLAMA, split(num_tokens, chunk_size))
    assert 2 * read == num_tokens * (count + 1) * LLAMA.kv_bytes_per_token()


@given(num_tokens=sizes, chunk_size=sizes)
def test_unfused_attention_computes_fewer_squares_in_chunks(num_tokens: int, chunk_size: int) -> None:
    """What makes chunking look faster on attention that fills whole squares: it skips the ones above the diagonal."""
    assert sum(map(square_pairs, split(num_tokens, chunk_size))) <= square_pairs(Chunk(num_tokens))


def test_activations_of_100_000_tokens_of_llama_2_7b() -> None:
    """Worked out by hand: n x 4096 x 2 bytes, n x 2 x 11008 x 2, 32 x n x n x 2, n x 32000 x 4."""
    assert chunking.activation_bytes(LLAMA, Chunk(100_000)) == {
        "hidden": 819_200_000,
        "gate and up": 4_403_200_000,
        "scores": 640_000_000_000,
        "logits": 12_800_000_000,
    }
    last = chunking.activation_bytes(LLAMA, Chunk(1696, 98_304), logit_rows=1)
    assert last["scores"] == 32 * 1696 * 100_000 * 2
    assert last["logits"] == 32_000 * 4


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Three layers, wide enough that rows outweigh everything else."""
    path = make_tiny_model(
        tmp_path_factory.mktemp("wide"), hidden_size=256, intermediate_size=640, num_hidden_layers=3, head_dim=64
    )
    return load(Path(path))


def context(model: Any, chunk: Chunk, backend: Any) -> AttentionContext:
    """One sequence of `chunk.past` tokens in the cache and `chunk.new` new ones, blocks of 16 in order."""
    end = chunk.past + chunk.new
    num_blocks = -(-end // 16) + 1
    config = model.config
    caches = [torch.zeros(2, num_blocks, 16, config.num_key_value_heads, config.head_dim) for _ in model.model.layers]
    metadata = AttentionMetadata(
        block_tables=torch.arange(1, num_blocks, dtype=torch.int32)[None],
        query_starts=torch.tensor([0, chunk.new], dtype=torch.int32),
        seq_lens=torch.tensor([end], dtype=torch.int32),
        slot_mapping=torch.arange(16 + chunk.past, 16 + end),
        query_lens_host=[chunk.new],
        seq_lens_host=[end],
    )
    return AttentionContext(backend, caches, metadata)


def peak(model: Any, chunk: Chunk, backend: Any) -> int:
    attention = context(model, chunk, backend)
    tokens, positions = torch.zeros(chunk.new, dtype=torch.int64), torch.arange(chunk.past, chunk.past + chunk.new)
    with torch.inference_mode():
        _, profile = profile_memory(lambda: model(tokens, positions, attention))
    return profile.peak_bytes


def test_peak_of_a_pass_is_as_counted(wide_model: Any) -> None:
    shape = ModelShape.from_config(wide_model.config.__dict__ | {"model_type": "llama"})
    for rows in (256, 1024):
        counted = rows * chunking.peak_bytes_per_row(shape, bytes_per_element=4)
        assert peak(wide_model, Chunk(rows), SdpaBackend()) == pytest.approx(counted, rel=0.03)


def test_peaks_recorded_on_a_gpu_are_as_counted() -> None:
    """Nobody fitted the count to this: Llama-2-7B's shape on an H100, chunks of 512 to 100,000 tokens."""
    folder = resources.files("pagedlab.bench") / "results"
    recorded = json.loads((folder / "chunked-prefill-h100-2026-11-24.json").read_text())
    runs = [run for run in recorded["trade_off"]["runs"] if run["chunk_size"] >= 512]
    assert runs
    for run in runs:
        counted = run["chunk_size"] * chunking.peak_bytes_per_row(LLAMA)
        assert run["peak_activation_bytes"] == pytest.approx(counted, rel=0.05)


def test_stored_scores_grow_with_the_square_of_a_prompt_and_with_rows_times_context_of_a_chunk(wide_model: Any) -> None:
    heads = wide_model.config.num_attention_heads
    for chunk in (Chunk(1024), Chunk(256, 1792)):
        scores = heads * chunk.new * (chunk.past + chunk.new) * 4
        measured = peak(wide_model, chunk, ReferenceBackend())
        assert 2 * scores < measured < 4 * scores


def test_peak_has_no_gated_mlp_to_count() -> None:
    with pytest.raises(ConfigError, match="gated MLP"):
        chunking.peak_bytes_per_row(ModelShape.from_config(PUBLISHED["GPT-2 small"]))


def test_floor_of_one_chunk_is_the_floor_of_its_step() -> None:
    device = DEVICES["H100"]
    point = chunking.floor_trade_off(LLAMA, device, 1000, 4096, num_decodes=2, decode_context=50)
    step = forward(LLAMA, [Chunk(1000), Chunk(1, 50), Chunk(1, 50)]).seconds(device)
    assert point.time_to_first_token == point.worst_gap == step
    assert point.tokens_per_second == 1002 / step


@given(num_tokens=st.integers(100, 20_000), small=st.integers(16, 4096), factor=st.integers(2, 8))
def test_smaller_chunks_never_lengthen_the_worst_gap_nor_shorten_the_prompt(
    num_tokens: int, small: int, factor: int
) -> None:
    device = DEVICES["H100"]
    fine = chunking.floor_trade_off(LLAMA, device, num_tokens, small)
    coarse = chunking.floor_trade_off(LLAMA, device, num_tokens, small * factor)
    assert fine.worst_gap <= coarse.worst_gap * (1 + 1e-9)
    assert fine.time_to_first_token >= coarse.time_to_first_token * (1 - 1e-9)


points = st.lists(st.builds(TradeOff, st.integers(1, 10_000), *[st.floats(0.001, 10, allow_nan=False)] * 3), max_size=8)


@given(points=points, worst_gap=st.floats(0.001, 10))
def test_pick_is_the_fastest_within_the_objective(points: list[TradeOff], worst_gap: float) -> None:
    chosen = chunking.pick(points, worst_gap)
    allowed = [point for point in points if point.worst_gap <= worst_gap]
    if chosen is None:
        assert not allowed
    else:
        assert chosen in allowed
        assert all(point.tokens_per_second <= chosen.tokens_per_second for point in allowed)
