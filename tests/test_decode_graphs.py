"""Decode steps over fixed buffers: what a CUDA graph replays, run here without recording."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import make_tiny_model

from pagedlab import LLM, SamplingParams
from pagedlab.runtime import decode_graphs
from pagedlab.runtime.batch import RaggedBatch
from pagedlab.runtime.memory import largest_batch
from pagedlab.runtime.worker import Worker


def attention_by_device_lengths(  # type: ignore[no-untyped-def]
    query, key_cache, value_cache, block_tables, query_starts, seq_lens, *, scale, sliding_window
):
    """Reads lengths and tables when it runs, as a recorded kernel does; the host's lists would be stale."""
    output = torch.empty_like(query)
    group = query.shape[1] // key_cache.shape[2]
    for i, length in enumerate(seq_lens.tolist()):
        rows = slice(int(query_starts[i]), int(query_starts[i + 1]))
        blocks = block_tables[i, : -(-length // key_cache.shape[1])].long()
        keys = key_cache[blocks].flatten(0, 1)[:length].repeat_interleave(group, 1)
        values = value_cache[blocks].flatten(0, 1)[:length].repeat_interleave(group, 1)
        scores = torch.einsum("qhd,khd->hqk", query[rows], keys) * scale
        first = length - (rows.stop - rows.start)
        scores.masked_fill_(torch.arange(length) > torch.arange(first, length)[:, None], float("-inf"))
        output[rows] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), values)
    return output


def record_nothing(launch: Callable[[], None]) -> Callable[[], None]:
    """Stands in for a recording: a replay calls the function again, on whatever the buffers hold then."""
    launch()
    return launch


@pytest.fixture
def replaying(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_graphs.DecodeGraphs.__init__, "__defaults__", (record_nothing,))


def engine(path: Path, **options: object) -> LLM:
    options = {"num_blocks": 60, "block_size": 4, "max_num_seqs": 7, "max_model_len": 64} | options
    return LLM(path, skip_tokenizer_init=True, attention_backend=attention_by_device_lengths, **options)


PROMPTS = [[5] * 3, [6, 7] * 6, [9], list(range(10, 40)), [3, 4, 5], [8] * 17, [1, 2]]


@pytest.mark.parametrize("ahead", [False, True], ids=["waiting", "running ahead"])
def test_replayed_decodes_give_the_tokens_of_eager_ones(tmp_path: Path, replaying: None, ahead: bool) -> None:
    """Batches of every size from 7 down, so that each is padded differently, with tables of every width."""
    path = make_tiny_model(tmp_path)
    params = [SamplingParams(temperature=0, max_tokens=4 + 3 * i, ignore_eos=True) for i in range(len(PROMPTS))]
    eager = engine(path).generate(PROMPTS, params, use_tqdm=False)
    # An engine runs ahead only where the pool could serve whatever the next step asks for.
    llm = engine(path, async_scheduling=ahead, num_blocks=400, max_num_batched_tokens=64)
    worker = llm.llm_engine.parts.worker
    assert isinstance(worker, Worker)
    worker.record_graphs(7, 64)
    replays, carried = [], []
    run = worker.graphs.run

    def count(batch: RaggedBatch, put_carried: Callable[[RaggedBatch, torch.Tensor], None]) -> torch.Tensor:
        replays.append(batch.num_seqs)
        carried.append(len(batch.carried))
        return run(batch, put_carried)

    worker.graphs.run = count  # type: ignore[method-assign]
    replayed = llm.generate(PROMPTS, params, use_tqdm=False)
    assert [o.outputs[0].token_ids for o in replayed] == [o.outputs[0].token_ids for o in eager]
    assert set(replays) == set(range(1, 8))
    assert (sum(carried) > 50) == ahead


def test_padding_rows_write_to_the_null_block_alone(tmp_path: Path, replaying: None) -> None:
    llm = engine(make_tiny_model(tmp_path))
    worker = llm.llm_engine.parts.worker
    assert isinstance(worker, Worker)
    worker.record_graphs(7, 64)
    long = RaggedBatch(  # fills the buffers with a batch of seven, so that stale rows would be seen
        token_ids=np.arange(7),
        positions=np.full(7, 30),
        slot_mapping=np.arange(100, 107),
        block_tables=np.arange(1, 57, dtype=np.int32).reshape(7, 8),
        query_starts=np.arange(8, dtype=np.int32),
        seq_lens=np.full(7, 31, np.int32),
    )
    with torch.inference_mode():
        worker.forward(long)
    before = worker.cache.kv.clone()
    one = RaggedBatch(
        token_ids=np.array([5]),
        positions=np.array([9]),
        slot_mapping=np.array([4 * 20 + 1]),
        block_tables=np.array([[18, 19, 20]], np.int32),
        query_starts=np.array([0, 1], np.int32),
        seq_lens=np.array([10], np.int32),
    )
    two = RaggedBatch(*(np.concatenate([x, x]) for x in (one.token_ids, one.positions)), np.array([81, 201]),
                      np.array([[18, 19, 20], [30, 31, 50]], np.int32), np.arange(3, dtype=np.int32),
                      np.array([10, 10], np.int32))  # fmt: skip
    three = RaggedBatch(np.arange(3), np.full(3, 9), np.array([81, 201, 161]),
                        np.array([[18, 19, 20], [30, 31, 50], [6, 7, 40]], np.int32), np.arange(4, dtype=np.int32),
                        np.full(3, 10, np.int32))  # fmt: skip
    for batch in (one, two, three):
        with torch.inference_mode():
            worker.forward(batch)
    changed = (worker.cache.kv != before).any(dim=(0, 1, 4, 5)).nonzero().tolist()
    assert {(block, offset) for block, offset in changed if block} == {(20, 1), (50, 1), (40, 1)}


@pytest.mark.parametrize("max_num_seqs", [1, 3, 8, 17, 256, 1000])
def test_a_graph_is_recorded_for_the_largest_batch_and_padding_is_at_most_half(max_num_seqs: int) -> None:
    sizes = decode_graphs.graph_sizes(max_num_seqs)
    assert sizes == sorted(set(sizes)) and sizes[-1] == min(max_num_seqs, decode_graphs.MAX_GRAPH_SIZE)
    for num_seqs in range(1, sizes[-1] + 1):
        size = next(s for s in sizes if s >= num_seqs)
        assert size <= 2 * num_seqs


@pytest.mark.parametrize(("num_tokens", "max_model_len"), [(64, 64), (100, 64), (10, 64)])
def test_the_largest_step_runs_on_a_pool_of_the_null_block_alone(
    tmp_path: Path, num_tokens: int, max_model_len: int
) -> None:
    from pagedlab.runtime.batch import BlockOps

    llm = engine(make_tiny_model(tmp_path), num_blocks=2)
    worker = llm.llm_engine.parts.worker
    assert isinstance(worker, Worker)
    result = worker.execute(largest_batch(num_tokens, 7, max_model_len, 4), BlockOps())
    assert len(result.token_ids) == 7 and not result.errors
    assert not worker.cache.kv[:, :, 1:].any(), "only the null block was written"
