"""Request: one sequence on its way through the engine: the tokens it has, and how many of them are computed."""

from __future__ import annotations

import hashlib
from array import array
from dataclasses import dataclass, field
from enum import Enum

from torch import Tensor

from pagedlab.errors import InvalidRequestError
from pagedlab.runtime.batch import SamplingRow, TokenLogprobs, TokensFrom
from pagedlab.sampling_params import SamplingParams


class RequestStatus(Enum):
    WAITING = "waiting"
    RUNNING = "running"
    SWAPPED = "swapped"
    """Waiting, with its KV in host memory."""
    FINISHED = "finished"


@dataclass(frozen=True)
class PoolingParams:
    """How `encode` turns the hidden states of a prompt into one vector.

    Args:
        pooling: "last" takes the last token's state, "mean" averages over all tokens.
        normalize: scale the vector to length 1.

    Raises:
        InvalidRequestError: a value is none of these.
    """

    pooling: str = "last"
    normalize: bool = True

    def __post_init__(self) -> None:
        if self.pooling not in ("last", "mean"):
            raise InvalidRequestError(f'pooling must be "last" or "mean", got {self.pooling!r}.')
        if not isinstance(self.normalize, bool):
            raise InvalidRequestError(f"normalize must be True or False, got {self.normalize!r}.")


