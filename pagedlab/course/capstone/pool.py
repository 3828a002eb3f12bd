"""PoolSocket: the engine's block manager hands out the blocks that a reader's pool chooses."""

from __future__ import annotations

import operator
from typing import Any

from pagedlab.course.capstone.watch import Watch
from pagedlab.model_authoring.block_manager import BlockManager
from pagedlab.model_authoring.block_pool import Block, BlockPool


class PoolSocket(BlockPool):
    """Looks like the engine's pool; which block is handed out, and how many are free, the reader's pool says.

    It counts the holders of each block on the side, only to say where the reader's books first go wrong.
    """

    def __init__(self, num_blocks: int, part: Any, watch: Watch) -> None:
        super().__init__(num_blocks)
        self.watch = watch
        self.part = watch.call("pool", part.__name__, part, num_blocks)
        self._check_free("at the start")

    @property
    def num_free_blocks(self) -> int:
        value = getattr(self.part, "num_free", None)
        return self._whole(value() if callable(value) else value, "num_free is")

    def allocate(self) -> Block:
        number = self._whole(self.watch.call("pool", "allocate", self.part.allocate), "allocate() returned")
        if number == 0:
            self._fail("allocate() handed out block 0, the null block: padding may be written there.")
        if not 0 < number < len(self.blocks):
            self._fail(f"allocate() handed out block {number}, and there are blocks 1 to {len(self.blocks) - 1}.")
        block = self.blocks[number]
        if block.ref_count:
            self._fail(
                f"allocate() handed out block {number}, which is in use ({holders(block.ref_count)}): two requests "
                "would write over each other's keys."
            )
        block.ref_count = 1
        self._check_free(f"after allocate() gave block {number}")
        return block

    def share(self, block: Block) -> None:
        self.watch.call("pool", "share", self.part.share, block.block_id)
        block.ref_count += 1
        self._check_free(f"after share({block.block_id}), which has {holders(block.ref_count)} now")

    def release(self, block: Block) -> None:
        self.watch.call("pool", "release", self.part.release, block.block_id)
        block.ref_count -= 1
        self._check_free(f"after release({block.block_id}), which has {holders(block.ref_count)} now")

    def _check_free(self, when: str) -> None:
        free, said = sum(not block.ref_count for block in self.blocks[1:]), self.num_free_blocks
        if said != free:
            why = "A block is free when its last holder has given it back, and not before."
            if when == "at the start":
                why = "Block 0 is never handed out, so it is not free either."
            self._fail(f"num_free is {said} {when}, and {free} blocks have no holder. {why}")

    def _whole(self, value: Any, what: str) -> int:
        try:
            return operator.index(value)
        except TypeError:
            self._fail(f"{what} {value!r}: it must be a whole number.")
            raise

    def _fail(self, sentence: str) -> None:
        self.watch.fail("pool", sentence)


def holders(count: int) -> str:
    return {0: "no holder", 1: "1 holder"}.get(count, f"{count} holders")


class ManagerSocket(BlockManager):
    """The engine's block manager on another pool; a class attribute says which, for LLM makes the object itself."""

    part: Any
    watch: Watch

    def __init__(self, num_blocks: int, block_size: int, **options: Any) -> None:
        super().__init__(num_blocks, block_size, **options)
        self.pool = PoolSocket(num_blocks, self.part, self.watch)
