"""Log-probabilities in OpenAI's two forms, from the engine's one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pagedlab.interfaces.openai_server.responses import (
    ChatLogprobs,
    ChatTokenLogprob,
    CompletionLogprobs,
    TokenLogprob,
)
from pagedlab.interfaces.openai_server.token_bytes import token_bytes
from pagedlab.interfaces.outputs import Logprob

Entry = dict[int, Logprob]
"""One position: token id -> Logprob, the chosen token first."""

LOWEST = -9999.0
"""In place of minus infinity, which JSON cannot say (vLLM's number)."""


def completion_logprobs(
    entries: Sequence[Entry | None], text_offset: int = 0, first_token: str = ""
) -> CompletionLogprobs:
    """The completions form.

    Args:
        entries: one a token; None for a first prompt token, which nothing predicted.
        text_offset: characters before the first token.
        first_token: text of that first prompt token.
    """
    found = CompletionLogprobs(text_offset=[], token_logprobs=[], tokens=[], top_logprobs=[])
    for entry in entries:
        token, chosen = _chosen(entry) if entry else (first_token, None)
        found.text_offset.append(text_offset)
        found.tokens.append(token)
        found.token_logprobs.append(chosen)
        found.top_logprobs.append(_by_text(entry) if entry else None)
        text_offset += len(token)
    return found


def chat_logprobs(entries: Sequence[Entry], num_top: int, tokenizer: Any) -> ChatLogprobs:
    """The chat form: each token with its `num_top` best alternatives."""
    content = []
    for entry in entries:
        tokens = [(one, _token(one, token_id, tokenizer)) for token_id, one in entry.items()]
        best = sorted(tokens, key=lambda pair: pair[0].rank or 0)[:num_top]
        content.append(ChatTokenLogprob(**tokens[0][1], top_logprobs=[TokenLogprob(**token) for _, token in best]))
    return ChatLogprobs(content=content)


def _by_text(entry: Entry) -> dict[str, float]:
    """Several tokens may have one text (bytes of no character): the chosen one counts first, then the better one."""
    found: dict[str, float] = {}
    for one in entry.values():
        found.setdefault(_text(one), _number(one))
    return found


def _chosen(entry: Entry) -> tuple[str, float]:
    chosen = next(iter(entry.values()))
    return _text(chosen), _number(chosen)


def _token(one: Logprob, token_id: int, tokenizer: Any) -> dict:
    text = _text(one)
    return {"token": text, "logprob": _number(one), "bytes": list(token_bytes(tokenizer, token_id, text))}


def _text(one: Logprob) -> str:
    return one.decoded_token or ""


def _number(one: Logprob) -> float:
    return max(one.logprob, LOWEST)
