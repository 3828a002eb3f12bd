"""A worker with real paged memory and a toy model, so that engine tests are exact and take microseconds.

The "KV" of a token is its id, written to its slot. The "model" reads the whole context back through the block table,
and the next token is a hash of what it read. One wrong slot, one stale block, one token too many, and the output
differs from `expected_output`, which uses no memory at all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pagedlab.config import EngineConfig
from pagedlab.interfaces.engine import LLMEngine
from pagedlab.interfaces.engine_parts import EngineParts
from pagedlab.model_authoring.block_manager import BlockManager
from pagedlab.runtime.batch import BlockOps, PendingStep, RaggedBatch, StepResult, TokenLogprobs

VOCAB = 50
EOS = 0
POISON = -1


def next_token(context: Sequence[int], seed: int) -> int:
    """Depends on every token of the context, on their order, and on the seed."""
    digest = hashlib.blake2b(repr((list(map(int, context)), seed)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % VOCAB


def expected_output(prompt: Sequence[int], seed: int, max_tokens: int, ignore_eos: bool = True) -> list[int]:
    """What a sequence must generate, computed with no engine."""
    tokens = list(prompt)
    while len(tokens) - len(prompt) < max_tokens:
        tokens.append(next_token(tokens, seed))
        if tokens[-1] == EOS and not ignore_eos:
            break
    return tokens[len(prompt) :]


class MemoryWorker:
    """Carries out batches on integer memory. `fail_next` makes the next step raise, half done.

    As a device with a queue it is the laziest there can be: a launched step is carried out when somebody waits for it
    or for a later one. `fail_launch` makes the next launch raise, with nothing done.
    """

    def __init__(self, num_blocks: int, block_size: int, num_host_blocks: int = 0) -> None:
        self.block_size = block_size
        self.memory = np.full((num_blocks, block_size), POISON, np.int64)
        self.host = np.full((num_host_blocks, block_size), POISON, np.int64)
        self.batches: list[RaggedBatch] = []
        self.fail_next = False
        self.fail_launch = False
        self.invalid_seeds: set[int] = set()
        self.queue: list[tuple[RaggedBatch, BlockOps, list[StepResult | Exception]]] = []
        self.sampled: list[int] = []
        self.num_ahead = 0
        """Launches with tokens that the host had not seen."""

    def launch(self, batch: RaggedBatch, ops: BlockOps) -> PendingStep:
        if self.fail_launch:
            self.fail_launch = False
            raise RuntimeError("the launch broke")
        outcome: list[StepResult | Exception] = []
        rows = [replace(row, output_token_ids=list(row.output_token_ids)) for row in batch.sampling]
        self.queue.append((replace(batch, sampling=rows), ops, outcome))
        self.num_ahead += bool(batch.carried)

        def result() -> StepResult:
            while not outcome:
                self._carry_out(*self.queue.pop(0))
            if isinstance(outcome[0], Exception):
                raise outcome[0]
            return outcome[0]

        return result

    def _carry_out(self, batch: RaggedBatch, ops: BlockOps, outcome: list[StepResult | Exception]) -> None:
        for row, index in batch.carried:
            batch.token_ids[row] = self.sampled[index]
        try:
            result = self.execute(batch, ops)
            self.sampled = result.token_ids
            outcome.append(result)
        except RuntimeError as error:
            self.sampled = [POISON] * len(batch.sampling)
            outcome.append(error)

    def execute(self, batch: RaggedBatch, ops: BlockOps) -> StepResult:
        for source, target in ops.swap_out:
            self.host[target] = self.memory[source]
        for source, target in ops.swap_in:
            self.memory[target] = self.host[source]
        if ops.copies:
            sources, targets = zip(*ops.copies, strict=True)
            self.memory[list(targets)] = self.memory[list(sources)]
        slots = self.memory.reshape(-1)
        written = batch.slot_mapping
        assert len(set(written.tolist())) == len(written), "two tokens were given one slot"
        assert (written >= self.block_size).all(), "a token was written to the null block"
        if self.fail_next:
            self.fail_next = False
            slots[written[: len(written) // 2]] = POISON
            raise RuntimeError("the model broke")
        slots[written] = batch.token_ids
        self.batches.append(batch)
        result = StepResult([], logprobs=[])
        owner = np.searchsorted(batch.query_starts, [row.row for row in batch.sampling], side="right") - 1
        for index, (row, sequence) in enumerate(zip(batch.sampling, owner, strict=True)):
            length = batch.seq_lens[sequence]
            assert row.row == batch.query_starts[sequence + 1] - 1, "only a sequence's last row is sampled"
            context = self.memory[batch.block_tables[sequence]].reshape(-1)[:length]
            result.token_ids.append(next_token(context, row.seed))
            if row.seed in self.invalid_seeds:
                result.errors[index] = "the logits are not numbers"
            result.logprobs.append(self._candidates(context, row.num_logprobs))
        return result

    @staticmethod
    def _candidates(context: np.ndarray, count: int | None) -> TokenLogprobs | None:
        if count is None:
            return None
        scores = toy_logprobs(context)
        best = np.argsort(-scores, kind="stable")[:count]
        ids = [int(best[0]), *map(int, best)]
        return TokenLogprobs(ids, [float(scores[i]) for i in ids], [1, *range(1, count + 1)])


def toy_logprobs(context: Sequence[int]) -> np.ndarray:
    """A distribution over the vocabulary that depends on the whole context [VOCAB]."""
    digest = hashlib.blake2b(repr(list(map(int, context))).encode(), digest_size=8).digest()
    logits = np.random.default_rng(int.from_bytes(digest, "little")).normal(size=VOCAB)
    return logits - np.log(np.exp(logits).sum())


def memory_engine(
    num_blocks: int = 32,
    block_size: int = 4,
    num_host_blocks: int = 0,
    max_num_seqs: int = 8,
    max_num_batched_tokens: int = 32,
    max_model_len: int = 512,
    **options: object,
) -> LLMEngine:
    """An LLMEngine on a MemoryWorker, with no tokenizer."""
    config = EngineConfig(block_size=block_size, num_blocks=num_blocks, **options)  # type: ignore[arg-type]
    manager_cls = config.block_manager_cls or BlockManager
    parts = EngineParts(
        tokenizer=None,
        worker=MemoryWorker(num_blocks, block_size, num_host_blocks),
        block_manager=manager_cls(
            num_blocks=num_blocks,
            block_size=block_size,
            enable_prefix_caching=config.enable_prefix_caching,
            num_host_blocks=num_host_blocks,
        ),
        vocab_size=VOCAB,
        eos_token_ids=frozenset({EOS}),
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
    )
    return LLMEngine(config, parts)