@dataclass(eq=False, slots=True)
class Request:
    """One sequence. A prompt with n completions is one Request that forks into n once its prompt is computed.

    There is no prefill state and no decode state: a step computes some of the tokens that are known and not yet
    computed, and a request whose tokens are all computed gets a new one.

    Attributes:
        request_id: the sequence's own id
        group_id: the id the caller gave; all completions of a prompt share it
        index: which of the prompt's completions this is
        prompt_token_ids: tokens that the caller gave
        params: options of the request
        stop_token_ids: ids that end it (end of text, unless ignored, and params.stop_token_ids)
        bad_word_ids: token sequences whose last token may not follow the others (params.bad_words)
        seed: fixes the sequence's random draws, whoever shares its batch
        arrival: number of arrivals before it; the order of fcfs
        priority: smaller runs first under the priority policy
        cache_salt: prefix-cache hits happen only between requests of equal salt
        pooling: set for `encode`: no token is sampled, the prompt's hidden states are pooled
        num_candidates: for a beam: this many best next tokens are kept in `candidates`, for the beam search to choose
            from, and none is appended; 0 for everything else
        token_ids: prompt and output so far
        num_computed_tokens: leading tokens whose KV is in the cache
        num_reserved_seats: running sequences that it will fork into beyond itself (max_num_seqs counts them)
        pending_forks: sequences that will share this one's prompt, and are not yet forked from it
    """

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    stop_token_ids: frozenset[int] = frozenset()
    bad_word_ids: tuple[tuple[int, ...], ...] = ()
    seed: int = 0
    arrival: int = 0
    priority: int = 0
    cache_salt: str | None = None
    pooling: PoolingParams | None = None
    num_candidates: int = 0
    group_id: str = ""
    index: int = 0
    num_reserved_seats: int = 0
    pending_forks: list[Request] = field(default_factory=list)

    status: RequestStatus = RequestStatus.WAITING
    token_ids: list[int] = field(init=False)
    num_prompt_tokens: int = field(init=False)
    max_tokens: int = field(init=False)
    """Of params, which must say how many by now."""
    num_computed_tokens: int = 0
    num_in_flight: int = 0
    """Tokens (0 or 1) that a launched step will append to this sequence, and that nobody has seen yet."""
    sampled_index: int = 0
    """Where that step samples it: index into its batch's `sampling`. Means nothing while none is in flight."""
    num_cached_tokens: int = 0
    """Tokens of the first admission that came from the prefix cache."""
    num_preemptions: int = 0
    finish_reason: str | None = None
    """stop, length, abort or error."""
    stop_reason: int | str | None = None
    """The stop token or stop string that ended it, or the error's sentence."""
    logprobs: list[TokenLogprobs | None] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs | None] = field(default_factory=list)
    candidates: TokenLogprobs | None = None
    pooled: Tensor | None = None
    """Last hidden state, or sum of the hidden states computed so far, [hidden_size] float32."""
    block_hashes: list[bytes] = field(default_factory=list)
    sampling_row: SamplingRow | None = None
    """What the sampler is told of this sequence: made once, for only its row changes from step to step."""

    def __post_init__(self) -> None:
        self.group_id = self.group_id or self.request_id
        self.token_ids = list(self.prompt_token_ids)
        self.num_prompt_tokens = len(self.prompt_token_ids)
        assert self.params.max_tokens is not None, "own_params fills it in"
        self.max_tokens = self.params.max_tokens
        if self.params.prompt_logprobs is not None:
            self.prompt_logprobs = [None] * self.num_prompt_tokens

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_uncomputed_tokens(self) -> int:
        """Tokens to compute, one in flight included, unless it is the last that max_tokens allows: nothing follows."""
        if self.num_in_flight and self.num_output_tokens + self.num_in_flight >= self.max_tokens:
            return 0
        return len(self.token_ids) + self.num_in_flight - self.num_computed_tokens

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def output_token_ids(self) -> list[int]:
        return self.token_ids[self.num_prompt_tokens :]

    @property
    def num_logprobs(self) -> int | None:
        """Alternatives to return beside each sampled token; None for none."""
        return self.num_candidates or self.params.logprobs

    @property
    def is_paused(self) -> bool:
        """A beam that has its candidates, and needs no step until its siblings have theirs."""
        return self.candidates is not None

    @property
    def is_finished(self) -> bool:
        return self.status is RequestStatus.FINISHED

    @property
    def max_total_tokens(self) -> int:
        """Prompt and longest output."""
        return self.num_prompt_tokens + (0 if self.pooling else self.max_tokens)

    @property
    def is_pooled_invalid(self) -> bool:
        """Did the model return hidden states that are no numbers?"""
        return self.pooled is not None and not bool(self.pooled.isfinite().all())

    @property
    def may_use_prefix_cache(self) -> bool:
        """False while every prompt token's own logits or hidden state is needed, which a hit would skip."""
        needs_all_logits = self.params.prompt_logprobs is not None and not self.num_output_tokens
        return not needs_all_logits and not (self.pooling and self.pooling.pooling == "mean")

    def sample_at(self, row: int) -> SamplingRow:
        """What the sampler needs to draw this sequence's next token from the logits of the batch's row `row`."""
        if self.sampling_row is None:
            self.sampling_row = SamplingRow(
                row=row,
                params=self.params,
                seed=self.seed,
                prompt_token_ids=self.prompt_token_ids,
                output_token_ids=TokensFrom(self.token_ids, self.num_prompt_tokens),
                stop_token_ids=tuple(self.stop_token_ids),
                bad_word_ids=self.bad_word_ids,
                num_logprobs=self.num_logprobs,
            )
        self.sampling_row.row = row
        self.sampling_row.num_in_flight = self.num_in_flight
        return self.sampling_row

    def append(self, token_id: int, logprobs: TokenLogprobs | None = None) -> None:
        """Take a sampled token, and finish if it ends the sequence."""
        self.token_ids.append(token_id)
        self.num_in_flight = 0
        if logprobs is not None:
            self.logprobs.append(logprobs)
        if token_id in self.stop_token_ids and self.num_output_tokens >= self.params.min_tokens:
            self.finish("stop", token_id if token_id in (self.params.stop_token_ids or ()) else None)
        elif len(self.token_ids) - self.num_prompt_tokens >= self.max_tokens:
            self.finish("length")

    def finish(self, reason: str, stop_reason: int | str | None = None) -> None:
        self.status = RequestStatus.FINISHED
        self.finish_reason = reason
        self.stop_reason = stop_reason

    def block_hash(self, index: int, block_size: int) -> bytes:
        """Hash of the sequence's full block `index`: sha256 over (hash of the block before, token ids).

        The chain starts from the salt, so that equal hashes mean equal tokens from the first one on, and equal salt.
        Hashes are computed once: a sequence only ever grows at its end.
        """
        while len(self.block_hashes) <= index:
            start = len(self.block_hashes) * block_size
            parent = self.block_hashes[-1] if self.block_hashes else hash_root(self.cache_salt)
            self.block_hashes.append(hash_block(parent, self.token_ids[start : start + block_size]))
        return self.block_hashes[index]


def hash_root(cache_salt: str | None) -> bytes:
    """Parent of a first block: nothing, or the tenant's salt."""
    salt = b"" if cache_salt is None else b":" + cache_salt.encode(errors="surrogatepass")
    return hashlib.sha256(b"pagedlab" + salt).digest()


def hash_block(parent: bytes, token_ids: list[int]) -> bytes:
    """sha256 over the parent's hash and the tokens as 64-bit integers."""
    return hashlib.sha256(parent + array("q", token_ids).tobytes()).digest()
