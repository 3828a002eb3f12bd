"""The Triton attention kernels against float64 arithmetic, on ragged batches over a poisoned cache.

Every slot that no sequence owns, and the null block, hold NaN; every output starts as NaN. A read of one wrong slot, or
one row left unwritten, therefore shows. Runs on a GPU, or on a CPU where TRITON_INTERPRET=1 was set before the start:
`test_triton_interpreter.py` does that in a process of its own.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")
from pagedlab.errors import BackendError
from pagedlab.runtime.attention.base import AttentionMetadata
from pagedlab.runtime.attention.triton_backend import TritonBackend
from pagedlab.runtime.cache_engine import CacheEngine
from pagedlab.runtime.kernels import INTERPRETED, prefill
from pagedlab.runtime.kernels.block_copy import copy_blocks
from pagedlab.runtime.kernels.cache_write import cache_write
from pagedlab.runtime.kernels.decode import DecodeConfig, paged_decode
from pagedlab.runtime.kernels.prefill import PrefillConfig, paged_prefill
from pagedlab.runtime.kernels.splits import Splits, SplitWorkspace

if INTERPRETED:
    DEVICE, DTYPES = "cpu", [torch.float32, torch.float16]
elif torch.cuda.is_available():
    DEVICE, DTYPES = "cuda", [torch.float32, torch.float16, torch.bfloat16]
else:
    pytest.skip("needs a GPU, or TRITON_INTERPRET=1 (see test_triton_interpreter.py)", allow_module_level=True)

TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.2e-2}
EXAMPLES = int(os.environ.get("TRITON_TEST_EXAMPLES", "12"))
NO_SHRINKING = (Phase.explicit, Phase.generate)  # interpreted, it takes minutes, and the examples are small
quick = settings(derandomize=True, deadline=None, max_examples=EXAMPLES, database=None, phases=NO_SHRINKING)
edges = st.sampled_from([1, 2, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65, 95, 96, 97, 130])


@dataclass
class Case:
    """One ragged batch over a poisoned paged cache, and the answer in float64."""

    query: torch.Tensor
    kv_cache: torch.Tensor
    metadata: AttentionMetadata
    expected: torch.Tensor
    window: int | None
    scale: float

    @property
    def tables(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.metadata.block_tables, self.metadata.query_starts, self.metadata.seq_lens

    def rows(self, *, decodes: bool) -> torch.Tensor:
        """Mask of the query rows that belong to one-row sequences, or to the others."""
        return torch.cat([torch.full((q,), (q == 1) == decodes) for q in self.metadata.query_lens_host]).to(DEVICE)


def dense_attention(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float, window: int | None
) -> torch.Tensor:
    """[q, heads, d] over [n, kv_heads, d] in float64, one head at a time; the last query is the last position."""
    (rows, heads, _), (length, kv_heads, _) = query.shape, keys.shape
    position = torch.arange(length - rows, length)[:, None]
    key_position = torch.arange(length)[None, :]
    hidden = key_position > position
    if window is not None:
        hidden |= key_position <= position - window
    outputs = []
    for head in range(heads):
        k, v = keys[:, head // (heads // kv_heads)], values[:, head // (heads // kv_heads)]
        scores = (query[:, head] @ k.T * scale).masked_fill(hidden, float("-inf"))
        outputs.append(torch.softmax(scores, -1) @ v)
    return torch.stack(outputs, 1)


def make_case(
    lengths: list[tuple[int, int]],
    *,
    group: int = 2,
    kv_heads: int = 1,
    head_dim: int = 64,
    block_size: int = 16,
    dtype: torch.dtype = torch.float32,
    window: int | None = None,
    seed: int = 0,
) -> Case:
    """`lengths`: (query rows, context length with them) of each sequence."""
    rng = torch.Generator().manual_seed(seed)
    used = [-(-n // block_size) for _, n in lengths]
    num_blocks = sum(used) + 3
    order = (torch.randperm(num_blocks - 1, generator=rng) + 1).tolist()
    cache = torch.full((2, num_blocks, block_size, kv_heads, head_dim), float("nan"), dtype=torch.float64)
    wide = torch.zeros(len(lengths), max(used) + 3, dtype=torch.int32)
    tables = wide[:, : max(used) + 1]  # a view: the stride of a row is not its width
    heads = group * kv_heads
    scale = head_dim**-0.5
    queries, outputs = [], []
    for i, (rows, length) in enumerate(lengths):
        blocks = [order.pop() for _ in range(used[i])]
        tables[i, : used[i]] = torch.tensor(blocks, dtype=torch.int32)
        query = (torch.randn(rows, heads, head_dim, generator=rng) * 2).to(dtype)
        kv = torch.randn(2, length, kv_heads, head_dim, generator=rng).to(dtype).double()
        slots = (torch.tensor(blocks)[:, None] * block_size + torch.arange(block_size)).flatten()[:length]
        cache.view(2, -1, kv_heads, head_dim)[:, slots] = kv
        queries.append(query)
        outputs.append(dense_attention(query.double(), kv[0], kv[1], scale, window))
    rows_host = [rows for rows, _ in lengths]
    metadata = AttentionMetadata(
        block_tables=wide.to(DEVICE)[:, : tables.shape[1]],
        query_starts=torch.tensor([0, *torch.tensor(rows_host).cumsum(0)], dtype=torch.int32, device=DEVICE),
        seq_lens=torch.tensor([n for _, n in lengths], dtype=torch.int32, device=DEVICE),
        slot_mapping=torch.zeros(sum(rows_host), dtype=torch.int64, device=DEVICE),
        query_lens_host=rows_host,
        seq_lens_host=[n for _, n in lengths],
    )
    return Case(torch.cat(queries).to(DEVICE), cache.to(dtype).to(DEVICE), metadata, torch.cat(outputs), window, scale)


def assert_close(out: torch.Tensor, expected: torch.Tensor) -> None:
    error = (out.double().cpu() - expected).norm() / expected.norm()
    assert error < TOLERANCE[out.dtype], f"relative error {error:.2e}"  # NaN fails too


def run_decode(
    case: Case, num_splits: int, block_n: int, workspace: SplitWorkspace | None = None, pack: int = 1
) -> torch.Tensor:
    out = torch.full_like(case.query, float("nan"))
    config = DecodeConfig(block_n=block_n, num_warps=4, num_stages=2, pack=pack)
    paged_decode(
        out,
        case.query,
        case.kv_cache,
        *case.tables,
        scale=case.scale,
        sliding_window=case.window,
        splits=Splits(num_splits, shortest=block_n),
        workspace=workspace or SplitWorkspace(),
        config=config,
    )
    return out


def run_prefill(case: Case, block_m: int, block_n: int) -> torch.Tensor:
    out = torch.full_like(case.query, float("nan"))
    config = PrefillConfig(block_m=block_m, block_n=block_n, num_warps=4, num_stages=2)
    paged_prefill(
        out,
        case.query,
        case.kv_cache,
        *case.tables,
        scale=case.scale,
        sliding_window=case.window,
        config=config,
    )
    return out


@st.composite
def heads_and_blocks(draw: st.DrawFn) -> dict:
    return {
        "group": draw(st.integers(1, 8)),
        "kv_heads": draw(st.integers(1, 2)),
        "head_dim": draw(st.sampled_from([64, 80, 96, 128, 256])),
        "block_size": draw(st.sampled_from([16, 32, 48, 64, 80])),
        "dtype": draw(st.sampled_from(DTYPES)),
        "window": draw(st.one_of(st.none(), st.integers(1, 70))),
        "seed": draw(st.integers(0, 2**31)),
    }


@st.composite
def chunks(draw: st.DrawFn, longest: int) -> tuple[int, int]:
    rows = min(draw(edges), longest)
    return rows, rows + draw(st.one_of(st.just(0), edges))


@quick
@given(shape=heads_and_blocks(), lens=st.lists(edges, min_size=1, max_size=3), splits=st.integers(1, 5),
       block_n=st.sampled_from([16, 32, 64]))  # fmt: skip
def test_decode_reads_exactly_the_context_of_each_sequence(shape, lens, splits, block_n):
    case = make_case([(1, n) for n in lens], **shape)
    pack = 2 if shape["kv_heads"] == 2 and case.query.shape[2] <= 128 else 1
    assert_close(run_decode(case, splits, block_n, pack=pack), case.expected)


@quick
@given(shape=heads_and_blocks(), lengths=st.lists(chunks(longest=49), min_size=1, max_size=2),
       block_m=st.sampled_from([16, 32, 64]), block_n=st.sampled_from([16, 32]))  # fmt: skip
def test_prefill_over_cached_context_is_causal_attention(shape, lengths, block_m, block_n):
    lengths = [(max(rows, 2), max(rows, 2) + n - rows) for rows, n in lengths]
    case = make_case(lengths, **shape)
    assert_close(run_prefill(case, block_m, block_n), case.expected)


@quick
@given(shape=heads_and_blocks(), decodes=st.lists(edges, min_size=1, max_size=2), chunk=chunks(longest=17),
       order=st.randoms(use_true_random=False))  # fmt: skip
def test_a_mixed_batch_gives_each_sequence_its_own_attention(shape, decodes, chunk, order):
    lengths = [(1, n) for n in decodes] + [chunk]
    order.shuffle(lengths)
    case = make_case(lengths, **shape)
    out = TritonBackend().attend(case.query, case.kv_cache, case.metadata, scale=case.scale, sliding_window=case.window)
    assert_close(out, case.expected)


@pytest.mark.parametrize("group", [33, 64])
def test_a_group_larger_than_the_tile_of_its_dtype_is_served(group):
    """A float32 tile has 32 rows; up to 64 query heads may share a KV head."""
    case = make_case([(3, 20), (1, 17)], group=group, head_dim=16, dtype=torch.float32)
    out = TritonBackend().attend(case.query, case.kv_cache, case.metadata, scale=case.scale, sliding_window=case.window)
    assert_close(out, case.expected)


def test_each_kernel_leaves_the_rows_of_the_other_alone():
    case = make_case([(1, 20), (5, 33), (1, 7), (3, 3)])
    decode_rows, prefill_rows = case.rows(decodes=True), case.rows(decodes=False)
    for splits in (1, 3):
        assert run_decode(case, splits, 16)[prefill_rows].isnan().all()
    assert run_prefill(case, 16, 16)[decode_rows].isnan().all()


def test_a_sequence_of_length_one_attends_to_itself():
    case = make_case([(1, 1)], dtype=torch.float16)
    for splits in (1, 4):
        assert_close(run_decode(case, splits, 16), case.expected)


def test_more_sequences_than_one_chunk_of_the_search_still_find_their_rows(monkeypatch):
    monkeypatch.setattr(prefill, "SEARCH_CHUNK", 16)
    case = make_case([(2, 2), (7, 9)] * 17, group=1, head_dim=16)
    config = PrefillConfig(block_m=16, block_n=16, num_warps=4, num_stages=1)
    out = torch.full_like(case.query, float("nan"))
    paged_prefill(out, case.query, case.kv_cache, *case.tables, scale=case.scale, sliding_window=None, config=config)
    assert_close(out, case.expected)


def test_padding_of_a_captured_batch_gives_zeros_and_not_nan():
    case = make_case([(1, 40), (1, 20)])
    case.metadata.seq_lens[1] = 0
    for splits in (1, 2):
        out = run_decode(case, splits, 16)
        assert_close(out[:1], case.expected[:1])
        assert (out[1] == 0).all()


def test_a_workspace_that_grows_keeps_the_memory_a_captured_graph_points_to():
    workspace = SplitWorkspace()
    before = workspace.reserve(4, 64, torch.device(DEVICE))[0].data_ptr()
    case = make_case([(1, 70), (1, 33), (1, 49)], kv_heads=2)
    assert_close(run_decode(case, 3, 16, workspace), case.expected)
    after = workspace.reserve(4, 64, torch.device(DEVICE))[0].data_ptr()
    fresh = [torch.empty(2 * 2 * 64, device=DEVICE).data_ptr() for _ in range(8)]
    assert before != after and before not in fresh


@quick
@given(tokens=st.integers(1, 9), kv_heads=st.integers(1, 3), head_dim=st.sampled_from([64, 80, 96, 128, 256]),
       block_size=st.sampled_from([16, 48]), dtype=st.sampled_from(DTYPES), seed=st.integers(0, 999))  # fmt: skip
def test_cache_write_fills_its_slots_and_touches_no_other(tokens, kv_heads, head_dim, block_size, dtype, seed):
    rng = torch.Generator().manual_seed(seed)
    cache = torch.randn(2, 4, block_size, kv_heads, head_dim, generator=rng).to(dtype)
    fused = torch.randn(tokens, 3 * kv_heads * head_dim, generator=rng).to(dtype).to(DEVICE)
    _, key, value = (t.unflatten(1, (kv_heads, head_dim)) for t in fused.chunk(3, dim=1))  # views, as models make
    slots = torch.randperm(4 * block_size, generator=rng)[:tokens]
    expected = cache.clone()
    for token, slot in enumerate(slots.tolist()):
        expected[0, slot // block_size, slot % block_size] = key[token].cpu()
        expected[1, slot // block_size, slot % block_size] = value[token].cpu()
    written = cache.to(DEVICE)
    TritonBackend().write(key, value, written, slots.to(DEVICE))
    assert torch.equal(written.cpu(), expected)


def test_writing_no_tokens_is_no_launch():
    cache = torch.zeros(2, 2, 16, 1, 16, device=DEVICE)
    none = torch.zeros(0, 1, 16, device=DEVICE)
    cache_write(none, none, cache, torch.zeros(0, dtype=torch.int64, device=DEVICE))
    assert (cache == 0).all()


@quick
@given(layers=st.integers(1, 3), heads=st.integers(1, 3), pairs=st.integers(0, 3), seed=st.integers(0, 999))
def test_copied_blocks_match_their_sources_in_every_layer(layers, heads, pairs, seed):
    rng = torch.Generator().manual_seed(seed)
    source = torch.randn(layers, 2, 7, 16, heads, 80, generator=rng)
    target = torch.randn(9, layers, 2, 16, heads, 80, generator=rng)  # block first, as host memory is laid out
    moves = torch.stack([torch.randperm(7, generator=rng)[:pairs], torch.randperm(9, generator=rng)[:pairs]], 1)
    expected = target.clone()
    for before, after in moves.tolist():
        expected[after] = source[:, :, before]
    moved = target.to(DEVICE)
    copy_blocks(source.to(DEVICE), moved.movedim(0, 2), moves.to(torch.int32).to(DEVICE))
    assert torch.equal(moved.cpu(), expected)
    moved = target.to(DEVICE)
    by_column = moves.t().contiguous().t()  # as from two lists of ids
    copy_blocks(source.to(DEVICE), moved.movedim(0, 2), by_column.to(torch.int32).to(DEVICE))
    assert torch.equal(moved.cpu(), expected)


def test_copying_between_pools_of_different_shape_is_refused():
    pool = torch.zeros(1, 2, 3, 16, 2, 16, device=DEVICE)
    with pytest.raises(BackendError, match="only the number of blocks may differ"):
        copy_blocks(pool, torch.zeros(1, 2, 3, 32, 2, 16, device=DEVICE), torch.zeros(1, 2, dtype=torch.int32))
    with pytest.raises(BackendError, match="must be contiguous"):
        copy_blocks(pool, pool.transpose(3, 4).contiguous().transpose(3, 4), torch.zeros(1, 2, dtype=torch.int32))


@pytest.mark.parametrize(
    "pairs", [[(1, 2), (3, 4)], [(1, 2), (1, 5)], [(1, 2), (2, 3)]], ids=["apart", "fan out", "chain"]
)
def test_copy_on_write_in_the_cache_is_the_same_by_kernel_and_by_index(pairs):
    """A chain reads every source before it writes any target, so it must not go to the kernel."""
    options = {"num_layers": 2, "num_blocks": 6, "block_size": 16, "num_kv_heads": 1, "head_dim": 64}
    caches = [CacheEngine(**options, dtype=torch.float32, device=torch.device(DEVICE)) for _ in range(2)]
    for cache, by_kernel in zip(caches, (True, False), strict=True):
        cache.kv.copy_(torch.arange(cache.kv.numel(), dtype=torch.float32).view(cache.kv.shape))
        cache.copies_by_kernel = by_kernel
        cache.copy_blocks(pairs)
    assert torch.equal(caches[0].kv, caches[1].kv)
    assert not torch.equal(caches[0].kv.flatten().cpu(), torch.arange(caches[0].kv.numel(), dtype=torch.float32))
