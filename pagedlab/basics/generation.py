"""Greedy generation twice: computing the whole sequence for every token, and with a KV cache. The tokens are the same.

Both take a model as transformers has it: `model(input_ids=[1, n])` returns an object with `logits` [1, n, vocabulary],
and with `use_cache=True` also `past_key_values`, the keys and values of all tokens so far.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor


@torch.inference_mode()
def generate_naive(
    model: Callable[..., Any],
    prompt_token_ids: Sequence[int],
    max_new_tokens: int,
    stop_token_ids: Collection[int] = (),
) -> list[int]:
    """The new tokens; each costs a pass over everything before it: n + (n + 1) + (n + 2) + ... rows.

    A stop token ends generation and is the last of the result.
    """
    tokens = list(prompt_token_ids)
    for _ in range(max_new_tokens):
        tokens.append(_greedy(model(input_ids=_batch_of_one(tokens, model), use_cache=False)))
        if tokens[-1] in stop_token_ids:
            break
    return tokens[len(prompt_token_ids) :]


@torch.inference_mode()
def generate_cached(
    model: Callable[..., Any],
    prompt_token_ids: Sequence[int],
    max_new_tokens: int,
    stop_token_ids: Collection[int] = (),
) -> list[int]:
    """The new tokens; the prompt is computed once (prefill), then one row a token (decode): n + 1 + 1 + ... rows.

    This is exact, not an approximation: under the causal mask a new token changes no earlier token's key or value.
    """
    output: list[int] = []
    cache = None
    next_input = list(prompt_token_ids)
    for _ in range(max_new_tokens):
        result = model(input_ids=_batch_of_one(next_input, model), past_key_values=cache, use_cache=True)
        cache = result.past_key_values
        output.append(_greedy(result))
        if output[-1] in stop_token_ids:
            break
        next_input = output[-1:]
    return output


def _batch_of_one(tokens: Sequence[int], model: Any) -> Tensor:
    return torch.tensor([list(tokens)], device=getattr(model, "device", None))


def _greedy(result: Any) -> int:
    """The likeliest token after the last position; the lowest id in a tie."""
    return int(result.logits[0, -1].argmax())
