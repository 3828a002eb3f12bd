"""What the layer above hands to the worker: one ragged batch, as host data, and what comes back.

A step of the engine is one forward pass over the concatenated new tokens of every scheduled sequence. Nothing is
padded: sequence `i` owns rows `query_starts[i]:query_starts[i + 1]`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from pagedlab.sampling_params import SamplingParams


class TokensFrom(Sequence[int]):
    """The tokens of a growing list from `start` on, without copying them at each step."""

    __slots__ = ("start", "token_ids")

    def __init__(self, token_ids: list[int], start: int) -> None:
        self.token_ids = token_ids
        self.start = start

    def __len__(self) -> int:
        return len(self.token_ids) - self.start

    def __getitem__(self, index: Any) -> Any:
        return self.token_ids[self.start :][index]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.token_ids[self.start :], dtype)


@dataclass(slots=True)
class SamplingRow:
    """One token to be sampled, and all that the choice depends on (nothing of it belongs to another request).

    Attributes:
        row: index into the batch's tokens whose hidden state gives the logits. Several rows may share it (n > 1).
        params: the request's options.
        seed: the sequence's own seed; with the number of output tokens it fixes the random draw.
        prompt_token_ids, output_token_ids: the tokens so far (penalties, min_tokens).
        stop_token_ids: ids that may not be drawn before `min_tokens` (end of text included unless ignored).
        num_logprobs: alternatives to return beside the sampled token, None for none (beam search asks for more than
            `params.logprobs` may).
        num_in_flight: output tokens that the step before has sampled and the host has not seen; they count as drawn.
        bad_word_ids: token sequences that may not be completed.
    """

    row: int
    params: SamplingParams
    seed: int
    prompt_token_ids: Sequence[int]
    output_token_ids: Sequence[int]
    stop_token_ids: Sequence[int] = ()
    num_logprobs: int | None = None
    num_in_flight: int = 0
    bad_word_ids: Sequence[Sequence[int]] = ()
    _bias: tuple[np.ndarray, np.ndarray] | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def bias(self) -> tuple[np.ndarray, np.ndarray]:
        """params.logit_bias as arrays, token ids int64 and values float64. Made once, for a row serves all steps."""
        if self._bias is None:
            given = self.params.logit_bias or {}
            self._bias = np.fromiter(given, np.int64, len(given)), np.fromiter(given.values(), np.float64, len(given))
        return self._bias


@dataclass(slots=True)
class PromptLogprobRows:
    """Rows of the batch whose next prompt token must be scored (`prompt_logprobs`)."""

    first_row: int
    target_token_ids: Sequence[int]
    num_logprobs: int


@dataclass(slots=True)
class PoolingRows:
    """Rows of the batch whose hidden states are wanted (`encode`): their sum, or the last one alone."""

    first_row: int
    num_rows: int
    kind: str


@dataclass(slots=True)
class RaggedBatch:
    """One step's input. Arrays are host memory; the worker moves them to its device.

    Attributes:
        token_ids: [num_tokens] int64
        positions: [num_tokens] int64, position of each token in its own sequence
        slot_mapping: [num_tokens] int64, block_id * block_size + offset where the token's K and V are written
        block_tables: [num_seqs, max_blocks] int32, rows padded with 0 (the null block)
        query_starts: [num_seqs + 1] int32
        seq_lens: [num_seqs] int32, tokens in the sequence's context once this step's tokens are written
        sampling: the tokens to sample, in the order the results come back
        prompt_logprobs: rows to score
        pooling: rows whose hidden states are wanted
        carried: (row, index) pairs: the row's token is not known on the host yet; it is what the step before sampled
            for its `sampling[index]`, and stays on the device
    """

    token_ids: np.ndarray
    positions: np.ndarray
    slot_mapping: np.ndarray
    block_tables: np.ndarray
    query_starts: np.ndarray
    seq_lens: np.ndarray
    sampling: list[SamplingRow] = field(default_factory=list)
    prompt_logprobs: list[PromptLogprobRows] = field(default_factory=list)
    pooling: list[PoolingRows] = field(default_factory=list)
    carried: list[tuple[int, int]] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_seqs(self) -> int:
        return len(self.seq_lens)


@dataclass(slots=True)
class BlockOps:
    """Block moves that must be done before the forward pass, in this order.

    Within `copies` all sources are read before any target is written: a block may be the source of one pair and the
    target of another.

    Attributes:
        swap_out: (device block, host block) pairs
        swap_in: (host block, device block) pairs
        copies: (source block, target block) pairs on the device (copy-on-write)
    """

    swap_out: list[tuple[int, int]] = field(default_factory=list)
    swap_in: list[tuple[int, int]] = field(default_factory=list)
    copies: list[tuple[int, int]] = field(default_factory=list)


@dataclass(slots=True)
class TokenLogprobs:
    """Log-probabilities of one position under the model's own distribution (temperature 1, no penalties).

    `token_ids[0]` is the sampled (or the prompt's) token with its rank among all; the others are the best, in order.
    """

    token_ids: list[int]
    logprobs: list[float]
    ranks: list[int]


@dataclass(slots=True)
class StepResult:
    """What one step produced, row for row of `RaggedBatch.sampling` and `.prompt_logprobs`.

    Attributes:
        token_ids: sampled ids
        logprobs: one entry a sampled row (None where none was asked for), or None if no row asked
        prompt_logprobs: for each entry of the batch's `prompt_logprobs`, one TokenLogprobs a target
        pooled: for each entry of the batch's `pooling`, a float32 tensor [hidden_size]
        errors: sampled row -> why it has no valid token (NaN logits); its id is then meaningless
    """

    token_ids: list[int]
    logprobs: list[TokenLogprobs | None] | None = None
    prompt_logprobs: list[list[TokenLogprobs]] = field(default_factory=list)
    pooled: list[Tensor] = field(default_factory=list)
    errors: dict[int, str] = field(default_factory=dict)


PendingStep = Callable[[], StepResult]
"""A step that the device may still be busy with; the call waits for what it produced."""
