"""/v1/completions: prompts in, continuations out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from fastapi import APIRouter, Request

from pagedlab.interfaces.openai_server.answer_size import answer_size
from pagedlab.interfaces.openai_server.logprobs import Entry, completion_logprobs
from pagedlab.interfaces.openai_server.protocol import CompletionBody
from pagedlab.interfaces.openai_server.responses import (
    CompletionChoice,
    CompletionLogprobs,
    CompletionResponse,
    now,
    with_list,
)
from pagedlab.interfaces.openai_server.serving import (
    PromptTokens,
    Serving,
    UsageCount,
    check_completion,
)
from pagedlab.interfaces.outputs import CompletionOutput, RequestOutput
from pagedlab.interfaces.request_stream import RequestStream

router = APIRouter()

DEFAULT_MAX_TOKENS = 16
"""OpenAI's."""


@router.post("/v1/completions", response_model=CompletionResponse)
async def create_completion(body: CompletionBody, request: Request) -> Any:
    """Continue each prompt n times."""
    serving: Serving = request.app.state.serving
    model = serving.model(body.model)
    prompts = await serving.read_prompts(body.prompt, body.add_special_tokens)
    asked = body.max_tokens
    if asked is None:
        asked = serving.default_max_tokens(prompts, otherwise=DEFAULT_MAX_TOKENS)
    answer = CompletionAnswer(body, model, prompts, serving)
    params = body.sampling_params(
        serving.engine.default_sampling,
        max_tokens=max(1, asked),
        logprobs=body.logprobs,
        prompt_logprobs=body.logprobs if body.echo else None,
    )
    stream = serving.submit(request, "cmpl", prompts, params, body.cache_salt, body.priority)
    answer.id = stream.request_ids[0] if len(prompts) == 1 else request.state.engine_request_id
    if body.stream:
        return serving.event_stream(stream, answer.chunks(stream))
    outputs = await serving.outputs(request, stream)
    return await serving.write(lambda: answer.whole(outputs), answer_size(outputs))


class CompletionAnswer:
    """What becomes of one body: choice i * n + j is the jth completion of prompt i."""

    def __init__(self, body: CompletionBody, model: str, prompts: Sequence[PromptTokens], serving: Serving) -> None:
        self.id = ""
        self.body = body
        self.model = model
        self.prompts = prompts
        self.n = body.n or 1
        self.created = now()
        self.decode = serving.tokenizer.decode
        self.counted = UsageCount(sum(len(prompt.token_ids) for prompt in prompts))
        self.echo_only = body.echo and body.max_tokens == 0
        """Nothing was to be generated: the prompt and its log-probabilities are all that is wanted."""

    def whole(self, outputs: Sequence[Any]) -> str:
        """The answer's JSON."""
        for output in outputs:
            self._count(output)
        return with_list(self._response([], usage=self.counted.usage()), "choices", self._choices(outputs))

    def _choices(self, outputs: Sequence[Any]) -> Iterator[CompletionChoice]:
        """One after the other: with log-probabilities each is megabytes of objects until it is written."""
        for index, output in enumerate(outputs):
            for completion in output.outputs:
                check_completion(completion)
                echo_text, echo_entries = self._echo(index, output)
                entries: list[Entry | None] = [*echo_entries, *self._entries(completion)]
                yield CompletionChoice(
                    index=index * self.n + completion.index,
                    text=echo_text + ("" if self.echo_only else completion.text),
                    logprobs=self._logprobs(index, entries),
                    finish_reason="length" if self.echo_only else completion.finish_reason,
                    stop_reason=completion.stop_reason,
                )

    async def chunks(self, stream: RequestStream) -> AsyncIterator[CompletionResponse]:
        """One chunk for each completion that a step brought news of."""
        options = self.body.stream_options
        with_usage = options is not None and options.continuous_usage_stats
        offsets: dict[int, int] = {}
        ended: set[int] = set()
        async for prompt_index, output in stream:
            assert isinstance(output, RequestOutput)
            self._count(output)
            for completion in output.outputs:
                index = prompt_index * self.n + completion.index
                check_completion(completion)
                if index in ended:
                    continue
                text = completion.text
                entries: list[Entry | None] = [*self._entries(completion)]
                if self.echo_only:
                    text = ""
                if index not in offsets and (completion.token_ids or completion.finish_reason):
                    echo_text, echo_entries = self._echo(prompt_index, output)
                    text, entries, offsets[index] = echo_text + text, [*echo_entries, *entries], 0
                if completion.finish_reason:
                    ended.add(index)
                elif not text and not entries:
                    continue
                logprobs = self._logprobs(prompt_index, entries, offsets[index])
                offsets[index] += sum(map(len, logprobs.tokens)) if logprobs else len(text)
                choice = CompletionChoice(
                    index=index,
                    text=text,
                    logprobs=logprobs,
                    finish_reason=completion.finish_reason,
                    stop_reason=completion.stop_reason,
                )
                yield self._response([choice], **({"usage": self.counted.usage()} if with_usage else {}))
        if options is not None and options.include_usage:
            yield self._response([], usage=self.counted.usage())

    def _response(self, choices: list[CompletionChoice], **options: Any) -> CompletionResponse:
        common = {"id": self.id, "object": "text_completion", "created": self.created, "model": self.model}
        return CompletionResponse(**common, choices=choices, **options)  # type: ignore[arg-type]

    def _count(self, output: RequestOutput) -> None:
        if self.echo_only:
            for completion in output.outputs:
                completion.token_ids = []
        self.counted.add(output)

    def _echo(self, prompt_index: int, output: RequestOutput) -> tuple[str, list[Entry | None]]:
        """The prompt's text and log-probabilities, if the answer is to begin with them."""
        if not self.body.echo:
            return "", []
        prompt = self.prompts[prompt_index]
        text = prompt.text if prompt.text is not None else self.decode(prompt.token_ids)
        return text, list(output.prompt_logprobs or ())

    def _entries(self, completion: CompletionOutput) -> list[Entry]:
        return [] if self.echo_only else list(completion.logprobs or ())

    def _logprobs(
        self, prompt_index: int, entries: Sequence[Entry | None], text_offset: int = 0
    ) -> CompletionLogprobs | None:
        if self.body.logprobs is None:
            return None
        first = self.decode(self.prompts[prompt_index].token_ids[:1])
        return completion_logprobs(entries, text_offset, first)
