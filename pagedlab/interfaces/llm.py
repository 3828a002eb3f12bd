"""LLM: the engine for scripts and notebooks. Method names and arguments follow vLLM's LLM."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from pagedlab.errors import GenerationError, InvalidRequestError
from pagedlab.interfaces.engine import EngineStats, LLMEngine
from pagedlab.interfaces.input_processing import Prompt
from pagedlab.interfaces.outputs import (
    BeamSearchOutput,
    BeamSearchSequence,
    EmbeddingOutput,
    EmbeddingRequestOutput,
    PoolingRequestOutput,
    RequestOutput,
)
from pagedlab.interfaces.vllm_options import engine_config
from pagedlab.model_authoring.request import PoolingParams
from pagedlab.sampling_params import BeamSearchParams, RequestOutputKind, SamplingParams

Params = SamplingParams | BeamSearchParams | PoolingParams


class LLM:
    """A model that answers many prompts at once.

    >>> llm = LLM()                                                          # SmolLM2-135M-Instruct
    >>> outputs = llm.generate(["The capital of France is"], SamplingParams(temperature=0))
    >>> print(outputs[0].outputs[0].text)

    Args:
        model: Hugging Face directory or repository id; None is the default model.
        options: any field of EngineConfig: dtype, block_size, num_blocks, scheduling_policy ... Of vLLM's others, those
            that change no token are passed over, and the rest are refused by name.

    Raises:
        ConfigError, ModelError, BackendError: with one sentence that says what to change.
    """

    def __init__(self, model: str | Path | None = None, **options: Any) -> None:
        self.llm_engine = LLMEngine(engine_config(model, options))
        self._num_requests = 0
        self._streams: dict[str, deque[Any]] = {}
        """Outputs that streams have not read: any call may step the engine, and each step advances every request."""

    @property
    def model_path(self) -> Path | None:
        """The directory that the model was read from."""
        return self.llm_engine.parts.model_path

    def get_tokenizer(self) -> Any:
        """The Hugging Face tokenizer; None with skip_tokenizer_init=True."""
        return self.llm_engine.tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """What generate() and chat() take where they are given none: the model's generation_config.json, if it advises
        something, over SamplingParams()."""
        return SamplingParams(**self.llm_engine.parts.default_sampling)

    def stats(self) -> EngineStats:
        """Counters of all calls so far."""
        return self.llm_engine.stats()

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
        *,
        priority: Sequence[int] | None = None,
    ) -> list[RequestOutput]:
        """Complete every prompt.

        Args:
            prompts: one prompt or a list of them: text, token ids, {"prompt": ...}, {"prompt_token_ids": ...}.
            sampling_params: one for all, or one a prompt; None is get_default_sampling_params().
            use_tqdm: show a progress bar.
            priority: one number a prompt, smaller first, under scheduling_policy="priority".

        Returns:
            one RequestOutput a prompt, in their order.

        Raises:
            InvalidRequestError: a prompt or an option cannot be served; none of the prompts has then been run.
            GenerationError: some requests failed while they ran; `.outputs` holds them all.
        """
        items = as_prompt_list(prompts)
        params = _one_each(sampling_params, self.get_default_sampling_params(), len(items))
        return self._run(items, params, use_tqdm, priority)

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]] | Sequence[Sequence[Mapping[str, Any]]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
        *,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answer one conversation or a list of them, written with the model's chat template.

        Args:
            messages: [{"role": "user", "content": "..."}, ...], or a list of such lists.
            chat_template: a Jinja template in place of the model's.
            add_generation_prompt: end the prompt where the assistant's turn begins.
            continue_final_message: go on within the last message (then without add_generation_prompt).
            tools: descriptions of functions, for templates that show them to the model.
            chat_template_kwargs: more of what the template reads, such as Qwen3's enable_thinking.

        Raises:
            InvalidRequestError: there is no chat template, it refuses the messages, or a message is malformed.
        """
        conversations = [messages] if messages and isinstance(messages[0], Mapping) else messages
        options: dict[str, Any] = {
            **(chat_template_kwargs or {}),
            "chat_template": chat_template,
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": continue_final_message,
            "tools": tools,
        }
        items = [self.apply_chat_template(conversation, **options) for conversation in conversations]
        params = _one_each(sampling_params, self.get_default_sampling_params(), len(items))
        return self._run(items, params, use_tqdm, add_special_tokens=False)

    def apply_chat_template(self, messages: Any, *, add_generation_prompt: bool = True, **options: Any) -> str:
        """The prompt text of one conversation; options are those of transformers' apply_chat_template."""
        tokenizer = self.get_tokenizer()
        if tokenizer is None or not (options.get("chat_template") or getattr(tokenizer, "chat_template", None)):
            raise InvalidRequestError("The model has no chat template (a base model?): use generate() with plain text.")
        for message in messages:
            if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
                raise InvalidRequestError(f'Each message must be {{"role": ..., "content": ...}}, got {message!r}.')
        try:
            return tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=add_generation_prompt, **options
            )
        except Exception as error:  # a template is the model's own code and may raise anything
            raise InvalidRequestError(f"The chat template refused the messages: {error}.") from error

    def stream(self, prompt: Prompt, sampling_params: SamplingParams | None = None) -> Generator[str, None, None]:
        """Yield one prompt's text piece by piece; closing the iterator early aborts the request.

        Streams may be read in turns, and other calls made in between: whoever steps the engine advances them all.
        Text that may still change is held back: half a character, or the start of a stop string.
        """
        params = (sampling_params or self.get_default_sampling_params()).clone(output_kind=RequestOutputKind.DELTA)
        if params.n != 1:
            raise InvalidRequestError("stream() follows one completion: use n=1, or generate().")
        request_id = self._next_id()
        self.llm_engine.add_request(request_id, prompt, params)
        unread = self._streams[request_id] = deque()
        try:
            while unread or self.llm_engine.has_unfinished_requests():
                if not unread:
                    self._step()
                    continue
                output = unread.popleft()
                if output.outputs[0].text:
                    yield output.outputs[0].text
                _raise_failures([output])
                if output.finished:
                    return
        finally:
            del self._streams[request_id]
            self.llm_engine.abort_request(request_id)

    def beam_search(
        self, prompts: Prompt | Sequence[Prompt], params: BeamSearchParams, use_tqdm: bool = False
    ) -> list[BeamSearchOutput]:
        """The `beam_width` most probable continuations of each prompt, best first.

        The returned tokens hold the prompt and the continuation, as in vLLM.
        """
        if not isinstance(params, BeamSearchParams):
            raise InvalidRequestError(f"beam_search() takes BeamSearchParams, got {type(params).__name__}.")
        items = as_prompt_list(prompts)
        results = []
        for output in self._run(items, [params] * len(items), use_tqdm):
            sequences = [
                BeamSearchSequence(
                    tokens=[*output.prompt_token_ids, *completion.token_ids],
                    cum_logprob=completion.cumulative_logprob or 0.0,
                    text=completion.text,
                    finish_reason=completion.finish_reason,
                )
                for completion in output.outputs
            ]
            results.append(BeamSearchOutput(sequences))
        return results

    def encode(
        self,
        prompts: Prompt | Sequence[Prompt],
        pooling_params: PoolingParams | None = None,
        use_tqdm: bool = True,
    ) -> list[PoolingRequestOutput]:
        """One vector for each prompt, pooled from the last layer's hidden states: `.outputs.data` [hidden_size]."""
        params = PoolingParams() if pooling_params is None else pooling_params
        if not isinstance(params, PoolingParams):
            raise InvalidRequestError(f"encode() takes PoolingParams, got {type(params).__name__}.")
        items = as_prompt_list(prompts)
        return self._run(items, [params] * len(items), use_tqdm)

    def embed(self, prompts: Prompt | Sequence[Prompt], use_tqdm: bool = True) -> list[EmbeddingRequestOutput]:
        """One vector of length 1 for each prompt, as a list of numbers: `.outputs.embedding` [hidden_size]."""
        return [
            EmbeddingRequestOutput(
                output.request_id, EmbeddingOutput(output.outputs.data.tolist()), output.prompt_token_ids
            )
            for output in self.encode(prompts, use_tqdm=use_tqdm)
        ]

    def reset_prefix_cache(self) -> None:
        """Forget every cached prefix."""
        self.llm_engine.reset_prefix_cache()

    # ---- running ------------------------------------------------------------------------------------------------

    def _next_id(self) -> str:
        self._num_requests += 1
        return str(self._num_requests - 1)

    def _step(self) -> list[Any]:
        """Advance every request, and keep what is new for the streams."""
        outputs = self.llm_engine.step()
        for output in outputs:
            if output.request_id in self._streams:
                self._streams[output.request_id].append(output)
        return outputs

    def _run(
        self,
        prompts: Sequence[Prompt],
        params: Sequence[Params],
        use_tqdm: bool,
        priority: Sequence[int] | None = None,
        add_special_tokens: bool = True,
    ) -> list[Any]:
        """Queue all prompts, or none if one is refused, and step until they have ended."""
        priorities = _one_each(list(priority) if priority is not None else None, 0, len(prompts))
        ids: list[str] = []
        done: dict[str, Any] = {}
        try:
            for prompt, one, rank in zip(prompts, params, priorities, strict=True):
                if isinstance(one, SamplingParams):
                    one = one.clone(output_kind=RequestOutputKind.FINAL_ONLY)
                request_id = self._next_id()
                self.llm_engine.add_request(
                    request_id, prompt, one, priority=rank, add_special_tokens=add_special_tokens
                )
                ids.append(request_id)
            mine = set(ids)
            with tqdm(total=len(ids), desc="Processed prompts", disable=not use_tqdm) as bar:
                while len(done) < len(ids):
                    if not self.llm_engine.has_unfinished_requests():
                        raise GenerationError(
                            f"{len(ids) - len(done)} of {len(ids)} requests were aborted from elsewhere.",
                            [*done.values()],
                        )
                    for output in self._step():
                        if output.request_id in mine:
                            done[output.request_id] = output
                            bar.update()
        except BaseException:
            # Whatever went wrong (a refusal, Ctrl-C): the next call must not find this one's requests.
            self.llm_engine.abort_request(ids)
            raise
        outputs = [done[request_id] for request_id in ids]
        _raise_failures(outputs)
        return outputs


