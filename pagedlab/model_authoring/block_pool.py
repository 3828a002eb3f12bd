"""The block pool: every KV block there is, which are free, and which hold a prefix that may be asked for again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(eq=False, slots=True)
class Block:
    """Bookkeeping of one block of `block_size` slots.

    Attributes:
        block_id: its index in the KV tensors
        ref_count: block tables that hold it; 0 means free
        block_hash: name of its content once it is full and computed, None before. A free block keeps its hash, and with
            it its content, until it is handed out again.
    """

    block_id: int
    ref_count: int = 0
    block_hash: bytes | None = None
    previous: Block | None = None
    next: Block | None = None


class FreeQueue:
    """The free blocks, least recently freed first, as a doubly linked list threaded through the blocks themselves.

    A deque would do for taking from the front, but a prefix hit takes a block out of the middle: with the links inside
    the blocks that is O(1) and allocates nothing.
    """

    def __init__(self, blocks: list[Block]) -> None:
        self._head = Block(-1)
        self._tail = Block(-1)
        self._head.next, self._tail.previous = self._tail, self._head
        self._length = 0
        for block in blocks:
            self.append(block)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Block]:
        block = self._head.next
        while block is not None and block is not self._tail:
            yield block
            block = block.next

    def append(self, block: Block) -> None:
        last = self._tail.previous
        assert last is not None
        last.next, block.previous = block, last
        block.next, self._tail.previous = self._tail, block
        self._length += 1

    def remove(self, block: Block) -> None:
        assert block.previous is not None and block.next is not None
        block.previous.next, block.next.previous = block.next, block.previous
        block.previous = block.next = None
        self._length -= 1

    def popleft(self) -> Block:
        first = self._head.next
        assert first is not None and first is not self._tail
        self.remove(first)
        return first


class BlockPool:
    """All blocks from the start: nothing is created or destroyed while the engine runs.

    Args:
        num_blocks: blocks in the KV tensors.
        null_block: keep block 0 out of circulation: padding may point to it and be written there.
    """

    def __init__(self, num_blocks: int, null_block: bool = True) -> None:
        self.blocks = [Block(i) for i in range(num_blocks)]
        self.free_queue = FreeQueue(self.blocks[1:] if null_block else self.blocks)
        self.num_usable_blocks = len(self.free_queue)
        self._cached: dict[bytes, Block] = {}

    @property
    def num_free_blocks(self) -> int:
        return len(self.free_queue)

    @property
    def num_cached_blocks(self) -> int:
        """Blocks whose content can be hit, in use or free."""
        return len(self._cached)

    def allocate(self) -> Block:
        """Hand out the least recently freed block; what it held is forgotten here and not before (lazy eviction)."""
        block = self.free_queue.popleft()
        self.forget(block)
        block.ref_count = 1
        return block

    def share(self, block: Block) -> None:
        """One more table holds `block`, which may be free (a prefix hit)."""
        if block.ref_count == 0:
            self.free_queue.remove(block)
        block.ref_count += 1

    def release(self, block: Block) -> None:
        """One table less holds `block`; the last one frees it."""
        assert block.ref_count > 0
        block.ref_count -= 1
        if block.ref_count == 0:
            self.free_queue.append(block)

    def lookup(self, block_hash: bytes) -> Block | None:
        return self._cached.get(block_hash)

    def remember(self, block: Block, block_hash: bytes) -> None:
        """Name the content of a full, computed block. The first block of a content keeps the name."""
        if block.block_hash is None and block_hash not in self._cached:
            block.block_hash = block_hash
            self._cached[block_hash] = block

    def forget(self, block: Block) -> None:
        if block.block_hash is not None:
            del self._cached[block.block_hash]
            block.block_hash = None

    def clear_cache(self) -> None:
        """Forget every content (weights changed, or a benchmark wants a cold start)."""
        for block in list(self._cached.values()):
            self.forget(block)
