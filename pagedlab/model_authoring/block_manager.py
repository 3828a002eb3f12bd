"""BlockManager: which blocks hold which sequence: block tables, prefix cache, copy-on-write, swap.

It decides on memory without touching a tensor: the moves it decides on are collected as BlockOps, and the worker
carries them out before the forward pass. Kwon et al. 2023 (arXiv 2309.06180), sections 4.2-4.5; prefix caching by hash
chains as in vLLM's automatic prefix caching.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

from pagedlab.model_authoring.block_pool import Block, BlockPool
from pagedlab.model_authoring.request import Request
from pagedlab.runtime.batch import BlockOps


@dataclass(slots=True)
class BlockTable:
    """Logical block i of a sequence is physical block `ids[i]`.

    Attributes:
        blocks: the bookkeeping of each block
        ids: the same blocks' ids, in the form that batches are packed from
        num_hashed: leading blocks whose content has been offered to the prefix cache
    """

    blocks: list[Block] = field(default_factory=list)
    ids: array[int] = field(default_factory=lambda: array("i"))
    num_hashed: int = 0

    def append(self, block: Block) -> None:
        self.blocks.append(block)
        self.ids.append(block.block_id)

    def replace(self, index: int, block: Block) -> None:
        self.blocks[index] = block
        self.ids[index] = block.block_id


class BlockManager:
    """Owns the block table of every admitted sequence.

    Args:
        num_blocks: blocks of the device pool, the null block (0) included.
        block_size: tokens in a block.
        enable_prefix_caching: keep and reuse full blocks of equal prefixes.
        num_host_blocks: blocks of the host pool that `swap_out` fills.
    """

    def __init__(
        self, num_blocks: int, block_size: int, enable_prefix_caching: bool = True, num_host_blocks: int = 0
    ) -> None:
        self.block_size = block_size
        self.enable_prefix_caching = enable_prefix_caching
        self.pool = BlockPool(num_blocks)
        self.host_pool = BlockPool(num_host_blocks, null_block=False)
        self.tables: dict[Request, BlockTable] = {}
        self.host_tables: dict[Request, list[Block]] = {}
        self.prefix_cache_queries = 0
        """Tokens looked up in the prefix cache."""
        self.prefix_cache_hits = 0
        """Tokens found there."""
        self._swap_out: list[tuple[int, int]] = []
        self._swap_in: list[tuple[int, int]] = []
        self._copies: dict[int, int] = {}
        """Target block -> source block, of this step's copy-on-write."""

    @property
    def num_usable_blocks(self) -> int:
        return self.pool.num_usable_blocks

    @property
    def num_free_blocks(self) -> int:
        return self.pool.num_free_blocks

    @property
    def usage(self) -> float:
        """Share of the usable blocks that some table holds."""
        return 1 - self.num_free_blocks / max(1, self.num_usable_blocks)

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold `num_tokens` tokens."""
        return -(-num_tokens // self.block_size)

    def block_ids(self, request: Request) -> array[int]:
        return self.tables[request].ids

    # ---- admission ----------------------------------------------------------------------------------------------

    def attach_prefix(self, request: Request) -> int:
        """Give a sequence without blocks the longest cached prefix of its tokens.

        The last known token is never taken from the cache, because its logits are wanted: a prompt that is cached whole
        computes its last block again.

        Returns:
            tokens found: a multiple of the block size, and less than the tokens known.
        """
        table = self.tables[request] = BlockTable()
        if not self.enable_prefix_caching or not request.may_use_prefix_cache:
            return 0
        for index in range((request.num_tokens - 1) // self.block_size):
            block = self.pool.lookup(request.block_hash(index, self.block_size))
            if block is None:
                break
            self.pool.share(block)
            table.append(block)
        table.num_hashed = len(table.blocks)
        return table.num_hashed * self.block_size

    def record_lookup(self, num_tokens: int, num_hits: int) -> None:
        """Count an admission that went through (a failed one is tried again and must not count twice)."""
        if self.enable_prefix_caching:
            self.prefix_cache_queries += num_tokens
            self.prefix_cache_hits += num_hits

    def can_hold(self, request: Request, num_tokens: int) -> bool:
        """Would the sequence's table grow to `num_tokens` tokens now?"""
        return self.blocks_for(num_tokens) - len(self.tables[request].blocks) <= self.num_free_blocks

    # ---- growth -------------------------------------------------------------------------------------------------

    def allocate(self, request: Request, num_tokens: int) -> bool:
        """Make the slots of tokens `num_computed_tokens .. num_tokens - 1` exist and belong to this sequence alone.

        Shared blocks in that range are copied on write. Either everything is granted or nothing changes.
        """
        table = self.tables[request]
        blocks = table.blocks
        first_written = request.num_computed_tokens // self.block_size
        has_room = first_written + 1 == len(blocks) and num_tokens <= len(blocks) * self.block_size
        if has_room and blocks[-1].ref_count == 1:
            return True  # nearly every decode: its last block has room and nobody else holds it
        shared = [i for i in range(first_written, len(blocks)) if blocks[i].ref_count > 1]
        num_new = self.blocks_for(num_tokens) - len(blocks)
        if not shared and num_new <= 0:
            return True
        if len(shared) + max(0, num_new) > self.num_free_blocks:
            return False
        for index in shared:
            source, target = blocks[index], self.pool.allocate()
            self._copies[target.block_id] = source.block_id
            self.pool.release(source)
            table.replace(index, target)
        for _ in range(num_new):
            table.append(self.pool.allocate())
        return True

    def num_blocks_to_take(self, request: Request, num_tokens: int) -> int:
        """Free blocks that `allocate(request, num_tokens)` would take now."""
        blocks = self.tables[request].blocks
        first_written = request.num_computed_tokens // self.block_size
        shared = sum(blocks[i].ref_count > 1 for i in range(first_written, len(blocks)))
        return shared + max(0, self.blocks_for(num_tokens) - len(blocks))

    def mark_computed(self, request: Request) -> None:
        """Offer blocks that are now full to the prefix cache.

        Only after the step that computed them: a block hashed earlier could be hit while it still holds garbage.
        """
        table = self.tables[request]
        # A token in flight may count as computed already, but nobody knows yet what to call it.
        num_full = min(request.num_computed_tokens, request.num_tokens) // self.block_size
        if num_full <= table.num_hashed:
            return
        if self.enable_prefix_caching:
            for index in range(table.num_hashed, num_full):
                self.pool.remember(table.blocks[index], request.block_hash(index, self.block_size))
        table.num_hashed = num_full

    def fork(self, parent: Request, child: Request) -> None:
        """Let `child` share every block of `parent`; whoever writes first into a shared block gets a copy."""
        table = self.tables[parent]
        for block in table.blocks:
            self.pool.share(block)
        self.tables[child] = BlockTable(list(table.blocks), table.ids[:], table.num_hashed)

    # ---- giving back --------------------------------------------------------------------------------------------

    def free(self, request: Request) -> None:
        """Give back all that a sequence holds, on the device and on the host.

        Blocks go from last to first, so that the head of a prefix, which more requests can hit, is evicted last.
        """
        table = self.tables.pop(request, None)
        if table is not None:
            for block in reversed(table.blocks):
                self.pool.release(block)
                if block.ref_count == 0:
                    self._copies.pop(block.block_id, None)
        for block in self.host_tables.pop(request, ()):
            self.host_pool.release(block)

    def forget_content(self, request: Request) -> None:
        """Take the sequence's blocks out of the prefix cache (its numbers turned out to be invalid)."""
        for block in self.tables[request].blocks:
            self.pool.forget(block)

    def swap_out(self, request: Request) -> bool:
        """Move a sequence's computed blocks to the host pool; False, and no change, if that has no room."""
        num_needed = self.blocks_for(request.num_computed_tokens)
        if num_needed > self.host_pool.num_free_blocks:
            return False
        host_blocks = []
        for block_id in self.tables[request].ids[:num_needed]:
            host_block = self.host_pool.allocate()
            host_blocks.append(host_block)
            # Swaps run before copies: a block whose copy is still to be made is read at the copy's source.
            self._swap_out.append((self._copies.get(block_id, block_id), host_block.block_id))
        self.free(request)
        self.host_tables[request] = host_blocks
        return True

    def swap_in(self, request: Request) -> bool:
        """Bring a swapped-out sequence's blocks back; False, and no change, if the pool has no room."""
        host_blocks = self.host_tables[request]
        if len(host_blocks) > self.num_free_blocks:
            return False
        table = self.tables[request] = BlockTable()
        for host_block in host_blocks:
            block = self.pool.allocate()
            table.append(block)
            self._swap_in.append((host_block.block_id, block.block_id))
            self.host_pool.release(host_block)
        del self.host_tables[request]
        return True

    def take_ops(self) -> BlockOps:
        """The moves decided since the last call, to be carried out before this step's forward pass."""
        ops = BlockOps(self._swap_out, self._swap_in, [(source, target) for target, source in self._copies.items()])
        self._swap_out, self._swap_in, self._copies = [], [], {}
        return ops

    # ---- checks -------------------------------------------------------------------------------------------------

    def check_integrity(self) -> None:
        """Raise AssertionError if the books do not balance. Cheap enough to run whenever the engine is idle."""
        holders: dict[int, int] = {}
        for table in self.tables.values():
            assert [block.block_id for block in table.blocks] == list(table.ids)
            for block in table.blocks:
                holders[block.block_id] = holders.get(block.block_id, 0) + 1
        free = {block.block_id for block in self.pool.free_queue}
        assert len(free) == len(self.pool.free_queue)
        for block in self.pool.blocks[1:]:
            assert block.ref_count == holders.get(block.block_id, 0), f"block {block.block_id} is miscounted"
            assert (block.ref_count == 0) == (block.block_id in free), f"block {block.block_id} is free and in use"
            if block.block_hash is not None:
                assert self.pool.lookup(block.block_hash) is block
        assert 0 not in holders and 0 not in free
        assert len(free) + len(holders) == self.num_usable_blocks
        on_host = sum(len(blocks) for blocks in self.host_tables.values())
        assert on_host + self.host_pool.num_free_blocks == self.host_pool.num_usable_blocks
