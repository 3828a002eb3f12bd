"""Blocks of a fixed size, given out one at a time as tokens come: the allocator that vLLM introduced.

The same idea as pagedlab.model_authoring.block_manager, without requests, hashes and sharing: a table of block ids a
sequence, and one queue of free ids, taken from the front and given back, last block first, at the end. A test holds the
two against each other, id by id.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable

import numpy as np

from pagedlab.errors import SimulationError
from pagedlab.simulate.allocators.base import Allocator, Counts, Sequence, Snapshot, State


class PagedAllocator(Allocator):
    """Any free block serves anybody, so nothing is EXTERNAL; waste is the unfilled end of each last block.

    Args:
        capacity: slots; what is left over after the last whole block is never used.
        block_size: slots in a block.
        watermark: share of the blocks that taking in a request must leave free, so that those inside can grow. Without
            it a full memory takes somebody in and throws somebody out again, step after step.
    """

    def __init__(self, capacity: int, block_size: int = 16, watermark: float = 0.01, name: str = "paged") -> None:
        super().__init__(capacity)
        if not 0 <= watermark < 1:
            raise SimulationError(f"watermark is a share of the blocks, 0 to below 1, got {watermark}.")
        if not 1 <= block_size <= capacity:
            raise SimulationError(f"block_size must be 1 to the capacity of {capacity} slots, got {block_size}.")
        self.name = name
        self.block_size = block_size
        self.num_blocks = capacity // block_size
        self.kept_free = int(watermark * self.num_blocks)
        self.tables: dict[Hashable, list[int]] = {}
        """Logical block i of a sequence is physical block tables[key][i]."""
        self.free_queue = deque(range(self.num_blocks))
        """Ids of the free blocks, least recently freed first."""
        self._due: list[dict[Hashable, tuple[list[int], int]]] = [{} for _ in range(block_size)]
        """Clock modulo block_size -> the sequences (table, final) whose next token opens a new block then."""
        self._never_written = 0
        """INTERNAL slots, of last blocks that reach past the end of their sequence."""

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold `num_tokens` tokens."""
        return -(-num_tokens // self.block_size)

    def slots_wanted(self, prompt_tokens: int, output_tokens: int) -> int:
        return self.blocks_for(prompt_tokens) * self.block_size

    def could_hold(self, prompt_tokens: int, output_tokens: int) -> bool:
        return self.blocks_for(prompt_tokens + output_tokens) <= self.num_blocks

    @property
    def num_free(self) -> int:
        return len(self.free_queue) * self.block_size

    @property
    def largest_free(self) -> int:
        return self.num_free  # blocks need not be neighbours

    def counts(self, wanted: int = 0) -> Counts:
        leftover = self.capacity - self.num_blocks * self.block_size
        free = self.num_free
        held = self.capacity - leftover - free
        empty = held - self._tokens
        return Counts(self._tokens, empty - self._never_written, self._never_written, leftover, free)

    def snapshot(self, wanted: int = 0) -> Snapshot:
        states = np.full(self.capacity, State.FREE, dtype=np.uint8)
        states[self.num_blocks * self.block_size :] = State.EXTERNAL
        blocks = states[: self.num_blocks * self.block_size].reshape(self.num_blocks, self.block_size)
        for key, table in self.tables.items():
            logical = np.full(len(table) * self.block_size, State.INTERNAL, dtype=np.uint8)
            logical[: self._sequences[key].final] = State.RESERVED
            logical[: self.num_tokens(key)] = State.TOKEN
            blocks[table] = logical.reshape(len(table), self.block_size)
        return states

    # ---- how it places ------------------------------------------------------------------------------------------

    def _place(self, key: Hashable, prompt_tokens: int, final: int) -> bool:
        needed = self.blocks_for(prompt_tokens)
        kept_free = self.kept_free if self.tables else 0  # alone it may have all
        if needed + kept_free > len(self.free_queue):
            return False
        self.tables[key] = []
        self._append(self.tables[key], needed, final)
        return True

    def _grow(self, key: Hashable, sequence: Sequence, num_tokens: int) -> bool:
        table = self.tables[key]
        needed = self.blocks_for(self.num_tokens(key) + num_tokens) - len(table)
        if needed > len(self.free_queue):
            return False
        del self._due[self._phase(sequence)][key]
        self._append(table, needed, sequence.final)
        return True

    def _append(self, table: list[int], count: int, final: int) -> None:
        before = max(0, len(table) * self.block_size - final)
        table += [self.free_queue.popleft() for _ in range(count)]
        self._never_written += max(0, len(table) * self.block_size - final) - before

    def _track(self, key: Hashable, sequence: Sequence) -> None:
        super()._track(key, sequence)
        self._due[self._phase(sequence)][key] = (self.tables[key], sequence.final)

    def _phase(self, sequence: Sequence) -> int:
        """Tokens now are offset + clock; a new block opens whenever that is a multiple of the block size."""
        return -sequence.offset % self.block_size

    def _grow_all(self, num_tokens: int) -> int:
        """One visit to each sequence a block, not a token."""
        size, free = self.block_size, self.free_queue
        for step in range(num_tokens):
            due = self._due[(self._clock + step) % size]
            if not due:
                continue
            if len(due) > len(free):
                return step
            for table, final in due.values():
                table.append(free.popleft())
                past_the_end = len(table) * size - final
                if past_the_end > 0:
                    self._never_written += past_the_end
        return num_tokens

    def _release(self, key: Hashable, sequence: Sequence) -> None:
        table = self.tables.pop(key)
        self._never_written -= max(0, len(table) * self.block_size - sequence.final)
        self.free_queue.extend(reversed(table))
        del self._due[self._phase(sequence)][key]
