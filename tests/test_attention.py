"""Every attention backend that runs here against dense attention, on ragged batches over a poisoned paged cache."""

from __future__ import annotations

import gc
import weakref
from dataclasses import dataclass

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from pagedlab.basics import masks
from pagedlab.basics.attention import attention
from pagedlab.errors import BackendError, ConfigError
from pagedlab.runtime.attention import (
    AttentionBackend,
    AttentionContext,
    AttentionMetadata,
    registry,
    sdpa_plan,
    select_backend,
)
from pagedlab.runtime.attention.base import FunctionBackend
from pagedlab.runtime.attention.reference import ReferenceBackend, gather
from pagedlab.runtime.attention.sdpa import SdpaBackend

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
BACKENDS = [ReferenceBackend, SdpaBackend]
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}

on_every_device = pytest.mark.parametrize("device", DEVICES)
with_every_backend = pytest.mark.parametrize("backend_cls", BACKENDS, ids=lambda cls: cls.name)


@dataclass
class Case:
    """A step's shapes: `lengths` are (context, query length) of each sequence."""

    lengths: list[tuple[int, int]]
    block_size: int = 16
    num_kv_heads: int = 1
    group: int = 1
    head_dim: int = 16
    window: int | None = None
    dtype: torch.dtype = torch.float32
    seed: int = 0


@dataclass
class Step:
    """One step's tensors: dense truth on one side, a paged cache full of NaN on the other."""

    query: Tensor
    keys: list[Tensor]
    values: list[Tensor]
    kv_cache: Tensor
    metadata: AttentionMetadata

    def new_rows(self, dense: list[Tensor]) -> Tensor:
        return torch.cat([x[-q:] for x, q in zip(dense, self.metadata.query_lens_host, strict=True)])

    def expected(self, scale: float, window: int | None) -> Tensor:
        outputs = []
        queries = self.query.split(self.metadata.query_lens_host)
        for query, key, value in zip(queries, self.keys, self.values, strict=True):
            context = len(key) - len(query)
            mask = masks.chunk(context, len(query))
            if window is not None:
                mask = masks.sliding_window(context, len(query), window)
            outputs.append(attention(query.float(), key, value, mask, scale))
        return torch.cat(outputs)


