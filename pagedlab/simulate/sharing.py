"""How many blocks copy-on-write saves when several sequences grow from one prompt: figure 15 of the vLLM paper.

Every decision is the engine's: fork, copy, free are BlockManager's. What stands in for the model is the family tree:
which sequence of one step each sequence of the next step continues. Parallel sampling keeps its sequences; beam search
keeps the best continuations, so that some sequences have several heirs and others none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from pagedlab.errors import SimulationError
from pagedlab.model_authoring.block_manager import BlockManager
from pagedlab.model_authoring.request import Request
from pagedlab.sampling_params import SamplingParams
from pagedlab.simulate.workloads import TraceRequest

Parents: TypeAlias = list[int]
"""For each sequence of the next step, the sequence of this step that it continues: numbers 0 .. width - 1."""
ChooseParents: TypeAlias = Callable[[int, np.random.Generator], Parents]
"""From the width and a source of chance to the next step's parents."""


@dataclass(frozen=True)
class Sharing:
    """Blocks summed over the steps, each counted once a step.

    Attributes:
        held: blocks out of the pool, each once, however many tables hold it
        unshared: entries of all block tables: the blocks that it would take if nobody shared
        copies: blocks copied on write
    """

    held: int = 0
    unshared: int = 0
    copies: int = 0

    def __add__(self, other: Sharing) -> Sharing:
        return Sharing(self.held + other.held, self.unshared + other.unshared, self.copies + other.copies)

    @property
    def saving(self) -> float:
        """Blocks saved by sharing / blocks without sharing: the measure of arXiv 2309.06180, figure 15."""
        return 1 - self.held / self.unshared if self.unshared else 0.0


def keep_all(width: int, rng: np.random.Generator) -> Parents:
    """Parallel sampling: everybody goes on by itself."""
    return list(range(width))


def neutral_beams(width: int, rng: np.random.Generator) -> Parents:
    """Beam search without a favourite: each beam of the next step continues any beam of this one, by chance.

    Geneticists know it as the Wright-Fisher model. A real model has favourites; how strong they are depends on it.
    """
    return rng.integers(width, size=width).tolist()


def decisive_beams(stay: float) -> ChooseParents:
    """Beam search that, with probability `stay`, lets a beam continue itself, and else as `neutral_beams`."""
    if not 0 <= stay <= 1:
        raise SimulationError(f"stay is a probability, 0 to 1, got {stay}.")

    def choose(width: int, rng: np.random.Generator) -> Parents:
        return [own if rng.random() < stay else int(rng.integers(width)) for own in range(width)]

    return choose


class Family:
    """The sequences of one prompt in a block pool of their own, as the engine runs them.

    Args:
        prompt_tokens: length of the prompt, at least 1; it is computed once.
        width: sequences after the prompt, at least 1.
        max_tokens: tokens that each may get; sizes the pool.
        block_size: slots of a block.

    Attributes:
        manager: its BlockManager, to look at
        sequences: the Requests alive, in order
    """

    def __init__(self, prompt_tokens: int, width: int, max_tokens: int, block_size: int = 16) -> None:
        if min(prompt_tokens, width, max_tokens, block_size) < 1:
            raise SimulationError(
                f"A family needs a prompt, a width, tokens to write and a block size of at least 1, "
                f"got {prompt_tokens}, {width}, {max_tokens} and {block_size}."
            )
        # Everybody may hold a table of its own, and heirs exist for a moment beside those who leave.
        longest = -(-(prompt_tokens + max_tokens) // block_size)
        self.manager = BlockManager(1 + 2 * width * longest, block_size, enable_prefix_caching=False)
        self._born = 1
        prompt = Request("0", [0] * prompt_tokens, SamplingParams(max_tokens=max_tokens))
        self.manager.attach_prefix(prompt)
        self.manager.allocate(prompt, prompt_tokens)
        prompt.num_computed_tokens = prompt_tokens
        self.sequences = [prompt, *(self._fork(prompt) for _ in range(width - 1))]

    def continue_from(self, parents: Parents) -> None:
        """One choice of beams: the first heir of a sequence takes its place, the others fork, the rest leave."""
        width = len(self.sequences)
        if len(parents) != width or not all(0 <= parent < width for parent in parents):
            raise SimulationError(f"{width} sequences need {width} parents, each 0 to {width - 1}, got {parents}.")
        heirs: list[Request] = []
        continued: set[int] = set()
        for parent in parents:
            heirs.append(self._fork(self.sequences[parent]) if parent in continued else self.sequences[parent])
            continued.add(parent)
        for index, sequence in enumerate(self.sequences):
            if index not in continued:
                self.manager.free(sequence)
        self.sequences = heirs

    def write_token(self) -> int:
        """Every sequence computes one token of its own. Returns the blocks that were copied for it."""
        for sequence in self.sequences:
            sequence.token_ids.append(0)
            granted = self.manager.allocate(sequence, sequence.num_tokens)
            assert granted, "the pool holds every sequence without any sharing"
            sequence.num_computed_tokens += 1
        return len(self.manager.take_ops().copies)

    def count(self, copies: int = 0) -> Sharing:
        """The blocks of this moment."""
        manager = self.manager
        tables = sum(len(table.blocks) for table in manager.tables.values())
        return Sharing(manager.num_usable_blocks - manager.num_free_blocks, tables, copies)

    def _fork(self, parent: Request) -> Request:
        child = Request(str(self._born), list(parent.token_ids), parent.params)
        child.num_computed_tokens = parent.num_computed_tokens
        self._born += 1
        self.manager.fork(parent, child)
        return child


def run_family(
    prompt_tokens: int, steps: Iterable[Parents], width: int, max_tokens: int, block_size: int = 16
) -> Sharing:
    """One prompt whose family tree is given step by step; counted after each step's tokens are written."""
    family = Family(prompt_tokens, width, max_tokens, block_size)
    total = Sharing()
    for parents in steps:
        family.continue_from(parents)
        total += family.count(family.write_token())
    return total


def simulate_sharing(
    requests: Sequence[TraceRequest],
    width: int,
    choose_parents: ChooseParents = keep_all,
    block_size: int = 16,
    seed: int = 0,
) -> Sharing:
    """Every request of a workload as a family of `width`, all of its sequences as long as its output.

    Requests do not share with each other, so each runs by itself; a request counts for as many steps as it lives.

    Raises:
        SimulationError: no requests, or a width or block size below 1.
    """
    if not requests:
        raise SimulationError("There is nothing to simulate: give at least one request.")
    rng = np.random.default_rng(seed)
    total = Sharing()
    for request in requests:
        # The first choice is among continuations of one prompt: all sequences begin as forks of it.
        steps = (choose_parents(width, rng) for _ in range(request.output_tokens))
        total += run_family(request.prompt_tokens, steps, width, request.output_tokens, block_size)
    return total
