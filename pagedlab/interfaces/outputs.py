"""What the engine returns: vLLM's RequestOutput and CompletionOutput."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Logprob:
    """Log-probability of one token at one position, and its rank among all (1 is the most probable)."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass(slots=True)
class CompletionOutput:
    """One of the n completions of a prompt.

    Attributes:
        index: its number, from 0
        text: text so far (only what is new, under RequestOutputKind.DELTA)
        token_ids: tokens so far (likewise)
        cumulative_logprob: sum of the sampled tokens' log-probabilities, if logprobs were asked for
        logprobs: one dictionary a token, token id -> Logprob, if asked for
        finish_reason: stop, length, abort or error; None while it goes on
        stop_reason: the stop string or stop token that ended it, or the error's sentence; None for end of text
    """

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None

    def finished(self) -> bool:
        return self.finish_reason is not None


@dataclass(slots=True)
class RequestMetrics:
    """Times of one request on time.perf_counter's clock, in seconds; None for what has not happened."""

    arrival_time: float
    first_scheduled_time: float | None = None
    first_token_time: float | None = None
    finished_time: float | None = None

    @property
    def time_to_first_token(self) -> float | None:
        return None if self.first_token_time is None else self.first_token_time - self.arrival_time


@dataclass(slots=True)
class RequestOutput:
    """Everything known about one request.

    Attributes:
        request_id, prompt, prompt_token_ids: what was asked
        prompt_logprobs: None for the first token, then one dictionary a token, if asked for
        outputs: the n completions
        finished: all completions have ended
        num_cached_tokens: prompt tokens that came from the prefix cache
        metrics: when things happened
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None
    num_cached_tokens: int = 0
    metrics: RequestMetrics | None = None


@dataclass(slots=True)
class PoolingOutput:
    """`data` is the pooled vector, a float32 tensor [hidden_size]."""

    data: Any


@dataclass(slots=True)
class PoolingRequestOutput:
    """What `encode` returns for one prompt."""

    request_id: str
    outputs: PoolingOutput
    prompt_token_ids: list[int]
    finished: bool = True


@dataclass(slots=True)
class EmbeddingOutput:
    """`embedding` is the pooled vector, a list of hidden_size numbers."""

    embedding: list[float]

    @property
    def hidden_size(self) -> int:
        return len(self.embedding)


@dataclass(slots=True)
class EmbeddingRequestOutput:
    """What `embed` returns for one prompt."""

    request_id: str
    outputs: EmbeddingOutput
    prompt_token_ids: list[int]
    finished: bool = True


@dataclass(slots=True)
class BeamSearchSequence:
    """One hypothesis: prompt and generated tokens, and the sum of the generated tokens' log-probabilities."""

    tokens: list[int]
    cum_logprob: float
    text: str | None = None
    finish_reason: str | None = None
    logprobs: list[dict[int, Logprob]] = field(default_factory=list)


@dataclass(slots=True)
class BeamSearchOutput:
    """The best `beam_width` hypotheses, best first."""

    sequences: list[BeamSearchSequence]
