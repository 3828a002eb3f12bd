"""From token ids back to what the caller sees: text, log-probabilities, and the RequestOutput around them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from pagedlab.interfaces.detokenizer import IncrementalDetokenizer
from pagedlab.interfaces.outputs import (
    CompletionOutput,
    Logprob,
    PoolingOutput,
    PoolingRequestOutput,
    RequestMetrics,
    RequestOutput,
)
from pagedlab.model_authoring.beam_search import BeamSearch
from pagedlab.model_authoring.request import Request
from pagedlab.runtime.batch import TokenLogprobs
from pagedlab.sampling_params import RequestOutputKind


@dataclass(slots=True)
class Completion:
    """One of the n sequences of a request, followed on its way to text.

    Text is made token by token only where somebody reads along (a stream, a stop string); otherwise once, at the end.
    """

    sequence: Request
    detokenizer: IncrementalDetokenizer | None
    num_detokenized: int = 0
    num_sent_tokens: int = 0
    num_sent_logprobs: int = 0
    cumulative_logprob: float = 0.0
    """Of the first num_summed tokens. To sum up all of them each step would take ever longer."""
    num_summed: int = 0

    def read_along(self) -> str | None:
        """Follow the sequence's newest token; the stop string that it completed, if it did."""
        if self.detokenizer is None:
            return None
        self._detokenize()
        return self.detokenizer.stopped_on

    def output(self, kind: RequestOutputKind, tokenizer: Any | None) -> CompletionOutput:
        """The sequence as the caller sees it: all of it, or under DELTA what has not been handed out before."""
        sequence = self.sequence
        delta = kind is RequestOutputKind.DELTA
        token_ids = sequence.output_token_ids[self.num_sent_tokens :] if delta else sequence.output_token_ids
        logprobs = sequence.logprobs[self.num_sent_logprobs :] if delta else sequence.logprobs
        self.num_sent_tokens = sequence.num_output_tokens
        self.num_sent_logprobs = len(sequence.logprobs)
        wants_logprobs = sequence.params.logprobs is not None
        new = (entry.logprobs[0] for entry in sequence.logprobs[self.num_summed :] if entry)
        self.cumulative_logprob, self.num_summed = sum(new, self.cumulative_logprob), len(sequence.logprobs)
        tokenizer = tokenizer if sequence.params.detokenize else None
        return CompletionOutput(
            index=sequence.index,
            text=self._text(delta),
            token_ids=token_ids,
            cumulative_logprob=self.cumulative_logprob if wants_logprobs else None,
            logprobs=[as_dict(entry, tokenizer) for entry in logprobs if entry] if wants_logprobs else None,
            finish_reason=sequence.finish_reason,
            stop_reason=sequence.stop_reason,
        )

    def _text(self, delta: bool) -> str:
        if self.detokenizer is None:
            return ""
        self._detokenize()
        if self.sequence.is_finished:
            self.detokenizer.finish()
        return self.detokenizer.stream_text(self.sequence.is_finished) if delta else self.detokenizer.text

    def _detokenize(self) -> None:
        """Feed the tokens that are new. A stop token that ended the sequence is no text, unless asked for."""
        assert self.detokenizer is not None
        sequence = self.sequence
        tokens = sequence.output_token_ids
        end = len(tokens)
        on_stop_token = sequence.finish_reason == "stop" and not self.detokenizer.stopped_on
        if on_stop_token and not sequence.params.include_stop_str_in_output:
            end -= 1
        for token in tokens[self.num_detokenized : end]:
            self.detokenizer.append(token)
        self.num_detokenized = max(self.num_detokenized, end)


@dataclass(slots=True)
class Generation:
    """One request of the caller: its sequences and what they become.

    Attributes:
        request_id, prompt: as given
        root: the sequence that computes the prompt
        metrics: its times
        completions: the n sequences of a generation; empty for beam search and pooling
        beam_search: the search, if it is one
        error: why it failed, if it did
    """

    request_id: str
    prompt: str | None
    root: Request
    metrics: RequestMetrics
    completions: list[Completion] = field(default_factory=list)
    beam_search: BeamSearch | None = None
    error: str | None = None
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None
    """As they are handed out, once they are complete."""
    is_silent: bool = False
    """Nothing is handed out before a sequence ends."""

    def __post_init__(self) -> None:
        self.is_silent = self.root.params.output_kind is RequestOutputKind.FINAL_ONLY

    @property
    def sequences(self) -> list[Request]:
        if self.beam_search is not None:
            return [beam.request for beam in self.beam_search.beams]
        return [completion.sequence for completion in self.completions] or [self.root]

    @property
    def is_finished(self) -> bool:
        return all(sequence.is_finished for sequence in self.sequences)

    def output(self, kind: RequestOutputKind, tokenizer: Any | None) -> RequestOutput:
        root = self.root
        return RequestOutput(
            request_id=self.request_id,
            prompt=self.prompt,
            prompt_token_ids=root.prompt_token_ids,
            outputs=self._outputs(kind, tokenizer),
            finished=self.is_finished,
            prompt_logprobs=self._prompt_logprobs(tokenizer),
            num_cached_tokens=root.num_cached_tokens,
            metrics=self.metrics,
        )

    def _prompt_logprobs(self, tokenizer: Any | None) -> list[dict[int, Logprob] | None] | None:
        """Made once: from the first token on they do not change, and a stream asks for them at each step."""
        root = self.root
        if root.params.prompt_logprobs is None:
            return None
        if self.prompt_logprobs is not None:
            return self.prompt_logprobs
        names = tokenizer if root.params.detokenize else None
        found = [as_dict(entry, names) if entry else None for entry in root.prompt_logprobs]
        if root.num_output_tokens:
            self.prompt_logprobs = found
        return found

    def pooling_output(self) -> PoolingRequestOutput:
        root = self.root
        assert root.pooling is not None and root.pooled is not None
        vector = root.pooled / root.num_prompt_tokens if root.pooling.pooling == "mean" else root.pooled
        if root.pooling.normalize:
            vector = torch.nn.functional.normalize(vector, dim=0)
        return PoolingRequestOutput(self.request_id, PoolingOutput(vector), root.prompt_token_ids)

    def _outputs(self, kind: RequestOutputKind, tokenizer: Any | None) -> list[CompletionOutput]:
        if self.error is not None and not self.completions:
            return [CompletionOutput(0, "", [], finish_reason="error", stop_reason=self.error)]
        if self.beam_search is None:
            return [completion.output(kind, tokenizer) for completion in self.completions]
        outputs = []
        for index, hypothesis in enumerate(self.beam_search.best()):
            text = tokenizer.decode(hypothesis.token_ids, skip_special_tokens=True) if tokenizer else ""
            outputs.append(
                CompletionOutput(
                    index, text, hypothesis.token_ids, hypothesis.cum_logprob, None, hypothesis.finish_reason
                )
            )
        return outputs


def as_dict(entry: TokenLogprobs, tokenizer: Any | None) -> dict[int, Logprob]:
    """One position's log-probabilities as vLLM gives them: token id -> Logprob, the sampled token first."""
    found: dict[int, Logprob] = {}
    for token_id, logprob, rank in zip(entry.token_ids, entry.logprobs, entry.ranks, strict=True):
        if token_id not in found:
            text = tokenizer.decode([token_id]) if tokenizer is not None else None
            found[token_id] = Logprob(logprob, rank, text)
    return found
