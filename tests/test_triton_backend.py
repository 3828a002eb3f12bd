"""Wrong use of the Triton backend is refused in a sentence, before any launch; and the plan it makes on the host."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")
from pagedlab.errors import BackendError
from pagedlab.runtime.attention import triton_backend
from pagedlab.runtime.attention.base import AttentionMetadata
from pagedlab.runtime.attention.triton_backend import TritonBackend
from pagedlab.runtime.kernels import INTERPRETED
from pagedlab.runtime.kernels.decode import resident_programs
from pagedlab.runtime.kernels.splits import choose_splits

CPU = torch.device("cpu")


def metadata(
    seq_lens: list[int], query_lens: list[int], tensors: dict[str, torch.Tensor] | None = None
) -> AttentionMetadata:
    """Consistent metadata with four blocks a sequence, but for the `tensors` given."""
    starts = [sum(query_lens[:i]) for i in range(len(query_lens) + 1)]
    fields = {
        "block_tables": torch.ones(len(seq_lens), 4, dtype=torch.int32),
        "query_starts": torch.tensor(starts, dtype=torch.int32),
        "seq_lens": torch.tensor(seq_lens, dtype=torch.int32),
        "slot_mapping": torch.zeros(sum(query_lens), dtype=torch.int64),
    }
    fields.update(tensors or {})
    return AttentionMetadata(**fields, query_lens_host=query_lens, seq_lens_host=seq_lens)


def cache(blocks: int = 8, block_size: int = 16, heads: int = 2, head_dim: int = 64) -> torch.Tensor:
    return torch.zeros(2, blocks, block_size, heads, head_dim)


@pytest.fixture
def backend(monkeypatch) -> TritonBackend:
    """A backend for which the CPU passes as a device; nothing here may reach a launch."""
    monkeypatch.setattr("pagedlab.runtime.kernels.INTERPRETED", True)
    return TritonBackend(check_tables=True)


def attend(backend: TritonBackend, query: torch.Tensor, kv_cache: torch.Tensor, meta: AttentionMetadata, window=None):
    return backend.attend(query, kv_cache, meta, scale=1.0, sliding_window=window)


@pytest.mark.skipif(INTERPRETED, reason="the interpreter takes CPU tensors")
def test_cpu_tensors_are_refused_where_kernels_are_compiled():
    with pytest.raises(BackendError, match="needs CUDA tensors, not cpu"):
        TritonBackend().write(torch.zeros(1, 2, 64), torch.zeros(1, 2, 64), cache(), torch.zeros(1, dtype=torch.int64))
    with pytest.raises(BackendError, match="needs CUDA tensors, not cpu"):
        attend(TritonBackend(), torch.zeros(1, 2, 64), cache(), metadata([5], [1]))


@pytest.mark.parametrize(
    ("needs", "reason"),
    [
        ({"head_dim": 72}, "power of two or the sum of two"),
        ({"head_dim": 112}, "power of two or the sum of two"),
        ({"head_dim": 512}, "16 to 256"),
        ({"block_size": 8}, "multiple of 16, not 8"),
        ({"block_size": 40}, "multiple of 16, not 40"),
        ({"dtype": torch.float64}, "not torch.float64"),
        ({"dtype": torch.bfloat16}, "wrong bfloat16 products"),
    ],
)
def test_what_cannot_be_served_is_said_in_one_sentence(backend, needs, reason):
    arguments = {"device": CPU, "dtype": torch.float16, "head_dim": 64, "block_size": 16, **needs}
    assert reason in backend.unsupported_reason(**arguments)


@pytest.mark.parametrize("head_dim", [16, 64, 80, 96, 128, 192, 256])
def test_the_head_dims_of_known_models_are_served(backend, head_dim):
    served = backend.unsupported_reason(device=CPU, dtype=torch.float16, head_dim=head_dim, block_size=48)
    assert served is None


@pytest.mark.parametrize(
    ("query", "kv_cache", "meta", "complaint"),
    [
        (torch.zeros(1, 2, 64), cache().transpose(2, 3), metadata([5], [1]), "do not fit|not contiguous"),
        (torch.zeros(1, 2, 64), cache(head_dim=80), metadata([5], [1]), "do not fit"),
        (torch.zeros(1, 2, 64), cache()[..., ::2], metadata([5], [1]), "do not fit"),
        (torch.zeros(1, 2, 64), torch.zeros(2, 16, 16, 2, 64)[:, ::2], metadata([5], [1]), "not contiguous"),
        (torch.zeros(1, 3, 64), cache(), metadata([5], [1]), "the ratio must be whole"),
        (torch.zeros(1, 2, 64).half(), cache(), metadata([5], [1]), "torch.float16 but the cache is torch.float32"),
        (torch.zeros(1, 64, 2).transpose(1, 2), cache(), metadata([5], [1]), "must be contiguous in query"),
        (torch.zeros(1, 2, 64), torch.zeros(3, 8, 16, 2, 64), metadata([5], [1]), "kv_cache must be"),
        (torch.zeros(1, 2, 64), cache(), metadata([65], [1]), "its block table holds 64"),
        (torch.zeros(9, 2, 64), cache(), metadata([5], [9]), "seq_lens must count them"),
        (torch.zeros(1, 2, 64), cache(), metadata([5], [1], {"seq_lens": torch.tensor([5])}), "torch.int32"),
        (torch.zeros(1, 2, 64), cache(), metadata([5], [1], {"query_starts": torch.tensor([0, 1])}), "torch.int32"),
        (
            torch.zeros(2, 2, 64),
            cache(),
            metadata([5, 5], [1, 1], {"block_tables": torch.ones(1, 4, dtype=torch.int32)}),
            "make them agree",
        ),
        (
            torch.zeros(1, 2, 64),
            cache(),
            metadata([33], [1], {"block_tables": torch.tensor([[1, 2, 8, 99]], dtype=torch.int32)}),
            "points to block 8, but the cache has blocks 0 to 7",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_refused_before_a_launch(backend, query, kv_cache, meta, complaint):
    with pytest.raises(BackendError, match=complaint):
        attend(backend, query, kv_cache, meta)


def test_table_entries_that_no_context_reaches_may_hold_anything(backend):
    meta = metadata([32], [1], {"block_tables": torch.tensor([[1, 2, 8, 99]], dtype=torch.int32)})
    triton_backend._check_block_tables(meta, block_size=16, num_blocks=8)


def test_a_scale_that_is_not_positive_is_refused(backend):
    with pytest.raises(BackendError, match="must be positive"):
        backend.attend(torch.zeros(1, 2, 64), cache(), metadata([5], [1]), scale=0.0, sliding_window=None)


def test_a_window_of_zero_is_refused(backend):
    with pytest.raises(BackendError, match="use None for no window"):
        attend(backend, torch.zeros(1, 2, 64), cache(), metadata([5], [1]), window=0)


@pytest.mark.parametrize("slot", [-1, 8 * 16])
def test_slots_outside_the_cache_are_refused_when_checked(backend, slot):
    row = torch.zeros(1, 2, 64)
    with pytest.raises(BackendError, match="outside a cache of 8 blocks"):
        backend.write(row, row, cache(), torch.tensor([slot]))


def test_keys_and_values_must_agree_with_each_other_and_with_their_slots(backend):
    row, slot = torch.zeros(1, 2, 64), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(BackendError, match="must agree"):
        backend.write(row, torch.zeros(2, 2, 64), cache(), slot)
    with pytest.raises(BackendError, match="one a token"):
        backend.write(row, row, cache(), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(BackendError, match="slot_mapping must be contiguous"):
        backend.write(row, row, cache(), slot.int())


def test_a_projection_must_fit_the_cache_its_angles_and_its_slots(backend):
    heads, angles, slot = torch.zeros(1, 8, 64), torch.zeros(1, 1, 64), torch.zeros(1, dtype=torch.int64)

    def write(heads=heads, cos=angles, sin=angles, slots=slot):
        return backend.rotate_and_write(heads, cos, sin, cache(), slots, None, 0.0)

    for options, complaint in (
        ({"heads": torch.zeros(1, 4, 64)}, "need more"),
        ({"heads": torch.zeros(1, 8, 128)}, "do not fit a cache"),
        ({"heads": torch.zeros(1, 64, 8).transpose(1, 2)}, "heads of one token must be contiguous in heads"),
        ({"cos": torch.zeros(2, 1, 64)}, "cos must be contiguous"),
        ({"sin": torch.zeros(1, 1, 32)}, "sin must be contiguous"),
        ({"slots": torch.zeros(2, dtype=torch.int64)}, "one a token"),
        ({"slots": torch.full((1,), 8 * 16)}, "outside a cache of 8 blocks"),
    ):
        with pytest.raises(BackendError, match=complaint):
            write(**options)


def test_the_plan_counts_decodes_and_chunks_apart():
    meta = metadata([40, 9, 64, 30], [1, 3, 1, 7])
    plan = TritonBackend().plan(meta, block_size=16, sliding_window=None)
    assert (plan.num_decodes, plan.max_decode_len, plan.max_prefill_rows, plan.max_prefill_len) == (2, 64, 7, 30)


def test_padding_rows_of_a_captured_batch_count_as_decodes():
    plan = TritonBackend().plan(metadata([40, 0], [1, 1]), block_size=16, sliding_window=None)
    assert plan.num_decodes == 2


def test_a_batch_of_nobody_is_planned_and_attended(backend):
    out = attend(backend, torch.zeros(0, 2, 64), cache(), metadata([], []))
    assert out.shape == (0, 2, 64)


def test_splits_fill_a_small_grid_and_none_is_too_short():
    multiprocessors, resident = 132, resident_programs(132, 233472)
    assert resident == 3 * 132
    for num_seqs in (1, 2, 7, 16, 64, 200, 1000):
        for length in (1, 100, 1000, 5000, 100_000):
            splits = choose_splits(num_seqs, 8, length, multiprocessors, resident)
            assert 1 <= splits.count <= max(1, -(-length // splits.shortest))
            if num_seqs * 8 <= resident:
                # All programs run at once, and they are two a multiprocessor, or as many as the length allows.
                assert splits.count * num_seqs * 8 <= resident
                full = (splits.count + 1) * num_seqs * 8 > 2 * multiprocessors
                assert full or splits.count == -(-length // splits.shortest)


def test_a_grid_that_fills_the_chip_many_times_is_not_split():
    assert choose_splits(2000, 8, 100_000, 132, 396).count == 1
