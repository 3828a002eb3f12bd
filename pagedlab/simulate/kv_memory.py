"""KVMemory: the methods of VirtualMemory on the engine's own block manager: what paging is when it holds a KV cache.

Every decision is BlockManager's. This class adds what stands around it in the engine: slots to write to (the cache
engine's tensors) and the moves of blocks that the manager decided on (the worker).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

from pagedlab.errors import ConfigError
from pagedlab.model_authoring.block_manager import BlockManager, BlockTable
from pagedlab.model_authoring.request import Request
from pagedlab.sampling_params import SamplingParams
from pagedlab.simulate.paging import MemoryAccessError


class KVMemory:
    """A KV pool whose slots hold, in place of a token's keys and values, the token's id.

    Args:
        num_blocks: blocks of the pool, the null block (0) included.
        block_size: tokens of a block.
        num_host_blocks: blocks in host memory, for requests that are evicted.
        enable_prefix_caching: let requests share full blocks of equal content.
    """

    def __init__(
        self, num_blocks: int, block_size: int = 16, num_host_blocks: int = 0, enable_prefix_caching: bool = True
    ) -> None:
        if num_blocks < 2 or block_size < 1:
            raise ConfigError(
                f"num_blocks must be at least 2 (one is the null block) and block_size at least 1, "
                f"got {num_blocks} and {block_size}."
            )
        self.block_size = block_size
        self.manager = BlockManager(num_blocks, block_size, enable_prefix_caching, num_host_blocks)
        self.slots: list[int | None] = [None] * (num_blocks * block_size)
        self.host_slots: list[int | None] = [None] * (num_host_blocks * block_size)
        self.requests: dict[str, Request] = {}
        self.num_lookups = 0
        """Block table reads."""
        self.num_copies = 0
        """Blocks copied on write."""

    @property
    def num_free(self) -> int:
        """Blocks that no table holds; some still have content that can be hit."""
        return self.manager.num_free_blocks

    # ---- whose memory it is --------------------------------------------------------------------------------------

    def create(self, owner: str, content: Sequence[int] = ()) -> int:
        """Admit a request: its table starts with the blocks of a cached prefix, or empty. Returns the tokens found."""
        if owner in self.requests:
            raise ConfigError(f"There is a request {owner!r} already: free it, or choose another name.")
        request = self.requests[owner] = Request(owner, list(content), SamplingParams(max_tokens=1))
        request.num_computed_tokens = self.manager.attach_prefix(request)
        return request.num_computed_tokens

    def allocate(self, owner: str, size: int) -> bool:
        """Give real blocks to the first `size` tokens, before the step that writes them. A shared block that it will
        write is copied now; False, and no change, if there are too few."""
        request, _ = self._held(owner)
        granted = self.manager.allocate(request, size)
        self._carry_out()
        return granted

    def fork(self, parent: str, child: str) -> None:
        """Let `child` share every block of `parent`; whoever writes first into a shared block gets a copy."""
        source, _ = self._held(parent)
        if child in self.requests:
            raise ConfigError(f"There is a request {child!r} already: free it, or choose another name.")
        request = self.requests[child] = Request(child, list(source.token_ids), SamplingParams(max_tokens=1))
        request.num_computed_tokens = source.num_computed_tokens
        self.manager.fork(source, request)

    def free(self, owner: str) -> None:
        """End a request: the blocks that nobody else holds are free. Full ones can be hit until handed out again."""
        self.manager.free(self._request(owner))
        del self.requests[owner]

    # ---- use -----------------------------------------------------------------------------------------------------

    def split(self, address: int) -> tuple[int, int]:
        """Token position -> logical block, slot in the block."""
        return divmod(address, self.block_size)

    def table(self, owner: str) -> list[int]:
        """Logical block -> physical block. No entry is ever None: a running request has all of its blocks."""
        return list(self._held(owner)[1].ids)

    def translate(self, owner: str, address: int, write: bool = False) -> int:
        """Token position -> slot in the pool. Nothing can fault: a slot that was not allocated before is an error."""
        _, table = self._held(owner)
        block, slot = self.split(address)
        if not 0 <= block < len(table.ids):
            raise MemoryAccessError(f"Token {address} of {owner!r} has no block: allocate it before the step.")
        if write and table.blocks[block].ref_count > 1:
            raise MemoryAccessError(f"Token {address} of {owner!r} is in a shared block: allocate it before the step.")
        self.num_lookups += 1
        return table.ids[block] * self.block_size + slot

    def read(self, owner: str, address: int, size: int = 1) -> list[int]:
        """What the slots of `size` tokens from `address` on hold; their blocks need not be neighbours."""
        computed = self._request(owner).num_computed_tokens
        if not 0 <= address <= address + size <= computed:
            raise MemoryAccessError(
                f"{owner!r} has {computed} computed tokens: {address}..{address + size} is outside."
            )
        found = [self.slots[self.translate(owner, position)] for position in range(address, address + size)]
        return [token for token in found if token is not None]

    def write(self, owner: str, address: int, data: Sequence[int]) -> None:
        """Compute the tokens `data`, which follow those computed so far: a KV cache only ever grows at its end."""
        request, _ = self._held(owner)
        if address != request.num_computed_tokens:
            raise MemoryAccessError(f"{owner!r} must be written at token {request.num_computed_tokens}, not {address}.")
        known = request.token_ids[address : address + len(data)]
        if list(data[: len(known)]) != known:
            raise MemoryAccessError(
                f"{owner!r} has other tokens from {address} on: write those that it was created with."
            )
        slots = [self.translate(owner, address + index, write=True) for index in range(len(data))]
        for slot, token in zip(slots, data, strict=True):
            self.slots[slot] = token
        request.token_ids.extend(data[len(known) :])
        request.num_computed_tokens += len(data)
        self.manager.mark_computed(request)

    def gather(self, owner: str) -> list[int]:
        """All of a request's tokens, in order: what attention reads, at every step, one table entry a block."""
        request, table = self._held(owner)
        found: list[int | None] = []
        for block_id in table.ids[: self.manager.blocks_for(request.num_computed_tokens)]:
            self.num_lookups += 1
            found += self.slots[block_id * self.block_size : (block_id + 1) * self.block_size]
        return [token for token in found[: request.num_computed_tokens] if token is not None]

    # ---- moving blocks -------------------------------------------------------------------------------------------

    def load(self, owner: str) -> bool:
        """Bring all blocks of an evicted request back, before it runs again; False, and no change, without room."""
        if self._request(owner) not in self.manager.host_tables:
            raise MemoryAccessError(f"{owner!r} is not in host memory: evict it first.")
        moved = self.manager.swap_in(self.requests[owner])
        self._carry_out()
        return moved

    def evict(self, owner: str) -> bool:
        """Move all blocks of a request to host memory: the scheduler chose it; False, and no change, without room."""
        moved = self.manager.swap_out(self._held(owner)[0])
        self._carry_out()
        return moved

    # ---- books ---------------------------------------------------------------------------------------------------

    def waste(self, owner: str) -> int:
        """Slots of its blocks that hold no token yet: internal fragmentation, less than a block after each step."""
        request, table = self._held(owner)
        return len(table.ids) * self.block_size - request.num_computed_tokens

    def check_integrity(self) -> None:
        """Raise AssertionError if the books do not balance."""
        self.manager.check_integrity()
        for owner, request in self.requests.items():
            if request in self.manager.tables:
                assert self.read(owner, 0, request.num_computed_tokens) == self._computed(request)

    @staticmethod
    def _computed(request: Request) -> list[int]:
        return request.token_ids[: request.num_computed_tokens]

    def _request(self, owner: str) -> Request:
        if owner not in self.requests:
            raise MemoryAccessError(f"There is no request {owner!r}: create it first.")
        return self.requests[owner]

    def _held(self, owner: str) -> tuple[Request, BlockTable]:
        """A request that is on the device, and its table."""
        request = self._request(owner)
        if request not in self.manager.tables:
            raise MemoryAccessError(f"{owner!r} was evicted to host memory: load it first.")
        return request, self.manager.tables[request]

    def _carry_out(self) -> None:
        """What the worker does before a forward pass."""
        ops = self.manager.take_ops()
        for source, target in ops.swap_out:
            self.host_slots[self._slots_of(target)] = self.slots[self._slots_of(source)]
        for source, target in ops.swap_in:
            self.slots[self._slots_of(target)] = self.host_slots[self._slots_of(source)]
        read = [(target, self.slots[self._slots_of(source)]) for source, target in ops.copies]
        for target, content in read:
            self.slots[self._slots_of(target)] = content
        self.num_copies += len(read)

    def _slots_of(self, block_id: int) -> slice:
        return slice(block_id * self.block_size, (block_id + 1) * self.block_size)


def compare_methods(*classes: type) -> Iterator[tuple[str, list[str]]]:
    """Every public method and property of the classes, in the order of their definition: the name, and for each class
    the first sentence of its docstring, or an empty text if it has none of that name."""
    names = dict.fromkeys(name for cls in classes for name in vars(cls) if not name.startswith("_"))
    for name in names:
        yield name, [_first_sentence(vars(cls).get(name)) for cls in classes]


def _first_sentence(member: Any) -> str:
    documentation = " ".join((inspect.getdoc(member) or "").split()) if member is not None else ""
    sentence, stop, _ = documentation.partition(". ")
    return (sentence + stop).strip()
