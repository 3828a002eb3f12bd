"""PagedAttention as Triton kernels: the backend for CUDA, and, interpreted, the proof of the kernels on a CPU.

One step may hold decodes (one new token) and prompt chunks (many). They are different problems: a decode is bound by
memory and needs its context split over the chip, a chunk is bound by arithmetic and has rows enough to fill it. So a
step is at most two launches over the same tensors; each kernel skips the other's sequences on the device. What is
launched, and in how many splits, is decided from the host lists of the metadata: nothing here waits for the device.

CUDA graphs: a launch depends on the batch's shape and on the number of splits alone; lengths, tables and slots are read
when the graph runs. Capture with `seq_lens_host` filled with the longest context that the graph will serve, so that
enough splits are launched; shorter contexts leave some of them idle.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from pagedlab.errors import BackendError
from pagedlab.runtime.attention.base import AttentionBackend, AttentionMetadata

if TYPE_CHECKING:
    from pagedlab.runtime.kernels.splits import Splits

SUPPORTED_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
MAX_HEAD_DIM = 256


@dataclass(slots=True)
class TritonPlan:
    """What one step launches.

    Attributes:
        num_decodes: sequences with one query row
        max_decode_len: longest context among them
        max_prefill_rows: most query rows of another sequence; 0 if there is none
        max_prefill_len: longest context among those
        splits: (KV heads, window) of a layer -> splits of the decode contexts, filled in by the first such layer
    """

    num_decodes: int
    max_decode_len: int
    max_prefill_rows: int
    max_prefill_len: int
    splits: dict[tuple[int, int | None], Splits] = field(default_factory=dict)


class TritonBackend(AttentionBackend):
    """Cache write, paged decode and paged prefill in Triton.

    Args:
        check_tables: check slots and block tables before each launch. This waits for the device: for debugging only.

    Raises:
        BackendError: Triton is not installed.
    """

    name: ClassVar[str] = "triton"
    graph_safe: ClassVar[bool] = True
    rotates: ClassVar[bool] = True

    def __init__(self, *, check_tables: bool = False) -> None:
        if importlib.util.find_spec("triton") is None:
            raise BackendError("the triton backend needs the package triton: install it, or choose another backend")
        from pagedlab.runtime.kernels.splits import SplitWorkspace

        self._check_tables = check_tables
        self._workspace = SplitWorkspace()
        self._served: set[tuple[torch.device, torch.dtype, int, int]] = set()  # asked once, not at each launch

    @classmethod
    def unsupported_reason(
        cls, *, device: torch.device, dtype: torch.dtype, head_dim: int, block_size: int
    ) -> str | None:
        if importlib.util.find_spec("triton") is None:
            return "the triton backend needs the package triton, which is not installed"
        from pagedlab.runtime.kernels import INTERPRETED
        from pagedlab.runtime.kernels.paging import head_dim_parts

        if device.type != "cuda" and not INTERPRETED:
            return f"the triton backend needs CUDA tensors, not {device.type} (or TRITON_INTERPRET=1, to test on a CPU)"
        if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
            return "the triton backend needs compute capability 8.0 (A100) or newer"
        if dtype not in SUPPORTED_DTYPES:
            return f"the triton backend takes float16, bfloat16 and float32, not {dtype}"
        if INTERPRETED and dtype == torch.bfloat16:
            return (
                "Triton's interpreter computes wrong bfloat16 products: use float16 or float32 under TRITON_INTERPRET"
            )
        if head_dim % 16 or not 16 <= head_dim <= MAX_HEAD_DIM or head_dim_parts(head_dim)[1].bit_count() > 1:
            return (
                f"the triton backend needs a head_dim of 16 to {MAX_HEAD_DIM} that is a power of two or the sum of two "
                f"(80 = 64 + 16), each 16 or more, not {head_dim}"
            )
        if block_size % 16 or block_size < 16:
            return f"the triton backend needs a block size that is a multiple of 16, not {block_size}"
        return None

    def plan(self, metadata: AttentionMetadata, *, block_size: int, sliding_window: int | None) -> TritonPlan:
        """Counts from the host lists.

        Raises:
            BackendError: a sequence is longer than its row of the block table, or shorter than its new tokens.
        """
        capacity = metadata.block_tables.shape[1] * block_size
        decode_lens = [n for q, n in zip(metadata.query_lens_host, metadata.seq_lens_host, strict=True) if q == 1]
        prefill_rows = [q for q in metadata.query_lens_host if q != 1]
        prefill_lens = [n for q, n in zip(metadata.query_lens_host, metadata.seq_lens_host, strict=True) if q > 1]
        if metadata.max_seq_len > capacity:
            raise BackendError(
                f"a sequence has {metadata.max_seq_len} tokens but its block table holds {capacity}: widen block_tables"
            )
        for query_len, seq_len in zip(metadata.query_lens_host, metadata.seq_lens_host, strict=True):
            if query_len > seq_len > 0 or (query_len > 1 and seq_len == 0):
                raise BackendError(
                    f"a sequence has {query_len} new tokens but a length of {seq_len}: seq_lens must count them"
                )
        return TritonPlan(
            num_decodes=len(decode_lens),
            max_decode_len=max(decode_lens, default=0),
            max_prefill_rows=max(prefill_rows, default=0),
            max_prefill_len=max(prefill_lens, default=0),
        )

    def write(self, key: Tensor, value: Tensor, kv_cache: Tensor, slot_mapping: Tensor) -> None:
        from pagedlab.runtime.kernels.cache_write import cache_write

        self._check_cache(key, kv_cache, num_kv_heads=key.shape[1])
        self._check_rows("key", key)
        self._check_rows("value", value)
        if value.shape != key.shape or value.dtype != key.dtype:
            raise BackendError(f"key {tuple(key.shape)} and value {tuple(value.shape)} must agree in shape and dtype")
        self._check_slots(slot_mapping, key, kv_cache)
        cache_write(key, value, kv_cache, slot_mapping)

    def rotate_and_write(
        self,
        heads: Tensor,
        cos: Tensor,
        sin: Tensor,
        kv_cache: Tensor,
        slot_mapping: Tensor,
        norms: tuple[Tensor, Tensor] | None,
        eps: float,
    ) -> Tensor:
        from pagedlab.runtime.kernels.rope import rope_cache_write

        num_tokens, num_rows, head_dim = heads.shape
        self._check_cache(heads, kv_cache, num_kv_heads=kv_cache.shape[3])
        self._check_rows("heads", heads)
        if num_rows <= 2 * kv_cache.shape[3]:
            raise BackendError(
                f"heads has {num_rows} rows a token: queries, keys and values of {kv_cache.shape[3]} KV heads need more"
            )
        self._check_slots(slot_mapping, heads, kv_cache)
        for name, table in (("cos", cos), ("sin", sin)):
            if table.shape != (num_tokens, 1, head_dim) or not table.is_contiguous() or table.device != heads.device:
                raise BackendError(
                    f"{name} must be contiguous [{num_tokens}, 1, {head_dim}] on {heads.device}, not "
                    f"{list(table.shape)} with strides {table.stride()} on {table.device}"
                )
        return rope_cache_write(heads, cos, sin, kv_cache, slot_mapping, norms=norms, eps=eps)

    def _check_slots(self, slot_mapping: Tensor, rows: Tensor, kv_cache: Tensor) -> None:
        _check_index("slot_mapping", slot_mapping, torch.int64, rows.device)
        if slot_mapping.shape != rows.shape[:1]:
            raise BackendError(f"slot_mapping has {slot_mapping.numel()} slots for {rows.shape[0]} tokens: one a token")
        if self._check_tables and slot_mapping.numel():
            low, high = (int(v) for v in slot_mapping.aminmax())
            if low < 0 or high >= kv_cache.shape[1] * kv_cache.shape[2]:
                raise BackendError(
                    f"slot_mapping holds slots {low} to {high}, outside a cache of {kv_cache.shape[1]} blocks"
                )

    def attend(
        self, query: Tensor, kv_cache: Tensor, metadata: AttentionMetadata, *, scale: float, sliding_window: int | None
    ) -> Tensor:
        from pagedlab.runtime.kernels.decode import decode_config, paged_decode
        from pagedlab.runtime.kernels.prefill import paged_prefill, prefill_config
        from pagedlab.runtime.kernels.splits import choose_splits

        _, num_heads, head_dim = query.shape
        _, num_blocks, block_size, num_kv_heads, _ = kv_cache.shape
        self._check_cache(query, kv_cache, num_kv_heads=num_kv_heads)
        self._check_rows("query", query)
        self._check_metadata(query, metadata)
        if num_heads % num_kv_heads or num_heads // num_kv_heads > 64:
            raise BackendError(
                f"{num_heads} query heads cannot share {num_kv_heads} KV heads: the ratio must be whole and at most 64"
            )
        if not scale > 0:
            raise BackendError(f"the scale of the scores must be positive, not {scale}")
        if sliding_window is not None and sliding_window < 1:
            raise BackendError(f"a sliding window must be at least 1, not {sliding_window}: use None for no window")
        plan = metadata.plan
        if not isinstance(plan, TritonPlan):
            plan = self.plan(metadata, block_size=block_size, sliding_window=sliding_window)
        if self._check_tables:
            _check_block_tables(metadata, block_size, num_blocks)

        out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        tables = (metadata.block_tables, metadata.query_starts, metadata.seq_lens)
        if plan.num_decodes:
            layer = (num_kv_heads, sliding_window)
            if layer not in plan.splits:
                packs = num_kv_heads // decode_config(head_dim, num_kv_heads, query.element_size()).pack
                longest = min(plan.max_decode_len, sliding_window or plan.max_decode_len)
                plan.splits[layer] = choose_splits(plan.num_decodes, packs, longest, *_multiprocessors(query.device))
            paged_decode(
                out,
                query,
                kv_cache,
                *tables,
                scale=scale,
                sliding_window=sliding_window,
                splits=plan.splits[layer],
                workspace=self._workspace,
            )
        if plan.max_prefill_rows:
            config = prefill_config(
                head_dim,
                query.element_size(),
                plan.max_prefill_rows * (num_heads // num_kv_heads),
                min(plan.max_prefill_len, sliding_window or plan.max_prefill_len),
                _capability(query.device),
            )
            paged_prefill(out, query, kv_cache, *tables, scale=scale, sliding_window=sliding_window, config=config)
        return out

    def _check_cache(self, rows: Tensor, kv_cache: Tensor, *, num_kv_heads: int) -> None:
        if kv_cache.dim() != 5 or kv_cache.shape[0] != 2:
            raise BackendError(
                f"kv_cache must be [2, num_blocks, block_size, num_kv_heads, head_dim], not {list(kv_cache.shape)}"
            )
        if rows.dim() != 3 or rows.shape[2] != kv_cache.shape[4] or num_kv_heads != kv_cache.shape[3]:
            raise BackendError(
                f"rows {list(rows.shape)} do not fit a cache of {list(kv_cache.shape)} (heads, head_dim)"
            )
        if rows.dtype != kv_cache.dtype:
            raise BackendError(f"rows are {rows.dtype} but the cache is {kv_cache.dtype}: convert one of them")
        if rows.device != kv_cache.device:
            raise BackendError(f"rows are on {rows.device} but the cache is on {kv_cache.device}: move one of them")
        if not kv_cache.is_contiguous():
            raise BackendError("kv_cache is not contiguous: the kernels compute addresses from its shape alone")
        needs = (rows.device, rows.dtype, rows.shape[2], kv_cache.shape[2])
        if needs not in self._served:
            device, dtype, head_dim, block_size = needs
            reason = self.unsupported_reason(device=device, dtype=dtype, head_dim=head_dim, block_size=block_size)
            if reason is not None:
                raise BackendError(reason)
            self._served.add(needs)

    @staticmethod
    def _check_rows(name: str, rows: Tensor) -> None:
        if rows.stride(2) != 1 or rows.stride(1) != rows.shape[2]:
            raise BackendError(f"the heads of one token must be contiguous in {name}: call .contiguous() on it")

    @staticmethod
    def _check_metadata(query: Tensor, metadata: AttentionMetadata) -> None:
        _check_index("block_tables", metadata.block_tables, torch.int32, query.device)
        _check_index("query_starts", metadata.query_starts, torch.int32, query.device)
        _check_index("seq_lens", metadata.seq_lens, torch.int32, query.device)
        num_seqs = metadata.num_seqs
        lengths = (len(metadata.block_tables), len(metadata.query_starts) - 1, len(metadata.seq_lens))
        if any(n != num_seqs for n in lengths):
            raise BackendError(
                f"metadata of {num_seqs} sequences has {lengths[0]} block tables, {lengths[1]} query ranges and "
                f"{lengths[2]} lengths: make them agree"
            )


def _check_index(name: str, tensor: Tensor, dtype: torch.dtype, device: torch.device) -> None:
    if tensor.dtype != dtype or tensor.device != device or (tensor.numel() and tensor.stride(-1) != 1):
        raise BackendError(
            f"{name} must be contiguous {dtype} on {device}, not {tensor.dtype} with strides {tensor.stride()} "
            f"on {tensor.device}"
        )


def _check_block_tables(metadata: AttentionMetadata, block_size: int, num_blocks: int) -> None:
    """Every block that a context reaches exists. Copies the tables to the host."""
    tables = metadata.block_tables.cpu()
    for i, seq_len in enumerate(metadata.seq_lens.tolist()):
        if seq_len > tables.shape[1] * block_size:
            raise BackendError(f"sequence {i} has {seq_len} tokens but its block table holds {tables.shape[1]} blocks")
        used = tables[i, : -(-seq_len // block_size)]
        bad = used[(used < 0) | (used >= num_blocks)]
        if bad.numel():
            raise BackendError(
                f"the block table of sequence {i} points to block {int(bad[0])}, but the cache has blocks 0 to "
                f"{num_blocks - 1}"
            )


def _multiprocessors(device: torch.device) -> tuple[int, int]:
    """How many there are, and how many decode programs they run at once. A CPU pretends to be a chip of four."""
    from pagedlab.runtime.kernels.decode import resident_programs

    if device.type != "cuda":
        return 4, 8
    properties = torch.cuda.get_device_properties(device)
    count = properties.multi_processor_count
    return count, resident_programs(count, properties.shared_memory_per_multiprocessor)


def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (9, 0)
