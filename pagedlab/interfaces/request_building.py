"""RequestBuilder: makes of a caller's prompt and options the sequences that will run, or refuses them."""

from __future__ import annotations

import hashlib
import time
from typing import Any

from pagedlab.interfaces.detokenizer import IncrementalDetokenizer
from pagedlab.interfaces.input_processing import (
    Limits,
    Prompt,
    check_call,
    check_lengths,
    check_params,
    check_prompt,
    parse_prompt,
)
from pagedlab.interfaces.output_processing import Completion, Generation
from pagedlab.interfaces.outputs import RequestMetrics
from pagedlab.interfaces.sampling_options import bad_word_ids, own_params
from pagedlab.model_authoring.beam_search import Beam, BeamSearch
from pagedlab.model_authoring.request import PoolingParams, Request
from pagedlab.sampling_params import BeamSearchParams, SamplingParams


class RequestBuilder:
    """Knows what the engine can serve and queues nothing: a refusal leaves the engine as it was.

    Args:
        limits: of one request.
        tokenizer: a Hugging Face tokenizer, or None.
        eos_token_ids: end of text.
        seed: the engine's; seeds of requests that name none are derived from it.
    """

    def __init__(self, limits: Limits, tokenizer: Any | None, eos_token_ids: frozenset[int], seed: int) -> None:
        self.limits = limits
        self.tokenizer = tokenizer
        self.eos_token_ids = eos_token_ids
        self.seed = seed

    def build(
        self,
        request_id: str,
        prompt: Prompt,
        params: SamplingParams | BeamSearchParams | PoolingParams,
        *,
        arrival: int,
        priority: int = 0,
        cache_salt: str | None = None,
        add_special_tokens: bool = True,
    ) -> Generation:
        """A request that is ready to be queued; arguments as in LLMEngine.add_request, `arrival` as in Request.

        Raises:
            InvalidRequestError: the request could never be served.
        """
        check_call(request_id, params, priority, cache_salt)
        text, token_ids = parse_prompt(prompt, self.tokenizer, add_special_tokens)
        check_prompt(token_ids, self.limits)
        if isinstance(params, SamplingParams):
            params = own_params(params, len(token_ids), self.limits)
        root = Request(
            request_id=request_id,
            prompt_token_ids=token_ids,
            params=params if isinstance(params, SamplingParams) else SamplingParams(max_tokens=1),
            arrival=arrival,
            priority=priority,
            cache_salt=cache_salt,
        )
        generation = Generation(request_id, text, root, RequestMetrics(arrival_time=time.perf_counter()))
        if isinstance(params, BeamSearchParams):
            self._prepare_beams(root, generation, params)
        elif isinstance(params, PoolingParams):
            check_lengths(len(token_ids), 0, 1, self.limits)
            root.pooling = params
        else:
            self._prepare_completions(root, generation, params)
        return generation

    def _prepare_completions(self, root: Request, generation: Generation, params: SamplingParams) -> None:
        check_params(params, self.limits, self.tokenizer is not None)
        check_lengths(root.num_prompt_tokens, root.max_tokens, params.n, self.limits)
        eos = frozenset() if params.ignore_eos else self.eos_token_ids
        root.stop_token_ids = eos | frozenset(params.stop_token_ids or ())
        root.bad_word_ids = bad_word_ids(params.bad_words or (), self.tokenizer)
        root.seed = params.seed if params.seed is not None else derive_seed(self.seed, root.arrival)
        for index in range(1, params.n):
            child = Request(
                request_id=f"{root.request_id}/{index}",
                prompt_token_ids=root.prompt_token_ids,
                params=params,
                stop_token_ids=root.stop_token_ids,
                bad_word_ids=root.bad_word_ids,
                seed=root.seed + index,
                arrival=root.arrival,
                priority=root.priority,
                cache_salt=root.cache_salt,
                group_id=root.request_id,
                index=index,
            )
            root.pending_forks.append(child)
        root.num_reserved_seats = len(root.pending_forks)
        generation.completions = [
            Completion(sequence, self._detokenizer(sequence)) for sequence in (root, *root.pending_forks)
        ]

    def _prepare_beams(self, root: Request, generation: Generation, params: BeamSearchParams) -> None:
        check_lengths(root.num_prompt_tokens, params.max_tokens, params.beam_width, self.limits)
        root.num_candidates = 2 * params.beam_width
        root.num_reserved_seats = params.beam_width - 1
        generation.beam_search = BeamSearch(params, self.eos_token_ids, [Beam(root)])

    def _detokenizer(self, sequence: Request) -> IncrementalDetokenizer | None:
        params = sequence.params
        if self.tokenizer is None or not params.detokenize:
            return None
        return IncrementalDetokenizer(
            self.tokenizer,
            sequence.prompt_token_ids,
            skip_special_tokens=params.skip_special_tokens,
            stop=tuple(params.stop or ()),
            include_stop_str_in_output=params.include_stop_str_in_output,
            min_tokens=params.min_tokens,
        )


def derive_seed(*numbers: int) -> int:
    """A seed that is fixed by `numbers` and unlike those of neighbouring ones."""
    digest = hashlib.sha256(repr(numbers).encode()).digest()
    return int.from_bytes(digest[:7], "little")
