"""From what a caller passes to token ids that the engine may safely run: parsing, and every refusal of a request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, NotRequired, TypedDict

from pagedlab.errors import InvalidRequestError
from pagedlab.model_authoring.request import PoolingParams
from pagedlab.sampling_params import BeamSearchParams, SamplingParams


class TextPrompt(TypedDict):
    """A prompt as vLLM writes it: text."""

    prompt: str


class TokensPrompt(TypedDict):
    """A prompt as vLLM writes it: token ids, and the text that they stand for, if that is known."""

    prompt_token_ids: list[int]
    prompt: NotRequired[str]


Prompt = str | Sequence[int] | Mapping[str, Any]
"""Text, token ids, TextPrompt or TokensPrompt."""


@dataclass(frozen=True)
class Limits:
    """What one request may be, given the model and the pool.

    Attributes:
        vocab_size: token ids are below it
        max_model_len: longest prompt plus output, tokens
        block_size: tokens in a KV block
        num_blocks: KV blocks that one request could have at most
        max_num_seqs: sequences that one request may run at once
    """

    vocab_size: int
    max_model_len: int
    block_size: int
    num_blocks: int
    max_num_seqs: int


def check_call(request_id: Any, params: Any, priority: Any, cache_salt: Any) -> None:
    """Refuse arguments of the wrong type before they are queued: compared or hashed later, they would stop everybody.

    Raises:
        InvalidRequestError: with one sentence that says what to change.
    """
    if not isinstance(request_id, str) or not request_id:
        raise InvalidRequestError(f"A request id must be text that is not empty, got {request_id!r}.")
    if not isinstance(params, (SamplingParams, BeamSearchParams, PoolingParams)):
        raise InvalidRequestError(
            "A request's options must be SamplingParams, BeamSearchParams or PoolingParams, got "
            f"{type(params).__name__}."
        )
    if not isinstance(priority, Integral):
        raise InvalidRequestError(f"priority must be an integer, got {priority!r}.")
    if cache_salt is not None and not isinstance(cache_salt, str):
        raise InvalidRequestError(f"cache_salt must be text or None, got {cache_salt!r}.")


def parse_prompt(
    prompt: Prompt, tokenizer: Any | None, add_special_tokens: bool = True
) -> tuple[str | None, list[int]]:
    """The prompt's text, if it came as text, and its token ids.

    Raises:
        InvalidRequestError: it is of none of the forms of `Prompt`, it is no Unicode, or text came and there is no
            tokenizer.
    """
    if isinstance(prompt, Mapping):
        if prompt.get("prompt_token_ids") is not None:
            return prompt.get("prompt"), _token_ids(prompt["prompt_token_ids"])
        if not isinstance(prompt.get("prompt"), str):
            raise InvalidRequestError(
                'A prompt dictionary must have "prompt" (text) or "prompt_token_ids" (a list of ids).'
            )
        prompt = prompt["prompt"]
    if isinstance(prompt, str):
        try:
            prompt.encode()
        except UnicodeEncodeError:
            raise InvalidRequestError("The prompt has half of a surrogate pair in it, which is no text.") from None
        if tokenizer is None:
            raise InvalidRequestError("A text prompt needs a tokenizer: pass token ids, or skip_tokenizer_init=False.")
        return prompt, tokenizer.encode(prompt, add_special_tokens=add_special_tokens)
    return None, _token_ids(prompt)


def _token_ids(ids: Any) -> list[int]:
    ids = ids.tolist() if hasattr(ids, "tolist") else ids
    if not isinstance(ids, Sequence) or isinstance(ids, (str, bytes)):
        raise InvalidRequestError(f"A prompt must be text or a list of token ids, got {type(ids).__name__}.")
    if set(map(type, ids)) <= {int}:  # nearly always; to look at each alone takes seconds for a million of them
        return list(ids)
    for token in ids:
        if isinstance(token, bool) or not isinstance(token, Integral):
            raise InvalidRequestError(f"A prompt's token ids must be integers, got {token!r}.")
    return [int(token) for token in ids]  # NumPy's integers, too


def check_prompt(token_ids: Sequence[int], limits: Limits) -> None:
    """Refuse an empty prompt and ids that the model does not have.

    Raises:
        InvalidRequestError: with one sentence that says what to change.
    """
    if not token_ids:
        raise InvalidRequestError("The prompt is empty: give it at least one token.")
    for extreme in (min(token_ids), max(token_ids)):
        if not 0 <= extreme < limits.vocab_size:
            raise InvalidRequestError(
                f"Token id {extreme} is out of vocabulary: the model's ids go from 0 to {limits.vocab_size - 1}."
            )


def check_lengths(num_prompt_tokens: int, max_tokens: int, num_seqs: int, limits: Limits) -> None:
    """Refuse a request that could never run to its end.

    The last token generated needs no slot, for nothing attends to it.

    Raises:
        InvalidRequestError: with one sentence that says what to change.
    """
    total = num_prompt_tokens + max_tokens
    if total > limits.max_model_len:
        raise InvalidRequestError(
            f"This model's maximum context length is {limits.max_model_len} tokens. However, you requested {total} "
            f"({num_prompt_tokens} in the prompt and max_tokens={max_tokens}): shorten the prompt or lower max_tokens."
        )
    needed = -(-max(num_prompt_tokens, total - 1) // limits.block_size)
    if needed > limits.num_blocks:
        raise InvalidRequestError(
            f"The request needs up to {needed} KV blocks of {limits.block_size} tokens and only {limits.num_blocks} "
            "exist: shorten it, or raise num_blocks or kv_cache_memory."
        )
    if num_seqs > limits.max_num_seqs:
        raise InvalidRequestError(
            f"The request runs {num_seqs} sequences at once and max_num_seqs is {limits.max_num_seqs}: lower n or the "
            "beam width, or raise max_num_seqs."
        )


def check_params(params: SamplingParams, limits: Limits, has_tokenizer: bool) -> None:
    """Refuse options that this model cannot honour; SamplingParams has checked those that no model could.

    Raises:
        InvalidRequestError: with one sentence that says what to change.
    """
    for name in ("logit_bias", "stop_token_ids", "allowed_token_ids"):
        for token in getattr(params, name) or ():
            if token >= limits.vocab_size:
                raise InvalidRequestError(
                    f"{name} names token {token}, which is out of vocabulary: ids go from 0 to {limits.vocab_size - 1}."
                )
    if params.bad_words and not has_tokenizer:
        raise InvalidRequestError("bad_words need a tokenizer: use logit_bias, or skip_tokenizer_init=False.")
    if params.stop and not has_tokenizer:
        raise InvalidRequestError("Stop strings need a tokenizer: use stop_token_ids, or skip_tokenizer_init=False.")
