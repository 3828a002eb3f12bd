"""How large an answer may get, and how large it is: log-probabilities are most of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pagedlab.interfaces.input_processing import Limits
from pagedlab.interfaces.openai_server.errors import ApiError
from pagedlab.interfaces.sampling_options import most_tokens
from pagedlab.sampling_params import SamplingParams

MAX_LOGPROB_ENTRIES = 1 << 22
"""Of one call. Each takes some 150 bytes while it runs, and 60 in a chat answer: a gigabyte in all."""


def check_answer_size(prompt_lengths: Sequence[int], params: SamplingParams, limits: Limits) -> None:
    """Refuse a call whose log-probabilities, 20 and the chosen token's at each position, could fill the memory.

    Raises:
        ApiError: 400, with what to change.
    """
    if params.logprobs is None:
        return
    entries = 0
    for length in prompt_lengths:
        echoed = 0 if params.prompt_logprobs is None else length * (1 + params.prompt_logprobs)
        entries += params.n * (echoed + most_tokens(params, length, limits) * (1 + params.logprobs))
    if entries > MAX_LOGPROB_ENTRIES:
        raise ApiError(
            400,
            f"The answer may have {entries} log-probabilities, and {MAX_LOGPROB_ENTRIES} are allowed: ask for fewer at "
            "each token, or lower max_tokens, n or the number of prompts.",
            param="logprobs",
        )


def answer_size(outputs: Sequence[Any]) -> int:
    """Choices and log-probabilities of a whole answer; those of the prompt are in each of its choices."""
    size = 0
    for output in outputs:
        num_echoed = sum(map(len, filter(None, output.prompt_logprobs or ())))
        size += sum(1 + num_echoed + sum(map(len, one.logprobs or ())) for one in output.outputs)
    return size
