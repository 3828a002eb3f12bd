"""CacheEngine: the KV tensors of all layers, and the copies of whole blocks within them and to host memory."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import psutil
import torch
from torch import Tensor

from pagedlab.errors import ConfigError

Pairs = Sequence[tuple[int, int]]


class CacheEngine:
    """Owns the KV pool. A block id means the same block in every layer: one block table serves the whole model.

    Attributes:
        kv: [num_layers, 2, num_blocks, block_size, num_kv_heads, head_dim] (0: keys, 1: values). It starts as zeros,
            not garbage: masked attention multiplies unwritten slots by 0, and 0 * NaN is NaN.
        host: [num_host_blocks, num_layers, 2, block_size, num_kv_heads, head_dim] in host memory, pinned if the pool is
            on a GPU. The block comes first so that one block is one contiguous transfer.
    """

    def __init__(
        self,
        num_layers: int,
        num_blocks: int,
        block_size: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        num_host_blocks: int = 0,
    ) -> None:
        """Raises:
        ConfigError: the pool or its host part does not fit in memory.
        """
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.num_host_blocks = num_host_blocks
        self.device = torch.device(device)
        self.copies_by_kernel = self.device.type == "cuda" and find_spec("triton") is not None
        """Copy on write by the Triton kernel, which moves each byte once; indexing gathers into a temporary first."""
        block = self.bytes_per_block(num_layers, block_size, num_kv_heads, head_dim, dtype)
        self.kv = _allocate(
            (num_layers, 2, num_blocks, block_size, num_kv_heads, head_dim),
            num_blocks * block,
            f"The KV pool of {num_blocks} blocks of {block:,} bytes",
            "lower num_blocks, kv_cache_memory or gpu_memory_utilization",
            dtype=dtype,
            device=self.device,
        )
        self.host = _allocate(
            (num_host_blocks, num_layers, 2, block_size, num_kv_heads, head_dim),
            num_host_blocks * block,
            f"The swap space of {num_host_blocks} blocks of {block:,} bytes",
            "lower swap_space",
            dtype=dtype,
            device=torch.device("cpu"),
            pin_memory=self.device.type == "cuda" and num_host_blocks > 0,
        )
        self.kv_caches: list[Tensor] = list(self.kv.unbind(0))
        """For each layer, its view [2, num_blocks, block_size, num_kv_heads, head_dim] of the pool."""

    @staticmethod
    def bytes_per_block(num_layers: int, block_size: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype) -> int:
        """Bytes of one block over all layers, keys and values together."""
        return 2 * num_layers * block_size * num_kv_heads * head_dim * dtype.itemsize

    def copy_blocks(self, pairs: Pairs) -> None:
        """Copy block to block, (source, target) each; all sources are read before any target is written."""
        if self.copies_by_kernel and not {source for source, _ in pairs} & {target for _, target in pairs}:
            from pagedlab.runtime.kernels.block_copy import copy_blocks

            copy_blocks(self.kv, self.kv, torch.tensor(pairs, dtype=torch.int32).to(self.device))
            return
        sources, targets = self._indices(pairs)
        self.kv.index_copy_(2, targets, self.kv.index_select(2, sources))

    def swap_out(self, pairs: Pairs) -> None:
        """Copy (device block, host block) pairs to host memory.

        On a GPU the transfers are queued, not awaited: only `swap_in`, on the same stream, reads what they bring.
        """
        sources, _ = self._indices(pairs)
        blocks = self.kv.index_select(2, sources).movedim(2, 0).contiguous()
        for block, (_, target) in zip(blocks, pairs, strict=True):
            self.host[target].copy_(block, non_blocking=True)

    def swap_in(self, pairs: Pairs) -> None:
        """Copy (host block, device block) pairs back to the device."""
        _, targets = self._indices(pairs)
        blocks = self.kv.new_empty((len(pairs), *self.host.shape[1:]))
        for block, (source, _) in zip(blocks, pairs, strict=True):
            block.copy_(self.host[source], non_blocking=True)
        self.kv.index_copy_(2, targets, blocks.movedim(0, 2))

    def _indices(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        index = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).to(self.device)
        return index[:, 0], index[:, 1]


def _allocate(
    shape: tuple[int, ...], num_bytes: int, what: str, advice: str, *, device: torch.device, **options: Any
) -> Tensor:
    message = f"{what} needs {num_bytes:,} bytes, more than is free on {device}: {advice}."
    # Linux grants more than there is and kills the process that touches it, so host memory is asked beforehand.
    if device.type == "cpu" and num_bytes > psutil.virtual_memory().available:
        raise ConfigError(message)
    try:
        return torch.zeros(shape, device=device, **options)
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        raise ConfigError(message) from error
