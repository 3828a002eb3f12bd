"""IncrementalDetokenizer: tokens in, text out as soon as it is certain, and the stop strings that end it.

Three things make text lag behind tokens:

- A character may be spread over tokens: an emoji is four bytes of UTF-8. Decoded too early it reads U+FFFD.
- A token's text depends on those before it: SentencePiece drops the space of a text's first token. So each token is
  decoded together with a few that are already out, and what those say alone is cut off (vLLM's `prefix_offset` and
  `read_offset`).
- A stop string may be spread over tokens. What could still become one must not reach a client, who cannot unread it.

`tokenizers.decoders.DecodeStream` handles the first two as quickly (about 1 µs a token), but it cannot give up what it
holds back when a request ends inside a character, and it knows fast tokenizers only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from tokenizers import Tokenizer

CONTEXT_TOKENS = 6
"""Prompt tokens that the first output token is decoded with (vLLM takes 5 or 6)."""

UNKNOWN = "\ufffd"
"""What a decoder writes for bytes that are no character, or not yet one."""


class IncrementalDetokenizer:
    """The text of one sequence, while its tokens arrive.

    Args:
        tokenizer: a transformers tokenizer, fast or slow, or a `tokenizers.Tokenizer`
        prompt_token_ids: the prompt; its last tokens give the first output tokens their context
        skip_special_tokens: leave special tokens out of the text
        stop: strings that end the text. The one that is complete first ends it; of two that end at the same character
            it is the longer. So the result does not depend on how the text was cut into tokens.
        include_stop_str_in_output: cut the text after the stop string, not before it
        min_tokens: a stop string that is complete within this many tokens does not count

    Attributes:
        text: everything known so far. It only grows, until a stop string cuts it.
        stopped_on: the stop string that was found; tokens after it are ignored
    """

    def __init__(
        self,
        tokenizer: Any,
        prompt_token_ids: Sequence[int] = (),
        skip_special_tokens: bool = True,
        stop: Sequence[str] = (),
        include_stop_str_in_output: bool = False,
        min_tokens: int = 0,
    ) -> None:
        self._decode = _decoder(tokenizer, skip_special_tokens)
        self._stop = tuple(stop)
        self._begun = [BegunStop(one) for one in self._stop]
        self._include_stop = include_stop_str_in_output
        self._min_tokens = min_tokens
        self._num_tokens = 0
        self._window: list[int] = []  # tokens that are out but give context, then tokens that are not out yet
        self._num_context = 0
        self._context_text = ""  # the decoded context; it precedes the new text whenever the window is decoded
        self._num_streamed = 0
        self.text = ""
        self.stopped_on: str | None = None
        self._settle(prompt_token_ids[-CONTEXT_TOKENS:])

    def append(self, token_id: int) -> None:
        """Take one more output token."""
        self._num_tokens += 1
        if self.stopped_on is not None:
            return
        self._window.append(token_id)
        decoded = self._decode(self._window)
        # U+FFFD: the middle of a character, unless the next token shows that the bytes are just wrong. Some slow
        # tokenizers write nothing for such bytes. A special token writes nothing either, and as the only context it
        # would cost a SentencePiece token its space: it has to wait too.
        new_text = "" if decoded.endswith(UNKNOWN) else self._new_text(decoded)
        if new_text:
            self._extend(new_text)
            self._settle(self._window[self._num_context :])

    def finish(self) -> None:
        """No token will follow: let go of an unfinished character (as U+FFFD)."""
        pending = self._window[self._num_context :]
        if pending and self.stopped_on is None:
            self._extend(self._new_text(self._decode(self._window)))
            self._settle(pending)

    def stream_text(self, finished: bool) -> str:
        """Text that may go to the client now and has not been returned before; all that is left if `finished`."""
        if finished:
            self.finish()
        end = len(self.text) - (0 if finished or self.stopped_on is not None else self._num_held_back())
        delta = self.text[self._num_streamed : end]
        self._num_streamed += len(delta)
        return delta

    def _new_text(self, decoded: str) -> str:
        """What the pending tokens add, given the text of the whole window."""
        before = self._context_text
        if not decoded.startswith(before):
            before = before.rstrip(UNKNOWN)  # the prompt ended inside a character, which the output completes
        if decoded.startswith(before):
            return decoded[len(before) :]
        # Byte-fallback decoders spell a run of bytes all wrong once one of them is: do not repeat the context.
        return self._decode(self._window[self._num_context :])

    def _settle(self, tokens: Sequence[int]) -> None:
        """`tokens` are out: from here on they are the context."""
        self._window = list(tokens)
        self._num_context = len(tokens)
        self._context_text = self._decode(self._window) if tokens else ""

    def _extend(self, new_text: str) -> None:
        """Add text, and end it at the first stop string that it completes."""
        known = len(self.text)
        self.text += new_text
        for begun in self._begun:
            begun.extend(new_text)
        if not self._stop or self._num_tokens <= self._min_tokens:
            return
        matches = []
        for stop in self._stop:
            start = self.text.find(stop, max(0, known - len(stop) + 1))
            if start >= 0:
                matches.append((start + len(stop), start, stop))
        if matches:
            end, start, self.stopped_on = min(matches)
            self.text = self.text[: end if self._include_stop else start]

    def _num_held_back(self) -> int:
        """Length of the longest end of the text that could still become a stop string."""
        if self._include_stop:
            return 0  # found or not, these characters stay
        return max((begun.length for begun in self._begun), default=0)


class BegunStop:
    """How long an end of a growing text could still become `stop`: the longest that `stop` begins with, but not all.

    Each character is looked at about once, whatever the strings (Knuth, Morris and Pratt, 1977, "Fast Pattern Matching
    in Strings"). To compare every end anew costs the engine's thread milliseconds a token for a few long stop strings,
    and every other request waits for them.
    """

    def __init__(self, stop: str) -> None:
        self._stop = stop
        self._borders = borders(stop)
        self.length = 0

    def extend(self, text: str) -> None:
        stop, length = self._stop, self.length
        for character in text:
            while length and stop[length] != character:
                length = self._borders[length - 1]
            length += stop[length] == character
            if length == len(stop):
                length = self._borders[-1]
        self.length = length


@lru_cache(maxsize=256)
def borders(text: str) -> tuple[int, ...]:
    """For each beginning of `text`, the length of the longest shorter beginning that it also ends with."""
    found = [0]
    for end in range(1, len(text)):
        length = found[-1]
        while length and text[length] != text[end]:
            length = found[length - 1]
        found.append(length + (text[length] == text[end]))
    return tuple(found)


def decode_all(
    tokenizer: Any,
    prompt_token_ids: Sequence[int],
    output_token_ids: Sequence[int],
    skip_special_tokens: bool = True,
    stop: Sequence[str] = (),
    include_stop_str_in_output: bool = False,
    min_tokens: int = 0,
) -> str:
    """The text of a finished sequence: what the streamed pieces add up to."""
    detokenizer = IncrementalDetokenizer(
        tokenizer, prompt_token_ids, skip_special_tokens, stop, include_stop_str_in_output, min_tokens
    )
    for token_id in output_token_ids:
        detokenizer.append(token_id)
    detokenizer.finish()
    return detokenizer.text


@lru_cache(maxsize=16)
def _decoder(tokenizer: Any, skip_special_tokens: bool) -> Callable[[list[int]], str]:
    """The function from ids to text. A model's vocabulary may be padded; ids that the tokenizer lacks have no text.

    Fast tokenizers are asked without transformers' wrapper, which costs more than the decoding.
    """
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if isinstance(backend, Tokenizer):
        return lambda ids: backend.decode(ids, skip_special_tokens=skip_special_tokens)
    vocab = len(tokenizer)

    def decode(ids: list[int]) -> str:
        known = [token for token in ids if token < vocab]
        return tokenizer.decode(known, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False)

    return decode
