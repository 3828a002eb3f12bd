"""SamplingParams: how one request wants its tokens chosen, with vLLM's names, ranges and defaults."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from pagedlab.errors import InvalidRequestError

MAX_LOGPROBS = 20
"""Most alternatives that `logprobs` and `prompt_logprobs` may ask for (vLLM's default limit)."""

MAX_SEED = 2**63 - 1

GREEDY_BELOW = 1e-5
"""Temperatures below this are greedy (vLLM's limit): dividing logits by them would overflow float32."""


class RequestOutputKind(Enum):
    """What a step returns of a request: all so far, only what is new, or nothing until it has ended (as in vLLM)."""

    CUMULATIVE = 0
    DELTA = 1
    FINAL_ONLY = 2


@dataclass
class SamplingParams:
    """Decoding options of one request; vLLM's `SamplingParams`.

    Fields may be set one by one, as in vLLM; values set so are checked when a request is made. A request takes a copy:
    what is set later changes nothing for it.

    Args:
        n: number of completions for the prompt. They share its KV blocks (copy-on-write).
        temperature: 0 is greedy, whatever top_p, top_k and min_p say; 1 samples from the model's own distribution.
        top_p: keep the smallest set of tokens whose probability reaches this (0 < top_p <= 1).
        top_k: keep the k most probable tokens; 0 or -1 keeps all.
        min_p: keep tokens at least this times as probable as the most probable one (0 <= min_p <= 1).
        max_tokens: most tokens to generate; None is as many as the model and the KV pool have room for.
        min_tokens: end-of-text and stop tokens cannot be sampled before this many tokens are out, and a stop string
            that is complete by then does not count.
        stop: string or strings that end the text; not part of it unless `include_stop_str_in_output`.
        stop_token_ids: ids that end the text.
        seed: makes the request reproducible whatever else is in the batch; None (or -1, as in vLLM)
            derives one from the engine's seed.
        ignore_eos: go on after the end-of-text token.
        logprobs: also return this many best alternatives for each sampled token (the sampled one is always included).
        prompt_logprobs: the same for each prompt token, given those before it.
        presence_penalty, frequency_penalty: subtracted once, or once an occurrence, from the logits of tokens already
            generated (-2 to 2).
        repetition_penalty: divides positive and multiplies negative logits of tokens seen in prompt or output (> 0).
        logit_bias: token id -> value added to its logit.
        allowed_token_ids: nothing but these may be sampled.
        bad_words: texts that must not be written; see bad_word_ids for what that means in tokens.
        detokenize: make text of the tokens; without it outputs have token ids alone, and no stop strings.
        skip_special_tokens: leave special tokens out of the text.
        output_kind: what each step returns of the request; LLM.generate always takes FINAL_ONLY.

    Raises:
        InvalidRequestError: a value is out of its range.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    max_tokens: int | None = 16
    min_tokens: int = 0
    stop: str | Sequence[str] | None = None
    stop_token_ids: Sequence[int] | None = None
    include_stop_str_in_output: bool = False
    seed: int | None = None
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] | None = None
    allowed_token_ids: Sequence[int] | None = None
    bad_words: Sequence[str] | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE

    def __post_init__(self) -> None:
        self.stop = (self.stop,) if isinstance(self.stop, str) else self._tuple("stop")
        for name in ("stop_token_ids", "bad_words"):
            setattr(self, name, self._tuple(name))
        if self.allowed_token_ids is not None:
            self.allowed_token_ids = self._tuple("allowed_token_ids")
        if self.seed == -1:
            self.seed = None
        if self.logit_bias is not None:
            try:
                bias = {int(token): float(value) for token, value in dict(self.logit_bias).items()}
            except (TypeError, ValueError, OverflowError) as error:
                raise InvalidRequestError(f"logit_bias must map token ids to numbers: {error}.") from None
            self.logit_bias = bias
        self._check()

    @property
    def is_greedy(self) -> bool:
        return self.temperature < GREEDY_BELOW

    @property
    def changes_logits(self) -> bool:
        """True if anything but temperature and truncation touches the logits."""
        return bool(
            self.presence_penalty
            or self.frequency_penalty
            or self.repetition_penalty != 1.0
            or self.logit_bias
            or self.min_tokens
            or self.bad_words
            or self.allowed_token_ids is not None
        )

    def clone(self, **changes: Any) -> SamplingParams:
        """A checked copy with some fields changed."""
        return replace(self, **changes)

    def _check(self) -> None:
        self._integer("n", 1, 1024)
        if self.max_tokens is not None:
            self._integer("max_tokens", 1)
        self._integer("min_tokens", 0)
        self._integer("top_k", -1)
        self._number("temperature", 0.0, 100.0)
        self._number("top_p", 0.0, 1.0, above=True)
        self._number("min_p", 0.0, 1.0)
        self._number("presence_penalty", -2.0, 2.0)
        self._number("frequency_penalty", -2.0, 2.0)
        self._number("repetition_penalty", 0.0, 100.0, above=True)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequestError(
                f"min_tokens ({self.min_tokens}) is larger than max_tokens ({self.max_tokens}): "
                "lower one or raise the other."
            )
        for name in ("logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None:
                self._integer(name, 0, MAX_LOGPROBS)
        if self.seed is not None:
            self._integer("seed", -MAX_SEED, MAX_SEED)
        for text in self.stop or ():
            if not isinstance(text, str) or not text:
                raise InvalidRequestError(f"stop must be non-empty strings, got {text!r}.")
        for word in self.bad_words or ():
            if not isinstance(word, str) or not word.strip():
                raise InvalidRequestError(f"bad_words must be texts with a character in them, got {word!r}.")
        for name in ("stop_token_ids", "allowed_token_ids"):
            for token in getattr(self, name) or ():
                if isinstance(token, bool) or not isinstance(token, int) or token < 0:
                    raise InvalidRequestError(f"{name} must be token ids (integers >= 0), got {token!r}.")
        if self.allowed_token_ids is not None and not self.allowed_token_ids:
            raise InvalidRequestError("allowed_token_ids must name at least one token; None allows all.")
        for token, value in (self.logit_bias or {}).items():
            if token < 0 or not math.isfinite(value) or abs(value) > 100:
                raise InvalidRequestError(
                    f"logit_bias must map token ids >= 0 to values from -100 to 100, got {token}: {value}."
                )
        for name in ("include_stop_str_in_output", "ignore_eos", "skip_special_tokens", "detokenize"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidRequestError(f"{name} must be True or False, got {getattr(self, name)!r}.")
        if self.stop and not self.detokenize:
            raise InvalidRequestError("stop is found in text: leave detokenize on, or use stop_token_ids.")
        if not isinstance(self.output_kind, RequestOutputKind):
            raise InvalidRequestError(f"output_kind must be a RequestOutputKind, got {self.output_kind!r}.")
        if self.is_greedy and self.n > 1:
            raise InvalidRequestError("n must be 1 when temperature is 0: greedy completions would all be the same.")

    def _tuple(self, name: str) -> tuple[Any, ...]:
        value = getattr(self, name)
        try:
            if isinstance(value, (str, bytes)):
                raise TypeError("got text")
            return tuple(value or ())
        except TypeError as error:
            raise InvalidRequestError(f"{name} must be a list: {error}.") from None

    def _integer(self, name: str, low: int, high: int | None = None) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int):
            raise InvalidRequestError(f"{name} must be an integer, got {value!r}.")
        if value < low or (high is not None and value > high):
            bounds = f"at least {low}" if high is None else f"from {low} to {high}"
            raise InvalidRequestError(f"{name} must be {bounds}, got {value}.")

    def _number(self, name: str, low: float, high: float, above: bool = False) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise InvalidRequestError(f"{name} must be a finite number, got {value!r}.")
        if value < low or value > high or (above and value == low):
            bounds = f"above {low:g} and at most {high:g}" if above else f"from {low:g} to {high:g}"
            raise InvalidRequestError(f"{name} must be {bounds}, got {value}.")


@dataclass(frozen=True)
class BeamSearchParams:
    """Options of `LLM.beam_search`; vLLM's `BeamSearchParams`.

    Args:
        beam_width: hypotheses kept after each token, and returned.
        max_tokens: most tokens to generate.
        ignore_eos: go on after the end-of-text token.
        temperature: must be 0: hypotheses are scored by the model's own distribution.
        length_penalty: a finished hypothesis scores its summed log-probability over length ** length_penalty.
    """

    beam_width: int
    max_tokens: int
    ignore_eos: bool = False
    temperature: float = 0.0
    length_penalty: float = 1.0

    def __post_init__(self) -> None:
        for name, high in (("beam_width", 64), ("max_tokens", None)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1 or (high and value > high):
                bounds = f"from 1 to {high}" if high else "at least 1"
                raise InvalidRequestError(f"{name} must be an integer {bounds}, got {value!r}.")
        if not isinstance(self.ignore_eos, bool):
            raise InvalidRequestError(f"ignore_eos must be True or False, got {self.ignore_eos!r}.")
        if self.temperature != 0:
            raise InvalidRequestError(f"temperature must be 0 for beam search, got {self.temperature}.")
        if not isinstance(self.length_penalty, (int, float)) or not math.isfinite(self.length_penalty):
            raise InvalidRequestError(f"length_penalty must be a finite number, got {self.length_penalty}.")