def build(case: Case, device: str = "cpu") -> Step:
    """Shuffle every sequence's blocks over the pool; only slots of cached context hold anything but NaN."""
    generator = torch.Generator().manual_seed(case.seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(case.dtype).to(device)

    seq_lens = [context + new for context, new in case.lengths]
    query_lens = [new for _, new in case.lengths]
    num_blocks = [-(-length // case.block_size) for length in seq_lens]
    pool = 1 + sum(num_blocks) + 3
    free = (torch.randperm(pool - 1, generator=generator) + 1).tolist()
    # One column more than any sequence needs, as in a batch whose longest member has left.
    tables = torch.zeros(len(seq_lens), max(num_blocks) + 1, dtype=torch.int32)
    shape = (case.num_kv_heads, case.head_dim)
    cache = torch.full((2, pool, case.block_size, *shape), float("nan"), dtype=case.dtype, device=device)
    slots = cache.view(2, pool * case.block_size, *shape)
    keys, values, slot_mapping = [], [], []
    for seq, (length, new) in enumerate(zip(seq_lens, query_lens, strict=True)):
        blocks = [free.pop() for _ in range(num_blocks[seq])]
        tables[seq, : len(blocks)] = torch.tensor(blocks)
        own = [blocks[p // case.block_size] * case.block_size + p % case.block_size for p in range(length)]
        keys.append(randn(length, *shape))
        values.append(randn(length, *shape))
        slots[0, own[: length - new]] = keys[-1][: length - new]
        slots[1, own[: length - new]] = values[-1][: length - new]
        slot_mapping += own[length - new :]
    metadata = AttentionMetadata(
        block_tables=tables.to(device),
        query_starts=torch.tensor([0, *query_lens]).cumsum(0).int().to(device),
        seq_lens=torch.tensor(seq_lens, dtype=torch.int32, device=device),
        slot_mapping=torch.tensor(slot_mapping, dtype=torch.int64, device=device),
        query_lens_host=query_lens,
        seq_lens_host=seq_lens,
    )
    query = randn(sum(query_lens), case.num_kv_heads * case.group, case.head_dim)
    return Step(query, keys, values, cache, metadata)


def run(backend: AttentionBackend, step: Step, scale: float, window: int | None) -> Tensor:
    context = AttentionContext(backend, [step.kv_cache], step.metadata, [window])
    new_keys, new_values = step.new_rows(step.keys), step.new_rows(step.values)
    return context(0, step.query, new_keys, new_values, scale=scale, sliding_window=window)


def assert_equals_dense(backend: AttentionBackend, case: Case, device: str = "cpu") -> None:
    step = build(case, device)
    scale = 1.3 * case.head_dim**-0.5
    output = run(backend, step, scale, case.window)
    assert output.shape == step.query.shape
    assert output.dtype == case.dtype
    tolerance = TOLERANCE[case.dtype]
    torch.testing.assert_close(output.float(), step.expected(scale, case.window), rtol=tolerance, atol=tolerance)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    block_size = draw(st.sampled_from([1, 3, 16, 32]))
    # Lengths at the edges of blocks and of the pieces that the sdpa backend cuts contexts into.
    edges = [block_size, 2 * block_size, 5 * block_size, sdpa_plan.PIECE, 2 * sdpa_plan.PIECE]
    near_edge = st.builds(lambda edge, off: max(1, edge + off), st.sampled_from(edges), st.sampled_from([-1, 0, 1]))
    total = near_edge | st.integers(1, 150)
    lengths = []
    for seq_len in draw(st.lists(total, min_size=1, max_size=5)):
        query_len = draw(st.just(1) | st.just(seq_len) | st.integers(1, seq_len))
        lengths.append((seq_len - query_len, query_len))
    num_kv_heads, group = draw(st.sampled_from([(1, 1), (3, 3), (2, 2), (2, 4), (1, 8), (4, 1), (1, 5)]))
    return Case(
        lengths=lengths,
        block_size=block_size,
        num_kv_heads=num_kv_heads,
        group=group,
        head_dim=draw(st.sampled_from([16, 64, 80])),
        window=draw(st.none() | st.integers(1, 160)),
        seed=draw(st.integers(0, 2**16)),
    )


@on_every_device
@with_every_backend
@settings(max_examples=60, deadline=None, derandomize=True)
@given(case=cases())
@example(case=Case(lengths=[(0, 1)], block_size=1))
@example(case=Case(lengths=[(0, 33), (1, 32)], window=32))
@example(
    case=Case(lengths=[(15, 1), (16, 1), (0, 1), (0, 33), (31, 2), (200, 1)], num_kv_heads=3, group=3, head_dim=64)
)
def test_paged_attention_equals_dense_attention_and_reads_no_slot_it_does_not_own(backend_cls, device, case):
    assert_equals_dense(backend_cls(), case, device)


@on_every_device
@with_every_backend
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("window", [None, 20])
def test_sixteen_bit_attention_equals_dense_attention_within_rounding(backend_cls, device, dtype, window):
    lengths = [(0, 40), (70, 9), (130, 1), (15, 1), (0, 1)]
    case = Case(lengths=lengths, num_kv_heads=3, group=3, head_dim=64, window=window, dtype=dtype)
    assert_equals_dense(backend_cls(), case, device)


@with_every_backend
@settings(max_examples=20, deadline=None, derandomize=True)
@given(case=cases())
def test_write_changes_the_new_tokens_slots_and_no_other(backend_cls, case):
    step = build(case)
    before = step.kv_cache.clone()
    backend_cls().write(step.new_rows(step.keys), step.new_rows(step.values), step.kv_cache, step.metadata.slot_mapping)
    written = torch.zeros(before.shape[1] * case.block_size, dtype=torch.bool)
    written[step.metadata.slot_mapping] = True
    after = step.kv_cache.flatten(1, 2)
    torch.testing.assert_close(after[:, ~written], before.flatten(1, 2)[:, ~written], rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(after[0, step.metadata.slot_mapping], step.new_rows(step.keys), rtol=0, atol=0)
    torch.testing.assert_close(after[1, step.metadata.slot_mapping], step.new_rows(step.values), rtol=0, atol=0)


@with_every_backend
def test_layers_with_different_windows_share_a_step(backend_cls):
    step = build(Case(lengths=[(90, 1), (10, 30), (3, 1)], num_kv_heads=2, group=2))
    windows = (None, 5, 64)
    context = AttentionContext(backend_cls(), [step.kv_cache], step.metadata, windows)
    for window in windows:
        output = context(
            0, step.query, step.new_rows(step.keys), step.new_rows(step.values), scale=0.25, sliding_window=window
        )
        torch.testing.assert_close(output, step.expected(0.25, window), rtol=2e-5, atol=2e-5)


@with_every_backend
def test_a_row_does_not_depend_on_who_else_is_in_the_batch(backend_cls):
    case = Case(lengths=[(100, 1), (7, 1), (400, 1)], num_kv_heads=3, group=3, head_dim=64)
    together = build(case)
    expected = run(backend_cls(), together, 0.125, None)
    for seq in range(3):
        alone = build(case)
        row, meta = slice(seq, seq + 1), alone.metadata
        alone.query, alone.keys, alone.values = alone.query[row], alone.keys[row], alone.values[row]
        alone.metadata = AttentionMetadata(
            block_tables=meta.block_tables[row],
            query_starts=torch.tensor([0, 1], dtype=torch.int32),
            seq_lens=meta.seq_lens[row],
            slot_mapping=meta.slot_mapping[row],
            query_lens_host=meta.query_lens_host[row],
            seq_lens_host=meta.seq_lens_host[row],
        )
        torch.testing.assert_close(run(backend_cls(), alone, 0.125, None), expected[row], rtol=1e-5, atol=1e-6)


def test_decodes_split_into_several_groups_give_the_same_result(monkeypatch):
    case = Case(lengths=[(9, 1), (300, 1), (0, 12), (120, 1), (0, 1), (121, 1)], num_kv_heads=2, group=4)
    monkeypatch.setattr(sdpa_plan, "GROUP_TOKENS", 256)
    step = build(case)
    run(SdpaBackend(), step, 0.25, None)
    assert len(step.metadata.plan.layer(step.query, 2).decodes) > 1
    assert_equals_dense(SdpaBackend(), case)


@with_every_backend
def test_a_long_chunk_whose_first_keys_are_all_outside_the_window_is_not_nan(backend_cls):
    """Late rows see none of the first 512 keys, a whole tile of the fused kernel: its running maximum is still -inf."""
    assert_equals_dense(backend_cls(), Case(lengths=[(0, 1100), (600, 520)], num_kv_heads=2, group=2, window=7))


def test_scores_far_apart_do_not_overflow():
    case = Case(lengths=[(80, 1), (0, 20)], head_dim=64)
    step = build(case)
    step.query *= 1000
    output = run(SdpaBackend(), step, 1.0, None)
    torch.testing.assert_close(output, step.expected(1.0, None), rtol=1e-4, atol=1e-4)


def needs(device: str = "cpu") -> dict:
    return {"device": torch.device(device), "dtype": torch.float32, "head_dim": 64, "block_size": 16}


def test_auto_on_a_cpu_is_sdpa():
    assert isinstance(select_backend("auto", **needs()), SdpaBackend)


def test_auto_on_a_gpu_falls_back_to_sdpa_when_triton_is_missing(monkeypatch):
    monkeypatch.setitem(registry.BACKENDS, "triton", ("pagedlab.no_such_module", "TritonBackend"))
    assert isinstance(select_backend("auto", **needs("cuda")), SdpaBackend)
    with pytest.raises(BackendError, match="no_such_module"):
        select_backend("triton", **needs("cuda"))


@pytest.mark.parametrize("spec", ["reference", ReferenceBackend, ReferenceBackend()], ids=["name", "class", "instance"])
def test_a_backend_is_chosen_by_name_class_or_instance(spec):
    assert isinstance(select_backend(spec, **needs()), ReferenceBackend)


@pytest.mark.parametrize("spec", ["flash", 3, dict])
def test_an_unknown_backend_is_refused_with_the_names_that_exist(spec):
    with pytest.raises(ConfigError, match="reference, sdpa, triton"):
        select_backend(spec, **needs())


def test_a_backend_that_cannot_serve_the_model_is_refused_with_its_reason():
    class Picky(ReferenceBackend):
        @classmethod
        def unsupported_reason(cls, *, device, dtype, head_dim, block_size):
            return "it knows head_dim 128 only." if head_dim != 128 else None

    with pytest.raises(BackendError, match="head_dim 128 only"):
        select_backend(Picky, **needs())
    assert isinstance(select_backend(Picky, **{**needs(), "head_dim": 128}), Picky)


def test_a_learners_function_serves_as_a_backend():
    def paged_attention(query, key_cache, value_cache, block_tables, query_starts, seq_lens, *, scale, sliding_window):
        outputs = []
        for seq, seq_len in enumerate(seq_lens.tolist()):
            rows = query[query_starts[seq] : query_starts[seq + 1]]
            key, value = gather(torch.stack([key_cache, value_cache]), block_tables[seq], seq_len)
            outputs.append(attention(rows, key, value, masks.chunk(seq_len - len(rows), len(rows)), scale))
        return torch.cat(outputs)

    backend = select_backend(paged_attention, **needs())
    assert isinstance(backend, FunctionBackend)
    assert_equals_dense(backend, Case(lengths=[(30, 1), (0, 17), (16, 3)], num_kv_heads=2, group=2))


def test_a_steps_plan_is_freed_without_a_garbage_collection():
    """A plan holds masks as large as its step: a reference cycle would keep them until Python happens to look."""
    metadata = AttentionMetadata(
        block_tables=torch.ones(1, 1, dtype=torch.int32),
        query_starts=torch.tensor([0, 1], dtype=torch.int32),
        seq_lens=torch.tensor([4], dtype=torch.int32),
        slot_mapping=torch.tensor([19]),
        query_lens_host=[1],
        seq_lens_host=[4],
    )
    metadata.plan = SdpaBackend().plan(metadata, block_size=16, sliding_window=None)
    freed = weakref.ref(metadata.plan)
    gc.disable()
    try:
        del metadata
        assert freed() is None
    finally:
        gc.enable()
