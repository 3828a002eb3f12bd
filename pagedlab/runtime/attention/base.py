"""The one signature that every attention backend implements, and the per-step metadata it reads.

The KV cache of one layer is one tensor `[2, num_blocks, block_size, num_kv_heads, head_dim]` (0: keys, 1: values) for
every backend, so that block copies and swaps are the same everywhere. Block 0 is the null block: padding may be written
there, and nobody's context ever contains it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor


@dataclass(slots=True)
class AttentionMetadata:
    """Where the rows of one ragged batch live. Tensors are on the compute device; the lists are their host copies.

    Attributes:
        block_tables: [num_seqs, max_blocks] int32
        query_starts: [num_seqs + 1] int32
        seq_lens: [num_seqs] int32, context length with this step's tokens included
        slot_mapping: [num_tokens] int64
        query_lens_host, seq_lens_host: plain integers, so that planning needs no device synchronisation
        plan: what the backend's `plan` returned for this step and the window of the layer at hand
    """

    block_tables: Tensor
    query_starts: Tensor
    seq_lens: Tensor
    slot_mapping: Tensor
    query_lens_host: list[int]
    seq_lens_host: list[int]
    plan: Any = field(default=None)

    @property
    def num_seqs(self) -> int:
        return len(self.seq_lens_host)

    @property
    def max_seq_len(self) -> int:
        return max(self.seq_lens_host, default=0)


class AttentionBackend(ABC):
    """Writes keys and values into a paged cache, and attends over it.

    Query row `r` of sequence `i` stands at position `seq_lens[i] - query_lens[i] + r` and sees the positions up to its
    own (causal), no more than `sliding_window` of them, its own included, if that is not None.
    """

    name: ClassVar[str]

    graph_safe: ClassVar[bool] = False
    """Launches the same kernels whatever the lengths are, so that a step can be recorded in a CUDA graph."""

    rotates: ClassVar[bool] = False
    """Has a `rotate_and_write`, which takes a projection as it comes."""

    @classmethod
    def unsupported_reason(
        cls, *, device: torch.device, dtype: torch.dtype, head_dim: int, block_size: int
    ) -> str | None:
        """Why this backend cannot serve such a model here (one sentence), or None if it can."""
        return None

    def plan(self, metadata: AttentionMetadata, *, block_size: int, sliding_window: int | None) -> Any:
        """Once a step and window size, before the first layer: anything that the layers share.

        `attend` finds the result, for its layer's window, in `metadata.plan`.
        """
        return None

    def write(self, key: Tensor, value: Tensor, kv_cache: Tensor, slot_mapping: Tensor) -> None:
        """Store `key` and `value` [num_tokens, num_kv_heads, head_dim] at their slots of `kv_cache`."""
        _, num_blocks, block_size, num_kv_heads, head_dim = kv_cache.shape
        slots = kv_cache.view(2, num_blocks * block_size, num_kv_heads, head_dim)
        slots[0].index_copy_(0, slot_mapping, key)
        slots[1].index_copy_(0, slot_mapping, value)

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
        """Head norms, rotary embedding and `write` in one pass, where `rotates` says that there is one.

        Args:
            heads: [num_tokens, num_heads + 2 * num_kv_heads, head_dim]: queries, keys, values
            cos, sin: [num_tokens, 1, head_dim], the first half of sin negated
            norms: RMSNorm weights [head_dim] for query and key heads, or None
            eps: of the norms

        Returns:
            the rotated queries [num_tokens, num_heads, head_dim].
        """
        raise NotImplementedError(f"{type(self).__name__} does not rotate: its `rotates` is False")

    @abstractmethod
    def attend(
        self, query: Tensor, kv_cache: Tensor, metadata: AttentionMetadata, *, scale: float, sliding_window: int | None
    ) -> Tensor:
        """Attention output [num_tokens, num_heads, head_dim] of `query` (same shape) over the paged context."""


class FunctionBackend(AttentionBackend):
    """A learner's plain function in place of a backend.

    The function is called as `fn(query, key_cache, value_cache, block_tables, query_starts, seq_lens, scale=...,
    sliding_window=...)` with caches `[num_blocks, block_size, num_kv_heads, head_dim]`, and returns the output.
    """

    name: ClassVar[str] = "function"

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function = function

    def attend(
        self, query: Tensor, kv_cache: Tensor, metadata: AttentionMetadata, *, scale: float, sliding_window: int | None
    ) -> Tensor:
        return self.function(
            query,
            kv_cache[0],
            kv_cache[1],
            metadata.block_tables,
            metadata.query_starts,
            metadata.seq_lens,
            scale=scale,
            sliding_window=sliding_window,
        )


class AttentionContext:
    """What a model calls in place of attention: it knows the backend, each layer's cache and the step's metadata."""

    def __init__(
        self,
        backend: AttentionBackend,
        kv_caches: list[Tensor],
        metadata: AttentionMetadata,
        sliding_windows: Iterable[int | None] = (None,),
    ) -> None:
        self.backend = backend
        self.kv_caches = kv_caches
        self.metadata = metadata
        block_size = kv_caches[0].shape[2]
        self.plans = {
            window: backend.plan(metadata, block_size=block_size, sliding_window=window)
            for window in set(sliding_windows)
        }

    def __call__(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float, sliding_window: int | None = None
    ) -> Tensor:
        """Write this step's keys and values for `layer`, then attend. Shapes `[num_tokens, heads, head_dim]`."""
        self.backend.write(key, value, self.kv_caches[layer], self.metadata.slot_mapping)
        return self._attend(layer, query, scale, sliding_window)

    @property
    def rotates(self) -> bool:
        """May a model hand over its projection as it comes (`from_projection`)?"""
        return self.backend.rotates

    def from_projection(
        self,
        layer: int,
        heads: Tensor,
        cos: Tensor,
        sin: Tensor,
        *,
        norms: tuple[Tensor, Tensor] | None,
        eps: float,
        scale: float,
        sliding_window: int | None = None,
    ) -> Tensor:
        """Norm, rotate, write and attend; arguments as in AttentionBackend.rotate_and_write."""
        slots = self.metadata.slot_mapping
        query = self.backend.rotate_and_write(heads, cos, sin, self.kv_caches[layer], slots, norms, eps)
        return self._attend(layer, query, scale, sliding_window)

    def _attend(self, layer: int, query: Tensor, scale: float, sliding_window: int | None) -> Tensor:
        self.metadata.plan = self.plans[sliding_window]
        cache = self.kv_caches[layer]
        return self.backend.attend(query, cache, self.metadata, scale=scale, sliding_window=sliding_window)
