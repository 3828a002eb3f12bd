"""Into how many programs a decode batch's contexts are split, and the memory that their results wait in."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SHORT_SPLIT, LONG_SPLIT = 128, 1024
"""Fewest positions a split (multiples of every tile's): where it puts an idle part of the chip to work, and where it
only evens out the load."""


@dataclass(frozen=True, slots=True)
class Splits:
    """How contexts are split: `count` programs for each at most, and at least `shortest` positions in one.

    The count belongs to the grid and is fixed in a captured graph; how many of them a sequence uses follows from its
    length, on the device.
    """

    count: int
    shortest: int


def choose_splits(
    num_seqs: int, num_kv_heads: int, max_seq_len: int, num_multiprocessors: int, resident: int
) -> Splits:
    """Splits for a batch; `num_kv_heads` counts packs, `resident` the programs that the chip runs at once.

    Two programs a multiprocessor saturate the memory. A grid smaller than that is split until it is as large. A grid of
    a few waves leaves much of the chip idle in its last, partly filled one: it is split into smaller jobs, but only
    where they stay long enough to repay the merge.
    """
    programs = max(1, num_seqs * num_kv_heads)
    if programs <= resident:
        wanted, shortest = 2 * num_multiprocessors // programs, SHORT_SPLIT
    else:
        wanted, shortest = -(-3 * resident // programs), LONG_SPLIT
    return Splits(max(1, min(wanted, -(-max_seq_len // shortest))), shortest)


class SplitWorkspace:
    """Device memory for the results of splits, kept between steps.

    A captured CUDA graph holds the addresses it was captured with, so memory that has been handed out is never freed:
    growing keeps the old buffers alive. The size is bounded by the chip, not by the batch: splits exist only where
    sequences alone do not fill it.
    """

    def __init__(self) -> None:
        self._buffers: list[tuple[Tensor, Tensor]] = []

    def reserve(self, rows: int, head_dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """`partial` (>= rows * head_dim elements) and `lse` (>= rows), float32; rows = seqs * splits * heads."""
        if not self._buffers or self._buffers[-1][0].numel() < rows * head_dim or self._buffers[-1][1].numel() < rows:
            old_elements, old_rows = (t.numel() for t in self._buffers[-1]) if self._buffers else (0, 0)
            partial = torch.empty(max(rows * head_dim, old_elements), dtype=torch.float32, device=device)
            lse = torch.empty(max(rows, old_rows), dtype=torch.float32, device=device)
            self._buffers.append((partial, lse))
        return self._buffers[-1]
