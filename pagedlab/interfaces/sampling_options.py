"""What SamplingParams come to: the model's own defaults; for one prompt a copy, its room, its bad words as tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pagedlab.errors import InvalidRequestError, ModelError
from pagedlab.interfaces.input_processing import Limits
from pagedlab.model_authoring.models.config import read_json
from pagedlab.sampling_params import SamplingParams

GENERATION_FIELDS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "max_new_tokens": "max_tokens",
}
"""What generation_config.json may say of sampling, and its name here. (do_sample is not read, as in vLLM.)"""


def read_default_sampling(model_path: Path) -> dict[str, Any]:
    """The sampling options in a model's generation_config.json, by the names of SamplingParams; none without the file.

    Raises:
        ModelError: a value is out of its range.
    """
    file = model_path / "generation_config.json"
    advice = read_json(file) if file.is_file() else {}
    found = {ours: advice[name] for name, ours in GENERATION_FIELDS.items() if advice.get(name) is not None}
    try:
        SamplingParams(**found)
    except InvalidRequestError as error:
        raise ModelError(f"{file}: {error} Mend it, or pass generation_config='vllm' to leave it unread.") from None
    return found


def own_params(params: SamplingParams, num_prompt_tokens: int, limits: Limits) -> SamplingParams:
    """A checked copy that nobody else can change, with `max_tokens` filled in.

    Raises:
        InvalidRequestError: a value was set that is out of its range.
    """
    return params.clone(max_tokens=most_tokens(params, num_prompt_tokens, limits))


def most_tokens(params: SamplingParams, num_prompt_tokens: int, limits: Limits) -> int:
    """`max_tokens`; where that is None, all that there is room for."""
    return params.max_tokens if params.max_tokens is not None else room_behind(num_prompt_tokens, limits)


def room_behind(num_prompt_tokens: int, limits: Limits) -> int:
    """Tokens that the model's positions and the KV pool leave to a prompt; at least 1, for the engine to refuse."""
    # The last token generated needs no slot.
    return max(1, min(limits.max_model_len, limits.num_blocks * limits.block_size + 1) - num_prompt_tokens)


def bad_word_ids(words: Sequence[str], tokenizer: Any | None) -> tuple[tuple[int, ...], ...]:
    """Token sequences that write one of `words`, as vLLM finds them.

    A word is written at the beginning of a text and behind a space. Both forms count, the second one only if it is
    another token in the first one's place (" word" is one for a byte-level BPE; where a space is a token of its own the
    first form is all there is). Other spellings, "WORD" or "w ord", are other words.

    Raises:
        InvalidRequestError: a word has no tokens.
    """
    found: dict[tuple[int, ...], None] = {}
    for word in words:
        assert tokenizer is not None, "check_params refuses them"
        bare, spaced = (
            tuple(tokenizer.encode(text, add_special_tokens=False)) for text in (word.lstrip(), " " + word.lstrip())
        )
        if not bare:
            raise InvalidRequestError(f"bad_words has {word!r}, for which the tokenizer has no token: leave it out.")
        found[bare] = None
        if spaced and spaced[0] != bare[0] and len(spaced) == len(bare):
            found[spaced] = None
    return tuple(found)