def as_prompt_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt, or many: a bare list of integers is one prompt of token ids."""
    if isinstance(prompts, (str, Mapping)):
        return [prompts]
    if hasattr(prompts, "tolist"):
        prompts = prompts.tolist()
    if not isinstance(prompts, Sequence):
        raise InvalidRequestError(f"prompts must be text, token ids or a list of them, got {type(prompts).__name__}.")
    if prompts and isinstance(prompts[0], Integral):
        return [prompts]  # type: ignore[list-item]
    return list(prompts)  # type: ignore[arg-type]


def _one_each(value: Any, default: Any, count: int) -> list[Any]:
    """`count` values: those of a list, or `value` (`default`, if that is None) again and again."""
    value = default if value is None else value
    if not isinstance(value, (list, tuple)):
        return [value] * count
    if len(value) != count:
        raise InvalidRequestError(
            f"Got {count} prompts and {len(value)} parameters: give one for all, or one a prompt."
        )
    return list(value)


def _raise_failures(outputs: list[Any]) -> None:
    failed = []
    for output in outputs:
        completions = output.outputs if isinstance(output, RequestOutput) else []
        # A completion that had ended before its sibling failed keeps its own reason: look at all of them.
        failed += [one for one in completions if one.finish_reason == "error"][:1]
    if failed:
        raise GenerationError(
            f"{len(failed)} of {len(outputs)} requests failed; the first: {failed[0].stop_reason}", outputs
        )
